"""Images inside tar shards, read by offset: few large files where a folder has millions of small ones."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virb.data.decode import DECODERS, Pixels, decode_rgb, decode_size, unread
from virb.data.images import FileImages, ImageList, boxed, checked_boxes, file_contents, numbered_repeats, size_of_box
from virb.data.sequences import PackedStrings, wrapped_index
from virb.errors import UnreadImage

_MOST_OPEN = 64  # shards that a process holds open


class TarImages(ImageList):
    """Images of a packed folder (``virb.data.packed``). ``places`` have for each row a ``shard`` (number), and in it the ``offset``,
    ``size`` and ``crc32`` of the image's bytes; ``paths`` are what the files were called in the folder, and ``boxes`` are those of
    FileImages.

    The identity is the folder's, which hashes paths and byte sizes: packing changes neither, nor a pixel. So features and results made from
    one form hold for the other.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        shards: Sequence[str],
        paths: Sequence[str],
        places: dict[str, np.ndarray],
        boxes: np.ndarray | None = None,
    ) -> None:
        self.name = name
        self.root = str(root)
        self.shards = tuple(shards)
        self.paths = paths if isinstance(paths, PackedStrings) else PackedStrings(paths)
        self.places = {key: np.asarray(places[key]) for key in ("shard", "offset", "size", "crc32")}
        if {len(values) for values in self.places.values()} != {len(self.paths)}:
            raise ValueError("every image has a path, a shard, an offset, a size and a checksum")
        self.boxes = checked_boxes(boxes, len(self.paths))
        self.ids = numbered_repeats(self.paths)
        self._files = _OpenFiles()

    def read(self, i: int) -> Image.Image:
        data, source = self._file(i)
        return boxed(decode_rgb(data, source), self.boxes, i, source)

    def _read_by(self, i: int, decoder: str) -> Pixels:
        data, source = self._file(i)
        return boxed(DECODERS[decoder](data, source), self.boxes, i, source)

    def image_size(self, i: int) -> tuple[int, int]:
        data, source = self._file(i)
        return size_of_box(decode_size(data, source), self.boxes, i, source)

    def _file(self, i: int) -> tuple[bytes, str]:
        """The bytes of an image, and what to call it in messages. Raises UnreadImage."""
        i = wrapped_index(i, len(self))
        shard, offset, size, crc32 = (int(self.places[key][i]) for key in ("shard", "offset", "size", "crc32"))
        path = os.path.join(self.root, self.shards[shard])
        source = f"{path}: {self.paths[i]}"
        try:
            data = self._files.read(path, offset, size)
        except OSError as error:
            raise unread(source, error) from None
        if len(data) < size:
            raise UnreadImage(f"{source}: the shard is cut off before or in it; copy it again")
        if zlib.crc32(data) != crc32:
            raise UnreadImage(f"{source}: the shard is damaged there; copy it again")
        return data, source

    def subset(self, rows: np.ndarray) -> TarImages:
        """The images of these rows, in order."""
        places = {key: values[rows] for key, values in self.places.items()}
        boxes = None if self.boxes is None else self.boxes[rows]
        return TarImages(self.name, self.root, self.shards, [self.paths[int(row)] for row in rows], places, boxes)

    def _describe(self) -> dict[str, Any]:
        return FileImages._describe(self)  # type: ignore[arg-type]  # it looks at the boxes alone

    def _contents(self) -> Iterable[bytes]:
        return file_contents(self.paths, self.places["size"].tolist(), self.boxes)


class _OpenFiles:
    """Reads parts of files from any number of threads, keeping the files open. Travels to other processes empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, FileIO] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """At most ``size`` bytes: fewer where the file ends."""
        if not hasattr(os, "pread"):  # Windows
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        with self._lock:
            if path not in self._files:
                self._files[path] = FileIO(path)
                if len(self._files) > _MOST_OPEN:
                    self._files.popitem(last=False)  # closed when no thread reads from it any more
            self._files.move_to_end(path)
            held = self._files[path]
        return os.pread(held.fileno(), size, offset)

    def __reduce__(self) -> tuple[type[_OpenFiles], tuple[()]]:
        return _OpenFiles, ()
