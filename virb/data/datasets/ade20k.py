"""ADE20K as of the scene parsing challenge of 2016: 150 classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, locate
from virb.data.datasets.dense import from_pairs, paired_folders
from virb.data.images import Dataset
from virb.data.maps import label_lut, read_labels

# The first of the official names of each class, in the official order.
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk", "person", "earth",
    "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug",
    "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column",
    "signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs",
    "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet",
    "flower", "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth",
    "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet",
    "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel",
    "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot",
    "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray",
    "ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip


@register_dataset("ade20k")
def ade20k(root: Path | None) -> Dataset:
    """``images/{training,validation}/*.jpg`` with ``annotations/{training,validation}/*.png``; ``test`` is the official validation.

    Target ``mask``: 0 to 149, the official numbers less 1; official 0, everything else, is 255.
    """
    name = "ade20k"
    wants = tuple(f"{place}/{part}" for place in ("images", "annotations") for part in ("training", "validation"))
    folder, _ = locate(name, root, (Layout("official", wants),))
    splits = {
        split: paired_folders(name, folder, (f"images/{part}", ""), (f"annotations/{part}", ""))
        for split, part in (("train", "training"), ("test", "validation"))
    }
    lut = label_lut({0: 255, **{number: number - 1 for number in range(1, len(CLASSES) + 1)}})
    return from_pairs(name, folder, splits, "mask", partial(read_labels, lut=lut), {"numbers": "official less 1, 0 ignored"}, CLASSES)
