"""What an encoder is, as a hash: its tensors in memory, its architecture and arguments, and the source of code that is not ours.

Two encoders with one ``encoder_id`` give the same outputs, so features are kept under it.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from virb.io import hash_record
from virb.sources import sources

_CHUNK = 1 << 26  # elements hashed at once, so that a large tensor on a device is not copied whole
_PLAIN = (bool, int, float, str, type(None))


def encoder_id(network: nn.Module, record: Mapping[str, Any]) -> str:
    """sha256 over (name, dtype, shape, bytes) of every parameter and buffer in order of name, and ``record`` (JSON-able: family,
    architecture, arguments, position mode, seed, source). Where the tensors lie and how they were stored does not matter."""
    digest = hashlib.sha256(hash_record(record).encode())
    for name, tensor in sorted(_tensors(network), key=lambda item: item[0]):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in tensor.detach().reshape(-1).split(_CHUNK):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def source_of(network: nn.Module, *modules: str) -> dict[str, str]:
    """Top-level package or module -> hash of its Python files, for all that the network's classes come from (torch itself excepted), the
    further ``modules``, and what these import of the user's own."""
    own = {type(module).__module__ for module in network.modules()}
    return sources({name for name in (*own, *modules) if name.partition(".")[0] != "torch"})


def definition_of(network: nn.Module) -> str:
    """Hash of the source of the network's own class where Python knows it: for classes written in a notebook, which have no file."""
    try:
        return hashlib.sha256(inspect.getsource(type(network)).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


def settings_of(network: nn.Module) -> dict[str, Any]:
    """Plain attributes of every submodule (strides, eps, scales, flags ...): what decides outputs and is in no tensor."""
    settings = {}
    for name, module in network.named_modules():
        plain = {key: _plain(value) for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
        kept = {key: value for key, value in sorted(plain.items()) if value is not None}
        settings[name] = {"class": type(module).__qualname__, **kept}
    return settings


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, list | tuple) and all(isinstance(item, _PLAIN) for item in value):
        return repr(tuple(value))
    if inspect.isfunction(value) or inspect.isbuiltin(value):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)) if isinstance(value, torch.dtype) else None
