"""Counts of every class of every image, as those of ADE20K's 2,000 images and 150 classes: small files, intervals in a moment."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from virb.metrics.base import Statistics, find_metric
from virb.results.samples import SampleArrays, read_samples, write_samples
from virb.results.statistics import estimate, resampled_values

MIOU = find_metric("miou")
N, C, PIXELS = 2000, 150, 350_000


@pytest.fixture(scope="module")
def counts() -> Statistics:
    """Correct, predicted and true pixels: 5 to 20 classes in each image, by a long tail, and 15 others found where they are not."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, C + 1)
    frequency /= frequency.sum()
    rows = np.zeros((N, 3, C))
    for correct, predicted, true in rows:
        there = rng.choice(C, rng.integers(5, 20), replace=False, p=frequency)
        elsewhere = rng.choice(C, 15, replace=False, p=frequency)
        true[there] = rng.multinomial(PIXELS, rng.dirichlet(np.full(len(there), 0.5)))
        correct[there] = np.floor(true[there] * rng.random(len(there)))
        predicted += correct
        predicted[elsewhere] += rng.multinomial(PIXELS - int(correct.sum()), rng.dirichlet(np.full(15, 0.5)))
    return Statistics(rows.reshape(N, 3 * C))


def test_the_file_is_small_and_exact(counts: Statistics, tmp_path: Path) -> None:
    ids = np.array([f"ADE_val_{i + 1:08d}" for i in range(N)])
    write_samples(tmp_path / "samples.npz", SampleArrays(ids, ids, statistics={"miou": [counts]}))
    assert (tmp_path / "samples.npz").stat().st_size < 600_000 < counts.values.nbytes / 10
    (again,) = read_samples(tmp_path / "samples.npz").statistics["miou"]
    np.testing.assert_array_equal(again.values, counts.values)


@pytest.mark.parametrize("dense", [False, True])
def test_intervals_take_a_moment(counts: Statistics, dense: bool) -> None:
    runs = [Statistics(counts.values + 3) if dense else counts]
    began = time.process_time()
    found = estimate(MIOU, runs)
    assert time.process_time() - began < 3  # 0.04 and 0.15 seconds when nothing else runs
    assert found.ci_low < found.value < found.ci_high


def test_resamples_equal_a_plain_loop(counts: Statistics) -> None:
    from virb.functional.randomness import numpy_generator

    generator = numpy_generator(0, "bootstrap", N)
    expected = []
    for _ in range(20):
        correct, predicted, true = counts.values[generator.integers(0, N, N)].sum(axis=0).reshape(3, C)
        union = predicted + true - correct
        expected.append(np.mean(correct[union > 0] / union[union > 0]))
    np.testing.assert_allclose(resampled_values(MIOU, [counts], n_resamples=20), expected, rtol=1e-12)
