"""Statistics add up, whatever the batches; the registry answers by name."""

import numpy as np
import pytest

from virb.errors import UserError
from virb.metrics import base
from virb.metrics.base import Metric, Statistics, find_metric, metric_names, register_metric


def test_total_equals_a_loop_over_samples():
    generator = np.random.default_rng(0)
    values, group = generator.normal(size=(50, 3)), generator.integers(0, 4, 50)
    total = np.zeros((5, 3))
    for row, number in zip(values, group, strict=True):
        total[number] += row
    np.testing.assert_allclose(Statistics(values, group, 5).total(), total)
    np.testing.assert_allclose(Statistics(values).total(), values.sum(axis=0, keepdims=True))


def test_totals_of_batches_add_up_and_concatenate():
    generator = np.random.default_rng(1)
    values, group = generator.integers(0, 2, (37, 2)).astype(np.float32), generator.integers(0, 3, 37)
    whole = Statistics(values, group, 3)
    parts = [Statistics(values[i : i + 10], group[i : i + 10], 3) for i in range(0, 37, 10)]
    np.testing.assert_array_equal(sum(part.total() for part in parts), whole.total())
    joined = Statistics.concatenate(parts)
    np.testing.assert_array_equal(joined.values, values)
    np.testing.assert_array_equal(joined.group, group)
    assert len(joined) == 37


def test_float32_statistics_are_summed_in_float64():
    ones = np.ones((3, 1), dtype=np.float32) * np.array([[2.0**24], [1], [1]], dtype=np.float32)
    assert Statistics(ones).total()[0, 0] == 2**24 + 2


def test_no_samples():
    assert Statistics(np.zeros((0, 2))).total().tolist() == [[0, 0]]
    assert Statistics(np.zeros((0, 2)), np.zeros(0, dtype=int), 3).total().shape == (3, 2)


@pytest.mark.parametrize(
    ("values", "group", "n_groups"),
    [
        (np.zeros(3), None, 1),
        (np.zeros((3, 1)), None, 2),
        (np.zeros((3, 1)), np.zeros(2, dtype=int), 2),
        (np.zeros((3, 1)), np.zeros(3), 2),
        (np.zeros((3, 1)), np.array([0, 1, 2]), 2),
        (np.zeros((3, 1)), np.array([0, -1, 1]), 2),
    ],
)
def test_wrong_statistics_are_refused(values, group, n_groups):
    with pytest.raises(ValueError, match="Expected argument"):
        Statistics(values, group, n_groups)


def test_concatenate_refuses_other_metrics_and_nothing():
    with pytest.raises(ValueError, match="one metric"):
        Statistics.concatenate([Statistics(np.zeros((3, 1))), Statistics(np.zeros((3, 2)))])
    with pytest.raises(ValueError, match="at least one"):
        Statistics.concatenate([])


def test_a_metric_of_ones_own_is_found_by_module_and_by_name(monkeypatch):
    monkeypatch.setattr(base, "_METRICS", dict(base._METRICS))
    mean_error = Metric("test_mean_error", "error", False, "m", lambda p, t: Statistics(np.abs(p - t)[:, None]), lambda s: s[..., 0, 0])
    assert find_metric(f"{__name__}:OWN") is OWN
    register_metric(mean_error)
    assert find_metric("test_mean_error").score(np.array([1.0, 2.0]), np.array([0.0, 4.0])) == 3.0
    with pytest.raises(UserError, match="two metrics are named test_mean_error"):
        register_metric(Metric("test_mean_error", "", False, "m", mean_error.statistics, mean_error.values))


OWN = Metric("own", "own", True, "", lambda p, t: Statistics(p), lambda s: s[..., 0, 0])


def test_registry_names_and_suggestion():
    assert {"top1", "top5", "mean_class_accuracy"} <= set(metric_names())
    with pytest.raises(KeyError, match="did you mean top1"):
        find_metric("top_1")
    with pytest.raises(KeyError, match=r"there are .*mean_class_accuracy.*top5"):
        find_metric("zzz")


def test_value_is_none_and_never_nan():
    ratio = lambda s: s[..., 0, 0] / np.where(s[..., 0, 1] > 0, s[..., 0, 1], np.nan)  # noqa: E731
    metric = Metric("ratio", "ratio", True, "%", lambda p, t: Statistics(p), ratio)
    assert metric.value(np.zeros((1, 2))) is None
    assert metric.value(np.array([[1.0, 2.0]])) == 0.5
