"""Kinetics-400 as ViRB 2021 asks for it: which of 400 actions, from six frames of a clip.

The six are evenly spaced: of n frames, number ``floor((k + 1/2) n / 6)`` for k = 0 to 5, which is the same wherever and whenever it is
computed; a clip of fewer than six repeats some. Clips that are listed but not there (their videos have left the web) are left out.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virb.data.datasets import register_dataset
from virb.data.datasets.common import EXTENSIONS, Layout, another_version, check_classes, locate, read_json, some
from virb.data.images import Dataset, FileImages, FrameImages, ImageList, Samples, absent_is_bad
from virb.errors import BadImage, UserError

N_FRAMES = 6
_VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")
_SPLITS = {"train": ("train",), "test": ("validate", "val", "validation")}
_NAME = "kinetics"


@dataclass(frozen=True)
class _Clip:
    """A clip that is there: its video, or its frames in order, relative to the dataset's folder."""

    id: str
    video: str | None
    frames: tuple[str, ...]


class SpacedFrames(FrameImages):
    """The evenly spaced frames of videos. Which numbers these are is looked up when a frame is read: opening 50,000 videos to count frames
    would take longer than all else that happens before a run."""

    def __init__(self, name: str, root: str | Path, videos: Sequence[str], n_frames: int = N_FRAMES) -> None:
        super().__init__(name, root, [(video, k) for video in videos for k in range(n_frames)])
        self.n_frames = n_frames

    def read(self, i: int) -> Image.Image:
        from virb.data.video import frame_count, read_frame  # PyAV only where there are videos

        path = os.path.join(self.root, self.videos[self.video_of_row[i]])
        with absent_is_bad(self, self.videos[self.video_of_row[i]]):
            n = frame_count(path)
        if n == 0:
            raise BadImage(f"{path}: has no frames; delete it to leave this clip out")
        return read_frame(path, spaced(n, self.n_frames)[int(self.frame_of_row[i])])

    def _describe(self) -> dict[str, Any]:
        return {"kind": "spaced-frames", "decoder": "pyav", "frames": self.n_frames}


def spaced(n: int, k: int = N_FRAMES) -> list[int]:
    """Numbers of ``k`` evenly spaced frames of ``n``."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


@register_dataset("kinetics")
def kinetics(root: Path | None) -> Dataset:
    """``annotations/{train,validate}.json`` (or ``val``), the official form ``{id: {"annotations": {"label": ...}}}``, or the ``.csv`` with
    ``label`` and ``youtube_id``. ``test`` is the official validation split.

    Clips in ``{train,validate}/`` (or ``val/``) at any depth: frames ``<first two of id>/<id>_<n>.jpg`` as ViRB 2021 has them, or video
    files ``<id>*.mp4`` (as downloaded, in class folders or not). Class numbers are the sorted union of both files' labels.
    """
    folder, _ = locate(_NAME, root, (Layout("annotations", ("annotations", "train")),))
    labels = {split: _labels(folder, names) for split, names in _SPLITS.items()}
    classes = tuple(sorted({label for part in labels.values() for label in part.values()}))
    number = {label: i for i, label in enumerate(classes)}
    lists: dict[str, ImageList] = {}
    samples, targets, notes = {}, {}, []
    for split, names in _SPLITS.items():
        place = next((name for name in names if (folder / name).is_dir()), None)
        if place is None:
            raise UserError(f"{_NAME}: {folder} has no folder {' or '.join(names)} with clips")
        clips = _clips(folder, place, labels[split])
        lists[split], rows = _image_list(split, folder, clips)
        targets[split] = np.array([number[labels[split][clip.id]] for clip in clips], dtype=np.int64)
        samples[split] = Samples.from_rows([clip.id for clip in clips], split, rows, {"class": targets[split]})
        notes.append(f"{len(clips)} of {len(labels[split])} clips of {split} are there")
    check_classes(_NAME, classes, targets)
    return Dataset(_NAME, lists, samples, {"class": classes}, "; ".join(notes))


def _labels(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Clip id -> label."""
    files = [folder / "annotations" / f"{name}{ending}" for name in names for ending in (".json", ".csv")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise UserError(f"{_NAME}: none of {', '.join(file.name for file in files)} is in {folder / 'annotations'}")
    found = _from_csv(path) if path.suffix == ".csv" else _from_json(path)
    if not found:
        raise UserError(f"{_NAME}: {path} lists no clips")
    return found


def _from_json(path: Path) -> dict[str, str]:
    content = read_json(_NAME, path)
    expected = 'the form {id: {"annotations": {"label": ...}}}'
    if not isinstance(content, dict):
        raise another_version(_NAME, path, expected)
    try:
        found = {clip: entry["annotations"]["label"] for clip, entry in content.items()}
    except (KeyError, TypeError):
        raise another_version(_NAME, path, f"{expected} in every entry (the official test file has no labels)") from None
    if not all(isinstance(label, str) for label in found.values()):
        raise another_version(_NAME, path, expected)
    return found


def _from_csv(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"label", "youtube_id"} <= set(rows[0]) or any(row["label"] is None for row in rows):
        raise another_version(_NAME, path, "columns label and youtube_id")
    return {row["youtube_id"]: row["label"] for row in rows}


def _clips(folder: Path, place: str, labels: Mapping[str, str]) -> list[_Clip]:
    """Those listed clips that are there, by id. UserError for empty files, or when there are none."""
    videos: dict[str, str] = {}
    frames: dict[str, list[str]] = {}
    empty: list[str] = []
    for path, size in _files(folder, place):
        stem, _, ending = path.rpartition("/")[2].rpartition(".")
        ending = f".{ending.lower()}"
        clip = _id_of(stem, labels.__contains__) if ending in _VIDEOS or ending in EXTENSIONS else None
        if clip is None:
            continue
        if size() == 0:
            empty.append(path)
        elif ending in EXTENSIONS:
            frames.setdefault(clip, []).append(path)
        elif clip in videos:
            raise UserError(f"{_NAME}: the clip {clip} is there twice: {videos[clip]} and {path} below {folder}")
        else:
            videos[clip] = path
    if empty:
        raise UserError(
            f"{_NAME}: {len(empty)} files below {folder} are empty: {some(sorted(empty))}; delete them to leave these clips out"
        )
    found = [_Clip(clip, videos.get(clip), tuple(sorted(frames.get(clip, ()), key=_natural))) for clip in sorted({*videos, *frames})]
    if not found:
        raise UserError(f"{_NAME}: {folder / place} has none of the {len(labels)} listed clips, neither frames <id>_* nor videos <id>*")
    return found


def _files(folder: Path, place: str) -> Iterable[tuple[str, Callable[[], int]]]:
    """Files below ``folder/place``, relative to ``folder``, with a function for the size: videos alone need to be asked."""

    def size_of(path: str, is_video: bool) -> int:
        return os.stat(path).st_size if is_video else 1

    for base, folders, files in os.walk(folder / place, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = os.path.relpath(base, folder).replace(os.sep, "/")
        for file in files:
            full, is_video = os.path.join(base, file), file.lower().endswith(_VIDEOS)
            yield f"{prefix}/{file}", lambda full=full, is_video=is_video: size_of(full, is_video)  # type: ignore[misc]


def _id_of(stem: str, known: Callable[[str], bool]) -> str | None:
    """The listed id that a file name begins with: ids have ``_`` in them, and so has what follows."""
    while stem:
        if known(stem):
            return stem
        stem = stem.rpartition("_")[0]
    return None


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts frame 10 after frame 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", path)]


def _image_list(split: str, folder: Path, clips: Sequence[_Clip]) -> tuple[ImageList, np.ndarray]:
    """The list and the six rows of each clip. Frames where all clips have them, else videos where all have them."""
    if all(clip.frames for clip in clips):
        row: dict[str, int] = {}
        chosen = [[clip.frames[i] for i in spaced(len(clip.frames))] for clip in clips]
        rows = np.array([[row.setdefault(path, len(row)) for path in paths] for paths in chosen], dtype=np.int64)
        return FileImages(split, folder, list(row)), rows
    without = [clip.id for clip in clips if clip.video is None]
    if without:
        raise UserError(f"{_NAME}: some clips of {split} are frames and others videos; as videos there are not: {some(without)}")
    videos = [str(clip.video) for clip in clips]
    return SpacedFrames(split, folder, videos), np.arange(len(videos) * N_FRAMES).reshape(-1, N_FRAMES)
