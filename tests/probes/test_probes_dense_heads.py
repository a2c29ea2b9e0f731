"""Linear heads over maps against the plain formulation, and which head a config gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
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
from virb.probes.dense_decoders import PixelShuffle, Siamese
from virb.probes.dense_deeplab import DeepLab
from virb.probes.dense_heads import DenseLinear, build_head

ADAM = {"optimizer": "adam", "lr": 0.1}
VIT = [(12, 6, 5)] * 4
PYRAMID = [(4, 24, 20), (8, 12, 10), (12, 6, 5)]


def batch(shapes: list[tuple[int, int, int]], n: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, *shape, generator=generator) * (i + 1) + i for i, shape in enumerate(shapes)]


def test_dense_linear_is_norm_and_convolution_of_the_last_map() -> None:
    maps = batch(PYRAMID)
    head = build_head(DenseLinearConfig(**ADAM), PYRAMID, 7).train()
    assert sum(p.numel() for p in head.parameters()) == 12 * 7 + 7 + 2 * 12
    plain = nn.Sequential(nn.BatchNorm2d(12), nn.Conv2d(12, 7, 1))
    plain[1].load_state_dict(head.conv.state_dict())
    for _ in range(3):  # running statistics, too
        torch.testing.assert_close(head(maps), plain(maps[-1]))
    torch.testing.assert_close(head.eval()(maps), plain.eval()(maps[-1]))


def test_without_norm_only_the_convolution_is_left() -> None:
    head = build_head(DenseLinearConfig(**ADAM, norm="none"), PYRAMID, 7)
    assert set(head.state_dict()) == {"conv.weight", "conv.bias"}
    maps = batch(PYRAMID)
    torch.testing.assert_close(head(maps), F.conv2d(maps[-1], head.conv.weight, head.conv.bias))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_dense_multi_on_equal_maps_is_the_concatenation(norm: str) -> None:
    maps = batch(VIT)
    head = build_head(DenseMultiConfig(**ADAM, norm=norm), VIT, 7).train()
    plain = nn.Sequential(nn.BatchNorm2d(48) if norm == "batch" else nn.Identity(), nn.Conv2d(48, 7, 1))
    plain[1].load_state_dict(head.conv.state_dict())
    torch.testing.assert_close(head(maps), plain(torch.cat(maps, 1)))
    torch.testing.assert_close(head.eval()(maps), plain.eval()(torch.cat(maps, 1)))


def test_dense_multi_on_a_pyramid_is_the_concatenation_at_the_finest_grid() -> None:
    """Given statistics, convolving at each map's own grid and bringing the outputs up is exactly the plain way round."""
    torch.manual_seed(1)
    maps = batch(PYRAMID)
    head = build_head(DenseMultiConfig(**ADAM), PYRAMID, 7)
    for norm in head.norms:
        nn.init.uniform_(norm.weight), nn.init.normal_(norm.bias)
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2.0)
    plain = nn.Sequential(nn.BatchNorm2d(24), nn.Conv2d(24, 7, 1)).eval()
    plain[1].load_state_dict(head.conv.state_dict())
    state = {key: torch.cat([norm.state_dict()[key] for norm in head.norms]) for key in ("weight", "bias", "running_mean", "running_var")}
    plain[0].load_state_dict(state, strict=False)
    whole = torch.cat([F.interpolate(x, (24, 20), mode="bilinear", align_corners=False) for x in maps], 1)
    torch.testing.assert_close(head.eval()(maps), plain(whole), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad(head(maps).square().sum(), head.conv.weight),
        torch.autograd.grad(plain(whole).square().sum(), plain[1].weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


def test_dropout_drops_whole_channels_in_training_alone() -> None:
    torch.manual_seed(0)
    head = build_head(DenseLinearConfig(**ADAM, norm="none", dropout=0.5), [(400, 4, 4)], 3)
    seen = []
    head.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.ones(2, 400, 4, 4)
    head.train()([x])
    per_channel = seen[0].flatten(2)
    assert (per_channel == per_channel[..., :1]).all()
    assert 0.35 < (per_channel[..., 0] == 0).float().mean() < 0.65
    head.eval()([x])
    torch.testing.assert_close(seen[1], x, rtol=0, atol=0)


def test_training_on_one_pixel_does_not_fail() -> None:
    build_head(DenseLinearConfig(**ADAM), [(5, 1, 1)], 3).train()([torch.randn(1, 5, 1, 1)]).sum().backward()


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (DenseLinearConfig(**ADAM), DenseLinear),
        (DenseMultiConfig(**ADAM), DenseLinear),
        (PixelShuffleConfig(**ADAM), PixelShuffle),
        (DeepLabConfig(**ADAM), DeepLab),
    ],
)
@pytest.mark.parametrize("shapes", [VIT, PYRAMID, VIT[:1]])
def test_each_config_has_its_head_and_its_weights_come_from_torchs_generator(config: DenseConfig, kind: type, shapes) -> None:
    heads = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        heads.append(build_head(config, shapes, 5))
    assert type(heads[0]) is kind
    first, same, other = (torch.cat([p.flatten() for p in head.parameters()]) for head in heads)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    out = heads[0].eval()(batch(shapes))
    assert out.shape[:2] == (3, 5)
    out.sum().backward()
    assert all(p.grad is not None for p in heads[0].parameters())


@pytest.mark.parametrize("fusion", ["concat", "correlation"])
@pytest.mark.parametrize("shapes", [VIT, PYRAMID, VIT[:1]])
def test_siamese_heads_take_pairs(fusion: str, shapes) -> None:
    head = build_head(SiameseConfig(**ADAM, fusion=fusion, radius=1), shapes, 2)
    assert type(head) is Siamese
    assert head.radius == 1
    out = head([torch.stack([x, x + 1], 1) for x in batch(shapes)])
    assert out.shape[:2] == (3, 2)
    out.sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_a_pair_that_moved_can_be_told_from_one_that_did_not() -> None:
    """A few steps of training: the mean flow of shifted features is learned by the cost volume (a sanity check of the whole path)."""
    torch.manual_seed(0)
    shapes = [(16, 8, 8)] * 2
    head = build_head(SiameseConfig(**ADAM, fusion="correlation", radius=2), shapes, 1)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    scene = torch.randn(16, 16, 8, 8)
    shift = torch.arange(16) % 2 * 2 - 1
    moved = torch.stack([x.roll(int(s), 2) for x, s in zip(scene, shift, strict=True)])
    maps = [torch.stack([scene, moved], 1)] * 2
    wanted = shift.float()
    for _ in range(60):
        loss = (head(maps).mean((1, 2, 3)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_what_cannot_be_built() -> None:
    with pytest.raises(UserError, match="needs a spatial map"):
        build_head(DenseLinearConfig(**ADAM), [], 3)
    with pytest.raises(UserError, match="this encoder has none; use the probe deeplab"):
        build_head(DeepLab2021Config(**ADAM), PYRAMID, 3)
    with pytest.raises(TypeError, match="DenseConfig"):
        build_head(DenseConfig(**ADAM), PYRAMID, 3)
