"""From the names and shapes of a network's tensors to its architecture; and other spellings of the same networks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from virb.encoders.vit import SIZES

State = Mapping[str, Tensor]
Found = tuple[str, dict[str, Any]]  # architecture (`timm:NAME` for timm's), arguments

RESNETS = {  # blocks per layer, whether bottlenecks, width of the first 3x3 convolution, its channels per group
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
# (width, depth) -> heads, for sizes whose heads are not in doubt. A width alone does not tell: timm's old ViT-S, 768 wide, has 8 heads.
KNOWN_HEADS = {**{(width, depth): heads for width, depth, heads in SIZES.values()}, (1280, 32): 16}  # with ViT-H, of MAE and others
MOCOV3_HEADS = {384: 12}  # MoCo v3's ViT-S has twice the usual heads; no shape tells
_XCITS = {128: "nano", 192: "tiny", 384: "small", 512: "medium", 768: "large"}
_GIANT = (1536, 40)  # DINOv2's ViT-g: gated units instead of an MLP, which timm has


@dataclass(frozen=True)
class Anchor:
    """Keys that together say that a network of a family begins here."""

    family: str
    keys: tuple[str, ...]


ANCHORS = (
    Anchor("xcit", ("cls_attn_blocks.0.norm1.weight", "blocks.0.attn.temperature")),
    Anchor("vit", ("blocks.0.attn.qkv.weight", "cls_token", "pos_embed")),
    Anchor("vit", ("blocks.0.0.attn.qkv.weight", "cls_token", "pos_embed")),
    Anchor("resnet", ("layer1.0.conv1.weight", "conv1.weight")),
    Anchor("resnet", ("4.0.conv1.weight", "0.weight")),
)


# Other spellings


def _sequential(state: State) -> State | None:
    """A ResNet whose layers were put into an ``nn.Sequential`` (lightly's examples): 0 is conv1, 1 bn1, 4 to 7 the layers."""
    if "4.0.conv1.weight" not in state or "0.weight" not in state:
        return None
    places = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4", "9": "fc"}
    return {".".join((places.get(first, first), rest)): value for key, value in state.items() for first, _, rest in [key.partition(".")]}


def _chunked(state: State) -> State | None:
    """DINOv2's training files keep blocks in chunks: ``blocks.1.10.`` is block 10."""
    if "blocks.0.0.norm1.weight" not in state:
        return None
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items()}


def _xcit(state: State) -> State | None:
    """The authors' XCiT in timm's names: ``pos_embeder``, and class attention with one matrix for queries, keys and values."""
    if "cls_attn_blocks.0.attn.qkv.weight" not in state:
        return None
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        match = re.fullmatch(r"(cls_attn_blocks\.\d+\.attn\.)qkv(\.weight|\.bias)", key)
        if match:
            renamed.update({f"{match[1]}{name}{match[2]}": part for name, part in zip("qkv", value.chunk(3), strict=True)})
        else:
            renamed[re.sub(r"^pos_embeder\.", "pos_embed.", key)] = value
    return renamed


def _dinov2_in_timm(state: State) -> State | None:
    """DINOv2's hub files in timm's names: registers, whose models keep the [CLS] position in the token itself, and gated units."""
    if not any(key.endswith(".ls1.gamma") for key in state) or "cls_token" not in state or "pos_embed" not in state:
        return None
    gated = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    renamed = {re.sub("|".join(map(re.escape, gated)), lambda match: gated[match[0]], key): value for key, value in state.items()}
    if "register_tokens" in renamed:
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return renamed


SPELLINGS: dict[str, Callable[[State], State | None]] = {
    "": lambda state: state,
    "layers of a Sequential": _sequential,
    "blocks in chunks": _chunked,
    "XCiT in timm's names": _xcit,
    "DINOv2 in timm's names": _dinov2_in_timm,
}


# Architectures


def infer(state: State, fixed_heads: Mapping[int, int] | None = None) -> Found | str:
    """(architecture, arguments) of a network with its own names (no prefix), or a text that says what is unclear. ``fixed_heads``: width
    -> heads where the layout of the file says so."""
    for spelling in (_sequential, _chunked):
        state = spelling(state) or state
    if "cls_attn_blocks.0.norm1.weight" in state:
        return _infer_xcit(state)
    if "layer1.0.conv1.weight" in state:
        return _infer_resnet(state)
    if "blocks.0.attn.qkv.weight" in state:
        return _infer_vit(state, fixed_heads or {})
    return "no network whose names ViRB knows"


def vit_shapes(state: State) -> dict[str, Any]:
    """Arguments that the shapes of a vision transformer tell; ``img_size`` only where the positions are [CLS] and a square grid."""
    patches = state["patch_embed.proj.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    positions = state["pos_embed"].shape[1] - 1
    side = math.isqrt(max(positions, 0))
    first = state.get("blocks.0.mlp.fc1.weight")
    registers = state.get("register_tokens")
    return {
        "width": width,
        "depth": count(state, r"blocks\.(\d+)\."),
        "patch_size": patch,
        **({"img_size": side * patch} if side and side * side == positions else {}),
        **({"mlp_ratio": first.shape[0] / width} if first is not None else {}),
        "qkv_bias": any(key.endswith(".attn.qkv.bias") for key in state),
        **({"registers": registers.shape[1]} if registers is not None else {}),
        **({"layer_scale": True} if any(key.endswith(".ls1.gamma") for key in state) else {}),
    }


def is_vit(state: State) -> bool:
    """Whether the shapes are those of a vision transformer with a patch embedding of one convolution."""
    patches, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    return patches is not None and patches.ndim == 4 and positions is not None and positions.ndim == 3


def _infer_vit(state: State, fixed_heads: Mapping[int, int]) -> Found | str:
    if "patch_embed.proj.0.weight" in state:
        return "a vision transformer whose patch embedding is several convolutions, which ViRB does not have"
    if "dist_token" in state:
        return "a distilled DeiT (dist_token); name `timm: deit_small_distilled_patch16_224` or its like"
    if not is_vit(state):
        return "a vision transformer without a patch embedding or positions of the usual shape"
    if "norm.weight" not in state:
        return "a vision transformer without a final norm (fine-tuned on the mean of the patches?); name it with `timm:`"
    told = vit_shapes(state)
    width, depth = told["width"], told["depth"]
    if "blocks.0.mlp.w12.weight" in state:
        if (width, depth) != _GIANT:
            return f"a vision transformer {width} wide with gated units, of a size that ViRB does not know; name it with `timm:`"
        registers = "_reg4" if "registers" in told else ""
        return f"timm:vit_giant_patch14{registers}_dinov2", {"img_size": told.get("img_size", 518)}
    if "img_size" not in told:
        shape = f"{state['pos_embed'].shape[1]} positions, which are not [CLS] and a square grid"
        return f"a vision transformer with {shape}; try arch: vit with args: {{img_size: [height, width]}}"
    heads = fixed_heads.get(width, KNOWN_HEADS.get((width, depth)))
    if heads is None:
        advice = "(try arch: vit with args: {heads: N})"
        return f"a vision transformer {width} wide and {depth} deep, whose shapes do not tell its number of heads {advice}"
    if width in MOCOV3_HEADS and not fixed_heads and not state["pos_embed"][0, 0].any():
        return (
            f"a ViT-S with fixed sine positions: MoCo v3's has {MOCOV3_HEADS[width]} heads, others {heads}, and no shape tells which; "
            f"say arch: vit with args: {{heads: {MOCOV3_HEADS[width]}}}, or arch: vit_small"
        )
    return next((name for name, size in SIZES.items() if size == (width, depth, heads)), "vit"), {**told, "heads": heads}


def _infer_resnet(state: State) -> Found | str:
    """torchvision's models by blocks and widths. What has no tensor cannot be told: where a block strides, and timm's blur pooling
    (``resnetblur50``), whose filters only older versions and other packages wrote."""
    if any(key.endswith(".filt") for key in state):
        return "a residual network with anti-aliasing (blur pooling), which torchvision does not have; name it with `timm:` or `module:`"
    blocks = tuple(count(state, rf"layer{layer}\.(\d+)\.") for layer in (1, 2, 3, 4))
    stem, first = state["conv1.weight"], state.get("layer1.0.conv2.weight")
    if first is None or not all(blocks):
        return f"a residual network of {'-'.join(map(str, blocks))} blocks, which is not a whole torchvision ResNet"
    if stem.shape[-1] != 7:
        kind = f"a first convolution of {stem.shape[-1]}x{stem.shape[-1]} (a variant for small images)"
        return f"a residual network with {kind}, which torchvision does not have; name its class with `module:`"
    name = RESNETS.get((blocks, "layer1.0.conv3.weight" in state, first.shape[0], first.shape[1]))  # type: ignore[arg-type]
    if name is None:
        return f"a residual network of {'-'.join(map(str, blocks))} blocks, {first.shape[0]} wide at first, that torchvision does not have"
    return name, {}


def _infer_xcit(state: State) -> Found | str:
    """timm's models by width, depth and patch; the stem halves the image once per convolution."""
    width, depth = state["cls_token"].shape[-1] if "cls_token" in state else 0, count(state, r"blocks\.(\d+)\.")
    patch = 2 ** len([key for key in state if re.fullmatch(r"patch_embed\.proj\.\d+\.0\.weight", key)])
    if width not in _XCITS or patch not in (8, 16):
        return f"an XCiT {width} wide and {depth} deep with patches of {patch}, which timm does not have"
    return f"timm:xcit_{_XCITS[width]}_{depth}_p{patch}_224", {}


def count(state: State, pattern: str) -> int:
    """One more than the highest number that the pattern finds at the start of a key; 0 when there is none."""
    return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)
