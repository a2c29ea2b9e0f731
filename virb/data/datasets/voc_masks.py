"""PASCAL VOC 2012 segmentation: 20 classes and the background."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, image_paths, locate, read_lines
from virb.data.datasets.dense import Pairs, from_pairs
from virb.data.datasets.voc import CLASSES as OBJECTS
from virb.data.images import Dataset
from virb.data.maps import label_lut, read_labels
from virb.errors import UserError, did_you_mean

CLASSES = ("background", *OBJECTS)
_LISTS, _MASKS, _MORE_MASKS = "ImageSets/Segmentation", "SegmentationClass", "SegmentationClassAug"
_OFFICIAL, _AUGMENTED = "train", "trainaug"


@register_dataset("voc2012-masks")
def voc2012_masks(root: Path | None, train: str = "auto") -> Dataset:
    """``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation/{train,val}.txt``, as published; or ``images``,
    ``SegmentationClass`` and ``sets/{train,val}.txt`` (TimeT's and Leopart's). ``test`` is the official val.

    ``train``: "train" the 1,464 official images; "trainaug" the 10,582 whose masks lie in ``SegmentationClassAug`` (by ``trainaug.txt``
    beside the other lists, or without it all that are not of val); "auto" the latter where they are there. Target ``mask``: 0 background,
    1 to 20 the classes in alphabetical order, 255 borders and what is hard to tell.
    """
    name = "voc2012-masks"
    if train not in ("auto", _OFFICIAL, _AUGMENTED):
        raise UserError(
            f"{name}: train is {train!r}; expected auto, train or trainaug{did_you_mean(train, ('auto', _OFFICIAL, _AUGMENTED))}"
        )
    official = Layout("VOC", ("JPEGImages", _MASKS, f"{_LISTS}/train.txt", f"{_LISTS}/val.txt"))
    folder, layout = locate(name, root, (official, Layout("sets", ("images", _MASKS, "sets/train.txt", "sets/val.txt"))))
    images, lists = ("JPEGImages", _LISTS) if layout == "VOC" else ("images", "sets")
    ids = {"train": _ids(name, folder / lists / "train.txt"), "test": _ids(name, folder / lists / "val.txt")}
    masks, source = _MASKS, f"{lists}/train.txt"
    if train == _AUGMENTED or (train == "auto" and (folder / _MORE_MASKS).is_dir()):
        masks = _MORE_MASKS
        ids["train"], source = _augmented(name, folder, lists, set(ids["test"]))
    splits = {
        split: Pairs([f"{images}/{i}.jpg" for i in ids[split]], [f"{place}/{i}.png" for i in ids[split]], str(folder / list_))
        for split, place, list_ in (("train", masks, source), ("test", _MASKS, f"{lists}/val.txt"))
    }
    lut = label_lut({**{number: number for number in range(len(CLASSES))}, 255: 255})
    note = _AUGMENTED if masks == _MORE_MASKS else "official train"
    return from_pairs(name, folder, splits, "mask", partial(read_labels, lut=lut), {"numbers": "official"}, CLASSES, note=note)


def _augmented(name: str, folder: Path, lists: str, held_out: set[str]) -> tuple[list[str], str]:
    """Ids of trainaug, and what named them."""
    if not (folder / _MORE_MASKS).is_dir():
        raise UserError(f"{name}: {folder / _MORE_MASKS} is not there; train: train is the official list")
    for file in ("trainaug.txt", "train_aug.txt"):
        if (folder / lists / file).is_file():
            return _ids(name, folder / lists / file), f"{lists}/{file}"
    there = sorted(path.removesuffix(".png") for path in image_paths(folder / _MORE_MASKS, (".png",)))
    return [image for image in there if image not in held_out], _MORE_MASKS


def _ids(name: str, path: Path) -> list[str]:
    """Lines ``2007_000032``, or ``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`` as DeepLab's lists have them."""
    ids = [line.split()[0].rpartition("/")[2].removesuffix(".jpg") for line in read_lines(name, path)]
    if len(set(ids)) != len(ids):
        raise UserError(f"{name}: {path} names {len(ids) - len(set(ids))} images twice")
    return ids
