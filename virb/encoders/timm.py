"""Any timm model: its pooled feature, and its maps through ``forward_intermediates``; preprocessing from its own pretrained config."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from virb.encoders.attention import INSIDE, AttentionWatch
from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Single, Stage, evenly_spaced
from virb.errors import UserError, ViRBError, did_you_mean

# What lets a model take any input size, by the names that timm's families have for it; a family without one keeps its own size.
_ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
_WITHOUT_NORM = ("Hiera", "HieraDet")  # classes whose forward_intermediates refuses norm=True: their maps are raw
_STRIDES = {("TResNet", 0): 4}  # where feature_info errs: the stem of TResNet folds 4 x 4 pixels
_TWO_MAPS = ("DiffAttention",)  # attention that is a difference of two: neither has a row of its own


class TimmEncoder(Encoder):
    """``tokens[i]``: block i of a ViT-like model, stage i of a convnet or hierarchical one. Norm: the model's own final norm, as timm's
    ``forward_intermediates(norm=True)`` applies it (to the last stage only in hierarchical models; SAM's norm is its neck, which changes
    the number of channels). Models with a [CLS] token in blocks of plain attention also have ``attention``, ``queries``, ``keys`` and
    ``values``, taken where the product is: after the norms, biases and rotations of the family."""

    family = "timm"
    network: Any

    def __init__(self, network: Any, name: str, arguments: Mapping[str, Any]) -> None:
        maps = _feature_maps(network)
        self_similar = len({stride for _, stride in maps}) == 1
        levels = evenly_spaced(len(maps)) if self_similar and maps else range(len(maps))
        with_cls = _has_cls(network)
        layers = _attention_layers(network, len(maps)) if with_cls else {}
        self._can_norm = type(network).__name__ not in _WITHOUT_NORM
        draft = EncoderSpec(
            name="",
            embed_dim=int(getattr(network, "head_hidden_size", None) or network.num_features),
            patch_size=_patch_size(network),
            stages=tuple(Stage(f"tokens[{i}]", *maps[i]) for i in levels),
            n_heads=_heads(network),
            input=_input_spec(network, arguments),
            n_params=0,
            encoder_id="",
            source="",
            family=self.family,
            format=self.format,
            outputs=("embedding", *(("cls",) if with_cls else ()), *(("tokens", "pyramid") if maps else ()), *(INSIDE if layers else ())),
            architecture=f"timm:{name}",
            depth=max(1, len(maps)),
        )
        super().__init__(network, draft, arguments)
        self.ignored = tuple(f"{head}." for head in _classifiers(network))
        self._own_size = self.spec.input.size

    def _outputs(self, images: Tensor, wanted: Collection[Single]) -> dict[Single, Tensor]:
        try:
            return self._compute(images, wanted)
        except (AssertionError, RuntimeError) as error:
            size = (images.shape[2], images.shape[3])
            if size == self._own_size or isinstance(error, torch.OutOfMemoryError):
                raise
            own, here = ("x".join(map(str, sides)) for sides in (self._own_size, size))
            advice = f"use input: {{size: {list(self._own_size)}}}, or args: {{img_size: {list(size)}}} if the model has that"
            what = f"{self.spec.architecture} is for {own} images and fails on {here}"
            raise ViRBError(f"{self.spec.name}: {what} ({error}); {advice}") from error

    def _compute(self, images: Tensor, wanted: Collection[Single]) -> dict[Single, Tensor]:
        found: dict[Single, Tensor] = {}
        pooled = next((single for single in wanted if single.name == "embedding"), None)
        inside = [single for single in wanted if single.name in INSIDE]
        maps = [single for single in wanted if single.block is not None and single.name not in INSIDE]
        # timm norms all maps of a forward or none: asking for both takes two forwards
        for norm in sorted({single.norm for single in maps} or ({False} if inside else set())):
            with_final = pooled is not None and pooled not in found
            final, some = self._maps(images, [single for single in maps if single.norm == norm], inside, norm, with_final)
            found.update(some)
            inside = []
            if final is not None and pooled is not None:
                found[pooled] = self.network.forward_head(final, pre_logits=True)
        if pooled is not None and pooled not in found:
            found[pooled] = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return found

    def _maps(
        self, images: Tensor, singles: Collection[Single], inside: Collection[Single], norm: bool, with_final: bool
    ) -> tuple[Tensor | None, dict[Single, Tensor]]:
        blocks = sorted({single.block for single in (*singles, *inside) if single.block is not None})
        with_cls = any(single.name == "cls" for single in singles)
        parts = {block: names for block in blocks if (names := {single.name for single in inside if single.block == block})}
        with AttentionWatch(_attention_layers(self.network, self.spec.depth), parts) if inside else nullcontext() as watch:
            answer = self.network.forward_intermediates(
                images,
                indices=blocks,
                norm=norm and self._can_norm,
                output_fmt="NCHW",
                intermediates_only=not with_final,
                stop_early=not with_final,
                **({"return_prefix_tokens": True} if with_cls else {}),
            )
        final, levels = answer if with_final else (None, answer)
        place = dict(zip(blocks, levels, strict=True))
        found: dict[Single, Tensor] = {}
        for single in singles:
            assert single.block is not None
            level = place[single.block]
            if single.name == "cls":
                found[single] = level[1][:, 0].clone()  # a view would keep all tokens alive
            else:
                found[single] = level[0] if with_cls else level
        for single in inside:
            assert single.block is not None
            level = place[single.block]
            found[single] = self._seen(watch, single, (level[0] if with_cls else level).shape[2:])
        return final, found

    def _seen(self, watch: Any, single: Single, grid: tuple[int, int]) -> Tensor:
        part = watch.found.get((single.block, single.name))
        if part is None:
            raise ViRBError(f"{self.spec.architecture} gives no {single.name}: timm's fused attention is off (TIMM_FUSED_ATTN=0)")
        return part[:, :, self.network.num_prefix_tokens :].unflatten(2, grid) if single.name == "attention" else part


def create(name: str, arguments: Mapping[str, Any], pretrained: bool) -> TimmEncoder:
    """An unsealed encoder; pretrained weights come from the hub's cache, else from the network. UserError says what is wrong."""
    import timm

    bare = name.partition(".")[0]
    if "checkpoint_path" in arguments:
        raise UserError(f"timm:{name}: a file of weights is named by `weights:`, not by args: {{checkpoint_path: ...}}")
    if "/" not in name and not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{did_you_mean(bare, timm.list_models())}")
    if pretrained and "act_layer" not in arguments:
        _check_activation(name)
    for any_size in _ANY_SIZE:
        options = {**any_size, **arguments}
        try:
            network = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            added = [key for key in any_size if key not in arguments]
            if any(f"'{key}'" in str(error) for key in added):
                continue
            raise UserError(f"timm:{name} does not take {dict(arguments)}: {error}") from error
        except OSError as error:
            raise UserError(_offline(name, error)) from error
        except RuntimeError as error:
            raise UserError(f"timm:{name}: {error}") from error
        return TimmEncoder(network, name, arguments)
    raise UserError(f"timm:{name} cannot be built")


def _check_activation(name: str) -> None:
    """UserError where timm notes that these weights were trained with QuickGELU and the model of this name has GELU: the outputs would
    be those of neither. timm only says so in the notes of the weights; its variants with QuickGELU have the same weights."""
    import timm

    label = name.rpartition("/")[2]  # hf-hub:timm/NAME has the notes of NAME
    config = timm.get_pretrained_cfg(label) if timm.is_model_pretrained(label) else None
    if config is None or "quickgelu" in label or not any("quickgelu" in str(note).lower() for note in config.notes or ()):
        return
    variant = label.replace("_clip_", "_clip_quickgelu_")
    advice = f"timm: {variant}" if timm.is_model(variant) else "its quickgelu variant"
    raise UserError(f"timm:{name} has GELU, but its pretrained weights were trained with QuickGELU\n  try   {advice}")


def describe_pretrained(network: nn.Module) -> str:
    """One line: which of timm's weights these are."""
    config = getattr(network, "pretrained_cfg", {})
    tag = f".{config['tag']}" if config.get("tag") else ""
    origin = config.get("hf_hub_id") or config.get("url") or "timm"
    return f"timm:{config.get('architecture', type(network).__name__)}{tag}, pretrained weights of {origin}"


def _offline(name: str, error: OSError) -> str:
    from huggingface_hub import constants

    older = Path(torch.hub.get_dir()) / "checkpoints"
    return (
        f"cannot get the pretrained weights of timm:{name} ({type(error).__name__})\n"
        f"  without a network, fill the cache {constants.HF_HUB_CACHE} (or {older} for timm's older addresses)\n"
        f"  from a machine that has one, or name a file with `weights:`"
    )


def _feature_maps(network: nn.Module) -> list[tuple[int, int]]:
    """(channels, stride) of each map that ``forward_intermediates`` can give; empty when the model does not have it."""
    if not hasattr(network, "forward_intermediates"):
        return []
    info = getattr(network, "feature_info", [])
    kind = type(network).__name__
    return [
        (int(item.get("num_chs_norm", item["num_chs"])), _STRIDES.get((kind, i), int(item["reduction"])))
        for i, item in enumerate(getattr(info, "info", info))
    ]


def _patch_size(network: Any) -> int | None:
    """The side that images must be a multiple of; None for convnets and for patches that overlap."""
    embed = getattr(network, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    projection = getattr(embed, "proj", None)
    if patch is None or (isinstance(projection, nn.Conv2d) and projection.stride != projection.kernel_size):
        return None
    return max(patch) if isinstance(patch, tuple | list) else int(patch)


def _has_cls(network: Any) -> bool:
    if getattr(network, "cls_token", None) is None or not hasattr(network, "forward_intermediates"):
        return False
    return "return_prefix_tokens" in inspect.signature(network.forward_intermediates).parameters


def _attention_layers(network: Any, depth: int) -> dict[int, nn.Module]:
    """The attention of each block, by number; empty unless all are plain products of queries and keys over all tokens."""
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) != depth or not getattr(network, "num_prefix_tokens", 0):
        return {}
    layers = {number: layer for number, block in enumerate(blocks) if isinstance(layer := getattr(block, "attn", None), nn.Module)}
    plain = all(hasattr(layer, "fused_attn") and type(layer).__name__ not in _TWO_MAPS for layer in layers.values())
    return layers if plain and len(layers) == depth else {}


def _heads(network: nn.Module) -> int | None:
    blocks = getattr(network, "blocks", None)
    attention = getattr(blocks[-1], "attn", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else None
    return getattr(attention, "num_heads", None)


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    names = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _input_spec(network: nn.Module, arguments: Mapping[str, Any]) -> InputSpec:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    interpolation = config["interpolation"]
    spec = InputSpec(
        size=(config["input_size"][1], config["input_size"][2]),
        resize="squash" if config["crop_mode"] == "squash" else "shorter",
        crop="none" if config["crop_mode"] == "squash" else "center",
        crop_pct=float(config["crop_pct"]),
        interpolation=interpolation if interpolation in ("nearest", "bilinear", "bicubic") else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    return spec.override({"size": arguments["img_size"]}) if arguments.get("img_size") else spec
