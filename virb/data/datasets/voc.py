"""PASCAL VOC 2007 as multi-label classification: which of 20 classes a photograph shows."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, check_apart, check_there, locate, read_lines
from virb.data.images import Dataset, FileImages, Samples
from virb.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_NEGATIVE, _POSITIVE, _DIFFICULT = 0, 1, -1
_VOC_VALUES = {"1": _POSITIVE, "0": _DIFFICULT, "-1": _NEGATIVE}


@register_dataset("voc2007")
def voc2007(root: Path | None) -> Dataset:
    """``JPEGImages/``, ``ImageSets/Main/{train,val,test}.txt`` and the answers: ``ImageSets/Main/<class>_<split>.txt``, or, where these
    are not there, ``Annotations/<image>.xml``.

    Target ``labels``: int8 (N, 20); 1 the class is there, 0 it is not, -1 only difficult objects of it are, which counts neither way. (The
    published text files say 1, -1 and 0 for that.)
    """
    name = "voc2007"
    folder, _ = locate(name, root, (Layout("VOC", ("JPEGImages", "ImageSets/Main")),))
    lists, samples = {}, {}
    for split in ("train", "val", "test"):
        source = folder / "ImageSets" / "Main" / f"{split}.txt"
        if split == "test" and not source.is_file():
            raise UserError(f"{name}: {source} is not there; the test images are an archive of their own (VOCtest_06-Nov-2007.tar)")
        ids = [line.split()[0] for line in read_lines(name, source)]
        files = [f"JPEGImages/{image}.jpg" for image in ids]
        check_there(name, folder, files, str(source))
        lists[split] = FileImages(split, folder, files)
        per_class = [folder / "ImageSets" / "Main" / f"{cls}_{split}.txt" for cls in CLASSES]
        labels = _from_lists(ids, per_class) if all(path.is_file() for path in per_class) else _from_xml(folder / "Annotations", ids)
        samples[split] = Samples.one_per_image(lists[split], {"labels": labels})
    check_apart(name, {split: list(images.paths) for split, images in lists.items()})
    return Dataset(name, lists, samples, {"labels": CLASSES})


def _from_lists(ids: list[str], per_class: list[Path]) -> np.ndarray:
    """Lines ``000005 -1`` of a file per class."""
    row = {image: i for i, image in enumerate(ids)}
    labels = np.full((len(ids), len(per_class)), _NEGATIVE, dtype=np.int8)
    for column, path in enumerate(per_class):
        pairs = [line.split() for line in read_lines("voc2007", path)]
        bad = next((pair for pair in pairs if len(pair) != 2 or pair[1] not in _VOC_VALUES), None)
        if bad is not None:
            raise another_version("voc2007", path, f"lines of image and 1, 0 or -1, but there is {' '.join(bad)!r}")
        if {image for image, _ in pairs} != set(ids) or len(pairs) != len(ids):
            raise UserError(f"voc2007: {path} has answers for {len(pairs)} images, but its split has {len(ids)}, or they are others")
        for image, value in pairs:
            labels[row[image], column] = _VOC_VALUES[value]
    return labels


def _from_xml(folder: Path, ids: list[str]) -> np.ndarray:
    """An object that is not difficult makes its class positive; one that is, alone, leaves it open."""
    column = {cls: i for i, cls in enumerate(CLASSES)}
    labels = np.full((len(ids), len(CLASSES)), _NEGATIVE, dtype=np.int8)
    for row, image in enumerate(ids):
        path = folder / f"{image}.xml"
        try:
            objects = ElementTree.parse(path).getroot().findall("object")
        except FileNotFoundError:
            raise UserError(f"voc2007: {path} is not there, and neither are the answers ImageSets/Main/<class>_<split>.txt") from None
        except ElementTree.ParseError as error:
            raise UserError(f"voc2007: {path} is not XML that can be read ({error})") from None
        for thing in objects:
            cls = thing.findtext("name", "").strip()
            if cls not in column:
                raise another_version("voc2007", path, f"one of the 20 classes, but an object is {cls!r}")
            if thing.findtext("difficult", "0").strip() != "1":
                labels[row, column[cls]] = _POSITIVE
            elif labels[row, column[cls]] == _NEGATIVE:
                labels[row, column[cls]] = _DIFFICULT
    return labels
