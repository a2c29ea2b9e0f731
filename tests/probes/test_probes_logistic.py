"""The probe logistic: scikit-learn's answers, selection on the path, convergence in the notes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from vector_support import CPU, planted, predicted, role, roles, settings, shuffled, x_of

from virb.errors import ViRBError
from virb.probes import logistic
from virb.probes.base import find_probe
from virb.probes.heads import apply_head
from virb.probes.logistic import LogisticConfig, LogisticProbe
from virb.probes.prepare import prepare
from virb.probes.standard import moments

CONFIGS = {f"C{c:g}": LogisticConfig(C=c, tolerance=1e-6) for c in (1e-4, 1e-2, 1.0)}


def run(data, configs=CONFIGS, **changes):
    return LogisticProbe().from_features(data, settings(configs, **changes), CPU)


def reference(x: np.ndarray, targets: np.ndarray, strength: float) -> LogisticRegression:
    """In double precision: given float32, scikit-learn's own answer is a thousand times less exact than ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(x.astype(np.float64), targets)


def test_scikit_learn_chooses_and_answers_alike() -> None:
    data = roles()
    outcome = run(data)
    assert find_probe("logistic") is LogisticProbe
    found = outcome.runs[0].configs
    for name, config in CONFIGS.items():
        sk = reference(x_of(data["fit"]), data["fit"].targets, config.C)
        for part, loss, metrics in (
            ("fit", found[name].train_loss, found[name].train_metrics),
            ("select", found[name].select_loss, found[name].select_metrics),
        ):
            assert loss == pytest.approx(log_loss(data[part].targets, sk.predict_proba(x_of(data[part]))), abs=1e-5)
            assert metrics["top1"] == pytest.approx(sk.score(x_of(data[part]), data[part].targets))
        np.testing.assert_allclose(found[name].head["head.weight"].numpy(), sk.coef_, rtol=0, atol=2e-5 * abs(sk.coef_).max())
        assert "converged after" in found[name].notes[0]
        assert not found[name].notes[0].startswith("not")
        if name == outcome.chosen:
            np.testing.assert_array_equal(predicted(outcome), sk.predict(x_of(data["report"])))
            assert found[name].report.loss == pytest.approx(
                log_loss(data["report"].targets, sk.predict_proba(x_of(data["report"]))), abs=1e-5
            )
    assert outcome.chosen == max(found.values(), key=lambda c: (c.select_metrics["top1"], -c.select_loss)).name
    assert [name for name, config in found.items() if config.report is not None] == [outcome.chosen]


def test_the_head_that_is_handed_out_is_the_one_that_answers() -> None:
    data = roles()
    outcome = run(data)
    logits = apply_head(outcome.runs[0].configs[outcome.chosen].head, data["report"].features.values)
    np.testing.assert_array_equal(logits.argmax(1), predicted(outcome))


def test_standardised_features_in_double_precision() -> None:
    data = roles()
    spread = np.geomspace(0.01, 50, 16)
    data = {name: role(name, x_of(part) * spread + 3, part.targets) for name, part in data.items()}
    outcome = run(data, {"C": LogisticConfig(C=0.1, standardise=True, precision="float64", tolerance=1e-8)})
    scaler = StandardScaler().fit(x_of(data["fit"]))
    sk = reference(scaler.transform(x_of(data["fit"])), data["fit"].targets, 0.1)
    np.testing.assert_array_equal(predicted(outcome), sk.predict(scaler.transform(x_of(data["report"]))))
    weight = outcome.runs[0].configs["C"].head["head.weight"].numpy()
    np.testing.assert_allclose(weight * scaler.scale_, sk.coef_, rtol=0, atol=1e-4 * abs(sk.coef_).max())


def test_a_path_solved_in_batches_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(roles())
    monkeypatch.setattr(logistic, "_MEMORY", 1)
    parts = run(roles())
    for name in CONFIGS:
        a, b = (outcome.runs[0].configs[name].head["head.weight"] for outcome in (whole, parts))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_batches_depend_on_sizes_and_hold_every_config_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = {f"C{i}": LogisticConfig(C=10.0 ** (i / 8 - 4), standardise=i % 3 == 0) for i in range(45)}
    imagenet = (1_281_167, 1000 * 769)
    assert len(logistic.batches_of(path, 1500, 10 * 65, "cpu")) == 2  # digits: one for each solver
    assert len(logistic.batches_of(path, *imagenet, "cpu")) == 45
    on_gpu = logistic.batches_of(path, *imagenet, "cuda")
    assert 2 < len(on_gpu) <= 45
    assert len(logistic.batches_of(path, 50_000, 100 * 385, "cuda")) == 2
    monkeypatch.setattr(logistic, "_MEMORY", 28 * 650 * 4 * 7)
    small = logistic.batches_of(path, 1500, 10 * 65, "cpu")
    assert max(map(len, small)) <= 7
    for batches in (on_gpu, small):
        assert sorted(name for names in batches for name in names) == sorted(path)
        assert all(len({path[name].solver() for name in names}) == 1 for names in batches)


def test_not_converged_is_said() -> None:
    outcome = run(roles(), {"few": LogisticConfig(max_iter=2), "enough": LogisticConfig()})
    found = outcome.runs[0].configs
    assert "not converged after 2 iterations" in found["few"].notes[0]
    assert "enough: converged" in found["enough"].notes[0]
    assert any("1 of 2 configs did not converge (few)" in note for note in outcome.notes)


def test_a_class_without_fit_samples() -> None:
    data = roles() | {"fit": planted("fit", 200, 1, classes=4)}
    outcome = run(data)
    assert any("1 of 5 classes have no fit sample" in note for note in outcome.notes)
    head = outcome.runs[0].configs[outcome.chosen].head
    assert np.isneginf(head["head.bias"][4].item())
    sk = reference(x_of(data["fit"]), data["fit"].targets, CONFIGS[outcome.chosen].C)
    np.testing.assert_array_equal(predicted(outcome), sk.predict(x_of(data["report"])))


def test_refit_and_leak() -> None:
    data = roles()
    outcome = run(data, refit=True)
    x = np.concatenate([x_of(data["fit"]), x_of(data["select"])])
    targets = np.concatenate([data["fit"].targets, data["select"].targets])
    sk = reference(x, targets, CONFIGS[outcome.chosen].C)
    np.testing.assert_array_equal(predicted(outcome), sk.predict(x_of(data["report"])))
    assert "trained again on fit + select (271 samples)" in outcome.runs[0].configs[outcome.chosen].notes[0]
    again = run(shuffled(data, "report"), refit=True)
    assert again.chosen == outcome.chosen
    np.testing.assert_array_equal(predicted(again), predicted(outcome))


def test_moments_of_far_off_features() -> None:
    data = roles()
    far = {name: role(name, x_of(part) + 1000, part.targets) for name, part in data.items()}
    fit = prepare(far, settings(CONFIGS), CPU.device).fit
    mean, spread = moments(fit)
    np.testing.assert_allclose(mean, x_of(far["fit"]).astype(np.float64).mean(0), rtol=1e-9)
    np.testing.assert_allclose(spread, x_of(far["fit"]).astype(np.float64).std(0), rtol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(ViRBError, match="at least two classes"):
        run(roles(), n_classes=1)
    with pytest.raises(ValueError, match="greater than 0"):
        LogisticConfig(C=0.0)
