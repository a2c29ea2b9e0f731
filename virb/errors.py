"""Errors that a person reads: what is wrong, where, what to do. The command line prints them without a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ViRBError(Exception):
    """Something went wrong while working; the message is for the user. Exit code 1."""


class UserError(ViRBError):
    """The user's input is wrong (a file, a key, a path); nothing was run. Exit code 2."""


class BadImage(ViRBError):
    """An image cannot be decoded; the message names it."""


class NotAvailableYet(UserError):
    """A key or name that ViRB knows but that is not built yet: never ignored, never guessed."""


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in one file. ``line`` is 1-based, 0 when it concerns the whole file or the command line."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}  {self.key}  {self.message}" if self.key else f"{where}  {self.message}"


class ConfigError(UserError):
    """All problems of the input at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        files = {problem.file for problem in self.problems}
        head = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)} in {len(files)} file{'s' * (len(files) != 1)}:"
        places = [f"{p.file}:{p.line}" if p.line else p.file for p in self.problems]
        width = max(map(len, places), default=0)
        keys = max((len(p.key) for p in self.problems), default=0)
        lines = [f"  {place:<{width}}  {p.key:<{keys}}  {p.message}" for place, p in zip(places, self.problems, strict=True)]
        super().__init__("\n".join([head, *lines]))
