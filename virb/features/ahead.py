"""Reading ahead: the next batches are gathered, and on their way to the GPU, while a probe is at work on this one."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from virb.functional.cuda import side_stream

_AHEAD = 2  # batches: one in use, one ready, one being read


Chunk = TypeVar("Chunk")
Values = TypeVar("Values")  # a tensor, or tensors in lists, tuples and mappings


@contextmanager
def expecting(reads: Iterable[tuple[Any, Sequence[Any]]]) -> Iterator[None]:
    """While it lasts, each of these features that are streams knows the samples that are gathered from it next, in order, and decodes their
    images while a probe is at work. No thread is left afterwards."""
    with ExitStack() as end:
        for features, samples in reads:
            if getattr(features, "decodes_ahead", False):
                end.callback(features.expect, ())
                features.expect(samples)
        yield


def read_ahead(
    read: Callable[[Chunk], Values], chunks: Iterable[Chunk], device: torch.device, depth: int = _AHEAD, threads: int = 1
) -> Generator[tuple[Chunk, Values], None, None]:
    """Each chunk with ``read(chunk)``, in order, read by ``threads`` threads at most ``depth`` chunks ahead; on a GPU on a stream of their
    own, which the current stream waits for. ``read`` should leave the interpreter to others. No thread is left when the iterator ends or is
    closed."""
    side = side_stream(device, "reading ahead") if device.type == "cuda" else None

    def fetch(chunk: Chunk) -> tuple[Values, Any]:
        if side is None:
            return read(chunk), None
        with torch.cuda.stream(side):
            values = read(chunk)
            arrived = torch.cuda.Event()
            arrived.record(side)
        return values, arrived

    def taken(chunk: Chunk, future: Future[tuple[Values, Any]]) -> tuple[Chunk, Values]:
        values, arrived = future.result()
        if arrived is not None:
            current = torch.cuda.current_stream(device)
            current.wait_event(arrived)
            for tensor in _tensors(values):
                tensor.record_stream(current)  # its memory is the other stream's, which must not use it again too early
        return chunk, values

    waiting: deque[tuple[Chunk, Future[tuple[Values, Any]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="virb-read")
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(fetch, chunk)))
            if len(waiting) > depth:
                yield taken(*waiting.popleft())
        while waiting:
            yield taken(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(value)
    else:
        yield values


class MappedFile:
    """The values of a file, mapped into memory, without holding the file open: a process may have far fewer files than slices."""

    def __init__(self, path: Any, dtype: str) -> None:
        size = np.dtype(dtype).itemsize
        n = path.stat().st_size // size
        kind = torch.from_numpy(np.zeros(0, dtype=dtype)).dtype
        self.values = torch.from_file(str(path), shared=False, size=n, dtype=kind).numpy() if n else np.zeros(0, dtype=dtype)
        self._start, self._size = self.values.ctypes.data, size

    def will_need(self, first: int, count: int) -> None:
        """Tells the system that these values are read soon: it fetches them from the disk in the background, many at a time."""
        if _madvise is not None:
            begin = self._start + first * self._size
            page = begin - begin % mmap.PAGESIZE
            _madvise(page, begin + count * self._size - page, _WILL_NEED)


_WILL_NEED = 3  # POSIX_MADV_WILLNEED, on Linux, macOS and the BSDs


def _find_madvise() -> Callable[[int, int, int], int] | None:
    """The C library's, for Python's own needs a mapping that holds its file open. None where there is none."""
    try:
        function = ctypes.CDLL(None).posix_madvise
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


_madvise = _find_madvise()
