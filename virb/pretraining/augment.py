"""Multi-crop augmentation: what is drawn for every view, and the reference path on Pillow images.

What is drawn is a function of (seed, epoch, sample, view) and never of rank, worker or batch, and it is drawn once for both paths: the
reference here (torchvision v2 on Pillow images), and the one on tensors in ``virb.pretraining.augment_tensors``, which is the default. The
same draws give the same pixels on both up to rounding, so the paths differ in speed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from virb.errors import UserError
from virb.functional.randomness import numpy_generator
from virb.pretraining.methods import ViewSpec

if TYPE_CHECKING:
    from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(permutations(range(4)))  # in which the four changes of colour may follow each other
SOLARIZE_FROM = 128

_RATIO = (3 / 4, 4 / 3)  # a crop's width over its height
_STRENGTHS = np.array([0.4, 0.4, 0.2, 0.1])  # of brightness, contrast, saturation (around 1) and hue (around 0, in turns)
_BLUR = (0.1, 2.0)  # pixels
_TRIES = 10
_N_UNIFORM = 4 * _TRIES + 11  # numbers drawn for a view


@dataclass(frozen=True)
class Draws:
    """What was drawn for B images, V views each. Arrays B x V, with further axes in brackets: ``boxes`` (4) int64 top, left, height, width;
    ``flip``, ``jitter``, ``gray``, ``solarize`` bool; ``factors`` (4) brightness, contrast, saturation, hue; ``order`` an index of
    ``ORDERS``; ``blur`` radius in pixels, 0 for none."""

    boxes: np.ndarray
    flip: np.ndarray
    jitter: np.ndarray
    factors: np.ndarray
    order: np.ndarray
    gray: np.ndarray
    blur: np.ndarray
    solarize: np.ndarray

    def geometry(self, spec: ViewSpec) -> Tensor:
        """``Views.geometry``: B x V x 6 float32 top, left, height, width, flip, size."""
        sizes = np.broadcast_to([view.size for view in spec.views], self.flip.shape)
        return torch.from_numpy(np.concatenate([self.boxes, self.flip[..., None], sizes[..., None]], axis=-1).astype(np.float32))

    def of_views(self, views: Sequence[int]) -> Draws:
        """Of some views only, one after the other: arrays (len(views) * B), view by view."""
        return Draws(*(_flat(getattr(self, field.name)[:, list(views)]) for field in fields(self)))


def _flat(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.swapaxes(0, 1)).reshape(-1, *values.shape[2:])


def check_views(spec: ViewSpec) -> None:
    """UserError when views cannot be made as they are described."""
    for recipe in spec.recipes:
        low, high = recipe.scale
        if not 0 < low <= high <= 1:
            raise UserError(
                f"the scale of {recipe.size}-pixel views is {low} to {high}; expected shares of the image that rise: 0 < low <= high <= 1"
            )
        if recipe.size < 1 or recipe.count < 0:
            raise UserError(f"{recipe.count} views of {recipe.size} pixels; expected at least 0 views of at least 1 pixel")
    if spec.squash is not None and min(spec.squash) < 1:
        raise UserError(f"images cannot be resized to {spec.squash[0]} x {spec.squash[1]} pixels")
    if not 0 < spec.n_global <= len(spec.views):
        raise UserError(f"{spec.n_global} global views of {len(spec.views)}; expected at least one")


def draw(spec: ViewSpec, seed: int, epoch: int, samples: Sequence[int] | np.ndarray, sizes: Sequence[tuple[int, int]]) -> Draws:
    """For images ``samples`` of the data set, which are ``sizes`` (height, width) pixels large when they are cropped."""
    views = spec.views
    # One generator per image, a row of numbers per view: what a view gets does not depend on how many come after it.
    drawn = [numpy_generator(seed, "augmentation", epoch, int(sample)).random((len(views), _N_UNIFORM)) for sample in samples]
    u = np.stack(drawn) if drawn else np.zeros((0, len(views), _N_UNIFORM))
    rest = np.moveaxis(u[..., 4 * _TRIES :], -1, 0)
    chance = {name: np.array([getattr(view, name) for view in views]) for name in ("flip", "jitter", "grayscale", "blur", "solarize")}
    factors = np.stack([rest[2 + i] * 2 - 1 for i in range(4)], axis=-1) * _STRENGTHS + np.array([1.0, 1.0, 1.0, 0.0])
    return Draws(
        boxes=_boxes(u[..., : 4 * _TRIES], np.array([view.scale for view in views]), np.array(sizes, dtype=np.int64).reshape(-1, 2)),
        flip=rest[0] < chance["flip"],
        jitter=rest[1] < chance["jitter"],
        factors=factors.astype(np.float32),
        order=(rest[6] * len(ORDERS)).astype(np.int64),
        gray=rest[7] < chance["grayscale"],
        blur=np.where(rest[8] < chance["blur"], _BLUR[0] + rest[9] * (_BLUR[1] - _BLUR[0]), 0.0).astype(np.float32),
        solarize=rest[10] < chance["solarize"],
    )


def _boxes(u: np.ndarray, scale: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The rule of ``RandomResizedCrop``: area and log aspect uniform, the first of ten tries that fits, else the largest centred box with
    a permitted aspect. ``u``: (B, V, 40); ``scale``: (V, 2); ``sizes``: (B, 2). Returns (B, V, 4)."""
    share, aspect, down, right = np.moveaxis(u.reshape(*u.shape[:2], _TRIES, 4), -1, 0)
    full = sizes[:, None, None, :]
    area = full[..., 0] * full[..., 1] * (scale[:, :1] + share * (scale[:, 1:] - scale[:, :1]))
    ratio = np.exp(math.log(_RATIO[0]) + aspect * (math.log(_RATIO[1]) - math.log(_RATIO[0])))
    width, height = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (width <= full[..., 1]) & (height > 0) & (height <= full[..., 0])
    first = fits.argmax(-1)[..., None]
    height, width, down, right = (np.take_along_axis(values, first, -1)[..., 0] for values in (height, width, down, right))
    full = sizes[:, None, :]
    top, left = (down * (full[..., 0] - height + 1)).astype(np.int64), (right * (full[..., 1] - width + 1)).astype(np.int64)
    centred = np.array([_centred(int(h), int(w)) for h, w in sizes], dtype=np.int64).reshape(-1, 1, 4)
    return np.where(fits.any(-1)[..., None], np.stack([top, left, height, width], axis=-1), centred)


def _centred(height: int, width: int) -> tuple[int, int, int, int]:
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def squash(image: Image.Image, spec: ViewSpec) -> Image.Image:
    """The image as it is cropped."""
    from PIL import Image

    return image if spec.squash is None else image.resize((spec.squash[1], spec.squash[0]), Image.Resampling.BICUBIC)


def augment_pil(images: Sequence[Image.Image], draws: Draws, spec: ViewSpec) -> tuple[Tensor, ...]:
    """The reference: every view by itself, on Pillow images (squashed already). V uint8 tensors B x 3 x size x size."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return tuple(
        torch.stack([pil_to_tensor(_view_pil(image, draws, (i, v), view.size)) for i, image in enumerate(images)])
        for v, view in enumerate(spec.views)
    )


def _view_pil(image: Any, draws: Draws, at: tuple[int, int], size: int) -> Any:
    from PIL import ImageFilter
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    top, left, height, width = map(int, draws.boxes[at])
    image = F.resized_crop(image, top, left, height, width, [size, size], interpolation=InterpolationMode.BICUBIC)
    if draws.flip[at]:
        image = F.horizontal_flip(image)
    if draws.jitter[at]:
        change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for step in ORDERS[draws.order[at]]:
            image = change[step](image, float(draws.factors[at][step]))
    if draws.gray[at]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if draws.blur[at] > 0:
        image = image.filter(ImageFilter.GaussianBlur(float(draws.blur[at])))
    return F.solarize(image, SOLARIZE_FROM) if draws.solarize[at] else image


def normalize(crops: Tensor) -> Tensor:
    """uint8 N x 3 x h x w -> float32, by ImageNet's mean and standard deviation; on the tensor's device."""
    mean = torch.tensor(MEAN, device=crops.device).view(3, 1, 1) * 255
    scale = 1 / (torch.tensor(STD, device=crops.device).view(3, 1, 1) * 255)
    return (crops.float() - mean).mul_(scale)
