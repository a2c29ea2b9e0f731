"""Accuracies of the sets that score ImageNet's heads: several right labels (ReaL), and corruptions (ImageNet-C)."""

from __future__ import annotations

from typing import Any

import numpy as np

from virb.metrics.base import Metric, Statistics, register_metric
from virb.metrics.classification import rank_of_target

SEVERITIES = 5
# Errors of AlexNet on each corruption, which the published mean corruption error divides by (Hendrycks and Dietterich, 2019), in the order
# of ``virb.data.datasets.imagenet.CORRUPTIONS``.
ALEXNET = np.array(
    [0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572, 0.819324, 0.564592, 0.853204, 0.646056,
     0.717840, 0.606500]
)  # fmt: skip


def _real(scores: Any, labels: Any) -> Statistics:
    """(hit, 1) per sample from labels (N, C), 1 for each right class; (0, 0) for a sample without a right class."""
    rows = scores.detach().cpu().numpy() if hasattr(scores, "detach") else np.asarray(scores)
    truth = np.asarray(labels)
    if rows.ndim != 2 or truth.shape != rows.shape:
        raise ValueError(f"Expected arguments `scores` and `labels` to be N x C, but got shapes {rows.shape} and {truth.shape}")
    known = (truth == 1).any(axis=1)
    hit = (truth[np.arange(len(rows)), rows.argmax(axis=1)] == 1) & ~np.isnan(rows).any(axis=1)
    return Statistics(np.stack([hit & known, known], axis=1).astype(np.float64))


def _share(sums: np.ndarray) -> np.ndarray:
    hits, samples = sums[..., 0, 0], sums[..., 0, 1]
    return np.divide(hits, samples, out=np.full(np.shape(hits), np.nan), where=samples > 0)


def _errors(scores: Any, corrupted: Any) -> Statistics:
    """(error, 1) per sample, grouped by corruption and severity; targets are (class, corruption 0 to 14, severity 1 to 5)."""
    table = np.asarray(corrupted)
    if table.ndim != 2 or table.shape[1] != 3:
        raise ValueError(f"Expected argument `corrupted` to be N x 3 (class, corruption, severity), but got shape {table.shape}")
    wrong = rank_of_target(scores, table[:, 0]) > 0
    corruption, severity = table[:, 1].astype(np.int64), table[:, 2].astype(np.int64)
    if len(table) and (corruption.min() < 0 or corruption.max() >= len(ALEXNET) or severity.min() < 1 or severity.max() > SEVERITIES):
        raise ValueError(f"Expected corruptions 0 to {len(ALEXNET) - 1} and severities 1 to {SEVERITIES}, but got others")
    errors = np.stack([wrong, np.ones(len(wrong))], axis=1)
    return Statistics(errors, corruption * SEVERITIES + severity - 1, len(ALEXNET) * SEVERITIES)


def _per_corruption(sums: np.ndarray) -> np.ndarray:
    """Errors (..., 15) over all severities together."""
    wrong, samples = (sums[..., i].reshape(*sums.shape[:-2], len(ALEXNET), SEVERITIES).sum(axis=-1) for i in (0, 1))
    return np.divide(wrong, samples, out=np.full(wrong.shape, np.nan), where=samples > 0)


def _mce(sums: np.ndarray) -> np.ndarray:
    """Of all 15 corruptions at all 5 severities; NaN when one is absent, for the number would not compare with anybody's."""
    complete = (sums[..., 1] > 0).all(axis=-1)
    return np.where(complete, (_per_corruption(sums) / ALEXNET).mean(axis=-1), np.nan)


def _mean_error(sums: np.ndarray) -> np.ndarray:
    """Of the corruptions that are there."""
    errors = _per_corruption(sums)
    present = np.isfinite(errors)
    count = present.sum(axis=-1)
    return np.divide(np.where(present, errors, 0.0).sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)


REAL_ACCURACY = register_metric(Metric("real_accuracy", "ReaL", True, "%", _real, _share))
MCE = register_metric(Metric("mCE", "mCE", False, "%", _errors, _mce))
MEAN_CORRUPTION_ERROR = register_metric(Metric("mean_corruption_error", "mean error", False, "%", _errors, _mean_error))
