"""Sliding windows over the images of another list: for encoders that see a fixed size, where whole images are scored."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from virb.data.images import ImageList, Samples
from virb.data.sequences import LazySequence, wrapped_index
from virb.errors import BadImage, UnreadImage, UserError

if TYPE_CHECKING:
    import torch

_STAT_THREADS = 16  # reading headers waits for the file system
_KEPT_IMAGES = 8  # decoded and resized; threads ask for windows of neighbouring images a little out of order


class WindowedImages(ImageList):
    """Windows of ``size`` (height, width) pixels, row by row of each image, image after image.

    An image is first resized so that its shorter side is ``shorter`` (None: not at all), with its aspect. Windows begin every ``stride``
    (down, to the right) pixels; the last is moved back to end at the border. Where an image is smaller than the window it is padded with
    black, below and to the right. Sizes of images come from their headers, the first time that anything is asked. The only window of an
    image that cannot be read says why when it is read itself.
    """

    def __init__(
        self,
        images: ImageList,
        shorter: int | None,
        size: tuple[int, int],
        stride: tuple[int, int],
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        size, stride = (int(size[0]), int(size[1])), (int(stride[0]), int(stride[1]))
        if min(size) < 1 or min(stride) < 1 or stride[0] > size[0] or stride[1] > size[1]:
            raise UserError(f"windows of {size[0]} x {size[1]} at steps of {stride[0]} x {stride[1]}; expected steps from 1 to the size")
        if shorter is not None and shorter < 1:
            raise UserError(f"windows: the shorter side is {shorter}; expected at least 1")
        if interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"windows: interpolation is {interpolation!r}; expected bilinear or bicubic")
        self.images, self.shorter, self.size, self.stride, self.interpolation = images, shorter, size, stride, interpolation
        resized = "" if shorter is None else f"{shorter}px:"
        self.name = f"{images.name}@{resized}{size[0]}x{size[1]}/{stride[0]}x{stride[1]}"
        self._sizes: np.ndarray | None = None  # (N, 2) native height, width; zeros where an image cannot be read
        self._first: np.ndarray | None = None  # row of each image's first window, and the number of rows
        self._ids: Sequence[str] | None = None
        self._set_up()

    def _set_up(self) -> None:
        self._lock = threading.RLock()
        self._recent: OrderedDict[int, Future[Image.Image]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        self._placed()  # a started process need not read the headers again
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_recent", "_ids")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _ids=None)
        self._set_up()

    @property
    def ids(self) -> Sequence[str]:  # type: ignore[override]  # how many there are is known only when headers were read
        """``<id of the image>@<top>,<left>`` in pixels of the resized image."""
        if self._ids is None:
            self._ids = LazySequence(self._id, len(self))
        return self._ids

    def __len__(self) -> int:
        return int(self._placed()[1][-1])

    def rows_of(self, i: int) -> np.ndarray:
        """int64: the rows of all windows of image ``i``."""
        first = self._placed()[1]
        i = wrapped_index(i, len(self.images))
        return np.arange(first[i], first[i + 1])

    def window_of(self, row: int) -> tuple[int, tuple[int, int], tuple[int, int, int, int]]:
        """The image of a window, its (height, width) once resized, and the (top, left, height, width) in it that the window shows from its
        top left on: less than ``size`` where the image is smaller."""
        sizes, first = self._placed()
        row = wrapped_index(row, int(first[-1]))
        image = int(np.searchsorted(first, row, side="right")) - 1
        height, width = self.scaled(int(sizes[image, 0]), int(sizes[image, 1]))
        down, along = divmod(row - int(first[image]), n_windows(width, self.size[1], self.stride[1]))
        top = max(0, min(down * self.stride[0], height - self.size[0]))
        left = max(0, min(along * self.stride[1], width - self.size[1]))
        return image, (height, width), (top, left, min(self.size[0], height), min(self.size[1], width))

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which an image is resized: the longer side rounds to the nearest pixel, halves up."""
        least = min(height, width)
        if least < 1:
            return 1, 1  # cannot be read: one window
        if self.shorter is None:
            return height, width
        longer = (2 * max(height, width) * self.shorter + least) // (2 * least)
        return (self.shorter, longer) if height <= width else (longer, self.shorter)

    def image_size(self, i: int) -> tuple[int, int]:
        return self.size

    def read(self, i: int) -> Image.Image:
        image, scaled, (top, left, height, width) = self.window_of(i)
        whole = self._resized(image, scaled)
        window = whole.crop((left, top, left + width, top + height))
        if (height, width) == self.size:
            return window
        padded = Image.new("RGB", (self.size[1], self.size[0]))
        padded.paste(window, (0, 0))
        return padded

    def _resized(self, image: int, scaled: tuple[int, int]) -> Image.Image:
        """Decoded once for the windows that follow each other; a thread that wants an image in the making waits for it."""
        with self._lock:
            found = self._recent.get(image)
            mine = found is None
            if found is None:
                found = self._recent[image] = Future()
                while len(self._recent) > _KEPT_IMAGES:
                    self._recent.popitem(last=False)
        if mine:
            try:
                found.set_result(self._decoded(image, scaled))
            except BaseException as error:  # whatever it is, the threads that wait must not wait for ever; later readers try anew
                found.set_exception(error)
                with self._lock:
                    self._recent.pop(image, None)
                raise
        return found.result()

    def _decoded(self, image: int, scaled: tuple[int, int]) -> Image.Image:
        picture = self.images.read(image)
        if self.shorter is None:
            if (picture.height, picture.width) != scaled:
                header, pixels = f"{scaled[0]} x {scaled[1]}", f"{picture.height} x {picture.width}"
                raise BadImage(f"{self.images.ids[image]}: has {pixels} pixels, but its header says {header}")
            return picture
        return picture.resize((scaled[1], scaled[0]), Image.Resampling[self.interpolation.upper()])

    def _placed(self) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if self._sizes is None or self._first is None:
                with ThreadPoolExecutor(_STAT_THREADS) as pool:
                    sizes = list(pool.map(self._size, range(len(self.images))))
                counts = [self._count(*size) for size in sizes]
                self._sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
                self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
            return self._sizes, self._first

    def _size(self, image: int) -> tuple[int, int]:
        try:
            return self.images.image_size(image)
        except UnreadImage:
            raise  # another try may give it more windows
        except BadImage:
            return 0, 0

    def _count(self, height: int, width: int) -> int:
        height, width = self.scaled(height, width)
        return n_windows(height, self.size[0], self.stride[0]) * n_windows(width, self.size[1], self.stride[1])

    def _id(self, row: int) -> str:
        image, _, (top, left, _, _) = self.window_of(row)
        return f"{self.images.ids[image]}@{top},{left}"

    def _describe(self) -> dict[str, Any]:
        return {
            "kind": "windows",
            "images": self.images.identity(),
            "shorter": self.shorter,
            "size": list(self.size),
            "stride": list(self.stride),
            "interpolation": "none" if self.shorter is None else self.interpolation,
        }

    def _contents(self) -> Iterable[bytes]:
        return ()


def n_windows(length: int, size: int, stride: int) -> int:
    """How many windows cover a side of ``length`` pixels."""
    return 1 + max(0, -(-(length - size) // stride))


def windowed_samples(samples: Samples, windows: WindowedImages) -> Samples:
    """The same samples, the rows of each being all windows of its image, or of its images one after the other."""
    if samples.images != windows.images.name:
        raise ValueError(f"the samples are of {samples.images!r}, the windows of {windows.images.name!r}")
    rows = [np.concatenate([windows.rows_of(image) for image in samples.rows(i)]) for i in range(len(samples))]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows], dtype=np.int64)])
    values = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    return replace(samples, images=windows.name, row_values=values, row_offsets=offsets)


def merge_windows(parts: Sequence[torch.Tensor], boxes: Sequence[tuple[int, int, int, int]], scaled: tuple[int, int]) -> torch.Tensor:
    """(C, H', W') out of windows (C, h, w) with one value per pixel of the window: the mean where they overlap.

    ``boxes``: of ``window_of``, one per part; what a part has to the right of or below its box is padding and cut off: bring parts to the
    windows' ``size``. ``scaled``: (H', W'). ValueError where the boxes leave a pixel of the image out.
    """
    import torch

    total = parts[0].new_zeros((parts[0].shape[0], *scaled))
    count = torch.zeros(scaled, dtype=total.dtype)
    for part, (top, left, height, width) in zip(parts, boxes, strict=True):
        if part.shape[-2] < height or part.shape[-1] < width:
            raise ValueError(f"a part of {tuple(part.shape[-2:])} for a window that shows {(height, width)} pixels")
        total[:, top : top + height, left : left + width] += part[:, :height, :width]
        count[top : top + height, left : left + width] += 1
    if not bool(count.all()):
        raise ValueError(f"the windows leave {int((count == 0).sum())} pixels of {scaled} out")
    return total / count.to(total.device)
