"""Read-only sequences: many strings in little memory, and items that are computed, or read from files, when they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np

from virb.io import hash_record

_STAT_THREADS = 16  # asking for sizes waits for the file system (NFS above all), not for this process
_STAT_CHUNK = 256


class PackedStrings(Sequence[str]):
    """Strings in one block of bytes: 1.3 million paths take 60 MB instead of 150, and pickle at once."""

    def __init__(self, strings: Iterable[str]) -> None:
        # surrogateescape: file names that are not valid UTF-8 come back as os.scandir gave them
        encoded = [text.encode("utf-8", "surrogateescape") for text in strings]
        self._offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in encoded], out=self._offsets[1:])
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = wrapped_index(index, len(self))
        return self._bytes[self._offsets[i] : self._offsets[i + 1]].decode("utf-8", "surrogateescape")

    def __repr__(self) -> str:
        return f"PackedStrings({len(self)} strings)"


class LazySequence(Sequence[Any]):
    """``length`` items, item ``i`` being ``compute(i)`` each time it is read. Picklable when ``compute`` is.

    ``record``: what decides the items (generator, version, seed ...), JSON-able. Targets need it: results are kept under its hash.
    """

    def __init__(self, compute: Callable[[int], Any], length: int, record: Mapping[str, Any] | None = None) -> None:
        self._compute = compute
        self._length = length
        self._record = None if record is None else dict(record)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        return self._compute(wrapped_index(index, self._length))

    def identity(self) -> str | None:
        """Equal for equal items in equal order; None where nobody said what decides them."""
        return None if self._record is None else hash_record({"record": self._record, "count": self._length})

    def __repr__(self) -> str:
        return f"LazySequence({self._length} items)"


class FileSequence(Sequence[Any]):
    """What ``read(path)`` gives of each file below ``root`` (masks, depth maps, annotations), each time it is asked for.

    ``record``: what else decides the items, JSON-able. Picklable when ``read`` is.
    """

    def __init__(self, root: str | Path, paths: Sequence[str], read: Callable[[str], Any], record: Mapping[str, Any] | None = None) -> None:
        self.root = str(root)
        self.paths = paths if isinstance(paths, PackedStrings) else PackedStrings(paths)
        self._read = read
        self._record = dict(record or {})
        self._identity: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._read(os.path.join(self.root, self.paths[index]))

    def identity(self) -> str:
        """Hash of the ordered (relative path, byte size), as an image list has it: root and times are not in it. Computed once."""
        if self._identity is None:
            digest = hashlib.sha256(hash_record({"kind": "files", "record": self._record}).encode())
            for path, size in zip(self.paths, file_sizes(self.root, self.paths), strict=True):
                digest.update(b"%s\0%d\0" % (path.encode("utf-8", "surrogateescape"), size))
            self._identity = digest.hexdigest()
        return self._identity

    def __repr__(self) -> str:
        return f"FileSequence({len(self)} files)"


def wrapped_index(index: int, length: int) -> int:
    """``index`` in 0..length-1, negative ones counted from the end; IndexError outside."""
    i = int(index)
    if not -length <= i < length:
        raise IndexError(f"index {i} in a sequence of {length}")
    return i % length


def file_sizes(root: str, paths: Sequence[str]) -> Iterable[int]:
    """Bytes of each file, -1 where there is none: reading it will say so, and a list with a missing file still has an identity."""

    def size(path: str) -> int:
        try:
            return os.stat(os.path.join(root, path)).st_size
        except OSError:
            return -1

    def sizes(start: int) -> list[int]:
        return [size(path) for path in paths[start : start + _STAT_CHUNK]]

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        for part in pool.map(sizes, range(0, len(paths), _STAT_CHUNK)):
            yield from part
