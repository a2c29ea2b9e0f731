"""The probe ``logistic``: L2-regularised logistic regression on frozen vectors, every C of the path in one batched L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from virb.config.check import Strict
from virb.errors import ViRBError
from virb.functional.softmax_regression import fit_softmax
from virb.metrics.base import find_metric
from virb.probes.base import FIT, Context, Outcome, RoleData, Run, Settings, register_probe
from virb.probes.heads import Stack, forward, stack_heads, take_head
from virb.probes.pieces import WHOLE, Pieces, Sizes, Stage
from virb.probes.prepare import prepare
from virb.probes.sheets import Sheet, choose_by, deterministic, outcome, score
from virb.probes.split import Split, join, sample_width
from virb.probes.standard import moments

_MEMORY = 4 << 30  # bytes of the histories of all configs that are solved at once
_LEAST_WEIGHTS = 1 << 18  # of configs that are solved together, under which products lose speed
_LEAST_WORK = {"cpu": 1 << 30, "cuda": 1 << 37}  # multiplications of one evaluation under which a batch of its own costs more than it saves
_EVALUATIONS = 150  # of one config, for estimates


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

    @staticmethod
    def stages(configs: Mapping[str, BaseModel], sizes: Sizes) -> tuple[Stage, ...]:
        """Each batch of configs is solved by itself."""
        own = {name: config for name, config in configs.items() if isinstance(config, LogisticConfig)}
        n, n_params = sizes.n_samples.get(FIT, 0), sizes.n_outputs * (sizes.width + 1)
        batches = batches_of(own, n, n_params, sizes.device_kind)
        return (Stage("fit", 4.0 * n * n_params * len(own) * _EVALUATIONS, len(batches)),)

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        data = prepare(roles, settings, context.device, loss="cross_entropy")
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, LogisticConfig)}
        heads = fit_heads(data.fit, data.n_outputs, configs, context, context.pieces)
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


def fit_heads(
    fit: Split, n_outputs: int, configs: Mapping[str, LogisticConfig], context: Context, pieces: Pieces = WHOLE
) -> dict[str, FittedHead]:
    """A linear head of every config. A class without a sample has no weights and a bias of minus infinity: its probability is zero."""
    if fit.targets is None:
        raise ViRBError(f"the {fit.name} samples have no targets")
    fit.set_epoch(0)
    fit = fit.held()  # each of some hundred evaluations reads all of it
    classes, targets = torch.unique(fit.targets, return_inverse=True)
    if len(classes) < 2:
        raise ViRBError(f"all {len(fit):,} {fit.name} samples are of one class; a head needs at least two")
    mean, spread = moments(fit)
    batches = batches_of(configs, len(fit), len(classes) * (len(mean) + 1), context.device.type)

    def solve(numbers: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
        return (_solve(fit, classes, targets, n_outputs, (mean, spread), configs, batches[number], context) for number in numbers)

    made = pieces.of("fit", [(names, len(fit)) for names in batches], solve)
    found = {name: FittedHead(**state) for names, of in zip(batches, made, strict=True) for name, state in zip(names, of, strict=True)}
    return {name: found[name] for name in configs}


def _solve(
    fit: Split,
    classes: Tensor,
    targets: Tensor,
    n_outputs: int,
    scale: tuple[Tensor, Tensor],
    configs: Mapping[str, LogisticConfig],
    names: Sequence[str],
    context: Context,
) -> list[dict[str, Any]]:
    """Configs of one batch; of each what ``FittedHead`` holds. ``targets`` count among the ``classes`` that have samples; ``scale``: mean
    and standard deviation of each feature."""
    mean, spread = scale
    config = configs[names[0]]
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    divisor = torch.where(spread > 0, spread, 1.0) if config.standardise else torch.ones_like(spread)

    def read(chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        with closing(fit.pieces(chunks)) as pieces:
            for positions, x in pieces:
                yield positions, x.to(dtype).div_(divisor.to(dtype)) if config.standardise else x

    def tell(done: int, left: int) -> None:
        context.progress("L-BFGS", min(done, config.max_iter), config.max_iter)

    fitted = fit_softmax(
        read,
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
    weight = torch.zeros(len(names), n_outputs, len(mean), device=targets.device)
    bias = torch.full((len(names), n_outputs), -torch.inf, device=weight.device)
    weight[:, classes] = (fitted.weight / divisor.to(dtype)).float()
    bias[:, classes] = fitted.bias.float()
    stack = {"head.weight": weight, "head.bias": bias}
    minima = fitted.minima
    facts = zip(minima.converged.tolist(), minima.iterations.tolist(), minima.gradient.tolist(), strict=True)
    found = []
    for row, (name, (converged, steps, gradient)) in enumerate(zip(names, facts, strict=True)):
        state = "converged" if converged else "not converged"
        note = f"{name}: {state} after {steps} iterations, largest gradient {gradient:.1e}"
        found.append({"head": take_head(stack, row), "converged": converged, "note": note})
    return found


def batches_of(configs: Mapping[str, LogisticConfig], n: int, n_params: int, device_kind: str) -> list[tuple[str, ...]]:
    """Configs that are solved together, by sizes alone: no more than memory holds the histories of, and no more than it takes to keep
    products fast, for batches can go to several devices. ``n``: samples; ``n_params``: of one head."""
    groups: dict[tuple[int, float, bool, str], list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(config.solver(), []).append(name)
    batches: list[tuple[str, ...]] = []
    for (_, _, _, precision), names in groups.items():
        most = max(1, _MEMORY // (28 * n_params * (8 if precision == "float64" else 4)))  # ten pairs of differences and some
        whole = len(names) * n_params
        wanted = min(whole // _LEAST_WEIGHTS, n * whole // _LEAST_WORK[device_kind])
        count = max(-(-len(names) // most), min(len(names), wanted), 1)
        batches += [tuple(names[place] for place in part) for part in np.array_split(np.arange(len(names)), count)]
    return batches
