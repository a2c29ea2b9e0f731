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


def test_all_rows_are_not_copied(tmp_path: Path) -> None:
    held = HeldEntries(CPU, 10**6)
    fill(FeatureCache(tmp_path), held, "ab" * 32, features())
    rows = held.find("ab" * 32)
    assert isinstance(rows, HeldRows)
    assert rows.read(np.arange(N)).data_ptr() == rows.read(np.arange(N)).data_ptr()
    assert held.find("ab" * 32) is rows


def test_a_part_is_nothing(tmp_path: Path) -> None:
    held = HeldEntries(CPU, 10**6)
    fill(FeatureCache(tmp_path), held, "ab" * 32, features(), skip=SLICE_ROWS)
    assert held.find("ab" * 32) is None
    assert held.find("cd" * 32) is None


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
