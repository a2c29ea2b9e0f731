"""Copies on a disk of this machine hold the same values, take no more room than there is, and go with their run."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from virb.features import local_copies as module
from virb.features.cache import SLICE_ROWS, FeatureCache
from virb.features.feature_set import MappedRows
from virb.features.local_copies import bring, local_copies, place_of

KEY = "ab" * 32
N = SLICE_ROWS + 20
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the disk of this machine has free."""
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Disk(10**12, 0, 10**12))


@pytest.fixture
def rows(tmp_path: Path) -> MappedRows:
    cache = FeatureCache(tmp_path / "cache")
    values = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
    cache.write_slice(KEY, 0, values[:SLICE_ROWS], {})
    cache.write_slice(KEY, SLICE_ROWS, values[SLICE_ROWS:], {})
    (tmp_path / "here").mkdir()
    return MappedRows(cache.slices(KEY, N))


def test_values_are_read_from_the_copies(rows: MappedRows, tmp_path: Path) -> None:
    before = rows.read(np.arange(N))
    rows.move(lambda slices: bring(slices, KEY, tmp_path / "here"))
    shutil.rmtree(tmp_path / "cache")
    assert rows.read(np.arange(N)).equal(before)
    assert len(list((tmp_path / "here" / KEY).glob("*.bin"))) == 2


def test_a_copy_that_is_there_is_used_and_half_a_one_is_not(rows: MappedRows, tmp_path: Path) -> None:
    place = tmp_path / "here"
    rows.move(lambda slices: bring(slices, KEY, place))
    whole, half = sorted((place / KEY).glob("*.bin"))
    made = whole.stat().st_mtime_ns
    half.write_bytes(half.read_bytes()[:-2])
    again = MappedRows(FeatureCache(tmp_path / "cache").slices(KEY, N))
    before = again.read(np.arange(N))
    again.move(lambda slices: bring(slices, KEY, place))
    assert again.read(np.arange(N)).equal(before)
    assert whole.stat().st_mtime_ns == made


def test_what_has_no_room_stays_where_it_is(rows: MappedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = SLICE_ROWS * 3 * 2
    free = iter((first + 1000, 999 + 120))  # a tenth of the disk, 1,000 bytes, stays free
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Disk(10_000, 0, next(free)))
    before = rows.read(np.arange(N))
    place = tmp_path / "here"
    rows.move(lambda slices: bring(slices, KEY, place))
    assert [path.stat().st_size for path in (place / KEY).glob("*.bin")] == [first]
    assert rows.read(np.arange(N)).equal(before)


@pytest.mark.parametrize(("in_use", "left"), [(None, {KEY, "cd", "ef", "01"}), ({KEY, "cd"}, {KEY, "cd", "01"})])
def test_copies_of_other_jobs_make_room(
    rows: MappedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_use: set[str] | None, left: set[str]
) -> None:
    place = tmp_path / "here"
    for age, name in enumerate(("01", "ef", "cd")):  # the one made last first
        (place / name).mkdir()
        (place / name / "0.bin").write_bytes(bytes(4000))
        os.utime(place / name, (10 - age, 10 - age))

    def usage(path: Path) -> Disk:
        used = sum(file.stat().st_size for file in place.rglob("*.bin"))
        return Disk(15_000, used, 15_000 - used)

    monkeypatch.setattr(module.shutil, "disk_usage", usage)
    before = rows.read(np.arange(N))
    rows.move(lambda slices: bring(slices, KEY, place, in_use))
    assert {folder.name for folder in place.iterdir() if any(folder.iterdir())} == left
    assert rows.read(np.arange(N)).equal(before)


def test_copies_go_with_their_run_and_those_of_killed_runs_with_the_next(tmp_path: Path) -> None:
    with local_copies(None, "none"):
        pass
    (tmp_path / "mine").mkdir()
    killed = place_of(tmp_path, "killed")
    killed.mkdir(parents=True)
    (killed / "x").write_text("")
    with local_copies(tmp_path, "one"), local_copies(tmp_path, "two"):
        assert {path.name for path in killed.parent.iterdir() if path.is_dir()} == {"one", "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_large_disk_need_not_keep_a_tenth_free(rows: MappedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Disk(2**42, 0, 11 * 2**30))
    rows.move(lambda slices: bring(slices, KEY, tmp_path / "here"))
    assert len(list((tmp_path / "here" / KEY).glob("*.bin"))) == 2
