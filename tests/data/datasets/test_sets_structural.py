"""THOR depth, KITTI flow and COCO's panoptic classes against what was planted, and against other readers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image
from structural_support import coco_scene, kitti_files, kitti_pair, noise, picture, put

from virb.data.datasets import load_dataset
from virb.data.datasets.coco import CATEGORIES
from virb.data.verify import verify
from virb.errors import BadImage, UserError

# THOR


def thor(root, place="thor_depth_prediction"):
    for number, scene in enumerate(("train/Room1", "train/Room2", "test/Room9")):
        for view in "ab":
            grey = 20 * number + (5 if view == "a" else 200)
            base = root / place / scene
            put(base / f"{view}_rgb.jpg", picture(np.full((8, 10, 3), grey, np.uint8), "JPEG"))
            put(base / f"{view}_depth.jpg", picture(np.full((8, 10), grey, np.uint8), "JPEG"))
    return root / place


@pytest.mark.parametrize("place", ["thor_depth_prediction", "thor_depth"])
def test_thor_depth_is_the_grey_of_the_pair(tmp_path, place):
    thor(tmp_path, place)
    dataset = load_dataset("thor-depth", tmp_path)
    assert {split: len(samples) for split, samples in dataset.samples.items()} == {"train": 4, "test": 2}
    for split, samples in dataset.samples.items():
        for i in range(len(samples)):
            grey = np.asarray(dataset.lists[split].read(i))[..., 0]  # planted: the image is as grey as its depth
            depth = samples.targets["depth"][i]
            assert (depth.dtype, depth.shape) == (np.float32, (8, 10))
            np.testing.assert_allclose(depth, grey / 255, atol=1e-6)
    assert dataset.samples["train"].units.tolist() == ["train/Room1"] * 2 + ["train/Room2"] * 2


def test_thor_depth_as_in_2021_and_black_pixels(tmp_path):
    from torchvision import transforms

    folder = thor(tmp_path)
    put(folder / "train/Room1/a_depth.jpg", picture(np.zeros((8, 10), np.uint8), "JPEG"))
    assert np.isnan(load_dataset("thor-depth", tmp_path).samples["train"].targets["depth"][0]).all()
    historic = load_dataset("thor-depth", tmp_path, variant="virb2021").samples["train"].targets["depth"]
    published = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean=0.5, std=0.25)])
    for i, path in enumerate(historic.paths):
        with Image.open(folder / path) as image:
            np.testing.assert_allclose(historic[i], published(image.convert("L")).numpy(), atol=1e-6)
    assert historic[0].shape == (1, 8, 10)
    assert (historic[0] == -2).all()
    plain = load_dataset("thor-depth", tmp_path).samples["train"].targets["depth"]
    assert plain.identity() != historic.identity()


def test_thor_depth_that_does_not_fit_together(tmp_path):
    folder = thor(tmp_path)
    (folder / "train/Room2/b_rgb.jpg").unlink()
    with pytest.raises(UserError, match=r"1 depth maps in .* have no image: 'train/Room2/b_depth.jpg'"):
        load_dataset("thor-depth", tmp_path)
    (folder / "train/Room2/b_depth.jpg").unlink()
    (folder / "test/Room9/a_depth.jpg").unlink()
    with pytest.raises(UserError, match=r"1 images in .* have no depth map: 'test/Room9/a_rgb.jpg'"):
        load_dataset("thor-depth", tmp_path)
    with pytest.raises(UserError, match="thor-depth has no variant 'virb2012'; did you mean virb2021"):
        load_dataset("thor-depth", tmp_path, variant="virb2012")


def test_verify_knows_depth_maps_beside_their_images(tmp_path):
    folder = thor(tmp_path)
    report = verify("thor-depth", tmp_path, workers=2)
    assert report.ok
    assert [finding.text for finding in report.findings] == ["train has 4 samples; published are 60,000"]
    put(folder / "train/Room1/c_rgba.jpg", picture(noise(0, 8, 10, 3), "JPEG"))
    put(folder / "test/Room9/b_depth.jpg", picture(noise(0, 8, 11), "JPEG"))
    texts = {finding.text: finding.names for finding in verify("thor-depth", tmp_path, workers=2).findings}
    assert texts["1 images lie beside the others and are in no split"] == ("train/Room1/c_rgba.jpg",)
    (sizes,) = [names for text, names in texts.items() if "differ in size from their image" in text]
    assert sizes == ("test/Room9/b_rgb.jpg: 8 x 10 pixels, but its target 8 x 11",)


# KITTI


def kitti(root, n=20, place="KITTI"):
    for path, content in kitti_files(n).items():
        put(root / place / path, content)
    return root / place / "training"


def test_kitti_gives_the_planted_flow_and_what_is_seen(tmp_path):
    kitti(tmp_path)
    dataset = load_dataset("kitti-flow", tmp_path)
    assert {split: len(samples) for split, samples in dataset.samples.items()} == {"train": 18, "test": 2}
    assert dataset.samples["test"].ids.tolist() == ["000018", "000019"]
    for split, samples in dataset.samples.items():
        for i, name in enumerate(samples.ids.tolist()):
            planted = kitti_pair(int(name))
            pair = [int(np.asarray(dataset.lists[split].read(row)).mean()) for row in samples.rows(i)]
            assert pair == [8 * int(name) + 10, 8 * int(name) + 11]
            flow = samples.targets["flow"][i]
            assert (flow.dtype, flow.shape) == (np.float32, (3, 6, 10))
            valid = planted["valid"]
            assert np.isnan(flow[:, ~valid]).all()
            np.testing.assert_array_equal(flow[:2, valid], planted["flow"][:, valid])
            np.testing.assert_array_equal(flow[2, valid], planted["visible"][valid])
    again = pickle.loads(pickle.dumps(dataset.samples["train"].targets["flow"]))
    np.testing.assert_array_equal(again[3], dataset.samples["train"].targets["flow"][3])


def test_kitti_agrees_with_torchvision(tmp_path):
    from torchvision.datasets import KittiFlow

    kitti(tmp_path, place="KittiFlow")
    theirs = KittiFlow(tmp_path, "train")
    dataset = load_dataset("kitti-flow", tmp_path)
    ours = [(split, i) for split in ("train", "test") for i in range(len(dataset.samples[split]))]
    assert len(theirs) == len(ours)
    for (first, second, flow, valid), (split, i) in zip(theirs, ours, strict=True):
        a, b = dataset.samples[split].rows(i)
        np.testing.assert_array_equal(np.asarray(first), np.asarray(dataset.lists[split].read(a)))
        np.testing.assert_array_equal(np.asarray(second), np.asarray(dataset.lists[split].read(b)))
        target = dataset.samples[split].targets["flow"][i]
        np.testing.assert_array_equal(np.isfinite(target[0]), valid)
        np.testing.assert_array_equal(target[:2, valid], flow[:, valid])


def test_kitti_as_in_2021_is_another_answer(tmp_path):
    base = kitti(tmp_path)
    (base / "viz_flow_occ" / "notes.txt").write_text("no picture")
    plain = load_dataset("kitti-flow", tmp_path)
    historic = load_dataset("kitti-flow", tmp_path, variant="virb2021")
    for split in ("train", "test"):
        assert historic.samples[split].ids.tolist() == plain.samples[split].ids.tolist()
        assert historic.lists[split].identity() == plain.lists[split].identity()  # the same images are encoded once for both
        for i, name in enumerate(historic.samples[split].ids.tolist()):
            luminance = historic.samples[split].targets["flow"][i]
            with Image.open(base / "viz_flow_occ" / f"{name}_10.png") as image:
                np.testing.assert_allclose(luminance[0], np.asarray(image.convert("F")) / 255, rtol=1e-6)
            np.testing.assert_array_equal(luminance[0] != 0, kitti_pair(int(name))["valid"])
    assert plain.samples["train"].targets["flow"][2][0, 0, 0] == 2  # planted, in pixels
    assert 0 < historic.samples["train"].targets["flow"][2][0, 0, 0] <= 1


def test_kitti_that_does_not_fit_together(tmp_path):
    base = kitti(tmp_path, 4)
    identity = load_dataset("kitti-flow", tmp_path).samples["train"].targets["flow"].identity()
    put(base / "flow_noc/000001_10.png", kitti_files(4, 6, 11)["training/flow_noc/000001_10.png"])
    changed = load_dataset("kitti-flow", tmp_path).samples["train"].targets["flow"]
    assert changed.identity() != identity  # what is visible is part of the target
    with pytest.raises(BadImage, match=r"flow_noc/000001_10.png: has 6 x 11 pixels .* 6 x 10"):
        changed[1]
    put(base / "flow_occ/000001_10.png", picture(noise(0, 6, 10, 3)))
    with pytest.raises(BadImage, match=r"flow_occ/000001_10.png"):
        changed[1]
    (base / "flow_noc/000001_10.png").unlink()
    with pytest.raises(UserError, match=r"names 4 flow maps, but 1 of them are not below .*'flow_noc/000001_10.png'"):
        load_dataset("kitti-flow", tmp_path)
    (base / "image_2/000002_11.png").unlink()
    with pytest.raises(UserError, match=r"'image_2/000002_11.png'"):
        load_dataset("kitti-flow", tmp_path)
    (base / "image_2/000003_10.png").unlink()
    with pytest.raises(UserError, match=r"1 flow maps in .* have no image: 'flow_occ/000003_10.png'"):
        load_dataset("kitti-flow", tmp_path)


# COCO


def coco(root, images="", maps=""):
    folder = root / "coco"
    for part, numbers in (("train2017", (1, 2, 3)), ("val2017", (4,))):
        for number in numbers:
            _, _, categories = coco_scene(number)
            put(folder / f"{images}{part}" / f"{number:012d}.jpg", picture(noise(number, 9, 11, 3), "JPEG"))
            put(folder / f"{maps}panoptic_labels_{part}" / f"{number:012d}.png", picture(categories))
    return folder


@pytest.mark.parametrize(("images", "maps"), [("", "annotations/"), ("images/", ""), ("", "")])
def test_coco_gives_contiguous_classes(tmp_path, images, maps):
    coco(tmp_path, images, maps)
    dataset = load_dataset("coco-panoptic", tmp_path)
    assert {split: len(samples) for split, samples in dataset.samples.items()} == {"train": 3, "test": 1}
    names = dataset.classes["labels"]
    for split, samples in dataset.samples.items():
        for i, path in enumerate(dataset.lists[split].paths):
            _, _, categories = coco_scene(int(path[-16:-4]))
            labels = samples.targets["labels"][i]
            assert labels.dtype == np.uint8
            np.testing.assert_array_equal(labels == 255, categories == 0)
            shown = np.array(["", *names])[np.where(labels == 255, 0, labels.astype(int) + 1)]
            for category, name in ((1, "person"), (51, "bowl"), (92, "banner"), (200, "rug-merged")):
                np.testing.assert_array_equal(shown == name, categories == category)
    assert (names.index("person"), names.index("banner"), names.index("rug-merged")) == (0, 80, 132)  # 80 things come first


def test_coco_as_in_2021_has_the_ids_themselves(tmp_path):
    coco(tmp_path)
    dataset = load_dataset("coco-panoptic", tmp_path, variant="virb2021")
    np.testing.assert_array_equal(dataset.samples["test"].targets["labels"][0], coco_scene(4)[2])
    assert len(dataset.classes["labels"]) == 201
    assert dataset.classes["labels"][200] == "rug-merged"
    plain = load_dataset("coco-panoptic", tmp_path)
    assert plain.samples["test"].targets["labels"].identity() != dataset.samples["test"].targets["labels"].identity()


def test_the_categories_are_the_official_ones():
    assert len(CATEGORIES) == 133
    assert list(CATEGORIES) == sorted(CATEGORIES)
    assert sum(number <= 90 for number in CATEGORIES) == 80
    assert max(CATEGORIES) == 200
    assert {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}.isdisjoint(CATEGORIES)  # never used
    assert (CATEGORIES[90], CATEGORIES[187], CATEGORIES[53]) == ("toothbrush", "sky-other-merged", "apple")


def test_coco_without_maps_or_images(tmp_path):
    folder = coco(tmp_path)
    put(folder / "train2017/000000000009.jpg", picture(noise(9, 9, 11, 3), "JPEG"))
    dataset = load_dataset("coco-panoptic", tmp_path)
    assert len(dataset.samples["train"]) == 3
    assert dataset.note == "1 images of train have no label map and are left out"
    put(folder / "panoptic_labels_train2017/000000000008.png", picture(np.full((9, 11), 12, np.uint8)))
    with pytest.raises(UserError, match=r"1 label maps in .* have no image: 'panoptic_labels_train2017/000000000008.png'"):
        load_dataset("coco-panoptic", tmp_path)
    put(folder / "train2017/000000000008.jpg", picture(noise(9, 9, 11, 3), "JPEG"))
    with pytest.raises(BadImage, match=r"000000000008.png: has the value 12"):
        load_dataset("coco-panoptic", tmp_path).samples["train"].targets["labels"][3]
    (folder / "panoptic_labels_val2017").rename(folder / "elsewhere")
    with pytest.raises(UserError, match=r"panoptic_labels_val2017 is not there.*\nvirb data prepare COCODetection --source FOLDER"):
        load_dataset("coco-panoptic", tmp_path)
