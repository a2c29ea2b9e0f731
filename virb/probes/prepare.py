"""From the roles of a task to what a probe on vectors works with: what is fitted on, chosen on and reported, all checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from virb.errors import UserError, ViRBError
from virb.probes.base import FIT, REPORT, SELECT, RoleData, Settings
from virb.probes.losses import Loss, count_outputs, find_loss
from virb.probes.selection import hold_out
from virb.probes.split import Split, check_finite, make_split, sample_width


@dataclass(frozen=True)
class Prepared:
    """What is fitted on, what epochs and configs are chosen on (the report samples under test-*), and what is reported."""

    fit: Split
    score: Split
    report: Split | None
    width: int
    n_outputs: int
    index_lists: dict[str, list[int]]
    selected_on: str
    notes: list[str]


def prepare(roles: Mapping[str, RoleData], settings: Settings, device: torch.device, loss: str | None = None) -> Prepared:
    """``loss`` (default: the task's) says what targets are and how many outputs a head has for them."""
    if FIT not in roles:
        raise ViRBError("this probe needs samples to fit on, but the task has none")
    if settings.refit and settings.selection != "val":
        raise UserError(f"refit: true trains again on fit + select, but selection: {settings.selection} has no select samples")
    if settings.selection != "val" and REPORT not in roles:
        raise ViRBError(f"selection: {settings.selection} chooses on the report samples, but the task has none")
    kind = find_loss(loss or settings.loss)
    if roles[FIT].targets is None:
        raise ViRBError("the fit samples have no targets")
    n_outputs = count_outputs(kind, roles[FIT].targets, settings.n_classes)
    used = [FIT, *([SELECT] if settings.selection == "val" and SELECT in roles else []), *([REPORT] if REPORT in roles else [])]
    widths: dict[str, int] = {}
    targets: dict[str, Tensor | None] = {}
    for role in used:
        if not len(roles[role]):
            raise ViRBError(f"there are no {role} samples")
        widths[role] = sample_width(role, roles[role].features.shape)
        targets[role] = None if roles[role].targets is None else kind.check(roles[role].targets, n_outputs, role)
    if len(set(widths.values())) > 1:
        raise ViRBError("features differ in size between roles: " + ", ".join(f"{role} {width}" for role, width in widths.items()))
    fit_targets = targets[FIT]
    if fit_targets is None:
        raise ViRBError("the fit samples have no targets")
    notes = _look_at(kind, fit_targets, n_outputs)

    index_lists: dict[str, list[int]] = {}
    chosen: np.ndarray | None = None
    report = make_split(REPORT, roles[REPORT], targets[REPORT], device) if REPORT in roles else None
    selected_on: str = settings.selection
    if settings.selection != "val" and report is not None:
        score = report
    elif SELECT in roles:
        score = make_split(SELECT, roles[SELECT], targets[SELECT], device)
    else:
        listed = roles[FIT].listed
        keep = listed.positions if listed is not None else ()
        chosen, held = hold_out(fit_targets.numpy() if kind.targets == "class" else None, roles[FIT].units, keep=keep)
        index_lists["select"] = held.tolist()
        score, selected_on = make_split(SELECT, roles[FIT], fit_targets, device, held), "hold-out"
    fit = make_split(FIT, roles[FIT], fit_targets, device, chosen)
    if score.targets is None:
        raise ViRBError(f"the {score.name} samples have no targets to choose by")
    for split in {s.name: s for s in (fit, score, report) if s is not None}.values():
        check_finite(split)
    return Prepared(fit, score, report, widths[FIT], n_outputs, index_lists, selected_on, notes)


def _look_at(loss: Loss, targets: Tensor, n_outputs: int) -> list[str]:
    """Refuses fit targets that nothing can be learned from; what is odd about them is a note."""
    if loss.targets == "number":
        if len(targets) > 1 and bool((targets == targets[0]).all()):
            raise ViRBError(f"all {len(targets):,} fit samples have the same target; there is nothing to learn")
        return []
    if loss.targets == "labels":
        absent = int((~(targets > 0).any(0)).sum())
        if absent == n_outputs:
            raise ViRBError(f"none of the {len(targets):,} fit samples has any of the {n_outputs} labels")
        return [f"{absent} of {n_outputs} labels have no positive fit sample"] if absent else []
    classes = torch.unique(targets)
    if len(classes) < 2:
        raise ViRBError(f"all {len(targets):,} fit samples are of class {int(classes[0])}; a head needs at least two classes")
    absent = n_outputs - len(classes)
    return [f"{absent} of {n_outputs} classes have no fit sample"] if absent else []
