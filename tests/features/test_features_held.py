"""Entries that stay in memory after the pass: the values of the cache bit by bit, whole or not at all, within a budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from virb.features.cache import SLICE_ROWS, FeatureCache, SliceFacts, as_stored, slice_bounds
from virb.features.feature_set import MappedRows, SampleFeatures
from virb.features.held import HeldEntries, HeldRows

CPU = torch.device("cpu")
N, D = 2 * SLICE_ROWS + 10, 6


def fill(cache: FeatureCache, held: HeldEntries, key: str, values: np.ndarray, skip: int = -1) -> MappedRows:
    for start, stop in slice_bounds(len(values)):
        stored = as_stored(values[start:stop])
        bad = {start + 1: "torn"}
        written = cache.write_slice(key, start, stored, bad, SliceFacts({"encode": 0.5}, (8, 32) if start else None))
        if start != skip:
            held.keep(key, len(values), start, stored, bad, written)
    return MappedRows(cache.slices(key, len(values)))


def _full(*_: object, **__: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def features(scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(N, D)) * scale).astype(np.float32)


@pytest.mark.parametrize("overflow", [False, True])
def test_held_rows_are_those_of_the_cache(tmp_path: Path, overflow: bool) -> None:
    values = features()
    if overflow:
        values[3, 2] = 1e6  # its slice is float32 then
    held = HeldEntries(CPU, 10**6)
    mapped = fill(FeatureCache(tmp_path), held, "ab" * 32, values)
    rows = held.find("ab" * 32)
    assert rows is not None
    for wanted in (np.arange(N), np.array([5, 5, 0, N - 1]), np.zeros(0, np.int64), np.arange(N)[::-1]):
        assert torch.equal(rows.read(wanted), mapped.read(wanted))
        assert rows.read(wanted).dtype == mapped.dtype
    assert torch.equal(rows.read_one(7).float(), mapped.read_one(7).float())
    assert (rows.shape, len(rows), rows.bad, rows.batches) == (mapped.shape, len(mapped), mapped.bad, mapped.batches)
    assert rows.seconds == pytest.approx(mapped.seconds)
    assert rows.nbytes == N * D * (4 if overflow else 2)
    row_values, offsets = np.arange(3, 23), np.arange(0, 21, 2)
    one, other = (SampleFeatures([r], row_values, offsets, CPU, "host") for r in (rows, mapped))
    assert torch.equal(one.gather(np.array([4, 1])), other.gather(np.array([4, 1])))
    assert all(torch.equal(a, b) for a, b in zip(one.sample(9), other.sample(9), strict=True))


@pytest.mark.parametrize("k", [1, 2])
def test_samples_are_gathered_from_the_held_rows_without_a_copy(tmp_path: Path, k: int) -> None:
    """Also those of a hold-out, in two views, with samples of one image or several."""
    values = [features(), features(0.5)]
    held, cache = HeldEntries(CPU, 10**6), FeatureCache(tmp_path)
    mapped = [fill(cache, held, key * 32, one) for key, one in zip(("ab", "cd"), values, strict=True)]
    rows = [held.find(key * 32) for key in ("ab", "cd")]
    assert all(isinstance(one, HeldRows) for one in rows)
    assert held.find("ab" * 32) is rows[0]
    chosen = np.random.default_rng(1).permutation(N)[: N // 10 * k]
    chosen.flags.writeable = False
    offsets = np.arange(0, len(chosen) + 1, k)
    one, other = (SampleFeatures(views, chosen, offsets, CPU, "host") for views in (rows, mapped))
    assert one._copies is not None
    assert [copy.data_ptr() for copy in one._copies] == [view.values.data_ptr() for view in rows]
    samples = np.array([7, 0, 7, len(offsets) - 2])
    for epoch in (0, 1):
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        assert torch.equal(one.gather(samples), other.gather(samples))
        assert torch.equal(one.gather_rows(samples), other.gather_rows(samples))
        assert all(torch.equal(a, b) for a, b in zip(one.sample(3), other.sample(3), strict=True))


def test_joining_the_slices_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldEntries(CPU, 10**6)
    mapped = fill(FeatureCache(tmp_path), held, "ab" * 32, features())

    with monkeypatch.context() as patch:
        for name in ("cat", "empty", "stack"):
            patch.setattr(torch, name, _full)
        rows = held.find("ab" * 32)
    assert rows is not None
    assert torch.equal(rows.read(np.arange(N)), mapped.read(np.arange(N)))


@pytest.mark.parametrize("at", [0, SLICE_ROWS])
def test_an_entry_that_finds_no_memory_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """At its first slice, or at a later one that is the first in float32."""
    values = features()
    values[at + 3] = 1e6
    cache, held = FeatureCache(tmp_path), HeldEntries(CPU, 10**6)
    fill(cache, held, "ab" * 32, features())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty" if at == 0 else "promote_types", _full)
        fill(cache, held, "cd" * 32, values)
    assert held.find("cd" * 32) is None
    assert held.find("ab" * 32) is None  # given back: there was too little memory
    assert not held.clear()
    fill(cache, held, "cd" * 32, values)
    assert held.find("cd" * 32) is None


def test_an_entry_that_turns_out_bigger_needs_the_room_for_it(tmp_path: Path) -> None:
    size, cache = N * D * 2, FeatureCache(tmp_path)
    values = features()
    values[SLICE_ROWS + 3] = 1e6  # float32 from the second slice on
    for budget, there in ((2 * size, True), (2 * size - 1, False)):
        held = HeldEntries(CPU, budget)
        mapped = fill(cache, held, "ab" * 32, values)
        rows = held.find("ab" * 32)
        assert (rows is not None) == there
        assert rows is None or torch.equal(rows.read(np.arange(N)), mapped.read(np.arange(N)))
        fill(cache, held, "cd" * 32, features())
        assert held.find("cd" * 32) is not None  # the room is free: it was given up, or is taken from one that was read


def test_slices_of_different_shapes_are_not_held(tmp_path: Path) -> None:
    held = HeldEntries(CPU, 10**6)
    for start, stop in slice_bounds(N):
        stored = as_stored(features()[start:stop, : 5 if start else 6])
        held.keep("ab" * 32, N, start, stored, {}, SliceFacts())
    assert held.find("ab" * 32) is None
    assert not held.clear()


def test_a_part_is_nothing(tmp_path: Path) -> None:
    held = HeldEntries(CPU, 10**6)
    fill(FeatureCache(tmp_path), held, "ab" * 32, features(), skip=SLICE_ROWS)
    assert held.find("ab" * 32) is None
    assert held.find("cd" * 32) is None
    assert held.clear()
    fill(FeatureCache(tmp_path), held, "ef" * 32, features(), skip=0)  # it takes no room: it will not be whole
    assert held.find("ef" * 32) is None
    assert not held.clear()


def test_room_is_made_by_what_was_read_and_by_nothing_else(tmp_path: Path) -> None:
    cache, size = FeatureCache(tmp_path), N * D * 2
    keys = [f"{i:02x}" * 32 for i in range(4)]
    held = HeldEntries(CPU, 2 * size)
    for key in keys[:3]:
        fill(cache, held, key, features())
    assert [held.find(key) is not None for key in keys[:3]] == [True, True, False]  # the third found no room, and took none away
    held.find(keys[0])  # used last
    fill(cache, held, keys[3], features())
    assert [held.find(key) is not None for key in keys] == [True, False, False, True]
    assert HeldEntries(CPU, 0).find(keys[0]) is None
    small = HeldEntries(CPU, size - 1)
    fill(cache, small, keys[0], features())
    assert small.find(keys[0]) is None


def test_memory_is_given_back(tmp_path: Path) -> None:
    held = HeldEntries(CPU, 10**6)
    assert not held.clear()
    stored = as_stored(features()[:SLICE_ROWS])
    held.keep("ab" * 32, N, 0, stored, {}, SliceFacts())
    assert held.clear()
    fill(FeatureCache(tmp_path), held, "ab" * 32, features())  # the slices that come later are no whole entry
    assert held.find("ab" * 32) is None
    fill(FeatureCache(tmp_path), held, "cd" * 32, features())
    assert held.find("cd" * 32) is not None
    assert held.clear()
    assert held.find("cd" * 32) is None


def test_on_a_gpu_the_budget_counts_what_torch_holds_unused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = N * D * 2
    monkeypatch.setattr("virb.features.held.free_device_memory", lambda device: 5 * size if device == torch.device("cuda:1") else 0)
    held = HeldEntries(torch.device("cuda:1"))
    assert not held._admit("ab" * 32, N, size + 1)
    assert held._admit("ab" * 32, N, size)
    assert not held._admit("cd" * 32, N, 1)
