"""Percentile bootstrap over units (videos, scenes, queries): how far a number would move with other samples of the same kind.

The resamples depend on the number of units alone, so all encoders on a task are resampled alike and their differences can be paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from virb.functional.randomness import numpy_generator
from virb.metrics.base import Metric, Statistics

N_RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its interval; None where there is nothing to say. A single unit has no interval."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n_samples: int
    n_units: int


def estimate(
    metric: Metric,
    runs: Sequence[Statistics],
    units: np.ndarray | Sequence[str] | None = None,
    *,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    draws: bool = False,
) -> Estimate:
    """The mean over ``runs`` (seeds of one probe, scored on the same samples) and the percentile interval of that mean.

    ``units`` names the unit of each sample (default: every sample is its own); units are drawn with replacement, whole. With ``draws`` the
    runs are draws of the samples that were fitted on: the interval is over those too (see ``resampled_values``).
    """
    numbers = [metric.of(run) for run in runs]
    known = [number for number in numbers if number is not None]
    value = float(np.mean(known)) if known and len(known) == len(numbers) else None
    n_samples = _common_length(runs, units)
    n_units = _unit_numbers(units, n_samples)[1]
    if value is None or n_units < 2:
        return Estimate(value, None, None, n_samples, n_units)
    values = resampled_values(metric, runs, units, n_resamples=n_resamples, seed=seed, draws=draws)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Estimate(value, None, None, n_samples, n_units)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n_samples, n_units)


def resampled_values(
    metric: Metric,
    runs: Sequence[Statistics],
    units: np.ndarray | Sequence[str] | None = None,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    chunk: int = 100,
    draws: bool = False,
) -> np.ndarray:
    """The metric (mean over runs) on each resample, float64 of n_resamples, NaN where a resample says nothing.

    Resample b draws the same units for every encoder and metric with as many units, so the difference of two such arrays is paired.
    With ``draws`` each resample also draws among the runs with replacement, by a stream of its own: the same runs for every encoder. With
    few draws such an interval is a little narrow, as every bootstrap of few things is.
    """
    n_samples = _common_length(runs, units)
    unit_of_sample, n_units = _unit_numbers(units, n_samples)
    if n_units == 0:
        return np.full(n_resamples, np.nan)
    sums = [None if metric.weighted else _sums_by_unit(run, unit_of_sample, n_units) for run in runs]
    generator, of_runs = numpy_generator(seed, "bootstrap", n_units), numpy_generator(seed, "bootstrap-draws", len(runs))
    result = np.empty(n_resamples)
    for start in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - start)
        counts = np.empty((n_units, size))
        for column in range(size):  # one call per resample: the stream of draws does not depend on `chunk`
            counts[:, column] = np.bincount(generator.integers(0, n_units, n_units), minlength=n_units)
        values = np.stack([_values(metric, run, matrix, counts, unit_of_sample) for run, matrix in zip(runs, sums, strict=True)])
        if draws:
            picks = np.stack([of_runs.integers(0, len(runs), len(runs)) for _ in range(size)], axis=1)
            values = np.take_along_axis(values, picks, axis=0)
        result[start : start + size] = values.mean(axis=0)
    return result


def _sums_by_unit(statistics: Statistics, unit_of_sample: np.ndarray, n_units: int) -> sparse.csr_array:
    """Rows are (group, statistic), columns are units. Sparse, for a unit touches few classes; and a sparse product adds in one fixed
    order whatever the number of threads."""
    n_samples, n_statistics = statistics.values.shape
    group = np.zeros(n_samples, dtype=np.int64) if statistics.group is None else statistics.group
    rows = group[:, None] * n_statistics + np.arange(n_statistics)
    columns = np.repeat(unit_of_sample, n_statistics)
    entries = (statistics.values.astype(np.float64, copy=False).ravel(), (rows.ravel(), columns))
    matrix = sparse.csr_array(entries, shape=(statistics.n_groups * n_statistics, n_units))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _values(metric: Metric, run: Statistics, matrix: sparse.csr_array | None, counts: np.ndarray, unit_of_sample: np.ndarray) -> np.ndarray:
    """The metric on each resample, in which unit u stands ``counts[u, b]`` times."""
    if matrix is None and metric.weighted is not None:
        values = np.asarray(metric.weighted(run, counts[unit_of_sample]), dtype=np.float64)
    else:
        sums = np.ascontiguousarray((matrix @ counts).T).reshape(counts.shape[1], run.n_groups, run.values.shape[1])
        values = np.asarray(metric.values(sums), dtype=np.float64)
    if values.shape != (counts.shape[1],):
        raise ValueError(f"Expected metric {metric.name} to give one value per resample, {counts.shape[1]}, but got shape {values.shape}")
    return values


def _unit_numbers(units: np.ndarray | Sequence[str] | None, n_samples: int) -> tuple[np.ndarray, int]:
    """Each sample's unit as a number, in sorted order of the names, and how many units there are."""
    if units is None:
        return np.arange(n_samples), n_samples
    names, numbers = np.unique(np.asarray(units), return_inverse=True)
    return numbers.reshape(-1), len(names)


def _common_length(runs: Sequence[Statistics], units: np.ndarray | Sequence[str] | None) -> int:
    lengths = {len(run) for run in runs} | ({len(units)} if units is not None else set())
    if len(lengths) != 1 or not runs:
        raise ValueError(f"Expected argument `runs` and `units` to be over the same samples, but got {sorted(lengths)} of {len(runs)} runs")
    return lengths.pop()
