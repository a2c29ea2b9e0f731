"""Reads every target that has a value per pixel, as tasks do: it can be read, it is as large as its image, and something of it is valid."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from virb.data.images import Dataset, ImageList
from virb.data.placement import IGNORED
from virb.errors import ViRBError

_CHUNK = 64  # targets that a thread takes at a time
_BAD, _SIZE, _EMPTY = "cannot be read", "differ in size from their image", "have no valid pixel"


def check_targets(dataset: Dataset, workers: int, tell: Callable[[str, int, int], None]) -> Iterator[tuple[bool, str, list[str]]]:
    """Findings: whether it is wrong (or else to know), the text, and the targets that it is about. What is in memory is no such target."""
    parts = [
        (split, name, values)
        for split, samples in dataset.samples.items()
        for name, values in samples.targets.items()
        if not isinstance(values, (np.ndarray, list, tuple))
    ]
    total, done = sum(len(values) for _, _, values in parts), 0
    with ThreadPoolExecutor(workers) as pool:
        for split, name, values in parts:
            samples = dataset.samples[split]
            images = dataset.lists[samples.images]
            rows = samples.row_values[samples.row_offsets[:-1]]  # of samples of several images, the first is what the target is about
            found: dict[str, list[str]] = {_BAD: [], _SIZE: [], _EMPTY: []}
            for results in _in_order(pool, values, images, rows, 4 * workers):
                for what, text in filter(None, results):
                    found[what].append(text)
                done += len(results)
                tell("reading targets", done, total)
            for what, names in found.items():
                if names:
                    yield what != _EMPTY, f"{len(names):,} of {len(values):,} targets ({name}) of {split} {what}", names


def _in_order(
    pool: ThreadPoolExecutor, values: Sequence[Any], images: ImageList, rows: np.ndarray, ahead: int
) -> Iterator[list[tuple[str, str] | None]]:
    """What is wrong with each target and how it is called, chunk by chunk; a bounded number of chunks is under way."""

    def look(start: int) -> list[tuple[str, str] | None]:
        return [_problem(values, i, images, int(rows[i])) for i in range(start, min(start + _CHUNK, len(values)))]

    starts = iter(range(0, len(values), _CHUNK))
    waiting = deque(pool.submit(look, start) for start in islice(starts, ahead))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(look, start) for start in islice(starts, 1))
    finally:  # Ctrl-C does not wait for what nobody reads
        for future in waiting:
            future.cancel()


def _problem(values: Sequence[Any], i: int, images: ImageList, row: int) -> tuple[str, str] | None:
    name = images.ids[row]
    try:
        target = values[i]
        if not isinstance(target, np.ndarray) or target.ndim < 2:
            return None
        size = images.image_size(row)
    except ViRBError as error:
        return _BAD, str(error)
    if target.shape[-2:] != size:
        return _SIZE, f"{name}: {size[0]} x {size[1]} pixels, but its target {target.shape[-2]} x {target.shape[-1]}"
    valid = target != IGNORED if np.issubdtype(target.dtype, np.integer) else np.isfinite(target)
    return None if valid.any() else (_EMPTY, name)
