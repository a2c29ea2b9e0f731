"""A pass: one slice of an image list, each image decoded once, through every encoder and geometry that needs it, into the cache.

Bound by decoding for small encoders on a GPU, by the encoders otherwise; nothing but the outputs of one slice is held.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from virb.data.images import ImageList
from virb.data.loader import LoadedBatch, load_batches, on_device
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.errors import DiskFull, ViRBError, describe
from virb.features.cache import FeatureCache, SliceFacts, as_stored
from virb.features.clock import DeviceClock
from virb.features.decoded import Keeper, Pixels
from virb.features.encoding import (
    Block,
    Memory,
    Numerics,
    PassOptions,
    Sent,
    SentOneByOne,
    encode,
    first_not_finite,
    forward,
    not_finite,
    send,
    warm_up,
)
from virb.features.held import HeldEntries

__all__ = [
    "Memory",
    "Numerics",
    "PassOptions",
    "PassReport",
    "Wanted",
    "encode",
    "encode_counted",
    "first_not_finite",
    "forward",
    "not_finite",
    "run_slice",
    "timed",
]

# How many forwards have been sent when the outputs of one are taken. A GPU works on while the host looks at those of the one before.
_BEHIND = {"cpu": 0, "cuda": 1}


@dataclass(frozen=True)
class Wanted:
    """One cache entry that a pass fills: this output of this encoder at this geometry."""

    encoder: str
    geometry: Geometry
    request: str
    key: str


@dataclass
class PassReport:
    """What a slice, or the streams of a job, did: images decoded, seconds per stage, entries that failed and why. ``decode`` is waiting for
    images; ``load`` (of the loader itself, by thread), ``transfer`` and ``compute`` (of the device in the encoders) go on beside the
    others. ``compile`` is there when something was compiled, and no part of ``encode``."""

    decoded: int = 0
    rows: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode", "load", "transfer", "encode", "compute", "write"), 0.0)
    )
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
    pixels: Pixels | None = None,
    held: HeldEntries | None = None,
    report: PassReport | None = None,
) -> PassReport:
    """Fills rows ``start`` to ``stop`` of every wanted entry. One encoder's failure does not stop the others.

    ``memory`` is what earlier slices learned; its notes come into the report. ``pixels``: decoded images to read, and to keep; ``held``
    gets what the cache gets, for jobs of this worker. ``report``: filled as the slice goes on, for who wants to know when it does not end.
    Images that cannot be decoded are noted in the slice; each task decides what that means for its samples (``on_bad_image``). UnreadImage
    goes on to the caller, and nothing of the slice is written: its key does not change when the disk or the shard is mended."""
    report = report or PassReport()
    pixels = pixels or Pixels()
    memory = replace(memory, notes=report.notes) if memory is not None else Memory(report.notes)
    work = _Slice(images, wanted, encoders, device, options, memory, report)
    keeper = Keeper(pixels.keep, start, stop)

    def count(n: int) -> None:
        report.decoded += n

    geometries = [*(item.geometry for item in wanted), *pixels.keep]
    rows, pin = np.arange(start, stop), device.type == "cuda"
    batches = load_batches(images, rows, geometries, options.batch_size, options.loader_threads, "skip", count, pin, pixels.read)
    with closing(batches):
        for batch in timed(on_device(keeper.watch(batches), device), report, "decode"):
            report.seconds["load"] += batch.seconds / max(1, options.loader_threads)
            work.add(batch)
            report.rows += len(batch.rows)
            tell(report.rows)
            if wanted and len(report.failed) == len(wanted) and not pixels.keep:
                return report
    work.settle()
    report.seconds["transfer"] = sum(work.copies.seconds().values())
    report.seconds["compute"] = sum(work.encoding().values())
    began = time.perf_counter()
    work.write(start, cache, len(images), held)
    report.notes += keeper.write(cache, work.bad, report.seconds["decode"])
    report.seconds["write"] += time.perf_counter() - began
    return report


@dataclass
class _Slice:
    """The outputs of a slice while it is encoded."""

    images: ImageList
    wanted: Sequence[Wanted]
    encoders: Mapping[str, Encoder]
    device: torch.device
    options: PassOptions
    memory: Memory
    report: PassReport
    bad: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.copies, self._clock = DeviceClock(self.device), DeviceClock(self.device)
        self._forwards: dict[tuple[Geometry, str], list[Wanted]] = defaultdict(list)
        for item in self.wanted:
            self._forwards[item.geometry, item.encoder].append(item)
        self._kept: dict[str, list[Block]] = defaultdict(list)
        self._seconds = dict.fromkeys(self._forwards, 0.0)
        self._sent: deque[tuple[list[Wanted], np.ndarray, Sent | SentOneByOne]] = deque()

    def add(self, batch: LoadedBatch) -> None:
        """Encodes a batch for everybody; on a GPU the last outputs may still be on their way then."""
        self.bad.update(batch.bad)
        if batch.copied:
            self.copies.between("copy", *batch.copied)
        skip = [place for place, row in enumerate(batch.rows.tolist()) if row in batch.bad]
        for (geometry, _), items in self._forwards.items():
            live = [item for item in items if item.key not in self.report.failed]
            if not live:
                continue
            sent = self._guarded(live, partial(self._send, live, batch.pixels[geometry], skip))
            if sent is not None:
                self._sent.append((live, batch.rows, sent))
            self.settle(_BEHIND[self.device.type])

    def _send(self, items: Sequence[Wanted], pixels: Any, skip: Sequence[int]) -> Sent | SentOneByOne:
        encoder, requests = self.encoders[items[0].encoder], [item.request for item in items]
        _compile(self.report, encoder, pixels, requests, self.device, self.options)
        began = time.perf_counter()
        try:
            with self._clock.on((items[0].geometry, items[0].encoder)):
                return send(encoder, pixels, requests, self.device, self.options, self.memory, skip)
        finally:
            self._spent(items, began)

    def settle(self, behind: int = 0) -> None:
        """Takes the outputs of all forwards but the last few."""
        while len(self._sent) > behind:
            items, rows, sent = self._sent.popleft()
            began = time.perf_counter()
            found = self._guarded(items, sent.take)
            for item in items if found is not None else ():
                values, culprit = found[item.request].values, found[item.request].culprit
                if culprit is not None:
                    self._fail(item, not_finite(item.encoder, item.request, self.images, int(rows[culprit])))
                elif item.key not in self.report.failed:
                    self._kept[item.key].append(values)
            self._spent(items, began)

    def _guarded(self, items: Sequence[Wanted], work: Callable[[], Any]) -> Any:
        """What ``work`` gives; None when it fails, which is the items' failure alone."""
        try:
            return work()
        except ViRBError as error:
            reason = describe(error)
        except Exception as error:  # noqa: BLE001 - a user's network may raise anything; the other encoders of the pass go on
            reason = f"{items[0].encoder}: {describe(error)}"
        for item in items:
            self._fail(item, reason)
        return None

    def _fail(self, item: Wanted, reason: str) -> None:
        self.report.failed.setdefault(item.key, reason)
        self._kept.pop(item.key, None)

    def _spent(self, items: Sequence[Wanted], began: float) -> None:
        seconds = time.perf_counter() - began
        self._seconds[items[0].geometry, items[0].encoder] += seconds
        self.report.seconds["encode"] += seconds

    def encoding(self) -> Mapping[Any, float]:
        """Seconds of each encoder at each geometry: of the device where it works beside the host."""
        return self._clock.seconds() if self.device.type == "cuda" else self._seconds

    def write(self, start: int, cache: FeatureCache, n_rows: int, held: HeldEntries | None) -> None:
        """Into the cache, and what it stores into memory too."""
        encoding = self.encoding()
        for (geometry, name), items in self._forwards.items():
            # All who wanted a slice paid for its decoding, and all outputs of a forward for that one.
            seconds = {
                "decode": self.report.seconds["decode"] / len(self.wanted),
                "encode": encoding.get((geometry, name), 0.0) / len(items),
            }
            facts = SliceFacts(seconds, self.memory.reduced(self.encoders[name].spec.name, geometry, self.options.batch_size))
            for item in items:
                if item.key in self.report.failed:
                    continue
                block = _as_block(self._kept.pop(item.key))
                block = as_stored(block) if isinstance(block, np.ndarray) else block
                try:
                    written = cache.write_slice(item.key, start, block, self.bad, facts)
                except DiskFull as error:  # others may be smaller
                    self._fail(item, describe(error))
                    continue
                if held is not None and isinstance(block, np.ndarray):
                    held.keep(item.key, n_rows, start, block, self.bad, written)


def encode_counted(
    report: PassReport,
    encoder: Encoder,
    pixels: Any,
    requests: Sequence[str],
    device: torch.device,
    options: PassOptions,
    memory: Memory | None = None,
) -> dict[str, list[torch.Tensor]]:
    """``encode`` for streams: what it takes is added to the report."""
    _compile(report, encoder, pixels, requests, device, options)
    clock, began = DeviceClock(device), time.perf_counter()
    with clock.on("encode"):
        sent = send(encoder, pixels, requests, device, options, memory)
    found = {request: list(taken.values) for request, taken in sent.take().items()}
    seconds = time.perf_counter() - began
    report.seconds["encode"] += seconds
    report.seconds["compute"] += sum(clock.seconds().values()) if device.type == "cuda" else seconds
    return found


def _compile(
    report: PassReport, encoder: Encoder, pixels: Any, requests: Sequence[str], device: torch.device, options: PassOptions
) -> None:
    """With ``--compile``, before the clock of a forward runs."""
    if options.numerics.compile:
        began = time.perf_counter()
        warm_up(encoder, pixels, requests, device, options)
        report.seconds["compile"] = report.seconds.get("compile", 0.0) + time.perf_counter() - began


def _as_block(blocks: Sequence[Block]) -> np.ndarray | list[np.ndarray]:
    whole = [block for block in blocks if isinstance(block, torch.Tensor)]
    if len(whole) == len(blocks) and len({block.shape[1:] for block in whole}) == 1:
        return torch.cat(whole).numpy()
    rows = [row for block in blocks for row in block]
    if len({row.shape for row in rows}) == 1:
        return torch.stack(rows).numpy()
    return [row.numpy() for row in rows]


def timed(batches: Iterator[Any], report: PassReport, stage: str) -> Iterator[Any]:
    """The same batches; what waiting for them takes is added to the report."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        report.seconds[stage] += time.perf_counter() - began
        if batch is None:
            return
        yield batch
