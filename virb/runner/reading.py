"""What one job reads: which samples take part, where their features come from, and in which tier they lie while heads train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from virb.data.images import ImageList
from virb.data.transforms import Geometry
from virb.data.windows import WindowedImages
from virb.encoders.base import Encoder
from virb.errors import ViRBError
from virb.features.cache import DamagedSlices, FeatureCache, Slice
from virb.features.counted import PassReport
from virb.features.encoding import Memory, PassOptions
from virb.features.feature_set import EncodedRows, MappedRows, Rows
from virb.features.held import HeldEntries, HeldRows
from virb.features.limits import working_tier
from virb.features.local_copies import bring, place_of
from virb.features.uses import alone
from virb.io import can_write
from virb.plan.describe import many
from virb.plan.graph import UnitReport
from virb.plan.jobs import Entry, Job, PassWork, RolePlan, RunContext
from virb.plan.samples import class_numbers
from virb.probes.base import FIT, SELECT, Listed, RoleData, Seen, is_labelled
from virb.probes.inputs import ImageBatches, encoded_rows, find_bad_images, role_data, stream_batch, usable_samples
from virb.probes.selection import hold_out
from virb.results import schema
from virb.runner.records import JobFacts, report_role
from virb.runner.stores import PixelStores


@dataclass(frozen=True)
class Sources:
    """What a worker reads with, job after job."""

    context: RunContext
    device: torch.device
    options: PassOptions
    cache: FeatureCache
    pixels: PixelStores
    memory: Memory
    held: HeldEntries | None  # where this worker has all slices of what its passes made
    encoder: Callable[[str], Encoder]
    make: Callable[[PassWork], UnitReport]  # does a pass now


class JobReader:
    """Opens each entry of a job once, and writes down in ``facts`` what it learns: tier, samples left out, seconds of the passes."""

    def __init__(self, job: Job, sources: Sources, work: PassReport, facts: JobFacts) -> None:
        self.job, self.sources, self.work, self.facts = job, sources, work, facts
        self.context = sources.context
        self._opened = self._held_rows()  # entries that were read and checked, or are at hand

    def close(self) -> None:
        """Lets go of all features, also where an error still holds this reader."""
        self._opened.clear()

    def usable(self) -> dict[str, np.ndarray]:
        """Per role the samples that take part: all whose images decode, less those held out for selection."""
        chosen: dict[str, np.ndarray] = {}
        for role, plan in self.job.roles.items():
            images = self.context.lists[plan.list_id]
            entries = [self.context.entries[key] for key in plan.entries]
            if entries and not entries[-1].streamed:
                bad = dict(self._mapped(entries[-1].key).bad)
            elif self.job.task.on_bad_image == "skip":
                known = self.sources.pixels.bad(plan.list_id)
                rows = np.unique(plan.samples.row_values)
                bad = find_bad_images(images, rows, self.sources.options.loader_threads) if known is None else known
            else:
                bad = {}
            chosen[role] = usable_samples(plan.samples, bad, images, self.job.task.on_bad_image)
            left_out = np.setdiff1d(np.arange(len(plan.samples)), chosen[role])
            self.facts.bad_samples += [str(i) for i in plan.samples.ids[left_out]] if not plan.held_out else []
            if not len(chosen[role]):
                raise ViRBError(f"{self.job.label}: no sample of split {plan.split} is left, none of its images could be decoded")
            if plan.limited is not None and not plan.held_out:
                self.facts.index_lists[f"limit-{plan.split}"] = list(plan.limited)
        self.facts.chosen_samples = chosen
        select = self.job.roles.get(SELECT)
        if select is not None and select.held_out:
            pool, targets = chosen[FIT], select.samples.targets[self.job.task.task.target]
            keep = _positions_of(self.job.listed, pool)
            fit, held_out = hold_out(_class_targets(targets, pool), select.samples.units[pool], seed=0, keep=keep)
            chosen[FIT], chosen[SELECT] = pool[fit], pool[held_out]
            self.facts.index_lists["select"] = in_the_split(select, chosen[SELECT])
        return chosen

    def roles(self, chosen: Mapping[str, np.ndarray]) -> dict[str, RoleData]:
        """For probes that work on features."""
        roles = {}
        for role, plan in self.job.roles.items():
            rows = self._rows(plan)
            tier = self._tier(list(rows.values()))
            maps = [[rows[key] for key in entries] for entries in plan.maps()]
            target = _visible_target(self.job, role)
            roles[role] = role_data(plan.samples, target, chosen[role], maps, self.sources.device, tier, self._seen(plan))
        if self.facts.tier != "streamed" and self._opened and all(isinstance(rows, HeldRows) for rows in self._opened.values()):
            self.facts.tier = f"{self.facts.tier}, straight from the pass"
        if self.job.listed is not None:
            roles[FIT] = replace(roles[FIT], listed=replace(self.job.listed, positions=tuple(_positions_of(self.job.listed, chosen[FIT]))))
        return roles

    def loaders(self, chosen: Mapping[str, np.ndarray]) -> dict[str, ImageBatches]:
        """For probes that train with the encoder at hand."""
        encoder = self.sources.encoder(self.job.encoder)
        return {
            role: ImageBatches(
                self.context.lists[plan.list_id],
                plan.samples,
                _visible_target(self.job, role),
                chosen[role],
                self.job.geometry,
                encoder,
                self.sources.device,
                self.sources.options.loader_threads,
                self.sources.pixels.kept(plan.list_id),
            )
            for role, plan in self.job.roles.items()
        }

    def add_pass_facts(self) -> None:
        """How the job's features were made: entries tell of it, whichever run made them, and streams were made just now."""
        seconds: dict[str, float] = {}
        batches = set[tuple[int, int]]()
        for rows in self._opened.values():
            for stage, value in rows.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
            batches |= set(rows.batches)
        streamed = self._stream_options().batch_size
        for entry in (self.context.entries[key] for plan in self.job.roles.values() for key in plan.entries):
            if entry.streamed and (batch := self.sources.memory.reduced(self.job.encoder, entry.wanted.geometry, streamed)):
                batches.add(batch)
        if batches:
            at_once, meant = min(batches)
            self.facts.notes.append(
                f"memory held {at_once} images of the {meant} that {self.job.encoder} was given at once: it encoded smaller batches"
            )
        items = sum(map(len, self._opened.values()))
        made = [schema.Timing(stage=f"pass: {stage}", seconds=round(value, 3), items=items) for stage, value in seconds.items()]
        self.facts.timings[:0] = made

    def _rows(self, plan: RolePlan) -> dict[str, Rows]:
        """What each entry of a role is read from. Streamed ones of one view come from one forward."""
        found: dict[str, Rows] = {key: self._mapped(key) for key in plan.entries if not self.context.entries[key].streamed}
        streams: dict[Geometry, list[Entry]] = {}
        for entry in (self.context.entries[key] for key in plan.entries):
            if entry.streamed:
                streams.setdefault(entry.wanted.geometry, []).append(entry)
        images = self.context.lists[plan.list_id]
        kept = self.sources.pixels.kept(plan.list_id)
        options = self._stream_options()
        for geometry, entries in streams.items():
            self.facts.streamed = True
            shapes = {entry.wanted.request: entry.row_shape for entry in entries}
            encoder = self.sources.encoder(self.job.encoder)
            rows = encoded_rows(images, geometry, shapes, encoder, self.sources.device, options, self.sources.memory, kept, self.work)
            found.update({entry.key: one for entry, one in zip(entries, rows, strict=True)})
        return found

    def _tier(self, views: list[Rows]) -> str:
        """The fastest place that holds the working copy."""
        if any(isinstance(view, EncodedRows) for view in views):
            self.facts.tier = "streamed"
            return "streamed"
        if views and all(isinstance(view, HeldRows) for view in views):  # there already, and read from there
            self.facts.tier = "device" if self.sources.device.type == "cuda" else "host"
            return self.facts.tier
        need = sum(view.nbytes for view in views)
        tier = working_tier(need, str(self.sources.device), len(self.context.settings.devices))
        if tier == "mapped" and (folder := self.context.settings.local_cache) is not None:
            needed = {key for plan in self.job.roles.values() for key in plan.entries}
            in_use = needed if len(self.context.settings.devices) == 1 else None  # other workers' jobs read copies, too
            for key, rows in self._opened.items():
                if isinstance(rows, MappedRows) and any(view is rows for view in views):
                    rows.move(partial(bring, key=key, place=place_of(folder, self.context.use), in_use=in_use))
        order = ("device", "host", "mapped", "streamed")
        self.facts.tier = max((self.facts.tier or "device", tier), key=order.index)
        return tier

    def _stream_options(self) -> PassOptions:
        """Streams of all roles encode as many images at once as a step of the job's training has."""
        plan = self.job.roles.get(FIT) or self.job.roles[report_role(self.job)]
        samples = self.job.task.batch_size if FIT in self.job.roles else self.job.task.test_batch_size
        rows = samples * int(np.diff(plan.samples.row_offsets).max(initial=1))
        return replace(self.sources.options, batch_size=stream_batch(rows, self.sources.options.batch_size))

    def _seen(self, plan: RolePlan) -> Callable[[np.ndarray, np.ndarray], Seen] | None:
        """How the images of a role were seen, for tasks whose targets follow the pixels."""
        if self.job.task.task.dense is None:
            return None
        views = tuple(self.context.entries[key].wanted.geometry for key in plan.maps()[0])
        patch = self.context.encoders[self.job.encoder].spec.patch_size or 1
        height, width = views[0].size or (0, 0)
        images = self.context.lists[plan.list_id]
        windows = images if isinstance(images, WindowedImages) else None
        canvas = (-(-height // patch) * patch, -(-width // patch) * patch)
        stored = windows.images if windows is not None else images
        cheap = type(stored).image_size is not ImageList.image_size  # read from the file's header
        size = (lambda row: stored.image_size(row if windows is None else windows.window_of(row)[0])) if cheap else None
        return lambda values, offsets: Seen(views, canvas, values, offsets, windows, size)

    def _held_rows(self) -> dict[str, MappedRows | HeldRows]:
        """The job's entries where the pass left all of them in memory; else it reads all of them from the cache."""
        needed = {key for plan in self.job.roles.values() for key in plan.entries if not self.context.entries[key].streamed}
        found = {key: rows for key in needed if self.sources.held is not None and (rows := self.sources.held.find(key)) is not None}
        return dict(found) if len(found) == len(needed) else {}

    def _mapped(self, key: str) -> MappedRows | HeldRows:
        """A whole entry, read and checked against its checksums once a job, whoever of its roles asks."""
        if key not in self._opened:
            entry = self.context.entries[key]
            try:
                slices = self.sources.cache.slices(key, entry.n_rows)
            except DamagedSlices as error:
                self._make_again(entry, error)
                slices = self._slices_now(entry)
            self._opened[key] = MappedRows(slices)
        return self._opened[key]

    def _slices_now(self, entry: Entry) -> list[Slice]:
        try:
            return self.sources.cache.slices(entry.key, entry.n_rows)
        except DamagedSlices as error:
            raise ViRBError(f"{error}, though it was made again: is that disk failing? --cache_dir names another") from error

    def _make_again(self, entry: Entry, found: DamagedSlices) -> None:
        """The slices that turned out to be damaged when a job read them: the plan took them for cached, so no pass makes them. Of several
        workers that find them, one does it, and the others wait for that."""
        cache = self.sources.cache
        if not can_write(cache.folder):
            raise ViRBError(f"{found}, and {cache.folder} cannot be written: choose another --cache_dir") from found
        with alone(cache, f"making-{entry.key}"):
            damaged = cache.remove_damaged(entry.key, found.bounds)
            for start, stop in damaged:
                report = self.sources.make(PassWork(entry.list_id, start, stop, (entry.wanted,)))
                if report.failed:
                    raise ViRBError(report.failed[entry.key])
        if damaged:
            said = f"features of {entry.wanted.encoder} were damaged on disk: {many(len(damaged), 'slice')} made again"
            self.sources.memory.notes.append(said)


def in_the_split(plan: RolePlan, chosen: np.ndarray) -> list[int]:
    """Samples of a role as numbers in the whole split, also where a limit leaves some out."""
    return chosen.tolist() if plan.limited is None else [plan.limited[i] for i in chosen.tolist()]


def _positions_of(listed: Listed | None, chosen: np.ndarray) -> list[int]:
    """Where the listed samples stand among those that take part."""
    return [] if listed is None else np.flatnonzero(np.isin(chosen, listed.positions)).tolist()


def _visible_target(job: Job, role: str) -> str | None:
    """The target that a probe may see of this role's samples."""
    return job.task.task.target if is_labelled(role) else None


def _class_targets(targets: Any, chosen: np.ndarray) -> np.ndarray | None:
    """Class numbers, or None for targets of any other kind."""
    numbers = class_numbers(targets)
    return None if numbers is None else numbers[chosen]
