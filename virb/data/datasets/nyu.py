"""NYU Depth v2: rooms, with what can be walked on, depth in metres, and 40 classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, locate, read_mat
from virb.data.datasets.dense import checked_variant, from_pairs, paired_folders
from virb.data.datasets.nyu_files import LABELLED, SPLITS, MatArray, MatImages, read_scenes, read_splits
from virb.data.images import Dataset, Samples
from virb.data.maps import read_float_tiff, read_grey
from virb.data.sequences import LazySequence
from virb.errors import BadImage, UserError

_EIGEN = (slice(45, 471), slice(41, 601))  # rows and columns that the field trains on and scores, of 480 x 640
_EIGEN_SIZE = (480, 640)
_CLASS_MAP = "classMapping40.mat"
_SPLIT_NAMES = ("train", "test")
_MAT = Layout("labelled", (LABELLED, SPLITS))
_N_CLASSES = 40


@register_dataset("nyu-walkable")
def nyu_walkable(root: Path | None, variant: str | None = None) -> Dataset:
    """ViRB 2021's ``{train,test}/images/*.png`` with ``{train,test}/walkable/*.png``, in its own split; nobody else has these masks.

    Target ``mask``: 0 cannot be walked on, 1 can. ``variant="virb2021"``: the values as stored, to be resized with the image before all
    that is not 0 becomes 1.
    """
    name = "nyu-walkable"
    historic = checked_variant(name, variant) is not None
    folder, _ = locate(name, root, (_folders("walkable"),))
    splits = {part: paired_folders(name, folder, (f"{part}/images", ""), (f"{part}/walkable", "")) for part in _SPLIT_NAMES}
    read = read_values if historic else read_walkable
    return from_pairs(name, folder, splits, "mask", read, {"values": "as stored" if historic else "not 0"}, ("other", "walkable"))


@register_dataset("nyu-depth")
def nyu_depth(root: Path | None, crop: str = "none", variant: str | None = None) -> Dataset:
    """``nyu_depth_v2_labeled.mat`` with ``splits.mat`` (795 and 654 rooms), whose depth is the sensor's own; or ViRB 2021's
    ``{train,test}/images/*.png`` with ``{train,test}/depths/*.tiff`` in its own split (1,159 and 290).

    Target ``depth``: float32 metres, NaN where nothing was measured, and with ``crop: eigen`` in the frame of some 40 pixels that the field
    leaves out of images of 480 x 640 (rows 45 to 470 and columns 41 to 600 count). ``variant="virb2021"``: (1, H, W), ViRB's files as they
    are.
    """
    name = "nyu-depth"
    historic = checked_variant(name, variant) is not None
    if crop not in ("none", "eigen"):
        raise UserError(f"{name}: crop is {crop!r}; expected none or eigen")
    layouts = (_folders("depths"),) if historic else (_MAT, _folders("depths"))
    folder, layout = locate(name, root, layouts)
    if layout == _MAT.name:
        return _labelled(
            name, folder, "depth", partial(_depth_of, MatArray(folder / LABELLED, "rawDepths"), crop), {"raw": True, "crop": crop}
        )
    splits = {
        part: paired_folders(name, folder, (f"{part}/images", ""), (f"{part}/depths", ""), (".tiff", ".tif"), "depth map")
        for part in _SPLIT_NAMES
    }
    read = read_stored_depth if historic else partial(read_depth, crop=crop)
    return from_pairs(name, folder, splits, "depth", read, {"as stored": historic, "crop": crop}, note="folders of ViRB 2021")


@register_dataset("nyu40")
def nyu40(root: Path | None) -> Dataset:
    """``nyu_depth_v2_labeled.mat`` with ``splits.mat``, and Gupta's ``classMapping40.mat``, which merges its 894 classes to 40.

    Target ``mask``: 0 to 39 in Gupta's order, 255 what is not labelled.
    """
    name = "nyu40"
    folder, _ = locate(name, root, (Layout("labelled", (LABELLED, SPLITS, _CLASS_MAP)),))
    lut, classes = _forty(name, folder / _CLASS_MAP)
    read = partial(_labels_of, MatArray(folder / LABELLED, "labels"), lut)
    return _labelled(name, folder, "mask", read, {"classes": lut.tolist()}, classes)


def _folders(targets: str) -> Layout:
    return Layout("ViRB 2021", tuple(f"{part}/{kind}" for part in _SPLIT_NAMES for kind in ("images", targets)))


def _labelled(name: str, folder: Path, target: str, read: Any, record: dict[str, Any], classes: tuple[str, ...] = ()) -> Dataset:
    """The labelled data set in the official split; ``read(frame)`` gives the target of a frame from 0. The unit is the scene."""
    path = folder / LABELLED
    frames, scenes = read_splits(name, folder), read_scenes(name, path)
    size = path.stat().st_size
    lists, samples = {}, {}
    for split, numbers in frames.items():
        lists[split] = MatImages(split, path, numbers)
        values = LazySequence(partial(_of_frame, read, numbers), len(numbers), {**record, "bytes": size, "frames": numbers.tolist()})
        samples[split] = Samples.one_per_image(lists[split], {target: values}, [scenes[number] for number in numbers])
    return Dataset(name, lists, samples, {target: classes} if classes else {}, "official split")


def _of_frame(read: Any, frames: np.ndarray, i: int) -> np.ndarray:
    result: np.ndarray = read(int(frames[i]))
    return result


def _depth_of(depths: MatArray, crop: str, frame: int) -> np.ndarray:
    return _measured(depths.frame(frame), crop)


def _labels_of(labels: MatArray, lut: np.ndarray, frame: int) -> np.ndarray:
    raw = labels.frame(frame)
    if raw.size and int(raw.max()) >= len(lut):
        raise BadImage(f"{labels.path}: frame {frame + 1} has the label {int(raw.max())}; {_CLASS_MAP} names {len(lut) - 1}")
    return lut[raw]


def _forty(name: str, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """uint8: official label -> one of 40 classes from 0, and their names. Official 0 is no label."""
    numbers, classes = np.atleast_1d(read_mat(name, path, "mapClass")), np.atleast_1d(read_mat(name, path, "className"))
    if numbers.ndim != 1 or len(classes) != _N_CLASSES or numbers.min() < 1 or numbers.max() > _N_CLASSES:
        raise another_version(name, path, f"mapClass with numbers from 1 to {_N_CLASSES}, and className with their names")
    return np.concatenate([[255], numbers - 1]).astype(np.uint8), tuple(map(str, classes))


def read_values(path: str) -> np.ndarray:
    """uint8 (H, W) as stored."""
    return np.asarray(read_grey(path)).astype(np.uint8)


def read_walkable(path: str) -> np.ndarray:
    """uint8 (H, W): 1 where the file is not 0."""
    return (np.asarray(read_grey(path)) != 0).astype(np.uint8)


def read_depth(path: str, crop: str) -> np.ndarray:
    """float32 (H, W) metres; NaN where nothing was measured."""
    return _measured(read_float_tiff(path), crop)


def read_stored_depth(path: str) -> np.ndarray:
    """float32 (1, H, W) as stored."""
    return read_float_tiff(path)[None]


def _measured(depth: np.ndarray, crop: str) -> np.ndarray:
    """A copy in which all that is no depth is NaN: 0, and what lies outside of the crop of images that have its size."""
    found = np.array(depth, dtype=np.float32)
    found[~(found > 0)] = np.nan
    if crop == "eigen" and found.shape == _EIGEN_SIZE:
        outside = np.ones(found.shape, dtype=bool)
        outside[_EIGEN] = False
        found[outside] = np.nan
    return found
