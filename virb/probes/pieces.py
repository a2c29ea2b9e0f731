"""Pieces of one job's work, which several devices can share. Each is found on its own, so that it does not matter who finds which.

A probe that can be shared cuts its work into pieces by sizes alone and asks for them by ``context.pieces.of``. In a whole job that finds
all of them at once. Where the plan shares the job out, the same code runs in each part: it comes to the part's stage, finds the part's
pieces, keeps them in files and goes no further; the job itself, which comes last, reads the files.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from virb.errors import ViRBError
from virb.io import write_atomic

Find = Callable[[list[int]], Iterable[Any]]  # numbers of pieces -> what was found of each, in this order: tensors and plain values


@dataclass(frozen=True)
class Sizes:
    """What a job's work depends on, as far as it is known when the run is planned."""

    n_samples: dict[str, int]  # by role
    width: int  # numbers of a sample's features
    n_images: int  # of a sample
    n_outputs: int
    num_epochs: int
    batch_size: int
    seeds: tuple[int, ...]
    selection: str
    device_kind: str  # cpu | cuda


@dataclass(frozen=True)
class Stage:
    """Work that is done in pieces; the pieces of a stage need those of the stages before. ``flops`` is a rough count."""

    name: str
    flops: float
    pieces: int


@dataclass(frozen=True)
class Part:
    """Every ``count``-th piece of a stage, from piece ``number`` on: costs that grow along the pieces are shared evenly."""

    stage: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.stage} {self.number + 1} of {self.count}"


class PartDone(Exception):
    """The part's pieces are in their files."""


class Pieces:
    """Of a whole job: all are found here and now."""

    shared = False  # whether pieces may come from files, found by others or by an earlier run

    def of(self, stage: str, names: Sequence[Any], find: Find) -> list[Any]:
        """What was found of every piece of this stage, in order. ``names`` say of each all that tells it from a piece of another job in
        the same place: what the job's key does not say."""
        return list(find(list(range(len(names)))))


WHOLE = Pieces()


class KeptPieces(Pieces):
    """In files of one folder, each written as soon as its piece is found. ``part``: what is to be found here; None for the job that comes
    after all parts."""

    shared = True

    def __init__(self, folder: Path, part: Part | None = None) -> None:
        self._folder, self._part = folder, part

    def of(self, stage: str, names: Sequence[Any], find: Find) -> list[Any]:
        marks = [repr((stage, number, len(names), name)) for number, name in enumerate(names)]
        files = [self._folder / f"{stage}-{number:05}.pt" for number in range(len(names))]
        found = {number: whole["found"] for number, mark in enumerate(marks) if (whole := load_saved(files[number], mark)) is not None}
        missing = [number for number in range(len(names)) if number not in found]
        if self._part is not None and self._part.stage == stage:
            missing = [number for number in missing if number % self._part.count == self._part.number]
        if missing:  # in the job itself: a part was never planned, or its file is damaged
            for number, value in zip(missing, find(missing), strict=True):
                _save(files[number], {"fingerprint": marks[number], "found": value})
                found[number] = value
        if self._part is not None and self._part.stage == stage:
            raise PartDone
        return [found[number] for number in range(len(names))]


def _save(file: Path, whole: dict[str, Any]) -> None:
    write_atomic(file, lambda opened: torch.save(whole, opened))


def load_saved(file: Path | None, fingerprint: str, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """What a file of tensors and plain values holds; None where it is not there, damaged, or of something else: to do it again costs time,
    never a number."""
    if file is None or not file.exists() or not zipfile.is_zipfile(file):
        return None
    try:
        whole: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError):
        return None
    return whole if whole.get("fingerprint") == fingerprint else None


def check_stages(probe: str, stages: Sequence[Stage]) -> None:
    """ViRBError where a probe names its stages in a way that no file can be called."""
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names) or not all(name.replace("-", "").isalnum() for name in names):
        raise ViRBError(f"the probe {probe} names its stages {names}; each needs a name of its own, of letters, digits and dashes")
