"""The single-image sets of ViRB 2021 in their published layouts and in ViRB's."""

from __future__ import annotations

import itertools

import pytest
from sets_support import Palette, check_planted, shown, shown_by, write

from virb.data.datasets import load_dataset
from virb.data.datasets.caltech import BACKGROUND
from virb.data.datasets.common import ranked, ruled_split
from virb.errors import UserError

# SUN397

SCENES = ("abbey", "apartment_building/outdoor", "zoo")
scenes = Palette(SCENES)


def sun_published(root, per_class=5):
    folder = root / "SUN397"
    write(folder / "ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n/z/zoo\n")
    for name in SCENES:
        for i in range(per_class):
            scenes.put(folder / name[0] / name / f"sun_{name[:2]}{i}.jpg", name)
    return folder


def test_sun397_official_partition(tmp_path):
    folder = sun_published(tmp_path)
    train = ["/a/abbey/sun_ab0.jpg", "/a/apartment_building/outdoor/sun_ap3.jpg", "/z/zoo/sun_zo1.jpg"]
    test = ["/a/abbey/sun_ab1.jpg", "/z/zoo/sun_zo2.jpg"]
    write(folder / "Training_02.txt", "\n".join(train))
    write(folder / "Testing_02.txt", "\n".join(test))
    dataset = load_dataset("sun397", tmp_path, partition=2)
    check_planted(dataset, scenes)
    assert dataset.classes["class"] == SCENES
    assert dataset.samples["train"].targets["class"].tolist() == [0, 1, 2]
    assert dataset.samples["test"].targets["class"].tolist() == [0, 2]
    assert dataset.note == "official partition 2"
    write(folder / "Testing_02.txt", "\n".join([*test, train[0]]))
    with pytest.raises(UserError, match=r"1 images are in train and in test: 'a/abbey/sun_ab0.jpg'"):
        load_dataset("sun397", tmp_path, partition=2)
    write(folder / "Testing_02.txt", "/a/abbey/sun_none.jpg")
    with pytest.raises(UserError, match=r"Testing_02.txt names 1 images, but 1 of them are not below .*'a/abbey/sun_none.jpg'"):
        load_dataset("sun397", tmp_path, partition=2)
    (folder / "Testing_02.txt").unlink()
    with pytest.raises(UserError, match=r"half a partition: 'Testing_02.txt' is not there"):
        load_dataset("sun397", tmp_path, partition=2)


def test_sun397_by_the_fixed_rule_and_torchvisions_labels(tmp_path):
    from torchvision.datasets import SUN397

    sun_published(tmp_path)
    dataset = load_dataset("sun397", tmp_path)
    check_planted(dataset, scenes)
    assert [len(dataset.samples[split]) for split in ("train", "test")] == [12, 3]
    assert "80 %" in dataset.note
    assert shown(dataset, "train", scenes) + shown(dataset, "test", scenes) == shown_by(SUN397(tmp_path), scenes)


def virb_folders(root, place, palette, train, test, ending="jpg"):
    for split, names in (("train", train), ("test", test)):
        for name in names:
            palette.put(root / place / split / name / f"{name}_1{split}.{ending}", name)


@pytest.mark.parametrize(("name", "place"), [("sun397", "SUN397"), ("eurosat", "eurosat"), ("pets", "pets"), ("dtd", "dtd")])
def test_folders_of_virb_2021(tmp_path, name, place):
    names = ("Ab", "cd", "Ef")
    palette = Palette(names)
    virb_folders(tmp_path, place, palette, names, [names[2]])
    dataset = load_dataset(name, tmp_path)
    check_planted(dataset, palette)
    order = ("Ab", "cd", "Ef") if name == "pets" else ("Ab", "Ef", "cd")
    assert dataset.classes["class"] == order
    assert dataset.samples["test"].targets["class"].tolist() == [order.index("Ef")]  # classes missing in test shift nothing
    palette.put(tmp_path / place / "test/other/a.jpg", "Ab")
    with pytest.raises(UserError, match="test has samples of 'other', but train has none"):
        load_dataset(name, tmp_path)


# Caltech-101

OBJECTS = (BACKGROUND, "accordion", "ant")
objects = Palette(OBJECTS)


def caltech(root, place, per_class=33):
    for name in OBJECTS:
        for i in range(1, per_class + 1):
            objects.put(root / place / name / f"image_{i:04d}.jpg", name)


@pytest.mark.parametrize(
    "place",
    [
        "caltech",
        "caltech-101",
        "caltech101/101_ObjectCategories",
        "caltech-101/101_ObjectCategories",
        "caltech-101/caltech-101/101_ObjectCategories",
    ],
)
def test_caltech_thirty_per_class_in_every_layout(tmp_path, place):
    from torchvision.datasets import Caltech101

    caltech(tmp_path, place)
    dataset = load_dataset("caltech101", tmp_path)
    check_planted(dataset, objects)
    assert [len(dataset.samples[split]) for split in ("train", "test")] == [90, 9]
    tested = sorted("/".join(path.split("/")[-2:]) for path in dataset.lists["test"].paths)
    # the rule's own answer, so that it never changes unseen
    assert tested == TESTED
    without = load_dataset("caltech101", tmp_path, background=False)
    assert without.classes["class"] == OBJECTS[1:]
    if place.startswith("caltech101/"):
        both = shown(without, "train", objects) + shown(without, "test", objects)
        assert both == shown_by(Caltech101(tmp_path), objects)


def test_caltech_rule_is_a_draw_per_class():
    names = {cls: [f"{cls}/image_{i:04d}.jpg" for i in range(1, 34)] for cls in OBJECTS}
    train, test = ruled_split("caltech101", names, 30)
    assert {cls: len(paths) for cls, paths in train.items()} == dict.fromkeys(OBJECTS, 30)
    assert sorted(itertools.chain(*test.values())) == TESTED
    assert len({tuple(path.rpartition("/")[2] for path in paths) for paths in test.values()}) == 3
    more = {cls: [*paths, f"{cls}/image_9999.jpg"] for cls, paths in names.items()}
    changed = set(itertools.chain(*ruled_split("caltech101", more, 30)[0].values())) ^ set(itertools.chain(*train.values()))
    assert len(changed) <= 6  # another image changes at most itself and the one it replaces
    assert ranked("x", ["a", "b", "c"], 0) == ranked("x", ["c", "a", "b"], 0)


# of each class the last three of 33, by `printf virb/caltech101/0/<path> | b2sum -l 128 | sort`
TESTED = [
    "BACKGROUND_Google/image_0009.jpg",
    "BACKGROUND_Google/image_0019.jpg",
    "BACKGROUND_Google/image_0025.jpg",
    "accordion/image_0005.jpg",
    "accordion/image_0012.jpg",
    "accordion/image_0015.jpg",
    "ant/image_0025.jpg",
    "ant/image_0026.jpg",
    "ant/image_0028.jpg",
]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_caltech_lists_of_virb(tmp_path, prefix):
    caltech(tmp_path, "caltech-101", per_class=3)
    train = [f"{prefix}{name}/image_0001.jpg" for name in OBJECTS]
    test = [f"{prefix}ant/image_0003.jpg"]
    write(tmp_path / "caltech-101/caltech101_train.json", train)
    write(tmp_path / "caltech-101/caltech101_test.json", test)
    dataset = load_dataset("caltech101", tmp_path)
    check_planted(dataset, objects)
    assert dataset.samples["test"].targets["class"].tolist() == [2]
    assert len(dataset.samples["train"]) == 3
    write(tmp_path / "caltech-101/caltech101_test.json", ["ant/image_0077.jpg"])
    with pytest.raises(UserError, match=r"caltech101_test.json names 1 images, but 1 of them are not below"):
        load_dataset("caltech101", tmp_path)
    write(tmp_path / "caltech-101/caltech101_test.json", {"images": test})
    with pytest.raises(UserError, match=r"another version .* expected a list of class/file.jpg"):
        load_dataset("caltech101", tmp_path)


# EuroSAT

LAND = ("AnnualCrop", "Forest", "SeaLake")
land = Palette(LAND)


@pytest.mark.parametrize("place", ["eurosat/2750", "EuroSAT/2750", "EuroSAT_RGB"])
def test_eurosat_published(tmp_path, place):
    from torchvision.datasets import EuroSAT

    for name in LAND:
        for i in range(1, 11):
            land.put(tmp_path / place / name / f"{name}_{i}.jpg", name, (64, 64))
    dataset = load_dataset("eurosat", tmp_path)
    check_planted(dataset, land)
    assert [len(dataset.samples[split]) for split in ("train", "test")] == [24, 6]
    tested = [path.rpartition("/")[2] for path in dataset.lists["test"].paths]
    # by b2sum, as above
    assert sorted(tested) == ["AnnualCrop_2.jpg", "AnnualCrop_7.jpg", "Forest_3.jpg", "Forest_8.jpg", "SeaLake_2.jpg", "SeaLake_7.jpg"]
    if place == "eurosat/2750":
        assert shown(dataset, "train", land) + shown(dataset, "test", land) == shown_by(EuroSAT(tmp_path), land)
        for split, numbers in (("train", range(1, 7)), ("val", range(7, 9)), ("test", range(9, 11))):
            write(tmp_path / f"eurosat/eurosat-{split}.txt", "\n".join(f"{name}_{i}.tif" for i in numbers for name in LAND))
        listed = load_dataset("eurosat", tmp_path)
        check_planted(listed, land)
        assert {split: len(samples) for split, samples in listed.samples.items()} == {"train": 18, "val": 6, "test": 6}


# Pets

BREEDS = ("Abyssinian", "american_bulldog", "Bengal")
breeds = Palette(BREEDS)


@pytest.mark.parametrize("place", ["oxford-iiit-pet", "pets"])
def test_pets_published(tmp_path, place):
    from torchvision.datasets import OxfordIIITPet

    folder = tmp_path / place
    for name in BREEDS:
        for i in (1, 2, 10):
            breeds.put(folder / "images" / f"{name}_{i}.jpg", name)
    lines = {name: (number, 1 if name[0].isupper() else 2) for number, name in enumerate(BREEDS, 1)}

    def text(rows):
        return "\n".join(f"{name}_{i} {lines[name][0]} {lines[name][1]} 1" for name, i in rows) + "\n"

    write(folder / "annotations/list.txt", "#Image CLASS-ID SPECIES BREED ID\n" + text(itertools.product(BREEDS, (1, 2, 10))))
    write(folder / "annotations/trainval.txt", text(itertools.product(BREEDS, (1, 2))))
    write(folder / "annotations/test.txt", text([("Bengal", 10)]))
    dataset = load_dataset("pets", tmp_path)
    check_planted(dataset, breeds)
    assert dataset.classes["class"] == BREEDS
    assert dataset.samples["test"].targets["class"].tolist() == [2]
    if place != "pets":
        (folder / "annotations/trimaps").mkdir()
        for ours, theirs in (("train", "trainval"), ("test", "test")):
            assert shown(dataset, ours, breeds) == shown_by(OxfordIIITPet(tmp_path, theirs), breeds)
    write(folder / "annotations/test.txt", "Bengal_10 3 1 1\nBengal_99 3 1 2\n")
    with pytest.raises(UserError, match=r"test.txt names 2 images, but 1 of them are not below .*'images/Bengal_99.jpg'"):
        load_dataset("pets", tmp_path)
    write(folder / "annotations/test.txt", "Bengal_10 2 1 1\n")
    with pytest.raises(UserError, match="one breed per number, but 2 is american_bulldog and Bengal"):
        load_dataset("pets", tmp_path)
    write(folder / "annotations/test.txt", "Bengal_10.jpg\n")
    with pytest.raises(UserError, match=r"another version .* lines of image, breed \(1 to 37\), species and number"):
        load_dataset("pets", tmp_path)


# DTD

TEXTURES = ("banded", "dotted", "zigzagged")
textures = Palette(TEXTURES)


@pytest.mark.parametrize("place", ["dtd/dtd", "dtd"])
def test_dtd_published(tmp_path, place):
    from torchvision.datasets import DTD

    folder = tmp_path / place
    for name in TEXTURES:
        for i in range(3):
            textures.put(folder / "images" / name / f"{name}_{i:04d}.jpg", name)
    for split, names, i in (("train", TEXTURES, 0), ("val", TEXTURES, 1), ("test", TEXTURES[1:], 2)):
        write(folder / f"labels/{split}1.txt", "\n".join(f"{name}/{name}_{i:04d}.jpg" for name in names))
    dataset = load_dataset("dtd", tmp_path)
    check_planted(dataset, textures)
    assert {split: samples.targets["class"].tolist() for split, samples in dataset.samples.items()} == {
        "train": [0, 1, 2],
        "val": [0, 1, 2],
        "test": [1, 2],  # torchvision numbers the classes of each list anew, and would say 0 and 1
    }
    if place == "dtd/dtd":
        assert shown(dataset, "train", textures) == shown_by(DTD(tmp_path, "train"), textures)
    merged = load_dataset("dtd", tmp_path, merge_val=True)
    assert merged.samples["train"].targets["class"].tolist() == [0, 1, 2] * 2
    assert "val" not in merged.samples
    with pytest.raises(UserError, match=r"the list .*train2.txt is not there"):
        load_dataset("dtd", tmp_path, partition=2)
    with pytest.raises(UserError, match="partition is 11; there are 1 to 10"):
        load_dataset("dtd", tmp_path, partition=11)


# CLEVR

COUNTS = tuple(str(n) for n in range(3, 11))
counts = Palette(COUNTS)


def clevr(root, place, n_objects):
    for part, numbers in n_objects.items():
        described = []
        for i, n in enumerate(numbers):
            file = f"CLEVR_{part}_{i:06d}.png"
            counts.put(root / place / "images" / part / file, str(n))
            things = [{"3d_coords": [3.0, 4.0, 0.35], "pixel_coords": [1, 2, 9.7], "color": "red"} for _ in range(n - 1)]
            things.append({"3d_coords": [0.6, -0.8, 0.0], "pixel_coords": [1, 2, 8.5 + 0.3 * i], "color": "red"})
            described.append({"image_index": i, "image_filename": file, "split": part, "objects": things, "relationships": {}})
        # written backwards: pairs are made by name, not by order
        write(root / place / f"scenes/CLEVR_{part}_scenes.json", {"info": {"version": "1.0"}, "scenes": described[::-1]})
    return root / place


@pytest.mark.parametrize("place", ["CLEVR", "clevr/CLEVR_v1.0", "CLEVR_v1.0"])
def test_clevr(tmp_path, place):
    from torchvision.datasets import CLEVRClassification

    clevr(tmp_path, place, {"train": [3, 10, 4], "val": [10, 3]})
    dataset = load_dataset("clevr", tmp_path)
    check_planted(dataset, counts, "count")
    assert dataset.samples["train"].targets["count"].tolist() == [0, 7, 1]
    assert dataset.samples["train"].targets["distance"].tolist() == [2, 2, 2]  # the nearest is 1.0 away: floor(2 x 1.0)
    assert dataset.classes["distance"][2] == "1 to 1.5"
    assert dataset.samples["train"].targets["camera_distance"].tolist() == [1, 2, 3]  # 8.5, 8.8, 9.1: a bin has its upper bound
    if place == "clevr/CLEVR_v1.0":
        theirs = shown_by(CLEVRClassification(tmp_path, "val"), counts)
        assert {(name, label - 3) for name, label in theirs} == set(shown(dataset, "test", counts, "count"))


def test_clevr_that_does_not_fit_together(tmp_path):
    folder = clevr(tmp_path, "CLEVR", {"train": [3, 4, 5], "val": [3]})
    scenes_file = folder / "scenes/CLEVR_val_scenes.json"
    (folder / "images/train/CLEVR_train_000001.png").unlink()
    with pytest.raises(UserError, match=r"has 2 images and .* 3 scenes; 1 scenes have no image: 'CLEVR_train_000001.png'"):
        load_dataset("clevr", tmp_path)
    counts.put(folder / "images/train/CLEVR_train_000001.png", "4")
    counts.put(folder / "images/train/CLEVR_train_000009.png", "4")
    with pytest.raises(UserError, match=r"1 images have no scene: 'CLEVR_train_000009.png'"):
        load_dataset("clevr", tmp_path)
    (folder / "images/train/CLEVR_train_000009.png").unlink()
    for content, message in (
        ({"questions": []}, "another version .* expected a list 'scenes'"),
        ({"scenes": [{"image_filename": "CLEVR_val_000000.png"}]}, "but one has no 'objects'"),
        ({"scenes": [{"image_filename": "CLEVR_val_000000.png", "objects": [{}] * 3}]}, "objects with 3d_coords and pixel_coords"),
        ("{", "is not JSON that can be read .* is the download complete"),
    ):
        write(scenes_file, content)
        with pytest.raises(UserError, match=message):
            load_dataset("clevr", tmp_path)
