"""Images with a hole: the hole, what was there, and what a network sees agree, whatever the geometry."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from virb.data.blanked import FILL, BlankedImages, ImageTargets, hole_of
from virb.data.decode import DECODED
from virb.data.images import ArrayImages
from virb.data.placement import sample_target
from virb.data.transforms import Geometry


def images_of(height, width, seed=0, n=2):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    pixels[(pixels == FILL).all(-1)] = 0  # so that the colour of the hole is nowhere else
    return ArrayImages("rooms", pixels, [f"room{i}" for i in range(n)])


def test_the_hole_is_that_of_2021_at_224_and_in_the_middle_elsewhere():
    assert hole_of(224, 224) == (64, 64, 160, 160)
    assert hole_of(448, 672) == (128, 192, 320, 480)
    for side in range(1, 600):
        top, _, bottom, _ = hole_of(side, 224)
        assert 0 <= top <= bottom <= side
        assert abs(top - side * 64 / 224) <= 0.5
        assert abs(bottom - side * 160 / 224) <= 0.5


@pytest.mark.parametrize("shape", [(37, 53), (224, 224), (512, 512)])
def test_the_hole_is_blank_and_the_target_is_what_was_there(shape):
    whole = images_of(*shape)
    blanked, hidden, everything = BlankedImages(whole), ImageTargets(whole, hidden=True), ImageTargets(whole, hidden=False)
    top, left, bottom, right = hole_of(*shape)
    hole = np.zeros(shape, dtype=bool)
    hole[top:bottom, left:right] = True
    for i in range(2):
        before = DECODED.value
        stored, shown = whole.array[i], np.asarray(blanked.read(i))
        assert DECODED.value == before + 1
        assert (shown[hole] == FILL).all()
        np.testing.assert_array_equal(shown[~hole], stored[~hole])
        np.testing.assert_allclose(everything[i], stored.transpose(2, 0, 1) / 255, rtol=1e-6)
        assert np.isnan(hidden[i][:, ~hole]).all()
        np.testing.assert_array_equal(hidden[i][:, hole], everything[i][:, hole])
    assert blanked.image_size(1) == shape == hidden[0].shape[1:]
    assert len(hidden[:]) == len(blanked) == 2


GEOMETRIES = [
    Geometry((224, 224), "squash"),
    Geometry((96, 160), "squash", interpolation="bicubic"),
    Geometry((64, 64), "shorter", crop_pct=0.875),
    Geometry((80, 80), "none", "center"),
    Geometry(None, "none", "none"),
]


@pytest.mark.parametrize("shape", [(101, 77), (224, 300)])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: f"{geometry.size}-{geometry.resize}")
def test_what_is_scored_is_what_cannot_be_seen_at_any_geometry(shape, geometry):
    """Through a geometry, pixels well inside the hole are of its colour whatever was hidden, and those are the ones with a target."""
    whole, other = images_of(*shape), images_of(*shape)
    top, left, bottom, right = hole_of(*shape)
    other.array[:, top:bottom, left:right] ^= 255  # only what is hidden differs
    seen = [geometry.apply(BlankedImages(images).read(0), 0).numpy() for images in (whole, other)]
    np.testing.assert_array_equal(*seen)
    blank = (seen[0] == np.array(FILL)[:, None, None]).all(0)
    placement = geometry.placement(*shape, 0)
    size = seen[0].shape[1:]
    scored = np.isfinite(sample_target(ImageTargets(whole, hidden=True)[0], "map", placement, size, size)[0])
    assert scored.any()
    inner = scored.copy()  # filters mix a few pixels around the edge of the hole
    for axis in (0, 1):
        for shift in (-4, -3, -2, -1, 1, 2, 3, 4):
            inner &= np.roll(scored, shift, axis)
    assert inner.any()
    assert blank[inner].all()
    assert not blank[~scored].any()


def test_identities_say_what_is_shown_and_asked():
    whole = images_of(30, 40)
    lists = [whole, BlankedImages(whole), BlankedImages(whole, (224, 224)), BlankedImages(images_of(30, 40, seed=1))]
    assert len({images.identity() for images in lists}) == 4
    assert BlankedImages(images_of(30, 40)).identity() == lists[1].identity()
    targets = [
        ImageTargets(whole, hidden=True),
        ImageTargets(whole, hidden=False),
        ImageTargets(whole, hidden=False, normalised=True),
        ImageTargets(whole, hidden=False, size=(224, 224)),
        ImageTargets(images_of(30, 40, seed=1), hidden=True),
    ]
    assert len({target.identity() for target in targets}) == 5
    for thing in (lists[1], targets[0]):
        assert pickle.loads(pickle.dumps(thing)).identity() == thing.identity()
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(lists[2])).read(1)), np.asarray(lists[2].read(1)))
