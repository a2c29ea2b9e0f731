"""Accuracies of single-label classification, from scores (N x C, higher is more likely) and class numbers (N).

A tie is broken towards the lower class number, on every device. A row with NaN in it, which a diverged head gives, counts as wrong.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from virb.metrics.base import Metric, Statistics, register_metric

if TYPE_CHECKING:
    import torch


def rank_of_target(scores: Any, target: Any) -> np.ndarray:
    """How many classes stand before the true one (0 = it is the arg max), int64 of N; C where the row has NaN.

    ``scores`` (N x C) and ``target`` (N) are arrays or tensors; tensors are counted on the device they are on.
    """
    import torch

    rows = torch.as_tensor(scores)
    truth = torch.as_tensor(target).to(rows.device)
    _check(rows, truth)
    if len(rows) == 0:
        return np.zeros(0, dtype=np.int64)
    truth = truth.long()
    own = rows.gather(1, truth[:, None])
    before = torch.arange(rows.shape[1], device=rows.device)[None] < truth[:, None]
    rank = ((rows > own) | ((rows == own) & before)).sum(dim=1)
    if rows.is_floating_point():
        rank[rows.isnan().any(dim=1)] = rows.shape[1]
    return rank.cpu().numpy()


def _check(scores: torch.Tensor, target: torch.Tensor) -> None:
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"Expected argument `scores` to be N x C, but got shape {tuple(scores.shape)}")
    if target.shape != scores.shape[:1]:
        raise ValueError(f"Expected argument `target` to be {len(scores)} class numbers, but got shape {tuple(target.shape)}")
    if target.is_floating_point() or target.is_complex():
        raise ValueError(f"Expected argument `target` to be integers, but got {target.dtype}")
    if len(target) and (int(target.min()) < 0 or int(target.max()) >= scores.shape[1]):
        raise ValueError(f"Expected argument `target` in [0, {scores.shape[1]}), but got {int(target.min())} to {int(target.max())}")


def _hits(scores: Any, target: Any, k: int) -> Statistics:
    """(hit, 1) per sample; with at most k classes every sample without NaN is a hit."""
    rank, n_classes = rank_of_target(scores, target), scores.shape[1]
    return Statistics(np.stack([rank < min(k, n_classes), np.ones(len(rank))], axis=1))


def _hits_by_class(scores: Any, target: Any) -> Statistics:
    """(hit, 1) per sample, grouped by the true class."""
    rank = rank_of_target(scores, target)
    # Integer targets go through the same check as above, so this only brings them to the host.
    group = target.cpu().numpy() if hasattr(target, "cpu") else np.asarray(target)
    return Statistics(np.stack([rank < 1, np.ones(len(rank))], axis=1), group.astype(np.int64), scores.shape[1])


def _per_class(sums: np.ndarray) -> np.ndarray:
    """hits / samples of each class (..., C); NaN for a class that is absent."""
    hits, samples = sums[..., 0], sums[..., 1]
    return np.divide(hits, samples, out=np.full(hits.shape, np.nan), where=samples > 0)


def _mean_over_classes(sums: np.ndarray) -> np.ndarray:
    """The mean over the classes that the split has."""
    shares = _per_class(sums)
    present = np.isfinite(shares)
    count = present.sum(axis=-1)
    total = np.where(present, shares, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


TOP1 = register_metric(Metric("top1", "top-1", True, "%", partial(_hits, k=1), _mean_over_classes))
TOP5 = register_metric(Metric("top5", "top-5", True, "%", partial(_hits, k=5), _mean_over_classes))
MEAN_CLASS_ACCURACY = register_metric(Metric("mean_class_accuracy", "mean class", True, "%", _hits_by_class, _mean_over_classes))
