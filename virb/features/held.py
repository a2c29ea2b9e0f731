"""Entries that a pass leaves in its worker's memory, on the device where it is a GPU, so that a job which comes next reads no disk.

They hold what the cache holds, bit by bit, for it is the cache's values that are kept. The cache stays the seam: what finds no room here,
or is made by several workers, is read from there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from virb.features.cache import SliceFacts, slice_bounds
from virb.features.limits import free_memory
from virb.functional.cuda import free_device_memory

_SHARE = {"cpu": 0.1, "cuda": 0.2}  # of the memory that is free when the first slice comes
_MOST_ON_HOST = 2_000_000_000


@dataclass(frozen=True)
class _About:
    """A slice."""

    bad: Mapping[int, str]
    facts: SliceFacts


class HeldRows:
    """Rows of a whole entry in memory (``virb.features.feature_set.Rows``), which tell of it what ``MappedRows`` tell. ``values``: all of
    them, in order, to which nobody writes."""

    def __init__(self, values: torch.Tensor, slices: Sequence[_About]) -> None:
        self.values = values
        self.shape: tuple[int, ...] | None = tuple(values.shape[1:])
        self.nbytes = values.nbytes
        self.bad = {row: reason for piece in slices for row, reason in piece.bad.items()}
        self.batches = [piece.facts.batch for piece in slices if piece.facts.batch is not None]
        self.seconds: dict[str, float] = {}
        for piece in slices:
            for stage, value in piece.facts.seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def __len__(self) -> int:
        return len(self.values)

    def read(self, rows: np.ndarray) -> torch.Tensor:
        return self.values[torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).to(self.values.device)]

    def read_one(self, row: int) -> torch.Tensor:
        return self.values[row]


@dataclass
class _Entry:
    n_rows: int
    nbytes: int
    values: torch.Tensor | None = None  # of all rows, from the first slice on: joining the slices takes no memory
    slices: dict[int, _About] = field(default_factory=dict)  # those that came, by their first row
    whole: HeldRows | None = None
    used: bool = False


class HeldEntries:
    """Whole entries within a budget of bytes (None: a share of what is free). An entry takes its room with its first slice; those that a
    job has read make room for others, and what finds none is not held at all."""

    def __init__(self, device: torch.device, budget: int | None = None) -> None:
        self._device, self._budget = device, budget
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the one used last at the end
        self._refused = set[str]()

    def keep(self, key: str, n_rows: int, start: int, rows: np.ndarray, bad: Mapping[int, str], facts: SliceFacts) -> None:
        """``rows``: (n, *shape) as the cache stores them, from row ``start`` of an entry of ``n_rows``."""
        if key in self._refused:
            return
        if key not in self._entries and (start or not self._admit(key, n_rows, rows.nbytes // max(len(rows), 1) * n_rows)):
            self._refused.add(key)  # slices come in order: one that begins later was cached before, and will not be whole
            return
        entry = self._entries[key]
        if entry.whole is not None:
            return
        try:
            fits = self._put(entry, start, torch.from_numpy(np.ascontiguousarray(rows)))
        except torch.OutOfMemoryError:
            self.clear()
            return
        if not fits:
            self._refused.add(key)
            del self._entries[key]
            return
        entry.slices[start] = _About(dict(bad), facts)

    def find(self, key: str) -> HeldRows | None:
        """A whole entry, None when a part of it is not here."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.whole is None:
            starts = [start for start, _ in slice_bounds(entry.n_rows)]
            if entry.values is None or sorted(entry.slices) != starts:
                return None
            entry.whole = HeldRows(entry.values, [entry.slices[start] for start in starts])
        entry.used = True
        self._entries.move_to_end(key)
        return entry.whole

    def clear(self) -> bool:
        """Gives all memory back, for whoever needs it more; whether there was any."""
        there = bool(self._entries)
        self._refused |= {key for key, entry in self._entries.items() if entry.whole is None}  # parts that are gone do not come again
        self._entries.clear()
        return there

    def _put(self, entry: _Entry, start: int, rows: torch.Tensor) -> bool:
        """Whether the rows of a slice are in their place: they are not where they have another shape, or need a room that is not there."""
        if entry.values is None:
            entry.values = torch.empty((entry.n_rows, *rows.shape[1:]), dtype=rows.dtype, device=self._device)
        if rows.shape[1:] != entry.values.shape[1:]:
            return False
        kind = torch.promote_types(entry.values.dtype, rows.dtype)
        if kind != entry.values.dtype:  # the first slice of the entry that is kept in float32
            more = entry.values.nbytes * (kind.itemsize - entry.values.itemsize) // entry.values.itemsize
            if not self._has_room(more):
                return False
            entry.values, entry.nbytes = entry.values.to(kind), entry.nbytes + more
        entry.values[start : start + len(rows)].copy_(rows)
        return True

    def _has_room(self, nbytes: int) -> bool:
        return self._budget is not None and sum(entry.nbytes for entry in self._entries.values()) + nbytes <= self._budget

    def _admit(self, key: str, n_rows: int, nbytes: int) -> bool:
        if self._budget is None:
            self._budget = _budget(self._device)
        if nbytes > self._budget:
            return False
        for other in [name for name, entry in self._entries.items() if entry.used]:
            if self._has_room(nbytes):
                break
            del self._entries[other]
        if not self._has_room(nbytes):
            return False
        self._entries[key] = _Entry(n_rows, nbytes)
        return True


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(_SHARE["cuda"] * free_device_memory(device))
    return min(_MOST_ON_HOST, int(_SHARE["cpu"] * free_memory()))
