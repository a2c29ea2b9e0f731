"""Which patches of two views of an image match, as a picture: the two views side by side, matched patches in one colour and numbered."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from virb.data.decode import read_rgb
from virb.errors import BadImage, UserError
from virb.pretraining.augment import Draws, check_views, draw, squash
from virb.pretraining.augment_tensors import augment_tensors
from virb.pretraining.geometry import Crop, Rule, grid_of, match
from virb.pretraining.methods import CropRecipe, ViewSpec

_GAP = 24  # pixels between the two views
_LEAST_PATCH = 40  # pixels of a drawn patch, so that its number can be read
_TINT = 0.35


@dataclass(frozen=True)
class MatchedViews:
    """Two views (uint8 h x w x 3), where they lie, and the pairs: (n, 2) int64 tokens of the first and the second view, counted from 1 row
    by row (0 is [CLS]), and ``overlap`` (n,), the intersection of the two patches in the image over their union."""

    views: tuple[np.ndarray, np.ndarray]
    crops: tuple[Crop, Crop]
    patch_size: int
    pairs: np.ndarray
    overlap: np.ndarray


def matched_views(
    path: str | Path,
    *,
    patch_size: int = 32,
    sizes: tuple[int, int] = (224, 96),
    scales: tuple[tuple[float, float], tuple[float, float]] = ((0.4, 1.0), (0.05, 0.4)),
    rule: Rule = "nearest",
    min_overlap: float = 0.0,
    side: int | None = None,
    seed: int = 0,
    colours: bool = True,
) -> MatchedViews:
    """Two views of an image file, drawn as pretraining draws them. ``side``: of the square that the image is first resized to, if any.
    ``colours``: with the changes of colour that training makes."""
    for size in sizes:
        grid_of(size, patch_size)
    blur = (1.0, 0.5) if colours else (0.0, 0.0)
    jitter, gray = (0.8, 0.2) if colours else (0.0, 0.0)
    recipes = tuple(
        CropRecipe(size, scale, jitter=jitter, grayscale=gray, blur=p) for size, scale, p in zip(sizes, scales, blur, strict=True)
    )
    spec = ViewSpec(recipes, 1, None if side is None else (side, side))
    check_views(spec)
    if not 0 <= min_overlap <= 1:
        raise UserError(f"the least overlap of two patches is {min_overlap:g}; expected a share from 0 to 1")
    try:
        image = squash(read_rgb(str(path)), spec)
    except BadImage as error:
        raise UserError(str(error)) from error
    draws: Draws = draw(spec, seed, 0, [0], [(image.height, image.width)])
    one, two = augment_tensors([torch.from_numpy(np.array(image)).permute(2, 0, 1)], draws, spec)
    geometry = draws.geometry(spec)
    matches = match(geometry[:, 0], geometry[:, 1], patch_size, rule=rule, min_overlap=min_overlap)
    pairs = torch.stack([matches.first, matches.second], dim=1).numpy()[1:]  # the first is [CLS]
    crops = Crop.of(geometry[0, 0]), Crop.of(geometry[0, 1])
    boxes = [crop.patch_boxes(patch_size)[pairs[:, i] - 1] for i, crop in enumerate(crops)]
    views = one[0].permute(1, 2, 0).numpy(), two[0].permute(1, 2, 0).numpy()
    return MatchedViews(views, crops, patch_size, pairs, box_overlap(*boxes))


def box_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) x0, y0, x1, y1, one by one."""
    common = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(axis=1)
    return common / ((a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - common)


def draw_matches(matched: MatchedViews) -> Image.Image:
    """The picture: the first view left, the second right. The patches of a pair have one colour and one number, that of the pair; patches
    without a partner are only outlined."""
    colour = pair_colours(len(matched.pairs))
    panels = [_panel(view, matched.patch_size, matched.pairs[:, i], colour) for i, view in enumerate(matched.views)]
    picture = Image.new("RGB", (panels[0].width + _GAP + panels[1].width, max(panel.height for panel in panels)), "white")
    picture.paste(panels[0], (0, 0))
    picture.paste(panels[1], (panels[0].width + _GAP, 0))
    return picture


def pair_colours(n: int) -> np.ndarray:
    """``n`` colours (n, 3) uint8, neighbours well apart: hues by the golden ratio."""
    hues = (np.arange(n) * 0.618033988749895) % 1
    return np.array([[round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1.0)] for hue in hues], dtype=np.uint8).reshape(n, 3)


def _panel(view: np.ndarray, patch_size: int, tokens: np.ndarray, colour: np.ndarray) -> Image.Image:
    zoom = max(1, -(-_LEAST_PATCH // patch_size))
    cell, grid = patch_size * zoom, len(view) // patch_size
    pixels = np.kron(view, np.ones((zoom, zoom, 1), dtype=np.uint8)).astype(np.float32)
    places = [divmod(int(token) - 1, grid) for token in tokens]
    for (row, column), tint in zip(places, colour, strict=True):
        patch = pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        patch += _TINT * (tint - patch)
    panel = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(panel)
    for cut in range(cell, grid * cell, cell):
        pen.line([(cut, 0), (cut, panel.height)], fill="black")
        pen.line([(0, cut), (panel.width, cut)], fill="black")
    font = ImageFont.load_default(size=max(10, cell // 3))
    for number, ((row, column), tint) in enumerate(zip(places, colour, strict=True), 1):
        x, y = column * cell, row * cell
        pen.rectangle([x, y, x + cell - 1, y + cell - 1], outline=tuple(tint.tolist()), width=max(2, cell // 16))
        pen.text((x + cell / 2, y + cell / 2), str(number), fill="white", font=font, anchor="mm", stroke_width=2, stroke_fill="black")
    return panel
