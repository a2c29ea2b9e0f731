"""From files to a number: planted colours are learnt to 100 %, and labels that say nothing give chance."""

from __future__ import annotations

import numpy as np
import pytest
from sets_support import Palette, video, write

import virb
from virb.data.datasets.thor import ACTIONS

TEN = tuple(f"n0{i}000000" for i in range(1, 10))
palette = Palette(TEN)
TRAIN = {"num_epochs": 30, "batch_size": 16, "grid": {"optimizer": "adamw", "lr": [0.01, 0.1]}}


def accuracy(tmp_path, task, **more):
    task = {"task": task, "data": {"root": str(tmp_path / "data")}, **TRAIN, **more}
    results = virb.run(
        {"px": {"arch": "pixels", "args": {"side": 2}, "input": {"size": 16}}},
        {"t": task},
        out=tmp_path / "out",
        devices="cpu:1",
        progress=False,
        no_cache=True,
    )
    assert not results.failed, results
    table = results.table()
    return float(table["value"].iloc[0])


def wnid_folders(root, answer):
    """Training images show their class; ``answer(i)`` is the folder that the i-th of all images goes to."""
    i = 0
    for split, n in (("train", 6), ("val", 4)):
        for name in TEN:
            for _ in range(n):
                palette.put(root / "imagenette2" / split / answer(i, name) / f"{i:04d}.JPEG", name)
                i += 1


def test_a_separable_signal_scores_100(tmp_path):
    wnid_folders(tmp_path / "data", lambda i, name: name)
    assert accuracy(tmp_path, "Imagenette") == 1.0


def test_shuffled_labels_score_chance(tmp_path):
    random = np.random.default_rng(0)
    drawn = random.integers(0, len(TEN), 10 * len(TEN))
    drawn[: len(TEN)] = range(len(TEN))  # every class has training images
    wnid_folders(tmp_path / "data", lambda i, name: TEN[drawn[i]])
    assert accuracy(tmp_path, "Imagenette") < 0.4  # 36 test images, chance 1/9: 0.4 is 5.5 standard deviations away


def test_two_images_per_sample(tmp_path):
    moves = Palette(ACTIONS)
    folder = tmp_path / "data/thor_action_prediction"
    for part, n in (("train", 6), ("val", 2)):
        lines = []
        for action in ACTIONS:
            for i in range(n):
                path = f"{part}/Plan{i}/{action}{i}"
                # the first image alone says nothing
                moves.put(folder / f"{path}_rgb_a.jpg", ACTIONS[0])
                moves.put(folder / f"{path}_rgb_b.jpg", action)
                lines.append(f"{path} {action}")
        write(folder / f"{part}_labels.txt", "\n".join(lines))
    assert accuracy(tmp_path, "THORActionPrediction") == 1.0


@pytest.mark.parametrize("kind", ["frames", "videos"])
def test_six_frames_per_sample(tmp_path, kind):
    labels = ("salsa", "tango", "waltz")
    dances = Palette(labels)
    folder = tmp_path / "data/kinetics400"
    for part, n in (("train", 4), ("validate", 2)):
        content = {}
        for label in labels:
            for i in range(n):
                clip = f"{label[:2]}_{i}-{part[:2]}xyz"
                content[clip] = {"annotations": {"label": label, "segment": [0.0, 10.0]}, "subset": part}
                if kind == "videos":
                    video(folder / part / f"{clip}.mp4", [dances.colour(label)] * 7)
                else:
                    for k in range(7):
                        dances.put(folder / part / clip[:2] / f"{clip}_{k}.jpg", label)
        write(folder / f"annotations/{part}.json", content)
    assert accuracy(tmp_path, "KineticsActionPrediction") == 1.0
