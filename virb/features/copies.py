"""Working copies of features: the rows that a job reads, brought once to where it reads them from.

A copy in device memory is filled piece by piece, so that the host never holds all of it. One in host memory is ordinary memory, also
beside a GPU: batches are gathered from it into page-locked buffers, so the GPU reads nothing else, and torch rounds page-locked memory
up to a power of two and keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import torch

_PIECE_BYTES = 64 << 20
_BUFFERS = 2  # one on its way, one being filled


def copied(read: Callable[[np.ndarray], torch.Tensor], rows: np.ndarray, shape: Sequence[int], place: torch.device) -> torch.Tensor:
    """``read(rows)`` on ``place``, in the precision that it comes in. ``shape`` is that of a row."""
    if place.type == "cpu":
        return read(rows).to(place)
    step = max(1, _PIECE_BYTES // (4 * max(1, math.prod(shape))))
    first = read(rows[:step])
    copy = torch.empty((len(rows), *shape), dtype=first.dtype, device=place)
    buffers = cycle([(torch.empty(first.shape, dtype=first.dtype, pin_memory=True), torch.cuda.Event()) for _ in range(_BUFFERS)])
    for start in range(0, len(rows), step):
        piece = read(rows[start : start + step]) if start else first
        buffer, sent = next(buffers)
        sent.synchronize()  # it is on its way no more
        copy[start : start + len(piece)].copy_(buffer[: len(piece)].copy_(piece), non_blocking=True)
        sent.record(torch.cuda.current_stream(place))
    return copy
