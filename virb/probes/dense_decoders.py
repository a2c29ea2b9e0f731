"""Decoders over the maps of an encoder: ViRB 2021's pixel shuffle, generalised to any pyramid, and its form for two images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MapShape = tuple[int, int, int]  # channels, height, width of one map of one image
_LEAST_WIDTH = 32


class PixelShuffle(nn.Module):
    """From the coarsest map up, level by level: 3x3 convolution to 4x the channels, pixel shuffle, leaky ReLU, plus the next finer map.

    A level has the channels of the map that is added to it, so that over a ResNet-50's conv and block1 to block4 this is ViRB 2021's
    decoder to the parameter (``up1`` ... ``up5``). Maps that all share one grid (ViTs) are spread into a pyramid first: the last but one
    stays as it is, the last is halved, earlier ones are doubled each time; there each level has half the channels of the one below it, and
    the maps come to them by 1x1 convolutions (``align2`` ...). The output has twice the size of the finest level.
    """

    def __init__(self, shapes: Sequence[MapShape], n_outputs: int) -> None:
        super().__init__()
        channels = [shape[0] for shape in reversed(shapes)]  # coarsest first, as the levels are numbered
        self.spread = len(shapes) > 1 and len({shape[1:] for shape in shapes}) == 1
        widths = channels
        if self.spread:
            widths = [max(channels[0] >> level, min(channels[0], _LEAST_WIDTH)) for level in range(len(channels))]
        self.n_levels = len(widths)
        for level, (width, following) in enumerate(zip(widths, [*widths[1:], n_outputs], strict=True), 1):
            steps: list[nn.Module] = [nn.Conv2d(width, 4 * following, 3, padding=1), nn.PixelShuffle(2)]
            if level < self.n_levels:
                steps.append(nn.LeakyReLU(0.01))
            self.add_module(f"up{level}", nn.Sequential(*steps))
        for level, (width, given) in enumerate(zip(widths, channels, strict=True), 1):
            if width != given:
                self.add_module(f"align{level}", nn.Conv2d(given, width, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i), finest first, to (B, n_outputs, 2h, 2w) of the finest level's h, w."""
        levels = list(reversed(maps))
        modules = dict(self.named_children())
        x = resize(levels[0], self._grid(levels, 0))
        for level in range(1, self.n_levels):
            # Before resizing: a 1x1 convolution of an interpolated map is the interpolated convolution, at a fraction of the cost.
            skip = modules[f"align{level + 1}"](levels[level]) if f"align{level + 1}" in modules else levels[level]
            grid = self._grid(levels, level)
            x = resize(modules[f"up{level}"](x), grid) + resize(skip, grid)
        return modules[f"up{self.n_levels}"](x)

    def _grid(self, levels: Sequence[Tensor], level: int) -> tuple[int, int]:
        height, width = levels[level].shape[-2:]
        if not self.spread:
            return height, width
        return (max(round(height * 2.0 ** (level - 1)), 1), max(round(width * 2.0 ** (level - 1)), 1))


class Siamese(PixelShuffle):
    """The maps of two images, fused level by level (``fusion1`` is the coarsest), and the decoder over them.

    ``concat``: the channels of both, by a 1x1 convolution to those of one: ViRB 2021's. ``correlation``: at the two coarsest levels the
    cost volume beside the map of image 1, by a 1x1 convolution to the channels of one; elsewhere the map of image 1 as it is.
    """

    def __init__(
        self, shapes: Sequence[MapShape], n_outputs: int, fusion: Literal["concat", "correlation"] = "concat", radius: int = 4
    ) -> None:
        super().__init__(shapes, n_outputs)
        self.radius = radius
        self.correlate = fusion == "correlation"
        for level, (channels, _, _) in enumerate(reversed(shapes), 1):
            if self.correlate and level > 2:
                continue
            both = channels + (2 * radius + 1) ** 2 if self.correlate else 2 * channels
            self.add_module(f"fusion{level}", nn.Conv2d(both, channels, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, 2, C_i, h_i, w_i) of image 1 and image 2, finest first, to (B, n_outputs, h', w'): for the pixels of image 1."""
        return super().forward([self._fuse(pair, len(maps) - i) for i, pair in enumerate(maps)])

    def _fuse(self, pair: Tensor, level: int) -> Tensor:
        fusion = getattr(self, f"fusion{level}", None)
        if fusion is None:
            return pair[:, 0]
        if self.correlate:
            first, second = pair[:, 0], pair[:, 1]
            return fusion(torch.cat([first, cost_volume(first, second, self.radius)], 1))
        return fusion(pair.flatten(1, 2))


def cost_volume(first: Tensor, second: Tensor, radius: int) -> Tensor:
    """Cosines in [-1, 1] of each place of ``first`` (B, C, h, w) with the places of ``second`` around it: (B, (2 radius + 1)^2, h, w).

    Channel ``(dy + radius) * (2 radius + 1) + dx + radius`` compares (y, x) with (y + dy, x + dx); 0 where that lies outside.
    """
    height, width = first.shape[-2:]
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    second = F.pad(second, (radius, radius, radius, radius))
    # One shift at a time: all of them at once would hold the features (2 radius + 1)^2 times.
    shifts = [(dy, dx) for dy in range(2 * radius + 1) for dx in range(2 * radius + 1)]
    return torch.stack([(first * second[..., dy : dy + height, dx : dx + width]).sum(1) for dy, dx in shifts], 1)


def resize(maps: Tensor, grid: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Maps (B, C, h, w) at ``grid``, bilinear; untouched when they have it."""
    return maps if maps.shape[-2:] == grid else F.interpolate(maps, grid, mode="bilinear", align_corners=align_corners)
