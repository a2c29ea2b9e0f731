"""Heads as stacks of parameters: K heads of one shape computed together, forward and backward, and single heads in and out.

A stack is a dict of tensors with a leading axis K under ViRB 2021's names (``head.weight``, ``head.bias``; for the MLP ``head.0.*``
and ``head.2.*``), so one row of it *is* a head's state dict. The gradients are written out: they are a few matrix products and a mask, and
this way a training step of all heads is a fixed list of kernels.

Where a sample has several images, a head takes their numbers concatenated in order, their mean, or a weighted mean with learned attention:
weights softmax(q . x / sqrt(D)) over the images, ``pool.query`` being q (zero at first, which is the mean).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from virb.errors import ViRBError
from virb.functional.products import linear, linears
from virb.functional.randomness import torch_generator

Stack = dict[str, Tensor]
QUERY = "pool.query"
IMAGES = "pool.images"  # in the state dict of a finished head that pools: how many images it was trained on


@dataclass(frozen=True)
class HeadShape:
    """A linear head (``hidden`` None), or Linear-ReLU-Linear. ``in_features`` counts all ``images`` of a sample, concatenated in order."""

    in_features: int
    n_outputs: int
    hidden: int | None = None
    images: int = 1
    pool: Literal["concat", "mean", "attention"] = "concat"
    init: Literal["torch", "normal0.01"] = "torch"

    @property
    def width(self) -> int:
        """What the first Linear takes."""
        return self.in_features if self.pool == "concat" else self.in_features // self.images

    def layers(self) -> list[tuple[str, int, int]]:
        """(name, inputs, outputs) of each Linear."""
        if self.hidden is None:
            return [("head", self.width, self.n_outputs)]
        return [("head.0", self.width, self.hidden), ("head.2", self.hidden, self.n_outputs)]


def init_head(shape: HeadShape, seed: int) -> Stack:
    """A fresh head's state dict, drawn as ``torch.nn.Linear`` draws, or N(0, 0.01) with zero biases (DINO's linear classifier). Depends on
    the seed and the shape only, not on the rest of a grid."""
    generator = torch_generator(seed, "head", shape.width, shape.hidden or 0, shape.n_outputs)
    head: Stack = {}
    for name, inputs, outputs in shape.layers():
        weight, bias = torch.empty(outputs, inputs), torch.zeros(outputs)
        if shape.init == "normal0.01":
            torch.nn.init.normal_(weight, 0.0, 0.01, generator=generator)
        else:
            torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(inputs)
            torch.nn.init.uniform_(bias, -bound, bound, generator=generator)
        head[f"{name}.weight"], head[f"{name}.bias"] = weight, bias
    if shape.pool == "attention":
        head[QUERY] = torch.zeros(shape.width)
    return head


def stack_heads(heads: Sequence[Mapping[str, Tensor]]) -> Stack:
    """K state dicts of one shape -> one stack."""
    return {name: torch.stack([head[name] for head in heads]) for name in heads[0]}


def take_head(stack: Stack, row: int) -> Stack:
    """One row as a state dict of its own on the CPU (what ``model_head.pt`` holds)."""
    return {name: tensor[row].detach().to("cpu", copy=True) for name, tensor in stack.items()}


def with_images(head: Stack, shape: HeadShape) -> Stack:
    """A finished head's state dict, which says how many images it pools; the same head where it pools none."""
    return head if shape.pool == "concat" else {**head, IMAGES: torch.tensor(shape.images)}


def head_shape(head: Mapping[str, Tensor]) -> HeadShape:
    """Shape of a head from its state dict; ViRBError when it is neither a linear head nor an MLP."""
    layers = {name: tensor for name, tensor in head.items() if name not in (QUERY, IMAGES)}
    images = int(head[IMAGES]) if IMAGES in head else 1
    for hidden_layer, names in ((False, ("head",)), (True, ("head.0", "head.2"))):
        if set(layers) != {f"{name}.{part}" for name in names for part in ("weight", "bias")}:
            continue
        first, last = head[f"{names[0]}.weight"], head[f"{names[-1]}.weight"]
        if first.ndim == last.ndim == 2:
            pool: Literal["concat", "mean", "attention"] = "attention" if QUERY in head else "mean" if IMAGES in head else "concat"
            shape = HeadShape(first.shape[1] * images, last.shape[0], first.shape[0] if hidden_layer else None, images, pool)
            expected = {f"{n}.weight": (o, i) for n, i, o in shape.layers()} | {f"{n}.bias": (o,) for n, _, o in shape.layers()}
            if QUERY in head:
                expected[QUERY] = (shape.width,)
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
    logits, _ = forward({name: tensor.to(x.device).float()[None] for name, tensor in head.items() if name != IMAGES}, x)
    return logits[:, 0]


def forward(stack: Stack, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """All K heads on one batch ``x`` (B, D): outputs (B, K, C) and what ``backward`` needs again (hidden units (B, K, H) of MLPs).

    Heads that take fewer numbers than ``x`` has are given the mean over the images, or their own weighted mean where they have a query.
    """
    is_linear = "head.weight" in stack
    first = "head" if is_linear else "head.0"
    if QUERY in stack:
        pooled, _ = _attend(stack[QUERY], x)
        units = torch.baddbmm(stack[f"{first}.bias"][:, None], pooled.transpose(0, 1), stack[f"{first}.weight"].transpose(1, 2))
        units = units.transpose(0, 1)
    else:
        heads, outputs, inputs = stack[f"{first}.weight"].shape
        # One product for all heads: its rows are the outputs of all heads one below the other.
        x = _mean(x, inputs)
        units = linear(x, stack[f"{first}.weight"].view(heads * outputs, inputs), stack[f"{first}.bias"].view(-1))
        units = units.view(-1, heads, outputs)
    if is_linear:
        return units, None
    hidden = units.relu_()
    logits = linears(hidden.transpose(0, 1), stack["head.2.weight"], stack["head.2.bias"])
    return logits.transpose(0, 1), hidden


def backward(stack: Stack, x: Tensor, hidden: Tensor | None, grad: Tensor) -> Stack:
    """Gradients of all parameters (a stack of the same shapes), given ``grad`` (B, K, C) of the outputs."""
    first = "head" if hidden is None else "head.0"
    out: Stack = {}
    if hidden is not None:
        by_head = grad.transpose(0, 1)
        out["head.2.weight"] = linears(by_head.transpose(1, 2), hidden.permute(1, 2, 0))
        out["head.2.bias"] = torch.sum(by_head, 1)
        inner = linears(by_head, stack["head.2.weight"].transpose(1, 2)).transpose(0, 1)
        # It selects and does not multiply by a mask: an infinite gradient that meets a closed unit gives zero, as in torch.
        grad = torch.ops.aten.threshold_backward(inner, hidden, 0)
    if QUERY in stack:
        return out | _attend_backward(stack, first, x, grad)
    flat = grad.reshape(len(x), -1)
    heads, units, inputs = stack[f"{first}.weight"].shape
    out[f"{first}.weight"] = linear(flat.t(), _mean(x, inputs).t()).view(heads, units, inputs)
    out[f"{first}.bias"] = torch.sum(flat, 0).view(heads, units)
    return out


def _mean(x: Tensor, width: int) -> Tensor:
    """(B, images x width) -> (B, width); nothing is done where a sample has one image."""
    return x if x.shape[1] == width else x.view(len(x), -1, width).mean(1)


def _attend(query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the images by each head's own weights (B, K, D), and the weights (B, K, images)."""
    heads, width = query.shape
    images = x.view(len(x), -1, width)
    scores = (images.reshape(-1, width) @ query.t()).view(len(x), -1, heads) / math.sqrt(width)
    weights = torch.softmax(scores, 1).transpose(1, 2)
    return torch.bmm(weights, images), weights


def _attend_backward(stack: Stack, first: str, x: Tensor, grad: Tensor) -> Stack:
    """Of the first Linear (``grad`` (B, K, units) is that of its outputs) and of the queries before it."""
    query = stack[QUERY]
    pooled, weights = _attend(query, x)
    by_head = grad.transpose(0, 1)
    images = x.view(len(x), -1, query.shape[1])
    of_weights = torch.bmm(torch.bmm(by_head, stack[f"{first}.weight"]).transpose(0, 1), images.transpose(1, 2))
    of_scores = weights * (of_weights - (weights * of_weights).sum(2, keepdim=True))
    return {
        f"{first}.weight": torch.bmm(by_head.transpose(1, 2), pooled.transpose(0, 1)),
        f"{first}.bias": torch.sum(by_head, 1),
        QUERY: torch.sum(torch.bmm(of_scores, images), 0).div_(math.sqrt(query.shape[1])),
    }
