"""Matrix products in float32, by whichever of torch's two libraries is the faster one on this processor.

``torch.mm`` asks BLAS. Its common build (MKL) keeps to 256-bit instructions on processors of other makers, which halves its speed on
those that have 512 bits; oneDNN, which torch carries too, has kernels for them whoever made the processor. The choice depends on the
processor and the sizes alone, never on a measurement, so that equal machines give equal bits. One thread computes one product: who
wants several cores to work gives each of them products of its own (see ``virb.probes.steps``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

_LEAST = 2**20  # multiplications under which looking up oneDNN's kernel costs more than it saves
_THIN = 16  # nor has it anything to give where a side is shorter than this


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, torch computes on a CPU with the calling thread alone: more of them would change last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` as ``torch.nn.functional.linear``, without a gradient: (n, d), (m, d), (m,) -> (n, m)."""
    if _suits_onednn(x, weight):
        product = onednn_linear()
        if product is not None:
            return product(x, weight, bias, "none", [], "")
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def linears(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """K of them: (K, n, d), (K, m, d), (K, m) -> (K, n, m)."""
    heads = len(x)
    if heads == 1:
        return linear(x[0], weight[0], None if bias is None else bias[0])[None]
    if _suits_onednn(x[0], weight[0]) and onednn_linear() is not None:
        return torch.stack([linear(x[k], weight[k], None if bias is None else bias[k]) for k in range(heads)])
    product = weight.transpose(1, 2)
    return torch.bmm(x, product) if bias is None else torch.baddbmm(bias[:, None], x, product)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    sides = (*x.shape, len(weight))
    return x.device.type == "cpu" and x.dtype == torch.float32 and math.prod(sides) >= _LEAST and min(sides) >= _THIN


@cache
def onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's product where it is the faster one: on processors with 512-bit instructions, with a torch that has it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return None
    # What torch.compile calls on CPUs; not part of torch's documented interface, so it may be gone, or take other arguments.
    found: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return found if found is not None and _multiplies(found) else None


def _multiplies(product: Callable[..., Tensor]) -> bool:
    """Whether it does on a small product what ``linear`` asks of it: called with all arguments that are ever given."""
    x, weight, bias = torch.arange(6.0).reshape(2, 3), torch.arange(12.0).reshape(4, 3), torch.arange(4.0)
    try:
        found = [product(x, weight, added, "none", [], "") for added in (None, bias)]
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    expected = torch.mm(x, weight.t())  # whole numbers: exact by any library
    return torch.equal(found[0], expected) and torch.equal(found[1], expected + bias)
