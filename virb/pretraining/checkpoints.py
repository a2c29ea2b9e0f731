"""Checkpoints: the original's keys, written atomically, read without running code, and what may be taken from one.

    student (``module.backbone.*``, as DDP names it), teacher, optimizer, epoch (the next one), args (a plain dictionary), dino_loss
    (``center``), fp16_scaler where there is one, and ``virb``: step, method, options and the sums of the running epoch.

The original's tools read these files, and its files are read here.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from virb.encoders import checkpoints as files
from virb.encoders.inert import Record
from virb.errors import UserError
from virb.io import clean_temporaries, write_atomic, writing

LAST = "checkpoint.pth"
_NUMBERED = re.compile(r"checkpoint(\d{4,})\.pth")


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all: the file that was there survives a full disk and a kill."""

    def write(file: BinaryIO) -> None:
        remembering: Any = _Remembering(file)
        try:
            torch.save(dict(content), remembering)
        except RuntimeError:  # torch says that it could not write, but not why
            if remembering.error is not None:
                raise remembering.error from None
            raise

    write_atomic(path, write)


class _Remembering:
    """A file for torch to write to, which keeps the first error of the operating system."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


class Folder:
    """The checkpoints of a run: the last one, and numbered ones every ``every`` epochs of which the newest ``keep`` stay (0: all)."""

    def __init__(self, path: Path, every: int = 0, keep: int = 0) -> None:
        self.path, self._every, self._keep = path, every, keep
        clean_temporaries(path, older_than=0.0)  # the run holds the folder's lease: nobody else is writing here

    @property
    def last(self) -> Path:
        return self.path / LAST

    def save(self, content: Mapping[str, Any], finished: int | None = None) -> None:
        """``finished``: the epoch that just ended, counted from 0; None in the middle of one."""
        save(self.last, content)
        if finished is not None and self._every and finished % self._every == 0:
            _link(self.last, self.path / f"checkpoint{finished:04}.pth")
            self._tidy()

    def numbered(self) -> list[Path]:
        """The oldest first."""
        found = [(int(match[1]), path) for path in self.path.glob("checkpoint*.pth") if (match := _NUMBERED.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def _tidy(self) -> None:
        for path in self.numbered()[: -self._keep] if self._keep else ():
            with suppress(OSError):
                path.unlink()


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes (the first is only ever replaced, never written to); a copy where a disk has no such thing."""
    temporary = target.parent / f".tmp-{uuid.uuid4().hex[:12]}-{target.name}"
    try:
        with writing(target):
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()


# Reading


def read(path: Path) -> dict[str, Any]:
    """What the file holds, tensors copied into memory. UserError for what is no checkpoint."""
    content = files.read(path).content
    if isinstance(content, Record):
        content = content.fields
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a checkpoint of a training; it holds {type(content).__name__}")
    return _copied(content)


def _copied(value: Any) -> Any:
    """Read tensors are windows into the file."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def noted(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ViRB's engine wrote beside the original's keys; None for a file of another program."""
    found = content.get("virb")
    return dict(found) if isinstance(found, Mapping) and "step" in found else None


def plain_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without what DDP and ``torch.compile`` put before names."""

    def short(name: str) -> str:
        name = ".".join(part for part in name.split(".") if part != "_orig_mod")
        while name.startswith("module."):
            name = name.removeprefix("module.")
        return name

    return {short(name): value for name, value in state.items() if isinstance(value, Tensor)}


def fill(module: nn.Module, state: Mapping[str, Any], what: str, path: Path, *, prefix: str = "") -> None:
    """Every tensor below ``prefix`` of the module from ``state``; UserError that tells what does not fit."""
    wanted = {name: value for name, value in module.state_dict().items() if name.startswith(prefix)}
    given = {name: value for name, value in plain_names(state).items() if name.startswith(prefix)}
    shapes = [text for name, value in wanted.items() if name in given and (text := difference(name, given[name], value))]
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    if shapes or missing or unexpected:
        parts = [
            files.some(shapes, 2),
            f"missing: {files.some(missing)}" if missing else "",
            f"not in this network: {files.some(unexpected)}" if unexpected else "",
        ]
        raise UserError(f"{path}: its {what} is of another architecture ({'; '.join(part for part in parts if part)})\n  {_advice(shapes)}")
    module.load_state_dict({name: given[name] for name in wanted if name in given}, strict=False)


def difference(name: str, given: Tensor | None, wanted: Tensor) -> str:
    """In words; empty when the one can take the place of the other."""
    if given is None:
        return f"{name} is not in the file"
    return "" if given.shape == wanted.shape else f"{name} is {_shape(given)} in the file, {_shape(wanted)} here"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _advice(shapes: list[str]) -> str:
    if shapes and all("last_layer" in text for text in shapes):
        return "the number of prototypes differs: set out_dim to the file's"
    return "arch and patch_size (with a head also out_dim and the options of the head) have to be those it was trained with"


def branches(content: Mapping[str, Any], path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any], bool]:
    """(student, teacher, whether they have heads) of any checkpoint: both networks, one of them, or a backbone alone, which serves both."""
    student, teacher = content.get("student"), content.get("teacher")
    if isinstance(student, Mapping) or isinstance(teacher, Mapping):
        student = student if isinstance(student, Mapping) else teacher
        teacher = teacher if isinstance(teacher, Mapping) else student
        assert isinstance(student, Mapping)
        assert isinstance(teacher, Mapping)
    else:
        bare = content.get("state_dict", content.get("model", content))
        bare = bare if isinstance(bare, Mapping) else {}
        student = teacher = bare
    mine, theirs = plain_names(student), plain_names(teacher)
    if not mine:
        raise UserError(f"{path} has no weights under student, teacher, state_dict or at its top")
    if not any(name.startswith("backbone.") for name in mine):
        mine, theirs = ({f"backbone.{name}": value for name, value in state.items()} for state in (mine, theirs))
    return mine, theirs, any(name.startswith("head.") for name in mine)
