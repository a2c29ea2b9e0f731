"""Where the time went: stages of passes and jobs, what is left over, idle workers, and which side of a pass was the slower."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from virb.plan.graph import Graph, Unit, UnitReport
from virb.runner.local import run_units
from virb.runner.profile import STAGES, bound_line, job_seconds, make_profile, profile_lines, profile_record
from virb.runner.progress import Progress


def timing(stage: str, seconds: float) -> Any:
    return SimpleNamespace(stage=stage, seconds=seconds)


def a_pass(rows: int, **seconds: float) -> UnitReport:
    return UnitReport(counts={"rows": rows}, seconds=seconds)


def test_stages_idle_and_the_rest_add_up_to_the_workers_time() -> None:
    reports = [
        a_pass(100, decode=2.0, load=4.0, transfer=0.5, compile=1.0, encode=3.0, compute=3.0, write=0.5),
        UnitReport(seconds={"read": 0.25, "head": 1.5, "metrics": 0.5, "results": 0.25}),
    ]
    profile = make_profile(reports, ("cuda:0", "cuda:1"), (7.0, 3.0), 10.0)
    record = profile_record(profile)
    seconds = record["worker_seconds"]
    assert (seconds["idle"], seconds["other"]) == (10.0, 1.0)
    background = seconds["transfer"]
    assert sum(seconds.values()) - background == pytest.approx(2 * 10.0)
    assert [worker["idle_seconds"] for worker in record["workers"]] == [3.0, 7.0]
    assert record["wall_seconds"] == 10.0
    text = "\n".join(profile_lines(profile))
    assert [line.split()[0] for line in text.splitlines()[1:-1]] == [*STAGES, "other", "idle"]
    assert "15.0 %" in text  # of decode: 2... and of encode: 3 of 20 seconds
    assert "cuda:0 3.0 s, cuda:1 7.0 s" in text


def test_rates_say_what_bounds_the_passes() -> None:
    slow_loader = make_profile(
        [a_pass(100, decode=3.0, load=4.0, encode=0.5, compute=1.0), a_pass(100, decode=3.0, load=4.0, encode=0.5, compute=1.0)],
        ("a",),
        (9.0,),
        9.0,
    )
    assert bound_line(slow_loader) == "loader-bound: the loader gives 25 img/s, the encoders take 100 img/s"
    # The loader keeps up in the background: nothing is waited for, and its own rate is known all the same.
    slow_encoder = make_profile([a_pass(100, decode=0.0, load=0.5, encode=1.5, compute=2.0)], ("a", "b"), (2.0, 2.0), 2.0)
    assert bound_line(slow_encoder) == "encoder-bound: the loader gives 400 img/s, the encoders take 100 img/s"
    record = profile_record(slow_encoder)
    assert (record["bound"], record["loader_images_per_second"], record["encoder_images_per_second"]) == ("encoder-bound", 400.0, 100.0)
    without = make_profile([UnitReport(seconds={"head": 1.0})], ("a",), (1.0,), 1.0)
    assert bound_line(without) is None
    assert profile_record(without)["bound"] is None


def test_a_jobs_timings_become_stages() -> None:
    timings = [
        timing("pass: encode", 100.0),
        timing("read features", 0.5),
        timing("probe", 4.0),
        timing("stream", 3.0),
        timing("metrics", 0.25),
    ]
    streamed = {"decode": 1.0, "load": 5.0, "transfer": 0.0, "encode": 2.0, "compute": 1.5, "write": 0.0}
    expected = {"read": 0.5, "head": 1.0, "metrics": 0.25, "results": 0.25, "decode": 1.0, "load": 5.0, "encode": 2.0, "compute": 1.5}
    assert job_seconds(timings, 5.0, streamed) == expected
    assert job_seconds([timing("probe", 3.5)], None, streamed)["head"] == 0.5  # so far
    assert job_seconds([timing("probe", 1.0)], 1.5) == {"head": 1.0, "results": 0.5}


def test_streams_have_rates_and_what_did_not_end_has_none() -> None:
    stream = UnitReport(counts={"streamed": 100}, seconds={"head": 1.0, "decode": 0.5, "load": 4.0, "encode": 2.0, "compute": 1.0})
    broken = a_pass(1000, decode=1.0, load=1.0, encode=1.0, compute=0.0)
    profile = make_profile([stream, broken], ("a",), (9.0,), 9.0)
    assert bound_line(profile) == "loader-bound: the loader gives 25 img/s, the encoders take 100 img/s"
    assert profile.stages["decode"] == 1.5


def test_the_display_and_the_profile_say_the_same_bound() -> None:
    """Little was waited for, but the loader is the slower all the same."""
    report = a_pass(100, decode=0.5, load=4.0, encode=3.0, compute=3.0)
    progress = Progress(_Plan(), Graph([]), None)  # type: ignore[arg-type]
    unit = Unit("pass", "p", "", (), (), 1.0)
    progress.started(0, unit)
    progress.finished(0, unit, report)
    assert progress._bound() == make_profile(progress.reports, ("a",), (9.0,), 9.0).bound == "loader-bound"


class _Plan:
    rows_in_passes = 0
    to_do = ()
    settings = SimpleNamespace(devices=("cpu", "cpu"))


def make_doer(context: Any, device: str) -> Any:
    def do(unit: Unit, tell: Any) -> UnitReport:
        time.sleep(unit.payload)
        if unit.key.startswith("bad"):
            raise ValueError("no")
        return UnitReport()

    return do


class Counting:
    """Decodes 5 images a unit, tells of it, and does not come to an end."""

    def __init__(self, context: Any, device: str) -> None:
        self.n = 0

    def __call__(self, unit: Unit, tell: Any) -> UnitReport:
        self.n = 5
        tell("decoding", 1, 1)
        time.sleep(0.2)
        if unit.payload == "dies":
            os._exit(3)
        self.n = 7
        raise unit.payload("stop")

    def spent(self) -> UnitReport:
        return UnitReport(counts={"decoded": self.n}, seconds={"decode": 0.25})


@pytest.mark.parametrize(
    ("devices", "how", "decoded"), [(1, ValueError, 7), (1, KeyboardInterrupt, 7), (2, ValueError, 14), (2, "dies", 10)], ids=str
)
def test_what_does_not_end_is_counted_too(devices: int, how: Any, decoded: int) -> None:
    names = ("cpu",) * devices
    graph = Graph([Unit("probe", str(i), "", (), (), 1.0, how) for i in range(devices)])
    progress = Progress(_Plan(), graph, None)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt) if how is KeyboardInterrupt else nullcontext():
        run_units(graph, None, names, Counting, progress, lambda unit, reason: None)
    progress.close()
    assert sum(report.counts["decoded"] for report in progress.reports) == decoded
    profile = make_profile(progress.reports, names, progress.busy[:devices], 1.0)
    assert profile.stages == {"decode": 0.25 * devices}
    assert min(profile.busy) >= 0.2


def test_workers_are_busy_while_they_have_a_unit_also_one_that_fails() -> None:
    units = [Unit("probe", "long", "", (), (), 1.0, 1.0), Unit("probe", "bad", "", (), (), 1.0, 0.3)]
    graph = Graph(units)
    progress = Progress(_Plan(), graph, None)  # type: ignore[arg-type]
    began = time.monotonic()
    run_units(graph, None, ("cpu", "cpu"), make_doer, progress, lambda unit, reason: None)
    wall = time.monotonic() - began
    assert set(graph.failed) == {"bad"}
    profile = make_profile(progress.reports, progress.names, progress.busy, wall)
    # No more is said of the difference: a worker is busy from when it is given a unit, and may be slow to start.
    assert 1.0 <= progress.busy[0] <= wall
    assert 0.3 <= progress.busy[1] < wall
    assert profile.idle == pytest.approx(2 * wall - sum(progress.busy))
