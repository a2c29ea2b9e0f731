"""The probe ``ncm``: nearest class mean. It is a linear head that is computed instead of trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor
from torch.nn.functional import one_hot

from virb.config.check import Strict
from virb.errors import ViRBError
from virb.functional.knn import normalise
from virb.metrics.base import find_metric
from virb.probes.base import Context, Outcome, RoleData, Run, Settings, register_probe
from virb.probes.heads import Stack
from virb.probes.logistic import linear_scores
from virb.probes.prepare import prepare
from virb.probes.sheets import choose_by, deterministic, outcome, score
from virb.probes.split import Split, join, sample_width

Distance = Literal["cosine", "euclidean"]
_READ = 8192


class NcmConfig(Strict):
    """``cosine``: means of features of length 1, compared by angle. ``euclidean``: means of the features as they are."""

    metric: Distance = "cosine"


@register_probe
class NcmProbe:
    name: ClassVar[str] = "ncm"
    shape: ClassVar[Literal["features"]] = "features"
    Config: ClassVar[type[BaseModel]] = NcmConfig
    by_epochs: ClassVar[bool] = False
    targets: ClassVar[str] = "class"

    @staticmethod
    def check_features(role: str, shape: tuple[int, ...] | None) -> None:
        sample_width(role, shape)

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        data = prepare(roles, settings, context.device, loss="cross_entropy")
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, NcmConfig)}
        heads = {name: class_means(data.fit, data.n_outputs, config.metric) for name, config in configs.items()}
        on_score = score(configs, linear_scores(heads, context.device), data.score, settings.metrics, settings.test_batch_size)
        context.progress("class means", 1, 2)
        primary = find_metric(settings.metrics[0])
        chosen = choose_by(on_score, configs, primary.name, primary.higher_is_better)
        in_val = data.score is not data.report
        reported = {} if in_val else on_score
        if settings.refit:
            heads[chosen] = class_means(join(data.fit, data.score), data.n_outputs, configs[chosen].metric)
        if in_val and data.report is not None:
            one = linear_scores({chosen: heads[chosen]}, context.device)
            reported = score([chosen], one, data.report, settings.metrics, settings.test_batch_size)
        context.progress("class means", 2, 2)
        outcomes = {name: outcome(name, on_score[name] if in_val else None, reported.get(name)) for name in configs}
        for name, found in outcomes.items():
            found.head = heads[name]
        if settings.refit:
            outcomes[chosen].notes.append("the means are those of fit + select")
        notes = [*data.notes, *deterministic(settings.seeds)]
        return Outcome([Run(settings.seeds[0], outcomes, chosen)], chosen, data.index_lists, data.selected_on, notes)


def _by_product(sums: Tensor, targets: Tensor, x: Tensor) -> Tensor:
    """Each row of ``x`` added to the row of ``sums`` that its target names. ``index_add_`` on a GPU adds in an order that differs from time
    to time; a product has one order."""
    return sums.addmm_(one_hot(targets, len(sums)).to(x.dtype).t(), x)


def class_means(fit: Split, n_outputs: int, metric: Distance) -> Stack:
    """The linear head whose arg max is the nearest class mean: for the Euclidean distance 2 (x - m) . (mu - m) - |mu - m|^2, m being the
    mean of all means; for the cosine x . mu / |mu| (the length of x changes no order). A class without a sample is never the nearest."""
    if fit.targets is None:
        raise ViRBError(f"the {fit.name} samples have no targets")
    fit.set_epoch(0)
    sums: Tensor | None = None
    count = torch.zeros(n_outputs, dtype=torch.float64, device=fit.targets.device)
    for positions, x in fit.batches(fit.chunks(_READ)):
        x = (normalise(x.clone()) if metric == "cosine" else x).double()
        targets = fit.targets[positions.to(fit.targets.device)]
        sums = x.new_zeros(n_outputs, x.shape[1]) if sums is None else sums
        sums = sums.index_add_(0, targets, x) if sums.device.type == "cpu" else _by_product(sums, targets, x)
        count.index_add_(0, targets, torch.ones_like(targets, dtype=torch.float64))
    if sums is None:
        raise ViRBError(f"there are no {fit.name} samples")
    present = count > 0
    means = sums / count.clamp_min(1.0)[:, None]
    bias = torch.zeros_like(count)
    if metric == "cosine":
        weight = normalise(means)
    else:
        centre = means[present].mean(0)
        weight = 2 * (means - centre)
        bias = -(means - centre).square().sum(1) - weight @ centre
    bias[~present] = -torch.inf
    weight[~present] = 0.0
    return {"head.weight": weight.float().cpu(), "head.bias": bias.float().cpu()}
