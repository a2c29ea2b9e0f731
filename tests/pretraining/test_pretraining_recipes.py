"""Every shipped recipe is read, its networks have the sizes that it is named after, and its numbers are the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from virb.pretraining.dino import DINOOptions
from virb.pretraining.methods import find_method
from virb.pretraining.optim import scaled_lr
from virb.pretraining.options import EngineOptions, make_options, read_config

RECIPES = Path(__file__).parents[2] / "configs" / "pretraining"
BACKBONES = {  # millions of parameters; number of GPUs; joint batch on them
    "dino_vits16_100ep": (21.7, 8, 512),
    "dino_vits16_300ep": (21.7, 16, 1024),
    "dino_vits16_800ep": (21.7, 16, 1024),
    "dino_vits8": (21.7, 64, 1024),
    "dino_vitb16": (85.8, 32, 1024),
    "dino_vitb8": (85.8, 128, 1024),
    "dino_resnet50": (23.5, 8, 512),
    "patchwise_imagenet100": (85.8, 4, 240),
    "patchwise_vits16": (21.7, 8, 512),
    "patchwise_cifar10": (22.5, 1, 256),
    "dino_tiny": (0.099, 1, 64),
    "dino_tiny_cpu": (0.164, 1, 64),
}

# What the original's code has where nothing else is said.
ORIGINAL: dict[str, Any] = dict(
    norm_last_layer=True, momentum_teacher=0.996, use_bn_in_head=False, warmup_teacher_temp=0.04, teacher_temp=0.04,
    warmup_teacher_temp_epochs=0, student_temp=0.1, center_momentum=0.9, use_fp16=True, weight_decay=0.04, weight_decay_end=0.4,
    clip_grad=3.0, clip_mode="per_tensor", freeze_last_layer=1, lr=0.0005, warmup_epochs=10, min_lr=1e-6, optimizer="adamw",
    drop_path_rate=0.1, global_crops_scale=(0.4, 1.0), local_crops_number=8, local_crops_scale=(0.05, 0.4), global_crops_size=224,
    local_crops_size=96, flip_p=0.5, jitter_p=0.8, grayscale_p=0.2, blur_p=(1.0, 0.1, 0.5), solarize_p=0.2, head_layers=3,
    head_hidden_dim=2048, head_bottleneck_dim=256, accumulation_steps=1, embed_dim=None, depth=None, num_heads=None,
)  # fmt: skip
DINO: dict[str, Any] = {**ORIGINAL, "out_dim": 65536}
# The README's "boosted": teacher temperature 0.07, a warm-up of 30 epochs, norm_last_layer false.
BOOSTED: dict[str, Any] = {**DINO, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 30, "norm_last_layer": False}
# The paper: 2 x 224 + 10 x 96; the released arguments: scales 0.25 to 1 and 0.05 to 0.25.
RELEASED: dict[str, Any] = {**BOOSTED, "local_crops_number": 10, "global_crops_scale": (0.25, 1.0), "local_crops_scale": (0.05, 0.25)}
BASE = {**RELEASED, "arch": "vit_base", "norm_last_layer": True, "clip_grad": 0.3}  # help: 0.3 to 1 for larger ViTs, true for ViT-B
PUBLISHED: dict[str, dict[str, Any]] = {
    "dino_vits16_100ep": {**DINO, "arch": "vit_small", "patch_size": 16, "epochs": 100, "batch_size_per_gpu": 64},
    "dino_vits16_300ep": {**BOOSTED, "arch": "vit_small", "patch_size": 16, "epochs": 300, "batch_size_per_gpu": 64},
    "dino_vits16_800ep": {**RELEASED, "arch": "vit_small", "patch_size": 16, "epochs": 800, "batch_size_per_gpu": 64},
    "dino_vits8": {**RELEASED, "arch": "vit_small", "patch_size": 8, "epochs": 800, "batch_size_per_gpu": 16, "use_fp16": False},
    "dino_vitb16": {**BASE, "patch_size": 16, "epochs": 400, "batch_size_per_gpu": 32},
    "dino_vitb8": {**BASE, "patch_size": 8, "epochs": 300, "batch_size_per_gpu": 8, "use_fp16": False},
    # The README's recipe for ResNet-50.
    "dino_resnet50": {
        **DINO, "arch": "resnet50", "epochs": 100, "batch_size_per_gpu": 64, "optimizer": "sgd", "lr": 0.03, "weight_decay": 1e-4,
        "weight_decay_end": 1e-4, "global_crops_scale": (0.14, 1.0), "local_crops_scale": (0.05, 0.14),
    },
    # Patch-Wise DINO's own arguments; a joint batch of 256 has the momentum that the help advises.
    "patchwise_imagenet100": {
        **ORIGINAL, "arch": "vit_base", "patch_size": 8, "out_dim": 10000, "epochs": 100, "batch_size_per_gpu": 6,
        "accumulation_steps": 10, "momentum_teacher": 0.9995, "matching": "nearest", "min_overlap": 0.0, "cls_weight": None,
        "patch_weight": None, "separate_patch_head": False, "center": "position", "squash": None,
    },
    "patchwise_vits16": {
        **ORIGINAL, "arch": "vit_small", "patch_size": 16, "out_dim": 8192, "epochs": 100, "batch_size_per_gpu": 64, "cls_weight": 0.9,
        "patch_weight": 0.1, "center": "shared", "separate_patch_head": False, "matching": "nearest", "squash": None,
    },
    "patchwise_cifar10": {
        **ORIGINAL, "arch": "vit_small", "patch_size": 32, "out_dim": 10000, "epochs": 100, "batch_size_per_gpu": 64,
        "accumulation_steps": 4, "momentum_teacher": 0.9995, "squash": 256, "matching": "nearest", "center": "position",
    },
}  # fmt: skip

PEAK = {  # learning rate, scaled to the joint batch
    "dino_vits16_100ep": 0.001,
    "dino_vits16_300ep": 0.002,
    "dino_vits16_800ep": 0.002,
    "dino_vits8": 0.002,
    "dino_vitb16": 0.002,
    "dino_vitb8": 0.002,
    "dino_resnet50": 0.06,
    "patchwise_imagenet100": 0.00046875,
    "patchwise_vits16": 0.001,
    "patchwise_cifar10": 0.0005,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_a_recipe(name: str) -> None:
    """Every key that changes the training: literal values of papers, READMEs and codes (where a recipe says "ours", our choice)."""
    method = find_method(name.split("_")[0])
    options = make_options(method, read_config(RECIPES / f"{name}.yaml")[0])
    assert {key: getattr(options, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert scaled_lr(options.lr, BACKBONES[name][2]) == pytest.approx(PEAK[name])


def test_numbers_of_all_recipes_but_the_tiny_ones_are_compared() -> None:
    assert set(BACKBONES) - set(PUBLISHED) == {"dino_tiny", "dino_tiny_cpu"}  # ours altogether; the k-NN test judges them


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
    millions, devices, joint = BACKBONES[name]
    assert backbone / 1e6 == pytest.approx(millions, rel=0.01)
    assert options.batch_size_per_gpu * options.accumulation_steps * devices == joint
    assert len(made.views().views) == 2 + options.local_crops_number
    assert options.warmup_epochs < options.epochs
