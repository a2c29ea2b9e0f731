"""ViRB 2021's egomotion on nuScenes: what the car does between two images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, check_apart, check_classes, check_there, locate, read_json
from virb.data.images import Dataset, FileImages, Samples
from virb.errors import UserError

_KEYS = ("img_a", "img_b", "label")


@register_dataset("nuscenes-actions")
def nuscenes_actions(root: Path | None) -> Dataset:
    """``nuScenes_{train,test}.json``: lists of ``{img_a, img_b, label}``, images relative to the folder (``samples/``, ``sweeps/``).

    A sample has two rows, first image first. An image that stands in several pairs is one row of the list, encoded once. The unit is the
    drive, which the file names begin with. Classes are the sorted union of both files' labels.
    """
    name = "nuscenes-actions"
    folder, _ = locate(name, root, (Layout("lists", ("nuScenes_train.json", "nuScenes_test.json")),))
    pairs = {split: _pairs(name, folder / f"nuScenes_{split}.json") for split in ("train", "test")}
    classes = tuple(sorted({pair["label"] for part in pairs.values() for pair in part}))
    number = {label: i for i, label in enumerate(classes)}
    lists, samples, labels = {}, {}, {}
    for split, part in pairs.items():
        row: dict[str, int] = {}
        rows = np.array([[row.setdefault(pair[key], len(row)) for key in _KEYS[:2]] for pair in part], dtype=np.int64)
        check_there(name, folder, row, str(folder / f"nuScenes_{split}.json"))
        lists[split] = FileImages(split, folder, list(row))
        labels[split] = np.array([number[pair["label"]] for pair in part], dtype=np.int64)
        ids = [f"{pair['img_a']}>{pair['img_b']}" for pair in part]
        if len(set(ids)) != len(ids):
            raise UserError(f"{name}: {folder / f'nuScenes_{split}.json'} has {len(ids) - len(set(ids))} pairs twice")
        units = [_drive(pair["img_a"]) for pair in part]
        samples[split] = Samples.from_rows(ids, split, rows, {"class": labels[split]}, units)
    check_apart(name, {split: part.ids.tolist() for split, part in samples.items()}, "pairs of images")
    check_classes(name, classes, labels)
    return Dataset(name, lists, samples, {"class": classes})


def _pairs(name: str, path: Path) -> list[dict[str, str]]:
    content: Any = read_json(name, path)
    expected = "a list of img_a, img_b and label (it comes with ViRB 2021, not with nuScenes)"
    if not isinstance(content, list) or not content:
        raise another_version(name, path, expected)
    for item in content:
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in _KEYS):
            raise another_version(name, path, expected)
    return [{"img_a": item["img_a"].lstrip("./"), "img_b": item["img_b"].lstrip("./"), "label": item["label"]} for item in content]


def _drive(path: str) -> str:
    """``n015-2018-07-18-11-07-57+0800`` of ``samples/CAM_FRONT/n015-2018-07-18-11-07-57+0800__CAM_FRONT__1531883530412470.jpg``; another
    name is a unit of its own."""
    file = path.rpartition("/")[2]
    return file.split("__")[0] if "__" in file else path
