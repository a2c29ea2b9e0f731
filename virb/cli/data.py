"""``virb data``: what tasks need on disk, and bringing it there: list, prepare, verify, download, pack."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from virb.cli.console import columns, note, say
from virb.errors import UserError

_LINE_EVERY = 15.0  # seconds between progress lines without a terminal
_DRAW_EVERY = 0.2


def data(options: argparse.Namespace) -> int:
    return {"list": _list, "prepare": _prepare, "verify": _verify, "download": _download, "pack": _pack}[options.action](options)


def _root(options: argparse.Namespace, must_exist: bool = False) -> Path:
    from virb.runner.settings import DATA_ROOT

    root: Path = (options.data_root or DATA_ROOT).expanduser()
    if root.exists() and not root.is_dir():
        raise UserError(f"--data_root {root} is a file, not a folder")
    if must_exist and not root.exists():
        raise UserError(f"--data_root {root} does not exist")
    return root


def _tasks_of() -> dict[str, list[str]]:
    """Dataset -> ids of the tasks that use it, in the catalogue's order; datasets with public facts but no task, too."""
    from virb.data.datasets.facts import FACTS
    from virb.tasks.base import all_tasks

    found: dict[str, list[str]] = {name: [] for name in FACTS}
    for task in all_tasks().values():
        found.setdefault(task.dataset, []).append(task.id)
    return found


def dataset_of(name: str) -> str:
    """The dataset of a task id, or a dataset's own name, in capitals or not; UserError with the nearest one."""
    known: dict[str, str] = {}
    for dataset, ids in _tasks_of().items():
        known |= {dataset.casefold(): dataset, **{task_id.casefold(): dataset for task_id in ids}}
    if name.casefold() in known:
        return known[name.casefold()]
    spelled = sorted({*_tasks_of(), *(i for ids in _tasks_of().values() for i in ids)}, key=str.casefold)
    near = get_close_matches(name, spelled, n=1)
    raise UserError(f"no task or dataset {name!r}; " + (f"did you mean {near[0]}?" if near else "virb data list shows what there is"))


def _is_available(dataset: str) -> bool:
    """Whether a task that uses the dataset is built, or none does."""
    from virb.tasks.base import all_tasks

    users = [task.available for task in all_tasks().values() if task.dataset == dataset]
    return not users or any(users)


def _usable(name: str) -> str:
    """``dataset_of``; UserError for what is known and not built yet."""
    dataset = dataset_of(name)
    if not _is_available(dataset):
        raise UserError(f"{name} is known and not available yet; virb list tasks shows those that are")
    return dataset


def _dataset_or_folder(options: argparse.Namespace) -> tuple[str, Path | None]:
    """The dataset that is named; or else what lies in the folder that is named: a packed dataset, or class folders."""
    from virb.data.packed import INDEX
    from virb.io import read_json

    folder = Path(options.id).expanduser()
    try:
        return _usable(options.id), None
    except UserError:
        if not folder.is_dir():
            raise
    return str(read_json(folder / INDEX).get("dataset")) if (folder / INDEX).is_file() else "folder", folder


def _list(options: argparse.Namespace) -> int:
    wanted = {dataset_of(name) for name in options.ids}
    root = _root(options)
    rows = [(dataset, ids) for dataset, ids in _tasks_of().items() if not wanted or dataset in wanted]
    for line in _details(rows, root) if wanted else _table(rows, root):
        say(line)
    return 0


def _table(rows: list[tuple[str, list[str]]], root: Path) -> Iterator[str]:
    from virb.data.datasets.facts import FACTS
    from virb.tasks.base import all_tasks

    cells = [("tasks", "dataset", f"in {root}", "download", "how", "from", "licence")]
    for dataset, ids in sorted(rows, key=lambda row: (row[1] or [row[0]])[0].casefold()):
        facts = FACTS.get(dataset)
        if facts is not None:
            plain = [task_id for task_id in ids if "@" not in task_id]
            cells.append((", ".join(plain), dataset, _state(dataset, root), facts.size, _how(dataset), facts.source, facts.licence))
    yield from columns(cells, indent="")
    built_in = [task.id for task in all_tasks().values() if task.available and task.dataset not in (*FACTS, "folder")]
    yield f"nothing to get for {', '.join(built_in)}; folder reads your own images"


def _details(rows: list[tuple[str, list[str]]], root: Path) -> Iterator[str]:
    from virb.data.datasets.facts import FACTS
    from virb.data.prepare import places_of, recipes_of

    for dataset, ids in rows:
        facts = FACTS.get(dataset)
        if facts is None:
            yield f"{', '.join(ids)}: {'nothing to get' if _is_available(dataset) else 'not available yet'}"
            continue
        sizes = " · ".join(f"{split} {_count(count)}" for split, count in facts.splits.items()) or f"{facts.total:,} in all"
        table = [
            ("tasks", ", ".join(ids) or "-"),
            ("samples", sizes + (f" · {facts.n_classes:,} classes" if facts.n_classes else "")),
            (f"in {root}", _state(dataset, root)),
            ("looked for in", ", ".join(places_of(dataset))),
            ("download", facts.size),
            ("from", facts.source),
            ("licence", facts.licence),
            ("how", _how(dataset)),
        ]
        for recipe in recipes_of(dataset):
            names = ", ".join(f"{part}{'' if part.needed else ' (optional)'}" for part in recipe.parts)
            table.append(("archives", f"{names} -> {recipe.place}/{f' ({recipe.note})' if recipe.note else ''}"))
        yield dataset
        yield from columns(table)


def _count(count: Any) -> str:
    return " or ".join(f"{n:,}" for n in (count if isinstance(count, tuple) else (count,)))


def _state(dataset: str, root: Path) -> str:
    from virb.data.prepare import state_of

    state, folder = state_of(dataset, root)
    if folder is None:
        return "-"
    where = folder.relative_to(root).as_posix()
    return where if state == "found" else f"{where}: unfinished"


def _how(dataset: str) -> str:
    from virb.data.prepare import recipes_of
    from virb.data.prepare.download import downloadable, lists_only

    fetched = "download" if downloadable(dataset) else "download its lists" if lists_only(dataset) else ""
    ways = [*([fetched] if fetched else []), *(["prepare"] if recipes_of(dataset) else [])]
    return ", ".join(ways) or "by hand"


def _prepare(options: argparse.Namespace) -> int:
    from virb.data.prepare import prepare

    dataset = _usable(options.id)
    meter = _Meter(byte_text)
    try:
        done = prepare(dataset, options.source, _root(options), force=options.force, tell=meter)
    finally:
        meter.close()
    for line in done.lines:
        say(line)
    say(f"{dataset} in {done.folder}: {_splits(done.dataset)}")
    say(f"virb data verify {options.id} looks at every image")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from virb.data.datasets import needs_root
    from virb.data.verify import finding_lines, verify

    dataset, folder = _dataset_or_folder(options)
    workers = options.num_workers
    if workers is not None and workers < 1:
        raise UserError(f"--num_workers {workers} is not at least 1")
    meter = _Meter(lambda n: f"{n:,.0f}", "images")
    try:
        root = folder or _root(options, must_exist=needs_root(dataset))
        report = verify(dataset, root, decode=not options.quick, workers=workers, tell=meter)
    finally:
        meter.close()
    for line in finding_lines(report.findings):
        say(line)
    if report.dataset is not None:
        looked = f"{report.decoded:,} images decoded" if not options.quick else "no image decoded (--quick)"
        say(f"{dataset}: {_splits(report.dataset)} · {looked} · {'ok' if report.ok else 'not ok'}")
    return 0 if report.ok else 1


def _download(options: argparse.Namespace) -> int:
    from virb.data.prepare import recipes_of
    from virb.data.prepare.download import download, downloadable, lists_only

    dataset = _usable(options.id)
    if not (downloadable(dataset) or lists_only(dataset)) and recipes_of(dataset):
        note(f"once you have it: virb data prepare {options.id} --source FOLDER")
    meter = _Meter(byte_text)
    try:
        found = download(dataset, _root(options), say, meter)
    finally:
        meter.close()
    say(f"{dataset}: {_splits(found)}")
    return 0


def _pack(options: argparse.Namespace) -> int:
    from virb.data.datasets import load_dataset
    from virb.data.packed import SHARD_BYTES, pack
    from virb.plan.units import parse_budget

    name, folder = _dataset_or_folder(options)
    root = folder or _root(options)
    if "%" in (options.shard_size or ""):  # of what is free: the same data would give other shards each time
        raise UserError(f"--shard_size {options.shard_size} is a share; write a size (500MB)")
    shard_bytes = parse_budget(options.shard_size, options.out) if options.shard_size else SHARD_BYTES
    if shard_bytes < 1:
        raise UserError(f"--shard_size {options.shard_size} is too small")
    meter = _Meter(lambda n: f"{n:,.0f}", "images")
    warnings: list[str] = []
    try:
        packed = pack(load_dataset(name, root), options.out, shard_bytes=shard_bytes, force=options.force, tell=meter, warn=warnings.append)
    finally:
        meter.close()
    for text in warnings:
        note(text)
    shards = sorted(options.out.glob("*.tar"))
    say(f"{name} in {options.out}: {_splits(packed)} · {len(shards)} shards, {byte_text(sum(path.stat().st_size for path in shards))}")
    say(
        f"to use it: data: {{root: {options.out}}} in the task"
        + ("" if name == "folder" else ", or put it where the dataset is looked for")
    )
    return 0


def _splits(dataset: Any) -> str:
    sizes = " · ".join(f"{split} {len(samples):,}" for split, samples in dataset.samples.items())
    return f"{sizes}{f' · {dataset.note}' if dataset.note else ''}"


class _Meter:
    """Progress on standard error: one line that is drawn over on a terminal, a line now and then elsewhere."""

    def __init__(self, text: Any, unit: str = "") -> None:
        self._text, self._unit = text, unit
        self._terminal = sys.stderr.isatty()
        self._what = ""
        self._began = self._last = time.monotonic()
        self._first = 0
        self._width = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._first = what, now, done
        if done < total and now - self._last < (_DRAW_EVERY if self._terminal else _LINE_EVERY):
            return
        if not self._terminal and now - self._last < _LINE_EVERY:
            return  # what is done at once needs no line
        self._last = now
        line = self._line(done, total, now - self._began)
        if self._terminal:
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}", file=sys.stderr, flush=True)

    def _line(self, done: int, total: int, seconds: float) -> str:
        from virb.runner.progress import clock_text

        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        left = clock_text((total - done) / rate if rate > 0 and seconds > 1 else None)
        share = f"{100 * done / total:.0f} %" if total else ""
        per_second = f"{self._text(rate)}{f' {self._unit}' if self._unit else ''}/s"
        return f"{self._what}   {self._text(done)} / {self._text(total)}   {share}   {per_second}   left about {left}"

    def close(self) -> None:
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)


def byte_text(n_bytes: float) -> str:
    from virb.plan.describe import size_text

    return size_text(n_bytes)
