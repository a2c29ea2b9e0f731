"""The plan in words: the head of a run, and the whole of ``virb check``."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator

import virb
from virb.plan.jobs import Job, Plan


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
    """Two to four lines at the head of a run."""
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
    cached = f"{size_text(plan.bytes_cached)} cached already" if plan.bytes_cached else "nothing cached yet"
    yield f"  keeps   {size_text(plan.bytes_new)} of new features in {plan.context.cache_folder} · {cached} · {time_text(plan.seconds)}"
    for note in plan.notes:
        yield f"  note    {note}"


def _passes(plan: Plan) -> Iterator[str]:
    """``digits train 32px (3 encoders, 1,437 images)`` for each pass that is still to be made."""
    rows: dict[str, int] = defaultdict(int)
    encoders: dict[str, set[str]] = defaultdict(set)
    sizes: dict[str, set[str]] = defaultdict(set)
    names: dict[str, str] = {}
    for unit in plan.units:
        if unit.kind == "pass":
            work = unit.payload
            rows[work.list_id] += work.stop - work.start
            encoders[work.list_id] |= {item.encoder for item in work.wanted}
            sizes[work.list_id] |= {geometry_text(item.geometry.size) for item in work.wanted}
            names[work.list_id] = plan.context.lists[work.list_id].name
    users = {plan_.list_id: job.task.task.dataset for job in plan.jobs for plan_ in job.roles.values()}
    for list_id, count in rows.items():
        yield (
            f"{users[list_id]} {names[list_id]} {'+'.join(sorted(sizes[list_id]))} "
            f"({many(len(encoders[list_id]), 'encoder')}, {many(count, 'image')})"
        )


def geometry_text(size: tuple[int, int] | None) -> str:
    if size is None:
        return "native size"
    return f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px"


def check_report(plan: Plan) -> Iterator[str]:
    """Everything ``virb check`` says: encoders, tasks, jobs, passes, geometries, sizes and tiers."""
    yield from header(plan)
    yield ""
    yield many(len(plan.context.encoders), "encoder")
    width = max(len(name) for name in plan.context.encoders)
    for name, planned in plan.context.encoders.items():
        spec = planned.spec
        yield f"  {name:<{width}}  {spec.n_params / 1e6:7.1f} M  {geometry_text(spec.input.size)} {spec.input.interpolation}  {spec.source}"
    yield ""
    tasks = {job.label: job for job in plan.jobs}
    yield many(len(tasks), "task")
    width = max(len(label) for label in tasks)
    for label, job in tasks.items():
        splits = " / ".join(f"{role} {job.n_samples[role]:,}" for role in job.roles if not job.roles[role].held_out)
        held = ", choices on a hold-out of fit" if any(role.held_out for role in job.roles.values()) else ""
        yield f"  {label:<{width}}  {job.task.task.id}, {job.task.probe}, {many(len(job.task.configs), 'training config')}  {splits}{held}"
    yield ""
    yield many(len(plan.jobs), "job")
    width = max(len(job.id) for job in plan.jobs)
    done = {job.id for job in plan.done}
    for job in plan.jobs:
        state = "done" if job.id in done else _tier(plan, job)
        yield f"  {job.id:<{width}}  {geometry_text(job.geometry.size):>6} ({job.geometry_from})  {size_text(job.nbytes):>8}  {state}"
    yield ""
    sizes = Counter(geometry_text(job.geometry.size) for job in plan.jobs)
    named = ", ".join(f"{name} ({many(count, 'job')})" for name, count in sizes.items())
    yield f"geometries  {len(sizes)}: {named}{_merge_hint(plan)}"
    unmade = sum(1 for unit in plan.units if unit.kind == "pass")
    yield f"passes      {many(plan.n_passes, 'image list')} in {many(unmade, 'slice')}, {plan.rows_to_decode:,} images to decode, each once"
    free = _free(plan)
    yield f"disk        {size_text(plan.bytes_new)} of features to write in {plan.context.cache_folder} ({size_text(free)} free)"
    yield f"time        {time_text(plan.seconds)} on {devices_text(plan)}"


def _free(plan: Plan) -> int:
    folder = plan.context.cache_folder.absolute()
    return shutil.disk_usage(next(p for p in [folder, *folder.parents] if p.exists())).free


def _tier(plan: Plan, job: Job) -> str:
    entries = [plan.context.entries[key] for role in job.roles.values() for key in role.entries if key in plan.context.entries]
    if not entries:
        return "streams: the probe runs the encoder itself"
    if any(entry.streamed for entry in entries):
        return "streams: encoded while heads train"
    return "device memory" if plan.settings.device_kind == "cuda" else "host memory"


def _merge_hint(plan: Plan) -> str:
    """Which ``input:`` would make one geometry of several on the same images."""
    by_list: dict[str, set[tuple[int, int] | None]] = defaultdict(set)
    for job in plan.jobs:
        for role in job.roles.values():
            by_list[role.list_id].add(job.geometry.size)
    several = [sizes for sizes in by_list.values() if len(sizes) > 1]
    if not several:
        return ""
    largest = max((size for size in several[0] if size), default=None)
    return f" · input: {{size: {largest[0] if largest else 224}}} for all encoders would make one of them"
