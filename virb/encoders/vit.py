"""Vision transformers with the key names of DINO and DINOv2: any patch size, any resolution, non-square grids.

What DINO's own methods return, as requests (equal on the same weights with ``position_mode="dino"``):

    forward(x)                      embedding, which is cls[-1]
    get_intermediate_layers(x, n)   cls[-n:] and tokens[-n:], each through the final norm
    get_last_selfattention(x)       attention[-1]: its [CLS] row over the patches, the part that is ever used; all rows
                                    are softmax(queries[-1] · keys[-1] / sqrt(d)), for those who have the memory
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virb.encoders.attention import INSIDE, PARTS, first_row
from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Single, Stage, evenly_spaced
from virb.encoders.registry import register_encoder
from virb.errors import ViRBError

PositionMode = Literal["exact", "dino", "antialias"]

SIZES = {  # width, depth, heads
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}
HEADS = {width: heads for width, _, heads in SIZES.values()}  # of the widths whose number of heads is not in doubt


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        queries, keys, values = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    def part(self, name: str, x: Tensor) -> Tensor:
        """B x N x D -> one of ``PARTS``, B x heads x N x d. Only that third of the projection is computed, so that nothing else is kept."""
        batch, tokens, width = x.shape
        third = slice(PARTS.index(name) * width, (PARTS.index(name) + 1) * width)
        bias = None if self.qkv.bias is None else self.qkv.bias[third]
        return F.linear(x, self.qkv.weight[third], bias).reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

    def cls_row(self, x: Tensor) -> Tensor:
        """B x N x D -> B x heads x N: how much [CLS] attends to each token. Linear in N: no other row is computed."""
        return first_row(self.part("queries", x[:, :1]), self.part("keys", x)).squeeze(2)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel of a branch; starts near zero, as in DINOv2's training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, qkv_bias: bool, ln_eps: float, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=ln_eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=ln_eps)
        self.mlp = Mlp(width, hidden)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """One [CLS] token, then ``registers`` tokens without positions, learned positions, pre-norm blocks. ``img_size``: (height, width) in
    pixels of the stored positions' grid.

    ``position_mode`` decides the values where the grid is not the stored one. Parity with published numbers needs the mode of the
    original code:

    exact      bicubic to the grid; the default
    dino       bicubic by the scale factor (side + 0.1) / stored side, which shifts the samples a little, non-square images with the
               stored number of patches included: DINO, iBOT, and the files of DINOv2 without registers
    antialias  bicubic to the grid with torch's antialias filter: the files of DINOv2 with registers, and timm's ViTs
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        patch_size: int,
        img_size: tuple[int, int],
        mlp_ratio: float,
        qkv_bias: bool,
        ln_eps: float,
        registers: int,
        layer_scale: bool,
        position_mode: PositionMode,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.position_mode = position_mode
        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.prefix_tokens = 1 + registers
        self.blocks = nn.ModuleList(Block(width, heads, round(width * mlp_ratio), qkv_bias, ln_eps, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=ln_eps)
        self._initialise()

    def _initialise(self) -> None:
        """As DINO: truncated normal 0.02 for linear layers, positions and [CLS]; the patch embedding keeps torch's own start."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.register_tokens is not None:
            nn.init.trunc_normal_(self.register_tokens, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def positions(self, height: int, width: int) -> Tensor:
        """1 x (1 + h·w) x D for an image of height x width pixels."""
        rows, columns = height // self.patch_size, width // self.patch_size
        if self.position_mode == "dino":
            stored = rows * columns == self.grid[0] * self.grid[1] and height == width  # so 112x448 is interpolated too, as there
        else:
            stored = (rows, columns) == self.grid
        if stored:
            return self.pos_embed
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        raster = patches.reshape(1, *self.grid, -1).permute(0, 3, 1, 2)
        if self.position_mode == "dino":
            scale = ((rows + 0.1) / self.grid[0], (columns + 0.1) / self.grid[1])
            raster = F.interpolate(raster, scale_factor=scale, mode="bicubic")
        else:
            raster = F.interpolate(raster, size=(rows, columns), mode="bicubic", antialias=self.position_mode == "antialias")
        if raster.shape[2:] != (rows, columns):
            raise ViRBError(f"position_mode dino gives no {rows} x {columns} grid from {self.grid}; use position_mode exact")
        return torch.cat([cls, raster.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block, B x (prefix + h·w) x D, patches row by row, and (h, w). Pixels past the last patch are dropped."""
        maps = self.patch_embed(images)
        patches = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + self.positions(images.shape[2], images.shape[3])
        if self.register_tokens is not None:
            tokens = torch.cat([tokens[:, :1], self.register_tokens.expand(len(images), -1, -1), tokens[:, 1:]], dim=1)
        return tokens, (maps.shape[2], maps.shape[3])

    def forward(self, images: Tensor) -> Tensor:
        """[CLS] after the final norm, B x D."""
        x, _ = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])


class ViTEncoder(Encoder):
    family = "vit"
    ignored = ("head.", "fc.", "head_dist.", "mask_token", "masked_embed", "decoder_")
    network: VisionTransformer

    def __init__(self, network: VisionTransformer, arguments: Mapping[str, Any]) -> None:
        width, depth, heads = arguments["width"], arguments["depth"], arguments["heads"]
        known = next((name for name, size in SIZES.items() if size == (width, depth, heads)), f"vit_{width}x{depth}h{heads}")
        draft = EncoderSpec(
            name="",
            embed_dim=width,
            patch_size=network.patch_size,
            stages=tuple(Stage(f"tokens[{block}]", width, network.patch_size) for block in evenly_spaced(depth)),
            n_heads=heads,
            input=InputSpec(size=tuple(arguments["img_size"]), interpolation="bicubic"),
            n_params=0,
            encoder_id="",
            source="",
            family=self.family,
            format=self.format,
            outputs=("embedding", "cls", "tokens", "pyramid", *INSIDE),
            architecture=f"{known}/{network.patch_size}" + (f" reg{arguments['registers']}" if arguments["registers"] else ""),
            depth=depth,
            position_mode=network.position_mode,
        )
        super().__init__(network, draft, arguments)

    def _outputs(self, images: Tensor, wanted: Collection[Single]) -> dict[Single, Tensor]:
        last = len(self.network.blocks) - 1
        found: dict[Single, Tensor] = {}
        # what a block reads (attention, queries ...) needs the blocks before it, what it gives needs the block itself
        inside = {single: single.block for single in wanted if single.name in INSIDE}
        after = {single: last if single.block is None else single.block for single in wanted if single not in inside}
        stop = max(after.values(), default=-1)
        x, grid = self.network.embed(images)
        for i, block in enumerate(self.network.blocks):
            here = [single for single, at in inside.items() if at == i]
            if here:
                found.update(self._inside(block, x, grid, here))
            if i > stop and all(at is None or at <= i for at in inside.values()):
                break
            x = block(x)
            for single in (single for single, at in after.items() if at == i):
                found[single] = self._after(x, grid, single)
        return found

    def _after(self, x: Tensor, grid: tuple[int, int], single: Single) -> Tensor:
        if single.name in ("embedding", "cls"):
            return self.network.norm(x[:, 0]) if single.norm else x[:, 0].clone()  # a view would keep all tokens alive
        tokens = x[:, self.network.prefix_tokens :]
        if single.norm:
            tokens = self.network.norm(tokens)
        return tokens.transpose(1, 2).unflatten(2, grid)

    def _inside(self, block: Any, x: Tensor, grid: tuple[int, int], singles: Collection[Single]) -> dict[Single, Tensor]:
        normed = block.norm1(x)
        found: dict[Single, Tensor] = {}
        for single in singles:
            if single.name == "attention":
                found[single] = block.attn.cls_row(normed)[:, :, self.network.prefix_tokens :].unflatten(2, grid)
            else:
                found[single] = block.attn.part(single.name, normed)
        return found


@register_encoder("vit")
def vit(
    *,
    width: int,
    depth: int,
    heads: int,
    patch_size: int = 16,
    img_size: int | tuple[int, int] | list[int] = 224,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    ln_eps: float = 1e-6,
    registers: int = 0,
    layer_scale: bool = False,
    position_mode: PositionMode = "exact",
) -> ViTEncoder:
    """A vision transformer of any size. ``img_size``: side, or (height, width), in pixels that the positions were trained at;
    ``registers``: how many tokens besides [CLS] and the patches; ``layer_scale``: whether branches have a learned factor (both: DINOv2)."""
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    counts = {"width": width, "depth": depth, "heads": heads, "patch_size": patch_size}
    for name, value in (*counts.items(), *(("img_size", side) for side in sides)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
    if len(sides) != 2 or min(sides) < patch_size:
        raise ValueError(f"img_size is {img_size!r}; expected one side or [height, width], of at least one patch ({patch_size})")
    if width % heads:
        raise ValueError(f"width {width} cannot be split into {heads} heads")
    if not isinstance(registers, int) or isinstance(registers, bool) or registers < 0:
        raise ValueError(f"registers is {registers!r}; expected a whole number of at least 0")
    if position_mode not in get_args(PositionMode):
        raise ValueError(f"position_mode is {position_mode!r}; expected {', '.join(get_args(PositionMode))}")
    arguments: dict[str, Any] = {
        **counts,
        "img_size": list(sides),
        "mlp_ratio": float(mlp_ratio),
        "qkv_bias": bool(qkv_bias),
        "ln_eps": float(ln_eps),
        "registers": registers,
        "layer_scale": bool(layer_scale),
        "position_mode": position_mode,
    }
    network = VisionTransformer(**{**arguments, "img_size": (sides[0], sides[1])})
    return ViTEncoder(network, arguments)


for _name, (_width, _depth, _heads) in SIZES.items():
    register_encoder(_name)(partial(vit, width=_width, depth=_depth, heads=_heads))
