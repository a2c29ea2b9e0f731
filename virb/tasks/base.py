"""What a task is, and the register of all tasks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from virb.config import NAME
from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.errors import UserError
from virb.metrics.base import find_metric
from virb.probes.base import REPORT, REPORT_UNLABELLED, is_role
from virb.sources import import_attribute

Level = Literal["image-level", "pixelwise", "video"]
Kind = Literal["semantic", "structural"]


@dataclass(frozen=True)
class Task:
    """A dataset, the target asked for, how it is answered by default, and how answers are scored. Numbers are filed under its stable id.

    ``ID@variant`` is a task of its own that measures something else (another target, metric or split).
    """

    id: str
    level: Level
    kind: Kind
    dataset: str  # a registered dataset, or a user's own as ``module:function``
    target: str = "class"  # which of the samples' targets
    features: str = "embedding"
    probe: str = "linear"
    loss: str = "cross_entropy"
    metrics: tuple[str, ...] = ("top1",)  # the first is primary
    roles: Mapping[str, str] = field(
        default_factory=lambda: {"fit": "train", "select": "val", "report": "test"}
    )  # role (see virb.probes.base) -> split; a missing val is held out
    geometry: Geometry | None = None  # where the task fixes it; of an eval-only one, for images that were published cut to this size
    dense: DenseTarget | None = None  # what targets are that have a value per pixel, for the dense probes
    options: Mapping[str, Any] = field(default_factory=dict)  # passed to the dataset
    defaults: Mapping[str, Any] = field(default_factory=dict)  # YAML keys (num_epochs ...), below the protocol's
    heads_from: str | None = None  # an eval-only task: the id of the task whose heads it scores
    head_classes: str | None = None  # ``module:function`` that gives the classes of such heads where no record of their training does
    about: str = ""
    available: bool = True  # False: the id is known and reserved, the task is not built yet


_TASKS: dict[str, Task] = {}
_FAMILIES = (
    "virb.tasks.builtin",
    "virb.tasks.folder",
    "virb.tasks.image_level",
    "virb.tasks.pixelwise_semantic",
    "virb.tasks.pixelwise_structural",
)


def register_task(task: Task) -> Task:
    if task.id in _TASKS and _TASKS[task.id] != task:
        raise UserError(f"two tasks have the id {task.id}")
    _TASKS[task.id] = task
    return task


def all_tasks() -> dict[str, Task]:
    for family in _FAMILIES:
        importlib.import_module(family)
    return dict(_TASKS)


def find_task(task_id: str) -> Task:
    """A task of the catalogue, or a user's own by ``module:attribute`` (a ``Task``). KeyError when there is none."""
    if ":" not in task_id:
        return all_tasks()[task_id]
    task = import_attribute(task_id, "task")
    if not isinstance(task, Task):
        raise UserError(f"{task_id} is a {type(task).__name__}, not a virb.tasks.base.Task")
    if not NAME.fullmatch(task.id):
        raise UserError(f"the task {task_id} has the id {task.id!r}; an id has letters, digits and . _ @ + - only")
    if all_tasks().get(task.id, task) != task:
        raise UserError(f"the task {task_id} has the id {task.id} of another task; numbers are filed under ids, so give it its own")
    return task


def check_task(task: Task) -> None:
    """A user's own task may ask for what does not exist: UserError."""
    for role in task.roles:
        if not is_role(role):
            raise UserError(f"the task {task.id} has a role {role!r}; roles are fit, select, report, report-unlabelled, aux and aux-<name>")
    if (REPORT in task.roles) == (REPORT_UNLABELLED in task.roles):
        raise UserError(f"the task {task.id} needs one role to report on: report or report-unlabelled")
    if not task.metrics:
        raise UserError(f"the task {task.id} has no metric")
    if task.dense is not None and task.level != "pixelwise":
        raise UserError(f"the task {task.id} has a dense target, but is {task.level}; a value per pixel makes a task pixelwise")
    for name in task.metrics:
        try:
            find_metric(name)
        except (KeyError, UserError) as error:
            raise UserError(f"the task {task.id}: {error.args[0]}") from error
