"""Kinetics-400: lists, and clips as archives of videos (the Common Visual Data Foundation's ``k400/{train,val}/part_<n>.tar.gz``), or as
folders that lie unpacked already, with videos or frames."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, rules

_CLIP = r"(?:[^/]+/)*?((?:[^/]+/)?[^/]+\.(?:mp4|mkv|webm|avi|mov|m4v|jpg|jpeg|png))"
_TRAIN = Part(
    "train", ("train/*.tar.gz", "train/*.tar", "train/*.zip"), rules((_CLIP, r"train/\1")), folders=("train",), link="train", several=True
)
_VALID = Part(
    "validate",
    ("val/*.tar.gz", "val/*.tar", "val/*.zip", "validate/*.tar.gz", "validate/*.tar", "validate/*.zip"),
    rules((_CLIP, r"validate/\1")),
    folders=("validate", "val"),
    link="validate",
    several=True,
)
_LIST = rules((r"(?:.+/)?(train|validate|val)(\.json|\.csv)", r"annotations/\1\2"))

add(
    "kinetics",
    "kinetics400",
    Part("train-list", ("train.json", "train.csv"), _LIST),
    Part("val-list", ("validate.json", "validate.csv", "val.json", "val.csv"), _LIST),
    _TRAIN,
    _VALID,
)
add("kinetics", "kinetics400", Part("lists", ("kinetics400.tar.gz",), _LIST), _TRAIN, _VALID, title="lists as kinetics400.tar.gz")
