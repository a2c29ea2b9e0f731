"""Encoders x tasks -> jobs and the feature entries they need. Everything that is wrong is reported together; nothing is run or written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from virb.config import EncoderConfig, TaskConfig, Where, path_collisions
from virb.config.excerpt import own_part
from virb.config.names import UniqueNames, check_encoder_name
from virb.config.tree import Report
from virb.data.images import ImageList
from virb.data.transforms import Geometry
from virb.data.windows import WindowedImages
from virb.encoders.base import Encoder
from virb.encoders.download import NotDownloaded
from virb.encoders.load import load_encoder
from virb.encoders.requests import Request
from virb.encoders.verify import Failed, Verified, verify_encoder
from virb.errors import ConfigError, Problem, UserError, ViRBError
from virb.features.cache import EntryRecord
from virb.features.passes import Wanted
from virb.io import can_write, existing_parent
from virb.plan.fitted import as_trained, idle_limits, with_features, with_limit
from virb.plan.geometry import check_dense, choose_geometry, geometry_of_score, own_geometry, seen_as, with_decoder, with_geometry
from virb.plan.heads import HeadSource, NoHead, class_columns, head_sources
from virb.plan.jobs import Draft, Entry, InMemory, Job, Plan, PlannedEncoder, RolePlan, RunSettings, source_of
from virb.plan.keys import job_key, normalisation, score_key
from virb.plan.measure import Meter
from virb.plan.samples import Datasets, TaskData
from virb.plan.units import assemble
from virb.probes.base import FIT
from virb.probes.split import sample_width
from virb.results.store import conflicts, finished
from virb.tasks.protocols import PROTOCOLS, no_protocol
from virb.tasks.resolve import ResolvedTask, get_probe, resolve_task
from virb.transfer import Progress

Config = EncoderConfig | InMemory


def build_plan(
    settings: RunSettings,
    encoders: Sequence[Config],
    tasks: Sequence[TaskConfig],
    problems: Iterable[Problem] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> Plan:
    """The whole plan. Raises ConfigError with every problem of the input at once; runs nothing."""
    return assemble(draft_plan(settings, encoders, tasks, problems, tell=tell))


def draft_plan(
    settings: RunSettings,
    encoders: Sequence[Config],
    tasks: Sequence[TaskConfig] | None,
    problems: Iterable[Problem] = (),
    *,
    texts: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda text: None,
    on_encoder: Callable[[Verified | Failed], None] | None = None,
    on_download: Callable[[Progress], None] | None = None,
) -> Draft:
    """Checks everything that can be checked without running; ``problems`` are those found so far, ``texts`` the files as read.

    With ``on_encoder`` (``virb check``) nothing is downloaded, and every encoder is tried on noise and told about, also one that fails.
    ``tasks`` None: only the encoders are looked at. Raises ConfigError with every problem of the input at once.
    """
    load = partial(load_encoder, seed=settings.seed, offline=on_encoder is not None, progress=on_download)
    builder = _Builder(settings, list(problems), Datasets(settings.data_root, tell), Meter(settings.device_kind), load, on_encoder)
    builder.check_place()
    if not builder.problems and not (encoders and (tasks or tasks is None)):
        builder.problems.append(Problem("command line", 0, "", f"there are no {'tasks' if encoders else 'encoders'} to run"))
    resolved = builder.resolve(tasks or ())
    for config in builder.usable(encoders):
        tell(f"checking encoder {config.name}")
        builder.add_encoder(config, resolved)
    if tasks is not None:
        builder.check_store()
    if builder.problems:
        raise ConfigError(builder.problems)
    parts = {task.label: own_part((texts or {}).get(task.where.file, ""), task.where) for task, _ in resolved if task.where}
    return Draft(settings, builder.planned, builder.jobs, builder.entries, builder.lists, parts, tuple(builder.notes))


@dataclass
class _Builder:
    settings: RunSettings
    problems: list[Problem]
    datasets: Datasets
    meter: Meter
    load: Callable[..., Encoder]
    on_encoder: Callable[[Verified | Failed], None] | None
    planned: dict[str, PlannedEncoder] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    lists: dict[str, ImageList] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)  # of the files, in lower case
    added: dict[str, tuple[ResolvedTask, TaskData]] = field(default_factory=dict)  # tasks whose heads others score

    def add_problem(self, where: Where, error: ViRBError | str, key: str = "") -> None:
        if isinstance(error, ConfigError):
            self.problems += error.problems
        else:
            self.problems.append(Problem(where.file, where.line, key or where.key, str(error)))

    def check_place(self) -> None:
        """The folder of the results, without making it."""
        there = existing_parent(self.settings.out)
        if not there.is_dir():
            self.problems.append(Problem("command line", 0, "--out", f"{there} is a file, not a folder"))

    def resolve(self, configs: Sequence[TaskConfig]) -> list[tuple[ResolvedTask, TaskData]]:
        """Tasks with their data. What is wrong with a task is said once, whatever the number of encoders."""
        resolved: list[tuple[ResolvedTask, TaskData]] = []
        protocol = self.settings.protocol
        if protocol is not None and protocol not in PROTOCOLS:
            self.problems.append(Problem("command line", 0, "--protocol", no_protocol(protocol)))
            return []
        for config in configs:
            where = config.where
            try:
                tasks = resolve_task(config, protocol, self.settings.seed)
                where = tasks[0].place("data")
                resolved += [(with_limit(task, data.limit), data) for task in tasks for data in [self.datasets.task_data(task)]]
            except ViRBError as error:
                self.add_problem(where, error)
        self.problems += idle_limits(configs, resolved)
        labels, report = UniqueNames(), Report()
        first: dict[str, ResolvedTask] = {}
        for task, _ in resolved:
            labels.add(task.label, replace(task.place("task"), key=task.label), report)
            first.setdefault(task.label.casefold(), task)
        collisions = path_collisions((task.label, list(task.configs), task.place("task")) for task in first.values())
        self.problems += [*report, *collisions]
        self.labels = {*first, *(config.label.casefold() for config in configs)}
        return resolved

    def usable(self, configs: Sequence[Config]) -> list[Config]:
        """Those whose name can be a folder of its own."""
        names, usable = UniqueNames(), []
        for config in configs:
            report = Report()
            where = config.where or Where("<python>", 0, config.name)
            if check_encoder_name(config.name, where, report):
                names.add(config.name, where, report)
            self.problems += report
            if not len(report):
                usable.append(config)
        return usable

    def add_encoder(self, config: Config, tasks: Sequence[tuple[ResolvedTask, TaskData]]) -> None:
        where = config.where or Where("<python>", 0, config.name)
        try:
            encoder = self.load(source_of(config), name=config.name)
            verified = verify_encoder(encoder) if self.on_encoder else None
        except ViRBError as error:
            if self.on_encoder:
                self.on_encoder(Failed(config.name, str(error), "missing" if isinstance(error, NotDownloaded) else "FAILED"))
            return self.add_problem(where, error)
        if self.on_encoder and verified:
            self.on_encoder(verified)
        try:
            own_geometry(encoder.spec)
        except UserError as error:
            return self.add_problem(where, error, f"{config.name}.input")
        self.planned[config.name] = PlannedEncoder(config.name, source_of(config), encoder.spec, dict(config.meta))
        # Those that train come first, for others may score their heads; after that they stand in the order of the files.
        order = {f"{config.name}/{task.label}": None for task, _ in tasks}
        for task, data in sorted(tasks, key=lambda pair: pair[0].scores_heads):
            try:
                job = self._score_job(config, encoder, task, data) if task.scores_heads else self._job(config, encoder, task, data)
            except ConfigError as error:
                self.problems += error.problems
            except ViRBError as error:
                name = f'encoder "{config.name}"'
                key = "task_head_weights_path" if task.heads_path else "heads_from" if task.heads_from else "features"
                self.add_problem(task.place(key), str(error) if name in str(error) else f"{name}: {error}")
            else:
                self.jobs[job.id] = job
        self.jobs |= {name: self.jobs.pop(name) for name in order if name in self.jobs}

    def _job(self, config: Config, encoder: Encoder, task: ResolvedTask, data: TaskData) -> Job:
        geometry, source = choose_geometry(self.settings, config, encoder.spec, task)
        task, geometry = with_decoder(self.settings, with_geometry(task, geometry, source), geometry)
        task = with_features(task, encoder.spec)
        encoder.spec.check(task.features)
        roles = dict(data.roles)
        probe = get_probe(task.probe)
        if probe.shape == "features":
            maps = [str(one) for one in encoder.spec.expand(task.features)] if getattr(probe, "reads_maps", False) else [task.features]
            if task.task.dense is not None:
                _check_kinds(maps)
            for role, plan in data.roles.items():
                # what is windowed was checked to have one image per sample; its rows are windows
                n_images = 1 if isinstance(data.images[plan.list_id], WindowedImages) else _images_per_sample(plan)
                if task.task.dense is not None:
                    check_dense(geometry, task, n_images)
                seen = seen_as(task, role, geometry, self.settings)
                entries = tuple(self._entry(encoder, g, task, plan, data, one) for g in seen for one in maps)
                roles[role] = replace(plan, entries=entries, n_maps=len(maps))
                if hasattr(probe, "check_features"):
                    probe.check_features(role, _sample_shape(plan, self.entries[entries[0]].row_shape))
                if hasattr(probe, "check_maps"):
                    shapes = [self.entries[key].row_shape for key in entries[: len(maps)]]
                    probe.check_maps(task.task.dense, shapes, n_images)
                    if hasattr(probe, "check_encoder"):
                        probe.check_encoder(encoder, shapes)
            if FIT in roles and hasattr(probe, "check_configs"):
                self._check_configs(config, task, probe, roles[FIT])
        self.lists.update(data.images)
        return Job(
            encoder=config.name,
            key=job_key(self.settings, encoder, task, geometry, data, roles),
            task=task,
            request=task.features,
            geometry=geometry,
            geometry_from=source,
            roles=roles,
            classes=data.classes,
            nbytes=sum(self.entries[key].nbytes for plan in roles.values() for key in plan.entries),
            n_samples={role: len(plan.samples.ids) for role, plan in roles.items()},
            listed=data.listed,
            data_note=data.note,
        )

    def _check_configs(self, config: Config, task: ResolvedTask, probe: Any, fit: RolePlan) -> None:
        try:
            probe.check_configs(task.configs, _sample_shape(fit, self.entries[fit.entries[0]].row_shape))
        except UserError as error:
            where = task.place("training_configs" if "training_configs" in task.places else "grid")
            text = f'encoder "{config.name}": {error}'
            raise ConfigError([Problem(where.file, where.line, where.key or task.label, text)]) from None

    def _score_job(self, config: Config, encoder: Encoder, task: ResolvedTask, data: TaskData) -> Job:
        """Features are made as the heads know them: request and geometry are those of their training."""
        if task.task.dense is not None:
            raise UserError(f"heads of pixelwise tasks cannot be scored on another task yet; train {task.task.id} itself")
        if self.settings.keep_heads == "none":
            raise UserError("--keep_heads none leaves no head to score")
        sources = self._sources(config, encoder, task)
        sources = [replace(source, columns=class_columns(task.task, data.classes, source, task.class_map)) for source in sources]
        first = sources[0]
        for source in sources[1:]:
            if (source.request, source.geometry) != (first.request, first.geometry):
                raise UserError(f"the heads of {first} and {source} were trained on different features; score them in tasks of their own")
        task = as_trained(task, first)
        geometry, origin = geometry_of_score(self.settings, config, encoder.spec, task, first.geometry, str(first))
        task, geometry = with_decoder(self.settings, task, geometry)
        encoder.spec.check(task.features)
        (role, plan), *_ = data.roles.items()
        roles = {role: replace(plan, entries=(self._entry(encoder, geometry, task, plan, data, task.features),))}
        sample_width(role, _sample_shape(plan, self.entries[roles[role].entries[0]].row_shape))
        self.lists.update(data.images)
        return Job(
            encoder=config.name,
            key=score_key(self.settings, encoder, task, geometry, data, roles, sources),
            task=task,
            request=task.features,
            geometry=geometry,
            geometry_from=origin,
            roles=roles,
            classes=data.classes,
            nbytes=self.entries[roles[role].entries[0]].nbytes,
            n_samples={role: len(plan.samples.ids)},
            heads=tuple(sources),
            data_note=data.note,
        )

    def _sources(self, config: Config, encoder: Encoder, task: ResolvedTask) -> list[HeadSource]:
        """The heads of an eval-only task. Where there are none, the task that trains them is added to the plan."""

        def found() -> list[HeadSource]:
            trained = [job for job in self.jobs.values() if job.encoder == config.name and not job.heads]
            return head_sources(task, config.name, encoder.spec.encoder_id, trained, self.settings.out)

        try:
            return found()
        except NoHead as error:
            if error.task_id is None:
                raise
            if error.task_id.casefold() in self.labels:
                without = self.jobs.get(f"{config.name}/{error.task_id}")
                taken = f" (the label {error.task_id} is taken by a task that trains none)" if without is not None else ""
                raise UserError(f"{error}{taken}") from None
            trainer, data = self._added(error.task_id, task)
            job = self._job(config, encoder, trainer, data)
            self.jobs[job.id] = job
        return found()

    def _added(self, task_id: str, asked_by: ResolvedTask) -> tuple[ResolvedTask, TaskData]:
        """A task of the catalogue as it is by default, under its id. UserError where its data are not there."""
        if task_id not in self.added:
            config = TaskConfig(task=task_id, label=task_id, explicit={}, where=asked_by.place("task"))
            try:
                (task,) = resolve_task(config, self.settings.protocol, self.settings.seed)
                data = self.datasets.task_data(task)
            except ViRBError as error:
                text = f"{asked_by.label} scores heads of {task_id}, which neither these files train nor {self.settings.out} has"
                raise UserError(f"{text}; {task_id} cannot be trained first: {error}") from None
            self.added[task_id] = task, data
            self.notes.append(
                f"{task_id} is trained first, with its defaults: {asked_by.label} scores its heads, and neither these files nor "
                f"{self.settings.out} have them"
            )
        return self.added[task_id]

    def _entry(self, encoder: Encoder, geometry: Geometry, task: ResolvedTask, plan: RolePlan, data: TaskData, request: str) -> str:
        """The key of the entry, which may be another task's or another encoder's of the same signature already."""
        spec, images = encoder.spec, data.images[plan.list_id]
        record = EntryRecord(
            encoder_id=spec.encoder_id,
            image_list_id=plan.list_id,
            geometry=geometry.record(),
            normalisation=normalisation(encoder),
            output=request,
            numerics=self.settings.numerics.record(encoder, geometry),
            format={"family": spec.family, "version": spec.format},
        )
        known = self.entries.get(record.key)
        if known is not None:  # one task streams by wish, another keeps: keep
            self.entries[record.key] = replace(known, streamed=known.streamed and task.stream)
            return record.key
        shape, seconds = self.meter.output(encoder, geometry, request)
        self.entries[record.key] = Entry(
            record=record,
            wanted=Wanted(spec.name, geometry, request, record.key),
            list_id=plan.list_id,
            n_rows=len(images),
            row_shape=shape,
            nbytes=2 * len(images) * math.prod(shape) if shape else 0,
            seconds_per_row=seconds,
            decode_seconds=self.meter.decode(images, geometry),
            streamed=task.stream,
        )
        return record.key

    def check_store(self) -> None:
        """Folders of these jobs that hold results of another label, from an earlier run. Where all is done, nothing will be written."""
        out = self.settings.out
        if existing_parent(out).is_dir() and not can_write(out) and not self._all_done():
            self.problems.append(Problem("command line", 0, "--out", f"{out} cannot be written; choose a folder you may write to"))
        for job in self.jobs.values():
            for text in conflicts(self.settings.out, job.encoder, job.label, list(job.task.configs)):
                self.add_problem(job.task.place("task"), f"{text}; rename one of the labels or choose another --out", job.label)

    def _all_done(self) -> bool:
        jobs, out = self.jobs.values(), self.settings.out
        return bool(jobs) and not self.settings.force and all(finished(out, job.encoder, job.label, job.key) for job in jobs)


def _check_kinds(maps: Sequence[str]) -> None:
    """UserError for outputs that have three axes and are no maps."""
    for request in maps:
        if Request.parse(request).kind == "other":
            raise UserError(f"{request} is no map; a dense probe needs maps: features: tokens[-1], or pyramid")


def _images_per_sample(plan: RolePlan) -> int | None:
    """None when samples differ."""
    rows = plan.samples.fixed_rows()
    return None if rows is None else rows.shape[1]


def _sample_shape(plan: RolePlan, row_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Shape of one sample's features: the row's own, with an axis in front where a sample has several images; None when they differ."""
    rows = plan.samples.fixed_rows()
    if rows is None or row_shape is None:
        return None
    return row_shape if rows.shape[1] == 1 else (rows.shape[1], *row_shape)
