"""What a cache holds: a line per entry, without reading its values, and the choice of what may go."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virb.errors import ViRBError
from virb.features.cache import LAYOUT, SLICE_ROWS, FeatureCache, slice_bounds
from virb.features.decoded import NO_ENCODER
from virb.io import hash_record, read_json

_OURS = ("kind", "n_rows", "about")  # of a record beside what its key hashes


@dataclass(frozen=True)
class StoredEntry:
    """An entry on disk. ``problem`` says why nobody can use it; a part of an entry is no problem, the next run makes the rest."""

    key: str
    folder: Path
    nbytes: int
    slices: int  # that are there
    n_rows: int
    used: float  # seconds since 1970: when it was made or last read
    record: Mapping[str, Any] = field(default_factory=dict)  # what its key hashes
    about: Mapping[str, str] = field(default_factory=dict)  # names when it was made: encoder, images
    problem: str = ""

    @property
    def expected(self) -> int:
        return len(slice_bounds(self.n_rows))

    @property
    def encoder(self) -> str:
        """The name its maker knew the encoder by, or the beginning of the encoder's id."""
        return self.about.get("encoder") or str(self.record.get("encoder_id", "?"))[:12]

    @property
    def is_of_encoder(self) -> bool:
        """Features, not decoded images."""
        return self.record.get("encoder_id") != NO_ENCODER

    @property
    def images(self) -> str:
        return self.about.get("images") or str(self.record.get("image_list_id", "?"))[:12]

    @property
    def output(self) -> str:
        return str(self.record.get("output", "?"))

    def made_by(self, pattern: str) -> bool:
        """Whether a glob matches the encoder's name, or its id begins like that."""
        identity = str(self.record.get("encoder_id", ""))
        return fnmatch.fnmatchcase(self.encoder, pattern) or (len(pattern) >= 6 and identity.startswith(pattern))


def stored_entries(cache: FeatureCache) -> list[StoredEntry]:
    """All entries, those that were used longest ago first."""
    folders = [folder for folder in cache.folder.glob("??/*") if not folder.name.startswith(".") and folder.is_dir()]
    return sorted((_look(folder) for folder in folders), key=lambda entry: (entry.used, entry.key))


def _look(folder: Path) -> StoredEntry:
    sizes: dict[str, int] = {}
    newest = 0.0
    try:
        for item in os.scandir(folder):
            status = item.stat()
            sizes[item.name] = status.st_size
            newest = max(newest, status.st_mtime)
    except OSError:  # being removed just now
        pass
    slices = sum(f"{name[:-4]}.json" in sizes for name in sizes if name.endswith(".bin"))
    values = sum(size for name, size in sizes.items() if name.endswith(".bin"))
    record: Any = {}
    problem = ""
    try:
        record = read_json(folder / "record.json")
        clear = {name: value for name, value in record.items() if name not in _OURS}
        if hash_record(clear) != folder.name:
            problem = "its record is not what its key says"
        elif (clear.get("layout"), clear.get("slice_rows")) != (LAYOUT, SLICE_ROWS):
            problem = "another version of ViRB laid it out"
        n_rows = int(record["n_rows"])
    except (OSError, ViRBError, AttributeError, KeyError, TypeError, ValueError):
        return StoredEntry(folder.name, folder, values, slices, 0, newest, problem="its record is gone or cannot be read")
    about = record.get("about")
    names = {str(k): str(v) for k, v in about.items()} if isinstance(about, Mapping) else {}
    return StoredEntry(folder.name, folder, values, slices, n_rows, newest, clear, names, problem)


def damaged_slices(cache: FeatureCache, entry: StoredEntry) -> list[Path]:
    """Slices that are there and not what was written. Every value is read; nothing is removed."""
    there = [(start, stop) for start, stop in slice_bounds(entry.n_rows) if cache.has_slice(entry.key, start)]
    return [cache.slice_path(entry.key, start) for start, stop in there if cache.read_slice(entry.key, start, stop) is None]


def beyond(entries: Sequence[StoredEntry], budget: int) -> Iterable[StoredEntry]:
    """Those that have to go, the ones used longest ago first, so that at most ``budget`` bytes are left."""
    left = sum(entry.nbytes for entry in entries)
    for entry in sorted(entries, key=lambda entry: (entry.used, entry.key)):
        if left <= budget:
            return
        left -= entry.nbytes
        yield entry
