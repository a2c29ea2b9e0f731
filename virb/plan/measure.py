"""Small trials while planning: the shape of an output, and seconds per image, so that mistakes and times are known before a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from virb.data.images import ImageList
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder, Request
from virb.errors import UserError, ViRBError
from virb.features.encoding import Numerics, forward

_IMAGES = 4  # of noise, in one batch
_LONG = 1.5  # seconds after which a trial is not repeated
_GPU_SPEEDUP = 150  # over one CPU thread: the order of magnitude, since nothing is run on the GPU while planning
_NATIVE = (64, 64)  # what stands for images of any size
_FLOAT32 = Numerics("float32", "cpu")


@dataclass
class Meter:
    """Trials, each made once. They run on the CPU with one thread, as its workers do."""

    device_kind: str = "cpu"
    _outputs: dict[tuple[str, tuple[int, int], str], tuple[tuple[int, ...], float]] = field(default_factory=dict)
    _decodes: dict[tuple[str, Geometry], float] = field(default_factory=dict)

    def output(self, encoder: Encoder, geometry: Geometry, request: str) -> tuple[tuple[int, ...] | None, float]:
        """Shape of one row (None for maps of images of any size) and seconds per image; UserError when the encoder cannot do it."""
        size = geometry.size or _NATIVE
        key = (encoder.spec.encoder_id, size, request)
        if key not in self._outputs:
            self._outputs[key] = _try(encoder, size, request)
        shape, seconds = self._outputs[key]
        known = geometry.size or Request.parse(request).kind == "vector"
        return shape if known else None, seconds / (1 if self.device_kind == "cpu" else _GPU_SPEEDUP)

    def decode(self, images: ImageList, geometry: Geometry) -> float:
        """Seconds to read an image and bring it to a geometry, from a few of the list."""
        key = (images.identity(), replace(geometry, view=None))
        if key not in self._decodes:
            self._decodes[key] = _decode_seconds(images, geometry)
        return self._decodes[key]


def _try(encoder: Encoder, size: tuple[int, int], request: str) -> tuple[tuple[int, ...], float]:
    noise = torch.randint(0, 256, (_IMAGES, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: list[torch.Tensor] = []
        seconds = _fastest(lambda: found.append(forward(encoder, noise, [request], torch.device("cpu"), _FLOAT32, _IMAGES)[request]))
    except ViRBError:
        raise
    except Exception as error:
        raise UserError(f"{request} fails on images of {size[0]} x {size[1]}: {type(error).__name__}: {error}") from error
    finally:
        torch.set_num_threads(threads)
    if not torch.isfinite(found[0]).all():
        raise UserError(f"{request} is NaN or infinite on noise; check the weights")
    return tuple(found[0].shape[1:]), seconds / _IMAGES


def _decode_seconds(images: ImageList, geometry: Geometry) -> float:
    rows = np.unique(np.linspace(0, len(images) - 1, 3).astype(int)).tolist()
    try:
        _read(images, geometry, rows[0])  # imports what resizes
        return sum(_fastest(partial(_read, images, geometry, row)) for row in rows) / len(rows)
    except Exception:  # noqa: BLE001 - a damaged file, a user's own renderer: the pass says which image it is, here it is only a time
        return 0.0


def _read(images: ImageList, geometry: Geometry, row: int) -> torch.Tensor:
    return geometry.apply(images.pixels(row, geometry.decoder), row)


def _fastest(function: Callable[[], object]) -> float:
    """Seconds of the faster of two calls, since the first also warms up; a slow first one is enough."""
    seconds: list[float] = []
    while len(seconds) < 2 and sum(seconds) < _LONG:
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
