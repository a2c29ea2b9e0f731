"""Patch-Wise DINO as a whole; its loss and its matching have their own tests."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from virb.errors import UserError
from virb.pretraining.dino import DINO, DINOOptions
from virb.pretraining.losses import DINOLoss, PatchLoss
from virb.pretraining.methods import LossOut, Networks, Progress, Views, find_method
from virb.pretraining.options import Given, make_options, options_of
from virb.pretraining.patchwise import PatchwiseDINO, PatchwiseOptions

SIZES = (64, 64, 32, 32)
TINY: dict[str, Any] = dict(
    arch="vit",
    embed_dim=32,
    depth=2,
    num_heads=2,
    patch_size=16,
    global_crops_size=64,
    local_crops_size=32,
    local_crops_number=2,
    out_dim=24,
    head_hidden_dim=48,
    head_bottleneck_dim=16,
)
NOW = Progress(1, 2, 3, seed=5)


def random_views(images: int, apart: bool = False) -> Views:
    """Boxes of an image of 200 x 200 pixels, other ones for each image; ``apart``: none of them overlap."""
    generator = torch.Generator().manual_seed(images)
    crops = tuple(torch.randn(images, 3, size, size, generator=generator) for size in SIZES)
    corner = torch.randint(0, 60, (images, len(SIZES), 2), generator=generator)
    side = torch.randint(60, 140, (images, len(SIZES), 2), generator=generator)
    if apart:
        corner, side = torch.arange(len(SIZES))[None, :, None].expand_as(corner) * 50, torch.full_like(side, 50)
    flip = torch.randint(0, 2, (images, len(SIZES), 1), generator=generator)
    size = torch.tensor(SIZES)[None, :, None].expand(images, -1, -1)
    return Views(crops, 2, torch.cat([corner, side, flip, size], dim=2).float(), torch.arange(images))


def part_of(views: Views, part: slice) -> Views:
    return Views(tuple(crop[part] for crop in views.crops), views.n_global, views.geometry[part], views.samples[part])


def method(**options: Any) -> PatchwiseDINO:
    return PatchwiseDINO(PatchwiseOptions(**TINY, **options))


@pytest.fixture(autouse=True)
def _same_networks() -> None:
    torch.manual_seed(0)


def gradients(networks: Networks) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in networks.student.parameters() if parameter.grad is not None]


def test_with_weight_on_cls_alone_it_is_dino() -> None:
    ours, dino = method(cls_weight=1.0, patch_weight=0.0), DINO(DINOOptions(**TINY))
    networks, views = ours.build(), random_views(3)
    same = dino.build()
    same.student.load_state_dict(networks.student.state_dict())
    same.teacher.load_state_dict(networks.teacher.state_dict())
    one, other = ours.loss(networks, views, ours.state(), NOW), dino.loss(same, views, dino.state(), NOW)
    torch.testing.assert_close(one.loss, other.loss)
    one.loss.backward()
    other.loss.backward()
    torch.testing.assert_close(gradients(networks), gradients(same), atol=1e-6, rtol=1e-4)


def test_views_that_do_not_overlap_are_compared_by_cls() -> None:
    ours = method()
    networks, views, state = ours.build(), random_views(3, apart=True), ours.state()
    out = ours.loss(networks, views, state, NOW)
    student, teacher = networks.student(views.crops, ours._noise(views, NOW)), networks.teacher(views.crops[:2])
    dino = DINOLoss(24)([x[:, 0] for x in student], [x[:, 0] for x in teacher], 0.04)
    torch.testing.assert_close(out.loss, dino.loss)
    assert out.logs["patch_loss"].item() == 0.0


@pytest.mark.parametrize("rule", ["nearest", "linspace"])
@pytest.mark.parametrize("weights", [{}, {"cls_weight": 0.9, "patch_weight": 0.1}])
def test_parts_of_a_batch_make_the_step_of_the_batch(rule: str, weights: dict[str, float]) -> None:
    ours = method(matching=rule, drop_path_rate=0.5, **weights)
    networks, views = ours.build(), random_views(4)
    state, parted = ours.state(), ours.state()
    joint = ours.loss(networks, views, state, NOW)
    joint.loss.backward()
    expected = gradients(networks)
    networks.student.zero_grad()
    outs: list[LossOut] = []
    for part in (slice(0, 2), slice(2, 4)):
        outs.append(ours.loss(networks, part_of(views, part), parted, NOW))
        (outs[-1].loss / 2).backward()
    for mine, whole in zip(gradients(networks), expected, strict=True):  # sums in another order: to rounding of the largest
        torch.testing.assert_close(mine, whole, rtol=0.0, atol=1e-5 * float(whole.abs().max()) + 1e-9)
    assert joint.logs["patch_loss"].item() > 0
    ours.after_step(networks, state, joint.statistics, NOW)
    ours.after_step(networks, parted, {name: outs[0].statistics[name] + outs[1].statistics[name] for name in joint.statistics}, NOW)
    torch.testing.assert_close(parted.state_dict(), state.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"use_bn_in_head": True},
        {"separate_patch_head": True, "center": "shared"},
        {"matching": "linspace", "center": "shared"},
        {"min_overlap": 0.5},
    ],
)
def test_its_variants_take_a_step(options: dict[str, Any]) -> None:
    ours = method(**options)
    networks, state = ours.build(), ours.state()
    with torch.autocast("cpu", torch.bfloat16):
        out = ours.loss(networks, random_views(2), state, NOW)
    out.loss.backward()
    assert math.isfinite(out.loss.item())
    assert out.loss.dtype == torch.float32
    assert len(gradients(networks)) == sum(parameter.requires_grad for parameter in networks.student.parameters())
    ours.after_step(networks, state, out.statistics, NOW)


def test_without_local_views() -> None:
    ours = PatchwiseDINO(PatchwiseOptions(**{**TINY, "local_crops_number": 0}))
    views = random_views(2)
    out = ours.loss(ours.build(), Views(views.crops[:2], 2, views.geometry[:, :2], views.samples), ours.state(), NOW)
    assert math.isfinite(out.loss.item())


def test_the_centre_has_the_shape_of_the_original() -> None:
    state = PatchwiseDINO(PatchwiseOptions(patch_size=16, out_dim=32)).state()
    assert isinstance(state, PatchLoss)
    assert {name: value.shape for name, value in state.state_dict().items()} == {"center": (1, 197, 32)}


def test_defaults_and_names_are_the_original() -> None:
    assert find_method("patchwise") is PatchwiseDINO
    options = make_options(PatchwiseDINO)
    assert isinstance(options, PatchwiseOptions)
    original = dict(
        arch="vit_base", patch_size=8, out_dim=10000, batch_size_per_gpu=6, num_workers=8, global_crops_number=2, local_crops_number=8
    )
    assert options.model_dump(include=set(original)) == original
    where = next(iter(read().values())).where
    sizes = make_options(PatchwiseDINO, {"global_scale": Given(64, where), "local_scale": Given(32, where)})
    assert isinstance(sizes, PatchwiseOptions)
    assert (sizes.global_crops_size, sizes.local_crops_size) == (64, 32)
    assert all(field.description for field in options_of(PatchwiseDINO).model_fields.values())


def read() -> dict[str, Given]:
    from virb.pretraining.options import from_flags

    return from_flags(options_of(PatchwiseDINO), {"epochs": ["3"]}, {})


def test_images_are_squashed_only_when_told() -> None:
    assert method().views().squash is None
    assert method(squash=256).views().squash == (256, 256)


def test_one_weight_without_the_other_is_refused() -> None:
    with pytest.raises(ValidationError, match="give both or neither"):
        method(patch_weight=0.1)


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="one of them has to be above 0"):
        PatchwiseOptions(cls_weight=0.0, patch_weight=0.0)


def test_a_network_without_patches_is_refused() -> None:
    with pytest.raises(UserError, match=r"resnet50 has no .CLS. and patch tokens"):
        PatchwiseDINO(PatchwiseOptions(arch="resnet50")).build()
