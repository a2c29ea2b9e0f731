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

_SHARE = {"cpu": 0.1, "cuda": 0.2}  # of the memory that is free when the first slice comes
_MOST_ON_HOST = 2_000_000_000


@dataclass(frozen=True)
class _Piece:
    rows: torch.Tensor
    bad: Mapping[int, str]
    facts: SliceFacts


class HeldRows:
    """Rows of a whole entry in memory (``virb.features.feature_set.Rows``), which tell of it what ``MappedRows`` tell."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._values = torch.cat([piece.rows for piece in pieces]) if len(pieces) > 1 else pieces[0].rows
        self.shape: tuple[int, ...] | None = tuple(self._values.shape[1:])
        self.nbytes = self._values.nbytes
        self.bad = {row: reason for piece in pieces for row, reason in piece.bad.items()}
        self.batches = [piece.facts.batch for piece in pieces if piece.facts.batch is not None]
        self.seconds: dict[str, float] = {}
        for piece in pieces:
            for stage, value in piece.facts.seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def __len__(self) -> int:
        return len(self._values)

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """All rows in order are not copied: nobody writes to features."""
        rows = np.asarray(rows)
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self._values
        return self._values[torch.from_numpy(np.ascontiguousarray(rows)).to(self._values.device)]

    def read_one(self, row: int) -> torch.Tensor:
        return self._values[row]


@dataclass
class _Entry:
    n_rows: int
    nbytes: int
    pieces: dict[int, _Piece] = field(default_factory=dict)
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
        if key not in self._entries and not self._admit(key, n_rows, rows.nbytes // max(len(rows), 1) * n_rows):
            self._refused.add(key)
            return
        entry = self._entries[key]
        try:
            values = torch.from_numpy(np.ascontiguousarray(rows)).to(self._device)
        except torch.OutOfMemoryError:
            self.clear()
            return
        entry.pieces[start] = _Piece(values, dict(bad), facts)

    def find(self, key: str) -> HeldRows | None:
        """A whole entry, None when a part of it is not here."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.whole is None:
            starts = [start for start, _ in slice_bounds(entry.n_rows)]
            shapes = {piece.rows.shape[1:] for piece in entry.pieces.values()}
            if sorted(entry.pieces) != starts or len(shapes) != 1:
                return None
            entry.whole = HeldRows([entry.pieces[start] for start in starts])
            entry.pieces.clear()
        entry.used = True
        self._entries.move_to_end(key)
        return entry.whole

    def clear(self) -> bool:
        """Gives all memory back, for whoever needs it more; whether there was any."""
        there = bool(self._entries)
        self._refused |= {key for key, entry in self._entries.items() if entry.whole is None}  # parts that are gone do not come again
        self._entries.clear()
        return there

    def _admit(self, key: str, n_rows: int, nbytes: int) -> bool:
        if self._budget is None:
            self._budget = _budget(self._device)
        if nbytes > self._budget:
            return False
        for other in [name for name, entry in self._entries.items() if entry.used]:
            if sum(entry.nbytes for entry in self._entries.values()) + nbytes <= self._budget:
                break
            del self._entries[other]
        if sum(entry.nbytes for entry in self._entries.values()) + nbytes > self._budget:
            return False
        self._entries[key] = _Entry(n_rows, nbytes)
        return True


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(_SHARE["cuda"] * torch.cuda.mem_get_info(device)[0])
    return min(_MOST_ON_HOST, int(_SHARE["cpu"] * free_memory()))
