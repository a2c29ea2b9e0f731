"""Losses of dense heads by name: output and target on one grid give the mean over the valid pixels of the batch.

A batch without a valid pixel costs 0 and moves nothing. No loss waits for the device: what is invalid is multiplied away, never cut out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from virb.data.placement import IGNORED
from virb.errors import UserError, did_you_mean

DenseLoss = Callable[[Tensor, Tensor], Tensor]

_EPS = 1e-3  # of the depth's unit; keeps the logarithm of depths near zero finite
_MEAN_WEIGHT = 0.15
_TINY = 1e-12


def find_dense_loss(name: str, kind: str | None = None) -> DenseLoss:
    """The loss ``(values (B, C, h, w), target (B, ...) as virb.data.placement.DenseTarget says) -> scalar``.

    ``cross_entropy`` takes weights of the classes, ``cross_entropy(0.1,1,1)``, or a class to be ignored besides 255,
    ``cross_entropy(ignore=0)``. With the ``kind`` of the target, a loss for other targets is refused.
    """
    word, arguments = _parse(name)
    if word not in _LOSSES:
        raise UserError(f'no loss "{word}" for a dense probe{did_you_mean(word, _LOSSES) or "; there is " + ", ".join(_LOSSES)}')
    loss, kinds = _LOSSES[word]
    if kind is not None and kind not in kinds:
        fitting = ", ".join(other for other, (_, theirs) in _LOSSES.items() if kind in theirs)
        raise UserError(f"the loss {word} needs a target of kind {' or '.join(kinds)}, but this task's is {kind}; there is {fitting}")
    if arguments is None:
        return loss
    if word != "cross_entropy":
        raise UserError(f"the loss {word} takes no arguments, but got ({arguments})")
    return _of_classes(name, arguments)


def dense_loss_names() -> Sequence[str]:
    return tuple(_LOSSES)


def cross_entropy(values: Tensor, target: Tensor, weights: Sequence[float] | None = None, ignore: int | None = None) -> Tensor:
    """Logits (B, C, h, w), class ids (B, h, w), 255 ignored. With ``weights`` the mean is a weighted one, as torch's."""
    classes = target.long()
    if ignore is not None:
        classes = classes.masked_fill(classes == ignore, IGNORED)
    if weights is None:
        count = (classes != IGNORED).sum()
        return F.cross_entropy(values.float(), classes, ignore_index=IGNORED, reduction="sum") / count.clamp_min(1)
    if len(weights) != values.shape[1]:
        raise UserError(f"the loss cross_entropy has {len(weights)} weights, but there are {values.shape[1]} classes")
    weight = _weight(tuple(weights), values.device)
    valid = classes != IGNORED
    total = (weight[classes.masked_fill(~valid, 0)] * valid).sum()
    return F.cross_entropy(values.float(), classes, weight, ignore_index=IGNORED, reduction="sum") / total.clamp_min(_TINY)


@lru_cache(maxsize=16)
def _weight(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Sent to a device once, and not at every step."""
    with torch.inference_mode(False):  # scoring asks, too, and what it makes could not train
        return torch.tensor(weights, dtype=torch.float32, device=device)


def bce(values: Tensor, target: Tensor) -> Tensor:
    """One logit per pixel (B, 1, h, w); 0 or 1, 255 ignored (B, h, w)."""
    valid = target != IGNORED
    wanted = target.masked_fill(~valid, 0).float()
    return _mean(F.binary_cross_entropy_with_logits(values[:, 0].float(), wanted, reduction="none"), valid)


def l1(values: Tensor, target: Tensor) -> Tensor:
    """Mean of |o - y| over finite values. Depth (B, h, w) against (B, 1, h, w), or maps (B, C, h, w)."""
    wanted, valid = _numbers(values, target)
    return _mean((values.float() - wanted).abs(), valid)


def weighted_l1(values: Tensor, target: Tensor) -> Tensor:
    """ViRB 2021's loss of edges: mean of |o - y| * y."""
    wanted, valid = _numbers(values, target)
    return _mean((values.float() - wanted).abs() * wanted, valid)


def nonzero_l1(values: Tensor, target: Tensor) -> Tensor:
    """ViRB 2021's loss of KITTI: mean of |o - y| where y is not zero."""
    wanted, valid = _numbers(values, target)
    return _mean((values.float() - wanted).abs(), valid & (wanted != 0))


def sig_loss(values: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant loss of depth: sqrt(var(g) + 0.15 mean(g)^2), g = log(o + 0.001) - log(y + 0.001) of all valid pixels of the batch.

    With the constants and the weight 1 of DINOv2's depth (AdaBins has the same times 10). Depth (B, h, w) against (B, 1, h, w); valid is
    what is finite and above 0.
    """
    wanted, valid = _numbers(values, target)
    valid = valid & (wanted > 0)
    ratio = torch.log(values.float().clamp_min(0) + _EPS) - torch.log(wanted.clamp_min(0) + _EPS)
    count = valid.sum()
    mean = _mean(ratio, valid)
    variance = ((ratio - mean).square() * valid).sum() / (count - 1).clamp_min(1)
    # The slope of a root is infinite at zero, where a perfect output would be; and without a valid pixel there is no slope at all.
    return (variance + _MEAN_WEIGHT * mean.square() + _TINY).sqrt() * (count > 0)


def flow_l1(values: Tensor, target: Tensor) -> Tensor:
    """Mean of |du| + |dv| over valid pixels. (B, 2, h, w) against (B, 3, h, w): u, v, visible; occluded pixels count."""
    wanted, valid = _vectors(target)
    return _mean((values.float() - wanted).abs().sum(1), valid)


def flow_epe(values: Tensor, target: Tensor) -> Tensor:
    """Mean length of the error vector over valid pixels, the end-point error; shapes as for ``flow_l1``."""
    wanted, valid = _vectors(target)
    squares = (values.float() - wanted).square().sum(1)
    return _mean((squares + _TINY).sqrt(), valid)


def _numbers(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The target in the shape of the values, zero where it is not finite, and where it is."""
    wanted = target.float()
    if wanted.ndim == values.ndim - 1:
        wanted = wanted[:, None]
    if wanted.shape != values.shape:  # never spread by broadcasting
        raise ValueError(f"Expected a target of shape {tuple(values.shape)}, but got {tuple(target.shape)}")
    valid = wanted.isfinite()
    return wanted.masked_fill(~valid, 0), valid


def _vectors(target: Tensor) -> tuple[Tensor, Tensor]:
    vectors = target[:, :2].float()
    valid = vectors.isfinite().all(1)
    return vectors.masked_fill(~valid[:, None], 0), valid


def _mean(losses: Tensor, valid: Tensor) -> Tensor:
    return (losses * valid).sum() / valid.sum().clamp_min(1)


_LOSSES: dict[str, tuple[DenseLoss, tuple[str, ...]]] = {
    "cross_entropy": (cross_entropy, ("labels",)),
    "bce": (bce, ("mask",)),
    "l1": (l1, ("depth", "map")),
    "sig_loss": (sig_loss, ("depth",)),
    "weighted_l1": (weighted_l1, ("map", "depth")),
    "nonzero_l1": (nonzero_l1, ("map", "depth")),
    "flow_l1": (flow_l1, ("flow",)),
    "flow_epe": (flow_epe, ("flow",)),
}


def _parse(name: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", name)
    return (match[1], match[2]) if match else (name, None)


def _of_classes(name: str, arguments: str) -> DenseLoss:
    ignore = re.fullmatch(r"\s*ignore\s*=\s*(\d+)\s*", arguments)
    if ignore:
        return partial(cross_entropy, ignore=int(ignore[1]))
    try:
        weights = tuple(float(part) for part in arguments.split(","))
    except ValueError:
        weights = ()
    if not weights or not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise UserError(
            f"the loss {name} cannot be read; write the weight of each class, cross_entropy(0.1,1,1), or cross_entropy(ignore=0)"
        )
    return partial(cross_entropy, weights=weights)
