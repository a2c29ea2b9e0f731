"""Names that become folders: what they may consist of, and which of them would meet in one folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from virb.config.check import describe
from virb.config.tree import Report, Where
from virb.errors import Problem

NAME = re.compile(r"[A-Za-z0-9._@+-]+")
_TAKEN = frozenset({"runs", "results.csv", "report.html"})  # of the results store, beside the encoders' folders


def check_name(name: str, where: Where, report: Report, *, taken: frozenset[str] = frozenset()) -> bool:
    """True when ``name`` can be a folder; its mistake goes to ``report``."""
    if not NAME.fullmatch(name):
        report.add(where, f"the name {describe(name)} may only have letters, digits and . _ @ + -")
    elif name.startswith("."):
        report.add(where, f"the name {describe(name)} may not start with a dot")
    elif name.casefold() in taken:
        report.add(where, f"the name {describe(name)} is taken by the results store")
    else:
        return True
    return False


def check_encoder_name(name: str, where: Where, report: Report) -> bool:
    """The same for encoders, whose folders lie beside the store's own files."""
    return check_name(name, where, report, taken=_TAKEN)


class UniqueNames:
    """Names over all files; the second of two that are equal (or differ in case only, one folder on some disks) is a problem."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, Where]] = {}

    def add(self, name: str, where: Where, report: Report) -> None:
        first = self._first.setdefault(name.casefold(), (name, where))
        if first[1] is where:
            return
        if first[0] == name:
            report.add(where, f"{'' if where.key == name else f'{name} is '}given twice; first in {first[1]}")  # a glob gives other names
        else:
            report.add(where, f"{name} and {first[0]} ({first[1]}) differ in case only and would share one folder on some disks")


def path_collisions(tasks: Iterable[tuple[str, Sequence[str], Where]]) -> tuple[Problem, ...]:
    """Problems for (label, names of training configs, place) whose results would share a folder.

    A job writes to ``<label>`` and each of its configs to ``<label>-<config>``. For the planner too, once it knows the configs that a
    protocol or a task brings.
    """
    report = Report()
    owners: dict[str, tuple[str, str | None, Where]] = {}
    for label, configs, where in tasks:
        for config in (None, *configs):
            folder = label if config is None else f"{label}-{config}"
            owner = owners.setdefault(folder.casefold(), (label, config, where))
            twice = owner[0].casefold() == label.casefold() and (owner[0], owner[2]) != (label, where)  # UniqueNames reports that
            if twice or owner == (label, config, where):
                continue
            report.add(where, f"{_called(label, config)} and {_called(*owner[:2])} ({owner[2]}) would share the folder {folder}")
    return tuple(report)


def _called(label: str, config: str | None) -> str:
    return f"the task {label}" if config is None else f"{label}'s training config {config}"
