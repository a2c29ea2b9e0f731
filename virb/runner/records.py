"""From what a probe found to what the results store keeps: metrics with intervals, the surface, per-sample statistics, provenance."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from virb.encoders.base import EncoderSpec
from virb.encoders.known import KNOWN
from virb.errors import ViRBError
from virb.metrics.base import Metric, Statistics, find_metric
from virb.plan.jobs import Job, PlannedEncoder, RunContext
from virb.probes.base import REPORT, REPORT_UNLABELLED, ConfigOutcome, Outcome, Predictions
from virb.probes.inputs import pick_targets
from virb.results import schema
from virb.results.environment import provenance, utc_now
from virb.results.samples import SampleArrays
from virb.results.statistics import estimate
from virb.results.store import write_failure, write_job
from virb.results.tables import format_value
from virb.tasks.resolve import canonical

_TARGETS_AT_ONCE = 64  # masks and maps are read from disk when they are scored


@dataclass
class JobFacts:
    """What a worker learns while it does a job."""

    job: Job
    context: RunContext
    device: str
    started: str
    streamed: bool = False
    tier: str | None = None
    bad_samples: list[str] = field(default_factory=list)
    chosen_samples: dict[str, np.ndarray] = field(default_factory=dict)  # role -> indices of the samples that took part
    index_lists: dict[str, list[int]] = field(default_factory=dict)
    heads: list[dict[str, Any]] = field(default_factory=list)  # of an eval-only job: which files, with their hashes
    timings: list[schema.Timing] = field(default_factory=list)
    parts: list[schema.JobPart] = field(default_factory=list)
    curves: Path | None = None  # where the TensorBoard files of the running job are
    notes: list[str] = field(default_factory=list)
    pictures: bytes | None = None  # PNG: input, target and prediction of a few samples

    def stage(self, name: str, began: float, items: int | None = None) -> None:
        self.timings.append(schema.Timing(stage=name, seconds=round(time.perf_counter() - began, 3), items=items))


def report_role(job: Job) -> str:
    """The role whose samples are scored; a task has one."""
    return REPORT if REPORT in job.roles else REPORT_UNLABELLED


def write_outcome(facts: JobFacts, outcome: Outcome) -> str:
    """Scores the predictions, writes every file of the job, and returns one line with its numbers."""
    began = time.perf_counter()
    job, task = facts.job, facts.job.task
    metrics = [find_metric(name) for name in task.task.metrics]
    role = report_role(job)
    plan, samples = job.roles[role], facts.chosen_samples[role]
    targets = pick_targets(plan.samples.targets[task.task.target], samples)
    scored: dict[tuple[int, str], dict[str, Statistics]] = {}
    for run in outcome.runs:
        for name, config in run.configs.items():
            if config.report is not None:
                scored[run.seed, name] = _score(task.probe, metrics, config.report, targets)
    chosen = [scored[run.seed, outcome.chosen] for run in outcome.runs if (run.seed, outcome.chosen) in scored]
    if len(chosen) != len(outcome.runs):
        raise ViRBError(f"the probe {task.probe} gave no predictions of its chosen config {outcome.chosen} on {plan.split}")
    units = plan.samples.units[samples]
    numbers = [_metric_record(job, m, [c[m.name] for c in chosen], units, role, i == 0, outcome.draws) for i, m in enumerate(metrics)]
    facts.stage("metrics", began, len(samples))
    record = _job_record(facts, outcome, scored, metrics, numbers)
    configs = [_config_record(facts, outcome, scored, metrics, name, units) for name in task.configs]
    heads = {name: config.head for name, config in outcome.runs[0].configs.items() if config.head is not None}
    one_class = not isinstance(targets, np.ndarray) or targets.ndim == 1
    arrays = SampleArrays(
        sample_id=plan.samples.ids[samples],
        unit_id=units,
        target=targets if isinstance(targets, np.ndarray) else None,
        prediction=_stack([run.configs[outcome.chosen].report for run in outcome.runs], len(job.classes or ()), one_class),
        statistics={m.name: [c[m.name] for c in chosen] for m in metrics},
    )
    keep: Any = facts.context.settings.keep_heads
    lists = {**facts.index_lists, **outcome.index_lists}
    write_job(facts.context.settings.out, record, configs, heads, arrays, lists, keep, facts.curves, facts.pictures)
    values = [(m.title, n) for m, n in zip(metrics, numbers, strict=True) if n.value is not None]
    return ", ".join(f"{title} {format_value(n.value, n.ci_low, n.ci_high, n.unit)}" for title, n in values if n.value is not None)


def _score(probe: str, metrics: list[Metric], predictions: Predictions, targets: Any) -> dict[str, Statistics]:
    """Statistics of each metric, by name. Targets that are read item by item are held a few at a time."""
    if predictions.statistics is not None:
        found = dict(predictions.statistics)
    else:
        values, size = predictions.values, len(targets) if isinstance(targets, np.ndarray) else _TARGETS_AT_ONCE
        if len(values) != len(targets):
            raise ViRBError(f"the probe {probe} gave {len(values):,} predictions for {len(targets):,} samples")
        parts: dict[str, list[Statistics]] = {m.name: [] for m in metrics}
        for start in range(0, len(targets), size):
            here = slice(start, start + size)
            truth = targets[here] if isinstance(targets, np.ndarray) else [targets[i] for i in range(len(targets))[here]]
            found_here = values[here]  # one object for all metrics, which may share what they count
            for metric in metrics:
                parts[metric.name].append(metric.statistics(found_here, truth))
        found = {name: Statistics.concatenate(part) for name, part in parts.items()}
    for metric in metrics:
        if metric.name not in found or len(found[metric.name]) != len(targets):
            raise ViRBError(f"the probe {probe} gave no statistics of {metric.name} for the {len(targets):,} samples that are reported on")
    return found


def _metric_record(
    job: Job, metric: Metric, runs: list[Statistics], units: np.ndarray, role: Any, primary: bool, draws: bool
) -> schema.MetricRecord:
    found = estimate(metric, runs, units, draws=draws)
    return schema.MetricRecord(
        name=metric.name,
        value=found.value,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        role=role,
        n_samples=found.n_samples,
        n_units=found.n_units,
        primary=primary,
        per_class=_per_class(metric, runs, job.classes),
    )


def _per_class(metric: Metric, runs: list[Statistics], classes: Sequence[str] | None) -> dict[str, float | None] | None:
    """The mean over runs of each class's number, by the class's name; None for a class that has none in one of the runs. None when the
    metric is no mean over classes, or over others than those that have names."""
    if metric.per_class is None or classes is None or metric.weighted is not None:
        return None
    numbers = np.mean([metric.per_class(run.total()) for run in runs], axis=0)
    if numbers.shape != (len(classes),):
        return None
    return {name: float(number) if np.isfinite(number) else None for name, number in zip(classes, numbers, strict=True)}


def _stack(predictions: list[Predictions | None], n_classes: int, one_class: bool) -> np.ndarray | None:
    """(R, N): the arg max of class scores; (R, N, ...) of any other array; None for what has no such form (lists, ragged values)."""
    rows = []
    for prediction in predictions:
        values = prediction.values if prediction is not None else None
        values = values.numpy() if isinstance(values, torch.Tensor) else values
        if not isinstance(values, np.ndarray) or values.dtype.hasobject:
            return None
        # Beside one class number per sample stands the arg max; beside labels of all classes, or numbers, the scores themselves.
        scores = one_class and values.ndim == 2 and values.shape[1] == n_classes and np.issubdtype(values.dtype, np.floating)
        rows.append(values.argmax(axis=1) if scores else values)
    return np.stack(rows)


def _values(metrics: list[Metric], statistics: Mapping[str, Statistics] | None) -> dict[str, float | None]:
    return {m.name: m.of(statistics[m.name]) for m in metrics} if statistics else {}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _config_record(
    facts: JobFacts,
    outcome: Outcome,
    scored: Mapping[tuple[int, str], dict[str, Statistics]],
    metrics: list[Metric],
    name: str,
    units: np.ndarray,
) -> schema.TrainingConfigResult:
    job = facts.job
    found: list[ConfigOutcome] = [run.configs[name] for run in outcome.runs]
    primary = metrics[0]
    report = [_values(metrics, scored.get((run.seed, name))) for run in outcome.runs]
    by_role: dict[str, dict[str, float | None]] = {}
    for role, values in (("fit", [c.train_metrics for c in found]), ("select", [c.select_metrics for c in found]), ("report", report)):
        by_role[role] = {m.name: _mean([v.get(m.name) for v in values]) for m in metrics if any(m.name in v for v in values)}
    epochs = {c.epoch for c in found}
    runs = [scored[run.seed, name][primary.name] for run in outcome.runs if (run.seed, name) in scored]
    # Draws of few shots: each shot count is a result of its own. Under test-* the many numbers beside the chosen one are a surface.
    is_result = len(runs) == len(found) and (job.task.selection == "val" or outcome.draws)
    interval = estimate(primary, runs, units, draws=outcome.draws) if is_result else None
    return schema.TrainingConfigResult(
        encoder=job.encoder,
        label=job.label,
        task=job.task.task.id,
        config=name,
        key=job.key,
        settings=canonical(job.task.configs[name]),
        seeds=list(job.task.seeds),
        metric=schema.MetricInfo(name=primary.name, unit=primary.unit, higher_is_better=primary.higher_is_better),
        train_loss=_mean([c.train_loss for c in found]),
        train_accuracy=by_role["fit"].get(primary.name),
        select_loss=_mean([c.select_loss for c in found]),
        select_accuracy=by_role["select"].get(primary.name),
        test_loss=_mean([c.report.loss if c.report else None for c in found]),
        test_accuracy=by_role["report"].get(primary.name),
        test_ci_low=interval.ci_low if interval else None,
        test_ci_high=interval.ci_high if interval else None,
        metrics=by_role,
        chosen=name == outcome.chosen,
        diverged=any(c.diverged for c in found),
        epoch=epochs.pop() if len(epochs) == 1 else None,
        refit=job.task.refit and name == outcome.chosen,
    )


def _job_record(
    facts: JobFacts,
    outcome: Outcome,
    scored: Mapping[tuple[int, str], dict[str, Statistics]],
    metrics: list[Metric],
    numbers: list[schema.MetricRecord],
) -> schema.Job:
    job = facts.job
    surface = [
        schema.SurfaceRow(
            config=name,
            seed=run.seed,
            settings=canonical(job.task.configs[name]),
            train_loss=config.train_loss,
            train_metrics=dict(config.train_metrics),
            select_loss=config.select_loss,
            select_metrics=dict(config.select_metrics),
            report_loss=config.report.loss if config.report else None,
            report_metrics=_values(metrics, scored.get((run.seed, name))),
            epoch=config.epoch,
            diverged=config.diverged,
            refit=job.task.refit and name == outcome.chosen,
        )
        for run in outcome.runs
        for name, config in run.configs.items()
    ]
    runs = [
        schema.RunInfo(
            seed=run.seed,
            chosen=run.chosen,
            metrics=_values(metrics, scored.get((run.seed, outcome.chosen))),
            loss=report.loss if (report := run.configs[outcome.chosen].report) else None,
        )
        for run in outcome.runs
    ]
    notes = [*facts.notes, *outcome.notes, *(note for run in outcome.runs for c in run.configs.values() for note in c.notes)]
    return _skeleton(facts, "done").model_copy(
        update={
            "selection": outcome.selected_on if outcome.selected_on == "none" else job.task.selection,
            "chosen": outcome.chosen,
            "metrics": numbers,
            "surface": surface,
            "runs": runs,
            "notes": list(dict.fromkeys(notes)),
        }
    )


def record_failure(context: RunContext, job: Job, reason: str, device: str) -> None:
    """A job that failed has a ``failed.json`` that says why, unless an equal one was done before."""
    facts = JobFacts(job, context, device, utc_now())
    message, _, trace = reason.partition("\nTraceback")
    error = schema.JobError(message=message, hint="mend it and run the same command again", traceback=f"Traceback{trace}" if trace else "")
    write_failure(context.settings.out, _skeleton(facts, "failed").model_copy(update={"error": error}))


def _skeleton(facts: JobFacts, status: Any) -> schema.Job:
    """All of a job's record that does not depend on what the probe found."""
    job, context = facts.job, facts.context
    task = job.task
    roles = {}
    for role, plan in job.roles.items():
        chosen = facts.chosen_samples.get(role, np.arange(len(plan.samples)))
        n_units = len(np.unique(plan.samples.units[chosen]))
        roles[role] = schema.RoleInfo(split=plan.split, n_samples=len(chosen), n_units=n_units, images=plan.samples.images)
    settings = context.settings
    return schema.Job(
        status=status,
        key=job.key,
        encoder=_encoder_info(context.encoders[job.encoder]),
        task=schema.TaskInfo(
            id=task.task.id,
            label=task.label,
            level=task.task.level,
            kind=task.task.kind,
            dataset=task.task.dataset,
            probe=task.probe,
            features=[job.request],
            n_classes=len(job.classes) if job.classes else None,
            classes=list(job.classes) if job.classes else None,
            roles=roles,
            image_list_ids={plan.samples.images: plan.list_id for plan in job.roles.values()},
            data=_jsonable(dict(task.data)),
        ),
        protocol=_card(facts),
        selection=task.selection,
        bad_images=schema.BadImages(count=len(facts.bad_samples), ids=facts.bad_samples[:100]),
        streamed=facts.streamed,
        tier=facts.tier,
        timings=facts.timings,
        parts=facts.parts,
        provenance=provenance(
            started=facts.started,
            finished=utc_now(),
            device=facts.device,
            seeds=list(task.seeds),
            precision=settings.precision_text,
            command=list(settings.command),
            config_text=context.provenance.get(f"text {task.label}"),
        ),
    )


_TOLD_APART = frozenset(("name", "encoder_id", "source", "n_params", "embed_dim", "input", "training"))


def _encoder_info(planned: PlannedEncoder) -> schema.EncoderInfo:
    spec: EncoderSpec = planned.spec
    facts = asdict(spec)
    plain = {key: facts[key] for key in facts if key not in _TOLD_APART}
    return schema.EncoderInfo(
        name=planned.name,
        id=spec.encoder_id,
        source=spec.source,
        n_params=spec.n_params,
        embed_dim=spec.embed_dim,
        input=_jsonable(facts["input"]),
        spec=_jsonable(plain),
        meta={**_known(planned.source), **dict(spec.training), **planned.meta},
    )


def _known(source: Any) -> dict[str, str]:
    """Released weights by their short name are those that published numbers are about."""
    known = KNOWN.get(str(getattr(source, "weights", None)))
    return {} if known is None else {"reference": next(name for name, other in KNOWN.items() if other is known)}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _logits(job: Job) -> str:
    """Which outputs of the heads take part."""
    columns, classes = job.heads[0].columns, job.heads[0].classes
    if columns is None or classes is None:
        return "all outputs of the heads, in their order"
    if len(columns) == len(classes):
        return f"all {len(classes):,} classes of the heads, matched by name"
    return f"restricted to the {len(columns):,} classes of this task among the {len(classes):,} of the heads, matched by name"


def _card(facts: JobFacts) -> schema.ProtocolCard:
    """Everything that decided the number besides weights and data, with who set it."""
    job, task = facts.job, facts.job.task
    values: dict[str, tuple[Any, str]] = {
        "geometry": (job.geometry.record(), job.geometry_from),
        "features": (job.request, task.origins.get("features", "")),
        "training_configs": (list(task.configs), task.origins.get("training_configs", "")),
        "metrics": (list(task.task.metrics), f"task {task.task.id}"),
        "loss": (task.task.loss, f"task {task.task.id}"),
    }
    if job.data_note:
        values["data"] = (job.data_note, f"dataset {task.task.dataset}")
    if task.limit:
        values["limit"] = (dict(task.limit), task.origins.get("limit", ""))
    if task.windows:
        values["windows"] = (canonical(task.windows), task.origins.get("windows", ""))
    if task.score_size:
        values["score_size"] = (task.score_size, task.origins.get("score_size", ""))
    keys: tuple[str, ...] = ("num_epochs", "batch_size", "selection", "seeds", "refit", "views", "augment")
    if job.heads:
        keys = ("selection",)
        origin = task.origins.get("heads", "")
        values["heads"] = (facts.heads, origin)
        values["logits"] = (_logits(job), origin)
        values["training_configs"] = (list(task.configs), origin)
    for key in ("probe", *keys, "test_batch_size", "on_bad_image"):
        values[key] = (_jsonable(getattr(task, key)), task.origins.get(key, ""))
    return schema.ProtocolCard(
        name=task.protocol,
        changed=_jsonable(dict(task.changed)),
        values={key: schema.ProtocolValue(value=value, origin=origin) for key, (value, origin) in values.items()},
    )
