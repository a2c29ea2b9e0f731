"""Losses of stacked heads by name: per-sample values, and the gradient of the batch's mean, on outputs (B, K, C) of K heads at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virb.errors import UserError, ViRBError, did_you_mean


@dataclass(frozen=True)
class Loss:
    """``values(outputs (B, K, C), targets (B,))`` gives (B, K). ``values_and_grad`` also gives the gradient (B, K, C) of the mean over the
    batch. ``check(targets, n_outputs, where)`` gives the targets as a CPU tensor or says what is wrong with them."""

    name: str
    values: Callable[[Tensor, Tensor], Tensor]
    values_and_grad: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    check: Callable[[Any, int, str], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return -torch.log_softmax(outputs, -1).gather(-1, _index(targets, outputs))[..., 0]


def cross_entropy_and_grad(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax minus one-hot, over the batch size; written out because it is cheaper than recording it for autograd."""
    log_probability = torch.log_softmax(outputs, -1)
    index = _index(targets, outputs)
    values = -log_probability.gather(-1, index)[..., 0]
    grad = log_probability.exp_()
    grad.scatter_add_(-1, index, grad.new_full((1, 1, 1), -1.0).expand(index.shape))
    return values, grad.mul_(1.0 / len(outputs))


def check_classes(targets: Any, n_outputs: int, where: str) -> Tensor:
    """Class numbers (N,) as int64."""
    array = np.asarray(targets)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        found = f"{array.dtype} of shape {array.shape}"
        raise ViRBError(f"cross_entropy needs one class number per sample, but the {where} targets are {found}")
    if len(array) and (array.min() < 0 or array.max() >= n_outputs):
        found = f"{array.min()} to {array.max()}"
        raise ViRBError(f"the {where} targets run from {found}, but there are {n_outputs} classes (0 to {n_outputs - 1})")
    return torch.from_numpy(array.astype(np.int64))


def _index(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets.view(-1, 1, 1).expand(-1, outputs.shape[1], 1)


LOSSES = {"cross_entropy": Loss("cross_entropy", cross_entropy, cross_entropy_and_grad, check_classes)}


def find_loss(name: str) -> Loss:
    if name not in LOSSES:
        raise UserError(f'no loss "{name}" for this probe{did_you_mean(name, LOSSES) or "; there is " + ", ".join(LOSSES)}')
    return LOSSES[name]
