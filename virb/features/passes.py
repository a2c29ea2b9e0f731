"""A pass: one slice of an image list, each image decoded once, through every encoder and geometry that needs it, into the cache.

Bound by decoding for small encoders on a GPU, by the encoders otherwise; nothing but the outputs of one slice is held.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from virb.data.images import ImageList
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.errors import ViRBError
from virb.features.cache import STORAGE, FeatureCache

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Numerics:
    """How values are computed and kept; part of every cache key."""

    compute: str  # a key of PRECISIONS
    device_kind: str  # "cpu" or "cuda"

    def record(self) -> dict[str, str]:
        return {"compute": self.compute, "storage": STORAGE, "device": self.device_kind}

    def context(self) -> AbstractContextManager[Any]:
        if self.compute == "float32":
            return nullcontext()
        return torch.autocast(self.device_kind, dtype=PRECISIONS[self.compute])


@dataclass(frozen=True)
class Wanted:
    """One cache entry that a pass fills: this output of this encoder at this geometry."""

    encoder: str
    geometry: Geometry
    request: str
    key: str


@dataclass(frozen=True)
class PassOptions:
    numerics: Numerics
    batch_size: int
    loader_threads: int


@dataclass
class PassReport:
    """What a slice did: images decoded, seconds per stage, entries that failed and why."""

    decoded: int = 0
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "encode": 0.0, "write": 0.0})
    failed: dict[str, str] = field(default_factory=dict)  # entry key -> reason
    notes: list[str] = field(default_factory=list)


def run_slice(
    images: ImageList,
    start: int,
    stop: int,
    wanted: Sequence[Wanted],
    encoders: Mapping[str, Encoder],
    cache: FeatureCache,
    device: torch.device,
    options: PassOptions,
    tell: Callable[[int], None] = lambda done: None,
) -> PassReport:
    """Fills rows ``start`` to ``stop`` of every wanted entry. One encoder's failure does not stop the others.

    Images that cannot be decoded are noted in the slice; each task decides what that means for its samples (``on_bad_image``)."""
    report = PassReport()
    by_geometry: dict[Geometry, dict[str, list[Wanted]]] = defaultdict(lambda: defaultdict(list))
    for item in wanted:
        by_geometry[item.geometry][item.encoder].append(item)
    kept: dict[str, list[torch.Tensor]] = defaultdict(list)
    bad: dict[int, str] = {}

    def count(n: int) -> None:
        report.decoded += n

    rows = np.arange(start, stop)
    batches = load_batches(images, rows, tuple(by_geometry), options.batch_size, options.loader_threads, on_bad_image="skip", count=count)
    for batch in _timed(batches, report, "decode"):
        bad.update(batch.bad)
        began = time.perf_counter()
        for geometry, users in by_geometry.items():
            for name, items in users.items():
                live = [item for item in items if item.key not in report.failed]
                if not live:
                    continue
                try:
                    outputs = encode(encoders[name], batch.pixels[geometry], [i.request for i in live], device, options, report.notes)
                    for item in live:
                        _check_finite(outputs[item.request], name, item.request, images, batch.rows, bad)
                        kept[item.key].extend(outputs[item.request])
                except ViRBError as error:
                    report.failed.update({item.key: str(error) for item in live})
        report.seconds["encode"] += time.perf_counter() - began
        report.rows += len(batch.rows)
        tell(report.rows)
    began = time.perf_counter()
    for item in wanted:
        if item.key not in report.failed:
            cache.write_slice(item.key, start, _as_block(kept.pop(item.key)), bad)
    report.seconds["write"] += time.perf_counter() - began
    return report


def encode(
    encoder: Encoder,
    pixels: torch.Tensor | Sequence[torch.Tensor],
    requests: Sequence[str],
    device: torch.device,
    options: PassOptions,
    notes: list[str] | None = None,
) -> dict[str, list[torch.Tensor]]:
    """Outputs per request, one float32 CPU tensor per image. Batches have one fixed shape (the last is padded), so that no image's
    values depend on how many neighbours it has; images of different sizes go in runs of equal shape."""
    if isinstance(pixels, torch.Tensor):
        return _encode_block(encoder, pixels, requests, device, options, options.batch_size, notes)
    outputs: dict[str, list[torch.Tensor]] = {request: [] for request in requests}
    for begin, end in _runs_of_equal_shape(pixels):
        block = _encode_block(encoder, torch.stack(list(pixels[begin:end])), requests, device, options, end - begin, notes)
        for request in requests:
            outputs[request].extend(block[request])
    return outputs


def _encode_block(
    encoder: Encoder,
    pixels: torch.Tensor,
    requests: Sequence[str],
    device: torch.device,
    options: PassOptions,
    batch_size: int,
    notes: list[str] | None,
) -> dict[str, list[torch.Tensor]]:
    outputs: dict[str, list[torch.Tensor]] = {request: [] for request in requests}
    try:
        for begin in range(0, len(pixels), batch_size):
            part = pixels[begin : begin + batch_size]
            for request, values in forward(encoder, part, requests, device, options.numerics, batch_size).items():
                outputs[request].extend(values.cpu())
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        if batch_size == 1:
            raise ViRBError(
                f"{encoder.spec.name} ran out of memory on {device} with a single image of {tuple(pixels.shape[-2:])}"
            ) from error
        if notes is not None:
            notes.append(
                f"{device} ran out of memory encoding with {encoder.spec.name} (batch {batch_size}): going on with {batch_size // 2}"
            )
        return _encode_block(encoder, pixels, requests, device, options, batch_size // 2, notes)
    return outputs


def forward(
    encoder: Encoder, pixels: torch.Tensor, requests: Sequence[str], device: torch.device, numerics: Numerics, batch_size: int
) -> dict[str, torch.Tensor]:
    """One padded batch on the device: request -> (n, *shape) float32."""
    n = len(pixels)
    if n < batch_size:
        pixels = torch.cat([pixels, pixels.new_zeros((batch_size - n, *pixels.shape[1:]))])
    with torch.inference_mode(), numerics.context():
        found = encoder(encoder.prepare(pixels.to(device, non_blocking=True)), requests)
    outputs = {}
    for request in requests:
        values = found[request]
        if not isinstance(values, torch.Tensor):
            raise ViRBError(f"{request} of {encoder.spec.name} is several maps; ask for one of them (or reduce each and join with +)")
        if len(values) != batch_size:
            raise ViRBError(f"{encoder.spec.name} gave {len(values)} rows of {request} for a batch of {batch_size} images")
        outputs[request] = values[:n].float()
    return outputs


def _check_finite(
    values: Sequence[torch.Tensor], encoder: str, request: str, images: ImageList, rows: np.ndarray, bad: Mapping[int, str]
) -> None:
    for row, value in zip(rows.tolist(), values, strict=True):
        if row not in bad and not torch.isfinite(value).all():
            raise ViRBError(
                f"{encoder} gave NaN or infinite values of {request} for image {images.ids[row]}; check its weights and normalisation"
            )


def _as_block(values: list[torch.Tensor]) -> np.ndarray | list[np.ndarray]:
    if len({value.shape for value in values}) == 1:
        return torch.stack(values).numpy()
    return [value.numpy() for value in values]


def _runs_of_equal_shape(pixels: Sequence[torch.Tensor]) -> Iterator[tuple[int, int]]:
    begin = 0
    for end in range(1, len(pixels) + 1):
        if end == len(pixels) or pixels[end].shape != pixels[begin].shape:
            yield begin, end
            begin = end


def _timed(batches: Iterator[Any], report: PassReport, stage: str) -> Iterator[Any]:
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        report.seconds[stage] += time.perf_counter() - began
        if batch is None:
            return
        yield batch
