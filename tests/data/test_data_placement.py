from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from virb.data.placement import (
    DenseTarget,
    Placement,
    flow_to_native,
    labels_to_native,
    sample_target,
    squashed,
    to_native,
    whole,
)
from virb.data.transforms import Geometry, View
from virb.errors import UserError

SIZES = [(64, 64), (37, 91), (91, 37), (200, 255), (33, 35), (20, 150), (41, 70), (5, 3), (1, 1)]  # height, width
GEOMETRIES = {
    "native": Geometry(None, "none", "none"),
    "squash": Geometry((48, 61), "squash"),
    "shorter": Geometry((40, 40), "shorter", "center", 0.875),
    "shorter-oblong": Geometry((40, 57), "shorter", "center", 1.0),
    "none": Geometry((40, 50), "none", "center"),
    "crop-flip": Geometry((32, 45), view=View(1, "crop-flip", seed=2)),
    "scale-crop-flip": Geometry((32, 45), view=View(1, "scale-crop-flip", seed=2)),
}


def coordinates(height, width):
    """Red is the column, green the row, blue says that this is the image."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = np.arange(width), np.arange(height)[:, None], 255
    return pixels


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("shape", SIZES)
def test_the_placement_is_where_the_pixels_come_from(shape, kind):
    geometry = GEOMETRIES[kind]
    for row in range(1 if geometry.view is None else 12):
        pixels = geometry.apply(Image.fromarray(coordinates(*shape)), row).numpy().astype(float)
        placement = geometry.placement(*shape, row)
        (top, left, height, width), (y, x, h, w) = placement.box, placement.inside
        assert placement.native == shape
        assert placement.size == pixels.shape[1:]
        assert top >= 0
        assert left >= 0
        assert top + height <= shape[0] + 1e-9
        assert left + width <= shape[1] + 1e-9
        shown = np.zeros(placement.size, dtype=bool)
        shown[y : y + h, x : x + w] = True
        np.testing.assert_array_equal(pixels[2] == 255, shown)
        assert (pixels[:, ~shown] == 0).all()
        down = top + (np.arange(h) + 0.5) / h * height - 0.5
        along = left + (np.arange(w) + 0.5) / w * width - 0.5
        along = along[::-1] if placement.flip else along
        # antialiasing mixes only pixels within the image, so the outermost may be off by a part of a pixel of either
        for found, expected, step in (
            (pixels[1, y : y + h, x : x + w].T, down, height / h),
            (pixels[0, y : y + h, x : x + w], along, width / w),
        ):
            assert np.abs(found - expected).max() <= max(1.0, 0.5 * step)
            margin = 1 + int(np.ceil(1 / step))
            inner = slice(margin, len(expected) - margin)
            if len(expected) > 2 * margin:
                assert np.abs(found[:, inner] - expected[inner]).max() <= 0.51 + 1e-6  # rounding to whole values


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("shape", SIZES)
def test_a_sampled_target_equals_the_image_resized_by_pillow_to_nearest(shape, kind):
    geometry = GEOMETRIES[kind]
    if geometry.size is not None and geometry.resize != "none":
        geometry = replace(geometry, interpolation="nearest")
    labels = np.random.default_rng(3).integers(1, 200, shape, dtype=np.uint8)
    picture = Image.fromarray(np.repeat(labels[..., None], 3, axis=2))
    for row in range(1 if geometry.view is None else 12):
        pixels = geometry.apply(picture, row).numpy()[0]
        placement = geometry.placement(*shape, row)
        found = sample_target(labels, "labels", placement, placement.size, placement.size)
        assert found.dtype == np.uint8
        expected = np.where(pixels == 0, 255, pixels)
        # where a centre lies on the border of two pixels, Pillow takes either: it adds up steps
        certain = np.outer(*(~on_a_border(placement, axis) for axis in (0, 1)))
        np.testing.assert_array_equal(found[certain], expected[certain])
        assert certain.mean() > 0.2


def on_a_border(placement, axis):
    first, extent = placement.box[axis], placement.box[axis + 2]
    start, length = placement.inside[axis], placement.inside[axis + 2]
    cells = np.arange(placement.size[axis]) - start
    cells = length - 1 - cells if placement.flip and axis == 1 else cells
    positions = first + (cells + 0.5) / length * extent
    return np.abs(positions - np.round(positions)) < 1e-6


def test_whole_is_said_of_geometries_that_show_the_whole_image():
    expected = {"native": True, "squash": True, "shorter": False, "shorter-oblong": False, "none": False, "crop-flip": False}
    assert {kind: whole(GEOMETRIES[kind].placement(90, 200, 0)) for kind in expected} == expected
    assert whole(GEOMETRIES["none"].placement(31, 40, 0))  # padded
    assert not whole(GEOMETRIES["none"].placement(31, 60, 0))
    assert whole(Geometry((40, 40), "shorter", crop_pct=1.0).placement(77, 77, 0))


def test_sampling_by_hand():
    target = np.arange(24, dtype=np.uint8).reshape(4, 6)
    placement = squashed((4, 6), (8, 12))
    # the canvas is padded from 8 x 12 to 12 x 16: three by four cells of 4 x 4, the last row and column outside the image
    found = sample_target(target, "labels", placement, (3, 4), (12, 16))
    np.testing.assert_array_equal(found, [[7, 9, 11, 255], [19, 21, 23, 255], [255, 255, 255, 255]])
    depth = sample_target(target.astype(np.float32), "depth", placement, (3, 4), (12, 16))
    np.testing.assert_array_equal(depth, [[7, 9, 11, np.nan], [19, 21, 23, np.nan], [np.nan] * 4])
    assert depth.dtype == np.float32
    maps = sample_target(np.stack([target, target * 2]).astype(np.float32), "map", placement, (3, 4), (12, 16))
    np.testing.assert_array_equal(maps, [depth, depth * 2])
    mirrored = Placement((4, 6), (8, 12), (0.0, 0.0, 4.0, 6.0), (0, 0, 8, 12), flip=True)
    np.testing.assert_array_equal(sample_target(target, "mask", mirrored, (8, 12), (8, 12))[0], target[0, ::-1].repeat(2))


def test_padding_in_front_is_not_of_the_image():
    placement = GEOMETRIES["none"].placement(20, 20, 0)  # 20 x 20 in the middle of 40 x 50
    found = sample_target(np.zeros((20, 20), dtype=np.uint8), "labels", placement, (8, 10), (40, 50))
    expected = np.full((8, 10), 255)
    expected[2:6, 3:7] = 0
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("flip", [False, True])
def test_flow_is_scaled_and_mirrored_with_the_image(flip):
    """The ends of a vector are moved by the placement; what lies between them is the vector in the geometry."""
    placement = Placement((50, 80), (40, 60), (10.0, 20.0, 20.0, 40.0), (0, 0, 40, 60), flip)
    flow = np.stack([np.full((50, 80), 6.0), np.full((50, 80), -3.0), np.ones((50, 80))]).astype(np.float32)
    flow[2, :, :40] = 0
    flow[:, 12, 22] = np.nan

    def moved(x, y):
        fraction = (x - 20.0) / 40.0
        return 60.0 * (1 - fraction if flip else fraction), (y - 10.0) / 20.0 * 40.0

    start, end = moved(30.0, 20.0), moved(36.0, 17.0)
    found = sample_target(flow, "flow", placement, (40, 60), (40, 60))
    assert found.dtype == np.float32
    valid = ~np.isnan(found[0])
    np.testing.assert_allclose(found[0][valid], end[0] - start[0], rtol=1e-6)
    np.testing.assert_allclose(found[1][valid], end[1] - start[1], rtol=1e-6)
    assert end[0] - start[0] == (-9 if flip else 9)
    assert (np.isnan(found[0]) == np.isnan(found[1])).all()
    assert (~valid).sum() == 2 or (~valid).sum() == 4  # the native pixel is 1.5 x 2 of the geometry's
    visible = found[2][valid & (np.arange(60) != 0)]
    assert set(np.unique(visible)) == {0.0, 1.0}
    row = found[2, 20]
    np.testing.assert_array_equal(row, np.r_[np.ones(30), np.zeros(30)] if flip else np.r_[np.zeros(30), np.ones(30)])
    outside = sample_target(flow, "flow", placement, (20, 20), (80, 120))
    assert np.isnan(outside[:, 10:]).all()
    assert np.isnan(outside[:, :, 10:]).all()
    assert flow[0, 0, 0] == 6  # the target itself is as it was


def bilinear_by_hand(values, placement, canvas):
    """float64, pixel by pixel, from the definition."""
    channels, gh, gw = values.shape
    height, width = placement.native
    top, left, h, w = placement.inside
    result = np.empty((channels, height, width))
    for y in range(height):
        for x in range(width):
            fy, fx = (y + 0.5) / height, (x + 0.5) / width
            fx = 1 - fx if placement.flip else fx
            rows = taps((top + fy * h) * gh / canvas[0], top * gh / canvas[0], (top + h) * gh / canvas[0])
            columns = taps((left + fx * w) * gw / canvas[1], left * gw / canvas[1], (left + w) * gw / canvas[1])
            result[:, y, x] = sum(a * b * values[:, i, j] for i, a in rows for j, b in columns)
    return result


def taps(position, begin, end):
    lowest, highest = int(np.floor(begin + 1e-6)), int(np.ceil(end - 1e-6)) - 1
    before = int(np.floor(position - 0.5))
    weight = position - 0.5 - before
    return [(min(max(before, lowest), highest), 1 - weight), (min(max(before + 1, lowest), highest), weight)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("inside", "size", "canvas", "grid"),
    [
        ((0, 0, 24, 32), (24, 32), (24, 32), (6, 8)),  # nothing padded
        ((0, 0, 24, 32), (24, 32), (28, 42), (4, 6)),  # to patches of 7 x 7: the last cells are partly of the image
        ((0, 0, 24, 32), (24, 32), (32, 40), (4, 5)),  # to a whole patch more: cells of nothing but padding
        ((0, 0, 24, 32), (24, 32), (28, 35), (28, 35)),  # at the resolution of the pixels
        ((7, 9, 10, 14), (24, 32), (28, 35), (14, 5)),  # padded all around
    ],
)
def test_predictions_at_native_size_equal_the_definition(inside, size, canvas, grid, flip):
    placement = Placement((17, 23), size, (0.0, 0.0, 17.0, 23.0), inside, flip)
    values = torch.randn((3, *grid), generator=torch.Generator().manual_seed(0))
    found = to_native(values, placement, canvas)
    assert found.shape == (3, 17, 23)
    np.testing.assert_allclose(found.numpy(), bilinear_by_hand(values.numpy(), placement, canvas), atol=2e-5)
    assert torch.equal(labels_to_native(values, placement, canvas), found.argmax(0))


def test_an_unpadded_prediction_is_torchs_resize():
    values = torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(values[None], (50, 37), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(to_native(values, squashed((50, 37), (224, 224)), (224, 224)), expected, atol=1e-6)


def test_cells_of_padding_are_never_read():
    values = torch.ones(2, 5, 5)
    values[:, 4:], values[:, :, 4:] = torch.nan, torch.nan
    placement = squashed((33, 47), (30, 32))  # of 40 x 40 pixels in cells of 8 x 8: the fifth shows nothing
    for nearest in (False, True):
        assert torch.allclose(to_native(values, placement, (40, 40), nearest), torch.ones(2, 33, 47))
    values[:, 0], values[:, :, 0] = torch.nan, torch.nan
    centred = Placement((33, 47), (40, 40), (0.0, 0.0, 33.0, 47.0), (8, 8, 24, 24))
    for nearest in (False, True):
        assert torch.allclose(to_native(values, centred, (40, 40), nearest), torch.ones(2, 33, 47))


def test_every_size_comes_out_whole():
    for native in range(1, 400, 7):
        for size, patch in ((native, 14), (224, 14), (518, 14), (500, 16), (333, 32)):
            canvas = -(-size // patch) * patch
            placement = squashed((native, 3), (size, 8))
            assert to_native(torch.zeros(1, canvas // patch, 2), placement, (canvas, 8)).shape == (1, native, 3)


@pytest.mark.parametrize("flip", [False, True])
def test_a_perfect_prediction_comes_back_as_the_target(flip):
    random = np.random.default_rng(0)
    target = random.integers(0, 9, (19, 26), dtype=np.uint8)
    placement = Placement((19, 26), (38, 52), (0.0, 0.0, 19.0, 26.0), (0, 0, 38, 52), flip)
    sampled = sample_target(target, "labels", placement, (42, 56), (42, 56))
    back = to_native(torch.from_numpy(sampled)[None], placement, (42, 56), nearest=True)
    np.testing.assert_array_equal(back[0].numpy(), target)
    flow = np.concatenate([random.normal(size=(2, 19, 26)), np.ones((1, 19, 26))]).astype(np.float32)
    sampled = sample_target(flow, "flow", placement, (42, 56), (42, 56))
    back = flow_to_native(torch.from_numpy(sampled[:2]), placement, (42, 56), nearest=True)
    np.testing.assert_allclose(back.numpy(), flow[:2], rtol=1e-6)


def test_flow_at_native_size_is_in_native_pixels():
    placement = squashed((20, 60), (40, 30))
    flow = torch.tensor([1.0, 1.0])[:, None, None].expand(2, 5, 5)
    found = flow_to_native(flow, placement, (40, 30))
    assert torch.allclose(found, torch.tensor([2.0, 0.5])[:, None, None].expand(2, 20, 60))


def test_labels_are_the_same_when_channels_are_taken_in_parts(monkeypatch):
    logits = torch.randn((11, 6, 6), generator=torch.Generator().manual_seed(0))
    placement = squashed((21, 13), (24, 24))
    expected = to_native(logits, placement, (24, 24)).argmax(0)
    for at_once in (1, 21 * 13 * 3, 21 * 13 * 11, 10**9):
        monkeypatch.setattr("virb.data.placement._VALUES_AT_ONCE", at_once)
        found = labels_to_native(logits, placement, (24, 24))
        assert found.dtype == torch.int64
        assert torch.equal(found, expected)


def test_what_does_not_fit_is_refused():
    placement = squashed((10, 10), (20, 20))
    with pytest.raises(ValueError, match=r"\(9, 10\) for an image of \(10, 10\)"):
        sample_target(np.zeros((9, 10), dtype=np.uint8), "labels", placement, (4, 4), (20, 20))
    with pytest.raises(ValueError, match="cannot hold"):
        sample_target(np.zeros((10, 10), dtype=np.uint8), "labels", placement, (4, 4), (19, 20))
    with pytest.raises(ValueError, match="show only"):
        to_native(torch.zeros(1, 4, 4), GEOMETRIES["shorter"].placement(30, 60, 0), (40, 40))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "boxes"}, "kind is 'boxes'"),
        ({"kind": "labels", "channels": 3}, "3 channels of kind labels"),
        ({"kind": "labels", "range": (0.1, 10.0)}, "range"),
        ({"kind": "depth", "range": (10.0, 1.0)}, "range"),
        ({"kind": "map", "at": "home"}, "at is 'home'"),
        ({"kind": "map", "resample": "lanczos"}, "resample"),
    ],
)
def test_impossible_targets_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        DenseTarget(**arguments)


def test_possible_targets():
    assert DenseTarget("map", 3).channels == 3
    assert DenseTarget("depth", range=(0.001, 10.0)).at == "native"
