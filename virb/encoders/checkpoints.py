"""Weights files: read without running code, and put into a network so that every tensor it uses is filled, or an error says which not."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from virb.errors import UserError

State = Mapping[str, Tensor]

# whole prefixes, tried in this order, nested up to _DEPTH
PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder.", "model.", "network.")
BRANCHES = ("state_dict", "model")  # where a state dict lies when it is not at the top and no checkpoint_key is named
_DEPTH = 4
_EXEMPT = ("num_batches_tracked", "mask_token")  # last parts of names that no output depends on


@dataclass(frozen=True)
class Branch:
    """One state dict of a file: ``name`` is its key, empty at the top level."""

    name: str
    state: State

    def __str__(self) -> str:
        return f' from branch "{self.name}"' if self.name else ""


@dataclass(frozen=True)
class Layout:
    """A branch with a chain of prefixes taken off: ``state`` has the keys below the prefix, ``rest`` the others under their full names."""

    prefix: str
    state: State
    rest: tuple[str, ...]


# Reading


def read_file(path: Path) -> Any:
    """What a .safetensors or torch file holds: tensors and plain data. UserError for anything that is not one, or asks for code."""
    head = _head(path)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git-LFS pointer, not the file itself; fetch it with: git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise UserError(f"{path} is a web page, not weights; the download went wrong (a share link that asks for confirmation?)")
    if path.suffix == ".safetensors" or _is_safetensors(head):
        return _read_safetensors(path)
    try:
        # argparse.Namespace only carries settings (DINO's files have one); reading it runs nothing
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class|operand)[^\w]*([\w.]+)", str(error))
        if refused:
            name = refused[1] or refused[2]
            raise UserError(f"{path} asks for {name}, which is code or unknown data; ViRB reads only tensors and plain data") from error
        raise UserError(f"{path} cannot be read as weights ({_first_line(error)}); is it truncated, or another kind of file?") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be read as weights ({_first_line(error)}); is it truncated, or another kind of file?") from error


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise UserError(f"{path} is empty")
    return head


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({_first_line(error)}); is it truncated?") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


# Finding the state dict


def find_branch(content: Any, path: Path, key: str | None = None) -> Branch:
    """The state dict under ``key`` (dots go deeper), else at the top, under ``state_dict`` or ``model``, else the only one there is."""
    found = dict(_branches(content))
    if key is not None:
        if key in found:
            return Branch(key, found[key])
        raise UserError(f"{path} has no tensors under checkpoint_key {key!r}\n  it holds   {_overview(found)}")
    if "" in found:
        return Branch("", found[""])
    for name in (*BRANCHES, *found) if len(found) == 1 else BRANCHES:
        if name in found:
            return Branch(name, found[name])
    if not found:
        kind = f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(f"{path} holds no state dict (it has {kind})")
    advice = f"  try        checkpoint_key: {_likely(found)}"
    raise UserError(f"{path} holds several state dicts; which one?\n  it holds   {_overview(found)}\n{advice}")


def _branches(content: Any, name: str = "", depth: int = 6) -> Iterator[tuple[str, State]]:
    """Every mapping in the file that is mostly tensors by name, optimizer states excepted (their keys are numbers)."""
    if not isinstance(content, Mapping) or depth == 0:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if 2 * len(tensors) > len(content) or any("." in key for key in tensors):
        yield name, tensors
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from _branches(value, f"{name}.{key}" if name else key, depth - 1)


def _likely(found: Mapping[str, State]) -> str:
    return next((name for word in ("teacher", "ema") for name in found if word in name), next(iter(found)))


def _overview(found: Mapping[str, State]) -> str:
    branches = [f"{name or '(top level)'}: {next(iter(state), 'nothing')}" for name, state in list(found.items())[:6]]
    return "; ".join(branches) or "no tensors at all"


# Taking prefixes off


def layouts(state: State) -> Iterator[Layout]:
    """The state as it is, then with each chain of prefixes that some keys have taken off, shorter chains first."""
    level = [Layout("", state, ())]
    for _ in range(_DEPTH):
        yield from level
        level = [
            Layout(
                layout.prefix + prefix,
                {key[len(prefix) :]: value for key, value in layout.state.items() if key.startswith(prefix)},
                layout.rest + tuple(layout.prefix + key for key in layout.state if not key.startswith(prefix)),
            )
            for layout in level
            for prefix in PREFIXES
            if any(key.startswith(prefix) for key in layout.state)
        ]


# Filling


def fill(
    network: nn.Module, branch: Branch, path: Path, label: str, ignored: Sequence[str] = (), others: Mapping[str, State] | None = None
) -> str:
    """Copies the branch into ``network`` and compares every tensor with the file. Returns one line that says what was filled from where.

    UserError unless every parameter and persistent buffer is filled and the file holds nothing else, heads (``ignored`` prefixes) excepted.
    ``others``: the file's further branches, tried for the advice."""
    wanted = {key: value for key, value in network.state_dict(keep_vars=True).items() if not _exempt(key)}
    best = max(layouts(branch.state), key=lambda layout: _matches(wanted, layout))
    matching = {key for key, value in wanted.items() if key in best.state and best.state[key].shape == value.shape}
    shapes = [f"{k} is {_shape(best.state[k])}, expected {_shape(v)}" for k, v in wanted.items() if k in best.state and k not in matching]
    missing = [key for key in wanted if key not in best.state]
    unexpected = [best.prefix + key for key in best.state if key not in wanted and not _exempt(key) and not key.startswith(tuple(ignored))]
    unexpected += [key for key in best.rest if not _is_head(key, ignored)]
    if missing or shapes or unexpected:
        advice = _advice(wanted, others or {})
        raise UserError(_refusal(path, label, branch, f"{len(matching)} of {len(wanted)}", missing, shapes, unexpected, advice))
    network.load_state_dict({key: best.state[key] for key in wanted}, strict=False)
    _compare(network, {key: best.state[key] for key in wanted}, path)
    details = f', branch "{branch.name}"' * bool(branch.name) + f', prefix "{best.prefix}"' * bool(best.prefix)
    return f"{label} from {path}{details}: {len(wanted)} of {len(wanted)} tensors filled (100 %)"


def other_branches(content: Any, branch: Branch) -> dict[str, State]:
    """The file's state dicts besides ``branch``."""
    return {name: state for name, state in _branches(content) if name != branch.name}


def _exempt(key: str) -> bool:
    return key.rpartition(".")[2] in _EXEMPT


def _is_head(key: str, ignored: Sequence[str]) -> bool:
    """Whether a key beside the prefix belongs to a head, whatever wrappers it has (``module.head.0.bias`` beside ``module.backbone.``)."""
    while True:
        if key.startswith(tuple(ignored)):
            return True
        wrapper = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if wrapper is None:
            return False
        key = key[len(wrapper) :]


def _matches(wanted: Mapping[str, Tensor], layout: Layout) -> int:
    return sum(key in layout.state and layout.state[key].shape == value.shape for key, value in wanted.items())


def _compare(network: nn.Module, state: State, path: Path) -> None:
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for key, value in network.state_dict(keep_vars=True).items():
        if key not in state:
            continue
        expected = state[key].to(value.dtype)
        if key in parameters and not torch.isfinite(expected).all():
            raise UserError(f"{path}: {key} holds NaN or infinite values; the training that wrote it had diverged, or the file is damaged")
        here = value.detach().cpu()
        if not bool(((here == expected) | ((here != here) & (expected != expected))).all()):
            raise UserError(f"{path}: {key} in memory differs from the file after loading (do two parameters share one tensor?)")


def _advice(wanted: Mapping[str, Tensor], others: Mapping[str, State]) -> str:
    for name, state in others.items():
        if max(_matches(wanted, layout) for layout in layouts(state)) == len(wanted):
            return f"checkpoint_key: {name}"
    return "another `arch:`, or its `args:`"


def _refusal(
    path: Path, label: str, branch: Branch, count: str, missing: list[str], shapes: list[str], unexpected: list[str], advice: str
) -> str:
    lines = [f"{path}: filled {count} parameters of {label}{branch}.", f"  the file's keys look like   {_example(branch)}"]
    for what, names in (("missing", missing), ("of another shape", shapes), ("unexpected", unexpected)):
        if names:
            lines.append(f"  {len(names)} {what}: {_some(names)}")
    return "\n".join([*lines, f"  try   {advice}"])


def _example(branch: Branch) -> str:
    keys = list(branch.state)
    key = next((key for key in keys if key.count(".") > 1), keys[0] if keys else "nothing")
    return f"{branch.name}: {key}" if branch.name else key


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
