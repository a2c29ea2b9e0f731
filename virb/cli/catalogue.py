"""``virb list`` and ``virb show``: what there is, and a task with every value and where it came from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from virb.cli.console import columns, note, say
from virb.errors import ConfigError, Problem, UserError, ViRBError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from virb.config import TaskConfig
    from virb.tasks.base import Task
    from virb.tasks.resolve import ResolvedTask


def list_names(options: argparse.Namespace) -> int:
    lines = {"tasks": _tasks, "encoders": _encoders, "datasets": _datasets, "probes": _probes}[options.what]
    for line in lines():
        say(line)
    return 0


def _tasks() -> Iterator[str]:
    from virb.metrics.base import find_metric
    from virb.tasks.base import all_tasks

    tasks = sorted(all_tasks().values(), key=lambda task: (task.level, task.kind, task.id.casefold()))
    rows = [("task", "cell", "probe", "metrics", "fit / select / report", "")]
    for task in tasks:
        if task.available:
            titles = ", ".join(find_metric(name).title for name in task.metrics)
            rows.append((task.id, f"{task.level}, {task.kind}", task.probe, titles, _sizes(task), task.about))
    yield from columns(rows, indent="")
    yield "and your own: task: package.module:Name"
    later: dict[str, list[str]] = {}
    for task in tasks:
        if not task.available:
            later.setdefault(f"{task.level}, {task.kind}", []).append(task.id)
    if later:
        yield ""
        yield "known, not available yet"
        yield from columns([(cell, ", ".join(ids)) for cell, ids in later.items()])


def _sizes(task: Task) -> str:
    """Samples by role: as published, or as they are where the data needs no folder of the user's."""
    from virb.data.datasets import load_dataset
    from virb.data.datasets.facts import FACTS
    from virb.probes.base import FIT, REPORT, SELECT

    facts = FACTS.get(task.dataset)
    if facts is not None:
        sizes = _published(facts.splits, merged=bool(task.options.get("merge_val")))
        if facts.total is not None and "test" not in sizes:
            sizes["test"] = f"{facts.total - facts.splits['train']:,}" if "train" in sizes else f"of {facts.total:,}"  # type: ignore[operator]
    else:
        try:
            sizes = {split: f"{len(samples):,}" for split, samples in load_dataset(task.dataset, **task.options).samples.items()}
        except ViRBError:
            return "your own"
    counts = []
    for role in (FIT, SELECT, REPORT):
        split = task.roles.get(role)
        missing = "-" if split is None else "hold-out" if role == SELECT else "?"
        counts.append(sizes.get(split or "", missing))
    return " / ".join(counts)


def _published(splits: Mapping[str, Any], merged: bool) -> dict[str, str]:
    """Sizes of the published splits; with ``merged`` the official val is part of train."""
    sizes = dict(splits)
    if merged and "val" in sizes:
        sizes["train"] += sizes.pop("val")
    return {split: " or ".join(f"{n:,}" for n in (count if isinstance(count, tuple) else (count,))) for split, count in sizes.items()}


def _encoders() -> Iterator[str]:
    from virb.encoders.load import encoder_names

    yield "arch: one of these, with weights: FILE, or weights: random"
    for name in encoder_names():
        yield f"  {name}"
    yield from columns(
        [
            ("timm: NAME", "any model of timm"),
            ("hf: NAME, open_clip: NAME, hub: NAME", "models of transformers, open_clip and torch.hub"),
            ("module: package.module:Class", "your own network"),
            ("weights: FILE or ADDRESS", "a checkpoint whose architecture shows in its tensors"),
        ],
        indent="",
    )


def _datasets() -> Iterator[str]:
    from virb.data.datasets import dataset_names, find_dataset

    rows = []
    for name in dataset_names():
        function = find_dataset(name)
        rows.append((name, ", ".join(f"{k}={v}" for k, v in _dataset_options(name).items()) or "-", _first_sentence(function)))
    yield from columns([("dataset", "options (data: in the task)", ""), *rows], indent="")
    yield "and your own: a function package.module:name, (root, **options) -> Dataset"


def _dataset_options(name: str) -> dict[str, Any]:
    """Options of a dataset's function, besides the root, with their defaults (None where there is none)."""
    import inspect

    from virb.data.datasets import find_dataset

    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = [p for p in inspect.signature(find_dataset(name)).parameters.values() if p.name != "root" and p.kind not in kinds]
    return {p.name: None if p.default is inspect.Parameter.empty else p.default for p in parameters}


def _probes() -> Iterator[str]:
    from virb.probes.base import find_probe, probe_names

    yield from columns([(name, find_probe(name).shape, _first_sentence(find_probe(name))) for name in probe_names()], indent="")
    yield "and your own: probe: package.module:Class"


def _first_sentence(thing: Any) -> str:
    text = " ".join((thing.__doc__ or "").partition("\n\n")[0].split()).replace("``", "")
    return text.partition(". ")[0].rstrip(".")


def show(options: argparse.Namespace) -> int:
    from virb.tasks.protocols import PROTOCOLS, no_protocol
    from virb.tasks.resolve import resolve_task

    if options.protocol is not None and options.protocol not in PROTOCOLS:
        raise ConfigError([Problem("command line", 0, "--protocol", no_protocol(options.protocol))])
    config, available = _find(options)
    if not available:
        say(f"{config.label}  the task {config.task} is known and not available yet")
        return 0
    for number, task in enumerate(resolve_task(config, options.protocol, options.seed)):
        if number:
            say()
        for line in task_lines(task):
            say(line)
    return 0


def _find(options: argparse.Namespace) -> tuple[TaskConfig, bool]:
    """The task asked for, by label in the files given or by id, and whether it is built."""
    from virb.config import load_task_configs, task_config_from_mapping
    from virb.encoders.load import encoder_names
    from virb.tasks.base import find_task
    from virb.tasks.vocabulary import TaskVocabulary

    words = TaskVocabulary(encoder_names())
    if options.task_configs:
        loaded = load_task_configs(options.task_configs, words, protocol=options.protocol)
        for warning in loaded.warnings:
            note(str(warning))
        items = {item.label: item for item in loaded.checked()}
        if options.task not in items:
            files = ", ".join(map(str, options.task_configs))
            raise UserError(f"no label {options.task!r} in {files}{did_you_mean(options.task, items) or '; there are ' + ', '.join(items)}")
        config = items[options.task]
    else:
        if not words.has_task(options.task):
            hint = did_you_mean(options.task, words.task_ids()) or "; virb list tasks shows them all"
            raise UserError(f"no task {options.task!r}{hint}")
        label, keys = options.task.rpartition(":")[2], {"task": options.task}
        config = task_config_from_mapping(label, keys, words, protocol=options.protocol, place="command line")
    return config, find_task(config.task).available


def task_lines(task: ResolvedTask) -> Iterator[str]:
    """Every value of a resolved task, with where it came from."""
    from virb.plan.geometry import geometry_text
    from virb.tasks.protocols import PROTOCOLS
    from virb.tasks.resolve import canonical

    yield f"{task.label}  {task.task.about or task.task.id}"
    own = f"task {task.task.id}"
    given = str(task.places["data"]) if "data" in task.places else own
    of_protocol = task.geometry is not None and task.geometry == PROTOCOLS[task.protocol].geometry
    geometry_from = f"protocol {task.protocol}" if of_protocol else own if task.geometry else "the encoder"
    rows = [
        ("task", task.task.id, str(task.places.get("task", "")) or own),
        ("cell", f"{task.task.level}, {task.task.kind}", own),
        ("protocol", task.protocol, task.origins["protocol"]),
        ("dataset", task.task.dataset, own),
        *(
            (f"data.{key}", _text(value), given if key in task.data else f"dataset {task.task.dataset}")
            for key, value in {**_dataset_options(task.task.dataset), **task.data}.items()
        ),
        ("target", task.task.target, own),
        *((role, _role_text(task, role, split), own) for role, split in task.task.roles.items()),
        ("geometry", geometry_text(task.geometry) if task.geometry else "as the encoder wants it", geometry_from),
    ]
    keys = ("features", "views", "augment", "on_bad_image", "probe", "num_epochs", "batch_size", "test_batch_size", "selection", "refit")
    rows += [(key, _text(getattr(task, key)), task.origins.get(key, "default")) for key in (*keys, "seeds")]
    rows += [
        ("pre_encode", _text(not task.stream), task.origins.get("pre_encode", "default")),
        ("loss", task.task.loss, own),
        ("metrics", ", ".join(task.task.metrics), own),
        ("training_configs", str(len(task.configs)), task.origins.get("training_configs", "default")),
    ]
    values = {"limit": task.limit, "heads_path": task.heads_path, "heads_from": task.heads_from, "class_map": task.class_map}
    values["head_layout"] = task.head_layout
    origin = {"limit": task.origins["limit"], **{key: str(task.places.get(key, "default")) for key in ("class_map", "head_layout")}}
    rows += [
        (key, _pairs(value) if isinstance(value, Mapping) else value or "none", origin.get(key, task.origins["heads"]))
        for key, value in values.items()
    ]
    if task.task.dense is not None:
        windows = "none" if task.windows is None else _text(canonical(task.windows))
        rows += [
            ("targets", _text({key: value for key, value in asdict(task.task.dense).items() if value is not None}), own),
            ("windows", windows, task.origins.get("windows", "default")),
            ("score_size", _text(task.score_size) if task.score_size else "native size", task.origins.get("score_size", "default")),
        ]
    yield from columns(rows)
    yield from columns([(name, _config_text(config)) for name, config in task.configs.items()], indent="    ")
    if task.changed:
        yield f"  changed from the protocol {task.protocol}: {', '.join(f'{key} {_text(value)}' for key, value in task.changed.items())}"


def _role_text(task: ResolvedTask, role: str, split: str) -> str:
    if role == "select" and task.selection != "val":
        return f"none (selection: {task.selection})"
    return f"{split}, or a hold-out of fit where there is none" if role == "select" else split


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "none"


def _config_text(config: BaseModel) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in config.model_dump(exclude_unset=True).items() if value is not None)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return " ".join(_text(item) if key == "type" else f"{key} {_text(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
