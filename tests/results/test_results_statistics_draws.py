"""The bootstrap of metrics that are no function of sums, and over draws of the fit samples."""

from __future__ import annotations

import numpy as np
import pytest

from virb.functional.randomness import numpy_generator
from virb.metrics.base import Statistics, find_metric
from virb.results.statistics import estimate, resampled_values

MAP, TOP1 = find_metric("mAP"), find_metric("top1")


def test_average_precision_is_resampled_by_whole_units() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.4).astype(int)
    scores = (labels + rng.normal(size=labels.shape)).astype(np.float32)
    units = np.array([f"u{i // 4:02}" for i in range(60)])
    found = resampled_values(MAP, [MAP.statistics(scores, labels)], units, n_resamples=20, chunk=7)
    generator = numpy_generator(0, "bootstrap", 15)
    for value in found:
        drawn = generator.integers(0, 15, 15)
        samples = np.concatenate([np.arange(4 * unit, 4 * unit + 4) for unit in drawn])
        assert value == pytest.approx(MAP.score(scores[samples], labels[samples]), abs=1e-12)
    whole = estimate(MAP, [MAP.statistics(scores, labels)], units)
    assert whole.value == pytest.approx(MAP.score(scores, labels))
    assert whole.ci_low < whole.value < whole.ci_high


def hits(share: float, n: int = 400) -> Statistics:
    return Statistics(np.stack([np.arange(n) < share * n, np.ones(n)], 1).astype(float))


def test_an_interval_over_draws_spans_them() -> None:
    runs = [hits(share) for share in (0.3, 0.5, 0.7, 0.5)]
    over_units, over_both = (estimate(TOP1, runs, draws=draws) for draws in (False, True))
    assert over_units.value == over_both.value == pytest.approx(0.5)
    spread = np.std([0.3, 0.5, 0.7, 0.5]) / 2
    assert over_units.ci_high - over_units.ci_low < 2 * spread
    assert over_both.ci_high - over_both.ci_low > 3 * spread
    values = resampled_values(TOP1, runs, draws=True, n_resamples=4000)
    units_alone = resampled_values(TOP1, runs, n_resamples=4000)
    assert values.var() == pytest.approx(units_alone.var() + spread**2, rel=0.15)


def test_one_draw_says_nothing_of_draws() -> None:
    runs = [hits(0.4)]
    assert estimate(TOP1, runs, draws=True) == estimate(TOP1, runs)
    values = [resampled_values(TOP1, [hits(0.3), hits(0.6)], draws=True, n_resamples=30, chunk=chunk) for chunk in (7, 100)]
    np.testing.assert_array_equal(*values)
