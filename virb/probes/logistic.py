"""The probe ``logistic``: L2-regularised logistic regression on frozen vectors, every C of the path in one batched L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from virb.config.check import Strict
from virb.errors import ViRBError
from virb.functional.softmax_regression import fit_softmax
from virb.metrics.base import find_metric
from virb.probes.base import Context, Outcome, RoleData, Run, Settings, register_probe
from virb.probes.heads import Stack, forward, stack_heads, take_head
from virb.probes.prepare import prepare
from virb.probes.sheets import Sheet, choose_by, deterministic, outcome, score
from virb.probes.split import Split, join, sample_width
from virb.probes.standard import moments

_MEMORY = 4 << 30  # bytes of the histories of all configs that are solved at once


class LogisticConfig(Strict):
    """``C`` multiplies the sum of the losses, as in scikit-learn; ``tolerance`` bounds the largest entry of the mean's gradient.

    ``standardise`` divides each feature by its standard deviation before the penalty looks at it (the mean makes no difference).
    """

    C: Annotated[float, Field(gt=0)] = 1.0
    max_iter: Annotated[int, Field(ge=1)] = 1000
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    standardise: bool = False
    precision: Literal["float32", "float64"] = "float32"

    def solver(self) -> tuple[int, float, bool, str]:
        """Configs that agree in this are solved together."""
        return self.max_iter, self.tolerance, self.standardise, self.precision


@dataclass(frozen=True)
class FittedHead:
    head: Stack
    converged: bool
    note: str


@register_probe
class LogisticProbe:
    name: ClassVar[str] = "logistic"
    shape: ClassVar[Literal["features"]] = "features"
    Config: ClassVar[type[BaseModel]] = LogisticConfig
    by_epochs: ClassVar[bool] = False
    targets: ClassVar[str] = "class"

    @staticmethod
    def check_features(role: str, shape: tuple[int, ...] | None) -> None:
        sample_width(role, shape)

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        data = prepare(roles, settings, context.device, loss="cross_entropy")
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, LogisticConfig)}
        heads = fit_heads(data.fit, data.n_outputs, configs, context)
        scores_of = linear_scores({name: fitted.head for name, fitted in heads.items()}, context.device)

        def measured(split: Split) -> dict[str, Sheet]:
            return score(configs, scores_of, split, settings.metrics, settings.test_batch_size, with_loss=True)

        on_fit, on_score = measured(data.fit), measured(data.score)
        primary = find_metric(settings.metrics[0])
        chosen = choose_by(on_score, configs, primary.name, primary.higher_is_better)
        in_val = data.score is not data.report
        if settings.refit:
            everything = join(data.fit, data.score)
            again = fit_heads(everything, data.n_outputs, {chosen: configs[chosen]}, context)[chosen]
            note = f"{heads[chosen].note}; trained again on fit + select ({len(everything):,} samples): {again.note.partition(': ')[2]}"
            heads[chosen] = FittedHead(again.head, heads[chosen].converged and again.converged, note)
        reported = {} if in_val else on_score
        if in_val and data.report is not None:
            one = linear_scores({chosen: heads[chosen].head}, context.device)
            reported = score([chosen], one, data.report, settings.metrics, settings.test_batch_size, with_loss=True)
        outcomes = {name: outcome(name, on_score[name] if in_val else None, reported.get(name)) for name in configs}
        for name, found in outcomes.items():
            found.train_loss, found.train_metrics = on_fit[name].loss, on_fit[name].numbers()
            found.head, found.notes = heads[name].head, [heads[name].note]
        notes = [*data.notes, *convergence(heads), *deterministic(settings.seeds)]
        return Outcome([Run(settings.seeds[0], outcomes, chosen)], chosen, data.index_lists, data.selected_on, notes)


def convergence(heads: Mapping[str, FittedHead]) -> list[str]:
    """Says when not all configs converged, before the notes of each."""
    failed = [name for name, fitted in heads.items() if not fitted.converged]
    return [f"{len(failed)} of {len(heads)} configs did not converge ({', '.join(failed)}); raise max_iter or tolerance"] if failed else []


def linear_scores(heads: Mapping[str, Stack], device: torch.device) -> Callable[[Tensor], dict[str, Tensor]]:
    """Scores of several linear heads with one product per batch."""
    stack = {key: tensor.to(device) for key, tensor in stack_heads(list(heads.values())).items()}

    def scores_of(x: Tensor) -> dict[str, Tensor]:
        logits, _ = forward(stack, x)
        return {name: logits[:, row] for row, name in enumerate(heads)}

    return scores_of


def fit_heads(fit: Split, n_outputs: int, configs: Mapping[str, LogisticConfig], context: Context) -> dict[str, FittedHead]:
    """A linear head of every config. A class without a sample has no weights and a bias of minus infinity: its probability is zero."""
    if fit.targets is None:
        raise ViRBError(f"the {fit.name} samples have no targets")
    fit.set_epoch(0)
    classes, targets = torch.unique(fit.targets, return_inverse=True)
    if len(classes) < 2:
        raise ViRBError(f"all {len(fit):,} {fit.name} samples are of one class; a head needs at least two")
    mean, spread = moments(fit)
    found: dict[str, FittedHead] = {}
    for names in _batches(configs, len(classes) * (len(mean) + 1)):
        config = configs[names[0]]
        dtype = torch.float64 if config.precision == "float64" else torch.float32
        divisor = torch.where(spread > 0, spread, 1.0) if config.standardise else torch.ones_like(spread)

        def read(positions: Tensor, divisor: Tensor = divisor, dtype: torch.dtype = dtype) -> Tensor:
            return fit.features(positions).to(dtype) / divisor.to(dtype)

        def tell(done: int, left: int, limit: int = config.max_iter) -> None:
            context.progress("L-BFGS", min(done, limit), limit)

        fitted = fit_softmax(
            read if config.standardise else fit.features,
            targets,
            len(classes),
            [configs[name].C for name in names],
            tolerance=config.tolerance,
            max_iter=config.max_iter,
            dtype=dtype,
            shift=mean / divisor,
            spread=spread / divisor,
            on_evaluation=tell,
        )
        weight = torch.zeros(len(names), n_outputs, len(mean), device=fit.targets.device)
        bias = torch.full((len(names), n_outputs), -torch.inf, device=fit.targets.device)
        weight[:, classes] = (fitted.weight / divisor.to(dtype)).float()
        bias[:, classes] = fitted.bias.float()
        stack = {"head.weight": weight, "head.bias": bias}
        minima = fitted.minima
        facts = zip(minima.converged.tolist(), minima.iterations.tolist(), minima.gradient.tolist(), strict=True)
        for row, (name, (converged, steps, gradient)) in enumerate(zip(names, facts, strict=True)):
            state = "converged" if converged else "not converged"
            note = f"{name}: {state} after {steps} iterations, largest gradient {gradient:.1e}"
            found[name] = FittedHead(take_head(stack, row), converged, note)
    return {name: found[name] for name in configs}


def _batches(configs: Mapping[str, LogisticConfig], n_params: int) -> Iterable[list[str]]:
    """Configs that are solved together, as many as memory holds the histories of."""
    groups: dict[tuple[int, float, bool, str], list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(config.solver(), []).append(name)
    for (_, _, _, precision), names in groups.items():
        most = max(1, _MEMORY // (28 * n_params * (8 if precision == "float64" else 4)))  # ten pairs of differences and some
        yield from (names[first : first + most] for first in range(0, len(names), most))
