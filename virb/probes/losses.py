"""Losses of stacked heads by name: per-sample values, and the gradient of the batch's mean, on outputs (B, K, C) of K heads at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from virb.errors import UserError, ViRBError, did_you_mean


@dataclass(frozen=True)
class Loss:
    """``values(outputs (B, K, C), targets (B, ...))`` gives (B, K). ``values_and_grad`` also gives the gradient (B, K, C) of the mean over
    the batch. ``check(targets, n_outputs, where)`` gives the targets as a CPU tensor or says what is wrong with them.

    ``targets`` says of what kind they are: one class number per sample, a label (1, 0, or -1 for open) of every class, or numbers.
    """

    name: str
    values: Callable[[Tensor, Tensor], Tensor]
    values_and_grad: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    check: Callable[[Any, int, str], Tensor]
    targets: Literal["class", "labels", "number"] = "class"


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return -torch.log_softmax(outputs, -1).gather(-1, _index(targets, outputs))[..., 0]


def cross_entropy_and_grad(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(Softmax minus one-hot) over the batch size, by the kernel that autograd would use but without its record."""
    log_probability = torch.log_softmax(outputs, -1)
    index = _index(targets, outputs)
    values = -log_probability.gather(-1, index)[..., 0]
    of_mean = torch.zeros_like(log_probability).scatter_(-1, index, -1.0 / len(outputs))
    return values, torch.ops.aten._log_softmax_backward_data(of_mean, log_probability, -1, outputs.dtype)


def check_classes(targets: Any, n_outputs: int, where: str) -> Tensor:
    """Class numbers (N,) as int64."""
    array = np.asarray(targets)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        found = f"{array.dtype} of shape {array.shape}"
        raise ViRBError(f"one class number per sample is needed, but the {where} targets are {found}")
    if len(array) and (array.min() < 0 or array.max() >= n_outputs):
        found = f"{array.min()} to {array.max()}"
        raise ViRBError(f"the {where} targets run from {found}, but there are {n_outputs} classes (0 to {n_outputs - 1})")
    return torch.from_numpy(array.astype(np.int64))


def _index(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets.view(-1, 1, 1).expand(-1, outputs.shape[1], 1)


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over classes of the loss of each label; an open label adds nothing to the sum over classes."""
    return _label_losses(outputs, targets[:, None]).mean(-1)


def binary_cross_entropy_and_grad(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    labels = targets[:, None]
    grad = torch.sigmoid(outputs).sub_(labels).masked_fill_(labels < 0, 0.0)
    return _label_losses(outputs, labels).mean(-1), grad.mul_(1.0 / (len(outputs) * outputs.shape[-1]))


def _label_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    losses = torch.nn.functional.softplus(outputs).sub_(outputs * labels)
    return losses.masked_fill_(labels < 0, 0.0)


def check_labels(targets: Any, n_outputs: int, where: str) -> Tensor:
    """1, 0 or -1 (open) per sample and class, as float32 (N, C)."""
    array = np.asarray(targets)
    if array.ndim != 2 or array.shape[1] != n_outputs or array.dtype.hasobject:
        found = f"{array.dtype} of shape {array.shape}"
        raise ViRBError(f"bce needs a label of each of {n_outputs} classes per sample, but the {where} targets are {found}")
    if not np.isin(array, (-1, 0, 1)).all():
        raise ViRBError(f"the {where} labels are not all 1, 0 or -1 (open)")
    return torch.from_numpy(array.astype(np.float32))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets[:, None]).square_().mean(-1)


def squared_error_and_grad(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    error = outputs - targets[:, None]
    return error.square().mean(-1), error.mul_(2.0 / (len(outputs) * outputs.shape[-1]))


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets[:, None]).abs_().mean(-1)


def absolute_error_and_grad(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    error = outputs - targets[:, None]
    return error.abs().mean(-1), error.sign_().mul_(1.0 / (len(outputs) * outputs.shape[-1]))


def check_numbers(targets: Any, n_outputs: int, where: str) -> Tensor:
    """Finite numbers, N or N x D, as float32 (N, D)."""
    array = np.asarray(targets)
    numeric = not array.dtype.hasobject and (np.issubdtype(array.dtype, np.number) or array.dtype == bool)
    if not numeric or array.ndim not in (1, 2) or (array.shape[1] if array.ndim == 2 else 1) != n_outputs:
        found = f"{array.dtype} of shape {array.shape}"
        raise ViRBError(f"regression needs {n_outputs} number{'s' * (n_outputs != 1)} per sample, but the {where} targets are {found}")
    bad = int((~np.isfinite(array)).reshape(len(array), n_outputs).any(1).sum())
    if bad:
        raise ViRBError(f"{bad:,} of {len(array):,} {where} targets are NaN or infinite")
    return torch.from_numpy(array.astype(np.float32).reshape(len(array), n_outputs))


def count_outputs(loss: Loss, targets: Any, n_classes: int | None) -> int:
    """How many numbers a head gives per sample, from the kind of target: one per class, or one per number to be predicted."""
    if loss.targets == "class":
        if n_classes is None or n_classes < 2:
            raise ViRBError(f"at least two classes are needed, but the task has {n_classes or 'none'}")
        return n_classes
    shape = np.shape(targets)
    width = int(shape[1]) if len(shape) == 2 else 1
    return n_classes if loss.targets == "labels" and n_classes is not None else width


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", cross_entropy, cross_entropy_and_grad, check_classes),
        Loss("bce", binary_cross_entropy, binary_cross_entropy_and_grad, check_labels, "labels"),
        Loss("mse", squared_error, squared_error_and_grad, check_numbers, "number"),
        Loss("l1", absolute_error, absolute_error_and_grad, check_numbers, "number"),
    )
}


def find_loss(name: str) -> Loss:
    if name not in LOSSES:
        raise UserError(f'no loss "{name}" for this probe{did_you_mean(name, LOSSES) or "; there is " + ", ".join(LOSSES)}')
    return LOSSES[name]
