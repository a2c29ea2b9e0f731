"""Boundary F by hand and against distance transforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from virb.metrics.base import Statistics, find_metric
from virb.metrics.segmentation import LabelMaps, boundary

F = find_metric("boundary_f")


def borders(labels: np.ndarray) -> np.ndarray:
    """Pixel by pixel: a neighbour inside the image, neither void, of another class."""
    found = np.zeros(labels.shape, dtype=bool)
    for y, x in np.ndindex(*labels.shape):
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if 0 <= y + dy < labels.shape[0] and 0 <= x + dx < labels.shape[1]:
                pair = labels[y, x], labels[y + dy, x + dx]
                found[y, x] |= pair[0] != pair[1] and 255 not in pair
    return found


def counts_by_distance(found: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    found = np.where(truth == 255, 255, found)
    reach = math.ceil(0.0075 * np.hypot(*truth.shape))
    rows = np.zeros((4, n_classes))
    for c in range(n_classes):
        edges = [borders(labels) & (labels == c) for labels in (found, truth)]
        for i, (own, other) in enumerate((edges, edges[::-1])):
            near = ndimage.distance_transform_edt(~other) <= reach if other.any() else np.zeros_like(own)
            rows[2 * i, c], rows[2 * i + 1, c] = (own & near).sum(), own.sum()
    return rows


def blobs(seed: int, size: tuple[int, int], n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Smooth regions, and the same moved a little, with a bar of void."""
    rng = np.random.default_rng(seed)
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=size), 9) for _ in range(n_classes)])
    truth = noise.argmax(axis=0).astype(np.uint8)
    found = ndimage.shift(noise, (0, 3, -2), mode="nearest").argmax(axis=0)
    found[:40, :20] = rng.integers(0, n_classes, (40, 20))
    truth[size[0] // 2 : size[0] // 2 + 4] = 255
    return found, truth


def test_equal_to_distance_transforms() -> None:
    for seed, size in enumerate([(90, 120), (150, 71), (200, 260)]):
        found, truth = blobs(seed, size)
        row = F.statistics(LabelMaps([found], 5), [truth]).values[0].reshape(4, 5)
        expected = counts_by_distance(found, truth, 5)
        np.testing.assert_array_equal(row, expected)
        assert 0 < expected[0].sum() < expected[1].sum()
        precision, recall = expected[0, :4] / expected[1, :4], expected[2, :4] / expected[3, :4]
        assert F.score(LabelMaps([found], 5), [truth]) == pytest.approx((2 * precision * recall / (precision + recall)).mean())


def test_boundary_by_hand() -> None:
    labels = np.array([[0, 0, 1], [0, 0, 1], [255, 0, 0]])
    expected = np.array([[0, 1, 1], [0, 1, 1], [0, 0, 1]], dtype=bool)
    np.testing.assert_array_equal(boundary(torch.from_numpy(labels)).numpy(), expected)
    assert not boundary(torch.ones(1, 5, dtype=torch.int64)).any()


def test_by_hand() -> None:
    # 100 x 100: 0.75 % of the diagonal is 1.06, rounded up 2 pixels. Half planes whose border is at 50, 52 and 53.
    left = [(np.arange(100) >= border).astype(np.int64)[None].repeat(100, 0) for border in (50, 52, 53)]
    assert F.score(LabelMaps([left[0]], 2), [left[0]]) == 1
    assert F.score(LabelMaps([left[1]], 2), [left[0]]) == 1
    assert F.score(LabelMaps([left[2]], 2), [left[0]]) == 0
    # pooled over the split: half of the boundary pixels of either class found
    assert F.score(LabelMaps([left[1], left[2]], 2), [left[0], left[0]]) == pytest.approx(0.5)
    # the right place with the wrong class: class 1 is not found, class 2 is in no target
    assert F.score(LabelMaps([2 * left[0]], 3), [left[0]]) == pytest.approx(1 / 3)
    assert F.per_class is not None
    total = F.statistics(LabelMaps([2 * left[0]], 4), [left[0]]).total()
    np.testing.assert_array_equal(F.per_class(total), [1, 0, 0, np.nan])


def test_maps_without_boundary() -> None:
    flat, edge = np.zeros((30, 30), dtype=np.int64), (np.arange(30) >= 9).astype(np.int64)[None].repeat(30, 0)
    assert F.score(LabelMaps([flat], 2), [flat]) is None
    assert F.score(LabelMaps([edge], 2), [flat]) == 0
    assert F.score(LabelMaps([flat], 2), [edge]) == 0
    assert F.score(LabelMaps([flat], 2), [np.full((30, 30), 255)]) is None
    assert F.score(LabelMaps([], 2), []) is None


def test_batches_add_up_and_tensors_count_alike() -> None:
    pairs = [blobs(seed, (60 + seed, 80)) for seed in range(4)]
    found, truth = [list(maps) for maps in zip(*pairs, strict=True)]
    expected = F.score(LabelMaps(found, 4), truth)
    parts = [F.statistics(LabelMaps(found[i : i + 3], 4), truth[i : i + 3]) for i in (0, 3)]
    assert F.of(Statistics.concatenate(parts)) == expected
    assert F.score(LabelMaps([torch.from_numpy(one).to(torch.uint8) for one in found], 4), truth) == expected
    assert (F.higher_is_better, F.unit) == (True, "%")
