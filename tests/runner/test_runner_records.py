"""Numbers of classes beside a metric: by name, the mean over runs, null where there is nothing to say."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from virb.metrics.base import Statistics, find_metric
from virb.metrics.segmentation import LabelMaps
from virb.results import schema
from virb.runner.records import _metric_record

CLASSES = ("road", "car", "sky")
TRUTH = [np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 0]])]
FOUND = ([np.array([[0, 0, 1, 2]]), np.array([[0, 1, 0, 0]])], [np.array([[0, 0, 0, 2]]), np.array([[0, 0, 0, 0]])])


def record(classes: tuple[str, ...] | None, metric: Any, runs: list[Statistics]) -> schema.MetricRecord:
    job: Any = SimpleNamespace(classes=classes)
    return _metric_record(job, metric, runs, np.array(["a", "b"]), "report", True, False)


def statistics(name: str) -> list[Statistics]:
    return [find_metric(name).statistics(LabelMaps(found, 3), TRUTH) for found in FOUND]


def test_the_mean_over_runs_of_each_class() -> None:
    found = record(CLASSES, find_metric("miou"), statistics("miou"))
    # run 1: road 4 of 5, car 2 of 3; run 2: road 4 of 7, car 0 of 3; sky was predicted on void alone
    assert found.per_class == pytest.approx({"road": (4 / 5 + 4 / 7) / 2, "car": (2 / 3 + 0) / 2, "sky": None})
    assert list(found.per_class or ()) == list(CLASSES)
    assert found.value == pytest.approx(((4 / 5 + 2 / 3) / 2 + 2 / 7) / 2)
    written = json.loads(found.model_dump_json())["per_class"]
    assert written["sky"] is None
    assert schema.MetricRecord.model_validate(json.loads(found.model_dump_json())) == found


def test_a_class_that_one_run_lacks_has_no_mean() -> None:
    metric = find_metric("miou")
    once = [np.array([[2, 0, 1, 2]]), FOUND[0][1]]  # sky is predicted by the first run alone
    runs = [metric.statistics(LabelMaps(maps, 3), TRUTH) for maps in (once, FOUND[1])]
    assert record(CLASSES, metric, runs).per_class == {"road": pytest.approx((3 / 5 + 4 / 7) / 2), "car": pytest.approx(1 / 3), "sky": None}
    assert record(CLASSES, metric, runs[:1]).per_class == {"road": pytest.approx(3 / 5), "car": pytest.approx(2 / 3), "sky": 0}


def test_null_for_metrics_and_jobs_without_named_classes() -> None:
    assert record(CLASSES, find_metric("pixel_accuracy"), statistics("pixel_accuracy")).per_class is None
    assert record(None, find_metric("miou"), statistics("miou")).per_class is None
    assert record(("road", "car"), find_metric("miou"), statistics("miou")).per_class is None
    other = replace(find_metric("miou"), per_class=None)
    assert record(CLASSES, other, statistics("miou")).per_class is None


def test_records_of_before_have_none() -> None:
    old = {"name": "top1", "value": 0.5, "unit": "%", "higher_is_better": True, "n_samples": 2, "n_units": 2}
    assert schema.MetricRecord.model_validate(old).per_class is None
    assert schema.MetricRecord.model_validate(old | {"per_class": {"a": float("nan"), "b": 1.0}}).per_class == {"a": None, "b": 1.0}
