"""A whole run: claim the results folder, do what is not done, keep the record of it, and say what came out."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from virb.errors import UserError, ViRBError
from virb.features.cache import FeatureCache
from virb.features.local_copies import local_copies
from virb.features.uses import Use, tidy
from virb.io import Held, Lease, can_write, clean_temporaries, make_folder
from virb.plan.describe import geometry_names
from virb.plan.graph import Graph, Unit
from virb.plan.jobs import Draft, Job, Plan, RunSettings
from virb.plan.stores import possible_stores
from virb.plan.units import SCRATCH, assemble
from virb.probes.linear import GradientProbe
from virb.results.environment import provenance, utc_now
from virb.results.schema import RunOptions, RunRecord
from virb.results.store import JOB, missing_heads, read_job, write_run
from virb.results.tables import write_csv
from virb.runner.local import run_units
from virb.runner.profile import Profile, make_profile, profile_record
from virb.runner.progress import make_progress
from virb.runner.records import record_failure
from virb.runner.worker import make_doer
from virb.tasks.resolve import get_probe


@dataclass
class RunSummary:
    """What a run did; ``failed`` has a reason per job."""

    done: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    decoded: int = 0
    refused: int = 0  # by the run's decoder, so that Pillow decoded them
    profile: Profile | None = None

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


def claim(out: Path) -> Lease:
    """One run at a time writes a results folder."""
    try:
        return Lease(make_folder(out) / ".run.lease")
    except Held as error:
        owner = error.owner
        raise UserError(
            f"{out} is in use by another run (process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}); "
            "wait for it, or choose another --out"
        ) from error


def claim_if_writable(out: Path) -> AbstractContextManager[Lease | None]:
    """The lease; nothing for a folder that cannot be written, such as an archive whose jobs are all done."""
    return claim(out) if can_write(out) else nullcontext()


@contextmanager
def planned(draft: Draft) -> Iterator[tuple[Plan, Use | None]]:
    """The plan of a draft. Where it counts on what is cached already, nobody removes that meanwhile."""
    plan = assemble(draft)
    cache = FeatureCache(plan.context.cache_folder)
    if plan.to_do and cache.folder.is_dir() and can_write(cache.folder) and not draft.settings.no_cache:
        with Use(cache, {*draft.entries, *possible_stores(draft)}, str(draft.settings.out)) as use:
            yield assemble(draft), use  # again, for somebody may have removed entries before they were in use
    else:
        yield plan, None


def execute(
    plan: Plan, console: Any, texts: Mapping[str, str] | None = None, lease: Lease | None = None, use: Use | None = None
) -> RunSummary:
    """Runs the plan. The caller may hold the lease already, and use the cache (it planned under both)."""
    settings = plan.settings
    with lease or claim(settings.out):
        cache = FeatureCache(plan.context.cache_folder)
        clean_up(settings.out, cache.folder)
        if not settings.no_cache:
            shutil.rmtree(settings.out / SCRATCH, ignore_errors=True)  # the features of a killed run with --no_cache
        with _in_use(plan, cache, use) as name, local_copies(settings.local_cache, name):
            return _execute(replace(plan, context=replace(plan.context, use=name)), cache, console, texts or {})


@contextmanager
def _in_use(plan: Plan, cache: FeatureCache, use: Use | None) -> Iterator[str]:
    """Nobody removes what the run uses; the name of that. In a cache that cannot be written, and has all that is needed, nobody could."""
    if not can_write(cache.folder) and not any(unit.kind in ("pass", "release") for unit in plan.units):
        yield uuid.uuid4().hex
        return
    cache.check_writable()
    tidy(cache)
    used = {*plan.context.entries, *(store.key for stores in plan.context.stores.values() for store in stores.values())}
    with use or Use(cache, used, str(plan.settings.out)) as here:
        yield here.name


def _execute(plan: Plan, cache: FeatureCache, console: Any, texts: Mapping[str, str]) -> RunSummary:
    settings = plan.settings
    graph = Graph(plan.units)
    summary = RunSummary(skipped=list(plan.done))
    began = time.monotonic()
    record = RunRecord(
        files=dict(texts),
        options=run_options(settings),
        plan=plan_facts(plan),
        skipped=[job.id for job in plan.done],
        provenance=provenance(started=utc_now(), seeds=[settings.seed], precision=settings.precision_text, command=list(settings.command)),
    )
    path = write_run(settings.out, record)
    progress = make_progress(plan, graph, console)

    def lost(unit: Unit, reason: str) -> None:
        if not unit.is_job:
            return
        job = plan.context.jobs[unit.payload]
        summary.failed[job.id] = reason
        with suppress(ViRBError):  # the reason may be that nothing can be written
            record_failure(plan.context, job, reason, "")

    code: int | None = None
    try:
        run_units(graph, plan.context, settings.devices, make_doer, progress, lost)
        code = 1 if summary.failed else 0
    finally:
        progress.close()
        summary.seconds = time.monotonic() - began
        summary.done = [plan.context.jobs[unit.payload] for key in graph.done if (unit := graph.units[key]).is_job]
        summary.decoded = sum(report.counts.get("decoded", 0) for report in progress.reports)
        summary.refused = sum(report.counts.get("refused", 0) for report in progress.reports)
        summary.profile = make_profile(progress.reports, progress.names, progress.busy, summary.seconds)
        finished = record.model_copy(
            update={
                "done": [job.id for job in summary.done],
                "failed": {name: (reason.splitlines() or ["?"])[0] for name, reason in summary.failed.items()},
                "exit_code": code,
                "plan": {**record.plan, "decoded_images": summary.decoded, "refused_images": summary.refused},
                "profile": profile_record(summary.profile),
                "provenance": record.provenance.model_copy(update={"finished": utc_now()}),
            }
        )
        with suppress(ViRBError):
            write_run(settings.out, finished, path)
        if settings.no_cache:
            cache.remove()
        if code == 0:
            shutil.rmtree(settings.out / ".jobs", ignore_errors=True)
    with suppress(ViRBError) if summary.failed else nullcontext():  # what failed is the news then, and comes last
        write_csv(settings.out)
    return summary


def clean_up(out: Path, cache_folder: Path) -> None:
    """Takes away what killed runs left half-written. Only the holder of the lease writes below ``out``; a cache may be shared."""
    for folder in [out / "runs", *out.glob("*/*/"), *out.glob(".jobs/*/*/*/"), *out.glob(".jobs/*/*/*/*/")]:
        clean_temporaries(folder, older_than=0)
    clean_temporaries(out, older_than=60)  # somebody may be asking for the lease just now
    for folder in [cache_folder, *cache_folder.glob("??/*/")]:
        clean_temporaries(folder)


def nothing_to_do(plan: Plan) -> None:
    """Every job is done. The run that did the last one may have been killed before it wrote the table."""
    table = plan.settings.out / "results.csv"
    newest = max((plan.settings.out / job.encoder / job.label / JOB).stat().st_mtime for job in plan.done)
    if (not table.exists() or table.stat().st_mtime < newest) and can_write(plan.settings.out):
        write_csv(plan.settings.out)
    for name in (".jobs", SCRATCH):  # or before it tidied up
        shutil.rmtree(plan.settings.out / name, ignore_errors=True)


def heads_not_kept(plan: Plan) -> int:
    """How many finished jobs lack heads that ``--keep_heads all`` asks for; heads are kept when they are trained and not made up for."""
    count = 0
    for job in plan.done if plan.settings.keep_heads == "all" else ():
        with suppress(ViRBError):
            record = read_job(plan.settings.out, job.encoder, job.label)
            left_out = missing_heads(plan.settings.out, record) if record else []
            trained = issubclass(get_probe(job.task.probe), GradientProbe) or len(left_out) < len(job.task.configs)
            count += bool(left_out) and trained
    return count


def run_options(settings: RunSettings) -> RunOptions:
    """The settings as the record of the run keeps them; the command has a place of its own there."""
    given = {key: value for key, value in vars(settings).items() if key != "command"}
    folders = {key: str(value) for key, value in given.items() if isinstance(value, Path)}
    return RunOptions(**{**given, **folders, "devices": list(settings.devices)})


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The plan in numbers, for the record of the run."""
    return {
        "jobs": [job.id for job in plan.to_do],
        "passes": plan.n_passes,
        "images_to_decode": plan.rows_to_decode + plan.rows_of_streams,
        "images_to_decode_in_training": plan.rows_of_streams,  # an estimate
        "geometries": sorted(geometry_names(plan.to_do)),
        "feature_bytes_new": plan.bytes_new,
        "feature_bytes_cached": plan.bytes_cached,
        "cache": str(plan.context.cache_folder),
        "devices": list(plan.settings.devices),
        "expected_seconds": round(plan.seconds, 1),
        "notes": list(plan.notes),
    }
