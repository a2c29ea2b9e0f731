"""Files of trained heads: ViRB's own ``model_head.pt``, and the linear classifiers that DINO released.

DINO's classifier of [CLS] and the mean patch token takes the two interleaved (cls 0, mean 0, cls 1, mean 1 ...), ours one after the other
(``cls[-1]+tokens[-1].mean``): its weights are put in our order when they are read.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virb.encoders.requests import Request
from virb.errors import UserError, ViRBError
from virb.probes.heads import Stack, head_shape

_WRAPPERS = ("state_dict", "model", "head")  # keys below which others keep a state dict
_PREFIXES = ("module.", "linear.", "fc.")


def file_hash(path: Path) -> str:
    """sha256 of the file; UserError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"the head {path} cannot be read: {error.strerror or error}") from None


def read_head(path: Path, request: str) -> Stack:
    """The head's state dict under our names, for features of this request. UserError when the file holds no head."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"the head {path} cannot be read: {error.strerror or error}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UserError(f"the head {path} is not a file of tensors ({str(error).splitlines()[0] if str(error) else 'empty'})") from None
    tensors = _tensors(content)
    try:
        if set(tensors) == {"weight", "bias"}:  # DINO's, without its prefixes
            tensors = {"head.weight": _in_our_order(tensors["weight"], request), "head.bias": tensors["bias"]}
        head_shape(tensors)
    except ViRBError as error:
        raise UserError(f"{path}: {error}") from None
    return tensors


def _tensors(content: Any) -> Stack:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return {}
    found = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _in_our_order(weight: Tensor, request: str) -> Tensor:
    terms = Request.parse(request).terms
    interleaved = len(terms) == 2 and terms[0].output.name == "cls" and terms[1].output.name == "tokens"
    return torch.cat([weight[:, 0::2], weight[:, 1::2]], 1) if interleaved and weight.ndim == 2 else weight
