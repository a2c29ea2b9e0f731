"""timm's networks as backbones: what they take of sizes and drop path differs, and all of them train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import Tiny, run
from torch import nn

from virb.cli.console import stdout
from virb.config.tree import Where
from virb.pretraining.dino import DINO
from virb.pretraining.networks import BackboneConfig, find_backbone
from virb.pretraining.options import Given, make_options


@pytest.mark.parametrize(
    ("name", "sizes", "takes_rate"),
    [
        ("resnet10t", (64, 32), True),
        ("densenet121", (64, 32), False),  # no drop_path_rate
        ("dla34", (64, 32), False),
        ("hrnet_w18_small", (64, 32), False),
        ("mixer_s32_224", (96,), True),  # img_size, but not dynamic_img_size
        ("vit_tiny_patch16_224", (64, 32), True),
    ],
)
def test_what_a_network_takes(name: str, sizes: tuple[int, ...], takes_rate: bool) -> None:
    found = find_backbone(BackboneConfig(f"timm:{name}", 16, sizes), tokens=False)
    assert found.drop_path is takes_rate
    network: Any = found.build(0.5)
    rates = {module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"}
    assert (max(rates, default=0.0) == 0.5) is takes_rate
    with torch.no_grad():
        assert found.extract(network.eval(), torch.zeros(1, 3, sizes[-1], sizes[-1]), None).shape == (1, found.width)


def test_torchvision_takes_no_drop_path() -> None:
    found = find_backbone(BackboneConfig("resnet18", 16, (32,)), tokens=False)
    assert not found.drop_path
    assert isinstance(found.build(0.5), nn.Module)


@pytest.mark.parametrize(("arch", "rate", "is_told"), [("resnet18", 0.5, True), ("resnet18", 0.1, False), ("timm:resnet10t", 0.5, False)])
def test_a_rate_without_effect_is_noted(arch: str, rate: float, is_told: bool) -> None:
    values = {"arch": arch, "drop_path_rate": rate, "global_crops_size": 32, "local_crops_number": 0, "out_dim": 8}
    options = make_options(DINO, {name: Given(value, Where("test", 0, name)) for name, value in values.items()})
    expected = (f"drop_path_rate 0.5 is not used: {arch} takes none",) if is_told else ()
    assert DINO(options).build().notes == expected


def test_notes_of_a_method_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    build = Tiny.build
    monkeypatch.setattr(Tiny, "build", lambda self: replace(build(self), notes=("a word from the networks",)))
    run(tmp_path, epochs=1, console=stdout())
    assert "a word from the networks" in capsys.readouterr().out
