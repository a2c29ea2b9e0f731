"""Progress lines: workers of one device are told apart, each with its own count and that of all."""

from __future__ import annotations

import io
from types import SimpleNamespace

from rich.console import Console

from virb.plan.graph import Graph, Unit
from virb.runner import progress
from virb.runner.progress import LineProgress, LiveProgress, worker_names


def make(kind: type[progress.Progress], devices: tuple[str, ...]) -> tuple[progress.Progress, list[Unit], io.StringIO]:
    units = [Unit("pass", f"pass {i}", "encoding 5,797 images for 3 encoders", (), (f"entry {i}",), 1.0) for i in range(2)]
    units.append(Unit("probe", "job", "vit x digits", (), (), 1.0))
    plan = SimpleNamespace(settings=SimpleNamespace(devices=devices), rows_in_passes=5797, to_do=(1,))
    text = io.StringIO()
    return kind(plan, Graph(units), Console(file=text, width=200)), units, text


def test_names():
    assert worker_names(("cpu",)) == ["cpu"]
    assert worker_names(("cpu", "cpu", "cpu")) == ["cpu:0", "cpu:1", "cpu:2"]
    assert worker_names(("cuda:0", "cuda:2")) == ["cuda:0", "cuda:2"]


def test_lines_of_two_workers(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY", -1.0)
    display, units, text = make(LineProgress, ("cpu", "cpu", "cpu"))
    for slot, (unit, phase, done, total) in enumerate([(units[0], "encoding", 256, 512), (units[1], "encoding", 32, 512)]):
        display.started(slot, unit)
        display.advanced(slot, unit, phase, done, total)
    display.started(2, units[2])
    display.tick(display.graph)
    display.advanced(2, units[2], "training", 3, 10)
    display.tick(display.graph)
    lines = [line.split("  ", 1)[1] for line in text.getvalue().splitlines()]
    assert lines[0].startswith("cpu:0  encoding 5,797 images for 3 encoders   256/512, all 288/5,797   ")
    assert lines[1].startswith("cpu:1  encoding 5,797 images for 3 encoders   32/512, all 288/5,797   ")
    assert lines[2].startswith("cpu:2  vit x digits     starting   ")
    assert lines[5].startswith("cpu:2  vit x digits  training   3/10   ")


def test_the_table_tells_workers_apart():
    display, units, _ = make(LiveProgress, ("cpu", "cpu"))
    try:
        display.started(0, units[0])
        display.advanced(0, units[0], "encoding", 256, 512)
        out = io.StringIO()
        Console(file=out, width=200).print(display._draw())
    finally:
        display.close()
    first, second, _ = out.getvalue().splitlines()
    assert first.startswith("cpu:0 ")
    assert "256/512, all 256/5,797" in first
    assert second.split() == ["cpu:1", "waiting"]


def test_a_worker_that_starts_is_neither_waiting_nor_idle(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display, units, text = make(LineProgress, ("cpu", "cpu", "cpu"))
    display.starting(0)
    display.starting(1)
    now[0] += 3.0
    display.up(0)
    now[0] += 1.0
    display.started(0, units[0])
    now[0] += 2.0
    display.note("the worker on cpu died")
    display.close()  # the second has not come up, the third was never wanted
    assert display.busy == [5.0, 6.0, 0.0]
    assert text.getvalue().splitlines()[-1].endswith("  note    the worker on cpu died")


def test_the_table_says_which_workers_start():
    display, _, _ = make(LiveProgress, ("cpu", "cpu"))
    try:
        display.starting(1)
        out = io.StringIO()
        Console(file=out, width=200).print(display._draw())
    finally:
        display.close()
    assert [line.split() for line in out.getvalue().splitlines()[:2]] == [["cpu:0", "waiting"], ["cpu:1", "starting"]]
