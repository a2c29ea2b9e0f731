"""What a probe sees and what it gives back. Probes come in three shapes, each with its own unit of work:

- ``from_features``: features by role are given (linear, MLP, k-NN ...);
- ``from_batches``: the encoder and loaders of images with targets are given (streaming dense heads, detection, fine-tuning);
- ``online``: the encoder and one sample at a time are given (tracking: the probe cuts its own crops).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.data.windows import WindowedImages
from virb.errors import UserError
from virb.metrics.base import Statistics
from virb.probes.pieces import WHOLE, Pieces
from virb.sources import import_attribute

Selection = Literal["val", "test-last", "test-best"]
FIT, SELECT, REPORT, AUX, REPORT_UNLABELLED = "fit", "select", "report", "aux", "report-unlabelled"


def is_role(role: str) -> bool:
    """A task may have several ``aux`` roles: ``aux``, ``aux-whitening``, ``aux-distractors`` ..."""
    return role in (FIT, SELECT, REPORT, REPORT_UNLABELLED) or role.split("-")[0] == AUX


def is_labelled(role: str) -> bool:
    """Whether probes see this role's targets. Those of ``report-unlabelled`` are for scoring alone; ``aux`` has none."""
    return role in (FIT, SELECT, REPORT)


class Features(Protocol):
    """Features of the samples of one role, in sample order. Reading them may cost nothing (device memory) or an encode (a stream)."""

    shape: tuple[int, ...] | None  # of one sample (without the sample axis); None when samples differ in shape

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """Epoch e of training reads augmented view e modulo the number of views; evaluation data has one view and ignores this."""
        ...

    def gather(self, samples: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Rows of these samples (B, *shape), in compute dtype float32, on the job's device. Only when ``shape`` is not None."""
        ...

    def gather_rows(self, samples: np.ndarray) -> torch.Tensor:
        """All rows of these samples one after the other, (rows, *row shape) float32 on the job's device; samples may differ in their
        number of rows, rows not in shape."""
        ...

    def sample(self, index: int) -> list[torch.Tensor]:
        """All rows of one sample, each of its own shape: the way to read ragged features (a video's frames in order)."""
        ...


@dataclass(frozen=True)
class Seen:
    """How the network saw a role's images, for targets that have to follow them (masks, depth, flow)."""

    views: tuple[Geometry, ...]  # epoch e shows view e modulo their number
    canvas: tuple[int, int]  # height, width of what the network was given: the geometry's size, padded to a multiple of its patch
    row_values: np.ndarray  # of the image list; those of sample i are row_values[row_offsets[i]:row_offsets[i + 1]]
    row_offsets: np.ndarray
    windows: WindowedImages | None = None  # rows are windows of larger images
    image_size: Callable[[int], tuple[int, int]] | None = None  # height, width of the stored image of a row, where that is cheap to know

    def rows(self, sample: int) -> np.ndarray:
        return self.row_values[self.row_offsets[sample] : self.row_offsets[sample + 1]]


@dataclass(frozen=True)
class Listed:
    """Samples that a file names, which decides what is learned from: they are never held out. ``missing`` names stand for no sample."""

    file: str
    positions: tuple[int, ...]  # ascending
    missing: int = 0


@dataclass(frozen=True)
class RoleData:
    """One role of a task: what was encoded, and the targets unless the role is unlabelled."""

    features: Features
    targets: Any | None  # array of N, or a sequence read item by item for targets that do not fit in one array
    sample_ids: np.ndarray
    units: np.ndarray
    maps: tuple[Features, ...] = ()  # one per tensor of the request, for probes that read several; ``features`` is the first
    seen: Seen | None = None  # for tasks whose targets follow the pixels
    listed: Listed | None = None  # of fit

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class Settings:
    """Everything besides data that decides a probe's numbers, already resolved (explicit key > protocol > task default)."""

    configs: Mapping[str, BaseModel]  # training config name -> checked hyper-parameters (the probe's own ``Config``)
    num_epochs: int
    batch_size: int
    test_batch_size: int
    selection: Selection
    seeds: tuple[int, ...]
    refit: bool
    loss: str
    metrics: tuple[str, ...]  # the first is primary
    n_classes: int | None
    dense: DenseTarget | None = None  # what the targets of a pixelwise task are
    score_size: int | None = (
        None  # pixelwise: predictions meet targets in the frame of the input, at this longer side; None: at native size
    )


@dataclass(frozen=True)
class Context:
    """Where a probe works: its device, a folder for its own checkpoints, and whom to tell about progress."""

    device: torch.device
    scratch: Path | None = None  # exists; survives a crash; emptied when the job is done
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None
    scalars: Callable[[str, str, float, int], None] = lambda config, tag, value, step: None  # TensorBoard: config, tag, value, step
    encoder: Callable[[], Any] | None = None  # loads the job's encoder on the device, for heads that start from a part of it
    cores: int = 1  # of the CPU that the probe may keep busy; numbers must be the same for any
    pieces: Pieces = WHOLE  # where work that several devices can share is asked for


@dataclass(frozen=True)
class Predictions:
    """Per-sample predictions on a role; scores for classification (N x C), or one entry per sample when ragged.

    Predictions too large to keep (dense maps, scores of many classes) may be scored by the probe batch by batch: then ``statistics`` has
    those of every metric, by its name, and ``values`` is None or the class numbers.
    """

    values: Any
    loss: float | None = None
    statistics: Mapping[str, Statistics] | None = None


@dataclass
class ConfigOutcome:
    """What became of one training config: losses and metrics are floats over the whole split, None where the protocol does not score."""

    name: str
    train_loss: float | None = None
    train_metrics: dict[str, float] = field(default_factory=dict)
    select_loss: float | None = None
    select_metrics: dict[str, float] = field(default_factory=dict)
    report: Predictions | None = None  # only where the protocol scores this config
    epoch: int | None = None  # the chosen epoch, 1-based
    diverged: bool = False
    history: list[dict[str, float]] = field(default_factory=list)  # one record per epoch
    head: dict[str, torch.Tensor] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Run:
    """One seed (or draw): every config, and the name of the chosen one."""

    seed: int
    configs: dict[str, ConfigOutcome]
    chosen: str


@dataclass
class Outcome:
    """What a probe returns; ``chosen`` is one config for all runs."""

    runs: list[Run]
    chosen: str
    index_lists: dict[str, list[int]] = field(
        default_factory=dict
    )  # hold-outs and draws (positions in ``fit``); stored as those in the split
    selected_on: str = "val"  # "none": no config was preferred to another by any number
    notes: list[str] = field(default_factory=list)
    pictures: dict[int, Any] = field(default_factory=dict)  # report sample -> the chosen config's prediction, for a few of them
    draws: bool = False  # runs are draws of the fit samples, not seeds of one training: intervals are over draws x units


class ProbeConfig(BaseModel):
    """Base of every probe's training config: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Probe(Protocol):
    """A registered class; made once per job."""

    name: ClassVar[str]
    shape: ClassVar[Literal["features", "batches", "online"]]
    Config: ClassVar[type[BaseModel]]

    # A probe that reads all tensors of a request (``pyramid``, ``tokens[3,7,11]``) says ``reads_maps = True``.
    # ``features`` is the request that it takes where a task is answered by another probe by default.
    # One that cannot train its chosen config again on fit + select says ``refits = False``.
    # A probe that is not trained epoch by epoch says so: it sees plain images, and takes no num_epochs, batch_size, views or augment:
    # by_epochs: ClassVar[bool] = False
    # One that leaves no head that could be scored on another task's images says so:
    # has_heads: ClassVar[bool] = False
    # One that needs a class number of every sample says so:
    # targets: ClassVar[str] = "class"
    # It may refuse things while the run is planned (UserError): features, by the shape of one sample's (None: samples differ in shape), and
    # training configs, beside the shape of one fit sample's features:
    # @staticmethod
    # def check_features(role: str, shape: tuple[int, ...] | None) -> None
    # def check_configs(configs: Mapping[str, BaseModel], shape: tuple[int, ...] | None) -> None
    # and may read, then too, which fit samples a file names: ``folder`` is that of the dataset's images, if they lie in one, and
    # ``places`` are folders below which a relative path is sought
    # def listed(configs: Mapping[str, BaseModel], sample_ids: np.ndarray, dataset: str, folder: Path | None, places: Sequence[Path])
    #     -> Listed | None
    # One whose work several devices can share says in which stages it asks ``context.pieces`` for pieces, how many these are and how much
    # work, by sizes alone (``virb.probes.pieces``); () where this job cannot be shared:
    # @staticmethod
    # def stages(configs: Mapping[str, BaseModel], sizes: Sizes) -> Sequence[Stage]
    # and it has exactly one of these, by ``shape``:
    # def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome
    # def from_batches(self, encoder, loaders: Mapping[str, BatchLoader], settings: Settings, context: Context) -> Outcome
    # def online(self, encoder, sample: OnlineSample, settings: Settings, context: Context) -> Any   (one prediction)


@dataclass(frozen=True)
class Batch:
    """What a ``from_batches`` probe reads: images ready for the encoder, targets apart, and which samples these are."""

    samples: np.ndarray
    images: torch.Tensor  # float, normalised, on the device: B x K x 3 x H x W when a sample has K images, else B x 3 x H x W
    targets: list[Any]


class BatchLoader(Protocol):
    """Batches of one role; ``order`` are sample numbers (default: all, in order)."""

    targets: Any
    units: np.ndarray

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, order: np.ndarray | None = None) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class OnlineSample:
    """One sample of an ``online`` probe: frames decoded on demand at native size (uint8 3 x H x W), what is given, never the target."""

    id: str
    n_images: int
    image: Callable[[int], torch.Tensor]
    given: Any


_PROBES: dict[str, Any] = {}


def by_epochs(probe: Any) -> bool:
    """Whether a probe (its class) is trained epoch by epoch, and so may see another augmented view of an image in each."""
    return bool(getattr(probe, "by_epochs", True))


def has_heads(probe: Any) -> bool:
    """Whether a probe (its class) leaves heads, which eval-only tasks score."""
    return bool(getattr(probe, "has_heads", True))


def class_targets_only(probe: Any) -> bool:
    """Whether a probe (its class) needs one class number per sample."""
    return getattr(probe, "targets", None) == "class"


def register_probe(cls: Any) -> Any:
    """Class decorator: makes the probe available under its ``name``."""
    if cls.name in _PROBES and _PROBES[cls.name] is not cls:
        raise UserError(f"two probes are named {cls.name}: {_PROBES[cls.name].__module__} and {cls.__module__}")
    _PROBES[cls.name] = cls
    return cls


def probe_names() -> Sequence[str]:
    _load_builtin()
    return sorted(_PROBES)


def find_probe(name: str) -> Any:
    """A built-in probe by name, or a user's own by ``module:Class``. KeyError when there is none."""
    if ":" in name:
        return import_attribute(name, "probe")
    _load_builtin()
    return _PROBES[name]


def _load_builtin() -> None:
    for module in ("linear", "knn", "logistic", "ncm", "fewshot", "lowshot", "dense"):
        importlib.import_module(f"virb.probes.{module}")
