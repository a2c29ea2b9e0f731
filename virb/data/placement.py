"""Where the pixels that a network saw come from in the image as it was stored; targets follow it down, predictions follow it up.

Coordinates are continuous: pixel ``i`` of a row covers ``i`` to ``i + 1`` and has its centre at ``i + 0.5``. Geometries only crop, resize,
pad and mirror, so every map between two sets of pixels is one linear map per axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from virb.errors import UserError

if TYPE_CHECKING:
    import torch

TargetKind = Literal["labels", "mask", "depth", "flow", "map"]
IGNORED = 255  # in label maps and masks: a pixel that neither trains nor scores; elsewhere NaN says so
_SLACK = 1e-9  # cells; a border computed in floating point is still the border of a cell
_VALUES_AT_ONCE = 1 << 24  # at native size, of labels_to_native


@dataclass(frozen=True)
class DenseTarget:
    """What a target with a value per pixel is.

    ``labels`` (H, W): class ids from 0, 255 ignored | ``mask`` (H, W): 0 or 1, 255 ignored, one output |
    ``depth`` (H, W) float32, NaN invalid | ``flow`` (3, H, W) float32: u to the right, v down, in pixels of the native image, and 1 visible
    or 0 occluded; NaN invalid | ``map`` (C, H, W) float32, NaN invalid.

    ``channels``: C of a map; 1 otherwise. ``range``: least and greatest depth that is binned and scored, in the target's unit.
    ``at``: predictions are scored at the target's "native" size, or ("view", as published in 2021 only) the target is resized with the
    image, by ``resample``; what was resized is then scaled: "range" to 0 to 1, "far" cut at 10,000, over its greatest, less its least.
    """

    kind: TargetKind
    channels: int = 1
    range: tuple[float, float] | None = None
    at: Literal["native", "view"] = "native"
    resample: Literal["nearest", "bilinear", "bicubic"] = "nearest"
    rescale: Literal["none", "range", "far"] = "none"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("kind", ("labels", "mask", "depth", "flow", "map")),
            ("at", ("native", "view")),
            ("resample", ("nearest", "bilinear", "bicubic")),
            ("rescale", ("none", "range", "far")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"dense target: {name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if self.channels < 1 or (self.kind != "map" and self.channels != 1):
            raise UserError(f"dense target: {self.channels} channels of kind {self.kind}; only a map has channels to choose")
        if self.range is not None and not (self.kind == "depth" and 0 <= self.range[0] < self.range[1]):
            raise UserError(f"dense target: range is {self.range}; expected least and greatest depth, of a target of kind depth only")


@dataclass(frozen=True)
class Placement:
    """How the pixels of a geometry lie on one image.

    ``native``: (height, width) of the image; ``size``: (height, width) of the geometry's pixels. ``box`` (top, left, height, width), a part
    of the image in its pixels, fractions possible, fills ``inside`` (top, left, height, width), whole pixels of the geometry: all of them,
    but where the image was padded. ``flip``: mirrored left to right, within ``inside``.
    """

    native: tuple[int, int]
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    inside: tuple[int, int, int, int]
    flip: bool = False


def squashed(native: tuple[int, int], size: tuple[int, int]) -> Placement:
    """All of an image resized to ``size``."""
    return Placement(native, size, (0.0, 0.0, float(native[0]), float(native[1])), (0, 0, size[0], size[1]))


def whole(placement: Placement) -> bool:
    """Whether every native pixel was seen: what scoring at native size needs."""
    top, left, height, width = placement.box
    return top <= 0 and left <= 0 and top + height >= placement.native[0] and left + width >= placement.native[1]


def sample_target(target: np.ndarray, kind: TargetKind, placement: Placement, grid: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """The target at the centres of ``grid`` (gh, gw) cells: (gh, gw), or (channels, gh, gw) of flow and maps; dtype as given.

    ``target``: at native size, see DenseTarget. ``canvas`` (height, width), at least the geometry's size: the pixels that the network saw,
    padded right and below to whole patches; the cells cover it. Each cell has the value of the native pixel that its centre lies on, those
    outside the image 255 (labels, mask) or NaN. Flow comes in pixels of the geometry, mirrored where the image is.
    """
    if target.shape[-2:] != placement.native:
        raise ValueError(f"a target of {target.shape[-2:]} for an image of {placement.native} pixels")
    _check_canvas(placement, canvas)
    rows, rows_inside = _native_indices(placement, 0, grid[0], canvas[0])
    columns, columns_inside = _native_indices(placement, 1, grid[1], canvas[1])
    if kind in ("labels", "mask"):
        sampled = target[rows[:, None], columns]
        empty: float = IGNORED
    else:
        sampled = target[..., rows[:, None], columns]
        empty = np.nan
    if kind == "flow":
        along, down = _flow_scale(placement)
        sampled = sampled * np.array([along, down, 1], dtype=sampled.dtype)[:, None, None]
    if not rows_inside.all():
        sampled[..., ~rows_inside, :] = empty
    if not columns_inside.all():
        sampled[..., ~columns_inside] = empty
    return sampled


def to_native(values: torch.Tensor, placement: Placement, canvas: tuple[int, int], nearest: bool = False) -> torch.Tensor:
    """(C, gh, gw) floats whose cells cover ``canvas`` -> (C, H, W) at the image's native size, on the same device.

    Bilinear between the centres of cells (``align_corners=False``, no antialiasing), in one step; with ``nearest`` the cell that a pixel's
    centre lies on, of any dtype. The padding of geometry and canvas is cut off: cells wholly outside the image are never read. A mirrored
    image is turned back. ValueError where the geometry did not see every native pixel (``whole``).
    """
    if values.ndim != 3:
        raise ValueError(f"expected values (channels, height, width), but got shape {tuple(values.shape)}")
    if not whole(placement):
        raise ValueError(f"the pixels show only {placement.box} (top, left, height, width) of an image of {placement.native}")
    _check_canvas(placement, canvas)
    rows, columns = (_axis_of(placement, axis, values.shape[1 + axis], canvas[axis]) for axis in (0, 1))
    if nearest:
        found = (sent(axis.nearest(), values.device) for axis in (rows, columns))
        return values.index_select(1, next(found)).index_select(2, next(found))
    if rows.start == columns.start == 0:  # torch's own resizing, which is faster, knows no offset
        image = _resized(values, rows, columns)
    else:
        image = _blended(_blended(values, rows, 1), columns, 2)
    return image.flip(-1) if placement.flip else image


def labels_to_native(logits: torch.Tensor, placement: Placement, canvas: tuple[int, int]) -> torch.Tensor:
    """int64 (H, W): which of the (C, gh, gw) logits is greatest at native size. Some channels at a time: C x H x W may be gigabytes."""
    import torch

    step = max(1, _VALUES_AT_ONCE // (placement.native[0] * placement.native[1]))
    best, label = to_native(logits[:step], placement, canvas).max(0)  # far faster than argmax
    for start in range(step, logits.shape[0], step):
        value, index = to_native(logits[start : start + step], placement, canvas).max(0)
        label = torch.where(value > best, index + start, label)
        best = torch.maximum(best, value)
    return label


def flow_to_native(flow: torch.Tensor, placement: Placement, canvas: tuple[int, int], nearest: bool = False) -> torch.Tensor:
    """(2, gh, gw) vectors in pixels of the geometry -> (2, H, W) in pixels of the native image."""
    along, down = _flow_scale(placement)
    return to_native(flow, placement, canvas, nearest) / sent(np.array([along, down]), flow.device).to(flow.dtype)[:, None, None]


def _native_indices(placement: Placement, axis: int, cells: int, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis: the native pixel under the centre of each cell, and whether there is one (else the nearest)."""
    start, length = placement.inside[axis], placement.inside[axis + 2]
    first, extent = placement.box[axis], placement.box[axis + 2]
    # one division, last: a centre on the border of two pixels is exactly there (of boxes of whole pixels), and has the latter
    parts, end = (2 * np.arange(cells) + 1) * canvas - 2 * cells * start, 2 * cells * length
    inside = (parts >= 0) & (parts < end)
    if placement.flip and axis == 1:
        parts = end - parts
    pixels = np.floor((first * end + parts * extent) / end).astype(np.int64)
    # a view's box may begin and end within a pixel; nothing of the image lies beyond its border
    return np.clip(pixels, 0, placement.native[axis] - 1), inside


@dataclass(frozen=True)
class _Axis:
    """One axis from cells to native pixels: ``pixels`` of them begin ``start`` cells in and are ``step`` cells apart; cells
    ``lowest`` to ``highest`` show some of the image. ``mirrored``: the pixels are in the opposite order."""

    pixels: int
    start: float
    step: float
    lowest: int
    highest: int
    mirrored: bool

    def positions(self) -> np.ndarray:
        """Of the pixels' centres, in cells from the left border of the first."""
        return self.start + (np.arange(self.pixels) + 0.5) * self.step

    def nearest(self) -> np.ndarray:
        cells = np.clip(np.floor(self.positions()).astype(np.int64), self.lowest, self.highest)
        return cells[::-1].copy() if self.mirrored else cells


def _axis_of(placement: Placement, axis: int, cells: int, canvas: int) -> _Axis:
    per_pixel = cells / canvas
    start, length = placement.inside[axis] * per_pixel, placement.inside[axis + 2] * per_pixel
    lowest = math.floor(start + _SLACK)
    highest = max(lowest, math.ceil(start + length - _SLACK) - 1)
    # a whole image begins where the geometry's part of it does: its box has no border outside
    return _Axis(placement.native[axis], start, length / placement.native[axis], lowest, highest, placement.flip and axis == 1)


def _resized(values: torch.Tensor, rows: _Axis, columns: _Axis) -> torch.Tensor:
    """(C, H, W) by torch's resizing; the cells are cut to those of the image, and its pixels to those of the native size."""
    from torch.nn.functional import interpolate

    cut = values[None, :, : rows.highest + 1, : columns.highest + 1]
    # told the scale and not the size, for the last cells may be only partly of the image; a hair more, or rounding loses a pixel
    scale = ((1 + _SLACK) / rows.step, (1 + _SLACK) / columns.step)
    resized = interpolate(cut, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False)
    return resized[0, :, : rows.pixels, : columns.pixels]


def _blended(values: torch.Tensor, axis: _Axis, dim: int) -> torch.Tensor:
    """Bilinear along one dimension, from any start."""
    import torch

    position = np.clip(axis.positions() - 0.5, axis.lowest, axis.highest)
    before = np.floor(position).astype(np.int64)
    after = np.minimum(before + 1, axis.highest)
    low, high = (values.index_select(dim, sent(index, values.device)) for index in (before, after))
    weight = sent(position - before, values.device).to(values.dtype)
    return torch.lerp(low, high, weight[:, None] if dim == 1 else weight)


def sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """On the device; a GPU takes it from pinned memory, while the host goes on."""
    import torch

    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _flow_scale(placement: Placement) -> tuple[float, float]:
    """Pixels of the geometry per native pixel, to the right (negative where mirrored) and down."""
    along, down = placement.inside[3] / placement.box[3], placement.inside[2] / placement.box[2]
    return -along if placement.flip else along, down


def _check_canvas(placement: Placement, canvas: tuple[int, int]) -> None:
    if canvas[0] < placement.size[0] or canvas[1] < placement.size[1]:
        raise ValueError(f"a canvas of {canvas} cannot hold pixels of {placement.size}")
