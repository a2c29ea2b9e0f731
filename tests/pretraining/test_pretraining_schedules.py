"""Schedules against stored values of DINO's original code, and at their ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virb.pretraining.schedules import cosine, ramp

GOLDEN = Path(__file__).parents[1] / "golden"


def test_cosine_equals_the_original() -> None:
    stored = np.load(GOLDEN / "dino_schedules.npz", allow_pickle=False)
    for n, (base, final, epochs, per_epoch, warmup_epochs, start) in enumerate(stored["settings"]):
        total, warmup = int(epochs * per_epoch), int(warmup_epochs * per_epoch)
        ours = [cosine(step, total, base, final, warmup, start) for step in range(total)]
        np.testing.assert_allclose(ours, stored[f"schedule{n}"], atol=1e-12, rtol=0)


def test_ramp_equals_the_original() -> None:
    stored = np.load(GOLDEN / "dino_loss.npz", allow_pickle=False)
    first, last, warmup = (stored[key].item() for key in ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs"))
    ours = [ramp(epoch, first, last, warmup) for epoch in range(10)]
    np.testing.assert_allclose(ours, stored["teacher_temp_schedule"], atol=1e-12, rtol=0)


def test_a_warm_up_longer_than_the_training_is_cut_off() -> None:
    assert [cosine(step, 3, 1.0, 0.0, warmup=5) for step in range(3)] == [0.0, 0.25, 0.5]
    assert [ramp(epoch, 0.04, 0.07, 4) for epoch in range(2)] == pytest.approx([0.04, 0.05])


def test_cosine_ends() -> None:
    assert cosine(0, 10, 0.996, 1.0) == 0.996
    assert cosine(5, 10, 0.0, 1.0) == pytest.approx(0.5)
    assert cosine(10, 10, 0.996, 1.0) == 1.0  # the step after the last one
    assert cosine(0, 10, 3.0, 0.0, warmup=1, start=0.5) == 0.5
