"""A small model of every family that timm has, random weights: what the adapter gives against timm's own functions."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from virb.encoders.attention import INSIDE
from virb.encoders.base import Encoder
from virb.encoders.load import load_encoder
from virb.encoders.verify import verify_encoder

VIT = {"embed_dim": 48, "depth": 4, "num_heads": 3}
SMALL = {**VIT, "img_size": 32}
# model -> arguments that make it small, input side (None: as the arguments say)
WITH_ATTENTION: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**SMALL, "patch_size": 8},
    "vit_base_patch16_224.mae": SMALL,
    "vit_base_patch16_clip_224": SMALL,
    "deit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "vit_small_patch14_dinov2": {**VIT, "img_size": 56},
    "vit_small_patch14_reg4_dinov2": {**VIT, "img_size": 56},
    "vit_small_patch16_dinov3": SMALL,
    "eva02_tiny_patch14_224": {**VIT, "img_size": 56},
    "eva_giant_patch14_224": {**VIT, "img_size": 56, "mlp_ratio": 2},
    "beit_base_patch16_224": SMALL,
    "beitv2_base_patch16_224": SMALL,
    "vit_pe_core_tiny_patch16_384": {**SMALL, "img_size": 64},
}
VIT_LIKE: dict[str, dict[str, Any]] = {
    "vit_base_patch16_siglip_224": SMALL,
    "vit_base_patch16_siglip_gap_224": SMALL,
    "vit_medium_patch16_reg4_gap_256": SMALL,
    "xcit_nano_12_p16_224": {"embed_dim": 48, "depth": 3, "num_heads": 3},
    "cait_xxs24_224": {**SMALL, "depth": 3},
    "convit_tiny": {**SMALL, "local_up_to_layer": 2},
    "vit_relpos_small_patch16_224": SMALL,
    "samvit_base_patch16": {**VIT, "img_size": 64, "neck_chans": 24, "window_size": 2},
    "mixer_s32_224": {"img_size": 64},
    "volo_d1_224": {"img_size": 32},
}
HIERARCHIES: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
    "swinv2_tiny_window8_256": {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 4},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "regnetx_002": {},
    "efficientnet_lite0": {},
    "tf_efficientnetv2_b0": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_050": {},
    "resnet18": {},
    "resnetv2_18d": {},
    "densenet121": {"growth_rate": 8},
    "hrnet_w18_small": {},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "maxvit_pico_rw_256": {"img_size": 64},
    "coatnet_pico_rw_224": {"img_size": 64},
    "hiera_tiny_224": {"embed_dim": 24, "stages": (1, 1, 1, 1)},
    "sam2_hiera_tiny": {"embed_dim": 24, "num_heads": 1},
    "mvitv2_tiny": {"img_size": 64},
    "levit_128s": {"img_size": 64},
    "poolformerv2_s12": {},
    "focalnet_tiny_srf": {},
    "davit_tiny": {"embed_dims": (24, 48, 96, 192), "num_heads": (1, 2, 4, 8), "depths": (1, 1, 1, 1)},
    "edgenext_xx_small": {},
    "fastvit_t8": {},
    "mambaout_femto": {},
    "repvit_m0_9": {},
    "tresnet_m": {},
    "inception_v3": {},
    "twins_svt_small": {"img_size": 64},
    "nest_tiny_jx": {"img_size": 64},
    "efficientformerv2_s0": {"img_size": 64},
    "tiny_vit_5m_224": {},
}
ALL = {**WITH_ATTENTION, **VIT_LIKE, **HIERARCHIES}
FIXED = {"hiera_tiny_224": 224, "inception_v3": 96, "xcit_nano_12_p16_224": 64, "sam2_hiera_tiny": 64}  # side of those with no img_size


def load(name: str) -> Encoder:
    args = ALL[name]
    side = args.get("img_size") or FIXED.get(name, 64)
    encoder = load_encoder({"timm": name, "weights": "random", "args": args, "input": {"size": side}})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # norms, scales and biases that do something
        for parameter in encoder.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return encoder


def noise(encoder: Encoder) -> torch.Tensor:
    return torch.randn(2, 3, *encoder.spec.input.size, generator=torch.Generator().manual_seed(1))


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_outputs_equal_timms_own(name: str) -> None:
    encoder = load(name)
    verified = verify_encoder(encoder)
    assert {"embedding", "tokens", "pyramid"} <= set(verified.shapes)
    network: Any = encoder.network
    images = noise(encoder)
    found = encoder(images, ("embedding", "tokens[0]", "tokens[-1]", "pyramid"))
    with torch.no_grad():
        try:
            maps = network.forward_intermediates(images, norm=True, intermediates_only=True)
        except AssertionError:
            maps = network.forward_intermediates(images, norm=False, intermediates_only=True)
        embedding = network.forward_head(network.forward_features(images), pre_logits=True)
    assert len(maps) == encoder.spec.depth
    assert_same(found["embedding"], embedding)
    assert_same(found["tokens[0]"], maps[0])
    assert_same(found["tokens[-1]"], maps[-1])
    levels = [encoder.spec.check(stage.name).terms[0].output.indices(len(maps))[0] for stage in encoder.spec.stages]
    assert_same(found["pyramid"], tuple(maps[level] for level in levels))
    assert [level.shape[1] for level in found["pyramid"]] == [stage.channels for stage in encoder.spec.stages]
    assert (name in WITH_ATTENTION) == ("attention" in encoder.spec.outputs)


@contextlib.contextmanager
def unfused(network: Any) -> Any:
    """timm's plain attention, all rows of it: what enters each block's attention dropout."""
    seen: list[torch.Tensor] = []
    handles = []
    for block in network.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])))
    yield seen
    for block, handle in zip(network.blocks, handles, strict=True):
        block.attn.fused_attn = True
        handle.remove()


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_is_the_class_tokens_row(name: str) -> None:
    encoder = load(name)
    network: Any = encoder.network
    prefix, depth = network.num_prefix_tokens, encoder.spec.depth
    with torch.no_grad():  # away from uniform attention
        for block in network.blocks:
            for part in ("qkv", "q_proj", "k_proj"):
                if getattr(block.attn, part, None) is not None:
                    getattr(block.attn, part).weight.mul_(5)
    images = noise(encoder)
    with unfused(network) as every, torch.no_grad():
        network.forward_features(images)
    want = ("attention[0]", "attention[-1]", "queries[1]", "keys[1]", "values[1]", "tokens[1](norm=false)", "embedding", "cls[-1]")
    found = encoder(images, want)
    grid = found["tokens[1](norm=false)"].shape[2:]
    for block in (0, -1):
        row = every[block][:, :, 0, prefix:]
        assert row.std() > 1e-3
        assert_same(found[f"attention[{block}]"], row.unflatten(2, grid))
    assert found["keys[1]"].shape == found["values[1]"].shape == found["queries[1]"].shape == (2, *every[1].shape[1:3], 16)
    product = (found["queries[1]"] @ found["keys[1]"].transpose(2, 3)) / 4
    if "beit" not in name:  # which adds a bias for the distance
        assert_same(product.softmax(-1), every[1])
    assert_same(encoder(images, ("attention[0]",))["attention[0]"], found["attention[0]"])
    assert_same(found["embedding"], encoder(images)["embedding"])
    assert all(not block.attn._forward_pre_hooks and not block.attn._forward_hooks for block in network.blocks)
    assert depth == len(every)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "swinv2_tiny_window8_256", "eva02_tiny_patch14_224"]
)
def test_other_sizes_and_non_square_ones(name: str) -> None:
    encoder = load(name)
    pixels = torch.randint(0, 256, (1, 3, 60, 90), dtype=torch.uint8)
    images = encoder.prepare(pixels)
    found = encoder(images, ("tokens[-1]", *(f"{part}[-1]" for part in INSIDE if part in encoder.spec.outputs)))
    with torch.no_grad():
        maps = encoder.network.forward_intermediates(images, norm=True, intermediates_only=True)
    assert_same(found["tokens[-1]"], maps[-1])
    if "attention[-1]" in found:
        assert found["attention[-1]"].shape[2:] == maps[-1].shape[2:]
        assert (found["attention[-1]"].sum((2, 3)) < 1).all()
