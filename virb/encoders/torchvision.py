"""torchvision's other classification networks, without their classifier: what pretraining can train besides ViTs, ResNets and timm's."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Single, Stage
from virb.encoders.registry import register_encoder
from virb.encoders.resnet import NAMES as RESNETS
from virb.errors import ViRBError, did_you_mean

ARCH = "torchvision"
_HEADS = ("classifier", "head", "heads", "fc")
# Without a classifier nothing would train the auxiliary ones, and they ask for larger images.
_PLAIN: dict[str, dict[str, Any]] = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}
_NO_MAPS = (*_HEADS, "permute", "conv_proj")  # another view of the last map, and a ViT's patches before the first block
_CHANNELS_LAST = ("SwinTransformer",)  # classes whose maps are N x h x w x C inside


class TorchvisionEncoder(Encoder):
    """``embedding`` is what the network gives once its last linear layer is the identity (VGG: 4096 numbers after the second hidden layer).
    ``tokens[i]`` are its maps, the last one of each halving of the image; networks without maps have the embedding alone."""

    family = "torchvision"
    network: Any
    ignored = tuple(f"{name}." for name in _HEADS)

    def __init__(self, network: nn.Module, name: str) -> None:
        draft = EncoderSpec(
            name="",
            embed_dim=0,
            patch_size=None,
            stages=(),
            n_heads=None,
            input=InputSpec(),
            n_params=0,
            encoder_id="",
            source="",
            family=self.family,
            format=self.format,
            outputs=("embedding",),
            architecture=f"{ARCH}:{name}",
        )
        super().__init__(network, draft, {"model": name})
        self._levels: list[str] = []
        self._learn_spec()

    def _learn_spec(self) -> None:
        """Width and maps, from one forward on a black image."""
        from dataclasses import replace

        side = self.spec.input.size[0]
        seen: list[tuple[str, tuple[int, ...]]] = []
        with torch.no_grad():
            black, names = torch.zeros(1, 3, side, side), _map_names(self.network)
            embedding = self._run(black, names, lambda name, x: seen.append((name, tuple(x.shape))))
        by_halving = {round(math.log2(side / shape[2])): (name, shape) for name, shape in seen if shape[2] > 1}
        maps = [by_halving[key] for key in sorted(by_halving)]
        self._levels = [name for name, _ in maps]
        stages = tuple(Stage(f"tokens[{i}]", shape[1], round(side / shape[2])) for i, (_, shape) in enumerate(maps))
        outputs = ("embedding", *(("tokens", "pyramid") if maps else ()))
        self.spec = replace(self.spec, embed_dim=embedding.shape[1], stages=stages, outputs=outputs, depth=max(1, len(maps)))

    def _outputs(self, images: Tensor, wanted: Collection[Single]) -> dict[Single, Tensor]:
        blocks = [single.block for single in wanted if single.block is not None]
        last = self._levels[max(blocks)] if len(blocks) == len(wanted) else None
        found: dict[Single, Tensor] = {}

        def keep(name: str, x: Tensor) -> None:
            for single in wanted:
                if single.block is not None and self._levels[single.block] == name:
                    found[single] = x.clone()  # what comes next may work in place
            if name == last:
                raise _Enough

        try:
            embedding = self._run(images, {self._levels[block] for block in blocks}, keep)
        except _Enough:
            return found
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            size = f"{images.shape[2]}x{images.shape[3]}"
            raise ViRBError(f"{self.spec.name}: {self.spec.architecture} fails on images of {size} pixels ({error})") from error
        return {**found, **{single: embedding for single in wanted if single.block is None}}

    def _run(self, images: Tensor, names: Collection[str], tell: Any) -> Tensor:
        """The embedding; ``tell`` is called with every map of the modules ``names``, N x C x h x w."""
        channels_last = type(self.network).__name__ in _CHANNELS_LAST

        def hook(name: str) -> Any:
            def told(_: nn.Module, __: Any, x: Any) -> None:
                if isinstance(x, Tensor) and x.ndim == 4:
                    tell(name, x.permute(0, 3, 1, 2) if channels_last else x)

            return told

        with ExitStack() as stack:
            for name in names:
                stack.callback(self.network.get_submodule(name).register_forward_hook(hook(name)).remove)
            return self.network(images)


class _Enough(Exception):
    """After the last map that is wanted."""


def _map_names(network: nn.Module) -> list[str]:
    """Modules whose outputs may be maps: parts of the network, of a sequence its parts."""
    found = []
    for name, part in network.named_children():
        if name in _NO_MAPS or isinstance(part, nn.AdaptiveAvgPool2d):
            continue
        inner = [f"{name}.{child}" for child, _ in part.named_children()] if isinstance(part, nn.Sequential | nn.ModuleList) else [name]
        found += inner
    return found


def make_network(name: str) -> nn.Module:
    """New, without classifier. ValueError when torchvision has no such network."""
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f"torchvision has no network {name!r}{did_you_mean(name, names)}")
    network = models.get_model(name, weights=None, **_PLAIN.get(name, {}))
    _without_classifier(network)
    return network


def _without_classifier(network: nn.Module) -> None:
    """The last linear layer (SqueezeNet: convolution) becomes the identity."""
    kinds = [[name for name, module in network.named_modules() if isinstance(module, kind)] for kind in (nn.Linear, nn.Conv2d)]
    parent, _, name = next(names for names in kinds if names)[-1].rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())


@register_encoder(ARCH)
def torchvision_network(model: str) -> TorchvisionEncoder:
    """Any but the ResNets, which are architectures of their own."""
    if model in RESNETS:
        raise ValueError(f"write arch: {model}")
    return TorchvisionEncoder(make_network(model), model)
