"""What augmented views draw: crops, flips, colours. All of it is a function of (seed, number, row), equal for every encoder and run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from virb.data.transforms import View

_CROP_SCALE = (0.08, 1.0)  # share of the image's area in a random crop
_CROP_RATIO = (3 / 4, 4 / 3)  # its width over its height
_SCALE = (0.5, 2.0)  # of an image that covers the view at 1
_BRIGHTNESS = 32  # of 255, added or taken
_CONTRAST = (0.5, 1.5)  # factor of all values
_SATURATION = (0.5, 1.5)  # factor
_HUE = 18 / 180  # of a turn, to either side


class Colours(NamedTuple):
    """One change of colours; None leaves a property as it is."""

    brightness: float | None  # added, of 255
    contrast: float | None  # factor
    contrast_first: bool  # before saturation and hue, or after them
    saturation: float | None  # factor
    hue: float | None  # added, of a turn


class ScaleCrop(NamedTuple):
    """A part of an image (top, left, height, width in its pixels) that fills (height, width) pixels of the view, from its top left."""

    box: tuple[float, float, float, float]
    filled: tuple[int, int]
    flip: bool
    colours: Colours


def draw_crop_flip(height: int, width: int, view: View, row: int) -> tuple[int, int, int, int, bool]:
    """top, left, height, width of the random crop in pixels, and whether it is flipped. The distribution of ``RandomResizedCrop``:
    area and log aspect uniform, ten tries, else the largest centred crop with a permitted aspect."""
    random = _generator(view, row)
    flip = bool(random.random() < 0.5)
    for _ in range(10):
        area = height * width * random.uniform(*_CROP_SCALE)
        ratio = math.exp(random.uniform(math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.integers(0, height - crop_height + 1))
            left = int(random.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width, flip
    ratio = float(np.clip(width / height, *_CROP_RATIO))
    crop_width, crop_height = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width, flip


def draw_scale_crop(height: int, width: int, size: tuple[int, int], view: View, row: int) -> ScaleCrop:
    """The image is scaled, aspect kept, by U(0.5, 2) of what just covers ``size``; a part of that size is cut out of it at random, or all
    of a side that is shorter, and flipped with p = 0.5. Colours are drawn last, so that views with and without them have the same crops."""
    random = _generator(view, row)
    flip = bool(random.random() < 0.5)
    scale = random.uniform(*_SCALE) * max(size[0] / height, size[1] / width)
    top, crop_height, filled_height = _draw_side(random, height, size[0], scale)
    left, crop_width, filled_width = _draw_side(random, width, size[1], scale)
    return ScaleCrop((top, left, crop_height, crop_width), (filled_height, filled_width), flip, _draw_colours(random))


def _generator(view: View, row: int) -> np.random.Generator:
    from virb.functional.randomness import numpy_generator  # imports torch, which reading images does without

    return numpy_generator(view.seed, "view", view.number, row)


def _draw_side(random: np.random.Generator, native: int, size: int, scale: float) -> tuple[float, float, int]:
    """First pixel and number of pixels cut out of the image, and how many pixels of the view they fill."""
    place = random.random()
    crop = size / scale
    if crop >= native:
        return 0.0, float(native), min(size, max(1, round(native * scale)))
    return place * (native - crop), crop, size


def _draw_colours(random: np.random.Generator) -> Colours:
    """Each property is changed with p = 0.5. All numbers are drawn, used or not: none moves because of another."""
    changed, last = random.random(4) < 0.5, random.random() < 0.5
    values = (
        random.uniform(-_BRIGHTNESS, _BRIGHTNESS),
        random.uniform(*_CONTRAST),
        random.uniform(*_SATURATION),
        random.uniform(-_HUE, _HUE),
    )
    brightness, contrast, saturation, hue = (float(value) if use else None for value, use in zip(values, changed, strict=True))
    return Colours(brightness, contrast, not last, saturation, hue)


def recolour(image: Image.Image, colours: Colours) -> Image.Image:
    """An 8-bit RGB image with its colours changed, clipped to 0..255. Contrast scales the values, saturation and hue those of HSV."""
    steps = np.arange(256)
    if colours.brightness is not None:
        image = _looked_up(image, steps + colours.brightness)
    if colours.contrast is not None and colours.contrast_first:
        image = _looked_up(image, steps * colours.contrast)
    if colours.saturation is not None or colours.hue is not None:
        hue = (steps + round(256 * (colours.hue or 0))) % 256
        saturation = steps * (1 if colours.saturation is None else colours.saturation)
        image = _looked_up(image.convert("HSV"), hue, saturation, steps).convert("RGB")
    if colours.contrast is not None and not colours.contrast_first:
        image = _looked_up(image, steps * colours.contrast)
    return image


def _looked_up(image: Image.Image, *tables: np.ndarray) -> Image.Image:
    """Values 0..255 of three channels replaced, by one table or one each."""
    rounded = [np.clip(np.round(table), 0, 255).astype(np.uint8).tolist() for table in tables]
    return image.point(rounded[0] * 3 if len(rounded) == 1 else rounded[0] + rounded[1] + rounded[2])
