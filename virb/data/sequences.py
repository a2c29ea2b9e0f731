"""Two read-only sequences: many strings in little memory, and items that are computed when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np


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
    """``length`` items, item ``i`` being ``compute(i)`` each time it is read. Picklable when ``compute`` is."""

    def __init__(self, compute: Callable[[int], Any], length: int) -> None:
        self._compute = compute
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        return self._compute(wrapped_index(index, self._length))

    def __repr__(self) -> str:
        return f"LazySequence({self._length} items)"


def wrapped_index(index: int, length: int) -> int:
    """``index`` in 0..length-1, negative ones counted from the end; IndexError outside."""
    i = int(index)
    if not -length <= i < length:
        raise IndexError(f"index {i} in a sequence of {length}")
    return i % length
