"""Backbones: the encoder's names and outputs, drop path by image, networks of torchvision and timm, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from virb.encoders.vit import vit
from virb.errors import UserError
from virb.pretraining import networks as nets
from virb.pretraining.networks import BackboneConfig, TrainableViT

SMALL = BackboneConfig("vit", 8, (32, 16), embed_dim=24, depth=3, num_heads=2)


def small_vit(rate: float = 0.0) -> TrainableViT:
    torch.manual_seed(3)
    found = nets.find_backbone(SMALL, tokens=False).build(rate)
    assert isinstance(found, TrainableViT)
    return found


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (16, 24)])
def test_it_is_the_encoder(size: tuple[int, int]) -> None:
    ours = small_vit(0.5).eval()
    encoder = vit(width=24, depth=3, heads=2, patch_size=8, img_size=32)
    encoder.network.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, *size)
    outputs = encoder(images, ("embedding", "tokens[-1]"))
    torch.testing.assert_close(ours(images), outputs["embedding"])
    backbone = nets.find_backbone(SMALL, tokens=True)
    tokens = backbone.extract(ours, images, None)
    torch.testing.assert_close(tokens[:, 0], outputs["embedding"])
    torch.testing.assert_close(tokens[:, 1:], outputs["tokens[-1]"].flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("arch", "n_params"), [("vit_tiny", 5524416), ("deit_small", 21665664), ("vit_base", 85798656)])
def test_sizes_of_the_original(arch: str, n_params: int) -> None:
    with torch.device("meta"):
        network = nets.find_backbone(BackboneConfig(arch, 16, (224, 96)), tokens=False).build(0.1)
    assert sum(parameter.numel() for parameter in network.parameters()) == n_params
    assert len(network.state_dict()) == 150


def test_it_starts_as_the_original() -> None:
    torch.manual_seed(0)
    network = nets.find_backbone(BackboneConfig("vit_tiny", 16, (224,)), tokens=False).build(0.1)
    for name, parameter in network.named_parameters():
        if name.startswith("patch_embed"):  # a convolution: torch's own start
            assert parameter.abs().max() <= (3 * 16 * 16) ** -0.5
        elif "norm" in name or name.endswith("bias"):
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name


# Drop path


def draws(images: int, depth: int = 3) -> Tensor:
    return torch.rand(images, 2 * depth, generator=torch.Generator().manual_seed(1))


def test_drop_path_by_hand() -> None:
    """Rates 0, 1/4, 1/2. The branches whose number is below the rate are left out, the others count 1 / (1 - rate) times."""
    network = small_vit(0.5).train()
    assert network.drop_rates == [0.0, 0.25, 0.5]
    images = torch.randn(2, 3, 32, 32)
    numbers = torch.tensor([[0.0, 0.0, 0.24, 0.25, 0.5, 0.49], [0.0, 0.0, 0.9, 0.1, 0.1, 0.9]])
    kept = [[1, 1, 0, 1 / 0.75, 2, 0], [1, 1, 1 / 0.75, 0, 0, 2]]
    expected = []
    for image, factors in zip(images, kept, strict=True):
        x, _ = network.embed(image[None])
        for i, block in enumerate(network.blocks):
            x = x + factors[2 * i] * block.attn(block.norm1(x))
            x = x + factors[2 * i + 1] * block.mlp(block.norm2(x))
        expected.append(network.norm(x[:, 0]))
    torch.testing.assert_close(network(images, numbers), torch.cat(expected))


def test_drop_path_of_an_image_does_not_depend_on_the_batch() -> None:
    network = small_vit(0.6).train()
    images, numbers = torch.randn(5, 3, 32, 32), draws(5)
    joint = network(images, numbers)
    for i in range(5):
        torch.testing.assert_close(network(images[i : i + 1], numbers[i : i + 1])[0], joint[i])
    assert not torch.allclose(joint, network.eval()(images, numbers))


def test_noise_is_that_of_the_image_and_the_step() -> None:
    noise = nets.noise(0, 5, torch.tensor([11, 2, 7]), 3, 4)
    assert noise is not None
    assert noise.shape == (3, 3, 4)
    again = nets.noise(0, 5, torch.tensor([7]), 3, 4)
    assert again is not None
    assert torch.equal(again[0], noise[2])
    for other in (nets.noise(1, 5, torch.tensor([7]), 3, 4), nets.noise(0, 6, torch.tensor([7]), 3, 4)):
        assert other is not None
        assert not torch.equal(other, again)
    assert nets.noise(0, 0, torch.tensor([1]), 3, 0) is None
    many = nets.noise(0, 0, torch.arange(500), 4, 8)
    assert many is not None
    assert many.mean().item() == pytest.approx(0.5, abs=0.01)
    assert 0 <= many.min() < many.max() < 1
    assert torch.corrcoef(many[:, :, 0].T).fill_diagonal_(0).abs().max() < 0.2


def test_computing_blocks_again_changes_nothing() -> None:
    images, numbers = torch.randn(2, 3, 32, 32), draws(2)
    gradients = []
    for again in (False, True):
        network = small_vit(0.5).train()
        if again:
            assert nets.use_checkpointing(nn.Sequential(network))
        network(images, numbers).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


# Networks of others


def test_torchvision() -> None:
    backbone = nets.find_backbone(BackboneConfig("resnet18", 16, (64, 32)), tokens=False)
    assert (backbone.width, backbone.noise_width) == (512, 0)
    network = backbone.build(0.1)
    assert backbone.extract(network, torch.randn(2, 3, 32, 32), None).shape == (2, 512)
    assert "layer4.1.bn2.weight" in network.state_dict()
    assert not any(key.startswith("fc") for key in network.state_dict())
    assert not nets.use_checkpointing(network)


@pytest.mark.parametrize(("arch", "width"), [("mobilenet_v3_small", 1024), ("densenet121", 1024), ("convnext_tiny", 768)])
def test_torchvision_without_fc(arch: str, width: int) -> None:
    assert nets.find_backbone(BackboneConfig(arch, 16, (64,)), tokens=False).width == width


def test_timm() -> None:
    config = BackboneConfig("timm:vit_tiny_patch16_224", 16, (64, 32))
    pooled, tokens = (nets.find_backbone(config, which) for which in (False, True))
    network = pooled.build(0.1)
    image = torch.randn(2, 3, 32, 32)
    network.eval()
    assert pooled.width == tokens.width == 192
    features = tokens.extract(network, image, None)
    assert features.shape == (2, 1 + 4, 192)
    torch.testing.assert_close(features[:, 0], pooled.extract(network, image, None))


def test_timm_registers_are_no_patches() -> None:
    config = BackboneConfig("timm:vit_small_patch14_reg4_dinov2", 14, (56, 28))
    backbone = nets.find_backbone(config, tokens=True)
    assert backbone.extract(backbone.build(0.0), torch.randn(1, 3, 56, 56), None).shape == (1, 1 + 16, 384)


def test_timm_convnet_with_drop_path() -> None:
    backbone = nets.find_backbone(BackboneConfig("timm:convnext_atto", 16, (64, 32)), tokens=False)
    assert backbone.width == 320
    assert any("DropPath" in type(module).__name__ for module in backbone.build(0.2).modules())


@pytest.mark.parametrize(
    ("config", "tokens", "message"),
    [
        (BackboneConfig("vit_smal", 16, (224,)), False, "did you mean vit_small"),
        (BackboneConfig("resnet51", 16, (224,)), False, "did you mean resnet"),
        (BackboneConfig("timm:vit_smal_patch16_224", 16, (224,)), False, "did you mean vit_small_patch16_224"),
        (BackboneConfig("mobilenet_v3_smal", 16, (64,), embed_dim=24), False, "did you mean mobilenet_v3_small"),  # not: has its own size
        (BackboneConfig("vit_small", 16, (224, 100)), False, "patches of 16 pixels do not divide views of 100"),
        (BackboneConfig("vit", 16, (32,), embed_dim=30, depth=1), False, "needs embed_dim, depth and num_heads"),
        (BackboneConfig("vit", 16, (32,), embed_dim=30, depth=1, num_heads=4), False, "30 cannot be split into 4 heads"),
        (BackboneConfig("resnet18", 16, (32,), depth=3), False, "resnet18 has its own size"),
        (BackboneConfig("resnet18", 16, (32,)), True, "resnet18 has no .CLS. and patch tokens"),
        (BackboneConfig("timm:resnet18", 16, (32,)), True, "resnet18 has no .CLS. and patch tokens"),
        (BackboneConfig("timm:vit_tiny_patch16_224", 8, (32,)), True, "makes 4 patches of a view of 32 x 32 pixels.*set patch_size to 16"),
        (BackboneConfig("vit_b_32", 32, (64,)), False, "vit_b_32 cannot take views of 64 x 64 pixels"),
    ],
)
def test_what_is_refused(config: BackboneConfig, tokens: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        nets.find_backbone(config, tokens)


def test_batch_norms_of_all_ranks() -> None:
    network = nets.find_backbone(BackboneConfig("resnet18", 16, (64,)), tokens=False).build(0.0)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in nets.synchronise_batch_norm(network).modules()) == 20
