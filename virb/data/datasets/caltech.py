"""Caltech-101, with ViRB 2021's lists or, without them, 30 images per class by a fixed rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virb.data.datasets import register_dataset
from virb.data.datasets.common import (
    Layout,
    Split,
    another_version,
    by_class,
    check_all_classes,
    check_once,
    class_folders,
    from_splits,
    has_lists,
    holds_class_folders,
    locate,
    numbered,
    read_json,
    ruled_split,
)
from virb.data.images import Dataset

BACKGROUND = "BACKGROUND_Google"
PER_CLASS = 30
_LISTS = {"train": "caltech101_train.json", "test": "caltech101_test.json"}


@register_dataset("caltech101")
def caltech101(root: Path | None, background: bool = True, seed: int = 0) -> Dataset:
    """``<class>/*.jpg`` right in the folder, or in ``101_ObjectCategories/`` as Caltech and torchvision have it.

    With ``caltech101_train.json`` and ``caltech101_test.json`` (lists of ``class/file.jpg``) the split is theirs. Without, 30 images of
    each class are for training and all others for testing, by the fixed rule of ``common.ranked`` with ``seed``. The 102 classes count
    the background folder, as ViRB's 3,060 training images do; ``background=False`` leaves it out.
    """
    folder, layout = locate("caltech101", root, _LAYOUTS)
    images = f"{layout}/" if layout else ""
    found = class_folders("caltech101", folder, layout)
    if not background:
        found.pop(BACKGROUND, None)
    check_all_classes("caltech101", found, folder / layout, without=int(BACKGROUND not in found))
    if has_lists("caltech101", [folder / file for file in _LISTS.values()]):
        splits = {split: _listed(folder / file, images, background) for split, file in _LISTS.items()}
        classes = sorted({*found, *(cls for part in splits.values() for cls in part)})
        number = numbered("caltech101", classes, (cls for part in splits.values() for cls in part), "the lists")
        parts = {split: _as_split(part, number, folder / _LISTS[split]) for split, part in splits.items()}
        return from_splits("caltech101", folder, parts, classes, note="split: the JSON lists of ViRB 2021")
    classes = sorted(found)
    number = {cls: i for i, cls in enumerate(classes)}
    train, test = caltech_rule(found, images, seed)
    parts = {"train": by_class(train, number, str(folder)), "test": by_class(test, number, str(folder))}
    return from_splits("caltech101", folder, parts, classes, note=f"split: {PER_CLASS} per class by the fixed rule, seed {seed}")


def caltech_rule(found: Mapping[str, list[str]], prefix: str = "", seed: int = 0) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Class -> training and test images of the fixed rule. Paths are hashed without ``prefix``, so every layout has the same split."""
    return ruled_split("caltech101", found, PER_CLASS, seed, hashed=lambda path: path.removeprefix(prefix))


def _listed(path: Path, prefix: str, background: bool) -> dict[str, list[str]]:
    """Class -> images of a JSON list. The class is the folder right above the file: early lists had a ``train/`` before it."""
    content: Any = read_json("caltech101", path)
    if not isinstance(content, list) or not all(isinstance(item, str) and "/" in item for item in content):
        raise another_version("caltech101", path, "a list of class/file.jpg")
    found: dict[str, list[str]] = {}
    for item in content:
        cls, file = item.split("/")[-2:]
        if background or cls != BACKGROUND:
            found.setdefault(cls, []).append(f"{prefix}{cls}/{file}")
    return found


def _as_split(part: dict[str, list[str]], number: Mapping[str, int], path: Path) -> Split:
    split = by_class(part, number, str(path), listed=True)
    check_once("caltech101", split.paths, str(path))
    return split


# A layout's name is the folder of the classes below the dataset's.
_LAYOUTS = (
    Layout("101_ObjectCategories", ("101_ObjectCategories",)),
    Layout("caltech-101/101_ObjectCategories", ("caltech-101/101_ObjectCategories",)),
    Layout("", tuple(_LISTS.values())),
    Layout("", also=holds_class_folders),
)
