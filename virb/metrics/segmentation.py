"""Metrics of segmentation, from label maps: class numbers 0 to C-1, in targets also 255 for pixels that are ignored (void).

All of them are pooled: counts of pixels are added up over the split, and the number is that of the sums. It depends neither on batches nor
on the order of samples, and a large image weighs more than a small one. The policies:

- ignored pixels (255 in the target) count nowhere, whatever was predicted there;
- an absent class (in the target and in the prediction of no sample of the split) is left out of every mean over classes. A class that was
  predicted and is in no target has IoU 0 and counts in ``miou`` and ``foreground_iou``; in ``mean_pixel_class_accuracy``, which is about
  the pixels of each true class, it is left out;
- an empty mask (a sample without foreground) adds what was wrongly predicted on it to the union, and nothing when nothing was predicted;
- a split without a pixel that counts, or in ``foreground_iou`` without foreground in targets and predictions alike, has no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from virb.metrics.base import Metric, Statistics, register_metric
from virb.metrics.pixels import collect, first_over_second, mean_of_known, pairs, quotient, tensor

if TYPE_CHECKING:
    import torch

IGNORED = 255
BOUNDARY_TOLERANCE = 0.0075  # of the image's diagonal


@dataclass(eq=False)
class LabelMaps(Sequence[Any]):
    """The predicted label map of each sample: (H, W) integers in [0, n_classes), arrays or tensors (those of a GPU are counted there).

    Neither maps nor targets may change once they were scored: several metrics of one batch are numbers of the same counts, which are kept.
    """

    maps: Sequence[Any]
    n_classes: int
    _counted: tuple[Any, Statistics] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.n_classes <= IGNORED:
            raise ValueError(f"Expected argument `n_classes` in [1, {IGNORED}], for {IGNORED} is void, but got {self.n_classes}")

    def __len__(self) -> int:
        return len(self.maps)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> LabelMaps: ...

    def __getitem__(self, index: int | slice) -> Any:
        return LabelMaps(self.maps[index], self.n_classes) if isinstance(index, slice) else self.maps[index]

    def counts(self, target: Sequence[Any]) -> Statistics:
        """Per sample (N, 3 C): correct, predicted and true pixels of each class among those that are not ignored."""
        if self._counted is None or self._counted[0] is not target:
            rows = [_count(found, truth, self.n_classes) for found, truth in label_pairs(self, target)]
            self._counted = target, collect(rows, 3 * self.n_classes)
        return self._counted[1]


def pixel_counts(prediction: LabelMaps, target: Sequence[Any]) -> torch.Tensor:
    """The counts of ``LabelMaps.counts``, (N, 3 C + 1) int64, without waiting for a GPU: what is no class there nobody has seen yet, and
    the last column says how often there is such a thing (see ``counts_on_host``)."""
    import torch

    n_classes, rows = prediction.n_classes, []
    if not all(map(_is_on_host, prediction.maps)):
        rows = [_count_unseen(found, truth, n_classes) for found, truth in pairs(prediction, target)]
    else:
        for found, truth in label_pairs(prediction, target):
            rows.append(torch.cat([_count(found, truth, n_classes), torch.zeros(1, dtype=torch.int64)]))
    return torch.stack(rows)


def counts_on_host(counts: np.ndarray) -> np.ndarray:
    """The counts alone, (N, 3 C) float64; ValueError where there was something that is no class."""
    wrong = np.flatnonzero(counts[:, -1])
    if len(wrong):
        n_classes = counts.shape[1] // 3
        raise ValueError(f"Expected the labels in [0, {n_classes}), but number {wrong[0]} has {counts[wrong[0], -1]:,} others")
    return counts[:, :-1].astype(np.float64)


def label_pairs(prediction: LabelMaps, target: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(prediction, target) of each sample, (H, W) integers, checked to be class numbers (and 255 in the target)."""
    if not isinstance(prediction, LabelMaps):
        raise ValueError(f"Expected argument `prediction` to be LabelMaps, but got a {type(prediction).__name__}")
    for found, truth in pairs(prediction, target):
        labels = _labels(found, "prediction", prediction.n_classes), _labels(truth, "target", prediction.n_classes)
        yield labels


def _labels(values: torch.Tensor, what: str, n_classes: int) -> torch.Tensor:
    import torch

    if values.ndim != 2 or values.is_floating_point() or values.is_complex():
        raise ValueError(f"Expected the maps of `{what}` to be H x W integers, but got {values.dtype} {tuple(values.shape)}")
    labels = values.to(torch.uint8) if values.dtype == torch.bool else values
    known = labels[labels != IGNORED] if what == "target" else labels
    if known.numel():
        low, high = (int(number) for number in torch.stack(torch.aminmax(known)).tolist())
        if low < 0 or high >= n_classes:
            raise ValueError(f"Expected the labels of `{what}` in [0, {n_classes}), but got {low} to {high}")
    return labels


def _count(found: torch.Tensor, truth: torch.Tensor, n_classes: int) -> torch.Tensor:
    import torch

    valid = truth != IGNORED
    found, truth = found[valid], truth[valid]
    parts = (truth[found == truth], found, truth)
    return torch.cat([torch.bincount(part, minlength=n_classes) for part in parts])


def _is_on_host(labels: Any) -> bool:
    return tensor(labels).device.type == "cpu"


def _count_unseen(found: torch.Tensor, truth: torch.Tensor, n_classes: int) -> torch.Tensor:
    """The same with nothing read on the host, as (3 C + 1,): the last is of labels that are no class."""
    import torch

    found, truth, spare = found.long(), truth.long(), 3 * n_classes
    valid = truth != IGNORED
    is_class = [(labels >= 0) & (labels < n_classes) for labels in (found, truth)]
    wrong = ~is_class[0] | (valid & ~is_class[1])
    masks = (valid & (found == truth) & is_class[1], valid & is_class[0], valid & is_class[1])
    labels = (truth, found + n_classes, truth + 2 * n_classes)
    places = torch.stack([torch.where(mask, label, spare) for mask, label in zip(masks, labels, strict=True)])
    # Sums of ones are exact in doubles, in whatever order; bincount would look at the largest place first.
    counts = torch.histc(places.double(), bins=spare + 1, min=0, max=spare + 1).long()
    return torch.cat([counts[:-1], wrong.sum()[None]])


def _by_class(sums: np.ndarray, n_kinds: int) -> np.ndarray:
    """Sums (..., 1, n_kinds * C) as (..., n_kinds, C)."""
    return sums[..., 0, :].reshape(*sums.shape[:-2], n_kinds, sums.shape[-1] // n_kinds)


def _three_counts(prediction: LabelMaps, target: Sequence[Any]) -> Statistics:
    if not isinstance(prediction, LabelMaps):
        raise ValueError(f"Expected argument `prediction` to be LabelMaps, but got a {type(prediction).__name__}")
    return prediction.counts(target)


def class_iou(sums: np.ndarray) -> np.ndarray:
    """Intersection over union of each class (..., C); NaN for a class that is absent."""
    correct, predicted, true = np.moveaxis(_by_class(sums, 3), -2, 0)
    return quotient(correct, predicted + true - correct)


def _mean_iou(sums: np.ndarray) -> np.ndarray:
    """The mean over the classes that occur in targets or predictions of the split."""
    return mean_of_known(class_iou(sums))


def _foreground_iou(sums: np.ndarray) -> np.ndarray:
    """The same without class 0, the background: with two classes the IoU of the object."""
    return mean_of_known(class_iou(sums)[..., 1:])


def _correct_pixels(counts: np.ndarray) -> Statistics:
    """(correct pixels, pixels) per sample."""
    counts = _by_class(counts[:, None], 3)
    return Statistics(np.stack([counts[:, 0].sum(axis=-1), counts[:, 2].sum(axis=-1)], axis=1))


def _correct_by_class(counts: np.ndarray) -> Statistics:
    """Per sample (N, 2 C): correct and true pixels of each class."""
    counts = _by_class(counts[:, None], 3)
    return Statistics(np.concatenate([counts[:, 0], counts[:, 2]], axis=1))


def class_accuracy(sums: np.ndarray) -> np.ndarray:
    """The share of each class's pixels that were found (..., C); NaN for a class without a pixel in the targets."""
    correct, true = np.moveaxis(_by_class(sums, 2), -2, 0)
    return quotient(correct, true)


def _mean_class_accuracy(sums: np.ndarray) -> np.ndarray:
    return mean_of_known(class_accuracy(sums))


def boundary(labels: torch.Tensor) -> torch.Tensor:
    """(H, W) bool: pixels with one of their four neighbours in another class. The image's border is none, nor is one to ignored pixels."""
    import torch

    edge = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for axis in (0, 1):
        length = labels.shape[axis] - 1
        if length < 1:
            continue
        first, second = labels.narrow(axis, 0, length), labels.narrow(axis, 1, length)
        differ = (first != second) & (first != IGNORED) & (second != IGNORED)
        edge.narrow(axis, 0, length).logical_or_(differ)
        edge.narrow(axis, 1, length).logical_or_(differ)
    return edge


def _boundary_counts(prediction: LabelMaps, target: Sequence[Any]) -> Statistics:
    """Per sample (N, 4 C): of each class the predicted boundary pixels near a true one, all predicted ones, the true ones near a predicted
    one, all true ones."""
    rows = [_match_boundaries(found, truth, prediction.n_classes) for found, truth in label_pairs(prediction, target)]
    return collect(rows, 4 * prediction.n_classes)


def _match_boundaries(found: torch.Tensor, truth: torch.Tensor, n_classes: int) -> torch.Tensor:
    import torch

    reach = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*truth.shape))
    found, truth = found.long(), truth.long()
    found = torch.where(truth == IGNORED, IGNORED, found)
    # -1 off the boundary: no class looks for it.
    edges = [torch.where(boundary(labels), labels, -1) for labels in (found, truth)]
    counts = []
    for own, other in (edges, edges[::-1]):
        at = (own >= 0).nonzero()
        labels = own[at[:, 0], at[:, 1]]
        counts += [
            torch.bincount(labels[_is_near(at, labels, other, reach)], minlength=n_classes),
            torch.bincount(labels, minlength=n_classes),
        ]
    return torch.cat(counts)


def _is_near(at: torch.Tensor, labels: torch.Tensor, other: torch.Tensor, reach: int) -> torch.Tensor:
    """(P,) bool: whether ``other`` (H, W) has the point's label within a disk of radius ``reach`` pixels around the point.

    Looks ring by ring at the points that found nothing yet, all classes at once; a distance transform of each class takes far longer.
    """
    import torch

    near = torch.zeros(len(at), dtype=torch.bool, device=at.device)
    padded = torch.nn.functional.pad(other, (reach, reach, reach, reach), value=-1)
    width, flat = padded.shape[1], padded.flatten()
    place = (at[:, 0] + reach) * width + at[:, 1] + reach
    rings: dict[int, list[int]] = {}
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            if y * y + x * x <= reach * reach:
                rings.setdefault(y * y + x * x, []).append(y * width + x)
    left = torch.arange(len(at), device=at.device)
    for distance in sorted(rings):
        if len(left) == 0:
            break
        steps = torch.tensor(rings[distance], device=at.device)
        hit = (flat[place[left, None] + steps] == labels[left, None]).any(dim=1)
        near[left[hit]] = True
        left = left[~hit]
    return near


def class_boundary_f(sums: np.ndarray) -> np.ndarray:
    """F measure of each class's boundary (..., C): 0 when only one side has any, NaN when neither has."""
    found_near, found, true_near, true = np.moveaxis(_by_class(sums, 4), -2, 0)
    precision, recall = np.nan_to_num(quotient(found_near, found)), np.nan_to_num(quotient(true_near, true))
    f_measure = np.nan_to_num(quotient(2 * precision * recall, precision + recall))
    return np.where(found + true > 0, f_measure, np.nan)


def _mean_boundary_f(sums: np.ndarray) -> np.ndarray:
    """The mean over classes with a boundary in targets or predictions. Precision and recall are shares of the boundary pixels of the whole
    split that lie within 0.75 % of the image's diagonal (rounded up) of a boundary pixel of the same class on the other side."""
    return mean_of_known(class_boundary_f(sums))


def _counted(
    name: str,
    title: str,
    of_counts: Callable[[np.ndarray], Statistics],
    values: Callable[[np.ndarray], np.ndarray],
    per_class: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Metric:
    def statistics(prediction: LabelMaps, target: Sequence[Any]) -> Statistics:
        return of_counts(_three_counts(prediction, target).values)

    return register_metric(Metric(name, title, True, "%", statistics, values, per_class=per_class, of_counts=of_counts))


MIOU = _counted("miou", "mIoU", Statistics, _mean_iou, class_iou)
FOREGROUND_IOU = _counted("foreground_iou", "foreground IoU", Statistics, _foreground_iou, class_iou)
PIXEL_ACCURACY = _counted("pixel_accuracy", "pixel acc.", _correct_pixels, first_over_second)
MEAN_PIXEL_CLASS_ACCURACY = _counted(
    "mean_pixel_class_accuracy", "mean class pixel acc.", _correct_by_class, _mean_class_accuracy, class_accuracy
)
BOUNDARY_F = register_metric(Metric("boundary_f", "boundary F", True, "%", _boundary_counts, _mean_boundary_f, per_class=class_boundary_f))
