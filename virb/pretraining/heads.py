"""From features to prototypes: the projection head, and one forward per resolution for many views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Extract = Callable[[Any, Tensor, Tensor | None], Tensor]  # backbone, images, noise -> N x D, or N x tokens x D


class Prototypes(nn.Module):
    """A linear layer without bias whose rows have length ``weight_g`` and direction ``weight_v`` (names and start of torch's first weight
    norm, as in the original's checkpoints; that one cannot be copied). ``norm`` keeps the lengths at 1."""

    def __init__(self, in_dim: int, out_dim: int, norm: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not norm)
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-1.0, 1.0) / math.sqrt(in_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))


class DINOHead(nn.Module):
    """N x in_dim -> N x out_dim: an MLP of ``layers`` linear layers (``hidden`` wide, the last ``bottleneck``), L2 norm, prototypes."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
        layers: int = 3,
        hidden: int = 2048,
        bottleneck: int = 256,
    ) -> None:
        super().__init__()
        widths = [in_dim, *[hidden] * (layers - 1), bottleneck]
        steps: list[nn.Module] = []
        for i in range(layers):
            steps.append(nn.Linear(widths[i], widths[i + 1]))
            if i < layers - 1:
                steps += [nn.BatchNorm1d(hidden), nn.GELU()] if batch_norm else [nn.GELU()]
        self.mlp = nn.Sequential(*steps) if layers > 1 else steps[0]
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = Prototypes(bottleneck, out_dim, norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class MultiCrop(nn.Module):
    """Views in, logits of each view out: B x K, or B x tokens x K from a backbone that gives tokens.

    Neighbouring views of one size go through the backbone together, and all features through the head together. ``patch_head`` takes the
    tokens behind the first where it is given.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, extract: Extract, patch_head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        if patch_head is not None:
            self.patch_head = patch_head
        self.extract = extract

    def forward(self, crops: Sequence[Tensor], noise: Tensor | None = None) -> list[Tensor]:
        """``crops``: V times B x 3 x h x w; ``noise``: B x V x n, uniform in [0, 1), what the backbone makes its draws of."""
        features: list[Tensor] = []  # of each view
        for _, run in groupby(range(len(crops)), key=lambda view: crops[view].shape):
            views = list(run)
            images = torch.cat([crops[view] for view in views])
            draws = None if noise is None else noise[:, views[0] : views[-1] + 1].transpose(0, 1).flatten(0, 1)
            features += self.extract(self.backbone, images, draws).chunk(len(views))
        if hasattr(self, "patch_head"):
            first = _at_once(self.head, [x[:, :1] for x in features])
            rest = _at_once(self.patch_head, [x[:, 1:] for x in features])
            return [torch.cat(parts, dim=1) for parts in zip(first, rest, strict=True)]
        return _at_once(self.head, features)


def _at_once(head: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
    """The head on all rows of all tensors together: rows are features of views or of tokens, so that batch norm knows both."""
    rows = [x.reshape(-1, x.shape[-1]) for x in features]
    logits = head(torch.cat(rows)).split([len(x) for x in rows])
    return [y.view(*x.shape[:-1], -1) for x, y in zip(features, logits, strict=True)]
