"""Eval-only tasks in a plan: whose heads they score, what is added when there are none, and what of a file's defaults is for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plan_support import TINY_VIT, MakePlan

from virb.config import load_task_configs
from virb.data.images import Dataset
from virb.errors import ConfigError
from virb.plan.build import build_plan
from virb.plan.jobs import Plan, RunSettings
from virb.runner.records import JobFacts, _card
from virb.tasks import base
from virb.tasks.vocabulary import TaskVocabulary

KNN = {"task": "digits", "probe": "knn"}
LINEAR = {"task": "digits", "num_epochs": 1, "grid": {"optimizer": "adam", "lr": [0.1]}}
AGAIN = {"task": "digits-again"}


@pytest.fixture(autouse=True)
def eval_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of the catalogue that scores the heads of digits."""
    base.all_tasks()
    again = base.Task(
        id="digits-again", level="image-level", kind="semantic", dataset="digits", roles={"report": "test"}, heads_from="digits"
    )
    monkeypatch.setitem(base._TASKS, again.id, again)


def source(plan: Plan, label: str = "again") -> tuple[str, str]:
    job = next(job for job in plan.jobs if job.label == label)
    (head,) = job.heads
    return head.label, head.key


def problem(make_plan: MakePlan, tasks: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(None, tasks, **settings)
    (found,) = caught.value.problems
    return str(found)


def test_a_probe_without_heads_is_no_trainer(make_plan: MakePlan) -> None:
    """As in dino_imagenet.yaml: k-NN beside linear."""
    plan = make_plan(None, {"digits_knn": KNN, "digits_linear": LINEAR, "again": AGAIN})
    assert source(plan)[0] == "digits_linear"
    assert [job.label for job in plan.jobs] == ["digits_knn", "digits_linear", "again"]
    assert plan.notes == ()
    by_glob = {"task": "digits", "task_head_weights_path": "out/%s/digits*/model_head.pt"}
    assert source(make_plan(None, {"digits_knn": KNN, "digits_linear": LINEAR, "again": by_glob}))[0] == "digits_linear"
    text = problem(make_plan, {"digits_knn": KNN, "again": {"task": "digits", "heads_from": "digits_knn"}})
    assert "again.heads_from" in text
    assert "the probe knn of digits_knn trains no head that could be scored" in text


def test_several_trainers_are_named_those_with_heads(make_plan: MakePlan) -> None:
    text = problem(make_plan, {"a_knn": KNN, "b": LINEAR, "c": {**LINEAR, "probe": "mlp"}, "again": AGAIN})
    assert "several tasks of this run train heads on digits (b, c); say whose are scored: heads_from: b" in text


@pytest.mark.parametrize(
    "keys", [AGAIN, {**AGAIN, "heads_from": "digits"}, {**AGAIN, "task_head_weights_path": "out/%s/digits*/model_head.pt"}]
)
def test_a_task_whose_heads_are_missing_is_trained_first(make_plan: MakePlan, keys: dict[str, Any]) -> None:
    plan = make_plan({"e": {"arch": "pixels"}, "f": TINY_VIT}, {"again": keys})
    assert [job.id for job in plan.jobs] == ["e/digits", "e/again", "f/digits", "f/again"]
    alone = make_plan({"e": {"arch": "pixels"}, "f": TINY_VIT}, {"digits": {"task": "digits"}})
    assert [job.key for job in plan.jobs if job.label == "digits"] == [job.key for job in alone.jobs]  # its default config
    scored = next(job for job in plan.jobs if job.id == "e/again")
    assert (scored.heads[0].label, scored.heads[0].key) == ("digits", plan.jobs[0].key)
    unit = next(unit for unit in plan.units if unit.payload == "e/again")
    assert "result e/digits" in unit.inputs  # it waits for the training
    (note,) = plan.notes
    assert note == "digits is trained first, with its defaults: again scores its heads, and neither these files nor out have them"


def test_what_is_added_follows_the_run(make_plan: MakePlan) -> None:
    plan = make_plan(None, {"again": AGAIN}, protocol="virb2021", seed=3)
    assert (plan.jobs[0].task.protocol, plan.jobs[0].task.seeds) == ("virb2021", (3,))


def test_nothing_is_added_for_a_label_that_is_taken_or_a_task_that_nobody_knows(make_plan: MakePlan) -> None:
    text = problem(make_plan, {"digits": KNN, "again": AGAIN})
    assert "there is no head of digits for the encoder e in out" in text
    assert "(the label digits is taken by a task that trains none)" in text
    assert "no head of other" in problem(make_plan, {"again": {"task": "digits", "heads_from": "other"}})


def test_the_trainer_s_data_are_not_there(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._TASKS, "digits-again", base.Task(
        id="digits-again", level="image-level", kind="semantic", dataset="digits", roles={"report": "test"}, heads_from="Pets"
    ))  # fmt: skip
    text = problem(make_plan, {"again": AGAIN})
    assert "again scores heads of Pets, which neither these files train nor out has; Pets cannot be trained first: pets: not found" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_epochs", 3), ("views", 2), ("augment", "crop-flip"), ("probe", "mlp"), ("selection", "val"), ("seeds", 2), ("refit", True)],
)
def test_keys_of_training_mean_nothing_here(make_plan: MakePlan, tmp_path: Path, key: str, value: Any) -> None:
    text = problem(make_plan, {"again": {**AGAIN, key: value}})
    assert f"again.{key}  nothing is trained: the task scores heads of digits, as they are; leave it out" in text
    text = problem(make_plan, {"again": {"task": "digits", "task_head_weights_path": "x/*.pt", key: value}})
    assert f"again.{key}  nothing is trained: the task scores heads of x/*.pt" in text
    # given for all tasks of a file they are for the others
    (plain,) = (job for job in from_file(tmp_path, "{}").jobs if job.label == "again")
    (given,) = (job for job in from_file(tmp_path, json.dumps({key: value})).jobs if job.label == "again")
    same = ("probe", "num_epochs", "views", "augment", "refit")
    assert [getattr(given.task, name) for name in same if name != "probe"] == [
        getattr(plain.task, name) for name in same if name != "probe"
    ]
    theirs = next(job for job in from_file(tmp_path, json.dumps({key: value})).jobs if job.label == "digits_linear")
    assert given.task.changed == theirs.task.changed


def from_file(folder: Path, defaults: str, again: str = "{task: digits-again}") -> Plan:
    path = folder / "tasks.yaml"
    linear = "{task: digits, training_configs: {a: {optimizer: adam, lr: 0.1}}}"
    path.write_text(f"defaults: {defaults}\ndigits_linear: {linear}\nagain: {again}\n")
    words = TaskVocabulary(["pixels"])
    from virb.config import encoder_config_from_mapping

    return build_plan(
        RunSettings(out=folder / "out"),
        [encoder_config_from_mapping("e", {"arch": "pixels"}, words)],
        load_task_configs(path, words).checked(),
    )


def test_limits_of_a_file_are_for_the_tasks_that_have_such_splits(make_plan: MakePlan, tmp_path: Path) -> None:
    linear, again = from_file(tmp_path, "{limit: {train: 100, val: 50}}").jobs
    assert (linear.n_samples["fit"], dict(linear.task.limit)) == (100, {"train": 100})  # digits has no val
    assert linear.task.changed["limit"] == {"train": 100}
    assert (again.n_samples["report"], dict(again.task.limit)) == (359, {})
    linear, again = from_file(tmp_path, "{limit: {train: 100, test: 40}}").jobs
    assert (again.n_samples, dict(again.task.limit)) == ({"report": 40}, {"test": 40})
    same = next(job for job in from_file(tmp_path, "{limit: {test: 40}}").jobs if job.label == "again")
    assert same.roles["report"].limited == again.roles["report"].limited
    linear, _ = from_file(tmp_path, "{selection: test-last, limit: {val: 3, train: 90}}").jobs
    assert dict(linear.task.limit) == {"train": 90}
    with pytest.raises(ConfigError, match=r"defaults\.limit  no task of this file has a split 'trian'"):
        from_file(tmp_path, "{limit: {trian: 100}}")
    for again_keys in ("{task: digits-again, limit: {train: 5}}", "{task: digits-again, limit: {vale: 5}}"):
        with pytest.raises(ConfigError, match=r"limit: (this task makes no use|the dataset digits has no split)"):
            from_file(tmp_path, "{}", again_keys)


def test_a_grid_of_a_file_is_for_the_tasks_that_train(tmp_path: Path) -> None:
    plan = from_file(tmp_path, "{grid: {optimizer: [adam], lr: [0.1]}}", "{task: digits, heads_from: digits_linear}")
    assert source(plan)[0] == "digits_linear"
    assert not plan.jobs[1].task.configs
    assert source(from_file(tmp_path, "{grid: {optimizer: [adam], lr: [0.1]}}"))[0] == "digits_linear"


# What the protocol names several of


def test_each_encoder_gives_the_first_features_of_the_protocol_that_it_has(make_plan: MakePlan) -> None:
    """As dino_imagenet.yaml with a ViT and a ResNet in one run."""
    encoders = {"vit": TINY_VIT, "resnet": {"arch": "resnet18", "weights": "random"}}
    plan = make_plan(encoders, {"t": {**LINEAR, "protocol": "dino-linear"}}, cache_budget="0")
    vit, resnet = plan.jobs
    assert (vit.request, vit.task.origins["features"]) == ("cls[-4:].flatten", "protocol dino-linear")
    assert resnet.request == "embedding"
    assert resnet.task.origins["features"] == "protocol dino-linear, the first of its features that resnet has"
    assert "features" not in resnet.task.changed
    with pytest.raises(ConfigError, match="no output 'cls'"):  # asked for is asked for
        make_plan(encoders, {"t": {**LINEAR, "protocol": "dino-linear", "features": "cls[-4:]"}})


def test_what_was_found_on_disk_is_on_the_card(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    from virb.plan import samples

    real = samples.load_dataset

    def noted(name: str, *args: Any, **options: Any) -> Dataset:
        found = real(name, *args, **options)
        return Dataset(found.name, found.lists, found.samples, found.classes, "split: by a rule")

    before = make_plan(None, {"digits": LINEAR, "again": AGAIN})
    monkeypatch.setattr(samples, "load_dataset", noted)
    plan = make_plan(None, {"digits": LINEAR, "again": AGAIN})
    assert [job.key for job in plan.jobs] == [job.key for job in before.jobs]  # words decide no number
    for job in plan.jobs:
        card = _card(JobFacts(job, plan.context, "cpu", "now"))
        assert (card.values["data"].value, card.values["data"].origin) == ("split: by a rule", "dataset digits")
    assert "data" not in _card(JobFacts(before.jobs[0], before.context, "cpu", "now")).values
