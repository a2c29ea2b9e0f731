"""Which jobs several devices share, and what their parts wait for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from plan_support import DIGITS, MakePlan

from virb.plan import parts, units
from virb.plan.describe import check_report
from virb.plan.graph import Graph, Unit, UnitReport
from virb.plan.jobs import Plan
from virb.plan.parts import Load, choose_shared, schedule
from virb.probes.linear import LinearProbe
from virb.probes.pieces import Stage

KNN = {"task": "digits", "probe": "knn", "training_configs": {"a": {"k": 5}, "b": {"k": 20}}}
SEEDS = {**DIGITS, "seeds": 4, "grid": {"optimizer": ["sgd"], "lr": [0.1, 0.2]}}


def load(name: str, seconds: float, pieces: int = 100, stages: int = 1) -> Load:
    """``pieces`` 0: a job that nobody can share."""
    found = tuple(Stage(f"s{i}", 1.0, pieces) for i in range(stages if pieces else 0))
    shared = tuple(seconds / stages for _ in found)
    return Load(SimpleNamespace(id=name), found, shared, 0.0 if found else seconds, 0.0)  # type: ignore[arg-type]


@pytest.fixture
def free_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_START", 0.0)


@pytest.mark.usefixtures("free_parts")
def test_when_jobs_are_done() -> None:
    three = [load(name, 100.0) for name in "abc"]
    assert schedule(three, set(), 2) == {"a": 100, "b": 100, "c": 200}
    assert schedule(three, {"c"}, 2) == {"a": 100, "b": 100, "c": 150}
    assert schedule(three, {"a"}, 2) == {"a": 50, "b": 150, "c": 150}
    assert schedule(three, {"a", "b", "c"}, 2) == {"a": 50, "b": 100, "c": 150}
    assert schedule([load("a", 100.0, pieces=2)], {"a"}, 8) == {"a": 50}  # no more parts than pieces
    assert schedule([load("a", 100.0, stages=2)], {"a"}, 4) == {"a": 25}
    # Parts go to those that are free, also several to one of them.
    assert schedule([load("whole", 100.0, pieces=0), load("a", 60.0)], {"a"}, 2) == {"whole": 100, "a": 60}
    # A second stage begins when the last part of the first is over.
    assert schedule([load("whole", 30.0, pieces=0), load("a", 80.0, stages=2)], {"a"}, 2) == {"whole": 30, "a": 60}


@pytest.mark.usefixtures("free_parts")
@pytest.mark.parametrize(
    ("loads", "devices", "shared"),
    [
        ([load("a", 1000.0)], 1, ""),
        ([load("a", 1000.0)], 2, "a"),
        ([load("a", 4.0)], 2, ""),  # nothing to gain
        ([load("a", 1000.0, pieces=0)], 2, ""),
        ([load("a", 1000.0, pieces=1)], 8, ""),
        ([load(name, 100.0) for name in "abcd"], 2, ""),  # whole jobs keep both at work
        ([load(name, 100.0) for name in "abc"], 2, "c"),
        ([load(name, 100.0) for name in "abcde"], 3, "de"),
        ([load("a", 1000.0), *(load(name, 10.0) for name in "bcdef")], 2, "a"),  # one is as long as many
        ([load("a", 100.0), load("b", 100.0, pieces=0)], 2, ""),
        ([load("a", 90.0), load("b", 80.0), load("c", 10.0)], 2, ""),
        ([load("a", 10.0), load("b", 100.0), load("c", 90.0, pieces=0)], 2, ""),  # c keeps the other at work
        ([load(str(i), 100.0) for i in range(66)], 64, "64 65"),  # the last wave
    ],
)
def test_the_rule(loads: list[Load], devices: int, shared: str) -> None:
    assert choose_shared(loads, devices) == set(shared.split() if " " in shared else shared)


def test_reading_features_again_counts() -> None:
    small, large = (Load(SimpleNamespace(id="a"), (Stage("s", 1.0, 9),), (40.0,), 0.0, read) for read in (1.0, 30.0))  # type: ignore[arg-type]
    assert choose_shared([small], 2) == {"a"}
    assert choose_shared([large], 2) == set()


def share_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        units, "choose_shared", lambda loads, devices: {one.job.id for one in loads if one.stages} if devices > 1 else set()
    )
    monkeypatch.setattr("virb.probes.knn.QUERY_BLOCK", 100)


def by_kind(plan: Plan, kind: str) -> list[Unit]:
    return [unit for unit in plan.units if unit.kind == kind]


def test_small_jobs_stay_whole(make_plan: MakePlan) -> None:
    plan = make_plan(None, {"t": SEEDS, "k": KNN}, devices=("cpu",) * 4)
    assert not by_kind(plan, "part")
    assert plan.context.shared == frozenset()


def test_one_device_changes_nothing(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_plan(None, {"t": SEEDS, "k": KNN})
    share_all(monkeypatch)
    after = make_plan(None, {"t": SEEDS, "k": KNN})
    assert [unit.key for unit in after.units] == [unit.key for unit in before.units]


def test_parts_stand_between_features_and_the_job(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    share_all(monkeypatch)
    plan = make_plan(None, {"k": KNN}, devices=("cpu", "cpu"))
    assert plan.context.shared == {"e/k"}
    choose, report = ([unit for unit in by_kind(plan, "part") if unit.payload.part.stage == stage] for stage in ("choose", "report"))
    assert [str(unit.payload.part) for unit in choose + report] == ["choose 1 of 2", "choose 2 of 2", "report 1 of 2", "report 2 of 2"]
    (job,) = by_kind(plan, "probe")
    keys = {key for role in plan.context.jobs["e/k"].roles.values() for key in role.entries}
    assert all(set(unit.inputs) == keys for unit in choose)
    assert all(set(unit.inputs) == {*keys, "choose of job e/k"} for unit in report)
    assert set(job.inputs) == {*keys, "report of job e/k"}
    assert not any(unit.is_job for unit in choose + report)
    assert choose[0].title == "e x k, choose 1 of 2"
    graph = Graph(unit for unit in plan.units if unit.kind != "pass")
    first, second = graph.next_ready(), None
    assert first == choose[0]
    graph.start(first)
    second = graph.next_ready()
    assert second == choose[1]
    graph.start(second)
    assert graph.next_ready() is None
    graph.finish(first, UnitReport())
    assert graph.next_ready() is None
    # What failed takes the parts of the next stage and the job with it, with its reason.
    lost = {unit.key: why for unit, why in graph.fail(second, "no luck")}
    assert lost == dict.fromkeys([*(unit.key for unit in report), "job e/k"], "no luck")


def test_check_says_it(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    share_all(monkeypatch)
    text = "\n".join(check_report(make_plan(None, {"t": SEEDS}, devices=("cpu", "cpu", "cpu")), []))
    assert "host memory, shared by 3 devices" in text


def test_streams_and_eval_only_jobs_stay_whole(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    share_all(monkeypatch)
    tasks = {"t": {**SEEDS, "pre_encode": False, "views": 1, "augment": "none"}, "s": {"task": "digits", "heads_from": "t"}}
    plan = make_plan(None, tasks, devices=("cpu", "cpu"))
    assert {unit.kind for unit in plan.units if unit.is_job} == {"stream", "score"}
    assert not by_kind(plan, "part")


def test_a_users_own_way_to_answer_is_not_shared_by_the_stages_of_another(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(LinearProbe):
        def from_features(self, *given: Any) -> Any:
            raise NotImplementedError

    class OwnHidden(LinearProbe):
        pass

    share_all(monkeypatch)
    plan = make_plan(None, {"t": SEEDS})
    job, entries, settings = plan.context.jobs["e/t"], plan.context.entries, plan.settings
    for probe, n_stages in ((LinearProbe, 1), (OwnHidden, 1), (Own, 0)):
        monkeypatch.setattr(parts, "get_probe", lambda name, probe=probe: probe)
        assert len(parts.stages_of(job, entries, settings)) == n_stages


def test_features_stay_until_parts_are_over(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    share_all(monkeypatch)
    encoders = {f"e{side}": {"arch": "pixels", "args": {"side": side}} for side in (4, 5)}
    plan = make_plan(encoders, {"k": KNN}, devices=("cpu", "cpu"), cache_budget="300KB")
    (release,) = by_kind(plan, "release")
    gone = {unit.payload.job for unit in by_kind(plan, "part") if unit.key in release.after}
    assert len(gone) == 1
    (name,) = gone
    assert {unit.key for unit in by_kind(plan, "part") if unit.payload.job == name} < set(release.after)
    assert f"job {name}" in release.after


def test_sizes_count_what_is_held_out(make_plan: MakePlan) -> None:
    plan = make_plan(None, {"k": KNN})
    sizes = parts.sizes_of(plan.context.jobs["e/k"], plan.context.entries, plan.settings)
    assert sizes.n_samples == {"fit": 1438 - 143, "select": 143, "report": 359}
    assert (sizes.width, sizes.n_images, sizes.n_outputs) == (768, 1, 10)
