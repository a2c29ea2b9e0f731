"""A resolved task fitted to what its dataset, its encoder and the heads that it scores have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from virb.config import TaskConfig
from virb.encoders.base import EncoderSpec
from virb.errors import Problem, ViRBError
from virb.plan.heads import HeadSource
from virb.plan.samples import TaskData
from virb.tasks.protocols import PROTOCOLS
from virb.tasks.resolve import ResolvedTask

_SPLITS = ("train", "val", "test")  # a file's defaults may limit these whatever its tasks have


def with_limit(task: ResolvedTask, limit: Mapping[str, int]) -> ResolvedTask:
    """The task without the limits of splits that its dataset lacks (a file's defaults may name some)."""
    if limit == task.limit:
        return task
    changed = {key: value for key, value in task.changed.items() if key != "limit"} | ({"limit": dict(limit)} if limit else {})
    return replace(task, limit=limit, changed=changed)


def idle_limits(configs: Sequence[TaskConfig], resolved: Sequence[tuple[ResolvedTask, TaskData]]) -> list[Problem]:
    """Splits that a file's defaults limit and none of its tasks has, unless they have a usual name: such as ``trian``."""
    used = {(task.place("limit"), split) for task, _ in resolved for split in task.limit}
    wheres = {config.explicit["limit"]: config.limit or {} for config in configs if "limit" in config.by_defaults}
    idle = [(where, split) for where, limit in wheres.items() for split in limit if split not in _SPLITS and (where, split) not in used]
    return [Problem(where.file, where.line, where.key, f"no task of this file has a split {split!r}") for where, split in idle]


def with_features(task: ResolvedTask, spec: EncoderSpec) -> ResolvedTask:
    """Where the protocol names several features and nobody chose one of them: the first that this encoder has."""
    source = f"protocol {task.protocol}"
    if task.origins.get("features") != source:
        return task
    for number, request in enumerate(PROTOCOLS[task.protocol].options.get("features", ())):
        try:
            spec.check(request)
        except ViRBError:
            continue
        origin = source if not number else f"{source}, the first of its features that {spec.name} has"
        return replace(task, features=request, origins={**task.origins, "features": origin})
    return task


def as_trained(task: ResolvedTask, source: HeadSource) -> ResolvedTask:
    """An eval-only task under the name of the protocol that trained the heads, with its own limit as a change of it."""
    features = task.features if "features" in task.places or source.request is None else source.request
    if source.protocol is None:
        return replace(task, features=features)
    theirs = {(f"{key} of the heads" if key in ("limit", "decoder") else key): value for key, value in source.changed.items()}
    own = {key: value for key, value in task.changed.items() if key == "limit"}
    origins = {**task.origins, **({} if features == task.features else {"features": f"heads of {source}"}), "probe": f"heads of {source}"}
    return replace(
        task,
        features=features,
        probe=source.probe or task.probe,
        protocol=source.protocol,
        changed={**theirs, **own},
        selection=source.selection,
        origins=origins,
    )
