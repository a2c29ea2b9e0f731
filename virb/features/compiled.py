"""Encoders compiled by ``torch.compile`` (``--compile``), one graph per encoder and set of outputs; eager where that fails.

Compiled code rounds in other places, and convolutions on GPUs get their images with channels last: so the record of numerics says
``compile``, and no value of the one kind is taken for the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from virb.encoders.base import Encoder

COMPILED = {"cpu": "inductor", "cuda": "inductor, convnets with channels last"}  # the word in the record of numerics
BACKEND = "inductor"
Forward = Callable[[Encoder, torch.Tensor], Mapping[str, Any]]
_forwards: WeakKeyDictionary[Any, dict[tuple[str, ...], Forward | None]] = WeakKeyDictionary()  # None: could not be compiled


def compiled(encoder: Encoder, images: torch.Tensor, requests: Sequence[str], notes: list[str] | None = None) -> Mapping[str, Any]:
    """``encoder(images, requests)`` by compiled code. What cannot be compiled is computed as usual, and ``notes`` is told once."""
    known = _forwards.setdefault(encoder, {})
    if channels_last(encoder, images.device):
        if not known:
            encoder.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    wanted = tuple(requests)
    if wanted not in known:
        known[wanted] = _forward(wanted)
    run = known[wanted]
    if run is None:
        return encoder(images, requests)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about how it sees our code
            return run(encoder, images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything; where the network itself is wrong, the next line says so
        found = encoder(images, requests)
        known[wanted] = None
        if notes is not None:
            reason = " ".join([*str(error).split("\n")[:2], ""]).strip() or type(error).__name__
            notes.append(f"{encoder.spec.name} cannot be compiled and runs as without --compile ({reason[:200]})")
        return found


def _forward(requests: tuple[str, ...]) -> Forward:
    """A compiled forward that keeps no encoder alive."""

    def run(encoder: Encoder, images: torch.Tensor) -> Mapping[str, Any]:
        return encoder(images, requests)

    # The compiler counts what it compiled by the code it came from, and gives up after a few: so each encoder has code of its own.
    run.__code__ = run.__code__.replace()
    return torch.compile(run, dynamic=False, backend=BACKEND)


def channels_last(encoder: Encoder, device: torch.device) -> bool:
    """Whether an encoder is mostly convolutions, on a device that has faster ones for images with channels last."""
    if device.type != "cuda" or encoder.spec.n_heads is not None:
        return False
    return any(isinstance(part, torch.nn.Conv2d) and max(part.kernel_size) > 1 and part.in_channels > 3 for part in encoder.modules())
