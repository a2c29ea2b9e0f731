"""ViRB from Python: load an encoder, encode images, run tasks, read results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from virb.config import (
    EncoderConfig,
    TaskConfig,
    encoder_config_from_mapping,
    load_experiment_list,
    load_task_configs,
    task_config_from_mapping,
)
from virb.data.datasets import load_dataset
from virb.data.images import ArrayImages, Dataset, ImageList
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder, Request
from virb.encoders.load import encoder_names, load_encoder
from virb.errors import ConfigError, Problem, ViRBError
from virb.features.passes import Numerics, PassOptions
from virb.features.passes import encode as encode_pixels
from virb.plan.build import build_plan
from virb.plan.jobs import InMemory, Plan, RunSettings
from virb.results.load import load_results
from virb.results.tables import text_table
from virb.runner.devices import parse_devices, resolve_precision
from virb.runner.run import claim, execute, nothing_to_do
from virb.runner.worker import ENCODE_BATCH
from virb.tasks.resolve import TaskVocabulary

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
    """A dataset by name (``virb list datasets``), or ``module:function``. ``dataset("digits").lists["test"]`` is an image list."""
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

    ``images``: an image list, or uint8 N x H x W x 3. ``size``: pixels (or height, width) in place of the encoder's own input size.
    Nothing is cached on disk.
    """
    network = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    if isinstance(images, np.ndarray):
        images = ArrayImages("images", images, [f"{i:08d}" for i in range(len(images))])
    spec = network.spec.input
    shape = (size, size) if isinstance(size, int) else size or spec.size
    geometry = Geometry(shape, spec.resize, spec.crop, spec.crop_pct, spec.interpolation, None)
    place = torch.device(device)
    numerics = Numerics(resolve_precision(precision, place.type), place.type)
    options = PassOptions(numerics, batch_size or ENCODE_BATCH[place.type], 0)
    network = network.to(place)
    requests = [str(Request.parse(text)) for text in want]
    found: dict[str, list[torch.Tensor]] = {request: [] for request in requests}
    for batch in load_batches(images, np.arange(len(images)), (geometry,), options.batch_size, 0, on_bad_image="error"):
        for request, values in encode_pixels(network, batch.pixels[geometry], requests, place, options).items():
            found[request] += values
    return {text: torch.stack(found[request]).clone() for text, request in zip(want, requests, strict=True)}


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

    ``experiments``: names to encoders (anything ``load_encoder`` takes, networks included), or an experiment-list file.
    ``tasks``: task ids, a mapping of labels to the keys of a task config, or a task-config file. ``options`` are those of the command line
    (``seed``, ``protocol``, ``input_size``, ``force``, ``no_cache``, ``cache_dir``, ``cache_budget``, ``data_root``, ``num_workers``,
    ``keep_heads``).
    Networks from memory run in this process: with several devices their class must be importable.
    """
    from rich.console import Console

    names = parse_devices(devices)
    settings = RunSettings(
        out=Path(out), devices=names, precision=resolve_precision(precision, names[0]), command=("virb.run",), **_paths(options)
    )
    words = TaskVocabulary(encoder_names())
    problems: list[Problem] = []
    texts: dict[str, str] = {}
    encoders: list[EncoderConfig | InMemory] = []
    if isinstance(experiments, Mapping):
        for name, what in experiments.items():
            try:
                in_memory = isinstance(what, torch.nn.Module)
                encoders.append(InMemory(name, what) if in_memory else encoder_config_from_mapping(name, _plain(what), words))
            except ConfigError as error:
                problems += error.problems
        if any(isinstance(e, InMemory) for e in encoders) and names[0] == "cpu":
            settings = _single(settings)
    else:
        loaded = load_experiment_list([Path(experiments)], words)
        encoders, problems, texts = list(loaded.items), [*problems, *loaded.problems], {**texts, **loaded.texts}
    configs: list[TaskConfig] = []
    if isinstance(tasks, str | PathLike):
        read = load_task_configs([Path(tasks)], words, protocol=settings.protocol)
        configs, problems, texts = list(read.items), [*problems, *read.problems], {**texts, **read.texts}
    else:
        given = tasks if isinstance(tasks, Mapping) else {task.rpartition(":")[2]: {"task": task} for task in tasks}
        for label, mapping in given.items():
            try:
                configs.append(task_config_from_mapping(label, mapping, words, protocol=settings.protocol))
            except ConfigError as error:
                problems += error.problems
    with claim(settings.out) as lease:
        plan: Plan = build_plan(settings, encoders, configs, problems)
        if not plan.to_do:
            nothing_to_do(plan)
            return Results(settings.out, (), tuple(job.id for job in plan.done), {})
        summary = execute(plan, Console(quiet=not progress, highlight=False), texts, lease)
    return Results(settings.out, tuple(j.id for j in summary.done), tuple(j.id for j in summary.skipped), dict(summary.failed))


def _single(settings: RunSettings) -> RunSettings:
    from dataclasses import replace

    return replace(settings, devices=settings.devices[:1])


def _plain(what: Any) -> Any:
    return str(what) if isinstance(what, PathLike) else what


def _paths(options: dict[str, Any]) -> dict[str, Any]:
    known = {"seed", "protocol", "input_size", "force", "no_cache", "cache_dir", "cache_budget", "data_root", "num_workers", "keep_heads"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ViRBError(f"virb.run has no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return {key: Path(value) if key in ("cache_dir", "data_root") and value is not None else value for key, value in options.items()}
