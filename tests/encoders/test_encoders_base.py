"""What every encoder does the same way: preparing pixels, staying frozen, answering requests, checking outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from virb.encoders.base import Encoder, InputSpec, Request, check_outputs, evenly_spaced
from virb.encoders.load import load_encoder
from virb.errors import UserError, ViRBError

VIT = {"arch": "vit", "weights": "random", "args": {"width": 32, "depth": 3, "heads": 2, "patch_size": 8, "img_size": 32}}


class Toy(nn.Module):
    """A user's network with everything that training would change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Dropout(0.5))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.stem(images)
        return {"tokens": maps, "embedding": maps.mean((2, 3))}


FAMILIES = {
    "vit": VIT,
    "resnet": {"arch": "resnet18", "weights": "random"},
    "timm": {"timm": "convnext_atto", "weights": "random"},
    "module": Toy(),
    "pixels": {"arch": "pixels"},
}


@pytest.fixture(scope="module")
def vit() -> Encoder:
    return load_encoder(VIT)


def test_prepare_normalises_and_pads_with_the_mean_colour(vit: Encoder) -> None:
    pixels = torch.randint(0, 256, (2, 3, 30, 17), dtype=torch.uint8)
    images = vit.prepare(pixels)
    assert images.shape == (2, 3, 32, 24)
    for channel, (mean, std) in enumerate(zip(vit.spec.input.mean, vit.spec.input.std, strict=True)):
        expected = (pixels[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(images[:, channel, :30, :17].double(), expected, atol=1e-5, rtol=0)
    assert not images[:, :, 30:].any()
    assert not images[:, :, :, 17:].any()


def test_prepare_leaves_sizes_alone_without_a_patch() -> None:
    encoder = load_encoder({"arch": "pixels"})
    assert encoder.prepare(torch.zeros(1, 3, 30, 17, dtype=torch.uint8)).shape == (1, 3, 30, 17)


def test_prepare_can_swap_channels() -> None:
    swapped = load_encoder({"arch": "pixels", "input": {"channels": "bgr", "mean": [0, 0, 0], "std": [1, 1, 1]}})
    pixels = torch.tensor([255, 51, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(swapped.prepare(pixels).flatten(), torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize(("shape", "dtype"), [((1, 3, 8, 8), torch.float32), ((3, 8, 8), torch.uint8), ((1, 1, 8, 8), torch.uint8)])
def test_prepare_refuses_other_tensors(vit: Encoder, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(ViRBError, match="uint8"):
        vit.prepare(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_is_frozen(family: str) -> None:
    encoder = load_encoder(FAMILIES[family])
    state = copy.deepcopy({**dict(encoder.named_parameters()), **dict(encoder.named_buffers())})
    model = nn.Sequential(encoder)
    model.train()
    images = encoder.prepare(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    with torch.enable_grad():
        first = encoder(images.requires_grad_())["embedding"]
    model.eval()
    assert encoder.spec.family == family
    assert not any(module.training for module in encoder.modules())
    assert not first.requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(encoder(images)["embedding"], first)


@pytest.mark.parametrize("family", FAMILIES)
def test_spec_tells_the_true_shapes(family: str) -> None:
    encoder = load_encoder(FAMILIES[family])
    spec = encoder.spec
    shapes = encoder.output_shapes(("embedding", "pyramid"), (64, 96))
    assert shapes["embedding"] == (spec.embed_dim,)
    assert [level[0] for level in shapes["pyramid"]] == [stage.channels for stage in spec.stages]
    if family != "pixels":  # whose raster does not grow with the image
        assert [level[1:] for level in shapes["pyramid"]] == [(64 // stage.stride, 96 // stage.stride) for stage in spec.stages]
    assert spec.n_params == sum(p.numel() for p in encoder.parameters())


def test_expand_gives_one_request_per_tensor(vit: Encoder) -> None:
    images = torch.randn(2, 3, 32, 32)
    for text in ("pyramid.pool(2)", "tokens[0,-1](norm=false).mean", "pyramid[1:](norm=false)", "embedding", "cls[-2:]"):
        parts = vit.spec.expand(text)
        whole = vit(images, (text,))[str(Request.parse(text))]
        single = [vit(images, (part,))[str(part)] for part in parts]
        for ours, expected in zip(single, whole if isinstance(whole, tuple) else (whole,), strict=True):
            assert isinstance(ours, torch.Tensor)
            assert torch.equal(ours, expected)


def test_requests_share_one_forward(vit: Encoder) -> None:
    calls: list[int] = []
    handle = vit.network.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    found = vit(torch.randn(2, 3, 32, 32), ("embedding", "tokens.mean", "cls[-2:]", "attention"))
    handle.remove()
    assert list(found) == ["embedding", "tokens[-1].mean", "cls[-2:]", "attention[-1]"]
    assert calls == [1]
    assert torch.equal(found["cls[-2:]"][:, 1], found["embedding"])


@pytest.mark.parametrize(
    ("request_text", "says"),
    [("block4", "it has embedding, cls"), ("tokens[3]", "block 3 of 3"), ("tokns", "did you mean tokens?")],
)
def test_what_an_encoder_lacks_is_a_users_error(vit: Encoder, request_text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        vit(torch.randn(1, 3, 32, 32), (request_text,))
    assert says in str(caught.value)
    assert '"vit"' in str(caught.value)


def test_images_of_another_shape_are_refused(vit: Encoder) -> None:
    with pytest.raises(ViRBError, match="B x 3 x h x w"):
        vit(torch.randn(2, 1, 32, 32))


def test_check_outputs_names_encoder_and_output(vit: Encoder) -> None:
    good = {"embedding": torch.zeros(4, 32), "pyramid": (torch.zeros(4, 32, 2, 2),)}
    check_outputs(vit, good, 4)
    broken = torch.zeros(4, 32)
    broken[1, 5], broken[3, 0] = float("nan"), float("inf")
    for outputs, says in (
        ({"embedding": broken}, "2 of 4"),
        ({"embedding": torch.zeros(3, 32)}, "batch of 4"),
        ({"embedding": torch.zeros(4, 31)}, "expected 4 x 32"),
        ({"pyramid": (torch.zeros(4, 32, 2, 2), torch.zeros(2, 32, 2, 2))}, "batch of 4"),
    ):
        with pytest.raises(ViRBError) as caught:
            check_outputs(vit, outputs, 4)
        assert says in str(caught.value)
        assert f'encoder "vit": output {next(iter(outputs))}' in str(caught.value)


def test_input_overrides() -> None:
    spec = InputSpec().override({"size": 256, "mean": [0.5, 0.5, 0.5], "std": 0.25, "resize": "squash", "crop_pct": 1})
    assert (spec.size, spec.mean, spec.std, spec.resize, spec.crop_pct) == ((256, 256), (0.5,) * 3, (0.25,) * 3, "squash", 1.0)
    assert InputSpec().override({"size": [32, 48]}).size == (32, 48)
    for wrong, says in (
        ({"sise": 3}, "did you mean size?"),
        ({"size": "big"}, "input.size"),
        ({"size": 0}, "input.size"),
        ({"std": [1, 1, 0]}, "above 0"),
        ({"mean": [1, 2]}, "three numbers"),
        ({"interpolation": "cubic"}, "bicubic"),
        ({"crop_pct": 2}, "at most 1"),
    ):
        with pytest.raises(ValueError) as caught:
            InputSpec().override(wrong)
        assert says in str(caught.value)


def test_pyramid_levels_are_the_ends_of_equal_parts() -> None:
    assert evenly_spaced(12) == (2, 5, 8, 11)
    assert evenly_spaced(24) == (5, 11, 17, 23)
    assert evenly_spaced(5) == (0, 1, 2, 4)
    assert evenly_spaced(2) == (0, 1)
    assert evenly_spaced(1) == (0,)
