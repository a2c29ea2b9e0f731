"""A whole run: claim the results folder, do what is not done, keep the record of it, and say what came out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virb.errors import UserError, ViRBError
from virb.features.cache import FeatureCache
from virb.io import Held, Lease, can_write, clean_temporaries, make_folder
from virb.plan.geometry import size_in_pixels
from virb.plan.graph import Graph, Unit
from virb.plan.jobs import Job, Plan, RunSettings
from virb.plan.units import SCRATCH
from virb.probes.linear import GradientProbe
from virb.results.environment import provenance, utc_now
from virb.results.schema import RunOptions, RunRecord
from virb.results.store import JOB, missing_heads, read_job, write_run
from virb.results.tables import write_csv
from virb.runner.local import run_units
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


def execute(plan: Plan, console: Any, texts: Mapping[str, str] | None = None, lease: Lease | None = None) -> RunSummary:
    """Runs the plan. The caller may hold the lease already (it planned under it)."""
    with lease or claim(plan.settings.out):
        return _execute(plan, console, texts or {})


def _execute(plan: Plan, console: Any, texts: Mapping[str, str]) -> RunSummary:
    settings = plan.settings
    cache = FeatureCache(plan.context.cache_folder)
    clean_up(settings.out, cache.folder)
    if not settings.no_cache:
        shutil.rmtree(settings.out / SCRATCH, ignore_errors=True)  # the features of a killed run with --no_cache
    cache.check_writable()
    graph = Graph(plan.units)
    summary = RunSummary(skipped=list(plan.done))
    began = time.monotonic()
    record = RunRecord(
        files=dict(texts),
        options=run_options(settings),
        plan=plan_facts(plan),
        skipped=[job.id for job in plan.done],
        provenance=provenance(started=utc_now(), seeds=[settings.seed], precision=settings.precision, command=list(settings.command)),
    )
    path = write_run(settings.out, record)
    progress = make_progress(plan, graph, console)

    def lost(unit: Unit, reason: str) -> None:
        if unit.kind == "pass":
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
        summary.done = [plan.context.jobs[unit.payload] for key in graph.done if (unit := graph.units[key]).kind != "pass"]
        summary.decoded = sum(report.counts.get("decoded", 0) for report in graph.done.values())
        finished = record.model_copy(
            update={
                "done": [job.id for job in summary.done],
                "failed": {name: (reason.splitlines() or ["?"])[0] for name, reason in summary.failed.items()},
                "exit_code": code,
                "plan": {**record.plan, "decoded_images": summary.decoded, **_stage_seconds(graph)},
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
    for folder in [out / "runs", *out.glob("*/*/"), *out.glob(".jobs/*/*/*/")]:
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


def _stage_seconds(graph: Graph) -> dict[str, float]:
    """Worker seconds per stage of all passes."""
    seconds: dict[str, float] = {}
    for report in graph.done.values():
        for stage, value in report.seconds.items():
            seconds[f"{stage}_seconds"] = round(seconds.get(f"{stage}_seconds", 0.0) + value, 3)
    return seconds


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
        "images_to_decode": plan.rows_to_decode,
        "geometries": sorted({size_in_pixels(job.geometry.size) for job in plan.to_do}),
        "feature_bytes_new": plan.bytes_new,
        "feature_bytes_cached": plan.bytes_cached,
        "cache": str(plan.context.cache_folder),
        "devices": list(plan.settings.devices),
        "expected_seconds": round(plan.seconds, 1),
        "notes": list(plan.notes),
    }
