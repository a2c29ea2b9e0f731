"""Runs a plan's units on this machine: one worker process per device, each given the next ready unit as soon as it is free.

With a single device the units run in this process. Either way a unit's failure is recorded and the others go on.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from virb.errors import ViRBError, describe
from virb.io import available_cores
from virb.plan.graph import Graph, Unit, UnitReport
from virb.processes import end_with_parent


class Observer(Protocol):
    """Whoever wants to know how the run goes (a progress display)."""

    def starting(self, slot: int) -> None: ...
    def up(self, slot: int) -> None: ...  # the worker process of a slot, or it died before it was
    def note(self, text: str) -> None: ...
    def started(self, slot: int, unit: Unit) -> None: ...
    def advanced(self, slot: int, unit: Unit, phase: str, done: int, total: int) -> None: ...
    def spent(self, slot: int, unit: Unit, so_far: UnitReport) -> None: ...
    def finished(self, slot: int, unit: Unit, report: UnitReport) -> None: ...
    def failed(self, unit: Unit, reason: str) -> None: ...
    def tick(self, graph: Graph) -> None: ...


# Does one unit, telling (phase, done, total). It may have a method ``spent``: what the unit at hand has cost so far, ended or not.
Doer = Callable[[Unit, Callable[[str, int, int], None]], UnitReport]
MakeDoer = Callable[[Any, str], Doer]  # (context, device) -> doer; a module-level function, so that a process can be given it
_TICK = 0.25
_MESSAGES = 100  # of one worker before the others are heard
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
    # After other failures features are worth making: they stay for the next run.
    if report.no_room:
        told = bool(graph.given_up)
        graph.give_up_unused()
        if graph.given_up and not told:
            observer.note("the disk is full: features that no job waits for any more are not made")


def _in_process(
    graph: Graph, context: Any, devices: tuple[str, ...], make_doer: MakeDoer, observer: Observer, on_lost: Callable[[Unit, str], None]
) -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        do: Doer | None = None
        while (unit := graph.next_ready()) is not None:
            graph.start(unit)
            observer.started(0, unit)

            def tell(phase: str, done: int, total: int, unit: Unit = unit) -> None:
                observer.advanced(0, unit, phase, done, total)
                observer.tick(graph)

            try:
                do = do or make_doer(context, devices[0])
                report = do(unit, tell)
            except Exception as error:  # noqa: BLE001 - the job boundary: whatever a unit raises is recorded, the others go on
                observer.spent(0, unit, _spent(do))
                _lose(graph, unit, describe(error), observer, on_lost)
            except BaseException:  # Ctrl-C
                observer.spent(0, unit, _spent(do))
                raise
            else:
                _finish(graph, 0, unit, report, observer, on_lost)
            observer.tick(graph)
    finally:
        torch.set_num_threads(threads)


def _spent(do: Doer | None) -> UnitReport:
    return do.spent() if do is not None and hasattr(do, "spent") else UnitReport()


@dataclass
class _Worker:
    slot: int
    device: str
    process: Any
    pipe: Connection
    up: bool = False  # it has the context
    unit: Unit | None = None


def _in_workers(
    graph: Graph, context: Any, devices: tuple[str, ...], make_doer: MakeDoer, observer: Observer, on_lost: Callable[[Unit, str], None]
) -> None:
    if graph.finished:
        return
    pickled = _pickled(context, make_doer)
    workers: list[_Worker] = []
    try:
        spare_slots, cores = list(range(len(devices))), available_cores()
        while not graph.finished:
            while spare_slots and _one_more(workers, graph, cores):  # at the start, and after a worker died
                _start(workers, spare_slots.pop(0), devices, observer)
            for worker in workers:
                # A worker that died while it had nothing to do is given nothing more; it is buried below.
                idle = worker.up and worker.unit is None and worker.process.is_alive()
                if idle and (unit := graph.next_ready()) is not None:
                    _give(graph, worker, unit, observer, on_lost)
            ready = wait([w.pipe for w in workers] + [w.process.sentinel for w in workers], timeout=_TICK)
            for worker in list(workers):
                dead = worker.process.sentinel in ready  # seen before its pipe is emptied: so nothing it said is missed
                if worker.pipe in ready or dead:
                    _receive(graph, worker, pickled, observer, on_lost, most=_MESSAGES if not dead else None)
                if dead:
                    workers.remove(worker)
                    if worker.up:
                        spare_slots.append(worker.slot)
                    _bury(graph, worker, bool(workers or spare_slots), observer, on_lost)
            observer.tick(graph)
    finally:
        _stop(workers)


def _one_more(workers: list[_Worker], graph: Graph, cores: int) -> bool:
    """Whether there is work, now or soon, that no worker is there for. As many start side by side as there are cores to import what they
    need: of more, the first would be up later, and it might do what there is to do."""
    return sum(worker.unit is None for worker in workers) < len(graph.waiting) and sum(not worker.up for worker in workers) < cores


def _pickled(context: Any, make_doer: MakeDoer) -> bytes:
    """Once for all workers: it may hold the paths of a million images."""
    try:
        return pickle.dumps((make_doer, context), protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        message = f"a worker process cannot be given what it needs ({error}); with one device no process is needed"
        raise ViRBError(message) from error


def _start(workers: list[_Worker], slot: int, devices: tuple[str, ...], observer: Observer) -> None:
    """With no more than fits into a pipe: else this process would wait until that one has imported what it needs to read it."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, devices[slot]), name=f"virb-{slot}", daemon=False)
    try:
        with _interrupts_held():
            process.start()
            workers.append(_Worker(slot, devices[slot], process, ours))  # before an interrupt can come between
    finally:
        theirs.close()
    observer.starting(slot)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A Ctrl-C waits, here and for good in the process that is started: it reaches the whole group, and the parent decides."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else it starts with the process, and opens the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _give(graph: Graph, worker: _Worker, unit: Unit, observer: Observer, on_lost: Callable[[Unit, str], None]) -> None:
    graph.start(unit)
    observer.started(worker.slot, unit)
    worker.unit = unit
    try:
        worker.pipe.send(unit)
    except OSError:
        pass  # it died; its sentinel tells
    except Exception as error:  # noqa: BLE001 - the job boundary: a unit that cannot be pickled
        worker.unit = None
        _lose(graph, unit, describe(error), observer, on_lost)


def _receive(
    graph: Graph, worker: _Worker, context: bytes, observer: Observer, on_lost: Callable[[Unit, str], None], most: int | None
) -> None:
    """Takes what a worker has said, at most so many messages."""
    for _ in itertools.count() if most is None else range(most):
        try:
            if not worker.pipe.poll():
                return
            kind, *message = worker.pipe.recv()
        except (EOFError, OSError):
            return  # it died; its sentinel tells
        if kind == "hello":
            with suppress(OSError):  # it died; its sentinel tells
                worker.pipe.send_bytes(context)  # it does nothing but read now
            continue
        if kind == "up":
            worker.up = True
            observer.up(worker.slot)
            continue
        unit = worker.unit
        if unit is None:
            continue
        if kind != "done":
            observer.spent(worker.slot, unit, message.pop())
        if kind == "progress":
            observer.advanced(worker.slot, unit, *message)
            continue
        worker.unit = None
        if kind == "done":
            _finish(graph, worker.slot, unit, message[0], observer, on_lost)
        else:
            _lose(graph, unit, message[0], observer, on_lost)


def _bury(graph: Graph, worker: _Worker, others: bool, observer: Observer, on_lost: Callable[[Unit, str], None]) -> None:
    """Its unit is lost. A worker that died before it was up has none, and is not started again: the others do the work."""
    worker.process.join(_PATIENCE)
    worker.pipe.close()
    code = worker.process.exitcode
    why = (
        "killed from outside, or by the system for want of memory"
        if code is not None and code < 0
        else "it ended by itself; what it printed may say why"
    )
    died = f"the worker on {worker.device} died{'' if worker.up else ' as it started'} (exit code {code}: {why})"
    if not worker.up:
        observer.up(worker.slot)
        if others:
            observer.note(f"{died}; the others go on")
        while not others and (unit := graph.next_ready()) is not None:
            graph.start(unit)
            _lose(graph, unit, died, observer, on_lost)
    elif worker.unit is not None:
        _lose(graph, worker.unit, died, observer, on_lost)


def _stop(workers: list[_Worker]) -> None:
    """Idle workers are told to end, the others stopped; who does not end in time (or a second Ctrl-C comes) is killed."""
    try:
        for worker in workers:
            with suppress(OSError):
                worker.pipe.send(None) if worker.up and worker.unit is None else worker.process.terminate()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.pipe.close()


def _serve(pipe: Connection, device: str) -> None:
    """A worker process: asks for what all workers are given, does units until told to stop, and never outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    end_with_parent()
    do: Doer | None = None
    last = 0.0

    def tell(phase: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.1 or done == total:
            last = now
            pipe.send(("progress", phase, done, total, _spent(do)))

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        pipe.send(("hello",))
        make = _unpickled(pipe.recv_bytes(), device)
        pipe.send(("up",))
        while True:
            pickled = pipe.recv_bytes()
            try:
                unit = pickle.loads(pickled)
                if unit is None:
                    return
                do = do or make()
                pipe.send(("done", do(unit, tell)))
            except Exception as error:  # noqa: BLE001 - the job boundary; also a unit or a report that cannot be pickled
                pipe.send(("failed", describe(error), _spent(do)))


def _unpickled(context: bytes, device: str) -> Callable[[], Doer]:
    """What makes the doer, imported now. What is wrong with it is the failure of the units that need it."""
    try:
        make_doer, given = pickle.loads(context)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything as it is imported
        reason = describe(error)

        def refuse() -> Doer:
            raise ViRBError(reason)

        return refuse
    return partial(make_doer, given, device)
