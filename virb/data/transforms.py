"""From a decoded image to uint8 pixels: resize, crop, and numbered views. Pillow resamples (with antialiasing), through torchvision v2.

With ``decoder`` "fast", torch does: the same filters on the same places, several times faster, with weights of 15 bits instead of 22. Where
a value lies that near to a half, it is rounded to the other side: less than one value in a hundred differs, most of them by one level of
255, few by two. There is no way to have Pillow's bits and this speed: torch takes no weights from outside, and does not say which of its
values were near to a half.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from virb.data.decode import DECODERS, Pixels
from virb.data.placement import Placement, squashed
from virb.data.views import draw_crop_flip, draw_scale_crop, recolour
from virb.errors import UserError

if TYPE_CHECKING:
    import torch

AUGMENTS = ("none", "crop-flip", "scale-crop-flip", "scale-crop-flip-colour")
_SUPPORT = {"bilinear": 1, "bicubic": 2}  # pixels to either side that Pillow's filters reach, times the factor by which an image shrinks
_TALL = 1.5  # height over width up to which every version of Pillow resamples rows before columns
_ROWS_WORTH_A_COPY = 0.8  # leaving rows out costs a copy of the others


@dataclass(frozen=True)
class View:
    """Augmented view ``number`` of an image: the same crop for every encoder and run, a function of (seed, number, row).

    "crop-flip": a random part of 8-100 % of the area, squashed to the size, and a flip. "scale-crop-flip": the image at a random scale of
    0.5 to 2 of what covers the size, aspect kept, a part of the size cut out, black right and below where the image is smaller, and a flip.
    "scale-crop-flip-colour": the same crop with brightness, contrast, saturation and hue changed.
    """

    number: int
    augment: Literal["none", "crop-flip", "scale-crop-flip", "scale-crop-flip-colour"] = "crop-flip"
    seed: int = 0


@dataclass(frozen=True)
class Geometry:
    """Everything between a decoded image and uint8 pixels; hashable, part of every cache key.

    ``size``: (height, width), or None for native size (images then differ in shape).
    ``resize``: "squash" both sides to ``size`` | "shorter": the image covers round(size / crop_pct) with its aspect kept (for a square:
    its shorter side becomes that), then the centre is cropped | "none": centre crop only, black where the image is smaller.
    ``view``: a random crop and flip instead of resize and crop.
    ``decoder``: one of ``virb.data.decode.DECODERS``; "fast" also resizes in another way, but for views of other kinds than "crop-flip" and
    without interpolation.

    Fields that do not matter for the others are set to one value, so that equal pixels have equal keys.
    """

    size: tuple[int, int] | None
    resize: Literal["squash", "shorter", "none"] = "shorter"
    crop: Literal["center", "none"] = "center"
    crop_pct: float = 0.875
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    view: View | None = None
    decoder: Literal["pillow", "fast"] = "pillow"

    def __post_init__(self) -> None:
        if self.size is not None:
            self._set("size", (int(self.size[0]), int(self.size[1])))
        if self.view is not None and self.view.augment == "none":
            self._set("view", None)
        self._check()
        if self.size is None:
            self._set("interpolation", "nearest")
        elif self.view is not None:
            self._set("resize", "squash")
        elif self.resize == "none":
            self._set("interpolation", "nearest")
        if self.resize == "squash":
            self._set("crop", "none")
        self._set("crop_pct", float(self.crop_pct) if self.resize == "shorter" else 1.0)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check(self) -> None:
        for name, allowed in (
            ("resize", ("squash", "shorter", "none")),
            ("crop", ("center", "none")),
            ("interpolation", ("nearest", "bilinear", "bicubic")),
            ("decoder", tuple(DECODERS)),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"geometry: {name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if self.view is not None and self.view.augment not in AUGMENTS:
            raise UserError(f"geometry: a view's augment is {self.view.augment!r}; expected one of {', '.join(AUGMENTS)}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"geometry: crop_pct is {self.crop_pct}; expected more than 0 and at most 1")
        if self.size is None:
            if (self.resize, self.crop) != ("none", "none") or self.view is not None:
                raise UserError("geometry: native size goes with resize none, crop none and no view")
        elif min(self.size) < 1:
            raise UserError(f"geometry: size is {self.size}; expected at least 1 x 1")
        elif self.view is None and self.resize != "squash" and self.crop == "none":
            raise UserError(f"geometry: resize {self.resize} without crop leaves images of different shapes; add crop center, or squash")

    def record(self) -> dict[str, Any]:
        """All fields, JSON-able: the ``geometry`` of a cache key."""
        return {**asdict(self), "size": None if self.size is None else list(self.size)}

    def fit(self, image: Image.Image, row: int) -> Image.Image:
        """The part of a PIL RGB image that this geometry shows, at its size; ``row`` is the image's place in its list, which picks the
        random crop of a view."""
        from torchvision.transforms.v2 import InterpolationMode, functional

        if self.size is None:
            return image
        mode = InterpolationMode(self.interpolation)
        if self.view is not None and self.view.augment != "crop-flip":
            return _scaled_crop(image, self.size, Image.Resampling[self.interpolation.upper()], self.view, row)
        if self.view is not None:
            top, left, height, width, flip = draw_crop_flip(image.height, image.width, self.view, row)
            image = functional.resized_crop(image, top, left, height, width, list(self.size), interpolation=mode)
            return functional.horizontal_flip(image) if flip else image
        if self.resize == "squash":
            image = functional.resize(image, list(self.size), interpolation=mode)
        elif self.resize == "shorter":
            covering = covering_size(image.height, image.width, self.size, self.crop_pct)
            if self.interpolation in _SUPPORT:
                return resized_center(image, covering, self.size, self.interpolation)
            image = functional.resize(image, list(covering), interpolation=mode)
        return functional.center_crop(image, list(self.size)) if self.crop == "center" else image

    def apply(self, image: Pixels, row: int) -> torch.Tensor:
        """uint8 (3, h, w) of an RGB image, given as its decoder gives it."""
        if self._by_torch():
            return self._resized_by_torch(image if isinstance(image, np.ndarray) else np.array(image), row)
        from torchvision.transforms.v2 import functional

        return functional.pil_to_tensor(self.fit(_as_pil(image), row))

    def write(self, image: Pixels, row: int, out: np.ndarray) -> None:
        """What ``apply`` gives, into ``out``: uint8 (3, h, w). Each channel is copied once, by whichever thread calls."""
        if self._by_torch():
            out[:] = self.apply(image, row).numpy()
            return
        for channel, plane in zip(out, self.fit(_as_pil(image), row).split(), strict=True):
            channel[:] = np.asarray(plane)

    def _by_torch(self) -> bool:
        plain = self.view is None or self.view.augment == "crop-flip"
        return self.decoder == "fast" and self.size is not None and self.interpolation in _SUPPORT and plain

    def _resized_by_torch(self, image: np.ndarray, row: int) -> torch.Tensor:
        import torch
        from torch.nn.functional import interpolate

        assert self.size is not None
        (height, width), (inner_height, inner_width) = image.shape[:2], self.size
        size, flip = self.size, False
        if self.view is not None:
            top, left, height, width, flip = draw_crop_flip(height, width, self.view, row)
            image = image[top : top + height, left : left + width]
        elif self.resize == "shorter":
            size = covering_size(height, width, self.size, self.crop_pct)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]  # channels last in memory, for which torch has a kernel of its own
        pixels = interpolate(pixels, size, mode=self.interpolation, antialias=True)[0]
        top, left = round((size[0] - inner_height) / 2), round((size[1] - inner_width) / 2)
        pixels = pixels[:, top : top + inner_height, left : left + inner_width]
        return pixels.flip(-1) if flip else pixels

    def placement(self, height: int, width: int, row: int) -> Placement:
        """Where the pixels that ``apply`` makes of an image of ``height`` x ``width`` at ``row`` come from."""
        native = (height, width)
        if self.size is None:
            return squashed(native, native)
        if self.view is not None and self.view.augment != "crop-flip":
            crop = draw_scale_crop(height, width, self.size, self.view, row)
            return Placement(native, self.size, crop.box, (0, 0, *crop.filled), crop.flip)
        if self.view is not None:
            top, left, crop_height, crop_width, flip = draw_crop_flip(height, width, self.view, row)
            box = (float(top), float(left), float(crop_height), float(crop_width))
            return Placement(native, self.size, box, (0, 0, *self.size), flip)
        if self.crop == "none":
            return squashed(native, self.size)
        resized = native if self.resize == "none" else covering_size(height, width, self.size, self.crop_pct)
        rows, columns = (_centred(native[axis], resized[axis], self.size[axis]) for axis in (0, 1))
        return Placement(native, self.size, (rows[0], columns[0], rows[1], columns[1]), (rows[2], columns[2], rows[3], columns[3]))


def _as_pil(image: Pixels) -> Image.Image:
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _scaled_crop(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling, view: View, row: int) -> Image.Image:
    """8-bit RGB image of ``size``: a part of ``image``, black right and below where there is no more of it."""
    crop = draw_scale_crop(image.height, image.width, size, view, row)
    (top, left, height, width), (filled_height, filled_width) = crop.box, crop.filled
    # Pillow cuts and resizes at once, from fractions of pixels: only the part is touched, however large the image.
    edges = (left, top, min(left + width, image.width), min(top + height, image.height))
    part = image.resize((filled_width, filled_height), resampling, edges)
    if crop.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.augment == "scale-crop-flip-colour":
        part = recolour(part, crop.colours)
    if crop.filled == size:
        return part
    padded = Image.new("RGB", (size[1], size[0]))
    padded.paste(part, (0, 0))
    return padded


def _centred(native: int, resized: int, size: int) -> tuple[float, float, int, int]:
    """Along one side of an image resized and centre-cropped: first pixel and number of pixels of the image that are seen, and of the view
    that they fill. Rounds as torchvision does: half an odd pixel of padding goes right, of cropping to the even number."""
    if resized <= size:
        return 0.0, float(native), (size - resized) // 2, resized
    per_pixel = native / resized
    return round((resized - size) / 2) * per_pixel, size * per_pixel, 0, size


def covering_size(height: int, width: int, size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """The size, aspect kept, at which an image just covers round(size / crop_pct): torchvision's ``Resize(int)`` when that is a square."""
    least_height, least_width = round(size[0] / crop_pct), round(size[1] / crop_pct)
    if least_height * width >= least_width * height:
        return least_height, max(least_width, int(least_height * width / height))
    return max(least_height, int(least_width * height / width)), least_width


def resized_center(image: Image.Image, covering: tuple[int, int], size: tuple[int, int], interpolation: str) -> Image.Image:
    """The centre of ``size`` of ``image`` resized to ``covering``, both (height, width); bit for bit what resizing all of it gives.

    Pillow resamples along rows first, rounds to 8 bit, and then along columns. So columns outside the centre may go between the two, and
    rows that nothing in the centre looks at before the first: blank ones take their places, for the second must see where rows lie.
    For images taller than wide by a factor (2 in Pillow 13, 100 before) it begins with the columns; those are resized as a whole.
    """
    mode = Image.Resampling[interpolation.upper()]
    (height, width), (inner_height, inner_width) = covering, size
    top, left = round((height - inner_height) / 2), round((width - inner_width) / 2)
    if image.height > _TALL * image.width:
        return image.resize((width, height), mode).crop((left, top, left + inner_width, top + inner_height))
    shrink = image.height / height
    reach = _SUPPORT[interpolation] * max(shrink, 1.0) + 2  # and two for rounding
    first, last = max(0, math.floor(top * shrink - reach)), min(image.height, math.ceil((top + inner_height) * shrink + reach))
    full_height = image.height
    if last - first > _ROWS_WORTH_A_COPY * full_height:
        first, last = 0, full_height
    else:
        image = image.crop((0, first, image.width, last))
    image = image.resize((width, image.height), mode).crop((left, -first, left + inner_width, full_height - first))
    return image.resize((inner_width, height), mode).crop((0, top, inner_width, top + inner_height))
