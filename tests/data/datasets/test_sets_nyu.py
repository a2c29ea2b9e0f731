"""NYU Depth v2: the labelled file as published, and ViRB 2021's folders."""

from __future__ import annotations

import pickle

import h5py
import numpy as np
import pytest
from nyu_support import CLASSES, N_LABELS, frames, mapping, write_nyu
from PIL import Image
from pixel_support import SIZE, every_value, ids, put_image, put_labels, target
from scipy.io import savemat

from virb.data.datasets import load_dataset
from virb.data.decode import DECODED
from virb.errors import BadImage, UserError

TRAIN, TEST = [3, 1, 5], [2, 4]
SCENES = ["cafe_0001", "cafe_0001", "kitchen_0004", "den_0001", "kitchen_0004"]


@pytest.fixture
def labelled(tmp_path):
    arrays = frames(5, *SIZE)
    write_nyu(tmp_path / "nyu", arrays, TRAIN, TEST, SCENES)
    return tmp_path, arrays


@pytest.fixture
def folders(tmp_path):
    for part, n in (("train", 3), ("test", 2)):
        for i in range(n):
            put_image(tmp_path / f"nyu/{part}/images/{i:04d}.png")
            put_labels(tmp_path / f"nyu/{part}/walkable/{i:04d}.png", every_value([0, 255, i]))
            depth = np.resize(np.array([0, 2.5, np.nan, -1, 3 + i], dtype=np.float32), SIZE)
            path = tmp_path / f"nyu/{part}/depths/{i:04d}.tiff"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(depth).save(path)
    return tmp_path


def test_depth_is_the_sensors_in_the_official_split(labelled):
    root, arrays = labelled
    dataset = load_dataset("nyu-depth", root)
    assert dataset.note == "official split"
    for split, numbers in (("train", TRAIN), ("test", TEST)):
        assert ids(dataset, split) == [f"nyu_depth_v2_labeled.mat#{number:04d}" for number in numbers]
        assert list(dataset.samples[split].units) == [SCENES[number - 1] for number in numbers]
        for i, number in enumerate(numbers):
            before = DECODED.value
            np.testing.assert_array_equal(np.asarray(dataset.lists[split].read(i)), arrays["images"][number - 1])
            assert DECODED.value == before + 1
            raw = arrays["rawDepths"][number - 1]
            np.testing.assert_array_equal(target(dataset, split, i, "depth"), np.where(raw == 0, np.nan, raw))
        assert dataset.lists[split].image_size(0) == SIZE
    assert "depth" not in dataset.classes


def test_forty_classes(labelled):
    root, arrays = labelled
    dataset = load_dataset("nyu40", root)
    assert dataset.classes["mask"] == CLASSES
    raw = arrays["labels"][TEST[1] - 1]
    assert 0 in raw
    expected = np.where(raw == 0, 255, mapping()[np.maximum(raw, 1) - 1] - 1)
    np.testing.assert_array_equal(target(dataset, "test", 1), expected)
    assert target(dataset, "test", 1).dtype == np.uint8


def test_depth_and_classes_share_their_images(labelled):
    depth, classes = load_dataset("nyu-depth", labelled[0]), load_dataset("nyu40", labelled[0])
    assert depth.lists["test"].identity() == classes.lists["test"].identity() != depth.lists["train"].identity()
    assert depth.samples["test"].targets["depth"].identity() != classes.samples["test"].targets["mask"].identity()


def test_they_travel_to_other_processes(labelled):
    dataset = load_dataset("nyu-depth", labelled[0])
    expected, image = target(dataset, "test", 0, "depth"), np.asarray(dataset.lists["test"].read(0))  # the file is open
    copy = pickle.loads(pickle.dumps((dataset.samples["test"], dataset.lists["test"])))
    np.testing.assert_array_equal(copy[0].targets["depth"][0], expected)
    np.testing.assert_array_equal(np.asarray(copy[1].read(0)), image)


def test_the_eigen_crop_leaves_out_the_frame(tmp_path):
    arrays = frames(2, 480, 640)
    write_nyu(tmp_path / "nyu", arrays, [1], [2], SCENES[:2])
    found = target(load_dataset("nyu-depth", tmp_path, crop="eigen"), "test", 0, "depth")
    valid = arrays["rawDepths"][1] > 0
    inside = np.zeros((480, 640), dtype=bool)
    inside[45:471, 41:601] = True
    np.testing.assert_array_equal(np.isfinite(found), valid & inside)
    assert np.isfinite(target(load_dataset("nyu-depth", tmp_path), "test", 0, "depth")).sum() == valid.sum()
    with pytest.raises(UserError, match=r"crop is 'garg'; expected none or eigen"):
        load_dataset("nyu-depth", tmp_path, crop="garg")


def test_folders_of_2021(folders):
    walkable, depth = load_dataset("nyu-walkable", folders), load_dataset("nyu-depth", folders, crop="eigen")
    assert ids(walkable, "train") == ids(depth, "train") == [f"train/images/{i:04d}.png" for i in range(3)]
    assert walkable.lists["test"].identity() == depth.lists["test"].identity()
    np.testing.assert_array_equal(target(walkable, "train", 1), every_value([0, 1, 1]))
    np.testing.assert_array_equal(target(walkable, "train", 0), every_value([0, 1, 0]))
    assert walkable.classes["mask"] == ("other", "walkable")
    found = target(depth, "test", 1, "depth")
    np.testing.assert_array_equal(found, np.resize(np.array([np.nan, 2.5, np.nan, np.nan, 4], dtype=np.float32), SIZE))
    assert depth.note == "folders of ViRB 2021"


def test_targets_of_2021_are_as_stored(folders):
    walkable = load_dataset("nyu-walkable", folders, variant="virb2021")
    np.testing.assert_array_equal(target(walkable, "test", 1), every_value([0, 255, 1]))
    depth = target(load_dataset("nyu-depth", folders, variant="virb2021"), "test", 0, "depth")
    assert depth.shape == (1, *SIZE)
    assert (depth[0, 0, :2].tolist(), depth[0, 0, 3]) == ([0, 2.5], -1)


def test_the_labelled_file_comes_first_but_not_for_2021(labelled, folders):
    root = labelled[0]  # the same folder
    assert load_dataset("nyu-depth", root).note == "official split"
    assert load_dataset("nyu-depth", root, variant="virb2021").note == "folders of ViRB 2021"


def test_a_depth_without_its_image(folders):
    (folders / "nyu/test/images/0001.png").unlink()
    with pytest.raises(
        UserError, match=r"nyu-depth: 1 depth maps in .*test/images and .*test/depths have no image: 'test/depths/0001.tiff'"
    ):
        load_dataset("nyu-depth", folders)


def test_files_that_do_not_fit_together(labelled):
    root, arrays = labelled
    savemat(root / "nyu/splits.mat", {"trainNdxs": [[1], [6]], "testNdxs": [[2]]})
    with pytest.raises(UserError, match=r"splits.mat is of another version.*trainNdxs with different numbers from 1 to 5"):
        load_dataset("nyu-depth", root)
    savemat(root / "nyu/splits.mat", {"trainNdxs": [[1], [2]], "testNdxs": [[2]]})
    with pytest.raises(UserError, match=r"splits.mat has 1 frames to train and to test on, such as 2"):
        load_dataset("nyu-depth", root)
    write_nyu(root / "nyu", arrays, TRAIN, TEST, SCENES)
    savemat(root / "nyu/classMapping40.mat", {"mapClass": mapping()[None, : N_LABELS - 30], "className": np.array([CLASSES], dtype=object)})
    with pytest.raises(BadImage, match=r"frame 2 has the label \d+; classMapping40.mat names 30"):
        target(load_dataset("nyu40", root), "test", 0)
    with h5py.File(root / "nyu/nyu_depth_v2_labeled.mat", "r+") as file:
        del file["rawDepths"]
    with pytest.raises(UserError, match=r"nyu_depth_v2_labeled.mat is of another version.*rawDepths"):
        load_dataset("nyu-depth", root)
    (root / "nyu/nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 7.3")
    with pytest.raises(UserError, match=r"nyu_depth_v2_labeled.mat cannot be read as HDF5"):
        load_dataset("nyu-depth", root)


def test_a_frame_that_cannot_be_read_names_the_file(labelled):
    dataset = load_dataset("nyu-depth", labelled[0])
    with h5py.File(labelled[0] / "nyu/nyu_depth_v2_labeled.mat", "r+") as file:
        del file["rawDepths"]
    with pytest.raises(BadImage, match=r"nyu_depth_v2_labeled.mat: rawDepths of frame 2 cannot be read"):
        target(dataset, "test", 0, "depth")
