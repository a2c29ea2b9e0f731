"""Encoders compiled by ``torch.compile`` (``--compile``): one graph per encoder, set of outputs and shape of a batch.

Compiled code rounds in other places: so the record of numerics says ``compile``, and no value of the one kind is taken for the other.
What cannot be compiled is therefore an error, not computed some other way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch

from virb.encoders.base import Encoder
from virb.errors import ViRBError

COMPILED = "inductor"  # the word in the record of numerics
BACKEND = "inductor"
Forward = Callable[[Encoder, torch.Tensor], Mapping[str, Any]]
_forwards: WeakKeyDictionary[Any, dict[Hashable, Forward | str]] = WeakKeyDictionary()  # str: why it could not be compiled
_warm: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()


def compiled(encoder: Encoder, images: torch.Tensor, requests: Sequence[str]) -> Mapping[str, Any]:
    """``encoder(images, requests)`` by compiled code. ViRBError where that cannot be compiled."""
    known = _forwards.setdefault(encoder, {})
    wanted = (tuple(requests), tuple(images.shape))
    new = wanted not in known
    if new:
        known[wanted] = _forward(wanted[0])
    run = known[wanted]
    if isinstance(run, str):
        raise ViRBError(run)
    try:
        with warnings.catch_warnings(), _no_silent_fallback() if new else nullcontext():
            warnings.simplefilter("ignore")  # of the compiler, about how it sees our code
            return run(encoder, images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        encoder(images, requests)  # where the network itself is wrong, this says so
        reason = " ".join([*str(error).split("\n")[:2], ""]).strip() or type(error).__name__
        known[wanted] = f"{encoder.spec.name} cannot be compiled; run it without --compile ({reason[:200]})"
        raise ViRBError(known[wanted]) from error


def first_time(encoder: Encoder, what: Hashable) -> bool:
    """Whether nobody has asked for this encoder and this yet."""
    seen = _warm.setdefault(encoder, set())
    new = what not in seen
    seen.add(what)
    return new


def _forward(requests: tuple[str, ...]) -> Forward:
    """A compiled forward that keeps no encoder alive."""

    def run(encoder: Encoder, images: torch.Tensor) -> Mapping[str, Any]:
        return encoder(images, requests)

    # The compiler counts what it compiled by the code it came from, and gives up after a few: so each encoder has code of its own.
    run.__code__ = run.__code__.replace()
    return torch.compile(run, dynamic=False, backend=BACKEND)


def _no_silent_fallback() -> AbstractContextManager[Any]:
    """The compiler's giving up is an error, where this version of torch can make it one."""
    import torch._dynamo.config as config

    name = "fail_on_recompile_limit_hit"
    return config.patch({name: True}) if hasattr(config, name) else nullcontext()
