"""The feature cache: the seam between passes, which write, and probes, which read.

An entry is one output of one encoder over one image list at one view. Its folder is named by the hash of a record of all that decides its
values, and the record lies beside the values in clear. Values come in slices of ``SLICE_ROWS`` rows, one file each, written atomically and
checksummed; a slice is there when its ``.json`` is there, an entry when all its slices are. So a killed pass loses the slice it was at.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virb.errors import ViRBError
from virb.io import hash_record, make_folder, read_json, write_atomic, write_json

SLICE_ROWS = 512  # fixed: passes are cut here whatever the number of devices, and encoding batches never cross a border
LAYOUT = 1
STORAGE = "float16, float32 where it would overflow"
_FLOAT16_MAX = float(np.finfo(np.float16).max)


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
        return hash_record(asdict(self))


@dataclass(frozen=True)
class Slice:
    """One written slice: where its values lie and how to read them."""

    start: int
    stop: int
    path: Path
    dtype: str
    shapes: tuple[tuple[int, ...], ...]  # one shape when all rows share it, else one per row
    bad: Mapping[int, str]  # rows whose image could not be decoded, and why; their values mean nothing


def slice_bounds(n_rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + SLICE_ROWS, n_rows)) for start in range(0, n_rows, SLICE_ROWS)]


class FeatureCache:
    """A folder of entries. Picklable: it holds the path only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry_folder(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def prepare(self, record: EntryRecord, n_rows: int) -> None:
        """Makes the entry's folder and writes its record in clear; harmless when it is there already."""
        path = self.entry_folder(record.key) / "record.json"
        if not path.exists():
            write_json(path, {"kind": "feature_entry", "layout": LAYOUT, "n_rows": n_rows, "slice_rows": SLICE_ROWS, **asdict(record)})

    def has_slice(self, key: str, start: int) -> bool:
        return self._slice_path(key, start, "json").exists()

    def missing_slices(self, key: str, n_rows: int) -> list[tuple[int, int]]:
        folder = self.entry_folder(key)
        if not folder.is_dir():
            return slice_bounds(n_rows)
        there = {path.stem for path in folder.glob("[0-9]*.json")}
        return [(start, stop) for start, stop in slice_bounds(n_rows) if f"{start:010d}" not in there]

    def write_slice(self, key: str, start: int, rows: Sequence[np.ndarray] | np.ndarray, bad: Mapping[int, str]) -> None:
        """``rows`` are float32 arrays: one array (n, *shape), or a list of n arrays of different shapes."""
        if isinstance(rows, np.ndarray):
            values, shapes, count = rows.reshape(-1), [rows.shape[1:]], len(rows)
        else:
            values, shapes, count = np.concatenate([row.reshape(-1) for row in rows]), [row.shape for row in rows], len(rows)
        dtype = np.float16 if not values.size or np.abs(values).max() <= _FLOAT16_MAX else np.float32
        data = np.ascontiguousarray(values, dtype=dtype).tobytes()
        header = {
            "start": start,
            "stop": start + count,
            "dtype": np.dtype(dtype).name,
            "shapes": [list(shape) for shape in shapes],
            "crc32": zlib.crc32(data),
            "bad": {str(row): reason for row, reason in bad.items()},
        }
        write_atomic(self._slice_path(key, start, "bin"), data)
        write_json(self._slice_path(key, start, "json"), header)

    def slices(self, key: str, n_rows: int) -> list[Slice]:
        """All slices of a complete entry, in order; a damaged one is removed and reported, so that the next run makes it again."""
        found = []
        for start, stop in slice_bounds(n_rows):
            header_path, data_path = self._slice_path(key, start, "json"), self._slice_path(key, start, "bin")
            try:
                header = read_json(header_path)
                data = data_path.read_bytes()
            except FileNotFoundError as error:
                raise ViRBError(f"the feature cache lost {error.filename} while it was needed; run the same command again") from error
            if header["stop"] != stop or zlib.crc32(data) != header["crc32"]:
                self._forget(header_path)
                raise ViRBError(f"{data_path} is damaged; it was removed: run the same command again to make it anew")
            bad = {int(row): reason for row, reason in header["bad"].items()}
            found.append(Slice(start, stop, data_path, header["dtype"], tuple(tuple(s) for s in header["shapes"]), bad))
        return found

    def size(self) -> int:
        """Bytes of all values in the cache."""
        return sum(path.stat().st_size for path in self.folder.glob("??/*/*.bin"))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def check_writable(self) -> None:
        probe = make_folder(self.folder) / ".tmp-probe"
        write_atomic(probe, b"")
        probe.unlink(missing_ok=True)

    def _slice_path(self, key: str, start: int, extension: str) -> Path:
        return self.entry_folder(key) / f"{start:010d}.{extension}"

    @staticmethod
    def _forget(header_path: Path) -> None:
        with suppress(OSError):
            header_path.unlink()


def record_text(record: EntryRecord) -> str:
    return json.dumps(asdict(record), indent=1, sort_keys=True)
