"""From files to one tidy table: ``load_results("out")``."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from virb.errors import UserError, ViRBError
from virb.metrics.base import find_metric
from virb.results.reference import reference_of
from virb.results.samples import read_samples
from virb.results.schema import Job, MetricRecord, SurfaceRow, validate
from virb.results.store import FAILED, JOB, RESULTS, RUNS, SAMPLES, job_files

# In this order, always all of them; what is unknown is missing. Hyper-parameters follow as `settings.<name>`.
COLUMNS = {
    "encoder": "str", "label": "str", "task": "str", "level": "str", "kind": "str", "dataset": "str", "probe": "str", "features": "str",
    "geometry": "str", "views": "str", "precision": "str", "protocol": "str", "selection": "str", "config": "str", "chosen": "boolean",
    "metric": "str", "primary": "boolean", "value": "float64", "ci_low": "float64", "ci_high": "float64", "unit": "str",
    "higher_is_better": "boolean", "select_value": "float64", "select_loss": "float64", "train_value": "float64", "train_loss": "float64",
    "test_loss": "float64", "epoch": "Int64", "refit": "boolean", "diverged": "boolean", "n_samples": "Int64", "n_units": "Int64",
    "n_classes": "Int64", "seeds": "str", "n_params": "Int64", "embed_dim": "Int64", "encoder_id": "str", "encoder_source": "str",
    "encoder_step": "Int64",
    "virb_version": "str", "finished": "str", "newer_failed": "str",
    "reference": "float64", "reference_difference": "float64", "reference_tolerance": "float64", "reference_source": "str",
}  # fmt: skip
VIRB_2021_KEYS = {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}


def load_results(
    out: str | Path = "out", *, all_configs: bool = False, metrics: Literal["primary", "all"] = "primary", items: bool = False
) -> pd.DataFrame:
    """A results store as a table: a row per encoder, task label and training config (the chosen ones by default), with the primary metric.

    Args:
        out: The results store. Folders that ViRB 2021 wrote are read too; what they do not say is missing.
        all_configs: Every training config; ``chosen`` marks the chosen ones. ``value`` is missing where the protocol does not score a
            config on the report split; ``select_value`` has the number that the choice was made by.
        metrics: ``"all"`` gives a row per metric.
        items: A row per sample of the report split instead (of the chosen config): its ids, target, prediction, and the value of each
            metric on this sample alone. ``run`` counts the seeds.

    Values of unit ``%`` are fractions in [0, 1]. Where a newer attempt with other settings failed, the rows are those of the finished job,
    and ``newer_failed`` says why it did. Files that are broken or not ViRB's are skipped with a warning.
    """
    root = Path(out)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the --out of a run")
    jobs = load_jobs(root)
    if items:
        tables = [table for job in jobs for table in _item_rows(root, job)]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    failures = {(job.encoder.name, job.task.label): job.error.message for job in load_jobs(root, "failed") if job.error}
    rows = []
    for job in jobs:
        newer_failed = failures.get((job.encoder.name, job.task.label))
        rows += [{**row, "newer_failed": newer_failed} for row in _job_rows(job, all_configs, metrics == "all")]
    rows += list(_old_rows(root))
    return _typed(rows)


def load_jobs(out: str | Path, status: Literal["done", "failed"] | None = "done") -> list[Job]:
    """The records of all jobs with this status (None: any), by encoder and label; broken and foreign files are skipped with a warning.
    A finished job whose newer attempt failed is in both."""
    names = {"done": (JOB,), "failed": (FAILED,), None: (JOB, FAILED)}[status]
    jobs = []
    for path in sorted(path for name in names for path in job_files(Path(out), name)):
        try:
            record = validate(path)
        except ViRBError as error:
            warnings.warn(f"skipped: {error}", stacklevel=3)
            continue
        if isinstance(record, Job) and status in (None, record.status):
            jobs.append(record)
    return jobs


def _job_rows(job: Job, all_configs: bool, all_metrics: bool) -> Iterator[dict[str, Any]]:
    step = job.encoder.meta.get("step")  # the user's own, if the list says it
    common = {
        "encoder": job.encoder.name, "label": job.task.label, "task": job.task.id, "level": job.task.level, "kind": job.task.kind,
        "dataset": job.task.dataset, "probe": job.task.probe, "features": " ".join(job.task.features), "geometry": _geometry(job),
        "views": _views(job), "precision": job.provenance.precision, "protocol": _protocol_name(job), "selection": job.selection,
        "n_classes": job.task.n_classes, "n_params": job.encoder.n_params, "embed_dim": job.encoder.embed_dim,
        "encoder_id": job.encoder.id, "encoder_source": job.encoder.source,
        "encoder_step": step if isinstance(step, int) else None, "virb_version": job.provenance.virb_version,
        "finished": job.provenance.finished,
    }  # fmt: skip
    reported = [metric for metric in job.metrics if metric.role.startswith("report") and (all_metrics or metric.primary)]
    by_config: dict[str, list[SurfaceRow]] = {}
    for row in job.surface:
        by_config.setdefault(row.config, []).append(row)
    if not by_config and job.chosen is not None:  # a probe without hyper-parameters
        by_config[job.chosen] = []
    for config, runs in by_config.items():
        chosen = config == job.chosen
        if not (chosen or all_configs):
            continue
        for metric in reported:
            numbers = {**_config_numbers(runs), **_metric_numbers(metric, runs, chosen)}
            yield {**common, "config": config, "chosen": chosen, **numbers, **(_reference(job, metric) if chosen else {})}


def _reference(job: Job, metric: MetricRecord) -> dict[str, Any]:
    """The published number of the chosen config's, where there is one."""
    found = reference_of(job, metric.name)
    if found is None:
        return {}
    difference = None if metric.value is None else metric.value - found.value
    return {
        "reference": found.value,
        "reference_difference": difference,
        "reference_tolerance": found.tolerance,
        "reference_source": found.source,
    }


def _protocol_name(job: Job) -> str:
    """A changed protocol is never shown as that protocol."""
    changed = ", ".join(f"{key}: {value}" for key, value in job.protocol.changed.items())
    return f"{job.protocol.name}, changed: {{{changed}}}" if changed else job.protocol.name


def _geometry(job: Job) -> str | None:
    """``224px``: the size alone; how it was reached is in the protocol card."""
    card = job.protocol.values.get("geometry")
    if card is None or "size" not in card.value:
        return None
    size = card.value["size"]
    if size is None:
        return "native size"
    return f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px"


def _views(job: Job) -> str | None:
    card = job.protocol.values.get("views")
    return None if card is None else str(card.value)


def _config_numbers(runs: Sequence[SurfaceRow]) -> dict[str, Any]:
    epochs = {run.epoch for run in runs}
    numbers: dict[str, Any] = {
        "seeds": " ".join(str(run.seed) for run in runs),
        "train_loss": _mean([run.train_loss for run in runs]),
        "select_loss": _mean([run.select_loss for run in runs]),
        "test_loss": _mean([run.report_loss for run in runs]),
        "epoch": epochs.pop() if len(epochs) == 1 else None,
        "refit": any(run.refit for run in runs),
        "diverged": any(run.diverged for run in runs),
    }
    return numbers | {f"settings.{key}": value for run in runs[:1] for key, value in _flat(run.settings)}


def _metric_numbers(metric: MetricRecord, runs: Sequence[SurfaceRow], chosen: bool) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "primary": metric.primary,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "value": metric.value if chosen else _mean([run.report_metrics.get(metric.name) for run in runs]),
        "ci_low": metric.ci_low if chosen else None,
        "ci_high": metric.ci_high if chosen else None,
        "select_value": _mean([run.select_metrics.get(metric.name) for run in runs]),
        "train_value": _mean([run.train_metrics.get(metric.name) for run in runs]),
        "n_samples": metric.n_samples,
        "n_units": metric.n_units,
    }


def _mean(numbers: Sequence[float | None]) -> float | None:
    """None when one is unknown: a mean over fewer seeds would be another number."""
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if known and len(known) == len(numbers) else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _old_rows(root: Path) -> Iterator[dict[str, Any]]:
    """ViRB 2021: ``<encoder>/<label>-<config>/results.json`` with four bare numbers. It chose nothing, so ``chosen`` is missing."""
    for path in sorted(root.glob(f"*/*/{RESULTS}")):
        if path.parent.parent.name == RUNS:
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))  # bare NaN, which it wrote, is read as NaN
        except (OSError, ValueError) as error:
            warnings.warn(f"skipped: {path} is not valid JSON ({error})", stacklevel=4)
            continue
        if isinstance(record, dict) and record.get("kind") == "training_config":
            continue  # its job.json has the same
        if not isinstance(record, dict) or not record or not set(record) <= VIRB_2021_KEYS or not all(map(_is_number, record.values())):
            warnings.warn(f"skipped: {path} is not a result of ViRB", stacklevel=4)
            continue
        label, config = _split_old_name(path.parent.name)
        yield {
            "encoder": path.parent.parent.name, "label": label, "task": label, "protocol": "virb2021", "config": config, "primary": True,
            "value": record.get("test_accuracy"), "test_loss": record.get("test_loss"), "train_value": record.get("train_accuracy"),
            "train_loss": record.get("train_loss"),
        }  # fmt: skip


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _split_old_name(name: str) -> tuple[str, str]:
    """``CIFAR-100-adam-0.0001`` is label ``CIFAR-100`` with config ``adam-0.0001``: its configs began with the optimizer by habit.
    Where that does not help, the whole name is the label."""
    match = re.fullmatch(r"(.+?)-((?:adamw?|sgd)\b.*)", name, flags=re.IGNORECASE)
    return (match[1], match[2]) if match else (name, "")


def _item_rows(root: Path, job: Job) -> Iterator[pd.DataFrame]:
    path = root / job.encoder.name / job.task.label / SAMPLES
    if not path.exists():
        return
    try:
        samples = read_samples(path)
    except ViRBError as error:
        warnings.warn(f"skipped: {error}", stacklevel=4)
        return
    if len(samples) == 0:
        return
    n_runs = max([len(runs) for runs in samples.statistics.values()] + [0 if samples.prediction is None else len(samples.prediction)] + [1])
    for run in range(n_runs):
        table: dict[str, Any] = {"encoder": job.encoder.name, "label": job.task.label, "task": job.task.id, "config": job.chosen}
        table |= {"run": run, "sample_id": samples.sample_id, "unit_id": samples.unit_id}
        if samples.target is not None:
            table["target"] = _column(samples.target)
        if samples.prediction is not None:
            table["prediction"] = _column(samples.prediction[run])
        for name, runs in samples.statistics.items():
            try:
                metric = find_metric(name)
            except KeyError:  # a user's own, whose module is not loaded here
                continue
            if metric.weighted is None:  # one that is no function of sums says nothing of a single sample
                table[name] = metric.values(runs[run].values[:, None, :].astype(np.float64))
        yield pd.DataFrame(table)


def _column(array: np.ndarray) -> Any:
    return array if array.ndim == 1 else list(array)


def _typed(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    settings = list(dict.fromkeys(key for row in rows for key in row if key.startswith("settings.")))
    columns: dict[str, Any] = {}
    for name, dtype in COLUMNS.items():
        values = [row.get(name) for row in rows]
        if dtype == "float64":  # NaN for unknown, as plots and numpy like it
            columns[name] = pd.Series([np.nan if value is None else float(value) for value in values], dtype=dtype)
        elif dtype == "str":  # left to pandas: version 2 would make "None" of None
            columns[name] = pd.Series(values, dtype=None if values else object)
        else:
            columns[name] = pd.Series(values, dtype=dtype)
    for name in settings:
        columns[name] = pd.Series([row.get(name) for row in rows]).infer_objects()
    return pd.DataFrame(columns)
