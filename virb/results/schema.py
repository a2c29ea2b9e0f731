"""The records that ViRB writes, strict in both directions: ``results.json`` (a training config), ``job.json`` and ``failed.json`` (a job),
and ``runs/<time>.json``.

Every record has ``kind`` and ``schema_version``. ``python -m virb.results.schema`` writes the JSON Schemas that lie in ``schemas/``; run it
after changing a record, and raise the version when files of before would no longer validate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from virb.errors import ViRBError
from virb.io import write_atomic

SCHEMA_VERSION = 1
SCHEMA_FOLDER = Path(__file__).parent / "schemas"
# What differs between two runs that found the same; everything else in a job is a function of its key.
VOLATILE = ("timings", "tier", "parts", "provenance")


def finite_or_none(value: Any) -> Any:
    """NaN and infinity, which a diverged head gives, are null in every file."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(finite_or_none)]


class Record(BaseModel):
    """Base of all: unknown keys are errors, NaN is never written."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class MetricInfo(Record):
    name: str
    unit: str = Field(description="% for fractions in [0, 1] that are shown times 100, else a physical unit or empty")
    higher_is_better: bool


class TrainingConfigResult(Record):
    """One training config of one job. The keys ``*_loss`` and ``*_accuracy`` are those of ViRB 2021; ``accuracy`` is the primary metric."""

    kind: Literal["training_config"] = "training_config"
    schema_version: Literal[1] = 1
    encoder: str
    label: str
    task: str
    config: str
    key: str = Field(description="key of the job that wrote this file")
    settings: dict[str, Any] = Field(description="hyper-parameters, fully resolved")
    seeds: list[int] = Field(description="numbers below are means over these")
    metric: MetricInfo = Field(description="the primary metric, which *_accuracy holds")
    train_loss: Number = None
    train_accuracy: Number = None
    select_loss: Number = None
    select_accuracy: Number = None
    test_loss: Number = Field(None, description="null where the protocol does not score this config")
    test_accuracy: Number = Field(None, description="null where the protocol does not score this config")
    test_ci_low: Number = Field(
        None, description="95 % interval of test_accuracy; null under test-*, where it belongs to the chosen config"
    )
    test_ci_high: Number = None
    metrics: dict[str, dict[str, Number]] = Field(default_factory=dict, description="all metrics by role: fit, select, report")
    chosen: bool = False
    diverged: bool = False
    epoch: int | None = Field(None, description="the chosen epoch, 1-based; null without epochs or when the seeds differ (see job.json)")
    refit: bool = Field(False, description="test_* are of the head trained again on fit + select; train_* and select_* of the one before")


class EncoderInfo(Record):
    name: str
    id: str | None = Field(None, description="hash of the encoder as it was in memory; null when it could not be loaded")
    source: str = Field("", description="what was loaded, from where, and how much of it was filled")
    n_params: int | None = None
    embed_dim: int | None = None
    input: dict[str, Any] = Field(default_factory=dict, description="size, resize, crop, interpolation, mean, std")
    spec: dict[str, Any] = Field(default_factory=dict, description="further facts: family, patch size, stages, heads")
    meta: dict[str, Any] = Field(
        default_factory=dict,
        description="what the experiment list says of it: method, pretraining data, group; of our checkpoints also step, epoch and recipe",
    )


class RoleInfo(Record):
    split: str
    n_samples: int
    n_units: int
    images: str | None = Field(None, description="name of the image list")


class TaskInfo(Record):
    id: str
    label: str
    level: Literal["image-level", "pixelwise", "video"]
    kind: Literal["semantic", "structural"]
    dataset: str
    probe: str
    features: list[str] = Field(default_factory=list, description="canonical requests")
    n_classes: int | None = None
    classes: list[str] | None = Field(None, description="names of the classes, in the order of a head's outputs")
    roles: dict[str, RoleInfo] = Field(default_factory=dict)
    image_list_ids: dict[str, str] = Field(default_factory=dict, description="by name of the image list")
    data: dict[str, Any] = Field(default_factory=dict, description="options of the dataset, resolved")


class ProtocolValue(Record):
    value: Any
    origin: str = Field(description="who set it: key, protocol, task, ...")


class ProtocolCard(Record):
    name: str
    changed: dict[str, Any] = Field(default_factory=dict, description="explicit keys that differ from the named protocol")
    values: dict[str, ProtocolValue] = Field(default_factory=dict)


class MetricRecord(Record):
    """One number of the chosen config."""

    name: str
    value: Number
    ci_low: Number = Field(None, description="95 % percentile bootstrap over units; null when there are fewer than two units")
    ci_high: Number = None
    unit: str
    higher_is_better: bool
    role: Literal["fit", "select", "report", "report-unlabelled"] = "report"
    n_samples: int
    n_units: int
    primary: bool = False
    per_class: dict[str, Number] | None = Field(
        None,
        description="the number of each class by its name, null for a class that has none; null for a metric that is no mean over classes",
    )


class SurfaceRow(Record):
    """One training config with one seed."""

    config: str
    seed: int
    settings: dict[str, Any]
    train_loss: Number = None
    train_metrics: dict[str, Number] = Field(default_factory=dict)
    select_loss: Number = None
    select_metrics: dict[str, Number] = Field(default_factory=dict)
    report_loss: Number = None
    report_metrics: dict[str, Number] = Field(default_factory=dict)
    epoch: int | None = None
    diverged: bool = False
    refit: bool = Field(False, description="report_* are of the head trained again on fit + select; train_* and select_* of the one before")


class RunInfo(Record):
    """One seed (or draw) of the chosen config."""

    seed: int
    chosen: str = Field(description="what this seed alone would have chosen")
    metrics: dict[str, Number] = Field(default_factory=dict)
    loss: Number = None


class IndexList(Record):
    """A hold-out, draw or limit: which samples. Long lists are in ``samples.npz`` under ``index_<name>``."""

    count: int
    sha256: str = Field(description="of the indices as little-endian int64")
    indices: list[int] | None = None


class BadImages(Record):
    count: int = 0
    ids: list[str] = Field(default_factory=list)


class Timing(Record):
    stage: str
    seconds: float
    items: int | None = None


class JobPart(Record):
    """A share of a job's work that a device did before the job itself."""

    stage: str
    number: int = Field(description="from 1 on")
    of: int
    device: str
    seconds: float
    finished: str


class Hardware(Record):
    cpu: str
    cores: int
    memory_bytes: int | None = None
    gpus: list[str] = Field(default_factory=list)
    platform: str


class Provenance(Record):
    virb_version: str
    python: str
    packages: dict[str, str]
    git_revision: str | None = Field(None, description="of the ViRB checkout; null when ViRB is installed from a package")
    git_diff_hash: str | None = Field(None, description="sha256 of what differs from that revision; null when nothing does")
    hardware: Hardware
    device: str | None = None
    seeds: list[int] = Field(default_factory=list)
    precision: str | None = None
    command: list[str] = Field(default_factory=list)
    config_text: str | None = Field(None, description="the task's own part of its file and the file's defaults, as read")
    started: str = Field(description="UTC, ISO 8601")
    finished: str | None = None


class JobError(Record):
    message: str
    hint: str = Field("", description="what to do about it")
    traceback: str = ""


class Job(Record):
    """One encoder on one task, all training configs included. ``job.json`` has status ``done`` and means that everything beside it is
    complete; ``failed.json`` has status ``failed``."""

    kind: Literal["job"] = "job"
    schema_version: Literal[1] = 1
    status: Literal["done", "failed"]
    key: str = Field(description="hash of all that determines the numbers")
    encoder: EncoderInfo
    task: TaskInfo
    protocol: ProtocolCard
    selection: str = Field("val", description="val, test-last or test-best")
    chosen: str | None = None
    metrics: list[MetricRecord] = Field(default_factory=list, description="of the chosen config")
    surface: list[SurfaceRow] = Field(default_factory=list)
    runs: list[RunInfo] = Field(default_factory=list)
    index_lists: dict[str, IndexList] = Field(default_factory=dict)
    bad_images: BadImages = Field(default_factory=BadImages)
    streamed: bool = False
    notes: list[str] = Field(default_factory=list)
    error: JobError | None = None
    tier: str | None = Field(
        None,
        description="where the working copy of the features was: device, host, mapped or streamed; also if straight from the pass",
    )
    timings: list[Timing] = Field(default_factory=list)
    parts: list[JobPart] = Field(default_factory=list, description="what several devices did of the job, in this run or an earlier one")
    provenance: Provenance

    def primary(self) -> MetricRecord | None:
        return next((metric for metric in self.metrics if metric.primary), None)


class RunOptions(Record):
    """What the command line (or the Python API) asked for, with its defaults; null leaves the choice to ViRB."""

    out: str = "out"
    data_root: str = "data"
    cache_dir: str | None = None
    local_cache: str | None = None
    cache_budget: str = "80%"
    no_cache: bool = False
    devices: list[str] = Field(default_factory=lambda: ["cpu"])
    precision: str = "float32"
    compile: bool = False
    decoder: Literal["pillow", "fast"] = "pillow"
    input_size: int | None = None
    protocol: str | None = None
    num_workers: int | None = None
    force: bool = False
    seed: int = 0
    keep_heads: Literal["chosen", "all", "none"] = "chosen"


class RunRecord(Record):
    """One call of ViRB: what was asked, what was done and what was skipped."""

    kind: Literal["run"] = "run"
    schema_version: Literal[1] = 1
    files: dict[str, str] = Field(default_factory=dict, description="every file as it was read")
    options: RunOptions = Field(default_factory=RunOptions, description="the command line, resolved")
    plan: dict[str, Any] = Field(
        default_factory=dict,
        description="jobs, passes, geometries, sizes; images to decode (for heads that train on streams: about), images decoded, and those "
        "refused by the decoder asked for, as counted there",
    )
    profile: dict[str, Any] = Field(default_factory=dict, description="where the time went: seconds of the workers by stage, rates")
    done: list[str] = Field(default_factory=list, description="<encoder>/<label>")
    skipped: list[str] = Field(default_factory=list)
    failed: dict[str, str] = Field(default_factory=dict, description="<encoder>/<label>: message")
    exit_code: int | None = None
    provenance: Provenance


RECORDS: Mapping[str, type[Record]] = {"training_config": TrainingConfigResult, "job": Job, "run": RunRecord}


def parse_record(record: Any, source: str) -> TrainingConfigResult | Job | RunRecord:
    """Checks a record by its kind and schema version; ``source`` is named in errors."""
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind not in RECORDS:
        raise ViRBError(f"{source} is not a record of ViRB: Expected `kind` to be one of {', '.join(RECORDS)}, but got {kind!r}")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ViRBError(f"{source} has schema version {record.get('schema_version')!r}; this ViRB reads {SCHEMA_VERSION}")
    try:
        return RECORDS[str(kind)].model_validate(record)  # type: ignore[return-value]
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, problem['loc']))}  {problem['msg']}" for problem in error.errors()]
        raise ViRBError("\n".join([f"{source} is not a valid record of kind {kind}:", *lines])) from error


def validate(path: Path | str) -> TrainingConfigResult | Job | RunRecord:
    """Reads one JSON file of ViRB and checks every field; NaN, unknown keys and wrong types are errors that name the file."""

    def refuse(constant: str) -> NoReturn:
        raise ViRBError(f"{path} has {constant}, which is not JSON")

    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ViRBError(f"{path} is not valid JSON ({error})") from error
    except OSError as error:
        raise ViRBError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_record(record, str(path))


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the files of one kind; every field is required, for ViRB writes them all."""
    schema = RECORDS[kind].model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text(kind: str) -> str:
    return json.dumps(json_schema(kind), indent=1) + "\n"


def schema_path(kind: str) -> Path:
    return SCHEMA_FOLDER / f"{kind}.schema.json"


def main() -> None:
    """Writes the published schemas anew."""
    for kind in RECORDS:
        write_atomic(schema_path(kind), schema_text(kind))


if __name__ == "__main__":
    main()
