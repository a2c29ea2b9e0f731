"""Task configs: which tasks, with which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from virb.config import grid
from virb.config.check import Locate, check, describe
from virb.config.files import Loaded, read_trees
from virb.config.names import UniqueNames, check_name, path_collisions
from virb.config.records import TaskConfig, TaskKeys
from virb.config.tree import KeyPath, Report, Tree, Where, from_python
from virb.config.vocabulary import Vocabulary
from virb.errors import ConfigError, UserError, did_you_mean, nearest

DEFAULTS = "defaults"
# Keys that say one thing in two ways: a task that gives either wants nothing of the pair from the file's defaults.
_PAIRS = ({"views", "num_dataset_repeats"}, {"training_configs", "grid"})
_HEADS, _OF_HEADS = {"heads_from", "task_head_weights_path"}, {"training_configs", "grid"}  # given heads are trained already


def load_task_configs(
    paths: Sequence[Path | str] | Path | str, vocabulary: Vocabulary, *, protocol: str | None = None
) -> Loaded[TaskConfig]:
    """The tasks of files and folders. ``protocol`` is the run's own (``--protocol``), which wins over a task's."""
    problems, warnings = Report(), Report()
    trees, texts = read_trees(paths, problems, warnings)
    labels = UniqueNames()
    tasks: list[TaskConfig] = []
    for tree in trees:
        for label, keys in _labels(tree, problems, warnings).items():
            labels.add(label, tree.where((label,)), problems)
            task = _task(label, tree, keys, vocabulary, protocol, problems)
            if task is not None:
                tasks.append(task)
    collisions = path_collisions((task.label, list(task.training_configs or ()), task.where) for task in tasks)
    return Loaded(tuple(tasks), tuple(dict.fromkeys((*problems, *collisions))), tuple(warnings), texts)


def task_config_from_mapping(
    label: str, mapping: Mapping[str, Any], vocabulary: Vocabulary, *, protocol: str | None = None, place: str = "<python>"
) -> TaskConfig:
    """A task given in Python (or at another ``place``) with the keys of a task config; ConfigError names all mistakes."""
    report = Report()
    tree = from_python(mapping, (label,), place, report)
    task = None
    if isinstance(tree.data[label], Mapping):
        task = _task(label, tree, {key: (label, key) for key in tree.data[label]}, vocabulary, protocol, report)
    else:
        report.add(tree.where((label,)), f"expected a mapping of task keys, got {describe(tree.data[label])}")
    collisions = path_collisions([(label, list(task.training_configs or ()), task.where)]) if task else ()
    if task is None or len(report) or collisions:
        raise ConfigError((*report, *collisions))
    return task


def _labels(tree: Tree, problems: Report, warnings: Report) -> dict[str, dict[str, KeyPath]]:
    """The file's tasks: for each label, where the value of each of its keys stands (under the label, under defaults, or astray)."""
    if not isinstance(tree.data, Mapping):
        problems.add(tree.where(), f"expected a mapping of labels to tasks, got {describe(tree.data)}")
        return {}
    tasks: dict[str, dict[str, KeyPath]] = {}
    above: str | None = None
    for label, value in tree.data.items():
        where = tree.where((label,))
        if label == DEFAULTS:
            above = None
            if not isinstance(value, Mapping):
                problems.add(where, f"expected a mapping of task keys, got {describe(value)}")
        elif isinstance(value, Mapping):
            above = label
            tasks[label] = {key: (label, key) for key in value}
        elif label in TaskKeys.model_fields and not isinstance(value, list):
            # ViRB 2021's imagenetv2.yaml: `batch_size: 32` lost its indentation.
            if above is None:
                problems.add(where, "stands outside any task; indent it below the label of its task")
            elif label in tasks[above]:
                problems.add(where, f"stands outside any task, and {above} above it has a {label} already")
            else:
                tasks[above][label] = (label,)
                warnings.add(where, f"stands outside any task; it is taken as a key of {above} above it (indent it)")
        else:
            problems.add(where, f"expected a mapping of task keys, got {describe(value)}")
    if not tasks:
        problems.add(Where(tree.file, 0), "has no tasks")
    defaults = tree.data.get(DEFAULTS)
    if isinstance(defaults, Mapping):
        _check_defaults(tree, defaults, problems)
        for keys in tasks.values():
            paired = {key for pair in _PAIRS if pair & set(keys) for key in pair} | (_OF_HEADS if _HEADS & set(keys) else set())
            keys.update({key: (DEFAULTS, key) for key in defaults if key not in keys and key not in paired})
    return tasks


def _check_defaults(tree: Tree, defaults: Mapping[str, Any], problems: Report) -> None:
    """Also what no task takes from the defaults must be right."""

    def locate(path: KeyPath, *, missing: bool = False) -> Where:
        return tree.where((DEFAULTS, *path), missing=missing)

    check(TaskKeys, {"task": "any", **_given(defaults)}, locate, problems)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """A known key with nothing behind it is not given; so a task can also undo a key of the file's defaults."""
    return {key: value for key, value in values.items() if value is not None or key not in TaskKeys.model_fields}


def _at(tree: Tree, path: KeyPath) -> Any:
    value = tree.data
    for part in path:
        value = value[part]
    return value


def _task(
    label: str, tree: Tree, keys: Mapping[str, KeyPath], vocabulary: Vocabulary, protocol: str | None, problems: Report
) -> TaskConfig | None:
    report = Report()
    where = tree.where((label,))
    check_name(label, where, report)

    def locate(path: KeyPath, *, missing: bool = False) -> Where:
        if not path:
            return where
        return tree.where((*keys.get(str(path[0]), (label, path[0])), *path[1:]), missing=missing)

    values = _given({key: _at(tree, path) for key, path in keys.items()})
    record = None
    if "task" in values:
        record = check(TaskKeys, values, locate, report)
    else:
        hint = f"; task: {label}?" if label in vocabulary.task_ids() else ""
        hint = hint or ("; should this stand indented in the task above?" if label in TaskKeys.model_fields else "")
        report.add(locate(("task",), missing=True), f"missing key{hint}")
        check(TaskKeys, {"task": "any", **values}, locate, report)
    probe_config = _check_words(values, vocabulary, protocol, locate, report)
    configs, places = _training_configs(values, probe_config, locate, report)
    problems.extend(report)
    if record is None or len(report):
        return None
    settings = dict(record)
    repeats = settings.pop("num_dataset_repeats")
    settings["views"] = settings["views"] if repeats is None else repeats
    settings.pop("grid")
    settings["training_configs"] = configs or None
    named = {key: "views" if key == "num_dataset_repeats" else key for key in values}
    explicit = {name: locate((key,)) for key, name in named.items()}
    by_defaults = frozenset(name for key, name in named.items() if keys[key][0] == DEFAULTS)
    return TaskConfig(
        **{**settings, "label": label, "explicit": explicit, "by_defaults": by_defaults, "config_where": places, "where": where}
    )


def _check_words(
    values: Mapping[str, Any], vocabulary: Vocabulary, protocol: str | None, locate: Locate, report: Report
) -> type[BaseModel] | None:
    """Words of the task, probe and protocol; returns the record of the training configs, None when it cannot be known."""
    if isinstance(named := values.get("protocol"), str):
        if named in vocabulary.protocol_names():
            protocol = protocol or named
        else:
            report.add(locate(("protocol",)), f"no protocol {describe(named)}{did_you_mean(named, vocabulary.protocol_names())}")
    task, known = values.get("task"), None
    if isinstance(task, str) and task:
        try:
            if vocabulary.has_task(task):
                known = task
            else:
                report.add(locate(("task",)), f"no task {describe(task)}{did_you_mean(task, vocabulary.task_ids())}")
                known = nearest(task, vocabulary.task_ids())  # its training configs are probably meant for that one
        except UserError as error:
            report.add(locate(("task",)), str(error))
    given = values.get("probe")
    try:
        if not isinstance(given, str):
            probe = vocabulary.default_probe(known, protocol) if known is not None and given is None else None
        elif ":" in given or given in vocabulary.probe_names():
            probe = given
        else:
            report.add(locate(("probe",)), f"no probe {describe(given)}{did_you_mean(given, vocabulary.probe_names())}")
            probe = nearest(given, vocabulary.probe_names())
        return vocabulary.probe_config(probe) if probe is not None else None
    except UserError as error:
        report.add(locate(("task" if given is None else "probe",)), str(error))
        return None


def _training_configs(
    values: Mapping[str, Any], model: type[BaseModel] | None, locate: Locate, report: Report
) -> tuple[dict[str, BaseModel], dict[str, Where]]:
    configs: dict[str, BaseModel] = {}
    places: dict[str, Where] = {}
    named = values.get("training_configs")
    for name, content in named.items() if isinstance(named, Mapping) else ():
        prefix: KeyPath = ("training_configs", name)
        check_name(name, locate(prefix), report)
        places[name] = locate(prefix)
        record = check(model, content, _below(prefix, locate), report) if model else None
        if record is not None:
            configs[name] = record
    points = values.get("grid")
    for point in grid.expand(points, _below(("grid",), locate), report) if isinstance(points, Mapping) and points else ():
        if point.name in places:
            report.add(locate(("grid",)), f"makes a training config {point.name}, which training_configs has too ({places[point.name]})")
            continue
        check_name(point.name, locate(("grid",)), report)
        places[point.name] = locate(("grid",))
        record = check(model, point.values, _in_grid(point, locate), report) if model else None
        if record is not None:
            configs[point.name] = record
    return configs, places


def _below(prefix: KeyPath, locate: Locate) -> Locate:
    def inner(path: KeyPath, *, missing: bool = False) -> Where:
        return locate((*prefix, *path), missing=missing)

    return inner


def _in_grid(point: grid.GridConfig, locate: Locate) -> Locate:
    def inner(path: KeyPath, *, missing: bool = False) -> Where:
        at = (*point.origin.get(str(path[0]), (path[0],)), *path[1:]) if path else ()
        return locate(("grid", *at), missing=missing)

    return inner
