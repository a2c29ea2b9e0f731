"""The grid: all training configs of a job trained together on frozen features.

Every config sees the same batches in the same order. Heads of one shape are one stack of parameters, so that a step is a handful of matrix
products for all of them; each config has its own optimizer, learning rate, weight decay, momentum and schedule, and equals
``torch.nn.Linear`` with ``torch.optim`` trained alone. Nothing in a step waits for the device: the host reads numbers once per epoch.
"""

from __future__ import annotations

import math
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from virb.errors import ViRBError
from virb.functional.optimizers import ADAM_BETAS, adam_step, sgd_step
from virb.functional.randomness import torch_generator
from virb.functional.schedules import Schedule, values
from virb.io import write_atomic
from virb.probes.heads import HeadShape, Stack, backward, forward, init_head, stack_heads, take_head
from virb.probes.losses import Loss, find_loss
from virb.probes.selection import preference
from virb.probes.split import Split
from virb.probes.tally import Tally, read

Record = dict[str, float]


class GradientSettings(Protocol):
    """What the grid reads of a training config (``virb.config.GradientConfig``)."""

    @property
    def optimizer(self) -> str: ...  # sgd | adam | adamw
    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float | None: ...
    @property
    def nesterov(self) -> bool: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def scheduler(self) -> Schedule | None: ...


@dataclass(frozen=True)
class Recipe:
    """What all configs of a grid share. ``batch_size`` is the number of samples of one optimizer step, whatever the device."""

    epochs: int  # what the schedules span
    batch_size: int
    test_batch_size: int
    seed: int
    loss: str = "cross_entropy"
    metrics: tuple[str, ...] = ("top1",)  # the first is primary
    higher_is_better: bool = True  # the primary's direction
    score_every: bool = True  # False: score after the last epoch only, and keep the last head
    stop_after: int | None = None  # epochs to train, when fewer than ``epochs``


@dataclass
class Trained:
    """One config after training. ``history`` has one record per epoch: epoch, lr (of its last step), train_loss, train_<primary>, and
    <scored split>_loss, <scored split>_<metric> for each metric; it ends before the epoch in which the config diverged."""

    history: list[Record] = field(default_factory=list)
    diverged: int | None = None  # the epoch whose losses were no longer finite
    best: Record | None = None  # the record of the head that is kept; None when diverged
    head: Stack | None = None


def train_grid(
    shapes: Mapping[str, HeadShape],
    configs: Mapping[str, GradientSettings],
    fit: Split,
    score: Split | None,
    recipe: Recipe,
    device: torch.device,
    *,
    on_epoch: Callable[[int, Mapping[str, Record]], None] = lambda epoch, records: None,
    checkpoint: Path | None = None,
    save_every_s: float = 30.0,
) -> dict[str, Trained]:
    """Trains all configs on ``fit``. With ``score`` each config keeps the head of its best epoch there (see ``selection.preference``),
    else of the last one. ``on_epoch`` gets the records of every epoch once, after a restart also those of the epochs already done."""
    grid = _Grid(shapes, configs, len(fit), recipe, device)
    trained = {name: Trained() for name in configs}
    last_epoch = min(recipe.epochs, recipe.stop_after or recipe.epochs)
    fingerprint = repr((dict(shapes), dict(configs), recipe, len(fit), score and (score.name, len(score))))
    done = _restore(checkpoint, fingerprint, grid, trained, device)
    for epoch in range(1, done + 1):
        on_epoch(epoch, _records_of(trained, epoch))
    saved_at = time.monotonic()

    for epoch in range(done + 1, last_epoch + 1):
        if all(t.diverged for t in trained.values()):
            break
        order = torch.randperm(len(fit), generator=torch_generator(recipe.seed, "order", epoch))
        fit.set_epoch(epoch - 1)
        grid.begin_epoch(epoch)
        for step, positions in enumerate(order.split(recipe.batch_size)):
            grid.train_step(step, fit.features(positions), _targets(fit, positions))
        scored = score is not None and (recipe.score_every or epoch == last_epoch)
        if score is not None and scored:
            score.set_epoch(0)
            for positions in score.chunks(recipe.test_batch_size):
                grid.score_batch(score.features(positions), _targets(score, positions))
        for name, record in grid.end_epoch(epoch, len(fit), score.name if score is not None and scored else None, len(score or ())).items():
            kept = trained[name]
            if kept.diverged or not all(math.isfinite(record[key]) for key in record if key.endswith("_loss")):
                kept.diverged = kept.diverged or epoch
                kept.best = None
                continue
            kept.history.append({key: value for key, value in record.items() if math.isfinite(value)})
            if kept.best is None or score is None or not recipe.score_every or _better(record, kept.best, score.name, recipe):
                kept.best = kept.history[-1]
                grid.keep(name)
        if checkpoint is not None and time.monotonic() - saved_at >= save_every_s:
            _save(checkpoint, fingerprint, epoch, grid, trained)
            saved_at = time.monotonic()
        on_epoch(epoch, _records_of(trained, epoch))

    for name, kept in trained.items():
        kept.head = grid.kept_head(name) if kept.best is not None else None
    return trained


def _targets(split: Split, positions: Tensor) -> Tensor:
    if split.targets is None:
        raise ViRBError(f"the {split.name} samples have no targets")
    return split.targets[positions.to(split.targets.device)]


def _better(record: Record, best: Record, role: str, recipe: Recipe) -> bool:
    metric, loss = f"{role}_{recipe.metrics[0]}", f"{role}_loss"
    new, old = (preference(r.get(metric), r.get(loss), r["epoch"], recipe.higher_is_better) for r in (record, best))
    return new < old


def _records_of(trained: Mapping[str, Trained], epoch: int) -> dict[str, Record]:
    return {name: t.history[epoch - 1] for name, t in trained.items() if len(t.history) >= epoch}


class _Grid:
    """The heads of all configs on the device: groups of one shape, and in them segments of one kind of optimizer."""

    def __init__(
        self, shapes: Mapping[str, HeadShape], configs: Mapping[str, GradientSettings], n_fit: int, recipe: Recipe, device: torch.device
    ) -> None:
        self.recipe, self.loss = recipe, find_loss(recipe.loss)
        self.steps = math.ceil(n_fit / recipe.batch_size)
        names: dict[HeadShape, list[str]] = {}
        for name in configs:
            names.setdefault(shapes[name], []).append(name)
        self.groups = [_Group(shape, members, configs, recipe, self.loss, device) for shape, members in names.items()]
        self._place = {name: (group, row) for group in self.groups for row, name in enumerate(group.names)}
        self._order = list(configs)

    def begin_epoch(self, epoch: int) -> None:
        for group in self.groups:
            group.clear_sums()
            for segment in group.segments:
                segment.plan_epoch(epoch, self.recipe.epochs, self.steps)

    def train_step(self, step: int, x: Tensor, y: Tensor) -> None:
        for group in self.groups:
            outputs, hidden = forward(group.params, x)
            losses, grad = self.loss.values_and_grad(outputs, y)
            group.train_loss += losses.sum(0, dtype=torch.float64)
            group.train_tally.update(outputs, y)
            backward(group.params, x, hidden, grad, out=group.grads)
            for segment in group.segments:
                segment.step(step)

    def score_batch(self, x: Tensor, y: Tensor) -> None:
        for group in self.groups:
            outputs, _ = forward(group.params, x)
            group.score_loss += self.loss.values(outputs, y).sum(0, dtype=torch.float64)
            group.score_tally.update(outputs, y)

    def end_epoch(self, epoch: int, n_fit: int, role: str | None, n_scored: int) -> dict[str, Record]:
        """One record per config, in file order. The only place where the host waits for the device."""
        tensors = [group.sums() for group in self.groups]
        numbers = read([tensor for group in tensors for tensor in group])
        found: dict[str, Record] = {}
        for group, mine in zip(self.groups, tensors, strict=True):
            own, numbers = numbers[: len(mine)], numbers[len(mine) :]
            found.update(group.records(epoch, own, n_fit, role, n_scored))
        return {name: found[name] for name in self._order}

    def keep(self, name: str) -> None:
        """Copies the config's present parameters to where its best ones are kept."""
        group, row = self._place[name]
        for key, tensor in group.params.items():
            group.best[key][row].copy_(tensor[row])

    def kept_head(self, name: str) -> Stack:
        group, row = self._place[name]
        return take_head(group.best, row)


class _Group:
    """Configs whose heads have one shape, ordered so that those with the same kind of optimizer lie side by side."""

    def __init__(
        self,
        shape: HeadShape,
        names: Sequence[str],
        configs: Mapping[str, GradientSettings],
        recipe: Recipe,
        loss: Loss,
        device: torch.device,
    ) -> None:
        self.names = sorted(names, key=lambda name: _kind(configs[name]))
        head = init_head(shape, recipe.seed)
        self.params = {key: tensor.to(device) for key, tensor in stack_heads([head] * len(self.names)).items()}
        self.grads = {key: torch.zeros_like(tensor) for key, tensor in self.params.items()}
        self.best = {key: tensor.clone() for key, tensor in self.params.items()}
        kinds = [_kind(configs[name]) for name in self.names]
        borders = [row for row in range(len(kinds)) if row == 0 or kinds[row] != kinds[row - 1]] + [len(kinds)]
        self.segments = [
            _Segment([configs[name] for name in self.names[start:stop]], slice(start, stop), self.params, self.grads)
            for start, stop in pairwise(borders)
        ]
        self._primary, self._shape, self._recipe, self._device = recipe.metrics[0], shape, recipe, device
        self.clear_sums()

    def clear_sums(self) -> None:
        count, n_outputs = len(self.names), self._shape.n_outputs
        self.train_loss = torch.zeros(count, dtype=torch.float64, device=self._device)
        self.score_loss = torch.zeros(count, dtype=torch.float64, device=self._device)
        self.train_tally = Tally([self._primary], count, n_outputs, self._device)
        self.score_tally = Tally(self._recipe.metrics, count, n_outputs, self._device)

    def sums(self) -> list[Tensor]:
        return [self.train_loss, self.score_loss, *self.train_tally.sums(), *self.score_tally.sums()]

    def records(self, epoch: int, numbers: Sequence[np.ndarray], n_fit: int, role: str | None, n_scored: int) -> dict[str, Record]:
        border = 2 + len(self.train_tally.sums())
        columns = {"train_loss": numbers[0] / n_fit}
        columns |= {f"train_{name}": column for name, column in self.train_tally.values(numbers[2:border]).items()}
        if role is not None:
            columns[f"{role}_loss"] = numbers[1] / n_scored
            columns |= {f"{role}_{name}": column for name, column in self.score_tally.values(numbers[border:]).items()}
        lr = np.concatenate([segment.last_lr for segment in self.segments])
        return {
            name: {"epoch": epoch, "lr": float(lr[row]), **{key: float(column[row]) for key, column in columns.items()}}
            for row, name in enumerate(self.names)
        }


def _kind(config: GradientSettings) -> tuple[str, bool, bool, bool]:
    """Configs of one kind share their kernels: (optimizer, nesterov, has momentum, decays weights)."""
    is_sgd = config.optimizer == "sgd"
    schedule = config.scheduler
    cycles = schedule is not None and schedule.type == "OneCycle" and schedule.cycle_momentum
    return config.optimizer, is_sgd and config.nesterov, is_sgd and (cycles or bool(config.momentum)), config.weight_decay != 0


class _Segment:
    """Neighbouring rows of a group under one kind of optimizer, each row with its own coefficients."""

    def __init__(self, configs: Sequence[GradientSettings], rows: slice, params: Stack, grads: Stack) -> None:
        self.configs = configs
        self.optimizer, self.nesterov, has_momentum, self.decays = _kind(configs[0])
        if self.optimizer not in ("sgd", "adam", "adamw"):
            raise ViRBError(f'no optimizer "{self.optimizer}"; there are sgd, adam, adamw')
        count = len(configs)
        self.params = [tensor[rows].view(count, -1) for tensor in params.values()]
        self.grads = [tensor[rows].view(count, -1) for tensor in grads.values()]
        n_buffers = int(has_momentum) if self.optimizer == "sgd" else 2
        self.buffers = [[torch.zeros_like(tensor) for _ in range(n_buffers)] for tensor in self.params]
        self.last_lr = np.zeros(count)
        self._weight_decay = self._on_device(np.array([config.weight_decay for config in configs]))

    def _on_device(self, numbers: np.ndarray) -> Tensor:
        """Computed in float64, used in float32: (..., K) -> (..., K, 1)."""
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).to(self.params[0].device)[..., None]

    def plan_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Coefficients of all steps of this epoch (1-based), each (steps, K, 1)."""
        numbers = np.arange((epoch - 1) * steps, epoch * steps)
        pairs = [values(config.scheduler, config.lr, epochs, steps, numbers) for config in self.configs]
        lr = np.stack([rate for rate, _ in pairs], 1)
        self.last_lr = lr[-1]
        own = [(config.momentum or 0.0) if self.optimizer == "sgd" else ADAM_BETAS[0] for config in self.configs]
        momentum = np.stack([np.full(steps, m) if cycled is None else cycled for m, (_, cycled) in zip(own, pairs, strict=True)], 1)
        if self.optimizer == "sgd":
            self._minus_lr, self._momentum = self._on_device(-lr), self._on_device(momentum)
            return
        count = numbers[:, None] + 1.0
        self._minus_step = self._on_device(-lr / (1.0 - momentum**count))
        self._one_minus_beta1 = self._on_device(1.0 - momentum)
        self._root_correction2 = self._on_device(np.broadcast_to(np.sqrt(1.0 - ADAM_BETAS[1] ** count), lr.shape))
        self._keep = self._on_device(1.0 - lr * np.array([config.weight_decay for config in self.configs]))

    def step(self, step: int) -> None:
        decay = self._weight_decay if self.decays else None
        for param, grad, buffers in zip(self.params, self.grads, self.buffers, strict=True):
            if self.optimizer == "sgd":
                buffer = buffers[0] if buffers else None
                minus_lr, momentum = self._minus_lr[step], self._momentum[step]
                sgd_step(param, grad, buffer, minus_lr=minus_lr, momentum=momentum, weight_decay=decay, nesterov=self.nesterov)
            else:
                adam_step(
                    param,
                    grad,
                    buffers[0],
                    buffers[1],
                    minus_step=self._minus_step[step],
                    one_minus_beta1=self._one_minus_beta1[step],
                    root_correction2=self._root_correction2[step],
                    weight_decay=decay if self.optimizer == "adam" else None,
                    keep=self._keep[step] if self.decays and self.optimizer == "adamw" else None,
                )


def _save(path: Path, fingerprint: str, epoch: int, grid: _Grid, trained: Mapping[str, Trained]) -> None:
    """Everything the remaining epochs depend on, in one atomic file of tensors and plain values."""
    groups = [{"params": g.params, "best": g.best, "buffers": [segment.buffers for segment in g.segments]} for g in grid.groups]
    state = {name: {"history": t.history, "diverged": t.diverged, "best": t.best} for name, t in trained.items()}
    whole = {"fingerprint": fingerprint, "epoch": epoch, "groups": groups, "trained": state}
    write_atomic(path, lambda file: torch.save(whole, file))


def _restore(path: Path | None, fingerprint: str, grid: _Grid, trained: Mapping[str, Trained], device: torch.device) -> int:
    """Puts a saved state in place; the number of epochs done, 0 when there is none that belongs to this training."""
    if path is None or not path.exists() or not zipfile.is_zipfile(path):
        return 0
    try:
        whole: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError):
        return 0  # a damaged disk: training again costs time, never a number
    if whole.get("fingerprint") != fingerprint:
        return 0
    for group, saved in zip(grid.groups, whole["groups"], strict=True):
        for target, source in ((group.params, saved["params"]), (group.best, saved["best"])):
            for key, tensor in target.items():
                tensor.copy_(source[key])
        for segment, buffers in zip(group.segments, saved["buffers"], strict=True):
            for mine, theirs in zip(segment.buffers, buffers, strict=True):
                for tensor, value in zip(mine, theirs, strict=True):
                    tensor.copy_(value)
    for name, state in whole["trained"].items():
        trained[name].history, trained[name].diverged, trained[name].best = state["history"], state["diverged"], state["best"]
    return int(whole["epoch"])
