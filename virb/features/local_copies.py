"""Copies of features on a disk of this machine, for jobs that read them from their files again and again (the tier ``mapped``).

A cache that machines share lies on a network disk. Features that fit in memory are read from there once; those that do not are read in
random order every epoch, which such a disk is slow at. The copies belong to one run, and go with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from virb.errors import ViRBError
from virb.features.cache import Slice
from virb.io import Lease, is_held, make_folder, write_atomic

_FREE = 0.1  # share of the disk that copies leave free,
_FREE_AT_MOST = 10 * 2**30  # but no more of a large one
_OURS = ".virb_copies"  # below the folder that the user named: nothing else in there is ours to take away


@contextmanager
def local_copies(folder: Path | None, run: str) -> Iterator[None]:
    """While a run is at work: its folder of copies, with a lease. Takes away what killed runs left."""
    if folder is None:
        yield
        return
    own = place_of(folder, run)
    for left in make_folder(own.parent).iterdir():
        if left.is_dir() and not is_held(_lease(left)):
            shutil.rmtree(left, ignore_errors=True)
            with suppress(OSError):
                _lease(left).unlink()
    with Lease(_lease(own)):
        try:
            make_folder(own)
            yield
        finally:
            shutil.rmtree(own, ignore_errors=True)
    with suppress(OSError):
        own.parent.rmdir()  # unless another run is at work


def place_of(folder: Path, run: str) -> Path:
    return folder / _OURS / run


def _lease(place: Path) -> Path:
    return place.with_name(f"{place.name}.lease")


def bring(slices: Sequence[Slice], key: str, place: Path, in_use: Collection[str] | None = None) -> list[Slice]:
    """The slices with their values in ``place``, as far as there is room; the others stay where they are. Other workers of the machine may
    bring the same ones: a copy that is there is used. ``in_use``: the only entries whose copies are needed now, so that others may make
    room; None where that is not known."""
    brought: list[Slice] = []
    for piece in slices:
        copy = place / key / piece.path.name
        try:
            size = piece.path.stat().st_size
            if not copy.exists() or copy.stat().st_size != size:
                if not _has_room(place, size, in_use):
                    brought.append(piece)
                    continue
                write_atomic(copy, piece.path.read_bytes())
            brought.append(replace(piece, path=copy))
        except (OSError, ViRBError):  # a slow disk is better than none
            brought.append(piece)
    return brought


def _has_room(place: Path, size: int, in_use: Collection[str] | None) -> bool:
    """Whether there is, after copies that nobody needs now were taken away as far as that takes, those made first first."""
    idle = [] if in_use is None else [folder for folder in place.iterdir() if folder.is_dir() and folder.name not in in_use]
    idle.sort(key=lambda folder: folder.stat().st_mtime)
    while True:
        disk = shutil.disk_usage(place)
        if disk.free - size >= min(_FREE * disk.total, _FREE_AT_MOST):
            return True
        if not idle:
            return False
        shutil.rmtree(idle.pop(0), ignore_errors=True)
