"""PatchCamelyon: tumour tissue or not, 96 x 96 patches in HDF5 files, which are read patch by patch (the training file unpacks to 7 GB)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, check_classes, locate
from virb.data.decode import DECODED, bad_or_unread
from virb.data.images import Dataset, ImageList, Samples
from virb.data.sequences import LazySequence, wrapped_index
from virb.errors import UserError

_FILE = "camelyonpatch_level_2_split_{}_{}.h5"
_SPLITS = {"train": "train", "val": "valid", "test": "test"}


class H5Images(ImageList):
    """Images of one HDF5 array, uint8 (N, H, W, 3). Its identity is file name, byte size and shape."""

    def __init__(self, name: str, root: str | Path, file: str, key: str, n: int) -> None:
        self.name, self.root, self.file, self.key = name, str(root), file, key
        self.ids = LazySequence(self._id, n)
        self._open: tuple[int, Any] | None = None

    def _id(self, i: int) -> str:
        return f"{self.file}#{i:06d}"

    def read(self, i: int) -> Image.Image:
        DECODED.add()
        i = wrapped_index(i, len(self))
        try:
            return Image.fromarray(self._array()[i])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise bad_or_unread(error)(f"{os.path.join(self.root, self.file)}: image {i} cannot be read ({error})") from error

    def _array(self) -> Any:
        """The array of this process: an open file does not survive a fork."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), _h5py().File(os.path.join(self.root, self.file), "r")[self.key])
        return self._open[1]

    def _describe(self) -> dict[str, Any]:
        return {"kind": "h5"}

    def _contents(self) -> Iterable[bytes]:
        shape = self._array().shape
        yield f"{self.file}\0{os.stat(os.path.join(self.root, self.file)).st_size}\0{shape}".encode()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


@register_dataset("pcam")
def pcam(root: Path | None) -> Dataset:
    """``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5``; class 1 has tumour tissue in the middle 32 x 32 pixels."""
    wants = tuple(_FILE.format(part, kind) for part in _SPLITS.values() for kind in "xy")
    folder, _ = locate("pcam", root, (Layout("HDF5", wants),))
    lists, samples, labels = {}, {}, {}
    for split, part in _SPLITS.items():
        shape, _ = _read(folder / _FILE.format(part, "x"), "x", with_values=False)
        shape_y, values = _read(folder / _FILE.format(part, "y"), "y", with_values=True)
        if len(shape) != 4 or shape[3] != 3:
            raise another_version("pcam", folder / _FILE.format(part, "x"), f"images N x 96 x 96 x 3, but the shape is {shape}")
        if shape[0] != shape_y[0]:
            raise UserError(f"pcam: {part} has {shape[0]} images but {shape_y[0]} labels (in {folder})")
        labels[split] = values.reshape(-1).astype(np.int64)
        if len(labels[split]) != shape[0] or not set(np.unique(labels[split]).tolist()) <= {0, 1}:
            raise another_version("pcam", folder / _FILE.format(part, "y"), "one label 0 or 1 per image")
        lists[split] = H5Images(split, folder, _FILE.format(part, "x"), "x", shape[0])
        samples[split] = Samples.one_per_image(lists[split], {"class": labels[split]})
    classes = ("normal", "tumour")
    check_classes("pcam", classes, labels)
    return Dataset("pcam", lists, samples, {"class": classes})


def _read(path: Path, key: str, *, with_values: bool) -> tuple[tuple[int, ...], np.ndarray]:
    try:
        with _h5py().File(path, "r") as file:
            array = file[key]
            return tuple(array.shape), np.asarray(array[...] if with_values else [])
    except KeyError:
        raise another_version("pcam", path, f"an array {key!r}") from None
    except OSError as error:
        raise UserError(f"pcam: {path} cannot be read as HDF5 ({error}); is it unpacked and complete?") from None


def _h5py() -> Any:
    try:
        import h5py  # type: ignore[import-untyped]  # an extra: PCAM alone needs it
    except ImportError:
        raise UserError("pcam: reading its HDF5 files needs h5py: pip install h5py") from None
    return h5py
