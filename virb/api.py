"""ViRB from Python: load an encoder, encode images, run tasks, read results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from virb.config import (
    EncoderConfig,
    TaskConfig,
    UniqueNames,
    Where,
    encoder_configs_from_mapping,
    load_experiment_list,
    load_task_configs,
    task_config_from_mapping,
)
from virb.data.datasets import load_dataset
from virb.data.images import ArrayImages, Dataset, ImageList
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.encoders.load import encoder_names, load_encoder
from virb.errors import ConfigError, Problem, UserError, did_you_mean
from virb.features.encoding import Numerics, PassOptions
from virb.features.encoding import encode as encode_pixels
from virb.features.layout import place
from virb.plan.budget import refuse_what_lacks
from virb.plan.build import draft_plan
from virb.plan.jobs import InMemory, RunSettings
from virb.results.load import load_results
from virb.results.tables import text_table
from virb.runner.devices import parse_devices, resolve_precision
from virb.runner.run import claim_if_writable, execute, nothing_to_do, planned
from virb.runner.settings import make_settings
from virb.runner.worker import ENCODE_BATCH
from virb.tasks.vocabulary import TaskVocabulary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results", "dataset", "encode", "load_encoder", "load_results", "run"]


@dataclass(frozen=True)
class Results:
    """What a run left in ``out``. ``failed`` has a reason per job (``encoder/label``); ``skipped`` were done before."""

    out: Path
    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]

    def table(self, all_configs: bool = False) -> pd.DataFrame:
        """One tidy row per encoder and task of this run (``all_configs``: and training config), with values and intervals."""
        frame = load_results(self.out, all_configs=all_configs)
        ids = frame["encoder"] + "/" + frame["label"]
        return frame[ids.isin([*self.done, *self.skipped])].reset_index(drop=True)

    def __str__(self) -> str:
        return "\n".join([*text_table(self.table()), *(f"{name} failed: {reason.splitlines()[0]}" for name, reason in self.failed.items())])


def dataset(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """A dataset by name (``virb list datasets``), or ``module:function``. ``dataset("digits").images("test")`` is an image list."""
    return load_dataset(name, root, **options)


def encode(
    encoder: Encoder | str | Mapping[str, Any] | torch.nn.Module,
    images: ImageList | np.ndarray,
    want: Sequence[str] = ("embedding",),
    *,
    size: int | tuple[int, int] | None = None,
    device: str = "cpu",
    precision: str = "auto",
    batch_size: int | None = None,
) -> dict[str, torch.Tensor]:
    """Outputs of every image, in order: request -> float32 CPU tensor (N, ...).

    ``images``: an image list, or uint8 N x H x W x 3 (or N x H x W, grey). ``size``: pixels (or height, width) in place of the encoder's
    own input size. Nothing is cached on disk.
    """
    network = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    if isinstance(images, np.ndarray):
        images = _as_list(images)
    if not len(images):
        raise UserError("there are no images to encode")
    spec = network.spec.input
    shape = (size, size) if isinstance(size, int) else size or spec.size
    geometry = Geometry(shape, spec.resize, spec.crop, spec.crop_pct, spec.interpolation, None)
    on = torch.device(parse_devices(device)[0])
    numerics = Numerics(resolve_precision(precision, on.type), on.type)
    options = PassOptions(numerics, batch_size or ENCODE_BATCH[on.type], 0)
    network = place(network, on)
    want = [want] if isinstance(want, str) else list(want)
    requests = [str(network.spec.check(text)) for text in want]
    found: dict[str, list[torch.Tensor]] = {request: [] for request in requests}
    unique = list(found)
    for batch in load_batches(images, np.arange(len(images)), (geometry,), options.batch_size, 0, on_bad_image="error"):
        for request, values in encode_pixels(network, batch.pixels[geometry], unique, on, options).items():
            found[request] += values
    return {text: torch.stack(found[request]).clone() for text, request in zip(want, requests, strict=True)}


def _as_list(images: np.ndarray) -> ArrayImages:
    try:
        return ArrayImages("images", images, [f"{i:08d}" for i in range(len(images))])
    except (TypeError, ValueError) as error:
        raise UserError(f"images: {error}") from error


OPTIONS = frozenset(
    "seed protocol input_size compile decoder force no_cache cache_dir local_cache cache_budget data_root num_workers keep_heads".split()
)


def run(
    experiments: Mapping[str, Any] | str | PathLike[str],
    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]] | str | PathLike[str],
    out: str | PathLike[str] = "out",
    *,
    devices: str = "auto",
    precision: str = "auto",
    progress: bool = True,
    **options: Any,
) -> Results:
    """Runs encoders on tasks and adds the results to ``out``; what is done already is not done again.

    ``experiments``: names to encoders (anything ``load_encoder`` takes, networks included; a glob is one encoder per file), or an
    experiment-list file.
    ``tasks``: task ids, a mapping of labels to the keys of a task config, or a task-config file. ``options`` are those of the command
    line (``seed``, ``protocol``, ``input_size``, ``compile``, ``decoder``, ``force``, ``no_cache``, ``cache_dir``, ``local_cache``,
    ``cache_budget``, ``data_root``, ``num_workers``, ``keep_heads``). Every mistake in what is given is in one ConfigError, and
    nothing is run. Networks from memory run in this process on CPUs; on several GPUs their class must be importable.
    """
    from rich.console import Console

    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        hint = did_you_mean(unknown[0], OPTIONS) or f"; there are {', '.join(sorted(OPTIONS))}"
        raise UserError(f"virb.run has no option {unknown[0]!r}{hint}")
    problems: list[Problem] = []
    given = {**options, "out": out, "devices": devices, "precision": precision, "command": ("virb.run",)}
    settings = make_settings(given, problems, place="<python>")
    words = TaskVocabulary(encoder_names())
    texts: dict[str, str] = {}
    encoders = _encoders(experiments, words, problems, texts)
    configs = _tasks(tasks, words, settings, problems, texts)
    if settings.device_kind == "cpu" and any(isinstance(config, InMemory) for config in encoders):
        settings = replace(settings, devices=settings.devices[:1])  # numbers do not depend on it
    draft = draft_plan(settings, encoders, configs, problems, texts=texts)
    refuse_what_lacks(draft)
    with claim_if_writable(settings.out) as lease, planned(draft) as (plan, use):
        if not plan.to_do:
            nothing_to_do(plan)
            return Results(settings.out, (), tuple(job.id for job in plan.done), {})
        summary = execute(plan, Console(quiet=not progress, highlight=False), texts, lease, use)
    return Results(settings.out, tuple(j.id for j in summary.done), tuple(j.id for j in summary.skipped), dict(summary.failed))


def _encoders(experiments: Any, words: TaskVocabulary, problems: list[Problem], texts: dict[str, str]) -> list[EncoderConfig | InMemory]:
    if isinstance(experiments, str | PathLike):
        loaded = load_experiment_list(Path(experiments), words)
        problems += loaded.problems
        texts.update(loaded.texts)
        return list(loaded.items)
    if not isinstance(experiments, Mapping):
        raise UserError(f"experiments: expected a mapping of names to encoders, or a file, but got {type(experiments).__name__}")
    encoders: list[EncoderConfig | InMemory] = []
    names = UniqueNames()
    for name, what in experiments.items():
        if isinstance(what, torch.nn.Module):
            encoders.append(InMemory(str(name), what, Where("<python>", 0, str(name))))
            continue
        try:
            encoders += encoder_configs_from_mapping(str(name), what, words, names=names)
        except ConfigError as error:
            problems += error.problems
    return encoders


def _tasks(tasks: Any, words: TaskVocabulary, settings: RunSettings, problems: list[Problem], texts: dict[str, str]) -> list[TaskConfig]:
    if isinstance(tasks, str) and not Path(tasks).exists() and words.has_task(tasks):
        tasks = [tasks]
    if isinstance(tasks, str | PathLike):
        loaded = load_task_configs(Path(tasks), words, protocol=settings.protocol)
        problems += loaded.problems
        texts.update(loaded.texts)
        return list(loaded.items)
    pairs = tasks.items() if isinstance(tasks, Mapping) else [(str(task).rpartition(":")[2], {"task": task}) for task in tasks]
    configs: list[TaskConfig] = []
    for label, mapping in pairs:
        try:
            configs.append(task_config_from_mapping(str(label), mapping, words, protocol=settings.protocol))
        except ConfigError as error:
            problems += error.problems
    return configs
