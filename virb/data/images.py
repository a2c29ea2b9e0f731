"""Image lists (what is encoded and cached; they know no targets), and datasets (lists, samples, targets read apart from the pixels)."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virb.data.decode import DECODED, Pixels, PixelsT, crop_box, pixels_of_box, read_pixels, read_rgb, read_size
from virb.data.sequences import LazySequence, PackedStrings, file_sizes, wrapped_index
from virb.errors import BadImage, UnreadImage


class ImageList(ABC):
    """Ordered images with stable, unique ids. Picklable, and lean, because every worker process gets a copy."""

    name: str
    ids: Sequence[str]
    _identity: str | None = None
    _absent: frozenset[str] = frozenset()  # files that were not there when the identity was made: it says so

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, i: int) -> Image.Image:
        """Image ``i`` as 8-bit RGB, upright, cropped to its box. Raises BadImage, which names the file, or UnreadImage where another try
        may give the image without a change of the identity. What makes the pixels counts itself (``DECODED``): a list that does so by
        other means than ``read_rgb`` or ``read_frame`` adds one here."""

    def pixels(self, i: int, decoder: str) -> Pixels:
        """What ``read`` gives, by one of ``virb.data.decode.DECODERS`` where the list has files for it."""
        return self.read(i) if decoder == "pillow" else self._read_by(i, decoder)

    def _read_by(self, i: int, decoder: str) -> Pixels:
        """The same by another decoder than Pillow, which ``read`` uses."""
        return self.read(i)

    def image_size(self, i: int) -> tuple[int, int]:
        """(height, width) of image ``i`` as ``read`` gives it, without decoding it where that is possible. Raises BadImage."""
        image = self.read(i)
        return image.height, image.width

    @abstractmethod
    def _describe(self) -> dict[str, Any]:
        """The kind of list in short, JSON-able, without names, roots or times."""

    @abstractmethod
    def _contents(self) -> Iterable[bytes]:
        """Everything that decides the pixels, in order: what the identity hashes besides the description and the count."""

    def identity(self) -> str:
        """Image list id, 64 hex digits: equal for equal images in equal order. Computed once, then it travels with the list."""
        if self._identity is None:
            digest = hashlib.sha256(json.dumps({**self._describe(), "count": len(self)}, sort_keys=True, allow_nan=False).encode())
            for piece in self._contents():
                digest.update(piece)
            self._identity = digest.hexdigest()
        return self._identity

    def record(self) -> dict[str, Any]:
        """What was hashed, in short: kind, count and the identity. The name of the list is not part of it."""
        return {**self._describe(), "count": len(self), "image_list_id": self.identity()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} images)"


class FileImages(ImageList):
    """Image files below ``root``, by relative path with forward slashes.

    ``boxes``: (N, 4) x0, y0, x1, y1 in pixels of the upright image, or None. Ids are the paths; a path that comes again
    (another box of the same file) is ``path#2``, ``path#3`` ...
    """

    def __init__(self, name: str, root: str | Path, paths: Sequence[str], boxes: np.ndarray | None = None) -> None:
        self.name = name
        self.root = str(root)
        self.paths = paths if isinstance(paths, PackedStrings) else PackedStrings(paths)
        self.boxes = checked_boxes(boxes, len(self.paths))
        for path in self.paths:
            if path.startswith("/") or not path:
                raise ValueError(f"image paths are relative to the root, {path!r} is not")
        self.ids = numbered_repeats(self.paths)

    def read(self, i: int) -> Image.Image:
        path = os.path.join(self.root, self.paths[i])
        with absent_is_bad(self, self.paths[i]):
            return boxed(read_rgb(path), self.boxes, i, path)

    def _read_by(self, i: int, decoder: str) -> Pixels:
        path = os.path.join(self.root, self.paths[i])
        with absent_is_bad(self, self.paths[i]):
            return boxed(read_pixels(path, decoder), self.boxes, i, path)

    def image_size(self, i: int) -> tuple[int, int]:
        path = os.path.join(self.root, self.paths[i])
        with absent_is_bad(self, self.paths[i]):
            return size_of_box(read_size(path), self.boxes, i, path)

    def _describe(self) -> dict[str, Any]:
        return {"kind": "files", "boxes": self.boxes is not None}

    def _contents(self) -> Iterable[bytes]:
        sizes = list(file_sizes(self.root, self.paths))
        self._absent = frozenset(path for path, size in zip(self.paths, sizes, strict=True) if size < 0)
        return file_contents(self.paths, sizes, self.boxes)


class ArrayImages(ImageList):
    """Images in memory: uint8 (N, H, W, 3), or (N, H, W) for grey."""

    def __init__(self, name: str, array: np.ndarray, ids: Sequence[str]) -> None:
        if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
            raise ValueError(f"expected uint8 images N x H x W x 3 or N x H x W, but got {array.dtype} of shape {array.shape}")
        if len(ids) != len(array):
            raise ValueError(f"{len(array)} images but {len(ids)} ids")
        self.name = name
        self.array = np.ascontiguousarray(array)
        self.ids = _checked_ids(ids)

    def read(self, i: int) -> Image.Image:
        DECODED.add()
        return Image.fromarray(self.array[wrapped_index(i, len(self))]).convert("RGB")

    def image_size(self, i: int) -> tuple[int, int]:
        return self.array.shape[1], self.array.shape[2]

    def _describe(self) -> dict[str, Any]:
        return {"kind": "array", "shape": list(self.array.shape)}

    def _contents(self) -> Iterable[bytes]:
        return (image.tobytes() for image in self.array)


class FrameImages(ImageList):
    """Frames of videos below ``root``: (relative path, frame number counted from 0 in display order). A frame is listed once."""

    def __init__(self, name: str, root: str | Path, frames: Sequence[tuple[str, int]]) -> None:
        numbers: dict[str, int] = {}
        pairs = [(numbers.setdefault(video, len(numbers)), frame) for video, frame in frames]
        if len(set(pairs)) != len(pairs):
            raise ValueError("a frame is listed twice; samples may share rows instead")
        self.name = name
        self.root = str(root)
        self.videos = PackedStrings(numbers)
        self.video_of_row = np.array([video for video, _ in pairs], dtype=np.int64)
        self.frame_of_row = np.array([frame for _, frame in pairs], dtype=np.int64)
        if len(pairs) and self.frame_of_row.min() < 0:
            raise ValueError("frame numbers count from 0")
        self.ids = LazySequence(self._id, len(pairs))

    def _id(self, i: int) -> str:
        return f"{self.videos[self.video_of_row[i]]}#{self.frame_of_row[i]:06d}"

    def read(self, i: int) -> Image.Image:
        from virb.data.video import read_frame  # PyAV only where there are videos

        i = wrapped_index(i, len(self))
        video = self.videos[self.video_of_row[i]]
        with absent_is_bad(self, video):
            return read_frame(os.path.join(self.root, video), int(self.frame_of_row[i]))

    def _describe(self) -> dict[str, Any]:
        return {"kind": "frames", "decoder": "pyav"}

    def _contents(self) -> Iterable[bytes]:
        sizes = list(file_sizes(self.root, self.videos))
        self._absent = frozenset(path for path, size in zip(self.videos, sizes, strict=True) if size < 0)
        for video, frame in zip(self.video_of_row, self.frame_of_row, strict=True):
            yield b"%s\0%d\0%d\0" % (self.videos[video].encode("utf-8", "surrogateescape"), sizes[video], frame)


class RenderedImages(ImageList):
    """Images drawn when they are read: ``render(i)`` gives uint8 (H, W, 3) and must be picklable and a function of ``i`` alone.

    ``record``: what decides the pixels (generator, version, seed, size ...), JSON-able. ``boxes`` as in FileImages.
    """

    def __init__(
        self, name: str, ids: Sequence[str], render: Callable[[int], np.ndarray], record: Mapping[str, Any], boxes: np.ndarray | None = None
    ) -> None:
        self.name = name
        self.ids = _checked_ids(ids)
        self.boxes = checked_boxes(boxes, len(self.ids))
        self._render = render
        self._record = dict(record)

    def read(self, i: int) -> Image.Image:
        DECODED.add()
        i = wrapped_index(i, len(self))
        return boxed(Image.fromarray(self._render(i)).convert("RGB"), self.boxes, i, self.ids[i])

    def _describe(self) -> dict[str, Any]:
        return {"kind": "rendered", "boxes": self.boxes is not None, "record": self._record}

    def _contents(self) -> Iterable[bytes]:
        return () if self.boxes is None else (_little_endian(self.boxes),)


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one split: each has an id, a unit, one or more rows of one image list, and targets.

    ``row_values[row_offsets[i]:row_offsets[i + 1]]`` are the rows of sample ``i`` in the list named ``images``, in order.
    ``targets``: by target name, an array of N or a sequence of N that is read item by item. ``units`` are what statistics
    resample (a sample's video, scene or query); by default every sample is its own.
    """

    ids: np.ndarray
    images: str
    row_values: np.ndarray
    row_offsets: np.ndarray
    targets: Mapping[str, Any] = field(default_factory=dict)
    units: np.ndarray = None  # type: ignore[assignment]  # filled below: never None for a reader

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids, dtype=np.str_)
        set_field = object.__setattr__
        set_field(self, "ids", ids)
        set_field(self, "units", ids if self.units is None else np.asarray(self.units, dtype=np.str_))
        set_field(self, "row_values", np.asarray(self.row_values, dtype=np.int64))
        set_field(self, "row_offsets", np.asarray(self.row_offsets, dtype=np.int64))
        _checked_ids(ids)
        if len(self.units) != len(ids):
            raise ValueError(f"{len(ids)} samples but {len(self.units)} units")
        offsets = self.row_offsets
        if len(offsets) != len(ids) + 1 or offsets[0] != 0 or offsets[-1] != len(self.row_values) or (np.diff(offsets) < 1).any():
            raise ValueError("row_offsets must start at 0, rise by at least 1 per sample and end at the number of rows")
        for name, target in self.targets.items():
            if len(target) != len(ids):
                raise ValueError(f"{len(ids)} samples but {len(target)} targets {name!r}")

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, i: int) -> np.ndarray:
        """Rows of sample ``i``: int64 (number of its images,)."""
        i = wrapped_index(i, len(self))
        return self.row_values[self.row_offsets[i] : self.row_offsets[i + 1]]

    def rows_of(self, chosen: np.ndarray) -> np.ndarray:
        """Rows of these samples (numbers from 0), one sample after the other."""
        starts, lengths = self.row_offsets[chosen], np.diff(self.row_offsets)[chosen]
        ends = np.cumsum(lengths)
        return self.row_values[np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)]

    def fixed_rows(self) -> np.ndarray | None:
        """int64 (N, K) when every sample has K rows, None when they differ."""
        lengths = np.diff(self.row_offsets)
        if len(lengths) == 0:
            return self.row_values.reshape(0, 1)
        return self.row_values.reshape(len(self), -1) if (lengths == lengths[0]).all() else None

    @classmethod
    def one_per_image(cls, images: ImageList, targets: Mapping[str, Any] | None = None, units: Sequence[str] | None = None) -> Samples:
        """Every image of the list is a sample, with the image's id."""
        n = len(images)
        return cls(_as_strings(images.ids), images.name, np.arange(n), np.arange(n + 1), targets or {}, units)  # type: ignore[arg-type]

    @classmethod
    def from_rows(
        cls,
        ids: Sequence[str],
        images: str,
        rows: np.ndarray | Sequence[Sequence[int] | np.ndarray],
        targets: Mapping[str, Any] | None = None,
        units: Sequence[str] | None = None,
    ) -> Samples:
        """Samples of K rows each, from an (N, K) array, or of any numbers of rows, from a sequence of row lists."""
        if isinstance(rows, np.ndarray) and rows.ndim == 1:
            raise ValueError("rows: expected N x K or one list of rows per sample")
        values = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        return cls(_as_strings(ids), images, values, offsets, targets or {}, units)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Image lists by name, samples by split, and the class names of each target that has classes.

    Class id ``c`` of target ``t`` is named ``classes[t][c]``; ids mean the same in all splits. ``note``: what was found on disk, in a line
    for people (the layout, the rule of a split that is not official).
    """

    name: str
    lists: Mapping[str, ImageList]
    samples: Mapping[str, Samples]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        for split, samples in self.samples.items():
            if samples.images not in self.lists:
                raise ValueError(f"{self.name}: samples {split!r} need the image list {samples.images!r}; there are {sorted(self.lists)}")
            n, values = len(self.lists[samples.images]), samples.row_values
            if len(values) and not (values.min() >= 0 and values.max() < n):
                raise ValueError(f"{self.name}: samples {split!r} have rows outside the {n} images of {samples.images!r}")

    def images(self, name: str) -> ImageList:
        """The image list of this name; KeyError when there is none."""
        return self.lists[name]


def file_contents(paths: Iterable[str], sizes: Iterable[int], boxes: np.ndarray | None) -> Iterable[bytes]:
    """What an image list of files hashes: path, byte size and box of each image."""
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        yield b"%s\0%d\0" % (path.encode("utf-8", "surrogateescape"), size)
        if boxes is not None:
            yield _little_endian(boxes[i])


@contextmanager
def absent_is_bad(images: ImageList, path: str) -> Iterator[None]:
    """A file that was never there is a bad image; one that went away since the identity was made, or cannot be read, may come back."""
    try:
        yield
    except UnreadImage as error:
        images.identity()
        if path in images._absent:
            raise BadImage(str(error)) from None
        raise


def boxed(image: PixelsT, boxes: np.ndarray | None, i: int, source: str) -> PixelsT:
    if boxes is None:
        return image
    try:
        return crop_box(image, boxes[i])
    except ValueError as error:
        raise BadImage(f"{source}: {error}") from None


def size_of_box(size: tuple[int, int], boxes: np.ndarray | None, i: int, source: str) -> tuple[int, int]:
    """(height, width) of what ``boxed`` gives of an image of ``size``."""
    if boxes is None:
        return size
    try:
        x0, y0, x1, y1 = pixels_of_box(boxes[i], *size)
    except ValueError as error:
        raise BadImage(f"{source}: {error}") from None
    return y1 - y0, x1 - x0


def checked_boxes(boxes: np.ndarray | None, n: int) -> np.ndarray | None:
    if boxes is None:
        return None
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.shape != (n, 4) or not np.isfinite(boxes).all():
        raise ValueError(f"expected {n} x 4 finite box edges, but got shape {boxes.shape}")
    return boxes


def _checked_ids(ids: Any) -> Any:
    if len(set(ids)) != len(ids):
        raise ValueError("ids are not unique")
    return ids


def numbered_repeats(paths: Sequence[str]) -> Sequence[str]:
    if len(set(paths)) == len(paths):
        return paths
    seen: dict[str, int] = {}
    ids = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        ids.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return PackedStrings(_checked_ids(ids))


def _as_strings(ids: Sequence[str]) -> np.ndarray:
    return np.array(list(ids), dtype=np.str_)


def _little_endian(numbers: np.ndarray) -> bytes:
    return np.ascontiguousarray(numbers, dtype="<f8").tobytes()
