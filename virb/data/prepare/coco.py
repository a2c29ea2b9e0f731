"""COCO: photographs, and the official panoptic annotations (pictures whose colours are numbers of segments, and a JSON that says what these
are), of which maps of category ids are made."""

from __future__ import annotations

import io
import os
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virb.data.datasets.coco import CATEGORIES, MAPS
from virb.data.datasets.common import another_version, read_json
from virb.data.prepare.archives import reading
from virb.data.prepare.extract import Tell
from virb.data.prepare.recipes import Part, add, below, rules
from virb.errors import UserError
from virb.io import available_cores, make_folder, write_atomic

_NAME = "coco-panoptic"
_PARTS = ("train2017", "val2017")


def category_map(panoptic: np.ndarray, segments: Mapping[int, int], source: str) -> np.ndarray:
    """uint8 (H, W) of category ids from the colours (H, W, 3) of a panoptic picture; 0 where it is black, which is nothing.

    ``segments``: number of a segment -> category id. The number is red + 256 green + 65536 blue.
    """
    colours = panoptic.astype(np.int64)
    numbers = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    known = np.array(sorted({0: 0, **segments}), dtype=np.int64)
    categories = np.array([segments.get(int(number), 0) for number in known], dtype=np.uint8)
    places = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    strange = known[places] != numbers
    if strange.any():
        raise UserError(f"{_NAME}: {source} shows the segment {int(numbers[strange][0])}, which its annotation does not list")
    return categories[places]


def make_maps(folder: Path, tell: Tell) -> Iterator[str]:
    """Writes ``panoptic_labels_<part>/*.png`` beside the annotations; those that are there stay, so it goes on where it was stopped."""
    for part in _PARTS:
        source = folder / "annotations" / f"panoptic_{part}.json"
        made = make_folder(folder / f"{MAPS}{part}")
        there = set(os.listdir(made))
        todo = [(file, segments) for file, segments in _annotations(source) if file not in there]
        waiting: deque[Future[None]] = deque()
        with _pictures(folder / "annotations" / f"panoptic_{part}") as read, ThreadPoolExecutor(available_cores()) as pool:
            try:
                for done, (file, segments) in enumerate(todo):
                    tell(made.name, done, len(todo))
                    waiting.append(pool.submit(_convert, read(file), segments, f"panoptic_{part}/{file}", made / file))
                    if len(waiting) > 4 * available_cores():
                        waiting.popleft().result()
                while waiting:
                    waiting.popleft().result()
            finally:  # nobody waits for what comes after a broken picture
                for future in waiting:
                    future.cancel()
        tell(made.name, len(todo), len(todo))
        yield f"{made}: {len(todo):,} label maps made{f', {len(there):,} were there' if there else ''}"


def _convert(content: bytes, segments: Mapping[int, int], source: str, path: Path) -> None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            colours = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{_NAME}: {source} cannot be decoded ({error}); download the annotations again") from None
    file = io.BytesIO()
    Image.fromarray(category_map(colours, segments, source)).save(file, "PNG")
    write_atomic(path, file.getvalue())


def _annotations(source: Path) -> list[tuple[str, dict[int, int]]]:
    """File name of each picture, and the category id of its segments."""
    content: Any = read_json(_NAME, source)
    try:
        found = [
            (str(entry["file_name"]), {int(segment["id"]): int(segment["category_id"]) for segment in entry["segments_info"]})
            for entry in content["annotations"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise another_version(_NAME, source, f"the panoptic annotations, with file_name and segments_info, but one lacks {error}") from None
    unknown = {number for _, segments in found for number in segments.values()} - set(CATEGORIES)
    if unknown:
        raise another_version(_NAME, source, f"the 133 official categories, but there is the category {min(unknown)}")
    if any("/" in file or not file.endswith(".png") for file, _ in found):
        raise another_version(_NAME, source, "names of .png files without folders")
    return found


@contextmanager
def _pictures(place: Path) -> Iterator[Any]:
    """A function from a file's name to its content, from the folder, or from the archive of that name as it comes within the download."""
    archive = place.with_name(f"{place.name}.zip")

    def from_folder(file: str) -> bytes:
        try:
            return (place / file).read_bytes()
        except OSError as error:
            raise UserError(f"{_NAME}: {place / file} cannot be read ({error.strerror or error})") from None

    if place.is_dir():
        yield from_folder
        return
    if not archive.is_file():
        raise UserError(f"{_NAME}: neither {place} nor {archive.name} is there; is panoptic_annotations_trainval2017.zip complete?")
    with reading(archive):
        content = zipfile.ZipFile(archive)
    with content:
        names = {name.rpartition("/")[2]: name for name in content.namelist() if not name.startswith("__MACOSX/")}

        def from_archive(file: str) -> bytes:
            if file not in names:
                raise UserError(f"{_NAME}: {archive} has no {file}, which its list names")
            with reading(archive, file):
                return content.read(names[file])

        yield from_archive


_IMAGES = tuple(
    Part(part, (f"{part}.zip",), below(part, part), folders=(f"images/{part}", f"coco/{part}", part), link=part) for part in _PARTS
)

add(
    _NAME,
    "coco",
    *_IMAGES,
    Part(
        "annotations",
        ("panoptic_annotations_trainval2017.zip",),
        rules((r"(?:annotations/)?(panoptic_(?:train|val)2017\.(?:json|zip))", r"annotations/\1")),
    ),
    note="then maps of category ids are made",
    convert=make_maps,
)
add(
    _NAME,
    "coco",
    *_IMAGES,
    Part("annotations", (), folders=("annotations",), link="annotations"),
    title="a folder annotations with panoptic_{train,val}2017 and their .json",
    note="then maps of category ids are made",
    convert=make_maps,
)
