"""What a metric is: statistics per sample that add up over a split, and the number that their sum means."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from virb.errors import UserError, did_you_mean
from virb.sources import import_attribute


@dataclass(frozen=True)
class Statistics:
    """What one metric keeps of each sample. A metric over classes names the class of each sample in ``group``, so that N x S numbers
    stand for N x n_groups x S."""

    values: np.ndarray  # (N, S) floats
    group: np.ndarray | None = None  # (N,) integers in [0, n_groups)
    n_groups: int = 1

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"Expected argument `values` to be N x S, but got shape {self.values.shape}")
        if self.group is None:
            if self.n_groups != 1:
                raise ValueError(f"Expected argument `group` to be given with n_groups={self.n_groups}, but got None")
            return
        if self.group.shape != (len(self.values),) or not np.issubdtype(self.group.dtype, np.integer):
            raise ValueError(f"Expected argument `group` to be {len(self.values)} integers, but got {self.group.dtype} {self.group.shape}")
        if len(self.group) and (self.group.min() < 0 or self.group.max() >= self.n_groups):
            raise ValueError(f"Expected argument `group` in [0, {self.n_groups}), but got {self.group.min()} to {self.group.max()}")

    def __len__(self) -> int:
        return len(self.values)

    def total(self) -> np.ndarray:
        """The sum over samples, n_groups x S float64. Totals of batches add up to the total of the split."""
        values = self.values.astype(np.float64, copy=False)
        if self.group is None:
            return values.sum(axis=0, keepdims=True)
        columns = [np.bincount(self.group, weights=column, minlength=self.n_groups) for column in values.T]
        return np.stack(columns, axis=1) if columns else np.zeros((self.n_groups, 0))

    @staticmethod
    def concatenate(parts: Sequence[Statistics]) -> Statistics:
        """The statistics of batches, in their order, as those of the split."""
        if not parts:
            raise ValueError("Expected argument `parts` to have at least one batch, but got none")
        kinds = {(part.group is None, part.n_groups, part.values.shape[1]) for part in parts}
        if len(kinds) > 1:
            raise ValueError("Expected argument `parts` to be batches of one metric, but they differ in groups or in statistics")
        groups = [part.group for part in parts if part.group is not None]
        values = np.concatenate([part.values for part in parts])
        return Statistics(values, np.concatenate(groups) if groups else None, parts[0].n_groups)


@dataclass(frozen=True)
class Metric:
    """A number with a direction and a unit.

    ``statistics(prediction, target)`` takes a batch of any size and gives one row per sample. ``values(sums)`` turns sums of shape
    (..., n_groups, S) into numbers of shape (...), NaN where there is nothing to say; the leading axes are bootstrap resamples.
    Values of unit ``%`` are fractions in [0, 1], shown times 100.

    A metric that is no function of sums (average precision) has ``weighted(statistics, weights (N, B))`` instead: B numbers, each of the
    split in which sample i stands ``weights[i, b]`` times. Its ``values`` raises TypeError.

    A metric that is a mean over classes may have ``per_class(sums (..., n_groups, S))``: the number of each class (..., C), NaN for a class
    with nothing to say.

    A metric of label maps that looks at nothing but counts of pixels has ``of_counts``: its statistics from those counts, N x 3 C, as
    ``virb.metrics.segmentation.LabelMaps`` has them. The counts of many batches can then leave a GPU together.
    """

    name: str
    title: str  # for tables: "top-1"
    higher_is_better: bool
    unit: str
    statistics: Callable[[Any, Any], Statistics]
    values: Callable[[np.ndarray], np.ndarray]
    weighted: Callable[[Statistics, np.ndarray], np.ndarray] | None = None
    per_class: Callable[[np.ndarray], np.ndarray] | None = None
    of_counts: Callable[[np.ndarray], Statistics] | None = None

    def value(self, total: np.ndarray) -> float | None:
        """The number of one split, from ``Statistics.total()``; None where there is nothing to say, never NaN."""
        return _known(self.values(np.asarray(total, dtype=np.float64)))

    def of(self, statistics: Statistics) -> float | None:
        """The number of one split, whichever kind the metric is of; None where there is nothing to say."""
        if self.weighted is None:
            return self.value(statistics.total())
        return _known(self.weighted(statistics, np.ones((len(statistics), 1)))[0])

    def score(self, prediction: Any, target: Any) -> float | None:
        """The number of one split, straight from predictions and targets."""
        return self.of(self.statistics(prediction, target))


def _known(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


_METRICS: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Makes the metric available under its name."""
    if metric.name in _METRICS and _METRICS[metric.name] is not metric:
        raise UserError(f"two metrics are named {metric.name}")
    _METRICS[metric.name] = metric
    return metric


def metric_names() -> list[str]:
    _load_builtin()
    return sorted(_METRICS)


def find_metric(name: str) -> Metric:
    """A built-in metric by name, or a user's own by ``module:NAME``. KeyError with the list of names when there is none; UserError when
    what is named so is no metric."""
    if ":" in name:
        metric = import_attribute(name, "metric")
        if not isinstance(metric, Metric):
            raise UserError(f"{name} is a {type(metric).__name__}, not a virb.metrics.base.Metric")
        return register_metric(metric)  # results know it by its bare name
    _load_builtin()
    if name not in _METRICS:
        hint = did_you_mean(name, _METRICS) or ";"
        raise KeyError(f'no metric "{name}"{hint} there are {", ".join(sorted(_METRICS))}')
    return _METRICS[name]


def _load_builtin() -> None:
    for module in ("classification", "multilabel", "regression", "robustness", "segmentation", "depth", "flow", "maps", "virb2021"):
        importlib.import_module(f"virb.metrics.{module}")
