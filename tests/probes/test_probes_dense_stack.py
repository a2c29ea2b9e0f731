"""A stack of linear heads takes the step that each would take alone: outputs, losses, gradients and running statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from virb.config.dense import DenseConfig, DenseLinearConfig, DenseMultiConfig, PixelShuffleConfig
from virb.probes.dense_heads import DenseLinear, build_head
from virb.probes.dense_stack import form_of, learn_together

ONE_GRID = [(6, 5, 7)]
GRIDS = [(6, 8, 6), (5, 4, 3)]


def heads_of(config: DenseConfig, shapes: list[tuple[int, int, int]], outputs: list[int], seed: int = 0) -> list[DenseLinear]:
    heads = []
    for place, n in enumerate(outputs):
        torch.manual_seed(seed + place)
        head = build_head(config, shapes, n)
        assert isinstance(head, DenseLinear)
        for norm in head.norms:
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
                nn.init.normal_(norm.running_mean)
        heads.append(head.double().train())
    return heads


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("kind", "shapes"), [(DenseLinearConfig, ONE_GRID), (DenseMultiConfig, ONE_GRID * 2), (DenseMultiConfig, GRIDS)])
def test_a_stack_is_its_heads(kind: Any, shapes: list[tuple[int, int, int]], norm: str) -> None:
    config = kind(optimizer="sgd", lr=0.1, norm=norm)
    together = heads_of(config, shapes, [3, 2, 4])
    alone = copy.deepcopy(together)
    generator = torch.Generator().manual_seed(1)
    losses = [lambda y, n=n: (F.interpolate(y, (9, 9), mode="bilinear") ** 2).mean() * (n + 1) for n in range(3)]
    for _ in range(2):  # running statistics move twice
        maps = [torch.randn((4, *shape), generator=generator, dtype=torch.float64) * 3 + 1 for shape in shapes]
        found = learn_together(together, maps, losses)
        for head, loss, mean in zip(alone, losses, found, strict=True):
            expected: Tensor = loss(head(maps))
            expected.backward()
            torch.testing.assert_close(mean, expected.detach())
    for mine, theirs in zip(together, alone, strict=True):
        for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            assert one.grad is not None, name
            torch.testing.assert_close(one.grad, other.grad, msg=name)
            assert float(one.grad.abs().max()) > 0, name
        for (name, one), other in zip(mine.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(one, other, msg=name)


def test_a_head_that_diverged_leaves_the_others_alone() -> None:
    config = DenseLinearConfig(optimizer="sgd", lr=0.1)
    together = heads_of(config, ONE_GRID, [3, 3])
    with torch.no_grad():
        together[0].conv.weight.fill_(float("nan"))
    maps = [torch.randn((4, *shape), dtype=torch.float64) for shape in ONE_GRID]
    first, second = learn_together(together, maps, [lambda y: y.pow(2).mean()] * 2)
    assert torch.isnan(first)
    assert torch.isfinite(second)
    assert all(bool(torch.isfinite(p.grad).all()) for p in together[1].parameters() if p.grad is not None)


def test_what_stacks() -> None:
    def form(config: DenseConfig) -> Any:
        return form_of(build_head(config, GRIDS, 3))

    plain = form(DenseLinearConfig(optimizer="sgd", lr=0.1))
    assert plain is not None
    assert plain == form(DenseLinearConfig(optimizer="adamw", lr=0.3, weight_decay=0.1))
    assert plain != form(DenseLinearConfig(optimizer="sgd", lr=0.1, norm="none"))
    assert plain != form(DenseMultiConfig(optimizer="sgd", lr=0.1))
    assert form(DenseLinearConfig(optimizer="sgd", lr=0.1, dropout=0.1)) is None
    assert form(PixelShuffleConfig(optimizer="sgd", lr=0.1)) is None
