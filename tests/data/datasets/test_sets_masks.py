"""Pets' trimaps, Cityscapes, ADE20K, VOC 2012 and CamVid as they lie on disk, with planted labels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image
from pixel_support import SIZE, every_value, ids, put_image, put_labels, target

from virb.data.datasets import load_dataset
from virb.data.datasets.camvid import part_of
from virb.data.datasets.camvid import read_colours as camvid_colours
from virb.errors import BadImage, UserError

# Pets


@pytest.fixture(params=["official", "virb"])
def pets(request, tmp_path):
    folder = tmp_path / ("oxford-iiit-pet" if request.param == "official" else "pets")
    lines = {"trainval": "", "test": ""}
    for number, breed in enumerate(("Abyssinian", "Bengal"), 1):
        for i, split in enumerate(("trainval", "trainval", "test")):
            stem = f"{breed}_{i}"
            place = "images" if request.param == "official" else f"{split.removesuffix('val')}/{breed}"
            put_image(folder / place / f"{stem}.jpg")
            put_labels(folder / f"annotations/trimaps/{stem}.png", every_value([1, 2, 3, number]))
            lines[split] += f"{stem} {number} 1 1\n"
    if request.param == "official":
        for split, text in lines.items():
            (folder / f"annotations/{split}.txt").write_text(text)
    return tmp_path


def test_pets_the_pet_is_positive_and_the_border_ignored(pets):
    dataset = load_dataset("pets-masks", pets)
    assert {split: len(samples) for split, samples in dataset.samples.items()} == {"train": 4, "test": 2}
    assert dataset.classes["mask"] == ("background", "pet")
    np.testing.assert_array_equal(target(dataset, "test", 0), every_value([1, 0, 255, 1]))  # Abyssinian
    np.testing.assert_array_equal(target(dataset, "test", 1), every_value([1, 0, 255, 0]))  # Bengal
    assert target(dataset, "train", 0).dtype == np.uint8


def test_pets_of_2021_have_the_pet_at_zero(pets):
    dataset = load_dataset("pets-masks", pets, variant="virb2021")
    np.testing.assert_array_equal(target(dataset, "test", 0), every_value([0, 1, 2, 0]))
    with pytest.raises(UserError, match=r"pets-masks has no variant 'virb21'; did you mean virb2021"):
        load_dataset("pets-masks", pets, variant="virb21")


def test_pets_share_their_images_with_the_breeds(pets):
    masks, breeds, historic = (
        load_dataset("pets-masks", pets),
        load_dataset("pets", pets),
        load_dataset("pets-masks", pets, variant="virb2021"),
    )
    for split in ("train", "test"):
        assert masks.lists[split].identity() == breeds.lists[split].identity()
        one, other = (data.samples[split].targets["mask"].identity() for data in (masks, historic))
        assert one != other  # results are kept under it


def test_a_missing_trimap_is_named(pets):
    (next(iter(pets.iterdir())) / "annotations/trimaps/Bengal_1.png").unlink()
    with pytest.raises(UserError, match=r"pets-masks: train .* names 4 trimaps, but 1 of them .*'annotations/trimaps/Bengal_1.png'"):
        load_dataset("pets-masks", pets)


# Cityscapes

# labelId -> trainId of all 34 labels, as the official table has them.
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18]


@pytest.fixture
def cityscapes(tmp_path):
    folder = tmp_path / "cityscapes"
    for split, city, n in (("train", "aachen", 2), ("train", "ulm", 1), ("val", "lindau", 2), ("test", "bonn", 1)):
        for i in range(n):
            stem = f"{city}_{i:06d}_000019"
            put_image(folder / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
            values = every_value(list(range(34)) + [i] * 7)
            put_labels(folder / f"gtFine/{split}/{city}/{stem}_gtFine_labelIds.png", values)
            put_labels(folder / f"gtFine/{split}/{city}/{stem}_gtFine_instanceIds.png", values)
            put_image(folder / f"gtFine/{split}/{city}/{stem}_gtFine_color.png")
    return folder


def test_cityscapes_have_the_19_classes_by_train_id(cityscapes):
    dataset = load_dataset("cityscapes", cityscapes.parent)
    assert ids(dataset, "train") == [
        f"leftImg8bit/train/{city}/{city}_{i:06d}_000019_leftImg8bit.png" for city, i in (("aachen", 0), ("aachen", 1), ("ulm", 0))
    ]
    assert len(dataset.samples["test"]) == 2
    table = np.array(TRAIN_IDS)
    np.testing.assert_array_equal(target(dataset, "test", 1), table[every_value(list(range(34)) + [1] * 7)])
    assert (len(dataset.classes["mask"]), dataset.classes["mask"][0], dataset.classes["mask"][13]) == (19, "road", "car")


def test_cityscapes_of_2021_have_20_classes_with_void(cityscapes):
    dataset = load_dataset("cityscapes", cityscapes.parent, variant="virb2021")
    table = (np.array(TRAIN_IDS) + 1) % 256  # void 255 + 1 = 0
    np.testing.assert_array_equal(target(dataset, "train", 0), table[every_value(list(range(34)) + [0] * 7)])
    assert dataset.classes["mask"][:2] == ("void", "road")
    assert len(dataset.classes["mask"]) == 20


def test_cityscapes_pairs_by_name(cityscapes):
    (cityscapes / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(
        UserError, match=r"cityscapes: 1 images in .*leftImg8bit/train and .*gtFine/train have no mask: '.*ulm_000000_000019_left"
    ):
        load_dataset("cityscapes", cityscapes.parent)
    put_labels(cityscapes / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png", every_value([7]))
    (cityscapes / "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png").unlink()
    with pytest.raises(UserError, match=r"1 masks in .* have no image: 'gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png'"):
        load_dataset("cityscapes", cityscapes.parent)


def test_a_label_outside_of_the_list_names_the_file(cityscapes):
    path = cityscapes / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    put_labels(path, every_value([7, 34]))
    dataset = load_dataset("cityscapes", cityscapes.parent)
    with pytest.raises(BadImage, match=r"ulm_000000_000019_gtFine_labelIds.png.*34"):
        target(dataset, "train", 2)


# ADE20K


def test_ade20k(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    for part, n in (("training", 3), ("validation", 2)):
        for i in range(1, n + 1):
            stem = f"ADE_{part[:-3] if part == 'training' else 'val'}_{i:08d}"
            put_image(folder / f"images/{part}/{stem}.jpg")
            put_labels(folder / f"annotations/{part}/{stem}.png", every_value([*range(151), i]))
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\n")
    dataset = load_dataset("ade20k", tmp_path)
    assert {split: len(samples) for split, samples in dataset.samples.items()} == {"train": 3, "test": 2}
    raw = every_value([*range(151), 2])
    np.testing.assert_array_equal(target(dataset, "test", 1), np.where(raw == 0, 255, raw - 1))
    names = dataset.classes["mask"]
    assert (len(names), len(set(names))) == (150, 150)
    assert [names[i] for i in (0, 12, 20, 74, 149)] == ["wall", "person", "car", "computer", "flag"]


# VOC


@pytest.fixture
def voc(tmp_path):
    """Three to train, two of val, and two more that only the augmented masks have."""
    folder = tmp_path / "VOCdevkit/VOC2012"
    lists = {"train": ["2007_000032", "2007_000039", "2008_000001"], "val": ["2007_000033", "2007_000042"], "more": ["2009_1", "2009_2"]}
    for part, stems in lists.items():
        for stem in stems:
            put_image(folder / f"JPEGImages/{stem}.jpg")
            if part != "more":
                put_labels(folder / f"SegmentationClass/{stem}.png", every_value([*range(21), 255]), palette=True)
        if part != "more":
            listed = folder / f"ImageSets/Segmentation/{part}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("".join(f"{stem}\n" for stem in stems))
    return folder


def augment(folder):
    for path in sorted((folder / "JPEGImages").iterdir()):
        put_labels(folder / f"SegmentationClassAug/{path.stem}.png", every_value([0, 7, 255]))


def test_voc_has_palette_images_read_by_index(voc):
    from torchvision.datasets import VOCSegmentation

    dataset = load_dataset("voc2012-masks", voc.parents[1])
    assert {split: len(samples) for split, samples in dataset.samples.items()} == {"train": 3, "test": 2}
    np.testing.assert_array_equal(target(dataset, "test", 0), every_value([*range(21), 255]))
    assert (dataset.classes["mask"][0], dataset.classes["mask"][15], len(dataset.classes["mask"])) == ("background", "person", 21)
    theirs = VOCSegmentation(voc.parents[1], year="2012", image_set="val")
    for i in range(2):
        assert np.array_equal(np.asarray(theirs[i][0]), np.asarray(dataset.lists["test"].read(i)))
        assert np.array_equal(np.asarray(theirs[i][1]), target(dataset, "test", i))


@pytest.mark.parametrize("listing", [None, "2009_1\n2009_2\n", "/JPEGImages/2009_1.jpg /SegmentationClassAug/2009_1.png\n"])
def test_voc_trains_on_more_where_it_is_there(voc, listing):
    augment(voc)
    if listing is not None:
        (voc / "ImageSets/Segmentation/trainaug.txt").write_text(listing)
    dataset = load_dataset("voc2012-masks", voc.parents[1])
    expected = 5 if listing is None else listing.count("\n")  # all but val, or those of the list
    assert (len(dataset.samples["train"]), dataset.note) == (expected, "trainaug")
    np.testing.assert_array_equal(target(dataset, "train", 0), every_value([0, 7, 255]))
    np.testing.assert_array_equal(target(dataset, "test", 0), every_value([*range(21), 255]))  # val stays official
    assert len(load_dataset("voc2012-masks", voc.parents[1], train="train").samples["train"]) == 3


def test_voc_says_what_is_wrong(voc):
    with pytest.raises(UserError, match="SegmentationClassAug is not there"):
        load_dataset("voc2012-masks", voc.parents[1], train="trainaug")
    with pytest.raises(UserError, match=r"train is 'trainval'; expected auto, train or trainaug"):
        load_dataset("voc2012-masks", voc.parents[1], train="trainval")
    augment(voc)
    (voc / "ImageSets/Segmentation/trainaug.txt").write_text("2009_1\n2007_000033\n")
    with pytest.raises(UserError, match="1 images are in train and in test"):
        load_dataset("voc2012-masks", voc.parents[1])


def test_voc_in_the_folders_of_timet(tmp_path):
    folder = tmp_path / "VOCSegmentation"
    for part in ("train", "val"):
        put_image(folder / f"images/{part}_1.jpg")
        put_labels(folder / f"SegmentationClass/{part}_1.png", every_value([0, 20]))
        (folder / "sets").mkdir(exist_ok=True)
        (folder / f"sets/{part}.txt").write_text(f"{part}_1\n")
    dataset = load_dataset("voc2012-masks", tmp_path)
    assert (ids(dataset, "train"), ids(dataset, "test")) == (["images/train_1.jpg"], ["images/val_1.jpg"])


# CamVid

COLOURS = {  # official classes -> SegNet's number, in the words of the published merger
    "Animal": ((64, 128, 64), 9), "Archway": ((192, 0, 128), 1), "Bicyclist": ((0, 128, 192), 10), "Bridge": ((0, 128, 64), 1),
    "Building": ((128, 0, 0), 1), "Car": ((64, 0, 128), 8), "CartLuggagePram": ((64, 0, 192), 9), "Child": ((192, 128, 64), 9),
    "Column_Pole": ((192, 192, 128), 2), "Fence": ((64, 64, 128), 7), "LaneMkgsDriv": ((128, 0, 192), 3),
    "LaneMkgsNonDriv": ((192, 0, 64), 3), "Misc_Text": ((128, 128, 64), 6), "MotorcycleScooter": ((192, 0, 192), 10),
    "OtherMoving": ((128, 64, 64), 8), "ParkingBlock": ((64, 192, 128), 4), "Pedestrian": ((64, 64, 0), 9), "Road": ((128, 64, 128), 3),
    "RoadShoulder": ((128, 128, 192), 4), "Sidewalk": ((0, 0, 192), 4), "SignSymbol": ((192, 128, 128), 6), "Sky": ((128, 128, 128), 0),
    "SUVPickupTruck": ((64, 128, 192), 8), "TrafficCone": ((0, 0, 64), 2), "TrafficLight": ((0, 64, 64), 6), "Train": ((192, 64, 128), 8),
    "Tree": ((128, 128, 0), 5), "Truck_Bus": ((192, 128, 192), 8), "Tunnel": ((64, 0, 64), 1), "VegetationMisc": ((192, 192, 0), 5),
    "Void": ((0, 0, 0), 255), "Wall": ((64, 192, 0), 1),
}  # fmt: skip
FRAMES = {"train": ["0001TP_008520", "0006R0_f00930", "0016E5_07920"], "val": ["0016E5_07959"], "test": ["0001TP_008550", "Seq05VD_f05100"]}


def test_camvid_as_segnet_has_it(tmp_path):
    for part, frames in FRAMES.items():
        for frame in frames:
            put_image(tmp_path / f"camvid/{part}/{frame}.png")
            put_labels(tmp_path / f"camvid/{part}annot/{frame}.png", every_value(list(range(12))))
    dataset = load_dataset("camvid", tmp_path)
    for part, frames in FRAMES.items():
        assert ids(dataset, part) == [f"{part}/{frame}.png" for frame in frames]
    raw = every_value(list(range(12)))
    np.testing.assert_array_equal(target(dataset, "val", 0), np.where(raw == 11, 255, raw))
    assert dataset.classes["mask"][::5] == ("Sky", "Tree", "Bicyclist")


def test_camvid_as_published(tmp_path):
    folder = tmp_path / "CamVid"
    colours = np.array([colour for colour, _ in COLOURS.values()], dtype=np.uint8)
    numbers = np.array([number for _, number in COLOURS.values()])
    which = every_value(list(range(32)))
    for frames in FRAMES.values():
        for frame in frames:
            put_image(folder / f"701_StillsRaw_full/{frame}.png")
            path = folder / f"LabeledApproved_full/{frame}_L.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(colours[which]).save(path)
    dataset = load_dataset("camvid", tmp_path)
    for part, frames in FRAMES.items():
        assert ids(dataset, part) == [f"701_StillsRaw_full/{frame}.png" for frame in frames]
    np.testing.assert_array_equal(target(dataset, "test", 1), numbers[which])

    wrong = np.asarray(colours[which]).copy()
    wrong[4, 6] = (1, 2, 3)
    path = folder / "LabeledApproved_full/0016E5_07959_L.png"
    Image.fromarray(wrong).save(path)
    with pytest.raises(BadImage, match=r"0016E5_07959_L.png: the colour \(1, 2, 3\) at x 6, y 4 is no class of CamVid"):
        camvid_colours(str(path))


def test_camvid_split_has_the_published_numbers():
    names = [f"0001TP_{n:06d}" for n in range(6690, 10381, 30)]
    names += [f"0006R0_f{n:05d}" for n in range(930, 3931, 30)]
    names += [f"0016E5_{n:05d}" for n in range(7959, 8160, 2)]
    names += [f"Seq05VD_f{n:05d}" for n in range(0, 5101, 30)]
    counts = {part: sum(part_of(name) == part for name in names) for part in ("train", "val", "test")}
    assert counts == {"train": 367 - 204, "val": 101, "test": 233}  # the other 204 to train on are of 0016E5 at 1 Hz
    assert {part_of(f"0016E5_{n:05d}") for n in (390, 7920, 8190, 8640)} == {"train"}
    assert part_of("0016E6_00001") is None


def test_targets_travel_to_other_processes(cityscapes):
    dataset = load_dataset("cityscapes", cityscapes.parent)
    copy = pickle.loads(pickle.dumps(dataset.samples["test"]))
    np.testing.assert_array_equal(copy.targets["mask"][0], target(dataset, "test", 0))
    assert copy.targets["mask"][0].shape == SIZE
