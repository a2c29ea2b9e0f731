"""``virb cache``: the features that runs left on disk: list, size, prune, verify."""

from __future__ import annotations

import argparse
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from virb.cli.console import columns, say, stdout
from virb.errors import ConfigError, Problem, UserError

if TYPE_CHECKING:
    from virb.features.cache import FeatureCache
    from virb.features.inventory import StoredEntry
    from virb.runner.recheck import Finding

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MARK = {"same": "same", "close": "close", "differs": "DIFFERS", "damaged": "DAMAGED", "read": "read", "unusable": "UNUSABLE"}


def cache(options: argparse.Namespace) -> int:
    return {"list": _list, "size": _size, "prune": _prune, "verify": _verify}[options.action](options)


def _folder(options: argparse.Namespace) -> FeatureCache:
    from virb.features.cache import FeatureCache
    from virb.plan.jobs import RunSettings
    from virb.plan.units import cache_folder
    from virb.runner.settings import DATA_ROOT

    given = RunSettings(out=options.out, data_root=options.data_root or DATA_ROOT, cache_dir=options.cache_dir)
    folder = cache_folder(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no cache in {folder}; --cache_dir says where it is")
    return FeatureCache(folder)


def parse_age(text: str) -> float:
    """``90s``, ``12h``, ``30d``, ``8w`` -> seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?) *([smhdw])", text.strip().lower())
    if match is None:
        raise UserError(f"--older_than {text!r} is no time: write a number with s, m, h, d or w, such as 30d")
    return float(match[1]) * _SECONDS[match[2]]


def _chosen(found: Sequence[StoredEntry], options: argparse.Namespace) -> list[StoredEntry]:
    patterns = [part for text in options.encoder for part in text.split(",") if part]
    chosen = [entry for entry in found if not patterns or any(entry.made_by(pattern) for pattern in patterns)]
    if options.older_than is not None:
        limit = time.time() - parse_age(options.older_than)
        chosen = [entry for entry in chosen if entry.used <= limit]
    return chosen


def _lines(entries: Sequence[StoredEntry], notes: Sequence[str]) -> Iterator[str]:
    from virb.plan.describe import size_text

    rows = [("encoder", "images", "output", "size", "rows", "last used", "key", "")]
    for entry, note in zip(entries, notes, strict=True):
        part = "" if entry.slices == entry.expected else f"{entry.slices} of {entry.expected} slices"
        said = " · ".join(text for text in (part if not entry.problem else "", entry.problem, note) if text)
        size = size_text(entry.nbytes)
        rows.append((entry.encoder, entry.images, entry.output, size, f"{entry.n_rows:,}", _ago(entry.used), entry.key[:12], said))
    yield from columns(rows, indent="")


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def _list(options: argparse.Namespace) -> int:
    from virb.features.inventory import stored_entries
    from virb.features.uses import entries_in_use

    held = _folder(options)
    chosen = _chosen(stored_entries(held), options)
    in_use = entries_in_use(held)
    for line in _lines(chosen, ["in use" if in_use(entry.key) else "" for entry in chosen]):
        say(line)
    say(_total(chosen, held))
    return 0


def _total(entries: Sequence[StoredEntry], held: FeatureCache) -> str:
    from virb.plan.describe import many, size_text

    number = f"{len(entries):,} entr{'y' if len(entries) == 1 else 'ies'}"
    encoders = many(len({entry.encoder for entry in entries if entry.is_of_encoder}), "encoder")
    return f"{number} of {encoders}, {size_text(sum(entry.nbytes for entry in entries))} in {held.folder}"


def _size(options: argparse.Namespace) -> int:
    import shutil

    from virb.features.inventory import stored_entries
    from virb.plan.describe import size_text

    held = _folder(options)
    found = stored_entries(held)
    by_encoder: dict[str, list[StoredEntry]] = defaultdict(list)
    for entry in found:
        by_encoder[entry.encoder].append(entry)
    sizes = {name: sum(entry.nbytes for entry in entries) for name, entries in by_encoder.items()}
    rows = [(name, f"{len(by_encoder[name]):,}", size_text(size)) for name, size in sorted(sizes.items(), key=lambda item: -item[1])]
    for line in columns([("encoder", "entries", "size"), *rows], indent=""):
        say(line)
    say(f"{_total(found, held)}; {size_text(shutil.disk_usage(held.folder).free)} free on its disk")
    return 0


def _prune(options: argparse.Namespace) -> int:
    from virb.features.inventory import beyond, damaged_slices, stored_entries
    from virb.features.uses import entries_in_use, remove_entries, tidy
    from virb.plan.describe import size_text
    from virb.plan.units import parse_budget

    held = _folder(options)
    if not (options.encoder or options.older_than or options.to or options.unreadable):
        raise UserError("what may go? --older_than 30d, --to 200GB, --encoder GLOB or --unreadable (several: what fits all of them)")
    if options.to is not None and "%" in options.to:
        raise UserError(f"--to {options.to} is no size: write 200GB, or 0")
    found = stored_entries(held)
    chosen = _chosen(found, options)
    if options.unreadable:
        chosen = [entry for entry in chosen if entry.problem or damaged_slices(held, entry)]
    in_use = entries_in_use(held)
    kept = [entry for entry in chosen if in_use(entry.key)]
    chosen = [entry for entry in chosen if not in_use(entry.key)]
    if options.to is not None:
        others = sum(entry.nbytes for entry in found) - sum(entry.nbytes for entry in chosen)
        chosen = list(beyond(chosen, parse_budget(options.to, held.folder) - others))
    if chosen:
        for line in _lines(chosen, [""] * len(chosen)):
            say(line)
    if kept:
        say(f"{_total(kept, held)} would fit too, but a run uses them: they stay")
    if not chosen:
        say("nothing to remove")
    elif options.yes:
        gone = set(remove_entries(held, [entry.key for entry in chosen]))
        tidy(held)
        say(f"removed {_total([entry for entry in chosen if entry.key in gone], held)}")
        if len(gone) < len(chosen):
            say(f"{len(chosen) - len(gone)} stay: a run has begun to use them, or they may not be removed by you")
    else:
        size = size_text(sum(entry.nbytes for entry in chosen))
        say(f"nothing was removed; with --yes these {len(chosen):,} go, and {size} are free")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from virb.cli.run import make_draft
    from virb.features.inventory import stored_entries
    from virb.plan.jobs import Draft
    from virb.runner.recheck import recheck

    console = stdout()
    held = _folder(options)
    if options.rows < 1:
        raise UserError(f"--rows {options.rows} is not at least 1")
    draft: Draft | None = None
    if options.experiment_list or options.name or options.task_configs:
        if not options.task_configs:
            raise ConfigError([Problem("command line", 0, "--task_configs", "is missing: which images? (as for the run that made them)")])
        draft, _ = make_draft(options, console)
    counts: dict[str, int] = defaultdict(int)
    rows: list[Finding] = []
    for found in recheck(held, stored_entries(held), draft, options.rows):
        counts[found.state] += 1
        if found.state != "read":
            rows.append(found)
    if rows:
        cells = [(_MARK[f.state], f.entry.encoder, f.entry.images, f.entry.output, f.entry.key[:12], f.text) for f in rows]
        for line in columns(cells, indent=""):
            say(line, console)
    wrong = sum(counts[state] for state in ("differs", "damaged", "unusable"))
    said = [f"{counts[state]:,} {text}" for state, text in _WORDS.items() if counts[state]]
    say(f"{held.folder}: {', '.join(said) or 'no entry'} · {'not ok' if wrong else 'ok'}", console)
    if wrong:
        say("virb cache prune --unreadable removes what is damaged; what differs is removed by --encoder", console)
    return 1 if wrong else 0


_WORDS = {
    "same": "encoded again to the same bits",
    "close": "to the same but for rounding",
    "differs": "to something else",
    "damaged": "damaged",
    "unusable": "unusable",
    "read": "not encoded again, checksums right",
}
