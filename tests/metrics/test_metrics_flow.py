"""Metrics of flow by hand and against numpy: valid, occluded, outliers by both thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from virb.metrics.base import Statistics, find_metric

NAMES = ("epe", "epe_noc", "fl_all", "fl_noc")
EPE, EPE_NOC, FL, FL_NOC = (find_metric(name) for name in NAMES)


def fields(n: int = 4, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(n):
        size = tuple(rng.integers(5, 25, 2))
        target = np.concatenate([rng.normal(0, 40, (2, *size)), rng.integers(0, 2, (1, *size))]).astype(np.float32)
        found.append((target[:2] + rng.normal(0, 2.5, (2, *size))).astype(np.float32))
        target[:, rng.random(size) < 0.4] = np.nan
        truth.append(target)
    return found, truth


def test_against_numpy_over_all_pixels() -> None:
    found, truth = fields()
    predicted, target = (np.concatenate([one.reshape(len(one), -1) for one in maps], axis=1).astype(np.float64) for maps in (found, truth))
    error = np.hypot(*(predicted - target[:2]))
    outlier = (error > 3) & (error / np.hypot(*target[:2]) > 0.05)
    valid = ~np.isnan(target[0])
    for subset, epe, fl in ((valid, EPE, FL), (valid & (target[2] == 1), EPE_NOC, FL_NOC)):
        assert epe.score(found, truth) == pytest.approx(error[subset].mean())
        assert fl.score(found, truth) == pytest.approx(outlier[subset].mean())
        assert 0.05 < outlier[subset].mean() < ((error > 3)[subset]).mean()  # both thresholds take part


def test_by_hand() -> None:
    #                 right      4 px of 100   4 px of 20    occluded, 3 px   unknown
    truth = np.array([[[0.0, 100.0, 20.0, 0.0, np.nan]], [[0.0, 0.0, 0.0, 0.0, np.nan]], [[1, 1, 1, 0, np.nan]]])
    found = np.array([[[0.0, 104.0, 20.0, 0.0, 50.0]], [[0.0, 0.0, 4.0, 3.0, 50.0]]])
    assert EPE.score([found], [truth]) == pytest.approx(11 / 4)
    assert EPE_NOC.score([found], [truth]) == pytest.approx(8 / 3)
    assert FL.score([found], [truth]) == pytest.approx(1 / 4)  # 3 px are not more than 3
    assert FL_NOC.score([found], [truth]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", NAMES)
def test_batches_tensors_direction_and_unit(name: str) -> None:
    metric = find_metric(name)
    found, truth = fields()
    expected = metric.score(found, truth)
    parts = [metric.statistics(found[i : i + 3], truth[i : i + 3]) for i in (0, 3)]
    assert metric.of(Statistics.concatenate(parts)) == pytest.approx(expected)
    assert metric.score([torch.from_numpy(one) for one in found], truth) == pytest.approx(expected)
    assert metric.score([np.nan_to_num(one[:2]) for one in truth], truth) == 0 < expected
    assert (metric.higher_is_better, metric.unit) == (False, "px" if name.startswith("epe") else "%")


def test_nothing_to_say_and_diverged_heads() -> None:
    found, truth = np.zeros((2, 3, 4)), np.full((3, 3, 4), np.nan)
    for name in NAMES:
        assert find_metric(name).score([found], [truth]) is None
    occluded = np.zeros((3, 3, 4))
    assert EPE.score([found], [occluded]) == 0
    assert EPE_NOC.score([found], [occluded]) is None
    assert FL_NOC.score([found], [occluded]) is None
    found[0, 0, 0] = np.nan
    assert EPE.score([found], [occluded]) is None
    assert FL.score([found], [occluded]) == pytest.approx(1 / 12)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 x H x W"):
        EPE.statistics([np.zeros((3, 4, 4))], [np.zeros((3, 4, 4))])
    with pytest.raises(ValueError, match="3 x H x W"):
        EPE.statistics([np.zeros((2, 4, 4))], [np.zeros((2, 4, 4))])
    with pytest.raises(ValueError, match="native size"):
        EPE.statistics([np.zeros((2, 4, 5))], [np.zeros((3, 4, 4))])
