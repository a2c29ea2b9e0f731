"""Sets that have one layout, the one torchvision downloads: Food-101, Flowers-102, Cars, Aircraft, Country211, Places365, STL-10.

The lists are read by hand. torchvision's classes insist on folder names and md5 sums, keep what they found in private fields and answer a
damaged list with an AssertionError or a KeyError; the tests let them read the same files and compare all paths and labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import (
    Layout,
    Split,
    another_version,
    check_classes,
    from_folders,
    from_splits,
    locate,
    numbered,
    read_json,
    read_lines,
    read_mat,
)
from virb.data.images import ArrayImages, Dataset, Samples
from virb.errors import UserError


@register_dataset("food101")
def food101(root: Path | None) -> Dataset:
    """``meta/{train,test}.json`` ({class: [class/number, ...]}) and ``images/<class>/<number>.jpg``."""
    name = "food101"
    folder, _ = locate(name, root, (Layout("published", ("meta", "images")),))
    listed = {}
    for split in ("train", "test"):
        path = folder / "meta" / f"{split}.json"
        content = read_json(name, path)
        if not isinstance(content, dict) or not all(isinstance(images, list) for images in content.values()):
            raise another_version(name, path, "a mapping of classes to lists of images")
        listed[split] = (path, content)
    classes = sorted({cls for _, content in listed.values() for cls in content})
    splits = {}
    for split, (path, content) in listed.items():
        paths = [f"images/{image}.jpg" for images in content.values() for image in images]
        splits[split] = Split(paths, [classes.index(cls) for cls, images in content.items() for _ in images], str(path))
    return from_splits(name, folder, splits, classes)


@register_dataset("flowers102")
def flowers102(root: Path | None) -> Dataset:
    """``setid.mat``, ``imagelabels.mat`` and ``jpg/image_<5 digits>.jpg``. As torchvision has it: 10 images per class for train and for
    val, the other 6,149 for test. Classes have no official names: ``1`` to ``102``, class ids 0 to 101."""
    name = "flowers102"
    folder, _ = locate(name, root, (Layout("published", ("jpg", "setid.mat", "imagelabels.mat")),))
    labels = np.atleast_1d(read_mat(name, folder / "imagelabels.mat", "labels")).astype(np.int64)
    classes = [str(i) for i in range(1, max(102, int(labels.max())) + 1)]
    splits = {}
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        ids = np.atleast_1d(read_mat(name, folder / "setid.mat", key)).astype(np.int64)
        if len(ids) and not 1 <= ids.min() <= ids.max() <= len(labels):
            raise UserError(f"{name}: setid.mat names image {ids.max()}, but imagelabels.mat has {len(labels)} labels (in {folder})")
        splits[split] = Split([f"jpg/image_{i:05d}.jpg" for i in ids], (labels[ids - 1] - 1).tolist(), f"{folder / 'setid.mat'} ({key})")
    return from_splits(name, folder, splits, classes)


@register_dataset("stanford-cars")
def stanford_cars(root: Path | None) -> Dataset:
    """``devkit/cars_meta.mat``, ``devkit/cars_train_annos.mat``, ``cars_test_annos_withlabels.mat`` (there or in ``devkit/``), images in
    ``cars_train/`` and ``cars_test/``."""
    name = "stanford-cars"
    folder, _ = locate(name, root, (Layout("published", ("devkit", "cars_train", "cars_test")),))
    with_labels = "cars_test_annos_withlabels.mat"
    test = next((place / with_labels for place in (folder, folder / "devkit") if (place / with_labels).is_file()), folder / with_labels)
    classes = [str(cls) for cls in np.atleast_1d(read_mat(name, folder / "devkit" / "cars_meta.mat", "class_names"))]
    splits = {}
    for split, path in (("train", folder / "devkit" / "cars_train_annos.mat"), ("test", test)):
        rows = np.atleast_1d(read_mat(name, path, "annotations"))
        if rows.dtype.names is None or not {"fname", "class"} <= set(rows.dtype.names):
            raise another_version(name, path, "annotations with fname and class (the test file needs to be the one with labels)")
        labels = [int(row["class"]) - 1 for row in rows]
        if labels and not 0 <= min(labels) <= max(labels) < len(classes):
            raise UserError(f"{name}: {path} has class {max(labels) + 1}, but cars_meta.mat names {len(classes)}")
        splits[split] = Split([f"cars_{split}/{row['fname']}" for row in rows], labels, str(path))
    return from_splits(name, folder, splits, classes)


@register_dataset("fgvc-aircraft")
def fgvc_aircraft(root: Path | None, level: str = "variant") -> Dataset:
    """``data/variants.txt``, ``data/images_variant_{train,val,test}.txt`` and ``data/images/<number>.jpg``. ``level``: 100 variants
    (default), ``family`` (70) or ``manufacturer`` (30). Some published names differ in more than spaces, so lines are taken as they are."""
    name = "fgvc-aircraft"
    plural = {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}
    if level not in plural:
        raise UserError(f"{name}: level is {level!r}; there are {', '.join(plural)}")
    folder, _ = locate(name, root, (Layout("published", ("data/images",)),))
    classes = read_lines(name, folder / "data" / f"{plural[level]}.txt")
    splits = {}
    for split in ("train", "val", "test"):
        path = folder / "data" / f"images_{level}_{split}.txt"
        pairs = [line.split(maxsplit=1) for line in read_lines(name, path)]
        bad = next((pair for pair in pairs if len(pair) != 2), None)
        if bad is not None:
            raise another_version(name, path, f"lines of image and {level}, but there is {bad[0]!r}")
        number = numbered(name, classes, {cls for _, cls in pairs}, str(path))
        splits[split] = Split([f"data/images/{image}.jpg" for image, _ in pairs], [number[cls] for _, cls in pairs], str(path))
    return from_splits(name, folder, splits, classes)


@register_dataset("country211")
def country211(root: Path | None) -> Dataset:
    """``{train,valid,test}/<country>/*``: in which of 211 countries a photograph was taken."""
    folder, _ = locate("country211", root, (Layout("published", ("train", "valid", "test")),))
    return from_folders("country211", folder, {"train": "train", "val": "valid", "test": "test"})


@register_dataset("places365")
def places365(root: Path | None) -> Dataset:
    """Scenes; ``test`` is the official validation set, because the official test set has no labels.

    ``categories_places365.txt``, ``places365_train_standard.txt``, ``places365_val.txt`` and images in ``data_256_standard/`` and
    ``val_256/``, or ``data_large_standard/`` and ``val_large/`` (taken when the small ones are not there); or ``{train,val}/<class>/*``.
    """
    name = "places365"
    lists = ("categories_places365.txt", "places365_train_standard.txt", "places365_val.txt")
    folder, layout = locate(name, root, (Layout("lists", lists), Layout("folders", ("train", "val"))))
    if layout == "folders":
        return from_folders(name, folder, {"train": "train", "test": "val"})
    pairs = [line.split() for line in read_lines(name, folder / lists[0])]
    if any(len(pair) != 2 or not pair[1].isdigit() for pair in pairs):
        raise another_version(name, folder / lists[0], "lines of /a/airfield and a number")
    classes = [cls for cls, _ in sorted(pairs, key=lambda pair: int(pair[1]))]
    if [int(n) for _, n in sorted(pairs, key=lambda pair: int(pair[1]))] != list(range(len(pairs))):
        raise another_version(name, folder / lists[0], "classes numbered from 0 without gaps")
    splits = {}
    for split, file, places in (
        ("train", lists[1], ("data_256_standard", "data_large_standard", "data_256", "data_large")),
        ("test", lists[2], ("val_256", "val_large")),
    ):
        place = next((place for place in places if (folder / place).is_dir()), None)
        if place is None:
            raise UserError(f"{name}: {folder} has none of {', '.join(places)} with the images of {split}")
        rows = [line.split() for line in read_lines(name, folder / file)]
        if any(len(row) != 2 or not row[1].isdigit() or int(row[1]) >= len(classes) for row in rows):
            raise another_version(name, folder / file, f"lines of image and class 0 to {len(classes) - 1}")
        splits[split] = Split([f"{place}/{row[0].lstrip('/')}" for row in rows], [int(row[1]) for row in rows], str(folder / file))
    return from_splits(name, folder, splits, [cls.strip("/").split("/", 1)[-1] for cls in classes])


@register_dataset("stl10")
def stl10(root: Path | None) -> Dataset:
    """``{train,test}_X.bin`` (96 x 96, planes of columns), ``{train,test}_y.bin`` (1 to 10), ``class_names.txt``. Unlabelled images are not
    read."""
    name = "stl10"
    folder, _ = locate(name, root, (Layout("binary", ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")),))
    names = folder / "class_names.txt"
    classes = tuple(read_lines(name, names)) if names.is_file() else tuple(str(i) for i in range(1, 11))
    lists, samples, labels = {}, {}, {}
    for split in ("train", "test"):
        raw = np.fromfile(folder / f"{split}_X.bin", dtype=np.uint8)
        if len(raw) == 0 or len(raw) % (3 * 96 * 96):
            raise UserError(f"{name}: {folder / f'{split}_X.bin'} has {len(raw)} bytes, no multiple of {3 * 96 * 96}; is it complete?")
        pixels = raw.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        labels[split] = np.fromfile(folder / f"{split}_y.bin", dtype=np.uint8).astype(np.int64) - 1
        if len(pixels) != len(labels[split]):
            raise UserError(f"{name}: {split}_X.bin has {len(pixels)} images but {split}_y.bin {len(labels[split])} labels (in {folder})")
        if not 0 <= labels[split].min() <= labels[split].max() < len(classes):
            raise UserError(f"{name}: {split}_y.bin has class {labels[split].max() + 1}, but there are {len(classes)} (in {folder})")
        lists[split] = ArrayImages(split, pixels, [f"{name}/{split}/{i:05d}" for i in range(len(pixels))])
        samples[split] = Samples.one_per_image(lists[split], {"class": labels[split]})
    check_classes(name, classes, labels)
    return Dataset(name, lists, samples, {"class": classes})
