"""Heads over maps: the linear ones, and which head a training config asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from virb.config.dense import (
    DeepLab2021Config,
    DeepLabConfig,
    DenseConfig,
    DenseLinearConfig,
    DenseMultiConfig,
    PixelShuffleConfig,
    SiameseConfig,
)
from virb.errors import UserError
from virb.probes.dense_decoders import MapShape, PixelShuffle, Siamese, resize
from virb.probes.dense_deeplab import BatchNorm, DeepLab, DeepLab2021

__all__ = ["DenseLinear", "MapShape", "build_head"]


def build_head(config: DenseConfig, shapes: Sequence[MapShape], n_outputs: int, *, layer4: nn.Module | None = None) -> nn.Module:
    """The head of a config for maps (channels, height, width) of one image, finest first, in the order of the request.

    It takes a sequence of maps (B, C_i, h_i, w_i) of any size, (B, 2, C_i, h_i, w_i) for ``siamese``, and gives (B, n_outputs, h', w') at a
    resolution of its own. Weights are drawn from torch's current generator. ``layer4``: the encoder's, for ``deeplab@virb2021`` alone;
    it is copied.
    """
    if not shapes:
        raise UserError("a dense head needs a spatial map, and the request gives none")
    if isinstance(config, DenseMultiConfig):
        return DenseLinear([shape[0] for shape in shapes], n_outputs, config)
    if isinstance(config, DenseLinearConfig):
        return DenseLinear([shapes[-1][0]], n_outputs, config)
    if isinstance(config, PixelShuffleConfig):
        return PixelShuffle(shapes, n_outputs)
    if isinstance(config, SiameseConfig):
        return Siamese(shapes, n_outputs, config.fusion, config.radius)
    if isinstance(config, DeepLabConfig):
        return DeepLab.on_maps(shapes, n_outputs)
    if isinstance(config, DeepLab2021Config):
        if layer4 is None:
            raise UserError("deeplab@virb2021 trains a copy of a ResNet's layer4, and this encoder has none; use the probe deeplab")
        return DeepLab2021.on_encoder(layer4, shapes, n_outputs)
    raise TypeError(f"Expected a config of a built-in dense head, but got {type(config).__name__}")


class DenseLinear(nn.Module):
    """One 1x1 convolution over the last maps (as many as there are ``channels``), at the finest grid among them.

    It is the convolution of the concatenated maps, all brought to that grid; what is brought there are the outputs, because interpolation
    and a 1x1 convolution can be swapped and outputs are few. Each map is therefore normalised over its own pixels.
    """

    def __init__(self, channels: Sequence[int], n_outputs: int, config: DenseLinearConfig) -> None:
        super().__init__()
        self.channels = list(channels)
        self.norms = nn.ModuleList(BatchNorm(c) if config.norm == "batch" else nn.Identity() for c in channels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.conv = nn.Conv2d(sum(channels), n_outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        used = [self.dropout(norm(x)) for norm, x in zip(self.norms, maps[-len(self.channels) :], strict=True)]
        if len({x.shape[-2:] for x in used}) == 1:
            return self.conv(torch.cat(used, 1) if len(used) > 1 else used[0])
        height, width = max((x.shape[-2:] for x in used), key=lambda grid: grid[0] * grid[1])
        weights = self.conv.weight.split(self.channels, 1)
        parts = [resize(F.conv2d(x, weight), (height, width)) for x, weight in zip(used, weights, strict=True)]
        outputs = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        return outputs if self.conv.bias is None else outputs + self.conv.bias[:, None, None]
