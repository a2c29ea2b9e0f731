"""``nyu_depth_v2_labeled.mat``, an HDF5 file of 1,449 rooms with colour, depth and labels, read frame by frame (it holds 2.8 GB)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virb.data.datasets.common import another_version, read_mat
from virb.data.decode import DECODED, bad_or_unread
from virb.data.images import ImageList
from virb.data.sequences import LazySequence, wrapped_index
from virb.errors import UserError

LABELLED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_SPLIT_KEYS = {"train": "trainNdxs", "test": "testNdxs"}


class MatArray:
    """One array of the file, by frame: MATLAB's (H, W, ..., N) lies there as (N, ..., W, H). Picklable, a file handle per process."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = str(path), key
        self._open: tuple[int, Any] | None = None

    def frame(self, number: int) -> np.ndarray:
        """(H, W), or (H, W, 3) of the images; ``number`` from 0. Raises BadImage."""
        try:
            return np.asarray(self._array()[number]).T
        except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
            raise bad_or_unread(error)(f"{self.path}: {self.key} of frame {number + 1} cannot be read ({error})") from error

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array().shape)

    def _array(self) -> Any:
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), h5py().File(self.path, "r")[self.key])
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


class MatImages(ImageList):
    """Some of its colour images. The identity is file name, byte size, shape and which frames."""

    def __init__(self, name: str, path: Path, frames: np.ndarray) -> None:
        self.name, self.root, self.frames = name, str(path.parent), np.asarray(frames, dtype=np.int64)
        self.file = path.name
        self._images = MatArray(path, "images")
        self.ids = LazySequence(self._id, len(self.frames))

    def _id(self, i: int) -> str:
        return f"{self.file}#{self.frames[i] + 1:04d}"

    def read(self, i: int) -> Image.Image:
        DECODED.add()
        return Image.fromarray(np.ascontiguousarray(self._images.frame(int(self.frames[wrapped_index(i, len(self))]))))

    def image_size(self, i: int) -> tuple[int, int]:
        _, _, width, height = self._images.shape
        return height, width

    def _describe(self) -> dict[str, Any]:
        return {"kind": "nyu-mat"}

    def _contents(self) -> Iterable[bytes]:
        yield f"{self.file}\0{os.stat(os.path.join(self.root, self.file)).st_size}\0{self._images.shape}".encode()
        yield np.ascontiguousarray(self.frames, dtype="<i8").tobytes()


def read_splits(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Split -> frames from 0, of ``splits.mat``; UserError where it does not belong to the file beside it."""
    n = _n_frames(name, folder / LABELLED)
    found = {}
    for split, key in _SPLIT_KEYS.items():
        frames = np.atleast_1d(read_mat(name, folder / SPLITS, key)).astype(np.int64).reshape(-1) - 1
        if not len(frames) or frames.min() < 0 or frames.max() >= n or len(np.unique(frames)) != len(frames):
            raise another_version(name, folder / SPLITS, f"{key} with different numbers from 1 to {n}, the frames of {LABELLED}")
        found[split] = frames
    both = np.intersect1d(found["train"], found["test"])
    if len(both):
        raise UserError(f"{name}: {folder / SPLITS} has {len(both)} frames to train and to test on, such as {both[0] + 1}")
    return found


def _n_frames(name: str, path: Path) -> int:
    """The number of frames; UserError where the arrays are not those of the labelled data set."""
    try:
        with h5py().File(path, "r") as file:
            shapes = {key: tuple(file[key].shape) for key in ("images", "rawDepths", "labels")}
    except KeyError as error:
        raise another_version(name, path, f"the arrays images, rawDepths and labels ({error.args[0]})") from None
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read as HDF5 ({error}); is the download complete?") from None
    n, *rest = shapes["images"]
    if len(rest) != 3 or rest[0] != 3 or any(shapes[key] != (n, *rest[1:]) for key in ("rawDepths", "labels")):
        raise another_version(name, path, f"images N x 3 x W x H with depths and labels N x W x H, but the shapes are {shapes}")
    return int(n)


def read_scenes(name: str, path: Path) -> list[str]:
    """The scene of each frame; every frame its own where the file does not say."""
    with h5py().File(path, "r") as file:
        if "scenes" not in file:
            return [str(i) for i in range(file["images"].shape[0])]
        try:
            return ["".join(map(chr, np.asarray(file[reference]).reshape(-1))) for reference in np.asarray(file["scenes"]).reshape(-1)]
        except (ValueError, TypeError, KeyError) as error:
            raise another_version(name, path, f"the name of each frame's scene ({error})") from None


def h5py() -> Any:
    try:
        import h5py as module  # type: ignore[import-untyped]  # an extra
    except ImportError:
        raise UserError(f"reading {LABELLED} needs h5py: pip install h5py") from None
    return module
