"""From jobs and the entries they need to work units: what is cached already, what fits the budget, how passes are cut and shared."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from virb.errors import UserError
from virb.features.cache import FeatureCache, slice_bounds
from virb.features.limits import encoder_limit, slice_limit, weight_bytes
from virb.io import can_write, existing_parent, hash_record
from virb.plan.budget import Round, allot, release_unit, slice_memory, slices_bytes
from virb.plan.graph import Unit
from virb.plan.jobs import Draft, Entry, Job, PassWork, Plan, PlannedEncoder, RunContext, RunSettings
from virb.plan.parts import SPEED, choose_shared, load_of, release_after_parts, share_out, stages_of
from virb.plan.stores import Stores, plan_stores, reads_of_fit
from virb.plan.stretches import join_slices
from virb.probes.base import FIT, by_epochs
from virb.results.store import finished
from virb.tasks.resolve import get_probe

SCRATCH = ".scratch"  # below the results: features of a run with --no_cache
# Only the estimate of the time uses these.
_STEP_SECONDS = {"cpu": 3e-4, "cuda": 3e-4}  # of one step of one training config, before any arithmetic
_JOB_SECONDS = 0.7  # reading features, scoring with intervals and writing results
_START_SECONDS = 5.0  # of worker processes, when there are several


def assemble(draft: Draft) -> Plan:
    """The plan of a checked input: what is done, what is cached, and the units for the rest. Reads folders, writes nothing."""
    settings = draft.settings
    done = {job.id for job in draft.jobs.values() if not settings.force and finished(settings.out, job.encoder, job.label, job.key)}
    to_do = [job for job in draft.jobs.values() if job.id not in done]
    folder = cache_folder(settings)
    cache = FeatureCache(folder)
    needed = {key for job in to_do for plan in job.roles.values() for key in plan.entries}
    entries = {key: entry for key, entry in draft.entries.items() if key in needed}
    missing = {key: _missing(cache, entry, settings) for key, entry in entries.items() if not entry.streamed}
    budget, most_held = parse_budget(settings.cache_budget, folder), slice_limit(settings.devices)
    allotment = allot(entries, missing, to_do, budget, cache, settings.cache_budget, most_held)
    entries = allotment.entries
    missing = {key: slices for key, slices in missing.items() if not entries[key].streamed}
    new = {key: slices_bytes(entries[key], slices) for key, slices in missing.items()}
    passes, n_passes, _ = _rounds_of_passes(allotment.rounds, entries, missing, draft.encoders, settings)
    lengths = {list_id: len(images) for list_id, images in draft.lists.items()}
    left = allotment.left if can_write(folder) else 0
    stores = plan_stores(passes, entries, to_do, lengths, left, cache, ignore_cached=settings.no_cache)
    n_devices = len(settings.devices)
    job_units = [_after_stores(_job_unit(job, entries, settings), job, stores) for job in to_do]
    loads = [
        load_of(job, stages_of(job, entries, settings), settings, _head_seconds(job, entries, settings), unit.cost)
        for job, unit in zip(to_do, job_units, strict=True)
    ]
    shared = choose_shared(loads, n_devices)
    planned = release_after_parts([*stores.units, *share_out(job_units, loads, shared, n_devices)])
    units = join_slices(planned, n_devices, settings.device_kind)
    provenance = {f"text {label}": text for label, text in draft.texts.items() if text}
    return Plan(
        settings=settings,
        context=RunContext(
            settings, folder, draft.encoders, draft.lists, entries, dict(draft.jobs), provenance, stores.places, frozenset(shared)
        ),
        units=tuple(units),
        to_do=tuple(to_do),
        done=tuple(job for job in draft.jobs.values() if job.id in done),
        rows_to_decode=stores.rows,
        rows_of_streams=stores.rows_of_streams,
        n_passes=n_passes,
        bytes_new=sum(new.values()),
        bytes_cached=sum(entries[key].nbytes - size for key, size in new.items()),
        seconds=sum(unit.cost for unit in units) / n_devices + (_START_SECONDS if n_devices > 1 and units else 0.0),
        notes=(*draft.notes, *allotment.notes, *stores.notes),
    )


def _after_stores(unit: Unit, job: Job, stores: Stores) -> Unit:
    """A job waits for the decoded images that it streams from."""
    return replace(unit, after=stores.after.get(job.id, ()), cost=max(0.0, unit.cost - stores.saved.get(job.id, 0.0)))


def _missing(cache: FeatureCache, entry: Entry, settings: RunSettings) -> list[tuple[int, int]]:
    # Slices that a killed run left in its scratch folder are used where a worker finds them; the plan does not count on them.
    return slice_bounds(entry.n_rows) if settings.no_cache else cache.missing_slices(entry.key, entry.n_rows)


def cache_folder(settings: RunSettings) -> Path:
    """--cache_dir, else in --data_root where that is there and writable, else below the results (also for data that lies elsewhere: nothing
    is written into a user's folders unasked); with --no_cache a folder that goes with the run."""
    if settings.no_cache:
        return settings.out / SCRATCH
    if settings.cache_dir is not None:
        return settings.cache_dir
    if settings.data_root.is_dir() and os.access(settings.data_root, os.W_OK):
        return settings.data_root / ".virb_cache"
    return settings.out / ".virb_cache"


def parse_budget(text: str, folder: Path) -> int:
    """``80%`` of what is free on the cache's disk, ``200GB``, ``0`` -> bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) *(?:(%)|([KMGT]?)B?)", text.strip().upper())
    if match is None or (match[2] and float(match[1]) > 100):
        raise UserError(f"{text!r} is no amount: write a share of the free disk (80%), a size (200GB) or 0")
    if match[2]:
        return int(float(match[1]) / 100 * shutil.disk_usage(existing_parent(folder)).free)
    return int(float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[3]])


def _rounds_of_passes(
    rounds: Sequence[Round],
    entries: Mapping[str, Entry],
    missing: Mapping[str, Sequence[tuple[int, int]]],
    planned: Mapping[str, PlannedEncoder],
    settings: RunSettings,
) -> tuple[list[Unit], int, int]:
    """The passes of all rounds; where there are several, each begins when the one before has been released."""
    units: list[Unit] = []
    n_passes = n_rows = 0
    for number, here in enumerate(rounds):
        made, passes, rows = _pass_units(entries, {key: missing[key] for key in here.keys}, planned, settings)
        units += made if number == 0 else [replace(unit, after=(f"release {number - 1}",)) for unit in made]
        if number + 1 < len(rounds):
            units.append(release_unit(number, here))
        n_passes, n_rows = n_passes + passes, n_rows + rows
    return units, n_passes, n_rows


def _pass_units(
    entries: Mapping[str, Entry],
    missing: Mapping[str, Sequence[tuple[int, int]]],
    planned: Mapping[str, PlannedEncoder],
    settings: RunSettings,
) -> tuple[list[Unit], int, int]:
    """One pass per image list, cut into slices; encoders ride together as far as memory holds them. Units, passes and rows to decode."""
    by_list: dict[str, list[Entry]] = defaultdict(list)
    for key, slices in missing.items():
        if slices:
            by_list[entries[key].list_id].append(entries[key])
    units: list[Unit] = []
    wanted_slices = {key: set(slices) for key, slices in missing.items()}
    n_passes = rows = 0
    for list_id, wanted in by_list.items():
        for group in _groups(wanted, planned, settings):
            n_passes += 1
            for start, stop in slice_bounds(group[0].n_rows):
                used = [e for e in group if (start, stop) in wanted_slices[e.key]]
                here = tuple(e.wanted for e in used)
                if not here:
                    continue
                # Outputs of one encoder at one geometry come from one forward, and encoders share what is decoded.
                seconds = sum(_largest(((e.wanted.encoder, e.wanted.geometry), e.seconds_per_row) for e in used).values())
                seconds += sum(_largest((e.wanted.geometry, e.decode_seconds) for e in used).values())
                names = len({w.encoder for w in here})
                units.append(
                    Unit(
                        kind="pass",
                        key=f"pass {list_id[:12]} {start} {hash_record([w.key for w in here])[:12]}",
                        title=f"encoding {group[0].n_rows:,} images for {names} encoder{'s' * (names != 1)}",
                        inputs=(),
                        outputs=tuple(w.key for w in here),
                        cost=(stop - start) * seconds,
                        payload=PassWork(list_id, start, stop, here),
                    )
                )
                rows += stop - start
    return units, n_passes, rows


def _groups(wanted: Sequence[Entry], planned: Mapping[str, PlannedEncoder], settings: RunSettings) -> list[list[Entry]]:
    """What rides in one pass: as much as memory holds of weights, and of outputs until a slice is written."""
    limit, most_outputs = encoder_limit(settings.devices), slice_limit(settings.devices)
    groups: list[list[Entry]] = []
    held: set[str] = set()
    size = outputs = 0.0
    for entry in sorted(wanted, key=lambda e: e.wanted.encoder):
        weight = weight_bytes(planned[entry.wanted.encoder].spec)
        full = (entry.wanted.encoder not in held and size + weight > limit) or outputs + slice_memory(entry) > most_outputs
        if not groups or full:
            groups.append([])
            held, size, outputs = set(), 0.0, 0.0
        if entry.wanted.encoder not in held:
            held.add(entry.wanted.encoder)
            size += weight
        outputs += slice_memory(entry)
        groups[-1].append(entry)
    return groups


def _largest(pairs: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for key, value in pairs:
        found[key] = max(value, found.get(key, 0.0))
    return found


def _job_unit(job: Job, entries: Mapping[str, Entry], settings: RunSettings) -> Unit:
    keys = tuple(dict.fromkeys(key for plan in job.roles.values() for key in plan.entries))
    streamed = any(entries[key].streamed for key in keys)
    # Heads that this run trains are waited for; those of an earlier run have no maker here, and are there.
    heads = tuple(f"result {source.job_id}" for source in job.heads if source.job_id)
    return Unit(
        kind="score" if job.heads else "stream" if streamed or not keys else "probe",
        key=f"job {job.id}",
        title=f"{job.encoder} x {job.label}",
        inputs=(*(key for key in keys if not entries[key].streamed), *heads),
        outputs=(f"result {job.id}",),
        cost=_JOB_SECONDS + _head_seconds(job, entries, settings) + _stream_seconds(job, entries),
        payload=job.id,
    )


def _head_seconds(job: Job, entries: Mapping[str, Entry], settings: RunSettings) -> float:
    """Arithmetic, which is about 6 operations per weight and sample in training; and every step costs something by itself."""
    task, fit = job.task, job.n_samples.get(FIT, 0)
    epochs = task.num_epochs * len(task.seeds)
    if stages := stages_of(job, entries, settings):
        flops = sum(stage.flops for stage in stages)
    else:
        dims = max((math.prod(entries[key].row_shape or (1,)) for plan in job.roles.values() for key in plan.entries), default=1)
        flops = 6.0 * sum(_weights(config, dims, len(job.classes or (1,))) for config in task.configs.values()) * epochs * fit
    steps = math.ceil(fit / task.batch_size) * epochs * len(task.configs) if by_epochs(get_probe(task.probe)) or not stages else 0
    return flops / SPEED[settings.device_kind] + steps * _STEP_SECONDS[settings.device_kind]


def _weights(config: Any, dims: int, outputs: int) -> int:
    hidden = getattr(config, "hidden", None)
    return hidden * (dims + outputs) if hidden else dims * outputs


def _stream_seconds(job: Job, entries: Mapping[str, Entry]) -> float:
    """Encoding what is not kept: training data once an epoch (one view of several), the rest once."""
    seconds = 0.0
    for role, plan in job.roles.items():
        used = [entries[key] for key in plan.entries if entries[key].streamed]
        rows = sum(e.n_rows * (e.seconds_per_row + e.decode_seconds) for e in used) / max(len(used), 1)
        seconds += rows * (reads_of_fit(job) if role == FIT else 1)
    return seconds
