"""Slices of a pass in a row: the same files as slice by slice, while one loader runs on and a slice is written as the next is encoded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from virb.data.images import ImageList
from virb.data.transforms import Geometry
from virb.errors import BadImage, UnreadImage, ViRBError
from virb.features import passes
from virb.features.cache import SLICE_ROWS, FeatureCache
from virb.features.counted import PassReport
from virb.features.decoded import Pixels
from virb.features.encoding import Memory, Numerics, PassOptions
from virb.features.feature_set import MappedRows
from virb.features.held import HeldEntries
from virb.features.passes import Wanted, run_slices

CPU = torch.device("cpu")
SMALL, OTHER = Geometry((8, 8), "squash"), Geometry((6, 8), "squash")
SLICES = [(0, 10), (10, 20), (20, 27)]
PATIENCE = 20.0  # seconds, for what has to come


class Noise(ImageList):
    """``before(row)`` is called when an image is read."""

    def __init__(self, n: int = 27, bad: tuple[int, ...] = (), before: Callable[[int], None] = lambda row: None) -> None:
        self.name, self.ids, self.bad, self.before = "noise", [f"image-{i}" for i in range(n)], bad, before
        self.reads: list[int] = []

    def read(self, i: int) -> Image.Image:
        self.reads.append(i)
        self.before(i)
        if i in self.bad:
            raise BadImage(f"{i}.jpg: cannot be decoded")
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 11, 3), dtype=np.uint8))

    def _describe(self) -> dict[str, Any]:
        return {"kind": "noise"}

    def _contents(self) -> tuple[()]:
        return ()


class Means:
    """An encoder. ``before(call)`` is called with the number of each forward."""

    def __init__(self, name: str, before: Callable[[int], None] = lambda call: None) -> None:
        self.spec, self.before, self.calls = SimpleNamespace(name=name), before, 0

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float()

    def __call__(self, images: torch.Tensor, requests: Any) -> dict[str, torch.Tensor]:
        self.calls += 1
        self.before(self.calls - 1)
        return {request: images.mean((2, 3)) if request == "embedding" else images[:, :, :2, :2].contiguous() for request in requests}


def wanted(*names: str) -> list[Wanted]:
    return [
        Wanted(name, geometry, request, f"{name}{geometry.size}{request}".encode().hex())
        for name in names
        for geometry in (SMALL, OTHER)
        for request in ("embedding", "tokens[-1]")
    ]


def one(name: str) -> Wanted:
    return Wanted(name, SMALL, "embedding", f"{name} one".encode().hex())


def options(threads: int = 2) -> PassOptions:
    return PassOptions(Numerics("float32", "cpu"), 4, threads)  # three batches a slice, the last one smaller


def contents(folder: Path) -> dict[str, Any]:
    """All files, without the seconds in them."""
    found: dict[str, Any] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.bin")}
    for path in folder.rglob("0*.json"):
        found[path.relative_to(folder).as_posix()] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
    return found


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("threads", [0, 3])
def test_the_files_are_those_of_slice_by_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, behind: int) -> None:
    items, keep = wanted("a", "b"), {SMALL: "ab" * 32}
    alone, together = FeatureCache(tmp_path / "alone"), FeatureCache(tmp_path / "together")
    for bounds in SLICES:
        fakes: Any = {"a": Means("a"), "b": Means("b")}
        run_slices(Noise(bad=(3, 12, 26)), [bounds], items, fakes, alone, CPU, options(0), pixels=Pixels(keep=keep))
    monkeypatch.setitem(passes._BEHIND, "cpu", behind)
    images, told = Noise(bad=(3, 12, 26)), list[int]()
    fakes = {"a": Means("a"), "b": Means("b")}
    report = run_slices(images, SLICES, items, fakes, together, CPU, options(threads), told.append, pixels=Pixels(keep=keep))
    assert len(contents(alone.folder)) == (8 + 1) * 3 * 2
    assert contents(together.folder) == contents(alone.folder)
    assert sorted(images.reads) == list(range(27))
    assert (report.decoded, report.rows, report.failed, report.notes) == (27, 27, {}, [])
    assert told == [4, 8, 10, 14, 18, 20, 24, 27]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virb-")]


def test_seconds_of_slices_add_up_to_those_of_the_pass(tmp_path: Path) -> None:
    items, cache = wanted("a", "b"), FeatureCache(tmp_path)
    fakes: Any = {name: Means(name, lambda call: time.sleep(0.002)) for name in "ab"}
    report = run_slices(Noise(before=lambda row: time.sleep(0.001)), SLICES, items, fakes, cache, CPU, options(1))
    for stage in ("decode", "encode"):
        slices = [json.loads(cache.slice_path(item.key, start, "json").read_text()) for item in items for start, _ in SLICES]
        assert sum(found["seconds"][stage] for found in slices) == pytest.approx(report.seconds[stage], rel=0.05, abs=2e-3)
    assert report.seconds["compute"] == pytest.approx(report.seconds["encode"])
    assert report.seconds["load"] > 0.027


def blocking_write(monkeypatch: pytest.MonkeyPatch, start: int, until: threading.Event, waited: list[bool]) -> None:
    """The write of one slice ends when ``until`` has come."""
    write = FeatureCache.write_slice

    def patient(self: FeatureCache, key: str, at: int, *rest: Any) -> Any:
        if at == start:
            waited.append(until.wait(PATIENCE))
        return write(self, key, at, *rest)

    monkeypatch.setattr(FeatureCache, "write_slice", patient)


def test_images_of_the_next_slice_are_decoded_before_a_slice_is_encoded(tmp_path: Path) -> None:
    begun, waited = threading.Event(), list[bool]()
    images = Noise(before=lambda row: begun.set() if row >= 10 else None)
    encoder: Any = Means("a", lambda call: waited.append(begun.wait(PATIENCE)) if call == 2 else None)  # the last batch of the first slice
    run_slices(images, SLICES, [one("a")], {"a": encoder}, FeatureCache(tmp_path), CPU, options())
    assert waited == [True]


@pytest.mark.parametrize("threads", [0, 2])
def test_a_slice_is_written_while_the_next_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    encoded, waited = threading.Event(), list[bool]()
    blocking_write(monkeypatch, 0, encoded, waited)
    encoder: Any = Means("a", lambda call: encoded.set() if call == 5 else None)  # the last batch of the second slice
    run_slices(Noise(), SLICES, [one("a")], {"a": encoder}, FeatureCache(tmp_path), CPU, options(threads))
    assert waited == [True]
    assert [FeatureCache(tmp_path).has_slice(one("a").key, start) for start, _ in SLICES] == [True] * 3


@pytest.mark.parametrize(("most", "ahead"), [(float("inf"), 2), (2 * 10 * 3 * 4, 2), (2 * 10 * 3 * 4 - 1, 1)])
def test_outputs_of_two_slices_at_most_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float, ahead: int) -> None:
    """Of one, where memory holds no more: ten rows of three float32 each."""
    slices, seen = [(start, start + 10) for start in range(0, 60, 10)], dict[int, int]()
    encoder: Any = Means("a")
    write, at_once = FeatureCache.write_slice, threading.Lock()

    def slow(self: FeatureCache, key: str, start: int, *rest: Any) -> Any:
        assert at_once.acquire(blocking=False)
        time.sleep(0.03)
        seen[start] = encoder.calls
        at_once.release()
        return write(self, key, start, *rest)

    monkeypatch.setattr(FeatureCache, "write_slice", slow)
    run_slices(Noise(60), slices, [one("a")], {"a": encoder}, FeatureCache(tmp_path), CPU, options(), most_held=most)
    assert list(seen) == [start for start, _ in slices]
    for number, (start, _) in enumerate(slices):
        assert seen[start] <= 3 * (number + ahead)


def test_an_image_that_cannot_be_read_costs_its_slice_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(row: int) -> None:
        if row in (11, 19):
            raise UnreadImage(f"shard: image {row} is cut off")

    for number, (threads, behind) in enumerate([(0, 0), (2, 0), (2, 1)]):
        monkeypatch.setitem(passes._BEHIND, "cpu", behind)
        whole, cache = FeatureCache(tmp_path / f"whole{number}"), FeatureCache(tmp_path / f"{number}")
        items, images, report = wanted("a", "b"), Noise(before=cut), PassReport()
        fakes: Any = {"a": Means("a"), "b": Means("b")}
        with pytest.raises(UnreadImage, match="image 11 is cut off"):
            run_slices(images, SLICES, items, fakes, cache, CPU, options(threads), report=report, pixels=Pixels(keep={SMALL: "cd" * 32}))
        for key in [*(item.key for item in items), "cd" * 32]:
            assert [cache.has_slice(key, start) for start, _ in SLICES] == [True, False, True]
        run_slices(Noise(), SLICES, items, fakes, whole, CPU, options(0), pixels=Pixels(keep={SMALL: "cd" * 32}))
        expected = contents(whole.folder)
        assert all(expected[name] == value for name, value in contents(cache.folder).items())
        assert report.rows >= 17
        assert report.failed == {}
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("virb-")]


def test_a_failure_in_one_slice_leaves_the_other_slices_of_the_entry(tmp_path: Path) -> None:
    def fail(call: int) -> None:
        if call == 4:  # in the second slice
            raise ValueError("broken")

    cache, calm, broken = FeatureCache(tmp_path), Means("calm"), Means("broken", fail)
    fakes: Any = {"calm": calm, "broken": broken}
    report = run_slices(Noise(), SLICES, [one("broken"), one("calm")], fakes, cache, CPU, options())
    assert [cache.has_slice(one("broken").key, start) for start, _ in SLICES] == [True, False, True]
    assert [cache.has_slice(one("calm").key, start) for start, _ in SLICES] == [True] * 3
    assert report.failed[one("broken").key].startswith("broken: ValueError: broken")
    assert (broken.calls, calm.calls) == (7, 8)  # not asked for the last batch of that slice


def test_where_nobody_goes_on_the_pass_ends_and_what_was_finished_is_written(tmp_path: Path) -> None:
    def fail(call: int) -> None:
        if call >= 4:
            raise ValueError("broken")

    images, cache, encoder = Noise(400), FeatureCache(tmp_path), Means("a", fail)
    slices = [(start, start + 10) for start in range(0, 400, 10)]
    report = run_slices(images, slices, [one("a")], {"a": encoder}, cache, CPU, options())  # type: ignore[dict-item]
    assert cache.has_slice(one("a").key, 0)
    assert (encoder.calls, list(report.failed)) == (5, [one("a").key])
    assert len(images.reads) < 40


def test_an_entry_that_finds_no_room_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = FeatureCache.write_slice

    def full(self: FeatureCache, key: str, start: int, *rest: Any) -> Any:
        if key in refused and start >= 10:
            raise ViRBError("the disk is full")
        return write(self, key, start, *rest)

    monkeypatch.setattr(FeatureCache, "write_slice", full)
    slices = [(start, start + 10) for start in range(0, 400, 10)]
    small, large = one("small"), one("large")
    for refused, ends in (({large.key}, 400), ({large.key, small.key}, 80)):
        images, cache = Noise(400), FeatureCache(tmp_path / str(ends))
        fakes: Any = {"small": Means("small"), "large": Means("large")}
        report = run_slices(images, slices, [small, large], fakes, cache, CPU, options())
        assert report.failed == dict.fromkeys(refused, "the disk is full")
        assert [cache.has_slice(large.key, start) for start, _ in slices[:3]] == [True, False, False]
        assert all(cache.has_slice(small.key, start) for start, _ in slices) == (small.key not in refused)
        assert fakes["large"].calls <= 3 * 4  # it is known when the third slice is finished
        assert len(images.reads) <= ends


def test_held_entries_have_what_the_cache_has(tmp_path: Path) -> None:
    n = 2 * SLICE_ROWS + 30
    bounds = [(0, SLICE_ROWS), (SLICE_ROWS, 2 * SLICE_ROWS), (2 * SLICE_ROWS, n)]
    held, cache, encoder = HeldEntries(CPU, 10**8), FeatureCache(tmp_path), Means("a")
    run_slices(Noise(n), bounds, [one("a")], {"a": encoder}, cache, CPU, PassOptions(Numerics("float32", "cpu"), 64, 2), held=held)  # type: ignore[dict-item]
    rows = held.find(one("a").key)
    assert rows is not None
    assert torch.equal(rows.read(np.arange(n)), MappedRows(cache.slices(one("a").key, n)).read(np.arange(n)))


def test_an_interrupt_keeps_what_is_finished_and_leaves_no_thread(tmp_path: Path) -> None:
    def interrupt(call: int) -> None:
        if call == 7:  # in the third slice
            raise KeyboardInterrupt

    cache, report, encoder = FeatureCache(tmp_path), PassReport(), Means("a", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_slices(Noise(), SLICES, [one("a")], {"a": encoder}, cache, CPU, options(), report=report)  # type: ignore[dict-item]
    assert [cache.has_slice(one("a").key, start) for start, _ in SLICES] == [True, True, False]
    assert report.rows == 24
    assert 24 <= report.decoded <= 27
    assert report.seconds["encode"] > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virb-")]


def test_what_memory_taught_in_one_slice_holds_in_the_next(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Greedy(Means):
        def __call__(self, images: torch.Tensor, requests: Any) -> dict[str, torch.Tensor]:
            sizes.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("no room")
            return super().__call__(images, requests)

    memory, cache, greedy = Memory(), FeatureCache(tmp_path), Greedy("a")
    report = run_slices(Noise(), SLICES, [one("a")], {"a": greedy}, cache, CPU, options(), memory=memory)  # type: ignore[dict-item]
    assert sizes[:2] == [4, 2]
    assert set(sizes[1:]) == {2}
    assert len(report.notes) == 1
    assert [json.loads(cache.slice_path(one("a").key, start, "json").read_text())["batch"] for start, _ in SLICES] == [[2, 4]] * 3
