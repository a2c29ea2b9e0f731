"""The heads of a grid where they are trained: groups of one shape, and in them segments of one kind of optimizer.

A step of a group is a fixed list of operations on tensors that stay where they are, and reads no number from the host: what changes
from step to step lies in tables on the device, indexed by a counter on the device. So a step can be captured in a CUDA graph, and
groups can be stepped by different threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from virb.errors import ViRBError
from virb.functional.optimizers import ADAM_BETAS, adam_step, sgd_step
from virb.functional.schedules import Schedule, values
from virb.probes.heads import HeadShape, Stack, backward, forward, init_head, stack_heads
from virb.probes.losses import Loss
from virb.probes.standard import Standard, StandardiseSettings
from virb.probes.tally import Tally

_LEAST_WORK = 2**24  # multiplications of a step under which a group is not worth a thread's turn
_LEAST_WEIGHTS = 2**17  # parameters under which products lose speed
_LEAST_WORK_OF_GPU = 2**33  # multiplications of a step under which a GPU would notice that there are several groups


class GradientSettings(StandardiseSettings, Protocol):
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


def divide(shape: HeadShape, configs: Mapping[str, GradientSettings], batch_size: int, device: torch.device) -> list[list[str]]:
    """Configs of one shape, as groups that are stepped one after another, by different threads or by different devices. Their number
    depends on sizes alone, never on how many cores or devices there are, so that numbers do not either. On a GPU one group holds all,
    unless that is work enough for several."""
    # Those with the same kind of optimizer lie side by side.
    names = sorted(configs, key=lambda name: _kind(configs[name]))
    first = shape.layers()[0]
    weights = len(names) * first[1] * first[2]
    least = _LEAST_WORK if device.type == "cpu" else _LEAST_WORK_OF_GPU
    count = max(1, min(len(names), weights // _LEAST_WEIGHTS, weights * batch_size // least))
    count -= count % 2 if count > 1 else 0  # even numbers go well into most numbers of cores
    return [part.tolist() for part in np.array_split(np.array(names, dtype=object), count)]


class Group:
    """Configs whose heads have one shape, stepped together."""

    def __init__(
        self,
        shape: HeadShape,
        names: Sequence[str],
        configs: Mapping[str, GradientSettings],
        loss: Loss,
        metrics: Sequence[str],
        seed: int,
        device: torch.device,
        standard: Standard | None = None,
    ) -> None:
        """``metrics``: those of the scored split; the first, the primary, is also counted in training. ``standard`` is for who takes the
        group through batches: steps are given what it makes of them."""
        self.names, self.standard, self._loss = list(names), standard, loss
        head = init_head(shape, seed)
        self.params = {key: tensor.to(device) for key, tensor in stack_heads([head] * len(self.names)).items()}
        self.best = {key: tensor.clone() for key, tensor in self.params.items()}
        kinds = [_kind(configs[name]) for name in self.names]
        borders = [row for row in range(len(kinds)) if row == 0 or kinds[row] != kinds[row - 1]] + [len(kinds)]
        self._step = torch.zeros(1, dtype=torch.int64, device=device)  # of this epoch
        self.segments = [
            Segment([configs[name] for name in self.names[start:stop]], slice(start, stop), self.params, self._step)
            for start, stop in pairwise(borders)
        ]
        self._train_loss = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self._score_loss = torch.zeros_like(self._train_loss)
        self._train_tally = Tally(metrics[:1], len(self.names), shape.n_outputs, device)
        self._score_tally = Tally(metrics, len(self.names), shape.n_outputs, device)

    @property
    def on_device(self) -> bool:
        """Whether steps and scoring keep to the device: metrics of other makers are counted on the host."""
        return self._train_tally.on_device and self._score_tally.on_device

    def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        for tensor in (self._step, self._train_loss, self._score_loss):
            tensor.zero_()
        self._train_tally.clear()
        self._score_tally.clear()
        for segment in self.segments:
            segment.plan_epoch(epoch, epochs, steps)

    def train_step(self, x: Tensor, y: Tensor) -> None:
        outputs, hidden = forward(self.params, x)
        losses, grad = self._loss.values_and_grad(outputs, y)
        self._train_loss += losses.sum(0, dtype=torch.float64)
        self._train_tally.update(outputs, y)
        grads = backward(self.params, x, hidden, grad)
        for segment in self.segments:
            segment.step(grads)
        self._step += 1

    def score_batch(self, x: Tensor, y: Tensor) -> None:
        outputs, _ = forward(self.params, x)
        self._score_loss += self._loss.values(outputs, y).sum(0, dtype=torch.float64)
        self._score_tally.update(outputs, y)

    def sums(self) -> list[Tensor]:
        return [self._train_loss, self._score_loss, *self._train_tally.sums(), *self._score_tally.sums()]

    def records(
        self, epoch: int, numbers: Sequence[np.ndarray], n_fit: int, role: str | None, n_scored: int
    ) -> dict[str, dict[str, float]]:
        """One record per config, from what ``sums`` was on the host; ``role`` is the scored split's name, None where nothing was scored."""
        border = 2 + len(self._train_tally.sums())
        columns = {"train_loss": numbers[0] / n_fit}
        columns |= {f"train_{name}": column for name, column in self._train_tally.values(numbers[2:border]).items()}
        if role is not None:
            columns[f"{role}_loss"] = numbers[1] / n_scored
            columns |= {f"{role}_{name}": column for name, column in self._score_tally.values(numbers[border:]).items()}
        lr = np.concatenate([segment.last_lr for segment in self.segments])
        return {
            name: {"epoch": epoch, "lr": float(lr[row]), **{key: float(column[row]) for key, column in columns.items()}}
            for row, name in enumerate(self.names)
        }

    def keep(self, name: str) -> None:
        """Copies the config's present parameters to where its best ones are kept."""
        row = self.names.index(name)
        for key, tensor in self.params.items():
            self.best[key][row].copy_(tensor[row])

    def state(self) -> dict[str, object]:
        """All tensors that later epochs depend on."""
        return {"params": self.params, "best": self.best, "buffers": [segment.buffers for segment in self.segments]}


def _kind(config: GradientSettings) -> tuple[str, bool, bool, bool]:
    """Configs of one kind share their kernels: (optimizer, nesterov, has momentum, decays weights)."""
    is_sgd = config.optimizer == "sgd"
    schedule = config.scheduler
    cycles = schedule is not None and schedule.type == "OneCycle" and schedule.cycle_momentum
    return config.optimizer, is_sgd and config.nesterov, is_sgd and (cycles or bool(config.momentum)), config.weight_decay != 0


class Segment:
    """Neighbouring rows of a group under one kind of optimizer, each row with its own coefficients."""

    def __init__(self, configs: Sequence[GradientSettings], rows: slice, params: Stack, step: Tensor) -> None:
        self.configs, self._rows, self._step = configs, rows, step
        self.optimizer, self.nesterov, has_momentum, self.decays = _kind(configs[0])
        if self.optimizer not in ("sgd", "adam", "adamw"):
            raise ViRBError(f'no optimizer "{self.optimizer}"; there are sgd, adam, adamw')
        count = len(configs)
        self._params = {key: tensor[rows].view(count, -1) for key, tensor in params.items()}
        n_buffers = int(has_momentum) if self.optimizer == "sgd" else 2
        self.buffers = [[torch.zeros_like(tensor) for _ in range(n_buffers)] for tensor in self._params.values()]
        self.last_lr = np.zeros(count)
        decay = np.array([config.weight_decay for config in configs], dtype=np.float32)
        self._weight_decay = torch.from_numpy(decay).to(step.device)[:, None]
        self._table: Tensor | None = None  # (steps, coefficients, rows, 1)

    def plan_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Coefficients of all steps of this epoch (1-based), computed in float64 and used in float32."""
        numbers = np.arange((epoch - 1) * steps, epoch * steps)
        pairs = [values(config.scheduler, config.lr, epochs, steps, numbers) for config in self.configs]
        lr = np.stack([rate for rate, _ in pairs], 1)
        self.last_lr = lr[-1]
        own = [(config.momentum or 0.0) if self.optimizer == "sgd" else ADAM_BETAS[0] for config in self.configs]
        momentum = np.stack([np.full(steps, m) if cycled is None else cycled for m, (_, cycled) in zip(own, pairs, strict=True)], 1)
        if self.optimizer == "sgd":
            columns = [-lr, momentum]
        else:
            count = numbers[:, None] + 1.0
            root_correction2 = np.broadcast_to(np.sqrt(1.0 - ADAM_BETAS[1] ** count), lr.shape)
            keep = 1.0 - lr * np.array([config.weight_decay for config in self.configs])
            columns = [-lr / (1.0 - momentum**count), 1.0 - momentum, root_correction2, keep]
        table = torch.from_numpy(np.stack(columns, 1).astype(np.float32))[..., None]
        if self._table is None:
            self._table = table.to(self._step.device)
        else:
            self._table.copy_(table)  # a captured step reads this place

    def step(self, grads: Stack) -> None:
        """One step, with the coefficients that the counter points to."""
        if self._table is None:
            raise RuntimeError("plan_epoch comes before the first step")
        now = self._table.index_select(0, self._step)[0]
        decay = self._weight_decay if self.decays else None
        for (key, param), buffers in zip(self._params.items(), self.buffers, strict=True):
            grad = grads[key][self._rows].view(len(param), -1)
            if self.optimizer == "sgd":
                buffer = buffers[0] if buffers else None
                sgd_step(param, grad, buffer, minus_lr=now[0], momentum=now[1], weight_decay=decay, nesterov=self.nesterov)
            else:
                adam_step(
                    param,
                    grad,
                    buffers[0],
                    buffers[1],
                    minus_step=now[0],
                    one_minus_beta1=now[1],
                    root_correction2=now[2],
                    weight_decay=decay if self.optimizer == "adam" else None,
                    keep=now[3] if self.decays and self.optimizer == "adamw" else None,
                )
