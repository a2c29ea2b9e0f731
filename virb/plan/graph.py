"""Work units and what is ready: the part of the plan that every launcher shares. It knows no kinds and no devices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Unit:
    """The smallest thing a worker does: picklable and idempotent. ``inputs`` and ``outputs`` name things (a cache entry, a job's result);
    several units may make one output together (the slices of a pass), which then exists when all of them are done."""

    kind: str
    key: str
    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cost: float  # expected seconds on one device
    payload: Any = None


@dataclass
class UnitReport:
    """What a worker says of a finished unit. An output that failed has its reason here; the others are fine."""

    failed: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # decoded images ...
    seconds: dict[str, float] = field(default_factory=dict)


class Graph:
    """Which units are waiting, ready, running and done. A unit whose input failed fails too, with the same reason."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self.units = {unit.key: unit for unit in units}
        self._makers: dict[str, set[str]] = defaultdict(set)
        for unit in self.units.values():
            for output in unit.outputs:
                self._makers[output].add(unit.key)
        self.waiting = dict.fromkeys(self.units)
        self.running: dict[str, Unit] = {}
        self.done: dict[str, UnitReport] = {}
        self.failed: dict[str, str] = {}  # unit key -> reason

    def next_ready(self) -> Unit | None:
        """Units nearest to a result first: they free memory and give the user numbers early."""
        ready = [self.units[key] for key in self.waiting if self._is_ready(self.units[key])]
        return max(ready, key=lambda unit: len(unit.inputs) > 0) if ready else None

    def _is_ready(self, unit: Unit) -> bool:
        return all(not self._makers[name] for name in unit.inputs if name in self._makers)

    def start(self, unit: Unit) -> None:
        del self.waiting[unit.key]
        self.running[unit.key] = unit

    def finish(self, unit: Unit, report: UnitReport) -> list[tuple[Unit, str]]:
        """Returns the units that can no longer run, with reasons: those that needed an output that failed."""
        self.running.pop(unit.key, None)
        self.done[unit.key] = report
        for output in unit.outputs:
            self._makers[output].discard(unit.key)
        return self._spread(report.failed)

    def fail(self, unit: Unit, reason: str) -> list[tuple[Unit, str]]:
        self.running.pop(unit.key, None)
        self.failed[unit.key] = reason
        for output in unit.outputs:
            self._makers[output].discard(unit.key)
        return self._spread(dict.fromkeys(unit.outputs, reason))

    def _spread(self, bad: Mapping[str, str]) -> list[tuple[Unit, str]]:
        lost = []
        for key in list(self.waiting):
            unit = self.units[key]
            reasons = [bad[name] for name in unit.inputs if name in bad]
            if reasons and key in self.waiting:  # it may have been lost a moment ago, by another of its inputs
                del self.waiting[key]
                self.failed[key] = reasons[0]
                lost.append((unit, reasons[0]))
                lost += self._spread(dict.fromkeys(unit.outputs, reasons[0]))
        return lost

    @property
    def finished(self) -> bool:
        return not self.waiting and not self.running

    def cost_left(self, fractions: Mapping[str, float]) -> float:
        """Expected seconds of one device for what is not done; ``fractions`` say how far the running units are."""
        waiting = sum(self.units[key].cost for key in self.waiting)
        return waiting + sum(unit.cost * (1 - fractions.get(key, 0.0)) for key, unit in self.running.items())
