"""Where views lie in their image, and which patches of two views show the same place.

A view is a box of the image, perhaps mirrored, resized to ``size`` x ``size`` pixels and cut into patches. Boxes are whole pixels, so all
comparisons of the nearest rule are of whole numbers: nothing depends on rounding, and mirroring a view only renames its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from virb.errors import UserError
from virb.pretraining.methods import Matches

Rule = Literal["nearest", "linspace"]


@dataclass(frozen=True)
class Crop:
    """One view of one image: its box in pixels of that image, whether it is mirrored left to right, and its side in pixels."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    size: int

    @classmethod
    def of(cls, row: Sequence[float] | Tensor | np.ndarray) -> Crop:
        """From a row of ``Views.geometry``: top, left, height, width, flip, size."""
        top, left, height, width, flip, size = (int(value) for value in row)
        return cls(top, left, height, width, bool(flip), size)

    def row(self) -> tuple[int, int, int, int, int, int]:
        return self.top, self.left, self.height, self.width, int(self.flip), self.size

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2), x and y in pixels of the view (its edges are 0 and ``size``), in pixels of the image. float64."""
        points = np.asarray(points, dtype=np.float64)
        x, y = points[..., 0] / self.size, points[..., 1] / self.size
        return np.stack([self.left + (1 - x if self.flip else x) * self.width, self.top + y * self.height], axis=-1)

    def patch_boxes(self, patch_size: int) -> np.ndarray:
        """Boxes of the patches in the image, row by row: (patches, 4) float64 x0, y0, x1, y1."""
        cuts = np.arange(0, self.size + 1, patch_size, dtype=np.float64)[: grid_of(self.size, patch_size) + 1]
        x0, y0 = np.meshgrid(cuts[:-1], cuts[:-1])
        first = self.to_image(np.stack([x0, y0], axis=-1).reshape(-1, 2))
        last = self.to_image(np.stack([x0, y0], axis=-1).reshape(-1, 2) + patch_size)
        return np.concatenate([np.minimum(first, last), np.maximum(first, last)], axis=1)


def grid_of(size: int, patch_size: int) -> int:
    """Patches per side; UserError where patches do not divide a view."""
    if patch_size < 1 or size % patch_size:
        raise UserError(f"patches of {patch_size} pixels do not divide views of {size}; change the patch size or the views' size")
    return size // patch_size


def match(first: Tensor, second: Tensor, patch_size: int, rule: Rule = "nearest", min_overlap: float = 0.0) -> Matches:
    """Which patches of two views show the same place, for B images at once: rows of ``Views.geometry``, B x 6 each. In the lists images
    come in order, [CLS] first. Views that do not overlap share [CLS] alone.

    ``nearest``: of the two grids, along each axis the one with the larger patches is asked which patch of the other has the nearest centre
    to its own, if that lies in the other view. So every patch has one partner at most, and the two views may change places. Pairs of which
    the smaller patch (by its area in the image) lies in the other by less than the share ``min_overlap`` are left out.
    ``linspace``: the original's rule. Both views' parts of the common box are rounded to whole patches, and the larger number of rows or
    columns is thinned out evenly to the smaller. Half of its patches do not overlap much.
    """
    if rule == "linspace":
        return _collect([_linspace_pairs(Crop.of(a), Crop.of(b), patch_size) for a, b in zip(first, second, strict=True)])
    if rule != "nearest":
        raise ValueError(f"Expected argument `rule` to be one of nearest, linspace, but got {rule!r}")
    return _nearest(first, second, patch_size, min_overlap)


class _Line(NamedTuple):
    """Along one axis, the pairs of B images: places (B, n) in the two grids, whether they count, and for each pair the common length and
    the two patches' lengths, all in image pixels times ``unit``."""

    first: Tensor
    second: Tensor
    valid: Tensor
    common: Tensor
    lengths: tuple[Tensor, Tensor]


def _nearest(first: Tensor, second: Tensor, patch_size: int, min_overlap: float) -> Matches:
    a, b = first.to("cpu", torch.int64), second.to("cpu", torch.int64)
    grids = [grid_of(_only(view[:, 5]), patch_size) for view in (a, b)] if len(a) else [1, 1]
    rows = _line(a[:, 0], a[:, 2], b[:, 0], b[:, 2], *grids)
    columns = _line(a[:, 1], a[:, 3], b[:, 1], b[:, 3], *grids)
    valid = rows.valid[:, :, None] & columns.valid[:, None, :]
    if min_overlap > 0:
        areas = [(rows.lengths[i] * columns.lengths[i]).double() for i in (0, 1)]
        smaller = torch.minimum(*areas)[:, None]
        common = (rows.common[:, :, None] * columns.common[:, None, :]).double()
        valid &= common >= min_overlap * smaller
    tokens = []
    for view, grid, row, column in ((a, grids[0], rows.first, columns.first), (b, grids[1], rows.second, columns.second)):
        seen = torch.where(view[:, 4:5] > 0, grid - 1 - column, column)  # columns of the mirrored view
        tokens.append(1 + row[:, :, None] * grid + seen[:, None, :])
    every = [torch.cat([torch.zeros(len(a), 1, dtype=torch.int64), token.flatten(1)], dim=1) for token in tokens]
    kept = torch.cat([torch.ones(len(a), 1, dtype=torch.bool), valid.flatten(1)], dim=1)
    return Matches(kept.nonzero()[:, 0], every[0][kept], every[1][kept])


def _line(start_a: Tensor, length_a: Tensor, start_b: Tensor, length_b: Tensor, grid_a: int, grid_b: int) -> _Line:
    """Pairs along one axis, not mirrored. Each image's coarser grid is asked; of two alike the one that starts first, so that the answer
    does not depend on which view is named first."""
    wide_a, wide_b = length_a * grid_b, length_b * grid_a  # lengths of a patch times both grids
    ask_a = (wide_a > wide_b) | ((wide_a == wide_b) & (start_a <= start_b))
    n = max(grid_a, grid_b)
    asked = torch.arange(n)[None]

    def pick(of_a: Tensor | int, of_b: Tensor | int) -> Tensor:
        return torch.where(ask_a, torch.as_tensor(of_a), torch.as_tensor(of_b))[:, None]

    grid, other = pick(grid_a, grid_b), pick(grid_b, grid_a)
    wide, narrow = pick(wide_a, wide_b), pick(wide_b, wide_a)
    ahead = pick(start_a - start_b, start_b - start_a) * (2 * grid_a * grid_b)  # in half units of 1 / (grid_a grid_b) pixels
    centre = ahead + (2 * asked + 1) * wide
    found = torch.div(centre, 2 * narrow, rounding_mode="floor")
    valid = (asked < grid) & (found >= 0) & (found < other)
    begin = torch.maximum(ahead + 2 * asked * wide, 2 * found * narrow)
    end = torch.minimum(ahead + 2 * (asked + 1) * wide, 2 * (found + 1) * narrow)
    common = torch.div((end - begin).clamp(min=0), 2, rounding_mode="floor")  # both are even
    asked = asked.expand_as(found)
    is_a = ask_a[:, None]
    return _Line(torch.where(is_a, asked, found), torch.where(is_a, found, asked), valid, common, (wide_a[:, None], wide_b[:, None]))


def _only(sizes: Tensor) -> int:
    """The side of a view; it is the same for all images of a batch."""
    size = int(sizes[0])
    if (sizes != size).any():
        raise ValueError("Expected one view of a batch to have one size")
    return size


def _collect(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Matches:
    image = np.repeat(np.arange(len(pairs)), [len(a) + 1 for a, _ in pairs])
    lists = [[part for pair in pairs for part in ([0], pair[side])] for side in (0, 1)]
    first, second = (np.concatenate([*parts, []]).astype(np.int64) for parts in lists)
    return Matches(*(torch.from_numpy(values) for values in (image.astype(np.int64), first, second)))


def _linspace_pairs(a: Crop, b: Crop, patch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (from 1) of the two views, exactly as the original pairs them."""
    top, bottom = max(a.top, b.top), min(a.top + a.height, b.top + b.height)
    left, right = max(a.left, b.left), min(a.left + a.width, b.left + b.width)
    if bottom <= top or right <= left:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    one, two = (_block(view, grid_of(view.size, patch_size), top, left, bottom - top, right - left) for view in (a, b))
    for axis in (0, 1):
        n = min(one.shape[axis], two.shape[axis])
        one, two = (np.take(block, np.floor(np.linspace(0, block.shape[axis] - 1, n)).astype(int), axis) for block in (one, two))
    return one.ravel(), two.ravel()


def _block(view: Crop, grid: int, top: int, left: int, height: int, width: int) -> np.ndarray:
    """The view's tokens in a box of the image, in the image's orientation. Both roundings (half to even) may go up, and the block then
    ends beyond the view: it is cut, and in a mirrored view, where the first column would be -1 and counts from the end, it is empty."""
    # the shares come first, as in the original: G * w / W may be half a patch exactly where G * (w / W) is a little off
    rows, columns = round(grid * (height / view.height)), round(grid * (width / view.width))
    row, column = round(grid * ((top - view.top) / view.height)), round(grid * ((left - view.left) / view.width))
    tokens = np.arange(1, grid * grid + 1).reshape(grid, grid)[row : row + rows]
    if not view.flip:
        return tokens[:, column : column + columns]
    return tokens[:, grid - column - columns : grid - column][:, ::-1]
