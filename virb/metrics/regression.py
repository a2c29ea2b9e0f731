"""Errors of regression, from predictions (N, N x 1 or N x D) and targets (N or N x D), in the unit of the targets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from virb.metrics.base import Metric, Statistics, register_metric


def _errors(prediction: Any, target: Any, of: Callable[[np.ndarray], np.ndarray]) -> Statistics:
    """(mean over the D numbers of a sample, 1) per sample."""
    found, truth = (_two_axes(values) for values in (prediction, target))
    if found.shape != truth.shape:
        raise ValueError(f"Expected arguments `prediction` and `target` to be alike, but got shapes {found.shape} and {truth.shape}")
    return Statistics(np.stack([of(found - truth).mean(axis=1), np.ones(len(found))], axis=1))


def _two_axes(values: Any) -> np.ndarray:
    array = (values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)).astype(np.float64)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        raise ValueError(f"Expected numbers of N samples (N or N x D), but got shape {array.shape}")
    return array if array.ndim == 2 else array[:, None]


def _mean(sums: np.ndarray) -> np.ndarray:
    total, count = sums[..., 0, 0], sums[..., 0, 1]
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _root_mean(sums: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean(sums))


MAE = register_metric(Metric("mae", "MAE", False, "", partial(_errors, of=np.abs), _mean))
RMSE = register_metric(Metric("root_mean_squared_error", "RMSE", False, "", partial(_errors, of=np.square), _root_mean))
