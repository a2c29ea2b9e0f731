"""The probe ``fewshot``: n samples per class, drawn several times; every shot count is scored.

A draw is a run, one per entry of ``seeds``; its samples depend on the seed and the fit targets alone, so they are the same for every
encoder, and those of n shots are among those of more. The index lists ``draw<seed>-shots<n>`` count the samples of the fit role. Each shot
count is a result of its own, with an interval over draws and units: nothing is chosen. The number of the job as a whole is that of the most
shots; where several configs have as many, the best of them on the select samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from virb.config.check import Strict
from virb.errors import UserError
from virb.functional.randomness import numpy_generator
from virb.metrics.base import find_metric
from virb.probes.base import ConfigOutcome, Context, Outcome, RoleData, Run, Settings, register_probe
from virb.probes.heads import Stack
from virb.probes.logistic import FittedHead, LogisticConfig, fit_heads, linear_scores
from virb.probes.ncm import Distance, class_means
from virb.probes.prepare import Prepared, prepare
from virb.probes.selection import Candidate, choose
from virb.probes.sheets import Sheet, outcome, score
from virb.probes.split import Split, sample_width


class FewshotConfig(Strict):
    """``metric`` belongs to the head ``ncm``; ``C``, ``max_iter`` and ``tolerance`` to ``logistic``."""

    shots: Annotated[int, Field(ge=1)]
    head: Literal["ncm", "logistic"] = "ncm"
    metric: Distance = "cosine"
    C: Annotated[float, Field(gt=0)] = 1.0
    max_iter: Annotated[int, Field(ge=1)] = 1000
    tolerance: Annotated[float, Field(gt=0)] = 1e-5

    @field_validator("metric", "C", "max_iter", "tolerance")
    @classmethod
    def _of_its_head(cls, value: object, info: ValidationInfo) -> object:
        owner = "ncm" if info.field_name == "metric" else "logistic"
        default = cls.model_fields[str(info.field_name)].default
        if info.data.get("head", owner) != owner and value != default:
            raise ValueError(f"the head {info.data['head']} takes no {info.field_name}; it belongs to {owner}")
        return value

    def logistic(self) -> LogisticConfig:
        return LogisticConfig(C=self.C, max_iter=self.max_iter, tolerance=self.tolerance)


@register_probe
class FewshotProbe:
    name: ClassVar[str] = "fewshot"
    shape: ClassVar[Literal["features"]] = "features"
    Config: ClassVar[type[BaseModel]] = FewshotConfig
    by_epochs: ClassVar[bool] = False
    targets: ClassVar[str] = "class"

    @staticmethod
    def check_features(role: str, shape: tuple[int, ...] | None) -> None:
        sample_width(role, shape)

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        if settings.refit:
            raise UserError("refit: true has no meaning for few shots: more samples would be more shots")
        data = prepare(roles, settings, context.device, loss="cross_entropy")
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, FewshotConfig)}
        targets = data.fit.targets
        if targets is None:
            raise UserError("few shots are drawn from samples with targets")
        lists: dict[str, np.ndarray] = {}
        heads: dict[int, dict[str, FittedHead]] = {}
        for number, seed in enumerate(settings.seeds):
            heads[seed] = {}
            for shots in dict.fromkeys(config.shots for config in configs.values()):
                drawn = lists[f"draw{seed}-shots{shots}"] = draw_shots(targets.cpu().numpy(), shots, seed)
                group = {name: config for name, config in configs.items() if config.shots == shots}
                heads[seed] |= fit_drawn(subset(data.fit, drawn), data.n_outputs, group, context)
            context.progress("draws", number + 1, len(settings.seeds))
        most = max(config.shots for config in configs.values())
        rivals = [name for name, config in configs.items() if config.shots == most]
        notes = [*data.notes, *_short(targets.cpu().numpy(), configs)]
        found = scored_draws(heads, data, settings, context, rivals, report_all=True)
        found.notes = [*notes, *found.notes]
        index = data.fit.parts[0][1].numpy()  # prepare() may have held samples out
        found.index_lists |= {name: index[drawn].tolist() for name, drawn in lists.items()}
        return found


def draw_shots(targets: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Ascending positions of ``shots`` samples of every class (all of a class that has fewer)."""
    return np.sort(np.concatenate([order[:shots] for order in shuffled_classes(targets, seed)]))


def shuffled_classes(targets: np.ndarray, seed: int) -> list[np.ndarray]:
    """The positions of each class in random order, which depends on the seed, the class and how many there are."""
    by_class = np.split(np.argsort(targets, kind="stable"), np.cumsum(np.bincount(targets))[:-1])
    return [
        positions[numpy_generator(seed, "fewshot", number).permutation(len(positions))]
        for number, positions in enumerate(by_class)
        if len(positions)
    ]


def _short(targets: np.ndarray, configs: Mapping[str, FewshotConfig]) -> list[str]:
    sizes = np.bincount(targets)
    sizes = sizes[sizes > 0]
    found = []
    for shots in sorted({config.shots for config in configs.values()}):
        if n := int((sizes < shots).sum()):
            found.append(f"{n} of {len(sizes)} classes have fewer than {shots} fit samples: all of them are used")
    return found


def subset(split: Split, positions: np.ndarray) -> Split:
    """Some samples of a split, by their positions in it."""
    chosen = torch.from_numpy(positions)
    parts = []
    start = 0
    for features, index in split.parts:
        here = chosen[(chosen >= start) & (chosen < start + len(index))] - start
        parts.append((features, index[here]))
        start += len(index)
    targets = None if split.targets is None else split.targets[chosen.to(split.targets.device)]
    return Split(split.name, tuple(parts), targets)


def fit_drawn(drawn: Split, n_outputs: int, configs: Mapping[str, FewshotConfig], context: Context) -> dict[str, FittedHead]:
    """The heads of these configs on the samples of one draw."""
    found = {
        name: FittedHead(class_means(drawn, n_outputs, config.metric), True, "") for name, config in configs.items() if config.head == "ncm"
    }
    rest = {name: config.logistic() for name, config in configs.items() if config.head == "logistic"}
    quiet = Context(context.device)  # the progress of a job counts its draws
    return found | (fit_heads(drawn, n_outputs, rest, quiet) if rest else {})


def scored_draws(
    heads: Mapping[int, Mapping[str, FittedHead]],
    data: Prepared,
    settings: Settings,
    context: Context,
    rivals: list[str],
    report_all: bool,
) -> Outcome:
    """Runs of all draws; the chosen config is the best of ``rivals`` on the select samples by its mean over the draws."""
    in_val = data.score is not data.report
    select: dict[int, dict[str, Sheet]] = {}
    for seed, fitted in heads.items():
        select[seed] = _sheets(fitted, data.score, settings, context.device)
    primary = find_metric(settings.metrics[0])
    means = []
    for name in rivals:
        values = [select[seed][name].numbers().get(primary.name) for seed in heads]
        known = [value for value in values if value is not None]
        means.append(Candidate(name, float(np.mean(known)) if len(known) == len(values) else None, None, 0))
    chosen = choose(means, primary.higher_is_better).name
    runs, failed = [], []
    for seed, fitted in heads.items():
        scored = fitted if report_all else {chosen: fitted[chosen]}
        report: dict[str, Sheet] = select[seed] if not in_val else {}
        if in_val and data.report is not None:
            report = _sheets(scored, data.report, settings, context.device)
        outcomes: dict[str, ConfigOutcome] = {}
        for name, one in fitted.items():
            outcomes[name] = outcome(name, select[seed][name] if in_val else None, report.get(name))
            outcomes[name].head = one.head
            if not one.converged:
                failed.append(f"draw {seed}, {one.note}")
        best = max(
            rivals, key=lambda name: select[seed][name].numbers().get(primary.name, -np.inf) * (1 if primary.higher_is_better else -1)
        )
        runs.append(Run(seed, {name: outcomes[name] for name in settings.configs if name in outcomes}, best))
    selected_on = data.selected_on if len(rivals) > 1 else "none"
    return Outcome(runs, chosen, dict(data.index_lists), selected_on, failed, draws=True)


def _sheets(fitted: Mapping[str, FittedHead], split: Split, settings: Settings, device: torch.device) -> dict[str, Sheet]:
    heads: dict[str, Stack] = {name: one.head for name, one in fitted.items()}
    return score(heads, linear_scores(heads, device), split, settings.metrics, settings.test_batch_size)
