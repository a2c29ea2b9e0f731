"""Decoded images are kept where they would be decoded again, by the first unit that has them, in what features leave of the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_support import DIGITS, PIXELS, MakePlan

from virb.features.cache import FeatureCache
from virb.plan import build, stores, units
from virb.plan.describe import check_report, header
from virb.plan.graph import Graph, Unit, UnitReport
from virb.plan.jobs import Plan
from virb.plan.measure import Meter

STREAM = {**DIGITS, "pre_encode": False, "views": 1, "augment": "none"}
TRAIN, TEST = 1438, 359
IMAGE = 3 * 32 * 32


@pytest.fixture(autouse=True)
def slow_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some size, on any machine."""
    monkeypatch.setattr(Meter, "decode", lambda self, images, geometry: 5e-3)


def order_of(plan: Plan) -> list[Unit]:
    graph = Graph(plan.units)
    found = []
    while (unit := graph.next_ready()) is not None:
        graph.start(unit)
        found.append(unit)
        graph.finish(unit, UnitReport())
    assert graph.finished, "something waits for itself"
    return found


def kept_by(plan: Plan) -> dict[str, int]:
    """Unit key -> bytes of decoded images that it keeps."""
    return {
        unit.key: sum(plan.context.stores[unit.payload.list_id][g].row_bytes for g in unit.payload.keep)
        * (unit.payload.stop - unit.payload.start)
        for unit in plan.units
        if unit.kind == "pass" and unit.payload.keep
    }


def test_a_stream_waits_for_units_that_only_decode(make_plan: MakePlan) -> None:
    plan = make_plan(None, {"t": STREAM})
    order = order_of(plan)
    decoding = [unit for unit in order if unit.kind == "pass"]
    assert all(not unit.payload.wanted and unit.payload.keep for unit in decoding)
    assert order[-1].kind == "stream"
    assert sum(unit.payload.stop - unit.payload.start for unit in decoding) == plan.rows_to_decode == TRAIN + TEST
    assert set(order[-1].after) == {unit.key for unit in decoding}
    assert plan.notes == (f"decoded images of 2 image lists are kept ({(TRAIN + TEST) * IMAGE / 1e6:.3g} MB): {_STREAMS}",)
    assert (plan.n_passes, plan.rows_in_passes, plan.bytes_new) == (0, 0, 0)


_STREAMS = "heads that train while features are encoded decode none"


def test_a_pass_over_the_same_images_keeps_them_on_its_way(make_plan: MakePlan) -> None:
    plan = make_plan({"a": PIXELS, "b": {**PIXELS, "args": {"side": 5}}}, {"t": STREAM, "k": {**DIGITS, "features": "tokens[-1].mean"}})
    passes = [unit for unit in plan.units if unit.kind == "pass"]
    assert all(unit.payload.wanted for unit in passes)
    assert plan.rows_to_decode == TRAIN + TEST
    keeping = [unit for unit in passes if unit.payload.keep]
    # Also test images: they are decoded anyway, and both streams read them once more.
    assert sum(unit.payload.stop - unit.payload.start for unit in keeping) == TRAIN + TEST
    for job in (unit for unit in plan.units if unit.kind == "stream"):
        assert set(job.after) == {unit.key for unit in keeping}
    order_of(plan)


def test_no_room_no_gain_no_store(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = make_plan(None, {"t": STREAM}, cache_budget=str(TRAIN * IMAGE - 1))
    assert sum(kept_by(tight).values()) == TEST * IMAGE
    assert tight.notes[1] == "4.42 MB of decoded images do not fit the cache budget: images are decoded whenever they are read"
    # The training images come first: more reads for the same bytes.
    assert sum(kept_by(make_plan(None, {"t": STREAM}, cache_budget=str(TRAIN * IMAGE))).values()) == TRAIN * IMAGE
    assert not kept_by(make_plan(None, {"t": STREAM}, cache_budget="0"))
    monkeypatch.setattr(Meter, "decode", lambda self, images, geometry: 1e-7)
    cheap = make_plan(None, {"t": STREAM})
    assert not kept_by(cheap)
    assert cheap.notes == ()


def test_crops_are_not_kept(make_plan: MakePlan) -> None:
    plan = make_plan(None, {"t": {**DIGITS, "views": "fresh", "num_epochs": 8}})
    assert sum(kept_by(plan).values()) == TEST * IMAGE  # those are seen whole
    # Where many epochs select by whole images of the same list, these pay.
    plan = make_plan(None, {"t": {**DIGITS, "views": "fresh", "num_epochs": 20}})
    assert sum(kept_by(plan).values()) == (TRAIN + TEST) * IMAGE
    assert all(geometry.view is None for found in plan.context.stores.values() for geometry in found)


def test_what_lies_in_the_cache_is_read_and_not_made(make_plan: MakePlan, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = make_plan(None, {"t": STREAM}, cache_dir=folder)
    store, tests = sorted((s for found in first.context.stores.values() for s in found.values()), key=lambda s: -s.n_rows)
    cache = FeatureCache(folder)
    cache.write_slice(tests.key, 0, np.zeros((TEST, 3, 32, 32), np.uint8), {})
    for start, stop in store.missing[:2]:
        cache.write_slice(store.key, start, np.zeros((stop - start, 3, 32, 32), np.uint8), {})
    rest = make_plan(None, {"t": STREAM}, cache_dir=folder)
    assert rest.rows_to_decode == TRAIN - 1024
    for start, stop in store.missing[2:]:
        cache.write_slice(store.key, start, np.zeros((stop - start, 3, 32, 32), np.uint8), {})
    whole = make_plan(None, {"t": STREAM}, cache_dir=folder)
    assert [unit.kind for unit in whole.units] == ["stream"]
    assert (whole.rows_to_decode, whole.notes) == (0, ())
    # A pass for another encoder decodes none of them either.
    other = make_plan({"b": {**PIXELS, "args": {"side": 5}}}, {"t": DIGITS}, cache_dir=folder)
    assert (other.rows_in_passes, other.rows_to_decode) == (TRAIN + TEST, 0)
    assert make_plan({"b": PIXELS}, {"t": DIGITS}, cache_dir=folder, no_cache=True).rows_to_decode == TRAIN + TEST


def test_passes_that_memory_splits_share_one_decoding(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "weight_bytes", lambda spec: 10.0)
    monkeypatch.setattr(units, "encoder_limit", lambda devices: 25.0)
    encoders = {f"e{i}": {**PIXELS, "args": {"side": i + 1}} for i in range(5)}
    plan = make_plan(encoders)
    assert (plan.n_passes, plan.rows_in_passes, plan.rows_to_decode) == (6, 3 * 1797, 1797)
    order = order_of(plan)
    seen = set[tuple[str, int]]()
    for unit in order:
        if unit.kind == "pass":
            place = (unit.payload.list_id, unit.payload.start)
            assert bool(unit.payload.keep) == (place not in seen)
            seen.add(place)
    # When the last pass is over they go: encoders of another day pay for their own.
    (release,) = [unit for unit in order if unit.kind == "release"]
    assert set(release.payload) == {store.key for found in plan.context.stores.values() for store in found.values()}
    assert order.index(release) > max(place for place, unit in enumerate(order) if unit.kind == "pass")
    assert any("passes after the first decode none" in note for note in plan.notes)


def test_a_store_and_rounds_do_not_wait_for_each_other(make_plan: MakePlan) -> None:
    """Jobs of the first round stream what passes of the second go over."""
    encoders = {name: {**PIXELS, "args": {"side": side}} for name, side in (("a", 24), ("b", 25))}
    tasks: dict[str, Any] = {"t": DIGITS, "u": {**STREAM, "features": "tokens[-1].mean"}}
    whole = make_plan(encoders, tasks)
    sizes = [sum(e.nbytes for e in whole.context.entries.values() if e.wanted.encoder == name and not e.streamed) for name in "ab"]
    tight = make_plan(encoders, tasks, cache_budget=str(max(sizes) + TRAIN * IMAGE))
    assert len([unit for unit in tight.units if unit.kind == "release"]) == 1
    assert kept_by(tight)
    order_of(tight)


def test_check_says_that_images_are_decoded_once(make_plan: MakePlan) -> None:
    lines = list(check_report(make_plan(None, {"t": STREAM, "u": {**STREAM, "num_epochs": 1}}), []))
    assert any("e x t" in line and line.endswith("streams: images decoded once, encoded while heads train") for line in lines), lines


def test_every_key_that_may_be_read_is_in_use(make_plan: MakePlan) -> None:
    plan = make_plan(None, {"t": STREAM})
    draft = build.Draft(plan.settings, plan.context.encoders, plan.context.jobs, plan.context.entries, plan.context.lists)
    assert {store.key for found in plan.context.stores.values() for store in found.values()} <= stores.possible_stores(draft).keys()


def test_what_streams_decode_is_in_the_plan(make_plan: MakePlan) -> None:
    """Training images once an epoch and once in the end, with the tenth of them that is held out; those to test on twice."""
    task = {**STREAM, "num_epochs": 7, "seeds": [0, 1]}
    plan = make_plan({"a": PIXELS, "b": {**PIXELS, "args": {"side": 5}}}, {"t": task}, cache_budget="0")
    each = (7 + 1) * 2 * TRAIN + 2 * TEST
    assert (plan.rows_to_decode, plan.rows_of_streams) == (0, 2 * each)
    text = "\n".join(check_report(plan, []))
    assert f"; 0 images to decode, and about {2 * each:,} while heads train" in text
    assert f"  streams {2 * each:,} images to decode, about, while heads train" in header(plan)
    # Where the images are kept, and where features are.
    assert make_plan(None, {"t": task}).rows_of_streams == 0
    kept = make_plan(None, {"t": DIGITS})
    assert kept.rows_of_streams == 0
    assert "while heads train" not in "\n".join([*check_report(kept, []), *header(kept)])
    # Views are random crops, which nobody keeps; a search does not train by epochs.
    views = make_plan(None, {"t": {**task, "pre_encode": True, "views": 3, "augment": "crop-flip"}}, cache_budget="0")
    assert views.rows_of_streams == pytest.approx(each, rel=0.15)
    assert make_plan(None, {"t": {**DIGITS, "probe": "knn"}}, cache_budget="0").rows_of_streams == 3 * TRAIN + 2 * TEST


def test_the_part_of_a_store_that_is_there_is_not_decoded(make_plan: MakePlan, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    plan = make_plan(None, {"t": STREAM}, cache_dir=folder)
    cache = FeatureCache(folder)
    store = next(s for by_geometry in plan.context.stores.values() for s in by_geometry.values() if s.n_rows == TRAIN)
    cache.prepare(store.record, store.n_rows)
    cache.write_slice(store.key, 512, np.zeros((512, 3, 32, 32), dtype=np.uint8), {})
    epochs = plan.to_do[0].task.num_epochs
    rest = make_plan(None, {"t": STREAM}, cache_dir=folder, cache_budget="0")
    assert rest.rows_of_streams == (epochs + 1) * (TRAIN - 512) + 2 * TEST
