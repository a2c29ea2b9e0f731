"""Metrics of segmentation by hand and against scikit-learn; policies for ignored pixels, absent classes and empty masks."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from virb.metrics import segmentation
from virb.metrics.base import Statistics, find_metric
from virb.metrics.segmentation import LabelMaps

NAMES = ("miou", "pixel_accuracy", "mean_pixel_class_accuracy", "foreground_iou")
MIOU, PIXELS, CLASS_PIXELS, FOREGROUND = (find_metric(name) for name in NAMES)


def random_maps(n: int = 7, n_classes: int = 6, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps of many sizes, two thirds right, with void; the last class is in no target, the one before in no prediction."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(n):
        size = rng.integers(5, 30, 2)
        target = rng.integers(0, n_classes - 1, size).astype(np.uint8)
        other = rng.choice([c for c in range(n_classes) if c != n_classes - 2], size)
        predicted = np.where((rng.random(size) < 0.66) & (target != n_classes - 2), target, other).astype(np.int64)
        target[rng.random(size) < 0.1] = 255
        found.append(predicted)
        truth.append(target)
    return found, truth


def flat(found: list[np.ndarray], truth: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    predicted, target = (np.concatenate([one.ravel() for one in maps]).astype(int) for maps in (found, truth))
    return predicted[target != 255], target[target != 255]


def test_scikit_learns_numbers_of_the_pooled_pixels() -> None:
    found, truth = random_maps()
    predicted, target = flat(found, truth)
    assert set(target) == {0, 1, 2, 3, 4}
    assert 5 in predicted
    assert 4 not in predicted
    maps = LabelMaps(found, 6)
    assert MIOU.score(maps, truth) == pytest.approx(jaccard_score(target, predicted, average="macro"), abs=1e-12)
    assert PIXELS.score(maps, truth) == pytest.approx(accuracy_score(target, predicted), abs=1e-12)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert CLASS_PIXELS.score(maps, truth) == pytest.approx(balanced_accuracy_score(target, predicted), abs=1e-12)
    labels = [1, 2, 3, 4, 5]
    assert FOREGROUND.score(maps, truth) == pytest.approx(jaccard_score(target, predicted, labels=labels, average="macro"), abs=1e-12)


def test_statistics_are_the_margins_of_each_samples_confusion_matrix() -> None:
    found, truth = random_maps()
    counts = MIOU.statistics(LabelMaps(found, 6), truth).values
    assert counts.shape == (7, 18)
    assert counts.dtype == np.float64
    for row, predicted, target in zip(counts, found, truth, strict=True):
        matrix = confusion_matrix(*flat([predicted], [target])[::-1], labels=range(6))
        np.testing.assert_array_equal(row.reshape(3, 6), [np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)])


@pytest.mark.parametrize("name", NAMES)
def test_batches_kinds_of_maps_and_order_do_not_matter(name: str) -> None:
    metric = find_metric(name)
    found, truth = random_maps()
    expected = metric.score(LabelMaps(found, 6), truth)
    parts = [metric.statistics(LabelMaps(found, 6)[i : i + 3], truth[i : i + 3]) for i in range(0, 7, 3)]
    assert metric.of(Statistics.concatenate(parts)) == expected
    assert metric.score(LabelMaps(found[::-1], 6), truth[::-1]) == pytest.approx(expected, abs=1e-12)
    tensors = [torch.from_numpy(one).to(torch.uint8) for one in found], [torch.from_numpy(one).long() for one in truth]
    assert metric.score(LabelMaps(tensors[0], 6), tensors[1]) == expected
    strided = [one[::-1, ::-1] for one in found], [one[::-1, ::-1].astype(np.uint16) for one in truth]
    assert metric.score(LabelMaps(strided[0], 6), strided[1]) == expected


def test_by_hand_with_ignored_pixels() -> None:
    truth = np.array([[0, 0, 1, 255], [0, 1, 1, 255]])
    found = np.array([[0, 1, 1, 1], [0, 1, 0, 2]])
    maps = LabelMaps([found], 3)
    # class 0: 2 of 3 + 3 - 2; class 1: 2 of 3 + 3 - 2; class 2 was predicted on void alone
    assert MIOU.score(maps, [truth]) == pytest.approx(0.5)
    assert FOREGROUND.score(maps, [truth]) == pytest.approx(0.5)
    assert PIXELS.score(maps, [truth]) == pytest.approx(4 / 6)
    assert MIOU.per_class is not None
    np.testing.assert_allclose(MIOU.per_class(MIOU.statistics(maps, [truth]).total()), [0.5, 0.5, np.nan])


def test_absent_classes() -> None:
    truth = np.array([[0, 0, 1, 1]])
    # class 3 is nowhere; class 2 is predicted and in no target: IoU 0 that counts, but no accuracy
    maps = LabelMaps([np.array([[0, 0, 1, 2]])], 4)
    assert MIOU.score(maps, [truth]) == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert FOREGROUND.score(maps, [truth]) == pytest.approx((1 / 2 + 0) / 2)
    assert CLASS_PIXELS.score(maps, [truth]) == pytest.approx((1 + 1 / 2) / 2)
    assert CLASS_PIXELS.per_class is not None
    np.testing.assert_allclose(CLASS_PIXELS.per_class(CLASS_PIXELS.statistics(maps, [truth]).total()), [1, 0.5, np.nan, np.nan])
    # a class that is in the targets and never found counts as 0
    assert MIOU.score(LabelMaps([np.zeros((1, 4), dtype=int)], 4), [truth]) == pytest.approx((2 / 4 + 0) / 2)


def test_empty_masks_of_a_binary_task() -> None:
    empty, object_ = np.zeros((2, 4), dtype=np.uint8), np.array([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=np.uint8)
    half = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    assert FOREGROUND.score(LabelMaps([half, empty], 2), [object_, empty]) == pytest.approx(2 / 4)
    assert FOREGROUND.score(LabelMaps([half, half], 2), [object_, empty]) == pytest.approx(2 / 6)  # found where nothing is
    assert FOREGROUND.score(LabelMaps([half], 2), [empty]) == 0
    assert FOREGROUND.score(LabelMaps([empty], 2), [empty]) is None
    assert MIOU.score(LabelMaps([empty], 2), [empty]) == 1
    assert FOREGROUND.score(LabelMaps([object_.astype(bool)], 2), [object_]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_say(name: str) -> None:
    metric = find_metric(name)
    assert metric.score(LabelMaps([np.zeros((2, 2), dtype=int)], 3), [np.full((2, 2), 255)]) is None
    assert metric.score(LabelMaps([], 3), []) is None


@pytest.mark.parametrize("name", NAMES)
def test_direction_and_unit(name: str) -> None:
    metric = find_metric(name)
    _, truth = random_maps()
    right = LabelMaps([np.where(one == 255, 3, one) for one in truth], 6)  # what is predicted on void does not matter
    assert metric.score(right, truth) == 1
    assert (metric.higher_is_better, metric.unit) == (True, "%")


def test_many_resamples_at_once() -> None:
    found, truth = random_maps()
    statistics = {name: find_metric(name).statistics(LabelMaps(found, 6), truth) for name in NAMES}
    for name, rows in statistics.items():
        sums = np.stack([rows.values[:k].sum(axis=0) for k in range(8)])[:, None]
        metric = find_metric(name)
        alone = [metric.value(one) for one in sums]
        assert alone[0] is None
        np.testing.assert_allclose(metric.values(sums), [np.nan, *alone[1:]])


def test_metrics_of_one_batch_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Mock(wraps=segmentation._count)
    monkeypatch.setattr(segmentation, "_count", count)
    found, truth = random_maps()
    maps = LabelMaps(found, 6)
    for name in NAMES:
        find_metric(name).statistics(maps, truth)
    assert count.call_count == len(truth)
    # other targets are counted anew
    assert PIXELS.score(maps, [np.where(one == 255, 0, one) for one in found]) == 1


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (np.array([[0, 3]]), np.array([[0, 1]]), r"labels of `prediction` in \[0, 3\), but got 0 to 3"),
        (np.array([[0, -1]]), np.array([[0, 1]]), r"labels of `prediction` in \[0, 3\), but got -1 to 0"),
        (np.array([[0, 1]]), np.array([[7, 255]]), r"labels of `target` in \[0, 3\), but got 7 to 7"),
        (np.array([[0, 1]]), np.array([[0], [1]]), r"native size of its target, \(2, 1\), but got \(1, 2\)"),
        (np.array([[0.0, 1.0]]), np.array([[0, 1]]), "H x W integers, but got torch.float64"),
        (np.zeros((3, 1, 2), dtype=int), np.array([[0, 1]]), "H x W integers"),
    ],
)
def test_wrong_maps_are_refused(found: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIOU.statistics(LabelMaps([found], 3), [truth])


def test_wrong_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="maps of the same samples, but got 1 and 2"):
        MIOU.statistics(LabelMaps([np.array([[0]])], 3), [np.array([[0]])] * 2)
    with pytest.raises(ValueError, match="to be LabelMaps, but got a list"):
        PIXELS.statistics([np.array([[0]])], [np.array([[0]])])
    with pytest.raises(ValueError, match="`n_classes`"):
        LabelMaps([], 300)
