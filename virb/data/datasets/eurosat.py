"""EuroSAT: land use in Sentinel-2 images, 64 x 64 RGB."""

from __future__ import annotations

from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import (
    Layout,
    Split,
    another_version,
    by_class,
    check_all_classes,
    class_folders,
    from_folders,
    from_splits,
    has_lists,
    holds_class_folders,
    locate,
    read_lines,
    ruled_split,
)
from virb.data.images import Dataset

_TRAIN_SHARE = 0.8


@register_dataset("eurosat")
def eurosat(root: Path | None, seed: int = 0) -> Dataset:
    """``<class>/*.jpg`` in ``2750/`` (as published, and by torchvision) or right in the folder; or ViRB 2021's ``{train,test}/<class>/*``.

    There is no official split. Where it is not folders, it is that of ``eurosat-{train,val,test}.txt`` (60, 20 and 20 %) when these lists
    lie in the folder, else 80 % of each class by the fixed rule with ``seed``.
    """
    name = "eurosat"
    layouts = (
        Layout("folders", ("train", "test")),
        Layout("2750", ("2750",)),
        Layout("EuroSAT_RGB", ("EuroSAT_RGB",)),
        Layout("", also=holds_class_folders),
    )
    folder, layout = locate(name, root, layouts)
    if layout == "folders":
        return from_folders(name, folder, {"train": "train", "test": "test"}, note="folders of ViRB 2021")
    found = class_folders(name, folder, layout)
    classes = sorted(found)
    number = {cls: i for i, cls in enumerate(classes)}
    check_all_classes(name, classes, folder / layout)
    lists = {split: folder / f"eurosat-{split}.txt" for split in ("train", "val", "test")}
    if has_lists(name, lists.values()):
        prefix = f"{layout}/" if layout else ""
        splits = {split: _listed(path, prefix, number) for split, path in lists.items()}
        return from_splits(name, folder, splits, classes, note="split: the lists eurosat-*.txt")
    train, test = ruled_split(name, found, _TRAIN_SHARE, seed, hashed=lambda path: path.rpartition("/")[2])
    parts = {split: by_class(part, number, str(folder)) for split, part in (("train", train), ("test", test))}
    return from_splits(name, folder, parts, classes, note=f"split: 80 % of each class by the fixed rule, seed {seed}")


def _listed(path: Path, prefix: str, number: dict[str, int]) -> Split:
    """Lines ``AnnualCrop_142.jpg`` (or .tif, of the version with all bands)."""
    paths, labels = [], []
    for line in read_lines("eurosat", path):
        stem = Path(line).stem
        cls = stem.rpartition("_")[0]
        if cls not in number:
            raise another_version("eurosat", path, f"lines of class_number.jpg, but there is {line!r}")
        paths.append(f"{prefix}{cls}/{stem}.jpg")
        labels.append(number[cls])
    return Split(paths, labels, str(path))
