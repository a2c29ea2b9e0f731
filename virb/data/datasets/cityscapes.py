"""Cityscapes: streets of German cities, 19 classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, locate
from virb.data.datasets.dense import checked_variant, from_pairs, paired_folders
from virb.data.images import Dataset
from virb.data.maps import label_lut, read_labels

# Official labelId -> name of the 19 classes that count; their place here is the official trainId.
_EVALUATED = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light", 20: "traffic sign",
    21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train",
    32: "motorcycle", 33: "bicycle",
}  # fmt: skip
CLASSES = tuple(_EVALUATED.values())
_VOID = [label for label in range(34) if label not in _EVALUATED]
_LICENCE_PLATE = 255  # labelId -1, as 8 bits store it


@register_dataset("cityscapes")
def cityscapes(root: Path | None, variant: str | None = None) -> Dataset:
    """``leftImg8bit/{train,val}/<city>/*_leftImg8bit.png`` with ``gtFine/{train,val}/<city>/*_gtFine_labelIds.png``; ``test`` is the
    official val (the labels of the official test are kept by the makers).

    Target ``mask``: the 19 official classes by trainId, everything else 255. ``variant="virb2021"``: 0 everything else, 1 to 19 these.
    """
    name = "cityscapes"
    first = int(checked_variant(name, variant) is not None)  # number of the first class
    wants = tuple(f"{place}/{split}" for place in ("leftImg8bit", "gtFine") for split in ("train", "val"))
    folder, _ = locate(name, root, (Layout("official", wants),))
    number = {label: first + i for i, label in enumerate(_EVALUATED)}
    meaning = {**dict.fromkeys((*_VOID, _LICENCE_PLATE), 0 if first else 255), **number}
    splits = {
        split: paired_folders(name, folder, (f"leftImg8bit/{part}", "_leftImg8bit"), (f"gtFine/{part}", "_gtFine_labelIds"))
        for split, part in (("train", "train"), ("test", "val"))
    }
    classes = ("void", *CLASSES) if first else CLASSES
    record = {"labelIds": {str(label): meaning[label] for label in sorted(meaning)}}
    return from_pairs(name, folder, splits, "mask", partial(read_labels, lut=label_lut(meaning)), record, classes)
