"""The metrics of ViRB 2021's pixelwise tasks as they were published, for ``ID@virb2021`` alone. The plain ids use the field's definitions.

Published numbers are means over test batches, weighted by their sizes. ``virb2021_iou`` and ``virb2021_neighbor`` are no sums over samples
but numbers of a batch, so **one call of ``statistics`` has to be one test batch** (16 samples when the paper was written); every sample of
it gets the batch's number. The other two are the same whatever the batches.

What is wrong with them, and why they have names of their own: an image without a class, on which nothing of it was predicted, has full IoU
of that class, so background everywhere may score 0.94 in a batch of 16 and 0 alone; a batch of background alone, or without a non-zero
value, has no number and leaves the whole split without one (NaN in 2021, none here); nothing is ignored or invalid but the zeros of
``virb2021_neighbor``. What lies outside the image, where an encoder's input is padded (255 or NaN here, unknown to 2021), is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from virb.metrics.base import Metric, Statistics, register_metric
from virb.metrics.pixels import collect, first_over_second, one_number, pairs, same_shape
from virb.metrics.segmentation import IGNORED, LabelMaps, label_pairs

if TYPE_CHECKING:
    import torch

TINY = 1e-8  # added above and below: nothing there and nothing found is 1
NEAR = 0.05


def _iou(found: torch.Tensor, truth: torch.Tensor, n_classes: int) -> torch.Tensor:
    """(n_classes,) float64 of one image; 1 for a class that neither has."""
    import torch

    inside = truth != IGNORED
    found, truth = found[inside], truth[inside]
    parts = (truth[found == truth], found, truth)
    both, predicted, true = (torch.bincount(part, minlength=n_classes).double() for part in parts)
    return (both + TINY) / (predicted + true - both + TINY)


def _iou_binary(prediction: LabelMaps, target: Sequence[Any]) -> Statistics:
    """(IoU of class 1, 1) per sample, from label maps of 0 and 1."""
    rows = []
    for found, truth in label_pairs(prediction, target):
        rows.append(one_number(_iou(found, truth, 2)[1]))
    return collect(rows, 2)


def _iou_of_batch(prediction: LabelMaps, target: Sequence[Any]) -> Statistics:
    """(number of the batch, 1) per sample: the mean over classes in the batch's targets (without class 0) of the mean over images."""
    import torch

    rows, there = [], []
    for found, truth in label_pairs(prediction, target):
        rows.append(_iou(found, truth, prediction.n_classes))
        there.append(torch.bincount(truth[truth != IGNORED], minlength=prediction.n_classes) > 0)
    if not rows:
        return Statistics(np.zeros((0, 2)))
    classes = torch.stack(there).any(dim=0)[1:]
    return _of_batch(float(torch.stack(rows)[:, 1:].mean(dim=0)[classes].mean()), len(rows))


def _of_batch(number: float, n_samples: int) -> Statistics:
    return Statistics(np.tile([number, 1.0], (n_samples, 1)))


def _l1(prediction: Sequence[Any], target: Sequence[Any]) -> Statistics:
    """(mean |o - y| over the whole map, 1) per sample."""
    rows = []
    for found, truth in pairs(prediction, target):
        same_shape(found, truth)
        rows.append(one_number((found - truth).abs()[~truth.isnan()].mean()))
    return collect(rows, 2)


def _near_of_batch(prediction: Sequence[Any], target: Sequence[Any]) -> Statistics:
    """(number of the batch, 1) per sample: the share of its non-zero target values that the prediction is within 0.05 of."""
    near, total, n_samples = 0, 0, 0
    for found, truth in pairs(prediction, target):
        same_shape(found, truth)
        known = (truth != 0) & ~truth.isnan()
        near += int(((found - truth).abs() <= NEAR)[known].sum())
        total += int(known.sum())
        n_samples += 1
    return _of_batch(near / total if total else float("nan"), n_samples)


IOU_BINARY = register_metric(Metric("virb2021_iou_binary", "IoU (2021)", True, "%", _iou_binary, first_over_second))
IOU = register_metric(Metric("virb2021_iou", "IoU (2021)", True, "%", _iou_of_batch, first_over_second))
L1 = register_metric(Metric("virb2021_l1", "L1 (2021)", False, "", _l1, first_over_second))
NEIGHBOR = register_metric(Metric("virb2021_neighbor", "within 0.05 (2021)", True, "%", _near_of_batch, first_over_second))
