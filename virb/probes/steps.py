"""How the steps of a grid are run: on a CPU by as many threads as the job has cores, on a GPU as captured graphs.

On a CPU every thread takes one group of heads at a time through a few batches, each product by one thread: the numbers are the same for any
number of threads. On a GPU the step of all groups is captured once per shape of a batch and replayed, so that launching its kernels costs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from virb.functional.cuda import side_stream
from virb.functional.products import one_thread
from virb.probes.stacks import Group
from virb.probes.standard import Standard

Batches = Iterable[tuple[Tensor, Tensor]]  # features (B, D) and targets (B, ...), on the device
Step = Callable[[Tensor, Tensor], None]

_AT_ONCE = 16  # batches that a thread takes a group through before it turns to another one
_AT_ONCE_BYTES = 2**25
WARM_UP = 3  # steps before a step is captured: libraries set themselves up in the first


class Steps(Protocol):
    """Takes all groups through batches, in training or in scoring. ``notes`` say what did not go as planned."""

    notes: list[str]

    def train(self, batches: Batches) -> None: ...
    def score(self, batches: Batches) -> None: ...


@contextmanager
def make_steps(groups: Sequence[Group], device: torch.device, cores: int) -> Iterator[Steps]:
    """``cores``: how many threads may compute on a CPU."""
    captures = device.type == "cuda" and all(group.on_device for group in groups)
    if device.type == "cuda":
        yield GraphSteps(groups, CudaGraphs(device) if captures else None)
        return
    with one_thread():  # of each product
        # Metrics of other makers need not know about threads.
        threads = min(cores, len(groups)) if all(group.on_device for group in groups) else 1
        if threads == 1:
            yield ThreadSteps(groups, None)
            return
        with ThreadPoolExecutor(threads, "grid", lambda: torch.set_num_threads(1)) as pool:
            yield ThreadSteps(groups, pool)


class ThreadSteps:
    """On a CPU: each group by one thread at a time, the next batches being read meanwhile."""

    def __init__(self, groups: Sequence[Group], pool: ThreadPoolExecutor | None) -> None:
        self.notes: list[str] = []
        self._groups, self._pool = groups, pool

    def train(self, batches: Batches) -> None:
        self._run([group.train_step for group in self._groups], batches)

    def score(self, batches: Batches) -> None:
        self._run([group.score_batch for group in self._groups], batches)

    def _run(self, steps: Sequence[Step], batches: Batches) -> None:
        running: list[Future[None]] = []
        try:
            for several in _several(batches):
                seen = _seen(self._groups, several)
                if self._pool is None:
                    for step, mine in zip(steps, seen, strict=True):
                        _take(step, mine)
                    continue
                _wait(running)
                running = [self._pool.submit(_take, step, mine) for step, mine in zip(steps, seen, strict=True)]
            _wait(running)
        finally:
            for future in running:  # after an error or an interrupt nobody wants the rest
                future.cancel()


def _seen(groups: Sequence[Group], batches: Sequence[tuple[Tensor, Tensor]]) -> list[Sequence[tuple[Tensor, Tensor]]]:
    """What each group sees of the batches: themselves, or standardised, which is done once for all groups with the same statistics."""
    made: dict[Standard | None, Sequence[tuple[Tensor, Tensor]]] = {None: batches}
    for standard in {group.standard: None for group in groups}:
        if standard is not None:
            made[standard] = [(standard(x), y) for x, y in batches]
    return [made[group.standard] for group in groups]


def _take(step: Step, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    for x, y in batches:
        step(x, y)


def _wait(running: Iterable[Future[None]]) -> None:
    for future in running:
        future.result()


def _several(batches: Batches) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Some batches at a time, of no more bytes than go well into a cache."""
    taken: list[tuple[Tensor, Tensor]] = []
    for x, y in batches:
        taken.append((x, y))
        if len(taken) >= min(_AT_ONCE, max(1, _AT_ONCE_BYTES // max(1, x.nbytes))):
            yield taken
            taken = []
    if taken:
        yield taken


class Capture(Protocol):
    """What can record operations and do them again."""

    def warm_up(self, call: Callable[[], None]) -> None:
        """Does it, in the place where it will be captured."""
        ...

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """Does not do it, but gives what does. RuntimeError where it cannot be captured."""
        ...


class CudaGraphs:
    """CUDA graphs, warmed up and captured on one side stream, replayed on the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = side_stream(device, "capture")  # nobody else's: what others enqueue there would be captured, too

    def warm_up(self, call: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            call()
        current.wait_stream(self._stream)

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads (those that read features ahead) may go on meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            call()
        replay: Callable[[], None] = graph.replay
        return replay


class GraphSteps:
    """On a GPU: the first steps of a shape are done as they are, then one is captured and replayed. Without ``graphs`` all are done as they
    are, and so they are from when a capture failed."""

    def __init__(self, groups: Sequence[Group], graphs: Capture | None) -> None:
        self.notes: list[str] = []
        self._groups, self._graphs = groups, graphs
        self._seen: dict[tuple[Any, ...], int] = {}
        self._captured: dict[tuple[Any, ...], tuple[Tensor, Tensor, Callable[[], None]]] = {}

    def train(self, batches: Batches) -> None:
        for x, y in batches:
            self._do("train", self._train_all, x, y)

    def score(self, batches: Batches) -> None:
        for x, y in batches:
            self._do("score", self._score_all, x, y)

    def _train_all(self, x: Tensor, y: Tensor) -> None:
        for group, batches in zip(self._groups, _seen(self._groups, [(x, y)]), strict=True):
            _take(group.train_step, batches)

    def _score_all(self, x: Tensor, y: Tensor) -> None:
        for group, batches in zip(self._groups, _seen(self._groups, [(x, y)]), strict=True):
            _take(group.score_batch, batches)

    def _do(self, what: str, step: Step, x: Tensor, y: Tensor) -> None:
        key = (what, tuple(x.shape), tuple(y.shape))
        if self._graphs is None:
            step(x, y)
            return
        if key not in self._captured:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= WARM_UP:
                self._graphs.warm_up(lambda: step(x, y))
                return
            own_x, own_y = x.clone(), y.clone()
            try:
                self._captured[key] = own_x, own_y, self._graphs.capture(lambda: step(own_x, own_y))
            except RuntimeError as error:  # a library or driver that cannot; nothing was done, so the step is still to be done
                self._graphs = None
                self._captured.clear()
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                self.notes.append(f"the step could not be captured in a CUDA graph, so its kernels were launched one by one: {reason}")
                step(x, y)
                return
        own_x, own_y, replay = self._captured[key]
        own_x.copy_(x)
        own_y.copy_(y)
        replay()
