"""Some images of an image list, as a list of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from virb.data.decode import Pixels
from virb.data.images import ArrayImages, FileImages, ImageList
from virb.data.sequences import PackedStrings
from virb.data.tars import TarImages


def subset(images: ImageList, rows: np.ndarray) -> ImageList:
    """The images of these rows (ascending), in order, with their ids. Equal subsets have equal identities, however they came about."""
    rows = np.asarray(rows, dtype=np.int64)
    if type(images) is FileImages:
        boxes = None if images.boxes is None else images.boxes[rows]
        return FileImages(images.name, images.root, [images.paths[int(row)] for row in rows], boxes)
    if type(images) is TarImages:
        return images.subset(rows)
    if type(images) is ArrayImages:
        return ArrayImages(images.name, images.array[rows], [images.ids[int(row)] for row in rows])
    return SubsetImages(images, rows)


class SubsetImages(ImageList):
    """Reads through to a whole list, of which it is a part."""

    def __init__(self, images: ImageList, rows: np.ndarray) -> None:
        self.name = images.name
        self.ids = PackedStrings([images.ids[int(row)] for row in rows])
        self._images, self._rows = images, rows

    def read(self, i: int) -> Image.Image:
        return self._images.read(int(self._rows[i]))

    def _read_by(self, i: int, decoder: str) -> Pixels:
        return self._images.pixels(int(self._rows[i]), decoder)

    def _describe(self) -> dict[str, Any]:
        return {"kind": "subset", "of": self._images.identity()}

    def _contents(self) -> Iterable[bytes]:
        return (np.ascontiguousarray(self._rows, dtype="<i8").tobytes(),)
