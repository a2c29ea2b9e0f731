"""A user's own images: ``root/{train,val,test}/<class>/*``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import EXTENSIONS, image_paths
from virb.data.images import Dataset, FileImages, Samples
from virb.errors import UserError

_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_LAYOUT = "expected {train,val,test}/<class>/* below it (val is optional)"


@register_dataset("folder")
def folder(root: Path | None = None) -> Dataset:
    """Lists and splits ``train``, ``test`` and, if there is one, ``val`` (also called ``valid`` or ``validation``); target ``class``.

    Class ids number the sorted union of the class folders of all splits. Images may lie at any depth below their class folder;
    hidden files and folders are ignored. A sample's id is its path below ``root``.
    """
    if root is None:
        raise UserError("folder: no root is given; write data: {root: /path/to/images} in the task")
    root = Path(root)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"folder: {root} {what}; set data: {{root: ...}} to a folder with your images, {_LAYOUT}")
    found = {split: _class_folders(root, split) for split in _SPLITS}
    classes = _checked_classes(root, found)
    lists, samples = {}, {}
    for split, folders in found.items():
        if not folders:
            continue
        paths, labels = [], []
        for name, class_folder in folders.items():
            images = sorted(image_paths(class_folder))
            if not images:
                kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
                raise UserError(f"folder: class {name!r} of {split} is empty: no {kinds} file in {class_folder}")
            base = class_folder.relative_to(root).as_posix()
            paths += [f"{base}/{image}" for image in images]
            labels += [classes.index(name)] * len(images)
        lists[split] = FileImages(split, root, paths)
        samples[split] = Samples.one_per_image(lists[split], {"class": np.array(labels, dtype=np.int64)})
    return Dataset("folder", lists, samples, {"class": classes})


def _class_folders(root: Path, split: str) -> dict[str, Path]:
    """Class name -> its folder, in sorted order; empty when the split is not there."""
    there = [root / name for name in _SPLITS[split] if (root / name).is_dir()]
    if len(there) > 1:
        raise UserError(f"folder: {root} has both {there[0].name} and {there[1].name}; keep one of them")
    if not there:
        return {}
    folders = {entry.name: entry for entry in sorted(there[0].iterdir()) if entry.is_dir() and not entry.name.startswith(".")}
    if not folders:
        raise UserError(f"folder: {there[0]} has no class folders; images go into {there[0].name}/<class>/")
    return folders


def _checked_classes(root: Path, found: dict[str, dict[str, Path]]) -> tuple[str, ...]:
    for split in ("train", "test"):
        if not found[split]:
            raise UserError(f"folder: {root} has no folder {split}; {_LAYOUT}")
    for split in ("val", "test"):
        unseen = sorted(set(found[split]) - set(found["train"]))
        if unseen:
            more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
            raise UserError(
                f"folder: {split} has {', '.join(map(repr, unseen[:3]))}{more}, but {root / 'train'} has no such class; "
                "every class needs images to learn from"
            )
    classes = tuple(sorted(set().union(*found.values())))
    if len(classes) < 2:
        raise UserError(f"folder: {root / 'train'} has one class, {classes[0]!r}; a task needs at least two")
    return classes
