from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from virb.data.transforms import Geometry, View, covering_size
from virb.data.views import draw_crop_flip
from virb.errors import UserError

MODES = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
SIZES = [(64, 64), (37, 91), (91, 37), (33, 35), (20, 300), (1, 1), (17, 1)]  # height, width


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("shape", SIZES)
def test_shorter_equals_torchvisions_resize_and_centre_crop(shape, interpolation):
    image = picture(*shape)
    reference = v2.Compose([v2.Resize(37, MODES[interpolation]), v2.CenterCrop(32), v2.PILToTensor()])
    ours = Geometry((32, 32), "shorter", "center", 0.875, interpolation).apply(image, 0)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, 32, 32)
    assert torch.equal(ours, reference(image))


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (100, 1000), (1000, 100), (333, 333), (64, 63), (30, 31), (256, 256)])
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (31, 64)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 0.3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_centre_alone_is_what_resizing_all_of_the_image_gives(shape, size, crop_pct, interpolation):
    """Hard edges everywhere, where resampling goes out of 0..255 and is cut off."""
    random = np.random.default_rng(shape[0])
    image = Image.fromarray((random.integers(0, 2, (*shape, 3)) * 255).astype(np.uint8))
    whole = v2.functional.resize(image, list(covering_size(*shape, size, crop_pct)), MODES[interpolation])
    reference = v2.functional.pil_to_tensor(v2.functional.center_crop(whole, list(size)))
    geometry = Geometry(size, crop_pct=crop_pct, interpolation=interpolation)
    assert torch.equal(geometry.apply(image, 0), reference)
    out = np.zeros((3, *size), dtype=np.uint8)
    geometry.write(image, 0, out)
    np.testing.assert_array_equal(out, reference.numpy())


@pytest.mark.parametrize("shape", SIZES)
def test_squash_equals_torchvisions_resize(shape):
    image = picture(*shape)
    reference = v2.Compose([v2.Resize((24, 40), InterpolationMode.BICUBIC), v2.PILToTensor()])
    assert torch.equal(Geometry((24, 40), "squash", interpolation="bicubic").apply(image, 0), reference(image))


@pytest.mark.parametrize("shape", SIZES)
def test_no_resize_crops_the_centre_and_pads_with_black(shape):
    image = picture(*shape)
    reference = v2.Compose([v2.CenterCrop((30, 40)), v2.PILToTensor()])
    assert torch.equal(Geometry((30, 40), "none", "center").apply(image, 0), reference(image))


def test_native_size():
    image = picture(19, 7)
    pixels = Geometry(None, "none", "none").apply(image, 0)
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [(30, 50), (50, 30), (32, 32)])
def test_the_covering_size_covers_barely_and_keeps_the_aspect(shape, size):
    height, width = covering_size(*shape, size, 1.0)
    assert height >= size[0]
    assert width >= size[1]
    assert height == size[0] or width == size[1]
    scale = max(height / shape[0], width / shape[1])
    assert abs(height - scale * shape[0]) <= 1.0
    assert abs(width - scale * shape[1]) <= 1.0


def test_a_view_is_a_function_of_seed_number_and_row_only():
    image = picture(80, 100)
    geometry = Geometry((32, 32), view=View(1, "crop-flip", seed=4))
    first = geometry.apply(image, 7)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(first, Geometry((32, 32), view=View(1, "crop-flip", seed=4)).apply(image, 7))
    assert not torch.equal(first, geometry.apply(image, 8))
    assert not torch.equal(first, Geometry((32, 32), view=View(2, "crop-flip", seed=4)).apply(image, 7))
    assert not torch.equal(first, Geometry((32, 32), view=View(1, "crop-flip", seed=5)).apply(image, 7))


def test_a_view_takes_the_same_crop_at_every_output_size():
    shape, view = (80, 100), View(0)
    for row in range(20):
        top, left, height, width, flip = draw_crop_flip(*shape, view, row)
        image = picture(*shape)
        for size in ((16, 16), (40, 24)):
            expected = image.crop((left, top, left + width, top + height)).resize(size[::-1], Image.Resampling.BILINEAR)
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else expected
            ours = Geometry(size, view=view).apply(image, row).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(ours, np.asarray(expected))


def test_random_crops_have_the_distribution_of_random_resized_crop():
    height, width = 120, 90
    ours = np.array([draw_crop_flip(height, width, View(0), row) for row in range(3000)], dtype=float)
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    reference = v2.RandomResizedCrop(8)
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in (reference.make_params([image]) for _ in range(3000))])
    for column in range(4):
        for q in (0.1, 0.5, 0.9):
            assert abs(np.quantile(ours[:, column], q) - np.quantile(theirs[:, column], q)) < 4.5
    assert abs(ours[:, 4].mean() - 0.5) < 0.04
    assert (ours[:, 0] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1)])
def test_views_of_extreme_images(shape):
    assert Geometry((8, 8), view=View(0)).apply(picture(*shape), 3).shape == (3, 8, 8)


def test_records_are_json_and_tell_geometries_apart():
    geometries = [
        Geometry((32, 32)),
        Geometry((32, 33)),
        Geometry((32, 32), crop_pct=1.0),
        Geometry((32, 32), "squash"),
        Geometry((32, 32), "none"),
        Geometry((32, 32), interpolation="bicubic"),
        Geometry(None, "none", "none"),
        Geometry((32, 32), view=View(0)),
        Geometry((32, 32), view=View(1)),
        Geometry((32, 32), view=View(0, seed=1)),
    ]
    records = {json.dumps(g.record(), sort_keys=True, allow_nan=False) for g in geometries}
    assert len(records) == len(set(geometries)) == len(geometries)
    assert Geometry((32, 32)).record() == {
        "size": [32, 32],
        "resize": "shorter",
        "crop": "center",
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "view": None,
        "decoder": "pillow",
    }


def test_equal_pixels_have_equal_keys():
    assert Geometry((32, 32), "squash", "center", 0.9) == Geometry((32, 32), "squash", "none", 1)
    assert Geometry((32, 32), view=View(3, "none")) == Geometry((32, 32))
    assert Geometry((32, 32), "shorter", crop_pct=0.5, view=View(3)) == Geometry((32, 32), "squash", view=View(3))
    assert hash(Geometry([32, 32])) == hash(Geometry((32, 32)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (32, 32), "crop": "none"}, "different shapes"),
        ({"size": None}, "native"),
        ({"size": (0, 32)}, "at least 1"),
        ({"size": (32, 32), "crop_pct": 0}, "crop_pct"),
        ({"size": (32, 32), "interpolation": "lanczos"}, "interpolation"),
        ({"size": (32, 32), "resize": "longer"}, "resize"),
        ({"size": (32, 32), "view": View(0, "jitter")}, "augment"),
    ],
)
def test_impossible_geometries_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Geometry(**arguments)


def photo(height, width):
    """Smooth with edges and noise, in all of 0..255."""
    random = np.random.default_rng(height + width)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(coarse).astype(int) + random.integers(-20, 21, (height, width, 3))
    values[height // 3 : height // 2, width // 4 : width // 2] = [255, 0, 255]
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


FAST = [
    *(Geometry((96, 128), resize, crop_pct=pct, interpolation=mode) for mode in ("bilinear", "bicubic")
      for resize, pct in (("squash", 1.0), ("shorter", 0.875), ("shorter", 1.0))),
    *(Geometry((96, 96), view=View(n), interpolation="bicubic") for n in range(4)),
]  # fmt: skip


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (96, 128), (40, 61), (1200, 1800), (90, 800), (3, 2), (1, 1)])
def test_fast_resizing_differs_from_pillows_by_rounding(shape):
    """At most two levels, hardly anywhere; and in nothing that has a place: a shift by a hundredth of a pixel would be more."""
    image, share = photo(*shape), []
    for geometry in FAST:
        expected = geometry.apply(image, 3).numpy().astype(int)
        fast = dataclasses.replace(geometry, decoder="fast")
        found = fast.apply(image, 3)
        assert (found.dtype, tuple(found.shape)) == (torch.uint8, expected.shape)
        difference = np.abs(found.numpy().astype(int) - expected)
        assert difference.max() <= 2
        share.append((difference > 0).mean())
        out = np.zeros(expected.shape, dtype=np.uint8)
        for given in (image, np.asarray(image).copy()):  # as Pillow decodes it, and as the fast decoder does
            fast.write(given, 3, out)
            np.testing.assert_array_equal(out, found.numpy())
            out[:] = 0
    assert np.mean(share) < 0.01


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(None, "none", "none"),
        Geometry((60, 80), "none"),
        Geometry((60, 80), "squash", interpolation="nearest"),
        Geometry((60, 80), view=View(1, "scale-crop-flip")),
        Geometry((60, 80), view=View(1, "scale-crop-flip-colour")),
    ],
    ids=str,
)
def test_what_torch_does_not_resize_is_bit_for_bit_pillows(geometry):
    image = photo(70, 90)
    found = dataclasses.replace(geometry, decoder="fast").apply(np.asarray(image), 3)
    assert torch.equal(found, geometry.apply(image, 3))


def test_the_decoder_is_in_the_record_and_pillow_is_as_ever():
    """Features and decoded images of before are found: the record that their key hashes is the same."""
    assert Geometry((32, 32), view=View(2)).record() == {
        "size": [32, 32], "resize": "squash", "crop": "none", "crop_pct": 1.0, "interpolation": "bilinear",
        "view": {"number": 2, "augment": "crop-flip", "seed": 0}, "decoder": "pillow",
    }  # fmt: skip
    fast = Geometry((32, 32), decoder="fast")
    assert fast.record() == {**Geometry((32, 32)).record(), "decoder": "fast"}
    assert fast != Geometry((32, 32))
    with pytest.raises(UserError, match="decoder is 'faster'; expected one of pillow, fast"):
        Geometry((32, 32), decoder="faster")
