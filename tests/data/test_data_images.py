from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from virb.data.images import ArrayImages, Dataset, FileImages, RenderedImages, Samples
from virb.data.sequences import FileSequence, LazySequence, PackedStrings
from virb.errors import BadImage, UnreadImage

RANDOM = np.random.default_rng(5)


def square(i):
    return np.full((4, 4, 3), i, dtype=np.uint8)


def identity_of(images):
    return images.identity()


@pytest.fixture
def files(tmp_path):
    root = tmp_path / "root"
    paths = ["b/1.png", "a/2.png", "a/ü 3.png"]
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (8 + number, 6, 3), dtype=np.uint8)).save(root / path)
    return root, paths


def test_packed_strings_are_a_sequence_of_what_went_in():
    texts = ["", "a/b.jpg", "ü/日.png", os.fsdecode(b"not\xffutf8.jpg")]
    packed = pickle.loads(pickle.dumps(PackedStrings(texts)))
    assert list(packed) == texts
    assert packed[-1] == texts[-1]
    assert packed[1:3] == texts[1:3]
    assert packed[np.int64(1)] == "a/b.jpg"
    with pytest.raises(IndexError):
        packed[4]


def test_a_million_paths_stay_small():
    images = FileImages("train", "/data", [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(100_000)])
    held = len(pickle.dumps(images))
    assert held < 50 * len(images)  # text of some 30 bytes and an offset, once: not a Python string each
    assert images.ids is images.paths


def test_file_images_read_and_have_their_paths_as_ids(files):
    root, paths = files
    images = FileImages("all", root, paths)
    assert list(images.ids) == paths
    assert len(images) == 3
    with Image.open(root / paths[1]) as expected:
        np.testing.assert_array_equal(np.asarray(images.read(1)), np.asarray(expected))


def test_boxes_crop_and_repeated_paths_get_numbers(files):
    root, paths = files
    boxes = np.array([[0, 0, 3, 3], [1, 2, 5, 8], [0, 0, 1, 1]])
    images = FileImages("boxes", root, [paths[0], paths[0], paths[1]], boxes)
    assert list(images.ids) == ["b/1.png", "b/1.png#2", "a/2.png"]
    with Image.open(root / paths[0]) as whole:
        np.testing.assert_array_equal(np.asarray(images.read(1)), np.asarray(whole)[2:8, 1:5])
    with pytest.raises(BadImage, match=r"2\.png: box"):
        FileImages("outside", root, [paths[1]], np.array([[50, 50, 60, 60]])).read(0)


def test_a_file_that_was_never_there_is_bad_and_one_that_went_away_is_unread(files):
    root, paths = files
    images = FileImages("some", root, [*paths, "none.png"])
    identity = images.identity()
    (root / paths[0]).rename(root / "away.png")
    copy = pickle.loads(pickle.dumps(images))
    for read in (copy.read, copy.image_size):
        with pytest.raises(UnreadImage, match="does not exist"):
            read(0)
        with pytest.raises(BadImage, match="does not exist") as caught:
            read(len(paths))
        assert not isinstance(caught.value, UnreadImage)
    (root / "away.png").rename(root / paths[0])
    assert copy.read(0).size == copy.image_size(0)[::-1]
    assert copy.identity() == identity


def test_identity_ignores_name_root_and_times(files, tmp_path):
    root, paths = files
    before = FileImages("one", root, paths).identity()
    os.utime(root / paths[0], (1, 1))
    root.rename(tmp_path / "elsewhere")
    after = FileImages("two", tmp_path / "elsewhere", paths)
    assert after.identity() == before
    assert len(before) == 64
    assert after.record() == {"kind": "files", "boxes": False, "count": 3, "image_list_id": before}


def test_identity_changes_with_size_path_order_box_and_count(files):
    root, paths = files
    boxes = np.array([[0.0, 0, 3, 3]] * 3)
    other = boxes.copy()
    other[2, 1] = 1
    seen = [
        FileImages("x", root, paths).identity(),
        FileImages("x", root, paths[::-1]).identity(),
        FileImages("x", root, paths[:2]).identity(),
        FileImages("x", root, paths, boxes).identity(),
        FileImages("x", root, paths, other).identity(),
    ]
    with open(root / paths[1], "ab") as file:
        file.write(b"x")
    seen.append(FileImages("x", root, paths).identity())
    (root / paths[1]).rename(root / "a/4.png")
    seen.append(FileImages("x", root, [paths[0], "a/4.png", paths[2]]).identity())
    (root / "a/4.png").unlink()
    seen.append(FileImages("x", root, [paths[0], "a/4.png", paths[2]]).identity())
    assert len(set(seen)) == len(seen)


def test_identity_is_computed_once_and_travels(files):
    root, paths = files
    images = FileImages("x", root, paths)
    before = images.identity()
    for path in paths:
        (root / path).unlink()
    assert pickle.loads(pickle.dumps(images)).identity() == before


def test_another_process_gets_the_same_identities(files):
    root, paths = files
    lists = [
        FileImages("x", root, paths),
        ArrayImages("y", np.arange(48, dtype=np.uint8).reshape(3, 4, 4), ["0", "1", "2"]),
        RenderedImages("z", ["a", "b"], square, {"generator": "square", "version": 1}),
    ]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(identity_of, lists)
    assert there == [images.identity() for images in lists]


def test_paths_must_be_relative():
    with pytest.raises(ValueError, match="relative"):
        FileImages("x", "/", ["/etc/a.png"])


def test_array_images():
    colours = RANDOM.integers(0, 256, (2, 5, 3, 3), dtype=np.uint8)
    images = ArrayImages("x", colours, ["a", "b"])
    np.testing.assert_array_equal(np.asarray(images.read(1)), colours[1])
    grey = ArrayImages("x", colours[..., 0], ["a", "b"])
    np.testing.assert_array_equal(np.asarray(grey.read(0)), np.repeat(colours[0, ..., :1], 3, axis=2))
    changed = colours.copy()
    changed[1, 4, 2, 2] ^= 1
    ids = {images.identity(), grey.identity(), ArrayImages("x", changed, ["a", "b"]).identity()}
    ids.add(ArrayImages("x", colours.reshape(2, 3, 5, 3), ["a", "b"]).identity())
    assert len(ids) == 4
    with pytest.raises(ValueError, match="float"):
        ArrayImages("x", colours / 255, ["a", "b"])
    with pytest.raises(ValueError, match="unique"):
        ArrayImages("x", colours, ["a", "a"])


def test_rendered_images():
    images = pickle.loads(pickle.dumps(RenderedImages("x", ["a", "b"], square, {"v": 1})))
    assert images.read(1).getpixel((0, 0)) == (1, 1, 1)
    boxed = RenderedImages("x", ["a", "b"], square, {"v": 1}, np.array([[0, 0, 2, 3], [0, 0, 4, 4]]))
    assert boxed.read(0).size == (2, 3)
    assert len({images.identity(), boxed.identity(), RenderedImages("x", ["a", "b"], square, {"v": 2}).identity()}) == 3
    with pytest.raises(IndexError):
        images.read(2)


def test_samples_of_one_image_each():
    images = RenderedImages("train", ["a", "b", "c"], square, {})
    samples = Samples.one_per_image(images, {"class": np.array([0, 1, 1])})
    assert samples.images == "train"
    assert list(samples.ids) == ["a", "b", "c"] == list(samples.units)
    assert samples.rows(2).tolist() == [2]
    assert samples.rows(-1).tolist() == [2]
    np.testing.assert_array_equal(samples.fixed_rows(), [[0], [1], [2]])
    assert samples.row_values.dtype == samples.row_offsets.dtype == np.int64


def test_samples_of_several_images():
    pairs = Samples.from_rows(["p", "q"], "train", np.array([[0, 1], [1, 2]]), units=["v", "v"])
    np.testing.assert_array_equal(pairs.fixed_rows(), [[0, 1], [1, 2]])
    assert list(pairs.units) == ["v", "v"]
    ragged = Samples.from_rows(["p", "q"], "train", [[0, 1, 2], np.array([2])])
    assert ragged.fixed_rows() is None
    assert [ragged.rows(i).tolist() for i in range(2)] == [[0, 1, 2], [2]]
    assert len(Samples.from_rows([], "train", [])) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "a"]}, "unique"),
        ({"units": ["a"]}, "units"),
        ({"row_offsets": [0, 0, 2]}, "row_offsets"),
        ({"row_offsets": [0, 1, 3]}, "row_offsets"),
        ({"targets": {"class": [1]}}, "targets"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change, message):
    fine = {"ids": ["a", "b"], "images": "x", "row_values": [0, 1], "row_offsets": [0, 1, 2]}
    with pytest.raises(ValueError, match=message):
        Samples(**{**fine, **change})


def test_targets_may_be_read_item_by_item():
    read = []
    lazy = LazySequence(lambda i: read.append(i) or i * i, 3)
    samples = Samples(["a", "b", "c"], "x", [0, 1, 2], [0, 1, 2, 3], {"square": lazy})
    assert read == []
    assert samples.targets["square"][np.int64(2)] == 4
    assert lazy[-1] == 4
    assert list(lazy) == [0, 1, 4]


def test_files_read_item_by_item_are_known_by_paths_and_sizes(tmp_path):
    def made(folder, paths=("a.txt", "b.txt"), **changes):
        (tmp_path / folder).mkdir()
        for path in ("a.txt", "b.txt"):
            (tmp_path / folder / path).write_text(changes.get(path[0], path))
        return FileSequence(tmp_path / folder, paths, lambda path: Path(path).read_text(), changes.get("record"))

    first = made("one")
    assert (list(first), first[-1], first[:1], len(first)) == (["a.txt", "b.txt"], "b.txt", ["a.txt"], 2)
    assert made("elsewhere").identity() == first.identity()
    others = [made("x", ("b.txt", "a.txt")), made("y", a="longer text"), made("z", record={"read": "v2"}), made("w", ("a.txt",))]
    assert len({first.identity(), *(other.identity() for other in others)}) == 5


def test_datasets_check_their_rows():
    images = RenderedImages("train", ["a", "b"], square, {})
    dataset = Dataset("d", {"train": images}, {"train": Samples.one_per_image(images)})
    assert dataset.images("train") is images
    with pytest.raises(ValueError, match="outside"):
        Dataset("d", {"train": images}, {"train": Samples.from_rows(["s"], "train", [[2]])})
    with pytest.raises(ValueError, match="test"):
        Dataset("d", {"train": images}, {"train": Samples.from_rows(["s"], "test", [[0]])})


def test_reading_images_needs_no_torch():
    code = "import sys, virb.data.images, virb.data.transforms; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
