"""Features that do not fit the disk at once: made in rounds, a round's jobs together, and gone before the next begins."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from plan_support import DIGITS, PIXELS, MakePlan

from virb.features.cache import FeatureCache
from virb.plan.budget import Round, _pack
from virb.plan.graph import Graph, Unit, UnitReport
from virb.plan.jobs import Plan

SMALL = {"task": "shapes-count", "data": {"n_train": 12, "n_test": 6}}
THREE = {name: {**PIXELS, "args": {"side": side}} for name, side in (("a", 4), ("b", 5), ("c", 6))}


def made(plan: Plan) -> dict[str, int]:
    return {key: entry.nbytes for key, entry in plan.context.entries.items()}


def size_of(plan: Plan, *names: str) -> int:
    return sum(entry.nbytes for entry in plan.context.entries.values() if entry.wanted.encoder in names)


def walk(plan: Plan, before: Collection[str] = ()) -> tuple[list[str], int, set[str]]:
    """What one worker does, in order; the most bytes that lie on the disk at once; and what lies there in the end. ``before``: entries that
    lie there in the beginning."""
    graph, sizes = Graph(plan.units), made(plan)
    order: list[str] = []
    there: set[str] = set(before)
    most = 0
    while (unit := graph.next_ready()) is not None:
        graph.start(unit)
        if unit.kind == "pass":
            there |= set(unit.outputs)
        elif unit.kind == "release":
            there -= set(unit.payload)
        else:
            assert set(unit.inputs) & sizes.keys() <= there
            needs = {key for role in plan.context.jobs[unit.payload].roles.values() for key in role.entries}
            assert {key for key in needs if not plan.context.entries[key].streamed} <= there
        most = max(most, sum(sizes[key] for key in there))
        order.append(unit.title if unit.is_job else unit.kind)
        assert not graph.finish(unit, UnitReport())
    assert graph.finished
    return order, most, there


def test_what_fits_is_made_at_once_and_kept(make_plan: MakePlan) -> None:
    plan = make_plan(THREE, {"t": SMALL})
    assert (plan.notes, {unit.kind for unit in plan.units}) == ((), {"pass", "probe"})
    exact = make_plan(THREE, {"t": SMALL}, cache_budget=str(sum(made(plan).values())))
    assert [unit.key for unit in exact.units] == [unit.key for unit in plan.units]


def test_what_does_not_fit_at_once_is_made_in_rounds(make_plan: MakePlan) -> None:
    plan = make_plan(THREE, {"t": SMALL, "u": {**SMALL, "probe": "mlp"}})
    budget = max(size_of(plan, "a", "b"), size_of(plan, "c"))
    assert budget < sum(made(plan).values())
    tight = make_plan(THREE, {"t": SMALL, "u": {**SMALL, "probe": "mlp"}}, cache_budget=str(budget))
    assert not any(entry.streamed for entry in tight.context.entries.values())
    order, most, there = walk(tight)
    jobs = [title for title in order if " x " in title]
    assert {title[0] for title in jobs[:4]} == {"a", "b"}, "the jobs of one encoder share entries and stay together"
    assert {title[0] for title in jobs[4:]} == {"c"}
    assert most <= budget
    assert there, "what is left in the end stays for the next run"
    assert order.count("release") == len([unit for unit in tight.units if unit.kind == "release"]) >= 1
    assert "at once: they are made in 2 rounds, and those of a round are removed when its last job is done" in tight.notes[0]


def test_encoders_of_a_round_share_the_pass(make_plan: MakePlan) -> None:
    tasks = {"d": DIGITS, "s": SMALL}
    whole = make_plan(THREE, tasks)
    assert whole.n_passes == 4  # two image lists of each dataset
    sizes = {task: sum(e.nbytes for e in make_plan(THREE, {task: keys}).context.entries.values()) for task, keys in tasks.items()}
    tight = make_plan(THREE, tasks, cache_budget=str(max(sizes.values())))
    assert tight.n_passes == 4  # one round of each dataset, for all encoders
    order, most, _ = walk(tight)
    assert order.count("release") == 1
    assert most <= max(sizes.values())
    assert [title[-1] for title in order if " x " in title] == ["d", "d", "d", "s", "s", "s"]


def test_a_bundle_that_is_too_large_by_itself_streams_its_largest_entry(make_plan: MakePlan) -> None:
    one = {"a": THREE["a"]}
    small, large = sorted(entry.nbytes for entry in make_plan(one, {"t": SMALL}).context.entries.values())
    tight = make_plan(one, {"t": SMALL}, cache_budget=str(small + large - 1))
    assert [entry.nbytes for entry in tight.context.entries.values() if entry.streamed] == [large]
    assert walk(tight)[1] == small
    streams = f"1 of 2 feature sets do not fit the cache budget ({small + large - 1}): they are encoded while heads train"
    assert tight.notes[0] == streams
    assert tight.notes[1:] == ("147 kB of decoded images do not fit the cache budget: images are decoded whenever they are read",)


def test_what_memory_cannot_hold_is_streamed_and_the_others_are_made_in_rounds(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(THREE, {"t": SMALL})
    limit = 12 * 4 * 3 * 5 * 5  # of the 12 training images of b, in float32
    monkeypatch.setattr("virb.plan.units.slice_limit", lambda devices: limit)
    note = "1 of 6 feature sets are too large to keep (memory could not hold 512 images of them): they are encoded while heads train"
    roomy = make_plan(THREE, {"t": SMALL})
    assert [(e.wanted.encoder, e.n_rows) for e in roomy.context.entries.values() if e.streamed] == [("c", 12)]
    assert roomy.notes[0] == note
    assert "decoded images of 1 image list are kept" in roomy.notes[1]
    assert roomy.bytes_new == plan.bytes_new - 12 * 2 * 3 * 6 * 6
    tight = make_plan(THREE, {"t": SMALL}, cache_budget=str(max(size_of(plan, name) for name in "ab")))
    assert [(e.wanted.encoder, e.n_rows) for e in tight.context.entries.values() if e.streamed] == [("c", 12)]
    assert tight.notes[0] == note
    assert "rounds" in tight.notes[1]
    walk(tight)


def test_cached_entries_take_no_room_and_are_not_released(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(THREE, {"t": SMALL}, cache_dir=tmp_path / "cache")
    cache = FeatureCache(tmp_path / "cache")
    kept = {key for key, entry in plan.context.entries.items() if entry.wanted.encoder == "a"}
    write(cache, plan, kept)
    budget = cache.size() + max(size_of(plan, "b"), size_of(plan, "c"))
    tight = make_plan(THREE, {"t": SMALL}, cache_dir=tmp_path / "cache", cache_budget=str(budget))
    released = {key for unit in tight.units if unit.kind == "release" for key in unit.payload}
    assert released
    assert not released & kept
    assert not any(entry.streamed for entry in tight.context.entries.values())


def write(cache: FeatureCache, plan: Plan, keys: Collection[str]) -> None:
    for key in keys:
        entry = plan.context.entries[key]
        assert entry.row_shape is not None
        cache.write_slice(key, 0, np.zeros((entry.n_rows, *entry.row_shape), np.float32), {})


@pytest.mark.parametrize("first", ["a", "b", "c"])
def test_another_run_under_the_same_budget_streams_no_more_than_the_first(make_plan: MakePlan, tmp_path: Path, first: str) -> None:
    """What the run before left there takes room; its jobs come first, and then it goes."""
    plan = make_plan(THREE, {"t": SMALL}, cache_dir=tmp_path / "cache")
    budget = str(max(size_of(plan, name) for name in THREE))
    fresh = make_plan(THREE, {"t": SMALL}, cache_dir=tmp_path / "cache", cache_budget=budget)
    assert not any(entry.streamed for entry in fresh.context.entries.values())
    kept = {key for key, entry in plan.context.entries.items() if entry.wanted.encoder == first}
    cache = FeatureCache(tmp_path / "cache")
    write(cache, plan, kept)
    again = make_plan(THREE, {"t": SMALL}, cache_dir=tmp_path / "cache", cache_budget=budget)
    assert not any(entry.streamed for entry in again.context.entries.values())
    order, most, _ = walk(again, kept)
    assert next(title for title in order if " x " in title)[0] == first
    assert most <= int(budget)
    released = {key for unit in again.units if unit.kind == "release" for key in unit.payload}
    assert kept <= released
    assert "rounds, and those of a round are removed when its last job is done" in again.notes[0]
    assert not any("virb cache prune" in note for note in again.notes)  # nothing there is of no use to this run
    # As much of other runs stays, and takes its room.
    cache.write_slice("0" * 64, 0, np.zeros((12, 30), np.float32), {})
    squeezed = make_plan(THREE, {"t": SMALL}, cache_dir=tmp_path / "cache", cache_budget=budget)
    assert any(entry.streamed for entry in squeezed.context.entries.values()) == (first != "c")  # which is the one that does not fit
    assert not any(squeezed.context.entries[key].streamed for key in kept)
    assert walk(squeezed, kept)[1] + 720 <= max(int(budget), size_of(plan, first) + 720)
    assert not any("0" * 64 in unit.payload for unit in squeezed.units if unit.kind == "release")
    assert any(f"720 B of the budget are taken by what {cache.folder} holds already: virb cache prune" in note for note in squeezed.notes)


def test_slices_of_an_entry_that_is_streamed_keep_their_room() -> None:
    bundles = [({"part", "small"}, ["x"]), ({"new"}, ["y"])]
    sizes, there = {"part": 100, "small": 20, "new": 60}, {"part": 30, "small": 20}
    packed = _pack(bundles, sizes, there, 90)
    assert packed.streamed == ("part",)
    assert packed.rounds == (Round(("small",), ("x",)), Round(("new",), ("y",)))  # 30 + 20 + 60 are more than 90
    assert (packed.total, packed.left) == (80, 0)
    assert _pack(bundles, sizes, there, 110).rounds == (Round(("small", "new"), ("x", "y")),)


def test_an_eval_only_job_is_in_the_round_of_the_heads_it_scores(make_plan: MakePlan) -> None:
    tasks: dict[str, Any] = {"train": SMALL, "score": {"task": "shapes-count", "data": {"n_train": 12, "n_test": 9}, "heads_from": "train"}}
    plan = make_plan(THREE, tasks)
    tight = make_plan(THREE, tasks, cache_budget=str(max(size_of(plan, name) for name in "abc")))
    order, _, _ = walk(tight)  # which also shows that nothing waits for itself
    assert len([title for title in order if " x " in title]) == 6


def test_a_release_waits_for_jobs_that_fail_too() -> None:
    units = [
        Unit("pass", "p0", "", (), ("e",), 1.0),
        Unit("probe", "job a", "", ("e",), ("result a",), 1.0),
        Unit("score", "job b", "", ("result a",), ("result b",), 1.0),
        Unit("release", "release 0", "", (), (), 0.0, ("e",), after=("job a", "job b")),
        Unit("pass", "p1", "", (), ("f",), 1.0, after=("release 0",)),
    ]
    graph = Graph(units)
    for unit in units[:2]:
        assert graph.next_ready() is unit
        graph.start(unit)
        if unit.kind == "pass":
            graph.finish(unit, UnitReport())
    assert graph.next_ready() is None
    assert [lost.key for lost, _ in graph.fail(units[1], "diverged")] == ["job b"]
    for unit in units[3:]:
        assert graph.next_ready() is unit
        graph.start(unit)
        graph.finish(unit, UnitReport())
    assert graph.finished
    assert set(graph.failed) == {"job a", "job b"}


def disk_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("virb.plan.budget.shutil.disk_usage", lambda path: SimpleNamespace(total=10 * free, used=9 * free, free=free))


def test_an_amount_is_no_more_than_the_disk_has(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    plan = make_plan(THREE, {"t": SMALL}, cache_dir=folder)
    largest, whole = size_of(plan, "c"), sum(made(plan).values())
    disk_with(monkeypatch, round(1.1 * largest))
    tight = make_plan(THREE, {"t": SMALL}, cache_dir=folder, cache_budget="10GB")
    assert tight.notes[0].startswith(f"the disk of {folder} has {1.1 * largest / 1000:.3g} kB free: the cache budget is ")
    assert tight.notes[0].endswith(" instead of 10GB")
    assert "in 3 rounds" in tight.notes[1]
    assert walk(tight)[1] <= 1.1 * largest
    # What is there already counts as room: it is within the budget, and off the disk's free bytes.
    cache = FeatureCache(folder)
    there = {key for key, entry in plan.context.entries.items() if entry.wanted.encoder == "c"}
    write(cache, plan, there)
    disk_with(monkeypatch, round((whole - largest) / 0.95) + 1)
    assert make_plan(THREE, {"t": SMALL}, cache_dir=folder, cache_budget="10GB").notes == ()
    disk_with(monkeypatch, round((whole - largest) / 0.95) - 10)
    assert "kB free: the cache budget is" in make_plan(THREE, {"t": SMALL}, cache_dir=folder, cache_budget="10GB").notes[0]


def test_a_disk_that_is_full_streams_everything(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_with(monkeypatch, 0)
    plan = make_plan(THREE, {"t": SMALL}, cache_budget="10GB")
    assert all(entry.streamed for entry in plan.context.entries.values())
    assert "the cache budget is 0 B instead of 10GB" in plan.notes[0]
    assert plan.notes[1].startswith("6 of 6 feature sets do not fit the cache budget (0 B)")
