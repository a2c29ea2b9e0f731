"""Scores of dense heads, batch by batch: predictions are brought to the target's size, counted and forgotten.

Predictions at native size are what costs here: C x H x W floats per image and head, interpolated from the head's own grid. Only one head's
predictions of one batch are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virb.config.dense import DenseConfig
from virb.data.placement import flow_to_native, labels_to_native, sent, squashed, to_native
from virb.data.windows import merge_windows
from virb.errors import ViRBError
from virb.metrics.base import Statistics, find_metric
from virb.metrics.segmentation import LabelMaps, counts_on_host, pixel_counts
from virb.probes.base import Predictions
from virb.probes.dense_data import DenseSplit
from virb.probes.dense_losses import DenseLoss
from virb.probes.dense_outputs import prediction, values

_WINDOWS_AT_ONCE = 16
_PENDING_BYTES = 1 << 26


@dataclass
class DenseSheet:
    """What is kept of one head's predictions on a split."""

    parts: dict[str, list[Statistics]] = field(default_factory=dict)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_cells: int = 0

    @property
    def loss(self) -> float | None:
        return self.loss_sum / self.loss_cells if self.loss_cells else None

    def statistics(self) -> dict[str, Statistics]:
        return {name: Statistics.concatenate(parts) for name, parts in self.parts.items()}

    def numbers(self) -> dict[str, float]:
        found = {name: find_metric(name).of(statistics) for name, statistics in self.statistics().items()}
        return {name: value for name, value in found.items() if value is not None}

    def predictions(self) -> Predictions:
        return Predictions(None, self.loss, self.statistics())


@dataclass
class _Pending:
    """What a device has summed up of one head and nobody has read yet: who reads a number waits until all work before it is done."""

    loss: Tensor  # float64, times cells
    counts: list[Tensor] = field(default_factory=list)  # of pixels, (B, 3 C + 1) of each batch


@torch.inference_mode()
def score_heads(
    heads: Mapping[str, nn.Module],
    configs: Mapping[str, DenseConfig],
    split: DenseSplit,
    metrics: Sequence[str],
    loss: DenseLoss,
    grids: Mapping[str, tuple[int, int]],
    batch_size: int,
    score_size: int | None = None,
    picture: Collection[int] = (),
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, DenseSheet]:
    """A sheet per head over all samples of the split. ``grids``: of the loss of each config; ``picture``: samples whose prediction is kept.

    ``score_size``: predictions and targets meet in the frame of the input, at this longer side, instead of at native size.
    """
    sheets = {name: DenseSheet() for name in heads}
    labels = split.target.kind in ("labels", "mask")
    counted = [metric for metric in metrics if labels and find_metric(metric).of_counts is not None]
    pending = {name: _Pending(torch.zeros((), dtype=torch.float64, device=split.device)) for name in heads}
    for head in heads.values():
        head.eval()
    split.set_epoch(0)
    done = 0
    for samples, maps, _ in split.read(split.batches(batch_size), of_windows=split.seen.windows is not None):
        targets = split.natives(samples)
        compared = _compared(split, samples, targets, score_size)
        for name, head in heads.items():
            sheet = sheets[name]
            found = _values(head, maps, split, configs[name])
            if split.seen.windows is None:
                at_grid = at_size(found, grids[name], configs[name].every_output)
                target, cells = split.counted_at_grid(samples, grids[name])
                if cells:
                    pending[name].loss += loss(at_grid, target).double() * cells
                    sheet.loss_cells += cells
            predicted = _predictions(found, split, samples, targets, score_size)
            wrapped: Any = LabelMaps(predicted, split.n_classes or 2) if labels else predicted
            if counted:
                pending[name].counts.append(pixel_counts(wrapped, compared))
            for metric in metrics:
                if metric not in counted:
                    sheet.parts.setdefault(metric, []).append(find_metric(metric).statistics(wrapped, compared))
            for place, sample in enumerate(samples.tolist()):
                if sample in picture:
                    sheet.pictures[sample] = predicted[place].cpu().numpy()
        if sum(one.nbytes for held in pending.values() for one in held.counts) > _PENDING_BYTES:
            _settle(sheets, pending, counted)
        done += len(samples)
        tell(done, len(split))
    _settle(sheets, pending, counted)
    for sheet in sheets.values():
        sheet.parts = {metric: sheet.parts[metric] for metric in metrics if metric in sheet.parts}
    return sheets


def _settle(sheets: Mapping[str, DenseSheet], pending: Mapping[str, _Pending], counted: Sequence[str]) -> None:
    """Reads what is pending, all heads at once."""
    sums = torch.stack([held.loss for held in pending.values()]).tolist()
    counts = [one for held in pending.values() for one in held.counts]
    rows = torch.cat(counts).cpu().numpy() if counts else np.zeros((0, 1), dtype=np.int64)
    for (name, held), loss_sum, own in zip(pending.items(), sums, np.split(rows, len(pending)), strict=True):
        sheets[name].loss_sum = loss_sum  # of all batches so far
        for metric in counted if held.counts else ():
            of_counts = find_metric(metric).of_counts
            if of_counts is not None:
                sheets[name].parts.setdefault(metric, []).append(of_counts(counts_on_host(own)))
        held.counts.clear()


def raw_values(head: nn.Module, maps: list[Tensor], split: DenseSplit, config: DenseConfig) -> Tensor:
    """What the head gives, at its own grid; the one of 2021 brings its outputs to the image's size by itself."""
    raw: Tensor = head(maps, split.seen.canvas) if config.at_image_size else head(maps)
    return raw


def _values(head: nn.Module, maps: list[Tensor], split: DenseSplit, config: DenseConfig) -> Tensor:
    """What is compared; many windows go through in parts."""
    parts = zip(*(one.split(_WINDOWS_AT_ONCE) for one in maps), strict=True)
    found = [values(raw_values(head, list(part), split, config), split.target, config) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found)


def at_size(found: Tensor, grid: tuple[int, int], every_output: bool = False) -> Tensor:
    """(B, C, h, w) -> (B, C, *grid), bilinear. With ``every_output`` fewer cells are the means of what they cover."""
    if found.shape[-2:] == grid:
        return found
    if every_output and grid[0] <= found.shape[-2] and grid[1] <= found.shape[-1]:
        return F.adaptive_avg_pool2d(found, grid)
    return F.interpolate(found, grid, mode="bilinear", align_corners=False)


def _compared(split: DenseSplit, samples: np.ndarray, targets: list[np.ndarray], score_size: int | None) -> list[Any]:
    """What predictions are compared with: the targets themselves, on the device, or in the frame of the input."""
    if split.target.at == "view" or score_size is not None:
        return list(split.at_grid(samples, view_grid(split, score_size)))
    return [sent(np.ascontiguousarray(target), split.device) for target in targets]


def view_grid(split: DenseSplit, score_size: int | None) -> tuple[int, int]:
    height, width = split.seen.canvas
    scale = 1.0 if score_size is None else score_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _predictions(found: Tensor, split: DenseSplit, samples: np.ndarray, targets: list[np.ndarray], score_size: int | None) -> list[Tensor]:
    """One prediction per sample, at the size at which it is compared."""
    target, canvas = split.target, split.seen.canvas
    if target.at == "view" or score_size is not None:
        return [prediction(one, target) for one in at_size(found, view_grid(split, score_size))]
    predicted = []
    begin = 0
    for sample, truth in zip(samples.tolist(), targets, strict=True):
        native = (truth.shape[-2], truth.shape[-1])
        if split.seen.windows is not None:
            stop = begin + len(split.seen.rows(sample))
            one, placement, covered = _merged(found[begin:stop], split, sample, native)
            begin = stop
        else:
            one, placement, covered = found[begin], split.placement(sample, native), canvas
            begin += 1
        if target.kind == "labels":
            predicted.append(labels_to_native(one, placement, covered))
        elif target.kind == "flow":
            predicted.append(prediction(flow_to_native(one, placement, covered), target))
        else:
            predicted.append(prediction(to_native(one, placement, covered), target))
    return predicted


def _merged(found: Tensor, split: DenseSplit, sample: int, native: tuple[int, int]) -> tuple[Tensor, Any, tuple[int, int]]:
    """The windows of one image, averaged where they overlap, at the size to which the image was brought before they were cut."""
    windows, rows = split.seen.windows, split.seen.rows(sample)
    if windows is None:
        raise ViRBError(f"the {split.name} images were not cut into windows")
    places = [windows.window_of(int(row)) for row in rows]
    (_, scaled, _), boxes = places[0], [box for _, _, box in places]
    canvas = split.seen.canvas
    size = split.seen.views[0].size or canvas
    whole = at_size(found, canvas)[..., : size[0], : size[1]]  # the padding to whole patches is cut off
    merged = merge_windows(list(at_size(whole, windows.size)), boxes, scaled)
    return merged, squashed(native, scaled), scaled
