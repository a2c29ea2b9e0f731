"""Metrics of optical flow, from predictions (2, H, W), u to the right and v down in pixels of the native image, and targets (3, H, W): u, v
(NaN where unknown) and 1 where the point is seen in the second image, 0 where it is occluded.

All are pooled over the valid pixels of the split, as KITTI's own evaluation does: an image with many valid pixels weighs more. An occluded
pixel is valid; the ``*_noc`` metrics leave it out. A split without a pixel that counts has no number. A prediction that is NaN has an
end-point error of NaN and is an outlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from virb.metrics.base import Metric, Statistics, register_metric
from virb.metrics.pixels import collect, first_over_second, pairs, total_and_count

if TYPE_CHECKING:
    import torch

    PerPixel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # error and true length (P,) in pixels -> (P,)

OUTLIER_PIXELS, OUTLIER_SHARE = 3.0, 0.05


def _pooled(prediction: Sequence[Any], target: Sequence[Any], of: PerPixel, seen_only: bool) -> Statistics:
    """(sum over pixels, pixels) per sample."""
    rows = []
    for found, truth in pairs(prediction, target):
        if found.ndim != 3 or found.shape[0] != 2 or truth.ndim != 3 or truth.shape[0] != 3:
            shapes = f"{tuple(found.shape)} and {tuple(truth.shape)}"
            raise ValueError(f"Expected `prediction` to be 2 x H x W and `target` 3 x H x W (u, v, seen), but got {shapes}")
        counts = truth[:2].isfinite().all(dim=0)
        if seen_only:
            counts = counts & (truth[2] == 1)
        vectors = truth[:2][:, counts].double()
        error = (found[:, counts].double() - vectors).square().sum(dim=0).sqrt()
        rows.append(total_and_count(of(error, vectors.square().sum(dim=0).sqrt())))
    return collect(rows, 2)


def _length(error: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    return error


def _is_outlier(error: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """More than 3 pixels and more than 5 % of the true length away."""
    return ~((error <= OUTLIER_PIXELS) | (error <= OUTLIER_SHARE * length))


def _metric(name: str, title: str, unit: str, of: PerPixel, seen_only: bool) -> Metric:
    return register_metric(Metric(name, title, False, unit, partial(_pooled, of=of, seen_only=seen_only), first_over_second))


EPE = _metric("epe", "EPE", "px", _length, False)
EPE_NOC = _metric("epe_noc", "EPE noc", "px", _length, True)
FL_ALL = _metric("fl_all", "Fl-all", "%", _is_outlier, False)
FL_NOC = _metric("fl_noc", "Fl-noc", "%", _is_outlier, True)
