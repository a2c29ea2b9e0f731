"""The probes ``linear`` and ``mlp``: heads on frozen feature vectors, all training configs trained together, one of them chosen.

Reads top to bottom: what is fitted, selected and reported on; the grid of every seed; the choice; the report of the chosen config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from virb.config.training import GradientConfig, MlpConfig
from virb.errors import UserError, ViRBError
from virb.metrics.base import find_metric
from virb.probes.base import FIT, SELECT, ConfigOutcome, Context, Outcome, Predictions, RoleData, Run, Settings, register_probe
from virb.probes.grid import Recipe, Record, Trained, divide_grid, train_grid
from virb.probes.heads import HeadShape, Stack, apply_head, with_images
from virb.probes.losses import find_loss
from virb.probes.pieces import Sizes, Stage
from virb.probes.prepare import prepare
from virb.probes.selection import choose, over_seeds
from virb.probes.split import Split, join, n_images, sample_width
from virb.probes.standard import Standard, standards


class GradientProbe:
    """A head trained by gradients; subclasses say which."""

    shape: ClassVar[Literal["features"]] = "features"
    save_every_s: ClassVar[float] = 30.0  # a training state is saved at most this often

    @classmethod
    def hidden(cls, config: GradientConfig) -> int | None:
        """Width of the hidden layer, None for a linear head."""
        return None

    @classmethod
    def shapes(cls, configs: Mapping[str, GradientConfig], width: int, n_outputs: int, images: int) -> dict[str, HeadShape]:
        """The head of each config; samples have so many images, ``width`` numbers together."""
        return {
            name: HeadShape(width, n_outputs, cls.hidden(config), images, "concat" if images == 1 else config.head, config.init)
            for name, config in configs.items()
        }

    @classmethod
    def stages(cls, configs: Mapping[str, BaseModel], sizes: Sizes) -> tuple[Stage, ...]:
        """Groups of configs are trained by themselves, and so is each seed: about 6 operations per weight and sample."""
        own = {name: config for name, config in configs.items() if isinstance(config, GradientConfig)}
        shapes = cls.shapes(own, sizes.width, sizes.n_outputs, sizes.n_images)
        groups = divide_grid(shapes, own, sizes.batch_size, torch.device(sizes.device_kind))
        weights = sum(rows * columns for shape in shapes.values() for _, rows, columns in shape.layers())
        seeds = len(sizes.seeds)
        return (Stage("train", 6.0 * weights * sizes.num_epochs * seeds * sizes.n_samples.get(FIT, 0), len(groups) * seeds),)

    @staticmethod
    def check_features(role: str, shape: tuple[int, ...] | None) -> None:
        """Refuses what is no vector while the run is planned."""
        sample_width(role, shape)

    @staticmethod
    def check_configs(configs: Mapping[str, BaseModel], shape: tuple[int, ...] | None) -> None:
        """A head that pools images needs several of them."""
        pooling = [name for name, config in configs.items() if isinstance(config, GradientConfig) and config.head != "concat"]
        if pooling and n_images(shape) == 1:
            head = getattr(configs[pooling[0]], "head", "")
            raise UserError(f"the training config {pooling[0]} has head: {head}, but a sample of this task has one image; leave it out")

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        data = prepare(roles, settings, context.device)
        primary = find_metric(settings.metrics[0])
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, GradientConfig)}
        shapes = self.shapes(configs, data.width, data.n_outputs, n_images(roles[FIT].features.shape))
        recipe = Recipe(
            epochs=settings.num_epochs,
            batch_size=settings.batch_size,
            test_batch_size=settings.test_batch_size,
            seed=0,
            loss=settings.loss,
            metrics=settings.metrics,
            higher_is_better=primary.higher_is_better,
            score_every=settings.selection != "test-last",
        )
        trainings = _Trainings(context, self.save_every_s, settings.num_epochs)
        trainings.expect(len(settings.seeds) * (2 if settings.refit else 1))

        groups = divide_grid(shapes, configs, settings.batch_size, context.device)
        pieces = [(seed, names) for seed in settings.seeds for names in groups]
        # One seed's curves have plain tags; the curves of further seeds stand beside them.
        tells = {seed: _curves(context, "" if seed == settings.seeds[0] else f"seed{seed}/") for seed in settings.seeds}

        def train(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
            seen = standards(data.fit, shapes, configs)
            asked = [pieces[number] for number in numbers]  # seed by seed
            seeds = list(dict.fromkeys(seed for seed, _ in asked))
            if context.pieces.shared:
                trainings.expect(len(seeds))
            for seed in seeds:
                own = [names for other, names in asked if other == seed]
                tell = None if context.pieces.shared else tells[seed]  # else they are told when all groups are there
                again = replace(recipe, seed=seed)
                found = trainings.run(f"grid-seed{seed}", shapes, configs, data.fit, data.score, again, seen, tell, own)
                for names in own:
                    yield {"configs": {name: vars(found[name]) for name in names}, "notes": trainings.notes}

        made = context.pieces.of("train", [(*piece, len(data.fit), len(data.score)) for piece in pieces], train)
        by_seed: dict[int, dict[str, Trained]] = {seed: {} for seed in settings.seeds}
        for (seed, _), found in zip(pieces, made, strict=True):
            trainings.notes += [note for note in found["notes"] if note not in trainings.notes]
            by_seed[seed] |= {name: Trained(**state) for name, state in found["configs"].items()}
        if context.pieces.shared:
            trainings.expect(len(settings.seeds))  # of the chosen config
            for seed, trained in by_seed.items():
                for epoch in range(1, settings.num_epochs + 1):
                    tells[seed](epoch, {name: trained[name].history[epoch - 1] for name in configs if len(trained[name].history) >= epoch})

        role = data.score.name
        candidates = [
            over_seeds(name, [by_seed[seed][name].best for seed in settings.seeds], f"{role}_{primary.name}", f"{role}_loss")
            for name in configs
        ]
        chosen = choose(candidates, primary.higher_is_better).name

        runs = []
        if settings.refit:
            everything, one = join(data.fit, data.score), {chosen: configs[chosen]}
            seen = standards(everything, shapes, one)
        for seed, trained in by_seed.items():
            outcomes = {name: _outcome(name, trained[name], settings) for name in configs}
            if settings.refit:
                epochs = outcomes[chosen].epoch
                again = replace(recipe, seed=seed, stop_after=epochs)
                head = trainings.run(f"refit-seed{seed}", shapes, one, everything, None, again, seen)[chosen].head
                if head is None:
                    raise ViRBError(f"{chosen} diverged when it was trained again on fit + select; try a lower learning rate")
                outcomes[chosen].head = head
                outcomes[chosen].notes.append(f"trained again on fit + select ({len(everything):,} samples) for {epochs} epochs")
            for name, outcome in outcomes.items():
                outcome.head = None if outcome.head is None else with_images(outcome.head, shapes[name])
                # Under test-* every config is scored, that is what these modes are; otherwise the chosen one alone, once.
                if data.report is not None and outcome.head is not None and (name == chosen or settings.selection != "val"):
                    outcome.report = predict(outcome.head, data.report, settings.test_batch_size, settings.loss)
            runs.append(Run(seed, outcomes, chosen))
        notes = data.notes + list(dict.fromkeys(trainings.notes))
        return Outcome(runs, chosen, index_lists=data.index_lists, selected_on=data.selected_on, notes=notes)


@register_probe
class LinearProbe(GradientProbe):
    """One Linear layer; the images of a sample are concatenated in order unless ``head`` says otherwise."""

    name: ClassVar[str] = "linear"
    Config: ClassVar[type[BaseModel]] = GradientConfig


@register_probe
class MlpProbe(GradientProbe):
    """Linear, ReLU, Linear; the images of a sample are concatenated in order unless ``head`` says otherwise (ViRB 2021's head of motion
    tasks)."""

    name: ClassVar[str] = "mlp"
    Config: ClassVar[type[BaseModel]] = MlpConfig

    @classmethod
    def hidden(cls, config: GradientConfig) -> int | None:
        return config.hidden if isinstance(config, MlpConfig) else None


def predict(head: Stack, split: Split, batch_size: int, loss: str) -> Predictions:
    """Outputs (N, C) float32 of one head on all samples of a split, and the mean loss where there are targets."""
    outputs: list[Tensor] = []
    total: Tensor | None = None
    for positions, features in split.batches(split.chunks(batch_size)):
        batch = apply_head(head, features)
        outputs.append(batch)
        if split.targets is not None:
            part = find_loss(loss).values(batch[:, None], split.targets[positions.to(split.targets.device)]).sum(dtype=torch.float64)
            total = part if total is None else total + part
    return Predictions(torch.cat(outputs).cpu().numpy(), None if total is None else float(total) / len(split))


class _Trainings:
    """Runs trainings one after another under one progress count, each with its own saved state."""

    def __init__(self, context: Context, save_every_s: float, epochs: int) -> None:
        self._context, self._save_every_s, self._epochs = context, save_every_s, epochs
        self._before = self._total = 0
        self.notes: list[str] = []

    def expect(self, trainings: int) -> None:
        """So many are to come."""
        self._before, self._total = 0, trainings * self._epochs

    def run(
        self,
        name: str,
        shapes: Mapping[str, HeadShape],
        configs: Mapping[str, GradientConfig],
        fit: Split,
        score: Split | None,
        recipe: Recipe,
        seen: Mapping[str, Standard],
        tell: Callable[[int, Mapping[str, Record]], None] | None = None,
        groups: Sequence[tuple[str, ...]] | None = None,
    ) -> dict[str, Trained]:
        def on_epoch(epoch: int, records: Mapping[str, Record]) -> None:
            if tell is not None:
                tell(epoch, records)
            self._context.progress("training", self._before + epoch, self._total)

        scratch: Path | None = self._context.scratch
        trained = train_grid(
            shapes,
            configs,
            fit,
            score,
            recipe,
            self._context.device,
            standards=seen,
            cores=self._context.cores,
            on_epoch=on_epoch,
            checkpoint=None if scratch is None else scratch / f"{name}.pt",
            save_every_s=self._save_every_s,
            notes=self.notes,
            groups=groups,
        )
        self._before += recipe.epochs
        return trained


def _curves(context: Context, prefix: str) -> Callable[[int, Mapping[str, Record]], None]:
    """TensorBoard: train_loss -> loss/train, select_top1 -> top1/select, lr -> lr."""

    def tell(epoch: int, records: Mapping[str, Record]) -> None:
        for config, record in records.items():
            for key, value in record.items():
                if key != "epoch":
                    role, _, what = key.partition("_")
                    context.scalars(config, prefix + (f"{what}/{role}" if what else key), value, epoch)

    return tell


def _outcome(name: str, trained: Trained, settings: Settings) -> ConfigOutcome:
    outcome = ConfigOutcome(name, history=trained.history, head=trained.head, diverged=trained.diverged is not None)
    if trained.best is None:
        outcome.notes.append(f"diverged in epoch {trained.diverged}")
        return outcome
    best = trained.best
    outcome.epoch = int(best["epoch"])
    outcome.train_loss = best["train_loss"]
    outcome.train_metrics = _metrics(best, "train", settings)
    if settings.selection == "val":
        outcome.select_loss = best[f"{SELECT}_loss"]
        outcome.select_metrics = _metrics(best, SELECT, settings)
    return outcome


def _metrics(record: Record, role: str, settings: Settings) -> dict[str, float]:
    return {name: record[f"{role}_{name}"] for name in settings.metrics if f"{role}_{name}" in record}
