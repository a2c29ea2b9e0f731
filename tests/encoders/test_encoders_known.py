"""Short names of weights: their addresses, and that each names a network that can be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from virb.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from virb.encoders.download import NotDownloaded
from virb.encoders.known import KNOWN, known_names
from virb.encoders.load import load_encoder
from virb.encoders.recipes import Recipe, read_recipe, resolve
from virb.encoders.registry import build, encoder_names

BASE = "https://dl.fbaipublicfiles.com/dino/"


def test_the_names_of_dinos_hub() -> None:
    hub = {"dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8", "dino_resnet50", "dino_deits16", "dino_deits8"}
    xcit = {f"dino_xcit_{size}" for size in ("small_12_p16", "small_12_p8", "medium_24_p16", "medium_24_p8")}
    assert set(known_names()) == hub | xcit | {"dino_vits16_gldv2", "dino_vits8_300ep"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dino_vits16", "dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"),
        ("dino_deits8", "dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth"),
        ("dino_vitb16", "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"),
        ("dino_resnet50", "dino_resnet50_pretrain/dino_resnet50_pretrain.pth"),
        ("dino_xcit_medium_24_p8", "dino_xcit_medium_24_p8_pretrain/dino_xcit_medium_24_p8_pretrain.pth"),
        ("dino_vits16_gldv2", "dino_vitsmall16_googlelandmark_pretrain/dino_vitsmall16_googlelandmark_pretrain.pth"),
    ],
)
def test_addresses(name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotDownloaded) as missing:
        load_encoder(name, offline=True)
    assert missing.value.address == BASE + file
    assert f"pretrained_weights/{file.rpartition('/')[2]}" in str(missing.value)


@pytest.mark.parametrize("name", known_names())
def test_each_names_one_network(name: str) -> None:
    known = KNOWN[name]
    assert known.url.startswith(BASE)
    assert (known.arch is None) != (known.timm is None)
    assert known.arch in encoder_names() if known.arch else timm.is_model(str(known.timm))


def test_a_short_name_is_its_file_and_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = build("vit_small", {"patch_size": 16}).network
    Path("pretrained_weights").mkdir()
    torch.save(network.state_dict(), "pretrained_weights/dino_deitsmall16_pretrain.pth")
    encoder = load_encoder("dino_vits16", offline=True)
    assert (encoder.spec.name, encoder.spec.architecture) == ("dino_vits16", "vit_small/16")
    assert (encoder.spec.input.interpolation, encoder.spec.input.crop_pct) == ("bicubic", 0.875)
    assert torch.equal(encoder.network.pos_embed, network.pos_embed)
    dino = load_encoder({"weights": "dino_vits16", "args": {"position_mode": "dino"}, "input": {"size": 480}}, offline=True)
    assert dino.spec.position_mode == "dino"
    assert (dino.spec.input.size, dino.spec.input.interpolation) == ((480, 480), "bicubic")


def test_a_network_named_beside_a_short_name_gets_dinos_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pretrained_weights").mkdir()
    network = timm.create_model("vit_small_patch16_224", num_classes=0)
    assert network.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    torch.save(network.state_dict(), "pretrained_weights/dino_deitsmall16_pretrain.pth")
    spec = load_encoder({"weights": "dino_vits16", "timm": "vit_small_patch16_224"}, offline=True).spec
    assert (spec.input.mean, spec.input.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "assumed" not in spec.source


def test_what_the_user_says_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pretrained_weights").mkdir()
    Path("pretrained_weights/dino_resnet50_pretrain.pth").touch()
    recipe = resolve(read_recipe({"weights": "dino_resnet50", "module": "a.b:C", "input": {"interpolation": "nearest"}}), offline=True)
    assert (recipe.arch, recipe.timm, recipe.module) == (None, None, "a.b:C")
    assert recipe.weights == "pretrained_weights/dino_resnet50_pretrain.pth"
    assert recipe.input == {"interpolation": "nearest", "crop_pct": 0.875, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    assert resolve(Recipe(weights="./dino_resnet50")).weights == "./dino_resnet50"  # a file of that name


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("hub:owner/repo:net", {"hub": "owner/repo:net"}),
        ("hf:facebook/dinov2-small", {"hf": "facebook/dinov2-small"}),
        ("open_clip:ViT-B-32/openai", {"open_clip": "ViT-B-32/openai"}),
        ("timm:resnet18", {"timm": "resnet18"}),
        ("https://a.b/c.pt", {"weights": "https://a.b/c.pt"}),
    ],
)
def test_texts(what: str, expected: dict[str, Any]) -> None:
    assert read_recipe(what) == Recipe(**expected)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (Recipe(hub="facebookresearch/dinov2:main:dinov2_vits14"), "dinov2_vits14"),
        (Recipe(hf="facebook/dinov2-small@abc"), "dinov2-small"),
        (Recipe(open_clip="ViT-B-32/openai"), "ViT-B-32-openai"),
        (Recipe(weights="https://a.b/SWAV_800.pt"), "SWAV_800"),
    ],
)
def test_default_names(recipe: Recipe, name: str) -> None:
    assert recipe.default_name == name


def test_offline_timm_and_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    with pytest.raises(NotDownloaded, match="fill the cache") as missing:
        load_encoder("timm:test_vit.r160_in1k", offline=True)
    assert missing.value.address == "https://huggingface.co/timm/test_vit.r160_in1k"
    with pytest.raises(NotDownloaded, match=r"a run puts it in .*torch.checkpoints") as missing:
        load_encoder({"arch": "resnet18", "weights": "supervised"}, offline=True)
    assert missing.value.address == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
