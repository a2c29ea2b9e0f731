"""What an experiment list may say, and what it is told when it is wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torchvision import models

from virb.encoders.base import IMAGENET_MEAN
from virb.encoders.convert import convert
from virb.encoders.load import encoder_names, load_encoder, register_encoder
from virb.encoders.resnet import NAMES
from virb.errors import UserError

SMALL = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32}


def test_names() -> None:
    assert {"vit", "vit_tiny", "vit_small", "vit_base", "vit_large", "pixels", "torchvision", *NAMES} == set(encoder_names())


@pytest.mark.parametrize(
    ("arch", "args"),
    [
        ("vit_tiny", {"patch_size": 8, "img_size": 64}),
        ("vit_tiny", {"img_size": 32, "qkv_bias": False}),
        ("vit_small", {"depth": 12}),
    ],
)
def test_a_vit_file_alone_tells_its_architecture(arch: str, args: dict[str, Any], tmp_path: Path) -> None:
    named = load_encoder({"arch": arch, "args": args, "weights": "random"})
    torch.save({f"backbone.{key}": value for key, value in named.network.state_dict().items()}, tmp_path / "vit.pth")
    found = load_encoder(str(tmp_path / "vit.pth"))
    also = load_encoder({"arch": "vit", "args": {"heads": named.spec.n_heads}, "weights": str(tmp_path / "vit.pth")})
    assert found.arguments == named.arguments == also.arguments
    assert found.spec.architecture == named.spec.architecture
    assert found.spec.encoder_id == also.spec.encoder_id
    assert "(100 %)" in found.spec.source
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(found(images)["embedding"], named(images)["embedding"])


@pytest.mark.parametrize("arch", NAMES)
def test_a_resnet_file_alone_tells_its_architecture(arch: str, tmp_path: Path) -> None:
    from virb.encoders.checkpoints import from_state
    from virb.encoders.layouts import recognise

    with torch.device("meta"):
        state = models.get_model(arch, weights=None).state_dict()
    assert recognise(from_state({f"module.{key}": value for key, value in state.items()}, "net.pth")) == (arch, {})


def test_a_file_that_does_not_tell_says_what_to_name(tmp_path: Path) -> None:
    vit = load_encoder({"arch": "vit", "args": SMALL, "weights": "random"})
    with torch.device("meta"):
        odd = models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]).state_dict()
    files = {
        "narrow.pth": (dict(vit.network.state_dict()), "its number of heads"),
        "odd.pth": ({key: torch.zeros(value.shape) for key, value in odd.items()}, "1-1-1-1 blocks"),
        "other.pth": ({"features.0.weight": torch.zeros(3)}, "features.0.weight"),
    }
    for name, (state, says) in files.items():
        torch.save(state, tmp_path / name)
        with pytest.raises(UserError) as caught:
            load_encoder(tmp_path / name)
        assert says in str(caught.value)
        assert "name `arch:`" in str(caught.value)


def timm_state(width: int, heads: int) -> dict[str, torch.Tensor]:
    network = timm.create_model("vit_small_patch16_224", num_classes=0, embed_dim=width, depth=12, num_heads=heads, img_size=32)
    return dict(network.state_dict())


def test_normalisation_is_that_of_the_layouts_method(tmp_path: Path) -> None:
    state = timm_state(192, 3)
    small = {"embed_dim": 192, "num_heads": 3, "img_size": 32}
    torch.save({"teacher": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "dino.pth")
    torch.save(state, tmp_path / "bare.pth")
    convert(tmp_path / "dino.pth", tmp_path / "converted.safetensors")
    half = (0.5, 0.5, 0.5)
    own: dict[str, Any] = {"timm": "vit_small_patch16_224", "args": small}
    dino, bare = {"weights": tmp_path / "dino.pth"}, {"weights": tmp_path / "bare.pth"}
    for what, mean, assumed in (
        ({**own, **dino}, IMAGENET_MEAN, False),  # not timm's 0.5
        (dino, IMAGENET_MEAN, False),
        ({**own, "weights": tmp_path / "converted.safetensors"}, IMAGENET_MEAN, False),
        ({**own, **dino, "input": {"mean": 0.5, "std": 0.5}}, half, False),
        ({**own, **bare}, half, True),
        (bare, IMAGENET_MEAN, True),
        ({**bare, "input": {"mean": 0.5}}, half, True),  # std is still a guess
        ({**bare, "input": {"mean": 0.5, "std": 0.5}}, half, False),
        ({**own, "weights": "random"}, half, False),
    ):
        spec = load_encoder(what).spec
        assert spec.input.mean == mean, what
        assert ("normalisation assumed: mean" in spec.source) == assumed, what
    assert "assumed: mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (say input:" in load_encoder({**own, **bare}).spec.source


def test_weights_of_other_heads_are_refused(tmp_path: Path) -> None:
    state = timm_state(384, 12)
    torch.save({"state_dict": {f"module.base_encoder.{key}": value for key, value in state.items()}}, tmp_path / "moco.pth")
    convert(tmp_path / "moco.pth", tmp_path / "converted.pth")
    convert(tmp_path / "moco.pth", tmp_path / "converted.safetensors")
    model: dict[str, Any] = {"timm": "vit_small_patch16_224", "args": {"img_size": 32}}
    for name in ("moco.pth", "converted.pth", "converted.safetensors"):
        weights = {"weights": tmp_path / name}
        wrong: list[dict[str, Any]] = [model, {"arch": "vit_small"}]
        if name != "moco.pth":  # what the file itself says is no guess
            wrong += [{"arch": "vit", "args": {"heads": 6}}, {**model, "args": {"img_size": 32, "num_heads": 6}}]
        for what in wrong:
            with pytest.raises(UserError, match="has 12 heads") as caught:
                load_encoder({**what, **weights})
            assert name in str(caught.value)
        right = {**model, "args": {"img_size": 32, "num_heads": 12}}
        assert load_encoder({**right, **weights}).spec.n_heads == load_encoder(tmp_path / name).spec.n_heads == 12


def test_random_is_the_same_for_one_seed_and_asked_for_by_name() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 99)
        return load_encoder({"arch": "vit", "args": SMALL, "weights": "random"}, seed=seed).network.pos_embed

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    with pytest.raises(UserError, match="weights: random"):
        load_encoder({"arch": "vit_tiny"})


def test_an_object_with_the_same_attributes_is_read_alike() -> None:
    args = {"arch": "vit", "weights": "random", "args": SMALL, "input": {"size": 48}}
    entry = SimpleNamespace(**args, timm=None, module=None, checkpoint_key=None, meta={"method": "none"})
    assert load_encoder(entry).spec == load_encoder(args).spec


def test_an_encoder_is_returned_as_it_is() -> None:
    encoder = load_encoder({"arch": "pixels"})
    assert load_encoder(encoder) is encoder
    renamed = load_encoder(encoder, name="floor")
    assert (renamed.spec.name, encoder.spec.name) == ("floor", "pixels")
    assert renamed.spec.encoder_id == encoder.spec.encoder_id
    assert renamed.network is encoder.network


def test_names_come_from_what_was_loaded(tmp_path: Path) -> None:
    assert load_encoder({"arch": "pixels"}, name="floor").spec.name == "floor"
    assert load_encoder({"arch": "pixels"}).spec.name == "pixels"


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"arch": "vit_smal", "weights": "random"}, "did you mean vit_small?"),
        ({"arch": "vit_small", "weights": "random", "args": {"patchsize": 8}}, "did you mean patch_size?"),
        ({"arch": "resnet18", "weights": "random", "args": {"depth": 3}}, "(arguments: none)"),
        ({"arch": "vit_small", "weights": "random", "args": {"heads": 7}}, "cannot be split into 7 heads"),
        ({"arch": "vit_small", "weights": "random", "args": {"patch_size": "8"}}, "patch_size is '8'"),
        ({"arch": "vit_small", "weights": "random", "args": {"position_mode": "dimo"}}, "expected exact, dino, antialias"),
        ({"arch": "vit", "weights": "random"}, "needs width, depth, heads"),
        ({"arch": "vit_small", "weights": "supervised"}, "no supervised weights for vit_small/16"),
        ({"arch": "vit_small", "weights": "pretrained"}, "for timm models"),
        ({"arch": "vit_small", "weights": "random", "input": {"sizes": 3}}, "did you mean size?"),
        ({"arch": "vit_small", "timm": "convnext_atto"}, "one of arch, timm, module, hub, hf and open_clip, but got arch and timm"),
        ({"weights": "open_clip:x"}, "weights: open_clip:x is no file; write open_clip: x"),
        ({"weigths": "x.pth"}, "did you mean weights?"),
        ({"weights": "random"}, "name `arch:`"),
        ({}, "name `arch:`"),
        ({"arch": 3}, "expected text"),
        ({"arch": "pixels", "args": [3]}, "expected a mapping"),
        ("vit_small", "is an architecture, not a file"),
        ("nowhere/x.pth", "nowhere/x.pth does not exist"),
        (7, "but got int"),
    ],
)
def test_mistakes_are_explained(what: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_encoder(what)
    assert says in str(caught.value)


def test_registering_a_name_twice_is_an_error() -> None:
    with pytest.raises(UserError, match="two encoders are named pixels"):
        register_encoder("pixels")(lambda: load_encoder({"arch": "pixels"}))
