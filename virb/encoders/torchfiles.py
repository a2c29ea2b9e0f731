"""Files that ``torch.save`` writes (zip archives, and the older bare pickles), read without running anything of them."""

from __future__ import annotations

import io
import math
import mmap
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from virb.encoders import unpickling
from virb.encoders.inert import TORCH_DTYPES, Damaged, Global, Record, Refused

_MAGIC = 0x1950A86A20F9469CFC6C
_KINDS = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "Untyped": torch.uint8,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_STORAGES = {f"{module}.{name}Storage": dtype for name, dtype in _KINDS.items() for module in ("torch", "torch.cuda", "torch.storage")}
_NESTED = 2  # how deep files within files go
_LARGEST_PICKLE = 256 << 20  # bytes of a zip's index of tensors; real ones have some hundred kB


@dataclass(frozen=True)
class Storage:
    """``data``: a flat tensor of one dtype, none of it copied where the file allows."""

    data: Tensor

    def as_type(self, dtype: torch.dtype) -> Storage:
        return Storage(self.data.view(torch.uint8).view(dtype))


def read(file: IO[bytes], size: int, depth: int = 0) -> Any:
    """What a torch file or a plain pickle of ``size`` bytes holds: tensors, plain data, records. Refused, or Damaged."""
    start = file.read(2)
    file.seek(0)
    if start == b"PK":
        return _read_zip(file)
    return _read_bare(file, size, depth)


# Zip archives


def _read_zip(file: IO[bytes]) -> Any:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise Damaged("is a torch file whose end is missing") from error
    with archive:
        names = {info.filename: info for info in archive.infolist()}
        root = next((name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl")), None)
        if root is None:
            raise Damaged(f"is a zip archive of {', '.join(list(names)[:3]) or 'nothing'}, not a torch file")
        if f"{root}constants.pkl" in names:
            raise Refused("the code of a TorchScript program")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        if order.strip() != b"little":
            raise Damaged(f"was written by a {order.decode('ascii', 'replace')[:10]}-endian machine")
        cached: dict[str, Tensor] = {}

        def find(key: Any) -> Any:
            kind, name, count = _storage_key(key)
            if name not in cached:
                info = names.get(f"{root}data/{name}")
                if info is None:
                    raise Damaged(f"has no record of storage {name[:20]}; it is damaged")
                cached[name] = _record(file, archive, info)
                if cached[name].numel() != count * kind.itemsize:
                    raise Damaged(
                        f"has {cached[name].numel():,} bytes of storage {name[:20]}, which has {count * kind.itemsize:,}; it is damaged"
                    )
            return _typed(cached[name], kind, count, name)

        try:
            if archive.getinfo(f"{root}data.pkl").file_size > _LARGEST_PICKLE:
                raise Damaged("has an index of more than 256 MB, which no checkpoint has")
            content = archive.read(f"{root}data.pkl")
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise Damaged(f"has a damaged record ({error})") from error
        return unpickling.load(io.BytesIO(content), find, _calls(depth=0))


def _record(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """The bytes of one record: mapped from the file, where it is one and the record is stored as it is (as torch does)."""
    try:
        if info.compress_type != zipfile.ZIP_STORED or not hasattr(file, "fileno") or isinstance(file, io.BytesIO):
            return _bytes(archive.read(info))
        file.seek(info.header_offset)
        header = file.read(30)
        at = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        end = file.seek(0, io.SEEK_END)
        if len(header) < 30 or at + info.file_size > end:
            raise Damaged(f"has a record that ends after the file; it is truncated ({info.filename})")
        if info.file_size == 0:
            return torch.empty(0, dtype=torch.uint8)
        _check(file, at, info)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(mapped, dtype=torch.uint8, offset=at, count=info.file_size)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"has a damaged record {info.filename} ({error})") from error


def _check(file: IO[bytes], at: int, info: zipfile.ZipInfo) -> None:
    """Reads the record once, a piece at a time, so that none of it stays in memory."""
    file.seek(at)
    left, found = info.file_size, 0
    while left:
        piece = file.read(min(left, 1 << 20))
        if not piece:
            raise Damaged(f"ends within the record {info.filename}; it is truncated")
        left, found = left - len(piece), zlib.crc32(piece, found)
    if found != info.CRC:
        raise Damaged(f"has a damaged record {info.filename} (its CRC-32 is another)")


# Bare pickles


def _read_bare(file: IO[bytes], size: int, depth: int) -> Any:
    """torch's format before 1.6: five pickles (magic number, version, system, content, keys of the storages), then the storages' bytes.
    A file that does not begin with the magic number is one plain pickle."""
    waiting: dict[str, tuple[torch.dtype, int, Tensor]] = {}

    def find(key: Any) -> Any:
        if (
            isinstance(key, tuple) and key and key[0] == "module" and isinstance(key[1], Global)
        ):  # a whole model, with its source code: the class by its name
            return key[1]
        kind, name, count = _storage_key(key)
        if name not in waiting:
            wanted = count * kind.itemsize
            if wanted + sum(data.numel() for _, _, data in waiting.values()) > size:
                raise Damaged(f"names storages of more bytes than it has ({size:,}); it is truncated")
            waiting[name] = (kind, count, torch.empty(wanted, dtype=torch.uint8))
        dtype, stored, data = waiting[name]
        view = key[5] if len(key) > 5 else None  # very old files: (key, offset, count) of a part of the storage
        if view is not None:
            _, offset, part = view
            if not all(isinstance(number, int) and number >= 0 for number in (offset, part)) or offset + part > stored:
                raise Damaged("has a view beyond its storage")
            return Storage(data.view(dtype)[offset : offset + part])
        return _typed(data, kind, count, name)

    content = unpickling.load(file, None, _calls(depth))
    if not isinstance(content, int) or content != _MAGIC:
        return content
    version = unpickling.load(file)
    unpickling.load(file)
    if version != 1001:
        raise Damaged(f"is of torch file version {version!r}, which is unknown")
    content = unpickling.load(file, find, _calls(depth))
    names = unpickling.load(file)
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise Damaged("has no list of its storages")
    if len(names) != len(waiting) or {str(name) for name in names} != waiting.keys():
        raise Damaged("lists other storages than its tensors have; it is damaged")
    for name in names:
        _, count, data = waiting[str(name)]
        whole = memoryview(data.numpy())  # type: ignore[arg-type]
        if int.from_bytes(file.read(8), "little") != count or file.readinto(whole) != data.numel():  # type: ignore[attr-defined]
            raise Damaged(f"ends within storage {name} of {count:,} numbers; it is truncated")
    if file.read(1):
        raise Damaged("goes on after its last storage")
    return content


def _storage_key(key: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, name, count) of the persistent id ``("storage", type, name, place, count, ...)``."""
    if not (isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage" and isinstance(key[1], Global) and str(key[1]) in _STORAGES):
        raise Damaged("names something else than a storage")
    if not (isinstance(key[2], str | int) and isinstance(key[4], int) and key[4] >= 0):
        raise Damaged("names a storage without a size")
    return _STORAGES[str(key[1])], str(key[2]), key[4]


def _typed(data: Tensor, kind: torch.dtype, count: int, name: str) -> Storage:
    if count * kind.itemsize > data.numel():
        raise Damaged(f"says that storage {name} has {count:,} numbers, which is more than there are; it is damaged")
    part = data[: count * kind.itemsize]
    return Storage((part if part.data_ptr() % kind.itemsize == 0 else part.clone()).view(kind))


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


# What torch's pickles call


def _calls(depth: int) -> Mapping[str, Callable[..., Any]]:
    def nested(data: Any) -> Any:
        """``torch.storage._load_from_bytes``: a torch file within a plain pickle."""
        if depth >= _NESTED or not isinstance(data, bytes | bytearray):
            raise Refused("torch.storage._load_from_bytes, too deep")
        return read(io.BytesIO(data), len(data), depth + 1)

    return {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._tensor._rebuild_from_type_v2": _of_type,
        "torch.nn.parameter.Parameter": _parameter,
        "torch.Tensor": _itself,
        "torch.storage._load_from_bytes": nested,
        **dict.fromkeys(_STORAGES, _itself),
    }


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage; whoever wrote the numbers, it stays within."""
    if isinstance(storage, Tensor):  # a storage that a nested file holds
        storage = Storage(storage.flatten())
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    size, stride = (part.arguments[0] if isinstance(part, Record) and part.arguments else part for part in (size, stride))
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(number, int) and 0 <= number < 1 << 60 for number in numbers):
        raise Damaged("has a tensor of an impossible shape")
    there = storage.data.numel()
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if math.prod(size) else offset
    if end > there or math.prod(size) > max(there, 1 << 24):
        raise Damaged("has a tensor that is larger than its storage; it is damaged")
    return torch.as_strided(storage.data, tuple(size), tuple(stride), offset)


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Tensor:
    if not (isinstance(dtype, Global) and dtype.module == "torch" and dtype.name in TORCH_DTYPES and isinstance(storage, Storage)):
        raise Refused(f"a tensor of {dtype}")
    return _tensor(storage.as_type(getattr(torch, dtype.name)), offset, size, stride)


def _parameter(data: Any = None, *_: Any) -> Any:
    return data if isinstance(data, Tensor) else torch.empty(0)


def _of_type(how: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes of its own, or of a class of its own: the tensor alone."""
    if not (isinstance(how, Global) and str(how) in _calls(0) and isinstance(arguments, tuple)):
        raise Refused(str(how))
    return _calls(0)[str(how)](*arguments)


def _itself(*_: Any) -> Any:
    raise Refused("a new empty tensor or storage")


def read_path(path: Path) -> Any:
    with open(path, "rb") as file:
        return read(file, path.stat().st_size)
