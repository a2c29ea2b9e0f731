"""ResNets against hooks on torchvision's own models."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from virb.encoders.load import load_encoder
from virb.errors import UserError

MAPS = ("conv", "block1", "block2", "block3", "block4")


def lively(name: str) -> torch.nn.Module:
    """A torchvision network in eval mode whose batch norms do something."""
    torch.manual_seed(0)
    network = models.get_model(name, weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    return network.eval()


def hooked(network: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    taps = {**{f"block{i}": getattr(network, f"layer{i}") for i in (1, 2, 3, 4)}, "embedding": network.avgpool}
    handles = [tap.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.clone()})) for name, tap in taps.items()]
    handles.append(network.maxpool.register_forward_pre_hook(lambda _m, inputs: seen.update(conv=inputs[0].clone())))
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    seen["embedding"] = seen["embedding"].flatten(1)
    return seen


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d"])
def test_maps_equal_torchvisions_own(name: str, tmp_path: Path) -> None:
    network = lively(name)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    encoder = load_encoder(str(tmp_path / "net.pth"))
    assert encoder.spec.architecture == name
    images = torch.randn(2, 3, 96, 64)
    expected = hooked(network, images)
    found = encoder(images, ("embedding", *MAPS, "pyramid", "tokens[-1]", "tokens[1]"))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-5)
    assert [torch.equal(a, found[b]) for a, b in zip(found["pyramid"], MAPS, strict=True)] == [True] * 5
    assert torch.equal(found["tokens[-1]"], found["block4"])
    assert torch.equal(found["tokens[1]"], found["block2"])


# height x width of conv and block1 to block4 of ViRB 2021's encoder, as its own code gave them
SHAPES_OF_2021 = {
    (224, 224): ((112, 112), (56, 56), (28, 28), (14, 14), (7, 7)),
    (256, 256): ((128, 128), (64, 64), (32, 32), (16, 16), (8, 8)),
    (192, 256): ((96, 128), (48, 64), (24, 32), (12, 16), (6, 8)),
    (375, 1242): ((188, 621), (94, 311), (47, 156), (24, 78), (12, 39)),
    (225, 225): ((113, 113), (57, 57), (29, 29), (15, 15), (8, 8)),
    (97, 131): ((49, 66), (25, 33), (13, 17), (7, 9), (4, 5)),
    (64, 64): ((32, 32), (16, 16), (8, 8), (4, 4), (2, 2)),
    (513, 513): ((257, 257), (129, 129), (65, 65), (33, 33), (17, 17)),
}


def test_resnet50_has_the_shapes_of_virb_2021() -> None:
    encoder = load_encoder({"arch": "resnet50", "weights": "random"})
    assert encoder.spec.n_params == 25_557_032 - 2_049_000  # without the classifier, which no output used
    for size, grids in SHAPES_OF_2021.items():
        shapes = encoder.output_shapes(("embedding", *MAPS), size)
        assert shapes["embedding"] == (2048,)
        assert [shapes[name] for name in MAPS] == [(c, *grid) for c, grid in zip((64, 256, 512, 1024, 2048), grids, strict=True)]


def test_only_wanted_blocks_run() -> None:
    encoder = load_encoder({"arch": "resnet18", "weights": "random"})
    ran: list[str] = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        getattr(encoder.network, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    encoder(torch.randn(1, 3, 32, 32), ("block2", "conv"))
    assert ran == ["layer1", "layer2"]


def test_virb_2021_file_loads_and_its_heads_are_left_out(tmp_path: Path) -> None:
    network = lively("resnet50")
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    state["model.fc.weight"] = torch.zeros(128, 2048)  # MoCo v1's projection, which the old tool failed on
    state["model.prototypes.weight"] = torch.zeros(30, 128)
    torch.save(state, tmp_path / "old.pt")
    encoder = load_encoder(tmp_path / "old.pt")
    assert (encoder.spec.name, encoder.spec.architecture) == ("old", "resnet50")
    assert 'prefix "model."' in encoder.spec.source
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder(images)["embedding"], hooked(network, images)["embedding"], atol=1e-5, rtol=1e-5)


def test_a_missing_running_variance_is_an_error(tmp_path: Path) -> None:
    state = lively("resnet18").state_dict()
    del state["layer3.1.bn2.running_var"], state["layer3.1.bn2.num_batches_tracked"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError) as caught:
        load_encoder(tmp_path / "net.pth")
    assert "filled 99 of 100 parameters of resnet18" in str(caught.value)
    assert "1 missing: layer3.1.bn2.running_var" in str(caught.value)


def test_supervised_weights_come_through_torchvisions_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = lively("resnet18")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: network.state_dict())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: network.state_dict())
    encoder = load_encoder({"arch": "resnet18", "weights": "supervised"})
    assert torch.equal(encoder.network.conv1.weight, network.conv1.weight)
    assert "IMAGENET1K_V1" in encoder.spec.source
    assert (encoder.spec.input.size, encoder.spec.input.crop_pct, encoder.spec.input.interpolation) == ((224, 224), 0.875, "bilinear")


def test_without_a_network_the_error_says_which_file_to_fill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for what in ({"arch": "resnet50", "weights": "supervised"}, "supervised", {"weights": ""}):
        with pytest.raises(UserError) as caught:
            load_encoder(what)
        assert str(tmp_path / "hub/checkpoints/resnet50-0676ba61.pth") in str(caught.value)
        assert "https://download.pytorch.org" in str(caught.value)
