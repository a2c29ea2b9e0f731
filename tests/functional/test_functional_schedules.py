"""Schedules against torch's schedulers, stepped one by one, and against the schedulers that ViRB 2021 built."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from virb.config import SchedulerConfig
from virb.functional.schedules import values

GOLDEN = Path(__file__).parents[1] / "golden"
EPOCHS, STEPS = 7, 5


def torch_values(make, optimizer_name: str, base_lr: float, n_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Learning rate and momentum (Adam: beta1) in each unit, from torch."""
    parameter = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameter, lr=base_lr, momentum=0.5) if optimizer_name == "sgd" else torch.optim.Adam(parameter, lr=base_lr)
    scheduler = make(optimizer)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(n_units):
            group = optimizer.param_groups[0]
            rows.append((group["lr"], group["momentum"] if optimizer_name == "sgd" else group["betas"][0]))
            optimizer.step()
            scheduler.step()
    return np.array([lr for lr, _ in rows]), np.array([momentum for _, momentum in rows])


CASES = {
    "StepLR": (dict(step_size=3, gamma=0.3), lambda total, lr: lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.3)),
    "Poly": (dict(exponent=0.9), lambda total, lr: lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: max(0, 1 - s / total) ** 0.9)),
    "cosine": (dict(min_lr=1e-4), lambda total, lr: lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total, 1e-4)),
    "OneCycle": (
        dict(anneal="linear"),
        lambda total, lr: lambda o: torch.optim.lr_scheduler.OneCycleLR(o, lr, total, anneal_strategy="linear"),
    ),
    "OneCycle-cos": (
        dict(anneal="cos", pct_start=0.45, div_factor=7.0, final_div_factor=50.0, base_momentum=0.6, max_momentum=0.8),
        lambda total, lr: (
            lambda o: torch.optim.lr_scheduler.OneCycleLR(
                o, lr, total, pct_start=0.45, div_factor=7.0, final_div_factor=50.0, base_momentum=0.6, max_momentum=0.8
            )
        ),
    ),
    "OneCycle-still": (
        dict(anneal="cos", cycle_momentum=False),
        lambda total, lr: lambda o: torch.optim.lr_scheduler.OneCycleLR(o, lr, total, cycle_momentum=False),
    ),
}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("case", CASES)
def test_each_schedule_is_torchs_own(case: str, per: str, optimizer: str) -> None:
    options, make = CASES[case]
    schedule = SchedulerConfig(type=case.split("-")[0], per=per, **options)
    total = EPOCHS * STEPS if per == "step" else EPOCHS
    lr, momentum = torch_values(make(total, 0.02), optimizer, 0.02, total)
    if per == "epoch":
        lr, momentum = lr.repeat(STEPS), momentum.repeat(STEPS)
    found, cycled = values(schedule, 0.02, EPOCHS, STEPS)
    np.testing.assert_allclose(found, lr, rtol=1e-9, atol=1e-15)
    if case.startswith("OneCycle") and schedule.cycle_momentum:
        np.testing.assert_allclose(cycled, momentum, rtol=1e-12)
    else:
        assert cycled is None
        assert len(set(momentum.tolist())) == 1  # torch leaves the momentum alone, too


def test_no_schedule_is_constant() -> None:
    for schedule in (None, SchedulerConfig(type="none")):
        lr, momentum = values(schedule, 0.3, EPOCHS, STEPS)
        assert lr.tolist() == [0.3] * (EPOCHS * STEPS)
        assert momentum is None


def test_poly_beyond_the_training_is_zero_never_complex() -> None:
    lr, _ = values(SchedulerConfig(type="Poly", exponent=0.9), 1.0, 2, 3, range(12))
    assert np.isrealobj(lr)
    assert np.isfinite(lr).all()
    assert (lr[6:] == 0).all()
    assert (np.diff(lr[:7]) < 0).all()


def test_a_part_of_the_steps_is_a_part_of_the_values() -> None:
    schedule = SchedulerConfig(type="OneCycle", per="step")
    whole, part = values(schedule, 0.1, 4, 6), values(schedule, 0.1, 4, 6, np.arange(6, 12))
    np.testing.assert_array_equal(part[0], whole[0][6:12])
    np.testing.assert_array_equal(part[1], whole[1][6:12])


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_one_cycle_of_very_few_epochs_is_finite(epochs: int) -> None:
    for pct_start in (0.3, 0.5):
        lr, momentum = values(SchedulerConfig(type="OneCycle", pct_start=pct_start), 0.1, epochs, 2)
        assert np.isfinite(lr).all()
        assert lr.max() <= 0.1
        assert momentum.min() >= 0.85


def test_warm_up_rises_in_a_straight_line_times_the_schedule() -> None:
    """By hand: five steps of Poly 1 fall by a fifth each; a warm-up of three gives a quarter, half, three quarters, all of that."""
    lr, momentum = values(SchedulerConfig(type="Poly", exponent=1.0, warmup=3), 0.8, 5, 1)
    np.testing.assert_allclose(lr, [0.8 * 1.0 / 4, 0.8 * 0.8 / 2, 0.8 * 0.6 * 3 / 4, 0.8 * 0.4, 0.8 * 0.2], rtol=1e-12)
    assert momentum is None


def test_warm_up_counts_in_the_unit_of_the_schedule() -> None:
    ramp = [1 / 3, 2 / 3, 1, 1, 1, 1, 1]
    plain, _ = values(SchedulerConfig(type="cosine"), 0.1, EPOCHS, STEPS)
    by_epoch, _ = values(SchedulerConfig(type="cosine", warmup=2), 0.1, EPOCHS, STEPS)
    np.testing.assert_allclose(by_epoch, plain * np.repeat(ramp, STEPS), rtol=1e-12)
    plain, _ = values(SchedulerConfig(type="cosine", per="step"), 0.1, EPOCHS, STEPS)
    by_step, _ = values(SchedulerConfig(type="cosine", per="step", warmup=2), 0.1, EPOCHS, STEPS)
    np.testing.assert_allclose(by_step, plain * np.pad(ramp, (0, EPOCHS * STEPS - len(ramp)), constant_values=1), rtol=1e-12)


@pytest.mark.parametrize("kind", ["Poly", "cosine"])
def test_no_warm_up_changes_no_bit(kind: str) -> None:
    options = {"exponent": 0.9} if kind == "Poly" else {}
    lr, _ = values(SchedulerConfig(type=kind, per="step", warmup=0, **options), 0.37, EPOCHS, STEPS)
    unit, total = np.arange(EPOCHS * STEPS), EPOCHS * STEPS
    expected = 0.37 * (1.0 - unit / total) ** 0.9 if kind == "Poly" else 0.0 + (0.37 - 0.0) * (1.0 + np.cos(np.pi * (unit / total))) / 2.0
    np.testing.assert_array_equal(lr, expected)


def test_wrong_schedules_are_refused() -> None:
    class Odd:
        type, per, gamma, step_size = "StepLRR", "epoch", 0.1, None

    with pytest.raises(ValueError, match="StepLRR"):
        values(Odd(), 0.1, 2, 2)
    Odd.type = "StepLR"
    with pytest.raises(ValueError, match="StepLR needs step_size"):
        values(Odd(), 0.1, 2, 2)


GOLDEN_CASES = {
    "step_sgd": dict(type="StepLR", step_size=50, gamma=0.1),
    "step_adam": dict(type="StepLR", step_size=3, gamma=0.5),
    "onecycle_sgd": dict(type="OneCycle"),
    "onecycle_adam": dict(type="OneCycle"),
    "onecycle_short": dict(type="OneCycle"),
    "poly_sgd": dict(type="Poly", exponent=0.9),
    "poly_adam": dict(type="Poly", exponent=2.0),
}


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_equals_what_virb_2021_built(case: str) -> None:
    """The original's defaults are ours; its units, too. It counts only full batches, so the steps per epoch are given."""
    with np.load(GOLDEN / "virb_schedules.npz") as stored:
        assert json.loads(str(stored["about"]))["source"].startswith("allenai/ViRB")
        get = {key: stored[f"{case}.{key}"] for key in ("lr", "momentum", "unit", "epochs", "batch_size", "samples", "lr_before_scheduler")}
    schedule = SchedulerConfig(**GOLDEN_CASES[case])
    assert schedule.per == {"epochs": "epoch", "batches": "step"}[str(get["unit"])]
    per_epoch = int(get["samples"] // get["batch_size"]) if schedule.per == "step" else 1
    lr, momentum = values(schedule, float(get["lr_before_scheduler"]), int(get["epochs"]), per_epoch, range(len(get["lr"])))
    np.testing.assert_allclose(lr, get["lr"], rtol=0, atol=1e-12)
    if momentum is not None:
        np.testing.assert_allclose(momentum, get["momentum"], rtol=0, atol=1e-12)
