"""The probe ``lowshot``: logistic regression on a share of the fit samples, such as the 1 % and 10 % lists of ImageNet.

All configs of a job have one share (another share is another result: give it a label of its own); C is chosen on the select samples.
Without a list the share is drawn per class, several times as in few-shot (one draw per entry of ``seeds``); a list is one draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from virb.errors import UserError
from virb.probes.base import FIT, Context, Outcome, RoleData, Settings, register_probe
from virb.probes.fewshot import scored_draws, shuffled_classes, subset
from virb.probes.logistic import FittedHead, LogisticConfig, fit_heads
from virb.probes.prepare import prepare
from virb.probes.split import sample_width


class LowshotConfig(LogisticConfig):
    """``list`` is a text file with the name of one fit sample per line, with or without folders and suffix; it decides which samples."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    list: Annotated[str, Field(min_length=1)] | None = None

    def samples(self) -> tuple[float | None, str | None]:
        return (None if self.list else self.share), self.list


@register_probe
class LowshotProbe:
    name: ClassVar[str] = "lowshot"
    shape: ClassVar[Literal["features"]] = "features"
    Config: ClassVar[type[BaseModel]] = LowshotConfig

    @staticmethod
    def check_features(role: str, shape: tuple[int, ...] | None) -> None:
        sample_width(role, shape)

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, LowshotConfig)}
        if settings.refit:
            raise UserError("refit: true has no meaning for a share of the fit samples: the select samples are no part of it")
        if len({config.samples() for config in configs.values()}) > 1:
            raise UserError("the training configs differ in share or list; each share is a result of its own: give it a label of its own")
        data = prepare(roles, settings, context.device, loss="cross_entropy")
        first, targets = next(iter(configs.values())), data.fit.targets
        if targets is None:
            raise UserError("a share of the fit samples is drawn by their targets")
        seeds = settings.seeds[:1] if first.list else settings.seeds
        lists: dict[str, np.ndarray] = {}
        notes: list[str] = []
        heads: dict[int, dict[str, FittedHead]] = {}
        for number, seed in enumerate(seeds):
            if first.list:
                here = data.fit.parts[0][1].numpy()  # prepare() may have held samples out
                lists["list"], notes = listed(Path(first.list), roles[FIT].sample_ids[here])
                drawn = lists["list"]
            else:
                drawn = lists[f"draw{seed}"] = draw_share(targets.cpu().numpy(), first.share, seed)
            heads[seed] = fit_heads(subset(data.fit, drawn), data.n_outputs, configs, Context(context.device))
            context.progress("draws", number + 1, len(seeds))
        found = scored_draws(heads, data, settings, context, list(configs), report_all=False)
        counts = sorted({len(drawn) for drawn in lists.values()})
        found.notes = [*data.notes, f"{counts[-1]:,} of {len(data.fit):,} fit samples", *notes, *found.notes]
        found.index_lists |= {name: drawn.tolist() for name, drawn in lists.items()}
        return found


def draw_share(targets: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Ascending positions: of each class its share, rounded up (so at least one sample)."""
    return np.sort(np.concatenate([order[: math.ceil(share * len(order) - 1e-9)] for order in shuffled_classes(targets, seed)]))


def listed(path: Path, sample_ids: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Ascending positions of the samples that a list names. A note says how many of them are not there, which those held out for selection
    are not; a list of which more than a quarter is not there is another data set's."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list of samples {path}: {error}") from None
    wanted = [PurePosixPath(line.strip()).stem for line in lines if line.strip()]
    known = {PurePosixPath(str(name)).stem: position for position, name in enumerate(sample_ids)}
    if len(known) < len(sample_ids):
        raise UserError(f"the list {path} names samples by the names of their files, but these are not unique in the fit samples")
    missing = [name for name in wanted if name not in known]
    if not wanted:
        raise UserError(f"the list {path} is empty")
    if 4 * len(missing) > len(wanted):
        raise UserError(
            f"the list {path}: {len(missing):,} of its {len(wanted):,} samples, such as {missing[0]}, are not among the fit samples"
        )
    notes = [f"{len(missing):,} of the {len(wanted):,} samples of the list are not among the fit samples (or held out)"] if missing else []
    return np.array(sorted({known[name] for name in wanted if name in known}), dtype=np.int64), notes
