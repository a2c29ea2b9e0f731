"""The probe ``lowshot``: logistic regression on a share of the fit samples, such as the 1 % and 10 % lists of ImageNet.

All configs of a job have one share (another share is another result: give it a label of its own); C is chosen on the select samples.
Without a list the share is drawn per class, several times as in few-shot (one draw per entry of ``seeds``); a list is one draw, read while
the run is planned. The lists that are published for a share of a dataset are taken where they lie in its folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from virb.data.datasets.imagenet import LOW_SHOT_LISTS
from virb.errors import UserError
from virb.probes.base import FIT, Context, Listed, Outcome, RoleData, Settings, register_probe
from virb.probes.fewshot import scored_draws, shuffled_classes, subset
from virb.probes.logistic import FittedHead, LogisticConfig, fit_heads
from virb.probes.prepare import prepare
from virb.probes.split import sample_width

LISTS = {"imagenet": LOW_SHOT_LISTS}  # dataset -> file -> (share, how many samples it names)
_SHARE = 0.01


class LowshotConfig(LogisticConfig):
    """``list`` is a text file with the name of one fit sample per line, with or without folders and suffix; else ``share`` of each class is
    drawn (default: 1 %)."""

    list: Annotated[str, Field(min_length=1)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    @field_validator("share")
    @classmethod
    def _one_of_two(cls, value: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("list") is None:
            return _SHARE if value is None else value
        if value is not None:
            raise ValueError("the list says which samples these are; leave out one of share and list")
        return None

    def samples(self) -> tuple[float | None, str | None]:
        return self.share, self.list


@register_probe
class LowshotProbe:
    name: ClassVar[str] = "lowshot"
    shape: ClassVar[Literal["features"]] = "features"
    Config: ClassVar[type[BaseModel]] = LowshotConfig
    by_epochs: ClassVar[bool] = False
    targets: ClassVar[str] = "class"

    @staticmethod
    def check_features(role: str, shape: tuple[int, ...] | None) -> None:
        sample_width(role, shape)

    @staticmethod
    def check_configs(configs: Mapping[str, BaseModel], shape: tuple[int, ...] | None) -> None:
        if len({config.samples() for config in configs.values() if isinstance(config, LowshotConfig)}) > 1:
            raise UserError("the training configs differ in share or list; each share is a result of its own: give it a label of its own")

    @staticmethod
    def listed(
        configs: Mapping[str, BaseModel], sample_ids: np.ndarray, dataset: str, folder: Path | None, places: Sequence[Path]
    ) -> Listed | None:
        """The samples of the configs' list, None where there is none."""
        first = next(config for config in configs.values() if isinstance(config, LowshotConfig))
        path = find_list(first, dataset, folder, places)
        return None if path is None else read_list(path, sample_ids)

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, LowshotConfig)}
        if settings.refit:
            raise UserError("refit: true has no meaning for a share of the fit samples: the select samples are no part of it")
        self.check_configs(configs, None)
        first = next(iter(configs.values()))
        chosen = roles[FIT].listed
        if chosen is None and first.list:  # nobody has read it before
            chosen = read_list(Path(first.list), roles[FIT].sample_ids)
            roles = {**roles, FIT: replace(roles[FIT], listed=chosen)}
        data = prepare(roles, settings, context.device, loss="cross_entropy")
        targets, index = data.fit.targets, data.fit.parts[0][1].numpy()  # prepare() may have held samples out
        if targets is None:
            raise UserError("a share of the fit samples is drawn by their targets")
        seeds = settings.seeds if chosen is None else settings.seeds[:1]
        lists: dict[str, np.ndarray] = {}
        notes: list[str] = []
        heads: dict[int, dict[str, FittedHead]] = {}
        for number, seed in enumerate(seeds):
            if chosen is not None:
                drawn = lists["list"] = np.searchsorted(index, np.array(chosen.positions, dtype=np.int64))
                notes = _of_list(chosen)
            else:
                drawn = lists[f"draw{seed}"] = draw_share(targets.cpu().numpy(), first.share or _SHARE, seed)
            heads[seed] = fit_heads(subset(data.fit, drawn), data.n_outputs, configs, Context(context.device))
            context.progress("draws", number + 1, len(seeds))
        found = scored_draws(heads, data, settings, context, list(configs), report_all=False)
        counts = sorted({len(drawn) for drawn in lists.values()})
        found.notes = [*data.notes, f"{counts[-1]:,} of {len(data.fit):,} fit samples", *notes, *found.notes]
        found.index_lists |= {name: index[drawn].tolist() for name, drawn in lists.items()}
        return found


def _of_list(listed: Listed) -> list[str]:
    missing = f"; {listed.missing:,} of its names stand for no fit sample" if listed.missing else ""
    return [f"the samples are those of the list {listed.file}{missing}"]


def draw_share(targets: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Ascending positions: of each class its share, rounded up (so at least one sample)."""
    return np.sort(np.concatenate([order[: math.ceil(share * len(order) - 1e-9)] for order in shuffled_classes(targets, seed)]))


def find_list(config: LowshotConfig, dataset: str, folder: Path | None, places: Sequence[Path]) -> Path | None:
    """The list of a config; where it names none, that of its share which is published for the dataset, if it lies in the data's folder."""
    if config.list is not None:
        given = Path(config.list).expanduser()
        tried = [given] if given.is_absolute() else [place / given for place in (*([folder] if folder else []), *places, Path())]
        found = next((path for path in tried if path.is_file()), None)
        if found is None:
            raise UserError(f"there is no list of samples {' nor '.join(dict.fromkeys(map(str, tried)))}")
        return found
    file = next((file for file, (share, _) in LISTS.get(dataset, {}).items() if share == config.share), None)
    return folder / file if file is not None and folder is not None and (folder / file).is_file() else None


def read_list(path: Path, sample_ids: np.ndarray) -> Listed:
    """The samples that a list names. One of which more than a quarter is not there is another data set's."""
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
    return Listed(path.name, tuple(sorted({known[name] for name in wanted if name in known})), len(missing))
