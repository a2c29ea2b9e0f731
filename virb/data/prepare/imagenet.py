"""ImageNet (a tar of a tar per class; validation images in one heap, sorted by the development kit's answers) and its subsets."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets.imagenet import LOW_SHOT_LISTS
from virb.data.prepare.archives import Archive, reading
from virb.data.prepare.extract import Rename
from virb.data.prepare.recipes import Found, Part, add, below, named, rules
from virb.errors import UserError

_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_VAL = re.compile(r"(?:.+/)?(ILSVRC2012_val_(\d{8})\.JPEG)")


def validation_folders(found: Found) -> Rename:
    """Validation image -> ``val/<wnid>/``, by the development kit: the answer of line n is the class of image n."""
    classes = _answers(found["devkit"][0])

    def rename(path: str) -> str | None:
        match = _VAL.fullmatch(path)
        if match is None:
            return None
        number = int(match[2])
        if not 1 <= number <= len(classes):
            raise UserError(f"imagenet: {found['devkit'][0]} has answers for {len(classes)} validation images, but there is {match[1]}")
        return f"val/{classes[number - 1]}/{match[1]}"

    return rename


def _answers(devkit: Path) -> list[str]:
    """The wnid of every validation image. The ground truth has ILSVRC's own numbers; ``meta.mat`` says which wnid a number is."""
    files: dict[str, bytes] = {}
    for member in Archive(devkit).members():
        name = member.path.rpartition("/")[2]
        if member.kind == "file" and name in (_META, _TRUTH):
            with reading(devkit, member.path), member.stream() as content:
                files[name] = content.read()
    missing = [name for name in (_META, _TRUTH) if name not in files]
    if missing:
        raise UserError(f"imagenet: {devkit} has no {' and no '.join(missing)}; is it the development kit of tasks 1 and 2?")
    wnid = _synsets(devkit, files[_META])
    numbers = files[_TRUTH].decode("ascii", "replace").split()
    bad = next((word for word in numbers if not word.isdigit() or int(word) not in wnid), None)
    if bad is not None:
        raise UserError(f"imagenet: {devkit}: {_TRUTH} has the class {bad!r}, which {_META} does not name")
    return [wnid[int(word)] for word in numbers]


def _synsets(devkit: Path, meta: bytes) -> dict[int, str]:
    from scipy.io import loadmat

    try:
        rows: Any = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except (KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"imagenet: {devkit}: {_META} cannot be read ({error})") from None


_VALIDATION = (
    Part(
        "devkit", ("ILSVRC2012_devkit_t12.tar.gz",), rules((r"(?:.+/)?(meta\.mat|ILSVRC2012_validation_ground_truth\.txt)", r"devkit/\1"))
    ),
    Part("val", ("ILSVRC2012_img_val.tar",), rename_with=validation_folders),
)
_LISTS = tuple(Part(file, (file,), named(file), needed=False) for file in LOW_SHOT_LISTS)
_KAGGLE = rules((r"ILSVRC/Data/CLS-LOC/((?:train|val)/.+\.JPEG)", r"\1"), (r"LOC_val_solution\.csv", r"\g<0>"))

add(
    "imagenet",
    "imagenet",
    Part("train", ("ILSVRC2012_img_train.tar",), rules((r"(n\d{8})\.tar/(.+\.JPEG)", r"train/\1/\2")), nested=r"n\d{8}\.tar"),
    *_VALIDATION,
    *_LISTS,
)
add(
    "imagenet",
    "imagenet",
    Part("all", ("imagenet-object-localization-challenge.zip", "imagenet_object_localization_patched2019.tar.gz"), _KAGGLE),
    Part("answers", ("LOC_val_solution.csv",), rules((r".+", "LOC_val_solution.csv")), needed=False),
    *_LISTS,
    title="Kaggle's imagenet-object-localization-challenge.zip",
)
add("imagenet-real", "imagenet", *_VALIDATION, note="the validation images of ImageNet; training images are not needed")

for _size in ("", "-320", "-160"):
    _name = f"imagenette2{_size}"
    add("imagenette", _name, Part("all", (f"{_name}.tgz",), rules((rf"{_name}/((?:train|val)/.+)", r"\1"))), title=_size and f"{_name}.tgz")

add(
    "imagenet100",
    "imagenet100",
    Part(
        "all",
        ("imagenet100.zip", "ambityga-imagenet100.zip", "archive.zip"),
        rules((r"(?:.+/)?((?:train\.X[1-4]|val\.X)/n\d{8}/.+)", r"\1"), (r"(?:.+/)?(Labels\.json)", r"\1")),
    ),
)
add("imagenetv2", "imagenetv2-matched-frequency-format-val", Part(
    "all",
    ("imagenetv2-matched-frequency.tar.gz", "imagenetv2-matched-frequency*.tar*"),
    below("imagenetv2-matched-frequency-format-val"),
))  # fmt: skip
