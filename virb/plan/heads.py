"""Which heads an eval-only task scores: those of another job of this run, of an earlier one, or files of somebody else's."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from virb.data.transforms import Geometry, View
from virb.errors import UserError, ViRBError
from virb.io import read_json
from virb.probes.base import has_heads
from virb.probes.head_files import Layout, file_hash, layout_of, read_head
from virb.probes.heads import head_shape
from virb.results.schema import Job as JobRecord
from virb.results.store import HEAD, JOB, RESULTS, config_folder, job_files, job_folder, read_job
from virb.tasks.base import Task, import_attribute
from virb.tasks.resolve import ResolvedTask, get_probe

_FIRST = 3  # names that a message gives before "and n more"


class NoHead(UserError):
    """Neither this run nor the store has a head; ``task_id``: the task of the catalogue that would train it, where one is known."""

    def __init__(self, message: str, task_id: str | None) -> None:
        self.task_id = task_id
        super().__init__(message)


@dataclass(frozen=True)
class HeadSource:
    """Heads of one job (``label`` of ``encoder`` in the store ``out``), or one file of which nothing else is known.

    ``pattern`` asks for all heads of the job that a glob matches; without one the job's chosen head is meant. ``key`` is the job's, or the
    file's sha256. ``columns`` are the outputs of these heads that are the eval-only task's classes, in its order.
    """

    key: str
    out: Path | None = None
    encoder: str = ""
    label: str = ""
    pattern: str | None = None
    file: Path | None = None
    task_id: str = ""
    probe: str | None = None
    protocol: str | None = None
    selection: str = "val"
    changed: Mapping[str, Any] = field(default_factory=dict)
    request: str | None = None
    geometry: Geometry | None = None
    classes: tuple[str, ...] | None = None
    columns: tuple[int, ...] | None = None
    layout: Layout | None = None  # of a file

    @property
    def job_id(self) -> str | None:
        return f"{self.encoder}/{self.label}" if self.label else None

    def __str__(self) -> str:
        return self.label or str(self.file)


@dataclass(frozen=True)
class FoundHead:
    """A head's file and what the file beside it says of it."""

    path: Path
    encoder: str = ""
    label: str = ""
    config: str = ""
    key: str = ""
    chosen: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()


def find_head(path: Path) -> FoundHead:
    """The head of this file. Without a record of ViRB's the config's name is what follows the first ``-`` of the folder (as in 2021)."""
    record: Any = {}
    if (path.parent / RESULTS).exists():
        try:
            record = read_json(path.parent / RESULTS)
        except (OSError, ViRBError):
            record = {}
    if isinstance(record, dict) and record.get("kind") == "training_config":
        return FoundHead(
            path, record["encoder"], record["label"], record["config"], record["key"], bool(record["chosen"]), record["settings"],
            tuple(record["seeds"]),
        )  # fmt: skip
    _, _, config = path.parent.name.partition("-")
    name = config if path.name == HEAD and config else path.stem
    return FoundHead(path, config=re.sub(r"[^A-Za-z0-9._@+-]", "_", name).lstrip(".") or "head")


def pattern_of(task: ResolvedTask, encoder: str, out: Path) -> str:
    """The glob for one encoder, absolute. A leading ``out/`` is the folder of the results, wherever ``--out`` puts it."""
    text = str(task.heads_path).replace("%s", glob.escape(encoder))
    first, _, rest = text.partition("/")
    place = Path(out) / rest if first == "out" and rest else Path(text).expanduser()
    return str(place.absolute())


def matching(pattern: str) -> list[Path]:
    """Files that a glob matches, sorted."""
    return sorted(Path(path) for path in glob.glob(pattern) if Path(path).is_file())


def head_sources(task: ResolvedTask, encoder: str, encoder_id: str, trained: Sequence[Any], out: Path) -> list[HeadSource]:
    """The sources of one encoder's score job. ``trained`` are the jobs (``virb.plan.jobs.Job``) of this run that train heads for this
    encoder: what they will write comes before what an earlier run left in its place. NoHead when there is none."""
    if task.heads_path is not None:
        found = _by_pattern(task, pattern_of(task, encoder, out), encoder_id, trained, out)
    else:
        found = [_by_label(task, encoder, encoder_id, trained, out)]
    return found


def _by_label(task: ResolvedTask, encoder: str, encoder_id: str, trained: Sequence[Any], out: Path) -> HeadSource:
    wanted = str(task.heads_from)
    by_default = "heads_from" not in task.places
    asked = [job for job in trained if (_base(job.task.task.id) if by_default else job.label) == wanted]
    jobs = [job for job in asked if _has_heads(job.task.probe)]
    if asked and not jobs and not by_default:
        raise UserError(f"the probe {asked[0].task.probe} of {wanted} trains no head that could be scored")
    if len(jobs) > 1:
        labels = ", ".join(job.label for job in jobs)
        raise UserError(f"several tasks of this run train heads on {wanted} ({labels}); say whose are scored: heads_from: {jobs[0].label}")
    if jobs:
        return _of_job(jobs[0], out)
    record = _stored(out, encoder, encoder_id, wanted, {job.label for job in trained}) if by_default else _record(out, encoder, wanted)
    if record is None:
        known = wanted if wanted == task.task.heads_from else None
        message = (
            f"there is no head of {wanted} for the encoder {encoder} in {out}: run the task {wanted} first, or put it in the same files"
        )
        raise NoHead(message, known)
    return _of_record(record, out, encoder_id)


def _stored(out: Path, encoder: str, encoder_id: str, wanted: str, taken: Collection[str]) -> JobRecord | None:
    """The job of an earlier run that trained heads on the task ``wanted``, whatever its label; none of those that this run writes anew.
    One of this very encoder comes before one of other weights, and the label that is the task's id before others."""
    found = [
        record
        for record in (_record(out, encoder, path.parent.name) for path in job_files(out) if path.parent.parent.name == encoder)
        if record is not None and _base(record.task.id) == wanted and record.task.label not in taken and _may_have_heads(record)
    ]
    found = [record for record in found if record.encoder.id == encoder_id] or found
    found = [record for record in found if _has_its_head(out, record)] or found
    found = [record for record in found if record.task.label == wanted] or found
    if len(found) > 1:
        labels = [record.task.label for record in found]
        message = f"several tasks in {out / encoder} have heads of {wanted} ({', '.join(labels)})"
        raise UserError(f"{message}; say whose are scored: heads_from: {labels[0]}")
    return found[0] if found else None


def _may_have_heads(record: JobRecord) -> bool:
    """Not an eval-only job, nor one of a probe that has no heads."""
    return "heads" not in record.protocol.values and _has_heads(record.task.probe)


def _has_its_head(out: Path, record: JobRecord) -> bool:
    """Whether the chosen head was kept and is still there."""
    return record.chosen is not None and (config_folder(out, record.encoder.name, record.task.label, record.chosen) / HEAD).exists()


def _has_heads(probe: str) -> bool:
    try:
        return has_heads(get_probe(probe))
    except ViRBError:  # of an earlier run: the user's own code is no longer there
        return True


def _by_pattern(task: ResolvedTask, pattern: str, encoder_id: str, trained: Sequence[Any], out: Path) -> list[HeadSource]:
    found: dict[str, HeadSource] = {}
    kept_out: list[str] = []
    trained = [job for job in trained if _has_heads(job.task.probe)]
    for job in trained:
        places = (config_folder(out, job.encoder, job.label, config).absolute() / HEAD for config in job.task.configs)
        if any(PurePath(place).match(pattern) for place in places):
            found[job.id] = _of_job(job, out, pattern)
    ours = {(job.encoder, job.label) for job in trained}
    for path in matching(pattern):
        head = find_head(path)
        if not head.label:
            found[str(path)] = _of_file(path, task)
            continue
        store = path.parent.parent.parent
        if (head.encoder, head.label) in ours and store == out.absolute():
            continue  # this run's own, or older than what it is going to write
        record = _record(store, head.encoder, head.label)
        if record is None or record.key != head.key:
            folder = job_folder(store, head.encoder, head.label)
            raise UserError(f"{path}: the record of its training in {folder} is missing or of another run")
        found.setdefault(f"{head.encoder}/{head.label}", _of_record(record, store, encoder_id, pattern))
    wanted = task.task.heads_from
    for name, source in list(found.items()):
        if wanted is not None and source.task_id and _base(source.task_id) != wanted:
            kept_out.append(f"{source.label} ({source.task_id})")
            del found[name]
    if not found:
        others = f" (those of {', '.join(kept_out)} are of other tasks)" if kept_out else ""
        what = wanted or "the task that trains them"
        raise NoHead(f"no head matches {pattern}{others}: run {what} first, or put it in the same files", wanted)
    return list(found.values())


def _base(task_id: str) -> str:
    return task_id.partition("@")[0]


def _record(out: Path, encoder: str, label: str) -> JobRecord | None:
    """The record of a finished job, read once as long as it stays the same."""
    try:
        now = (job_folder(out, encoder, label) / JOB).stat()
    except OSError:
        return None
    return _read(out, encoder, label, (now.st_mtime_ns, now.st_size, now.st_ino))


@lru_cache(maxsize=1024)
def _read(out: Path, encoder: str, label: str, stamp: tuple[int, ...]) -> JobRecord | None:
    try:
        record = read_job(out, encoder, label)
    except ViRBError:
        return None
    return record if record is not None and record.status == "done" else None


def _of_job(job: Any, out: Path, pattern: str | None = None) -> HeadSource:
    return HeadSource(
        key=job.key,
        out=out,
        encoder=job.encoder,
        label=job.label,
        pattern=pattern,
        task_id=job.task.task.id,
        probe=job.task.probe,
        protocol=job.task.protocol,
        selection=job.task.selection,
        changed=dict(job.task.changed),
        request=job.request,
        geometry=job.geometry,
        classes=job.classes,
    )


def _of_record(record: JobRecord, out: Path, encoder_id: str, pattern: str | None = None) -> HeadSource:
    name, label = record.encoder.name, record.task.label
    if record.encoder.id != encoder_id:
        raise UserError(f"the heads of {label} in {out / name} were trained on other weights than this encoder has; run {label} again")
    if not pattern and not _has_its_head(out, record):
        raise UserError(
            f"{label} of {name} in {out} has no head: its probe trains none, or it ran with --keep_heads none (run it again with --force)"
        )
    return HeadSource(
        key=record.key,
        out=out,
        encoder=name,
        label=label,
        pattern=pattern,
        task_id=record.task.id,
        probe=record.task.probe,
        protocol=record.protocol.name,
        selection=record.selection,
        changed=dict(record.protocol.changed),
        request=record.task.features[0],
        geometry=_geometry(record.protocol.values["geometry"].value),
        classes=None if record.task.classes is None else tuple(record.task.classes),
    )


def _of_file(path: Path, task: ResolvedTask) -> HeadSource:
    layout = layout_of(path, task.features, task.head_layout)  # type: ignore[arg-type]
    head = read_head(path, task.features, layout)
    n_outputs = head_shape(head).n_outputs
    classes = None
    if task.task.head_classes is not None:
        known: Callable[[], Sequence[str]] = import_attribute(task.task.head_classes, "list of classes")
        classes = tuple(known())
        if len(classes) != n_outputs:
            raise UserError(f"the head {path} has {n_outputs} outputs, but {task.task.heads_from} has {len(classes)} classes")
    elif task.class_map:
        raise UserError(f"class_map: nothing says what the {n_outputs} outputs of {path} are called")
    return HeadSource(key=file_hash(path), file=path, classes=classes, layout=layout)


def _geometry(record: Mapping[str, Any]) -> Geometry:
    size, view = record["size"], record["view"]
    return Geometry(**{**record, "size": None if size is None else tuple(size), "view": None if view is None else View(**view)})


def class_columns(task: Task, classes: Sequence[str] | None, source: HeadSource, renamed: Mapping[str, str]) -> tuple[int, ...] | None:
    """Which outputs of the heads are this task's classes, in its order; None where nothing says what they are called.

    UserError when a class of the task is not among those of the heads.
    """
    if classes is None or source.classes is None:
        return None
    unknown = sorted(set(renamed) - set(classes)) or sorted(set(renamed.values()) - set(source.classes))
    if unknown:
        raise UserError(f"class_map: {unknown[0]!r} is a class neither of {task.id} nor of the heads of {source}")
    number = {name: column for column, name in enumerate(source.classes)}
    names = [renamed.get(name, name) for name in classes]
    missing = [name for name in names if name not in number]
    if missing:
        some = ", ".join(map(repr, missing[:_FIRST])) + (f" and {len(missing) - _FIRST} more" if len(missing) > _FIRST else "")
        raise UserError(f"the heads of {source} know {len(number)} classes, but not {some} of {task.id}; class_map says which is which")
    return tuple(number[name] for name in names)


def heads_of(source: HeadSource) -> list[FoundHead]:
    """The files, once they are there. ViRBError when the job has left none, or was run anew in between."""
    if source.file is not None:
        found = find_head(source.file)
        if file_hash(source.file) != source.key:
            raise ViRBError(f"the head {source.file} changed since the run was planned; run the same command again")
        return [found]
    if source.out is None:
        raise ViRBError("a source of heads is a job's or a file")
    record = _record(source.out, source.encoder, source.label)
    if record is None or record.key != source.key or record.chosen is None:
        raise ViRBError(f"the result of {source.job_id} is not the one that was planned; run the same command again")
    if source.pattern is None:
        paths = [config_folder(source.out, source.encoder, source.label, record.chosen) / HEAD]
    else:
        paths = matching(source.pattern)
    heads = [find_head(path) for path in paths if path.is_file()]
    heads = [head for head in heads if (head.encoder, head.label, head.key) == (source.encoder, source.label, source.key)]
    if not heads:
        raise ViRBError(f"{source.job_id} left no head: its probe {source.probe} trains none, or it ran with --keep_heads none")
    return heads
