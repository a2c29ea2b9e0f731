"""Runs a plan's units on this machine: one worker process per device, each given the next ready unit as soon as it is free.

With a single device the units run in this process. Either way a unit's failure is recorded and the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from virb.errors import ViRBError
from virb.plan.graph import Graph, Unit, UnitReport


class Observer(Protocol):
    """Whoever wants to know how the run goes (a progress display)."""

    def started(self, slot: int, unit: Unit) -> None: ...
    def advanced(self, slot: int, unit: Unit, phase: str, done: int, total: int) -> None: ...
    def finished(self, slot: int, unit: Unit, report: UnitReport) -> None: ...
    def failed(self, unit: Unit, reason: str) -> None: ...
    def tick(self, graph: Graph) -> None: ...


Doer = Callable[[Unit, Callable[[str, int, int], None]], UnitReport]  # does one unit, telling (phase, done, total)
MakeDoer = Callable[[Any, str], Doer]  # (context, device) -> doer; a module-level function, so that a process can be given it
_TICK = 0.25
_PATIENCE = 3.0  # seconds a worker has to end by itself before it is killed


def run_units(
    graph: Graph, context: Any, devices: tuple[str, ...], make_doer: MakeDoer, observer: Observer, on_lost: Callable[[Unit, str], None]
) -> None:
    """Runs everything that can run. ``on_lost`` records a unit that could not: it failed, or what it needed did."""
    launcher = _in_process if len(devices) == 1 else _in_workers
    launcher(graph, context, devices, make_doer, observer, on_lost)


def _lose(graph: Graph, unit: Unit, reason: str, observer: Observer, on_lost: Callable[[Unit, str], None]) -> None:
    for lost, why in [(unit, reason), *graph.fail(unit, reason)]:
        observer.failed(lost, why)
        on_lost(lost, why)


def _finish(graph: Graph, slot: int, unit: Unit, report: UnitReport, observer: Observer, on_lost: Callable[[Unit, str], None]) -> None:
    observer.finished(slot, unit, report)
    for lost, why in graph.finish(unit, report):
        observer.failed(lost, why)
        on_lost(lost, why)


def _in_process(
    graph: Graph, context: Any, devices: tuple[str, ...], make_doer: MakeDoer, observer: Observer, on_lost: Callable[[Unit, str], None]
) -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        do = make_doer(context, devices[0])
        while (unit := graph.next_ready()) is not None:
            graph.start(unit)
            observer.started(0, unit)

            def tell(phase: str, done: int, total: int, unit: Unit = unit) -> None:
                observer.advanced(0, unit, phase, done, total)
                observer.tick(graph)

            try:
                report = do(unit, tell)
            except Exception as error:  # noqa: BLE001 - the job boundary: whatever a unit raises is recorded, the others go on
                _lose(graph, unit, describe(error), observer, on_lost)
            else:
                _finish(graph, 0, unit, report, observer, on_lost)
            observer.tick(graph)
    finally:
        torch.set_num_threads(threads)


def describe(error: BaseException) -> str:
    """One or two lines for people; the traceback follows for errors that are not meant for them."""
    if isinstance(error, ViRBError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    place = f" ({os.path.basename(last.filename)}:{last.lineno})" if last else ""
    return f"{type(error).__name__}: {error}{place}\n" + "".join(traceback.format_exception(error))


@dataclass
class _Worker:
    slot: int
    device: str
    process: Any
    pipe: Connection
    unit: Unit | None = None


def _in_workers(
    graph: Graph, context: Any, devices: tuple[str, ...], make_doer: MakeDoer, observer: Observer, on_lost: Callable[[Unit, str], None]
) -> None:
    spawn = multiprocessing.get_context("spawn")

    def start(slot: int) -> _Worker:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, context, devices[slot], make_doer), name=f"virb-{slot}", daemon=False)
        process.start()
        theirs.close()
        return _Worker(slot, devices[slot], process, ours)

    workers: list[_Worker] = []
    try:
        workers = [start(slot) for slot in range(min(len(devices), max(1, len(graph.waiting))))]
        while not graph.finished:
            for worker in workers:
                if worker.unit is None and (unit := graph.next_ready()) is not None:
                    graph.start(unit)
                    worker.unit = unit
                    observer.started(worker.slot, unit)
                    with suppress(OSError):  # a dead worker is noticed below
                        worker.pipe.send(unit)
            ready = wait([w.pipe for w in workers] + [w.process.sentinel for w in workers], timeout=_TICK)
            for worker in workers:
                if worker.pipe in ready:
                    _receive(graph, worker, observer, on_lost)
            for index, worker in enumerate(workers):
                if worker.process.sentinel in ready and not worker.pipe.poll():
                    if worker.unit is not None:
                        code = worker.process.exitcode
                        why = "killed from outside, or by the system for want of memory" if code and code < 0 else "it ended by itself"
                        _lose(graph, worker.unit, f"the worker on {worker.device} died (exit code {code}: {why})", observer, on_lost)
                    if not graph.finished:
                        workers[index] = start(worker.slot)
            observer.tick(graph)
    finally:
        _stop(workers)


def _receive(graph: Graph, worker: _Worker, observer: Observer, on_lost: Callable[[Unit, str], None]) -> None:
    try:
        while worker.pipe.poll():
            kind, *message = worker.pipe.recv()
            unit = worker.unit
            if unit is None:
                continue
            if kind == "progress":
                observer.advanced(worker.slot, unit, *message)
                continue
            worker.unit = None
            if kind == "done":
                _finish(graph, worker.slot, unit, message[0], observer, on_lost)
            else:
                _lose(graph, unit, message[0], observer, on_lost)
    except (EOFError, OSError):
        return  # it died; its sentinel tells


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        with suppress(OSError):
            worker.pipe.send(None) if worker.unit is None else worker.process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        worker.process.join(max(0.1, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


def _serve(pipe: Connection, context: Any, device: str, make_doer: MakeDoer) -> None:
    """A worker process: does units until told to stop, and never outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    do: Doer | None = None
    last = 0.0

    def tell(phase: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.1 or done == total:
            last = now
            pipe.send(("progress", phase, done, total))

    while True:
        try:
            unit = pipe.recv()
        except (EOFError, OSError):
            return
        if unit is None:
            return
        try:
            do = do or make_doer(context, device)
            pipe.send(("done", do(unit, tell)))
        except Exception as error:  # noqa: BLE001 - the job boundary
            pipe.send(("failed", describe(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
