"""What of the features fits the disk: at once; in rounds, each making room for the next; or not at all, and is encoded while it is read."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from virb.errors import ConfigError, Problem
from virb.features.cache import SLICE_ROWS, FeatureCache
from virb.io import can_write, existing_parent
from virb.plan.describe import many, size_text
from virb.plan.graph import Unit
from virb.plan.jobs import Draft, Entry, Job
from virb.results.store import finished

_MOST_OF_DISK = 0.95  # of what is free: records, and results, lie there too
Missing = Mapping[str, Sequence[tuple[int, int]]]  # entry key -> slices that are still to be made


@dataclass(frozen=True)
class Round:
    """Entries that are on the disk together, and the jobs that need them: when all of these are over, the entries go."""

    keys: tuple[str, ...]
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Allotment:
    entries: dict[str, Entry]  # as given, those that find no room ``streamed``
    rounds: tuple[Round, ...]  # one when all that is made fits at once: then nothing is released
    notes: tuple[str, ...] = ()
    left: int = 0  # bytes of the budget that features leave


def slices_bytes(entry: Entry, slices: Sequence[tuple[int, int]]) -> int:
    return 2 * math.prod(entry.row_shape or (0,)) * sum(stop - start for start, stop in slices)


def slice_memory(entry: Entry) -> float:
    """Bytes that a worker holds of an entry until its slice is written, in float32."""
    return 4.0 * math.prod(entry.row_shape or (0,)) * min(SLICE_ROWS, entry.n_rows)


def allot(
    entries: dict[str, Entry], missing: Missing, jobs: Sequence[Job], budget: int, cache: FeatureCache, text: str, most_held: float
) -> Allotment:
    """``budget``: bytes; ``text``: as the user wrote it. An amount (not a share) counts what was there before the run, and is no more than
    the disk has. What was there stays, but where entries would have to be streamed otherwise: then the jobs of this run's that are there
    come first, and leave their room. ``most_held``: bytes of memory that a slice may take; entries with larger ones are streamed whatever
    the budget."""
    there, free = 0, shutil.disk_usage(existing_parent(cache.folder)).free
    asked = budget
    if not text.strip().endswith("%"):
        there = cache.size() if cache.folder.is_dir() else 0
        budget = min(budget, there + int(_MOST_OF_DISK * free))
    sizes = {key: slices_bytes(entries[key], slices) for key, slices in missing.items() if slices}
    kept: dict[str, Entry] = dict(entries)
    notes: list[str] = []
    large = [key for key in sizes if slice_memory(entries[key]) > most_held]
    for key in large:
        kept[key] = replace(entries[key], streamed=True)
        del sizes[key]
    if large:
        notes.append(
            f"{len(large)} of {len(entries)} feature sets are too large to keep (memory could not hold {SLICE_ROWS} images of them): "
            "they are encoded while heads train"
        )
    if not sizes or (budget > there and sum(sizes.values()) <= budget - there):
        return Allotment(kept, (Round(tuple(sizes), ()),), tuple(notes), budget - there - sum(sizes.values()))
    if budget < asked:
        notes.append(f"the disk of {cache.folder} has {size_text(free)} free: the cache budget is {size_text(budget)} instead of {text}")
        text = size_text(budget)
    packed = _pack(_bundles(sizes, entries, jobs), sizes, {}, budget - there)
    own = {key: entries[key].nbytes - sizes.get(key, 0) for key in missing if key not in large} if there else {}
    own = {key: size for key, size in own.items() if size > 0}
    if packed.streamed and own:
        whole = {key: entries[key].nbytes for key in entries if key in sizes or key in own}
        roomier = _pack(_bundles(whole, entries, jobs), whole, own, budget - there + sum(own.values()))
        if sum(sizes.get(key, 0) for key in roomier.streamed) < sum(sizes[key] for key in packed.streamed):
            packed, there = roomier, there - sum(own.values())
    for key in packed.streamed:
        kept[key] = replace(entries[key], streamed=True)
    if n := len(packed.streamed):
        notes.append(f"{n} of {len(entries)} feature sets do not fit the cache budget ({text}): they are encoded while heads train")
    if len(packed.rounds) > 1:
        notes.append(
            f"{size_text(packed.total)} of features do not fit the cache budget ({text}) at once: they are made in "
            f"{many(len(packed.rounds), 'round')}, and those of a round are removed when its last job is done"
        )
    if there > 0 and (packed.streamed or len(packed.rounds) > 1):
        # What no job of this run waits for does not leave the cache by itself: another run may want it.
        notes.append(
            f"{size_text(there)} of the budget are taken by what {cache.folder} holds already: virb cache prune makes room, "
            "or raise --cache_budget"
        )
    return Allotment(kept, packed.rounds, tuple(notes), packed.left)


def refuse_what_lacks(draft: Draft) -> None:
    """ConfigError for a folder that was named for the cache, cannot be written, and does not hold all that the jobs to be done need."""
    settings, entries = draft.settings, draft.entries
    folder = settings.cache_dir
    if folder is None or settings.no_cache or can_write(folder):
        return
    cache = FeatureCache(folder)
    jobs = [job for job in draft.jobs.values() if settings.force or not finished(settings.out, job.encoder, job.label, job.key)]
    needed = {key for job in jobs for plan in job.roles.values() for key in plan.entries if not entries[key].streamed}
    missing = sum(bool(cache.missing_slices(key, entries[key].n_rows)) for key in needed)
    if missing:
        what = f"{missing} of the {len(needed)} feature sets that are needed are" if len(needed) > 1 else "the features that are needed are"
        message = f"{folder} cannot be written, and {what} not there; choose a folder you may write to"
        raise ConfigError([Problem("command line", 0, "--cache_dir", message)])


@dataclass(frozen=True)
class _Packed:
    rounds: tuple[Round, ...]
    streamed: tuple[str, ...]  # what finds no room
    total: int  # bytes of all rounds
    left: int  # bytes that are free when most is taken


def _pack(bundles: Sequence[tuple[set[str], list[str]]], sizes: Mapping[str, int], there: Mapping[str, int], budget: int) -> _Packed:
    """Bundles in rounds within so many bytes. ``there``: bytes of entries that are on the disk from the start, until their round is over;
    the bundles that have most of theirs come first."""
    packed: list[tuple[list[str], list[str], int]] = []  # keys, jobs, bytes
    streamed: list[str] = []
    waiting, most, total = sum(there.values()), 0, 0  # of later rounds; at once; of all rounds
    for keys, members in sorted(bundles, key=lambda bundle: _share_to_make(bundle[0], sizes, there)):
        before = sum(there.get(key, 0) for key in keys)
        fitting, size = _smallest(keys, sizes, there, budget - (waiting - before))
        streamed += [key for key in sizes if key in keys - fitting]
        stays = sum(there.get(key, 0) for key in keys - fitting)  # slices of an entry that is streamed: nobody takes them away
        waiting -= before - stays
        if not fitting:
            continue
        if not packed or packed[-1][2] + size + waiting > budget:
            packed.append(([], [], 0))
        last = packed[-1]
        packed[-1] = ([*last[0], *(key for key in sizes if key in fitting)], [*last[1], *members], last[2] + size)
        most, total = max(most, packed[-1][2] + waiting), total + size
    return _Packed(tuple(Round(tuple(keys), tuple(jobs)) for keys, jobs, _ in packed), tuple(streamed), total, budget - most)


def _share_to_make(keys: set[str], sizes: Mapping[str, int], there: Mapping[str, int]) -> float:
    whole = sum(sizes[key] for key in keys)
    return 1.0 - sum(there.get(key, 0) for key in keys) / whole if whole else 0.0


def _smallest(keys: set[str], sizes: Mapping[str, int], there: Mapping[str, int], budget: int) -> tuple[set[str], int]:
    """Those that are there, then as many as fit, the smallest first, since they save as much each; and their size."""
    fitting, size = set[str](), 0
    whole = {key for key in keys if 0 < sizes[key] <= there.get(key, 0)}
    for key in sorted(keys, key=lambda key: (key not in whole, sizes[key], key)):
        if key in whole or (budget > 0 and size + sizes[key] <= budget):
            fitting.add(key)
            size += sizes[key]
    return fitting, size


def _bundles(sizes: Mapping[str, int], entries: Mapping[str, Entry], jobs: Sequence[Job]) -> list[tuple[set[str], list[str]]]:
    """Jobs that have to be in one round: they share entries to make, or one scores the heads of the other. Bundles on the same images
    stand side by side, so that their encoders share a pass."""
    found: list[tuple[set[str], list[str]]] = []
    for job in jobs:
        needs = {key for plan in job.roles.values() for key in plan.entries if key in sizes}
        names = {job.id, *(source.job_id for source in job.heads if source.job_id)}
        joined = [bundle for bundle in found if bundle[0] & needs or names & set(bundle[1])]
        keys = needs.union(*(bundle[0] for bundle in joined))
        members = [*(name for bundle in joined for name in bundle[1]), job.id]
        found = [bundle for bundle in found if bundle not in joined] + [(keys, members)]
    lists = {list_id: place for place, list_id in enumerate(dict.fromkeys(entry.list_id for entry in entries.values()))}
    order = {job.id: place for place, job in enumerate(jobs)}
    with_keys = [(keys, sorted(members, key=order.__getitem__)) for keys, members in found if keys]
    return sorted(with_keys, key=lambda bundle: (sorted({lists[entries[key].list_id] for key in bundle[0]}), order[bundle[1][0]]))


def release_unit(number: int, here: Round) -> Unit:
    """Takes a round's entries off the disk when its jobs are over, done or failed."""
    return Unit(
        kind="release",
        key=f"release {number}",
        title=f"removing {many(len(here.keys), 'feature set')}",
        inputs=(),
        outputs=(),
        cost=0.0,
        payload=here.keys,
        after=tuple(f"job {name}" for name in here.jobs),
    )
