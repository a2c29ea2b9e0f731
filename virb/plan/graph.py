"""Work units and what is ready: the part of the plan that every launcher shares. It knows no kinds and no devices."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Unit:
    """The smallest thing a worker does: picklable and idempotent. ``inputs`` and ``outputs`` name things (a cache entry, a job's result);
    several units may make one output together (the slices of a pass), which then exists when all of them are done. ``after`` are keys of
    units that must be over first, whether they were done or failed."""

    kind: str
    key: str
    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cost: float  # expected seconds on one device
    payload: Any = None
    after: tuple[str, ...] = ()

    @property
    def is_job(self) -> bool:
        """Whether it ends in a result; the others make and take away what jobs read, or do a part of their work."""
        return self.kind not in ("pass", "release", "part")


@dataclass
class UnitReport:
    """What a worker says of a finished unit. An output that failed has its reason here; the others are fine."""

    failed: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # decoded images ...
    seconds: dict[str, float] = field(default_factory=dict)
    no_room: bool = False  # an output failed because the disk is full


class Graph:
    """Which units are waiting, ready, running and done. A unit whose input failed fails too, with the same reason."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self.units = {unit.key: unit for unit in units}
        self._order = {key: place for place, key in enumerate(self.units)}
        self._makers: dict[str, set[str]] = defaultdict(set)
        self._users: dict[str, list[str]] = defaultdict(list)
        self._followers: dict[str, list[str]] = defaultdict(list)
        for unit in self.units.values():
            for output in unit.outputs:
                self._makers[output].add(unit.key)
            for name in set(unit.inputs):
                self._users[name].append(unit.key)
            for other in set(unit.after) & self.units.keys():
                self._followers[other].append(unit.key)
        # How many inputs of a unit are still to be made. With none it is ready and in the queue, where a unit that is no longer waiting
        # is passed over: so starting and finishing units costs what hangs on them, not a look at all that wait.
        self._missing = {
            unit.key: sum(name in self._makers for name in set(unit.inputs)) + len(set(unit.after) & self.units.keys())
            for unit in self.units.values()
        }
        self._queue: list[tuple[bool, int, str]] = []
        for key, missing in self._missing.items():
            if not missing:
                self._enqueue(key)
        self._waiting_cost = sum(unit.cost for unit in self.units.values())
        self.waiting = dict.fromkeys(self.units)
        self.running: dict[str, Unit] = {}
        self.done: dict[str, UnitReport] = {}
        self.failed: dict[str, str] = {}  # unit key -> reason
        self.given_up: list[Unit] = []  # nobody waits for what they would make: neither done nor failed

    def next_ready(self) -> Unit | None:
        """Units nearest to a result first (they free memory and give the user numbers early), otherwise in the order given."""
        while self._queue and self._queue[0][2] not in self.waiting:
            heapq.heappop(self._queue)
        return self.units[self._queue[0][2]] if self._queue else None

    def _enqueue(self, key: str) -> None:
        heapq.heappush(self._queue, (not self.units[key].inputs, self._order[key], key))

    def start(self, unit: Unit) -> None:
        self._leave(unit.key)
        self.running[unit.key] = unit

    def _leave(self, key: str) -> None:
        del self.waiting[key]
        self._waiting_cost = self._waiting_cost - self.units[key].cost if self.waiting else 0.0

    def _made(self, unit: Unit) -> None:
        """The unit has done its part of its outputs; what waited for the last part of one may be ready now."""
        for output in set(unit.outputs):
            makers = self._makers[output]
            if unit.key not in makers:
                continue
            makers.discard(unit.key)
            if makers:
                continue
            self._one_less(self._users[output])

    def _one_less(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._missing[key] -= 1
            if not self._missing[key]:
                self._enqueue(key)

    def _over(self, key: str) -> None:
        self._one_less(self._followers.pop(key, ()))

    def finish(self, unit: Unit, report: UnitReport) -> list[tuple[Unit, str]]:
        """Returns the units that can no longer run, with reasons: those that needed an output that failed."""
        self.running.pop(unit.key, None)
        self.done[unit.key] = report
        lost = self._spread(report.failed)
        self._made(unit)
        self._over(unit.key)
        return lost

    def fail(self, unit: Unit, reason: str) -> list[tuple[Unit, str]]:
        self.running.pop(unit.key, None)
        self.failed[unit.key] = reason
        lost = self._spread(dict.fromkeys(unit.outputs, reason))
        self._made(unit)
        self._over(unit.key)
        return lost

    def _spread(self, bad: Mapping[str, str]) -> list[tuple[Unit, str]]:
        lost = []
        users = {key for name in bad for key in self._users.get(name, ()) if key in self.waiting}
        for key in sorted(users, key=self._order.__getitem__):
            unit = self.units[key]
            reasons = [bad[name] for name in unit.inputs if name in bad]
            if key in self.waiting:  # it may have been lost a moment ago, by another of its inputs
                self._leave(key)
                self.failed[key] = reasons[0]
                lost.append((unit, reasons[0]))
                lost += self._spread(dict.fromkeys(unit.outputs, reasons[0]))
                self._over(key)
        return lost

    def give_up_unused(self) -> None:
        """Takes out the units whose outputs nobody waits for any more. Who comes after them goes on."""
        unused = [unit for key in self.waiting if not (unit := self.units[key]).is_job and unit.outputs and not self._is_wanted(unit)]
        for unit in unused:
            self._leave(unit.key)
            self._over(unit.key)
        self.given_up += unused

    def _is_wanted(self, unit: Unit) -> bool:
        return any(key in self.waiting or key in self.running for name in unit.outputs for key in self._users.get(name, ()))

    @property
    def finished(self) -> bool:
        return not self.waiting and not self.running

    def cost_left(self, fractions: Mapping[str, float]) -> float:
        """Expected seconds of one device for what is not done; ``fractions`` say how far the running units are."""
        return self._waiting_cost + sum(unit.cost * (1 - fractions.get(key, 0.0)) for key, unit in self.running.items())
