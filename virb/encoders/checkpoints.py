"""Weights files: safetensors (also in shards), torch files and plain pickles, read without running code into state dicts by branch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virb.encoders import torchfiles
from virb.encoders.inert import Damaged, Record, Refused
from virb.errors import UserError

State = Mapping[str, Tensor]

FORMAT = "virb.format"  # in the metadata of files that `virb convert` wrote
TRAINING = "virb.training"  # there too: JSON
_INDEX = ".index.json"
_DEPTH = 8
_MOST_CONTAINERS = 100_000  # visited in one file; real ones have hundreds
_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--", b"<script")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. ``metadata``: texts beside the tensors (safetensors; files that ViRB converted)."""

    path: Path
    content: Any
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def branches(self) -> dict[str, State]:
        """Every mapping with tensors by name; its keys in the file, joined by dots, are the branch's name, "" at the top level."""
        try:
            found = dict(_branches(self.content, budget=iter(range(_MOST_CONTAINERS))))
        except RuntimeError as error:  # the budget is spent
            raise UserError(f"{self.path} is nested more than any checkpoint is; it cannot be used as weights") from error
        return {name: _without_compile(state) for name, state in found.items()}

    @cached_property
    def training(self) -> dict[str, str | int]:
        """Which training the file is of, where ViRB's own pretraining wrote it (also when it was converted since): ``method``, ``step``,
        ``epoch`` (how many were done), ``recipe``, ``data`` (the folder's name)."""
        noted: Any = self.content.get("virb") if isinstance(self.content, Mapping) else None
        if isinstance(noted, Mapping) and "engine" in noted:
            noted = {**noted, "epoch": self.content.get("epoch"), "data": _data_name(noted.get("options"))}
        else:
            with suppress(ValueError):
                noted = json.loads(self.metadata.get(TRAINING, "{}"))
        if not isinstance(noted, Mapping):
            return {}
        kinds = {"method": str, "step": int, "epoch": int, "recipe": str, "data": str}
        return {key: noted[key] for key, kind in kinds.items() if isinstance(noted.get(key), kind) and noted[key] != ""}

    @cached_property
    def trained_heads(self) -> int | None:
        """How many heads the vision transformer has that ViRB's own pretraining wrote; shapes do not tell."""
        noted: Any = self.content.get("virb") if isinstance(self.content, Mapping) else None
        heads = noted.get("heads") if isinstance(noted, Mapping) and "engine" in noted else None
        return heads if isinstance(heads, int) and 0 < heads < 1 << 16 else None

    @cached_property
    def trained_arch(self) -> str | None:
        """``arch`` of the recipe, where ViRB's own pretraining wrote the file: of timm's networks shapes tell too little."""
        noted: Any = self.content.get("virb") if isinstance(self.content, Mapping) else None
        options = noted.get("options") if isinstance(noted, Mapping) and "engine" in noted else None
        arch = options.get("arch") if isinstance(options, Mapping) else None
        return arch if isinstance(arch, str) else None


def _data_name(options: Any) -> str:
    """Of a folder with training images its name, not the place where it lay."""
    path = Path(str(options.get("data_path") or "")) if isinstance(options, Mapping) else Path()
    return f"{path.parent.name}/{path.name}" if path.name == "train" else path.name


def from_state(state: State, origin: str) -> Checkpoint:
    """A state dict that is in memory already; ``origin`` takes the place of the path in messages."""
    return Checkpoint(Path(origin), state)


def read(path: Path) -> Checkpoint:
    """UserError, in one or two lines, for anything that is not a weights file, is damaged, or asks for code."""
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(_INDEX):
        return Checkpoint(path, _read_shards(path))
    head = _head(path)
    if path.suffix == ".safetensors" or (len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000):
        content, metadata = _read_safetensors(path)
        return Checkpoint(path, content, metadata)
    content = _read_torch(path, head)
    noted = content.get("virb") if isinstance(content, Mapping) else None
    return Checkpoint(path, content, noted if isinstance(noted, dict) and FORMAT in noted else {})


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise UserError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git-LFS pointer, not the file itself; fetch it with: git lfs pull")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGE):
        raise UserError(f"{path} is a web page, not weights; the download went wrong (a share link that asks for confirmation?)")
    return head


def _in_folder(path: Path) -> Path:
    names = ("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise UserError(f"{path} cannot be read: it is a folder without {' or '.join(names[:2])}; name a file")
    return found


# Torch


def _read_torch(path: Path, head: bytes) -> Any:
    """Never by torch's own reader, which runs pickles' programs and takes what it maps unchecked."""
    try:
        return torchfiles.read_path(path)
    except Refused as error:
        raise UserError(f"{path} {error}") from error
    except Damaged as error:
        if head[257:262] == b"ustar":
            raise UserError(f"{path} is a tar archive, not weights; unpack it, or save its state dict with a current torch") from error
        if not head.startswith((b"PK", b"\x80")):
            raise UserError(f"{path} is not a weights file (neither torch nor safetensors)") from error
        raise UserError(f"{path} cannot be read as weights: it {error}; is it truncated, or another kind of file?") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


# Safetensors


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    import safetensors
    from safetensors.torch import load_file

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length <= size - 8 else None
        if not isinstance(header, dict):
            raise UserError(f"{path} cannot be read as safetensors: its header of {length:,} bytes is not whole; is it truncated?")
        metadata = header.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != size:
            how = "it is truncated" if 8 + length + end > size else "something was added to it"
            raise UserError(f"{path} has {size:,} bytes, but its header says {8 + length + end:,}; {how}")
        return load_file(path), {str(key): str(value) for key, value in metadata.items()}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({first_line(error)}); is it truncated?") from error


def _read_shards(path: Path) -> dict[str, Tensor]:
    """All tensors of an index: {"weight_map": {key: name of a file in the same folder}}."""
    _head(path)
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        wanted = {str(key): str(shard) for key, shard in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no index of weights: expected JSON with a weight_map") from error
    outside = next((shard for shard in wanted.values() if Path(shard).name != shard or shard in ("", ".", "..")), None)
    if outside is not None:
        raise UserError(f"{path} names the shard {outside!r}; shards are files in its own folder")
    absent = sorted({shard for shard in wanted.values() if not (path.parent / shard).is_file()})
    if absent:
        raise UserError(f"{path} names {len(absent)} shards that are not there: {some(absent)}")
    found: dict[str, Tensor] = {}
    for shard in sorted(set(wanted.values())):
        tensors = read(path.parent / shard).content
        lacking = [key for key, place in wanted.items() if place == shard and key not in tensors]
        if lacking:
            raise UserError(f"{path.parent / shard} lacks {len(lacking)} tensors that {path.name} says it has: {some(lacking)}")
        found.update({key: tensors[key] for key, place in wanted.items() if place == shard})
    return found


# Branches


def _branches(content: Any, name: str = "", depth: int = _DEPTH, *, budget: Iterator[int]) -> Iterator[tuple[str, State]]:
    next(budget)  # a small file can hold itself many times over
    if isinstance(content, Record):
        if "_modules" in content.fields:  # a whole pickled model: its tensors, by the names that its state dict would have
            yield name, dict(_module_tensors(content))
            return
        content = content.fields
    if not isinstance(content, Mapping) or depth == 0:
        return
    tensors = {key: tensor for key, value in content.items() if isinstance(key, str) and (tensor := as_tensor(value)) is not None}
    if 2 * len(tensors) > len(content) or any("." in key for key in tensors):
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping | Record):
            yield from _branches(value, f"{name}.{key}" if name else key, depth - 1, budget=budget)


def as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False)))
    return None


def _module_tensors(module: Record, prefix: str = "", depth: int = 32) -> Iterator[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        for key, value in (module.fields.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{key}", value
    for key, child in (module.fields.get("_modules") or {}).items():
        if isinstance(child, Record) and depth:
            yield from _module_tensors(child, f"{prefix}{key}.", depth - 1)


def _without_compile(state: State) -> State:
    """``torch.compile`` puts ``_orig_mod`` before the names of whatever it wrapped, anywhere in them."""
    if not any("_orig_mod" in key for key in state):
        return state
    renamed = {".".join(part for part in key.split(".") if part != "_orig_mod"): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else state


# Texts


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
