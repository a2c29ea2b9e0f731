from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from virb.data.transforms import Geometry, View
from virb.data.views import Colours, draw_crop_flip, draw_scale_crop, recolour

SIZE = (48, 64)
UNCHANGED = Colours(None, None, True, None, None)


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height * 1000 + width).integers(1, 256, (height, width, 3), dtype=np.uint8))


def test_the_crops_of_crop_flip_are_those_that_features_were_kept_with():
    drawn = [draw_crop_flip(375, 500, View(number, seed=seed), row) for number, seed, row in [(0, 0, 0), (1, 4, 7), (3, 1, 12345)]]
    assert drawn == [(23, 15, 274, 342, True), (42, 146, 298, 253, False), (9, 90, 251, 245, False)]
    assert draw_crop_flip(20, 300, View(0), 3) == (0, 136, 20, 27, False)


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (333, 500), (48, 64)])
def test_a_scale_crop_shows_a_part_of_the_scaled_image_or_all_of_a_side(shape):
    drawn = [draw_scale_crop(*shape, SIZE, View(0, "scale-crop-flip"), row) for row in range(2000)]
    cover = max(SIZE[0] / shape[0], SIZE[1] / shape[1])
    scales, corners = [], []
    for crop in drawn:
        (top, left, height, width), (filled_height, filled_width) = crop.box, crop.filled
        assert 0 <= top <= shape[0] - height + 1e-9
        assert 0 <= left <= shape[1] - width + 1e-9
        down, along = filled_height / height, filled_width / width
        assert abs(down - along) <= 0.5 / height + 0.5 / width  # one scale for both sides, but for the rounding of padded ones
        scales.append((down if filled_height == SIZE[0] else along) / cover)
        for first, part, whole, filled, size in (
            (top, height, shape[0], filled_height, SIZE[0]),
            (left, width, shape[1], filled_width, SIZE[1]),
        ):
            assert filled == size or part == whole
            if part < whole - 1:
                corners.append(first / (whole - part))
    uniform = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose((np.quantile(scales, uniform) - 0.5) / 1.5, uniform, atol=0.05)
    np.testing.assert_allclose(np.quantile(corners, uniform), uniform, atol=0.05)
    assert abs(np.mean([crop.flip for crop in drawn]) - 0.5) < 0.04


def test_a_scale_crop_equals_the_part_resized_flipped_and_padded():
    for shape in ((60, 200), (100, 90), (30, 20)):
        image = picture(*shape)
        seen = set()
        for row in range(30):
            view = View(2, "scale-crop-flip", seed=1)
            crop = draw_scale_crop(*shape, SIZE, view, row)
            (top, left, height, width), filled = crop.box, crop.filled
            box = (left, top, min(left + width, shape[1]), min(top + height, shape[0]))
            part = np.asarray(image.resize(filled[::-1], Image.Resampling.BICUBIC, box=box))
            expected = np.zeros((*SIZE, 3), dtype=np.uint8)
            expected[: filled[0], : filled[1]] = part[:, ::-1] if crop.flip else part
            pixels = Geometry(SIZE, interpolation="bicubic", view=view).apply(image, row)
            np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)
            seen.add((filled == SIZE, crop.flip))
        assert len(seen) == 4


def test_a_view_is_a_function_of_seed_number_and_row_and_the_same_part_at_any_resolution():
    view = View(1, "scale-crop-flip", seed=4)
    one = draw_scale_crop(80, 100, SIZE, view, 7)
    assert draw_scale_crop(80, 100, SIZE, View(1, "scale-crop-flip", seed=4), 7) == one
    for other, row in ((View(2, "scale-crop-flip", seed=4), 7), (View(1, "scale-crop-flip", seed=5), 7), (view, 8)):
        assert draw_scale_crop(80, 100, SIZE, other, row).box != one.box
    np.testing.assert_allclose(draw_scale_crop(80, 100, (480, 640), view, 7).box, one.box)
    coloured = View(1, "scale-crop-flip-colour", seed=4)
    assert Geometry(SIZE, view=coloured).placement(80, 100, 7) == Geometry(SIZE, view=view).placement(80, 100, 7)


def test_colours_change_within_the_image_only():
    image = picture(50, 200)
    changed = 0
    for row in range(40):
        geometry, coloured = (Geometry(SIZE, view=View(0, augment)) for augment in ("scale-crop-flip", "scale-crop-flip-colour"))
        plain, pixels = geometry.apply(image, row), coloured.apply(image, row)
        _, _, height, width = geometry.placement(50, 200, row).inside
        inside = torch.zeros(SIZE, dtype=torch.bool)
        inside[:height, :width] = True
        assert (pixels[:, ~inside] == 0).all()
        colours = draw_scale_crop(50, 200, SIZE, View(0, "scale-crop-flip-colour"), row).colours
        assert torch.equal(plain, pixels) == ((colours._replace(contrast_first=True)) == UNCHANGED)
        changed += not torch.equal(plain, pixels)
    assert changed > 30


def test_colours_are_drawn_with_equal_chances_within_their_ranges():
    drawn = [draw_scale_crop(50, 70, SIZE, View(0, "scale-crop-flip-colour"), row).colours for row in range(3000)]
    for name, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5), ("hue", -0.1, 0.1)):
        values = np.array([getattr(colours, name) for colours in drawn if getattr(colours, name) is not None])
        assert abs(len(values) / 3000 - 0.5) < 0.04
        np.testing.assert_allclose(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), np.linspace(low, high, 5), atol=0.05 * (high - low))
    assert abs(np.mean([colours.contrast_first for colours in drawn]) - 0.5) < 0.04


def test_brightness_and_contrast_by_hand():
    values = np.array([[[0, 100, 250], [10, 20, 30]]], dtype=np.uint8)

    def changed(**colours):
        return np.asarray(recolour(Image.fromarray(values), UNCHANGED._replace(**colours))).tolist()

    assert changed() == values.tolist()
    assert changed(brightness=20.0) == [[[20, 120, 255], [30, 40, 50]]]
    assert changed(brightness=-20.0) == [[[0, 80, 230], [0, 0, 10]]]
    assert changed(contrast=1.5) == [[[0, 150, 255], [15, 30, 45]]]
    assert changed(contrast=0.5, contrast_first=False) == [[[0, 50, 125], [5, 10, 15]]]
    assert changed(contrast=0.5, brightness=10.0) == [[[5, 55, 128], [10, 15, 20]]]  # brightness first


def test_saturation_and_hue_against_the_standard_library():
    """colorsys is exact; Pillow's HSV has 8 bits, hence the tolerance."""
    random = np.random.default_rng(0)
    values = random.integers(40, 216, (1, 300, 3), dtype=np.uint8)
    for saturation, hue in ((0.5, None), (1.4, None), (None, 0.1), (None, -0.1), (0.7, 0.05)):
        found = np.asarray(recolour(Image.fromarray(values), UNCHANGED._replace(saturation=saturation, hue=hue))).astype(float)
        expected = []
        for red, green, blue in values[0] / 255:
            h, s, v = colorsys.rgb_to_hsv(red, green, blue)
            expected.append(colorsys.hsv_to_rgb((h + (hue or 0)) % 1, min(1, s * (saturation or 1)), v))
        error = np.abs(found[0] - 255 * np.array(expected))
        assert error.max() < 8
        assert error.mean() < 1.5


def test_contrast_before_and_after_saturation_differ():
    image = picture(20, 20)
    before, after = (Colours(None, 1.4, first, 0.6, 0.05) for first in (True, False))
    assert recolour(image, before).tobytes() != recolour(image, after).tobytes()
    expected = recolour(recolour(image, UNCHANGED._replace(saturation=0.6, hue=0.05)), UNCHANGED._replace(contrast=1.4))
    assert recolour(image, after).tobytes() == expected.tobytes()
