"""Slices in a row are one unit, which several devices get in ever shorter pieces; what waited for a slice waits for its unit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from virb.data.transforms import Geometry
from virb.features.cache import SLICE_ROWS
from virb.features.passes import Wanted
from virb.plan.graph import Graph, Unit, UnitReport
from virb.plan.jobs import PassWork
from virb.plan.stretches import MOST, join_slices

SMALL = Geometry((8, 8), "squash")
A, B = (Wanted(name, SMALL, "embedding", f"key {name}") for name in "ab")


def slices(n: int, wanted: tuple[Wanted, ...] = (A,), images: str = "list", rows: int = 0, **more: Any) -> list[Unit]:
    """One unit per slice, as the plan makes them; the last slice has ``rows``, if any."""
    bounds = [(i * SLICE_ROWS, (i + 1) * SLICE_ROWS) for i in range(n)]
    if rows:
        bounds[-1] = bounds[-1][0], bounds[-1][0] + rows
    keys = tuple(item.key for item in wanted)
    return [
        Unit("pass", f"{images} {start} {keys}", "t", (), keys, float(stop - start), PassWork(images, start, stop, wanted), **more)
        for start, stop in bounds
    ]


def lengths(units: list[Unit]) -> list[int]:
    return [len(unit.payload.slices) for unit in units]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_one_device_takes_many_in_a_row(kind: str) -> None:
    most = MOST[kind]
    joined = join_slices(slices(2 * most + 3, rows=7), 1, kind)
    assert lengths(joined) == [most, most, 3]
    assert [(unit.payload.start, unit.payload.stop) for unit in joined] == [
        (0, most * SLICE_ROWS),
        (most * SLICE_ROWS, 2 * most * SLICE_ROWS),
        (2 * most * SLICE_ROWS, (2 * most + 2) * SLICE_ROWS + 7),
    ]
    assert joined[-1].payload.slices[-1] == ((2 * most + 2) * SLICE_ROWS, (2 * most + 2) * SLICE_ROWS + 7)
    assert [unit.cost for unit in joined] == [most * SLICE_ROWS, most * SLICE_ROWS, 2 * SLICE_ROWS + 7]
    assert all(unit.outputs == (A.key,) for unit in joined)


def test_several_devices_share_a_list_to_its_end() -> None:
    joined = join_slices(slices(20), 2, "cuda")
    assert lengths(joined) == [5, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1]  # a quarter of what is left each time
    assert lengths(join_slices(slices(3), 2, "cpu")) == [1, 1, 1]
    assert lengths(join_slices(slices(2503), 8, "cuda"))[:3] == [32, 32, 32]
    everything = [bounds for unit in join_slices(slices(2503), 8, "cuda") for bounds in unit.payload.slices]
    assert everything == [bounds for unit in slices(2503) for bounds in unit.payload.slices]


def test_what_is_not_the_same_or_not_in_a_row_stays_apart() -> None:
    kept = [replace(unit, payload=replace(unit.payload, keep=(SMALL,))) for unit in slices(2, (B,))]
    release = Unit("release", "release", "t", (), (), 0.0, ())
    gap = [slices(4, images="gap")[i] for i in (0, 1, 3)]
    units = [*slices(2), *slices(2, (A, B)), *slices(2, (B,)), *kept, *slices(2, images="other"), release, *gap]
    joined = join_slices(units, 1, "cpu")
    assert [len(unit.payload.slices) if unit.kind == "pass" else 0 for unit in joined] == [2, 2, 2, 2, 2, 0, 2, 1]
    assert [unit.key for unit in join_slices([release, *gap[2:]], 1, "cpu")] == ["release", gap[2].key]


def test_units_wait_for_the_units_that_do_it_now() -> None:
    first = slices(4)
    second = [replace(unit, after=(before.key,)) for unit, before in zip(slices(4, (B,)), first, strict=True)]
    job = Unit("stream", "job", "t", (), ("result",), 1.0, "id", after=(first[3].key, first[1].key, "elsewhere"))
    joined = join_slices([*first, *second, job], 1, "cpu")
    assert [unit.after for unit in joined] == [(), (first[0].key,), (first[0].key, "elsewhere")]
    shared = join_slices([*first, *second, job], 2, "cpu")
    graph, order = Graph(shared), list[str]()
    while (unit := graph.next_ready()) is not None:
        graph.start(unit)
        order.append(unit.key)
        graph.finish(unit, UnitReport())
    assert graph.finished
    assert sorted(order) == sorted(unit.key for unit in shared)
