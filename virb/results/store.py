"""The results store: where the files of a job lie, and an order of writing that a crash cannot fool.

    <out>/<encoder>/<label>/job.json, samples.npz, failed.json
    <out>/<encoder>/<label>-<training config>/results.json, model_head.pt
    <out>/runs/<time>.json

``job.json`` is taken away first and written last, so its presence means that everything else of the job is there and belongs to it. An
attempt that failed leaves ``failed.json`` and touches nothing else: only a finished job takes the place of a finished job.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from virb.errors import UserError, ViRBError
from virb.io import make_folder, read_json, write_atomic, write_json, writing
from virb.results.samples import SampleArrays, read_samples, write_samples
from virb.results.schema import IndexList, Job, RunRecord, TrainingConfigResult, validate

if TYPE_CHECKING:
    import torch

JOB, FAILED, SAMPLES, RESULTS, HEAD, RUNS = "job.json", "failed.json", "samples.npz", "results.json", "model_head.pt", "runs"
PICTURES = "pictures.png"  # of pixelwise jobs
EVENTS = "events.out.tfevents.*"
# Longer index lists go to samples.npz, so that job.json stays readable.
LONGEST_LIST_IN_JSON = 200
_NAME = re.compile(r"[A-Za-z0-9._@+-]+")


def check_name(name: str) -> str:
    """Names become folders; anything but ``[A-Za-z0-9._@+-]+`` is refused."""
    if not _NAME.fullmatch(name) or set(name) == {"."}:
        raise UserError(f'"{name}" cannot name a folder: use letters, digits and . _ @ + -')
    return name


def job_folder(out: Path, encoder: str, label: str) -> Path:
    if encoder == RUNS:
        raise UserError(f'an encoder cannot be named "{RUNS}": {out / RUNS} keeps the records of runs')
    return Path(out) / check_name(encoder) / check_name(label)


def config_folder(out: Path, encoder: str, label: str, config: str) -> Path:
    return job_folder(out, encoder, f"{label}-{check_name(config)}")


def job_files(out: Path, name: str = JOB) -> Iterator[Path]:
    """Every ``job.json`` (or ``failed.json``) of the store, by encoder and label."""
    yield from sorted(path for path in Path(out).glob(f"*/*/{name}") if path.parent.parent.name != RUNS)


def read_job(out: Path, encoder: str, label: str) -> Job | None:
    """The record of the finished job; None when there is none."""
    return _read_record(job_folder(out, encoder, label) / JOB)


def read_failure(out: Path, encoder: str, label: str) -> Job | None:
    """The record of an attempt that failed and was not made good since; None when there is none."""
    return _read_record(job_folder(out, encoder, label) / FAILED)


def _read_record(path: Path) -> Job | None:
    if not path.exists():
        return None
    record = validate(path)
    if not isinstance(record, Job):
        raise ViRBError(f"{path} is a record of kind {record.kind}, not a job")
    return record


def read_job_samples(out: Path, encoder: str, label: str) -> SampleArrays:
    return read_samples(job_folder(out, encoder, label) / SAMPLES)


def finished(out: Path, encoder: str, label: str, key: str) -> bool:
    """Whether this very job is done: same key, status ``done``. A broken or foreign file means no."""
    record = _read_loosely(job_folder(out, encoder, label) / JOB)
    return (record.get("kind"), record.get("status"), record.get("key")) == ("job", "done", key)


def conflicts(out: Path, encoder: str, label: str, configs: Sequence[str]) -> list[str]:
    """What stands in the job's folders and belongs to another label, such as label ``a`` with config ``b-c`` beside label ``a-b``."""
    problems = []
    folder = job_folder(out, encoder, label)
    owner = _read_loosely(folder / RESULTS)
    if owner.get("kind") == "training_config":
        problems.append(f"{folder} holds training config {owner.get('config')} of label {owner.get('label')}")
    for config in configs:
        folder = config_folder(out, encoder, label, config)
        owner = _read_loosely(folder / RESULTS)
        if owner.get("kind") == "training_config" and owner.get("label") != label:
            problems.append(f"{folder} holds training config {owner.get('config')} of label {owner.get('label')}")
        if (folder / JOB).exists() or (folder / FAILED).exists():
            problems.append(f"{folder} holds the job of label {folder.name}")
    return problems


def write_job(
    out: Path,
    job: Job,
    configs: Sequence[TrainingConfigResult],
    heads: Mapping[str, Mapping[str, torch.Tensor]],
    samples: SampleArrays | None,
    index_lists: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    keep_heads: Literal["all", "chosen", "none"] = "chosen",
    curves: Path | None = None,
    pictures: bytes | None = None,
) -> Path:
    """Writes a finished job and returns the path of its ``job.json``.

    ``heads`` are state dicts by config name; ``index_lists`` are filled into the record, long ones into ``samples.npz``; the TensorBoard
    files in ``curves`` (of a config: in its folder there) move to their places; ``pictures`` is a PNG. What an earlier job of the same
    encoder and label left (configs that no longer exist, heads that are not kept, curves, pictures, a failure) goes.
    """
    encoder, label = job.encoder.name, job.task.label
    foreign = [result.config for result in configs if (result.encoder, result.label, result.key) != (encoder, label, job.key)]
    if foreign or job.status != "done":
        raise ValueError(f"Expected a done job and results of it alone, but got status {job.status} and configs of another job: {foreign}")
    problems = conflicts(out, encoder, label, [result.config for result in configs])
    if problems:
        raise ViRBError("; ".join(problems) + ": rename one of the labels or choose another --out")
    lists = {name: np.asarray(indices, dtype=np.int64) for name, indices in (index_lists or {}).items()}
    job = job.model_copy(update={"index_lists": {name: _index_list(indices) for name, indices in lists.items()}})
    folder = job_folder(out, encoder, label)
    _remove(folder / JOB)
    _remove_configs(out, encoder, label, keep={result.config for result in configs})
    for result in configs:
        place = config_folder(out, encoder, label, result.config)
        kept = keep_heads == "all" or (keep_heads == "chosen" and result.config == job.chosen)
        if kept and result.config in heads:
            _write_head(place / HEAD, heads[result.config])
        else:
            _remove(place / HEAD)
        _move_events(curves / result.config if curves else None, place)
        write_json(place / RESULTS, result.model_dump(mode="json"))
    _move_events(curves, folder)
    long_lists = {name: indices for name, indices in lists.items() if len(indices) > LONGEST_LIST_IN_JSON}
    if samples is not None or long_lists:
        write_samples(folder / SAMPLES, _with_lists(samples, long_lists))
    else:
        _remove(folder / SAMPLES)
    if pictures is not None:
        write_atomic(folder / PICTURES, pictures)
    else:
        _remove(folder / PICTURES)
    _remove(folder / FAILED)
    write_json(folder / JOB, job.model_dump(mode="json"))
    return folder / JOB


def write_failure(out: Path, job: Job) -> bool:
    """Records why a job failed, beside what an earlier job left: its results stay. A finished job with the same key (it was run again by
    ``--force``) is as good as before; then nothing is written and the answer is False."""
    if job.status != "failed" or job.error is None:
        raise ValueError(f"Expected a failed job with its error, but got status {job.status}")
    encoder, label = job.encoder.name, job.task.label
    if finished(out, encoder, label, job.key):
        return False
    write_json(job_folder(out, encoder, label) / FAILED, job.model_dump(mode="json"))
    return True


def remove_job(out: Path, encoder: str, label: str) -> None:
    """Takes a job and its training configs out of the store; files that ViRB did not write stay."""
    folder = job_folder(out, encoder, label)
    _remove(folder / JOB)
    _remove_configs(out, encoder, label, keep=set())
    _remove(folder / SAMPLES)
    _remove(folder / PICTURES)
    _remove(folder / FAILED)
    remove_events(folder)
    _remove_if_empty(folder)


def remove_events(folder: Path) -> None:
    """Takes the TensorBoard files of an earlier run away, so that curves never mix."""
    for path in folder.glob(EVENTS):
        _remove(path)


def _move_events(source: Path | None, folder: Path) -> None:
    """The curves of this job take the place of those of an earlier one."""
    remove_events(folder)
    for path in sorted(source.glob(EVENTS)) if source else ():
        with writing(folder):
            make_folder(folder)
            path.replace(folder / path.name)


def missing_heads(out: Path, job: Job) -> list[str]:
    """Training configs of a finished job whose heads were not kept. Those that diverged have none."""
    names = dict.fromkeys(row.config for row in job.surface if not row.diverged)
    return [name for name in names if not (config_folder(out, job.encoder.name, job.task.label, name) / HEAD).exists()]


def write_run(out: Path, record: RunRecord, path: Path | None = None) -> Path:
    """Writes a run's record under the time it started; give the returned ``path`` back to write it again when the run has ended."""
    if path is None:
        stem = record.provenance.started.replace("+00:00", "Z").replace(":", "-")
        path, number = Path(out) / RUNS / f"{stem}.json", 2
        while path.exists():
            path, number = path.with_name(f"{stem}-{number}.json"), number + 1
    write_json(path, record.model_dump(mode="json"))
    return path


def _index_list(indices: np.ndarray) -> IndexList:
    digest = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
    return IndexList(count=len(indices), sha256=digest, indices=indices.tolist() if len(indices) <= LONGEST_LIST_IN_JSON else None)


def _with_lists(samples: SampleArrays | None, lists: Mapping[str, np.ndarray]) -> SampleArrays:
    if samples is None:
        return SampleArrays(np.zeros(0, dtype=str), np.zeros(0, dtype=str), index_lists=lists)
    return SampleArrays(samples.sample_id, samples.unit_id, samples.target, samples.prediction, samples.statistics, lists)


def _write_head(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    import torch

    # Clones: a head may be one slice of the stacked grid, and a slice would drag the whole stack into the file.
    plain = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    write_atomic(path, lambda file: torch.save(plain, file))


def _remove_configs(out: Path, encoder: str, label: str, keep: set[str]) -> None:
    """Removes config folders whose ``results.json`` says that they are this label's, by content and not by the look of their names."""
    parent = job_folder(out, encoder, label).parent
    for path in sorted(parent.glob(f"*/{RESULTS}")):
        record = _read_loosely(path)
        mine = (record.get("kind"), record.get("encoder"), record.get("label")) == ("training_config", encoder, label)
        if not mine or record.get("config") in keep:
            continue
        remove_events(path.parent)
        _remove(path.parent / HEAD)
        _remove(path)  # last, for it is what says whose folder this is
        _remove_if_empty(path.parent)


def _remove(path: Path) -> None:
    with writing(path):
        path.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _read_loosely(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is absent, broken or something else."""
    try:
        record = read_json(path)
    except (OSError, ViRBError):
        return {}
    return record if isinstance(record, dict) else {}
