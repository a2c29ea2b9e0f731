"""Files of trained heads: ViRB's own ``model_head.pt``, and the linear classifiers that DINO released.

DINO's classifier of [CLS] and the mean patch token takes the two interleaved (cls 0, mean 0, cls 1, mean 1 ...), ours one after the other
(``cls[-1]+tokens[-1].mean``): its weights are put in our order when they are read. Others, as iBOT's, take them as we do, and nothing in a
file says which: without being told, only one with the names of DINO's is read as interleaved.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from virb.encoders.requests import Request
from virb.errors import UserError, ViRBError
from virb.probes.heads import Stack, head_shape

Layout = Literal["interleaved", "concatenated"]
_DINO = "module.linear."  # what the names of DINO's classifier begin with
_WRAPPERS = ("state_dict", "model", "head")  # keys below which others keep a state dict
_PREFIXES = ("module.", "linear.", "fc.")


def file_hash(path: Path) -> str:
    """sha256 of the file; UserError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"the head {path} cannot be read: {error.strerror or error}") from None


def layout_of(path: Path, request: str, asked: Layout | None = None) -> Layout | None:
    """In which order a head that somebody else trained on two vectors takes them: as ``asked``, else as its names let guess. None where
    there is but one vector, and for files of ViRB."""
    tensors, names = _tensors(_content(path))
    if set(tensors) != {"weight", "bias"} or not _of_cls_and_tokens(request):
        if asked == "interleaved":
            raise UserError(f"{path}: head_layout: interleaved is for heads of others on [CLS] and patch tokens, not on {request}")
        return None
    return asked or ("interleaved" if names == _DINO else "concatenated")


def read_head(path: Path, request: str, layout: Layout | None = None) -> Stack:
    """The head's state dict under our names, for features of this request in this layout (see ``layout_of``). UserError when the file holds
    no head."""
    layout = layout_of(path, request, layout)
    tensors, _ = _tensors(_content(path))
    try:
        if set(tensors) == {"weight", "bias"}:
            weight = tensors["weight"]
            if layout == "interleaved" and weight.ndim == 2:
                weight = torch.cat([weight[:, 0::2], weight[:, 1::2]], 1)
            tensors = {"head.weight": weight, "head.bias": tensors["bias"]}
        head_shape(tensors)
    except ViRBError as error:
        raise UserError(f"{path}: {error}") from None
    return tensors


def _content(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"the head {path} cannot be read: {error.strerror or error}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UserError(f"the head {path} is not a file of tensors ({str(error).splitlines()[0] if str(error) else 'empty'})") from None


def _tensors(content: Any) -> tuple[Stack, str]:
    """The tensors without what all their names begin with, and that beginning."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return {}, ""
    found = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    taken = ""
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
            taken += prefix
    return found, taken


def _of_cls_and_tokens(request: str) -> bool:
    terms = Request.parse(request).terms
    return len(terms) == 2 and terms[0].output.name == "cls" and terms[1].output.name == "tokens"
