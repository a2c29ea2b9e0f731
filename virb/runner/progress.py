"""What a user sees while a run goes on: a live table on a terminal, timestamped lines elsewhere, with rates and the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from virb.plan.graph import Graph, Unit, UnitReport
from virb.plan.jobs import Plan
from virb.runner.profile import Rates

_LINE_EVERY = 15.0  # seconds between progress lines without a terminal


@dataclass
class _Slot:
    unit: Unit | None = None
    phase: str = ""
    done: int = 0
    total: int = 0
    since: float = 0.0
    spent: UnitReport = field(default_factory=UnitReport)  # as far as the worker has told
    starting: bool = False  # the worker's process

    @property
    def fraction(self) -> float:
        return self.done / self.total if self.total else 0.0


class Clock:
    """Elapsed time and an honest guess of what is left: expected cost of the rest at the speed seen so far."""

    def __init__(self, graph: Graph) -> None:
        self.began = time.monotonic()
        self._total = max(graph.cost_left({}), 1e-9)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def left(self, graph: Graph, fractions: dict[str, float]) -> float | None:
        rest = graph.cost_left(fractions)
        done = self._total - rest
        if done < 0.02 * self._total or self.elapsed < 2:
            return None
        return self.elapsed * rest / done


def clock_text(seconds: float | None) -> str:
    """``1:05``, ``2:03:09``; ``?`` when unknown."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def worker_names(devices: Sequence[str]) -> list[str]:
    """The devices, numbered where several workers share one: ``cpu:0``, ``cpu:1``."""
    return [f"{name}:{i}" if devices.count(name) > 1 else name for i, name in enumerate(devices)]


class Progress:
    """Keeps count of everything; the two displays below draw it."""

    def __init__(self, plan: Plan, graph: Graph, console: Any) -> None:
        self.plan, self.graph, self.console = plan, graph, console
        self.clock = Clock(graph)
        self.slots = [_Slot() for _ in plan.settings.devices]
        self.names = worker_names(plan.settings.devices)
        self.rows = 0
        self.rows_total = plan.rows_in_passes
        self.jobs_done = 0
        self.jobs_failed = 0
        self.reports: list[UnitReport] = []  # of all units that were begun, those that failed or were interrupted too
        self.rates = Rates()
        self.busy = [0.0] * len(self.slots)  # seconds of each worker

    def starting(self, slot: int) -> None:
        self.slots[slot] = _Slot(since=time.monotonic(), starting=True)

    def up(self, slot: int) -> None:
        self.busy[slot] += time.monotonic() - self.slots[slot].since
        self.slots[slot] = _Slot()

    def note(self, text: str) -> None:
        self.say(f"note    {text}")

    def started(self, slot: int, unit: Unit) -> None:
        self.slots[slot] = _Slot(unit, since=time.monotonic())

    def advanced(self, slot: int, unit: Unit, phase: str, done: int, total: int) -> None:
        here = self.slots[slot]
        here.phase, here.done, here.total = phase, done, total

    def spent(self, slot: int, unit: Unit, so_far: UnitReport) -> None:
        self.slots[slot].spent = so_far

    def _over(self, slot: int, report: UnitReport) -> None:
        self.busy[slot] += time.monotonic() - self.slots[slot].since
        self.slots[slot] = _Slot()
        self.rows += report.counts.get("rows", 0)
        self.reports.append(report)
        self.rates.add(report)

    def finished(self, slot: int, unit: Unit, report: UnitReport) -> None:
        self._over(slot, report)
        for note in report.notes:
            self.say(note)
        if unit.is_job:
            self.jobs_done += 1
            self.say(f"done    {unit.title}   {report.summary}   ({self._count()})")

    def failed(self, unit: Unit, reason: str) -> None:
        for number, slot in enumerate(self.slots):
            if slot.unit is unit:
                self._over(number, slot.spent)
        if not unit.is_job:
            return  # the jobs that needed it say so
        self.jobs_failed += 1
        self.say(f"failed  {unit.title}   {(reason.splitlines() or ['?'])[0]}   ({self._count()})")

    def tick(self, graph: Graph) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None:
        """The run ends, be it by Ctrl-C: what is under way has cost what it has cost."""
        for number, slot in enumerate(self.slots):
            if slot.unit is not None:
                self._over(number, slot.spent)
            elif slot.starting:
                self.up(number)

    def _count(self) -> str:
        return f"{self.jobs_done + self.jobs_failed}/{len(self.plan.to_do)}, left about {clock_text(self._left())}"

    def _left(self) -> float | None:
        fractions = {slot.unit.key: slot.fraction for slot in self.slots if slot.unit}
        return self.clock.left(self.graph, fractions)

    def _rows_now(self) -> int:
        return self.rows + sum(slot.done for slot in self.slots if slot.unit and slot.unit.kind == "pass")

    def _counts(self, slot: _Slot) -> str:
        """``256/512``, and for a pass the rows of all passes of all workers too."""
        own = f"{slot.done:,}/{slot.total:,}" if slot.total else "starting"
        return f"{own}, all {self._rows_now():,}/{self.rows_total:,}" if slot.unit and slot.unit.kind == "pass" else own

    def _rate(self) -> float:
        return self._rows_now() / max(self.clock.elapsed, 1e-3)

    def _bound(self) -> str:
        """Which side is the slower, as far as units have ended."""
        return self.rates.bound or ""


class LineProgress(Progress):
    """Timestamped lines: for batch jobs, logs and pipes."""

    def __init__(self, plan: Plan, graph: Graph, console: Any) -> None:
        super().__init__(plan, graph, console)
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        self.console.print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", highlight=False, markup=False, soft_wrap=True)

    def tick(self, graph: Graph) -> None:
        if time.monotonic() - self._last < _LINE_EVERY:
            return
        self._last = time.monotonic()
        for name, slot in zip(self.names, self.slots, strict=True):
            if slot.unit is None:
                continue
            eta = f"eta {clock_text(self._left())}"
            if slot.unit.kind == "pass":
                self.say(f"{name}  {slot.unit.title}   {self._counts(slot)}   {self._rate():,.0f} img/s {self._bound()}   {eta}")
            else:
                self.say(f"{name}  {slot.unit.title}  {slot.phase}   {self._counts(slot)}   {eta}")


class LiveProgress(Progress):
    """A table that redraws itself: a row per device and one for the whole run."""

    def __init__(self, plan: Plan, graph: Graph, console: Any) -> None:
        super().__init__(plan, graph, console)
        from rich.live import Live

        self._time_left: float | None = None
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def tick(self, graph: Graph) -> None:
        # Reckoned here, for the table is drawn by a thread of its own while the graph changes.
        self._time_left = self._left()

    def close(self) -> None:
        self._live.stop()
        super().close()

    def _draw(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for _ in range(5):
            table.add_column(no_wrap=True)
        for name, slot in zip(self.names, self.slots, strict=True):
            if slot.unit is None:
                table.add_row(name, "starting" if slot.starting else "waiting", "", "", "")
                continue
            title = slot.unit.title if slot.unit.kind == "pass" else f"{slot.unit.title}  {slot.phase}"
            rate = f"{self._rate():,.0f} img/s  {self._bound()}" if slot.unit.kind == "pass" else ""
            table.add_row(name, title, ProgressBar(slot.total or 1, slot.done, width=20), self._counts(slot), rate)
        jobs = f"{self.jobs_done + self.jobs_failed}/{len(self.plan.to_do)} jobs" + (
            f", {self.jobs_failed} failed" if self.jobs_failed else ""
        )
        table.add_row("run", jobs, "", f"elapsed {clock_text(self.clock.elapsed)}", f"left about {clock_text(self._time_left)}")
        return table


def make_progress(plan: Plan, graph: Graph, console: Any) -> Progress:
    return LiveProgress(plan, graph, console) if console.is_terminal else LineProgress(plan, graph, console)
