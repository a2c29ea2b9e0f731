"""Convnets on GPUs lie with channels last, under a word of their own in the record. Which kernels run there is not looked at here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from virb.data.transforms import Geometry
from virb.encoders.load import load_encoder
from virb.features import encoding
from virb.features import layout as module
from virb.features.cache import STORAGE
from virb.features.encoding import Numerics, PassOptions, encode
from virb.features.layout import channels_last, place

CPU = torch.device("cpu")
OPTIONS = PassOptions(Numerics("float32", "cpu"), 4, 0)
SQUASH = Geometry((32, 32), "squash", "none", 1.0, "bilinear", None)


def resnet() -> Any:
    return load_encoder({"arch": "resnet18", "weights": "random"}, name="resnet")


def vit() -> Any:
    args = {"width": 16, "depth": 1, "heads": 2, "patch_size": 8, "img_size": 16}
    return load_encoder({"arch": "vit", "weights": "random", "args": args}, name="vit")


class Own(torch.nn.Module):
    """Joins what a convolution gave by ``view``, which cannot be done with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).view(len(images), -1)


def test_who_gets_channels_last() -> None:
    assert channels_last(resnet(), "cuda")
    assert not channels_last(resnet(), "cpu")
    assert not channels_last(vit(), "cuda")
    assert not channels_last(load_encoder(Own(), name="own"), "cuda")


def test_the_word_in_the_record() -> None:
    """None on CPUs: what was cached before is found."""
    plain = {"compute": "float32", "storage": STORAGE, "device": "cpu"}
    assert Numerics("float32", "cpu").record(resnet(), SQUASH) == plain
    on_gpu = {**plain, "device": "cuda"}
    assert Numerics("float32", "cuda").record(vit(), SQUASH) == on_gpu
    assert Numerics("float32", "cuda").record(resnet(), SQUASH) == {**on_gpu, "layout": "channels last"}
    assert Numerics("float32", "cuda", True).record(resnet(), SQUASH) == {**on_gpu, "layout": "channels last", "compile": "inductor"}


def test_channels_last_reach_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = encode(resnet(), pixels, ["embedding"], CPU, OPTIONS)["embedding"]
    for where in (module, encoding):
        monkeypatch.setattr(where, "channels_last", lambda encoder, kind: True)
    encoder = resnet()
    identity = encoder.spec.encoder_id
    encoder = place(encoder, CPU)
    layer, seen = encoder.network.conv1, []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last)))
    found = encode(encoder, pixels, ["embedding"], CPU, OPTIONS)["embedding"]
    assert seen == [True]
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert encoder.spec.encoder_id == identity
