"""Panels of a pixelwise job: input, target and prediction of a fixed handful of samples, to be looked at beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from virb.data.images import ImageList
from virb.data.placement import DenseTarget
from virb.data.windows import WindowedImages
from virb.functional.colours import class_colours, paint_flow, paint_labels, paint_values
from virb.plan.jobs import RolePlan

_CELL = 192  # height of a picture, pixels
_WIDEST = 480
_GAP, _LINE = 6, 16
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_MOST_CLASSES = 24  # named below the panel


def draw_panel(
    target: DenseTarget,
    plan: RolePlan,
    images: ImageList,
    targets: Any,
    samples: np.ndarray,
    predictions: Mapping[int, Any],
    classes: Sequence[str] | None,
) -> Image.Image:
    """One row per sample of ``predictions`` (by place in ``samples``). ``targets``: those of the whole split."""
    n_classes = len(classes) if classes else 2
    rows: list[tuple[str, list[tuple[str, Image.Image]]]] = []
    for place, prediction in sorted(predictions.items()):
        sample = int(samples[place])
        truth = np.asarray(targets[sample])
        cells = [(f"image {number + 1}" if many else "image", image) for number, image, many in _inputs(plan, images, sample)]
        painted = _paint(target, truth, np.asarray(prediction), n_classes)
        cells += [("target", Image.fromarray(painted[0])), ("prediction", Image.fromarray(painted[1]))]
        rows.append((str(plan.samples.ids[sample]), cells))
    legend = list(zip(classes, class_colours(n_classes), strict=True))[:_MOST_CLASSES] if classes and target.kind == "labels" else []
    return _compose(rows, legend)


def _inputs(plan: RolePlan, images: ImageList, sample: int) -> list[tuple[int, Image.Image, bool]]:
    rows = plan.samples.rows(sample)
    if isinstance(images, WindowedImages):
        return [(0, images.images.read(images.window_of(int(rows[0]))[0]), False)]
    return [(number, images.read(int(row)), len(rows) > 1) for number, row in enumerate(rows)]


def _paint(target: DenseTarget, truth: np.ndarray, prediction: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Both in one scale: that of the truth."""
    if target.kind == "mask" and target.at == "view":
        truth = (truth != 0).astype(np.uint8)  # as they are scored
    if target.kind in ("labels", "mask"):
        return paint_labels(truth, n_classes), paint_labels(prediction, n_classes)
    if target.kind == "flow":
        lengths = np.hypot(truth[0], truth[1])
        longest = float(np.nanmax(lengths)) if np.isfinite(lengths).any() else 1.0
        return paint_flow(truth[:2], longest), paint_flow(prediction[:2], longest)
    if truth.ndim == 3 and len(truth) == 3:
        low, high = _ends(truth)
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)  # normalised colours, as in 2021, have a range of their own
        return _as_colour(truth, low, high), _as_colour(prediction, low, high)
    plane, answer = (truth[0], prediction[0]) if truth.ndim == 3 else (truth, prediction)
    scale = _ends(plane)
    return paint_values(plane, *scale), paint_values(answer, *(scale if target.rescale == "none" else _ends(answer)))


def _ends(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _as_colour(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(3, H, W) from ``low`` to ``high``."""
    share = (values - low) / max(high - low, 1e-12)
    grey = np.where(np.isfinite(share), share, 0.5)
    return (np.clip(grey, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def _compose(rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]], legend: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    scaled = [(name, [(title, _fitted(image)) for title, image in cells]) for name, cells in rows]
    columns = max(len(cells) for _, cells in scaled)
    widths = [max(cells[column][1].width for _, cells in scaled if column < len(cells)) for column in range(columns)]
    heights = [max(image.height for _, image in cells) for _, cells in scaled]
    width = sum(widths) + _GAP * (columns + 1)
    per_line = max(1, width // 150)
    below = (len(legend) + per_line - 1) // per_line * _LINE + (_GAP if legend else 0)
    sheet = Image.new("RGB", (width, sum(heights) + len(rows) * (_LINE + _GAP) + _LINE + _GAP + below), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for column, (title, _) in enumerate(scaled[0][1]):
        draw.text((left, 2), title, fill=_INK)
        left += widths[column] + _GAP
    top = _LINE
    for (name, cells), height in zip(scaled, heights, strict=True):
        draw.text((_GAP, top + 2), name[-(width // 7) :], fill=_INK)
        left, top = _GAP, top + _LINE
        for column, (_, image) in enumerate(cells):
            sheet.paste(image, (left, top))
            left += widths[column] + _GAP
        top += height + _GAP
    for number, (name, colour) in enumerate(legend):
        x, y = _GAP + number % per_line * 150, top + number // per_line * _LINE
        draw.rectangle((x, y + 3, x + 10, y + 13), fill=tuple(int(part) for part in colour), outline=_INK)
        draw.text((x + 15, y + 2), name[:20], fill=_INK)
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    scale = min(_CELL / image.height, _WIDEST / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
