"""Does one unit of work on one device: slices of a pass, or a job from features (cached or encoded as they are read)."""

from __future__ import annotations

import io
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from virb.data.decode import DECODED, REFUSED
from virb.encoders.base import Encoder
from virb.encoders.load import load_encoder
from virb.errors import DiskFull, UserError, ViRBError
from virb.features.cache import FeatureCache
from virb.features.counted import PassReport
from virb.features.decoded import Pixels
from virb.features.encoding import Memory, PassOptions
from virb.features.held import HeldEntries
from virb.features.layout import place
from virb.features.limits import encoder_limit, slice_limit, weight_bytes
from virb.features.passes import Wanted, run_slices
from virb.features.uses import remove_entries
from virb.io import available_cores
from virb.metrics.base import find_metric
from virb.plan.graph import Unit, UnitReport
from virb.plan.jobs import Job, PartWork, PassWork, RunContext
from virb.probes.base import (
    FIT,
    REPORT,
    ConfigOutcome,
    Context,
    Outcome,
    Predictions,
    Run,
    Settings,
)
from virb.probes.inputs import online_sample
from virb.probes.pieces import PartDone
from virb.probes.score import score_heads
from virb.results import schema
from virb.results.environment import utc_now
from virb.runner.curves import Curves
from virb.runner.devices import cores_of_worker, set_up
from virb.runner.heads import given_heads
from virb.runner.parts import is_done, job_folder, part_folder, pieces_of, read_parts, write_part
from virb.runner.pictures import draw_panel
from virb.runner.profile import job_seconds, stream_seconds
from virb.runner.reading import JobReader, Sources, in_the_split
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
        self._limit, self._most_held = encoder_limit(settings.devices), slice_limit(settings.devices)
        self._before = 0, 0  # DECODED and REFUSED when the unit at hand began
        self._work = PassReport()  # of the pass at hand, or of the streams of the job at hand
        self._mended = PassReport()  # of the slices that the job at hand found damaged and made again
        self._facts: JobFacts | None = None  # of the job at hand
        self._stage = "", 0.0  # which it is in, since when

    def __call__(self, unit: Unit, tell: Tell) -> UnitReport:
        self._before, self._work, self._mended, self._facts = (DECODED.value, REFUSED.value), PassReport(), PassReport(), None
        if unit.kind == "release":
            return UnitReport(counts={"released": len(remove_entries(self.cache, unit.payload, except_by=self.context.use))})
        if unit.kind == "pass":
            report = self._pass_with_room(unit.payload, tell)
        elif unit.kind == "part":
            report = self._part(unit.payload, tell)
        else:
            report = self._job_with_room(self.context.jobs[unit.payload], tell)
        report.counts |= self._decoded()  # streams decode in jobs
        return report

    def spent(self) -> UnitReport:
        """What the unit at hand has cost so far, whether it has failed, is interrupted or goes on."""
        counts = self._decoded()
        if self._facts is None:
            # What the encoders took of the images that have come is not known yet, so it makes no rate.
            return UnitReport(counts={**counts, "rows": self._work.rows}, seconds={**self._work.seconds, "compute": 0.0})
        stage, began = self._stage
        now = schema.Timing(stage=stage, seconds=time.perf_counter() - began)
        seconds = job_seconds([*self._facts.timings, now], None, self._work.seconds, self._mended.seconds)
        return UnitReport(counts={**counts, "streamed": self._work.rows + self._mended.rows}, seconds=seconds)

    def _decoded(self) -> dict[str, int]:
        """Images that the unit at hand has decoded, and those of them that the run's decoder refused."""
        decoded, refused = self._before
        return {"decoded": DECODED.value - decoded, "refused": REFUSED.value - refused}

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

    def _pass_with_room(self, work: PassWork, tell: Tell) -> UnitReport:
        """An entry of which a slice found the disk full is not encoded any more: nobody can use it without that slice."""
        full = {item.key: self.cache.no_room[item.key] for item in work.wanted if item.key in self.cache.no_room}
        wanted = tuple(item for item in work.wanted if item.key not in full)
        try:
            report = self._pass(replace(work, wanted=wanted), tell, self._work, self.held)
        except DiskFull as error:  # not even an entry's record
            report = UnitReport(failed={item.key: str(error) for item in wanted}, no_room=True)
        report.failed.update(full)
        report.no_room |= any(key in self.cache.no_room for key in report.failed)
        return report

    def _pass(self, work: PassWork, tell: Tell, into: PassReport, held: HeldEntries | None = None) -> UnitReport:
        images = self.context.lists[work.list_id]
        missing = {bounds: [w for w in work.wanted if not self.cache.has_slice(w.key, bounds[0])] for bounds in work.slices}
        needed = dict.fromkeys(item for items in missing.values() for item in items)
        report = UnitReport()
        encoders: dict[str, Encoder] = {}
        together = {item.encoder for item in work.wanted}
        for item in needed:
            if item.encoder not in encoders and item.key not in report.failed:
                try:
                    encoders[item.encoder] = self.encoder(item.encoder, together)
                except ViRBError as error:
                    report.failed.update({other.key: str(error) for other in needed if other.encoder == item.encoder})
        for item in needed:
            if item.key not in report.failed:
                about = {"encoder": item.encoder, "images": images.name}
                self.cache.prepare(self.context.entries[item.key].record, len(images), about)
        stretches = self._stretches(work, missing, report)
        total = sum(stop - start for slices, _, _ in stretches for start, stop in slices)
        for slices, wanted, pixels in stretches:
            doing = "encoding" if wanted else "decoding"
            run_slices(
                images,
                slices,
                wanted,
                encoders,
                self.cache,
                self.device,
                self.options,
                lambda rows, doing=doing: tell(doing, rows, total),  # type: ignore[misc]
                self.memory,
                pixels,
                held,
                into,
                self._most_held,
            )
        report.failed.update(into.failed)
        report.notes += into.notes
        report.counts = {"rows": into.rows if work.wanted else 0}
        report.seconds = into.seconds
        return report

    def _stretches(
        self, work: PassWork, missing: Mapping[tuple[int, int], list[Wanted]], report: UnitReport
    ) -> list[tuple[list[tuple[int, int]], list[Wanted], Pixels]]:
        """Slices in a row of which the same has to be made: all of them, unless another run was at work here since this one was planned."""
        found: list[tuple[list[tuple[int, int]], list[Wanted], Pixels]] = []
        for bounds, items in missing.items():
            wanted = [item for item in items if item.key not in report.failed]
            pixels = self.pixels.of_slice(work, bounds[0], wanted, report.notes)
            if not wanted and not pixels.keep:
                continue
            if found and (found[-1][0][-1][1], found[-1][1], found[-1][2].keep) == (bounds[0], wanted, pixels.keep):
                found[-1][0].append(bounds)
            else:
                found.append(([bounds], wanted, pixels))
        return found

    def _reader(self, job: Job, facts: JobFacts) -> JobReader:
        self.memory.notes.clear()
        sources = Sources(
            context=self.context,
            device=self.device,
            options=self.options,
            cache=self.cache,
            pixels=self.pixels,
            memory=self.memory,
            held=self.held,
            encoder=self.encoder,
            make=self._make_again,
        )
        return JobReader(job, sources, self._work, facts)

    def _make_again(self, work: PassWork) -> UnitReport:
        """A slice that a job found damaged, while it reads features."""
        made = PassReport()
        try:
            return self._pass(work, lambda *_: None, made)
        finally:
            self._mended.rows += made.rows
            for stage, value in made.seconds.items():
                self._mended.seconds[stage] = self._mended.seconds.get(stage, 0.0) + value

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
        self._work, self._stage = PassReport(), ("read features", began)
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
        reader = self._reader(job, facts)
        try:
            chosen = reader.usable()
            outcome = self._outcome(job, reader, chosen, context, facts)
            if FIT in chosen:
                lists = outcome.index_lists.items()
                outcome.index_lists = {name: in_the_split(job.roles[FIT], chosen[FIT][positions]) for name, positions in lists}
            self._next_stage(facts, "results", outcome_epochs(outcome))
            if streaming := stream_seconds(self._work.seconds):
                facts.timings.append(schema.Timing(stage="stream", seconds=round(streaming, 3), items=self._work.rows))
            self._draw(job, outcome, chosen, curves, facts)
            curves.close()  # before the record that says that everything is there
            reader.add_pass_facts()
            summary = write_outcome(facts, outcome)
        except torch.OutOfMemoryError as error:
            raise self._no_memory(job) from error
        finally:
            curves.close()
            reader.close()
        shutil.rmtree(scratch.parent, ignore_errors=True)
        seconds = job_seconds(facts.timings, time.perf_counter() - began, self._work.seconds, self._mended.seconds)
        counts = {"streamed": self._work.rows + self._mended.rows}
        return UnitReport(summary=summary, notes=list(self.memory.notes), counts=counts, seconds=seconds)

    def _outcome(self, job: Job, reader: JobReader, chosen: dict[str, np.ndarray], context: Context, facts: JobFacts) -> Outcome:
        """What the job's probe finds, or what its given heads score."""
        settings = _settings(job)
        probe = None if job.heads else get_probe(job.task.probe)()
        if probe is not None and probe.shape != "features":
            facts.streamed = True
            self._stage = "probe", self._stage[1]  # it decodes and encodes as it goes: nothing is read before
            if probe.shape == "batches":
                return probe.from_batches(self.encoder(job.encoder), reader.loaders(chosen), settings, context)
            return self._online(job, chosen[report_role(job)], probe, settings, context)
        roles = reader.roles(chosen)
        self._next_stage(facts, "probe")
        if probe is not None:
            return probe.from_features(roles, settings, context)
        heads, facts.job, facts.heads = given_heads(job)
        outcome = score_heads(roles[REPORT], heads, replace(settings, seeds=facts.job.task.seeds), context)
        if outcome.selected_on != "val":
            facts.job = replace(facts.job, task=replace(facts.job.task, selection=outcome.selected_on))
        return outcome

    def _next_stage(self, facts: JobFacts, name: str, items: int | None = None) -> None:
        """Writes down what the stage at hand took, and begins another."""
        facts.stage(*self._stage, items)
        self._stage = name, time.perf_counter()

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
        reader = self._reader(job, facts)
        try:
            roles = reader.roles(reader.usable())
            self._next_stage(facts, "probe")
            with suppress(PartDone):
                get_probe(job.task.probe)().from_features(roles, _settings(job), context)
            facts.stage(*self._stage)
        except torch.OutOfMemoryError as error:
            raise self._no_memory(job) from error
        finally:
            reader.close()
        seconds = time.perf_counter() - began
        write_part(folder, work.part, str(self.device), seconds, utc_now())
        spent = job_seconds(facts.timings, seconds, made=self._mended.seconds)
        return UnitReport(notes=list(self.memory.notes), counts={"streamed": self._mended.rows}, seconds=spent)

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


def outcome_epochs(outcome: Outcome) -> int | None:
    return sum(len(c.history) for run in outcome.runs for c in run.configs.values()) or None
