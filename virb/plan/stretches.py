"""Slices that follow each other become one unit of work: a worker decodes the first images of a slice while it encodes the last of the one
before, and writes that meanwhile. The plan is made slice by slice; this is its last step. Slices stay what is written and found again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from virb.plan.graph import Unit

# Slices of a unit: some hundred batches on CPUs and some dozens on a GPU, beside which the first and the last are little.
MOST = {"cpu": 8, "cuda": 32}


def join_slices(units: Iterable[Unit], n_devices: int, kind: str) -> list[Unit]:
    """The same work, in the same order. Several devices share a list: its units become shorter towards its end, so that none waits long."""
    joined: list[Unit] = []
    name: dict[str, str] = {}  # of the unit that does what the unit of this key did
    for run in _runs(units):
        while run:
            length = max(1, min(MOST[kind], len(run) if n_devices == 1 else len(run) // (2 * n_devices)))
            here, run = run[:length], run[length:]
            name.update((unit.key, here[0].key) for unit in here)
            joined.append(_one(here))
    return [replace(unit, after=tuple(dict.fromkeys(name.get(key, key) for key in unit.after))) for unit in joined]


def _runs(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Units that one worker may do in a row: passes over neighbouring slices, for the same entries and with the same pixels kept."""
    run: list[Unit] = []
    for unit in units:
        if run and not _follows(run[-1], unit):
            yield run
            run = []
        run.append(unit)
    if run:
        yield run


def _follows(before: Unit, unit: Unit) -> bool:
    if before.kind != "pass" or unit.kind != "pass":
        return False
    one, other = before.payload, unit.payload
    return (one.list_id, one.stop, one.wanted, one.keep) == (other.list_id, other.start, other.wanted, other.keep)


def _one(units: list[Unit]) -> Unit:
    first = units[0]
    return replace(
        first,
        cost=sum(unit.cost for unit in units),
        payload=first.payload if len(units) == 1 else replace(first.payload, stop=units[-1].payload.stop),
        after=tuple(key for unit in units for key in unit.after),
    )
