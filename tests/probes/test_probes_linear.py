"""The probes linear and mlp from roles to outcome: selection, report, refit, seeds, resume, bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from virb.config import GradientConfig, MlpConfig, SchedulerConfig
from virb.errors import UserError, ViRBError
from virb.metrics.base import find_metric
from virb.probes import linear
from virb.probes.base import Context, Outcome, RoleData, Settings, find_probe, probe_names
from virb.probes.grid import Trained
from virb.probes.heads import apply_head
from virb.probes.linear import GradientProbe, LinearProbe, MlpProbe

CLASSES, WIDTH = 5, 16


class ArrayFeatures:
    def __init__(self, values: np.ndarray, shape: tuple[int, ...] | None = None) -> None:
        self.values = torch.from_numpy(values.astype(np.float32))
        self.shape: tuple[int, ...] | None = tuple(values.shape[1:]) if shape is None else shape

    def __len__(self) -> int:
        return len(self.values)

    def set_epoch(self, epoch: int) -> None:
        pass

    def gather(self, samples: torch.Tensor | np.ndarray) -> torch.Tensor:
        return self.values[torch.as_tensor(samples)]

    def sample(self, index: int) -> list[torch.Tensor]:
        return [self.values[index]]


def role(name: str, n: int, seed: int, images: int = 1) -> RoleData:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(77).normal(size=(CLASSES, images * WIDTH))
    targets = rng.permutation(np.arange(n) % CLASSES)
    x = centres[targets] + 2.0 * rng.normal(size=(n, images * WIDTH))
    ids = np.array([f"{name}{i}" for i in range(n)])
    return RoleData(ArrayFeatures(x.reshape(n, images, WIDTH) if images > 1 else x), targets, ids, ids)


def roles(images: int = 1, select: bool = True) -> dict[str, RoleData]:
    found = {"fit": role("fit", 210, 1, images), "report": role("report", 83, 3, images)}
    return found | ({"select": role("select", 61, 2, images)} if select else {})


CONFIGS = {
    "diverges": GradientConfig(optimizer="sgd", lr=3e38, momentum=0.9),
    "tiny": GradientConfig(optimizer="sgd", lr=1e-6),
    "adamw": GradientConfig(optimizer="adamw", lr=0.01, weight_decay=0.1, scheduler=SchedulerConfig(type="cosine", per="step")),
    "sgd": GradientConfig(optimizer="sgd", lr=0.05, momentum=0.9),
}
SETTINGS = Settings(
    configs=CONFIGS,
    num_epochs=6,
    batch_size=32,
    test_batch_size=25,
    selection="val",
    seeds=(0,),
    refit=False,
    loss="cross_entropy",
    metrics=("top1", "mean_class_accuracy"),
    n_classes=CLASSES,
)
CPU = Context(torch.device("cpu"))


def run(data: dict[str, RoleData], settings: Settings = SETTINGS, context: Context = CPU, probe: GradientProbe | None = None) -> Outcome:
    return (probe or LinearProbe()).from_features(data, settings, context)


def scores(values: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    loss = nn.functional.cross_entropy(torch.from_numpy(values), torch.from_numpy(targets)).item()
    return loss, float((values.argmax(1) == targets).mean())


def assert_same(a: Outcome, b: Outcome) -> None:
    """Bit for bit, the report loss included."""
    assert (a.chosen, a.index_lists, a.selected_on, a.notes) == (b.chosen, b.index_lists, b.selected_on, b.notes)
    for one, two in zip(a.runs, b.runs, strict=True):
        assert (one.seed, one.chosen) == (two.seed, two.chosen)
        for name, x in one.configs.items():
            y = two.configs[name]
            assert (x.history, x.epoch, x.diverged, x.train_loss, x.select_loss) == (
                y.history,
                y.epoch,
                y.diverged,
                y.train_loss,
                y.select_loss,
            )
            assert (x.train_metrics, x.select_metrics, x.notes) == (y.train_metrics, y.select_metrics, y.notes)
            assert (x.head is None) == (y.head is None)
            for key in x.head or {}:
                assert torch.equal(x.head[key], y.head[key])
            assert (x.report is None) == (y.report is None)
            if x.report is not None:
                assert x.report.loss == y.report.loss
                np.testing.assert_array_equal(x.report.values, y.report.values)


def test_the_probes_are_registered() -> None:
    assert {"linear", "mlp"} <= set(probe_names())
    assert find_probe("linear") is LinearProbe
    assert MlpProbe.Config is MlpConfig
    assert LinearProbe.shape == "features"


def test_chosen_on_select_and_reported_once() -> None:
    data = roles()
    outcome = run(data)
    configs = outcome.runs[0].configs
    assert list(configs) == list(CONFIGS)
    assert outcome.selected_on == "val"
    assert outcome.index_lists == {}
    assert configs["diverges"].diverged
    assert configs["diverges"].select_loss is None
    assert "diverged in epoch" in configs["diverges"].notes[0]

    alive = [c for c in configs.values() if not c.diverged]
    assert outcome.chosen == max(alive, key=lambda c: (c.select_metrics["top1"], -c.select_loss)).name != "tiny"
    assert [c.name for c in configs.values() if c.report is not None] == [outcome.chosen]
    for config in alive:
        best = max(config.history, key=lambda r: (r["select_top1"], -r["select_loss"], -r["epoch"]))
        assert config.epoch == best["epoch"]
        assert config.select_loss == best["select_loss"]
        # the head that is handed out is the one of that epoch, and its numbers are over the whole split
        values = apply_head(config.head, data["select"].features.values).numpy()
        assert scores(values, data["select"].targets) == pytest.approx((config.select_loss, config.select_metrics["top1"]), rel=1e-5)
        assert config.select_metrics["mean_class_accuracy"] == pytest.approx(
            find_metric("mean_class_accuracy").score(values, data["select"].targets)
        )
        assert set(config.train_metrics) == {"top1"}
    report = configs[outcome.chosen].report
    assert report.values.shape == (83, CLASSES)
    assert report.values.dtype == np.float32
    assert scores(report.values, data["report"].targets)[0] == pytest.approx(report.loss, rel=1e-5)


@pytest.mark.parametrize("select", [True, False])
@pytest.mark.parametrize("refit", [True, False])
def test_leak_permuting_the_report_targets_changes_the_report_loss_alone(select: bool, refit: bool) -> None:
    data, settings = roles(select=select), replace(SETTINGS, refit=refit)
    shuffled = data | {"report": replace(data["report"], targets=np.random.default_rng(5).permutation(data["report"].targets))}
    blind = data | {"report": replace(data["report"], targets=None)}
    outcome, leaked, unlabelled = (run(d, settings) for d in (data, shuffled, blind))
    chosen = outcome.chosen
    losses = [o.runs[0].configs[chosen].report.loss for o in (outcome, leaked, unlabelled)]
    assert losses[0] != losses[1]
    assert losses[2] is None
    for other in (leaked, unlabelled):
        report = other.runs[0].configs[chosen].report
        other.runs[0].configs[chosen].report = replace(report, loss=losses[0])
        assert_same(outcome, other)


def test_without_a_select_role_a_part_of_fit_is_held_out() -> None:
    data = roles(select=False)
    outcome = run(data)
    held = outcome.index_lists["select"]
    assert outcome.selected_on == "hold-out"
    assert len(held) == 20  # 42 samples per class, 4 of each
    rest = np.setdiff1d(np.arange(210), held)

    def part(index: np.ndarray) -> RoleData:
        fit = data["fit"]
        return RoleData(ArrayFeatures(fit.features.values[index].numpy()), fit.targets[index], fit.sample_ids[index], fit.units[index])

    explicit = run({"fit": part(rest), "select": part(np.array(held)), "report": data["report"]})
    explicit.index_lists, explicit.selected_on = outcome.index_lists, outcome.selected_on
    assert_same(outcome, explicit)


def test_test_last_scores_every_config_after_the_last_epoch() -> None:
    data = roles()
    outcome = run(data, replace(SETTINGS, selection="test-last"))
    configs = outcome.runs[0].configs
    assert outcome.selected_on == "test-last"
    accuracy = {}
    for config in configs.values():
        if config.diverged:
            assert config.report is None
            continue
        assert config.epoch == 6
        assert config.select_loss is None
        assert config.select_metrics == {}
        assert not any(key.startswith("select") for record in config.history for key in record)
        loss, accuracy[config.name] = scores(config.report.values, data["report"].targets)
        assert config.report.loss == pytest.approx(loss, rel=1e-5)
    assert outcome.chosen == max(accuracy, key=accuracy.get)
    # nothing is held out and the select samples take no part
    assert_same(outcome, run(roles(select=False), replace(SETTINGS, selection="test-last")))


def test_test_best_takes_epoch_and_config_from_the_report_samples() -> None:
    data = roles()
    outcome = run(data, replace(SETTINGS, selection="test-best"))
    as_select = run({"fit": data["fit"], "select": data["report"], "report": data["report"]})
    assert outcome.chosen == as_select.chosen
    for name, config in outcome.runs[0].configs.items():
        assert config.epoch == as_select.runs[0].configs[name].epoch
        assert config.select_loss is None
        if not config.diverged:
            assert config.report.loss == pytest.approx(as_select.runs[0].configs[name].select_loss, rel=1e-6)


def test_refit_trains_the_chosen_config_again_on_everything() -> None:
    data = roles()
    plain, refit = run(data), run(data, replace(SETTINGS, refit=True))
    name, before = plain.chosen, plain.runs[0].configs[plain.chosen]
    after = refit.runs[0].configs[name]
    assert refit.chosen == name
    assert (after.epoch, after.select_loss, after.history) == (before.epoch, before.select_loss, before.history)
    assert "trained again on fit + select (271 samples)" in after.notes[0]
    both = RoleData(
        ArrayFeatures(np.concatenate([data[r].features.values.numpy() for r in ("fit", "select")])),
        np.concatenate([data[r].targets for r in ("fit", "select")]),
        np.concatenate([data[r].sample_ids for r in ("fit", "select")]),
        np.concatenate([data[r].units for r in ("fit", "select")]),
    )
    # The same training by other means: no selection, stopped by a schedule-free config after the chosen number of epochs.
    again = replace(SETTINGS, configs={"sgd": CONFIGS["sgd"]}, selection="test-last", num_epochs=4)
    only = replace(SETTINGS, configs={"sgd": CONFIGS["sgd"]}, refit=True, num_epochs=4)
    chosen = run(data, only).runs[0].configs["sgd"]
    expected = run({"fit": both, "report": data["report"]}, replace(again, num_epochs=chosen.epoch)).runs[0].configs["sgd"]
    for key in expected.head:
        assert torch.equal(chosen.head[key], expected.head[key])
    np.testing.assert_array_equal(chosen.report.values, expected.report.values)
    for other in plain.runs[0].configs:
        if other != name:
            assert refit.runs[0].configs[other].report is None


def test_seeds_share_one_choice() -> None:
    outcome = run(roles(), replace(SETTINGS, seeds=(0, 4)))
    assert [r.seed for r in outcome.runs] == [0, 4]
    assert {r.chosen for r in outcome.runs} == {outcome.chosen}
    means = {
        name: np.mean([r.configs[name].select_metrics["top1"] for r in outcome.runs])
        for name in CONFIGS
        if not outcome.runs[0].configs[name].diverged
    }
    assert means[outcome.chosen] == max(means.values())
    heads = [r.configs[outcome.chosen].head["head.weight"] for r in outcome.runs]
    assert not torch.equal(*heads)
    assert_same(Outcome(outcome.runs[1:], outcome.chosen), Outcome(run(roles(), replace(SETTINGS, seeds=(4,))).runs, outcome.chosen))


@pytest.mark.parametrize("probe", [LinearProbe(), MlpProbe()])
def test_images_of_a_sample_are_concatenated(probe: GradientProbe) -> None:
    configs = {"a": MlpConfig(optimizer="adam", lr=0.01, hidden=9), "b": MlpConfig(optimizer="sgd", lr=0.1, hidden=4)}
    settings = replace(SETTINGS, configs=configs if isinstance(probe, MlpProbe) else CONFIGS)
    three = roles(images=3)
    flat = {name: replace(r, features=ArrayFeatures(r.features.values.flatten(1).numpy())) for name, r in three.items()}
    outcome = run(three, settings, probe=probe)
    assert_same(outcome, run(flat, settings, probe=probe))
    head = outcome.runs[0].configs[outcome.chosen].head
    if isinstance(probe, MlpProbe):
        assert list(head) == ["head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"]
        assert head["head.0.weight"].shape == (configs[outcome.chosen].hidden, 3 * WIDTH)
        assert outcome.runs[0].configs["b"].head["head.0.weight"].shape[0] == 4
    else:
        assert head["head.weight"].shape == (CLASSES, 3 * WIDTH)


def test_progress_and_curves() -> None:
    told, curves = [], []
    context = Context(torch.device("cpu"), progress=lambda *a: told.append(a), scalars=lambda *a: curves.append(a))
    outcome = run(roles(), replace(SETTINGS, seeds=(0, 4)), context)
    assert told == [("training", n, 12) for n in range(1, 13)]
    tags = {tag for config, tag, *_ in curves if config == "sgd"}
    names = {"loss/train", "loss/select", "top1/train", "top1/select", "mean_class_accuracy/select", "lr"}
    assert tags == names | {f"seed4/{name}" for name in names}
    history = outcome.runs[0].configs["sgd"].history
    assert [(v, step) for c, tag, v, step in curves if (c, tag) == ("sgd", "top1/select")] == [
        (r["select_top1"], r["epoch"]) for r in history
    ]
    assert all(math.isfinite(value) for _, _, value, _ in curves)


def test_the_grid_gets_the_cores_and_its_notes_are_the_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    real = linear.train_grid

    def noted(*arguments: object, **options: object) -> dict[str, Trained]:
        given.append(options["cores"])
        options["notes"].append("not as planned")
        return real(*arguments, **options)

    monkeypatch.setattr(linear, "train_grid", noted)
    outcome = run(roles(), replace(SETTINGS, seeds=(0, 4)), Context(torch.device("cpu"), cores=3))
    assert given == [3, 3]
    assert outcome.notes == ["not as planned"]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [2, 6, 9, 14, 19])
def test_interrupted_anywhere_the_outcome_is_the_same(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientProbe, "save_every_s", 0.0)
    settings = replace(SETTINGS, seeds=(0, 4), refit=True)
    undisturbed = run(roles(), settings)

    def progress(phase: str, done: int, total: int) -> None:
        assert total == 24
        if done >= stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(roles(), settings, Context(torch.device("cpu"), tmp_path, progress))
    assert list(tmp_path.iterdir())
    assert_same(run(roles(), settings, Context(torch.device("cpu"), tmp_path)), undisturbed)


def test_threads_change_no_more_than_the_last_digits() -> None:
    """The library's matrix product may sum a block of odd size in another order; with one number of threads all is bit-identical."""
    before = torch.get_num_threads()
    try:
        outcomes = []
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            outcomes.append(run(roles()))
    finally:
        torch.set_num_threads(before)
    assert_same(outcomes[0], outcomes[2])
    one, two = (outcome.runs[0].configs for outcome in outcomes[:2])
    for name in CONFIGS:
        assert len(one[name].history) == len(two[name].history)
        for a, b in zip(one[name].history, two[name].history, strict=True):
            assert a == pytest.approx(b, rel=1e-5)


def test_all_diverged_is_an_error() -> None:
    with pytest.raises(ViRBError, match=r"every training config diverged \(diverges\)"):
        run(roles(), replace(SETTINGS, configs={"diverges": CONFIGS["diverges"]}))


@pytest.mark.parametrize("where", ["fit", "select", "report"])
def test_features_that_are_not_finite_are_counted(where: str) -> None:
    data = roles()
    data[where].features.values[3, 2] = torch.nan
    data[where].features.values[7] = torch.inf
    with pytest.raises(ViRBError, match=rf"2 of \d+ rows of the {where} features are NaN or infinite"):
        run(data)


def test_maps_and_ragged_features_ask_for_a_reduction() -> None:
    data = roles()
    for shape, message in (((8, 4, 4), "8 x 4 x 4 per sample"), (None, "differ in shape")):
        wrong = ArrayFeatures(np.zeros((210, 8, 4, 4)))
        wrong.shape = shape
        with pytest.raises(ViRBError, match=message) as error:
            run(data | {"fit": replace(data["fit"], features=wrong)})
        assert "tokens[-1].mean" in str(error.value)


def test_one_image_with_an_axis_of_its_own_is_a_vector() -> None:
    data = roles()
    extra = {name: replace(r, features=ArrayFeatures(r.features.values[:, None, None].numpy())) for name, r in data.items()}
    assert_same(run(extra), run(data))


def test_other_bad_input_has_a_message() -> None:
    data = roles()
    cases = [
        ({"report": data["report"]}, SETTINGS, "no(ne)?.*fit|fit on"),
        (data, replace(SETTINGS, n_classes=1), "at least two classes"),
        (data, replace(SETTINGS, n_classes=None), "at least two classes"),
        (data, replace(SETTINGS, n_classes=4), "run from 0 to 4, but there are 4 classes"),
        (data | {"fit": replace(data["fit"], targets=np.full(210, 3))}, SETTINGS, "all 210 fit samples are of class 3"),
        (data | {"fit": replace(data["fit"], targets=None)}, SETTINGS, "fit samples have no targets"),
        (data | {"select": replace(data["select"], targets=None)}, SETTINGS, "select samples have no targets"),
        (data | {"report": role("report", 0, 1)}, SETTINGS, "no report samples"),
        (data | {"report": role("report", 9, 1, images=2)}, SETTINGS, "differ in size between roles: fit 16, select 16, report 32"),
        ({"fit": data["fit"]}, replace(SETTINGS, selection="test-last"), "chooses on the report samples"),
    ]
    for given, settings, message in cases:
        with pytest.raises(ViRBError, match=message):
            run(given, settings)
    with pytest.raises(UserError, match="refit"):
        run(data, replace(SETTINGS, refit=True, selection="test-last"))


def test_absent_classes_are_noted() -> None:
    assert run(roles(), replace(SETTINGS, n_classes=7)).notes == ["2 of 7 classes have no fit sample"]
