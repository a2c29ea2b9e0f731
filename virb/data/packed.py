"""Packed datasets: the images of a folder in WebDataset tar shards, with an index that finds any of them by its row.

A shard ``<list>-000000.tar`` holds ``000000000.jpg``, ``000000000.cls`` (where the samples are images with a class), and so on: keys that
any file system and any reader takes, whatever the files were called. ``virb-pack.npz`` has for each image its old path, its place, its
size and its checksum, and the samples; ``virb-pack.json`` has the rest and is written last, so that a pack is there when it is. Everything
that a dataset says is said again, so results of both forms are the same.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from virb.data.images import Dataset, FileImages, Samples
from virb.data.sequences import PackedStrings, file_sizes
from virb.data.tars import TarImages
from virb.errors import UserError, ViRBError
from virb.io import make_folder, read_json, write_atomic, write_json

INDEX, ARRAYS = "virb-pack.json", "virb-pack.npz"
SHARD_BYTES = 10**9  # of images; what WebDataset's users are used to
_VERSION = 1
_BLOCK = 512
_PLACES = ("shard", "offset", "size", "crc32")
_NAME, _UNSAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*"), re.compile(r"[^A-Za-z0-9_]")
Tell = Callable[[str, int, int], None]  # what is done, images done, images in all


def pack(
    dataset: Dataset,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    tell: Tell = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Writes the dataset into ``out`` and returns it as it is read from there. UserError for datasets that are no folders of images, and
    for a folder that has something else in it; ``force`` packs again over a pack. ``warn`` is told where that one had other images by the
    same identities."""
    sources = _file_lists(dataset)
    stems = {name: name if _NAME.fullmatch(name) else f"{_UNSAFE.sub('_', name)}-{i}" for i, name in enumerate(sources)}
    old = _old_files(out, set(stems.values()), force)
    make_folder(out)
    before = _earlier_lists(out)
    with suppress(FileNotFoundError):
        (out / INDEX).unlink()  # from here on it is no pack, until it is one again
    arrays: dict[str, np.ndarray] = {}
    lists: dict[str, Any] = {}
    total, done = sum(map(len, sources.values())), 0
    for name, images in sources.items():

        def tell_done(n: int, before: int = done) -> None:
            tell("packing", before + n, total)

        places: dict[str, np.ndarray] = {}
        shards = _write_list(stems[name], images, _classes(dataset, name), out, shard_bytes, places, tell_done)
        arrays |= {f"list {name} {key}": values for key, values in places.items()}
        lists[name] = {"images": len(images), "image_list_id": images.identity(), "shards": shards}
        done += len(images)
        old -= set(shards)
    for shard in old:
        (out / shard).unlink()
    splits: dict[str, Any] = {}
    for split, samples in dataset.samples.items():
        splits[split] = {"list": samples.images, "targets": list(samples.targets)}
        _keep_samples(split, samples, arrays)
    data = _npz(arrays)
    write_atomic(out / ARRAYS, data)
    classes = {target: list(names) for target, names in dataset.classes.items()}
    about = {"kind": "pack", "version": _VERSION, "dataset": dataset.name, "note": dataset.note, "crc32": zlib.crc32(data)}
    write_json(out / INDEX, {**about, "classes": classes, "lists": lists, "splits": splits})
    packed = load_packed(out)
    for name, source in sources.items():
        if packed.lists[name].identity() != source.identity():
            raise ViRBError(f"files of {source.name} changed while they were packed; pack again with --force")
        if (n := _n_replaced(before.get(name), packed.lists[name])) > 0:
            warn(
                f"{n:,} images of {name} have another content than in the earlier pack under the same path and size, by which features and "
                "results are known: those of the earlier pack are taken for theirs (use another --cache_dir and --out)"
            )
    return packed


def _earlier_lists(out: Path) -> Mapping[str, Any]:
    """The image lists of a pack that is there."""
    try:
        return load_packed(out).lists
    except (FileNotFoundError, ViRBError):  # none, or one that cannot be read any more
        return {}


def _n_replaced(before: TarImages | None, now: Any) -> int:
    """How many images of a list differ by nothing but their content."""
    if before is None or before.identity() != now.identity():
        return 0
    return int((before.places["crc32"] != now.places["crc32"]).sum())


def _check_unchanged(images: FileImages, rows: np.ndarray, times: np.ndarray, crc32: np.ndarray) -> None:
    """ViRBError when a file has another content than was packed; those that nobody has written to since are not read for that."""
    for row in rows.tolist():
        if _time_of(images, row) != times[row] and zlib.crc32(_file_of(images, row)) != crc32[row]:
            raise ViRBError(f"{images.paths[row]} of {images.name} changed while it was packed; pack again with --force")


def _time_of(images: FileImages, row: int) -> int:
    """When a file was last written to, in nanoseconds; -1 where there is none."""
    try:
        return os.stat(os.path.join(images.root, images.paths[row])).st_mtime_ns
    except OSError:
        return -1


def _old_files(out: Path, stems: set[str], force: bool) -> set[str]:
    """Shards in ``out`` of an earlier try, or with ``force`` of an earlier pack. UserError when something else is there."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names a folder")
    there = {entry.name for entry in out.iterdir() if not entry.name.startswith(".tmp-")} if out.is_dir() else set()
    if INDEX in there and not force:
        raise UserError(f"{out} has a packed dataset already; --force packs again over it")
    shards = {name for name in there if re.fullmatch(r"-\d{6}\.tar", name[-11:]) and name[:-11] in stems}
    if strange := sorted(there - shards - {INDEX, ARRAYS}):
        raise UserError(f"{out} has other files ({strange[0]}); --out names a new or empty folder")
    return shards


def packed_folder(name: str, root: Path) -> Path | None:
    """Where the dataset lies packed: ``root``, or one of its known places below; None where it does not."""
    from virb.data.datasets.facts import FACTS

    places = FACTS[name].places if name in FACTS else ()
    for folder in (root, *(root / place for place in places)):
        if (folder / INDEX).is_file() and read_json(folder / INDEX).get("dataset") == name:
            return folder
    return None


def load_packed(folder: Path, options: Mapping[str, Any] | None = None) -> Dataset:
    """The packed dataset. Shards are not read: what is damaged or cut off in them is a bad image of its own when it is read."""
    if options:
        raise UserError(f"{folder} is packed, as it was without the option {next(iter(options))!r}; use the unpacked files for that")
    record = read_json(folder / INDEX)
    if record.get("version") != _VERSION:
        raise UserError(f"{folder / INDEX} is of version {record.get('version')}, this ViRB reads {_VERSION}; pack again")
    try:
        arrays = _read_arrays(folder / ARRAYS, record["crc32"])
        lists = {name: _list(name, part, folder, arrays) for name, part in record["lists"].items()}
        samples = {split: _samples(split, part, arrays) for split, part in record["splits"].items()}
        classes = {target: tuple(names) for target, names in record["classes"].items()}
        return Dataset(record["dataset"], lists, samples, classes, record["note"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / INDEX} is not what virb data pack writes ({error}); pack again") from None


def _file_lists(dataset: Dataset) -> dict[str, FileImages]:
    """Its image lists; UserError when not all of it can be packed."""
    lists: dict[str, FileImages] = {}
    for name, images in dataset.lists.items():
        if not isinstance(images, FileImages):
            raise UserError(f"{dataset.name} does not lie in image files ({type(images).__name__}), there is nothing to pack")
        lists[name] = images
    for split, samples in dataset.samples.items():
        for target, values in samples.targets.items():
            if not isinstance(values, np.ndarray) or values.dtype.hasobject:
                raise UserError(f"{dataset.name}: the target {target!r} of {split} is no number or name per sample; only those are packed")
    return lists


def _classes(dataset: Dataset, name: str) -> np.ndarray | None:
    """Class number of each row of a list, -1 for none, where samples are single images."""
    labels = np.full(len(dataset.lists[name]), -1, dtype=np.int64)
    for samples in dataset.samples.values():
        rows, classes = samples.fixed_rows(), samples.targets.get("class")
        if samples.images == name and rows is not None and rows.shape[1] == 1 and classes is not None and classes.ndim == 1:
            if not np.issubdtype(classes.dtype, np.integer):
                return None
            labels[rows[:, 0]] = classes
    return labels if (labels >= 0).any() else None


def _write_list(
    name: str,
    images: FileImages,
    classes: np.ndarray | None,
    out: Path,
    shard_bytes: int,
    arrays: dict[str, np.ndarray],
    tell: Callable[[int], None],
) -> list[str]:
    """Shards of one list, with the places of its rows in ``arrays``. A file that the list has several times, in boxes, is written once."""
    first: dict[str, int] = {}
    source = np.array([first.setdefault(path, row) for row, path in enumerate(images.paths)], dtype=np.int64)
    rows = np.unique(source)
    sizes = np.array(list(file_sizes(images.root, images.paths)), dtype=np.int64)[rows]
    places = {key: np.zeros(len(images), dtype=np.int64) for key in _PLACES}
    times = np.zeros(len(images), dtype=np.int64)
    shard_of = (np.cumsum(sizes) - sizes) // shard_bytes
    shards: list[str] = []
    for part in np.split(rows, np.flatnonzero(np.diff(shard_of)) + 1) if len(rows) else []:

        def fill(file: BinaryIO, part: np.ndarray = part, shard: int = len(shards)) -> None:
            for row in part.tolist():
                times[row] = _time_of(images, row)
                data, key = _file_of(images, row), f"{row:09d}"
                offset = _add(file, key + _ending(images.paths[row]), data)
                for place, value in zip(_PLACES, (shard, offset, len(data), zlib.crc32(data)), strict=True):
                    places[place][row] = value
                if classes is not None and classes[row] >= 0:
                    _add(file, f"{key}.cls", str(classes[row]).encode())
                tell(row + 1)
            file.write(b"\0" * 2 * _BLOCK)

        shards.append(f"{name}-{len(shards):06d}.tar")
        write_atomic(out / shards[-1], fill)
    _check_unchanged(images, rows, times, places["crc32"])
    arrays |= {key: values[source] for key, values in places.items()}
    _keep_strings("path", images.paths, arrays)
    if images.boxes is not None:
        arrays["boxes"] = images.boxes
    return shards


def _file_of(images: FileImages, row: int) -> bytes:
    path = Path(images.root) / images.paths[row]
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); nothing is left out of a pack") from None


def _add(file: BinaryIO, name: str, data: bytes) -> int:
    """Appends a file to a tar; where its bytes begin."""
    info = tarfile.TarInfo(name)  # time 0, no owner: equal images give equal shards
    info.size = len(data)
    file.write(info.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(data + b"\0" * (-len(data) % _BLOCK))
    return offset


def _ending(path: str) -> str:
    ending = Path(path).suffix.lower()
    return ending if re.fullmatch(r"\.[a-z0-9]{1,8}", ending) else ".image"


def _keep_strings(name: str, strings: Any, arrays: dict[str, np.ndarray]) -> None:
    """Names as bytes, for those of files need not be text."""
    encoded = [str(text).encode("utf-8", "surrogateescape") for text in strings]
    arrays[f"{name} bytes"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    arrays[f"{name} lengths"] = np.array([len(piece) for piece in encoded], dtype=np.int64)


def _strings(name: str, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    data, ends = arrays[f"{name} bytes"].tobytes(), np.cumsum(arrays[f"{name} lengths"])
    for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        yield data[begin:end].decode("utf-8", "surrogateescape")


def _keep_samples(split: str, samples: Samples, arrays: dict[str, np.ndarray]) -> None:
    _keep_strings(f"split {split} ids", samples.ids, arrays)
    if not np.array_equal(samples.units, samples.ids):
        _keep_strings(f"split {split} units", samples.units, arrays)
    arrays[f"split {split} rows"], arrays[f"split {split} offsets"] = samples.row_values, samples.row_offsets
    for target, values in samples.targets.items():
        arrays[f"split {split} target {target}"] = values


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number, values in enumerate(arrays.values()):  # names of splits and targets may be anything, members may not
            piece = io.BytesIO()
            np.lib.format.write_array(piece, np.ascontiguousarray(values), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{number:06d}.npy"), piece.getvalue())
        archive.writestr(zipfile.ZipInfo("names.txt"), "\n".join(arrays))
    return file.getvalue()


def _read_arrays(path: Path, crc32: int) -> dict[str, np.ndarray]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy the packed dataset again") from None
    if zlib.crc32(data) != crc32:
        raise UserError(f"{path} is damaged, or is not that of {INDEX} beside it; copy the packed dataset again")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.read("names.txt").decode().split("\n")
        return {
            name: np.lib.format.read_array(io.BytesIO(archive.read(f"{number:06d}.npy")), allow_pickle=False)
            for number, name in enumerate(names)
        }


def _list(name: str, part: Mapping[str, Any], folder: Path, arrays: Mapping[str, np.ndarray]) -> TarImages:
    shards = part["shards"]
    if unsafe := [shard for shard in shards if not _NAME.fullmatch(shard)]:
        raise ValueError(f"a shard is called {unsafe[0]!r}")
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise UserError(f"{len(missing)} of {len(shards)} shards are not in {folder}, such as {missing[0]}; copy the packed dataset again")
    places = {key: arrays[f"list {name} {key}"] for key in _PLACES}
    if len(places["shard"]) and not (places["shard"].min() >= 0 and places["shard"].max() < len(shards) and places["offset"].min() >= 0):
        raise ValueError("images lie outside its shards")
    return TarImages(name, folder, shards, PackedStrings(_strings(f"list {name} path", arrays)), places, arrays.get(f"list {name} boxes"))


def _samples(split: str, part: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Samples:
    def array(what: str) -> np.ndarray:
        return arrays[f"split {split} {what}"]

    ids = np.array(list(_strings(f"split {split} ids", arrays)), dtype=np.str_)
    apart = f"split {split} units lengths" in arrays
    units = np.array(list(_strings(f"split {split} units", arrays)), dtype=np.str_) if apart else None
    targets = {target: array(f"target {target}") for target in part["targets"]}
    return Samples(ids, part["list"], array("rows"), array("offsets"), targets, units)  # type: ignore[arg-type]
