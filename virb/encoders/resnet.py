"""torchvision's ResNets, with the maps of ViRB 2021: conv (after bn1 and relu), block1 to block4, and the pooled embedding."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Single, Stage
from virb.encoders.registry import register_encoder
from virb.errors import UserError

NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
BLOCKS = ("block1", "block2", "block3", "block4")


class ResNetEncoder(Encoder):
    family = "resnet"
    network: Any
    # classifiers and the projection heads of the usual self-supervised methods: nothing here that an output passes through
    ignored = ("fc.", "head.", "projection_head.", "prototypes.", "projector.", "predictor.")

    def __init__(self, network: Any, name: str) -> None:
        width = network.fc.in_features
        network.fc = nn.Identity()
        channels = [width // 8, width // 4, width // 2, width]
        stages = [Stage("conv", 64, 2), *(Stage(block, c, 4 << i) for i, (block, c) in enumerate(zip(BLOCKS, channels, strict=True)))]
        draft = EncoderSpec(
            name="",
            embed_dim=width,
            patch_size=None,
            stages=tuple(stages),
            n_heads=None,
            input=InputSpec(),
            n_params=0,
            encoder_id="",
            source="",
            family=self.family,
            format=self.format,
            outputs=("embedding", "conv", *BLOCKS, "tokens", "pyramid"),
            architecture=name,
            depth=len(BLOCKS),  # tokens[0] is block1, tokens[-1] is block4
        )
        super().__init__(network, draft, {})

    def _outputs(self, images: Tensor, wanted: Collection[Single]) -> dict[Single, Tensor]:
        found: dict[Single, Tensor] = {}
        levels = {single: _level(single) for single in wanted}
        net = self.network
        x = net.relu(net.bn1(net.conv1(images)))
        layers = (nn.Identity(), nn.Sequential(net.maxpool, net.layer1), net.layer2, net.layer3, net.layer4)
        for level, layer in enumerate(layers[: max(levels.values()) + 1]):
            x = layer(x)
            for single in (single for single, at in levels.items() if at == level):
                found[single] = x.mean(dim=(2, 3)) if single.name == "embedding" else x
        return found

    def supervised_state(self) -> tuple[Mapping[str, Tensor], str, InputSpec]:
        """torchvision's first supervised ImageNet weights, from its cache, else from the network; with their own preprocessing."""
        from torchvision import models

        weights = models.get_model_weights(self.spec.architecture)["IMAGENET1K_V1"]
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except OSError as error:
            file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
            raise UserError(
                f"cannot download torchvision's supervised weights of {self.spec.architecture} ({error})\n"
                f"  without a network, put {weights.url} at {file}"
            ) from error
        preset = weights.transforms()
        crop, resize = preset.crop_size[0], preset.resize_size[0]
        spec = InputSpec(
            size=(crop, crop),
            crop_pct=crop / resize,
            interpolation=cast(Literal["bilinear"], preset.interpolation.value),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
        return state, f"torchvision's {weights}", spec


def _level(single: Single) -> int:
    """0 is conv, 1 to 4 are the blocks; the embedding needs the last."""
    if single.block is not None:
        return single.block + 1
    return ("conv", *BLOCKS).index("block4" if single.name == "embedding" else single.name)


def _build(name: str) -> ResNetEncoder:
    from torchvision import models

    return ResNetEncoder(models.get_model(name, weights=None), name)


for _name in NAMES:
    register_encoder(_name)(partial(_build, _name))
