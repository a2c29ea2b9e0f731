"""EgoHands: whose hands are where, in 48 videos of two people at a table. The unit is the video, of which 100 frames are labelled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, locate, read_mat, some, subfolders
from virb.data.datasets.dense import Pairs, files_by_stem, from_pairs, paired_folders
from virb.data.decode import read_size
from virb.data.images import Dataset, FileImages, Samples
from virb.data.maps import label_lut, read_labels
from virb.data.sequences import LazySequence, file_sizes
from virb.errors import BadImage, UserError

CLASSES = ("background", "yourleft", "yourright", "myleft", "myright")  # ViRB 2021's numbers
POLYGONS = "polygons.mat"
_OFFICIAL = "_LABELLED_SAMPLES"
# The main split of the paper of 2015, which ViRB has, too; the other 36 videos are to train on.
_VAL = ("CARDS_LIVINGROOM_S_H", "CHESS_COURTYARD_H_S", "JENGA_COURTYARD_T_S", "PUZZLE_OFFICE_S_T")
_TEST = (
    "CARDS_COURTYARD_B_T", "CARDS_OFFICE_S_B", "CHESS_COURTYARD_B_T", "CHESS_LIVINGROOM_T_H", "JENGA_LIVINGROOM_S_T", "JENGA_OFFICE_H_T",
    "PUZZLE_COURTYARD_H_T", "PUZZLE_LIVINGROOM_T_B",
)  # fmt: skip


@register_dataset("egohands")
def egohands(root: Path | None) -> Dataset:
    """ViRB 2021's ``images/<video>/*.jpg`` with ``labels/<video>/*.png`` (values 0 to 4), which ``virb data prepare`` makes, or the
    official ``_LABELLED_SAMPLES/<video>/`` with ``*.jpg`` and ``polygons.mat``, whose hands are filled in when they are read.

    Target ``mask``: 0 background, 1 to 4 the left and right hand of the other person and one's own.
    """
    name = "egohands"
    folder, layout = locate(name, root, (Layout("ViRB 2021", ("images", "labels")), Layout("official", (_OFFICIAL,))))
    if layout == "official":
        return _with_polygons(name, folder / _OFFICIAL)
    pairs = paired_folders(name, folder, ("images", ""), ("labels", ""))
    parts: dict[str, tuple[list[str], list[str]]] = {"train": ([], []), "val": ([], []), "test": ([], [])}
    for image, target in zip(pairs.images, pairs.targets, strict=True):
        images, targets = parts[part_of(_video(image))]
        images.append(image)
        targets.append(target)
    splits = {part: Pairs(images, targets, pairs.source, [_video(image) for image in images]) for part, (images, targets) in parts.items()}
    read = partial(read_labels, lut=label_lut({number: number for number in range(len(CLASSES))}))
    return from_pairs(name, folder, splits, "mask", read, {"numbers": "ViRB's"}, CLASSES, note="label images")


def part_of(video: str) -> str:
    return "val" if video in _VAL else "test" if video in _TEST else "train"


def _video(path: str) -> str:
    return PurePosixPath(path).parent.name


def _with_polygons(name: str, folder: Path) -> Dataset:
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for video in subfolders(folder):
        frames = sorted(files_by_stem(folder, video, "", (".jpg",)).values())
        n_labelled = len(read_polygons(str(folder / video / POLYGONS)))
        if len(frames) != n_labelled:
            raise UserError(f"{name}: {folder / video} has {len(frames)} frames, but {POLYGONS} has polygons of {n_labelled}")
        parts[part_of(video)] += [(frame, i) for i, frame in enumerate(frames)]
    empty = [part for part, frames in parts.items() if not frames]
    if empty:
        raise UserError(f"{name}: {folder} has no video of {some(empty)}; is the download complete?")
    lists, samples = {}, {}
    for part, numbered in parts.items():
        paths = [path for path, _ in numbered]
        lists[part] = FileImages(part, folder, paths)
        units = [_video(path) for path in paths]
        samples[part] = Samples.one_per_image(lists[part], {"mask": _filled(folder, numbered, sorted(set(units)))}, units)
    return Dataset(name, lists, samples, {"mask": CLASSES}, "polygons")


def _filled(folder: Path, frames: Sequence[tuple[str, int]], videos: Sequence[str]) -> LazySequence:
    sizes = file_sizes(str(folder), [f"{video}/{POLYGONS}" for video in videos])
    record = {"polygons": dict(zip(videos, sizes, strict=True)), "frames": [path for path, _ in frames], "filled": "pixel centres"}
    return LazySequence(partial(_mask_of, str(folder), tuple(frames)), len(frames), record)


def _mask_of(folder: str, frames: Sequence[tuple[str, int]], i: int) -> np.ndarray:
    path, number = frames[i]
    image = os.path.join(folder, path)
    return filled_hands(read_polygons(os.path.join(os.path.dirname(image), POLYGONS))[number], read_size(image))


# The converter


@lru_cache(maxsize=64)  # the 48 videos
def read_polygons(path: str) -> tuple[Mapping[str, np.ndarray], ...]:
    """For each labelled frame in order of their names: hand -> its outline, (points, 2) of x and y in MATLAB's pixels, which count from 1;
    no points where the hand is not seen."""
    frames = np.atleast_1d(read_mat("egohands", Path(path), "polygons"))
    if frames.dtype.names is None or not set(CLASSES[1:]) <= set(frames.dtype.names):
        raise another_version("egohands", Path(path), f"polygons of {', '.join(CLASSES[1:])} per frame")
    return tuple({hand: _outline(path, frame[hand]) for hand in CLASSES[1:]} for frame in frames)


def _outline(path: str, points: Any) -> np.ndarray:
    points = np.asarray(points)
    if points.size == 0:
        return np.empty((0, 2))
    try:
        return points.astype(np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        raise another_version(
            "egohands", Path(path), f"outlines of points x, y, but one is {points.dtype} of shape {points.shape}"
        ) from None


def filled_hands(outlines: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W): the class of each pixel. One's own hands, which are nearer to the camera, cover the other person's."""
    mask = np.zeros(size, dtype=np.uint8)
    for number, hand in enumerate(CLASSES[1:], 1):
        points = outlines[hand]
        if not np.isfinite(points).all():
            raise BadImage(f"{hand} has a point that is not finite")
        mask[inside(points - 1, size)] = number
    return mask


def inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W): the pixels whose centre lies in the closed outline (points, 2) of x, y, where pixel centres are whole numbers from 0.
    What an outline encloses twice is outside of it, as in MATLAB's ``poly2mask``."""
    height = size[0]
    crossings: list[list[float]] = [[] for _ in range(height)]
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        for row in range(max(0, int(np.ceil(y0))), min(height, int(np.ceil(y1)))):  # y0 <= row < y1: a corner counts once
            crossings[row].append(x0 + (row - y0) / (y1 - y0) * (x1 - x0))
    mask = np.zeros(size, dtype=bool)
    for row, xs in enumerate(crossings):
        xs.sort()
        for left, right in zip(xs[::2], xs[1::2], strict=True):
            mask[row, max(0, int(np.ceil(left))) : max(0, int(np.ceil(right)))] = True
    return mask


def convert(images: Path, polygons: Path, labels: Path) -> int:
    """Writes ``labels/<frame>.png`` for the frames ``images/*.jpg`` of one video, by its polygons, where they are not there; returns how
    many were written."""
    from virb.io import write_atomic

    frames = sorted(path for path in images.iterdir() if path.suffix.lower() == ".jpg" and not path.name.startswith("."))
    outlines = read_polygons(str(polygons))
    if len(frames) != len(outlines):
        raise UserError(f"egohands: {images} has {len(frames)} frames, but {polygons} has polygons of {len(outlines)}")
    written = 0
    for frame, hands in zip(frames, outlines, strict=True):
        path = labels / f"{frame.stem}.png"
        if not path.is_file():
            picture = Image.fromarray(filled_hands(hands, read_size(str(frame))))
            write_atomic(path, partial(picture.save, format="PNG"))
            written += 1
    return written
