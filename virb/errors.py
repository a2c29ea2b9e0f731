"""Errors that a person reads: what is wrong, where, what to do. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NO_FILES = {"command line", "<python>"}  # where a problem can be besides files
_LONGEST_MESSAGE = 4000  # characters; some libraries print whole tensors


class ViRBError(Exception):
    """Something went wrong while working; the message is for the user. Exit code 1."""


class UserError(ViRBError):
    """The user's input is wrong (a file, a key, a path); nothing was run. Exit code 2."""


class DiskFull(ViRBError):
    """There is no room for a file; the message names it."""


class BadImage(ViRBError):
    """An image cannot be decoded; the message names it."""


class UnreadImage(BadImage):
    """An image cannot be read now (the disk, a permission, a shard that is cut off). That says nothing of the image: nobody goes on without
    it, and nothing is kept of it, so that it is there as soon as the fault is mended."""


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
        files = {problem.file for problem in self.problems} - _NO_FILES
        count = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}"
        head = f"{count} in {len(files)} file{'s' * (len(files) != 1)}:" if files else f"{count}:"
        places = [f"{p.file}:{p.line}" if p.line else p.file for p in self.problems]
        width = max(map(len, places), default=0)
        keys = max((len(p.key) for p in self.problems), default=0)
        further = "\n" + " " * (width + keys + 6)  # of a message with several lines
        lines = [
            f"  {place:<{width}}  {p.key:<{keys}}  {p.message.replace(chr(10), further)}"
            for place, p in zip(places, self.problems, strict=True)
        ]
        super().__init__("\n".join([head, *lines]))


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """The valid word that ``word`` is probably meant to be; case does not count."""
    by_folded = {name.casefold(): name for name in sorted(valid)}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """``"; did you mean X?"``, to follow what is wrong with ``word``; nothing when no valid word is near."""
    found = nearest(word, valid)
    return f"; did you mean {found}?" if found else ""


def describe(error: BaseException) -> str:
    """One or two lines for people; for errors that are not meant for them, where it happened, and the traceback after that."""
    if isinstance(error, ViRBError):
        return str(error).strip() or type(error).__name__
    last = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    place = f" ({os.path.basename(last.filename)}:{last.lineno})" if last else ""
    message = str(error)
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]} ..."
    trace = "".join(traceback.format_exception(error))
    if len(trace) > 4 * _LONGEST_MESSAGE:
        trace = f"{trace[: 2 * _LONGEST_MESSAGE]}\n...\n{trace[-2 * _LONGEST_MESSAGE :]}"
    return f"{type(error).__name__}: {message}{place}\n{trace}"
