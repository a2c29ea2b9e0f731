"""From jobs and the entries they need to work units: what is cached already, what fits the budget, how passes are cut and shared."""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from virb.data.images import ImageList
from virb.errors import UserError
from virb.features.cache import FeatureCache, slice_bounds
from virb.io import hash_record
from virb.plan.graph import Unit
from virb.plan.jobs import Entry, Job, PassWork, Plan, PlannedEncoder, RunContext, RunSettings
from virb.probes.base import FIT
from virb.results.store import finished

_SECONDS_PER_DECODE = 0.002  # a guess until the pass measures it; only the estimate of the time left uses it
_HEAD_FLOPS = 2e10  # arithmetic a device does per second on small heads, likewise


def assemble(
    settings: RunSettings,
    planned: Mapping[str, PlannedEncoder],
    jobs: Mapping[str, Job],
    known: Mapping[str, Entry],
    lists: Mapping[str, ImageList],
    notes: list[str],
) -> Plan:
    to_do = [job for job in jobs.values() if settings.force or not finished(settings.out, job.encoder, job.label, job.key)]
    done = [job for job in jobs.values() if job not in to_do]
    folder = cache_folder(settings)
    cache = FeatureCache(folder)
    needed = {key for job in to_do for plan in job.roles.values() for key in plan.entries}
    entries = {key: known[key] for key in known if key in needed}
    missing = {key: cache.missing_slices(key, e.n_rows) for key, e in entries.items() if not e.streamed}
    entries = _fit_budget(entries, missing, settings, cache, notes)
    missing = {key: slices for key, slices in missing.items() if not entries[key].streamed}
    units, rows = _pass_units(entries, missing, planned, settings)
    n_passes = len({unit.payload.list_id for unit in units})
    units += [_job_unit(job, entries) for job in to_do]
    context = RunContext(settings, folder, planned, lists, entries, dict(jobs))
    return Plan(
        settings=settings,
        context=context,
        units=tuple(units),
        to_do=tuple(to_do),
        done=tuple(done),
        rows_to_decode=rows,
        n_passes=n_passes,
        bytes_new=sum(2 * math.prod(entries[key].row_shape or (0,)) * (stop - start) for key, s in missing.items() for start, stop in s),
        bytes_cached=sum(e.nbytes for key, e in entries.items() if not e.streamed and not missing[key]),
        seconds=sum(unit.cost for unit in units) / len(settings.devices),
        notes=tuple(notes),
    )


def cache_folder(settings: RunSettings) -> Path:
    """--cache_dir, else beside the data where that is writable, else below the results; with --no_cache a folder that goes with the run."""
    if settings.no_cache:
        return settings.out / ".scratch"
    if settings.cache_dir is not None:
        return settings.cache_dir
    if settings.data_root.is_dir() and os.access(settings.data_root, os.W_OK):
        return settings.data_root / ".virb_cache"
    return settings.out / ".virb_cache"


def parse_budget(text: str, folder: Path) -> int:
    """``80%`` of what is free on the cache's disk, ``200GB``, ``0`` -> bytes."""
    value = text.strip().upper().removesuffix("B")
    try:
        if value.endswith("%"):
            there = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
            return int(float(value[:-1]) / 100 * shutil.disk_usage(there).free)
        units = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
        return int(float(value[:-1]) * units[value[-1]]) if value[-1:] in units else int(float(value))
    except ValueError:
        raise UserError(f"--cache_budget {text}: write a share of the free disk (80%), a size (200GB) or 0") from None


def _fit_budget(
    entries: dict[str, Entry],
    missing: Mapping[str, Sequence[tuple[int, int]]],
    settings: RunSettings,
    cache: FeatureCache,
    notes: list[str],
) -> dict[str, Entry]:
    """Entries that do not fit are streamed: encoded whenever they are read. The smallest are kept first, since they save as much each."""
    budget = parse_budget(settings.cache_budget, cache.folder)
    if not settings.cache_budget.strip().endswith("%") and cache.folder.is_dir():
        budget -= cache.size()
    kept = dict(entries)
    streamed = 0
    for key in sorted((k for k in missing if missing[k]), key=lambda k: (entries[k].nbytes, k)):
        nbytes = entries[key].nbytes
        if nbytes <= budget and budget > 0:
            budget -= nbytes
        else:
            kept[key] = replace(entries[key], streamed=True)
            streamed += 1
    if streamed:
        notes.append(
            f"{streamed} of {len(entries)} feature sets do not fit the cache budget ({settings.cache_budget}): "
            "they are encoded while heads train"
        )
    return kept


def _pass_units(
    entries: Mapping[str, Entry],
    missing: Mapping[str, Sequence[tuple[int, int]]],
    planned: Mapping[str, PlannedEncoder],
    settings: RunSettings,
) -> tuple[list[Unit], int]:
    """One pass per image list, cut into slices; encoders ride together as far as memory holds them."""
    by_list: dict[str, list[Entry]] = defaultdict(list)
    for key, slices in missing.items():
        if slices:
            by_list[entries[key].list_id].append(entries[key])
    units: list[Unit] = []
    rows = 0
    for list_id, wanted in by_list.items():
        for group in _groups(wanted, planned, settings):
            for start, stop in slice_bounds(group[0].n_rows):
                here = tuple(e.wanted for e in group if (start, stop) in missing[e.key])
                if not here:
                    continue
                seconds = sum({(e.wanted.encoder, e.wanted.geometry): e.seconds_per_row for e in group if e.wanted in here}.values())
                names = len({w.encoder for w in here})
                units.append(
                    Unit(
                        kind="pass",
                        key=f"pass {list_id[:12]} {start} {hash_record([w.key for w in here])[:12]}",
                        title=f"encoding {group[0].n_rows:,} images for {names} encoder{'s' * (names != 1)}",
                        inputs=(),
                        outputs=tuple(w.key for w in here),
                        cost=(stop - start) * (seconds + _SECONDS_PER_DECODE),
                        payload=PassWork(list_id, start, stop, here),
                    )
                )
                rows += stop - start
    return units, rows


def _groups(wanted: Sequence[Entry], planned: Mapping[str, PlannedEncoder], settings: RunSettings) -> list[list[Entry]]:
    limit = 4e9 if settings.device_kind == "cpu" else 2e10  # bytes of weights per worker
    groups: list[list[Entry]] = []
    held: set[str] = set()
    size = 0.0
    for entry in sorted(wanted, key=lambda e: e.wanted.encoder):
        weight = 4.0 * planned[entry.wanted.encoder].spec.n_params
        if not groups or (entry.wanted.encoder not in held and size + weight > limit):
            groups.append([])
            held, size = set(), 0.0
        if entry.wanted.encoder not in held:
            held.add(entry.wanted.encoder)
            size += weight
        groups[-1].append(entry)
    return groups


def _job_unit(job: Job, entries: Mapping[str, Entry]) -> Unit:
    task = job.task
    keys = tuple(dict.fromkeys(key for plan in job.roles.values() for key in plan.entries))
    streamed = [entries[key] for key in keys if entries[key].streamed]
    dims = max((math.prod(entries[key].row_shape or (1,)) for key in keys), default=1)
    fit = job.n_samples.get(FIT, 0)
    heads = 6.0 * dims * len(job.classes or (1,)) * len(task.configs) * len(task.seeds) * task.num_epochs * fit / _HEAD_FLOPS
    stream = sum(
        (task.num_epochs if e.list_id == job.roles[FIT].list_id else 1) * e.n_rows * e.seconds_per_row for e in streamed if FIT in job.roles
    )
    return Unit(
        kind="stream" if streamed or not keys else "probe",
        key=f"job {job.id}",
        title=f"{job.encoder} x {job.label}",
        inputs=tuple(key for key in keys if not entries[key].streamed),
        outputs=(f"result {job.id}",),
        cost=0.5 + heads + stream,
        payload=job.id,
    )
