"""ViRB 2021's DeepLab head: on frozen features alone, and as published, with a dilated copy of the encoder's ``layer4`` that is trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from virb.errors import UserError
from virb.probes.dense_decoders import MapShape, resize

_RATES = (6, 12, 18)  # dilations of the three 3x3 convolutions of the pyramid pooling
_LAYER4_DILATIONS = (2, 4, 2)
# ViRB 2021 gave the pooling's momentum in the place of eps, and the decoder this as its momentum.
_EPS_2021 = _MOMENTUM_2021 = 3e-4


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes its running statistics where a batch has one value per channel, instead of refusing it.

    The pooled branch meets that with every last batch of one image. ``always_batch``: never the running statistics, not in ``eval`` either.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, always_batch: bool = False) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.always_batch = always_batch

    def forward(self, input: Tensor) -> Tensor:
        several = input.numel() > input.shape[1]
        if several and (self.training or not self.always_batch):
            return super().forward(input)
        mean, variance = (None, None) if several else (self.running_mean, self.running_var)
        return F.batch_norm(input, mean, variance, self.weight, self.bias, several, 0.0, self.eps)


class PyramidPooling(nn.Module):
    """ASPP: a 1x1 convolution, three dilated 3x3 ones and the mean of the whole map, (B, C, h, w) to (B, width, h, w)."""

    def __init__(self, channels: int, width: int = 256, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.aspp1 = nn.Conv2d(channels, width, 1, bias=False)
        for i, rate in enumerate(_RATES, 2):
            self.add_module(f"aspp{i}", nn.Conv2d(channels, width, 3, padding=rate, dilation=rate, bias=False))
        self.aspp5 = nn.Conv2d(channels, width, 1, bias=False)
        for i in range(1, 6):
            self.add_module(f"aspp{i}_bn", BatchNorm(width, eps=eps))
        self.conv2 = nn.Conv2d(5 * width, width, 1, bias=False)
        self.bn2 = BatchNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        modules = dict(self.named_children())
        inputs = [x, x, x, x, x.mean((2, 3), keepdim=True)]
        branches = [F.relu(modules[f"aspp{i}_bn"](modules[f"aspp{i}"](branch))) for i, branch in enumerate(inputs, 1)]
        branches[-1] = branches[-1].expand_as(branches[0])
        return F.relu(self.bn2(self.conv2(torch.cat(branches, 1))))


class DeepLab(nn.Module):
    """Pyramid pooling of one map, up to the grid of an early one, which comes in by a 1x1 convolution to 48 channels; then two 3x3
    convolutions and the classifier, (B, n_outputs, h, w) of the early map's grid.

    ``as_2021``: the normalisations' published eps and momentum (so small that the running statistics lag behind for many epochs) and
    corners aligned in resizing; otherwise torch's own defaults.
    """

    def __init__(
        self,
        deep: int,
        early: int,
        n_outputs: int,
        *,
        width: int = 256,
        early_width: int = 48,
        as_2021: bool = False,
        always_batch: bool = False,
    ) -> None:
        super().__init__()
        momentum = _MOMENTUM_2021 if as_2021 else 0.1
        self.align_corners = as_2021
        self.deep_index, self.early_index = -1, 0
        self.aspp = PyramidPooling(deep, width, eps=_EPS_2021 if as_2021 else 1e-5)
        self.low_level_feature_reducer = nn.Sequential(
            nn.Conv2d(early, early_width, 1), BatchNorm(early_width, momentum=momentum, always_batch=always_batch), nn.ReLU()
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(width + early_width, width, 3, padding=1),
            BatchNorm(width, momentum=momentum),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            BatchNorm(width, momentum=momentum),
            nn.ReLU(),
            nn.Conv2d(width, n_outputs, 3, padding=1),
        )

    @classmethod
    def on_maps(cls, shapes: Sequence[MapShape], n_outputs: int) -> Self:
        """On the last map; the early one is the finest that is at most 8 times as fine (block1 of a ResNet, most others' first)."""
        head = cls(shapes[-1][0], shapes[early_map(shapes, -1, 8)][0], n_outputs)
        head.early_index = early_map(shapes, -1, 8)
        return head

    def deep(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[self.deep_index]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i), finest first."""
        early = maps[self.early_index]
        pooled = resize(self.aspp(self.deep(maps)), (early.shape[-2], early.shape[-1]), align_corners=self.align_corners)
        return self.decoder(torch.cat([self.low_level_feature_reducer(early), pooled], 1))


class DeepLab2021(DeepLab):
    """As published: block3 goes through a copy of the encoder's ``layer4`` with stride 1 and dilations 2, 4, 2, whose weights are trained
    while its normalisations keep their statistics; the early map is block1, which is normalised by the batch's statistics in testing, too
    (the original never switched that one layer; its running statistics are therefore never read)."""

    def __init__(self, layer4: nn.Module, early: int, n_outputs: int, *, width: int = 256, early_width: int = 48) -> None:
        block4 = DilatedBlock4(layer4)
        super().__init__(block4.out_channels, early, n_outputs, width=width, early_width=early_width, as_2021=True, always_batch=True)
        self.block4 = block4

    @classmethod
    def on_encoder(cls, layer4: nn.Module, shapes: Sequence[MapShape], n_outputs: int) -> Self:
        """On the maps of the ResNet that ``layer4`` is from: its conv and blocks, or any of them that include block1 and block3."""
        given = DilatedBlock4(layer4).in_channels
        deep = next((i for i in reversed(range(len(shapes))) if shapes[i][0] == given), None)
        if deep is None:
            found = ", ".join(str(shape[0]) for shape in shapes)
            raise UserError(f"deeplab@virb2021 needs the map that layer4 takes, with {given} channels; the request's maps have {found}")
        head = cls(layer4, shapes[early_map(shapes, deep, 4)][0], n_outputs)
        head.deep_index, head.early_index = deep, early_map(shapes, deep, 4)
        return head

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.block4.eval()
        return self

    def deep(self, maps: Sequence[Tensor]) -> Tensor:
        return self.block4(maps[self.deep_index])

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """At block1's grid, or with the image's ``size`` brought to it with aligned corners, as published."""
        outputs = super().forward(maps)
        return outputs if size is None else resize(outputs, size, align_corners=True)


class DilatedBlock4(nn.Module):
    """A copy of torchvision's ``layer4`` of three bottlenecks that keeps the resolution: stride 1, dilations 2, 4, 2. Its names are those
    of ViRB 2021 (``upsample_layer``, ``conv.0``, ``conv.1``), in the same order as ``layer4``'s."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        blocks: list[Any] = list(copy.deepcopy(layer4).children())
        if len(blocks) != 3 or not all(hasattr(block, "conv3") for block in blocks):
            raise UserError("deeplab@virb2021 needs a ResNet whose layer4 has three bottleneck blocks (resnet50 and deeper)")
        for block, dilation in zip(blocks, _LAYER4_DILATIONS, strict=True):
            for conv in (block.conv1, block.conv2, block.conv3):  # old ResNets have their stride in conv1
                conv.stride = (1, 1)
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)
        self.in_channels: int = blocks[0].conv1.in_channels
        self.out_channels: int = blocks[-1].conv3.out_channels
        self.upsample_layer = blocks[0]
        self.conv = nn.Sequential(*blocks[1:])
        self.requires_grad_(True).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.upsample_layer(x))


def early_map(shapes: Sequence[MapShape], deep: int, times: int) -> int:
    """The first of the maps (finest first) that is at most ``times`` as fine as the one at ``deep``, along both axes."""
    _, height, width = shapes[deep]
    return next(i for i, (_, h, w) in enumerate(shapes) if h <= times * height and w <= times * width)
