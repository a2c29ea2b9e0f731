"""Which jobs several devices share, and the units of their parts.

Whole jobs go to whoever is free. A job is shared out where that would leave devices idle for long: because there are fewer jobs than
devices, or one that takes as long as many others. Parts find pieces of its work and keep them in files below ``.jobs``; the job itself
comes after them and finds nothing but the pieces (``virb.probes.pieces``), so its numbers are those of a job that nobody shared.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from virb.plan.graph import Unit
from virb.plan.jobs import Entry, Job, PartWork, RunSettings
from virb.probes.base import FIT, SELECT
from virb.probes.pieces import Part, Sizes, Stage, check_stages
from virb.probes.selection import MAX_PER_CLASS
from virb.probes.split import n_images
from virb.tasks.resolve import get_probe

SPEED = {"cpu": 5e10, "cuda": 1e13}  # operations per second on heads, of one core or one GPU; only estimates use it
LEAST_GAIN = 5.0  # seconds that sharing has to save
_TRIES = 2  # jobs for each device of which sharing is tried
_START = 0.5  # seconds of a part, besides reading features
_READ = 5e8  # bytes per second that are read and looked at; every part of every stage reads all features of its job


@dataclass(frozen=True)
class Load:
    """Expected seconds of a job: of its stages, which can be shared, and of the rest."""

    job: Job
    stages: tuple[Stage, ...]
    shared: tuple[float, ...]  # of each stage, on one device
    rest: float
    read: float

    @property
    def whole(self) -> float:
        return sum(self.shared) + self.rest

    def part(self, stage: int, devices: int) -> float:
        return self.shared[stage] / self.count(stage, devices) + _START + self.read

    def count(self, stage: int, devices: int) -> int:
        return max(1, min(devices, self.stages[stage].pieces))


def load_of(job: Job, stages: tuple[Stage, ...], settings: RunSettings, heads: float, whole: float) -> Load:
    """``heads``: expected seconds of training and applying them, of the ``whole``. Stages are the arithmetic of it; short steps take longer
    than that."""
    shared = [stage.flops / SPEED[settings.device_kind] for stage in stages]
    scale = max(1.0, heads / sum(shared)) if sum(shared) else 0.0
    return Load(job, stages, tuple(scale * seconds for seconds in shared), max(0.0, whole - scale * sum(shared)), job.nbytes / _READ)


def stages_of(job: Job, entries: Mapping[str, Entry], settings: RunSettings) -> tuple[Stage, ...]:
    """None of jobs that run the encoder themselves, and of eval-only ones."""
    keys = [key for plan in job.roles.values() for key in plan.entries]
    probe = get_probe(job.task.probe)
    if job.heads or not keys or any(entries[key].streamed for key in keys) or not hasattr(probe, "stages"):
        return ()
    if _depth(probe, "from_features") < _depth(probe, "stages"):  # a user's own way to answer, and stages that are another's
        return ()
    stages = tuple(probe.stages(job.task.configs, sizes_of(job, entries, settings)))
    check_stages(job.task.probe, stages)
    return stages if any(stage.pieces > 1 for stage in stages) else ()


def _depth(probe: type, name: str) -> int:
    """How far up its ancestors a class finds this."""
    return next(place for place, cls in enumerate(probe.__mro__) if name in vars(cls))


def sizes_of(job: Job, entries: Mapping[str, Entry], settings: RunSettings) -> Sizes:
    counts, outputs = dict(job.n_samples), len(job.classes or (1,))
    if FIT in counts and SELECT in job.roles and job.roles[SELECT].held_out:
        counts[SELECT] = min(counts[FIT] // 10, MAX_PER_CLASS * outputs)
        counts[FIT] -= counts[SELECT]
    plan = job.roles.get(FIT) or next(iter(job.roles.values()))
    row, rows = entries[plan.entries[0]].row_shape or (1,), plan.samples.fixed_rows()
    images = rows.shape[1] if rows is not None else 1
    return Sizes(
        n_samples=counts,
        width=images * math.prod(row),
        n_images=n_images((images, *row)) if len(row) == 1 else 1,
        n_outputs=outputs,
        num_epochs=job.task.num_epochs,
        batch_size=job.task.batch_size,
        seeds=job.task.seeds,
        selection=job.task.selection,
        device_kind=settings.device_kind,
    )


def choose_shared(loads: Sequence[Load], devices: int) -> set[str]:
    """The jobs to share: as few as make the run end nearly as early as it can. Of whole jobs, the one that ends last is always next."""
    if devices < 2 or not loads:
        return set()
    able = {load.job.id for load in loads if _gain(load, devices) >= LEAST_GAIN}
    ideal = sum(load.whole for load in loads) / devices
    shared: list[str] = []
    ends: list[float] = []  # of the run, by the number of jobs that are shared
    while True:
        by_job = schedule(loads, set(shared), devices)
        ends.append(max(by_job.values()))
        rest = able.difference(shared)
        if not rest or ends[-1] <= ideal + LEAST_GAIN or len(shared) >= _TRIES * devices:
            break
        shared.append(max((name for name in by_job if name in rest), key=by_job.__getitem__))
    enough = next(count for count, end in enumerate(ends) if end <= min(ends) + LEAST_GAIN)
    return set(shared[:enough])


def _gain(load: Load, devices: int) -> float:
    """Seconds that sharing saves a job that has all devices for itself."""
    return sum(load.shared) - sum(load.part(number, devices) for number in range(len(load.stages)))


def schedule(loads: Sequence[Load], shared: set[str], devices: int) -> dict[str, float]:
    """Seconds until each job is done, each unit given to whoever is free first."""
    free = [0.0] * devices
    done: dict[str, float] = {}
    for load in loads:
        begin = 0.0
        is_shared = load.job.id in shared
        for number in range(len(load.stages)) if is_shared else ():
            begin = max([_give(free, begin, load.part(number, devices)) for _ in range(load.count(number, devices))])
        done[load.job.id] = _give(free, begin, load.rest + load.read if is_shared else load.whole)
    return done


def _give(free: list[float], begin: float, seconds: float) -> float:
    """When the device that is free first will be done with this."""
    end = max(free[0], begin) + seconds
    heapq.heapreplace(free, end)
    return end


def share_out(units: Sequence[Unit], loads: Sequence[Load], shared: set[str], devices: int) -> list[Unit]:
    """Units of jobs (key ``job ID``) with the parts of those that are shared before them."""
    by_key = {f"job {load.job.id}": load for load in loads if load.job.id in shared}
    return [one for unit in units for one in (_parts(unit, by_key[unit.key], devices) if unit.key in by_key else [unit])]


def _parts(unit: Unit, load: Load, devices: int) -> list[Unit]:
    found, inputs = [], unit.inputs
    for number, stage in enumerate(load.stages):
        count, made = load.count(number, devices), f"{stage.name} of {unit.key}"
        for part in (Part(stage.name, place, count) for place in range(count)):
            cost, work = load.part(number, devices), PartWork(unit.payload, part)
            found.append(Unit("part", f"{unit.key}, {part}", f"{unit.title}, {part}", inputs, (made,), cost, work, unit.after))
        inputs = (*unit.inputs, made)
    return [*found, replace(unit, inputs=inputs, cost=load.rest + load.read)]


def release_after_parts(units: Sequence[Unit]) -> list[Unit]:
    """Features stay until no part reads them any more, also where the job is lost because another part failed."""
    parts: dict[str, list[str]] = {}
    for unit in units:
        if unit.kind == "part":
            parts.setdefault(f"job {unit.payload.job}", []).append(unit.key)
    return [
        replace(unit, after=(*unit.after, *(key for name in unit.after for key in parts.get(name, ())))) if unit.kind == "release" else unit
        for unit in units
    ]
