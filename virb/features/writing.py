"""Finished slices of a pass on their way to the cache, and to jobs of the same worker: written in the background, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from virb.errors import ViRBError, describe
from virb.features.cache import FeatureCache, SliceFacts, as_stored
from virb.features.counted import PassReport
from virb.features.encoding import Block
from virb.features.held import HeldEntries


@dataclass(frozen=True)
class Output:
    """What a slice has of an entry, in blocks of rows."""

    key: str
    blocks: list[Block]
    facts: SliceFacts

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes if isinstance(block, torch.Tensor) else sum(row.nbytes for row in block) for block in self.blocks)


@dataclass(frozen=True)
class _Written:
    key: str
    values: np.ndarray | None  # as stored, for who wants to hold them
    facts: SliceFacts
    error: ViRBError | None = None


class SliceWriter:
    """Writes a slice while the next is encoded; that one waits until it is there. So the outputs of two slices at most are in memory, and a
    pass that is killed loses no more. What was written becomes known to others (``held``, the report) by the caller's thread alone."""

    def __init__(self, cache: FeatureCache, n_rows: int, held: HeldEntries | None, most: float, report: PassReport) -> None:
        """``most``: bytes that outputs may take. Where twice a slice's are more, nothing is encoded while that is written."""
        self._cache, self._n_rows, self._held, self._most, self._report = cache, n_rows, held, most, report
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="virb-write")
        self._writing: tuple[int, Mapping[int, str], Future[tuple[list[_Written], list[str]]]] | None = None
        self.full: set[str] = set()  # keys of entries that could not be written: nothing more need be made of them

    def __enter__(self) -> SliceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """What is being written comes to its end, whatever has happened."""
        self._thread.shutdown(wait=True)

    def put(self, start: int, outputs: Sequence[Output], bad: Mapping[int, str], also: Callable[[FeatureCache], list[str]]) -> None:
        """``also`` is done behind the outputs; what it returns are notes."""
        self.settle()
        size = sum(output.nbytes for output in outputs)

        def write() -> tuple[list[_Written], list[str]]:
            return [self._write(start, output, bad) for output in outputs], also(self._cache)

        self._writing = start, bad, self._thread.submit(write)
        if 2 * size > self._most:
            self.settle()

    def settle(self) -> None:
        """Waits for what is being written. An entry that cannot be written fails alone."""
        if self._writing is None:
            return
        began = time.perf_counter()
        (start, bad, writing), self._writing = self._writing, None
        written, notes = writing.result()
        for one in written:
            if one.error is not None:
                self.full.add(one.key)
                self._report.failed.setdefault(one.key, describe(one.error))
            elif self._held is not None and one.values is not None:
                self._held.keep(one.key, self._n_rows, start, one.values, bad, one.facts)
        self._report.notes += [note for note in notes if note not in self._report.notes]
        self._report.seconds["write"] += time.perf_counter() - began

    def _write(self, start: int, output: Output, bad: Mapping[int, str]) -> _Written:
        block = _as_block(output.blocks)
        output.blocks.clear()
        values = as_stored(block) if isinstance(block, np.ndarray) else None
        try:
            facts = self._cache.write_slice(output.key, start, block if values is None else values, bad, output.facts)
        except ViRBError as error:
            return _Written(output.key, None, output.facts, error)
        return _Written(output.key, values if self._held is not None else None, facts)


def _as_block(blocks: Sequence[Block]) -> np.ndarray | list[np.ndarray]:
    """By NumPy: the number of threads that torch was told to use is that of the caller's thread."""
    whole = [block.numpy() for block in blocks if isinstance(block, torch.Tensor)]
    if len(whole) == len(blocks) and len({block.shape[1:] for block in whole}) == 1:
        return np.concatenate(whole)
    rows = [row.numpy() for block in blocks for row in block]
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else rows
