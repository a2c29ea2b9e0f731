"""CamVid: driving through Cambridge, 11 classes, in the split that SegNet's authors made."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, locate
from virb.data.datasets.dense import Pairs, files_by_stem, from_pairs, matched, paired_folders
from virb.data.decode import read_target
from virb.data.images import Dataset
from virb.data.maps import label_lut, read_labels
from virb.errors import BadImage

# The 11 classes, and the 31 official ones that each is made of, by their colours. Official Void is in none.
_MERGED = {
    "Sky": ((128, 128, 128),),  # Sky
    "Building": ((128, 0, 0), (64, 192, 0), (0, 128, 64), (64, 0, 64), (192, 0, 128)),  # Building, Wall, Bridge, Tunnel, Archway
    "Pole": ((192, 192, 128), (0, 0, 64)),  # Column_Pole, TrafficCone
    "Road": ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # Road, LaneMkgsDriv, LaneMkgsNonDriv
    "Pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # Sidewalk, ParkingBlock, RoadShoulder
    "Tree": ((128, 128, 0), (192, 192, 0)),  # Tree, VegetationMisc
    "SignSymbol": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # SignSymbol, Misc_Text, TrafficLight
    "Fence": ((64, 64, 128),),  # Fence
    # Car, SUVPickupTruck, Truck_Bus, Train, OtherMoving
    "Car": ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),
    "Pedestrian": ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),  # Pedestrian, Child, CartLuggagePram, Animal
    "Bicyclist": ((0, 128, 192), (192, 0, 192)),  # Bicyclist, MotorcycleScooter
}
CLASSES = tuple(_MERGED)
_VOID = (0, 0, 0)
_UNLABELLED = 11  # in SegNet's files
_IMAGES, _LABELS = "701_StillsRaw_full", "LabeledApproved_full"
_FRAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)")


@register_dataset("camvid")
def camvid(root: Path | None) -> Dataset:
    """SegNet's ``{train,val,test}/*`` with ``{train,val,test}annot/*.png`` (480 x 360, values 0 to 11), or the official
    ``701_StillsRaw_full/*.png`` with ``LabeledApproved_full/*_L.png`` (960 x 720, a colour per class), which is split as SegNet's is.

    Target ``mask``: 11 classes in SegNet's order; unlabelled and Void are 255.
    """
    name = "camvid"
    parts = ("train", "val", "test")
    segnet = Layout("SegNet", tuple(f"{part}{kind}" for part in parts for kind in ("", "annot")))
    folder, layout = locate(name, root, (Layout("official", (_IMAGES, _LABELS)), segnet))
    if layout == "official":
        splits = _split(name, folder)
        return from_pairs(
            name, folder, splits, "mask", read_colours, {"colours": "32 to 11"}, CLASSES, note="official files, SegNet's split"
        )
    splits = {part: paired_folders(name, folder, (part, ""), (f"{part}annot", "")) for part in parts}
    lut = label_lut({**{number: number for number in range(len(CLASSES))}, _UNLABELLED: 255})
    return from_pairs(name, folder, splits, "mask", partial(read_labels, lut=lut), {"numbers": "SegNet's"}, CLASSES, note="SegNet's files")


def part_of(frame: str) -> str | None:
    """SegNet's split of a frame by its name; None for a name that no frame has."""
    match = _FRAME.fullmatch(frame)
    if match is None:
        return None
    sequence, number = match[1], int(match[2])
    if sequence == "0001TP":
        return "train" if number <= 8520 else "test"
    if sequence == "0016E5" and 7959 <= number <= 8159:  # labelled at 15 Hz
        return "val"
    return "test" if sequence == "Seq05VD" else "train"


def _split(name: str, folder: Path) -> dict[str, Pairs]:
    images, labels = files_by_stem(folder, _IMAGES, "", (".png",)), files_by_stem(folder, _LABELS, "_L", (".png",))
    where = str(folder / _LABELS)
    paths, targets = matched(name, images, labels, where)
    found: dict[str, tuple[list[str], list[str]]] = {"train": ([], []), "val": ([], []), "test": ([], [])}
    for path, target in zip(paths, targets, strict=True):
        part = part_of(Path(path).stem)
        if part is None:
            raise another_version(name, folder / path, "frames of the sequences 0001TP, 0006R0, 0016E5 and Seq05VD")
        found[part][0].append(path)
        found[part][1].append(target)
    return {part: Pairs(images, masks, where) for part, (images, masks) in found.items()}


def read_colours(path: str) -> np.ndarray:
    """uint8 (H, W) of a label image whose colours are the official classes'."""
    red, green, blue = np.moveaxis(np.asarray(read_target(path), dtype=np.int32), 2, 0)
    codes = (red << 16) + (green << 8) + blue
    place = np.searchsorted(_CODES, codes).clip(max=len(_CODES) - 1)
    wrong = _CODES[place] != codes
    if wrong.any():
        y, x = (int(where[0]) for where in np.nonzero(wrong))
        raise BadImage(f"{path}: the colour ({red[y, x]}, {green[y, x]}, {blue[y, x]}) at x {x}, y {y} is no class of CamVid")
    return _NUMBERS[place]


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Colours as one number each, sorted, and their classes."""
    numbers = {_VOID: 255, **{colour: i for i, colours in enumerate(_MERGED.values()) for colour in colours}}
    codes = np.array([(red << 16) + (green << 8) + blue for red, green, blue in numbers], dtype=np.int32)
    order = codes.argsort()
    return codes[order], np.array(list(numbers.values()), dtype=np.uint8)[order]


_CODES, _NUMBERS = _table()
