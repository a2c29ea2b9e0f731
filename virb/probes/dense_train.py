"""Trains the heads of all training configs together: same batches in the same order, the maps of a batch read (or encoded) once for all.

Linear heads of one form take their products as one (``virb.probes.dense_stack``), the others their step one after the other. Every loss
has its backward at once, so that the memory of activations is that of one head.
"""

from __future__ import annotations

import math
import pickle
import time
import zipfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from virb.config.dense import DenseConfig
from virb.functional.optimizers import ADAM_BETAS
from virb.functional.randomness import derive_seed, torch_generator
from virb.functional.schedules import values as schedule_values
from virb.io import write_atomic
from virb.probes.dense_data import DenseSplit
from virb.probes.dense_heads import DenseLinear
from virb.probes.dense_losses import DenseLoss
from virb.probes.dense_outputs import values
from virb.probes.dense_score import DenseSheet, at_size, raw_values, score_heads
from virb.probes.dense_stack import form_of, learn_together
from virb.probes.selection import preference

Record = dict[str, float]
SCORED_EPOCHS = 5  # at most so often selection samples are scored: at native size that costs far more than a step of training


@dataclass(frozen=True)
class DenseRecipe:
    """What all configs share. ``batch_size`` is the number of samples of one optimizer step."""

    epochs: int  # what the schedules span
    batch_size: int
    test_batch_size: int
    seed: int
    loss_name: str
    metrics: tuple[str, ...]  # the first is primary
    higher_is_better: bool
    only_last: bool = False  # the last epoch is what counts; no other is scored
    score_every: bool = False  # every epoch is scored, however long that takes
    score_size: int | None = None
    stop_after: int | None = None

    @property
    def last(self) -> int:
        return min(self.epochs, self.stop_after or self.epochs)

    def is_scored(self, epoch: int) -> bool:
        if epoch == self.last or self.only_last:
            return epoch == self.last
        every = 1 if self.score_every else math.ceil(self.last / SCORED_EPOCHS)
        return (self.last - epoch) % every == 0


@dataclass
class TrainedHead:
    """One config after training. ``history``: a record per epoch (epoch, lr of its last step, train_loss, and where the epoch was scored
    <split>_loss and <split>_<metric>); it ends before the epoch in which the config diverged."""

    history: list[Record] = field(default_factory=list)
    diverged: int | None = None
    best: Record | None = None
    state: dict[str, Tensor] | None = None  # of the head of the best epoch, on the CPU


class _Member:
    """A config's head with its optimizer."""

    def __init__(self, name: str, head: nn.Module, config: DenseConfig, recipe: DenseRecipe, steps: int) -> None:
        self.name, self.head, self.config, self._recipe, self._steps = name, head, config, recipe, steps
        parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(config, parameters)
        self.has_dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in head.modules())
        self.loss = torch.zeros((), dtype=torch.float64)
        self.cells = 0

    def begin_epoch(self, epoch: int, device: torch.device) -> None:
        steps = np.arange((epoch - 1) * self._steps, epoch * self._steps)
        self.rates, self.momenta = schedule_values(self.config.scheduler, self.config.lr, self._recipe.epochs, self._steps, steps)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.cells = 0
        self.head.train()

    def set_rates(self, number: int) -> None:
        """Of this step of the epoch, from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
            if self.momenta is not None:
                cycled = float(self.momenta[number])
                group.update({"betas": (cycled, ADAM_BETAS[1])} if "betas" in group else {"momentum": cycled})
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, mean: Tensor, cells: int) -> None:
        """With the gradients of ``mean``, the loss over so many cells."""
        self.optimizer.step()
        self.loss += mean.detach() * cells
        self.cells += cells


def train_heads(
    make_head: Callable[[str], nn.Module],
    configs: Mapping[str, DenseConfig],
    fit: DenseSplit,
    score: DenseSplit | None,
    recipe: DenseRecipe,
    loss: DenseLoss,
    grids: Mapping[str, tuple[int, int]],
    *,
    on_epoch: Callable[[int, Mapping[str, Record]], None] = lambda epoch, records: None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
    checkpoint: Path | None = None,
    save_every_s: float = 30.0,
) -> dict[str, TrainedHead]:
    """Trains all configs on ``fit``; with ``score`` each keeps the head of its best scored epoch, else of the last one. ``grids``: where
    the loss of each config compares. ``on_epoch`` gets every epoch's records once, after a restart also those of epochs already done."""
    steps = math.ceil(len(fit) / recipe.batch_size)
    members = {name: _Member(name, make_head(name), config, recipe, steps) for name, config in configs.items()}
    trained = {name: TrainedHead() for name in configs}
    fingerprint = repr((dict(configs), recipe, len(fit), score and (score.name, len(score)), dict(grids)))
    done = _restore(checkpoint, fingerprint, members, trained, fit.device)
    for epoch in range(1, done + 1):
        on_epoch(epoch, _records(trained, epoch))
    saved_at = time.monotonic()
    for epoch in range(done + 1, recipe.last + 1):
        live = [member for name, member in members.items() if not trained[name].diverged]
        if not live:
            break
        _train_epoch(live, fit, recipe, loss, grids, epoch, steps, on_step)
        sheets = _score(live, score, recipe, loss, grids, epoch)
        sums = torch.stack([member.loss for member in live]).tolist()  # the host waits for the steps of an epoch once
        for member, loss_sum in zip(live, sums, strict=True):
            _conclude(member, loss_sum, trained[member.name], epoch, sheets.get(member.name), score, recipe)
        if checkpoint is not None and time.monotonic() - saved_at >= save_every_s:
            _save(checkpoint, fingerprint, epoch, members, trained)
            saved_at = time.monotonic()
        on_epoch(epoch, _records(trained, epoch))
    return trained


def _train_epoch(
    members: Sequence[_Member],
    fit: DenseSplit,
    recipe: DenseRecipe,
    loss: DenseLoss,
    grids: Mapping[str, tuple[int, int]],
    epoch: int,
    steps: int,
    on_step: Callable[[int, int], None],
) -> None:
    order = torch.randperm(len(fit), generator=torch_generator(recipe.seed, "order", epoch)).numpy()
    fit.set_epoch(epoch - 1)
    for member in members:
        member.begin_epoch(epoch, fit.device)
    batches = [order[step * recipe.batch_size : (step + 1) * recipe.batch_size] for step in range(steps)]
    compared_at = {grids[member.name] for member in members}
    with closing(fit.read(batches, compared_at)) as read:
        for step, (_, maps, targets) in enumerate(read):
            able = [
                member for member in members if targets[grids[member.name]][1]
            ]  # else every pixel is void: there is nothing to learn from
            for group, stacks in _groups(able, maps):
                for member in group:
                    member.set_rates(step)
                losses = [_loss_of(member, fit, targets[grids[member.name]][0], loss) for member in group]
                if stacks:
                    means = learn_together([cast(DenseLinear, member.head) for member in group], maps, losses)
                else:
                    with _own_randomness(group[0], recipe.seed, epoch, step):
                        means = [losses[0](raw_values(group[0].head, maps, fit, group[0].config))]
                        means[0].backward()
                for member, mean in zip(group, means, strict=True):
                    member.step(mean, targets[grids[member.name]][1])
            on_step((epoch - 1) * steps + step + 1, recipe.last * steps)


def _groups(members: Sequence[_Member], maps: Sequence[Tensor]) -> list[tuple[list[_Member], bool]]:
    """Members that take a step together, in order, and whether as a stack. Where a map is one value per channel none does: its
    normalisation is each head's own affair."""
    together: dict[Hashable, list[_Member]] = {}
    one_value = any(x.numel() <= x.shape[1] for x in maps)
    for member in members:
        form = None if one_value else form_of(member.head)
        together.setdefault(member.name if form is None else form, []).append(member)
    return [(group, key != group[0].name) for key, group in together.items()]


def _loss_of(member: _Member, split: DenseSplit, target: Tensor, loss: DenseLoss) -> Callable[[Tensor], Tensor]:
    """From what the head gives to the loss where it compares."""

    def loss_of(raw: Tensor) -> Tensor:
        found = values(raw, split.target, member.config)
        return loss(at_size(found, (target.shape[-2], target.shape[-1]), member.config.every_output), target)

    return loss_of


class _own_randomness:
    """Dropout draws from a stream of (seed, epoch, step), the same whatever other configs there are. Nothing for heads without it."""

    def __init__(self, member: _Member, seed: int, epoch: int, step: int) -> None:
        self._fork: Any = None
        if member.has_dropout:
            device = next(member.head.parameters()).device
            self._fork = torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda")
            self._seed = derive_seed(seed, "dropout", epoch, step)

    def __enter__(self) -> None:
        if self._fork is not None:
            self._fork.__enter__()
            torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        if self._fork is not None:
            self._fork.__exit__(*error)


def _score(
    members: Sequence[_Member],
    score: DenseSplit | None,
    recipe: DenseRecipe,
    loss: DenseLoss,
    grids: Mapping[str, tuple[int, int]],
    epoch: int,
) -> dict[str, DenseSheet]:
    if score is None or not recipe.is_scored(epoch):
        return {}
    heads = {member.name: member.head for member in members}
    configs = {member.name: member.config for member in members}
    return score_heads(heads, configs, score, recipe.metrics, loss, grids, recipe.test_batch_size, recipe.score_size)


def _conclude(
    member: _Member,
    loss_sum: float,
    kept: TrainedHead,
    epoch: int,
    sheet: DenseSheet | None,
    score: DenseSplit | None,
    recipe: DenseRecipe,
) -> None:
    """Notes what the epoch gave, and keeps the head if it is the best so far."""
    record: Record = {"epoch": epoch, "lr": float(member.rates[-1])}
    if member.cells:
        record["train_loss"] = loss_sum / member.cells
    if sheet is not None and score is not None:
        record |= {f"{score.name}_{metric}": value for metric, value in sheet.numbers().items()}
        if sheet.loss is not None:
            record[f"{score.name}_loss"] = sheet.loss
    if not all(math.isfinite(value) for value in record.values()):
        kept.diverged, kept.best, kept.state = epoch, None, None
        return
    kept.history.append(record)
    if score is None or recipe.only_last:
        better = epoch == recipe.last
    else:
        better = sheet is not None and (kept.best is None or _better(record, kept.best, score.name, recipe))
    if better:
        kept.best = record
        kept.state = {key: tensor.detach().to("cpu", copy=True) for key, tensor in member.head.state_dict().items()}


def _better(record: Record, best: Record, role: str, recipe: DenseRecipe) -> bool:
    metric, loss = f"{role}_{recipe.metrics[0]}", f"{role}_loss"
    new, old = (preference(r.get(metric), r.get(loss), r["epoch"], recipe.higher_is_better) for r in (record, best))
    return new < old


def _records(trained: Mapping[str, TrainedHead], epoch: int) -> dict[str, Record]:
    return {name: one.history[epoch - 1] for name, one in trained.items() if len(one.history) >= epoch}


def _optimizer(config: DenseConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        # A schedule that cycles the momentum needs a buffer from the first step on.
        cycles = config.scheduler is not None and config.scheduler.type == "OneCycle" and config.scheduler.cycle_momentum
        momentum = config.momentum or (float(config.scheduler.max_momentum or 0.0) if cycles and config.scheduler else 0.0)
        return torch.optim.SGD(parameters, config.lr, momentum=momentum, nesterov=config.nesterov, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, config.lr, betas=ADAM_BETAS, weight_decay=config.weight_decay)


def _save(path: Path, fingerprint: str, epoch: int, members: Mapping[str, _Member], trained: Mapping[str, TrainedHead]) -> None:
    state = {
        "fingerprint": fingerprint,
        "epoch": epoch,
        "heads": {name: member.head.state_dict() for name, member in members.items()},
        "optimizers": {name: member.optimizer.state_dict() for name, member in members.items()},
        "trained": {name: vars(one) for name, one in trained.items()},
    }
    write_atomic(path, lambda file: torch.save(state, file))


def _restore(
    path: Path | None, fingerprint: str, members: Mapping[str, _Member], trained: Mapping[str, TrainedHead], device: torch.device
) -> int:
    """The epoch after which a training of equal settings was saved, now in place; 0 where there is none."""
    if path is None or not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError):
        return 0  # damaged: train again
    if not isinstance(state, dict) or state.get("fingerprint") != fingerprint:
        return 0
    for name, member in members.items():
        member.head.load_state_dict(state["heads"][name])
        member.optimizer.load_state_dict(state["optimizers"][name])
        for key, value in state["trained"][name].items():
            setattr(trained[name], key, value)
        if trained[name].state is not None:
            trained[name].state = {key: tensor.cpu() for key, tensor in (trained[name].state or {}).items()}
    return int(state["epoch"])
