"""The bootstrap against a plain loop and against scipy's."""

import time

import numpy as np
import pytest
from scipy import stats

from virb.functional.randomness import numpy_generator
from virb.metrics.base import Metric, Statistics, find_metric
from virb.results.statistics import estimate, resampled_values

TOP1, MEAN_CLASS = find_metric("top1"), find_metric("mean_class_accuracy")
MEAN = Metric(
    name="mean",
    title="mean",
    higher_is_better=False,
    unit="m",
    statistics=lambda p, t: Statistics(np.stack([np.abs(p - t), np.ones(len(p))], 1)),
    values=lambda sums: sums[..., 0, 0] / sums[..., 0, 1],
)


def accuracy_statistics(n_samples, n_classes=4, seed=0, accuracy=0.7):
    generator = np.random.default_rng(seed)
    hit = generator.random(n_samples) < accuracy
    plain = Statistics(np.stack([hit, np.ones(n_samples)], 1))
    return plain, Statistics(plain.values, generator.integers(0, n_classes, n_samples), n_classes)


def brute_force(metric, runs, units, n_resamples):
    """Draws units, repeats their samples, and scores from scratch, one resample at a time."""
    names = sorted(set(units))
    members = {name: [i for i, unit in enumerate(units) if unit == name] for name in names}
    generator = numpy_generator(0, "bootstrap", len(names))
    values = []
    for _ in range(n_resamples):
        drawn = generator.integers(0, len(names), len(names))
        samples = np.array([i for number in drawn for i in members[names[number]]])
        parts = [Statistics(r.values[samples], None if r.group is None else r.group[samples], r.n_groups) for r in runs]
        values.append(np.mean([metric.value(part.total()) for part in parts]))
    return np.array(values)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("n_runs", [1, 3])
def test_equal_to_a_plain_loop(grouped, n_runs):
    runs = [accuracy_statistics(60, seed=seed)[grouped] for seed in range(n_runs)]
    units = [f"video{i % 17}" for i in range(60)]
    metric = MEAN_CLASS if grouped else TOP1
    expected = brute_force(metric, runs, units, 250)
    np.testing.assert_allclose(resampled_values(metric, runs, units, n_resamples=250), expected, rtol=0, atol=1e-12)
    result = estimate(metric, runs, units, n_resamples=250)
    assert result.value == pytest.approx(np.mean([metric.value(run.total()) for run in runs]))
    assert (result.ci_low, result.ci_high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    assert (result.n_samples, result.n_units) == (60, 17)


def test_close_to_scipy():
    generator = np.random.default_rng(5)
    errors = generator.gamma(2.0, 0.3, 400)
    ours = estimate(MEAN, [MEAN.statistics(errors, np.zeros(400))], n_resamples=4000)
    theirs = stats.bootstrap((errors,), np.mean, method="percentile", n_resamples=4000, rng=generator).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(errors.mean())
    assert abs(ours.ci_low - theirs.low) < 0.08 * width
    assert abs(ours.ci_high - theirs.high) < 0.08 * width


def test_units_of_alike_samples_widen_the_interval():
    hit = np.repeat(np.random.default_rng(2).random(100) < 0.6, 10)  # the ten frames of a video are all right or all wrong
    statistics = Statistics(np.stack([hit, np.ones(1000)], 1))
    alone, by_video = estimate(TOP1, [statistics]), estimate(TOP1, [statistics], np.repeat(np.arange(100), 10).astype(str))
    assert alone.value == by_video.value
    assert (alone.n_units, by_video.n_units) == (1000, 100)
    ratio = (by_video.ci_high - by_video.ci_low) / (alone.ci_high - alone.ci_low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_same_resamples_for_all_encoders_and_not_for_other_seeds():
    values = np.random.default_rng(0).normal(size=500)
    first, second = MEAN.statistics(values, np.zeros(500) - 10), MEAN.statistics(values + 1, np.zeros(500) - 10)
    difference = resampled_values(MEAN, [second], n_resamples=50) - resampled_values(MEAN, [first], n_resamples=50)
    np.testing.assert_allclose(difference, 1.0)
    assert not np.array_equal(resampled_values(MEAN, [first], n_resamples=50), resampled_values(MEAN, [first], n_resamples=50, seed=1))


def test_chunks_and_repetition_do_not_matter():
    statistics = accuracy_statistics(300)[1]
    expected = resampled_values(MEAN_CLASS, [statistics], n_resamples=130)
    for chunk in (1, 7, 130, 1000):
        np.testing.assert_array_equal(resampled_values(MEAN_CLASS, [statistics], n_resamples=130, chunk=chunk), expected)


def test_order_of_samples_does_not_matter_when_units_are_named():
    statistics, units = accuracy_statistics(200)[1], np.array([f"u{i:03d}" for i in range(200)])
    order = np.random.default_rng(1).permutation(200)
    shuffled = Statistics(statistics.values[order], statistics.group[order], statistics.n_groups)
    assert estimate(MEAN_CLASS, [shuffled], units[order]) == estimate(MEAN_CLASS, [statistics], units)


def test_a_class_that_a_resample_misses_is_left_out():
    hit = np.array([1.0] * 20 + [0.0])
    statistics = Statistics(np.stack([hit, np.ones(21)], 1), np.array([0] * 20 + [1]), 3)
    draws = resampled_values(MEAN_CLASS, [statistics])
    assert set(np.round(draws, 12)) == {0.5, 1.0}
    assert np.mean(draws == 1.0) == pytest.approx((20 / 21) ** 21, abs=0.05)


def test_all_right_is_a_point_and_one_unit_has_no_interval():
    right = Statistics(np.ones((10, 2)))
    sure = estimate(TOP1, [right])
    assert (sure.value, sure.ci_low, sure.ci_high) == (1.0, 1.0, 1.0)
    single = estimate(TOP1, [right], ["v"] * 10)
    assert (single.value, single.ci_low, single.ci_high, single.n_units) == (1.0, None, None, 1)


def test_no_samples_is_none():
    nothing = estimate(TOP1, [Statistics(np.zeros((0, 2)))])
    assert (nothing.value, nothing.ci_low, nothing.ci_high, nothing.n_samples) == (None, None, None, 0)
    assert np.isnan(resampled_values(TOP1, [Statistics(np.zeros((0, 2)))], n_resamples=3)).all()


def test_runs_and_units_must_be_over_the_same_samples():
    with pytest.raises(ValueError, match="same samples"):
        estimate(TOP1, [Statistics(np.ones((3, 2))), Statistics(np.ones((4, 2)))])
    with pytest.raises(ValueError, match="same samples"):
        estimate(TOP1, [Statistics(np.ones((3, 2)))], ["a"])
    with pytest.raises(ValueError, match="same samples"):
        estimate(TOP1, [])


def test_a_metric_that_does_not_vectorise_is_named():
    bad = Metric("bad", "bad", True, "", lambda p, t: Statistics(p), lambda sums: sums.sum())
    with pytest.raises(ValueError, match="metric bad"):
        resampled_values(bad, [Statistics(np.ones((3, 1)))])


def test_fifty_thousand_units_take_seconds():
    statistics = accuracy_statistics(50_000, n_classes=1000)[1]
    start = time.process_time()
    result = estimate(MEAN_CLASS, [statistics])
    assert time.process_time() - start < 15  # half a second when nothing else runs
    assert result.ci_high - result.ci_low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 50_000), rel=0.15)
