"""What looks like a dataset and is another one, a part of one, or nonsense: refused with what was found."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from sets_support import Palette, write
from test_sets_virb import OBJECTS, caltech, clevr

from virb.data.datasets import load_dataset
from virb.data.datasets.clevr import _CAMERA
from virb.data.datasets.common import ruled_split
from virb.data.datasets.imagenet import wnids
from virb.errors import UserError

names = Palette(("n01440764", "n01443537"))
FOLDERS = {"pets": "test", "sun397": "test", "eurosat": "test", "dtd": "test", "imagenet": "val", "imagenette": "val", "imagenet100": "val"}


@pytest.mark.parametrize("name", [*FOLDERS, "places365", "country211", "imagenet-r", "imagenet-sketch", "imagenetv2", "caltech101"])
def test_folders_of_another_dataset_are_not_taken_for_this_one(tmp_path, published_classes, name):
    """All of these once read any two folders train and test, or any folders at all, right in the root."""
    splits = {"places365": ("train", "val"), "country211": ("train", "valid", "test")}
    for split in splits.get(name, ("train", FOLDERS[name]) if name in FOLDERS else ("",)):
        for cls in names.names:
            names.put(tmp_path / split / cls / "1.jpg", cls)
    with pytest.raises(UserError, match=rf"{name}: .* has 2 class folders \('n01440764', 'n01443537'\), but {name} has [\d,]+ classes"):
        load_dataset(name, tmp_path)


def test_kaggles_parts_and_flat_validation_images_have_all_classes_too(tmp_path, published_classes):
    for part in ("train.X1", "train.X2", "train.X3", "train.X4", "val.X"):
        names.put(tmp_path / "imagenet100" / part / "n01440764/1.jpg", "n01440764")
    with pytest.raises(UserError, match="has 1 class folders"):
        load_dataset("imagenet100", tmp_path)
    names.put(tmp_path / "imagenet/train/n01440764/1.jpg", "n01440764")
    names.put(tmp_path / "imagenet/val/ILSVRC2012_val_00000001.JPEG", "n01440764")
    with pytest.raises(UserError, match="has 1 class folders"):
        load_dataset("imagenet", tmp_path)


def test_all_classes_are_enough_and_caltech_may_lack_its_background(tmp_path, published_classes):
    for cls in wnids("imagenet_r"):
        for split in ("imagenet-r",):
            names.put(tmp_path / split / cls / "1.jpg", "n01440764")
    assert len(load_dataset("imagenet-r", tmp_path).samples["test"]) == 200
    for i in range(101):
        for j in range(2):
            names.put(tmp_path / f"caltech/object_{i:03}/{j}.jpg", "n01440764")
    assert len(load_dataset("caltech101", tmp_path).classes["class"]) == 101
    names.put(tmp_path / "caltech/object_101/0.jpg", "n01440764")
    with pytest.raises(UserError, match="has 102 class folders"):
        load_dataset("caltech101", tmp_path)
    (tmp_path / "caltech/object_101").rename(tmp_path / "caltech/BACKGROUND_Google")
    assert len(load_dataset("caltech101", tmp_path).classes["class"]) == 102
    assert len(load_dataset("caltech101", tmp_path, background=False).classes["class"]) == 101


def test_half_a_split_is_not_replaced_by_the_rule(tmp_path):
    caltech(tmp_path, "caltech", per_class=3)
    train, test = (tmp_path / f"caltech/caltech101_{split}.json" for split in ("train", "test"))
    write(train, [f"{name}/image_0001.jpg" for name in OBJECTS])
    with pytest.raises(UserError, match=r"caltech has half a split: 'caltech101_test.json' is not there"):
        load_dataset("caltech101", tmp_path)
    write(test, ["ant/image_0002.jpg", "ant/image_0003.jpg", "ant/image_0002.jpg"])
    with pytest.raises(UserError, match=r"caltech101_test.json names 1 images twice: '.*ant/image_0002.jpg'"):
        load_dataset("caltech101", tmp_path)
    for i in range(4):
        names.put(tmp_path / f"eurosat/2750/Forest/Forest_{i}.jpg", "n01440764")
    write(tmp_path / "eurosat/eurosat-val.txt", "Forest_1.jpg\n")
    with pytest.raises(UserError, match=r"half a split: 'eurosat-train.txt', 'eurosat-test.txt' are not there"):
        load_dataset("eurosat", tmp_path)


def scenes(folder, part="train"):
    path = folder / f"scenes/CLEVR_{part}_scenes.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("key", ["3d_coords", "pixel_coords"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 5e300, -1e4])
def test_clevr_scenes_that_lie_nowhere(tmp_path, key, value):
    folder = clevr(tmp_path, "CLEVR", {"train": [3, 4], "val": [3]})
    path, content = scenes(folder)
    content["scenes"][0]["objects"][1][key][2] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"CLEVR_train_000001.png has an object with the coordinate {re.escape(str(value))}"):
        load_dataset("clevr", tmp_path)


def test_clevr_camera_distance_is_vtabs_also_at_the_bounds(tmp_path):
    depths = sorted({7.0, 10.5, *(d + e for d in _CAMERA for e in (-0.01, 0, 0.01))})
    folder = clevr(tmp_path, "CLEVR", {"train": [3] * len(depths), "val": [3]})
    path, content = scenes(folder)
    for scene, depth in zip(sorted(content["scenes"], key=lambda scene: scene["image_filename"]), depths, strict=True):
        for thing in scene["objects"]:
            thing["pixel_coords"][2] = depth
    path.write_text(json.dumps(content))
    bounds = np.array([0, *_CAMERA, 100.0])
    theirs = [int(np.max(np.where((bounds - depth) < 0))) for depth in depths]  # as VTAB computes it
    assert load_dataset("clevr", tmp_path).samples["train"].targets["camera_distance"].tolist() == theirs


def test_clevr_classes_that_nobody_can_learn(tmp_path):
    folder = clevr(tmp_path, "CLEVR", {"train": [3, 4], "val": [5]})
    with pytest.raises(UserError, match=r"clevr \(count\): test has samples of '5', but train has none"):
        load_dataset("clevr", tmp_path)
    clevr(tmp_path, "CLEVR", {"train": [3, 4], "val": [4]})
    path, content = scenes(folder, "val")
    for thing in content["scenes"][0]["objects"]:
        thing["3d_coords"] = [3.0, 3.0, 0.0]
    path.write_text(json.dumps(content))
    note = load_dataset("clevr", tmp_path).note  # a rare outer bin of the published data: no mistake, and told
    assert note == "1 test scenes are in bins of the distance that no training scene is in"
    for thing in content["scenes"][0]["objects"]:
        thing["pixel_coords"][2] = 12.0
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"clevr \(camera_distance\): test has samples of 'above 10', but train has none"):
        load_dataset("clevr", tmp_path)


def test_thor_steps_that_nobody_can_learn(tmp_path):
    for part, steps in (("train", "12"), ("val", "3")):
        for i in range(len(steps)):
            names.put(tmp_path / f"thor_num_steps/{part}/F/{i}_rgb.jpg", "n01440764")
        write(tmp_path / f"thor_num_steps/{part}_labels.txt", "".join(f"{part}/F/{i} {n}\n" for i, n in enumerate(steps)))
    with pytest.raises(UserError, match="test has samples of '3', but train has none"):
        load_dataset("thor-num-steps", tmp_path)


@pytest.mark.parametrize("number", ["0", "38", "9" * 12, "-1", "\u00b2", "01"])
def test_breeds_have_their_numbers(tmp_path, number):
    folder = tmp_path / "pets"
    names.put(folder / "images/a_1.jpg", "n01440764")
    write(folder / "annotations/trainval.txt", "a_1 1 1 1\n")
    write(folder / "annotations/test.txt", f"a_1 {number} 1 1\n")
    with pytest.raises(UserError, match=r"lines of image, breed \(1 to 37\), species and number"):
        load_dataset("pets", tmp_path)


def test_the_rule_may_see_a_part_of_the_path():
    plain = {"x": [f"x/{i}.jpg" for i in range(20)]}
    below = {"x": [f"2750/x/{i}.jpg" for i in range(20)]}
    for (ours,), (theirs,) in zip(*(tuple(tuple(part.values()) for part in split) for split in (
        ruled_split("p", plain, 0.5), ruled_split("p", below, 0.5, hashed=lambda path: path.removeprefix("2750/"))
    )), strict=True):  # fmt: skip
        assert theirs == [f"2750/{path}" for path in ours]
