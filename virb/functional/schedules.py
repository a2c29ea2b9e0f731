"""Learning-rate schedules in closed form: step number -> learning rate (and momentum, for OneCycle), for many steps at once.

Each equals the scheduler of ``torch.optim.lr_scheduler`` of the same purpose, stepped once per *unit*. The unit is explicit: with
``per: step`` the unit is one optimizer step, with ``per: epoch`` all steps of an epoch share a value. Nothing here ever steps by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

Array = np.ndarray
Steps = range | Sequence[int] | Array


class Schedule(Protocol):
    """What a schedule is made of (``virb.config.SchedulerConfig``); those that its ``type`` does not use are None."""

    @property
    def type(self) -> str: ...  # none | StepLR | OneCycle | Poly | cosine
    @property
    def per(self) -> str | None: ...  # step | epoch
    @property
    def step_size(self) -> int | None: ...  # StepLR: units between two decays
    @property
    def gamma(self) -> float | None: ...  # StepLR: factor of a decay
    @property
    def exponent(self) -> float | None: ...  # Poly
    @property
    def pct_start(self) -> float | None: ...  # OneCycle: share of the units in which the rate rises
    @property
    def div_factor(self) -> float | None: ...  # OneCycle: first rate = lr / div_factor
    @property
    def final_div_factor(self) -> float | None: ...  # OneCycle: last rate = lr / div_factor / final_div_factor
    @property
    def anneal(self) -> str | None: ...  # OneCycle: linear | cos
    @property
    def cycle_momentum(self) -> bool | None: ...  # OneCycle: SGD's momentum or Adam's beta1 moves against the rate
    @property
    def base_momentum(self) -> float | None: ...
    @property
    def max_momentum(self) -> float | None: ...
    @property
    def min_lr(self) -> float | None: ...  # cosine: the rate after the last unit
    @property
    def warmup(self) -> int | None: ...  # Poly, cosine: units in which the rate rises to the schedule's own


def values(
    schedule: Schedule | None, base_lr: float, total_epochs: int, steps_per_epoch: int, steps: Steps | None = None
) -> tuple[Array, Array | None]:
    """Learning rate and momentum of optimizer steps, float64, each ``(len(steps),)``; momentum is None where the schedule leaves it alone.

    ``steps`` are 0-based step numbers over the whole training (default: all of them). ``base_lr`` is the peak for OneCycle and the
    first rate for the others. Steps beyond the training hold its last value (zero for Poly), so nothing turns negative or complex.
    """
    step = np.arange(total_epochs * steps_per_epoch) if steps is None else np.asarray(steps)
    if schedule is None or schedule.type == "none":
        return np.full(step.shape, float(base_lr)), None
    need = partial(_need, schedule)
    unit, total = (step, total_epochs * steps_per_epoch) if need("per") == "step" else (step // steps_per_epoch, total_epochs)
    if schedule.type == "StepLR":
        return base_lr * step_decay(unit, need("step_size"), need("gamma")), None
    if schedule.type == "Poly":
        return base_lr * poly_decay(unit, total, need("exponent")) * warm_up(unit, need("warmup")), None
    if schedule.type == "cosine":
        return cosine(unit, total, base_lr, need("min_lr")) * warm_up(unit, need("warmup")), None
    if schedule.type == "OneCycle":
        first = base_lr / need("div_factor")
        lr = one_cycle(unit, total, (first, base_lr, first / need("final_div_factor")), need("pct_start"), need("anneal"))
        if not need("cycle_momentum"):
            return lr, None
        high, low = need("max_momentum"), need("base_momentum")
        return lr, one_cycle(unit, total, (high, low, high), need("pct_start"), need("anneal"))
    raise ValueError(f"Expected a schedule of type none, StepLR, OneCycle, Poly or cosine, but got {schedule.type!r}")


def _need(schedule: Schedule, name: str) -> Any:
    value = getattr(schedule, name)
    if value is None:
        raise ValueError(f"{schedule.type} needs {name}")
    return value


def warm_up(unit: Array, units: int) -> Array:
    """Factor that rises linearly from ``1 / (units + 1)`` at unit 0 to 1 at unit ``units``, and is 1 from there on (0 units: always).

    It multiplies the schedule's own value, which has begun to fall meanwhile: the habit of the published segmentation and depth protocols.
    """
    return np.minimum((unit + 1.0) / (units + 1.0), 1.0)


def step_decay(unit: Array, step_size: int, gamma: float) -> Array:
    """Factor that is multiplied by ``gamma`` every ``step_size`` units."""
    return np.power(float(gamma), unit // step_size)


def poly_decay(unit: Array, total: int, exponent: float) -> Array:
    """Factor ``(1 - unit / total) ** exponent``, zero from unit ``total`` on."""
    return np.power(np.clip(1.0 - unit / total, 0.0, 1.0), exponent)


def cosine(unit: Array, total: int, base: float, low: float) -> Array:
    """From ``base`` at unit 0 to ``low`` at unit ``total`` along half a cosine."""
    return low + (base - low) * (1.0 + np.cos(np.pi * np.clip(unit / total, 0.0, 1.0))) / 2.0


def one_cycle(unit: Array, total: int, points: tuple[float, float, float], pct_start: float, anneal: str) -> Array:
    """Through three ``points``: first, turning point after ``pct_start`` of the units, last (at unit ``total - 1``)."""
    first, turn, last = points
    turning_unit, last_unit = pct_start * total - 1.0, total - 1.0
    # A phase without length (torch divides by zero there) is passed at once.
    rise = np.clip(unit / turning_unit, 0.0, 1.0) if turning_unit > 0 else np.ones(unit.shape)
    fall = np.clip((unit - turning_unit) / (last_unit - turning_unit), 0.0, 1.0) if last_unit > turning_unit else np.zeros(unit.shape)
    if anneal == "linear":
        up, down = first + (turn - first) * rise, turn + (last - turn) * fall
    elif anneal == "cos":
        up = turn + (first - turn) * (1.0 + np.cos(np.pi * rise)) / 2.0
        down = last + (turn - last) * (1.0 + np.cos(np.pi * fall)) / 2.0
    else:
        raise ValueError(f"Expected argument `anneal` to be linear or cos, but got {anneal!r}")
    return np.where(unit <= turning_unit, up, down)
