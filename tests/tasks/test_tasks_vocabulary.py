"""A user's own tasks and probes by ``module:attribute``, and messages for what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from virb.config import load_task_configs, task_config_from_mapping
from virb.errors import ConfigError, UserError
from virb.tasks.base import Task, find_task, register_task
from virb.tasks.resolve import resolve_task
from virb.tasks.vocabulary import TaskVocabulary, get_probe

WORDS = TaskVocabulary(["pixels"])
MODULE = """
from pydantic import BaseModel
from virb.metrics.base import find_metric
from virb.probes.base import ProbeConfig
from virb.tasks.base import Task

Birds = Task(id="birds", level="image-level", kind="semantic", dataset="digits", metrics=("top1", "top5"), defaults={"num_epochs": 3})
Stolen = Task(id="digits", level="image-level", kind="semantic", dataset="shapes")
Spaced = Task(id="my birds", level="image-level", kind="semantic", dataset="digits")
number = 3

class RidgeConfig(ProbeConfig):
    strength: float = 1.0

class Ridge:
    "Ridge regression."
    name, shape, Config = "ridge", "features", RidgeConfig
    def from_features(self, roles, settings, context): ...

class Needy(Ridge):
    class Config(BaseModel):
        strength: float

class Shapeless(Ridge):
    shape = "square"

class Idle:
    shape, Config = "batches", RidgeConfig
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the current folder."""
    (tmp_path / "lab_of_words.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "lab_of_words"
    sys.modules.pop("lab_of_words", None)


def test_a_users_own_task(module: str) -> None:
    assert WORDS.has_task(f"{module}:Birds")
    (task,) = resolve_task(task_config_from_mapping("mine", {"task": f"{module}:Birds"}, WORDS))
    assert (task.task.id, task.num_epochs, task.origins["num_epochs"]) == ("birds", 3, "task birds")


def test_a_users_own_probe_checks_its_training_configs(module: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f'a: {{task: digits, probe: "{module}:Ridge", grid: {{strength: [1, 2.5]}}}}\n')
    (config,) = load_task_configs(["a.yaml"], WORDS).checked()
    (task,) = resolve_task(config)
    assert {name: value.model_dump() for name, value in task.configs.items()} == {
        "strength1": {"strength": 1.0},
        "strength2.5": {"strength": 2.5},
    }
    (task,) = resolve_task(task_config_from_mapping("a", {"task": "digits", "probe": f"{module}:Ridge"}, WORDS))
    assert list(task.configs) == ["default"]

    (tmp_path / "b.yaml").write_text(f'a: {{task: digits, probe: "{module}:Ridge", training_configs: {{x: {{strenght: 1}}}}}}\n')
    (problem,) = load_task_configs(["b.yaml"], WORDS).problems
    assert str(problem) == "b.yaml:1  a.training_configs.x.strenght  unknown key; did you mean strength?"


def test_a_probe_that_needs_training_configs_says_so(module: str) -> None:
    config = task_config_from_mapping("a", {"task": "digits", "probe": f"{module}:Needy"}, WORDS)
    with pytest.raises(UserError, match=f"{module}:Needy needs training_configs or grid: strength: missing key"):
        resolve_task(config)
    given = {"task": "digits", "probe": f"{module}:Needy", "training_configs": {"x": {"strength": 2}}}
    (task,) = resolve_task(task_config_from_mapping("a", given, WORDS))
    assert task.configs["x"].model_dump() == {"strength": 2}
    assert task.modules == (f"{module}:Needy",)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Bird", "the module lab_of_words has no 'Bird' .*; did you mean Birds?"),
        ("number", "is a int, not a virb.tasks.base.Task"),
        ("Stolen", "has the id digits of another task"),
        ("Spaced", "has the id 'my birds'; an id has letters"),
    ],
)
def test_wrong_tasks(module: str, task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_task(f"{module}:{task}")
    with pytest.raises(ConfigError, match=r"a.task"):  # the same, located
        task_config_from_mapping("a", {"task": f"{module}:{task}"}, WORDS)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("number", "lab_of_words:number is no probe"),
        ("RidgeConfig", "lab_of_words:RidgeConfig is no probe"),
        ("Shapeless", "has the shape 'square'; expected one of features, batches, online"),
        ("Idle", "has the shape 'batches' and needs a method from_batches"),
        ("Rigde", "has no 'Rigde'"),
    ],
)
def test_wrong_probes(module: str, probe: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_probe(f"{module}:{probe}")
    with pytest.raises(ConfigError, match=r"a.probe"):
        task_config_from_mapping("a", {"task": "digits", "probe": f"{module}:{probe}"}, WORDS)


@pytest.mark.parametrize("text", ["import nowhere_at_all", "1 / 0", "def f(:"])
def test_a_module_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "broken_words.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=r"the task broken_words:T cannot be imported: (Module|ZeroDivision|Syntax)"):
        find_task("broken_words:T")


def test_the_catalogue() -> None:
    assert {"digits", "shapes-class", "shapes-count", "folder", "Pets", "NYUDepth"} <= set(WORDS.task_ids())
    assert not WORDS.has_task("digitz")
    assert WORDS.default_probe("digits", None) == "linear"
    with pytest.raises(UserError, match="two tasks have the id digits"):
        register_task(Task(id="digits", level="video", kind="semantic", dataset="x"))


def test_every_task_of_the_catalogue_resolves_or_is_not_available() -> None:
    for task_id in WORDS.task_ids():
        config = task_config_from_mapping("a", {"task": task_id}, WORDS)
        if find_task(task_id).available:
            assert resolve_task(config)[0].task.id == task_id
        else:
            with pytest.raises(ConfigError, match="not available yet"):
                resolve_task(config)
