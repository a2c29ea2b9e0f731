"""The cache: keys that change with every field, slices that are there whole or not at all, values that come back."""

from __future__ import annotations

import errno
import json
import os
import pickle
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from virb.data.transforms import Geometry
from virb.encoders.load import load_encoder
from virb.errors import DiskFull, UserError
from virb.features import cache as cache_module
from virb.features.cache import SLICE_ROWS, DamagedSlices, EntryRecord, FeatureCache, as_stored, slice_bounds
from virb.features.encoding import Numerics
from virb.features.feature_set import MappedRows
from virb.io import hash_record, read_json

ENCODER = load_encoder({"arch": "vit", "weights": "random", "args": {"width": 12, "depth": 1, "heads": 2, "patch_size": 8, "img_size": 16}})
GEOMETRY = Geometry((32, 48), "squash", "none", 1.0, "bilinear", None)
RECORD = EntryRecord(
    encoder_id="e" * 64,
    image_list_id="i" * 64,
    geometry={"size": [32, 48], "resize": "squash", "view": {"number": 0, "augment": "crop-flip", "seed": 0}, "decoder": "pillow"},
    normalisation={"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "channels": "rgb"},
    output="tokens[-1].mean",
    numerics=Numerics("float32", "cpu").record(ENCODER, GEOMETRY),
    format={"family": "vit", "format": 1},
)
KEY = RECORD.key
CHANGES = {
    "encoder_id": ["f" * 64],
    "image_list_id": ["j" * 64],
    "geometry": [
        {**RECORD.geometry, "size": [48, 32]},
        {**RECORD.geometry, "decoder": "other"},
        {**RECORD.geometry, "view": None},
        {**RECORD.geometry, "view": {"number": 1, "augment": "crop-flip", "seed": 0}},
        {**RECORD.geometry, "view": {"number": 0, "augment": "crop-flip", "seed": 1}},
    ],
    "normalisation": [{**RECORD.normalisation, "std": [0.2, 0.2, 0.21]}, {**RECORD.normalisation, "channels": "bgr"}],
    "output": ["tokens[-1].max"],
    "numerics": [
        Numerics("bfloat16", "cpu").record(ENCODER, GEOMETRY),
        Numerics("float32", "cuda").record(ENCODER, GEOMETRY),
        Numerics("float32", "cpu", compile=True).record(ENCODER, GEOMETRY),
        Numerics("float32", "cuda", compile=True).record(ENCODER, GEOMETRY),
        {**RECORD.numerics, "storage": "float32"},
    ],
    "format": [{"family": "vit", "format": 2}, {"family": "resnet", "format": 1}],
}


@pytest.fixture
def cache(tmp_path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def small_slices(monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "SLICE_ROWS", 4)


def fill(cache: FeatureCache, values: np.ndarray, key: str = KEY) -> None:
    for start, stop in slice_bounds(len(values)):
        cache.write_slice(key, start, values[start:stop], {})


# Keys


def test_every_field_is_tried():
    assert set(CHANGES) == {field.name for field in fields(EntryRecord)}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in CHANGES.items() for value in values])
def test_a_changed_field_misses(cache, field, value):
    changed = replace(RECORD, **{field: value})
    assert changed.key != RECORD.key
    fill(cache, np.ones((3, 2), dtype=np.float32))
    assert cache.has_slice(RECORD.key, 0)
    assert not cache.has_slice(changed.key, 0)
    assert cache.missing_slices(changed.key, 3) == [(0, 3)]


def test_the_order_of_keys_does_not_matter():
    backwards = {name: dict(reversed(value.items())) for name in CHANGES if isinstance(value := getattr(RECORD, name), dict)}
    assert set(backwards) == {"geometry", "normalisation", "numerics", "format"}
    assert replace(RECORD, **backwards).key == RECORD.key
    assert replace(RECORD, geometry={**RECORD.geometry, "size": (32, 48)}).key == RECORD.key


def test_the_layout_of_the_files_is_in_the_key(monkeypatch):
    before = RECORD.key
    monkeypatch.setattr(cache_module, "LAYOUT", cache_module.LAYOUT + 1)
    assert before != RECORD.key
    monkeypatch.undo()
    monkeypatch.setattr(cache_module, "SLICE_ROWS", 2 * SLICE_ROWS)
    assert before != RECORD.key


def test_what_the_key_hashes_lies_beside_the_values_in_clear(cache):
    cache.prepare(RECORD, 700, {"encoder": "dino"})
    path = cache.entry_folder(RECORD.key) / "record.json"
    before = path.stat().st_mtime_ns
    cache.prepare(RECORD, 700)
    assert path.stat().st_mtime_ns == before
    text = read_json(path)
    assert (text.pop("kind"), text.pop("n_rows"), text.pop("about")) == ("feature_entry", 700, {"encoder": "dino"})
    assert hash_record(text) == RECORD.key
    words = json.dumps(text)
    assert str(cache.folder) not in words
    assert "batch" not in words
    assert "path" not in words


# Slices


def test_slice_bounds():
    assert slice_bounds(0) == []
    assert slice_bounds(1) == [(0, 1)]
    assert slice_bounds(512) == [(0, 512)]
    assert slice_bounds(1300) == [(0, 512), (512, 1024), (1024, 1300)]


def test_missing_and_complete(cache, small_slices):
    values = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    assert cache.missing_slices(KEY, 10) == [(0, 4), (4, 8), (8, 10)]
    cache.write_slice(KEY, 4, values[4:8], {5: "five is broken"})
    assert cache.missing_slices(KEY, 10) == [(0, 4), (8, 10)]
    assert [cache.has_slice(KEY, start) for start in (0, 4, 8)] == [False, True, False]
    with pytest.raises(DamagedSlices) as caught:
        cache.slices(KEY, 10)
    assert caught.value.bounds == ((0, 4), (8, 10))
    assert cache.has_slice(KEY, 4)
    cache.write_slice(KEY, 0, values[:4], {})
    cache.write_slice(KEY, 8, values[8:], {9: "nine too"})
    assert cache.missing_slices(KEY, 10) == []
    rows = MappedRows(cache.slices(KEY, 10))
    assert rows.shape == (3,)
    assert len(rows) == 10
    assert rows.bad == {5: "five is broken", 9: "nine too"}
    assert np.array_equal(rows.read(np.arange(10)).numpy(), values.astype(np.float16))
    assert rows.nbytes == cache.size() == 10 * 3 * 2


def test_killed_between_the_two_files(cache):
    """A killed writer leaves the values, or a temporary file, but no header: the slice is not there."""
    fill(cache, np.ones((3, 2), dtype=np.float32))
    header = cache.entry_folder(KEY) / "0000000000.json"
    content = header.read_text()
    header.rename(header.with_name(".tmp-0123456789ab-0000000000.json"))
    assert not cache.has_slice(KEY, 0)
    assert cache.missing_slices(KEY, 3) == [(0, 3)]
    # A header without values cannot be left by a kill, but by a person or a full disk.
    header.write_text(content)
    header.with_suffix(".bin").unlink()
    assert not cache.has_slice(KEY, 0)
    assert cache.missing_slices(KEY, 3) == [(0, 3)]
    fill(cache, np.full((3, 2), 2.0, dtype=np.float32))
    assert (MappedRows(cache.slices(KEY, 3)).read(np.arange(3)) == 2).all()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "header cut", "header gone", "header other", "header list"])
def test_damage_is_found_named_and_removed(cache, small_slices, damage):
    values = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    fill(cache, values)
    data = cache.entry_folder(KEY) / "0000000004.bin"
    header = data.with_suffix(".json")
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[7] ^= 1
        data.write_bytes(content)
    elif damage == "cut":
        data.write_bytes(content[:-2])
    elif damage == "empty":
        data.write_bytes(b"")
    elif damage == "gone":
        data.unlink()
    elif damage == "header gone":
        header.unlink()
    else:
        header.write_text({"header cut": header.read_text()[:40], "header other": '{"stop": 8}', "header list": "[1]"}[damage])
    with pytest.raises(DamagedSlices, match=r"0000000004\.bin") as caught:
        cache.slices(KEY, 10)
    assert caught.value.bounds == ((4, 8),)
    assert cache.remove_damaged(KEY, caught.value.bounds) == [(4, 8)]
    assert cache.missing_slices(KEY, 10) == [(4, 8)]
    cache.write_slice(KEY, 4, values[4:8], {})
    assert cache.remove_damaged(KEY, caught.value.bounds) == []  # for who comes later
    assert np.array_equal(MappedRows(cache.slices(KEY, 10)).read(np.arange(10)).numpy(), values.astype(np.float16))


def test_all_damage_is_found_at_once(cache, small_slices):
    fill(cache, np.ones((10, 3), dtype=np.float32))
    for start in (0, 8):
        (cache.entry_folder(KEY) / f"{start:010d}.bin").write_bytes(b"")
    with pytest.raises(DamagedSlices, match="1 more of this entry") as caught:
        cache.slices(KEY, 10)
    cache.remove_damaged(KEY, caught.value.bounds)
    assert cache.missing_slices(KEY, 10) == [(0, 4), (8, 10)]


# Values


def test_a_slice_that_would_overflow_is_float32(cache, small_slices):
    values = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    values[5] = [65510.25, -1e30, 1e-7]
    fill(cache, values)
    slices = cache.slices(KEY, 8)
    assert [piece.dtype for piece in slices] == ["float16", "float32"]
    rows = MappedRows(slices)
    assert rows.dtype == torch.float32
    assert rows.nbytes == 4 * 3 * 2 + 4 * 3 * 4 == cache.size()
    read = rows.read(np.array([5, 0, 6, 5]))
    assert read.dtype == torch.float32
    assert np.array_equal(read[0].numpy(), values[5])
    assert np.array_equal(read[3].numpy(), values[5])
    # Rows that fit are rounded the same, whatever their neighbours.
    assert np.array_equal(read[1:3].numpy(), values[[0, 6]].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("value", "dtype"), [(65504.0, np.float16), (-65504.0, np.float16), (65505.0, np.float32), (-65505.0, np.float32), (np.nan, np.float32)]
)
def test_where_float16_ends(value, dtype):
    stored = as_stored(np.array([[0.1, value]], dtype=np.float32))
    assert stored.dtype == dtype
    assert np.array_equal(stored[0, 1].astype(np.float32), np.float32(value), equal_nan=True)


def test_ragged_rows_come_back(cache, small_slices):
    random = np.random.default_rng(0)
    shapes = [(2, 3, 4), (2, 1, 1), (2, 5, 2), (2, 3, 4), (0,), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    values = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    values[2][0, 0, 0] = 1e6
    for start, stop in slice_bounds(9):
        here = values[start:stop]
        same = len({row.shape for row in here}) == 1  # as a pass hands them over
        cache.write_slice(KEY, start, np.stack(here) if same else here, {4: "broken"})
    rows = MappedRows(cache.slices(KEY, 9))
    assert rows.shape is None
    assert len(rows) == 9
    for index, value in enumerate(values):
        read = rows.read_one(index)
        assert tuple(read.shape) == value.shape
        expected = value if index == 2 else value.astype(np.float16).astype(np.float32)
        assert np.array_equal(read.float().numpy(), expected)
    with pytest.raises(TypeError):
        rows.read(np.array([0]))
    assert rows.nbytes == cache.size()


def test_reasons_that_are_not_unicode(cache):
    reason = os.fsdecode(b"caf\xe9.jpg: cannot be decoded")
    cache.write_slice(KEY, 0, np.ones((2, 2), dtype=np.float32), {1: reason})
    assert MappedRows(cache.slices(KEY, 2)).bad == {1: reason}


def test_more_slices_than_files_may_be_open(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "SLICE_ROWS", 2)
    values = np.arange(600, dtype=np.float32).reshape(300, 2)
    fill(cache, values)
    before = len(os.listdir("/proc/self/fd"))
    rows = MappedRows(cache.slices(KEY, 300))
    order = np.random.default_rng(0).permutation(300)
    assert np.array_equal(rows.read(order).numpy(), values[order])
    assert len(os.listdir("/proc/self/fd")) - before <= 64


# The folder


def test_size_counts_values_only(cache):
    assert cache.size() == 0
    cache.prepare(RECORD, 3)
    fill(cache, np.ones((3, 2), dtype=np.float32))
    (cache.entry_folder(KEY) / ".tmp-0123456789ab-0000000000.bin").write_bytes(b"x" * 1000)
    assert cache.size() == 12


def test_a_cache_is_a_path(cache):
    fill(cache, np.ones((3, 2), dtype=np.float32))
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.has_slice(KEY, 0)
    copy.remove()
    assert not cache.has_slice(KEY, 0)
    cache.remove()  # again: nothing there, nothing wrong


def test_check_writable(cache, tmp_path, monkeypatch):
    fill(cache, np.ones((3, 2), dtype=np.float32))
    old = cache.entry_folder(KEY) / ".tmp-0123456789ab-0000000000.bin"
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    cache.check_writable()
    assert not old.exists()
    assert [path.name for path in cache.folder.iterdir()] == [KEY[:2]]

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="choose a folder you may write to"):
        cache.check_writable()


# --- a file is read once by a process -------------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files of values that were read."""
    seen: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: seen.append(path.name) or real(path) if path.suffix == ".bin" else real(path))
    monkeypatch.setattr(cache_module, "_intact", {})
    return seen


def aged(cache: FeatureCache, start: int, seconds: float = 60.0) -> Path:
    """A slice's file, as if it had been written that long ago."""
    path = cache.slice_path(KEY, start)
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_values_are_read_and_checked_once(cache, small_slices, read):
    cache.write_slice(KEY, 0, np.ones((4, 3), np.float32), {1: "broken"})
    cache.write_slice(KEY, 4, np.full((4, 3), 2, np.float32), {})
    paths = [aged(cache, start) for start in (0, 4)]
    first = cache.slices(KEY, 8)
    assert read == [path.name for path in paths]
    again = FeatureCache(cache.folder).slices(KEY, 8)  # the next job's
    assert len(read) == 2
    assert again == first
    assert cache.read_slice(KEY, 0, 4) == first[0]  # who verifies a cache reads it
    assert len(read) == 3


def test_a_file_that_has_changed_is_checked_again(cache, small_slices, read):
    for start in (0, 4):
        cache.write_slice(KEY, start, np.ones((4, 3), np.float32), {})
    path = aged(cache, 0)
    aged(cache, 4)
    cache.slices(KEY, 8)
    read.clear()
    with path.open("r+b") as file:  # of the same size, in the same place
        file.write(b"other")
    aged(cache, 0, 30.0)
    with pytest.raises(DamagedSlices, match=path.name):
        cache.slices(KEY, 8)
    assert read == [path.name]
    cache.write_slice(KEY, 0, np.full((4, 3), 5, np.float32), {})  # made again
    assert float(MappedRows(cache.slices(KEY, 8)).read(np.array([0]))[0, 0]) == 5


def test_other_checksums_of_a_known_file_are_damage(cache, small_slices, read):
    """The header counts anew each time."""
    cache.write_slice(KEY, 0, np.ones((4, 3), np.float32), {})
    aged(cache, 0)
    cache.slices(KEY, 4)
    header = cache.slice_path(KEY, 0, "json")
    header.write_text(header.read_text().replace('"crc32": ', '"crc32": 1'))
    with pytest.raises(DamagedSlices):
        cache.slices(KEY, 4)


def test_a_file_that_was_just_written_may_change_without_a_trace_and_is_read_again(cache, small_slices, read):
    cache.write_slice(KEY, 0, np.ones((4, 3), np.float32), {})
    cache.slices(KEY, 4)
    cache.slices(KEY, 4)
    assert len(read) == 2


@pytest.mark.parametrize("at", ["bin", "json"])
def test_a_slice_that_finds_the_disk_full_leaves_its_room_to_others(cache, monkeypatch, at):
    real = os.replace

    def full(source, target):
        if str(target).endswith(at):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFull, match="the disk is full"):
        cache.write_slice(KEY, 0, np.ones((3, 2), dtype=np.float32), {})
    assert list(cache.entry_folder(KEY).iterdir()) == []
    assert list(cache.no_room) == [KEY]
    assert "the disk is full" in cache.no_room[KEY]
