"""ViRB 2021's two sets from AI2-THOR. ``test`` is what it calls ``val``; the unit is the scene, of which many samples come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, check_apart, check_classes, check_there, locate, read_lines
from virb.data.images import Dataset, FileImages, Samples
from virb.errors import UserError

ACTIONS = ("MoveAhead", "RotateLeft", "RotateRight", "LookUp", "LookDown")
_SPLITS = {"train": "train", "test": "val"}
_MOST_STEPS = 1000  # in a room; every number up to the largest is a class
_LISTS = ("train_labels.txt", "val_labels.txt")


@register_dataset("thor-num-steps")
def thor_num_steps(root: Path | None) -> Dataset:
    """Steps to an object that is seen. ``{train,val}_labels.txt`` with lines ``train/<scene>/<id> <int>``, images ``<path>_rgb.jpg``.
    Class numbers are the steps, up to the most of any split."""
    name = "thor-num-steps"
    folder, _ = locate(name, root, (Layout("labels", _LISTS),))
    lists, samples, most = {}, {}, 0
    for split, (base, paths, words, source) in _read(name, folder, ("_rgb.jpg",)).items():
        wrong = next((word for word in words if not (word.isascii() and word.isdigit())), None)
        if wrong is not None:
            raise another_version(name, source, f"lines of path and number of steps, but there is {wrong!r}")
        far = next((word for word in words if len(word) > 4 or int(word) > _MOST_STEPS), None)
        if far is not None:
            raise another_version(name, source, f"at most {_MOST_STEPS} steps, but there is {far}")
        steps = np.array([int(word) for word in words], dtype=np.int64)
        most = max(most, int(steps.max()))
        files = [f"{path}_rgb.jpg" for path in paths]
        check_there(name, base, files, str(source))
        lists[split] = FileImages(split, base, files)
        samples[split] = Samples.one_per_image(lists[split], {"class": steps}, _scenes(paths))
    check_apart(name, {split: list(images.paths) for split, images in lists.items()})
    classes = tuple(str(n) for n in range(most + 1))
    check_classes(name, classes, {split: part.targets["class"] for split, part in samples.items()})
    return Dataset(name, lists, samples, {"class": classes})


@register_dataset("thor-actions")
def thor_actions(root: Path | None) -> Dataset:
    """Which action leads from the first image to the second. ``{train,val}_labels.txt`` with lines ``<path> <Action>``, images
    ``<path>_rgb_a.jpg`` and ``<path>_rgb_b.jpg``: the two rows of a sample, in this order."""
    name = "thor-actions"
    folder, _ = locate(name, root, (Layout("labels", _LISTS),))
    number = {action: i for i, action in enumerate(ACTIONS)}
    lists, samples, labels = {}, {}, {}
    for split, (base, paths, words, source) in _read(name, folder, ("_rgb_a.jpg", "_rgb_b.jpg")).items():
        wrong = next((word for word in words if word not in number), None)
        if wrong is not None:
            raise UserError(f"{name}: {source} has the action {wrong!r}; there are {', '.join(ACTIONS)}")
        files = [f"{path}_rgb_{which}.jpg" for path in paths for which in "ab"]
        check_there(name, base, files, str(source))
        lists[split] = FileImages(split, base, files)
        labels[split] = np.array([number[word] for word in words], dtype=np.int64)
        rows = np.arange(len(files)).reshape(-1, 2)
        samples[split] = Samples.from_rows(paths, split, rows, {"class": labels[split]}, _scenes(paths))
    check_apart(name, {split: list(images.paths) for split, images in lists.items()})
    check_classes(name, ACTIONS, labels)
    return Dataset(name, lists, samples, {"class": ACTIONS})


def _read(name: str, folder: Path, endings: Sequence[str]) -> dict[str, tuple[Path, list[str], list[str], Path]]:
    """Split -> base folder of its paths, paths, labels, and the file they are from."""
    found = {}
    for split, part in _SPLITS.items():
        source = folder / f"{part}_labels.txt"
        pairs = [line.rsplit(maxsplit=1) for line in read_lines(name, source)]
        bad = next((pair for pair in pairs if len(pair) != 2), None)
        if bad is not None:
            raise another_version(name, source, f"lines of path and label, but there is {' '.join(bad)!r}")
        if not pairs:
            raise UserError(f"{name}: {source} is empty")
        paths = [path.lstrip("./") for path, _ in pairs]
        repeated = len(paths) - len(set(paths))
        if repeated:
            raise UserError(f"{name}: {source} names {repeated} samples twice")
        found[split] = (_base(folder, part, paths, endings), paths, [label for _, label in pairs], source)
    return found


def _base(folder: Path, part: str, paths: Sequence[str], endings: Sequence[str]) -> Path:
    """Paths are relative to the dataset's folder; lists whose paths start one level higher or lower are read, too."""
    for base in (folder, folder / part, folder.parent, folder.parent.parent):
        if (base / f"{paths[0]}{endings[0]}").is_file():
            return base
    return folder


def _scenes(paths: Sequence[str]) -> list[str]:
    return [path.rpartition("/")[0] or path for path in paths]
