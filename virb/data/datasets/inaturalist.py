"""iNaturalist 2018: 8,142 species."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, Split, another_version, from_splits, locate, read_json
from virb.data.images import Dataset
from virb.errors import UserError

_NAME = "inat2018"
_NONE = -1  # an image without annotation


@register_dataset("inat2018")
def inat2018(root: Path | None) -> Dataset:
    """``{train,val}2018.json`` (COCO form) and images ``train_val2018/<group>/<species>/*.jpg``, or ``2018/<group>/...`` as torchvision
    unpacks them. ``test`` is the official validation split. Class ids are the category ids."""
    folder, _ = locate(_NAME, root, (Layout("published", ("train2018.json", "val2018.json")),))
    images = next((place for place in ("train_val2018", "2018") if (folder / place).is_dir()), None)
    if images is None:
        raise UserError(f"{_NAME}: {folder} has no folder train_val2018 (or 2018) with the images")
    names: dict[int, str] = {}
    splits = {}
    for split, part in (("train", "train"), ("test", "val")):
        path = folder / f"{part}2018.json"
        pairs = _pairs(path, names)
        splits[split] = Split([f"{images}/{file.partition('/')[2]}" for file, _ in pairs], [label for _, label in pairs], str(path))
    if sorted(names) != list(range(len(names))):
        raise another_version(_NAME, folder / "train2018.json", "categories numbered from 0 without gaps")
    return from_splits(_NAME, folder, splits, [names[i] for i in range(len(names))])


def _pairs(path: Path, names: dict[int, str]) -> list[tuple[str, int]]:
    """(file_name, category id) of every image, in the order of the file; fills in the categories' names."""
    content: Any = read_json(_NAME, path)
    try:
        category = {item["image_id"]: item["category_id"] for item in content["annotations"]}
        names.update({item["id"]: str(item["name"]) for item in content["categories"]})
        pairs = [(item["file_name"], int(category.get(item["id"], _NONE))) for item in content["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise another_version(_NAME, path, f"images, annotations and categories, but it lacks {error}") from None
    without = sum(label == _NONE for _, label in pairs)
    if without or len(pairs) != len(category):
        raise UserError(f"{_NAME}: {path} has {len(pairs)} images but annotations of {len(category)}")
    unknown = sorted({label for _, label in pairs if label not in names})
    if unknown:
        raise another_version(_NAME, path, f"known categories, but there is {unknown[0]}")
    return pairs
