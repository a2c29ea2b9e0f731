"""Where the time went: stages of passes and jobs, what is left over, idle workers, and which side of a pass was the slower."""

from __future__ import annotations

import time
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
        a_pass(100, decode=2.0, load=4.0, transfer=0.5, encode=3.0, compute=3.0, write=0.5),
        UnitReport(seconds={"read": 0.25, "head": 1.5, "metrics": 0.5, "results": 0.25}),
    ]
    profile = make_profile(reports, ("cuda:0", "cuda:1"), (7.0, 3.0), 10.0)
    record = profile_record(profile)
    seconds = record["worker_seconds"]
    assert (seconds["idle"], seconds["other"]) == (10.0, 2.0)
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
        timing("probe", 3.0),
        timing("stream", 2.0),
        timing("metrics", 0.25),
    ]
    assert job_seconds(timings, 4.0) == {"read": 0.5, "head": 1.0, "encode": 2.0, "metrics": 0.25, "results": 0.25}
    assert job_seconds([timing("probe", 1.0)], 1.5) == {"head": 1.0, "results": 0.5}


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


def test_workers_are_busy_while_they_have_a_unit_also_one_that_fails() -> None:
    units = [Unit("probe", "long", "", (), (), 1.0, 1.0), Unit("probe", "bad", "", (), (), 1.0, 0.3)]
    graph = Graph(units)
    progress = Progress(_Plan(), graph, None)  # type: ignore[arg-type]
    began = time.monotonic()
    run_units(graph, None, ("cpu", "cpu"), make_doer, progress, lambda unit, reason: None)
    wall = time.monotonic() - began
    assert set(graph.failed) == {"bad"}
    profile = make_profile(graph.done.values(), progress.names, progress.busy, wall)
    assert progress.busy[0] >= 1.0
    assert 0.3 <= progress.busy[1] <= progress.busy[0] - 0.2
    assert profile.idle >= 0.6
