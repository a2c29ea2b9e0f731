"""Describable Textures: 47 textures, ten official partitions into train, val and test."""

from __future__ import annotations

from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, Split, another_version, from_folders, from_splits, locate, numbered, read_lines
from virb.data.images import Dataset
from virb.errors import UserError


@register_dataset("dtd")
def dtd(root: Path | None, partition: int = 1, merge_val: bool = False) -> Dataset:
    """``images/<texture>/*`` with ``labels/{train,val,test}<partition>.txt`` (as published, and torchvision's ``dtd/dtd/``), or ViRB 2021's
    ``{train,test}/<texture>/*``, whose train is train and val of a partition, as it is with ``merge_val``."""
    if partition not in range(1, 11):
        raise UserError(f"dtd: partition is {partition!r}; there are 1 to 10")
    lists = Layout("lists", ("images", "labels"))
    folder, layout = locate("dtd", root, (lists, Layout("folders", ("train", "test"))))
    if layout == "folders":
        places = {"train": "train", "test": "test"} | ({"val": "val"} if (folder / "val").is_dir() and not merge_val else {})
        return from_folders("dtd", folder, places, note="folders of ViRB 2021")
    listed = {}
    for split in ("train", "val", "test"):
        path = folder / "labels" / f"{split}{partition}.txt"
        lines = read_lines("dtd", path)
        bad = next((line for line in lines if line.count("/") != 1), None)
        if bad is not None:
            raise another_version("dtd", path, f"lines of texture/file, but there is {bad!r}")
        listed[split] = (path, lines)
    classes = sorted({line.split("/")[0] for _, lines in listed.values() for line in lines})
    number = numbered("dtd", classes, classes, "the lists")
    splits = {
        split: Split([f"images/{line}" for line in lines], [number[line.split("/")[0]] for line in lines], str(path))
        for split, (path, lines) in listed.items()
    }
    if merge_val:
        val = splits.pop("val")
        train = splits["train"]
        splits["train"] = Split([*train.paths, *val.paths], [*train.labels, *val.labels], f"{train.source} and {val.source}")
    return from_splits("dtd", folder, splits, classes, note=f"official partition {partition}{', train + val' * merge_val}")
