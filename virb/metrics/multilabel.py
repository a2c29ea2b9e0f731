"""Mean average precision of multi-label classification, from scores (N x C, higher is more likely) and labels (N x C).

A label is 1 (there), 0 (not there) or -1 (open: the sample counts neither way for that class, as VOC's difficult objects). The average
precision of a class is, for ``mAP``, the sum over its distinct scores of (gain in recall) x precision, without interpolation, as
scikit-learn defines it; for ``mAP11``, as VOC 2007 defined it, the mean over the recalls 0, 0.1 ... 1 of the best precision at that recall
or a higher one. A class without a positive sample has none and is left out of the mean. Neither is a function of sums over samples:
resamples weigh the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from virb.metrics.base import Metric, Statistics, register_metric


def _scores_and_labels(scores: Any, labels: Any) -> Statistics:
    """Per sample its scores, then its labels (N, 2 C)."""
    rows, truth = _host(scores), _host(labels)
    if rows.ndim != 2 or truth.shape != rows.shape:
        raise ValueError(f"Expected arguments `scores` and `labels` to be N x C, but got shapes {rows.shape} and {truth.shape}")
    if not np.isin(truth, (-1, 0, 1)).all():
        raise ValueError("Expected argument `labels` to be 1, 0 or -1 (open), but got other values")
    return Statistics(np.concatenate([rows.astype(np.float32), truth.astype(np.float32)], axis=1))


def _host(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


OfClass = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def mean_average_precision(statistics: Statistics, weights: np.ndarray) -> np.ndarray:
    """The mean over classes for each column of ``weights`` (N, B): float64 (B,), NaN where no class has a positive sample."""
    return _mean_over_classes(average_precision, statistics, weights)


def mean_eleven_points(statistics: Statistics, weights: np.ndarray) -> np.ndarray:
    """Likewise, of VOC 2007's average precision."""
    return _mean_over_classes(eleven_points, statistics, weights)


def _mean_over_classes(of_class: OfClass, statistics: Statistics, weights: np.ndarray) -> np.ndarray:
    n_classes = statistics.values.shape[1] // 2
    total, count = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for c in range(n_classes):
        labels = statistics.values[:, n_classes + c]
        known = labels >= 0
        found = of_class(statistics.values[known, c], labels[known] > 0, weights[known])
        present = np.isfinite(found)
        total += np.where(present, found, 0.0)
        count += present
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of one class: scores (N,), positive (N,) bool, weights (N, B) -> (B,), NaN where the positives weigh nothing.

    Samples of equal score stand at one place of the ranking. NaN, which a diverged head gives, is the lowest score.
    """
    if not positive.any():
        return np.full(weights.shape[1], np.nan)
    hits, precision = _ranking(scores, positive, weights)
    gains = np.diff(hits, axis=0, prepend=0.0)
    return np.divide((gains * precision).sum(axis=0), hits[-1], out=np.full(hits.shape[1], np.nan), where=hits[-1] > 0)


def eleven_points(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """VOC 2007's, of the same arguments."""
    if not positive.any():
        return np.full(weights.shape[1], np.nan)
    hits, precision = _ranking(scores, positive, weights)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]  # at this place of the ranking or a later one
    total = np.zeros(hits.shape[1])
    for tenth in range(11):
        place = (10.0 * hits < tenth * hits[-1]).sum(axis=0)  # the first of that recall; weights are whole numbers, so nothing is rounded
        total += best[np.minimum(place, len(best) - 1), np.arange(hits.shape[1])]
    return np.where(hits[-1] > 0, total / 11, np.nan)


def _ranking(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives down to each place of the ranking, and the precision there: (places, B)."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[order].astype(np.float64, copy=False)
    last = np.append(scores[1:] != scores[:-1], True)  # of its run of equal scores
    hits = np.cumsum(weights * positive[:, None], axis=0)[last]
    seen = np.cumsum(weights, axis=0)[last]
    return hits, np.divide(hits, seen, out=np.zeros(hits.shape), where=seen > 0)


def _no_sums(sums: np.ndarray) -> NoReturn:
    raise TypeError("the mean average precision is no function of sums over samples")


MEAN_ELEVEN_POINTS = register_metric(Metric("mAP11", "mAP11", True, "%", _scores_and_labels, _no_sums, weighted=mean_eleven_points))
MEAN_AVERAGE_PRECISION = register_metric(Metric("mAP", "mAP", True, "%", _scores_and_labels, _no_sums, weighted=mean_average_precision))
