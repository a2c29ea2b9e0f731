"""Which decoded images are kept: for heads that train while features are encoded, and for passes over images that another pass decoded.

A store is worth its disk where images would be decoded again and again; it has what the features of the run leave of the cache budget.
The first pass over a slice writes it on its way, or a unit that does nothing else. Nobody needs a store: where a slice of it is missing,
images are decoded, and so what is planned here changes no number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from virb.data.transforms import Geometry
from virb.features.cache import FeatureCache, slice_bounds
from virb.features.decoded import can_keep, pixel_record
from virb.plan.describe import many, size_text
from virb.plan.graph import Unit
from virb.plan.jobs import Draft, Entry, Job, PassWork, PixelStore, RolePlan
from virb.probes.base import FIT, SELECT, by_epochs
from virb.tasks.resolve import get_probe

_WRITE_RATE, _READ_RATE = 5e8, 2e9  # bytes/s: modest ones, so that a store pays where the plan says so
_DECODE_SECONDS = 2e-3  # of an image that nobody has timed: those of probes that run the encoder themselves
_ITERATIONS = 100  # of L-BFGS: what it takes more often than not
_SEARCHES = 3  # of probes that are trained by no steps: to choose by, and to report
_HELD_OUT = 0.1  # share of the training samples that are held out for selection
Place = tuple[str, Geometry]  # image list id, geometry


@dataclass
class _Wish:
    """Who would read a store: seconds of decoding that it saves, images read from it, and the jobs that stream."""

    saves: float = 0.0
    reads: float = 0.0
    jobs: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Stores:
    """The units with what they read and write, and the stores of the run by image list and geometry."""

    units: list[Unit]
    places: dict[str, dict[Geometry, PixelStore]] = field(default_factory=dict)
    after: dict[str, tuple[str, ...]] = field(default_factory=dict)  # job id -> units that write what it reads
    saved: dict[str, float] = field(default_factory=dict)  # job id -> seconds that it does not decode
    rows: int = 0  # that all passes together decode
    rows_of_streams: int = 0  # that jobs decode while heads train, about
    notes: tuple[str, ...] = ()


def possible_stores(draft: Draft) -> dict[str, Place]:
    """By key, what a run of this draft may read or keep."""
    seen = {(entry.list_id, entry.wanted.geometry) for entry in draft.entries.values()}
    seen |= {(plan.list_id, job.geometry) for job in draft.jobs.values() for plan in job.roles.values()}
    return {pixel_record(list_id, geometry).key: (list_id, geometry) for list_id, geometry in seen if can_keep(geometry)}


def plan_stores(
    passes: Sequence[Unit],
    entries: Mapping[str, Entry],
    jobs: Sequence[Job],
    lengths: Mapping[str, int],
    left: int,
    cache: FeatureCache,
    ignore_cached: bool = False,
) -> Stores:
    """``passes``: the units so far, releases among them; ``lengths``: image list id -> images; ``left``: bytes of the budget that features
    leave. ``ignore_cached``: nothing that lies in the cache already counts."""
    streams = _stream_wishes(jobs, entries)
    again = _split_wishes(passes, entries)
    places: dict[Place, PixelStore] = {}
    for list_id, geometry in sorted({*streams, *again, *_seen(passes)}, key=lambda place: pixel_record(*place).key):
        n_rows, record = lengths[list_id], pixel_record(list_id, geometry)
        missing = slice_bounds(n_rows) if ignore_cached else cache.missing_slices(record.key, n_rows)
        places[list_id, geometry] = PixelStore(record, list_id, geometry, n_rows, tuple(missing))
    chosen, notes = _choose(places, streams, again, passes, left)
    there = {place: store for place, store in places.items() if place in chosen or len(store.missing) < len(slice_bounds(store.n_rows))}
    units, writers, rows = _with_stores(passes, there, chosen, entries, streams)
    only_passes = [there[place] for place in chosen if place not in streams]
    if only_passes:
        units.append(_release(only_passes, units))
    by_list: dict[str, dict[Geometry, PixelStore]] = defaultdict(dict)
    for (list_id, geometry), store in there.items():
        by_list[list_id][geometry] = store
    after: dict[str, tuple[str, ...]] = defaultdict(tuple)
    saved: dict[str, float] = defaultdict(float)
    for place in there:
        for job_id in sorted(streams[place].jobs) if place in streams else ():
            after[job_id] += tuple(writers.get(place, ()))
            saved[job_id] += streams[place].saves / len(streams[place].jobs)
    streamed = sum(reads * _share_to_decode(there.get(place), place in chosen) for _, place, _, reads in _streams(jobs, entries))
    return Stores(units, dict(by_list), dict(after), dict(saved), rows, round(streamed), notes)


def _share_to_decode(store: PixelStore | None, is_kept: bool) -> float:
    """Of what streams read at a place."""
    if store is None or is_kept:
        return float(store is None)
    return sum(stop - start for start, stop in store.missing) / store.n_rows


def _seen(passes: Iterable[Unit]) -> set[Place]:
    """What passes look at and a store may hold: it may be there from an earlier run."""
    return {(u.payload.list_id, w.geometry) for u in passes if u.kind == "pass" for w in u.payload.wanted if can_keep(w.geometry)}


def _streams(jobs: Sequence[Job], entries: Mapping[str, Entry]) -> Iterator[tuple[Job, Place, float, float]]:
    """What jobs read while heads train: the job, the place, seconds of decoding an image, images read in all."""
    for job in jobs:
        for role, plan in job.roles.items():
            used = [entries[key] for key in plan.entries if key in entries and entries[key].streamed]
            seen = {entry.wanted.geometry: entry.decode_seconds for entry in used} if plan.entries else {job.geometry: _DECODE_SECONDS}
            for geometry, seconds in seen.items():
                yield job, (plan.list_id, geometry), seconds, _reads(job, role, plan, geometry, entries) / len(seen)


def _stream_wishes(jobs: Sequence[Job], entries: Mapping[str, Entry]) -> dict[Place, _Wish]:
    wishes: dict[Place, _Wish] = defaultdict(_Wish)
    for job, place, seconds, reads in _streams(jobs, entries):
        if can_keep(place[1]) and reads:
            wish = wishes[place]
            wish.saves, wish.reads = wish.saves + reads * seconds, wish.reads + reads
            wish.jobs.add(job.id)
    return dict(wishes)


def reads_of_fit(job: Job) -> int:
    """How often a job goes over the features it trains on, about: once an epoch, and to score the heads in the end."""
    task = job.task
    if by_epochs(get_probe(task.probe)):
        return (task.num_epochs + 1) * len(task.seeds)
    return _ITERATIONS if task.probe == "logistic" else _SEARCHES


def _reads(job: Job, role: str, plan: RolePlan, geometry: Geometry, entries: Mapping[str, Entry]) -> float:
    """Images of a role that a stream reads in all: those to select by as often as those to train on, the others twice, to predict and for
    the loss."""
    rows = len(plan.samples.row_values)
    epochs = reads_of_fit(job)
    if plan.held_out:  # of fit, which counts them where it sees the same pixels
        fit = {entries[key].wanted.geometry for key in job.roles[FIT].entries if key in entries} or {job.geometry}
        return 0.0 if geometry in fit else _HELD_OUT * rows * epochs
    return float(rows * (epochs if role in (FIT, SELECT) else 2))


def _split_wishes(passes: Sequence[Unit], entries: Mapping[str, Entry]) -> dict[Place, _Wish]:
    """Images that several passes go over, because memory holds the weights of some encoders only, or the disk the features of some."""
    wishes: dict[Place, _Wish] = defaultdict(_Wish)
    begun: set[tuple[str, int]] = set()
    for unit in passes:
        if unit.kind != "pass":
            continue
        work: PassWork = unit.payload
        seconds = {item.geometry: entries[item.key].decode_seconds for item in work.wanted}
        if (work.list_id, work.start) in begun and all(can_keep(geometry) for geometry in seconds):
            for geometry, each in seconds.items():
                wish = wishes[work.list_id, geometry]
                wish.saves += (work.stop - work.start) * each
                wish.reads += work.stop - work.start
        begun.add((work.list_id, work.start))
    return dict(wishes)


def _choose(
    places: Mapping[Place, PixelStore], streams: Mapping[Place, _Wish], again: Mapping[Place, _Wish], passes: Sequence[Unit], left: int
) -> tuple[set[Place], tuple[str, ...]]:
    """The stores that pay, most seconds per byte first, as far as there is room; and what to tell of it."""
    free = {(u.payload.list_id, u.payload.start) for u in passes if u.kind == "pass" and not u.after}
    gains: dict[Place, float] = {}
    for place in {*streams, *again}:
        store, wishes = places[place], [found[place] for found in (streams, again) if place in found]
        reads, saves = sum(wish.reads for wish in wishes), sum(wish.saves for wish in wishes)
        decoding = sum(stop - start for start, stop in store.missing if (place[0], start) not in free) * saves / max(reads, 1.0)
        gains[place] = saves - decoding - store.missing_bytes / _WRITE_RATE - reads * store.row_bytes / _READ_RATE
    chosen: set[Place] = set()
    size = refused = 0
    for place in sorted(gains, key=lambda p: (-gains[p] / max(places[p].missing_bytes, 1), places[p].key)):
        if gains[place] <= 0 or not places[place].missing:
            continue
        if size + places[place].missing_bytes > left:
            refused += places[place].missing_bytes
            continue
        chosen.add(place)
        size += places[place].missing_bytes
    notes = []
    for wish, text in ((streams, "heads that train while features are encoded"), (again, "passes after the first")):
        mine = [places[place] for place in chosen if place in wish and (wish is streams or place not in streams)]
        if mine:
            lists, size_of = many(len({store.list_id for store in mine}), "image list"), sum(store.missing_bytes for store in mine)
            notes.append(f"decoded images of {lists} are kept ({size_text(size_of)}): {text} decode none")
    if refused and left > 0:
        notes.append(f"{size_text(refused)} of decoded images do not fit the cache budget: images are decoded whenever they are read")
    return chosen, tuple(notes)


def _with_stores(
    passes: Sequence[Unit],
    there: Mapping[Place, PixelStore],
    chosen: set[Place],
    entries: Mapping[str, Entry],
    streams: Mapping[Place, _Wish],
) -> tuple[list[Unit], dict[Place, list[str]], int]:
    """The units, those that write stores first where they are new; who writes each store; rows that are decoded."""
    to_write: dict[tuple[str, int, int], set[Geometry]] = defaultdict(set)
    for list_id, geometry in chosen:
        for start, stop in there[list_id, geometry].missing:
            to_write[list_id, start, stop].add(geometry)
    present = {
        (list_id, geometry, start)
        for (list_id, geometry), store in there.items()
        for start, _ in sorted(set(slice_bounds(store.n_rows)) - set(store.missing))
    }
    units: list[Unit] = []
    writers: dict[Place, list[str]] = defaultdict(list)
    writer_of: dict[tuple[str, int, int], str] = {}
    rows = 0

    def note_writer(slice_of: tuple[str, int, int], key: str) -> None:
        writer_of[slice_of] = key
        for geometry in to_write[slice_of]:
            writers[slice_of[0], geometry].append(key)
            present.add((slice_of[0], geometry, slice_of[1]))

    # A pass that waits for the room that others leave cannot write what jobs wait for: those jobs may be what it waits for.
    free = {(u.payload.list_id, u.payload.start, u.payload.stop) for u in passes if u.kind == "pass" and not u.after}
    for slice_of in sorted(to_write.keys() - free, key=lambda s: (s[0], s[1])):
        unit = _decode_unit(slice_of, to_write[slice_of], entries, streams, there)
        units.append(unit)
        note_writer(slice_of, unit.key)
        rows += slice_of[2] - slice_of[1]
    for unit in passes:
        if unit.kind != "pass":
            units.append(unit)
            continue
        work: PassWork = unit.payload
        slice_of = (work.list_id, work.start, work.stop)
        seconds = {item.geometry: entries[item.key].decode_seconds for item in work.wanted}
        if all((work.list_id, geometry, work.start) in present for geometry in seconds):
            unit = replace(unit, cost=max(0.0, unit.cost - (work.stop - work.start) * sum(seconds.values())))
        else:
            rows += work.stop - work.start
        if slice_of in writer_of:
            unit = replace(unit, after=(*unit.after, writer_of[slice_of]))
        elif slice_of in to_write:
            keep = tuple(sorted(to_write[slice_of], key=repr))
            unit = replace(unit, payload=replace(work, keep=keep))
            note_writer(slice_of, unit.key)
        units.append(unit)
    return units, writers, rows


def _decode_unit(
    slice_of: tuple[str, int, int],
    geometries: set[Geometry],
    entries: Mapping[str, Entry],
    streams: Mapping[Place, _Wish],
    there: Mapping[Place, PixelStore],
) -> Unit:
    """Decodes a slice for stores, and nothing else."""
    list_id, start, stop = slice_of
    wishes = [streams[list_id, geometry] for geometry in geometries if (list_id, geometry) in streams]
    seconds = sum(wish.saves / max(wish.reads, 1.0) for wish in wishes)
    n_rows = there[list_id, next(iter(geometries))].n_rows
    return Unit(
        kind="pass",
        key=f"decode {list_id[:12]} {start}",
        title=f"decoding {n_rows:,} images",
        inputs=(),
        outputs=(),
        cost=(stop - start) * seconds,
        payload=PassWork(list_id, start, stop, (), tuple(sorted(geometries, key=repr))),
    )


def _release(stores: Sequence[PixelStore], units: Sequence[Unit]) -> Unit:
    """Takes away what only passes read, when all of them are over."""
    lists = {store.list_id for store in stores}
    return Unit(
        kind="release",
        key="release decoded images",
        title=f"removing decoded images of {many(len(lists), 'image list')}",
        inputs=(),
        outputs=(),
        cost=0.0,
        payload=tuple(store.key for store in stores),
        after=tuple(unit.key for unit in units if unit.kind == "pass" and unit.payload.list_id in lists),
    )
