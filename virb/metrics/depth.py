"""Metrics of depth, from maps of metres (H, W); targets are NaN where nothing was measured.

Every number is taken per image and then averaged over images, as BTS and DINOv2 do: each image weighs the same, however many of
its pixels are valid. (The root mean squared error of all pixels of a split together would be larger.) The policies:

- a target pixel counts when it is finite and above 0; an image without such a pixel is left out, and a split of those has no number;
- a prediction below ``NEAREST`` stands for that, so that logarithms and quotients exist; NaN, which a diverged head gives, makes errors NaN
  and is no hit;
- the ``*_aligned`` metrics first bring each image's prediction to its target by the scale and shift that are best in the least-squares
  sense over its valid pixels, in depth (not in inverse depth), and clamp afterwards. They are for predictions without a scale of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from virb.metrics.base import Metric, Statistics, register_metric
from virb.metrics.pixels import collect, first_over_second, one_number, pairs, same_shape

if TYPE_CHECKING:
    import torch

    PerImage = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # predicted and true depths (P,) float64 -> one number

NEAREST = 1e-3


def align(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """scale * found + shift, nearest to ``truth`` in the least-squares sense; a constant prediction becomes the mean of the target."""
    import torch

    centred = found - found.mean()
    variance = centred.square().sum()
    scale = torch.where(variance > 0, (centred * (truth - truth.mean())).sum() / variance.clamp(min=torch.finfo(variance.dtype).tiny), 0.0)
    return scale * centred + truth.mean()  # NaN stays NaN, for it is in every centred value


def _per_image(prediction: Sequence[Any], target: Sequence[Any], of: PerImage, aligned: bool = False) -> Statistics:
    """(number of the image, 1) per sample; (0, 0) for an image without a valid pixel."""
    rows = []
    for found, truth in pairs(prediction, target):
        same_shape(found, truth)
        valid = truth.isfinite() & (truth > 0)
        depths, measured = found[valid].double(), truth[valid].double()
        if depths.numel() == 0:
            rows.append(depths.new_zeros(2))
            continue
        if aligned:
            depths = align(depths, measured)
        rows.append(one_number(of(depths.clamp(min=NEAREST), measured)))
    return collect(rows, 2)


def _rmse(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (found - truth).square().mean().sqrt()


def _rmse_log(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of natural logarithms."""
    return (found.log() - truth.log()).square().mean().sqrt()


def _abs_rel(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return ((found - truth).abs() / truth).mean()


def _log10(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (found.log10() - truth.log10()).abs().mean()


def _delta(found: torch.Tensor, truth: torch.Tensor, power: int) -> torch.Tensor:
    """The share of pixels whose larger depth is less than 1.25 ** power times the smaller one."""
    ratio = (found / truth).maximum(truth / found)
    return (ratio < 1.25**power).double().mean()


def _metric(name: str, title: str, of: PerImage, *, higher: bool = False, unit: str = "", aligned: bool = False) -> Metric:
    return register_metric(Metric(name, title, higher, unit, partial(_per_image, of=of, aligned=aligned), first_over_second))


RMSE = _metric("rmse", "RMSE", _rmse, unit="m")
ABS_REL = _metric("abs_rel", "AbsRel", _abs_rel)
LOG10 = _metric("log10", "log10", _log10)
RMSE_LOG = _metric("rmse_log", "RMSE log", _rmse_log)
DELTA1, DELTA2, DELTA3 = (
    _metric(f"delta{power}", f"delta {power}", partial(_delta, power=power), higher=True, unit="%") for power in (1, 2, 3)
)
RMSE_ALIGNED = _metric("rmse_aligned", "RMSE aligned", _rmse, unit="m", aligned=True)
ABS_REL_ALIGNED = _metric("abs_rel_aligned", "AbsRel aligned", _abs_rel, aligned=True)
DELTA1_ALIGNED = _metric("delta1_aligned", "delta 1 aligned", partial(_delta, power=1), higher=True, unit="%", aligned=True)
