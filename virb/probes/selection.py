"""How epochs and configs are chosen: the hold-out, and the order of preference. Reported samples take no part in either."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from virb.errors import ViRBError
from virb.functional.randomness import numpy_generator

MIN_PER_CLASS, MAX_PER_CLASS = 1, 50
_ADVICE = "give a validation split or selection: test-last"


def hold_out(
    targets: np.ndarray | Sequence[int] | None,
    units: np.ndarray | Sequence[str],
    seed: int = 0,
    fraction: float = 0.1,
    keep: np.ndarray | Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Samples for fitting and for selection, two ascending int64 index arrays that share no unit and leave out no sample. Units of the
    samples ``keep`` stay in fit.

    ``targets`` are class numbers (N,), or None for targets of any other kind. Per class, 10 % of the samples are held out, at least 1 and
    at most 50, as whole units: drawn in random order as long as they fit into that number. Only where no unit of a class fits is its
    smallest unit taken whole. No class loses its last fit sample: a class that lives in a single unit stays in fit altogether. Without
    classes, 10 % of the units are held out.
    """
    unit_of, members = _units(units)
    if len(members) < 2:
        raise ViRBError(f"nothing can be held out for selection: all samples are of one unit; {_ADVICE}")
    free = np.ones(len(members), dtype=bool)
    free[unit_of[np.asarray(keep, dtype=np.int64)]] = False
    if not free.any():
        raise ViRBError(f"nothing can be held out for selection: all samples are needed to fit; {_ADVICE}")
    if targets is None:
        count = max(1, _round(fraction * len(members)))
        order = numpy_generator(seed, "holdout").permutation(len(members))
        held = order[free[order]][:count]
    else:
        held = _stratified(np.asarray(targets), unit_of, members, free, seed, fraction)
        if not len(held):
            raise ViRBError(f"nothing can be held out for selection: every class has its samples in a single unit; {_ADVICE}")
    taken = np.zeros(len(members), dtype=bool)
    taken[held] = True
    selected = taken[unit_of]
    return np.flatnonzero(~selected), np.flatnonzero(selected)


def _units(units: np.ndarray | Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Unit number of each sample, in order of appearance, and the samples of each unit."""
    _, first, inverse = np.unique(np.asarray(units), return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    unit_of = rank[inverse.reshape(-1)]
    order = np.argsort(unit_of, kind="stable")
    return unit_of, np.split(order, np.cumsum(np.bincount(unit_of))[:-1]) if len(order) else []


def _stratified(
    targets: np.ndarray, unit_of: np.ndarray, members: list[np.ndarray], free: np.ndarray, seed: int, fraction: float
) -> np.ndarray:
    classes, class_of = np.unique(targets, return_inverse=True)
    class_of = class_of.reshape(-1)
    size = np.bincount(class_of, minlength=len(classes))
    quota = np.clip([_round(fraction * n) for n in size], MIN_PER_CLASS, MAX_PER_CLASS)
    held_of_class = np.zeros(len(classes), dtype=np.int64)
    held: set[int] = set()
    by_class = np.argsort(class_of, kind="stable")
    units_of_class = [np.unique(unit_of[samples]) for samples in np.split(by_class, np.cumsum(size)[:-1])]
    for c, units_here in enumerate(units_of_class):
        candidates = units_here[numpy_generator(seed, "holdout", int(classes[c])).permutation(len(units_here))]
        spare: list[tuple[int, int]] = []  # (size, place in the random order) of units too big for the quota
        for place, unit in enumerate(candidates.tolist()):
            if held_of_class[c] >= quota[c]:
                break
            if unit in held or not free[unit]:
                continue
            inside, count = np.unique(class_of[members[unit]], return_counts=True)
            if (held_of_class[inside] + count >= size[inside]).any():
                continue  # some class would have nothing left to learn from
            if (held_of_class[inside] + count > quota[inside]).any():
                spare.append((len(members[unit]), place))
                continue
            held.add(unit)
            held_of_class[inside] += count
        if held_of_class[c] == 0 and spare:
            unit = int(candidates[min(spare)[1]])
            held.add(unit)
            inside, count = np.unique(class_of[members[unit]], return_counts=True)
            held_of_class[inside] += count
    return np.array(sorted(held), dtype=np.int64)


def _round(x: float) -> int:
    return math.floor(x + 0.5)


@dataclass(frozen=True)
class Candidate:
    """What a choice looks at: one epoch of a config, or one config (then ``metric`` and the others are means over the seeds)."""

    name: str
    metric: float | None
    loss: float | None
    epoch: float
    diverged: bool = False


def preference(metric: float | None, loss: float | None, epoch: float, higher_is_better: bool) -> tuple[float, float, float]:
    """Sort key, smallest first: best metric, then lower loss, then earlier epoch. What cannot be compared comes last."""
    score = math.inf if metric is None or math.isnan(metric) else (-metric if higher_is_better else metric)
    return score, math.inf if loss is None or math.isnan(loss) else loss, epoch


def choose(candidates: Iterable[Candidate], higher_is_better: bool) -> Candidate:
    """The preferred one that has not diverged; full ties go to the first in file order. ViRBError when all have diverged."""
    pool = list(candidates)
    alive = [c for c in pool if not c.diverged]
    if not alive:
        names = ", ".join(dict.fromkeys(c.name for c in pool))
        raise ViRBError(f"every training config diverged ({names}): try lower learning rates")
    return min(alive, key=lambda c: preference(c.metric, c.loss, c.epoch, higher_is_better))  # min keeps the first of equals


def over_seeds(name: str, records: Sequence[Mapping[str, float] | None], metric: str, loss: str) -> Candidate:
    """A config's mean over its seeds; None stands for a seed in which it diverged, and rules it out."""
    if any(record is None for record in records):
        return Candidate(name, None, None, math.inf, diverged=True)
    kept = [record for record in records if record is not None]
    mean_metric, mean_loss, mean_epoch = (sum(r.get(key, math.nan) for r in kept) / len(kept) for key in (metric, loss, "epoch"))
    return Candidate(name, mean_metric, mean_loss, mean_epoch)
