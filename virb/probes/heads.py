"""Heads as stacks of parameters: K heads of one shape computed together, forward and backward, and single heads in and out.

A stack is a dict of tensors with a leading axis K under ViRB 2021's names (``head.weight``, ``head.bias``; for the MLP ``head.0.*``
and ``head.2.*``), so one row of it *is* a head's state dict. The gradients are written out: they are two matrix products and a mask, and
this way a training step of all heads is a fixed list of kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from virb.errors import ViRBError
from virb.functional.randomness import torch_generator

Stack = dict[str, Tensor]


@dataclass(frozen=True)
class HeadShape:
    """A linear head (``hidden`` None), or Linear-ReLU-Linear. ``in_features`` counts all images of a sample, concatenated in order."""

    in_features: int
    n_outputs: int
    hidden: int | None = None

    def layers(self) -> list[tuple[str, int, int]]:
        """(name, inputs, outputs) of each Linear."""
        if self.hidden is None:
            return [("head", self.in_features, self.n_outputs)]
        return [("head.0", self.in_features, self.hidden), ("head.2", self.hidden, self.n_outputs)]


def init_head(shape: HeadShape, seed: int) -> Stack:
    """A fresh head's state dict, drawn as ``torch.nn.Linear`` draws. Depends on the seed and the shape only, not on the rest of a grid."""
    generator = torch_generator(seed, "head", shape.in_features, shape.hidden or 0, shape.n_outputs)
    head: Stack = {}
    for name, inputs, outputs in shape.layers():
        weight, bias = torch.empty(outputs, inputs), torch.empty(outputs)
        torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        bound = 1 / math.sqrt(inputs)
        torch.nn.init.uniform_(bias, -bound, bound, generator=generator)
        head[f"{name}.weight"], head[f"{name}.bias"] = weight, bias
    return head


def stack_heads(heads: Sequence[Mapping[str, Tensor]]) -> Stack:
    """K state dicts of one shape -> one stack."""
    return {name: torch.stack([head[name] for head in heads]) for name in heads[0]}


def take_head(stack: Stack, row: int) -> Stack:
    """One row as a state dict of its own on the CPU (what ``model_head.pt`` holds)."""
    return {name: tensor[row].detach().to("cpu", copy=True) for name, tensor in stack.items()}


def head_shape(head: Mapping[str, Tensor]) -> HeadShape:
    """Shape of a head from its state dict; ViRBError when it is neither a linear head nor an MLP."""
    for hidden_layer, names in ((False, ("head",)), (True, ("head.0", "head.2"))):
        if set(head) != {f"{name}.{part}" for name in names for part in ("weight", "bias")}:
            continue
        first, last = head[f"{names[0]}.weight"], head[f"{names[-1]}.weight"]
        if first.ndim == last.ndim == 2:
            shape = HeadShape(first.shape[1], last.shape[0], first.shape[0] if hidden_layer else None)
            expected = {f"{n}.weight": (o, i) for n, i, o in shape.layers()} | {f"{n}.bias": (o,) for n, _, o in shape.layers()}
            if all(tuple(head[name].shape) == size for name, size in expected.items()):
                return shape
    found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in head.items()) or "nothing"
    raise ViRBError(f"not a head: expected head.weight and head.bias, or head.0.* and head.2.* (weight and bias), but got {found}")


def apply_head(head: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """One head on features (N, D) or (N, K, D), computed in float32: (N, C)."""
    shape = head_shape(head)
    x = features.flatten(1).float()
    if x.shape[1] != shape.in_features:
        raise ViRBError(f"the head takes {shape.in_features} numbers per sample, but the features have {x.shape[1]}")
    logits, _ = forward({name: tensor.to(x.device).float()[None] for name, tensor in head.items()}, x)
    return logits[:, 0]


def forward(stack: Stack, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """All K heads on one batch ``x`` (B, D): outputs (B, K, C) and what ``backward`` needs again (hidden units (B, K, H) of MLPs)."""
    if "head.weight" in stack:
        heads, outputs, inputs = stack["head.weight"].shape
        # One product for all heads: its rows are the outputs of all heads one below the other.
        logits = torch.addmm(stack["head.bias"].view(-1), x, stack["head.weight"].view(heads * outputs, inputs).t())
        return logits.view(-1, heads, outputs), None
    heads, units, inputs = stack["head.0.weight"].shape
    hidden = torch.addmm(stack["head.0.bias"].view(-1), x, stack["head.0.weight"].view(heads * units, inputs).t()).relu_()
    hidden = hidden.view(-1, heads, units)
    logits = torch.baddbmm(stack["head.2.bias"][:, None], hidden.transpose(0, 1), stack["head.2.weight"].transpose(1, 2))
    return logits.transpose(0, 1), hidden


def backward(stack: Stack, x: Tensor, hidden: Tensor | None, grad: Tensor, out: Stack) -> None:
    """Gradients of all parameters into ``out`` (a stack of the same shapes), given ``grad`` (B, K, C) of the outputs."""
    if hidden is None:
        flat = grad.reshape(len(x), -1)
        torch.mm(flat.t(), x, out=out["head.weight"].view(flat.shape[1], -1))
        torch.sum(flat, 0, out=out["head.bias"].view(-1))
        return
    by_head = grad.transpose(0, 1)
    torch.bmm(by_head.transpose(1, 2), hidden.transpose(0, 1), out=out["head.2.weight"])
    torch.sum(by_head, 1, out=out["head.2.bias"])
    inner = torch.bmm(by_head, stack["head.2.weight"]).transpose(0, 1)
    # Selecting, not multiplying by a mask: an infinite gradient that meets a closed unit gives zero, as in torch.
    flat = torch.where(hidden > 0, inner, 0.0).reshape(len(x), -1)
    torch.mm(flat.t(), x, out=out["head.0.weight"].view(flat.shape[1], -1))
    torch.sum(flat, 0, out=out["head.0.bias"].view(-1))
