"""Panels: the image, the target and the prediction of the right samples, side by side in one scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from virb.data.images import ArrayImages, ImageList, Samples
from virb.data.placement import DenseTarget
from virb.data.windows import WindowedImages, windowed_samples
from virb.functional.colours import class_colours, paint_flow, paint_values
from virb.plan.jobs import RolePlan
from virb.runner.pictures import draw_panel

SIDE = 96  # shown at twice the size, so that pixels stay pure
IMAGES = ArrayImages(
    "grey",
    np.repeat(np.arange(6, dtype=np.uint8)[:, None, None, None] * 30 + 20, 3, 3) * np.ones((1, SIDE, SIDE, 1), np.uint8),
    list("abcdef"),
)
HALVES = np.zeros((SIDE, SIDE), dtype=np.uint8)
HALVES[:, SIDE // 2 :] = 1


def plan(images: ImageList = IMAGES, per_sample: int = 1) -> RolePlan:
    rows = np.arange(len(images)).reshape(-1, per_sample)
    samples = Samples.from_rows([f"s{i}" for i in range(len(rows))], images.name, rows, {})
    return RolePlan("test", samples, "list", ())


def cells(panel: Image.Image, columns: int, rows: int) -> np.ndarray:
    """(rows, columns, 192, 192, 3): 6 pixels between pictures, a line of 16 above and above each."""
    array = np.asarray(panel)
    tops = [16 + 16 + row * (192 + 16 + 6) for row in range(rows)]
    lefts = [6 + column * (192 + 6) for column in range(columns)]
    return np.stack([[array[top : top + 192, left : left + 192] for left in lefts] for top in tops])


def test_the_right_samples_in_order() -> None:
    targets = [np.full((SIDE, SIDE), i % 3, dtype=np.uint8) for i in range(6)]
    chosen = np.array([1, 3, 5])  # samples of the role; predictions are numbered by their place there
    found = {2: np.full((SIDE, SIDE), 0), 0: HALVES}
    panel = draw_panel(DenseTarget("labels"), plan(), IMAGES, targets, chosen, found, ("none", "cat", "dog"))
    grid = cells(panel, 3, 2)
    colours = class_colours(3)
    for row, sample in enumerate((1, 5)):
        assert (grid[row, 0] == sample * 30 + 20).all()
        assert (grid[row, 1] == colours[sample % 3]).all()
    assert (grid[0, 2][:, :96] == colours[0]).all()
    assert (grid[0, 2][:, 96:] == colours[1]).all()
    assert (grid[1, 2] == colours[0]).all()
    below = np.asarray(panel)[32 + 2 * 214 - 6 :]
    for colour in colours:  # the legend
        assert (below == colour).all(-1).any()


@pytest.mark.parametrize(("kind", "at", "void"), [("labels", "native", True), ("mask", "native", True), ("mask", "view", False)])
def test_void_is_grey_and_masks_of_2021_have_none(kind: Any, at: Any, void: bool) -> None:
    target = np.where(HALVES == 1, np.uint8(255), np.uint8(0))
    grid = cells(draw_panel(DenseTarget(kind, at=at), plan(), IMAGES, [target] * 6, np.arange(6), {0: HALVES}, None), 3, 1)
    assert (grid[0, 1][:, 96:] == ((128, 128, 128) if void else class_colours(2)[1])).all()


def test_depth_in_the_scale_of_the_target() -> None:
    target = np.where(HALVES == 1, np.float32(4), np.float32(2))
    target[:10] = np.nan
    found = np.full((SIDE, SIDE), 99.0, dtype=np.float32)
    grid = cells(draw_panel(DenseTarget("depth"), plan(), IMAGES, [target] * 6, np.arange(6), {0: found}, None), 3, 1)
    scale = paint_values(np.array([[np.nan, 2.0, 4.0]]), 2.0, 4.0)[0]
    assert (grid[0, 1][:20] == scale[0]).all()
    assert (grid[0, 1][20:, :96] == scale[1]).all()
    assert (grid[0, 1][20:, 96:] == scale[2]).all()
    assert (grid[0, 2] == scale[2]).all()


def test_flow_of_two_images_in_the_scale_of_the_target() -> None:
    target = np.zeros((3, SIDE, SIDE), dtype=np.float32)
    target[0], target[2] = 4.0, 1.0
    found = np.zeros((2, SIDE, SIDE), dtype=np.float32)
    found[1] = 2.0
    panel = draw_panel(DenseTarget("flow"), plan(per_sample=2), IMAGES, [target] * 3, np.arange(3), {1: found}, None)
    grid = cells(panel, 4, 1)
    assert (grid[0, 0] == 2 * 30 + 20).all()
    assert (grid[0, 1] == 3 * 30 + 20).all()
    assert (grid[0, 2] == paint_flow(target[:2, :1, :1], 4.0)[0, 0]).all()
    assert (grid[0, 3] == paint_flow(found[:, :1, :1], 4.0)[0, 0]).all()


def test_maps_of_one_and_three_channels() -> None:
    one = np.where(HALVES == 1, np.float32(1), np.float32(0))[None]
    grid = cells(draw_panel(DenseTarget("map"), plan(), IMAGES, [one] * 6, np.arange(6), {0: 1 - one}, None), 3, 1)
    assert (grid[0, 1][:, ::-1] == grid[0, 2]).all()
    three = np.stack([one[0], np.full_like(one[0], np.nan), 0 * one[0] - 3])
    grid = cells(draw_panel(DenseTarget("map", channels=3), plan(), IMAGES, [three] * 6, np.arange(6), {0: three * 2}, None), 3, 1)
    assert grid[0, 1][0, -1].tolist() == [255, 128, 0]
    assert grid[0, 2][0, 0].tolist() == [191, 128, 0]


def test_windows_show_the_whole_image() -> None:
    pixels = np.zeros((2, 96, 192, 3), dtype=np.uint8)
    pixels[1, :, 96:] = 200
    images = ArrayImages("wide", pixels, ["a", "b"])
    windows = WindowedImages(images, None, (64, 64), (32, 32))
    samples = windowed_samples(Samples.one_per_image(images), windows)
    role = RolePlan("test", samples, "list", ())
    labels = [np.zeros((96, 192), dtype=np.uint8)] * 2
    panel = np.asarray(draw_panel(DenseTarget("labels"), role, windows, labels, np.arange(2), {1: labels[0]}, ("a", "b")))
    shown = panel[32 : 32 + 192, 6 : 6 + 384]
    assert (shown[:, :192] == 0).all()
    assert (shown[:, 192:] == 200).all()


def test_pictures_of_any_size_fit() -> None:
    for size in ((7, 3), (2000, 30), (30, 3000)):
        labels = [np.zeros(size, dtype=np.uint8)] * 6
        panel = draw_panel(DenseTarget("labels"), plan(), IMAGES, labels, np.arange(6), {0: labels[0], 3: labels[0]}, ("a", "b"))
        assert panel.width <= 192 + 2 * 480 + 4 * 6
        assert panel.height <= 2 * (192 + 22) + 60
