"""What a pretraining run is told: the engine's keys under the names of the original, and where values come from (file, flags, defaults).

A method adds its own keys: ``options_of(method)`` is the record of all. No torch here, so that ``--help`` is quick.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin

from pydantic import BaseModel, Field

from virb.config.check import Strict, check, describe
from virb.config.files import near_file
from virb.config.tree import KeyPath, Report, Where, parse
from virb.errors import ConfigError, UserError

Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

# What the original's files have besides its options: facts of the run that wrote them.
_FACTS = frozenset(("gpu", "rank", "world_size", "dist_backend", "distributed", "job_dir", "jobdir", "local_rank", "dist_url"))
_COMMAND_LINE = "command line"


def key(default: Any, text: str, group: str) -> Any:
    """A key with its help text and the heading under which ``--help`` lists it."""
    return Field(default, description=text, json_schema_extra={"group": group})


class EngineOptions(Strict):
    """The engine's keys. Where the original (DINO's ``main_dino.py``, ``run_with_submitit.py``) has one, name and default are its own."""

    data_path: str | None = key(None, "folder with images (nested or flat), or built-in data: digits, shapes, digits+shapes", "data")
    output_dir: str = key(
        "runs/%r",
        "checkpoints, log.txt and curves go here; %r becomes the recipe's name (the method's without --config), %j the Slurm job's number",
        "data",
    )
    num_workers: Natural = key(10, "processes per device that decode images ahead; never more than there are cores", "data")
    augmentation: Literal["auto", "tensors", "pil"] = key("auto", "tensors: on the GPU, or fast on CPUs; pil: the reference", "data")
    on_bad_image: Literal["error", "skip"] = key(
        "error", "an image that cannot be decoded: stop (all is saved), or another one, drawn anew each epoch, in its place", "data"
    )
    seed: Natural = key(0, "of weights, order, augmentation and masks", "data")

    epochs: Count = key(100, "passes over the data", "training")
    batch_size_per_gpu: Count = key(64, "images per device and micro-batch", "training")
    accumulation_steps: Count = key(1, "micro-batches per optimizer step", "training")
    optimizer: Literal["adamw", "sgd", "lars"] = key("adamw", "adamw, sgd or lars", "training")
    lr: NotNegative = key(0.0005, "peak learning rate for a joint batch of 256; scaled in proportion", "training")
    warmup_epochs: Natural = key(10, "epochs in which the learning rate rises; may be longer than the training", "training")
    min_lr: NotNegative = key(1e-6, "learning rate at the end", "training")
    weight_decay: NotNegative = key(0.04, "weight decay at the start", "training")
    weight_decay_end: NotNegative = key(0.4, "weight decay at the end (cosine)", "training")
    clip_grad: NotNegative = key(3.0, "longest gradient; 0 does not clip", "training")
    clip_mode: Literal["per_tensor", "global"] = key("per_tensor", "each tensor by itself (as the original), or all together", "training")
    max_bad_steps: Natural = key(10, "steps in a row with a loss or gradient that is not finite, before the run stops", "training")

    use_fp16: bool = key(True, "half precision where the device has it; false: fp32", "device")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key("auto", "auto: bf16, fp16 with a scaler on old GPUs, fp32 on CPUs", "device")
    device: str = key("auto", "auto, cpu, cuda or cuda:N", "device")
    compile: bool = key(False, "torch.compile the networks", "device")
    checkpoint_activations: bool = key(False, "compute activations again in the backward pass: less memory, more time", "device")
    dist_url: str = key("env://", "kept for old files: processes find each other by the variables that torchrun sets", "device")
    local_rank: int = key(0, "kept for old command lines: the rank comes from the environment", "device")
    rank_timeout: Positive = key(600.0, "seconds without an answer after which a rank counts as lost", "device")

    saveckp_freq: Natural = key(20, "checkpoint0000.pth, checkpoint0020.pth ... are kept every this many epochs; 0: none", "checkpoints")
    save_every_steps: Natural = key(0, "checkpoint.pth is also written every this many steps, not only every epoch", "checkpoints")
    keep: Natural = key(0, "numbered checkpoints to keep, the newest ones; 0: all", "checkpoints")
    resume: bool = key(True, "go on from checkpoint.pth in output_dir if there is one; false: refuse to start there", "checkpoints")
    init_from: str | None = key(None, "checkpoint to start from: of this program, of the original, or of a backbone alone", "checkpoints")
    init_head: Literal["auto", "load", "new"] = key(
        "auto", "with init_from: the projection head: the file's if it fits; load: it has to fit; new: drawn anew", "checkpoints"
    )
    init_center: bool = key(True, "with init_from: take the centre too, if it fits and the head is the file's; false: zeros", "checkpoints")
    init_optimizer: bool = key(False, "with init_from: take the optimizer's moments too", "checkpoints")
    init_schedule: Literal["restart", "continue"] = key(
        "restart", "with init_from: schedules from their start, or the file's epoch", "checkpoints"
    )

    log_every: Count = key(10, "steps between points of the curves", "monitoring")
    tensorboard: bool = key(True, "write curves for TensorBoard to output_dir", "monitoring")
    knn_every: Natural = key(0, "epochs between k-NN scores of the teacher, by the first rank; 0: none", "monitoring")
    knn_data: str = key("digits", "labelled data of these scores: digits, shapes, or a folder with train and test (or val)", "monitoring")
    knn_k: Count = key(20, "neighbours that vote", "monitoring")
    collapse_alarm: bool = key(True, "warn when the teacher's output looks collapsed", "monitoring")
    probe: str | None = key(
        None, "task config whose tasks are run on the teacher during training; the first rank runs them, others wait", "monitoring"
    )
    every: Count = key(10, "epochs between runs of probe", "monitoring")

    launcher: Literal["none", "slurm"] = key("none", "slurm: submit the run as a job that goes on where it was preempted", "slurm")
    nodes: Count = key(2, "nodes", "slurm")
    ngpus: Count = key(8, "devices, and tasks, per node", "slurm")
    cpus_per_task: Count = key(10, "cores per task", "slurm")
    mem_per_gpu: Natural = key(40, "GB of memory per task; 0: the cluster's default", "slurm")
    partition: str | None = key(None, "partition; the cluster's default otherwise", "slurm")
    timeout: Count = key(2800, "minutes until the job is requeued", "slurm")
    max_requeues: Natural = key(30, "times that a job which ran out of time is requeued", "slurm")
    comment: str = key("", "Slurm's comment, where a cluster asks for one", "slurm")
    use_volta32: bool = key(False, "only V100 GPUs with 32 GB (constraint volta32gb)", "slurm")


class MethodLike(Protocol):
    """What is asked of a method here (``virb.pretraining.methods.Method``)."""

    @property
    def name(self) -> str: ...
    @property
    def Options(self) -> Any: ...
    @property
    def aliases(self) -> Mapping[str, str]: ...


def options_of(method: MethodLike) -> type[EngineOptions]:
    """The record of all keys: the method's own, and the engine's, whose defaults the method may have changed."""
    own: type[BaseModel] = method.Options
    if issubclass(own, EngineOptions):
        return own
    return type(f"{method.name.capitalize()}Options", (own, EngineOptions), {"__doc__": own.__doc__, "__module__": __name__})


@dataclass(frozen=True)
class KeyHelp:
    """One key for ``--help``: ``default`` is None where there is none; ``choices`` are empty where any value may stand; ``kind`` is that of
    one value: bool, int, float or str."""

    name: str
    group: str
    text: str
    default: Any
    choices: tuple[str, ...]
    several: bool
    kind: type


def describe_keys(record: type[EngineOptions], group: str) -> list[KeyHelp]:
    """All keys; ``group`` is the heading of those that are not the engine's."""
    found = []
    for name, field in record.model_fields.items():
        engine = EngineOptions.model_fields.get(name)
        extra = engine.json_schema_extra if engine is not None else None
        heading = str(extra["group"]) if isinstance(extra, dict) else group
        text = field.description or (engine.description if engine is not None else None) or ""
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        kind = field.annotation
        found.append(KeyHelp(name, heading, text, default, _choices(kind), _is_tuple(kind), _kind(kind)))
    return found


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return next((found for found in map(_choices, _alternatives(annotation)) if found), ())


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else ()


def _is_tuple(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list) or any(map(_is_tuple, _alternatives(annotation)))


def _length(annotation: Any) -> int | None:
    """Of a tuple with a fixed number of values."""
    if get_origin(annotation) is tuple:
        return None if Ellipsis in get_args(annotation) else len(get_args(annotation))
    return next((found for found in map(_length, _alternatives(annotation)) if found is not None), None)


def _kind(annotation: Any) -> type:
    parts = get_args(annotation) if get_origin(annotation) in (tuple, list) else _alternatives(annotation)
    known = [annotation] if annotation in (bool, int, float, str) else [_kind(part) for part in parts]
    return next((kind for kind in known if kind is not str), str)


def _takes_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return any(isinstance(choice, str) for choice in get_args(annotation))
    return annotation is str or any(map(_takes_text, _alternatives(annotation)))


@dataclass(frozen=True)
class Given:
    """A value and where it was given. ``original``: as the original's code wrote it, all options of a run, some of them as texts."""

    value: Any
    where: Where
    original: bool = False


def read_config(path: Path) -> tuple[dict[str, Given], dict[str, Any]]:
    """The keys of a YAML (or JSON) file or of an original ``args.txt``, and the facts of the run that wrote it (its ``world_size`` ...)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist{near_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from error
    if text.lstrip().startswith("Namespace("):
        data, lines = _read_namespace(path, text), {}
    else:
        report = Report()
        tree = parse(text, str(path), report)
        if tree is None or len(report):
            raise ConfigError(tuple(report))
        if not isinstance(tree.data, Mapping):
            raise UserError(f"{path}: expected keys and values, got {describe(tree.data)}")
        data, lines = dict(tree.data), {str(where[0]): line for where, line in tree.lines.items() if len(where) == 1}
    is_text = path.suffix == ".json" and all(isinstance(value, str) for value in data.values())
    is_original = path.suffix == ".txt" or not lines or is_text or bool(_FACTS - {"local_rank", "dist_url"} & data.keys())
    if is_original and lines and not text.lstrip().startswith("{"):
        data = {name: "" if value is None else value for name, value in data.items()}  # an empty text as str() writes it
    given = {name: Given(value, Where(str(path), lines.get(name, 0), name), is_original) for name, value in data.items()}
    facts = {name: _python_text(item.value) if is_original else item.value for name, item in given.items() if name in _FACTS}
    return {name: item for name, item in given.items() if name not in _FACTS or not is_original}, facts


def _read_namespace(path: Path, text: str) -> dict[str, Any]:
    """``Namespace(arch='vit_small', ...)``, as Python prints the original's options."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError
        return {item.arg: _literal(item.value) for item in call.keywords if item.arg is not None}
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} starts as an original args.txt, but cannot be read as one") from error


def _literal(node: ast.expr) -> Any:
    """The value, where that is a literal; of a path, its text; of anything else, its source. Nothing is evaluated."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and ast.unparse(node.func).endswith("Path"):
        return _literal(node.args[0])
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _python_text(value: Any) -> Any:
    """What the original writes with ``str``: None, True, (0.4, 1.0), in some files numbers too."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError):
        return value


def _from_original(record: type[EngineOptions], name: str, value: Any) -> Any:
    """Texts stay texts where the key takes them."""
    field = record.model_fields.get(name)
    if field is None or not _takes_text(field.annotation):
        return _python_text(value)
    return None if value == "None" else value


def from_flags(record: type[EngineOptions], flags: Mapping[str, Sequence[str]], aliases: Mapping[str, str]) -> dict[str, Given]:
    """Flags as typed (texts by key): a key that takes text gets it as it is, another what YAML makes of it."""
    found = {}
    for name, texts in flags.items():
        field = record.model_fields.get(aliases.get(name, name))
        annotation = field.annotation if field is not None else None
        plain = _takes_text(annotation)
        values = [text if plain and text not in ("null", "~") else _yaml_value(text) for text in texts]
        if len(values) == 1 and isinstance(values[0], str) and _is_tuple(annotation):
            values = (
                list(values[0].replace(",", " ").split()) if plain else [_yaml_value(part) for part in values[0].replace(",", " ").split()]
            )
        found[name] = Given(values if _is_tuple(annotation) or len(values) != 1 else values[0], Where(_COMMAND_LINE, 0, f"--{name}"))
    return found


def _yaml_value(text: str) -> Any:
    tree = parse(text, _COMMAND_LINE, Report()) if text.strip() else None
    return tree.data if tree is not None and not isinstance(tree.data, dict) else text


def make_options(method: MethodLike, *sources: Mapping[str, Given]) -> EngineOptions:
    """The checked record; later sources win. ConfigError names all mistakes with their places."""
    record = options_of(method)
    report = Report()
    merged: dict[str, Given] = {}
    for source in sources:
        named: dict[str, str] = {}
        for name, given in source.items():
            target = method.aliases.get(name, name)
            if target in named:
                report.add(given.where, f"given twice: {named[target]} is the same key")
            named[target] = name
            merged[target] = replace(given, value=_from_original(record, target, given.value)) if given.original else given
    data = {name: _as_tuple(record, name, given.value) for name, given in merged.items()}
    for name, value in data.items():
        length = _length(record.model_fields[name].annotation) if name in record.model_fields else None
        if length is not None and (not isinstance(value, tuple) or len(value) != length):
            report.add(merged[name].where, f"expected {length} values, got {describe(value)}")
    if len(report):
        raise ConfigError(tuple(report))

    def locate(path: KeyPath, *, missing: bool = False) -> Where:
        given = merged.get(str(path[0])) if path else None
        return given.where if given is not None else Where(_COMMAND_LINE, 0, f"--{path[0]}" if path else "")

    options = check(record, data, locate, report)
    if options is None or len(report):
        raise ConfigError(tuple(report))
    return options


def _as_tuple(record: type[EngineOptions], name: str, value: Any) -> Any:
    field = record.model_fields.get(name)
    return tuple(value) if field is not None and isinstance(value, list) and _is_tuple(field.annotation) else value


def plain(options: BaseModel) -> dict[str, Any]:
    """JSON-able: what checkpoints and records hold."""
    return json.loads(options.model_dump_json())


# Keys that change neither what is learned nor when; they may be other ones after a resume without a word.
_SILENT = frozenset(
    "output_dir num_workers device dist_url local_rank rank_timeout saveckp_freq save_every_steps keep resume init_from init_head "
    "init_center init_optimizer init_schedule log_every tensorboard knn_every knn_data knn_k collapse_alarm probe every launcher nodes "
    "ngpus cpus_per_task mem_per_gpu partition timeout max_requeues comment use_volta32".split()
)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``lr: 0.0005 -> 0.001`` for every key that matters and differs; a key that one of the two does not know is not compared."""
    shared = [name for name in now if name in before and name not in _SILENT]
    return [
        f"{name}: {_short(before[name])} -> {_short(now[name])}" for name in shared if _comparable(before[name]) != _comparable(now[name])
    ]


def _comparable(value: Any) -> Any:
    return [_comparable(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    return json.dumps(value, default=str)
