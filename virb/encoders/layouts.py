"""From the names and shapes in a weights file to the architecture that they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from virb.encoders import checkpoints
from virb.encoders.vit import HEADS, SIZES

Found = tuple[str, dict[str, Any]]  # architecture, arguments

_RESNETS = {  # blocks per layer, whether bottlenecks, width of the first 3x3 convolution, its channels per group
    ((2, 2, 2, 2), False, 64, 64): "resnet18",
    ((3, 4, 6, 3), False, 64, 64): "resnet34",
    ((3, 4, 6, 3), True, 64, 64): "resnet50",
    ((3, 4, 23, 3), True, 64, 64): "resnet101",
    ((3, 8, 36, 3), True, 64, 64): "resnet152",
    ((3, 4, 6, 3), True, 128, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), True, 128, 128): "wide_resnet101_2",
    ((3, 4, 6, 3), True, 128, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), True, 256, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), True, 256, 4): "resnext101_64x4d",
}


def recognise(state: Mapping[str, Tensor]) -> Found | str | None:
    """(architecture, arguments) of a state dict, whatever wrappers its keys have; a text that says what is unclear; None if unknown."""
    for layout in checkpoints.layouts(state):
        found = _vit(layout.state) or _resnet(layout.state)
        if found is not None:
            return found
    return None


def vit_arguments(state: Mapping[str, Tensor], sized: bool) -> dict[str, Any]:
    """What a file in ViT layout tells for an architecture that the user has named; ``sized``: its name says width and depth. Empty for
    other layouts."""
    for layout in checkpoints.layouts(state):
        if _is_vit(layout.state):
            told = _vit_shapes(layout.state)
            return {key: value for key, value in told.items() if not (sized and key in ("width", "depth"))}
    return {}


def _is_vit(state: Mapping[str, Tensor]) -> bool:
    keys = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "norm.weight")
    return all(key in state for key in keys) and state["patch_embed.proj.weight"].ndim == 4 and state["pos_embed"].ndim == 3


def _vit_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments that the shapes tell; ``img_size`` only where the positions are [CLS] and a square grid."""
    width, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    positions = state["pos_embed"].shape[1] - 1
    side = math.isqrt(positions)
    return {
        "width": width,
        "depth": _count(state, r"blocks\.(\d+)\."),
        "patch_size": patch,
        **({"img_size": side * patch} if side * side == positions else {}),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": any(key.endswith(".attn.qkv.bias") for key in state),
    }


def _vit(state: Mapping[str, Tensor]) -> Found | str | None:
    if not _is_vit(state):
        return None
    told = _vit_shapes(state)
    if "img_size" not in told:
        return f"a vision transformer with {state['pos_embed'].shape[1]} positions, which are not [CLS] and a square grid"
    width, depth = told["width"], told["depth"]
    if width not in HEADS:
        advice = "(try arch: vit with args: {heads: N})"
        return f"a vision transformer {width} wide and {depth} deep, whose shapes do not tell its number of heads {advice}"
    heads = HEADS[width]
    return next((name for name, size in SIZES.items() if size == (width, depth, heads)), "vit"), {**told, "heads": heads}


def _resnet(state: Mapping[str, Tensor]) -> Found | str | None:
    keys = ("conv1.weight", "bn1.running_mean", "layer1.0.conv2.weight", "layer4.0.conv1.weight")
    if not all(key in state for key in keys):
        return None
    blocks = tuple(_count(state, rf"layer{layer}\.(\d+)\.") for layer in (1, 2, 3, 4))
    first = state["layer1.0.conv2.weight"]
    name = _RESNETS.get((blocks, "layer1.0.conv3.weight" in state, first.shape[0], first.shape[1]))  # type: ignore[arg-type]
    return (name, {}) if name else f"a residual network of {'-'.join(map(str, blocks))} blocks that torchvision does not have"


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)
