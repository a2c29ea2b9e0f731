"""The linear probe on labels and on numbers: as many outputs as the targets need, metrics of their kind."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from vector_support import CPU, WIDTH, role, roles, settings

from virb.config import GradientConfig
from virb.errors import ViRBError
from virb.metrics.base import find_metric
from virb.probes.linear import LinearProbe

RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(WIDTH, 3))
CONFIGS = {"slow": GradientConfig(optimizer="adamw", lr=1e-4), "fast": GradientConfig(optimizer="adamw", lr=0.05)}


def planted(of, sizes=(("fit", 300), ("select", 80), ("report", 90))):
    found = {}
    for name, n in sizes:
        x = RNG.normal(size=(n, WIDTH))
        found[name] = role(name, x, of(x))
    return found


def run(data, loss, metrics, **changes):
    wanted = settings(CONFIGS, loss=loss, metrics=metrics, num_epochs=30, **changes)
    return LinearProbe().from_features(data, wanted, CPU)


def test_labels_with_bce_and_mean_average_precision() -> None:
    data = planted(lambda x: (x @ TRUE + 0.5 * RNG.normal(size=(len(x), 3)) > 1).astype(np.int8))
    data["fit"].targets[::9, 1] = -1
    outcome = run(data, "bce", ("mAP",), n_classes=3)
    found = outcome.runs[0].configs
    assert outcome.chosen == "fast"
    report = found["fast"].report
    assert report.values.shape == (90, 3)
    score = find_metric("mAP").score(report.values, data["report"].targets)
    assert score == pytest.approx(average_precision_score(data["report"].targets, report.values))
    assert score > 0.85
    assert found["fast"].select_metrics["mAP"] > found["slow"].select_metrics["mAP"]
    assert 0 < found["fast"].train_metrics["mAP"] <= 1
    assert found["fast"].select_loss < 0.5


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_numbers(loss: str) -> None:
    data = planted(lambda x: (x @ TRUE[:, 0]).astype(np.float32))
    outcome = run(data, loss, ("mae", "root_mean_squared_error"), n_classes=None)
    report = outcome.runs[0].configs["fast"].report
    assert outcome.chosen == "fast"
    assert report.values.shape == (90, 1)
    assert find_metric("mae").score(report.values, data["report"].targets) < 0.3 < np.abs(data["report"].targets).mean()


def test_several_numbers_and_a_hold_out_without_classes() -> None:
    data = planted(lambda x: x @ TRUE[:, :2], (("fit", 300), ("report", 90)))
    outcome = run(data, "mse", ("root_mean_squared_error",), n_classes=None)
    assert len(outcome.index_lists["select"]) == 30
    assert outcome.runs[0].configs[outcome.chosen].report.values.shape == (90, 2)


def test_nothing_to_learn() -> None:
    with pytest.raises(ViRBError, match="have the same target"):
        run(planted(lambda x: np.ones(len(x))), "mse", ("mae",), n_classes=None)
    with pytest.raises(ViRBError, match="none of the 300 fit samples has any of the 3 labels"):
        run(planted(lambda x: np.zeros((len(x), 3), int)), "bce", ("mAP",), n_classes=3)
    with pytest.raises(ViRBError, match="bce needs a label of each of 5 classes"):
        run(roles(), "bce", ("mAP",))
