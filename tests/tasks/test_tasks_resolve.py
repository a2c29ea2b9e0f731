"""Explicit key > protocol > task default > default protocol, for every key, with where each value came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from virb.config import GradientConfig, load_task_configs, task_config_from_mapping
from virb.data.transforms import Geometry
from virb.errors import ConfigError, UserError
from virb.tasks import base, protocols
from virb.tasks.base import Task
from virb.tasks.protocols import DEFAULT, Protocol
from virb.tasks.resolve import ResolvedTask, resolve_task
from virb.tasks.vocabulary import TaskVocabulary

WORDS = TaskVocabulary(["pixels"])
Register = Callable[..., Task]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Adds a task to the catalogue for one test: ``digits`` with changes."""

    def add(task_id: str, **changes: Any) -> Task:
        task = replace(base.all_tasks()["digits"], id=task_id, **changes)
        monkeypatch.setitem(base._TASKS, task_id, task)
        return task

    return add


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Protocol]:
    """Adds a protocol named ``bundle`` for one test."""

    def add(**fields: Any) -> Protocol:
        monkeypatch.setitem(protocols.PROTOCOLS, "bundle", Protocol("bundle", **fields))
        return protocols.PROTOCOLS["bundle"]

    return add


def resolve(keys: dict[str, Any], protocol: str | None = None, seed: int = 0) -> list[ResolvedTask]:
    return resolve_task(task_config_from_mapping("label", keys, WORDS, protocol=protocol), protocol, seed)


def one(keys: dict[str, Any], protocol: str | None = None, seed: int = 0) -> ResolvedTask:
    (task,) = resolve(keys, protocol, seed)
    return task


# key -> (the default protocol's value, a task's, a protocol's, the user's)
LAYERS: dict[str, tuple[Any, Any, Any, Any]] = {
    "num_epochs": (50, 11, 12, 13),
    "batch_size": (256, 11, 12, 13),
    "test_batch_size": (1024, 11, 12, 13),
    "selection": ("val", "test-last", "test-best", "test-last"),
    "seeds": ((0,), (1,), (2, 3), (4,)),
    "refit": (False, True, True, False),
    "views": (1, 2, 3, 4),
    "augment": ("none", "crop-flip", "crop-flip", "none"),
    "on_bad_image": ("error", "skip", "skip", "error"),
    "features": ("embedding", "tokens[-1].mean", "cls[-1]", "cls[-2]"),
    "probe": ("linear", "mlp", "mlp", "linear"),
}


@pytest.mark.parametrize("key", LAYERS)
def test_who_wins(register: Register, bundle: Callable[..., Protocol], key: str) -> None:
    default, of_task, of_protocol, explicit = (list(value) if isinstance(value, tuple) else value for value in LAYERS[key])
    named = {key: of_task} if key in ("features", "probe") else {"defaults": {key: of_task}}
    register("mine", **named)
    bundle(values={key: of_protocol})

    def value(keys: dict[str, Any]) -> tuple[Any, str]:
        task = one(keys)
        found = getattr(task, key)
        return (list(found) if isinstance(found, tuple) else found), task.origins[key]

    lowest = "task digits" if key in ("features", "probe") else "default"
    assert value({"task": "digits"}) == (default, lowest)
    assert value({"task": "mine"}) == (of_task, "task mine")
    assert value({"task": "mine", "protocol": "bundle"}) == (of_protocol, "protocol bundle")
    assert value({"task": "mine", "protocol": "bundle", key: explicit}) == (explicit, "<python>")


def test_who_wins_for_training_configs(register: Register, bundle: Callable[..., Protocol]) -> None:
    def named(lr: float) -> dict[str, Any]:
        return {"training_configs": {f"lr{lr}": {"optimizer": "sgd", "lr": lr}}}

    register("mine", defaults=named(1.0))
    bundle(probes={"linear": named(2.0)})
    assert len(one({"task": "digits"}).configs) == 40
    assert one({"task": "mine"}).configs == {"lr1.0": GradientConfig(optimizer="sgd", lr=1.0)}
    assert one({"task": "mine"}).origins["training_configs"] == "task mine"
    assert list(one({"task": "mine", "protocol": "bundle"}).configs) == ["lr2.0"]
    assert len(one({"task": "mine", "protocol": "bundle", "probe": "mlp"}).configs) == 40  # neither knows mlp
    assert list(one({"task": "mine", "protocol": "bundle", **named(3.0)}).configs) == ["lr3.0"]
    assert list(one({"task": "mine", "grid": {"optimizer": "sgd", "lr": [4, 5]}}).configs) == ["lr4", "lr5"]


def test_a_tasks_wrong_defaults_are_named(register: Register) -> None:
    register("mine", defaults={"num_epoch": 3, "seeds": "many"})
    with pytest.raises(UserError, match=r"task mine has wrong defaults: .*seeds: expected how many.*num_epoch: unknown key; did you mean"):
        one({"task": "mine"})


def test_what_the_user_changed_stands_on_the_card(bundle: Callable[..., Protocol]) -> None:
    bundle(values={"num_epochs": 7, "probe": "linear"}, probes={"linear": {"grid": {"optimizer": "adam", "lr": [1.0, 2.0]}}})
    assert one({"task": "digits"}).changed == {}
    assert one({"task": "digits", "protocol": "bundle"}).changed == {}
    same = {"task": "digits", "protocol": "bundle", "num_epochs": 7, "batch_size": 256, "grid": {"optimizer": "adam", "lr": [1.0, 2.0]}}
    assert one(same).changed == {}  # said again, not changed
    keys = {"num_epochs": 8, "refit": True, "seeds": [0, 1], "features": "tokens", "grid": {"optimizer": "adam", "lr": [1.0]}}
    assert one({"task": "digits", "protocol": "bundle", **keys}).changed == {
        "num_epochs": 8,
        "refit": True,
        "seeds": [0, 1],
        "features": "tokens[-1]",
        "training_configs": ["adam"],
    }
    assert one({"task": "digits", "protocol": "bundle", "probe": "mlp"}).changed == {"probe": "mlp"}
    assert one({"task": "digits", "probe": "mlp"}).changed == {}  # the default protocol names no probe


TRAINING_FREE = ("knn", "logistic", "ncm", "fewshot", "lowshot")


@pytest.mark.parametrize("probe", TRAINING_FREE)
def test_probes_without_epochs_see_plain_images_whatever_a_files_defaults_say(probe: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "defaults: {views: 4, augment: crop-flip, num_epochs: 7, batch_size: 9}\n"
        f"plain: {{task: digits, probe: {probe}}}\ntrained: {{task: digits}}\n"
    )
    plain, trained = (resolve_task(config)[0] for config in load_task_configs(path, WORDS).checked())
    alone = one({"task": "digits", "probe": probe})
    keys = ("num_epochs", "batch_size", "test_batch_size", "views", "augment", "changed", "stream")
    assert [getattr(plain, key) for key in keys] == [getattr(alone, key) for key in keys]
    assert (plain.views, plain.augment, plain.changed) == (1, "none", {})
    assert plain.origins["views"] == plain.origins["num_epochs"] == f"the probe {probe} has no epochs"
    assert (trained.views, trained.augment, trained.num_epochs, trained.batch_size) == (4, "crop-flip", 7, 9)


@pytest.mark.parametrize("probe", TRAINING_FREE)
@pytest.mark.parametrize(
    "given", [{"views": 4}, {"views": "fresh"}, {"num_dataset_repeats": 2}, {"augment": "crop-flip"}, {"num_epochs": 5}]
)
def test_what_means_nothing_to_a_probe_without_epochs_is_refused(probe: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"the probe {probe} is not trained epoch by epoch, so .* has no meaning for it") as error:
        one({"task": "digits", "probe": probe, **given})
    assert error.value.problems[0].key == f"label.{next(iter(given))}"


def test_a_protocol_with_views_has_none_for_probes_without_epochs() -> None:
    task = one({"task": "digits", "protocol": "dino-linear", "probe": "knn"})
    assert (task.views, task.augment, task.num_epochs) == (1, "none", 50)
    assert one({"task": "digits", "probe": "knn", "views": 1, "augment": "none"}).views == 1  # said, and so
    with pytest.raises(ConfigError, match=r"label\.batch_size: the probe knn|so batch_size has no meaning"):
        one({"task": "digits", "probe": "knn", "batch_size": 8})


@pytest.mark.parametrize(("batch", "rates"), [(None, [0.004, 0.012, 0.04, 0.12, 0.4]), (256, [0.001, 0.003, 0.01, 0.03, 0.1])])
def test_dinos_learning_rates_are_per_256_samples(batch: int | None, rates: list[float]) -> None:
    given = {} if batch is None else {"batch_size": batch}
    task = one({"task": "digits", "protocol": "dino-linear", **given})
    assert [config.lr for config in task.configs.values()] == rates  # type: ignore[attr-defined]
    assert list(task.configs) == [f"lr{rate:g}" for rate in rates]
    assert task.changed == given  # the rates follow from the batch size
    said = one({"task": "digits", "protocol": "dino-linear", "batch_size": 64, "training_configs": {"a": {"optimizer": "sgd", "lr": 0.1}}})
    assert [config.lr for config in said.configs.values()] == [0.1]  # type: ignore[attr-defined]
    assert next(c.lr for c in one({"task": "digits", "batch_size": 64}).configs.values()) == 1e-5  # type: ignore[attr-defined]


def test_the_default_is_a_sweep_of_ten_learning_rates_and_more() -> None:
    for probe in ("linear", "mlp"):
        default = one({"task": "digits", "probe": probe}).configs
        assert len({config.lr for config in default.values()}) >= 10  # type: ignore[attr-defined]
        assert default == one({"task": "digits", "probe": probe, "protocol": "linear-sweep"}).configs


@pytest.mark.parametrize(
    ("task_id", "epochs", "rate"),
    [
        ("Imagenet", 100, 1e-4),
        ("SUN397", 250, 1e-4),
        ("CIFAR-100", 100, 1e-4),
        ("CalTech-101", 500, 1e-4),
        ("Eurosat", 200, 1e-4),
        ("KineticsActionPrediction", 100, 3e-4),
        ("nuScenesActionPrediction", 100, 1e-4),
        ("CLEVRNumObjects", 100, 1e-4),
        ("THORNumSteps", 100, 1e-4),
        ("THORActionPrediction", 100, 1e-4),
        ("Pets", 100, 1e-4),
        ("dtd", 100, 1e-4),
    ],
)
def test_virb_2021_as_published(task_id: str, epochs: int, rate: float) -> None:
    """The shipped all.yaml of 2021, and what stood in its working copy for the two tasks that it lacks."""
    task = one({"task": task_id, "protocol": "virb2021"})
    (config,) = task.configs.values()
    assert (task.num_epochs, config.lr, config.optimizer, task.batch_size) == (epochs, rate, "adam", 32)  # type: ignore[attr-defined]
    assert list(task.configs) == [f"adam-{rate:.4f}"]
    assert task.changed == {}
    assert one({"task": task_id, "protocol": "virb2021", "num_epochs": 3}).changed == {"num_epochs": 3}
    assert list(one({"task": task_id, "protocol": "virb2021", "probe": "ncm"}).configs) == ["metriccosine", "metriceuclidean"]


def test_a_list_of_requests_is_a_job_each() -> None:
    asked = ["embedding", "tokens[-1].mean", "cls[-4:].flatten", "tokens[3,5].gem(4)", "cls[-1]+tokens[-1](norm=false).max"]
    with pytest.raises(ConfigError, match=r"label.features"):
        resolve({"task": "digits", "features": [*asked, "tokens[-1].main"]})
    asked[3] = "tokens[3].gem(4)"
    tasks = resolve({"task": "digits", "features": asked})
    assert [task.features for task in tasks] == asked
    assert [task.label for task in tasks] == [
        "label@embedding",
        "label@tokens-1.mean",
        "label@cls-4...flatten",
        "label@tokens3.gem4",
        "label@cls-1+tokens-1-raw.max",
    ]
    assert [task.changed for task in tasks] == [{}, *({"features": text} for text in asked[1:])]
    assert one({"task": "digits", "features": ["cls[-1]"]}).label == "label"
    labels = [task.label for task in resolve({"task": "digits", "features": ["cls[-4]", "cls[-4:]", "cls[4]", "cls[:4]"]})]
    assert len(set(labels)) == 4


def test_two_names_of_one_request_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"tokens\[-1\] and tokens are the same request"):
        resolve({"task": "digits", "features": ["tokens", "tokens[-1]"]})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (1, "none", False)),
        ({"pre_encode": True}, (1, "none", False)),
        ({"pre_encode": False}, (1, "none", True)),
        ({"views": 3}, (3, "crop-flip", False)),
        ({"num_dataset_repeats": 3}, (3, "crop-flip", False)),
        ({"views": "fresh"}, ("fresh", "crop-flip", True)),
        ({"augment": "crop-flip"}, (1, "crop-flip", False)),
        ({"augment": "crop-flip", "pre_encode": False}, ("fresh", "crop-flip", True)),
        ({"augment": "crop-flip", "pre_encode": False, "views": 1}, (1, "crop-flip", True)),
    ],
)
def test_views(keys: dict[str, Any], expected: tuple[Any, str, bool]) -> None:
    task = one({"task": "digits", **keys})
    assert (task.views, task.augment, task.stream) == expected


def test_views_without_augmentation_are_refused(bundle: Callable[..., Protocol]) -> None:
    with pytest.raises(ConfigError, match=r"label.augment  without augmentation all views are equal"):
        one({"task": "digits", "views": 4, "augment": "none"})
    bundle(values={"views": "fresh"})
    assert one({"task": "digits", "protocol": "bundle"}).stream
    with pytest.raises(ConfigError, match=r"label.pre_encode  fresh views \(protocol bundle\) cannot be encoded in advance"):
        one({"task": "digits", "protocol": "bundle", "pre_encode": True})


def test_refit_needs_samples_to_select_on() -> None:
    with pytest.raises(ConfigError, match=r"label.refit  refit: true trains again on fit"):
        one({"task": "digits", "refit": True, "selection": "test-last"})


def test_virb2021_is_the_published_procedure(register: Register) -> None:
    plain, published = one({"task": "digits"}), one({"task": "digits"}, protocol="virb2021")
    assert (published.num_epochs, published.batch_size, published.selection) == (100, 32, "test-last")
    assert dict(published.configs) == {"adam-0.0001": GradientConfig(optimizer="adam", lr=1e-4)}
    assert published.geometry == Geometry((224, 224), "squash", "none", 1.0, "bilinear")
    assert (published.protocol, published.origins["protocol"], published.origins["num_epochs"]) == (
        "virb2021",
        "--protocol",
        "protocol virb2021",
    )
    assert plain.geometry == base.all_tasks()["digits"].geometry
    assert one({"task": "digits", "protocol": "virb2021"}).configs == published.configs

    register("digits@virb2021", metrics=("top5",), probe="mlp")
    assert one({"task": "digits"}).task.id == "digits"
    historic = one({"task": "digits"}, protocol="virb2021")
    assert (historic.task.id, historic.probe) == ("digits@virb2021", "mlp")
    assert one({"task": "digits@virb2021"}).task.id == "digits@virb2021"
    register("digits@other")
    assert one({"task": "digits@other"}, protocol="virb2021").task.id == "digits@other"


def test_the_runs_protocol_wins_over_the_tasks() -> None:
    assert one({"task": "digits", "protocol": "virb2021"}, protocol="default").num_epochs == 50
    known = "default, dino-knn, dino-linear, ibot-linear, linear-sweep, timet-linear, virb2021"
    with pytest.raises(ConfigError, match=f"no protocol 'virb2022'; there are {known}"):
        one({"task": "digits"}, protocol="virb2022")


def test_seeds() -> None:
    assert one({"task": "digits"}, seed=5).seeds == (5,)
    assert one({"task": "digits", "seeds": 3}).seeds == (0, 1, 2)
    task = one({"task": "digits", "seeds": [2, 7]}, seed=10)
    assert task.seeds == (12, 17)
    assert task.origins["seeds"] == "<python> + --seed 10"


def test_the_test_batch_follows_a_large_batch() -> None:
    assert one({"task": "digits", "batch_size": 4000}).test_batch_size == 4000
    assert one({"task": "digits", "batch_size": 4000, "test_batch_size": 10}).test_batch_size == 10


def test_data_options_add_to_the_tasks(register: Register) -> None:
    register("mine", options={"a": 1, "b": 2})
    assert one({"task": "mine", "data": {"b": 3, "c": 4}}).data == {"a": 1, "b": 3, "c": 4}


def test_not_built_yet(register: Register) -> None:
    register("mine", available=False)
    with pytest.raises(ConfigError, match=r"label\.task  the task mine is not available yet; virb list tasks shows those that are"):
        one({"task": "mine"})


# Eval-only


def test_an_eval_only_task_has_its_report_role_alone_and_trains_nothing() -> None:
    task = one({"task": "digits", "heads_from": "other"})
    assert (task.heads_from, task.heads_path, task.configs, dict(task.task.roles)) == ("other", None, {}, {"report": "test"})
    task = one({"task": "digits", "task_head_weights_path": "out/%s/a.pt"})
    assert (task.heads_from, task.heads_path, task.configs, dict(task.task.roles)) == (None, "out/%s/a.pt", {}, {"report": "test"})
    assert task.scores_heads
    assert not one({"task": "digits"}).scores_heads


@pytest.mark.parametrize("task_id", ["Imagenetv2", "ImagenetA", "ImagenetR", "ImagenetSketch", "ImagenetReaL", "ImagenetC"])
def test_the_sets_that_score_imagenets_heads(task_id: str) -> None:
    task = one({"task": task_id})
    assert (task.heads_from, dict(task.task.roles)) == ("Imagenet", {"report": "test"})
    assert one({"task": task_id, "task_head_weights_path": "x.pt"}).heads_from is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_map": {"a": "b"}}, "class_map  says which class of other heads is which; it needs heads_from or task_head_weights_path"),
        ({"heads_from": "label"}, "heads_from  names this very task"),
        ({"heads_from": "x", "task_head_weights_path": "y"}, "heads_from  task_head_weights_path gives the heads already"),
        ({"task": "Imagenetv2", "grid": {"optimizer": "adam", "lr": 1}}, "grid  nothing is trained: the task scores heads of Imagenet"),
        ({"heads_from": "x", "grid": {"optimizer": "adam", "lr": 1}}, "grid  nothing is trained when heads_from gives the head"),
    ],
)
def test_eval_only_mistakes(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one({"task": "digits", **keys})


# Protocols


def test_a_limit_is_a_change_of_the_protocol() -> None:
    task = one({"task": "digits", "limit": {"train": 5}})
    assert (task.limit, task.changed) == ({"train": 5}, {"limit": {"train": 5}})


def test_the_linear_sweep_has_ten_rates_by_weight_decays() -> None:
    task = one({"task": "digits", "protocol": "linear-sweep"})
    rates = {config.lr for config in task.configs.values()}
    decays = {config.weight_decay for config in task.configs.values()}
    assert (len(rates), len(task.configs)) == (10, 10 * len(decays))
    assert (task.probe, task.selection, task.views, task.changed) == ("linear", "val", 1, {})
    assert len(one({"task": "digits", "probe": "mlp", "protocol": "linear-sweep"}).configs) == 40


def test_dinos_linear_protocol() -> None:
    task = one({"task": "digits", "protocol": "dino-linear"})
    assert (task.features, task.num_epochs, task.batch_size, task.augment, task.views) == ("cls[-4:].flatten", 100, 1024, "crop-flip", 10)
    assert task.geometry == Geometry((224, 224), "shorter", "center", 0.875, "bicubic")
    for config in task.configs.values():
        assert isinstance(config, GradientConfig)
        assert (config.optimizer, config.momentum, config.weight_decay, config.init) == ("sgd", 0.9, 0.0, "normal0.01")
        assert config.scheduler is not None
        assert (config.scheduler.type, config.scheduler.per, config.scheduler.min_lr) == ("cosine", "epoch", 0.0)
    assert min(config.lr for config in task.configs.values()) == pytest.approx(0.001 * 1024 / 256)
    assert task.changed == {}


@pytest.mark.parametrize("features", ["cls[-4:]", "cls[-4:].flatten", "cls[-1]+tokens[-1].mean", "embedding"])
def test_dinos_features_are_options_not_changes(features: str) -> None:
    assert one({"task": "digits", "protocol": "dino-linear", "features": features}).changed == {}
    assert one({"task": "digits", "protocol": "dino-linear", "views": "fresh"}).changed == {}


def test_other_features_and_choices_change_dinos_protocol() -> None:
    task = one({"task": "digits", "protocol": "dino-linear", "features": "cls[-2:]", "selection": "val"})
    assert task.changed == {"features": "cls[-2:].flatten", "selection": "val"}


def test_dinos_knn_protocol() -> None:
    task = one({"task": "digits", "protocol": "dino-knn"})
    assert [(c.k, c.temperature) for c in task.configs.values()] == [(k, 0.07) for k in (10, 20, 100, 200)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("top2",)}, 'no metric "top2"; did you mean top5'),
        ({"metrics": ()}, "has no metric"),
        ({"metrics": ("virb.metrics.base:find_metric",)}, "is a function, not a"),
        ({"metrics": ("nowhere_at_all:M",)}, "the metric nowhere_at_all:M cannot be imported"),
        ({"roles": {"train": "train", "report": "test"}}, "a role 'train'; roles are fit"),
        ({"roles": {"fit": "train"}}, "needs one role to report on"),
        ({"probe": "liner"}, "no probe 'liner'; did you mean linear"),
    ],
)
def test_tasks_that_ask_for_what_does_not_exist(register: Register, changes: dict[str, Any], message: str) -> None:
    register("mine", **changes)
    with pytest.raises(UserError, match=message):
        one({"task": "mine"})


def test_every_value_of_the_default_protocol_is_resolved() -> None:
    task = one({"task": "digits"})
    for key, value in DEFAULT.values.items():
        found = getattr(task, key)
        assert (list(found) if isinstance(found, tuple) else found) == value
        assert task.origins[key] == "default"
