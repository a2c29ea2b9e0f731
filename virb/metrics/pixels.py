"""What metrics over maps share: maps of one sample as tensors of equal size, sums taken on the device that the prediction is on and brought
to the host once per batch, and numbers that are quotients of sums.

Predictions and targets are sequences with one map per sample, each at the sample's native size: numpy arrays or tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from virb.metrics.base import Statistics

if TYPE_CHECKING:
    import torch


def tensor(values: Any) -> torch.Tensor:
    """The map as a tensor, on the device that it is on; nothing is copied where that is possible."""
    import torch

    if isinstance(values, torch.Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # tensors of wide unsigned integers can do little
    # A map of a file is read-only or a view with negative strides now and then; tensors are neither.
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C"))


def pairs(prediction: Any, target: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(prediction, target) of each sample, on the device of the prediction; one may have single axes in front that the other lacks."""
    if len(prediction) != len(target):
        counts = f"{len(prediction)} and {len(target)}"
        raise ValueError(f"Expected arguments `prediction` and `target` to be maps of the same samples, but got {counts}")
    for number in range(len(target)):
        found = tensor(prediction[number])
        truth = tensor(target[number]).to(found.device)
        while found.ndim > truth.ndim and found.shape[0] == 1:
            found = found[0]
        while truth.ndim > found.ndim and truth.shape[0] == 1:
            truth = truth[0]
        if truth.shape[-2:] != found.shape[-2:]:
            raise ValueError(
                f"Expected `prediction` at the native size of its target, {tuple(truth.shape)}, "
                f"but got {tuple(found.shape)} (number {number} of the batch)"
            )
        yield found, truth


def same_shape(found: torch.Tensor, truth: torch.Tensor) -> None:
    if found.shape != truth.shape:
        raise ValueError(f"Expected `prediction` to have the shape of its target, {tuple(truth.shape)}, but got {tuple(found.shape)}")


def collect(rows: Sequence[torch.Tensor], width: int) -> Statistics:
    """One row of ``width`` sums per sample, N x width float64 on the host."""
    import torch

    if not rows:
        return Statistics(np.zeros((0, width)))
    return Statistics(torch.stack(list(rows)).double().cpu().numpy())


def one_number(number: torch.Tensor) -> torch.Tensor:
    """(number, 1) of one sample, as float64; its metric is the mean over samples."""
    import torch

    return torch.stack([number.double(), torch.ones((), dtype=torch.float64, device=number.device)])


def total_and_count(values: torch.Tensor) -> torch.Tensor:
    """(sum of the values, how many) of one sample, as float64."""
    import torch

    total = values.sum(dtype=torch.float64)
    return torch.stack([total, torch.full_like(total, values.numel())])


def quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where ``below`` is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return quotient(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))


def first_over_second(sums: np.ndarray) -> np.ndarray:
    """The number of metrics that keep (total, count) or (value, 1) of each sample."""
    return quotient(sums[..., 0, 0], sums[..., 0, 1])
