"""The DeepLab heads against ViRB 2021's own numbers, and what differs between the plain one and the one as published."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet, resnet50

from virb.errors import UserError
from virb.probes.dense_deeplab import BatchNorm, DeepLab, DeepLab2021, DilatedBlock4, PyramidPooling, early_map

GOLDEN = Path(__file__).parents[1] / "golden" / "virb_heads_small.npz"
RESNET50 = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


def stored(prefix: str) -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file.files if key.startswith(prefix)}


def one(key: str) -> Tensor:
    return stored(key)[""]


def small_layer4(inputs: int = 12, planes: int = 4) -> nn.Sequential:
    """torchvision's own blocks, as a ResNet builds them, with few channels."""
    downsample = nn.Sequential(nn.Conv2d(inputs, 4 * planes, 1, stride=2, bias=False), nn.BatchNorm2d(4 * planes))
    blocks = [Bottleneck(inputs, planes, 2, downsample), *(Bottleneck(4 * planes, planes) for _ in range(2))]
    return nn.Sequential(*blocks)


def small_head() -> DeepLab2021:
    head = DeepLab2021(small_layer4(), 6, 4, width=8, early_width=5)
    head.load_state_dict(stored("deeplab.sd."))
    return head


def test_pyramid_pooling_is_virb_2021s() -> None:
    assert float(one("aspp.batch_norm_eps")) == 3e-4
    pooling = PyramidPooling(12, 8, eps=3e-4).eval()
    pooling.load_state_dict(stored("aspp.sd."))
    with torch.no_grad():
        torch.testing.assert_close(pooling(one("aspp.in.x")), one("aspp.out"), rtol=1e-4, atol=1e-4)
    assert {m.momentum for m in pooling.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_dilated_block4_is_virb_2021s() -> None:
    block4 = DilatedBlock4(small_layer4())
    block4.load_state_dict(stored("dilated_block4.sd."))
    assert [block.conv2.dilation[0] for block in (block4.upsample_layer, *block4.conv)] == one("dilated_block4.dilations").tolist()
    with torch.no_grad():
        torch.testing.assert_close(block4(one("dilated_block4.in.x")), one("dilated_block4.out"), rtol=1e-4, atol=1e-4)


def test_names_of_layer4_are_carried_over_in_virb_2021s_way() -> None:
    with np.load(GOLDEN) as file:
        layer4_keys, block4_keys = file["deeplab.layer4_keys"].tolist(), file["deeplab.block4_keys"].tolist()
    layer4 = small_layer4()
    block4 = DilatedBlock4(layer4)
    assert list(layer4.state_dict()) == layer4_keys
    assert list(block4.state_dict()) == block4_keys
    for theirs, ours in zip(layer4_keys, block4_keys, strict=True):
        torch.testing.assert_close(block4.state_dict()[ours], layer4.state_dict()[theirs], rtol=0, atol=0)


def test_the_head_as_published_is_virb_2021s() -> None:
    """In testing the original normalised block1's reducer by the batch; all else by running statistics."""
    head = small_head().eval()
    image, maps = one("deeplab.in.img"), [one("deeplab.in.block1"), one("deeplab.in.block3")]
    expected = one("deeplab.out_original_eval")
    before = copy.deepcopy(head.state_dict())
    with torch.no_grad():
        found = head(maps, tuple(image.shape[-2:]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert head(maps).shape == (2, 4, *maps[0].shape[-2:])
    for key, value in head.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)  # testing changes nothing, unlike the original


def test_all_running_statistics_is_the_other_golden_number() -> None:
    head = small_head().eval()
    head.low_level_feature_reducer[1].always_batch = False
    maps = [one("deeplab.in.block1"), one("deeplab.in.block3")]
    with torch.no_grad():
        torch.testing.assert_close(head(maps, (96, 112)), one("deeplab.out_all_eval"), rtol=1e-4, atol=1e-4)
    assert (one("deeplab.out_all_eval") - one("deeplab.out_original_eval")).abs().max() > 1e-2  # they tell the two apart


@pytest.mark.parametrize(("n_outputs", "parameters"), [(5, 31_815_573), (20, 31_850_148)])
def test_a_resnet50_has_the_published_parameters(n_outputs: int, parameters: int) -> None:
    with torch.device("meta"):
        head = DeepLab2021.on_encoder(resnet50(weights=None).layer4.requires_grad_(False), RESNET50, n_outputs)
        out = head([torch.empty(2, *shape) for shape in RESNET50], (224, 224))
        plain = DeepLab.on_maps(RESNET50, n_outputs)
        low = plain([torch.empty(2, *shape) for shape in RESNET50])
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == parameters
    assert len(head.state_dict()) == 119
    assert out.shape == (2, n_outputs, 224, 224)
    assert sum(p.numel() for p in plain.parameters()) == parameters - 14_964_736  # all but the copy of layer4
    assert low.shape == (2, n_outputs, 56, 56)


def test_training_as_published_trains_the_copy_but_not_its_statistics() -> None:
    layer4 = small_layer4().requires_grad_(False)
    before = copy.deepcopy(layer4.state_dict())
    head = DeepLab2021(layer4, 6, 4, width=8, early_width=5).train()
    statistics = {key: value.clone() for key, value in head.block4.state_dict().items() if "running" in key}
    maps = [torch.randn(2, 6, 8, 8), torch.randn(2, 12, 4, 4)]
    head(maps).square().mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
    assert head.block4.upsample_layer.conv1.weight.grad.abs().sum() > 0
    for key, value in statistics.items():
        torch.testing.assert_close(head.block4.state_dict()[key], value, rtol=0, atol=0)
    assert not torch.equal(head.aspp.bn2.running_mean, torch.zeros(8))  # the others learn theirs
    for key, value in layer4.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)  # the encoder's own is untouched, frozen, in its mode
    assert not any(p.requires_grad for p in layer4.parameters())


def test_plain_norms_have_torchs_defaults_and_published_ones_do_not() -> None:
    plain = {(m.eps, m.momentum) for m in DeepLab(16, 6, 4, width=8).modules() if isinstance(m, nn.BatchNorm2d)}
    assert plain == {(1e-5, 0.1)}
    published = DeepLab2021(small_layer4(), 6, 4, width=8)
    assert {(m.eps, m.momentum) for m in published.aspp.modules() if isinstance(m, nn.BatchNorm2d)} == {(3e-4, 0.1)}
    assert {(m.eps, m.momentum) for m in published.decoder.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-5, 3e-4)}


def test_plain_head_tests_by_running_statistics() -> None:
    """One image or many: a prediction does not depend on the others in its batch."""
    torch.manual_seed(0)
    head = DeepLab.on_maps([(6, 8, 8), (16, 2, 2)], 3).eval()
    maps = [torch.randn(3, 6, 8, 8), torch.randn(3, 16, 2, 2)]
    with torch.no_grad():
        torch.testing.assert_close(head(maps)[:1], head([x[:1] for x in maps]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (RESNET50, 1),  # block1
        ([(c, -(-97 // s), -(-131 // s)) for c, s in ((64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32))], 1),
        ([(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)], 0),  # ConvNeXt, Swin
        ([(384, 14, 14)] * 4, 0),
        ([(384, 14, 14)], 0),
    ],
)
def test_the_early_map(shapes: list[tuple[int, int, int]], expected: int) -> None:
    assert early_map(shapes, -1, 8) == expected
    with torch.device("meta"):
        out = DeepLab.on_maps(shapes, 3)([torch.empty(2, *shape) for shape in shapes])
    assert out.shape == (2, 3, *shapes[expected][1:])


def test_the_published_head_finds_block1_and_block3() -> None:
    with torch.device("meta"):
        layer4 = resnet50(weights=None).layer4
        whole = DeepLab2021.on_encoder(layer4, RESNET50, 3)
        two = DeepLab2021.on_encoder(layer4, [RESNET50[1], RESNET50[3]], 3)
    assert (whole.early_index, whole.deep_index) == (1, 3)
    assert (two.early_index, two.deep_index) == (0, 1)


def test_what_the_published_head_cannot_take() -> None:
    with torch.device("meta"):
        basic = ResNet(BasicBlock, [2, 2, 2, 2]).layer4
        layer4 = resnet50(weights=None).layer4
        with pytest.raises(UserError, match="three bottleneck blocks"):
            DilatedBlock4(basic)
        with pytest.raises(UserError, match="the map that layer4 takes, with 1024 channels; the request's maps have 384, 384"):
            DeepLab2021.on_encoder(layer4, [(384, 14, 14)] * 2, 3)


def test_norm_is_torchs_where_torch_has_one() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), nn.BatchNorm2d(5)
    for x in (torch.randn(4, 5, 3, 3), torch.randn(1, 5, 2, 2)):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    single = torch.randn(1, 5, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        theirs(single)
    found = ours(single)  # one value per channel has no variance: the running statistics stand in
    torch.testing.assert_close(found, theirs.eval()(single))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.eval()(single), theirs(single), rtol=0, atol=0)


def test_always_batch_never_reads_the_running_statistics() -> None:
    torch.manual_seed(0)
    norm, x = BatchNorm(5, always_batch=True).eval(), torch.randn(4, 5, 3, 3) + 7
    torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(norm.running_mean, torch.zeros(5), rtol=0, atol=0)


def test_a_last_batch_of_one_image_trains() -> None:
    head = DeepLab.on_maps([(6, 8, 8), (16, 2, 2)], 3).train()
    head([torch.randn(1, 6, 8, 8), torch.randn(1, 16, 2, 2)]).sum().backward()
