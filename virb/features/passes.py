"""A pass: slices of an image list, each image decoded once, through every encoder and geometry that needs it, into the cache.

Bound by decoding for small encoders on a GPU, by the encoders otherwise. One loader runs on over all slices, so that the first images of a
slice are decoded while the last of the one before are encoded; and a finished slice is written while the next is at work. Batches never
cross the border of a slice, and the outputs of two slices at most are held, whatever the length of the list.
"""

from __future__ import annotations

import bisect
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
from virb.data.loader import LoadedBatch, load_parts, on_device
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.errors import UnreadImage, ViRBError, describe
from virb.features.cache import FeatureCache, SliceFacts
from virb.features.clock import DeviceClock
from virb.features.counted import PassReport, compile_counted, timed
from virb.features.decoded import Keeper, Pixels
from virb.features.encoding import Block, Memory, PassOptions, Sent, SentOneByOne, not_finite, send
from virb.features.held import HeldEntries
from virb.features.writing import Output, SliceWriter

# How many forwards have been sent when the outputs of one are taken. A GPU works on while the host looks at those of the one before.
_BEHIND = {"cpu": 0, "cuda": 1}
Bounds = tuple[int, int]


@dataclass(frozen=True)
class Wanted:
    """One cache entry that a pass fills: this output of this encoder at this geometry."""

    encoder: str
    geometry: Geometry
    request: str
    key: str


def run_slices(
    images: ImageList,
    slices: Sequence[Bounds],
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
    most_held: float = float("inf"),
) -> PassReport:
    """Fills these slices (start, stop), in order, of every wanted entry. One encoder's failure in a slice stops neither the others nor its
    next slices, and an entry that cannot be written costs itself alone; where nobody goes on in a slice, the pass ends.

    ``memory`` is what earlier slices learned; its notes come into the report. ``pixels``: decoded images to read, and to keep; ``held``
    gets what the cache gets, for jobs of this worker. ``report``: filled as the pass goes on, for who wants to know when it does not end.
    ``most_held``: bytes of outputs; where those of two slices are more, one is written before the next goes on.
    Images that cannot be decoded are noted in the slice; each task decides what that means for its samples (``on_bad_image``). UnreadImage
    goes on to the caller when the other slices are done, and nothing of its slice is written: its key does not change when the disk or the
    shard is mended."""
    report = report or PassReport()
    memory = replace(memory, notes=report.notes) if memory is not None else Memory(report.notes)
    unread: UnreadImage | None = None
    left = list(slices)
    with SliceWriter(cache, len(images), held, most_held, report) as writer:
        work = _Pass(images, wanted, encoders, device, options, memory, pixels or Pixels(), writer, report)
        while left:
            try:
                work.run(left, tell)
                break
            except UnreadImage as error:
                unread, left = unread or error, left[work.give_up() + 1 :]
        work.settle()
        writer.settle()
    if unread is not None:
        raise unread
    return report


@dataclass(eq=False)
class _Slice:
    """A slice while it is encoded."""

    start: int
    stop: int
    keeper: Keeper
    copies: DeviceClock
    clock: DeviceClock
    missing: int  # rows that have not come
    on_the_way: int = 0  # forwards whose outputs have not been taken
    waited: float = 0.0  # seconds, for its images
    bad: dict[int, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)  # keys of entries
    kept: dict[str, list[Block]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[Any, float] = field(default_factory=lambda: defaultdict(float))  # by geometry and encoder


@dataclass
class _Pass:
    """The slices of a pass while their images come."""

    images: ImageList
    wanted: Sequence[Wanted]
    encoders: Mapping[str, Encoder]
    device: torch.device
    options: PassOptions
    memory: Memory
    pixels: Pixels
    writer: SliceWriter
    report: PassReport

    def __post_init__(self) -> None:
        self._forwards: dict[tuple[Geometry, str], list[Wanted]] = defaultdict(list)
        for item in self.wanted:
            self._forwards[item.geometry, item.encoder].append(item)
        self._slices: deque[_Slice] = deque()  # begun and not finished, in order
        self._finished = 0
        self._sent: deque[tuple[_Slice, list[Wanted], np.ndarray, Sent | SentOneByOne]] = deque()

    def run(self, slices: Sequence[Bounds], tell: Callable[[int], None]) -> None:
        """All images of these slices, or until nobody goes on; the last outputs may still be on their way then."""
        self._finished = 0
        options, size = self.options, self.options.batch_size
        parts = (np.arange(begin, min(begin + size, stop)) for start, stop in slices for begin in range(start, stop, size))
        geometries = [*(item.geometry for item in self.wanted), *self.pixels.keep]
        pin = self.device.type == "cuda"
        batches = load_parts(self.images, parts, geometries, options.loader_threads, "skip", self._count, pin, self.pixels.read)
        with closing(batches):
            before = self.report.seconds["decode"]
            arriving = on_device(self._watched(batches, slices), self.device, self.memory.spare)
            for batch in timed(arriving, self.report, "decode"):
                here = self._slice_of(batch)
                here.waited += self.report.seconds["decode"] - before
                self.report.seconds["load"] += batch.seconds / max(1, options.loader_threads)
                self._add(here, batch)
                self.report.rows += len(batch.rows)
                tell(self.report.rows)
                gone = here.failed | self.writer.full
                if self.wanted and not self.pixels.keep and all(item.key in gone for item in self.wanted):
                    return
                del batch  # the next one may need its memory
                before = self.report.seconds["decode"]

    def give_up(self) -> int:
        """After an image that could not be read: finishes the slices before its own and forgets that one. Returns how many they are."""
        self.settle()
        self._slices.clear()
        return self._finished

    def settle(self, behind: int = 0) -> None:
        """Takes the outputs of all forwards but the last few, and hands on the slices that are finished by that."""
        while len(self._sent) > behind:
            here, items, rows, sent = self._sent.popleft()
            here.on_the_way -= 1
            began = time.perf_counter()
            found = self._guarded(here, items, sent.take)
            for item in items if found is not None else ():
                values, culprit = found[item.request].values, found[item.request].culprit
                if culprit is not None:
                    self._fail(here, item, not_finite(item.encoder, item.request, self.images, int(rows[culprit])))
                elif item.key not in here.failed:
                    here.kept[item.key].append(values)
            self._spent(here, items, began)
        self._hand_on()

    def _count(self, n: int) -> None:
        self.report.decoded += n

    def _watched(self, batches: Iterator[LoadedBatch], slices: Sequence[Bounds]) -> Iterator[LoadedBatch]:
        """The same batches; what is kept of their pixels is set aside before they leave the host."""
        starts = [start for start, _ in slices]
        for batch in batches:
            start, stop = slices[bisect.bisect(starts, int(batch.rows[0])) - 1]
            if not self._slices or self._slices[-1].start != start:
                clocks = DeviceClock(self.device), DeviceClock(self.device)
                self._slices.append(_Slice(start, stop, Keeper(self.pixels.keep, start, stop), *clocks, stop - start))
            self._slices[-1].keeper.see(batch)
            yield batch

    def _slice_of(self, batch: LoadedBatch) -> _Slice:
        row = int(batch.rows[0])
        return next(one for one in self._slices if one.start <= row < one.stop)

    def _add(self, here: _Slice, batch: LoadedBatch) -> None:
        """Encodes a batch for everybody; on a GPU the last outputs may still be on their way then."""
        here.bad.update(batch.bad)
        if batch.copied:
            here.copies.between("copy", *batch.copied)
        skip = [place for place, row in enumerate(batch.rows.tolist()) if row in batch.bad]
        for (geometry, _), items in self._forwards.items():
            live = [item for item in items if item.key not in here.failed and item.key not in self.writer.full]
            if not live:
                continue
            sent = self._guarded(here, live, partial(self._send, here, live, batch.pixels[geometry], skip))
            if sent is not None:
                here.on_the_way += 1
                self._sent.append((here, live, batch.rows, sent))
            self.settle(_BEHIND[self.device.type])
        here.missing -= len(batch.rows)
        self._hand_on()

    def _send(self, here: _Slice, items: Sequence[Wanted], pixels: Any, skip: Sequence[int]) -> Sent | SentOneByOne:
        encoder, requests = self.encoders[items[0].encoder], [item.request for item in items]
        compile_counted(self.report, encoder, pixels, requests, self.device, self.options)
        began = time.perf_counter()
        try:
            with here.clock.on((items[0].geometry, items[0].encoder)):
                return send(encoder, pixels, requests, self.device, self.options, self.memory, skip)
        finally:
            self._spent(here, items, began)

    def _guarded(self, here: _Slice, items: Sequence[Wanted], work: Callable[[], Any]) -> Any:
        """What ``work`` gives; None when it fails, which is the items' failure alone."""
        try:
            return work()
        except ViRBError as error:
            reason = describe(error)
        except Exception as error:  # noqa: BLE001 - a user's network may raise anything; the other encoders of the pass go on
            reason = f"{items[0].encoder}: {describe(error)}"
        for item in items:
            self._fail(here, item, reason)
        return None

    def _fail(self, here: _Slice, item: Wanted, reason: str) -> None:
        self.report.failed.setdefault(item.key, reason)
        here.failed.add(item.key)
        here.kept.pop(item.key, None)

    def _spent(self, here: _Slice, items: Sequence[Wanted], began: float) -> None:
        seconds = time.perf_counter() - began
        here.seconds[items[0].geometry, items[0].encoder] += seconds
        self.report.seconds["encode"] += seconds

    def _hand_on(self) -> None:
        """Finished slices are written, in order."""
        while self._slices and not self._slices[0].missing and not self._slices[0].on_the_way:
            here = self._slices.popleft()
            self._finished += 1
            self.report.seconds["transfer"] += sum(here.copies.seconds().values())
            if self.device.type == "cuda":  # of the device, which works beside the host
                here.seconds = here.clock.seconds()
            self.report.seconds["compute"] += sum(here.seconds.values())
            self.writer.put(here.start, list(self._outputs(here)), here.bad, partial(here.keeper.write, here.bad, here.waited))

    def _outputs(self, here: _Slice) -> Iterator[Output]:
        for (geometry, name), items in self._forwards.items():
            # All who wanted a slice paid for its decoding, and all outputs of a forward for that one.
            seconds = {"decode": here.waited / len(self.wanted), "encode": here.seconds.get((geometry, name), 0.0) / len(items)}
            facts = SliceFacts(seconds, self.memory.reduced(self.encoders[name].spec.name, geometry, self.options.batch_size))
            for item in items:
                if item.key not in here.failed and item.key not in self.writer.full:
                    yield Output(item.key, here.kept.pop(item.key), facts)
