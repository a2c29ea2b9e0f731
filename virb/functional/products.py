"""Matrix products in float32, by whichever of torch's two libraries is the faster one on this processor.

``torch.mm`` asks BLAS. Its common build (MKL) keeps to 256-bit instructions on processors of other makers, which halves its speed on
those that have 512 bits; oneDNN, which torch carries too, has kernels for them whoever made the processor. The choice depends on the
processor and the sizes alone, never on a measurement, so that equal machines give equal bits. One thread computes one product: who
wants several cores to work gives each of them products of its own (see ``virb.probes.steps``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_LEAST = 2**20  # multiplications under which looking up oneDNN's kernel costs more than it saves
_THIN = 16  # nor has it anything to give where a side is shorter than this


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
    # What torch.compile calls on CPUs; not part of torch's documented interface, so it may be gone.
    found: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return found
