"""Sets in torchvision's layout: its classes read the same miniature, and all labels are compared."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import scipy.io
from PIL import Image
from sets_support import Palette, check_planted, shown, shown_by, write

from virb.data.datasets import load_dataset
from virb.errors import BadImage, UnreadImage, UserError

NAMES = ("apple pie", "baklava", "cake")
palette = Palette(NAMES)


def test_food101(tmp_path):
    from torchvision.datasets import Food101

    folder = tmp_path / "food-101"
    lists = {"train": {name: [f"{name}/{i}" for i in (101, 7)] for name in reversed(NAMES)}, "test": {"cake": ["cake/9"]}}
    for split, content in lists.items():
        write(folder / f"meta/{split}.json", content)
        for images in content.values():
            for image in images:
                palette.put(folder / f"images/{image}.jpg", image.split("/")[0])
    dataset = load_dataset("food101", tmp_path)
    check_planted(dataset, palette)
    assert dataset.classes["class"] == NAMES
    assert dataset.samples["test"].targets["class"].tolist() == [2]
    assert shown(dataset, "train", palette) == shown_by(Food101(tmp_path, "train"), palette)
    write(folder / "meta/test.json", ["cake/9"])
    with pytest.raises(UserError, match=r"another version .* a mapping of classes to lists"):
        load_dataset("food101", tmp_path)


def flowers(root, ids, n_labels=8):
    """Labels 1, 2, 3, 1, 2, 3 ... of images 1, 2 ..."""
    folder = root / "flowers-102"
    for i in range(1, 9):
        palette.put(folder / f"jpg/image_{i:05d}.jpg", NAMES[(i - 1) % 3])
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[(i % 3) + 1 for i in range(n_labels)]], dtype=np.uint8)})
    scipy.io.savemat(folder / "setid.mat", {key: np.array([numbers], dtype=np.uint16) for key, numbers in ids.items()})
    return folder


def test_flowers102(tmp_path, monkeypatch):
    import torchvision.datasets.flowers102 as module

    folder = flowers(tmp_path, {"trnid": [3, 1, 2], "valid": [5, 8], "tstid": [4, 6, 7]})
    dataset = load_dataset("flowers102", tmp_path)
    monkeypatch.setattr(module, "check_integrity", lambda *args, **kwargs: True)
    for split in ("train", "val", "test"):
        assert shown(dataset, split, palette) == shown_by(module.Flowers102(tmp_path, split), palette)
    assert dataset.samples["train"].targets["class"].tolist() == [2, 0, 1]
    assert dataset.samples["val"].targets["class"].tolist() == [1, 1]
    assert len(dataset.classes["class"]) == 102
    flowers(tmp_path, {"trnid": [3, 1, 2], "valid": [5, 8], "tstid": [9]})
    with pytest.raises(UserError, match=r"setid.mat names image 9, but imagelabels.mat has 8 labels"):
        load_dataset("flowers102", tmp_path)
    scipy.io.savemat(folder / "setid.mat", {"trainid": [1]})
    with pytest.raises(UserError, match=r"setid.mat has no variable 'trnid'; it is of another version"):
        load_dataset("flowers102", tmp_path)
    write(folder / "setid.mat", "<html>not found</html>")
    with pytest.raises(UserError, match=r"setid.mat is not a MATLAB file that can be read"):
        load_dataset("flowers102", tmp_path)


def cars(folder, split, rows, with_class=True):
    fields = [
        ("bbox_x1", "O"),
        ("bbox_y1", "O"),
        ("bbox_x2", "O"),
        ("bbox_y2", "O"),
        *([("class", "O")] if with_class else []),
        ("fname", "O"),
    ]
    table = np.zeros((1, len(rows)), dtype=fields)
    for i, (file, number) in enumerate(rows):
        table[0, i] = (1, 1, 9, 9, *([number] if with_class else []), file)
        if not (folder / f"cars_{split}" / file).exists():
            palette.put(folder / f"cars_{split}" / file, NAMES[number - 1])
    where = folder / ("devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat")
    where.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(where, {"annotations": table})


def test_stanford_cars(tmp_path):
    from torchvision.datasets import StanfordCars

    folder = tmp_path / "stanford_cars"
    cars(folder, "train", [("00001.jpg", 2), ("00002.jpg", 3), ("00003.jpg", 1)])
    cars(folder, "test", [("00001.jpg", 3), ("00002.jpg", 2)])
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([list(NAMES)], dtype=object)})
    dataset = load_dataset("stanford-cars", tmp_path)
    check_planted(dataset, palette)
    for split in ("train", "test"):
        assert shown(dataset, split, palette) == shown_by(StanfordCars(tmp_path, split), palette)
    (folder / "cars_test_annos_withlabels.mat").rename(folder / "devkit/cars_test_annos_withlabels.mat")
    assert load_dataset("stanford-cars", tmp_path).samples["test"].targets["class"].tolist() == [2, 1]
    (folder / "devkit/cars_test_annos_withlabels.mat").unlink()
    cars(folder, "test", [("00001.jpg", 3), ("00002.jpg", 2)], with_class=False)
    with pytest.raises(UserError, match=r"annotations with fname and class \(the test file needs to be the one with labels\)"):
        load_dataset("stanford-cars", tmp_path)


def test_fgvc_aircraft(tmp_path):
    from torchvision.datasets import FGVCAircraft

    names = ("707-320", "727-200", "Cessna 172")
    planes = Palette(names)
    folder = tmp_path / "fgvc-aircraft-2013b/data"
    write(folder / "variants.txt", "\n".join(names) + "\n")
    for split, rows in {"train": [(1, 2), (2, 0), (3, 1)], "val": [(4, 0)], "test": [(5, 2), (6, 1)]}.items():
        write(folder / f"images_variant_{split}.txt", "".join(f"{i:07d} {names[c]}\n" for i, c in rows))
        for i, c in rows:
            planes.put(folder / f"images/{i:07d}.jpg", names[c])
    dataset = load_dataset("fgvc-aircraft", tmp_path)
    check_planted(dataset, planes)
    for split in ("train", "val", "test"):
        assert shown(dataset, split, planes) == shown_by(FGVCAircraft(tmp_path, split), planes)
    write(folder / "images_variant_test.txt", "0000005 Cessna 999\n")
    with pytest.raises(UserError, match="have 'Cessna 999', which fgvc-aircraft does not know among its 3 classes"):
        load_dataset("fgvc-aircraft", tmp_path)
    with pytest.raises(UserError, match="level is 'wing'; there are variant, family, manufacturer"):
        load_dataset("fgvc-aircraft", tmp_path, level="wing")


def test_country211(tmp_path):
    from torchvision.datasets import Country211

    lands = Palette(["AD", "FR", "ZW"])
    for split, names in (("train", lands.names), ("valid", lands.names), ("test", lands.names)):
        for name in names:
            lands.put(tmp_path / "country211" / split / name / f"{split}.jpg", name)
    dataset = load_dataset("country211", tmp_path)
    check_planted(dataset, lands)
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert shown(dataset, ours, lands) == shown_by(Country211(tmp_path, theirs), lands)


@pytest.mark.parametrize("size", ["256", "large"])
def test_places365(tmp_path, monkeypatch, size):
    import torchvision.datasets.places365 as module

    names = ["/a/airfield", "/b/barn", "/f/field/wild"]
    places = Palette(names)
    folder = tmp_path / "places365"
    write(folder / "categories_places365.txt", "".join(f"{name} {i}\n" for i, name in enumerate(names)))
    write(folder / "places365_train_standard.txt", "".join(f"{name}/0000000{k}.jpg {i}\n" for i, name in enumerate(names) for k in (1, 2)))
    write(folder / "places365_val.txt", "Places365_val_00000001.jpg 2\nPlaces365_val_00000002.jpg 0\n")
    for name in names:
        for k in (1, 2):
            places.put(folder / f"data_{size}_standard{name}/0000000{k}.jpg", name)
    places.put(folder / f"val_{size}/Places365_val_00000001.jpg", names[2])
    places.put(folder / f"val_{size}/Places365_val_00000002.jpg", names[0])
    dataset = load_dataset("places365", tmp_path)
    assert dataset.classes["class"] == ("airfield", "barn", "field/wild")
    monkeypatch.setattr(module, "check_integrity", lambda *args, **kwargs: True)
    for ours, theirs in (("train", "train-standard"), ("test", "val")):
        both = shown(dataset, ours, places)
        assert both == shown_by(module.Places365(folder, theirs, small=size == "256"), places)
        assert {names.index(name) for name, label in both if names.index(name) == label} == {label for _, label in both}
    write(folder / "places365_val.txt", "Places365_val_00000001.jpg\n")
    with pytest.raises(UserError, match=r"another version .* lines of image and class 0 to 2"):
        load_dataset("places365", tmp_path)


def test_stl10(tmp_path, monkeypatch):
    import torchvision.datasets.stl10 as module

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    write(folder / "class_names.txt", "\n".join(NAMES) + "\n")
    for split, labels in (("train", [2, 0, 1]), ("test", [1, 2])):
        pixels = np.stack([palette.pixels(NAMES[label], 96) for label in labels])
        pixels[0, 0, 1:30] = 7  # a line along the top: rows and columns are not to be exchanged
        pixels.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
        (np.array(labels, dtype=np.uint8) + 1).tofile(folder / f"{split}_y.bin")
    dataset = load_dataset("stl10", tmp_path)
    check_planted(dataset, palette)
    monkeypatch.setattr(module, "check_integrity", lambda *args, **kwargs: True)
    for split in ("train", "test"):
        theirs = module.STL10(tmp_path, split)
        for i in range(len(theirs)):
            assert (np.asarray(dataset.lists[split].read(i)) == np.asarray(theirs[i][0])).all()
            assert dataset.samples[split].targets["class"][i] == theirs[i][1]
    np.array([1, 2, 3], dtype=np.uint8).tofile(folder / "test_y.bin")
    with pytest.raises(UserError, match=r"test_X.bin has 2 images but test_y.bin 3 labels"):
        load_dataset("stl10", tmp_path)
    with (folder / "test_X.bin").open("ab") as file:
        file.write(b"1234")
    with pytest.raises(UserError, match=r"no multiple of 27648; is it complete"):
        load_dataset("stl10", tmp_path)


def test_pcam(tmp_path):
    import pickle

    h5py = pytest.importorskip("h5py")
    from torchvision.datasets import PCAM

    tissue = Palette(["normal", "tumour"])
    folder = tmp_path / "pcam"

    def put(part, labels, n_labels=None, folder=folder):
        folder.mkdir(exist_ok=True)
        with h5py.File(folder / f"camelyonpatch_level_2_split_{part}_x.h5", "w") as file:
            file["x"] = np.stack([tissue.pixels(tissue.names[label], 96) for label in labels])
        with h5py.File(folder / f"camelyonpatch_level_2_split_{part}_y.h5", "w") as file:
            file["y"] = np.array(labels[:n_labels], dtype=np.uint8).reshape(-1, 1, 1, 1)

    for part, labels in (("train", [1, 0, 1]), ("valid", [0]), ("test", [0, 1])):
        put(part, labels)
    dataset = load_dataset("pcam", tmp_path)
    check_planted(dataset, tissue)
    for ours, theirs in (("train", "train"), ("val", "val"), ("test", "test")):
        assert shown(dataset, ours, tissue) == shown_by(PCAM(tmp_path, theirs), tissue)
    images = dataset.lists["train"]
    copy = pickle.loads(pickle.dumps(images))
    assert (np.asarray(copy.read(2)) == np.asarray(images.read(2))).all()
    assert copy.identity() == images.identity() != dataset.lists["test"].identity()
    for code, expected in ((None, BadImage), (errno.EIO, UnreadImage)):  # what the system could not read may be fine

        def refuse(code: int | None = code) -> None:
            raise OSError("no chunk") if code is None else OSError(code, os.strerror(code))

        copy._array = refuse
        with pytest.raises(BadImage, match="image 2 cannot be read") as caught:
            copy.read(2)
        assert type(caught.value) is expected
    other = tmp_path / "other"
    for part, n_labels in (("train", None), ("valid", None), ("test", 1)):
        put(part, [0, 1], n_labels, other)
    with pytest.raises(UserError, match="test has 2 images but 1 labels"):
        load_dataset("pcam", other)
    write(other / "camelyonpatch_level_2_split_test_x.h5", "cut")
    with pytest.raises(UserError, match=r"cannot be read as HDF5 .*; is it unpacked and complete"):
        load_dataset("pcam", other)


# VOC 2007 and iNaturalist 2018


@pytest.fixture
def voc(tmp_path):
    from virb.data.datasets.voc import CLASSES

    folder = tmp_path / "VOCdevkit/VOC2007"
    # image -> (class, difficult) of its objects
    objects = {
        "000001": [("dog", 0), ("person", 1)],
        "000002": [("cat", 1), ("cat", 0)],
        "000003": [("person", 0)],
        "000004": [],
    }
    for image, things in objects.items():
        (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"JPEGImages/{image}.jpg")
        xml = "".join(f"<object><name>{name}</name><difficult>{d}</difficult></object>" for name, d in things)
        write(folder / f"Annotations/{image}.xml", f"<annotation><filename>{image}.jpg</filename>{xml}</annotation>")
    for split, images in (("train", ["000001", "000002"]), ("val", ["000003"]), ("test", ["000004"])):
        write(folder / f"ImageSets/Main/{split}.txt", "\n".join(images) + "\n")
        for cls in CLASSES:
            lines = []
            for image in images:
                sure = any(name == cls and not d for name, d in objects[image])
                unsure = any(name == cls and d for name, d in objects[image])
                lines.append(f"{image} {' 1' if sure else ' 0' if unsure else '-1'}")
            write(folder / f"ImageSets/Main/{cls}_{split}.txt", "\n".join(lines) + "\n")
    return folder


def test_voc2007_from_lists_and_from_xml(voc, tmp_path):
    from torchvision.datasets import VOCDetection

    dataset = load_dataset("voc2007", tmp_path)
    names = dataset.classes["labels"]
    train = dataset.samples["train"].targets["labels"]
    assert train.dtype == np.int8
    assert {(int(i), names[c]): int(train[i, c]) for i, c in zip(*train.nonzero(), strict=True)} == {
        (0, "dog"): 1,
        (0, "person"): -1,  # only a difficult one: counts neither way
        (1, "cat"): 1,  # a difficult one and a clear one
    }
    assert not dataset.samples["test"].targets["labels"].any()
    for i, (_, target) in enumerate(VOCDetection(tmp_path, "2007", "train")):
        shown_there = {thing["name"] for thing in target["annotation"]["object"]}
        assert {names[c] for c in train[i].nonzero()[0]} == shown_there
    for file in (voc / "ImageSets/Main").glob("*_train.txt"):
        file.unlink()
    assert (load_dataset("voc2007", tmp_path).samples["train"].targets["labels"] == train).all()
    write(voc / "ImageSets/Main/dog_test.txt", "000009 1\n")
    with pytest.raises(UserError, match=r"dog_test.txt has answers for 1 images, but its split has 1, or they are others"):
        load_dataset("voc2007", tmp_path)
    write(voc / "ImageSets/Main/dog_test.txt", "000004 2\n")
    with pytest.raises(UserError, match=r"another version .* lines of image and 1, 0 or -1"):
        load_dataset("voc2007", tmp_path)
    (voc / "ImageSets/Main/dog_test.txt").unlink()
    write(voc / "Annotations/000004.xml", "<annotation><object>")
    with pytest.raises(UserError, match=r"000004.xml is not XML"):
        load_dataset("voc2007", tmp_path)
    (voc / "ImageSets/Main/test.txt").unlink()
    with pytest.raises(UserError, match=r"VOCtest_06-Nov-2007.tar"):
        load_dataset("voc2007", tmp_path)


def coco_form(numbers, names, part):
    images = [{"id": 10 + i, "file_name": f"train_val2018/Plantae/{c}/{part}{i}.jpg"} for i, c in enumerate(numbers)]
    annotations = [{"id": i, "image_id": 10 + i, "category_id": c} for i, c in enumerate(numbers)]
    return {"images": images, "annotations": annotations[::-1], "categories": [{"id": i, "name": name} for i, name in enumerate(names)]}


@pytest.mark.parametrize("place", ["train_val2018", "2018"])
def test_inat2018(tmp_path, place):
    from torchvision.datasets import INaturalist

    folder = tmp_path / "inat2018"
    lists = {"train": [2, 0, 1, 2], "val": [2]}
    for part, numbers in lists.items():
        write(folder / f"{part}2018.json", coco_form(numbers, NAMES, part))
        for i, c in enumerate(numbers):
            palette.put(folder / place / f"Plantae/{c}/{part}{i}.jpg", NAMES[c])
    dataset = load_dataset("inat2018", tmp_path)
    check_planted(dataset, palette)
    assert dataset.samples["test"].targets["class"].tolist() == [2]
    if place == "2018":
        both = shown(dataset, "train", palette) + shown(dataset, "test", palette)
        assert both == shown_by(INaturalist(folder, "2018"), palette)
    content = coco_form([2, 1], NAMES, "val")
    content["annotations"].pop()
    write(folder / "val2018.json", content)
    with pytest.raises(UserError, match=r"val2018.json has 2 images but annotations of 1"):
        load_dataset("inat2018", tmp_path)
    write(folder / "val2018.json", {"images": []})
    with pytest.raises(UserError, match="but it lacks 'annotations'"):
        load_dataset("inat2018", tmp_path)


def test_a_file_that_goes_away_is_named(tmp_path):
    test_country211(tmp_path)
    dataset = load_dataset("country211", tmp_path)
    (tmp_path / "country211/test/AD/test.jpg").unlink()
    with pytest.raises(BadImage, match=r"AD/test.jpg: does not exist"):
        dataset.lists["test"].read(0)
