"""Packed datasets: they read as the folder does, pixel for pixel and key for key, also with shards that are cut off or damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from virb.data.datasets import load_dataset
from virb.data.images import Dataset, FileImages, Samples
from virb.data.loader import load_batches
from virb.data.packed import ARRAYS, INDEX, pack, packed_folder
from virb.data.sequences import FileSequence
from virb.data.subsets import subset
from virb.data.tars import TarImages, _OpenFiles
from virb.data.transforms import Geometry
from virb.errors import UnreadImage, UserError, ViRBError
from virb.plan.samples import samples_id

SQUASH = Geometry((16, 16), "squash")
ODD = ["a.b.c.jpg", "-rf.png", "käse.JPEG", "white space.jpg"]  # names that tar readers and shells stumble over


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    random = np.random.default_rng(0)
    for split, n in (("train", 9), ("test", 3)):
        for cls in ("cat", "dog.v2"):
            folder = root / split / cls
            folder.mkdir(parents=True)
            for name in [*ODD, *(f"{i}.jpg" for i in range(n))]:
                image = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
                image.save(folder / name, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    return root


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Path:
    pack(load_dataset("folder", photos), tmp_path / "packed", shard_bytes=8000)
    return tmp_path / "packed"


def test_both_forms_are_one_dataset(photos: Path, packed: Path) -> None:
    folder, tars = load_dataset("folder", photos), load_dataset("folder", packed)
    assert (tars.name, tars.classes, tars.note) == (folder.name, folder.classes, folder.note)
    for split, images in folder.lists.items():
        other = tars.lists[split]
        assert isinstance(other, TarImages)
        assert len(other.shards) > 2
        assert other.identity() == images.identity()
        assert other.record() == images.record()
        assert list(other.ids) == list(images.ids)
        for i in range(len(images)):
            np.testing.assert_array_equal(np.asarray(other.read(i)), np.asarray(images.read(i)))
            assert other.image_size(i) == images.image_size(i) == (30, 20)
        assert samples_id(tars.samples[split], "class") == samples_id(folder.samples[split], "class")
        rows = np.array([0, 3, 7])
        part = subset(other, rows)
        assert part.identity() == subset(images, rows).identity()
        np.testing.assert_array_equal(np.asarray(part.read(2)), np.asarray(images.read(7)))


def test_shards_are_plain_tars_in_the_convention(packed: Path, photos: Path) -> None:
    images = load_dataset("folder", photos).lists["train"]
    labels = load_dataset("folder", photos).samples["train"].targets["class"]
    keys = []
    for path in sorted(packed.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in sorted(members):
            key, _, ending = name.partition(".")
            assert key.isdigit()
            if ending == "cls":
                assert int(members[name]) == labels[int(key)]
            else:
                keys.append(int(key))
                assert members[name] == (photos / images.paths[int(key)]).read_bytes()
                assert f"{key}.cls" in members
    assert keys == list(range(len(images)))


def test_packing_twice_gives_equal_bytes(photos: Path, packed: Path, tmp_path: Path) -> None:
    pack(load_dataset("folder", photos), tmp_path / "again", shard_bytes=8000)
    names = sorted(path.name for path in packed.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((packed / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def paint(path: Path, value: int) -> None:
    """Other pixels in as many bytes."""
    Image.new("RGB", (9, 7), (value, value, value)).save(path)


@pytest.fixture
def bitmaps(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for cls in ("cat", "dog"):
            (tmp_path / "bitmaps" / split / cls).mkdir(parents=True)
            for i in range(3):
                paint(tmp_path / "bitmaps" / split / cls / f"{i}.bmp", 200 + i)
    return tmp_path / "bitmaps"


def test_a_file_that_changes_while_it_is_packed(bitmaps: Path, tmp_path: Path) -> None:
    hurt = bitmaps / "train" / "cat" / "1.bmp"

    def tell(what: str, done: int, total: int) -> None:
        if done == 4:
            os.utime(bitmaps / "train" / "cat" / "0.bmp", (1, 1))  # the same content, later
            paint(hurt, 3)

    with pytest.raises(ViRBError, match=r"train/cat/1\.bmp of train changed while it was packed; pack again"):
        pack(load_dataset("folder", bitmaps), tmp_path / "out", tell=tell)
    assert not (tmp_path / "out" / INDEX).exists()
    pack(load_dataset("folder", bitmaps), tmp_path / "out", tell=tell)  # it changes to what it is


def test_packing_other_images_of_equal_sizes_again_is_told(bitmaps: Path, tmp_path: Path) -> None:
    told: list[str] = []
    first = pack(load_dataset("folder", bitmaps), tmp_path / "out", force=True, warn=told.append)
    pack(load_dataset("folder", bitmaps), tmp_path / "out", force=True, warn=told.append)
    assert told == []
    for i in (0, 2):
        paint(bitmaps / "train" / "dog" / f"{i}.bmp", 0)
    again = pack(load_dataset("folder", bitmaps), tmp_path / "out", force=True, warn=told.append)
    assert again.lists["train"].identity() == first.lists["train"].identity()
    assert len(told) == 1
    assert told[0].startswith("2 images of train have another content than in the earlier pack under the same path and size")
    (bitmaps / "test" / "dog" / "0.bmp").write_bytes(b"another size")
    pack(load_dataset("folder", bitmaps), tmp_path / "out", force=True, warn=told.append)
    assert len(told) == 1  # that has another identity


def test_a_cut_or_damaged_shard_is_no_bad_image_and_costs_its_images_only(packed: Path) -> None:
    images = load_dataset("folder", packed).lists["train"]
    assert isinstance(images, TarImages)
    shards = sorted(packed.glob("train-*.tar"))
    cut, hurt = images.places["shard"] == 0, 2
    with open(shards[0], "r+b") as file:
        file.truncate(700)
    place = int(images.places["offset"][images.places["shard"] == 1][hurt]) + 300
    row = int(np.flatnonzero(images.places["shard"] == 1)[hurt])
    with open(shards[1], "r+b") as file:
        file.seek(place)
        file.write(b"\xff")
    images = load_dataset("folder", packed).lists["train"]
    bad = {}
    for i in range(len(images)):
        try:
            (batch,) = load_batches(images, [i], [SQUASH], 4, 3, on_bad_image="skip")
            assert not batch.bad
        except UnreadImage as error:
            bad[i] = str(error)
    assert sorted(bad) == sorted({*np.flatnonzero(cut).tolist(), row})
    assert "train-000000.tar: train/cat/-rf.png: the shard is cut off" in bad[0]
    assert "the shard is damaged there" in bad[row]
    (packed / "train-000001.tar").unlink()
    with pytest.raises(UnreadImage, match="does not exist"):
        subset(images, np.arange(len(images))).read(row)
    with pytest.raises(UserError, match=r"1 of \d+ shards are not in .*such as train-000001.tar"):
        load_dataset("folder", packed)


def test_boxes_and_repeats_are_written_once(photos: Path, tmp_path: Path) -> None:
    paths = ["train/cat/0.jpg", "train/cat/1.jpg", "train/cat/0.jpg"]
    images = FileImages("all", photos, paths, np.array([[0, 0, 9, 9], [1, 1, 7, 8], [2, 3, 9, 20]]))
    dataset = Dataset("mine", {"odd / name": images}, {"train": Samples.from_rows(["x"], "odd / name", [[2, 0]], units=["scene"])}, {})
    found = pack(dataset, tmp_path / "out")
    other = found.lists["odd / name"]
    assert other.identity() == images.identity()
    assert list(other.ids) == ["train/cat/0.jpg", "train/cat/1.jpg", "train/cat/0.jpg#2"]
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(other.read(i)), np.asarray(images.read(i)))
    (shard,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(shard) as tar:
        assert tar.getnames() == ["000000000.jpg", "000000001.jpg"]
    assert found.samples["train"].rows(0).tolist() == [2, 0]
    assert found.samples["train"].units.tolist() == ["scene"]


def test_what_cannot_be_packed(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="digits does not lie in image files"):
        pack(load_dataset("digits"), tmp_path / "out")
    images = FileImages("train", photos, ["train/cat/0.jpg"])
    masks = FileSequence(photos, ["train/cat/0.jpg"], len)
    with pytest.raises(UserError, match="the target 'mask' of train is no number"):
        pack(Dataset("m", {"train": images}, {"train": Samples.one_per_image(images, {"mask": masks})}), tmp_path / "out")
    gone = FileImages("train", photos, ["train/cat/gone.jpg"])
    with pytest.raises(UserError, match=r"gone\.jpg cannot be read"):
        pack(Dataset("m", {"train": gone}, {"train": Samples.one_per_image(gone)}), tmp_path / "out2")
    assert packed_folder("m", tmp_path / "out2") is None


def test_nothing_of_somebody_else_is_touched(photos: Path, packed: Path, tmp_path: Path) -> None:
    dataset = load_dataset("folder", photos)
    with pytest.raises(UserError, match="--force packs again"):
        pack(dataset, packed)
    before = len(list(packed.glob("*.tar")))
    pack(dataset, packed, force=True)
    assert len(list(packed.glob("*.tar"))) == 2 < before
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"other files \(train\.tar\)"):
        pack(dataset, tmp_path / "data", force=True)
    assert (tmp_path / "data" / "train.tar").read_bytes() == b"precious"


def test_an_index_that_lies(packed: Path, tmp_path: Path) -> None:
    record = json.loads((packed / INDEX).read_text())
    for change, message in (
        ({"version": 2}, "of version 2"),
        ({"lists": {"train": {**record["lists"]["train"], "shards": ["../photos/x.tar"]}}}, "is not what virb data pack writes"),
        ({"splits": {"train": {"list": "train"}}}, "is not what virb data pack writes"),
    ):
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(packed, other)
        (other / INDEX).write_text(json.dumps({**record, **change}))
        with pytest.raises(UserError, match=message):
            load_dataset("folder", other)
    with open(packed / ARRAYS, "r+b") as file:
        file.seek(2000)
        file.write(b"\x01\x02")
    with pytest.raises(UserError, match="is damaged, or is not that of"):
        load_dataset("folder", packed)
    with pytest.raises(UserError, match="no option 'seed'"):
        load_dataset("folder", packed, seed=3)


def test_a_registered_dataset_is_found_packed_where_its_folder_would_be(photos: Path, tmp_path: Path) -> None:
    folder = load_dataset("folder", photos)
    pets = Dataset("pets", folder.lists, folder.samples, folder.classes, "37 breeds")
    pack(pets, tmp_path / "data" / "oxford-iiit-pet")
    assert packed_folder("pets", tmp_path / "data") is not None
    assert load_dataset("pets", tmp_path / "data").note == "37 breeds"
    assert packed_folder("dtd", tmp_path / "data" / "oxford-iiit-pet") is None


def test_a_list_travels_to_workers_and_is_read_by_threads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virb.data.tars._MOST_OPEN", 1)  # so that shards are closed while others read
    images = load_dataset("folder", packed).lists["train"]
    expected = [np.asarray(images.read(i)) for i in range(len(images))]
    copy = pickle.loads(pickle.dumps(images))
    assert copy.identity() == images.identity()
    wrong: list[int] = []

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, len(images), 60).tolist():
            if not np.array_equal(np.asarray(copy.read(i)), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert isinstance(copy._files, _OpenFiles)
    assert len(copy._files._files) == 1
