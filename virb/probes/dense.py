"""Probes over feature maps: small heads that answer pixel by pixel. One forward of the encoder serves all training configs.

Reads top to bottom: what is fitted, selected and reported on; the heads of every seed; the choice; the report of the chosen config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from virb.config.dense import (
    DeepLab2021Config,
    DeepLabConfig,
    DenseConfig,
    DenseLinearConfig,
    DenseMultiConfig,
    PixelShuffleConfig,
    SiameseConfig,
)
from virb.data.placement import DenseTarget
from virb.errors import UserError, ViRBError
from virb.functional.randomness import derive_seed
from virb.metrics.base import find_metric
from virb.probes.base import FIT, REPORT, SELECT, ConfigOutcome, Context, Outcome, RoleData, Run, Settings, register_probe
from virb.probes.dense_data import DenseSplit, loss_grid
from virb.probes.dense_deeplab import DeepLab2021
from virb.probes.dense_heads import MapShape, build_head
from virb.probes.dense_losses import find_dense_loss
from virb.probes.dense_outputs import depth_output, n_outputs
from virb.probes.dense_score import score_heads, view_grid
from virb.probes.dense_train import DenseRecipe, Record, TrainedHead, train_heads
from virb.probes.selection import choose, over_seeds

PICTURES = 4  # samples whose prediction is kept to be looked at


class DenseProbe:
    """A head over maps; subclasses say which, by their Config."""

    shape: ClassVar[Literal["features"]] = "features"
    reads_maps: ClassVar[bool] = True
    refits: ClassVar[bool] = False
    features: ClassVar[str] = "pyramid"  # where a task that is answered by another probe by default is given this one
    images: ClassVar[int] = 1  # per sample
    save_every_s: ClassVar[float] = 30.0  # a training state is saved at most this often

    @classmethod
    def check_maps(cls, target: DenseTarget | None, shapes: Sequence[tuple[int, ...] | None], n_images: int | None) -> None:
        """Refuses what is no map while the run is planned."""
        if target is None:
            raise UserError(
                f"the probe {getattr(cls, 'name', cls.__name__)} answers pixel by pixel; this task has no target for every pixel"
            )
        for shape in shapes:
            if shape is None or len(shape) != 3:
                size = "of different shapes" if shape is None else " x ".join(map(str, shape)) + " per image"
                raise UserError(f"the features are {size}; a dense probe needs maps: features: tokens[-1], or pyramid")
        if n_images != cls.images:
            name = getattr(cls, "name", cls.__name__)
            raise UserError(
                f"the probe {name} takes samples of {cls.images} image{'s' * (cls.images > 1)}, these have {n_images or 'several'}"
            )

    @classmethod
    def check_targets(cls, target: DenseTarget, n_classes: int | None, configs: Mapping[str, BaseModel], loss: str) -> None:
        """Refuses training configs and a loss that say nothing of such targets while the run is planned."""
        find_dense_loss(loss, target.kind)
        for name, config in configs.items():
            if not isinstance(config, DenseConfig):
                continue
            try:
                n_outputs(target, n_classes, config)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            if "n_bins" in config.model_fields_set and (target.kind != "depth" or depth_output(target, config) != "bins"):
                raise UserError(f"{name}: n_bins belongs to output: bins, of depth; leave it out")
            if isinstance(config, SiameseConfig) and "radius" in config.model_fields_set and config.fusion != "correlation":
                raise UserError(f"{name}: radius belongs to fusion: correlation; leave it out")

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        if settings.dense is None:
            raise UserError("a dense probe needs a pixelwise task")
        splits = {
            role: DenseSplit(role, data, settings.dense, context.device, settings.n_classes)
            for role, data in roles.items()
            if role in (FIT, SELECT, REPORT)
        }
        splits[FIT].comes_again = settings.num_epochs * len(settings.seeds) > len(splits[FIT].seen.views)
        fit, report = splits[FIT], splits.get(REPORT)
        score = splits.get(SELECT) if settings.selection == "val" else report
        if score is None:
            raise ViRBError("there are no samples to choose on")
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, DenseConfig)}
        primary = find_metric(settings.metrics[0])
        work = _Work(fit, score, configs, settings, context)

        by_seed: dict[int, dict[str, TrainedHead]] = {seed: work.train(seed, self.save_every_s) for seed in settings.seeds}
        candidates = [
            over_seeds(name, [by_seed[seed][name].best for seed in settings.seeds], f"{score.name}_{primary.name}", f"{score.name}_loss")
            for name in configs
        ]
        chosen = choose(candidates, primary.higher_is_better).name

        pictures: dict[int, Any] = {}
        runs = []
        for seed, trained in by_seed.items():
            outcomes = {name: _outcome(name, trained[name], settings) for name in configs}
            for name, outcome in outcomes.items():
                state = trained[name].state
                outcome.head = state
                # Under test-* every config is scored, that is what these modes are; otherwise the chosen one alone, once.
                if report is not None and state is not None and (name == chosen or settings.selection != "val"):
                    keep = _handful(len(report)) if name == chosen and seed == settings.seeds[0] else ()
                    outcome.report, seen = work.report(name, state, report, keep)
                    pictures.update(seen)
            runs.append(Run(seed, outcomes, chosen))
        return Outcome(runs, chosen, selected_on=settings.selection, notes=work.notes(), pictures=pictures)


class _Work:
    """The heads of one job: how they are made, trained and reported."""

    def __init__(
        self, fit: DenseSplit, score: DenseSplit, configs: Mapping[str, DenseConfig], settings: Settings, context: Context
    ) -> None:
        self.fit, self.score, self.configs, self.settings, self.context = fit, score, configs, settings, context
        self.loss = find_dense_loss(settings.loss, fit.target.kind)
        self.shapes: list[MapShape] = [_map_shape(features.shape) for features in fit.role.maps]
        at_view = fit.target.at == "view"
        self.grids = {
            name: view_grid(fit, None)
            if at_view or config.at_image_size
            else loss_grid(fit.seen, self._output_grid(name), config.loss_size, config.every_output)
            for name, config in configs.items()
        }
        self._done = 0

    def _output_grid(self, name: str) -> tuple[int, int]:
        """Height and width of what a config's head gives, found without any arithmetic."""
        images = (2,) if self.fit.role.features.shape is not None and len(self.fit.role.features.shape) == 4 else ()
        head = self.make_head(name, 0).to("meta").eval()
        found = head([torch.empty((1, *images, *shape), device="meta") for shape in self.shapes])
        return found.shape[-2], found.shape[-1]

    def make_head(self, name: str, seed: int) -> nn.Module:
        config = self.configs[name]
        outputs = n_outputs(self.fit.target, self.settings.n_classes, config)
        with torch.random.fork_rng([]):  # the same first weights on every device
            torch.manual_seed(derive_seed(seed, "head"))
            layer4 = _layer4(self.context.encoder and self.context.encoder()) if isinstance(config, DeepLab2021Config) else None
            return build_head(config, self.shapes, outputs, layer4=layer4).to(self.context.device)

    def train(self, seed: int, save_every_s: float) -> dict[str, TrainedHead]:
        settings, context = self.settings, self.context
        primary = find_metric(settings.metrics[0])
        recipe = DenseRecipe(
            epochs=settings.num_epochs,
            batch_size=settings.batch_size,
            test_batch_size=settings.test_batch_size,
            seed=seed,
            loss_name=settings.loss,
            metrics=settings.metrics,
            higher_is_better=primary.higher_is_better,
            only_last=settings.selection == "test-last",
            score_every=settings.selection == "test-best",  # as published: the best of all epochs
            score_size=settings.score_size,
        )
        prefix = "" if seed == settings.seeds[0] else f"seed{seed}/"
        before, total = self._done, len(settings.seeds)

        def on_epoch(epoch: int, records: Mapping[str, Record]) -> None:
            for config, record in records.items():
                for key, value in record.items():
                    if key != "epoch":
                        role, _, what = key.partition("_")
                        context.scalars(config, prefix + (f"{what}/{role}" if what else key), value, epoch)

        trained = train_heads(
            lambda name: self.make_head(name, seed),
            self.configs,
            self.fit,
            self.score,
            recipe,
            self.loss,
            self.grids,
            on_epoch=on_epoch,
            on_step=lambda step, steps: context.progress("training", before * steps + step, total * steps),
            checkpoint=None if context.scratch is None else context.scratch / f"dense-seed{seed}.pt",
            save_every_s=save_every_s,
        )
        self._done += 1
        return trained

    def report(self, name: str, state: Mapping[str, torch.Tensor], report: DenseSplit, keep: Sequence[int]) -> tuple[Any, dict[int, Any]]:
        head = self.make_head(name, 0)
        head.load_state_dict(state)
        settings = self.settings
        sheets = score_heads(
            {name: head},
            self.configs,
            report,
            settings.metrics,
            self.loss,
            self.grids,
            settings.test_batch_size,
            settings.score_size,
            keep,
            lambda done, total: self.context.progress("scoring", done, total),
        )
        return sheets[name].predictions(), sheets[name].pictures

    def notes(self) -> list[str]:
        grids = sorted(set(self.grids.values()))
        return [f"training loss at {' and '.join(f'{height} x {width}' for height, width in grids)} cells of the input"]


def _map_shape(shape: tuple[int, ...] | None) -> MapShape:
    """Channels, height, width of one image's map."""
    if shape is None or len(shape) not in (3, 4):
        raise ViRBError(f"expected maps of one shape, got {shape}")
    channels, height, width = shape[-3:]
    return channels, height, width


def _layer4(encoder: Any) -> nn.Module:
    """The last stage of an encoder, for the head that retrains a copy of it."""
    layer4 = getattr(getattr(encoder, "network", None), "layer4", None)
    if not isinstance(layer4, nn.Module):
        raise UserError("deeplab@virb2021 retrains a copy of a ResNet's layer4, and this encoder has none; probe: deeplab works for all")
    return layer4


def _handful(count: int) -> list[int]:
    """A fixed few samples, spread over the split."""
    return sorted(set(np.linspace(0, count - 1, PICTURES).round().astype(int).tolist()))


def _outcome(name: str, trained: TrainedHead, settings: Settings) -> ConfigOutcome:
    outcome = ConfigOutcome(name, history=trained.history, diverged=trained.diverged is not None)
    if trained.best is None:
        outcome.notes.append(f"diverged in epoch {trained.diverged}")
        return outcome
    best = trained.best
    outcome.epoch = int(best["epoch"])
    outcome.train_loss = best.get("train_loss")
    if settings.selection == "val":
        outcome.select_loss = best.get(f"{SELECT}_loss")
        outcome.select_metrics = {metric: best[f"{SELECT}_{metric}"] for metric in settings.metrics if f"{SELECT}_{metric}" in best}
    return outcome


@register_probe
class DenseLinearProbe(DenseProbe):
    """One 1x1 convolution on the last map: what the features hold, not what a decoder makes of them."""

    name: ClassVar[str] = "dense-linear"
    features: ClassVar[str] = "tokens[-1]"
    Config: ClassVar[type[BaseModel]] = DenseLinearConfig


@register_probe
class DenseMultiProbe(DenseProbe):
    """One 1x1 convolution on several maps, concatenated."""

    name: ClassVar[str] = "dense-multi"
    features: ClassVar[str] = "pyramid[-4:]"
    Config: ClassVar[type[BaseModel]] = DenseMultiConfig


@register_probe
class PixelShuffleProbe(DenseProbe):
    """ViRB 2021's decoder over a pyramid of maps."""

    name: ClassVar[str] = "pixelshuffle"
    Config: ClassVar[type[BaseModel]] = PixelShuffleConfig


@register_probe
class DeepLabProbe(DenseProbe):
    """Pyramid pooling of the last map, refined with an early one, on frozen features."""

    name: ClassVar[str] = "deeplab"
    Config: ClassVar[type[BaseModel]] = DeepLabConfig


@register_probe
class DeepLab2021Probe(DenseProbe):
    """ViRB 2021's DeepLab head, which retrains a dilated copy of a ResNet's layer4: not a probe of frozen features."""

    name: ClassVar[str] = "deeplab@virb2021"
    Config: ClassVar[type[BaseModel]] = DeepLab2021Config

    @classmethod
    def check_encoder(cls, encoder: Any, shapes: Sequence[tuple[int, ...] | None]) -> None:
        """Refuses encoders without such a stage, and maps that do not lead to it, while the run is planned."""
        DeepLab2021.on_encoder(_layer4(encoder), [_map_shape(shape) for shape in shapes], 2)


@register_probe
class SiameseProbe(DenseProbe):
    """The maps of two images, fused level by level, for what moves between them."""

    name: ClassVar[str] = "siamese"
    images: ClassVar[int] = 2
    Config: ClassVar[type[BaseModel]] = SiameseConfig
