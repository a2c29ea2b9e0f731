"""Datasets of the rendered world (``virb.data.scenes``), with every kind of target: for trying and testing, never for claims.

Targets, by sample: ``class`` (kind of the nearest object, which is also the one with the largest radius), ``count`` (class id 0 to 5
for 1 to 6 objects), ``mask`` (H, W) int64, ``depth`` (H, W) float32 metres, ``flow`` (2, H, W) float32 pixels (x, y) to the next frame,
``boxes`` (M, 5) float32 x0, y0, x1, y1, kind, nearest object first. Kinds in boxes and tracks are class ids of ``KINDS``; in masks 0 is
the background. All but ``class`` and ``count`` are rendered when they are read, apart from the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virb.data import scenes
from virb.data.datasets import register_dataset
from virb.data.images import Dataset, RenderedImages, Samples
from virb.data.scenes import KINDS, Scene
from virb.data.sequences import LazySequence
from virb.errors import UserError
from virb.functional.randomness import numpy_generator

_COUNTS = tuple(str(n) for n in range(1, scenes.MAX_OBJECTS + 1))
_CLASSES = {"class": KINDS, "count": _COUNTS, "mask": ("background", *KINDS), "boxes": KINDS}


@dataclass(frozen=True, eq=False)
class Footage:
    """Rows of an image list as frames of scenes: row r shows frame ``frames[r]`` of scene ``numbers[r]``, which has ``lengths[number]``."""

    seed: int
    purpose: str
    size: int
    lengths: np.ndarray
    numbers: np.ndarray
    frames: np.ndarray

    @classmethod
    def of(cls, seed: int, purpose: str, size: int, lengths: np.ndarray) -> Footage:
        """All frames of scenes 0, 1, ... in order."""
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        frames = np.arange(len(numbers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return cls(seed, purpose, size, lengths, numbers, frames)

    def scene(self, number: int) -> Scene:
        return scenes.draw_scene(self.seed, self.purpose, int(number), int(self.lengths[number]))

    def view(self, render: Callable[[Scene, int, int], Any], row: int) -> Any:
        return render(self.scene(self.numbers[row]), self.size, int(self.frames[row]))

    def image(self, row: int) -> np.ndarray:
        return self.view(scenes.render_image, row)

    def mask(self, row: int) -> np.ndarray:
        return self.view(scenes.render_mask, row)

    def depth(self, row: int) -> np.ndarray:
        return self.view(scenes.render_depth, row)

    def flow(self, row: int) -> np.ndarray:
        return self.view(scenes.render_flow, row)

    def boxes(self, row: int) -> np.ndarray:
        return self.view(scenes.visible_boxes, row)[:, :5]

    def tracks(self, row: int) -> np.ndarray:
        return self.view(scenes.visible_boxes, row)

    def record(self) -> dict[str, Any]:
        """What decides all that is rendered."""
        return {
            "generator": "virb.scenes",
            "version": scenes.VERSION,
            "seed": self.seed,
            "purpose": self.purpose,
            "size": self.size,
            "frames": _in_short(self.lengths, self.numbers, self.frames),
        }

    def images(self, name: str, ids: list[str], boxes: np.ndarray | None = None) -> RenderedImages:
        return RenderedImages(name, ids, self.image, self.record(), boxes)

    def targets(self, read: Callable[[int], Any], n: int, kind: str) -> LazySequence:
        """``n`` targets that ``read`` renders when they are asked for; ``kind`` tells them from this footage's others."""
        return LazySequence(read, n, {**self.record(), "target": kind})


@dataclass(frozen=True, eq=False)
class _PerVideo:
    """``read`` of some of a video's rows, as one target per video."""

    read: Callable[[int], Any]
    starts: np.ndarray
    lengths: np.ndarray

    def every_frame(self, video: int) -> list[Any]:
        return [self.read(int(self.starts[video]) + t) for t in range(int(self.lengths[video]))]

    def first_frame(self, video: int) -> Any:
        return self.read(int(self.starts[video]))


@register_dataset("shapes")
def shapes(root: Path | None = None, n_train: int = 3000, n_test: int = 1000, size: int = 64, seed: int = 0) -> Dataset:
    """One image per sample; targets ``class``, ``count``, ``mask``, ``depth``, ``flow``, ``boxes``. ``size``: height = width, pixels."""
    lists, samples = {}, {}
    for split, n in _checked(size, seed, train=n_train, test=n_test).items():
        footage = Footage.of(seed, f"shapes/{split}", size, np.ones(n, dtype=np.int64))
        lists[split] = footage.images(split, [f"shapes/{split}/{i:06d}" for i in range(n)])
        kinds = [scenes.draw_kinds(seed, footage.purpose, i) for i in range(n)]
        targets = {
            "class": np.array([k[0] for k in kinds], dtype=np.int64),
            "count": np.array([len(k) - 1 for k in kinds], dtype=np.int64),
            "mask": footage.targets(footage.mask, n, "mask"),
            "depth": footage.targets(footage.depth, n, "depth"),
            "flow": footage.targets(footage.flow, n, "flow"),
            "boxes": footage.targets(footage.boxes, n, "boxes"),
        }
        samples[split] = Samples.one_per_image(lists[split], targets)
    return Dataset("shapes", lists, samples, _CLASSES)


@register_dataset("shapes-pairs")
def shapes_pairs(root: Path | None = None, n_train: int = 1000, n_test: int = 300, size: int = 64, seed: int = 0) -> Dataset:
    """Two successive frames per sample; target ``flow`` from the first to the second, (2, H, W) float32 pixels."""
    lists, samples = {}, {}
    for split, n in _checked(size, seed, train=n_train, test=n_test).items():
        footage = Footage.of(seed, f"shapes-pairs/{split}", size, np.full(n, 2, dtype=np.int64))
        names = [f"shapes-pairs/{split}/{i:06d}" for i in range(n)]
        lists[split] = footage.images(split, _frame_ids(names, footage))
        per_pair = _PerVideo(footage.flow, np.arange(n) * 2, footage.lengths)
        targets = {"flow": footage.targets(per_pair.first_frame, n, "flow of pairs")}
        samples[split] = Samples.from_rows(names, split, np.arange(2 * n).reshape(n, 2), targets)
    return Dataset("shapes-pairs", lists, samples)


@register_dataset("shapes-video")
def shapes_video(root: Path | None = None, n_train: int = 200, n_test: int = 100, size: int = 64, seed: int = 0) -> Dataset:
    """A sample is a video of 4 to 8 frames, its rows in order. Targets: ``mask`` (list of (H, W) per frame), ``tracks`` (list of (M, 6)
    float32 per frame: x0, y0, x1, y1, kind, object number, stable within the video), ``class`` and ``count``; and what is given of the
    first frame: ``given_mask`` (H, W), ``given_tracks`` (M, 6)."""
    lists, samples = {}, {}
    for split, n in _checked(size, seed, train=n_train, test=n_test).items():
        purpose = f"shapes-video/{split}"
        lengths = np.array([numpy_generator(seed, f"{purpose}/length", i).integers(4, 9) for i in range(n)], dtype=np.int64)
        footage = Footage.of(seed, purpose, size, lengths)
        starts = np.cumsum(lengths) - lengths
        names = [f"{purpose}/{i:06d}" for i in range(n)]
        lists[split] = footage.images(split, _frame_ids(names, footage))
        masks, tracks = _PerVideo(footage.mask, starts, lengths), _PerVideo(footage.tracks, starts, lengths)
        kinds = [scenes.draw_kinds(seed, purpose, i) for i in range(n)]
        targets = {
            "class": np.array([k[0] for k in kinds], dtype=np.int64),
            "count": np.array([len(k) - 1 for k in kinds], dtype=np.int64),
            "mask": footage.targets(masks.every_frame, n, "masks of every frame"),
            "tracks": footage.targets(tracks.every_frame, n, "tracks of every frame"),
            "given_mask": footage.targets(masks.first_frame, n, "masks of the first frame"),
            "given_tracks": footage.targets(tracks.first_frame, n, "tracks of the first frame"),
        }
        rows = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        samples[split] = Samples.from_rows(names, split, rows, targets)
    return Dataset("shapes-video", lists, samples, {**_CLASSES, "tracks": KINDS})


@register_dataset("shapes-retrieval")
def shapes_retrieval(root: Path | None = None, n_queries: int = 60, n_distractors: int = 200, size: int = 64, seed: int = 0) -> Dataset:
    """A toy of two lists. Every query is the part of a scene that holds its objects, cut out by a box; its 1 to 4 later frames are in the
    database, among single frames of other scenes. Target of ``queries``: ``relevant``, per query the rising database rows (int64)."""
    _checked(size, seed, queries=n_queries, distractors=n_distractors)
    purpose, n_scenes = "shapes-retrieval", n_queries + n_distractors
    views = np.array([numpy_generator(seed, f"{purpose}/views", i).integers(1, 5) for i in range(n_queries)], dtype=np.int64)
    lengths = np.concatenate([views + 1, np.ones(n_distractors, dtype=np.int64)])
    every = Footage.of(seed, purpose, size, lengths)
    is_query = (every.numbers < n_queries) & (every.frames == 0)
    # Shuffled, so that neighbours in the database say nothing.
    shown = numpy_generator(seed, f"{purpose}/order", n_scenes).permutation(np.flatnonzero(~is_query))
    database = Footage(seed, purpose, size, lengths, every.numbers[shown], every.frames[shown])
    queries = Footage(seed, purpose, size, lengths, np.arange(n_queries), np.zeros(n_queries, dtype=np.int64))
    boxes = np.array([_around_all(queries.boxes(i), size) for i in range(n_queries)], dtype=np.float64).reshape(n_queries, 4)
    database_ids = [f"{purpose}/database/{n:06d}-{t}" for n, t in zip(database.numbers, database.frames, strict=True)]
    lists = {
        "database": database.images("database", database_ids),
        "queries": queries.images("queries", [f"{purpose}/queries/{i:06d}" for i in range(n_queries)], boxes),
    }
    samples = {
        "database": Samples.one_per_image(lists["database"]),
        "queries": Samples.one_per_image(lists["queries"], {"relevant": [np.flatnonzero(database.numbers == i) for i in range(n_queries)]}),
    }
    return Dataset("shapes-retrieval", lists, samples)


def _around_all(boxes: np.ndarray, size: int, margin: float = 2) -> tuple[float, float, float, float]:
    low, high = boxes[:, :2].min(axis=0) - margin, boxes[:, 2:4].max(axis=0) + margin
    return max(low[0], 0), max(low[1], 0), min(high[0], size), min(high[1], size)


def _frame_ids(names: list[str], footage: Footage) -> list[str]:
    return [f"{names[number]}/{frame:02d}" for number, frame in zip(footage.numbers, footage.frames, strict=True)]


def _in_short(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes() + b"\0")
    return digest.hexdigest()


def _checked(size: int, seed: int, **counts: int) -> dict[str, int]:
    """The counts, when all options are usable."""
    for option, value in {"size": size, "seed": seed, **counts}.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"shapes: {option} is {value!r}; expected a whole number")
    if size < scenes.MIN_SIZE:
        raise UserError(f"shapes: size is {size}; expected at least {scenes.MIN_SIZE} pixels")
    for option, value in counts.items():
        if value < 1:
            raise UserError(f"shapes: the number of {option} is {value}; expected at least 1")
    return counts
