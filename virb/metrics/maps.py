"""Errors of maps of numbers (C, H, W): edges, inpainting and whatever else has no metric of its own. Targets are NaN where unknown.

All are pooled over the valid values of the split, every channel a value of its own. A split without a valid value has no number; a
prediction that is NaN makes errors NaN and is not within any distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from virb.metrics.base import Metric, Statistics, register_metric
from virb.metrics.pixels import collect, first_over_second, pairs, same_shape, total_and_count

if TYPE_CHECKING:
    import torch

    PerValue = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # prediction and target (P,) -> (P,)

NEAR = 0.05


def _pooled(prediction: Sequence[Any], target: Sequence[Any], of: PerValue) -> Statistics:
    """(sum over values, values) per sample."""
    rows = []
    for found, truth in pairs(prediction, target):
        same_shape(found, truth)
        valid = ~truth.isnan()
        rows.append(total_and_count(of(found[valid].double(), truth[valid].double())))
    return collect(rows, 2)


def _distance(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (found - truth).abs()


def _square(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (found - truth).square()


def _weighted(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Distances times the target, so that a blank map is no easy win; divided by the number of values, not by the weights."""
    return (found - truth).abs() * truth


def _is_near(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (found - truth).abs() <= NEAR


def _metric(name: str, title: str, of: PerValue, *, higher: bool = False, unit: str = "") -> Metric:
    return register_metric(Metric(name, title, higher, unit, partial(_pooled, of=of), first_over_second))


L1 = _metric("l1", "L1", _distance)
L2 = _metric("l2", "L2", _square)
WEIGHTED_L1 = _metric("weighted_l1", "weighted L1", _weighted)
WITHIN = _metric("within_0.05", "within 0.05", _is_near, higher=True, unit="%")
