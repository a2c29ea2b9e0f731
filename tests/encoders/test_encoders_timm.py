"""The timm adapter against timm's own ``forward_intermediates``, ``forward_features`` and ``forward_head``; random weights, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from virb.encoders.attention import first_row
from virb.encoders.load import load_encoder
from virb.errors import UserError, ViRBError

VITS = {
    "vit_tiny_patch16_224": {"depth": 4},
    "vit_small_patch14_reg4_dinov2": {"depth": 4, "embed_dim": 96, "num_heads": 3, "img_size": 56},
    "deit_tiny_distilled_patch16_224": {"depth": 4},
    "vit_base_patch16_siglip_224": {"depth": 4, "embed_dim": 96, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 4},
}
HIERARCHIES = ("convnext_atto", "mobilenetv3_small_050", "regnetx_002", "resnet18", "efficientnet_b0")
SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


def load(name: str, args: dict[str, Any] | None = None) -> Any:
    encoder = load_encoder({"timm": name, "weights": "random", "args": args or {}})
    with torch.no_grad():  # norms that do something
        for parameter in encoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return encoder


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def embedding_of(network: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.forward_head(network.forward_features(images), pre_logits=True)


@pytest.mark.parametrize("name", VITS)
def test_vits_equal_timms_own_intermediates(name: str) -> None:
    encoder = load(name, VITS[name])
    images = encoder.prepare(torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8))
    patch = encoder.spec.patch_size
    grid = (-(-60 // patch), -(-90 // patch))
    with torch.no_grad():
        raw = encoder.network.forward_intermediates(images, norm=False, intermediates_only=True)
        normed = encoder.network.forward_intermediates(images, norm=True, intermediates_only=True)
        features = encoder.network.forward_features(images)
    want = ("embedding", "tokens[0,2](norm=false)", "tokens[-1]", "pyramid")
    found = encoder(images, want)
    assert encoder.spec.depth == 4
    assert found["tokens[-1]"].shape == (2, encoder.spec.embed_dim, *grid)
    assert_same(found["embedding"], embedding_of(encoder.network, images))
    assert_same(found["tokens[-1]"], normed[-1])
    assert_same(found["tokens[0,2](norm=false)"], (raw[0], raw[2]))
    assert_same(found["pyramid"], tuple(normed))
    assert ("cls" in encoder.spec.outputs) == (name != "vit_base_patch16_siglip_224")
    if "cls" in encoder.spec.outputs:
        assert_same(encoder(images, ("cls",))["cls[-1]"], encoder.network.norm(features[:, 0]) if "eva" in name else features[:, 0])
        stacked = encoder(images, ("cls[-2:]", "tokens[-1]"))
        assert stacked["cls[-2:]"].shape == (2, 2, encoder.spec.embed_dim)
        assert_same(stacked["tokens[-1]"], normed[-1])


@pytest.mark.parametrize("name", [*HIERARCHIES, "swin_tiny_patch4_window7_224"])
def test_hierarchies_equal_timms_own_intermediates(name: str) -> None:
    encoder = load(name, SWIN if "swin" in name else None)
    images = encoder.prepare(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    with torch.no_grad():
        maps = encoder.network.forward_intermediates(images, norm=True, intermediates_only=True)
    found = encoder(images, ("embedding", "pyramid", "tokens[1]", "tokens[-1]"))
    assert_same(found["pyramid"], tuple(maps))
    assert_same(found["tokens[1]"], maps[1])
    assert_same(found["tokens[-1]"], maps[-1])
    assert_same(found["embedding"], embedding_of(encoder.network, images))
    assert found["embedding"].shape == (2, encoder.spec.embed_dim)
    assert [tuple(level.shape[1:]) for level in found["pyramid"]] == [
        (stage.channels, 64 // stage.stride, 96 // stage.stride) for stage in encoder.spec.stages
    ]  # channels first, in models that keep channels last too
    assert "cls" not in encoder.spec.outputs


def test_xcit_has_no_class_token_in_its_blocks() -> None:
    encoder = load("xcit_nano_12_p16_224", {"depth": 2})
    images = torch.randn(1, 3, 64, 64)
    found = encoder(images, ("embedding", "tokens[-1]"))
    assert_same(found["embedding"], embedding_of(encoder.network, images))
    assert found["tokens[-1]"].shape == (1, 128, 4, 4)
    assert "cls" not in encoder.spec.outputs


def test_attention_needs_the_fused_product() -> None:
    encoder = load("vit_tiny_patch16_224", {"depth": 2, "img_size": 32})
    for block in encoder.network.blocks:
        block.attn.fused_attn = False  # what TIMM_FUSED_ATTN=0 does
    images = torch.randn(1, 3, 32, 32)
    assert encoder(images, ("cls[0]",))["cls[0]"].shape == (1, 192)
    with pytest.raises(ViRBError, match="TIMM_FUSED_ATTN"):
        encoder(images, ("attention[0]",))


def test_attention_with_a_bias_keeps_only_its_row() -> None:
    """BEiT adds a bias for the distance to the product; booleans of a mask are the other form that torch has."""
    query, keys = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    bias = torch.randn(1, 3, 5, 5)
    mask = torch.rand(1, 1, 5, 5) > 0.4
    mask[..., 0] = True
    for given in (bias, mask, None):
        value = torch.eye(5).expand(2, 3, 5, 5)  # the product itself
        rows = torch.nn.functional.scaled_dot_product_attention(query, keys, value, attn_mask=given, scale=0.7)
        row = first_row(query[:, :, :1], keys, None if given is None else given[..., :1, :], 0.7)
        torch.testing.assert_close(row, rows[:, :, :1])


def test_both_norms_the_embedding_and_attention_at_once() -> None:
    encoder = load("vit_small_patch14_reg4_dinov2", {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 56})
    images = torch.randn(2, 3, 56, 56)
    want = ("embedding", "tokens[0]", "tokens[0](norm=false)", "cls[1]", "cls[1](norm=false)", "attention[:]", "keys[2]")
    together = encoder(images, want)
    for request in want:
        assert_same(together[request], encoder(images, (request,))[request])
    assert_same(together["cls[1]"], encoder.network.norm(together["cls[1](norm=false)"]))


def test_attention_of_other_structures_is_not_claimed() -> None:
    for name, args in (
        ("vit_tiny_patch16_224", {"depth": 2, "attn_layer": "diff"}),
        ("cait_xxs24_224", {"depth": 2}),
        ("tnt_s_legacy_patch16_224", {}),
    ):
        outputs = load(name, args).spec.outputs
        assert not {"attention", "queries"} & set(outputs), name


def test_a_model_of_one_size_says_so() -> None:
    encoder = load("mixer_s32_224")
    assert encoder(torch.randn(1, 3, 224, 224), ("tokens",))["tokens[-1]"].shape == (1, 512, 7, 7)
    with pytest.raises(ViRBError, match="is for 224x224 images and fails on 64x96"):
        encoder(torch.randn(1, 3, 64, 96))


def test_overlapping_patches_need_no_padding() -> None:
    encoder = load("pvt_v2_b0", {"depths": (1, 1, 1, 1)})
    assert encoder.spec.patch_size is None
    assert [level[1:] for level in encoder.output_shapes(("pyramid",), (64, 96))["pyramid"]] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_models_that_refuse_the_norm_give_raw_maps() -> None:
    encoder = load("hiera_tiny_224", {"embed_dim": 24, "stages": (1, 1, 1, 1)})
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps = encoder.network.forward_intermediates(images, norm=False, intermediates_only=True)
    assert_same(encoder(images, ("tokens[-1]",))["tokens[-1]"], maps[-1])


def test_preprocessing_is_the_models_own() -> None:
    spec = load("vit_small_patch14_reg4_dinov2", {"depth": 1, "img_size": 224}).spec
    assert (spec.input.size, spec.input.interpolation, spec.input.crop_pct) == ((224, 224), "bicubic", 1.0)
    spec = load("vit_base_patch16_siglip_224", {"depth": 1}).spec
    assert (spec.input.mean, spec.input.std, spec.input.size) == ((0.5,) * 3, (0.5,) * 3, (224, 224))
    spec = load_encoder({"timm": "convnext_atto", "weights": "random", "input": {"size": 96}}).spec
    assert (spec.input.size, spec.input.crop_pct) == ((96, 96), timm.get_pretrained_cfg("convnext_atto").crop_pct)


def test_a_file_fills_it_without_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("convnext_atto", num_classes=10).eval()
    torch.save({"model": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "net.pth")
    encoder = load_encoder({"timm": "convnext_atto", "weights": tmp_path / "net.pth"})
    images = torch.randn(1, 3, 64, 64)
    assert_same(encoder(images)["embedding"], embedding_of(whole, images))
    assert 'branch "model", prefix "module."' in encoder.spec.source


def clip_names() -> list[str]:
    every = timm.list_models("*_clip_*", pretrained=True)
    return [name for name in every if "quickgelu" in str(timm.get_pretrained_cfg(name).notes) and "quickgelu" not in name]


@pytest.mark.parametrize("name", clip_names())
def test_weights_trained_with_quickgelu_need_the_variant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("built"))
    for asked in (name, f"hf-hub:timm/{name}"):
        with pytest.raises(UserError, match="trained with QuickGELU") as caught:
            load_encoder({"timm": asked})
        variant = str(caught.value).rpartition("timm: ")[2]
        assert "quickgelu" in variant
        assert timm.get_pretrained_cfg(variant).hf_hub_id == timm.get_pretrained_cfg(name).hf_hub_id


def test_the_variant_has_the_activation_and_random_weights_need_none() -> None:
    small = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    variant = load_encoder({"timm": "vit_base_patch16_clip_quickgelu_224.openai", "weights": "random", "args": small})
    assert "QuickGELU" in str(variant.network.blocks[0].mlp)
    assert load_encoder({"timm": "vit_base_patch16_clip_224.openai", "weights": "random", "args": small}).spec.depth == 1


def test_unknown_names_and_arguments_are_users_errors() -> None:
    for what, says in (
        ("timm:vit_tinny_patch16_224", "did you mean vit_tiny_patch16_224?"),
        ("timm:vit_tiny_patch16_224.nonsense", "tag"),
        ({"timm": "convnext_atto", "weights": "random", "args": {"dephts": 3}}, "dephts"),
        ({"timm": "convnext_atto", "weights": "supervised"}, "weights: supervised"),
    ):
        with pytest.raises(UserError) as caught:
            load_encoder(what)
        assert says in str(caught.value)


def test_without_a_network_the_error_says_which_cache_to_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(UserError) as caught:
        load_encoder("timm:vit_tiny_patch16_224")
    assert str(constants.HF_HUB_CACHE) in str(caught.value)
    assert "timm:vit_tiny_patch16_224" in str(caught.value)


def test_pretrained_weights_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("vit_tiny_patch16_224", depth=1)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(source.state_dict()))
    encoder = load_encoder({"timm": "vit_tiny_patch16_224", "args": {"depth": 1}})
    assert torch.equal(encoder.network.cls_token, source.cls_token)
    assert "vit_tiny_patch16_224.augreg" in encoder.spec.source
    assert encoder.spec.name == "vit_tiny_patch16_224"
