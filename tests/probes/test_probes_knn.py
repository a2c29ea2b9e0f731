"""The probe knn: DINO's accuracies, one search for all configs, selection, indexes of faiss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.neighbors import KNeighborsClassifier
from vector_support import CLASSES, CPU, planted, predicted, role, roles, settings, shuffled, x_of

from virb.errors import ViRBError
from virb.functional import knn as functional
from virb.metrics.base import find_metric
from virb.probes import knn
from virb.probes.base import find_probe
from virb.probes.knn import KnnConfig, KnnProbe

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = {f"k{k}": KnnConfig(k=k) for k in (1, 5, 20)}


def run(data, configs=CONFIGS, **changes):
    return KnnProbe().from_features(data, settings(configs, **changes), CPU)


def numbers(outcome, name):
    report = outcome.runs[0].configs[name].report
    return {metric: find_metric(metric).of(statistics) for metric, statistics in report.statistics.items()}


def test_registered() -> None:
    assert find_probe("knn") is KnnProbe


def test_dinos_top_1_and_top_5() -> None:
    golden = np.load(GOLDEN / "dino_knn.npz", allow_pickle=False)
    data = {
        "fit": role("fit", golden["train_features"], golden["train_labels"].astype(np.int64)),
        "report": role("report", golden["test_features"], golden["test_labels"].astype(np.int64)),
    }
    configs = {f"k{k}": KnnConfig(k=int(k)) for k in golden["k"]}
    outcome = run(data, configs, selection="test-last", n_classes=int(golden["num_classes"]), metrics=("top1", "top5"))
    for name in configs:
        found = numbers(outcome, name)
        assert found["top1"] * 100 == pytest.approx(float(golden[f"{name}.top1"]), abs=1e-9)
        assert found["top5"] * 100 == pytest.approx(float(golden[f"{name}.top5"]), abs=1e-9)
        np.testing.assert_array_equal(outcome.runs[0].configs[name].report.values, golden[f"{name}.prediction"])


def test_chosen_on_select_and_reported_once() -> None:
    data = roles()
    outcome = run(data)
    found = outcome.runs[0].configs
    assert outcome.selected_on == "val"
    assert outcome.chosen == max(found.values(), key=lambda c: c.select_metrics["top1"]).name
    assert [name for name, config in found.items() if config.report is not None] == [outcome.chosen]
    for name, config in CONFIGS.items():
        weights = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
        sk = KNeighborsClassifier(config.k, weights=weights, metric="cosine", algorithm="brute").fit(x_of(data["fit"]), data["fit"].targets)
        accuracy = sk.score(x_of(data["select"]), data["select"].targets)
        assert found[name].select_metrics["top1"] == pytest.approx(accuracy)
        if name == outcome.chosen:
            np.testing.assert_array_equal(predicted(outcome), sk.predict(x_of(data["report"])))


def test_the_report_targets_choose_nothing() -> None:
    data = roles(select=False)
    first, second = run(data), run(shuffled(data, "report"))
    assert first.chosen == second.chosen
    assert first.index_lists == second.index_lists
    assert len(first.index_lists["select"]) == 20
    np.testing.assert_array_equal(predicted(first), predicted(second))


def test_one_search_serves_every_k_and_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    nearest = knn.Nearest
    monkeypatch.setattr(knn, "Nearest", lambda queries, k: searches.append((len(queries), k)) or nearest(queries, k))
    configs = {f"{k}-{t}": KnnConfig(k=k, temperature=t) for k in (1, 7, 30) for t in (0.02, 0.07, 1.0)}
    configs["uniform"] = KnnConfig(k=11, weighting="uniform")
    together = run(roles(), configs, selection="test-last")
    assert searches == [(83, 30)]
    for name, config in configs.items():
        alone = run(roles(), {name: config}, selection="test-last")
        np.testing.assert_array_equal(together.runs[0].configs[name].report.values, alone.runs[0].configs[name].report.values)


def test_pieces_and_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(roles())
    monkeypatch.setattr(functional, "_PIECE", 31 * 16)
    monkeypatch.setattr(knn, "_QUERIES", 17 * 16)
    monkeypatch.setattr(knn, "_VOTES", 3 * CLASSES)
    parts = run(roles())
    assert parts.chosen == whole.chosen
    np.testing.assert_array_equal(predicted(parts), predicted(whole))
    assert numbers(parts, parts.chosen) == numbers(whole, whole.chosen)


def test_indexes_of_faiss() -> None:
    exact = run(roles(), {"k": KnnConfig(k=9)})
    flat = run(roles(), {"k": KnnConfig(k=9, index="flat")})
    all_cells = run(roles(), {"k": KnnConfig(k=9, index="ivf", nlist=8, nprobe=8)})
    for other in (flat, all_cells):
        np.testing.assert_array_equal(predicted(other), predicted(exact))
    easy = roles(noise=0.1)
    one_cell = run(easy, {"k": KnnConfig(k=60, index="ivf", nlist=20, nprobe=1)})  # fewer than k in a cell
    assert numbers(one_cell, "k")["top1"] == 1.0


def test_inner_product_without_normalising() -> None:
    data = roles()
    outcome = run(data, {"dot": KnnConfig(k=1, normalise=False), "cosine": KnnConfig(k=1)}, selection="test-last")
    bank, queries = x_of(data["fit"]), x_of(data["report"])
    expected = data["fit"].targets[(queries @ bank.T).argmax(1)]
    np.testing.assert_array_equal(outcome.runs[0].configs["dot"].report.values, expected)
    large = run({name: role(name, 100 * x_of(d), d.targets) for name, d in data.items()}, {"dot": KnnConfig(k=5, normalise=False)})
    assert numbers(large, "dot")["top1"] > 0.3  # exp(similarity / temperature) would be infinite


def test_refit_adds_the_select_samples_to_the_bank() -> None:
    data = roles()
    outcome = run(data, {"k": KnnConfig(k=3)}, refit=True)
    bank = np.concatenate([x_of(data["fit"]), x_of(data["select"])])
    labels = np.concatenate([data["fit"].targets, data["select"].targets])
    weights = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    sk = KNeighborsClassifier(3, weights=weights, metric="cosine", algorithm="brute").fit(bank, labels)
    np.testing.assert_array_equal(predicted(outcome), sk.predict(x_of(data["report"])))
    assert "271" in outcome.runs[0].configs["k"].notes[0]


def test_notes() -> None:
    outcome = run(roles(), {"k": KnnConfig(k=500)}, seeds=(0, 1))
    assert any("only 210 samples" in note for note in outcome.notes)
    assert any("one run stands for all 2 seeds" in note for note in outcome.notes)
    assert len(outcome.runs) == 1


def test_separable_classes_score_all_and_shuffled_ones_chance() -> None:
    easy = roles(noise=0.05)
    assert numbers(run(easy), run(easy).chosen)["top1"] == 1.0
    lost = run(shuffled(easy | {"fit": planted("fit", 1000, 1, 0.05)}, "fit"))
    assert numbers(lost, lost.chosen)["top1"] < 0.45


def test_any_number_of_classes_and_samples() -> None:
    x = np.eye(12, dtype=np.float32)[:, :12]
    data = {"fit": role("fit", x, np.arange(12) * 700), "report": role("report", x[:1], np.array([700 * 0]))}
    outcome = run(data, {"k": KnnConfig(k=1)}, n_classes=8000, selection="test-last")
    assert predicted(outcome).tolist() == [0]


def test_bad_input() -> None:
    data = roles()
    with pytest.raises(ValidationError, match="takes no nprobe"):
        KnnConfig(nprobe=4)
    with pytest.raises(ValidationError):
        KnnConfig(k=0)
    with pytest.raises(ValidationError, match="uniform votes take no temperature"):
        KnnConfig(weighting="uniform", temperature=0.1)
    assert KnnConfig(weighting="uniform").temperature is None
    assert KnnConfig().temperature == 0.07
    bad = x_of(data["fit"]).copy()
    bad[3] = np.nan
    with pytest.raises(ViRBError, match="1 of 210 rows of the fit features are NaN"):
        run(data | {"fit": role("fit", bad, data["fit"].targets)})
    with pytest.raises(ViRBError, match="one class number per sample"):
        run(data | {"fit": role("fit", x_of(data["fit"]), np.zeros((210, 3)))})
