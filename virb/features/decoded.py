"""Decoded images, kept: what a geometry makes of each image of a list, as uint8, for those who would decode it again.

They are entries of the feature cache whose encoder is none: keyed by image list and geometry, in slices that are written atomically with a
checksum, in the cache's budget, seen by ``virb cache``. A random crop is of the whole image, so views are not kept; nor are images of
different sizes. Whoever finds no slice, or a damaged one, decodes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from virb.data.loader import LoadedBatch
from virb.data.transforms import Geometry
from virb.errors import ViRBError, describe
from virb.features.ahead import MappedFile
from virb.features.cache import SLICE_ROWS, EntryRecord, FeatureCache, Slice, SliceFacts

NO_ENCODER = "none: decoded images"  # stands where an entry of features has its encoder
_VERSION = 1  # raised when decoding or resizing gives other pixels


def can_keep(geometry: Geometry) -> bool:
    return geometry.size is not None and geometry.view is None


def pixel_record(list_id: str, geometry: Geometry) -> EntryRecord:
    """What the key of a list's decoded images hashes."""
    return EntryRecord(
        encoder_id=NO_ENCODER,
        image_list_id=list_id,
        geometry=geometry.record(),
        normalisation={},
        output="pixels",
        numerics={"storage": "uint8"},
        format={"family": "pixels", "version": _VERSION},
    )


class DecodedImages:
    """A list's kept pixels at one geometry (``virb.data.loader.Kept``). Each slice is checked when it is first read. ``use``: False for who
    only looks at them, which says nothing of when they were used and takes away nothing."""

    def __init__(self, cache: FeatureCache, key: str, n_rows: int, size: tuple[int, int], use: bool = True) -> None:
        self._cache, self._key, self._n_rows, self._shape, self._use = cache, key, n_rows, (3, *size), use
        self._slices: dict[int, tuple[Slice, np.ndarray]] = {}
        self._damaged = set[int]()
        self._lock = threading.Lock()

    def find(self, row: int) -> np.ndarray | str | None:
        """uint8 (3, h, w); or why the image could not be decoded; None when it is not kept."""
        start = row - row % SLICE_ROWS
        found = self._slices.get(start) or self._open(start)
        if found is None:
            return None
        piece, pixels = found
        return piece.bad[row] if row in piece.bad else pixels[row - start]

    def is_complete(self) -> bool:
        return not self._cache.missing_slices(self._key, self._n_rows)

    def bad(self) -> dict[int, str] | None:
        """The rows that could not be decoded, and why; None where slices are missing or damaged, so that it is not known."""
        found: dict[int, str] = {}
        if not self.is_complete():
            return None
        for start in range(0, self._n_rows, SLICE_ROWS):
            if (opened := self._slices.get(start) or self._open(start)) is None:
                return None
            found.update(opened[0].bad)
        return found

    def _open(self, start: int) -> tuple[Slice, np.ndarray] | None:
        with self._lock:
            if start in self._slices or start in self._damaged:
                return self._slices.get(start)
            if not self._cache.has_slice(self._key, start):
                return None
            piece = self._cache.read_slice(self._key, start, min(start + SLICE_ROWS, self._n_rows))
            if piece is None or piece.dtype != "uint8" or piece.shapes != (self._shape,):
                self._damaged.add(start)
                with suppress(OSError):  # so that the next run makes it again
                    if self._use:
                        self._cache.slice_path(self._key, start, "json").unlink()
                return None
            if self._use and not self._slices:
                with suppress(OSError):
                    os.utime(self._cache.entry_folder(self._key) / "record.json")  # its time says when the entry was last used
            self._slices[start] = piece, MappedFile(piece.path, "uint8").values.reshape(-1, *self._shape)
            return self._slices[start]


@dataclass(frozen=True)
class Pixels:
    """What of a slice is read from kept pixels, and for which geometries, by the keys of their entries, it is kept."""

    read: Mapping[Geometry, DecodedImages] = field(default_factory=dict)
    keep: Mapping[Geometry, str] = field(default_factory=dict)


class Keeper:
    """Sets the pixels of a slice aside while they pass, and writes them when all have."""

    def __init__(self, keep: Mapping[Geometry, str], start: int, stop: int) -> None:
        self._keep, self._start = keep, start
        self._rooms = {g: np.empty((stop - start, 3, *(g.size or (0, 0))), dtype=np.uint8) for g in keep}

    def see(self, batch: LoadedBatch) -> None:
        first = int(batch.rows[0]) - self._start
        for geometry, room in self._rooms.items():
            pixels = batch.pixels[geometry]
            if not isinstance(pixels, list):
                room[first : first + len(pixels)] = pixels.numpy()

    def write(self, bad: Mapping[int, str], seconds: float, cache: FeatureCache) -> list[str]:
        """Why what could not be written: nobody needs it, they decode again."""
        notes = []
        for geometry, key in self._keep.items():
            try:
                cache.write_slice(key, self._start, self._rooms[geometry], bad, SliceFacts({"decode": seconds}))
            except ViRBError as error:
                notes.append(f"decoded images are not kept: {describe(error)}")
        return notes
