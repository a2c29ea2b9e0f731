"""Encoders x tasks -> a plan: what is done, what is shared, sizes and time. Everything that is wrong is reported together."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from virb.config import EncoderConfig, TaskConfig
from virb.data.datasets import load_dataset
from virb.data.images import Dataset, ImageList, Samples
from virb.data.transforms import Geometry, View
from virb.encoders.base import Encoder, Request
from virb.encoders.load import load_encoder
from virb.errors import ConfigError, Problem, UserError, ViRBError
from virb.features.cache import EntryRecord
from virb.features.passes import Numerics, Wanted, forward
from virb.io import hash_record
from virb.metrics.base import find_metric
from virb.plan.jobs import Entry, InMemory, Job, Plan, PlannedEncoder, RolePlan, RunSettings, source_of
from virb.plan.units import assemble
from virb.probes.base import FIT, REPORT, REPORT_UNLABELLED, SELECT, is_labelled, is_role
from virb.tasks.base import Task
from virb.tasks.resolve import ResolvedTask, canonical, get_probe, resolve_task

RESULT_FORMAT = 1  # raised when code changes what a probe or metric computes


@dataclass
class _Builder:
    settings: RunSettings
    encoders: Sequence[EncoderConfig | InMemory]
    tasks: Sequence[TaskConfig]
    tell: Callable[[str], None]
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    lists: dict[str, ImageList] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    measured: dict[tuple[str, Any, str], tuple[tuple[int, ...] | None, float]] = field(default_factory=dict)

    def add_problem(self, where: Any, error: Exception, key: str = "") -> None:
        file, line, name = (where.file, where.line, where.key) if where else ("<python>", 0, key)
        self.problems.append(Problem(file, line, name or key, str(error)))


def build_plan(
    settings: RunSettings,
    encoders: Sequence[EncoderConfig | InMemory],
    tasks: Sequence[TaskConfig],
    problems: Iterable[Problem] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Raises ConfigError with every problem of the input at once; runs nothing."""
    builder = _Builder(settings, encoders, tasks, tell, list(problems))
    resolved = _resolve_tasks(builder)
    planned: dict[str, PlannedEncoder] = {}
    jobs: dict[str, Job] = {}
    for config in encoders:
        tell(f"checking encoder {config.name}")
        try:
            encoder = load_encoder(source_of(config), name=config.name, seed=settings.seed)
        except ViRBError as error:
            builder.add_problem(config.where, error, config.name)
            continue
        planned[config.name] = PlannedEncoder(config.name, source_of(config), encoder.spec, dict(config.meta))
        for task in resolved:
            try:
                job = _plan_job(builder, config, encoder, task)
            except ViRBError as error:
                builder.add_problem(task.where, error, f"{task.label} with {config.name}")
                continue
            jobs[job.id] = job
        del encoder
    if builder.problems:
        raise ConfigError(builder.problems)
    return assemble(settings, planned, jobs, builder.entries, builder.lists, builder.notes)


def _resolve_tasks(builder: _Builder) -> list[ResolvedTask]:
    resolved = []
    for config in builder.tasks:
        try:
            for task in resolve_task(config, builder.settings.protocol, builder.settings.seed):
                if not task.task.available:
                    raise UserError(f"the task {task.task.id} is not available yet; virb list tasks shows those that are")
                _check_task(task.task)
                _dataset(builder, task)
                resolved.append(task)
        except ViRBError as error:
            builder.add_problem(config.where, error, config.label)
    return resolved


def _dataset_options(builder: _Builder, task: ResolvedTask) -> tuple[Path | None, dict[str, Any]]:
    options = dict(task.data)
    root = options.pop("root", None)
    if root is None:
        return None, options
    given = Path(root).expanduser()
    below = builder.settings.data_root / given
    return (below if not given.is_absolute() and not given.exists() and below.exists() else given), options


def _dataset(builder: _Builder, task: ResolvedTask) -> Dataset:
    root, options = _dataset_options(builder, task)
    key = hash_record({"name": task.task.dataset, "root": str(root), "options": {k: str(v) for k, v in options.items()}})
    if key not in builder.datasets:
        builder.tell(f"reading dataset {task.task.dataset}")
        builder.datasets[key] = load_dataset(task.task.dataset, root, **options)
    return builder.datasets[key]


def _plan_job(builder: _Builder, config: EncoderConfig | InMemory, encoder: Encoder, task: ResolvedTask) -> Job:
    dataset = _dataset(builder, task)
    geometry, geometry_from = choose_geometry(builder.settings, config, encoder, task)
    try:
        request = str(Request.parse(task.features))
    except ValueError as error:
        raise UserError(f"features: {error}") from error
    probe = get_probe(task.probe)
    roles: dict[str, RolePlan] = {}
    ids: dict[str, Any] = {}
    total = 0
    for role, split in task.task.roles.items():
        held_out = role == SELECT and split not in dataset.samples and FIT in task.task.roles
        if role == SELECT and task.selection != "val":
            continue  # this protocol chooses on the reported split
        if held_out:
            split = task.task.roles[FIT]
        if split not in dataset.samples:
            raise UserError(f"the dataset {dataset.name} has no split {split!r} (it has: {', '.join(dataset.samples)})")
        samples = dataset.samples[split]
        images = dataset.lists[samples.images]
        list_id = images.identity()
        builder.lists[list_id] = images
        keys: list[str] = []
        if probe.shape == "features":
            for view in _views(task, role, builder.settings):
                seen = replace(geometry, view=view)
                keys.append(_entry(builder, config.name, encoder, seen, request, list_id, len(images), task.stream).key)
                total += builder.entries[keys[-1]].nbytes
        roles[role] = RolePlan(split, samples, list_id, tuple(keys), held_out)
        ids[role] = {"entries": keys, "list": list_id, "samples": samples_id(samples, task.task.target if _has_target(role) else None)}
    _check_samples(task.task, dataset, roles)
    record = {
        "format": RESULT_FORMAT,
        "encoder": encoder.spec.encoder_id,
        "geometry": geometry.record(),
        "request": request,
        "numerics": builder.settings.numerics.record(),
        "roles": ids,
        "task": {"id": task.task.id, "target": task.task.target, "loss": task.task.loss, "metrics": task.task.metrics},
        "probe": {"name": task.probe, "source": _source_hash(probe) if ":" in task.probe else None},
        "protocol": {"name": task.protocol, "changed": task.changed},
        "configs": {name: canonical(c) for name, c in task.configs.items()},
        "values": [
            task.num_epochs,
            task.batch_size,
            task.test_batch_size,
            task.selection,
            task.seeds,
            task.refit,
            task.views,
            task.augment,
        ],
        "on_bad_image": task.on_bad_image,
    }
    return Job(
        encoder=config.name,
        key=hash_record(record),
        task=task,
        request=request,
        geometry=geometry,
        geometry_from=geometry_from,
        roles=roles,
        classes=dataset.classes.get(task.task.target),
        nbytes=total,
        n_samples={role: len(plan.samples.ids) for role, plan in roles.items()},
    )


def choose_geometry(settings: RunSettings, config: EncoderConfig | InMemory, encoder: Encoder, task: ResolvedTask) -> tuple[Geometry, str]:
    """First of: --input_size, the experiment list's input:, what the protocol or task fixes, the encoder's own default."""
    own = encoder.spec.input
    geometry = Geometry(own.size, own.resize, own.crop, own.crop_pct, own.interpolation, None)
    asked = config.input.model_dump(exclude_none=True) if config.input else {}
    source = "the encoder's default"
    if set(asked) - {"mean", "std"}:
        source = "the experiment list's input:"
    elif task.geometry is not None:
        geometry, source = task.geometry, f"protocol {task.protocol}" if task.geometry is not task.task.geometry else f"task {task.task.id}"
    if settings.input_size:
        geometry, source = replace(geometry, size=(settings.input_size, settings.input_size)), "--input_size"
    return geometry, source


def _views(task: ResolvedTask, role: str, settings: RunSettings) -> list[View | None]:
    """Only training data is augmented; view v of an image is the same crop for every encoder and run."""
    if role != FIT or task.augment == "none":
        return [None]
    count = task.num_epochs if task.views == "fresh" else int(task.views)
    return [View(number, cast(Literal["none", "crop-flip"], task.augment), settings.seed) for number in range(count)]


def _entry(
    builder: _Builder, name: str, encoder: Encoder, geometry: Geometry, request: str, list_id: str, n_rows: int, streamed: bool
) -> Entry:
    spec = encoder.spec
    record = EntryRecord(
        encoder_id=spec.encoder_id,
        image_list_id=list_id,
        geometry=geometry.record(),
        normalisation={"mean": list(spec.input.mean), "std": list(spec.input.std), "patch_size": spec.patch_size},
        output=request,
        numerics=builder.settings.numerics.record(),
        format={"family": spec.family, "version": spec.format},
    )
    known = builder.entries.get(record.key)
    if known is not None:
        if known.streamed and not streamed:  # one task streams by wish, another keeps: keep
            builder.entries[record.key] = known = replace(known, streamed=False)
        return known
    shape, seconds = _measure(builder, encoder, geometry, request)
    nbytes = 2 * n_rows * math.prod(shape) if shape else 0
    entry = Entry(record, Wanted(name, geometry, request, record.key), list_id, n_rows, shape, nbytes, seconds, streamed)
    builder.entries[record.key] = entry
    return entry


def _measure(builder: _Builder, encoder: Encoder, geometry: Geometry, request: str) -> tuple[tuple[int, ...] | None, float]:
    """Shape of one row, and seconds per image of a small batch of noise: so wrong shapes are found before anything runs."""
    size = geometry.size
    key = (encoder.spec.encoder_id, size, request)
    if key not in builder.measured:
        h, w = size or (64, 64)
        noise = torch.randint(0, 256, (4, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        seconds = float("inf")
        for _ in range(2):  # the first forward also warms up
            began = time.perf_counter()
            values = forward(encoder, noise, [request], torch.device("cpu"), Numerics("float32", "cpu"), len(noise))[request]
            seconds = min(seconds, (time.perf_counter() - began) / len(noise))
        if not torch.isfinite(values).all():
            raise UserError(f"{encoder.spec.name} gives NaN or infinite values of {request} on noise; check its weights")
        builder.measured[key] = (tuple(values.shape[1:]) if size else None, seconds)
    return builder.measured[key]


def samples_id(samples: Samples, target: str | None) -> str:
    """What a result depends on besides pixels: which samples, their rows and units, and the targets as far as they are in memory."""
    digest = hashlib.sha256()
    for array in (samples.ids, samples.units):
        digest.update("\0".join(map(str, array)).encode())
    digest.update(np.ascontiguousarray(samples.row_values).tobytes() + np.ascontiguousarray(samples.row_offsets).tobytes())
    if target is None:
        return digest.hexdigest()
    targets = samples.targets.get(target)
    digest.update(target.encode())
    for part in [targets] if isinstance(targets, np.ndarray) else targets if isinstance(targets, list) else []:
        digest.update(np.ascontiguousarray(part).tobytes() + b"\0")
    return digest.hexdigest()


def _source_hash(probe: type) -> str:
    return hashlib.sha256(inspect.getsource(sys.modules[probe.__module__]).encode()).hexdigest()


def _has_target(role: str) -> bool:
    return is_labelled(role) or role == REPORT_UNLABELLED


def _check_task(task: Task) -> None:
    """A user's own task may ask for what does not exist."""
    for role in task.roles:
        if not is_role(role):
            raise UserError(f"the task {task.id} has a role {role!r}; roles are fit, select, report, report-unlabelled, aux and aux-<name>")
    if (REPORT in task.roles) == (REPORT_UNLABELLED in task.roles):
        raise UserError(f"the task {task.id} needs one role to report on: report or report-unlabelled")
    for name in task.metrics:
        try:
            find_metric(name)
        except (KeyError, ImportError, AttributeError) as error:
            raise UserError(f"the task {task.id} has a metric {name}: {error.args[0] if error.args else error}") from error


def _check_samples(task: Task, dataset: Dataset, roles: Mapping[str, RolePlan]) -> None:
    for role, plan in roles.items():
        if _has_target(role) and task.target not in plan.samples.targets:
            raise UserError(
                f"split {plan.split} of {dataset.name} has no target {task.target!r} (it has: {', '.join(plan.samples.targets)})"
            )
        if len(plan.samples.ids) == 0:
            raise UserError(f"split {plan.split} of {dataset.name} (role {role}) has no samples")
