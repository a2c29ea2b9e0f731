"""Errors of maps of numbers by hand, against scikit-learn, and against the losses that ViRB 2021 published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error

from virb.metrics.base import Statistics, find_metric

NAMES = ("l1", "l2", "weighted_l1", "within_0.05")
L1, L2, WEIGHTED, WITHIN = (find_metric(name) for name in NAMES)
GOLDEN = Path(__file__).parents[1] / "golden" / "virb_metrics.npz"


def number_maps() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    truth = [rng.random((3, *rng.integers(4, 20, 2))).astype(np.float32) for _ in range(4)]
    found = [(one + rng.normal(0, 0.08, one.shape)).astype(np.float32) for one in truth]
    for one in truth:
        one[rng.random(one.shape) < 0.3] = np.nan
    return found, truth


def test_scikit_learns_numbers_of_the_pooled_values() -> None:
    found, truth = number_maps()
    p, t = (np.concatenate([one.ravel() for one in maps]).astype(np.float64) for maps in (found, truth))
    p, t = p[~np.isnan(t)], t[~np.isnan(t)]
    expected = [mean_absolute_error(t, p), mean_squared_error(t, p), np.mean(np.abs(p - t) * t), np.mean(np.abs(p - t) <= 0.05)]
    for name, value in zip(NAMES, expected, strict=True):
        metric = find_metric(name)
        assert metric.score(found, truth) == pytest.approx(value)
        parts = [metric.statistics(found[i : i + 3], truth[i : i + 3]) for i in (0, 3)]
        assert metric.of(Statistics.concatenate(parts)) == pytest.approx(value)
        assert metric.score([torch.from_numpy(one) for one in found], truth) == pytest.approx(value)


def test_by_hand() -> None:
    found, truth = np.array([[[0.5, 1.0, 0.0, 9.0]]]), np.array([[[1.0, 1.0, 0.25, np.nan]]])
    for metric, value in ((L1, 0.75 / 3), (L2, 0.3125 / 3), (WEIGHTED, 0.5625 / 3), (WITHIN, 1 / 3)):
        assert metric.score([found], [truth]) == pytest.approx(value)
        assert metric.score([found[0]], [truth]) == pytest.approx(value)  # one channel, without its axis


def test_weighted_l1_is_the_published_loss() -> None:
    golden = np.load(GOLDEN)
    found, truth = golden["weighted_l1.out"], golden["weighted_l1.labels"]
    assert WEIGHTED.score(list(found), list(truth)) == pytest.approx(float(golden["weighted_l1.value"]), rel=2e-6)


def test_direction_unit_and_nothing_to_say() -> None:
    found, truth = number_maps()
    for metric in (L1, L2, WEIGHTED):
        assert metric.score([np.nan_to_num(one) for one in truth], truth) == 0 < metric.score(found, truth)
        assert (metric.higher_is_better, metric.unit) == (False, "")
        assert metric.score([np.full((1, 2, 2), np.nan)], [np.ones((1, 2, 2))]) is None
    assert WITHIN.score([np.nan_to_num(one) for one in truth], truth) == 1 > WITHIN.score(found, truth)
    assert (WITHIN.higher_is_better, WITHIN.unit) == (True, "%")
    assert WITHIN.score([np.full((1, 2, 2), np.nan)], [np.ones((1, 2, 2))]) == 0
    for name in NAMES:
        assert find_metric(name).score([np.ones((1, 2, 2))], [np.full((1, 2, 2), np.nan)]) is None
    with pytest.raises(ValueError, match="shape of its target"):
        L1.statistics([np.ones((2, 4, 4))], [np.ones((3, 4, 4))])
