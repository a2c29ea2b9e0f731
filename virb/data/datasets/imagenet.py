"""ImageNet, its subsets (Imagenette, ImageNet-100), and the sets that score what was trained on it (V2, A, R, Sketch, C, ReaL).

Classes are named by wnid (``n01440764``), sorted, which is ImageNet's usual numbering 0..999. A subset has its own shorter tuple of
wnids; the names, not the numbers, say which class of one set is which of another. Read by hand: torchvision's ``ImageNet`` wants the
archives or its own ``meta.bin``, and its other classes know one folder name each; the tests let them read the same trees.
"""

from __future__ import annotations

import csv
import pickle
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import (
    Layout,
    Split,
    another_version,
    by_class,
    check_all_classes,
    check_there,
    class_folders,
    from_folders,
    from_splits,
    image_paths,
    locate,
    numbered,
    read_json,
    some,
    subfolders,
)
from virb.data.images import Dataset, FileImages, Samples
from virb.errors import UserError

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
_GROUPS = ("noise", "blur", "weather", "digital", "extra")  # folders of the published archives, if they were kept
_V2 = ("matched-frequency", "threshold-0.7", "threshold0.7", "top-images")
_N_VAL = 50_000
LOW_SHOT_LISTS = {"1percent.txt": (0.01, 12_811), "10percent.txt": (0.1, 128_116)}  # SimCLR's, beside train/: share, samples


def wnids(subset: str = "imagenet") -> tuple[str, ...]:
    """The official classes of ``imagenet`` (1000), ``imagenet_a`` or ``imagenet_r`` (200 each), sorted. From the lists that timm ships."""
    data = pkgutil.get_data("timm.data", f"_info/{subset}_synsets.txt")
    if data is None:
        raise UserError(f"timm has no class list {subset}_synsets.txt; install timm 1.0.15 or later")
    return tuple(data.decode().split())


@register_dataset("imagenet")
def imagenet(root: Path | None) -> Dataset:
    """``train/<wnid>/*`` and, as ``test``, the official validation set: ``val/<wnid>/*``, or flat as it was published, with Kaggle's
    ``LOC_val_solution.csv`` or torchvision's ``meta.bin`` beside it."""
    folder, _ = locate("imagenet", root, (Layout("folders", ("train", "val")),))
    if subfolders(folder / "val"):
        return from_folders("imagenet", folder, {"train": "train", "test": "val"}, wnids())
    number = {wnid: i for i, wnid in enumerate(wnids())}
    train = class_folders("imagenet", folder, "train")
    check_all_classes("imagenet", train, folder / "train")
    numbered("imagenet", wnids(), train, str(folder / "train"))
    splits = {"train": by_class(train, number, str(folder / "train")), "test": _flat_val(folder, number)}
    return from_splits("imagenet", folder, splits, wnids(), note="validation images in one folder")


def _flat_val(folder: Path, number: Mapping[str, int]) -> Split:
    paths = [f"val/{path}" for path in sorted(image_paths(folder / "val"))]
    if not paths:
        raise UserError(f"imagenet: there are no images in {folder / 'val'}")
    found, source = _val_wnids(folder, paths)
    without = [path for path in paths if Path(path).stem not in found]
    if without:
        raise UserError(f"imagenet: {source} has no class for {len(without)} images of {folder / 'val'}: {some(without)}")
    numbered("imagenet", list(number), {found[Path(path).stem] for path in paths}, source)
    return Split(paths, [number[found[Path(path).stem]] for path in paths], source)


def _val_wnids(folder: Path, paths: Sequence[str]) -> tuple[dict[str, str], str]:
    """Stem of a validation image -> wnid, and the file that says so."""
    tables = [place / "LOC_val_solution.csv" for place in (folder, *list(folder.parents)[:3])]
    for path in tables:
        if path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.reader(file))[1:]
            if any(len(row) != 2 or not row[1].startswith("n") for row in rows):
                raise another_version("imagenet", path, "rows of ImageId,PredictionString")
            return {row[0]: row[1].split()[0] for row in rows}, str(path)
    meta = folder / "meta.bin"
    if meta.is_file():
        import torch

        try:
            names = torch.load(meta, weights_only=True)[1]
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"imagenet: {meta} cannot be read ({error})") from None
        return {f"ILSVRC2012_val_{i + 1:08d}": wnid for i, wnid in enumerate(names)}, str(meta)
    raise UserError(
        f"imagenet: {folder / 'val'} has {len(paths)} images and no class folders; put LOC_val_solution.csv (Kaggle) or meta.bin "
        "(torchvision) beside it, or move the images into val/<wnid>/"
    )


@register_dataset("imagenette")
def imagenette(root: Path | None) -> Dataset:
    """Ten easy classes, the smaller set of DoRA: ``train/<wnid>/*`` and ``val/<wnid>/*`` (``test``), at full size before 320 and 160."""
    folder, _ = locate("imagenette", root, (Layout("folders", ("train", "val")),))
    return from_folders("imagenette", folder, {"train": "train", "test": "val"}, note=folder.name)


@register_dataset("imagenet100")
def imagenet100(root: Path | None) -> Dataset:
    """A hundred classes: ``{train,val}/<wnid>/*``, or Kaggle's parts ``train.X1`` to ``train.X4`` and ``val.X`` with ``Labels.json``."""
    name = "imagenet100"
    folder, layout = locate(name, root, (Layout("folders", ("train", "val")), Layout("parts", ("train.X1", "val.X"))))
    if layout == "folders":
        return from_folders(name, folder, {"train": "train", "test": "val"})
    parts = [part for part in subfolders(folder) if part.startswith("train.X")]
    missing = [f"train.X{i}" for i in range(1, 5) if f"train.X{i}" not in parts]
    if missing:
        raise UserError(f"{name}: {folder} has no {', '.join(missing)}; the training images are in four parts, train.X1 to train.X4")
    train: dict[str, list[str]] = {}
    for part in parts:
        for wnid, paths in class_folders(name, folder, part).items():
            train.setdefault(wnid, []).extend(paths)
    test = class_folders(name, folder, "val.X")
    classes = sorted(set(train) | set(test))
    check_all_classes(name, classes, folder)
    labels = folder / "Labels.json"
    if labels.is_file():
        listed = read_json(name, labels)
        if not isinstance(listed, dict) or not all(isinstance(wnid, str) for wnid in listed):
            raise another_version(name, labels, "a mapping of wnids to names")
        classes = sorted(listed)
    number = numbered(name, classes, {*train, *test}, f"the folders of {folder}")
    splits = {
        "train": by_class({wnid: train[wnid] for wnid in sorted(train)}, number, f"{folder}/train.X*"),
        "test": by_class(test, number, str(folder / "val.X")),
    }
    return from_splits(name, folder, splits, classes, note="Kaggle's parts")


# Sets that score heads trained on ImageNet: one split, ``test``.


@register_dataset("imagenetv2")
def imagenetv2(root: Path | None) -> Dataset:
    """Ten more images of each class: folders ``0`` to ``999`` (ImageNet's numbering), or wnids. ``note`` names the collection."""
    name = "imagenetv2"
    folder, _ = locate(name, root, (Layout("class folders 0 to 999", also=_is_numbered),))
    classes = wnids()
    folders = class_folders(name, folder, "")
    check_all_classes(name, folders, folder)
    if all(cls.isdigit() for cls in folders):
        outside = sorted(cls for cls in folders if int(cls) >= len(classes))
        if outside:
            raise UserError(f"{name}: {folder} has class folders outside 0 to 999: {some(outside)}")
        number = {cls: int(cls) for cls in folders}
        folders = {cls: folders[cls] for cls in sorted(folders, key=int)}
    else:
        number = numbered(name, classes, folders, f"the folders of {folder}")
    variant = next((variant for variant in _V2 if variant in folder.resolve().name), "matched-frequency by its folder's name")
    return from_splits(name, folder, {"test": by_class(folders, number, str(folder))}, classes, note=variant)


def _is_numbered(folder: Path) -> bool:
    names = subfolders(folder)
    return bool(names) and (all(name.isdigit() for name in names) or all(_is_wnid(name) for name in names))


def _is_wnid(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()


def _has_wnids(folder: Path) -> bool:
    return any(_is_wnid(name) for name in subfolders(folder))


@register_dataset("imagenet-a")
def imagenet_a(root: Path | None) -> Dataset:
    """Natural photographs that fooled a ResNet-50, of 200 classes of ImageNet."""
    return _scored_on("imagenet-a", root, wnids("imagenet_a"))


@register_dataset("imagenet-r")
def imagenet_r(root: Path | None) -> Dataset:
    """Renditions (art, cartoons, toys ...) of 200 classes of ImageNet."""
    return _scored_on("imagenet-r", root, wnids("imagenet_r"))


@register_dataset("imagenet-sketch")
def imagenet_sketch(root: Path | None) -> Dataset:
    """Sketches of the 1000 classes."""
    return _scored_on("imagenet-sketch", root, wnids())


def _scored_on(name: str, root: Path | None, classes: tuple[str, ...]) -> Dataset:
    folder, _ = locate(name, root, (Layout("class folders <wnid>", also=_has_wnids),))
    return from_folders(name, folder, {"test": ""}, classes)


@register_dataset("imagenet-c")
def imagenet_c(root: Path | None, corruptions: Sequence[str] = CORRUPTIONS, severities: Sequence[int] = (1, 2, 3, 4, 5)) -> Dataset:
    """ImageNet's validation images under 15 corruptions of 5 severities: ``[group/]<corruption>/<severity>/<wnid>/*``.

    Targets: ``class``; ``corruption`` (number in ``CORRUPTIONS``, also where some are left out); ``severity`` (as it is, 1 to 5);
    ``corrupted``, int64 (N, 3), all three together, for mCE. The unit is the photograph, which comes 75 times.
    """
    name, classes = "imagenet-c", wnids()
    _check_some(name, "corruptions", corruptions, CORRUPTIONS)
    _check_some(name, "severities", severities, (1, 2, 3, 4, 5))
    folder, _ = locate(name, root, (Layout(f"<corruption>/<severity>/<wnid>, as {corruptions[0]}", also=_holds_corruptions),))
    number = {wnid: i for i, wnid in enumerate(classes)}
    paths: list[str] = []
    rows: list[tuple[int, int, int]] = []
    for corruption in corruptions:
        place = next((p for p in (corruption, *(f"{g}/{corruption}" for g in _GROUPS)) if (folder / p).is_dir()), None)
        if place is None:
            there = [p for p in subfolders(folder) if p in CORRUPTIONS or p in _GROUPS]
            raise UserError(f"{name}: {folder} has no {corruption} (it has: {', '.join(there)}); data: {{corruptions: [...]}} takes fewer")
        for severity in severities:
            found = class_folders(name, folder, f"{place}/{severity}")
            numbered(name, classes, found, f"the folders of {folder / place / str(severity)}")
            for wnid, images in found.items():
                paths += images
                rows += [(number[wnid], CORRUPTIONS.index(corruption), severity)] * len(images)
    images_list = FileImages("test", folder, paths)
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 3)
    targets: dict[str, Any] = {"class": table[:, 0], "corruption": table[:, 1], "severity": table[:, 2], "corrupted": table}
    units = [path.rpartition("/")[2] for path in paths]
    samples = Samples.one_per_image(images_list, targets, units)
    return Dataset(name, {"test": images_list}, {"test": samples}, {"class": classes, "corruption": CORRUPTIONS, "corrupted": classes})


def _check_some(name: str, option: str, given: Any, known: Sequence[Any]) -> None:
    """UserError unless ``given`` is a list of some of the known values, each once."""
    if not isinstance(given, list | tuple) or not given:
        raise UserError(f"{name}: data: {{{option}: [...]}} is a list of some of {', '.join(map(str, known))}; got {given!r}")
    unknown = [value for value in given if isinstance(value, bool) or value not in known]
    if unknown:
        raise UserError(f"{name}: data: {{{option}: ...}} has {unknown[0]!r}; there are {', '.join(map(str, known))}")
    if len(set(given)) < len(given):
        raise UserError(f"{name}: data: {{{option}: ...}} names something twice: {', '.join(map(str, given))}")


def _holds_corruptions(folder: Path) -> bool:
    return any((folder / p / c).is_dir() for p in ("", *_GROUPS) for c in CORRUPTIONS)


@register_dataset("imagenet-real")
def imagenet_real(root: Path | None) -> Dataset:
    """ImageNet's validation images with the reassessed labels ("ReaL"): target ``labels``, uint8 (N, 1000), 1 for each right class.

    Images that got no label are left out, as published. ``class`` is the original label where it is known. Labels are ``real.json`` in
    ImageNet's folder or in ``imagenet-real/`` where it is there, else timm's copy.
    """
    name = "imagenet-real"
    original = _imagenet_val(root)
    folder = Path(original.root)
    labels, source = _real_labels(name, folder, root)
    paths = list(original.paths)
    positions = [_val_number(path) - 1 for path in paths]
    if max(positions) >= len(labels):
        raise UserError(f"{name}: {source} has {len(labels)} labels, but there is an image {paths[int(np.argmax(positions))]}")
    kept = [i for i, position in enumerate(positions) if labels[position]]
    target = np.zeros((len(kept), len(wnids())), dtype=np.uint8)
    for row, i in enumerate(kept):
        target[row, labels[positions[i]]] = 1
    images_list = FileImages("test", folder, [paths[i] for i in kept])
    classes = wnids()
    samples = Samples.one_per_image(images_list, {"labels": target})
    return Dataset(name, {"test": images_list}, {"test": samples}, {"labels": classes, "class": classes}, f"labels: {source}")


def _imagenet_val(root: Path | None) -> FileImages:
    """The validation images, whatever their folders; training images are not needed."""
    from virb.data.datasets.facts import FACTS

    folder, _ = locate("imagenet-real", root, (Layout("val", ("val",)),), FACTS["imagenet"].places)
    paths = [f"val/{path}" for path in sorted(image_paths(folder / "val"), key=lambda path: path.rpartition("/")[2])]
    check_there("imagenet-real", folder, paths, str(folder / "val"))
    return FileImages("test", folder, paths)


def _val_number(path: str) -> int:
    """48981 of ``val/n03995372/ILSVRC2012_val_00048981.JPEG``."""
    digits = Path(path).stem.rpartition("_")[2]
    if not (digits.isdigit() and int(digits) >= 1):
        raise UserError(f"imagenet-real: {path} is not named ILSVRC2012_val_<number>, so its labels cannot be found")
    return int(digits)


def _real_labels(name: str, folder: Path, root: Path | None) -> tuple[list[list[int]], str]:
    places = [folder / "real.json", *([Path(root) / "imagenet-real" / "real.json"] if root else [])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        import json

        data = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json")
        return json.loads(data or b"[]"), "timm's copy"
    labels = read_json(name, path)
    if not isinstance(labels, list) or len(labels) != _N_VAL or not all(_is_labels(item) for item in labels):
        raise another_version(name, path, f"a list of {_N_VAL:,} lists of class numbers")
    return labels, path.name


def _is_labels(item: Any) -> bool:
    return isinstance(item, list) and all(isinstance(n, int) and 0 <= n < 1000 for n in item)
