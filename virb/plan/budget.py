"""What of the features fits the disk: at once; in rounds, each making room for the next; or not at all, and is encoded while it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from virb.features.cache import SLICE_ROWS, FeatureCache
from virb.plan.describe import many, size_text
from virb.plan.graph import Unit
from virb.plan.jobs import Entry, Job

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
    """``budget``: bytes; ``text``: as the user wrote it. What was there before the run stays, and an amount (not a share) counts it.
    ``most_held``: bytes of memory that a slice may take; entries with larger ones are streamed whatever the budget."""
    there = cache.size() if not text.strip().endswith("%") and cache.folder.is_dir() else 0
    budget -= there
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
    if budget > 0 and sum(sizes.values()) <= budget:
        return Allotment(kept, (Round(tuple(sizes), ()),), tuple(notes), budget - sum(sizes.values()))
    packed: list[tuple[list[str], list[str], int]] = []  # keys, jobs, bytes
    for keys, members in _bundles(sizes, entries, jobs):
        fitting, size = _smallest(keys, sizes, budget)
        for key in keys - fitting:
            kept[key] = replace(entries[key], streamed=True)
        if not fitting:
            continue
        if not packed or packed[-1][2] + size > budget:
            packed.append(([], [], 0))
        before = packed[-1]
        packed[-1] = ([*before[0], *(key for key in sizes if key in fitting)], [*before[1], *members], before[2] + size)
    rounds = tuple(Round(tuple(keys), tuple(members)) for keys, members, _ in packed)
    if streamed := sum(kept[key].streamed for key in sizes):
        notes.append(f"{streamed} of {len(entries)} feature sets do not fit the cache budget ({text}): they are encoded while heads train")
    if len(rounds) > 1:
        total = sum(size for _, _, size in packed)
        notes.append(
            f"{size_text(total)} of features do not fit the cache budget ({text}) at once: they are made in {many(len(rounds), 'round')}, "
            "and those of a round are removed when its last job is done"
        )
    if there and (streamed or len(rounds) > 1):
        # Nothing that was there before leaves the cache by itself: another run may want it.
        notes.append(
            f"{size_text(there)} of the budget are taken by what {cache.folder} holds already: virb cache prune makes room, "
            "or raise --cache_budget"
        )
    return Allotment(kept, rounds, tuple(notes), budget - max((size for _, _, size in packed), default=0))


def _smallest(keys: set[str], sizes: Mapping[str, int], budget: int) -> tuple[set[str], int]:
    """As many as fit, the smallest first, since they save as much each; and their size."""
    fitting, size = set[str](), 0
    for key in sorted(keys, key=lambda key: (sizes[key], key)):
        if budget > 0 and size + sizes[key] <= budget:
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
