"""Backbones that can be trained: ViRB's own vision transformers with drop path, torchvision's networks, any timm model.

Own ViTs have DINO's names (and ``deit_*`` for ``vit_*``), or any size by embed_dim, depth and num_heads; ``timm:NAME`` is timm's; any
other name is torchvision's. All are drawn anew. The modules keep their own state-dict keys, so that a checkpoint's ``backbone.*`` are
those of the original and of ViRB's encoders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from virb.encoders.resnet import NAMES as RESNETS
from virb.encoders.torchvision import ARCH as TORCHVISION
from virb.encoders.torchvision import make_network
from virb.encoders.vit import HEADS, SIZES, PositionMode, VisionTransformer
from virb.errors import UserError, did_you_mean
from virb.functional.randomness import torch_generator
from virb.pretraining.heads import Extract

TIMM = "timm:"
_REFUSED = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)  # what other people's networks raise for an image size


def noise(seed: int, step: int, samples: Tensor, views: int, width: int) -> Tensor | None:
    """B x views x width numbers, uniform in [0, 1), for the images ``samples`` (indices in the data set) at a step: the same whatever else
    is in the batch and whichever rank has it. None for ``width`` 0."""
    if not width:
        return None
    draws = [torch.rand(views, width, generator=torch_generator(seed, "network noise", step, sample)) for sample in samples.tolist()]
    return torch.stack(draws)


class TrainableViT(VisionTransformer):
    """The encoder's vision transformer with drop path.

    In training, a block leaves out its attention or its MLP for images whose number in ``noise`` (N x 2 * depth) is below the block's rate,
    and divides what stays by the share that stays. Rates rise in a line from 0 in the first block to ``drop_path_rate`` in the last.
    ``checkpointing`` computes blocks again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        patch_size: int,
        img_size: int,
        drop_path_rate: float = 0.0,
        position_mode: PositionMode = "exact",
    ) -> None:
        super().__init__(
            width,
            depth,
            heads,
            patch_size,
            (img_size, img_size),
            mlp_ratio=4.0,
            qkv_bias=True,
            ln_eps=1e-6,
            registers=0,
            layer_scale=False,
            position_mode=position_mode,
        )
        self.drop_rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.checkpointing = False

    def tokens(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """All tokens after the last block, before the final norm; N x (1 + h·w) x D."""
        x, _ = self.embed(images)
        for i, (block, rate) in enumerate(zip(self.blocks, self.drop_rates, strict=True)):
            draws = noise[:, 2 * i : 2 * i + 2] if noise is not None and rate > 0 and self.training else None
            if self.checkpointing and self.training:
                x = checkpoint(_through, block, x, draws, rate, use_reentrant=False)
            else:
                x = _through(block, x, draws, rate)
        return x

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[CLS] after the final norm, N x D."""
        return self.norm(self.tokens(images, noise)[:, 0])


def _through(block: Any, x: Tensor, draws: Tensor | None, rate: float) -> Tensor:
    """``Block.forward`` with drop path; ``draws``: N x 2, one number for each branch."""
    if draws is None:
        return block(x)
    stays = (draws >= rate).to(x.dtype) / (1.0 - rate)
    x = x + stays[:, :1, None] * block.ls1(block.attn(block.norm1(x)))
    return x + stays[:, 1:, None] * block.ls2(block.mlp(block.norm2(x)))


@dataclass(frozen=True)
class BackboneConfig:
    """``image_sizes``: sides in pixels of the images that it has to take, the largest first. None of embed_dim, depth, num_heads: those of
    ``arch``."""

    arch: str
    patch_size: int
    image_sizes: tuple[int, ...]
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    position_mode: PositionMode = "exact"


@dataclass(frozen=True)
class Backbone:
    """``build(drop_path_rate)`` makes one; ``extract`` reads it (see ``MultiCrop``); ``noise_width``: how many numbers each image needs;
    ``drop_path``: whether the rate does anything."""

    build: Callable[[float], nn.Module]
    extract: Extract
    width: int
    noise_width: int = 0
    drop_path: bool = True


def find_backbone(config: BackboneConfig, tokens: bool) -> Backbone:
    """With one feature per image, or with all tokens after the final norm, [CLS] first. UserError when there is no such thing."""
    if is_own_vit(config.arch):
        return _own_vit(config, tokens)
    if not config.arch.startswith(TIMM):
        _check_torchvision(config.arch)
    if config.embed_dim or config.depth or config.num_heads:
        raise UserError(f"embed_dim, depth and num_heads are for ViRB's own ViTs; {config.arch} has its own size")
    if config.arch.startswith(TIMM):
        return _timm(config, tokens)
    return _torchvision(config, tokens)


def own_name(arch: str) -> str:
    """``deit_small`` is ``vit_small``, as in the original."""
    return arch.replace("deit", "vit") if arch in ("deit_tiny", "deit_small", "deit_base") else arch


def is_own_vit(arch: str) -> bool:
    return own_name(arch) in ("vit", *SIZES)


def own_size(config: BackboneConfig) -> tuple[int, int, int]:
    """Width, depth and heads of one of our ViTs."""
    width, depth, heads = SIZES.get(own_name(config.arch), (None, None, None))
    width, depth = config.embed_dim or width, config.depth or depth
    heads = config.num_heads or heads or HEADS.get(width or 0)
    if width is None or depth is None or heads is None:
        raise UserError("arch vit needs embed_dim, depth and num_heads")
    if width % heads:
        raise UserError(f"embed_dim {width} cannot be split into {heads} heads")
    return width, depth, heads


def noise_width(config: BackboneConfig) -> int:
    """How many numbers per image and view the backbone's drop path needs; 0 for networks of others, which draw their own."""
    return 2 * own_size(config)[1] if is_own_vit(config.arch) else 0


def noted_encoder(network: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Architecture and arguments of the encoder that the backbone in ``network`` is, for the checkpoint; None where names and shapes of its
    tensors tell."""
    return next((found for module in network.modules() if (found := getattr(module, _NOTE, None)) is not None), None)


_NOTE = "virb_encoder"


def _noting(network: nn.Module, architecture: str, arguments: dict[str, Any]) -> nn.Module:
    setattr(network, _NOTE, (architecture, arguments))
    return network


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Batch norms whose statistics are those of the joint batch of all ranks (the original, for student and teacher). GPUs only: on CPUs
    there is ``join_batch_norm``."""
    if any(type(module).__module__.startswith("timm.") for module in network.modules()):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(network)  # torch's own would leave out the activations inside timm's batch norms
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def use_checkpointing(network: nn.Module) -> bool:
    """Less memory for more time in all backbones that know how; False when none does."""
    found = False
    for module in network.modules():
        if isinstance(module, TrainableViT):
            module.checkpointing = found = True
        elif (switch := getattr(module, "set_grad_checkpointing", None)) is not None:  # timm's name for it
            switch(True)
            found = True
    return found


def _own_vit(config: BackboneConfig, tokens: bool) -> Backbone:
    width, depth, heads = own_size(config)
    for size in config.image_sizes:
        if size % config.patch_size:
            raise UserError(f"patches of {config.patch_size} pixels do not divide views of {size}; change patch_size or the views' size")
    return Backbone(
        lambda rate: TrainableViT(width, depth, heads, config.patch_size, config.image_sizes[0], rate, config.position_mode),
        _own_tokens if tokens else _own_cls,
        width,
        noise_width(config),
    )


def _own_cls(backbone: TrainableViT, images: Tensor, noise: Tensor | None) -> Tensor:
    return backbone(images, noise)


def _own_tokens(backbone: TrainableViT, images: Tensor, noise: Tensor | None) -> Tensor:
    return backbone.norm(backbone.tokens(images, noise))


def _timm(config: BackboneConfig, tokens: bool) -> Backbone:
    import timm

    name = config.arch.removeprefix(TIMM)
    bare = name.split(".")[0]
    if not timm.is_model(bare):
        raise UserError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")

    def build(drop_path_rate: float) -> nn.Module:
        arguments = {**taken, "drop_path_rate": drop_path_rate} if "drop_path_rate" in taken else taken
        network = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
        return _noting(network, f"{TIMM}{bare}", {key: taken[key] for key in taken if key == "img_size"})

    network, taken = _taken_by_timm(name, config.image_sizes[0])
    if tokens and (not hasattr(network, "num_prefix_tokens") or getattr(network, "cls_token", None) is None):
        raise UserError(f"timm's {name} has no [CLS] and patch tokens; take a ViT with a class token")
    extract = _timm_tokens if tokens else _pooled
    return Backbone(build, extract, _width(config, network, extract), drop_path="drop_path_rate" in taken)


def _taken_by_timm(name: str, side: int) -> tuple[Any, dict[str, Any]]:
    """A network, and what it takes of what we would like to tell it. They differ: ViTs take all of it, Mixers no other size later on, most
    convolutional ones only drop path, and VGGs nothing."""
    import timm

    sizes: list[dict[str, Any]] = [{"dynamic_img_size": True, "img_size": side}, {"img_size": side}, {}]
    rates: list[dict[str, Any]] = [{"drop_path_rate": 0.0}, {}]
    refused: Exception | None = None
    for size in sizes:
        for rate in rates:
            try:
                return timm.create_model(name, pretrained=False, num_classes=0, **size, **rate), {**size, **rate}
            except TypeError as error:
                refused = error
    raise UserError(f"timm's {name} cannot be built: {refused}")


def _timm_tokens(backbone: Any, images: Tensor, noise: Tensor | None) -> Tensor:
    x = backbone.forward_features(images)
    return torch.cat([x[:, :1], x[:, backbone.num_prefix_tokens :]], dim=1)  # registers are no patches


def _check_torchvision(arch: str) -> None:
    from torchvision import models

    names = models.list_models(module=models)
    if arch not in names:
        valid = ["vit", *SIZES, *names]
        raise UserError(f"no network {arch!r}{did_you_mean(arch, valid)} (ViRB's ViTs, timm:NAME, or torchvision's names)")


def _torchvision(config: BackboneConfig, tokens: bool) -> Backbone:
    if tokens:
        raise UserError(f"{config.arch} has no [CLS] and patch tokens; take vit_tiny, vit_small, vit_base, vit_large or a ViT of timm")

    def build(drop_path_rate: float) -> nn.Module:  # torchvision's networks have rates of their own
        network = make_network(config.arch)
        return network if config.arch in RESNETS else _noting(network, TORCHVISION, {"model": config.arch})

    return Backbone(build, _pooled, _width(config, build(0.0), _pooled), drop_path=False)


def _pooled(backbone: nn.Module, images: Tensor, noise: Tensor | None) -> Tensor:
    features = backbone(images)
    return features if isinstance(features, Tensor) else features[0]


@torch.no_grad()
def _width(config: BackboneConfig, network: nn.Module, extract: Extract) -> int:
    """Tried on black images of every size, because other people's networks know best what they take; some take more when they only look
    than when they train."""
    width = 0
    for size in config.image_sizes:
        try:
            with torch.random.fork_rng(devices=[]):  # dropout
                extract(network.train(), torch.zeros(2, 3, size, size), None)
            features = extract(network.eval(), torch.zeros(1, 3, size, size), None)
        except _REFUSED as error:
            raise UserError(f"{config.arch} cannot take views of {size} x {size} pixels: {error}") from error
        if features.ndim not in (2, 3):
            raise UserError(f"{config.arch} gives features of shape {tuple(features.shape)}; expected one vector per image")
        if features.ndim == 3 and features.shape[1] - 1 != (size // config.patch_size) ** 2:
            patches = features.shape[1] - 1
            raise UserError(
                f"{config.arch} makes {patches} patches of a view of {size} x {size} pixels, not of {config.patch_size} pixels each; "
                f"set patch_size to {round(size / patches**0.5)}"
            )
        width = features.shape[-1]
    return width


def copy_weights(teacher: nn.Module, student: nn.Module) -> None:
    """The teacher starts as the student, buffers included, and takes no gradients."""
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
