"""L-BFGS for many problems at once: K smooth convex functions of as many numbers each, every evaluation shared by all that still work.

No problem waits for another: at each evaluation one may be trying a shorter step while its neighbour has already turned to its next
direction, and those that are done leave the batch. Steps satisfy Armijo's condition; for convex functions the curvature condition of the
update then holds by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# (points (A, P), problems (A,) int64) -> values (A,) float64 and gradients (A, P)
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_ARMIJO = 1e-4
_MAX_TRIALS = 30  # of one step length, each at most half the one before
_PATIENCE = 20  # steps that gain nothing; after half of them the history is forgotten once


@dataclass(frozen=True)
class Minima:
    """``x`` (K, P) are the best points found; the others are per problem (K,): the value and the largest entry of the gradient there, how
    many steps it took, and whether that entry is within the tolerance."""

    x: Tensor
    value: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor
    evaluations: int


def minimise(
    objective: Objective,
    start: Tensor,
    *,
    tolerance: float = 1e-5,
    max_iter: int = 1000,
    history: int = 10,
    scale: Tensor | None = None,
    on_evaluation: Callable[[int, int], None] = lambda done, left: None,
) -> Minima:
    """Minimises each row of ``start`` (K, P) until the largest entry of its gradient is at most ``tolerance``.

    A problem also ends after ``max_iter`` steps, or when no step lowers its value any more (rounding): then it has not converged.
    ``scale`` (K, P) is a positive guess of the inverse second derivatives; it changes the way, not the result.
    ``on_evaluation`` gets the number of evaluations so far and of problems left.
    """
    state = _State(start, history, scale)
    problems = torch.arange(len(start), device=start.device)
    state.accept(problems, start, *objective(start, problems))
    evaluations = 1
    while True:
        state.finish(tolerance, max_iter)
        active = torch.nonzero(state.working)[:, 0]
        on_evaluation(evaluations, len(active))
        if not len(active):
            break
        turning = active[state.trials[active] == 0]
        if len(turning):
            state.turn(turning)
        points = state.x[active] + state.length[active, None] * state.direction[active]
        state.judge(active, points, *objective(points, active))
        evaluations += 1
    largest = state.grad.abs().amax(1)
    return Minima(state.x, state.value, largest, state.iterations, largest <= tolerance, evaluations)


class _State:
    def __init__(self, start: Tensor, history: int, scale: Tensor | None) -> None:
        count, self.device = len(start), start.device
        self.history, self.scale = history, scale
        self.x, self.grad = start.clone(), torch.zeros_like(start)
        self.value = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.direction = torch.zeros_like(start)
        self.steps = start.new_zeros(history, *start.shape)  # differences of points; the newest stands at place `iterations - 1`, modulo
        self.changes = start.new_zeros(history, *start.shape)  # differences of gradients
        self.inner = torch.zeros(history, count, dtype=torch.float64, device=self.device)  # their products
        self.slope, self.length = torch.zeros_like(self.value), torch.ones_like(self.value, dtype=start.dtype)
        self.iterations = torch.zeros(count, dtype=torch.int64, device=self.device)
        self.kept = torch.zeros_like(self.iterations)  # pairs of differences in the history
        self.trials = torch.zeros_like(self.iterations)  # of the present direction; 0: a new direction is due
        self.working = torch.ones(count, dtype=torch.bool, device=self.device)
        self.best_value = torch.full_like(self.value, torch.inf)
        self.best_grad = torch.full_like(self.value, torch.inf)
        self.idle = torch.zeros_like(self.iterations)  # steps since the value or the gradient was last the best so far
        # Differences of values below this share of them are rounding, not ascent.
        self.rounding = 8 * torch.finfo(start.dtype).eps

    def accept(self, rows: Tensor, x: Tensor, value: Tensor, grad: Tensor) -> None:
        self.x[rows], self.value[rows], self.grad[rows] = x, value.double(), grad
        self.trials[rows] = 0

    def finish(self, tolerance: float, max_iter: int) -> None:
        due = self.trials == 0
        self.working &= ~(due & ((self.grad.abs().amax(1) <= tolerance) | (self.iterations >= max_iter)))

    def turn(self, rows: Tensor) -> None:
        """The two-loop recursion for these problems, and the first step length to try."""
        grad = self.grad[rows]
        towards = grad.clone()
        kept = self.kept[rows]
        oldest_first = [(kept - 1 - age) % self.history for age in range(min(self.history, int(kept.max())))][::-1]
        ages = range(len(oldest_first) - 1, -1, -1)
        factors: list[tuple[Tensor, Tensor, Tensor]] = []
        for place, age in reversed(list(zip(oldest_first, ages, strict=True))):
            there = (age < kept.clamp(max=self.history)).double()
            inner = self.inner[place, rows]
            share = torch.where(there > 0, _dot(self.steps[place, rows], towards) / inner.clamp_min(1e-300), 0.0)
            towards -= share.to(towards.dtype)[:, None] * self.changes[place, rows]
            factors.append((place, share, there))
        towards = self._first_guess(rows, towards, kept)
        for place, share, there in reversed(factors):
            back = _dot(self.changes[place, rows], towards) / self.inner[place, rows].clamp_min(1e-300)
            towards += torch.where(there > 0, share - back, 0.0).to(towards.dtype)[:, None] * self.steps[place, rows]
        slope = -_dot(towards, grad)
        lost = ~(slope < 0)  # rounding spoiled the direction: start again from steepest descent
        if bool(lost.any()):
            again = rows[lost]
            self.kept[again] = 0
            towards[lost] = self._first_guess(again, grad[lost], self.kept[again])
            slope = -_dot(towards, grad)
        self.direction[rows], self.slope[rows] = -towards, slope
        fresh = self.kept[rows] == 0
        first = torch.ones_like(slope) if self.scale is not None else (1.0 / grad.double().abs().sum(1)).clamp(max=1.0)
        self.length[rows] = torch.where(fresh, first, 1.0).to(self.length.dtype)

    def _first_guess(self, rows: Tensor, towards: Tensor, kept: Tensor) -> Tensor:
        """The inverse second derivative before any difference is known to it: ``scale``, stretched to fit the newest difference."""
        scaled = towards if self.scale is None else towards * self.scale[rows]
        newest = (kept - 1).clamp(min=0) % self.history
        change = self.changes[newest, rows]
        bend = _dot(change, change if self.scale is None else change * self.scale[rows])
        stretch = torch.where(kept > 0, self.inner[newest, rows] / bend.clamp_min(1e-300), 1.0)
        return scaled * stretch.to(scaled.dtype)[:, None]

    def judge(self, rows: Tensor, points: Tensor, value: Tensor, grad: Tensor) -> None:
        """Takes the points that descend enough; the others try a shorter step next, or give up."""
        value = value.double()
        before, length = self.value[rows], self.length[rows].double()
        slack = self.rounding * before.abs()
        good = torch.isfinite(value) & torch.isfinite(grad).all(1) & (value <= before + _ARMIJO * length * self.slope[rows] + slack)
        if bool(good.any()):
            taken = rows[good]
            step, change = points[good] - self.x[taken], grad[good] - self.grad[taken]
            inner = _dot(step, change)
            bends = inner > torch.finfo(points.dtype).eps * _dot(change, change).sqrt() * _dot(step, step).sqrt()
            moved, place = taken[bends], (self.kept[taken] % self.history)[bends]
            self.steps[place, moved], self.changes[place, moved], self.inner[place, moved] = step[bends], change[bends], inner[bends]
            self.kept[moved] += 1
            self.iterations[taken] += 1
            self.accept(taken, points[good], value[good], grad[good])
            self._watch(taken, value[good], grad[good].abs().amax(1).double(), slack[good])
        poor = rows[~good]
        if len(poor):
            self.trials[poor] += 1
            # The parabola through the two values and the slope, kept within a tenth and a half of the step.
            descent = self.slope[poor] * length[~good]
            bottom = -0.5 * descent / (value[~good] - before[~good] - descent)
            share = torch.where(torch.isfinite(bottom), bottom, 0.1).clamp(0.1, 0.5)
            self.length[poor] = (length[~good] * share).to(self.length.dtype)
            spent = poor[self.trials[poor] >= _MAX_TRIALS]
            self.working[spent] &= self.kept[spent] > 0  # a plain descent direction is the last resort
            self.kept[spent], self.trials[spent] = 0, 0

    def _watch(self, rows: Tensor, value: Tensor, grad: Tensor, slack: Tensor) -> None:
        """Near the bottom values differ by rounding alone: who gains neither in value nor in gradient for long is done."""
        gained = (value < self.best_value[rows] - slack) | (grad < self.best_grad[rows])
        self.best_value[rows] = torch.minimum(self.best_value[rows], value)
        self.best_grad[rows] = torch.minimum(self.best_grad[rows], grad)
        self.idle[rows] = torch.where(gained, 0, self.idle[rows] + 1)
        self.kept[rows[self.idle[rows] == _PATIENCE // 2]] = 0
        self.working[rows[self.idle[rows] >= _PATIENCE]] = False


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, (A,) float64."""
    return (a * b).sum(1, dtype=torch.float64)
