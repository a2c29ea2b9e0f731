"""What ``virb check`` says of encoders, good and bad."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from virb.encoders.load import load_encoder
from virb.encoders.verify import Failed, encoder_table, verify_encoder
from virb.errors import ViRBError

VIT = {
    "arch": "vit",
    "weights": "random",
    "args": {"width": 32, "depth": 3, "heads": 2, "patch_size": 8, "img_size": 64, "registers": 2},
    "input": {"size": [32, 48], "mean": [0.5, 0.5, 0.5], "std": 0.5},
}


class Tampering(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.layer = nn.Conv2d(3, 4, 8, stride=8)
        self.register_buffer("calls", torch.zeros(1))
        self.armed = False

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.layer(images)
        if self.armed and self.what == "counts":
            self.calls += 1
        if self.armed and self.what == "trains":
            self.layer.train()
        if self.armed and self.what == "replaces":
            self.calls = torch.ones(1)
        if self.armed and self.what == "nan":
            maps = maps / 0 * 0
        if self.armed and self.what == "raises":
            raise RuntimeError("no such kernel")
        if self.armed and self.what == "narrows":
            maps = maps[:, :3]
        return {"tokens": maps, "embedding": torch.zeros(len(maps), 5)}


def test_a_checkpoint(tmp_path: Path) -> None:
    network = models.resnet18()
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "moco.pth")
    verified = verify_encoder(load_encoder(tmp_path / "moco.pth"))
    assert (verified.name, verified.architecture, verified.n_params, verified.filled) == ("moco", "resnet18", 11_176_512, "100 %")
    assert "moco.pth" in verified.recognised
    assert str(tmp_path) not in verified.recognised
    assert verified.shapes["embedding"] == (512,)
    assert verified.shapes["pyramid"] == ((64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
    assert list(verified.shapes) == ["embedding", "conv", "block1", "block2", "block3", "block4", "tokens", "pyramid"]
    assert verified.seconds > 0


def test_a_vit_gives_all_it_claims() -> None:
    verified = verify_encoder(load_encoder(VIT))
    assert verified.filled == ""
    assert verified.shapes == {
        "embedding": (32,),
        "cls": (32,),
        "tokens": (32, 4, 6),
        "pyramid": ((32, 4, 6),) * 3,
        "attention": (2, 4, 6),
        "queries": (2, 27, 16),
        "keys": (2, 27, 16),
        "values": (2, 27, 16),
    }


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("counts", "network.calls"),
        ("replaces", "network.calls"),
        ("trains", "network.layer.training"),
        ("nan", "output tokens[-1] has NaN or infinite values in 2 of 2"),
        ("raises", "fails on 224x224 noise: RuntimeError: no such kernel"),
        ("narrows", "channels"),
    ],
)
def test_what_is_wrong_is_said(what: str, says: str) -> None:
    encoder = load_encoder(Tampering(what), name="mine")
    verify_encoder(encoder)
    encoder.network.armed = True
    with pytest.raises(ViRBError) as caught:
        verify_encoder(encoder)
    assert 'encoder "mine"' in str(caught.value)
    assert says in str(caught.value)


def test_a_spec_that_promises_other_shapes_is_caught() -> None:
    encoder = load_encoder(VIT)
    good = encoder.spec
    for changes, says in (
        ({"n_heads": 3}, "2 heads; the spec says 3"),
        ({"stages": tuple(replace(stage, stride=4) for stage in good.stages)}, "per 4 pixels"),
        ({"stages": tuple(replace(stage, channels=64) for stage in good.stages)}, r"\[64, 64, 64\]"),
        ({"embed_dim": 31}, "expected 2 x 31"),
    ):
        encoder.spec = replace(good, **changes)
        with pytest.raises(ViRBError, match=says):
            verify_encoder(encoder)


def test_half_precision_encoders_are_run_in_it() -> None:
    encoder = load_encoder(VIT).to(torch.bfloat16)
    assert verify_encoder(encoder).shapes["embedding"] == (32,)


def test_the_table_is_aligned(tmp_path: Path) -> None:
    rows = [
        verify_encoder(load_encoder(VIT, name="mine")),
        Failed("a-longer-name", "no such file\n  download it from https://example.org"),
        verify_encoder(load_encoder({"arch": "pixels", "input": {"size": 32}})),
    ]
    header, vit, failed, pixels = encoder_table(rows)
    for word in ("recognised as", "architecture", "parameters", "filled", "input", "normalisation", "seconds", "outputs"):
        assert word in header
    for column, here, there in (
        ("architecture", "vit_32x3h2/8 reg2", "pixels 16x16"),
        ("input", "32x48", "32x32"),
        ("normalisation", "0.5 / 0.5", "ImageNet"),
        ("outputs", "embedding 32, cls, tokens 32x4x6, pyramid of 3, attention 2x4x6, queries, keys, values", "embedding 768"),
        ("recognised as", "random weights (seed 0)", "no parameters"),
    ):
        start = header.index(column)
        assert vit[start:].startswith(here)
        assert pixels[start:].startswith(there)
    assert failed == "a-longer-name  FAILED  no such file"
    assert encoder_table([Failed("x", "not downloaded yet: https://example.org\n  do it", "missing")])[1].endswith(
        "missing  not downloaded yet: https://example.org"
    )
    assert encoder_table([])[0].startswith("encoder")
