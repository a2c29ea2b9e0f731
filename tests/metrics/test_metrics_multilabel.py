"""Mean average precision against scikit-learn, weighted samples against repeated ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from virb.metrics.base import Statistics, find_metric
from virb.metrics.multilabel import average_precision, mean_average_precision

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
