"""Accuracies against scikit-learn, and the corners that it leaves open: ties, few classes, absent classes, NaN."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from virb.metrics.base import find_metric
from virb.metrics.classification import rank_of_target

TOP1, TOP5, MEAN_CLASS = (find_metric(name) for name in ("top1", "top5", "mean_class_accuracy"))


@pytest.fixture(params=[(500, 10), (300, 37), (64, 6)])
def scores_and_target(request):
    n_samples, n_classes = request.param
    generator = np.random.default_rng(n_classes)
    target = generator.integers(0, n_classes, n_samples) ** 2 // n_classes  # unbalanced
    scores = generator.normal(size=(n_samples, n_classes)).astype(np.float32)
    scores[np.arange(n_samples), target] += 1.0
    return scores, target


def test_equal_to_sklearn(scores_and_target):
    scores, target = scores_and_target
    labels = np.arange(scores.shape[1])
    assert TOP1.score(scores, target) == pytest.approx(accuracy_score(target, scores.argmax(1)), abs=1e-12)
    assert TOP5.score(scores, target) == pytest.approx(top_k_accuracy_score(target, scores, k=5, labels=labels), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted and absent
        expected = balanced_accuracy_score(target, scores.argmax(1))
    assert MEAN_CLASS.score(scores, target) == pytest.approx(expected, abs=1e-12)


def test_tensors_and_arrays_and_batches_give_the_same(scores_and_target):
    scores, target = scores_and_target
    for metric in (TOP1, TOP5, MEAN_CLASS):
        whole = metric.statistics(scores, target)
        tensors = metric.statistics(torch.from_numpy(scores), torch.from_numpy(target))
        np.testing.assert_array_equal(whole.values, tensors.values)
        batches = sum(metric.statistics(scores[i : i + 7], target[i : i + 7]).total() for i in range(0, len(scores), 7))
        assert metric.value(batches) == metric.score(scores, target)


def test_rank_equals_a_stable_sort():
    generator = np.random.default_rng(3)
    scores, target = generator.integers(0, 4, (400, 9)).astype(float), generator.integers(0, 9, 400)  # full of ties
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [int(np.flatnonzero(row == truth)[0]) for row, truth in zip(order, target, strict=True)]
    np.testing.assert_array_equal(rank_of_target(scores, target), expected)


def test_ties_go_to_the_lower_class():
    scores = np.zeros((3, 7))
    assert TOP1.statistics(scores, np.array([0, 1, 6])).values[:, 0].tolist() == [1, 0, 0]
    assert TOP5.statistics(scores, np.array([4, 5, 6])).values[:, 0].tolist() == [1, 0, 0]


def test_integer_votes_work():
    assert TOP1.score(np.array([[3, 1], [0, 2]]), np.array([0, 0])) == 0.5


def test_top5_of_fewer_classes_counts_all_but_nan():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(20, 3))
    assert TOP5.score(scores, generator.integers(0, 3, 20)) == 1.0
    scores[:5, 0] = np.nan
    assert TOP5.score(scores, np.ones(20, dtype=int)) == 0.75


def test_nan_rows_are_wrong():
    scores = np.full((4, 6), np.nan)
    for metric in (TOP1, TOP5, MEAN_CLASS):
        assert metric.score(scores, np.array([0, 1, 2, 3])) == 0.0
    assert TOP1.score(np.array([[5.0, np.nan]]), np.array([0])) == 0.0
    assert TOP1.score(np.array([[np.inf, -np.inf]]), np.array([0])) == 1.0


def test_absent_classes_are_left_out_of_the_mean():
    scores = np.eye(5)[[0, 0, 1, 3]]
    target = np.array([0, 0, 0, 3])  # classes 1, 2, 4 are absent
    assert MEAN_CLASS.score(scores, target) == pytest.approx((2 / 3 + 1) / 2)


def test_nothing_to_score_is_none():
    for metric in (TOP1, TOP5, MEAN_CLASS):
        assert metric.score(np.zeros((0, 5)), np.zeros(0, dtype=int)) is None


def test_direction_and_unit():
    assert all(metric.higher_is_better and metric.unit == "%" for metric in (TOP1, TOP5, MEAN_CLASS))


@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (np.zeros(3), np.zeros(3, dtype=int)),
        (np.zeros((3, 0)), np.zeros(3, dtype=int)),
        (np.zeros((3, 2)), np.zeros(2, dtype=int)),
        (np.zeros((3, 2)), np.zeros(3)),
        (np.zeros((3, 2)), np.array([0, 1, 2])),
        (np.zeros((3, 2)), np.array([0, 1, -1])),
    ],
)
def test_wrong_input_is_refused(scores, target):
    with pytest.raises(ValueError, match="Expected argument"):
        TOP1.statistics(scores, target)
