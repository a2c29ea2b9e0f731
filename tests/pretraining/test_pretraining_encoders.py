"""What pretraining writes is an encoder: networks that no shape tells are noted in the checkpoint, and read back with the same features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from virb.cli import main
from virb.encoders.base import Encoder
from virb.encoders.load import load_encoder
from virb.errors import UserError

FEW: dict[str, Any] = dict(
    global_crops_size=64, local_crops_size=48, local_crops_number=1, out_dim=16, head_hidden_dim=8, head_bottleneck_dim=8, head_layers=2,
    batch_size_per_gpu=2, epochs=1, warmup_epochs=0, lr=0.01, num_workers=0, device="cpu", tensorboard="false",
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def train(images: Path, out: Path, arch: str, **more: Any) -> Path:
    flags = [text for key, value in {**FEW, **more}.items() for text in (f"--{key}", str(value))]
    assert main(["pretrain", "dino", "--data_path", str(images), "--output_dir", str(out), "--arch", arch, *flags]) == 0
    return out / "checkpoint.pth"


def backbone_of(saved: dict[str, Any], network: nn.Module) -> nn.Module:
    teacher = {name.removeprefix("module."): value for name, value in saved["teacher"].items()}  # so with batch norms, as the original's
    network.load_state_dict({name[9:]: value for name, value in teacher.items() if name.startswith("backbone.")})
    return network.eval().requires_grad_(False)


def reference(arch: str) -> nn.Module:
    """The network as its own library builds it, without classifier."""
    if arch.startswith("timm:"):
        import timm

        return timm.create_model(arch[5:], num_classes=0, **({"img_size": 64} if "vit" in arch else {}))
    from torchvision import models

    network: Any = models.get_model(arch, weights=None)
    if arch == "squeezenet1_1":
        network.classifier[1] = nn.Identity()
    elif hasattr(network, "fc"):
        network.fc = nn.Identity()
    else:
        network.classifier[-1] = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("arch", "expected", "width", "stages"),
    [
        ("mobilenet_v3_small", "torchvision:mobilenet_v3_small", 1024, [(16, 2), (16, 4), (24, 8), (48, 16), (576, 32)]),
        ("shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x0_5", 1024, [(24, 2), (24, 4), (48, 8), (96, 16), (1024, 32)]),
        ("squeezenet1_1", "torchvision:squeezenet1_1", 512, [(64, 2), (128, 4), (256, 8), (512, 17)]),
        ("resnet18", "resnet18", 512, [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)]),
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224", 192, [(192, 16)] * 4),
        ("timm:convnext_atto", "timm:convnext_atto", 320, [(40, 4), (80, 8), (160, 16), (320, 32)]),
    ],
)
def test_what_is_trained_reads_back(images: Path, tmp_path: Path, arch: str, expected: str, width: int, stages: list[Any]) -> None:
    sizes = {"patch_size": 16, "local_crops_size": 32} if "vit" in arch else {}
    path = train(images, tmp_path, arch, **sizes)
    saved = torch.load(path, weights_only=True)
    encoder = load_encoder(path)
    assert encoder.spec.architecture == expected
    assert encoder.spec.embed_dim == width
    assert [(stage.channels, stage.stride) for stage in encoder.spec.stages] == stages
    assert dict(encoder.spec.training)["method"] == "dino"
    assert "normalisation assumed" not in encoder.spec.source
    batch = torch.randn(2, 3, 64, 64)
    network = backbone_of(saved, reference(arch))
    torch.testing.assert_close(encoder(batch)["embedding"], network(batch))
    student = load_encoder({"weights": path, "checkpoint_key": "student"})
    assert not torch.equal(student(batch)["embedding"], encoder(batch)["embedding"])

    names = ("a.safetensors", "b.safetensors" if arch == "resnet18" else "b.pt")  # a ResNet's .pt is that of ViRB 2021, without notes
    assert main(["convert", str(path), str(tmp_path / names[0])]) == 0
    assert main(["convert", str(tmp_path / names[0]), str(tmp_path / names[1])]) == 0
    for name in names:
        again = load_encoder(tmp_path / name)
        assert (again.spec.encoder_id, again.spec.training) == (encoder.spec.encoder_id, encoder.spec.training)


def test_maps_of_torchvisions_networks() -> None:
    """Against the network's own parts; asking for several changes none, though later parts work in place."""
    encoder = torchvision("mobilenet_v3_small")
    batch = torch.randn(2, 3, 64, 64)
    found = encoder(batch, ("embedding", "tokens[-1]", "tokens[2]", "pyramid"))
    features: Any = encoder.network.features
    torch.testing.assert_close(found["tokens[-1]"], features(batch))
    torch.testing.assert_close(found["tokens[2]"], features[:4](batch))
    torch.testing.assert_close(found["embedding"], encoder.network(batch))
    assert torch.equal(encoder(batch, ("tokens[2]",))["tokens[2]"], found["pyramid"][2])
    dense = torchvision("densenet121")  # works in place on the map that its features end with
    torch.testing.assert_close(dense(batch, ("embedding", "tokens[-1]"))["tokens[-1]"], dense.network.features(batch))
    swin = torchvision("swin_t")  # keeps channels last inside
    expected = swin.network.norm(swin.network.features(batch)).permute(0, 3, 1, 2)
    torch.testing.assert_close(swin(batch, ("tokens[-1]",))["tokens[-1]"], expected)
    assert [stage.channels for stage in swin.spec.stages] == [96, 192, 384, 768]
    assert torchvision("vit_b_32").spec.outputs == ("embedding",)


def torchvision(model: str) -> Encoder:
    return load_encoder({"arch": "torchvision", "args": {"model": model}, "weights": "random"})


def test_the_random_twin_is_drawn_from_the_seed() -> None:
    first, again = torchvision("mobilenet_v3_small"), torchvision("mobilenet_v3_small")
    assert first.spec.encoder_id == again.spec.encoder_id
    other = load_encoder({"arch": "torchvision", "args": {"model": "mobilenet_v3_small"}, "weights": "random"}, seed=1)
    assert other.spec.encoder_id != first.spec.encoder_id


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"model": "mobilenet_v3_smal"}, "did you mean mobilenet_v3_small"),
        ({"model": "resnet18"}, "write arch: resnet18"),
        ({}, "torchvision needs model under `args:`"),
    ],
)
def test_networks_that_there_are_not(args: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_encoder({"arch": "torchvision", "args": args, "weights": "random"})


def test_images_that_a_network_does_not_take() -> None:
    from virb.errors import ViRBError

    with pytest.raises(ViRBError, match="torchvision:vit_b_32 fails on images of 64x64 pixels"):
        torchvision("vit_b_32")(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    "network",
    [["timm:hf-hub:attacker/model", {}], ["timm:resnet18", {"checkpoint_path": "x"}], ["torchvision", {"model": "../evil"}], ["os", {}]],
)
def test_what_a_checkpoint_notes_opens_no_file_and_no_address(tmp_path: Path, network: list[Any]) -> None:
    state = {f"backbone.{name}": value for name, value in torchvision("squeezenet1_1").network.state_dict().items()}
    noted = {"engine": 1, "method": "dino", "step": 1, "network": network}
    torch.save({"teacher": state, "epoch": 1, "virb": noted}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="notes an architecture that"):
        load_encoder(tmp_path / "x.pth")
    noted["network"] = ["torchvision", {"model": "mobilenet_v3_small"}]
    torch.save({"teacher": state, "epoch": 1, "virb": noted}, tmp_path / "y.pth")
    with pytest.raises(UserError, match=r"filled \d+ of \d+ parameters of torchvision:mobilenet_v3_small"):
        load_encoder(tmp_path / "y.pth")
