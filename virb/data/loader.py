"""Batches of pixels: every image is decoded once, however many geometries want it, by threads that work a little ahead.

Threads, not processes: all decoders release the interpreter lock where the time goes, and pixels need not be copied between processes. Each
thread writes its image straight into its place in the batch, which lies in pinned memory where a GPU will read it, and the next batch
moves to the GPU while this one is encoded (``on_device``). What is left is decoding and resizing: benchmarks/decode.py has the shares.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from virb.data.decode import Pixels as Decoded
from virb.data.images import ImageList
from virb.data.transforms import Geometry
from virb.errors import BadImage, UnreadImage
from virb.functional.cuda import side_stream

_BATCHES_AHEAD = 2
Pixels = torch.Tensor | list[torch.Tensor]


class Kept(Protocol):
    """Images that were decoded and brought to a geometry before."""

    def find(self, row: int) -> np.ndarray | str | None:
        """uint8 (3, h, w); or why the image could not be decoded; None when it has to be decoded now. Called by several threads."""
        ...


@dataclass
class LoadedBatch:
    """``pixels[geometry]``: uint8 (B, 3, h, w), or a list of (3, h_i, w_i) at native size. ``bad``: row -> why it is black."""

    rows: np.ndarray
    pixels: dict[Geometry, Pixels]
    bad: dict[int, str] = field(default_factory=dict)
    found: list[int] = field(default_factory=list)  # rows of which nothing had to be read
    seconds: float = 0.0  # that reading and resizing took, of all threads together
    copied: tuple[Any, Any] | None = None  # CUDA events around the copy to the GPU


def load_batches(
    images: ImageList,
    rows: Sequence[int] | np.ndarray,
    geometries: Sequence[Geometry],
    batch_size: int,
    workers: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    count: Callable[[int], None] | None = None,
    pin: bool = False,
    kept: Mapping[Geometry, Kept] | None = None,
) -> Generator[LoadedBatch, None, None]:
    """Images ``rows`` in this order, ``batch_size`` at a time (the last batch may be smaller).

    ``workers`` threads decode ahead, by at most two batches; 0 decodes in line. A bad image raises BadImage ("error"), or is black
    (1 x 1 at native size) and named in ``bad`` ("skip"); UnreadImage is raised either way. ``count(n)`` is called from the
    consumer's thread with the number of images read for each batch. ``pin``: batches lie in page-locked memory. ``kept``: geometries that
    have pixels already; an image is read when one of the others wants it. No thread is left when the iterator ends, fails or is closed.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    rows = np.asarray(rows, dtype=np.int64)
    parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    yield from load_parts(images, parts, geometries, workers, on_bad_image, count, pin, kept)


def load_parts(
    images: ImageList,
    parts: Iterable[np.ndarray],
    geometries: Sequence[Geometry],
    workers: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    count: Callable[[int], None] | None = None,
    pin: bool = False,
    kept: Mapping[Geometry, Kept] | None = None,
) -> Generator[LoadedBatch, None, None]:
    """The same where ``parts`` says of each batch which rows it has."""
    wanted = tuple(dict.fromkeys(geometries))
    if len({geometry.decoder for geometry in wanted}) > 1:
        raise ValueError("geometries of one load have one decoder: each image is decoded once")
    source = _Source(images, wanted, on_bad_image == "skip", pin, {g: there for g, there in (kept or {}).items() if g in wanted})
    with closing(_in_line(source, parts) if workers < 1 else _ahead(source, parts, workers)) as batches:
        for batch in batches:
            if count is not None:
                count(len(batch.rows) - len(batch.found))
            yield batch


@dataclass(frozen=True)
class _Source:
    """Where images come from and what is made of them."""

    images: ImageList
    geometries: tuple[Geometry, ...]
    skip_bad: bool
    pin: bool
    kept: dict[Geometry, Kept]

    def empty(self, rows: np.ndarray) -> LoadedBatch:
        return LoadedBatch(rows, {geometry: self._room(geometry, len(rows)) for geometry in self.geometries})

    def _room(self, geometry: Geometry, n: int) -> Pixels:
        if geometry.size is None:
            return [torch.empty(0)] * n
        return torch.empty((n, 3, *geometry.size), dtype=torch.uint8, pin_memory=self.pin)

    def fill(self, batch: LoadedBatch, place: int) -> float:
        """Reads one image of a batch, and says how long it took; places are apart, so threads need no lock."""
        began = time.perf_counter()
        row = int(batch.rows[place])
        found = {geometry: there for geometry in self.kept if (there := self.kept[geometry].find(row)) is not None}
        try:
            if found and (len(found) == len(batch.pixels) or any(isinstance(there, str) for there in found.values())):
                batch.found.append(row)
            reason = next((there for there in found.values() if isinstance(there, str)), None)
            if reason is not None:
                raise BadImage(reason)
            image = self.images.pixels(row, self.geometries[0].decoder) if len(found) < len(batch.pixels) else None
        except BadImage as error:
            if not self.skip_bad or isinstance(error, UnreadImage):
                raise
            batch.bad[row] = str(error)
        for geometry, pixels in batch.pixels.items():
            if row in batch.bad:
                self._blacken(pixels, place)
            elif geometry in found:
                pixels[place].numpy()[:] = found[geometry]
            elif image is not None:
                self._write(image, row, geometry, pixels, place)
        return time.perf_counter() - began

    @staticmethod
    def _blacken(pixels: Pixels, place: int) -> None:
        if isinstance(pixels, list):
            pixels[place] = torch.zeros((3, 1, 1), dtype=torch.uint8)
        else:
            pixels[place].zero_()

    @staticmethod
    def _write(image: Decoded, row: int, geometry: Geometry, pixels: Pixels, place: int) -> None:
        if isinstance(pixels, list):
            pixels[place] = geometry.apply(image, row)
        else:
            geometry.write(image, row, pixels[place].numpy())


def _in_line(source: _Source, parts: Iterable[np.ndarray]) -> Generator[LoadedBatch, None, None]:
    for rows in parts:
        batch = source.empty(rows)
        for place in range(len(rows)):
            batch.seconds += source.fill(batch, place)
        yield batch


def _ahead(source: _Source, parts: Iterable[np.ndarray], workers: int) -> Generator[LoadedBatch, None, None]:
    """The same by threads, with at most ``_BATCHES_AHEAD`` batches begun and not yet taken while the consumer has one."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="virb-decode")
    waiting: deque[_Begun] = deque()
    try:
        for rows in parts:
            waiting.append(_Begun(source, source.empty(rows), pool, workers))
            if len(waiting) > _BATCHES_AHEAD:
                waiting[0].finish()
                yield waiting.popleft().batch
        while waiting:
            waiting[0].finish()
            yield waiting.popleft().batch
    finally:
        for begun in waiting:
            begun.stop()
        pool.shutdown(wait=True, cancel_futures=True)


class _Begun:
    """A batch that threads fill. Each takes the next place when it is done with one: handing out every image by itself would keep the
    caller's thread at it."""

    def __init__(self, source: _Source, batch: LoadedBatch, pool: ThreadPoolExecutor, workers: int) -> None:
        self.batch = batch
        self._source, self._places = source, deque(range(len(batch.rows)))
        self._errors: list[tuple[int, Exception]] = []
        self._fillings = [pool.submit(self._fill) for _ in range(min(workers, len(batch.rows)))]

    def stop(self) -> None:
        self._places.clear()

    def finish(self) -> None:
        self.batch.seconds += sum(filling.result() for filling in self._fillings)
        if self._errors:
            raise min(self._errors, key=lambda error: error[0])[1]  # of the first place, whichever thread was first
        self.batch.bad = dict(sorted(self.batch.bad.items()))  # threads find bad images in any order

    def _fill(self) -> float:
        seconds = 0.0
        with suppress(IndexError):
            while True:
                place = self._places.popleft()
                try:
                    seconds += self._source.fill(self.batch, place)
                except Exception as error:  # noqa: BLE001 - raised by the caller's thread
                    self._errors.append((place, error))
                    self.stop()
        return seconds


def on_device(batches: Iterator[LoadedBatch], device: torch.device, spare: Callable[[], bool] = lambda: False) -> Iterator[LoadedBatch]:
    """The same batches with their pixels on the device. On a GPU the next batch is copied there, by a stream of its own, while the one
    before is encoded; batches should be pinned then, for the copy of other memory waits for the GPU. A batch that finds no room has another
    try when the one before is done and ``spare`` has freed what can be spared."""
    if device.type != "cuda":
        yield from batches
        return
    stream = side_stream(device, "pixels")
    held: tuple[LoadedBatch, torch.cuda.Event] | None = None
    unread: BadImage | None = None
    try:
        for batch in batches:
            try:
                sent = _sent(batch, device, stream)
            except torch.OutOfMemoryError:
                sent = None
            if held is not None:
                yield _handed_over(*held, device)
                held = None
            if sent is None:  # not in the except clause, where the error still holds what was copied
                spare()
                torch.cuda.empty_cache()
                sent = _sent(batch, device, stream)
            held, sent = sent, None
    except BadImage as error:
        unread = error  # the batch before has nothing to do with that
    if held is not None:
        yield _handed_over(*held, device)
    if unread is not None:
        raise unread


def _sent(batch: LoadedBatch, device: torch.device, stream: torch.cuda.Stream) -> tuple[LoadedBatch, torch.cuda.Event]:
    """The batch, on its way to the device, and the event of its arrival."""
    with torch.cuda.stream(stream):
        began, arrived = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record(stream)
        moved = replace(batch, pixels={g: _moved(pixels, device) for g, pixels in batch.pixels.items()}, copied=(began, arrived))
        arrived.record(stream)
    return moved, arrived


def _handed_over(batch: LoadedBatch, arrived: torch.cuda.Event, device: torch.device) -> LoadedBatch:
    """The batch, safe to use by the work that the caller enqueues next."""
    current = torch.cuda.current_stream(device)
    current.wait_event(arrived)
    for pixels in batch.pixels.values():
        for tensor in pixels if isinstance(pixels, list) else (pixels,):
            tensor.record_stream(current)  # its memory came from the other stream, which must not use it again too early
    return batch


def _moved(pixels: Pixels, device: torch.device) -> Pixels:
    if isinstance(pixels, list):
        return [image.to(device, non_blocking=True) for image in pixels]
    return pixels.to(device, non_blocking=True)
