"""The probe ncm against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.neighbors import NearestCentroid
from vector_support import CPU, planted, predicted, role, roles, settings, x_of

from virb.probes import ncm
from virb.probes.base import find_probe
from virb.probes.heads import apply_head
from virb.probes.ncm import NcmConfig, NcmProbe

BOTH = {"cosine": NcmConfig(), "euclidean": NcmConfig(metric="euclidean")}


def run(data, configs=BOTH, **changes):
    return NcmProbe().from_features(data, settings(configs, **changes), CPU)


def test_euclidean_is_scikit_learns() -> None:
    data = {name: role(name, x_of(part) + 200, part.targets) for name, part in roles().items()}  # far off zero
    found = run(data, selection="test-last").runs[0].configs
    sk = NearestCentroid().fit(x_of(data["fit"]).astype(np.float64), data["fit"].targets)
    np.testing.assert_array_equal(found["euclidean"].report.values, sk.predict(x_of(data["report"])))


def test_cosine_by_hand() -> None:
    data = roles()
    x = x_of(data["fit"]) / np.linalg.norm(x_of(data["fit"]), axis=1, keepdims=True)
    means = np.stack([x[data["fit"].targets == c].mean(0) for c in range(5)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    found = run(data, selection="test-last").runs[0].configs
    np.testing.assert_array_equal(found["cosine"].report.values, (x_of(data["report"]) @ means.T).argmax(1))


def test_chosen_on_select_with_a_head() -> None:
    assert find_probe("ncm") is NcmProbe
    data = roles()
    outcome = run(data)
    found = outcome.runs[0].configs
    assert outcome.chosen == max(found.values(), key=lambda c: c.select_metrics["top1"]).name
    assert [name for name, config in found.items() if config.report is not None] == [outcome.chosen]
    np.testing.assert_array_equal(apply_head(found[outcome.chosen].head, data["report"].features.values).argmax(1), predicted(outcome))


def test_refit_and_a_class_without_samples() -> None:
    data = roles() | {"fit": planted("fit", 200, 1, classes=4)}
    assert not (predicted(run(data)) == 4).any()
    again = run(data, {"e": BOTH["euclidean"]}, refit=True)
    x = np.concatenate([x_of(data["fit"]), x_of(data["select"])]).astype(np.float64)
    sk = NearestCentroid().fit(x, np.concatenate([data["fit"].targets, data["select"].targets]))
    np.testing.assert_array_equal(predicted(again), sk.predict(x_of(data["report"])))


def test_sums_by_a_product_are_those_of_the_host() -> None:
    """What GPUs take, whose own sums differ in the last bits from time to time."""
    random = torch.Generator().manual_seed(0)
    x, targets = torch.randn(500, 16, generator=random, dtype=torch.float64), torch.randint(0, 7, (500,), generator=random)
    sums = torch.randn(9, 16, generator=random, dtype=torch.float64)
    expected = sums.clone().index_add_(0, targets, x)
    torch.testing.assert_close(ncm._by_product(sums, targets, x), expected, rtol=1e-13, atol=1e-13)
