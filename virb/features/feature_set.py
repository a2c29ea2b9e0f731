"""What probes read: the rows of a cache entry, or of a stream, joined into samples and kept in the fastest place that holds them."""

from __future__ import annotations

import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from virb.features.ahead import MappedFile
from virb.features.cache import Slice
from virb.features.copies import copied
from virb.features.held import HeldRows
from virb.functional.cuda import numbered

_MOST_MAPS = 16_384  # a system gives a process 65,530
_MANY_ROWS = 4  # of each slice: more are taken together


class Rows(Protocol):
    """Features of the rows of an image list."""

    @property
    def shape(self) -> tuple[int, ...] | None: ...  # of a row; None when rows differ in shape

    @property
    def nbytes(self) -> int: ...  # in storage precision; 0 when nothing is kept

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """(len(rows), *shape), in storage precision, on the CPU or the job's device."""
        ...

    def read_one(self, row: int) -> torch.Tensor: ...


class MappedRows:
    """Rows of a complete cache entry, memory-mapped slice by slice. Several threads may read."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self._starts = np.array([s.start for s in slices])
        self._length = slices[-1].stop if slices else 0
        self._slices = slices
        self._maps: OrderedDict[int, MappedFile] = OrderedDict()
        self._lock = threading.Lock()  # of the maps
        shapes = {shape for s in slices for shape in s.shapes}
        self.shape: tuple[int, ...] | None = next(iter(shapes)) if len(shapes) == 1 else None
        self.bad = {row: reason for s in slices for row, reason in s.bad.items()}
        self.batches = [s.facts.batch for s in slices if s.facts.batch is not None]  # (at once, meant) where memory held fewer than meant
        self.seconds: dict[str, float] = {}  # what making the entry took, by stage
        for s in slices:
            for stage, value in s.facts.seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value
        self.dtype = torch.float32 if any(s.dtype == "float32" for s in slices) else torch.float16
        if self.shape is None:
            counts = [[math.prod(shape) for shape in _row_shapes(s)] for s in slices]
            self._offsets = [np.concatenate([[0], np.cumsum(c)]) for c in counts]

    def __len__(self) -> int:
        return self._length

    def move(self, to: Callable[[Sequence[Slice]], Sequence[Slice]]) -> None:
        """From here on the values are read from other files, of the same content."""
        self._slices = to(self._slices)
        self._maps.clear()

    @property
    def nbytes(self) -> int:
        return sum(np.dtype(s.dtype).itemsize * sum(math.prod(shape) for shape in _row_shapes(s)) for s in self._slices)

    def _map(self, index: int) -> MappedFile:
        """The values of a slice."""
        with self._lock:
            if index not in self._maps:
                piece = self._slices[index]
                self._maps[index] = MappedFile(piece.path, piece.dtype)
                if len(self._maps) > _MOST_MAPS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(index)
            return self._maps[index]

    def read(self, rows: np.ndarray) -> torch.Tensor:
        if self.shape is None:
            raise TypeError("rows of different shapes are read one by one")
        rows = np.asarray(rows)
        size = math.prod(self.shape)
        out = np.empty((len(rows), size), dtype=np.float32 if self.dtype == torch.float32 else np.float16)
        order = np.argsort(rows, kind="stable")  # in the order of the disk, slice by slice
        which = np.searchsorted(self._starts, rows[order], side="right") - 1
        local = rows[order] - self._starts[which]
        used, firsts = np.unique(which, return_index=True)
        maps = {index: self._map(index) for index in used.tolist()}
        if len(rows) <= _MANY_ROWS * len(used):
            places = list(zip(order.tolist(), which.tolist(), (local * size).tolist(), strict=True))
            for _, index, first in places:
                maps[index].will_need(first, size)
            for place, index, first in places:
                out[place] = maps[index].values[first : first + size]
        else:
            spans = np.split(np.arange(len(rows)), firsts[1:])
            for index, span in zip(used.tolist(), spans, strict=True):
                _announce(maps[index], local[span], size)
            for index, span in zip(used.tolist(), spans, strict=True):
                piece = self._slices[index]
                out[order[span]] = maps[index].values.reshape(piece.stop - piece.start, size)[local[span]]
        return torch.from_numpy(out).reshape(len(rows), *self.shape)

    def read_one(self, row: int) -> torch.Tensor:
        if self.shape is not None:
            return self.read(np.array([row]))[0]
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        local = row - int(self._starts[index])
        values = self._map(index).values[self._offsets[index][local] : self._offsets[index][local + 1]]
        return torch.from_numpy(np.array(values)).reshape(_row_shapes(self._slices[index])[local])


def _announce(file: MappedFile, rows: np.ndarray, size: int) -> None:
    """Has the system fetch these rows of a file, in ascending order, of ``size`` values: as one stretch where most pages have some."""
    if size * file.values.itemsize < mmap.PAGESIZE:
        file.will_need(int(rows[0]) * size, int(rows[-1] - rows[0] + 1) * size)
    else:
        for row in rows.tolist():
            file.will_need(row * size, size)


def _row_shapes(piece: Slice) -> Sequence[tuple[int, ...]]:
    return piece.shapes if len(piece.shapes) == piece.stop - piece.start else piece.shapes * (piece.stop - piece.start)


@dataclass(frozen=True)
class EncodedRows:
    """Rows encoded when they are asked for (a stream): nothing is kept. ``encode`` gives a tensor per row; ``expect`` is told the rows of
    the reads to come, whose images can be decoded meanwhile."""

    length: int
    shape: tuple[int, ...] | None
    encode: Callable[[np.ndarray], torch.Tensor | list[torch.Tensor]]
    expect: Callable[[Sequence[np.ndarray]], None] = lambda reads: None
    nbytes: int = 0

    def __len__(self) -> int:
        return self.length

    def read(self, rows: np.ndarray) -> torch.Tensor:
        values = self.encode(np.asarray(rows))
        if not isinstance(values, torch.Tensor):
            raise TypeError("rows of different shapes are read one by one")
        return values

    def read_one(self, row: int) -> torch.Tensor:
        return self.encode(np.array([row]))[0]


class SampleFeatures:
    """Features of samples (``virb.probes.base.Features``): K rows each, gathered from a working copy or straight from the source.

    ``views`` hold the same rows seen through different augmentations; epoch e reads view e modulo their number.
    """

    def __init__(self, views: Sequence[Rows], row_values: np.ndarray, row_offsets: np.ndarray, device: torch.device, tier: str) -> None:
        self.device, self.tier = numbered(device), tier
        counts = np.diff(row_offsets)
        self._values, self._offsets = row_values, row_offsets
        self._fixed = row_values.reshape(len(counts), -1) if len(counts) and (counts == counts[0]).all() else None
        self._views = list(views)
        self._view = 0
        row_shape = views[0].shape
        self.shape: tuple[int, ...] | None = None
        if self._fixed is not None and row_shape is not None:
            k = self._fixed.shape[1]
            self.shape = row_shape if k == 1 else (k, *row_shape)
        self._copies: list[torch.Tensor] | None = None
        if tier in ("device", "host") and row_shape is not None:
            self._keep_copies()

    def _keep_copies(self) -> None:
        """Only the rows these samples use are copied, once, in storage precision; entries that are held there already are not."""
        place = self.device if self.tier == "device" else torch.device("cpu")
        held = [view.values for view in self._views if isinstance(view, HeldRows) and view.values.device == place]
        if len(held) == len(self._views):
            self._copies, places = held, np.array(self._values, dtype=np.int64)
        else:
            used, places = np.unique(self._values, return_inverse=True)
            self._copies = [copied(view.read, used, view.shape or (), place) for view in self._views]
        index = torch.from_numpy(np.ascontiguousarray(places.reshape(-1)))
        if self._fixed is not None:
            self._index = index.reshape(self._fixed.shape).to(self._copies[0].device)
        self._inverse = index

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def index_device(self) -> torch.device:
        """Where ``gather`` looks samples up: numbers that are there already need not be sent."""
        return torch.device("cpu") if self._copies is None else self._copies[0].device

    @property
    def reads_ahead(self) -> bool:
        """Whether ``gather`` takes long enough to go on while a probe computes (see ``virb.features.ahead``)."""
        return self.tier == "mapped" or (self.tier == "host" and self.device.type == "cuda")

    @property
    def decodes_ahead(self) -> bool:
        """Whether images are decoded when they are read, so that it helps to know what is read next (``expect``)."""
        return isinstance(self._views[self._view], EncodedRows)

    def set_epoch(self, epoch: int) -> None:
        self._view = epoch % len(self._views)

    def expect(self, reads: Sequence[torch.Tensor | np.ndarray]) -> None:
        """The samples that are gathered next in this epoch, in order: a stream decodes their images while a probe is at work. No reads: no
        more is decoded ahead."""
        view = self._views[self._view]
        if isinstance(view, EncodedRows):
            view.expect([self._rows_of(torch.as_tensor(samples).cpu().numpy()) for samples in reads])

    def _rows_of(self, samples: np.ndarray) -> np.ndarray:
        """The rows of these samples, one sample after the other."""
        if self._fixed is not None:
            return self._fixed[samples].reshape(-1)
        spans = [self._values[self._offsets[i] : self._offsets[i + 1]] for i in samples]
        return np.concatenate(spans) if spans else self._values[:0]

    def gather(self, samples: torch.Tensor | np.ndarray) -> torch.Tensor:
        if self.shape is None or self._fixed is None:
            raise TypeError("samples of different shapes are read one by one, by sample()")
        if self._copies is not None:
            copy = self._copies[self._view]
            samples = torch.as_tensor(samples, device=copy.device)
            rows = self._index[samples]
            picked = self._sent(copy, rows.reshape(-1)).float()
        else:
            rows_read = self._rows_of(torch.as_tensor(samples).cpu().numpy())
            picked = self._moved(self._views[self._view].read(rows_read)).float()
        return picked.reshape(len(samples), *self.shape)

    def gather_rows(self, samples: np.ndarray) -> torch.Tensor:
        """All rows of these samples, sample after sample (their numbers may differ), float32 on the job's device: (rows, *row shape)."""
        if self._copies is None:
            return self._moved(self._views[self._view].read(self._rows_of(np.asarray(samples)))).float()
        spans = [np.arange(self._offsets[i], self._offsets[i + 1]) for i in np.asarray(samples)]
        places = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        copy = self._copies[self._view]
        return self._sent(copy, self._inverse[torch.from_numpy(places)].to(copy.device)).float()

    def _sent(self, copy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if copy.device.type != "cpu" or not self._pins:
            return copy[rows].to(self.device)
        pinned = torch.empty((len(rows), *copy.shape[1:]), dtype=copy.dtype, pin_memory=True)  # kept by torch until it has been copied
        return torch.index_select(copy, 0, rows, out=pinned).to(self.device, non_blocking=True)

    def _moved(self, picked: torch.Tensor) -> torch.Tensor:
        """What a source gave, on the job's device; entries that are held lie there already."""
        if picked.device.type != "cpu" or not self._pins:
            return picked.to(self.device)
        return picked.pin_memory().to(self.device, non_blocking=True)

    @property
    def _pins(self) -> bool:
        return self.device.type == "cuda"

    def sample(self, index: int) -> list[torch.Tensor]:
        span = range(int(self._offsets[index]), int(self._offsets[index + 1]))
        if self._copies is not None:
            return [self._copies[self._view][self._inverse[i]].to(self.device).float() for i in span]
        if span and self._views[self._view].shape is not None:  # at once: a stream encodes many rows as fast as one
            return list(self._moved(self._views[self._view].read(self._values[span.start : span.stop])).float())
        return [self._views[self._view].read_one(int(self._values[i])).to(self.device).float() for i in span]
