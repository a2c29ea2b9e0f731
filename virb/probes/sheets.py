"""Scores of many configs on one split, batch by batch: what metrics need is kept of each sample, never all scores of all classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virb.metrics.base import Metric, Statistics, find_metric
from virb.probes.base import ConfigOutcome, Predictions
from virb.probes.losses import cross_entropy
from virb.probes.selection import Candidate, choose
from virb.probes.split import Split

MeasureBatch = Callable[[Metric, Tensor, Tensor], Statistics]


def measure(metric: Metric, scores: Tensor, targets: Tensor) -> Statistics:
    return metric.statistics(scores, targets)


@dataclass
class Sheet:
    """What is kept of one config's scores (N x C) on a split, in the order of its samples."""

    metrics: Sequence[Metric]
    with_loss: bool = False
    _predicted: list[Tensor] = field(default_factory=list)
    _parts: dict[str, list[Statistics]] = field(default_factory=dict)
    _losses: list[Tensor] = field(default_factory=list)

    def add(self, scores: Tensor, targets: Tensor, measure_batch: MeasureBatch = measure) -> None:
        """A batch, on any device; the loss is the cross-entropy of the scores as logits."""
        self._predicted.append(scores.argmax(1).cpu())
        for metric in self.metrics:
            self._parts.setdefault(metric.name, []).append(measure_batch(metric, scores, targets))
        if self.with_loss:
            self._losses.append(cross_entropy(scores[:, None], targets)[:, 0].double().cpu())

    def state(self) -> dict[str, Any]:
        """All that was added, as tensors and plain values."""
        parts = {
            name: [(torch.from_numpy(p.values), None if p.group is None else torch.from_numpy(p.group), p.n_groups) for p in own]
            for name, own in self._parts.items()
        }
        return {"predicted": self._predicted, "parts": parts, "losses": self._losses}

    def extend(self, state: Mapping[str, Any]) -> None:
        """What was added to another sheet comes after what was added to this one."""
        self._predicted += state["predicted"]
        for name, parts in state["parts"].items():
            found = [Statistics(values.numpy(), None if group is None else group.numpy(), n) for values, group, n in parts]
            self._parts.setdefault(name, []).extend(found)
        self._losses += state["losses"]

    @property
    def loss(self) -> float | None:
        return float(torch.cat(self._losses).mean()) if self._losses else None

    def numbers(self) -> dict[str, float]:
        """The metrics that have something to say."""
        found = {metric.name: metric.of(Statistics.concatenate(self._parts[metric.name])) for metric in self.metrics}
        return {name: value for name, value in found.items() if value is not None}

    def predictions(self) -> Predictions:
        statistics = {name: Statistics.concatenate(parts) for name, parts in self._parts.items()}
        return Predictions(torch.cat(self._predicted).numpy(), self.loss, statistics)


def score(
    names: Iterable[str],
    scores_of: Callable[[Tensor], Mapping[str, Tensor]],
    split: Split,
    metrics: Sequence[str],
    batch_size: int,
    with_loss: bool = False,
) -> dict[str, Sheet]:
    """One sheet per config. ``scores_of(x)`` gives the scores (B, C) of every config for features (B, D)."""
    if split.targets is None:
        raise ValueError(f"Expected the {split.name} samples to have targets, but got none")
    found = [find_metric(name) for name in metrics]
    sheets = {name: Sheet(found, with_loss) for name in names}
    split.set_epoch(0)
    for positions, features in split.batches(split.chunks(batch_size)):
        targets = split.targets[positions.to(split.targets.device)]
        for name, values in scores_of(features).items():
            sheets[name].add(values, targets)
    return sheets


def choose_by(sheets: Mapping[str, Sheet], names: Iterable[str], metric: str, higher_is_better: bool) -> str:
    """The config with the best metric, then the lower loss, then the first in file order."""
    candidates = []
    for name in names:
        loss = sheets[name].loss
        candidates.append(Candidate(name, sheets[name].numbers().get(metric), loss if loss is not None and np.isfinite(loss) else None, 0))
    return choose(candidates, higher_is_better).name


def outcome(name: str, selected: Sheet | None, report: Sheet | None) -> ConfigOutcome:
    """``selected`` is what the config was chosen by, when that was not the report split itself."""
    found = ConfigOutcome(name)
    if selected is not None:
        found.select_loss, found.select_metrics = selected.loss, selected.numbers()
    found.report = report.predictions() if report is not None else None
    return found


def deterministic(seeds: Sequence[int]) -> list[str]:
    """A note where several seeds were asked for that make no difference."""
    return [f"nothing here is random: one run stands for all {len(seeds)} seeds"] if len(seeds) > 1 else []
