"""Metrics of depth by hand and against scikit-learn and numpy; averages over images, invalid pixels, alignment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_absolute_percentage_error, root_mean_squared_error

from virb.metrics.base import Statistics, find_metric

PLAIN = ("rmse", "abs_rel", "log10", "rmse_log", "delta1", "delta2", "delta3")
ALIGNED = ("rmse_aligned", "abs_rel_aligned", "delta1_aligned")


def depth_maps(n: int = 5, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions within a factor of about 2, targets of 0.5 to 10 m with NaN."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(n):
        target = rng.uniform(0.5, 10, rng.integers(6, 20, 2)).astype(np.float32)
        found.append((target * rng.lognormal(0.1, 0.35, target.shape)).astype(np.float32))
        target[rng.random(target.shape) < rng.uniform(0.05, 0.6)] = np.nan
        truth.append(target)
    return found, truth


def by_image(name: str, found: np.ndarray, truth: np.ndarray) -> float:
    valid = ~np.isnan(truth)
    p, t = found[valid].astype(np.float64), truth[valid].astype(np.float64)
    if name.endswith("_aligned"):
        design = np.stack([p, np.ones_like(p)], axis=1)
        p = np.maximum(design @ np.linalg.lstsq(design, t, rcond=None)[0], 1e-3)
        name = name.removesuffix("_aligned")
    if name.startswith("delta"):
        return float(np.mean(np.maximum(p / t, t / p) < 1.25 ** int(name[-1])))
    return {
        "rmse": root_mean_squared_error,
        "abs_rel": mean_absolute_percentage_error,
        "log10": lambda a, b: mean_absolute_error(np.log10(a), np.log10(b)),
        "rmse_log": lambda a, b: root_mean_squared_error(np.log(a), np.log(b)),
    }[name](t, p)


@pytest.mark.parametrize("name", PLAIN + ALIGNED)
def test_the_mean_over_images_of_scikit_learns_numbers(name: str) -> None:
    metric = find_metric(name)
    found, truth = depth_maps()
    expected = np.mean([by_image(name, *pair) for pair in zip(found, truth, strict=True)])
    assert metric.score(found, truth) == pytest.approx(expected, rel=1e-9)
    pooled = by_image(name, np.concatenate([f.ravel() for f in found]), np.concatenate([t.ravel() for t in truth]))
    assert metric.score(found, truth) != pytest.approx(pooled, rel=1e-4)
    parts = [metric.statistics(found[i : i + 2], truth[i : i + 2]) for i in (0, 2, 4)]
    assert metric.of(Statistics.concatenate(parts)) == pytest.approx(expected, rel=1e-9)
    with_channel = [torch.from_numpy(one)[None] for one in found]
    assert metric.score(with_channel, [torch.from_numpy(one) for one in truth]) == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    found, truth = np.array([[2.0, 1.0], [4.0, 7.0]]), np.array([[1.0, 1.0], [5.0, np.nan]])
    first = {"rmse": np.sqrt(2 / 3), "abs_rel": 1.2 / 3, "delta1": 1 / 3, "delta2": 2 / 3, "delta3": 2 / 3}  # 5 / 4 is not below 1.25
    for name, value in first.items():
        metric = find_metric(name)
        assert metric.score([found], [truth]) == pytest.approx(value)
        perfect = 1 if name.startswith("delta") else 0
        assert metric.score([found, truth], [truth, truth]) == pytest.approx((value + perfect) / 2)  # images weigh the same
    assert find_metric("log10").score([np.full((1, 2), 10.0)], [np.array([[1.0, 10.0]])]) == pytest.approx(0.5)
    assert find_metric("rmse_log").score([np.full((1, 1), np.e)], [np.ones((1, 1))]) == pytest.approx(1)


@pytest.mark.parametrize("name", PLAIN + ALIGNED)
def test_direction_and_unit(name: str) -> None:
    metric = find_metric(name)
    _, truth = depth_maps()
    good = metric.score([np.where(np.isnan(t), 3, t) for t in truth], truth)
    share = name.startswith("delta")
    assert good == pytest.approx(1 if share else 0, abs=1e-6)
    bad = metric.score(depth_maps()[0], truth)
    assert metric.higher_is_better == share
    assert metric.unit == ("%" if share else "m" if name.startswith("rmse") and "log" not in name else "")
    assert bad < good if share else bad > good


@pytest.mark.parametrize("name", PLAIN + ALIGNED)
def test_images_without_a_valid_pixel_are_left_out(name: str) -> None:
    metric = find_metric(name)
    found, truth = depth_maps(2)
    for nothing in (np.full((4, 4), np.nan), np.zeros((4, 4)), np.full((4, 4), np.inf)):
        statistics = metric.statistics([*found, np.ones((4, 4))], [*truth, nothing])
        assert statistics.values[2].tolist() == [0, 0]
        assert metric.of(statistics) == metric.score(found, truth)
        assert metric.score([np.ones((4, 4))], [nothing]) is None
    assert metric.score([], []) is None


def test_predictions_that_are_no_depth() -> None:
    truth = np.ones((1, 2))
    for wrong in (-5.0, 0.0, 1e-4):
        assert find_metric("abs_rel").score([np.array([[wrong, 1.0]])], [truth]) == pytest.approx((1 - 1e-3) / 2)
        assert find_metric("log10").score([np.array([[wrong, 1.0]])], [truth]) == pytest.approx(3 / 2)
    diverged = np.array([[np.nan, 1.0]])
    assert find_metric("rmse").score([diverged], [truth]) is None
    assert find_metric("rmse_aligned").score([diverged], [truth]) is None
    assert find_metric("delta1").score([diverged], [truth]) == 0.5
    assert find_metric("delta1_aligned").score([diverged], [truth]) == 0


def test_alignment_finds_scale_and_shift_of_each_image() -> None:
    _, truth = depth_maps(3)
    moved = [scale * t.astype(np.float64) + shift for t, scale, shift in zip(truth, (0.1, 3.0, -2.0), (5.0, -1.0, 4.0), strict=True)]
    assert find_metric("rmse_aligned").score(moved, truth) == pytest.approx(0, abs=1e-9)
    assert find_metric("delta1_aligned").score(moved, truth) == 1
    assert find_metric("rmse").score(moved, truth) > 1
    # a constant becomes the mean of the valid depths
    spread = np.mean([np.nanstd(t.astype(np.float64)) for t in truth])
    assert find_metric("rmse_aligned").score([np.full(t.shape, 0.1, dtype=np.float32) for t in truth], truth) == pytest.approx(spread)


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"native size of its target, \(4, 6\), but got \(2, 3\) \(number 1 of the batch\)"):
        find_metric("rmse").statistics([np.ones((4, 6)), np.ones((2, 3))], [np.ones((4, 6))] * 2)
    with pytest.raises(ValueError, match="shape of its target"):
        find_metric("rmse").statistics([np.ones((2, 4, 6))], [np.ones((4, 6))])
