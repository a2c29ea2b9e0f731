"""EgoHands: polygons as published, label images as of ViRB 2021, and the way from one to the other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pixel_support import every_value, ids, put_image, put_labels, target
from scipy.io import savemat

from virb.data.datasets import load_dataset
from virb.data.datasets.egohands import filled_hands, inside, part_of, read_polygons
from virb.errors import BadImage, UserError

VIDEOS = {"train": "CHESS_OFFICE_H_T", "val": "PUZZLE_OFFICE_S_T", "test": "CARDS_COURTYARD_B_T"}
FRAMES = ("frame_0011", "frame_0036", "frame_0099")
SIZE = (40, 60)
HANDS = ("myleft", "myright", "yourleft", "yourright")  # in the order of the files
EMPTY = np.zeros((0, 0))
# In MATLAB's pixels, where the first one's centre is at 1: columns 11 to 20 and rows 6 to 15, counted from 1.
SQUARE = np.array([[10.5, 5.5], [20.5, 5.5], [20.5, 15.5], [10.5, 15.5]])


def polygons(path, frames):
    """A struct array as the makers saved it: 1 x frames, a field per hand, points x 2, or 0 x 0 where there is none."""
    array = np.zeros((1, len(frames)), dtype=[(hand, object) for hand in HANDS])
    for i, hands in enumerate(frames):
        for hand in HANDS:
            array[0, i][hand] = hands.get(hand, EMPTY)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"polygons": array})
    return path


@pytest.fixture
def official(tmp_path):
    folder = tmp_path / "egohands/_LABELLED_SAMPLES"
    for k, video in enumerate(VIDEOS.values()):
        for frame in FRAMES:
            put_image(folder / video / f"{frame}.jpg", SIZE)
        polygons(
            folder / video / "polygons.mat", [{}, {"yourright": SQUARE + k}, {"yourleft": SQUARE, "myright": SQUARE + np.array([5, 0])}]
        )
    (folder.parent / "metadata.mat").write_bytes(b"not read")
    return folder


def test_an_outline_holds_the_pixels_whose_centres_it_encloses():
    random = np.random.default_rng(0)
    for n in (3, 4, 7, 40):
        angle = np.sort(random.uniform(0, 2 * np.pi, n))
        radius = random.uniform(3, 25, n)
        points = np.stack([30.3 + radius * np.cos(angle), 19.6 + radius * np.sin(angle)], axis=1)  # partly outside of the image
        y, x = np.indices(SIZE)
        expected = Outline(points).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(SIZE)
        assert expected.sum() > 10
        np.testing.assert_array_equal(inside(points, SIZE), expected)


def test_outlines_of_no_area_hold_nothing():
    assert not inside(np.empty((0, 2)), SIZE).any()
    assert not inside(np.array([[5.0, 5.0]]), SIZE).any()
    assert not inside(np.array([[5.0, 5.0], [9.0, 5.0]]), SIZE).any()


def test_matlab_counts_from_1_and_own_hands_are_in_front():
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[5:15, 10:20] = 1
    np.testing.assert_array_equal(filled_hands({**dict.fromkeys(HANDS, np.empty((0, 2))), "yourleft": SQUARE}, SIZE), expected)
    both = filled_hands({**dict.fromkeys(HANDS, np.empty((0, 2))), "yourleft": SQUARE, "myright": SQUARE + np.array([5, 0])}, SIZE)
    expected[5:15, 15:25] = 4
    np.testing.assert_array_equal(both, expected)
    with pytest.raises(BadImage, match="myleft has a point that is not finite"):
        filled_hands({**dict.fromkeys(HANDS, np.empty((0, 2))), "myleft": SQUARE * np.nan}, SIZE)


def test_the_published_files(official):
    dataset = load_dataset("egohands", official.parents[1])
    for part, video in VIDEOS.items():
        assert ids(dataset, part) == [f"{video}/{frame}.jpg" for frame in FRAMES]
        assert set(dataset.samples[part].units) == {video}
    assert dataset.classes["mask"] == ("background", "yourleft", "yourright", "myleft", "myright")
    assert not target(dataset, "test", 0).any()
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[7:17, 12:22] = 2  # the third video's is moved by 2
    np.testing.assert_array_equal(target(dataset, "test", 1), expected)
    assert dataset.samples["test"].targets["mask"].identity() != dataset.samples["val"].targets["mask"].identity()


def test_label_images_of_2021(tmp_path):
    for video in VIDEOS.values():
        for frame in FRAMES:
            put_image(tmp_path / f"egohands/images/{video}/{frame}.jpg")
            put_labels(tmp_path / f"egohands/labels/{video}/{frame}.png", every_value([0, 1, 2, 3, 4]))
    dataset = load_dataset("egohands", tmp_path)
    assert ids(dataset, "val") == [f"images/{VIDEOS['val']}/{frame}.jpg" for frame in FRAMES]
    assert set(dataset.samples["test"].units) == {VIDEOS["test"]}
    np.testing.assert_array_equal(target(dataset, "train", 2), every_value([0, 1, 2, 3, 4]))
    put_labels(tmp_path / f"egohands/labels/{VIDEOS['test']}/{FRAMES[0]}.png", every_value([5]))
    with pytest.raises(BadImage, match=r"CARDS_COURTYARD_B_T/frame_0011.png.*5"):
        target(dataset, "test", 0)


def test_the_split_is_the_papers():
    pairs = {
        "COURTYARD": {"CARDS": "BT HS SH TB", "CHESS": "BT HS SH TB", "JENGA": "BH HB ST TS", "PUZZLE": "BS HT SB TH"},
        "LIVINGROOM": {"CARDS": "BT HS SH TB", "CHESS": "BS HT SB TH", "JENGA": "BH HB ST TS", "PUZZLE": "BT HS SH TB"},
        "OFFICE": {"CARDS": "BS HT SB TH", "CHESS": "BS HT SB TH", "JENGA": "BS HT SB TH", "PUZZLE": "BH HB ST TS"},
    }
    videos = sorted(
        f"{activity}_{place}_{a}_{b}"
        for place, activity in itertools.product(pairs, pairs["OFFICE"])
        for a, b in pairs[place][activity].split()
    )
    assert len(videos) == 48
    # ViRB 2021 counts sorted folders: places of its test and its validation videos
    assert [i for i, video in enumerate(videos) if part_of(video) == "test"] == [0, 10, 12, 19, 30, 33, 37, 43]
    assert [i for i, video in enumerate(videos) if part_of(video) == "val"] == [6, 13, 27, 46]


def test_what_is_wrong_is_named(official):
    video = official / VIDEOS["test"]
    (video / "frame_0036.jpg").unlink()
    with pytest.raises(UserError, match=r"CARDS_COURTYARD_B_T has 2 frames, but polygons.mat has polygons of 3"):
        load_dataset("egohands", official.parents[1])
    (video / "polygons.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    read_polygons.cache_clear()
    with pytest.raises(UserError, match=r"CARDS_COURTYARD_B_T/polygons.mat is not a MATLAB file that can be read"):
        load_dataset("egohands", official.parents[1])
    savemat(video / "polygons.mat", {"polygons": np.zeros((1, 2), dtype=[("left", object)])})
    with pytest.raises(UserError, match=r"polygons.mat is of another version.*expected polygons of yourleft"):
        load_dataset("egohands", official.parents[1])
