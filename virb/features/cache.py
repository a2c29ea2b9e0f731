"""The feature cache: the seam between passes, which write, and probes, which read.

An entry is one output of one encoder over one image list at one view. Its folder is named by the hash of a record of all that decides its
values, and the record lies beside the values in clear. Values come in slices of ``SLICE_ROWS`` rows, one file each, written atomically and
checksummed; a slice is there when its ``.json`` is there, an entry when all its slices are. So a killed pass loses what it was at.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from virb.errors import DiskFull, ViRBError
from virb.io import clean_temporaries, hash_record, make_folder, read_json, write_atomic, write_json, writing

SLICE_ROWS = 512  # fixed: passes are cut here whatever the number of devices, and encoding batches never cross a border
LAYOUT = 1
STORAGE = "float16, float32 where it would overflow"
_SETTLED_S = 2.0  # a file that was written longer ago has another time when it is written again
_MOST_KNOWN = 200_000  # files
_FLOAT16_MAX = float(np.finfo(np.float16).max)


# Files that this process has read and found intact, by path: inode, time and size when that was, and the checksum. Every job and every part
# of one opens whole entries, and a worker need not read all of their bytes each time.
_intact: dict[Path, tuple[int, int, int, int]] = {}


class DamagedSlices(ViRBError):
    """Slices that were there are damaged or gone: ``bounds`` says which."""

    def __init__(self, message: str, bounds: Sequence[tuple[int, int]]) -> None:
        super().__init__(message)
        self.bounds = tuple(bounds)


@dataclass(frozen=True)
class EntryRecord:
    """All that decides the values of an entry, and nothing else: no batch size, device count or path."""

    encoder_id: str
    image_list_id: str
    geometry: Mapping[str, Any]  # decoder and view included
    normalisation: Mapping[str, Any]
    output: str  # canonical text of the request with its reductions
    numerics: Mapping[str, str]  # compute and storage type, device kind
    format: Mapping[str, Any]  # encoder family and the integer that is raised when its code changes what it computes

    @property
    def key(self) -> str:
        return hash_record(self.in_clear())

    def in_clear(self) -> dict[str, Any]:
        """What the key hashes: the fields, and how files lie on disk."""
        return {"layout": LAYOUT, "slice_rows": SLICE_ROWS, **asdict(self)}


@dataclass(frozen=True)
class SliceFacts:
    """How a slice was made: nothing here decides its values."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # this entry's share of decoding, encoding and writing
    batch: tuple[int, int] | None = None  # (images at once, images meant) where memory held fewer than meant


@dataclass(frozen=True)
class Slice:
    """One written slice: where its values lie and how to read them."""

    start: int
    stop: int
    path: Path
    dtype: str
    shapes: tuple[tuple[int, ...], ...]  # one shape when all rows share it, else one per row
    bad: Mapping[int, str]  # rows whose image could not be decoded, and why; their values mean nothing
    facts: SliceFacts = field(default_factory=lambda: SliceFacts())


def slice_bounds(n_rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + SLICE_ROWS, n_rows)) for start in range(0, n_rows, SLICE_ROWS)]


class FeatureCache:
    """A folder of entries. Picklable and small."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.no_room: dict[str, str] = {}  # entries of which a slice found the disk full when this object wrote it, and what was said

    def entry_folder(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def prepare(self, record: EntryRecord, n_rows: int, about: Mapping[str, str] | None = None) -> None:
        """Makes the entry's folder and writes its record in clear; harmless when it is there already. ``about``: names by which people
        know the encoder and the images, for ``virb cache list``."""
        path = self.entry_folder(record.key) / "record.json"
        if not path.exists():
            write_json(path, {"kind": "feature_entry", "n_rows": n_rows, "about": dict(about or {}), **record.in_clear()})

    def has_slice(self, key: str, start: int) -> bool:
        return all(self.slice_path(key, start, extension).exists() for extension in ("bin", "json"))

    def missing_slices(self, key: str, n_rows: int) -> list[tuple[int, int]]:
        folder = self.entry_folder(key)
        there = set(os.listdir(folder)) if folder.is_dir() else set()
        return [(start, stop) for start, stop in slice_bounds(n_rows) if not {f"{start:010d}.bin", f"{start:010d}.json"} <= there]

    def write_slice(
        self, key: str, start: int, rows: Sequence[np.ndarray] | np.ndarray, bad: Mapping[int, str], facts: SliceFacts | None = None
    ) -> SliceFacts:
        """``rows`` are float32 arrays: one array (n, *shape), or a list of n arrays of different shapes; or uint8 pixels in one array.
        Returns the facts as written, with the time that writing took."""
        began = time.perf_counter()
        facts = facts or SliceFacts()
        if isinstance(rows, np.ndarray):
            values, shapes, count = as_stored(rows).reshape(-1), [rows.shape[1:]], len(rows)
        else:
            stored = [as_stored(row[None]).reshape(-1) for row in rows]
            values, shapes, count = np.concatenate(stored), [row.shape for row in rows], len(rows)
        data = np.ascontiguousarray(values).tobytes()
        header: dict[str, Any] = {
            "start": start,
            "stop": start + count,
            "dtype": values.dtype.name,
            "shapes": [list(shape) for shape in shapes],
            "crc32": zlib.crc32(data),
            "bad": {str(row): reason for row, reason in bad.items()},
        }
        try:
            write_atomic(self.slice_path(key, start, "bin"), data)
            seconds = {**facts.seconds, "write": time.perf_counter() - began}
            facts = SliceFacts({stage: round(value, 4) for stage, value in seconds.items()}, facts.batch)
            header["seconds"] = facts.seconds
            if facts.batch is not None:
                header["batch"] = list(facts.batch)
            write_json(self.slice_path(key, start, "json"), header)
        except DiskFull as error:
            self.no_room[key] = str(error)
            with suppress(OSError):
                if not self.has_slice(key, start):
                    self.slice_path(key, start).unlink()  # values without their header are room for others
            raise
        return facts

    def slices(self, key: str, n_rows: int) -> list[Slice]:
        """All slices of a complete entry, in order. DamagedSlices where some are not what was written. A process reads a file once, and
        again when it has changed."""
        found = [(bounds, self.read_slice(key, *bounds, known=_intact)) for bounds in slice_bounds(n_rows)]
        damaged = [bounds for bounds, piece in found if piece is None]
        if damaged:
            more = f" (and {len(damaged) - 1} more of this entry)" if len(damaged) > 1 else ""
            first = self.slice_path(key, damaged[0][0])
            raise DamagedSlices(f"{first} is damaged or gone{more}", damaged)
        with suppress(OSError):  # an archive that cannot be written can be read
            os.utime(self.entry_folder(key) / "record.json")  # its time says when the entry was last used
        return [piece for _, piece in found if piece is not None]

    def remove_damaged(self, key: str, bounds: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Looks at these slices again, and takes away those that are damaged still, so that whoever looks for missing ones makes them:
        these are returned. For the holder of the entry's lease (``virb.features.uses.alone``)."""
        damaged = [(start, stop) for start, stop in bounds if self.read_slice(key, start, stop) is None]
        for start, _ in damaged:
            path = self.slice_path(key, start, "json")
            with writing(path):
                path.unlink(missing_ok=True)
        return damaged

    def read_slice(self, key: str, start: int, stop: int, known: dict[Path, tuple[int, int, int, int]] | None = None) -> Slice | None:
        """Read and checked against its checksum; None when a file is gone, or is not what was written. Files of ``known`` are not read
        again, and others are noted there."""
        path = self.slice_path(key, start, "bin")
        try:
            header = read_json(self.slice_path(key, start, "json"))
            checksum = _checksum(path, {} if known is None else known)
            bad = {int(row): reason for row, reason in header["bad"].items()}
            # Slices of older versions say nothing of how they were made.
            facts = SliceFacts(header.get("seconds", {}), tuple(header["batch"]) if "batch" in header else None)
            piece = Slice(start, stop, path, header["dtype"], tuple(tuple(s) for s in header["shapes"]), bad, facts)
            intact = (header["start"], header["stop"], header["crc32"]) == (start, stop, checksum)
        except (FileNotFoundError, ViRBError, KeyError, TypeError, AttributeError, ValueError):
            return None
        return piece if intact else None

    def size(self) -> int:
        """Bytes of all values in the cache."""
        total = 0
        for path in self.folder.glob("??/*/[0-9]*.bin"):
            with suppress(FileNotFoundError):  # another run may be at work here
                total += path.stat().st_size
        return total

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def check_writable(self) -> None:
        """Raises UserError when it is not; takes away what killed processes left half-written."""
        probe = make_folder(self.folder) / ".tmp-probe"
        write_atomic(probe, b"")
        probe.unlink(missing_ok=True)
        for folder in self.folder.glob("??/*/"):
            clean_temporaries(folder)

    def slice_path(self, key: str, start: int, extension: str = "bin") -> Path:
        return self.entry_folder(key) / f"{start:010d}.{extension}"


def _checksum(path: Path, known: dict[Path, tuple[int, int, int, int]]) -> int:
    state = path.stat()
    now = (state.st_ino, state.st_mtime_ns, state.st_size)
    if path in known and known[path][:3] == now:
        return known[path][3]
    checksum = zlib.crc32(path.read_bytes())
    known.pop(path, None)
    if time.time() - state.st_mtime > _SETTLED_S:
        if len(known) >= _MOST_KNOWN:
            known.clear()
        known[path] = (*now, checksum)
    return checksum


def as_stored(rows: np.ndarray) -> np.ndarray:
    """float32 rows (n, *shape) as the cache keeps them: float16, or float32 when a row would overflow, the other rows then still rounded
    to float16. So what is read back of a row does not depend on its neighbours, nor on whether it was cached or streamed."""
    if rows.dtype in (np.float16, np.uint8):  # stored as they are
        return rows
    fits = np.abs(rows.reshape(len(rows), -1)).max(axis=1, initial=0) <= _FLOAT16_MAX
    if fits.all():
        return rows.astype(np.float16)
    stored = rows.astype(np.float32)
    stored[fits] = rows[fits].astype(np.float16)
    return stored
