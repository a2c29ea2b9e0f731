"""The plan in words: the head of a run, and the whole of ``virb check``."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import virb
from virb.data.transforms import Geometry
from virb.encoders.verify import Failed, Verified, encoder_table
from virb.features.limits import working_tier
from virb.io import existing_parent
from virb.plan.geometry import geometry_text, size_in_pixels
from virb.plan.jobs import Job, Plan
from virb.probes.base import FIT, SELECT

_TIERS = {"device": "device memory", "host": "host memory", "mapped": "read from disk"}  # the slower, the later


def size_text(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def time_text(seconds: float) -> str:
    if seconds < 100:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


def many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 'es' if word.endswith('s') else 's'}"


def devices_text(plan: Plan) -> str:
    counts = Counter(plan.settings.devices)
    return ", ".join(f"{name} x {count}" if count > 1 else name for name, count in counts.items())


def header(plan: Plan) -> Iterator[str]:
    """A few lines at the head of a run."""
    encoders = {job.encoder for job in plan.jobs}
    labels = {job.label for job in plan.jobs}
    configs = sum(len(job.task.configs) for job in plan.jobs)
    yield (
        f"ViRB {virb.__version__} · {many(len(encoders), 'encoder')} x {many(len(labels), 'task')} = {many(len(plan.jobs), 'job')}, "
        f"{many(configs, 'training config')} · {many(len(plan.settings.devices), 'device')} ({devices_text(plan)}) · {plan.settings.out}"
    )
    if plan.done:
        yield f"  done    {many(len(plan.done), 'job')} already (--force runs them again)"
    if passes := list(_passes(plan)):
        yield f"  passes  {' · '.join(passes)}"
    if plan.rows_of_streams:
        yield f"  streams {many(plan.rows_of_streams, 'image')} to decode, about, while heads train"
    if plan.to_do:
        images = _bytes_of_images(plan)
        kept = f"{size_text(plan.bytes_new)} of features"
        kept += f" and {size_text(images)} of decoded images" if images else ""
        kept += f" in {plan.context.cache_folder}"
        yield f"  keeps   {kept} · {_cached(plan)} · {time_text(plan.seconds)}"
    for note in plan.notes:
        yield f"  note    {note}"


def check_report(plan: Plan, encoders: Sequence[Verified | Failed]) -> Iterator[str]:
    """Everything ``virb check`` says: encoders, tasks, jobs, and the plan in numbers."""
    yield f"ViRB {virb.__version__} · {plan.settings.out}"
    for part in (encoder_report(encoders), _tasks(plan), _jobs(plan), _numbers(plan)):
        yield ""
        yield from part


def encoder_report(encoders: Sequence[Verified | Failed]) -> Iterator[str]:
    """What each encoder turned out to be, or why it cannot be used."""
    yield many(len(encoders), "encoder")
    yield from (f"  {line}" for line in encoder_table(encoders))


def _tasks(plan: Plan) -> Iterator[str]:
    tasks = {job.label: job for job in plan.jobs}
    yield many(len(tasks), "task")
    rows = []
    for label, job in tasks.items():
        counts = " / ".join(f"{role} {job.n_samples[role]:,}" for role in job.roles if not job.roles[role].held_out)
        held_out = ", select held out of fit" if any(role.held_out for role in job.roles.values()) else ""
        chosen = "" if SELECT in job.roles or FIT not in job.roles else f", selection {job.task.selection}"
        protocol = "" if job.task.protocol == "default" else f", {job.task.protocol}"
        how = f"heads of {', '.join(map(str, job.heads))}" if job.heads else f"{job.task.probe}, {many(len(job.task.configs), 'config')}"
        what = f"{job.task.task.id}, {how}{protocol}"
        rows.append((label, what, f"{counts}{held_out}{chosen}"))
    yield from _aligned(rows)


def _jobs(plan: Plan) -> Iterator[str]:
    yield many(len(plan.jobs), "job")
    done = {job.id for job in plan.done}
    rows = []
    for job in plan.jobs:
        geometry = f"{geometry_text(job.geometry)} ({job.geometry_from})"
        rows.append((f"{job.encoder} x {job.label}", geometry, size_text(job.nbytes), "done" if job.id in done else _tier(plan, job)))
    yield from _aligned(rows)


def _numbers(plan: Plan) -> Iterator[str]:
    """The plan in numbers, one thing a line."""
    # Without sharing, every image list of every job is a pass of its own; samples held out of fit come from the list of fit.
    separate = sum(len({role.list_id for role in job.roles.values()}) for job in plan.to_do)
    slices = sum(len(unit.payload.slices) for unit in plan.units if unit.kind == "pass")
    geometries = geometry_names(plan.jobs)
    named = ", ".join(f"{name} ({many(count, 'job')})" for name, count in geometries.items())
    yield f"jobs        {len(plan.to_do):,} to run, {len(plan.done):,} done"
    images = f"{many(plan.rows_to_decode, 'image')} to decode{' (--decoder fast)' * (plan.settings.decoder == 'fast')}"
    images += f", and about {plan.rows_of_streams:,} while heads train" if plan.rows_of_streams else ""
    yield f"passes      {plan.n_passes:,} over images instead of {separate:,}, in {many(slices, 'slice')}; {images}"
    yield from (f"            {text}" for text in _passes(plan))
    yield f"geometries  {len(geometries)}: {named}{_merge_hint(plan)}"
    yield f"features    {size_text(plan.bytes_new)} to make, {_cached(plan)}; {_largest(plan)}"
    yield f"disk        {plan.context.cache_folder}: {size_text(_free(plan))} free, budget {plan.settings.cache_budget}"
    yield f"time        {time_text(plan.seconds) if plan.to_do else 'none'} on {devices_text(plan)}, {plan.settings.precision_text}"
    for note in plan.notes:
        yield f"note        {note}"


def geometry_names(jobs: Sequence[Job]) -> dict[str, int]:
    """How many jobs see images in each geometry, by its size, or all of it where several have that size."""
    counts = Counter(job.geometry for job in jobs)
    sizes = Counter(size_in_pixels(geometry.size) for geometry in counts)
    texts = Counter(geometry_text(geometry) for geometry in counts)

    def name(geometry: Geometry) -> str:
        size, text = size_in_pixels(geometry.size), geometry_text(geometry)
        if sizes[size] == 1:
            return size
        return text if texts[text] == 1 else f"{text} of {geometry.crop_pct:g}"

    return {name(geometry): count for geometry, count in counts.items()}


def _bytes_of_images(plan: Plan) -> int:
    """Of the decoded images that the run keeps."""
    kept = 0
    for unit in plan.units:
        for geometry in unit.payload.keep if unit.kind == "pass" else ():
            kept += (unit.payload.stop - unit.payload.start) * plan.context.stores[unit.payload.list_id][geometry].row_bytes
    return kept


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _passes(plan: Plan) -> Iterator[str]:
    """``digits train 32px (3 encoders, 1,437 images)`` for each pass that is still to be made."""
    rows: dict[str, int] = defaultdict(int)
    encoders: dict[str, set[str]] = defaultdict(set)
    sizes: dict[str, set[str]] = defaultdict(set)
    for unit in plan.units:
        if unit.kind == "pass" and unit.payload.wanted:
            work = unit.payload
            rows[work.list_id] += work.stop - work.start
            encoders[work.list_id] |= {item.encoder for item in work.wanted}
            sizes[work.list_id] |= {size_in_pixels(item.geometry.size) for item in work.wanted}
    users = {role.list_id: job.task.task.dataset for job in plan.jobs for role in job.roles.values()}
    for list_id, count in rows.items():
        name = plan.context.lists[list_id].name
        who = f"{many(len(encoders[list_id]), 'encoder')}, {many(count, 'image')}"
        yield f"{users[list_id]} {name} {'+'.join(sorted(sizes[list_id]))} ({who})"


def _cached(plan: Plan) -> str:
    return f"{size_text(plan.bytes_cached)} cached already" if plan.bytes_cached else "nothing cached yet"


def _largest(plan: Plan) -> str:
    job = max(plan.jobs, key=lambda job: job.nbytes)
    return f"largest job {size_text(job.nbytes)} ({job.encoder} x {job.label})"


def _free(plan: Plan) -> int:
    return shutil.disk_usage(existing_parent(plan.context.cache_folder)).free


def _tier(plan: Plan, job: Job) -> str:
    entries = [plan.context.entries[key] for role in job.roles.values() for key in role.entries if key in plan.context.entries]
    if not entries:
        return "streams: the probe runs the encoder itself"
    if any(entry.streamed for entry in entries):
        kept = all(e.wanted.geometry in plan.context.stores.get(e.list_id, {}) for e in entries if e.streamed)
        return f"streams: {'images decoded once, ' * kept}encoded while heads train"
    shared = f", shared by {many(len(plan.settings.devices), 'device')}" if job.id in plan.context.shared else ""
    return f"{_TIERS[max(_tiers(plan, job), key=list(_TIERS).index)]}{shared}"


def _tiers(plan: Plan, job: Job) -> Iterator[str]:
    """Of each role, by the sizes of its features and the memory that is free now: the rule by which workers go."""
    taken = 0.0
    for role in job.roles.values():
        need = sum(plan.context.entries[key].nbytes for key in dict.fromkeys(role.entries))
        tier = working_tier(need, plan.settings.devices[0], len(plan.settings.devices), taken)
        taken += need if tier != "mapped" else 0
        yield tier


def _merge_hint(plan: Plan) -> str:
    """Which ``input:`` would make one geometry of several on the same images."""
    by_list: dict[str, set[Geometry]] = defaultdict(set)
    for job in plan.jobs:
        for role in job.roles.values():
            if job.geometry.size:
                by_list[role.list_id].add(job.geometry)
    geometries = max(by_list.values(), key=len, default=set())
    if len(geometries) < 2:
        return ""
    height, width = size = max(geometry.size for geometry in geometries if geometry.size)
    left = {replace(geometry, size=size) for geometry in geometries}  # sizes are not all that may differ
    if len(left) == len(geometries):
        return ""
    count = "one" if len(left) == 1 else str(len(left))
    return f" · input: {{size: {height if height == width else [height, width]}}} for all encoders would make {count} of {len(geometries)}"
