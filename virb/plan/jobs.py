"""What the plan is made of. All of it is picklable: workers get the shared part once and small units after that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from virb.config import EncoderConfig, InputOverride, Where
from virb.data.images import ImageList, Samples
from virb.data.transforms import Geometry
from virb.encoders.base import EncoderSpec
from virb.features.cache import SLICE_ROWS, EntryRecord
from virb.features.encoding import Numerics
from virb.features.passes import Wanted
from virb.plan.graph import Unit
from virb.plan.heads import HeadSource
from virb.probes.base import Listed
from virb.probes.pieces import Part
from virb.tasks.resolve import ResolvedTask


@dataclass(frozen=True)
class RunSettings:
    """What the command line (or the Python API) says about a run, checked (see ``virb.runner.settings``)."""

    out: Path = Path("out")
    data_root: Path = Path("data")
    cache_dir: Path | None = None
    local_cache: Path | None = None  # on a disk of this machine
    cache_budget: str = "80%"
    no_cache: bool = False
    devices: tuple[str, ...] = ("cpu",)
    precision: str = "float32"
    compile: bool = False  # encoders by torch.compile
    decoder: Literal["pillow", "fast"] = "pillow"
    input_size: int | None = None
    protocol: str | None = None
    num_workers: int | None = None  # loader threads per device
    force: bool = False
    seed: int = 0
    keep_heads: str = "chosen"
    command: tuple[str, ...] = ()

    @property
    def device_kind(self) -> str:
        return self.devices[0].split(":")[0]

    @property
    def precision_text(self) -> str:
        """For records and people."""
        return f"{self.precision}{', compiled' * self.compile}"

    @property
    def numerics(self) -> Numerics:
        return Numerics(self.precision, self.device_kind, self.compile)


@dataclass(frozen=True)
class InMemory:
    """An encoder given as a network (the Python API) instead of by an experiment list."""

    name: str
    network: Any
    where: Where | None = None
    input: InputOverride | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def source_of(config: EncoderConfig | InMemory) -> Any:
    """What ``load_encoder`` takes."""
    return config.network if isinstance(config, InMemory) else config


@dataclass(frozen=True)
class PlannedEncoder:
    """An encoder of the run: how to load it (a config, or a network in memory) and what it turned out to be."""

    name: str
    source: Any
    spec: EncoderSpec
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A cache entry the run needs."""

    record: EntryRecord
    wanted: Wanted
    list_id: str
    n_rows: int
    row_shape: tuple[int, ...] | None
    nbytes: int
    seconds_per_row: float
    decode_seconds: float  # per image
    streamed: bool = False  # does not fit the cache budget: encoded whenever it is read

    @property
    def key(self) -> str:
        return self.wanted.key


@dataclass(frozen=True)
class RolePlan:
    """A role of a job: which samples of which image list, and the entries that hold their features."""

    split: str
    samples: Samples
    list_id: str
    entries: tuple[str, ...]  # view by view, in each the tensors of the request; empty for probes that run the encoder themselves
    held_out: bool = False  # the selection samples are drawn from those of fit
    limited: tuple[int, ...] | None = None  # which of the split's samples these are, where ``limit`` leaves some out
    n_maps: int = 1  # tensors of the request, each with an entry per view

    def maps(self) -> list[tuple[str, ...]]:
        """For each tensor of the request, its entries view by view."""
        return [self.entries[place :: self.n_maps] for place in range(self.n_maps)]


@dataclass(frozen=True)
class Job:
    """One encoder on one task, all its training configs included."""

    encoder: str
    key: str  # hash of all that decides its numbers
    task: ResolvedTask
    request: str
    geometry: Geometry
    geometry_from: str
    roles: Mapping[str, RolePlan]
    classes: tuple[str, ...] | None
    nbytes: int  # of its features in storage precision
    n_samples: Mapping[str, int]
    heads: tuple[HeadSource, ...] = ()  # of an eval-only job: what it scores
    listed: Listed | None = None  # fit samples that a file names
    data_note: str = ""  # what the dataset's reader found on disk: the layout, the rule of the split

    @property
    def label(self) -> str:
        return self.task.label

    @property
    def id(self) -> str:
        return f"{self.encoder}/{self.label}"


@dataclass(frozen=True)
class Draft:
    """All that the input says, checked, before anybody looks at what is done and cached already."""

    settings: RunSettings
    encoders: Mapping[str, PlannedEncoder]
    jobs: Mapping[str, Job]
    entries: Mapping[str, Entry]
    lists: Mapping[str, ImageList]
    texts: Mapping[str, str] = field(default_factory=dict)  # label -> its part of the file, as read
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassWork:
    """Payload of a ``pass`` unit: slices of one image list that follow each other."""

    list_id: str
    start: int
    stop: int
    wanted: tuple[Wanted, ...]
    keep: tuple[Geometry, ...] = ()  # the decoded images of these are kept

    @property
    def slices(self) -> list[tuple[int, int]]:
        return [(start, min(start + SLICE_ROWS, self.stop)) for start in range(self.start, self.stop, SLICE_ROWS)]


@dataclass(frozen=True)
class PartWork:
    """Payload of a ``part`` unit: a share of the work of a job that several devices share."""

    job: str
    part: Part


@dataclass(frozen=True)
class PixelStore:
    """Decoded images of a list at one geometry, an entry of the cache without an encoder (``virb.features.decoded``)."""

    record: EntryRecord
    list_id: str
    geometry: Geometry
    n_rows: int
    missing: tuple[tuple[int, int], ...]  # slices that were not there when the run was planned

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def row_bytes(self) -> int:
        height, width = self.geometry.size or (0, 0)
        return 3 * height * width

    @property
    def missing_bytes(self) -> int:
        return self.row_bytes * sum(stop - start for start, stop in self.missing)


@dataclass(frozen=True)
class RunContext:
    """What every worker knows."""

    settings: RunSettings
    cache_folder: Path
    encoders: Mapping[str, PlannedEncoder]
    lists: Mapping[str, ImageList]
    entries: Mapping[str, Entry]
    jobs: Mapping[str, Job]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stores: Mapping[str, Mapping[Geometry, PixelStore]] = field(default_factory=dict)  # by image list: decoded images to read and keep
    shared: frozenset[str] = frozenset()  # jobs whose work several devices share
    use: str = ""  # the name by which the run uses the cache, once it does (``virb.features.uses``)


@dataclass(frozen=True)
class Plan:
    settings: RunSettings
    context: RunContext
    units: tuple[Unit, ...]
    to_do: tuple[Job, ...]
    done: tuple[Job, ...]
    rows_to_decode: int  # by passes
    n_passes: int
    bytes_new: int
    bytes_cached: int
    seconds: float
    notes: tuple[str, ...] = ()
    rows_of_streams: int = 0  # that jobs decode while heads train, about

    @property
    def rows_in_passes(self) -> int:
        """Images that encoders see in passes: those of each pass, decoded or kept."""
        return sum(unit.payload.stop - unit.payload.start for unit in self.units if unit.kind == "pass" and unit.payload.wanted)

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self.context.jobs.values())
