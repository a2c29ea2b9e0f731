"""DINO against six stored training steps of the original, and the rules of the house: parts of a batch are the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from virb.errors import UserError
from virb.pretraining.dino import DINO, DINOOptions
from virb.pretraining.losses import DINOLoss
from virb.pretraining.methods import LossOut, Networks, Progress, Views, find_method
from virb.pretraining.optim import clip_gradients, make_optimizer, set_rates

GOLDEN = Path(__file__).parents[1] / "golden"
TINY: dict[str, Any] = dict(
    arch="vit",
    embed_dim=32,
    depth=2,
    num_heads=2,
    patch_size=16,
    global_crops_size=64,
    local_crops_size=32,
    local_crops_number=3,
    out_dim=40,
    head_hidden_dim=48,
    head_bottleneck_dim=24,
)


def views_of(crops: list[Tensor], first: int = 0) -> Views:
    """Geometry plays no part in DINO."""
    images = len(crops[0])
    return Views(tuple(crops), 2, torch.zeros(images, len(crops), 6), torch.arange(first, first + images))


def random_views(images: int, first: int = 0) -> Views:
    generator = torch.Generator().manual_seed(first)
    return views_of([torch.randn(images, 3, size, size, generator=generator) for size in (64, 64, 32, 32, 32)], first)


def part_of(views: Views, part: slice) -> Views:
    return Views(tuple(crop[part] for crop in views.crops), views.n_global, views.geometry[part], views.samples[part])


def test_six_steps_equal_the_original() -> None:
    stored = np.load(GOLDEN / "dino_train.npz", allow_pickle=False)
    options = DINOOptions(
        **TINY,
        norm_last_layer=False,
        momentum_teacher=0.9,
        warmup_teacher_temp=0.04,
        teacher_temp=0.07,
        warmup_teacher_temp_epochs=2,
        drop_path_rate=0.0,
        position_mode="dino",
    )
    method = DINO(options)
    networks, state = method.build(), method.state()
    start = {key.removeprefix("step0.student."): torch.from_numpy(stored[key]) for key in stored.files if key.startswith("step0.student.")}
    for network in (networks.student, networks.teacher):
        network.load_state_dict(start)
    optimizer = make_optimizer("adamw", method.parameter_groups(networks.student))
    names = stored["clip_names"].tolist()
    for step in range(6):
        progress = Progress(step, epochs=2, steps_per_epoch=3)
        crops = [torch.from_numpy(stored[f"batch{step}.crop{c}"]) for c in range(5)]
        set_rates(optimizer, stored["lr"][step].item(), stored["wd"][step].item())
        optimizer.zero_grad()
        out = method.loss(networks, views_of(crops), state, progress)
        out.loss.backward()
        trained = dict(networks.student.named_parameters())
        for name, norm in zip(names, stored["gradient_norms"][step], strict=True):
            gradient = trained[name].grad
            assert gradient is not None
            assert gradient.norm().item() == pytest.approx(norm, rel=5e-5, abs=1e-6), name
        clip_gradients(networks.student.parameters(), stored["clip_grad"].item())
        method.before_step(networks.student, progress)
        optimizer.step()
        method.after_step(networks, state, out.statistics, progress)

        assert out.loss.item() == pytest.approx(stored["loss"][step], abs=2e-5)
        assert method.values(progress)["momentum"] == pytest.approx(stored["ema"][step], abs=1e-12)
        assert method.values(progress)["teacher_temp"] == pytest.approx(stored["teacher_temp_schedule"][step // 3], abs=1e-12)
        near(state.state_dict()["center"], stored["center"][step][None], 1e-6)
        near(trained["backbone.cls_token"], stored["cls_token_after_step"][step], 1e-4)
        if step in (2, 5):
            for who, network in (("student", networks.student), ("teacher", networks.teacher)):
                for name, value in network.state_dict().items():
                    ours, theirs = value.clone(), torch.from_numpy(stored[f"step{step + 1}.{who}.{name}"])
                    if name.endswith("qkv.bias"):  # softmax does not depend on the keys' bias: its gradient is rounding noise
                        ours[32:64] = theirs[32:64]
                    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0, msg=f"{who}.{name} after step {step}")


def near(ours: Tensor, stored: np.ndarray, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach(), torch.from_numpy(stored), atol=tolerance, rtol=0)


@pytest.fixture
def method() -> DINO:
    torch.manual_seed(0)
    return DINO(DINOOptions(**TINY, drop_path_rate=0.5))


def gradients(networks: Networks) -> Iterator[Tensor]:
    return (parameter.grad for parameter in networks.student.parameters() if parameter.grad is not None)


def test_parts_of_a_batch_make_the_step_of_the_batch(method: DINO) -> None:
    """Micro-batches and ranks alike: mean of gradients, sum of statistics. Drop path is on, each image having its own draws."""
    networks, views, progress = method.build(), random_views(6), Progress(3, 2, 4, seed=9)
    state, parted = method.state(), method.state()
    joint = method.loss(networks, views, state, progress)
    joint.loss.backward()
    expected = [gradient.clone() for gradient in gradients(networks)]
    networks.student.zero_grad()
    outs: list[LossOut] = []
    for part in (slice(0, 3), slice(3, 6)):
        outs.append(method.loss(networks, part_of(views, part), parted, progress))
        (outs[-1].loss / 2).backward()
    for mine, whole in zip(gradients(networks), expected, strict=True):  # sums in another order: to rounding of the largest
        torch.testing.assert_close(mine, whole, rtol=0.0, atol=1e-5 * float(whole.abs().max()) + 1e-9)
    method.after_step(networks, state, joint.statistics, progress)
    method.after_step(networks, parted, {name: outs[0].statistics[name] + outs[1].statistics[name] for name in joint.statistics}, progress)
    torch.testing.assert_close(parted.state_dict(), state.state_dict())


def test_a_step_can_be_replayed(method: DINO) -> None:
    networks, state, views = method.build(), method.state(), random_views(4)
    first, again, other = (method.loss(networks, views, state, Progress(step, 2, 4)).loss.item() for step in (1, 1, 2))
    assert first == again  # bit for bit, whatever torch's global generator does
    assert first != other


def test_the_teacher_starts_as_the_student_and_follows_it(method: DINO) -> None:
    networks, state = method.build(), method.state()
    torch.testing.assert_close(networks.teacher.state_dict(), networks.student.state_dict(), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in networks.teacher.parameters())
    before = [parameter.clone() for parameter in networks.teacher.parameters()]
    with torch.no_grad():
        for parameter in networks.student.parameters():
            parameter.add_(1.0)
    progress = Progress(0, 2, 4)
    out = method.loss(networks, random_views(2), state, progress)
    method.after_step(networks, state, out.statistics, progress)
    for old, new in zip(before, networks.teacher.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(new, 0.004), atol=1e-5, rtol=0)


def test_a_loss_changes_nothing(method: DINO) -> None:
    networks, state = method.build(), method.state()
    assert isinstance(state, DINOLoss)
    before = {key: value.clone() for key, value in networks.teacher.state_dict().items()}
    method.loss(networks, random_views(2), state, Progress(0, 1, 1)).loss.backward()
    assert state.center.eq(0).all()
    torch.testing.assert_close(networks.teacher.state_dict(), before, rtol=0, atol=0)


def test_the_last_layer_is_frozen_in_the_first_epoch(method: DINO) -> None:
    networks, state = method.build(), method.state()
    for step, frozen in ((2, True), (3, False)):
        progress = Progress(step, epochs=2, steps_per_epoch=3)
        method.loss(networks, random_views(2), state, progress).loss.backward()
        method.before_step(networks.student, progress)
        last = dict(networks.student.named_parameters())["head.last_layer.weight_v"]
        assert (last.grad is None) == frozen


def test_the_networks_may_be_wrapped(method: DINO) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *arguments: Any) -> Any:
            return self.module(*arguments)

    networks, state, progress = method.build(), method.state(), Progress(0, 1, 2)
    plain = method.loss(networks, random_views(2), state, progress)
    wrapped = Networks(Wrapper(networks.student), Wrapper(networks.teacher))
    out = method.loss(wrapped, random_views(2), state, progress)
    assert out.loss.item() == plain.loss.item()
    method.before_step(wrapped.student, progress)
    method.after_step(wrapped, state, out.statistics, progress)


def test_resnet_and_batch_norm_head() -> None:
    sizes: dict[str, Any] = dict(global_crops_size=32, local_crops_size=16, local_crops_number=1)
    method = DINO(DINOOptions(arch="resnet18", out_dim=8, use_bn_in_head=True, **sizes))
    networks = method.build()
    crops = [torch.randn(3, 3, size, size) for size in (32, 32, 16)]
    out = method.loss(networks, views_of(crops), method.state(), Progress(0, 1, 1))
    out.loss.backward()
    assert math.isfinite(out.loss.item())
    assert "backbone.layer1.0.bn1.running_mean" in networks.teacher.state_dict()


# Options and views


def test_defaults_are_the_original() -> None:
    options = DINOOptions()
    original = dict(
        arch="vit_small",
        patch_size=16,
        out_dim=65536,
        norm_last_layer=True,
        momentum_teacher=0.996,
        use_bn_in_head=False,
        warmup_teacher_temp=0.04,
        teacher_temp=0.04,
        warmup_teacher_temp_epochs=0,
        freeze_last_layer=1,
        drop_path_rate=0.1,
        global_crops_scale=(0.4, 1.0),
        local_crops_number=8,
        local_crops_scale=(0.05, 0.4),
    )
    assert options.model_dump(include=set(original)) == original
    assert all(field.description for field in DINOOptions.model_fields.values())


def test_views_are_the_original() -> None:
    spec = DINO(DINOOptions()).views()
    views = spec.views
    assert (spec.n_global, spec.squash, len(views)) == (2, None, 10)
    assert [view.size for view in views] == [224, 224] + [96] * 8
    assert [view.scale for view in views] == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 8
    assert [view.blur for view in views] == [1.0, 0.1] + [0.5] * 8
    assert [view.solarize for view in views] == [0.0, 0.2] + [0.0] * 8
    assert {(view.flip, view.jitter, view.grayscale) for view in views} == {(0.5, 0.8, 0.2)}


def test_without_local_views() -> None:
    method = DINO(DINOOptions(**{**TINY, "local_crops_number": 0, "local_crops_size": 33}))  # a size that nobody asks for
    assert len(method.views().views) == 2
    out = method.loss(method.build(), part_of(random_views(2), slice(0, 2)), method.state(), Progress(0, 1, 1))
    assert math.isfinite(out.loss.item())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("global_crops_scale", (0.5, 0.1), "the lower first, got 0.5 0.1"),
        ("local_crops_scale", (0.0, 0.1), "expected two shares"),
        ("momentum_teacher", 1.5, "less than or equal to 1"),
        ("teacher_temp", 0.0, "greater than 0"),
        ("out_dimm", 3, "Extra inputs"),
    ],
)
def test_options_that_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DINOOptions(**{key: value})


def test_a_patch_that_does_not_divide_the_crops_is_an_error() -> None:
    with pytest.raises(UserError, match="patches of 14 pixels do not divide views of 96"):
        DINO(DINOOptions(patch_size=14)).build()


def test_methods_are_found_by_name() -> None:
    assert find_method("dino") is DINO
    with pytest.raises(UserError, match="did you mean dino"):
        find_method("dinno")
