"""Mean average precision against scikit-learn, weighted samples against repeated ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from virb.metrics.base import Statistics, find_metric
from virb.metrics.multilabel import average_precision, eleven_points, mean_average_precision, mean_eleven_points

MAP = find_metric("mAP")


def scores_and_labels(n: int = 90, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < 0.3).astype(np.int8)
    return np.round(labels + rng.normal(size=(n, classes)), 1).astype(np.float32), labels  # rounded: many equal scores


def test_scikit_learns_average() -> None:
    scores, labels = scores_and_labels()
    expected = average_precision_score(labels, scores, average="macro")
    assert MAP.score(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert MAP.score(torch.from_numpy(scores), torch.from_numpy(labels)) == pytest.approx(expected, abs=1e-12)
    parts = [MAP.statistics(scores[i : i + 17], labels[i : i + 17]) for i in range(0, 90, 17)]
    assert MAP.of(Statistics.concatenate(parts)) == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    # ranking: hit, miss, hit -> 1/2 * 1 + 1/2 * 2/3
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), np.ones((3, 1)))[0] == pytest.approx(5 / 6)
    # equal scores are one place of the ranking
    assert average_precision(np.array([0.5, 0.5]), np.array([True, False]), np.ones((2, 1)))[0] == pytest.approx(0.5)


def test_open_labels_count_neither_way_and_absent_classes_are_left_out() -> None:
    scores, labels = scores_and_labels()
    labels[::4, 1] = -1
    labels[:, 2] = 0
    labels[:, 3] = np.where(labels[:, 3] > 0, -1, 0)
    expected = [average_precision_score(labels[labels[:, c] >= 0, c], scores[labels[:, c] >= 0, c]) for c in (0, 1, 4)]
    assert MAP.score(scores, labels) == pytest.approx(np.mean(expected), abs=1e-12)
    assert MAP.score(scores, np.zeros_like(labels)) is None


def devkits(scores: np.ndarray, positive: np.ndarray) -> float:
    """One class as VOC 2007's development kit has it, sample by sample; scores all differ."""
    order = np.argsort(-scores)
    hits = np.cumsum(positive[order])
    recall, precision = hits / positive.sum(), hits / np.arange(1, len(order) + 1)
    points = [Fraction(tenth, 10) for tenth in range(11)]
    exact = [Fraction(int(hit), int(positive.sum())) for hit in hits]
    assert recall[-1] == 1.0
    return float(np.mean([max(p for p, r in zip(precision, exact, strict=True) if r >= point) for point in points]))


@pytest.mark.parametrize("n_positive", [1, 3, 10, 37])
def test_eleven_points_are_vocs(n_positive: int) -> None:
    rng = np.random.default_rng(n_positive)
    positive = rng.permutation(np.arange(120) < n_positive)
    scores = rng.permutation(120) + 40.0 * positive + rng.random(120)
    expected = devkits(scores, positive)
    assert eleven_points(scores, positive, np.ones((120, 1)))[0] == pytest.approx(expected, abs=1e-12)
    if n_positive > 1:  # another number than the area under the curve
        assert abs(expected - average_precision_score(positive, scores)) > 1e-4


def test_eleven_points_by_hand_and_over_classes() -> None:
    # ranking: hit, miss, hit: precision 1 up to recall 0.5 (six points), 2/3 beyond (five)
    assert eleven_points(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), np.ones((3, 1)))[0] == pytest.approx((6 + 10 / 3) / 11)
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.3).astype(np.int8)
    scores = labels + rng.normal(size=(60, 3))
    labels[::7, 1] = -1
    expected = np.mean([devkits(scores[known, c], labels[known, c] > 0) for c in range(3) if (known := labels[:, c] >= 0) is not None])
    assert find_metric("mAP11").score(scores, labels) == pytest.approx(expected, abs=1e-7)
    assert find_metric("mAP11").score(scores, np.zeros_like(labels)) is None
    weights = rng.integers(0, 4, (60, 5))
    found = mean_eleven_points(find_metric("mAP11").statistics(scores, labels), weights)
    for column in range(5):
        again = np.repeat(np.arange(60), weights[:, column])
        assert found[column] == pytest.approx(find_metric("mAP11").score(scores[again], labels[again]), abs=1e-12)


def test_weights_are_repetitions() -> None:
    scores, labels = scores_and_labels(40)
    weights = np.random.default_rng(1).integers(0, 4, (40, 6))
    found = mean_average_precision(MAP.statistics(scores, labels), weights)
    for column in range(6):
        again = np.repeat(np.arange(40), weights[:, column])
        assert found[column] == pytest.approx(average_precision_score(labels[again], scores[again]), abs=1e-12)


def test_a_diverged_head_ranks_last() -> None:
    scores, labels = scores_and_labels()
    low, nan = scores.copy(), scores.copy()
    low[:30, 0], nan[:30, 0] = -1e9, np.nan
    assert MAP.score(nan, labels) == pytest.approx(MAP.score(low, labels), abs=1e-12)


def test_wrong_shapes_and_labels_are_refused() -> None:
    scores, labels = scores_and_labels()
    with pytest.raises(ValueError, match="N x C"):
        MAP.statistics(scores, labels[:, 0])
    with pytest.raises(ValueError, match="1, 0 or -1"):
        MAP.statistics(scores, labels * 2)
    with pytest.raises(TypeError, match="no function of sums"):
        MAP.values(np.zeros((1, 10)))
