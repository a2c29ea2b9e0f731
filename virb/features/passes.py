"""A pass: one slice of an image list, each image decoded once, through every encoder and geometry that needs it, into the cache.

Bound by decoding for small encoders on a GPU, by the encoders otherwise; nothing but the outputs of one slice is held.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from virb.data.images import ImageList
from virb.data.loader import LoadedBatch, load_batches
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.errors import ViRBError, describe
from virb.features.cache import STORAGE, FeatureCache, SliceFacts

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
    memory: Memory | None = None,
) -> PassReport:
    """Fills rows ``start`` to ``stop`` of every wanted entry. One encoder's failure does not stop the others.

    ``memory`` is what earlier slices learned; its notes come into the report.
    Images that cannot be decoded are noted in the slice; each task decides what that means for its samples (``on_bad_image``)."""
    report = PassReport()
    forwards: dict[tuple[Geometry, str], list[Wanted]] = defaultdict(list)
    for item in wanted:
        forwards[item.geometry, item.encoder].append(item)
    kept: dict[str, list[torch.Tensor]] = defaultdict(list)
    bad: dict[int, str] = {}
    memory = Memory(report.notes, memory.most if memory is not None else {})
    encoding = dict.fromkeys(forwards, 0.0)

    def count(n: int) -> None:
        report.decoded += n

    rows = np.arange(start, stop)
    geometries = [item.geometry for item in wanted]
    batches = load_batches(images, rows, geometries, options.batch_size, options.loader_threads, on_bad_image="skip", count=count)
    with closing(batches):
        for batch in _timed(batches, report, "decode"):
            bad.update(batch.bad)
            for (geometry, name), items in forwards.items():
                began = time.perf_counter()
                live = [item for item in items if item.key not in report.failed]
                for item, values in _outputs(encoders[name], live, images, batch, device, options, memory):
                    if isinstance(values, str):
                        report.failed[item.key] = values
                        kept.pop(item.key, None)
                    else:
                        kept[item.key].extend(values)
                encoding[geometry, name] += time.perf_counter() - began
            report.rows += len(batch.rows)
            tell(report.rows)
            report.seconds["encode"] = sum(encoding.values())
            if len(report.failed) == len(wanted):
                return report
    began = time.perf_counter()
    for (geometry, name), items in forwards.items():
        # All who wanted a slice paid for its decoding, and all outputs of a forward for that one.
        seconds = {"decode": report.seconds["decode"] / len(wanted), "encode": encoding[geometry, name] / len(items)}
        facts = SliceFacts(seconds, memory.reduced(encoders[name].spec.name, geometry, options.batch_size))
        for item in items:
            if item.key not in report.failed:
                cache.write_slice(item.key, start, _as_block(kept.pop(item.key)), bad, facts)
    report.seconds["write"] += time.perf_counter() - began
    return report


def _outputs(
    encoder: Encoder,
    items: Sequence[Wanted],
    images: ImageList,
    batch: LoadedBatch,
    device: torch.device,
    options: PassOptions,
    memory: Memory,
) -> Iterator[tuple[Wanted, list[torch.Tensor] | str]]:
    """What one encoder gives of one batch at one geometry: for each item its rows, or why there are none."""
    if not items:
        return
    name = items[0].encoder
    skip = [place for place, row in enumerate(batch.rows.tolist()) if row in batch.bad]
    try:
        found = encode(encoder, batch.pixels[items[0].geometry], [i.request for i in items], device, options, memory, skip)
    except ViRBError as error:
        yield from ((item, describe(error)) for item in items)
        return
    except Exception as error:  # noqa: BLE001 - a user's network may raise anything; the other encoders of the pass go on
        yield from ((item, f"{name}: {describe(error)}") for item in items)
        return
    for item in items:
        culprit = first_not_finite(found[item.request])
        yield item, found[item.request] if culprit is None else not_finite(name, item.request, images, int(batch.rows[culprit]))


@dataclass
class Memory:
    """How many images of a shape an encoder takes at once, as running out of memory has taught, and what to tell the user about it."""

    notes: list[str] = field(default_factory=list)
    most: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)

    def reduced(self, encoder: str, geometry: Geometry, batch_size: int) -> tuple[int, int] | None:
        """(images at once, images meant), or None when all fit. Images of different sizes go one by one anyway."""
        most = self.most.get((encoder, (3, *geometry.size)), batch_size) if geometry.size else batch_size
        return (most, batch_size) if most < batch_size else None


def encode(
    encoder: Encoder,
    pixels: torch.Tensor | Sequence[torch.Tensor],
    requests: Sequence[str],
    device: torch.device,
    options: PassOptions,
    memory: Memory | None = None,
    skip: Collection[int] = (),
) -> dict[str, list[torch.Tensor]]:
    """Outputs per request, one float32 CPU tensor per image. Batches have one fixed shape (the last is padded), so that no image's
    values depend on how many neighbours it has; images of different sizes go one by one.

    ``skip``: places of images that could not be decoded. They get zeros, or an empty tensor where sizes differ."""
    memory = memory or Memory()
    if isinstance(pixels, torch.Tensor):
        outputs = _encode_block(encoder, pixels, requests, device, options.numerics, options.batch_size, memory)
        for values in outputs.values():
            for place in skip:
                values[place] = torch.zeros_like(values[place])
        return outputs
    outputs = {request: [] for request in requests}
    for place, image in enumerate(pixels):
        if place in skip:
            one = {request: [torch.zeros(0)] for request in requests}
        else:
            one = _encode_block(encoder, image[None], requests, device, options.numerics, 1, memory)
        for request in requests:
            outputs[request] += one[request]
    return outputs


def _encode_block(
    encoder: Encoder,
    pixels: torch.Tensor,
    requests: Sequence[str],
    device: torch.device,
    numerics: Numerics,
    batch_size: int,
    memory: Memory,
) -> dict[str, list[torch.Tensor]]:
    outputs: dict[str, list[torch.Tensor]] = {request: [] for request in requests}
    kind = (encoder.spec.name, tuple(pixels.shape[1:]))
    begin = 0
    while begin < len(pixels):
        size = min(batch_size, memory.most.get(kind, batch_size))
        try:
            found = forward(encoder, pixels[begin : begin + size], requests, device, numerics, size)
        except torch.OutOfMemoryError:
            found = None
        if found is None:  # not in the except clause, where the error still holds the tensors of the failed forward
            torch.cuda.empty_cache()
            if size == 1:
                raise ViRBError(f"{encoder.spec.name} ran out of memory on {device} with a single image of {tuple(pixels.shape[-2:])}")
            memory.most[kind] = size // 2
            memory.notes.append(f"{device} ran out of memory encoding with {encoder.spec.name} (batch {size}): going on with {size // 2}")
            continue
        for request, values in found.items():
            outputs[request].extend(values.cpu())
        begin += size
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
            raise ViRBError(f"{request} of {encoder.spec.name} is several {_what_to_write(encoder, request)}")
        if values.ndim < 2 or len(values) != batch_size:
            raise ViRBError(
                f"{encoder.spec.name} gave {request} of shape {tuple(values.shape)} for a batch of {batch_size} images; "
                f"expected {batch_size} rows of at least one value"
            )
        outputs[request] = values[:n].float()
    return outputs


def _what_to_write(encoder: Encoder, request: str) -> str:
    """Where one tensor is needed and the request gives several."""
    each = encoder.spec.expand(request)
    if len(each) > 1 and each[0].kind == "vector":
        return f"vectors; write {'+'.join(map(str, each))}, or a list of {len(each)} requests"
    return "maps; ask for one of them (or reduce each and join with +)"


def first_not_finite(values: Sequence[torch.Tensor]) -> int | None:
    return next((place for place, value in enumerate(values) if not torch.isfinite(value).all()), None)


def not_finite(encoder: str, request: str, images: ImageList, row: int) -> str:
    return f"{encoder} gave NaN or infinite values of {request} for image {images.ids[row]}; check its weights and normalisation"


def _as_block(values: list[torch.Tensor]) -> np.ndarray | list[np.ndarray]:
    if len({value.shape for value in values}) == 1:
        return torch.stack(values).numpy()
    return [value.numpy() for value in values]


def _timed(batches: Iterator[Any], report: PassReport, stage: str) -> Iterator[Any]:
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        report.seconds[stage] += time.perf_counter() - began
        if batch is None:
            return
        yield batch
