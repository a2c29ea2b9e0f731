"""Standardised features: what heads with ``standardise: true`` see, and how a finished one is made to take the features as they are.

Such a head sees of every number its difference from the mean over the fit samples, divided by the standard deviation over them: batch
normalisation without weights, with the exact statistics of the whole split, the same in training and scoring. A linear map before a Linear
is part of that Linear, so a finished head is folded and needs neither of them.

A head that pools images takes one vector per image: its statistics are over all images of all samples, whatever their place. The mean of
standardised images is the standardised mean, and what standardising adds to a score of attention is the same for all images of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from virb.errors import ViRBError
from virb.functional.products import one_thread
from virb.probes.heads import QUERY, HeadShape, Stack
from virb.probes.split import Split

_READ, _READ_ROWS = 1 << 24, 4096  # numbers and samples of one piece of features when their statistics are taken
# A spread below this share of the mean is rounding, in features as float32 holds them: the feature does not vary.
_LEAST_SHARE, _LEAST = 2.0**-20, 1e-30


class StandardiseSettings(Protocol):
    """What is read of a training config (``virb.config.GradientConfig``)."""

    @property
    def standardise(self) -> bool: ...


@dataclass(frozen=True, eq=False)  # told apart by identity: heads that share one share what it makes of a batch
class Standard:
    """``mean`` and ``scale`` (1 / standard deviation) of every number of a sample, (D,) float32 on the device."""

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(B, D) float32 -> the same, standardised. Nothing of it waits for the device."""
        return torch.sub(x, self.mean).mul_(self.scale)


def standards(fit: Split, shapes: Mapping[str, HeadShape], configs: Mapping[str, StandardiseSettings]) -> dict[str, Standard]:
    """That of every config that asks for one; configs whose heads take the same vectors share it. Of augmented views, it is the first
    epoch's that is measured."""
    wanted = [name for name, config in configs.items() if config.standardise]
    if not wanted:
        return {}
    fit.set_epoch(0)
    mean, spread = moments(fit)
    by_images: dict[int, Standard] = {}  # of the vectors that heads take: how many images are pooled
    found: dict[str, Standard] = {}
    for name in wanted:
        images = 1 if shapes[name].pool == "concat" else shapes[name].images
        if images not in by_images:
            by_images[images] = make_standard(mean, spread, images)
        found[name] = by_images[images]
    return found


def make_standard(mean: Tensor, spread: Tensor, images: int = 1) -> Standard:
    """From mean and standard deviation (D,) of every number of a sample, those of its ``images`` one after the other. For heads that pool
    them, they become those over all images."""
    by_image = mean.view(images, -1)
    centre = by_image.mean(0)
    variance = spread.view(images, -1).square().mean(0) + (by_image - centre).square().mean(0)
    deviation = variance.sqrt()
    varies = deviation > (centre.abs() * _LEAST_SHARE).clamp_min(_LEAST)
    scale = torch.where(varies, deviation, 1.0).reciprocal()
    return Standard(*(tensor.float().repeat(images) for tensor in (centre, scale)))


def fold(head: Mapping[str, Tensor], standard: Standard) -> Stack:
    """The head (a state dict, on the CPU) that gives for features what ``head`` gives for standardised ones."""
    first = "head" if "head.weight" in head else "head.0"
    weight, bias = head[f"{first}.weight"], head[f"{first}.bias"]
    mean, scale = (tensor[: weight.shape[1]].cpu().double() for tensor in (standard.mean, standard.scale))
    folded = (weight.double() * scale).float()
    # With the weights as they were rounded: their rounding then acts on differences from the mean, and not on the mean.
    out = {**head, f"{first}.weight": folded, f"{first}.bias": (bias.double() - folded.double() @ mean).float()}
    if QUERY in head:
        out[QUERY] = (head[QUERY].double() * scale).float()
    return out


def moments(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each number of a sample, float64 (D,), on the device. That of a constant is exactly 0."""
    total = square = torch.zeros(1, dtype=torch.float64)
    pivot: Tensor | None = None  # taken off first, so that the squares of far-off features do not swallow their spread
    features, _ = split.parts[0]
    size = max(1, min(_READ_ROWS, _READ // max(1, math.prod(features.shape or ()))))
    with one_thread():  # more of them might change the last bits of a sum
        for _, rows in split.batches(split.chunks(size)):
            x = rows.double()
            if pivot is None:
                pivot = x.mean(0)
                total, square = torch.zeros_like(pivot), torch.zeros_like(pivot)
            x -= pivot
            total, square = total + x.sum(0), square + x.square().sum(0)
    if pivot is None:
        raise ViRBError(f"there are no {split.name} samples")
    mean = total / len(split)
    return pivot + mean, (square / len(split) - mean.square()).clamp_min_(0.0).sqrt_()
