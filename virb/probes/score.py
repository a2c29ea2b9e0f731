"""Scores heads that were trained before: an eval-only task has features and labels, and nothing to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from virb.errors import ViRBError
from virb.metrics.base import find_metric
from virb.probes.base import REPORT, ConfigOutcome, Context, Outcome, Predictions, RoleData, Run, Settings
from virb.probes.heads import Stack, apply_head, head_shape
from virb.probes.losses import find_loss
from virb.probes.selection import Candidate, choose
from virb.probes.split import Split, check_finite, make_split, sample_width

UNDECIDED = "no record says which of these heads was chosen: the best on the reported samples is named"


@dataclass(frozen=True)
class GivenHead:
    """``columns``: which of the head's outputs are this task's classes, in this task's order; None: all, as they are."""

    name: str
    head: Stack
    columns: Sequence[int] | None = None
    chosen: bool = False  # by whoever trained it


def score_heads(data: RoleData, heads: Sequence[GivenHead], settings: Settings, context: Context) -> Outcome:
    """All heads on the reported samples. The chosen one is the one that was chosen in training; where that is not known, and there are
    several, the best (``selection`` of the result is then test-last)."""
    split = make_split(REPORT, data, _targets(data, settings), context.device)
    width = sample_width(REPORT, data.features.shape)
    for given in heads:
        shape = head_shape(given.head)
        if shape.in_features != width:
            raise ViRBError(f"the head {given.name} takes {shape.in_features} numbers per sample, but the features have {width}")
    check_finite(split)
    outcomes = {}
    for number, given in enumerate(heads):
        outcomes[given.name] = ConfigOutcome(given.name, report=_predict(given, split, settings))
        context.progress("scoring", number + 1, len(heads))
    decided = [given.name for given in heads if given.chosen] if len(heads) > 1 else [heads[0].name]
    if len(decided) == 1:
        return Outcome([Run(settings.seeds[0], outcomes, decided[0])], decided[0], selected_on="val")
    best = _best(outcomes, data.targets, settings)
    return Outcome([Run(settings.seeds[0], outcomes, best)], best, selected_on="test-last", notes=[UNDECIDED])


def _targets(data: RoleData, settings: Settings) -> Tensor | None:
    """Class numbers as a tensor, for the loss; None for targets of any other kind (several labels, a corruption beside the class)."""
    targets = data.targets
    if not (isinstance(targets, np.ndarray) and targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)):
        return None
    return find_loss("cross_entropy").check(targets, settings.n_classes or int(targets.max()) + 1, REPORT)


def _predict(given: GivenHead, split: Split, settings: Settings) -> Predictions:
    columns = None if given.columns is None else torch.tensor(list(given.columns))
    found: list[Tensor] = []
    losses: list[Tensor] = []
    for positions, features in split.batches(split.chunks(settings.test_batch_size)):
        outputs = apply_head(given.head, features)
        if columns is not None:
            outputs = outputs[:, columns.to(outputs.device)]
        found.append(outputs.cpu())
        if split.targets is not None:
            here = split.targets[positions.to(split.targets.device)]
            losses.append(find_loss("cross_entropy").values(outputs[:, None], here)[:, 0].double().cpu())
    return Predictions(torch.cat(found).numpy(), float(torch.cat(losses).mean()) if losses else None)


def _best(outcomes: Mapping[str, ConfigOutcome], targets: object, settings: Settings) -> str:
    metric = find_metric(settings.metrics[0])
    candidates = []
    for name, outcome in outcomes.items():
        if outcome.report is not None:
            candidates.append(Candidate(name, metric.score(outcome.report.values, targets), outcome.report.loss, 0))
    return choose(candidates, metric.higher_is_better).name
