"""Decoded images that are kept: the pixels of the loader, by whichever thread; what is missing or damaged is decoded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from virb.data.images import FileImages
from virb.data.loader import load_batches
from virb.data.transforms import Geometry, View
from virb.errors import BadImage, ViRBError
from virb.features.cache import SLICE_ROWS, FeatureCache
from virb.features.decoded import DecodedImages, Keeper, Pixels, can_keep, pixel_record
from virb.features.encoding import Numerics, PassOptions
from virb.features.passes import run_slices

SQUASH, CENTRE, NATIVE = Geometry((12, 16), "squash"), Geometry((8, 8), "shorter", "center", 0.9), Geometry(None, "none", "none")
CPU = torch.device("cpu")
OPTIONS = PassOptions(Numerics("float32", "cpu"), 32, 0)
N, BAD = SLICE_ROWS + 40, (7, SLICE_ROWS + 3)


class Files(FileImages):
    """Counts what is read."""

    reads: list[int]

    def read(self, i: int) -> Image.Image:
        self.reads.append(i)
        return super().read(i)


@pytest.fixture
def images(tmp_path: Path) -> Files:
    names = [f"{i:04}.png" for i in range(N)]
    random = np.random.default_rng(0)
    for i, name in enumerate(names):
        if i in BAD:
            (tmp_path / name).write_bytes(b"no image")
        else:
            Image.fromarray(random.integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8)).save(tmp_path / name)
    found = Files("files", tmp_path, names)
    found.reads = []
    return found


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def keep(images: Files, cache: FeatureCache, *geometries: Geometry, first: int = 0) -> dict[Geometry, DecodedImages]:
    records = {geometry: pixel_record(images.identity(), geometry) for geometry in geometries}
    for record in records.values():
        cache.prepare(record, N)
    for start in range(first, N, SLICE_ROWS):
        stop = min(start + SLICE_ROWS, N)
        report = run_slices(
            images, [(start, stop)], [], {}, cache, CPU, OPTIONS, pixels=Pixels(keep={g: r.key for g, r in records.items()})
        )
        assert (report.decoded, report.notes) == (stop - start, [])
    return {geometry: DecodedImages(cache, record.key, N, geometry.size or (0, 0)) for geometry, record in records.items()}


def pixels(images: Files, geometries: tuple[Geometry, ...], kept: dict[Geometry, DecodedImages], threads: int = 0) -> tuple[dict, dict]:
    rows = np.random.default_rng(1).permutation(N)
    batches = list(load_batches(images, rows, geometries, 50, threads, "skip", kept=kept))
    assert np.array_equal(np.concatenate([batch.rows for batch in batches]), rows)
    found = {g: torch.cat([batch.pixels[g] for batch in batches]) for g in geometries}
    return found, {row: reason for batch in batches for row, reason in batch.bad.items()}


@pytest.mark.parametrize("threads", [0, 3])
def test_the_same_pixels_and_the_same_bad_images_and_nothing_is_read(images: Files, cache: FeatureCache, threads: int) -> None:
    kept = keep(images, cache, SQUASH, CENTRE)
    assert len(images.reads) == N
    images.reads.clear()
    found, bad = pixels(images, (SQUASH, CENTRE), kept, threads)
    assert images.reads == []
    expected, expected_bad = pixels(images, (SQUASH, CENTRE), {})
    assert bad == expected_bad
    assert sorted(bad) == sorted(BAD)
    for geometry in (SQUASH, CENTRE):
        assert torch.equal(found[geometry], expected[geometry])
        assert kept[geometry].bad() == expected_bad
        assert kept[geometry].is_complete()


def test_a_bad_image_is_an_error_with_the_words_of_the_decoder(images: Files, cache: FeatureCache) -> None:
    kept = keep(images, cache, SQUASH)
    with pytest.raises(BadImage) as direct:
        list(load_batches(images, [7], [SQUASH], 4))
    with pytest.raises(BadImage) as again:
        list(load_batches(images, [7], [SQUASH], 4, kept=kept))
    assert str(again.value) == str(direct.value)


def test_an_image_is_read_for_the_geometries_that_are_not_kept(images: Files, cache: FeatureCache) -> None:
    kept = keep(images, cache, SQUASH)
    images.reads.clear()
    found, _ = pixels(images, (SQUASH, CENTRE), kept)
    assert len(images.reads) == N - len(BAD)  # those are known to be bad
    expected, _ = pixels(images, (SQUASH, CENTRE), {})
    assert torch.equal(found[SQUASH], expected[SQUASH])
    assert torch.equal(found[CENTRE], expected[CENTRE])


def test_what_is_not_there_is_decoded_and_counted(images: Files, cache: FeatureCache) -> None:
    kept = keep(images, cache, SQUASH, first=SLICE_ROWS)
    assert not kept[SQUASH].is_complete()
    images.reads.clear()
    counted: list[int] = []
    batches = list(load_batches(images, range(N), [SQUASH], 64, 2, "skip", counted.append, kept=kept))
    assert sorted(images.reads) == list(range(SLICE_ROWS))
    assert sum(counted) == SLICE_ROWS
    assert torch.equal(torch.cat([b.pixels[SQUASH] for b in batches]), torch.cat([b.pixels[SQUASH] for b in _plain(images)]))


def _plain(images: Files) -> list:
    return list(load_batches(images, range(N), [SQUASH], 64, 0, "skip"))


@pytest.mark.parametrize("harm", ["byte", "short", "shape"])
def test_a_damaged_slice_is_decoded_and_made_again_by_the_next_run(images: Files, cache: FeatureCache, harm: str) -> None:
    kept = keep(images, cache, SQUASH)
    path = cache.slice_path(pixel_record(images.identity(), SQUASH).key, 0)
    content = bytearray(path.read_bytes())
    if harm == "byte":
        content[1000] ^= 1
    elif harm == "short":
        del content[-3:]
    if harm == "shape":
        kept = {SQUASH: DecodedImages(cache, pixel_record(images.identity(), SQUASH).key, N, (16, 12))}
    path.write_bytes(bytes(content))
    found, bad = pixels(images, (SQUASH,), kept, 2)
    expected, expected_bad = pixels(images, (SQUASH,), {})
    assert torch.equal(found[SQUASH], expected[SQUASH])
    assert bad == expected_bad
    assert kept[SQUASH].bad() is None
    assert (0, SLICE_ROWS) in cache.missing_slices(pixel_record(images.identity(), SQUASH).key, N)


def test_who_only_looks_leaves_all_as_it_is(images: Files, cache: FeatureCache) -> None:
    keep(images, cache, SQUASH)
    key = pixel_record(images.identity(), SQUASH).key
    record, damaged = cache.entry_folder(key) / "record.json", cache.slice_path(key, SLICE_ROWS)
    damaged.write_bytes(b"")
    for use in (False, True):
        os.utime(record, (1, 1))
        kept = DecodedImages(cache, key, N, (12, 16), use=use)
        assert isinstance(kept.find(0), np.ndarray)
        assert kept.find(SLICE_ROWS) is None
        assert (record.stat().st_mtime > 1) == use
        assert cache.has_slice(key, SLICE_ROWS) != use


def test_which_images_are_bad_is_not_known_where_a_slice_is_damaged(images: Files, cache: FeatureCache) -> None:
    """Who asks before anything is read must not be told of the other slices alone."""
    kept = keep(images, cache, SQUASH)
    path = cache.slice_path(pixel_record(images.identity(), SQUASH).key, 0)
    path.write_bytes(path.read_bytes()[:-3])
    assert kept[SQUASH].is_complete()  # by the names of its files
    assert kept[SQUASH].bad() is None


def test_keys() -> None:
    """One for each list and geometry, and never that of an entry of features."""
    keys = {pixel_record(list_id, geometry).key for list_id in ("a" * 64, "b" * 64) for geometry in (SQUASH, CENTRE)}
    assert len(keys) == 4
    assert can_keep(SQUASH)
    assert not can_keep(NATIVE)
    assert not can_keep(Geometry((8, 8), view=View(1)))


def test_a_full_disk_costs_the_store_and_nothing_else(images: Files, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ViRBError("the disk is full")

    monkeypatch.setattr(FeatureCache, "write_slice", full)
    keeper = Keeper({SQUASH: "key"}, 0, 4)
    for batch in load_batches(images, range(4), [SQUASH], 3):
        keeper.see(batch)
    assert keeper.write({}, 0.0, cache) == ["decoded images are not kept: the disk is full"]
