"""From samples and rows to what each shape of probe reads: role data, batch loaders, online samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from virb.data.images import ImageList, Samples
from virb.data.loader import Kept, LoadedBatch, load_batches, load_parts, on_device
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.errors import BadImage, UnreadImage, ViRBError
from virb.features.cache import as_stored
from virb.features.counted import PassReport, encode_counted, timed
from virb.features.encoding import Memory, PassOptions, first_not_finite, not_finite
from virb.features.feature_set import EncodedRows, Rows, SampleFeatures
from virb.io import hash_record
from virb.probes.base import Batch, OnlineSample, RoleData, Seen

_BAD_IMAGE_HINT = "; repair or remove it, or set on_bad_image: skip"


def usable_samples(samples: Samples, bad: Mapping[int, str], images: ImageList, on_bad_image: str) -> np.ndarray:
    """Indices of the samples whose images could all be decoded. ``error`` raises BadImage for the first that could not."""
    if not bad:
        return np.arange(len(samples))
    is_bad = np.zeros(len(images), dtype=bool)
    is_bad[list(bad)] = True
    hit = np.add.reduceat(is_bad[samples.row_values].astype(np.int64), samples.row_offsets[:-1]) > 0
    if hit.any() and on_bad_image == "error":
        row = next(int(r) for r in samples.row_values if is_bad[r])
        others = int(is_bad[np.unique(samples.row_values)].sum()) - 1
        more = f" (and {others} more)" if others else ""
        raise BadImage(f"{bad[row]}{more}{_BAD_IMAGE_HINT}")
    return np.flatnonzero(~hit)


def pick(samples: Samples, target: str | None, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """Row values, row offsets and targets (None without a ``target``) of the chosen samples."""
    lengths = np.diff(samples.row_offsets)[chosen]
    values = samples.rows_of(chosen)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return values, offsets, None if target is None else pick_targets(samples.targets[target], chosen)


def pick_targets(targets: Any, chosen: np.ndarray) -> Any:
    return targets[chosen] if isinstance(targets, np.ndarray) else _Picked(targets, chosen)


@dataclass(frozen=True)
class _Picked(Sequence[Any]):
    """A sequence that is read item by item, seen through an index list."""

    source: Any
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Picked(self.source, self.chosen[index])
        return self.source[int(self.chosen[index])]

    def identity(self) -> str | None:
        """Equal for equal items in equal order; None where the source does not say what it is."""
        whole = self.source.identity() if hasattr(self.source, "identity") else None
        return None if whole is None else hash_record({"of": whole, "items": self.chosen.tolist()})


def role_data(
    samples: Samples,
    target: str | None,
    chosen: np.ndarray,
    maps: Sequence[Sequence[Rows]],
    device: torch.device,
    tier: str,
    seen: Callable[[np.ndarray, np.ndarray], Seen] | None = None,
) -> RoleData:
    """``maps``: for each tensor of the request its views; ``seen`` makes the record of how images were seen from rows and offsets."""
    values, offsets, targets = pick(samples, target, chosen)
    features = tuple(SampleFeatures(views, values, offsets, device, tier) for views in maps)
    how = None if seen is None else seen(values, offsets)
    return RoleData(features[0], targets, samples.ids[chosen], samples.units[chosen], features, how)


def stream_batch(step_rows: int, encoding_batch: int) -> int:
    """How many images a stream encodes at once: those of a step of training, rounded up to a power of two; never more than passes do. One
    number for a job, so that no value depends on where a batch ends."""
    return min(encoding_batch, 1 << max(0, step_rows - 1).bit_length())


def encoded_rows(
    images: ImageList,
    geometry: Geometry,
    shapes: Mapping[str, tuple[int, ...] | None],
    encoder: Encoder,
    device: torch.device,
    options: PassOptions,
    memory: Memory | None = None,
    kept: Mapping[Geometry, Kept] | None = None,
    report: PassReport | None = None,
) -> list[EncodedRows]:
    """Rows that are encoded when they are read, rounded as the cache would store them, so that both give the same numbers: one set of rows
    per request of ``shapes`` (request -> shape of a row). All come from one forward, which is kept until other rows are asked for.
    ``options.batch_size`` images are encoded at once, however few are read (see ``stream_batch``). ``kept``: images that are decoded
    already. ``report`` gets what the reads cost.

    Reading an image that cannot be decoded, or a value that is not finite, raises: who wants to go on without them asks beforehand.
    """
    stream = _Stream(images, geometry, list(shapes), encoder, device, options, memory or Memory(), kept, report or PassReport())
    return [EncodedRows(len(images), shape, partial(stream.read, request), stream.expect) for request, shape in shapes.items()]


class _Stream:
    """All outputs of one encoder for images that are decoded when they are read, or, where it is known what is read next, before."""

    def __init__(
        self,
        images: ImageList,
        geometry: Geometry,
        requests: Sequence[str],
        encoder: Encoder,
        device: torch.device,
        options: PassOptions,
        memory: Memory,
        kept: Mapping[Geometry, Kept] | None,
        report: PassReport,
    ) -> None:
        self._images, self._geometry, self._requests, self._encoder = images, geometry, requests, encoder
        self._device, self._options, self._memory, self._kept, self._report = device, options, memory, kept, report
        self._last: dict[str, Any] = {}
        self._rows = np.zeros(0, dtype=np.int64)  # that these are of
        self._expected: deque[np.ndarray] = deque()
        self._ahead: Generator[LoadedBatch, None, None] | None = None  # decodes what is expected
        self._arriving: Iterator[LoadedBatch] = iter(())  # the same, on the device

    def expect(self, reads: Sequence[np.ndarray]) -> None:
        """The rows of the next reads, in order, in place of what was expected before. From the first of them on, the loader's threads
        decode ahead; other reads may come in between."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead, self._arriving, self._expected = None, iter(()), deque(reads)

    def read(self, request: str, rows: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        if request not in self._last or not np.array_equal(self._rows, rows):
            self._last.clear()
            found = self._encode(rows)
            self._last = {key: _as_read(values, self._encoder, key, self._images, rows) for key, values in found.items()}
            self._rows = rows.copy()
        return self._last.pop(request)  # each map is read once, then its memory is free

    def _encode(self, rows: np.ndarray) -> dict[str, list[torch.Tensor]]:
        found: dict[str, list[torch.Tensor]] = {request: [] for request in self._requests}
        try:
            with ExitStack() as on_failure:
                on_failure.callback(self.expect, ())  # what was being decoded is nobody's any more
                report = self._report
                for batch in timed(self._batches(rows), report, "decode"):
                    report.rows += len(batch.rows)
                    report.seconds["load"] += batch.seconds / max(1, self._options.loader_threads)
                    pixels = batch.pixels[self._geometry]
                    encoded = encode_counted(report, self._encoder, pixels, self._requests, self._device, self._options, self._memory)
                    for request, values in encoded.items():
                        found[request] += values
                on_failure.pop_all()
        except UnreadImage:
            raise
        except BadImage as error:
            raise BadImage(f"{error}{_BAD_IMAGE_HINT}") from error
        return found

    def _batches(self, rows: np.ndarray) -> Iterator[LoadedBatch]:
        if not self._expected or not np.array_equal(self._expected[0], rows):
            with closing(self._load([rows])) as batches:
                yield from on_device(batches, self._device)
            return
        if self._ahead is None:
            self._ahead = self._load(list(self._expected))
            self._arriving = on_device(self._ahead, self._device)
        self._expected.popleft()
        yield from islice(self._arriving, len(self._parts(rows)))

    def _load(self, reads: Sequence[np.ndarray]) -> Generator[LoadedBatch, None, None]:
        parts = (part for rows in reads for part in self._parts(rows))
        pin = self._device.type == "cuda"
        return load_parts(self._images, parts, (self._geometry,), self._options.loader_threads, "error", None, pin, self._kept)

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        at_once = self._options.batch_size
        return [rows[start : start + at_once] for start in range(0, len(rows), at_once)]


def _as_read(values: list[torch.Tensor], encoder: Encoder, request: str, images: ImageList, rows: np.ndarray) -> Any:
    culprit = first_not_finite(values)
    if culprit is not None:
        raise ViRBError(not_finite(encoder.spec.name, request, images, int(rows[culprit])))
    if len({value.shape for value in values}) == 1:
        return torch.from_numpy(as_stored(torch.stack(values).numpy()))
    return [torch.from_numpy(as_stored(value[None].numpy())[0]) for value in values]


def find_bad_images(images: ImageList, rows: np.ndarray, threads: int) -> dict[int, str]:
    """Decodes every image once, for streams that must know beforehand which samples to leave out."""
    tiny = Geometry(size=(8, 8), resize="squash", crop="none", crop_pct=1.0, interpolation="nearest", view=None)
    bad: dict[int, str] = {}
    for batch in load_batches(images, rows, (tiny,), 64, threads, on_bad_image="skip"):
        bad.update(batch.bad)
    return bad


class ImageBatches:
    """Batches of normalised images with their targets (``virb.probes.base.BatchLoader``), for probes that run the encoder themselves."""

    def __init__(
        self,
        images: ImageList,
        samples: Samples,
        target: str | None,
        chosen: np.ndarray,
        geometry: Geometry,
        encoder: Encoder,
        device: torch.device,
        threads: int,
        kept: Mapping[Geometry, Kept] | None = None,
    ) -> None:
        counts = set(np.diff(samples.row_offsets)[chosen].tolist())
        if len(counts) > 1:
            raise ViRBError(
                f"samples of {min(counts)} to {max(counts)} images do not fit one batch; this probe takes samples of equal length"
            )
        self._per_sample = counts.pop() if counts else 1
        self._images, self._samples, self._chosen = images, samples, chosen
        self._geometry, self._encoder, self._device, self._threads = geometry, encoder, device, threads
        self._kept = kept
        self.targets = None if target is None else pick_targets(samples.targets[target], chosen)
        self.units = samples.units[chosen]
        self.sample_ids = samples.ids[chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def batches(self, batch_size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
        order = np.arange(len(self)) if order is None else np.asarray(order)
        rows = self._samples.rows_of(self._chosen[order])
        at_once, pin = batch_size * self._per_sample, self._device.type == "cuda"
        # One load for all batches: its threads decode the next ones while the probe is at work on this one.
        loaded = load_batches(self._images, rows, (self._geometry,), at_once, self._threads, "error", None, pin, self._kept)
        for begin, batch in zip(range(0, len(order), batch_size), on_device(loaded, self._device), strict=True):
            part = order[begin : begin + batch_size]
            pixels = batch.pixels[self._geometry]
            images = self._encoder.prepare(torch.stack(pixels) if isinstance(pixels, list) else pixels)
            if self._per_sample > 1:
                images = images.reshape(len(part), self._per_sample, *images.shape[1:])
            yield Batch(part, images, [] if self.targets is None else [self.targets[int(i)] for i in part])


def online_sample(images: ImageList, samples: Samples, index: int, given: Any) -> OnlineSample:
    """One sample whose frames are decoded when the probe asks for them, at native size."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    rows = samples.rows(index)
    return OnlineSample(str(samples.ids[index]), len(rows), lambda i: pil_to_tensor(images.read(int(rows[i]))), given)
