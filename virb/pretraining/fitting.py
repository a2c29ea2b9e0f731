"""What ``init_from`` does with weights that are almost those of this training: of other crops, of another method's heads."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from virb.encoders.vit import VisionTransformer
from virb.pretraining.checkpoints import difference

_BACKBONE, _HEAD, _PATCH_HEAD = "backbone.", "head.", "patch_head."
_POSITIONS = f"{_BACKBONE}pos_embed"


def fit_backbone(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """``state`` with the positions of another crop size resized to this one's, by the encoders' own code; what was done."""
    backbone, stored = getattr(network, "backbone", None), state.get(_POSITIONS)
    if not isinstance(backbone, VisionTransformer) or stored is None or stored.ndim != 3:
        return state, []
    side = math.isqrt(max(stored.shape[1] - 1, 0))
    is_other_width = stored.shape[-1] != backbone.pos_embed.shape[-1]
    if is_other_width or stored.shape == backbone.pos_embed.shape or side < 1 or side * side != stored.shape[1] - 1:
        return state, []
    rows, columns = backbone.grid
    line = f"positions resized from {side} x {side} patches to {rows} x {columns} (position_mode {backbone.position_mode})"
    return {**state, _POSITIONS: _resized(backbone, stored, side)}, [line]


@torch.no_grad()
def _resized(backbone: VisionTransformer, stored: Tensor, side: int) -> Tensor:
    patch, mode = backbone.patch_size, backbone.position_mode
    with torch.random.fork_rng(devices=[]):  # it is drawn before it is filled
        there = VisionTransformer(stored.shape[-1], 0, 1, patch, (side * patch, side * patch), 1.0, True, 1e-6, 0, False, mode)
    there.pos_embed.copy_(stored)
    return there.positions(backbone.grid[0] * patch, backbone.grid[1] * patch)


def fit_head(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """``state`` with as many heads as the network has: a second one for patches starts as the first, and one too many is left out."""
    wanted = any(name.startswith(_PATCH_HEAD) for name in network.state_dict())
    given = any(name.startswith(_PATCH_HEAD) for name in state)
    if wanted and not given:
        copies = {f"patch_{name}": value for name, value in state.items() if name.startswith(_HEAD)}
        return {**state, **copies}, ["the head of the patches starts as that of [CLS]"]
    if given and not wanted:
        rest = {name: value for name, value in state.items() if not name.startswith(_PATCH_HEAD)}
        return rest, ["the file's head of the patches is left out"]
    return state, []


def misfit(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Why the heads in ``state`` are not those of the network; empty when they are."""
    counts = "num_batches_tracked"  # some files lack them
    wanted = {name: value for name, value in network.state_dict().items() if not name.startswith(_BACKBONE) and not name.endswith(counts)}
    given = {name: value for name, value in state.items() if not name.startswith(_BACKBONE) and not name.endswith(counts)}
    different = [text for name, value in wanted.items() if (text := difference(name, given.get(name), value))]
    different += [f"{name} is in the file alone" for name in given if name not in wanted]
    return different[0] if different else ""
