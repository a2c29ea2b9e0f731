"""Does one unit of work on one device: a slice of a pass, or a job from features (cached or encoded as they are read)."""

from __future__ import annotations

import io
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from virb.data.decode import DECODED
from virb.data.images import ImageList
from virb.data.transforms import Geometry
from virb.data.windows import WindowedImages
from virb.encoders.base import Encoder
from virb.encoders.load import load_encoder
from virb.errors import UserError, ViRBError
from virb.features.cache import DamagedSlices, FeatureCache
from virb.features.feature_set import EncodedRows, MappedRows, Rows
from virb.features.held import HeldEntries, HeldRows
from virb.features.layout import place
from virb.features.limits import encoder_limit, weight_bytes, working_tier
from virb.features.local_copies import bring, place_of
from virb.features.passes import Memory, PassOptions, PassReport, run_slice
from virb.features.uses import remove_entries
from virb.io import available_cores
from virb.metrics.base import find_metric
from virb.plan.graph import Unit, UnitReport
from virb.plan.jobs import Entry, Job, PartWork, PassWork, RolePlan, RunContext
from virb.plan.samples import class_numbers
from virb.probes.base import (
    FIT,
    REPORT,
    SELECT,
    ConfigOutcome,
    Context,
    Listed,
    Outcome,
    Predictions,
    RoleData,
    Run,
    Seen,
    Settings,
    is_labelled,
)
from virb.probes.inputs import ImageBatches, encoded_rows, find_bad_images, online_sample, role_data, stream_batch, usable_samples
from virb.probes.pieces import PartDone
from virb.probes.score import score_heads
from virb.probes.selection import hold_out
from virb.results import schema
from virb.results.environment import utc_now
from virb.runner.curves import Curves
from virb.runner.devices import cores_of_worker, set_up
from virb.runner.heads import given_heads
from virb.runner.parts import is_done, job_folder, part_folder, pieces_of, read_parts, write_part
from virb.runner.pictures import draw_panel
from virb.runner.profile import job_seconds, stream_seconds
from virb.runner.records import JobFacts, report_role, write_outcome
from virb.runner.stores import PixelStores
from virb.tasks.resolve import get_probe

ENCODE_BATCH = {"cpu": 32, "cuda": 256}  # fixed per kind of device: the shape of a batch can change the last bits of its values
Tell = Callable[[str, int, int], None]


def make_doer(context: RunContext, device: str) -> Callable[[Unit, Tell], UnitReport]:
    """A worker on one device: keeps encoders between units, does any kind of unit."""
    set_up(device)
    return _Doer(context, torch.device(device))


class _Doer:
    def __init__(self, context: RunContext, device: torch.device) -> None:
        self.context, self.device = context, device
        self.cache = FeatureCache(context.cache_folder)
        settings = context.settings
        per_worker = max(1, available_cores() // len(settings.devices))
        threads = settings.num_workers if settings.num_workers is not None else (0 if device.type == "cpu" else min(16, per_worker))
        self.options = PassOptions(settings.numerics, ENCODE_BATCH[device.type], threads)
        # Where one worker does all passes, it also has all slices of what they make.
        self.held = HeldEntries(device) if len(settings.devices) == 1 else None
        # What running out of memory has taught of each encoder, for all units.
        self.memory = Memory(spare=self.held.clear) if self.held is not None else Memory()
        self.pixels = PixelStores(context, self.cache)
        self._encoders: OrderedDict[str, Encoder] = OrderedDict()  # the one used last at the end
        self._limit = encoder_limit(settings.devices)
        self._opened: dict[str, MappedRows | HeldRows] = {}  # entries that the job at hand has read and checked, or has at hand
        self._decoded = 0  # DECODED when the unit at hand began
        self._work = PassReport()  # of the pass at hand, or of the streams of the job at hand
        self._facts: JobFacts | None = None  # of the job at hand
        self._stage = "", 0.0  # which it is in, since when

    def __call__(self, unit: Unit, tell: Tell) -> UnitReport:
        self._decoded, self._work, self._facts = DECODED.value, PassReport(), None
        if unit.kind == "release":
            return UnitReport(counts={"released": len(remove_entries(self.cache, unit.payload, except_by=self.context.use))})
        if unit.kind == "pass":
            report = self._pass(unit.payload, tell, self._work, self.held)
        elif unit.kind == "part":
            report = self._part(unit.payload, tell)
        else:
            report = self._job_with_room(self.context.jobs[unit.payload], tell)
        report.counts["decoded"] = DECODED.value - self._decoded  # streams decode in jobs
        return report

    def spent(self) -> UnitReport:
        """What the unit at hand has cost so far, whether it has failed, is interrupted or goes on."""
        counts = {"decoded": DECODED.value - self._decoded}
        if self._facts is None:
            return UnitReport(counts={**counts, "rows": self._work.rows}, seconds=dict(self._work.seconds))
        stage, began = self._stage
        now = schema.Timing(stage=stage, seconds=time.perf_counter() - began)
        seconds = job_seconds([*self._facts.timings, now], None, self._work.seconds)
        return UnitReport(counts={**counts, "streamed": self._work.rows}, seconds=seconds)

    def encoder(self, name: str, together: Collection[str] = ()) -> Encoder:
        """The encoder on this worker's device, checked to be the one that was planned. As many are kept as the plan puts into one pass;
        those that are used ``together`` with this one always."""
        if name in self._encoders:
            self._encoders.move_to_end(name)
            return self._encoders[name]
        planned = self.context.encoders[name]
        self._make_room(weight_bytes(planned.spec), together)
        encoder = load_encoder(planned.source, name=name, seed=self.context.settings.seed)
        if encoder.spec.encoder_id != planned.spec.encoder_id:
            raise ViRBError(f"the weights of {name} changed since the run was planned; run the same command again")
        self._encoders[name] = place(encoder, self.device)
        return self._encoders[name]

    def _make_room(self, needed: float, together: Collection[str]) -> None:
        held = {name: weight_bytes(self.context.encoders[name].spec) for name in self._encoders}
        for name in held:
            if sum(held[other] for other in self._encoders) + needed <= self._limit:
                return
            if name not in together:
                del self._encoders[name]

    def _pass(self, work: PassWork, tell: Tell, into: PassReport, held: HeldEntries | None = None) -> UnitReport:
        images = self.context.lists[work.list_id]
        wanted = [item for item in work.wanted if not self.cache.has_slice(item.key, work.start)]
        report = UnitReport()
        encoders: dict[str, Encoder] = {}
        together = {item.encoder for item in work.wanted}
        for item in wanted:
            if item.encoder not in encoders and item.key not in report.failed:
                try:
                    encoders[item.encoder] = self.encoder(item.encoder, together)
                except ViRBError as error:
                    report.failed.update({other.key: str(error) for other in wanted if other.encoder == item.encoder})
        wanted = [item for item in wanted if item.key not in report.failed]
        pixels = self.pixels.of_pass(work, wanted, report.notes)
        if not wanted and not pixels.keep:
            return report
        for item in wanted:
            about = {"encoder": item.encoder, "images": images.name}
            self.cache.prepare(self.context.entries[item.key].record, len(images), about)
        total = work.stop - work.start
        done = run_slice(
            images,
            work.start,
            work.stop,
            wanted,
            encoders,
            self.cache,
            self.device,
            self.options,
            lambda rows: tell("encoding" if wanted else "decoding", rows, total),
            self.memory,
            pixels,
            held,
            into,
        )
        report.failed.update(done.failed)
        report.notes += done.notes
        report.counts = {"rows": done.rows if wanted else 0}
        report.seconds = done.seconds
        return report

    def _job_with_room(self, job: Job, tell: Tell) -> UnitReport:
        """What runs out of memory while entries are held there has another try without them."""
        try:
            return self._job(job, tell)
        except ViRBError as error:
            if not isinstance(error.__cause__, torch.OutOfMemoryError) or self.held is None or not self.held.clear():
                raise
        torch.cuda.empty_cache()  # not in the except clause, where the error still holds the job's tensors
        return self._job(job, tell)

    def _job(self, job: Job, tell: Tell) -> UnitReport:
        started, began = utc_now(), time.perf_counter()
        entered, self._work, self._stage = began, PassReport(), ("read features", began)
        settings = self.context.settings
        scratch = job_folder(settings.out, job)
        curves = Curves(scratch.parent / "curves", list(job.task.configs))
        facts = JobFacts(job, self.context, str(self.device), started, curves=curves.folder, parts=read_parts(scratch))
        self._facts = facts
        context = Context(
            self.device,
            scratch,
            tell,
            curves.add,
            encoder=lambda: self.encoder(job.encoder),
            cores=self._cores(),
            pieces=pieces_of(scratch),
        )
        probe = None if job.heads else get_probe(job.task.probe)()
        self._opened = self._held_rows(job)
        self.memory.notes.clear()
        try:
            chosen = self._usable(job, facts)
            probe_settings = _settings(job)
            if probe is None:
                roles = self._roles(job, chosen, facts)
                facts.stage("read features", began)
                began = time.perf_counter()
                self._stage = "probe", began
                heads, facts.job, facts.heads = given_heads(job)
                outcome = score_heads(roles[REPORT], heads, replace(probe_settings, seeds=facts.job.task.seeds), context)
                if outcome.selected_on != "val":
                    facts.job = replace(facts.job, task=replace(facts.job.task, selection=outcome.selected_on))
            elif probe.shape == "features":
                roles = self._roles(job, chosen, facts)
                facts.stage("read features", began)
                began = time.perf_counter()
                self._stage = "probe", began
                outcome = probe.from_features(roles, probe_settings, context)
            elif probe.shape == "batches":
                facts.streamed = True
                self._stage = "probe", began
                outcome = probe.from_batches(self.encoder(job.encoder), self._loaders(job, chosen), probe_settings, context)
            else:
                facts.streamed = True
                self._stage = "probe", began
                outcome = self._online(job, chosen[report_role(job)], probe, probe_settings, context)
            if FIT in chosen:
                lists = outcome.index_lists.items()
                outcome.index_lists = {name: in_the_split(job.roles[FIT], chosen[FIT][positions]) for name, positions in lists}
            facts.stage("probe", began, outcome_epochs(outcome))
            self._stage = "results", time.perf_counter()
            if streaming := stream_seconds(self._work.seconds):
                facts.timings.append(schema.Timing(stage="stream", seconds=round(streaming, 3), items=self._work.rows))
            self._draw(job, outcome, chosen, curves, facts)
            curves.close()  # before the record that says that everything is there
            self._add_pass_facts(job, facts)
            summary = write_outcome(facts, outcome)
        except torch.OutOfMemoryError as error:
            raise self._no_memory(job) from error
        finally:
            curves.close()
            self._opened.clear()
        shutil.rmtree(scratch.parent, ignore_errors=True)
        seconds = job_seconds(facts.timings, time.perf_counter() - entered, self._work.seconds)
        return UnitReport(summary=summary, notes=list(self.memory.notes), counts={"streamed": self._work.rows}, seconds=seconds)

    def _part(self, work: PartWork, tell: Tell) -> UnitReport:
        """A share of a job that several devices share: the probe runs until it comes to it. What is found stays in the job's folder."""
        job, began = self.context.jobs[work.job], time.perf_counter()
        folder = job_folder(self.context.settings.out, job)
        if is_done(folder, work.part):  # by an earlier run
            return UnitReport()
        self._stage = "read features", began
        self._facts = facts = JobFacts(job, self.context, str(self.device), utc_now())
        scratch, pieces = part_folder(folder, work.part), pieces_of(folder, work.part)
        context = Context(self.device, scratch, tell, encoder=lambda: self.encoder(job.encoder), cores=self._cores(), pieces=pieces)
        self._opened = self._held_rows(job)
        self.memory.notes.clear()
        try:
            roles = self._roles(job, self._usable(job, facts), facts)
            facts.stage("read features", began)
            asked = time.perf_counter()
            self._stage = "probe", asked
            with suppress(PartDone):
                get_probe(job.task.probe)().from_features(roles, _settings(job), context)
            facts.stage("probe", asked)
        except torch.OutOfMemoryError as error:
            raise self._no_memory(job) from error
        finally:
            self._opened.clear()
        seconds = time.perf_counter() - began
        write_part(folder, work.part, str(self.device), seconds, utc_now())
        return UnitReport(notes=list(self.memory.notes), seconds=job_seconds(facts.timings, seconds))

    def _cores(self) -> int:
        """Where a job is shared, all workers are at work."""
        devices = self.context.settings.devices
        return cores_of_worker(devices, len(devices) if self.context.shared else len(self.context.jobs))

    def _no_memory(self, job: Job) -> ViRBError:
        return ViRBError(
            f"{job.id} ran out of memory on {self.device}: a smaller batch_size, fewer training configs or another device may help"
        )

    def _draw(self, job: Job, outcome: Outcome, chosen: Mapping[str, np.ndarray], curves: Curves, facts: JobFacts) -> None:
        """What a few predictions look like, as a picture beside the results and in TensorBoard."""
        if not outcome.pictures or job.task.task.dense is None:
            return
        role = report_role(job)
        plan = job.roles[role]
        targets, images = plan.samples.targets[job.task.task.target], self.context.lists[plan.list_id]
        panel = draw_panel(job.task.task.dense, plan, images, targets, chosen[role], outcome.pictures, job.classes)
        curves.add_picture(outcome.chosen, "predictions", np.asarray(panel))
        file = io.BytesIO()
        panel.save(file, format="PNG")
        facts.pictures = file.getvalue()

    def _usable(self, job: Job, facts: JobFacts) -> dict[str, np.ndarray]:
        """Per role the samples that take part: all whose images decode, less those held out for selection."""
        chosen: dict[str, np.ndarray] = {}
        for role, plan in job.roles.items():
            images = self.context.lists[plan.list_id]
            entries = [self.context.entries[key] for key in plan.entries]
            if entries and not entries[-1].streamed:
                bad = dict(self._mapped(entries[-1].key).bad)
            elif job.task.on_bad_image == "skip":
                known = self.pixels.bad(plan.list_id)
                rows = np.unique(plan.samples.row_values)
                bad = find_bad_images(images, rows, self.options.loader_threads) if known is None else known
            else:
                bad = {}
            chosen[role] = usable_samples(plan.samples, bad, images, job.task.on_bad_image)
            left_out = np.setdiff1d(np.arange(len(plan.samples)), chosen[role])
            facts.bad_samples += [str(i) for i in plan.samples.ids[left_out]] if not plan.held_out else []
            if not len(chosen[role]):
                raise ViRBError(f"{job.label}: no sample of split {plan.split} is left, none of its images could be decoded")
            if plan.limited is not None and not plan.held_out:
                facts.index_lists[f"limit-{plan.split}"] = list(plan.limited)
        facts.chosen_samples = chosen
        if SELECT in job.roles and job.roles[SELECT].held_out:
            samples, pool = job.roles[SELECT].samples, chosen[FIT]
            keep = _positions_of(job.listed, pool)
            fit, select = hold_out(_class_targets(samples.targets[job.task.task.target], pool), samples.units[pool], seed=0, keep=keep)
            chosen[FIT], chosen[SELECT] = pool[fit], pool[select]
            facts.index_lists["select"] = in_the_split(job.roles[SELECT], chosen[SELECT])
        return chosen

    def _roles(self, job: Job, chosen: dict[str, np.ndarray], facts: JobFacts) -> dict[str, RoleData]:
        roles = {}
        for role, plan in job.roles.items():
            rows = self._rows(job, plan, facts)
            tier = self._tier(list(rows.values()), facts)
            maps = [[rows[key] for key in entries] for entries in plan.maps()]
            target = _visible_target(job, role)
            roles[role] = role_data(plan.samples, target, chosen[role], maps, self.device, tier, self._seen(job, plan))
        if facts.tier != "streamed" and self._opened and all(isinstance(rows, HeldRows) for rows in self._opened.values()):
            facts.tier = f"{facts.tier}, straight from the pass"
        if job.listed is not None:
            roles[FIT] = replace(roles[FIT], listed=replace(job.listed, positions=tuple(_positions_of(job.listed, chosen[FIT]))))
        return roles

    def _rows(self, job: Job, plan: RolePlan, facts: JobFacts) -> dict[str, Rows]:
        """What each entry of a role is read from. Streamed ones of one view come from one forward."""
        found: dict[str, Rows] = {key: self._mapped(key) for key in plan.entries if not self.context.entries[key].streamed}
        streams: dict[Geometry, list[Entry]] = {}
        for entry in (self.context.entries[key] for key in plan.entries):
            if entry.streamed:
                streams.setdefault(entry.wanted.geometry, []).append(entry)
        images = self.context.lists[plan.list_id]
        kept = self.pixels.kept(plan.list_id)
        options = self._stream_options(job)
        for geometry, entries in streams.items():
            facts.streamed = True
            shapes = {entry.wanted.request: entry.row_shape for entry in entries}
            encoder = self.encoder(job.encoder)
            rows = encoded_rows(images, geometry, shapes, encoder, self.device, options, self.memory, kept, self._work)
            found.update({entry.key: one for entry, one in zip(entries, rows, strict=True)})
        return found

    def _stream_options(self, job: Job) -> PassOptions:
        """Streams of all roles encode as many images at once as a step of the job's training has."""
        plan = job.roles.get(FIT) or job.roles[report_role(job)]
        samples = job.task.batch_size if FIT in job.roles else job.task.test_batch_size
        rows = samples * int(np.diff(plan.samples.row_offsets).max(initial=1))
        return replace(self.options, batch_size=stream_batch(rows, self.options.batch_size))

    def _seen(self, job: Job, plan: RolePlan) -> Callable[[np.ndarray, np.ndarray], Seen] | None:
        """How the images of a role were seen, for tasks whose targets follow the pixels."""
        if job.task.task.dense is None:
            return None
        views = tuple(self.context.entries[key].wanted.geometry for key in plan.maps()[0])
        patch = self.context.encoders[job.encoder].spec.patch_size or 1
        height, width = views[0].size or (0, 0)
        images = self.context.lists[plan.list_id]
        windows = images if isinstance(images, WindowedImages) else None
        canvas = (-(-height // patch) * patch, -(-width // patch) * patch)
        stored = windows.images if windows is not None else images
        cheap = type(stored).image_size is not ImageList.image_size  # read from the file's header
        size = (lambda row: stored.image_size(row if windows is None else windows.window_of(row)[0])) if cheap else None
        return lambda values, offsets: Seen(views, canvas, values, offsets, windows, size)

    def _held_rows(self, job: Job) -> dict[str, MappedRows | HeldRows]:
        """The job's entries where the pass left all of them in memory; else it reads all of them from the cache."""
        needed = {key for plan in job.roles.values() for key in plan.entries if not self.context.entries[key].streamed}
        found = {key: rows for key in needed if self.held is not None and (rows := self.held.find(key)) is not None}
        return dict(found) if len(found) == len(needed) else {}

    def _mapped(self, key: str) -> MappedRows | HeldRows:
        """A whole entry, read and checked against its checksums once a job, whoever of its roles asks."""
        if key not in self._opened:
            entry = self.context.entries[key]
            try:
                slices = self.cache.slices(key, entry.n_rows)
            except DamagedSlices:
                self._make_again(entry)
                slices = self.cache.slices(key, entry.n_rows)
            self._opened[key] = MappedRows(slices)
        return self._opened[key]

    def _make_again(self, entry: Entry) -> None:
        """The slices that turned out to be damaged when a job read them: the plan took them for cached, so no pass makes them."""
        missing = self.cache.missing_slices(entry.key, entry.n_rows)
        for start, stop in missing:
            report = self._pass(PassWork(entry.list_id, start, stop, (entry.wanted,)), lambda *_: None, PassReport())
            if report.failed:
                raise ViRBError(report.failed[entry.key])
        self.memory.notes.append(f"features of {entry.wanted.encoder} were damaged on disk: {len(missing)} slices made again")

    def _add_pass_facts(self, job: Job, facts: JobFacts) -> None:
        """How the job's features were made: entries tell of it, whichever run made them, and streams were made just now."""
        seconds: dict[str, float] = {}
        batches = set[tuple[int, int]]()
        for rows in self._opened.values():
            for stage, value in rows.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
            batches |= set(rows.batches)
        streamed = self._stream_options(job).batch_size
        for entry in (self.context.entries[key] for plan in job.roles.values() for key in plan.entries):
            if entry.streamed and (batch := self.memory.reduced(job.encoder, entry.wanted.geometry, streamed)):
                batches.add(batch)
        if batches:
            at_once, meant = min(batches)
            facts.notes.append(
                f"memory held {at_once} images of the {meant} that {job.encoder} was given at once: it encoded smaller batches"
            )
        items = sum(map(len, self._opened.values()))
        made = [schema.Timing(stage=f"pass: {stage}", seconds=round(value, 3), items=items) for stage, value in seconds.items()]
        facts.timings[:0] = made

    def _tier(self, views: list[Rows], facts: JobFacts) -> str:
        """The fastest place that holds the working copy."""
        if any(isinstance(view, EncodedRows) for view in views):
            facts.tier = "streamed"
            return "streamed"
        if views and all(isinstance(view, HeldRows) for view in views):  # there already: little more is needed
            facts.tier = "device" if self.device.type == "cuda" else "host"
            return facts.tier
        need = sum(view.nbytes for view in views)
        tier = working_tier(need, str(self.device), len(self.context.settings.devices))
        if tier == "mapped" and (folder := self.context.settings.local_cache) is not None:
            needed = {key for plan in facts.job.roles.values() for key in plan.entries}
            in_use = needed if len(self.context.settings.devices) == 1 else None  # other workers' jobs read copies, too
            for key, rows in self._opened.items():
                if isinstance(rows, MappedRows) and any(view is rows for view in views):
                    rows.move(partial(bring, key=key, place=place_of(folder, self.context.use), in_use=in_use))
        order = ("device", "host", "mapped", "streamed")
        facts.tier = max((facts.tier or "device", tier), key=order.index)
        return tier

    def _loaders(self, job: Job, chosen: dict[str, np.ndarray]) -> dict[str, ImageBatches]:
        encoder = self.encoder(job.encoder)
        return {
            role: ImageBatches(
                self.context.lists[plan.list_id],
                plan.samples,
                _visible_target(job, role),
                chosen[role],
                job.geometry,
                encoder,
                self.device,
                self.options.loader_threads,
                self.pixels.kept(plan.list_id),
            )
            for role, plan in job.roles.items()
        }

    def _online(self, job: Job, chosen: np.ndarray, probe: Any, settings: Settings, context: Context) -> Outcome:
        if len(settings.configs) != 1:
            raise UserError(f"{job.label}: the probe {job.task.probe} works sample by sample and takes one training config")
        plan = job.roles[report_role(job)]
        images, encoder = self.context.lists[plan.list_id], self.encoder(job.encoder)
        given = plan.samples.targets.get(f"given_{job.task.task.target}")  # such as the boxes of a video's first frame
        values = []
        for done, index in enumerate(chosen.tolist()):
            sample = online_sample(images, plan.samples, index, None if given is None else given[index])
            values.append(probe.online(encoder, sample, settings, context))
            context.progress("predicting", done + 1, len(chosen))
        name = next(iter(settings.configs))
        return Outcome([Run(settings.seeds[0], {name: ConfigOutcome(name, report=Predictions(values))}, name)], name, selected_on="none")


def in_the_split(plan: RolePlan, chosen: np.ndarray) -> list[int]:
    """Samples of a role as numbers in the whole split, also where a limit leaves some out."""
    return chosen.tolist() if plan.limited is None else [plan.limited[i] for i in chosen.tolist()]


def _positions_of(listed: Listed | None, chosen: np.ndarray) -> list[int]:
    """Where the listed samples stand among those that take part."""
    return [] if listed is None else np.flatnonzero(np.isin(chosen, listed.positions)).tolist()


def _visible_target(job: Job, role: str) -> str | None:
    """The target that a probe may see of this role's samples."""
    return job.task.task.target if is_labelled(role) else None


def _settings(job: Job) -> Settings:
    task = job.task
    return Settings(
        configs=task.configs,
        num_epochs=task.num_epochs,
        batch_size=task.batch_size,
        test_batch_size=task.test_batch_size,
        selection=task.selection,  # type: ignore[arg-type]
        seeds=task.seeds,
        refit=task.refit,
        loss=task.task.loss,
        metrics=tuple(find_metric(name).name for name in task.task.metrics),
        n_classes=len(job.classes) if job.classes else None,
        dense=task.task.dense,
        score_size=task.score_size,
    )


def _class_targets(targets: Any, chosen: np.ndarray) -> np.ndarray | None:
    """Class numbers, or None for targets of any other kind."""
    numbers = class_numbers(targets)
    return None if numbers is None else numbers[chosen]


def outcome_epochs(outcome: Outcome) -> int | None:
    return sum(len(c.history) for run in outcome.runs for c in run.configs.values()) or None
