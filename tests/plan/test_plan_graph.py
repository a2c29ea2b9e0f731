"""Which units may run, and what a failure takes with it."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import pytest

from virb.plan.graph import Graph, Unit, UnitReport


def unit(key: str, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = (), cost: float = 1.0) -> Unit:
    return Unit("kind", key, f"title of {key}", inputs, outputs, cost)


def run(graph: Graph, key: str, **failed: str) -> list[tuple[str, str]]:
    """Runs the next unit, which must be this one."""
    ready = graph.next_ready()
    assert ready is not None
    assert ready.key == key
    graph.start(ready)
    return [(lost.key, reason) for lost, reason in graph.finish(ready, UnitReport(failed=failed))]


def test_units_wait_for_their_inputs_and_results_come_first():
    graph = Graph([unit("job", ("a",)), unit("pass a", (), ("a",)), unit("pass b", (), ("b",)), unit("late", ("a", "b"), ("c",))])
    run(graph, "pass a")
    run(graph, "job")  # before pass b: nearest to a result
    assert not graph.finished
    run(graph, "pass b")
    run(graph, "late")
    assert graph.finished
    assert graph.next_ready() is None
    assert list(graph.done) == ["pass a", "job", "pass b", "late"]


def test_what_nobody_makes_is_there_already():
    graph = Graph([unit("job", ("cached",))])
    run(graph, "job")
    assert graph.finished


def test_an_output_of_several_makers_is_there_when_all_are_done():
    slices = [unit(f"slice {i}", (), ("a",)) for i in range(3)]
    graph = Graph([unit("job", ("a",)), *slices])
    first, second = (graph.next_ready() for _ in range(2))
    assert first is second is graph.units["slice 0"]
    for piece in slices:
        graph.start(piece)
        assert graph.next_ready() is not graph.units["job"]
    for piece in slices[:2]:
        graph.finish(piece, UnitReport())
        assert graph.next_ready() is None
    graph.finish(slices[2], UnitReport())
    assert graph.next_ready() is graph.units["job"]


def test_a_failed_output_takes_only_what_needs_it():
    graph = Graph([unit("pass", (), ("a", "b")), unit("job a", ("a",), ("result",)), unit("job b", ("b",)), unit("score", ("result", "b"))])
    assert run(graph, "pass", a="NaN") == [("job a", "NaN"), ("score", "NaN")]
    assert graph.failed == {"job a": "NaN", "score": "NaN"}
    assert run(graph, "job b") == []
    assert graph.finished


def test_a_failed_slice_fails_the_job_while_other_slices_go_on():
    graph = Graph([unit("slice 0", (), ("a", "b")), unit("slice 1", (), ("a", "b")), unit("job a", ("a",)), unit("job b", ("b",))])
    assert run(graph, "slice 0", a="NaN") == [("job a", "NaN")]
    assert run(graph, "slice 1", a="NaN again") == []
    assert run(graph, "job b") == []
    assert graph.failed == {"job a": "NaN"}


def test_a_failed_unit_fails_all_its_outputs_down_the_line():
    chain = [unit("pass", (), ("a", "b")), unit("1", ("a",), ("x",)), unit("2", ("x",), ("y",)), unit("3", ("y",)), unit("free")]
    graph = Graph(chain)
    graph.start(chain[0])
    lost = graph.fail(chain[0], "out of memory")
    assert [(u.key, reason) for u, reason in lost] == [(key, "out of memory") for key in "123"]
    assert set(graph.failed) == {"pass", "1", "2", "3"}
    run(graph, "free")
    assert graph.finished


@pytest.mark.parametrize("turned", [False, True])
def test_a_unit_lost_in_two_ways_is_lost_once(turned):
    """A score needs features and another job's head, and that job needs the same features."""
    jobs = [unit("job", ("a",), ("head",)), unit("score", ("head", "a"), ("number",)), unit("table", ("number", "head", "a"))]
    graph = Graph([unit("pass", (), ("a",)), *(reversed(jobs) if turned else jobs)])
    lost = run(graph, "pass", a="NaN")
    assert sorted(key for key, _ in lost) == ["job", "score", "table"]
    assert graph.finished


def test_a_failure_while_others_run():
    graph = Graph([unit("pass", (), ("a",)), unit("slow", (), ("b",)), unit("job", ("a", "b"))])
    slow, fast = graph.units["slow"], graph.units["pass"]
    graph.start(slow)
    graph.start(fast)
    assert not graph.finished
    assert [u.key for u, _ in graph.fail(fast, "why")] == ["job"]
    assert not graph.finished
    assert graph.finish(slow, UnitReport()) == []
    assert graph.finished


class Looked(Unit):
    """Counts how often somebody asks what a unit needs or gives."""

    looks = 0

    def __getattribute__(self, name: str):
        if name in ("inputs", "outputs"):
            Looked.looks += 1
            assert Looked.looks < 40 * MANY, "the work grows with the square of the units"
        return super().__getattribute__(name)


MANY = 20_000


@pytest.mark.parametrize("fails", [False, True])
def test_work_grows_with_the_units_and_not_with_their_square(fails):
    Looked.looks = 0
    slices = [Looked("pass", f"pass {i}", "", (), (f"entry {i % 1000}",), 1.0) for i in range(MANY // 2)]
    jobs = [Looked("probe", f"job {i}", "", (f"entry {i % 1000}", "cached"), (), 1.0) for i in range(MANY // 2)]
    graph = Graph([*jobs, *slices])
    order = []
    while (ready := graph.next_ready()) is not None:
        graph.start(ready)
        order.append(ready.key)
        graph.finish(ready, UnitReport(failed={"entry 7": "NaN"} if fails and ready.key == "pass 7" else {}))
        graph.cost_left({})
    assert graph.finished
    assert graph.cost_left({}) == 0
    assert len(graph.failed) == (10 if fails else 0)
    assert len(order) == MANY - len(graph.failed)
    # The last slice of an entry sets its jobs free: they go before the next slice, in the order given.
    first = order.index("job 0")
    assert order[first - 1] == "pass 9000"
    assert order[first : first + 11] == [*(f"job {i}" for i in range(0, MANY // 2, 1000)), "pass 9001"]


def test_the_order_is_that_of_looking_at_every_unit():
    """Random graphs, several units at work at once, some of which fail: against the plain rule over all that wait."""
    for seed in range(30):
        rng = random.Random(seed)
        names = [f"out {i}" for i in range(8)]
        units = []
        for i in range(24):
            inputs = tuple(rng.sample(names[: i // 4], min(i // 4, rng.randint(0, 3))))
            units.append(unit(str(i), inputs, tuple(rng.sample(names[i // 4 :], rng.randint(0, 2)))))
        rng.shuffle(units)
        graph = Graph(units)
        gone: set[str] = set()  # done or failed
        while not graph.finished:
            missing = {name for u in units if u.key not in gone for name in u.outputs}
            ready = [graph.units[key] for key in graph.waiting if not missing & set(graph.units[key].inputs)]
            expected = max(ready, key=lambda u: len(u.inputs) > 0) if ready else None
            assert graph.next_ready() is expected
            if expected is not None and (rng.random() < 0.6 or not graph.running):
                graph.start(expected)
                continue
            key = rng.choice(list(graph.running))
            gone.add(key)
            if rng.random() < 0.1:
                graph.fail(graph.units[key], "why")
            else:
                graph.finish(graph.units[key], UnitReport())


def test_cost_left():
    graph = Graph([unit("a", cost=10), unit("b", cost=4), unit("c", ("x",), cost=2), unit("d", (), ("x",), cost=1)])
    assert graph.cost_left({}) == 17
    graph.start(graph.units["a"])
    graph.start(graph.units["d"])
    assert graph.cost_left({}) == 17
    assert graph.cost_left({"a": 0.25, "of nobody": 1.0}) == 14.5
    graph.fail(graph.units["d"], "why")  # and c with it
    assert graph.cost_left({"a": 0.25}) == 11.5
    graph.finish(graph.units["a"], UnitReport())
    assert graph.cost_left({}) == 4


def test_units_and_reports_travel():
    sent = unit("a", ("x",), ("y",))
    assert pickle.loads(pickle.dumps(sent)) == sent
    report = UnitReport({"y": "why"}, "summary", ["note"], {"decoded": 3}, {"encode": 0.5})
    assert pickle.loads(pickle.dumps(report)) == report


def test_units_that_nobody_waits_for_can_be_given_up():
    graph = Graph(
        [
            unit("pass 0", (), ("a", "b")),
            unit("pass 1", (), ("a", "b")),
            unit("pass 2", (), ("a",)),
            unit("job a", ("a",), ("result a",)),
            unit("job b", ("b",), ("result b",)),
            unit("tidy", (), ()),
            Unit("kind", "after", "", (), ("c",), 1.0, after=("pass 2",)),
            unit("job c", ("c",), ("result c",)),
        ]
    )
    graph = Graph([replace(u, kind="probe" if "job" in u.key else "release" if u.key == "tidy" else "pass") for u in graph.units.values()])
    graph.give_up_unused()
    assert graph.given_up == []
    assert run(graph, "pass 0", a="no room") == [("job a", "no room")]
    graph.give_up_unused()
    assert [u.key for u in graph.given_up] == ["pass 2"]  # b is wanted, and whoever came after it goes on
    order = []
    while (ready := graph.next_ready()) is not None:
        graph.start(ready)
        graph.give_up_unused()  # what a running unit reads is wanted, too
        graph.finish(ready, UnitReport())
        order.append(ready.key)
    assert order == ["pass 1", "job b", "tidy", "after", "job c"]
    assert graph.finished
    assert graph.cost_left({}) == 0
