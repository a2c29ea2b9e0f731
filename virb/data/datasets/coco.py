"""COCO's panoptic segmentation as a class per pixel: things and stuff, whoever they belong to. ``test`` is the official val."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, locate
from virb.data.datasets.dense import Pairs, checked_variant, files_by_stem, from_pairs, matched
from virb.data.images import Dataset
from virb.data.maps import label_lut, read_labels
from virb.data.placement import IGNORED
from virb.errors import UserError

_LISTED = """
1 person/2 bicycle/3 car/4 motorcycle/5 airplane/6 bus/7 train/8 truck/9 boat/10 traffic light/11 fire hydrant/13 stop sign/
14 parking meter/15 bench/16 bird/17 cat/18 dog/19 horse/20 sheep/21 cow/22 elephant/23 bear/24 zebra/25 giraffe/27 backpack/
28 umbrella/31 handbag/32 tie/33 suitcase/34 frisbee/35 skis/36 snowboard/37 sports ball/38 kite/39 baseball bat/40 baseball glove/
41 skateboard/42 surfboard/43 tennis racket/44 bottle/46 wine glass/47 cup/48 fork/49 knife/50 spoon/51 bowl/52 banana/53 apple/
54 sandwich/55 orange/56 broccoli/57 carrot/58 hot dog/59 pizza/60 donut/61 cake/62 chair/63 couch/64 potted plant/65 bed/
67 dining table/70 toilet/72 tv/73 laptop/74 mouse/75 remote/76 keyboard/77 cell phone/78 microwave/79 oven/80 toaster/81 sink/
82 refrigerator/84 book/85 clock/86 vase/87 scissors/88 teddy bear/89 hair drier/90 toothbrush/92 banner/93 blanket/95 bridge/
100 cardboard/107 counter/109 curtain/112 door-stuff/118 floor-wood/119 flower/122 fruit/125 gravel/128 house/130 light/
133 mirror-stuff/138 net/141 pillow/144 platform/145 playingfield/147 railroad/148 river/149 road/151 roof/154 sand/155 sea/156 shelf/
159 snow/161 stairs/166 tent/168 towel/171 wall-brick/175 wall-stone/176 wall-tile/177 wall-wood/178 water-other/180 window-blind/
181 window-other/184 tree-merged/185 fence-merged/186 ceiling-merged/187 sky-other-merged/188 cabinet-merged/189 table-merged/
190 floor-other-merged/191 pavement-merged/192 mountain-merged/193 grass-merged/194 dirt-merged/195 paper-merged/196 food-other-merged/
197 building-other-merged/198 rock-merged/199 wall-other-merged/200 rug-merged
"""
CATEGORIES: dict[int, str] = {int(number): name for number, name in (entry.strip().split(" ", 1) for entry in _LISTED.split("/"))}
"""The 133 official categories, 80 things and 53 kinds of stuff, by category id (1 to 200, with gaps)."""
_NAME = "coco-panoptic"
_SPLITS = {"train": "train2017", "test": "val2017"}
_HISTORIC = 201  # outputs in ViRB 2021: an id each, and 0
MAPS = "panoptic_labels_"  # what the folders of our label maps begin with


@register_dataset(_NAME)
def coco_panoptic(root: Path | None, variant: str | None = None) -> Dataset:
    """What each pixel shows: ``{train,val}2017/*.jpg`` (also below ``images/``), and maps of category ids,
    ``panoptic_labels_{train,val}2017/*.png`` (also below ``annotations/``, where ViRB 2021 had them), which
    ``virb data prepare COCODetection`` makes of the official annotations. Images without a map are left out.

    Target ``labels``, uint8 (H, W): the 133 categories in the order of their ids, 255 where nothing is annotated. ``variant="virb2021"``:
    the category ids themselves, 0 to 200, where 0 is nothing, and 67 ids are nobody's.
    """
    historic = checked_variant(_NAME, variant) is not None
    folder, images = locate(_NAME, root, (_layout(""), _layout("images/")))
    splits, without = {}, {}
    for split, part in _SPLITS.items():
        maps = _place_of_maps(folder, part)
        photographs = files_by_stem(folder, f"{images}{part}", "", (".jpg",))
        labels = files_by_stem(folder, maps, "", (".png",))
        mapped = {stem: path for stem, path in photographs.items() if stem in labels}
        where = f"{folder / images / part} and {folder / maps}"
        splits[split] = Pairs(*matched(_NAME, mapped, labels, where, "label map"), source=where)
        without[split] = len(photographs) - len(mapped)
    note = ", ".join(f"{n:,} images of {split} have no label map and are left out" for split, n in without.items() if n)
    lut = label_lut({i: i for i in range(_HISTORIC)} if historic else {0: IGNORED, **{number: i for i, number in enumerate(CATEGORIES)}})
    names = [CATEGORIES.get(i, f"id {i}" if i else "nothing") for i in range(_HISTORIC)] if historic else list(CATEGORIES.values())
    record = {"classes": "category ids" if historic else "133"}
    return from_pairs(_NAME, folder, splits, "labels", partial(read_labels, lut=lut), record, names, note=note)


def _layout(images: str) -> Layout:
    return Layout(images, tuple(f"{images}{part}" for part in _SPLITS.values()))


def _place_of_maps(folder: Path, part: str) -> str:
    for place in (f"{MAPS}{part}", f"annotations/{MAPS}{part}"):
        if (folder / place).is_dir():
            return place
    raise UserError(
        f"{_NAME}: {folder / f'{MAPS}{part}'} is not there: maps of category ids, made of the official panoptic annotations by\n"
        "virb data prepare COCODetection --source FOLDER"
    )
