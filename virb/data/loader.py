"""Batches of pixels: every image is decoded once, however many geometries want it, by threads that work a little ahead.

Threads, not processes: Pillow and torchvision release the interpreter lock where the time goes, and pixels need not be copied
between processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import torch

from virb.data.images import ImageList
from virb.data.transforms import Geometry
from virb.errors import BadImage


@dataclass
class LoadedBatch:
    """``pixels[geometry]``: uint8 (B, 3, h, w), or a list of (3, h_i, w_i) at native size. ``bad``: row -> why it is black."""

    rows: np.ndarray
    pixels: dict[Geometry, torch.Tensor | list[torch.Tensor]]
    bad: dict[int, str] = field(default_factory=dict)


_Loaded = tuple[list[torch.Tensor], str | None]  # one tensor per geometry, and why the image is bad


def load_batches(
    images: ImageList,
    rows: Sequence[int] | np.ndarray,
    geometries: Sequence[Geometry],
    batch_size: int,
    workers: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    count: Callable[[int], None] | None = None,
) -> Generator[LoadedBatch, None, None]:
    """Images ``rows`` in this order, ``batch_size`` at a time (the last batch may be smaller).

    ``workers`` threads decode ahead, by at most two batches; 0 decodes in line. A bad image raises BadImage ("error"), or is black
    (1 x 1 at native size) and named in ``bad`` ("skip"). ``count(n)`` is called from the consumer's thread with the number of
    images read for each batch. No thread is left when the iterator ends, fails or is closed.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    geometries = list(dict.fromkeys(geometries))
    rows = np.asarray(rows, dtype=np.int64)

    def load(row: np.int64) -> _Loaded:
        try:
            image = images.read(int(row))
        except BadImage as error:
            if on_bad_image == "error":
                raise
            return [_black(geometry) for geometry in geometries], str(error)
        return [geometry.apply(image, int(row)) for geometry in geometries], None

    loaded = map(load, rows) if workers < 1 else _decoded_ahead(load, rows, workers, ahead=2 * batch_size)
    try:
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            batch = _collate(part, geometries, list(islice(loaded, len(part))))
            if count is not None:
                count(len(part))
            yield batch
    finally:
        if isinstance(loaded, Iterator) and hasattr(loaded, "close"):
            loaded.close()


def _decoded_ahead(load: Callable[[np.int64], _Loaded], rows: np.ndarray, workers: int, ahead: int) -> Iterator[_Loaded]:
    """``map(load, rows)`` by threads, at most ``ahead`` images begun and not yet taken."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="virb-decode")
    waiting: deque[Future[_Loaded]] = deque()
    try:
        for row in rows:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(load, row))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collate(rows: np.ndarray, geometries: Sequence[Geometry], loaded: Sequence[_Loaded]) -> LoadedBatch:
    pixels: dict[Geometry, torch.Tensor | list[torch.Tensor]] = {}
    for g, geometry in enumerate(geometries):
        tensors = [per_geometry[g] for per_geometry, _ in loaded]
        pixels[geometry] = tensors if geometry.size is None else torch.stack(tensors)
    return LoadedBatch(rows, pixels, {int(row): reason for row, (_, reason) in zip(rows, loaded, strict=True) if reason is not None})


def _black(geometry: Geometry) -> torch.Tensor:
    return torch.zeros((3, *(geometry.size or (1, 1))), dtype=torch.uint8)
