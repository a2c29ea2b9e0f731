"""Every shipped recipe is read, and its networks have the sizes that it is named after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from virb.pretraining.dino import DINOOptions
from virb.pretraining.methods import find_method
from virb.pretraining.options import EngineOptions, make_options, read_config

RECIPES = Path(__file__).parents[2] / "configs" / "pretraining"
BACKBONES = {  # millions of parameters; joint batch on the stated number of GPUs
    "dino_vits16_100ep": (21.7, 64 * 8, 512),
    "dino_vits16_300ep": (21.7, 64 * 16, 1024),
    "dino_vits16_800ep": (21.7, 64 * 16, 1024),
    "dino_vits8": (21.7, 16 * 64, 1024),
    "dino_vitb16": (85.8, 32 * 32, 1024),
    "dino_vitb8": (85.8, 8 * 128, 1024),
    "dino_resnet50": (23.5, 64 * 8, 512),
    "patchwise_imagenet100": (85.8, 6 * 4 * 10, 240),
    "patchwise_vits16": (21.7, 64 * 8, 512),
    "patchwise_cifar10": (22.5, 64 * 4, 256),
    "dino_tiny": (0.099, 64, 64),
    "dino_tiny_cpu": (0.164, 64, 64),
}


def test_all_recipes_are_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_recipe(name: str) -> None:
    method = find_method(name.split("_")[0])
    given, _ = read_config(RECIPES / f"{name}.yaml")
    options = make_options(method, given)
    assert isinstance(options, DINOOptions)
    assert isinstance(options, EngineOptions)
    made = method(options)
    with torch.device("meta"):
        student = made.build().student
    backbone = sum(parameter.numel() for key, parameter in student.named_parameters() if key.startswith("backbone."))
    millions, images, joint = BACKBONES[name]
    assert backbone / 1e6 == pytest.approx(millions, rel=0.01)
    assert images == joint
    assert images % (options.batch_size_per_gpu * options.accumulation_steps) == 0
    assert len(made.views().views) == 2 + options.local_crops_number
    assert options.warmup_epochs < options.epochs
