"""Sets with several images per sample: THOR, nuScenes and Kinetics; and THOR's single images."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sets_support import Palette, check_planted, video, write

from virb.data.datasets import load_dataset
from virb.data.datasets.kinetics import spaced
from virb.data.datasets.thor import ACTIONS
from virb.errors import BadImage, UserError

# THOR

TOO_FAR = [(f"val/a/b {n}\n", rf"at most 1000 steps, but there is {n}") for n in ("1001", "9" * 5000)]


def test_thor_num_steps(tmp_path):
    steps = Palette(["1", "4", "9"])
    folder = tmp_path / "thor_num_steps"
    rows = {"train": [("FloorPlan1", "1"), ("FloorPlan1", "4"), ("FloorPlan2", "9")], "val": [("FloorPlan9", "9")]}
    for part, items in rows.items():
        lines = []
        for i, (scene, n) in enumerate(items):
            steps.put(folder / part / scene / f"{i}_rgb.jpg", n)
            lines.append(f"{part}/{scene}/{i} {n}")
        write(folder / f"{part}_labels.txt", "\n".join(lines) + "\n")
    dataset = load_dataset("thor-num-steps", tmp_path)
    check_planted(dataset, steps)
    assert dataset.classes["class"] == tuple(str(n) for n in range(10))  # up to the most steps of any split
    assert list(dataset.samples["train"].units) == ["train/FloorPlan1"] * 2 + ["train/FloorPlan2"]
    (folder / "val/FloorPlan9/0_rgb.jpg").unlink()
    with pytest.raises(UserError, match=r"val_labels.txt names 1 images, but 1 of them are not below .*FloorPlan9/0_rgb.jpg"):
        load_dataset("thor-num-steps", tmp_path)
    for text, message in (("val/a/b\n", "lines of path and label"), ("val/a/b far\n", "there is 'far'"), ("\n", "is empty"), *TOO_FAR):
        write(folder / "val_labels.txt", text)
        with pytest.raises(UserError, match=message):
            load_dataset("thor-num-steps", tmp_path)


@pytest.mark.parametrize("place", ["thor_action_prediction", "thor_egomotion"])
@pytest.mark.parametrize("prefix", ["", "thor_action_prediction/"])
def test_thor_actions(tmp_path, place, prefix):
    moves = Palette(ACTIONS)
    folder = tmp_path / place
    chosen = {"train": [*ACTIONS, "LookUp"], "val": ["LookDown", "MoveAhead"]}
    for part, items in chosen.items():
        for i, action in enumerate(items):
            for which in "ab":
                moves.put(tmp_path / (prefix or f"{place}/") / part / "FloorPlan3" / f"{i}_rgb_{which}.jpg", action)
        write(folder / f"{part}_labels.txt", "".join(f"{prefix}{part}/FloorPlan3/{i} {action}\n" for i, action in enumerate(items)))
    dataset = load_dataset("thor-actions", tmp_path)
    check_planted(dataset, moves)
    train = dataset.samples["train"]
    assert train.targets["class"].tolist() == [0, 1, 2, 3, 4, 3]
    assert dataset.samples["test"].targets["class"].tolist() == [4, 0]
    assert train.fixed_rows().shape == (6, 2)
    files = [dataset.lists["train"].paths[row][-9:] for row in train.rows(2)]
    assert files == ["rgb_a.jpg", "rgb_b.jpg"]  # the order is the question
    write(folder / "val_labels.txt", f"{prefix}val/FloorPlan3/0 Jump\n")
    with pytest.raises(UserError, match="has the action 'Jump'; there are MoveAhead, RotateLeft"):
        load_dataset("thor-actions", tmp_path)


# nuScenes


def nuscenes(root):
    turns = Palette(["left", "right", "straight"])
    folder = root / "nuScenes"

    def image(name, i, label):
        path = f"{name}/CAM_FRONT/n0{len(name)}-2018-07-18-11-07-57+0800__CAM_FRONT__{1531883530412470 + i}.jpg"
        turns.put(folder / path, label)
        return path

    a, b, c = (image("samples", i, "straight") for i in range(3))
    train = [{"img_a": a, "img_b": b, "label": "straight"}, {"img_a": b, "img_b": c, "label": "straight"}]
    train += [
        {"img_a": image("sweeps", i, word), "img_b": image("sweeps", i + 1, word), "label": word} for i, word in ((3, "right"), (8, "left"))
    ]
    write(folder / "nuScenes_train.json", train)
    write(
        folder / "nuScenes_test.json",
        [{"img_a": image("sweeps", 20, "straight"), "img_b": image("sweeps", 21, "straight"), "label": "straight"}],
    )
    return folder, turns, train


def test_nuscenes(tmp_path):
    folder, turns, train = nuscenes(tmp_path)
    dataset = load_dataset("nuscenes-actions", tmp_path)
    check_planted(dataset, turns)
    samples = dataset.samples["train"]
    assert dataset.classes["class"] == ("left", "right", "straight")
    assert samples.targets["class"].tolist() == [2, 2, 1, 0]
    assert dataset.samples["test"].targets["class"].tolist() == [2]  # the other two are missing in test
    assert samples.fixed_rows().tolist() == [[0, 1], [1, 2], [3, 4], [5, 6]]  # the middle image is encoded once
    assert sorted(set(samples.units)) == ["n06-2018-07-18-11-07-57+0800", "n07-2018-07-18-11-07-57+0800"]
    for content, message in (
        ([], "another version"),
        ([{"token": "0a", "next": ""}], r"expected a list of img_a, img_b and label \(it comes with ViRB 2021"),
        ([train[0], train[0]], "has 1 pairs twice"),
        ([{**train[0], "img_b": "samples/none.jpg"}], "'samples/none.jpg'"),
        ([train[0]], "1 pairs of images are in train and in test: 'samples/CAM_FRONT"),
        ([{**train[0], "img_b": train[0]["img_a"], "label": "reverse"}], "test has samples of 'reverse', but train has none"),
    ):
        write(folder / "nuScenes_test.json", content)
        with pytest.raises(UserError, match=message):
            load_dataset("nuscenes-actions", tmp_path)


# Kinetics

DANCES = ("salsa", "tango", "waltz")
dances = Palette(DANCES)


def annotations(root, part, clips, kind="json"):
    if kind == "csv":
        rows = [f"{label},{clip},10,20,{part}" for clip, label in clips.items()]
        write(root / f"kinetics400/annotations/{part}.csv", "\n".join(["label,youtube_id,time_start,time_end,split", *rows]))
        return
    entry = {"duration": 10.0, "subset": part, "url": "https://www.youtube.com/watch"}
    content = {clip: {"annotations": {"label": label, "segment": [10.0, 20.0]}, **entry} for clip, label in clips.items()}
    write(root / f"kinetics400/annotations/{part}.json", content)


TRAIN = {"--07_xY_9sA": "tango", "aB_c-12xyz0": "salsa", "waltz_waltz": "waltz", "gone_gone00": "salsa"}
TEST = {"zz__zz__zz1": "waltz"}


def test_six_evenly_spaced():
    assert spaced(6) == [0, 1, 2, 3, 4, 5]
    assert spaced(60) == [5, 15, 25, 35, 45, 55]
    assert spaced(1) == [0] * 6
    assert spaced(4) == [0, 1, 1, 2, 3, 3]
    for n in range(1, 400):
        assert spaced(n) == [int((k + 0.5) * n / 6) for k in range(6)]


def test_kinetics_frames(tmp_path):
    annotations(tmp_path, "train", TRAIN)
    annotations(tmp_path, "validate", TEST)
    for part, clips in (("train", TRAIN), ("validate", TEST)):
        for clip, label in clips.items():
            if clip != "gone_gone00":
                for i in range(1, 14):
                    dances.put(tmp_path / "kinetics400" / part / clip[:2] / f"{clip}_{i}.jpg", label)
    dataset = load_dataset("kinetics", tmp_path)
    check_planted(dataset, dances)
    train = dataset.samples["train"]
    assert list(train.ids) == sorted(set(TRAIN) - {"gone_gone00"})
    assert train.fixed_rows().shape == (3, 6)
    chosen = [dataset.lists["train"].paths[row].rpartition("_")[2] for row in train.rows(0)]
    assert chosen == ["2.jpg", "4.jpg", "6.jpg", "8.jpg", "10.jpg", "12.jpg"]  # 10 comes after 9, not after 1
    assert dataset.samples["test"].targets["class"].tolist() == [2]
    assert "3 of 4 clips of train are there" in dataset.note


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize("in_class_folders", [False, True])
def test_kinetics_videos(tmp_path, kind, in_class_folders):
    annotations(tmp_path, "train", TRAIN, kind)
    annotations(tmp_path, "val", TEST, kind)
    others = [dances.colour(name) for name in DANCES]
    for part, clips in (("train", TRAIN), ("val", TEST)):
        for clip, label in clips.items():
            if clip == "gone_gone00":
                continue
            # 12 frames; the six that are asked for (1, 3, ..., 11) show the class, those between another
            wrong = next(colour for colour in others if colour != dances.colour(label))
            folder = tmp_path / "kinetics400" / part / (label if in_class_folders else "")
            video(folder / f"{clip}_000010_000020.mp4", [wrong, dances.colour(label)] * 6)
    dataset = load_dataset("kinetics", tmp_path)
    check_planted(dataset, dances)
    assert dataset.samples["train"].fixed_rows().shape == (3, 6)
    images = dataset.lists["train"]
    copy = pickle.loads(pickle.dumps(images))
    assert copy.identity() == images.identity() != dataset.lists["test"].identity()
    assert (np.asarray(copy.read(4)) == np.asarray(images.read(4))).all()


def test_kinetics_bad_input(tmp_path):
    annotations(tmp_path, "train", TRAIN)
    annotations(tmp_path, "validate", TEST)
    folder = tmp_path / "kinetics400"
    (folder / "train").mkdir()
    with pytest.raises(UserError, match="has none of the 4 listed clips, neither frames <id>_"):
        load_dataset("kinetics", tmp_path)
    for clip, label in TRAIN.items():
        video(folder / f"train/{clip}.mp4", [dances.colour(label)] * 2)
    with pytest.raises(UserError, match="has no folder validate or val or validation with clips"):
        load_dataset("kinetics", tmp_path)
    broken = folder / "validate/zz__zz__zz1.mp4"
    write(broken, "")
    with pytest.raises(UserError, match=r"1 files below .* are empty: 'validate/zz__zz__zz1.mp4'; delete them to leave these clips out"):
        load_dataset("kinetics", tmp_path)
    write(broken, "not a video")
    with pytest.raises(BadImage, match=r"zz__zz__zz1.mp4: cannot be read as a video"):
        load_dataset("kinetics", tmp_path).lists["test"].read(0)
    video(broken, [dances.colour("waltz")])  # a single frame stands for all six
    dataset = load_dataset("kinetics", tmp_path)
    check_planted(dataset, dances)
    write(folder / "train/copy/aB_c-12xyz0.mp4", "x")
    with pytest.raises(UserError, match="the clip aB_c-12xyz0 is there twice"):
        load_dataset("kinetics", tmp_path)
    (folder / "train/copy/aB_c-12xyz0.mp4").unlink()
    for content, message in (
        ({"zz__zz__zz1": {"duration": 10, "subset": "test"}}, r"another version .* \(the official test file has no labels\)"),
        ([["zz__zz__zz1", "waltz"]], "another version"),
        ({}, "lists no clips"),
        ({"zz__zz__zz1": {"annotations": {"label": "polka"}}}, "test has samples of 'polka', but train has none"),
    ):
        write(folder / "annotations/validate.json", content)
        with pytest.raises(UserError, match=message):
            load_dataset("kinetics", tmp_path)
    (folder / "annotations/validate.json").unlink()
    with pytest.raises(UserError, match=r"none of validate.json, validate.csv, val.json"):
        load_dataset("kinetics", tmp_path)


def test_a_clip_of_frames_among_videos(tmp_path):
    annotations(tmp_path, "train", TRAIN)
    annotations(tmp_path, "validate", TEST)
    folder = tmp_path / "kinetics400"
    for clip, label in list(TRAIN.items())[:2]:
        video(folder / f"train/{clip}.mp4", [dances.colour(label)])
    dances.put(folder / "train/wa/waltz_waltz_1.jpg", "waltz")
    dances.put(folder / "validate/zz/zz__zz__zz1_1.jpg", "waltz")
    with pytest.raises(UserError, match="some clips of train are frames and others videos; as videos there are not: 'waltz_waltz'"):
        load_dataset("kinetics", tmp_path)
