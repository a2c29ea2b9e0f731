"""Groups, clipping, frozen layer and LARS against the original code; EMA against its definition."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from virb.pretraining import networks as nets
from virb.pretraining.heads import DINOHead, MultiCrop
from virb.pretraining.optim import LARS, clip_gradients, freeze_last_layer, make_optimizer, move_teacher, parameter_groups, set_rates

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "dino_optim.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def network(norm_last_layer: bool = False) -> MultiCrop:
    config = nets.BackboneConfig("vit", 16, (32,), embed_dim=16, depth=1, num_heads=2)
    backbone = nets.find_backbone(config, tokens=False)
    return MultiCrop(backbone.build(0.0), DINOHead(16, 12, norm_last_layer=norm_last_layer, hidden=16, bottleneck=8), backbone.extract)


def with_gradients(stored: dict[str, np.ndarray]) -> MultiCrop:
    """The stored gradients; [CLS] has none."""
    found = network()
    for name, parameter in found.named_parameters():
        if f"clip.before.{name}" in stored:
            parameter.grad = torch.from_numpy(stored[f"clip.before.{name}"]).clone()
    return found


@pytest.mark.parametrize("case", ["norm_last", "free_last"])
def test_groups_equal_the_original(stored: dict[str, np.ndarray], case: str) -> None:
    found = network(norm_last_layer=case == "norm_last")
    names = {id(parameter): name for name, parameter in found.named_parameters()}
    decayed, free = ([names[id(parameter)] for parameter in group["params"]] for group in parameter_groups(found))
    assert decayed == stored[f"groups.{case}.regularized"].tolist()
    assert free == stored[f"groups.{case}.not_regularized"].tolist()


def test_clipping_each_tensor_equals_the_original(stored: dict[str, np.ndarray]) -> None:
    found = with_gradients(stored)
    total = clip_gradients(found.parameters(), stored["clip.value"].item())
    assert total.item() == pytest.approx(float(np.linalg.norm(stored["clip.norms"])), rel=1e-6)
    after = {name: parameter.grad for name, parameter in found.named_parameters() if parameter.grad is not None}
    assert len(after) == len(stored["clip.norms"])
    for name, grad in after.items():
        np.testing.assert_allclose(grad.numpy(), stored[f"clip.after.{name}"], rtol=1e-5)


def test_clipping_all_together_equals_torch(stored: dict[str, np.ndarray]) -> None:
    ours, torchs = with_gradients(stored), with_gradients(stored)
    total = clip_gradients(ours.parameters(), 0.7, "global")
    torch.testing.assert_close(total, nn.utils.clip_grad_norm_(torchs.parameters(), 0.7))
    for mine, theirs in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_clipping_by_zero_only_measures_and_nan_is_seen() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], 0.0).item() == 5.0
    assert parameter.grad.tolist() == [3.0, 4.0]
    parameter.grad[0] = math.nan
    assert math.isnan(clip_gradients([parameter], 1.0).item())
    assert clip_gradients([nn.Parameter(torch.zeros(2))], 1.0).item() == 0.0


def test_the_frozen_last_layer_equals_the_original(stored: dict[str, np.ndarray]) -> None:
    found = with_gradients(stored)
    freeze_last_layer(found)
    assert [name for name, parameter in found.named_parameters() if parameter.grad is None] == stored[
        "cancel.epoch0_freeze1_without_grad"
    ].tolist()


def test_lars_equals_the_original(stored: dict[str, np.ndarray]) -> None:
    names = stored["lars.names"].tolist()
    parameters = [nn.Parameter(torch.from_numpy(stored[f"lars.param0.{name}"]).clone()) for name in names]
    optimizer = LARS(parameters)
    for step in range(3):
        set_rates(optimizer, stored["lars.lr"][step].item(), stored["lars.weight_decay"][step].item())
        for name, parameter in zip(names, parameters, strict=True):
            grad = stored.get(f"lars.grad{step}.{name}")
            parameter.grad = None if grad is None else torch.from_numpy(grad).clone()
        optimizer.step()
        for name, parameter in zip(names, parameters, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), stored[f"lars.param{step + 1}.{name}"], atol=2e-6, rtol=0)
            np.testing.assert_allclose(optimizer.state[parameter]["mu"].numpy(), stored[f"lars.buffer{step + 1}.{name}"], atol=2e-6, rtol=0)


def test_lars_goes_on_from_its_saved_state() -> None:
    def run(steps: int, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(steps):
            parameter.grad = parameter.detach().sin()
            optimizer.step()

    whole, parted = (nn.Parameter(torch.ones(3, 2) * 2) for _ in range(2))
    run(4, whole, LARS([whole], lr=3.0, weight_decay=0.1))
    first = LARS([parted], lr=3.0, weight_decay=0.1)
    run(2, parted, first)
    second = LARS([parted], lr=0.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(2, parted, second)
    assert torch.equal(whole, parted)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_rates_reach_their_groups(name: str) -> None:
    optimizer = make_optimizer(name, parameter_groups(network()))
    set_rates(optimizer, 0.01, 0.3)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.01, 0.3), (0.01, 0.0)]


def test_the_teacher_moves_by_one_minus_momentum() -> None:
    def filled(value: float) -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
        return module

    teacher, student = filled(1.0), filled(3.0)
    student[1].running_mean.fill_(7.0)  # type: ignore[index,union-attr,operator]
    move_teacher(teacher, nn.Sequential(student), 0.75)  # a wrapper changes names, not the order
    values: list[Tensor] = list(teacher.parameters())
    assert all(value.eq(1.5).all() for value in values)
    assert all(parameter.eq(3.0).all() for parameter in student.parameters())
    assert teacher[1].running_mean.eq(0).all()  # type: ignore[index,union-attr,operator]


def test_a_teacher_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        move_teacher(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9)
