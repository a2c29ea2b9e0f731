"""The grid: all training configs of a job trained together on frozen features.

Every config sees the same batches in the same order. Heads of one shape are one stack of parameters, so that a step is a handful of matrix
products for all of them; each config has its own optimizer, learning rate, weight decay, momentum and schedule, and equals
``torch.nn.Linear`` with ``torch.optim`` trained alone. Nothing in a step waits for the device: the host reads numbers once per epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from virb.errors import ViRBError
from virb.functional.randomness import torch_generator
from virb.io import write_atomic
from virb.probes.heads import HeadShape, Stack, take_head
from virb.probes.losses import find_loss
from virb.probes.pieces import load_saved
from virb.probes.selection import preference
from virb.probes.split import Split
from virb.probes.stacks import GradientSettings, Group, divide
from virb.probes.standard import Standard, fold
from virb.probes.steps import make_steps
from virb.probes.tally import read

Record = dict[str, float]


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


def divide_grid(
    shapes: Mapping[str, HeadShape], configs: Mapping[str, GradientSettings], batch_size: int, device: torch.device
) -> list[tuple[str, ...]]:
    """The configs as groups whose numbers do not depend on each other in any bit; by sizes alone, whoever trains them."""
    alike: dict[tuple[HeadShape, bool], dict[str, GradientSettings]] = {}  # those of one shape that see the same
    for name, config in configs.items():
        alike.setdefault((shapes[name], config.standardise), {})[name] = config
    return [tuple(part) for (shape, _), members in alike.items() for part in divide(shape, members, batch_size, device)]


def train_grid(
    shapes: Mapping[str, HeadShape],
    configs: Mapping[str, GradientSettings],
    fit: Split,
    score: Split | None,
    recipe: Recipe,
    device: torch.device,
    *,
    standards: Mapping[str, Standard] | None = None,
    cores: int = 1,
    on_epoch: Callable[[int, Mapping[str, Record]], None] = lambda epoch, records: None,
    checkpoint: Path | None = None,
    save_every_s: float = 30.0,
    notes: list[str] | None = None,
    groups: Sequence[tuple[str, ...]] | None = None,
) -> dict[str, Trained]:
    """Trains all configs on ``fit``. With ``score`` each config keeps the head of its best epoch there (see ``selection.preference``),
    else of the last one. ``on_epoch`` gets the records of every epoch once, after a restart also those of the epochs already done.

    ``standards``: of the configs whose heads are trained on standardised features; the heads that come back take features as they are.
    ``cores``: how many of a CPU's the training may use; the numbers are the same for any. ``notes`` is told what did not go as planned.
    ``groups``: some of those of ``divide_grid``, where not all are to be trained here."""
    divided = divide_grid(shapes, configs, recipe.batch_size, device) if groups is None else groups
    configs = {name: config for name, config in configs.items() if any(name in names for names in divided)}
    grid = _Grid(shapes, configs, divided, len(fit), recipe, device, standards or {})
    trained = {name: Trained() for name in configs}
    last_epoch = min(recipe.epochs, recipe.stop_after or recipe.epochs)
    places = [group.names for group in grid.groups]
    fingerprint = repr((dict(shapes), dict(configs), recipe, len(fit), score and (score.name, len(score)), places))
    done = _restore(checkpoint, fingerprint, grid, trained, device)
    for epoch in range(1, done + 1):
        on_epoch(epoch, _records_of(trained, epoch))
    saved_at = time.monotonic()

    with make_steps(grid.groups, device, cores) as steps:
        for epoch in range(done + 1, last_epoch + 1):
            if all(t.diverged for t in trained.values()):
                break
            order = torch.randperm(len(fit), generator=torch_generator(recipe.seed, "order", epoch))
            fit.set_epoch(epoch - 1)
            grid.begin_epoch(epoch)
            order = order.pin_memory() if device.type == "cuda" else order  # sent without waiting, whole or batch by batch
            steps.train(_batches(fit, order.to(fit.index_device).split(recipe.batch_size)))
            scored = score is not None and (recipe.score_every or epoch == last_epoch)
            if score is not None and scored:
                score.set_epoch(0)
                steps.score(_batches(score, score.chunks(recipe.test_batch_size)))
            for name, record in grid.end_epoch(
                epoch, len(fit), score.name if score is not None and scored else None, len(score or ())
            ).items():
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
        if notes is not None:
            notes += steps.notes

    for name, kept in trained.items():
        kept.head = grid.kept_head(name) if kept.best is not None else None
    return trained


def _batches(split: Split, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    if split.targets is None:
        raise ViRBError(f"the {split.name} samples have no targets")
    with closing(split.batches(chunks)) as batches:
        for positions, features in batches:
            yield features, split.targets[positions.to(split.targets.device, non_blocking=True)]


def _better(record: Record, best: Record, role: str, recipe: Recipe) -> bool:
    metric, loss = f"{role}_{recipe.metrics[0]}", f"{role}_loss"
    new, old = (preference(r.get(metric), r.get(loss), r["epoch"], recipe.higher_is_better) for r in (record, best))
    return new < old


def _records_of(trained: Mapping[str, Trained], epoch: int) -> dict[str, Record]:
    return {name: t.history[epoch - 1] for name, t in trained.items() if len(t.history) >= epoch}


class _Grid:
    """The heads of all configs on the device, in groups of one shape that see the same."""

    def __init__(
        self,
        shapes: Mapping[str, HeadShape],
        configs: Mapping[str, GradientSettings],
        groups: Sequence[tuple[str, ...]],
        n_fit: int,
        recipe: Recipe,
        device: torch.device,
        standards: Mapping[str, Standard],
    ) -> None:
        self._recipe, self._order = recipe, list(configs)
        self._n_steps = math.ceil(n_fit / recipe.batch_size)
        loss = find_loss(recipe.loss)
        self.groups = [
            Group(shapes[names[0]], names, configs, loss, recipe.metrics, recipe.seed, device, standards.get(names[0])) for names in groups
        ]
        self._group_of = {name: group for group in self.groups for name in group.names}

    def begin_epoch(self, epoch: int) -> None:
        for group in self.groups:
            group.begin_epoch(epoch, self._recipe.epochs, self._n_steps)

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
        self._group_of[name].keep(name)

    def kept_head(self, name: str) -> Stack:
        group = self._group_of[name]
        head = take_head(group.best, group.names.index(name))
        return head if group.standard is None else fold(head, group.standard)


def _save(path: Path, fingerprint: str, epoch: int, grid: _Grid, trained: Mapping[str, Trained]) -> None:
    """Everything the remaining epochs depend on, in one atomic file of tensors and plain values."""
    groups = [group.state() for group in grid.groups]
    state = {name: {"history": t.history, "diverged": t.diverged, "best": t.best} for name, t in trained.items()}
    whole = {"fingerprint": fingerprint, "epoch": epoch, "groups": groups, "trained": state}
    write_atomic(path, lambda file: torch.save(whole, file))


def _restore(path: Path | None, fingerprint: str, grid: _Grid, trained: Mapping[str, Trained], device: torch.device) -> int:
    """Puts a saved state in place; the number of epochs done, 0 when there is none that belongs to this training."""
    whole = load_saved(path, fingerprint, device)
    if whole is None:
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
