"""Images with a hole in the middle, and what was there: inpainting.

The hole is a part of the image as it is stored, and it is blank before any geometry touches it: nothing of what was there can leak into
what the network sees, and the target, which is the stored image, needs no geometry of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from virb.data.images import ImageList
from virb.data.sequences import wrapped_index
from virb.io import hash_record

_FROM, _TO, _OF = 64, 160, 224  # ViRB 2021: rows and columns 64 to 159 of 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
FILL = (124, 116, 104)  # its mean colour, which ViRB 2021 put there after normalising: 0 for the network, nearly


def hole_of(height: int, width: int) -> tuple[int, int, int, int]:
    """top, left, bottom, right of the blank part, in whole pixels: the middle 3/7 of each side."""
    top, bottom = (round(height * part / _OF) for part in (_FROM, _TO))
    left, right = (round(width * part / _OF) for part in (_FROM, _TO))
    return top, left, bottom, right


class BlankedImages(ImageList):
    """The images of another list with their holes filled by one colour. ``size`` (height, width): first resized to that (bilinear, aspect
    not kept), so that the hole has the same whole pixels in all of them."""

    def __init__(self, images: ImageList, size: tuple[int, int] | None = None) -> None:
        self.name = images.name
        self.ids = images.ids
        self.images = images
        self.size = size

    def read(self, i: int) -> Image.Image:
        image = _sized(self.images.read(i), self.size)
        top, left, bottom, right = hole_of(image.height, image.width)
        image = image.copy()
        image.paste(FILL, (left, top, right, bottom))
        return image

    def image_size(self, i: int) -> tuple[int, int]:
        return self.images.image_size(i) if self.size is None else self.size

    def _describe(self) -> dict[str, Any]:
        return {"kind": "blanked", "hole": [_FROM, _TO, _OF], "fill": list(FILL), "size": None if self.size is None else list(self.size)}

    def _contents(self) -> Iterable[bytes]:
        yield self.images.identity().encode()


class ImageTargets(Sequence[np.ndarray]):
    """The images of a list as targets, float32 (3, H, W): in [0, 1], or ``normalised`` by the mean and deviation of ImageNet.

    ``hidden``: only what is in the hole; NaN around it. ``size`` as in BlankedImages.
    """

    def __init__(self, images: ImageList, *, hidden: bool, normalised: bool = False, size: tuple[int, int] | None = None) -> None:
        self.images = images
        self._hidden = hidden
        self._normalised = normalised
        self._size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image = _sized(self.images.read(wrapped_index(index, len(self))), self._size)
        values = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        if self._normalised:
            mean, std = (np.array(numbers, dtype=np.float32)[:, None, None] for numbers in (MEAN, STD))
            values = (values - mean) / std
        if not self._hidden:
            return np.ascontiguousarray(values)
        top, left, bottom, right = hole_of(*values.shape[1:])
        target = np.full(values.shape, np.nan, dtype=np.float32)
        target[:, top:bottom, left:right] = values[:, top:bottom, left:right]
        return target

    def identity(self) -> str:
        """Equal for equal images in equal order that are made targets in the same way."""
        how = {"hidden": self._hidden, "normalised": self._normalised, "size": self._size, "hole": [_FROM, _TO, _OF]}
        return hash_record({"kind": "image", "images": self.images.identity(), **how})


def _sized(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    return image if size is None else image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
