"""From what a YAML says of a task to all that decides its numbers, with where each value came from.

Order: explicit key > protocol > task default > the default protocol. A protocol whose values are overridden says so on its card.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from virb.config import TaskConfig, Where
from virb.config.check import check
from virb.config.grid import expand
from virb.config.records import TaskKeys, WindowKeys
from virb.config.tree import KeyPath, Report, dotted
from virb.data.transforms import Geometry
from virb.encoders.requests import Reduction, Request, Term
from virb.errors import ConfigError, Problem, UserError
from virb.probes.base import REPORT, SELECT, by_epochs
from virb.tasks.base import Task, check_task, find_task
from virb.tasks.protocols import DEFAULT, PROTOCOLS, Protocol, no_protocol
from virb.tasks.vocabulary import TaskVocabulary, get_probe, variant_of

__all__ = ["ResolvedTask", "TaskVocabulary", "canonical", "get_probe", "resolve_task"]

# What a protocol decides, besides features and training configs. Other keys say what is measured, by which method, or how it is computed.
_OF_PROTOCOL = (
    "num_epochs",
    "batch_size",
    "selection",
    "seeds",
    "refit",
    "views",
    "augment",
    "on_bad_image",
    "limit",
    "windows",
    "score_size",
)
_OF_TRAINING = ("probe", "num_epochs", "views", "augment", "selection", "seeds", "refit")  # mean nothing where nothing is trained
_OF_EPOCHS = ("num_epochs", "batch_size", "views", "augment")  # mean nothing to a probe that is not trained epoch by epoch
_FLATTEN = Reduction("flatten")


@dataclass(frozen=True)
class ResolvedTask:
    """A task ready to be planned: every knob has its final value."""

    label: str
    task: Task
    protocol: str
    changed: Mapping[str, Any]  # keys of the protocol that the user changed: such numbers are never shown as the protocol's
    probe: str
    features: str  # canonical text of the request
    configs: Mapping[str, BaseModel]
    num_epochs: int
    batch_size: int
    test_batch_size: int
    selection: str
    seeds: tuple[int, ...]
    refit: bool
    views: int | str  # a number, or "fresh": a new augmentation each epoch
    augment: str
    on_bad_image: str
    stream: bool  # encoded while heads train (pre_encode: false, views: fresh), never kept
    data: Mapping[str, Any]
    geometry: Geometry | None  # where the protocol or the task fixes it
    windows: WindowKeys | None = None  # of a pixelwise task: scored images are seen through sliding windows
    score_size: int | None = None  # of a pixelwise task: longer side at which predictions meet targets
    limit: Mapping[str, int] = field(default_factory=dict)  # split -> how many of its samples take part
    limit_by_defaults: bool = field(default=False, compare=False)  # given for all tasks of a file, whatever splits they have
    heads_path: str | None = None  # a glob of heads to score, %s being the encoder's name
    head_layout: str | None = None  # how heads that others trained take [CLS] and mean patch token, where it was said
    heads_from: str | None = None  # the label (or, by the task's default, the id) of the task whose heads are scored
    class_map: Mapping[str, str] = field(default_factory=dict)  # class of this task -> class of those heads, where the names differ
    modules: tuple[str, ...] = ()  # the user's own code that decides numbers: ``module:Name`` of the task, its dataset, probe and metrics
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    where: Where | None = field(default=None, compare=False)
    places: Mapping[str, Where] = field(default_factory=dict, compare=False)  # of the keys that were given

    @property
    def scores_heads(self) -> bool:
        """Nothing is trained: heads of another task are scored."""
        return self.heads_path is not None or self.heads_from is not None

    def place(self, key: str) -> Where:
        """Where a problem with this key is reported: the key itself, or the task when the key was not given."""
        return self.places.get(key) or self.where or Where("<python>", 0, self.label)


def resolve_task(config: TaskConfig, protocol_override: str | None = None, seed: int = 0) -> list[ResolvedTask]:
    """One resolved task, or one per request when ``features`` is a list (a layer sweep). ``seed`` is added to every seed."""
    try:
        task = find_task(config.task)
    except KeyError:
        raise _problem(config, "task", f"no task {config.task!r}") from None
    protocol = _protocol(config, task, protocol_override)
    task = variant_of(task, protocol)
    if not task.available:
        raise _problem(config, "task", f"the task {task.id} is not available yet; virb list tasks shows those that are")
    check_task(task)
    heads_path, heads_from = _heads(config, task)
    if heads_path or heads_from:
        task = replace(task, roles={REPORT: task.roles[REPORT]})
    values = _Values(config, task, protocol, without=_OF_TRAINING if heads_path or heads_from else ())
    if not (heads_path or heads_from):
        values.refuse_unused()
    if "limit" in config.by_defaults:
        values.limit_to({split for role, split in task.roles.items() if role != SELECT or values.get("selection") == "val"})
    origins = values.origins
    origins["protocol"] = "--protocol" if protocol_override else _line(config, "protocol")
    given = next((key for key in ("task_head_weights_path", "heads_from") if key in config.explicit), None)
    origins["heads"] = _line(config, given) if given else f"task {task.id}"

    seeds = tuple(seed + number for number in values.get("seeds"))
    if seed:
        origins["seeds"] += f" + --seed {seed}"
    views, augment, stream = _views(config, values)
    requests = _requests(config, values)
    configs = {} if heads_path or heads_from else values.training_configs()
    selection, refit, batch_size = values.get("selection"), bool(values.get("refit")), int(values.get("batch_size"))
    if refit and selection != "val":
        message = f"refit: true trains again on fit + select, but selection: {selection} has no select samples"
        raise _problem(config, "refit", message)
    if refit and not getattr(get_probe(values.probe), "refits", True):
        raise _problem(config, "refit", f"is not available for the probe {values.probe} yet")
    return [
        ResolvedTask(
            label=config.label if len(requests) == 1 else f"{config.label}@{_label_of(request)}",
            task=task,
            protocol=protocol.name,
            changed=values.changed(configs, request),
            probe=values.probe,
            features=request,
            configs=configs,
            num_epochs=int(values.get("num_epochs")),
            batch_size=batch_size,
            # Predictions of many images at native size would fill the memory.
            test_batch_size=int(values.get("test_batch_size") or (max(batch_size, 1024) if task.dense is None else batch_size)),
            selection=str(selection),
            seeds=seeds,
            refit=refit,
            views=views,
            augment=augment,
            on_bad_image=str(values.get("on_bad_image")),
            stream=stream,
            data={**task.options, **(config.data or {})},
            geometry=_fixed_geometry(task, protocol),
            windows=_dense_only(config, task, "windows", values.get("windows")),
            score_size=_dense_only(config, task, "score_size", values.get("score_size")),
            limit=dict(values.get("limit") or {}),
            limit_by_defaults="limit" in config.by_defaults,
            heads_path=heads_path,
            head_layout=config.head_layout if heads_path else None,
            heads_from=heads_from,
            class_map=dict(config.class_map or {}),
            modules=tuple(name for name in (config.task, task.dataset, values.probe, *task.metrics) if ":" in name),
            origins=origins,
            where=config.where,
            places=config.explicit,
        )
        for request in requests
    ]


def _fixed_geometry(task: Task, protocol: Protocol) -> Geometry | None:
    """A protocol that measures pixelwise tasks by variants of their own leaves them their geometry."""
    if task.dense is not None and protocol.variant is not None:
        return task.geometry
    return protocol.geometry or task.geometry


def _dense_only(config: TaskConfig, task: Task, key: str, value: Any) -> Any:
    """The value of a key that has a meaning for pixelwise tasks alone; a protocol's is dropped elsewhere."""
    if task.dense is not None:
        return value
    if key in config.explicit:
        raise _problem(config, key, f"is for pixelwise tasks; {task.id} is {task.level}")
    return None


class _Values:
    """The values of one task by who says them, the strongest first."""

    def __init__(self, config: TaskConfig, task: Task, protocol: Protocol, without: Collection[str] = ()) -> None:
        """``without``: keys that are as if nobody had given them."""
        self._config, self._protocol = config, protocol
        self._explicit = {key: getattr(config, key, None) for key in config.explicit if key not in without}
        own = _checked(f"task {task.id}", {"probe": task.probe, "features": task.features, **task.defaults})
        self.origins: dict[str, str] = {}
        self._unused: tuple[str, ...] = ()
        self._below: list[tuple[str, Mapping[str, Any]]] = [(f"protocol {protocol.name}", protocol.values), (f"task {task.id}", own)]
        self.probe = str(self.get("probe"))
        get_probe(self.probe)  # a name that is no probe's is found here
        layer = {} if protocol is DEFAULT else _checked(f"protocol {protocol.name}", protocol.layer(self.probe, task.id))
        default = _checked("default", DEFAULT.layer(self.probe))
        if self.probe != task.probe:  # the task's training configs are for its own probe, and so are features where another has its own
            features = getattr(get_probe(self.probe), "features", None)
            given = ("training_configs", "grid", *(["features"] if features else []))
            own = {key: value for key, value in own.items() if key not in given}
            default = {**default, **({"features": features} if features else {})}
        self._below = [(f"protocol {protocol.name}", layer), (f"task {task.id}", own), ("default", default)]
        self._unused = () if by_epochs(get_probe(self.probe)) else _OF_EPOCHS

    def refuse_unused(self) -> None:
        """Keys that mean nothing to the probe are a mistake where the task gives them; a file's defaults give them to its other tasks."""
        for key in self._unused:
            plain = key in ("views", "augment") and self._explicit.get(key) == DEFAULT.values[key]
            if self._config.on_task(key) and not plain:
                message = f"the probe {self.probe} is not trained epoch by epoch, so {key} has no meaning for it; leave it out"
                raise _problem(self._config, key, message)
            self._explicit.pop(key, None)

    def limit_to(self, splits: Collection[str]) -> None:
        """Leaves out what the file's defaults limit besides these splits, which is for its other tasks."""
        kept = {split: count for split, count in (self._explicit.pop("limit", None) or {}).items() if split in splits}
        if kept:
            self._explicit["limit"] = kept

    def get(self, key: str) -> Any:
        """The value that wins; its origin is noted. None when nobody says anything."""
        if key in self._unused:
            self.origins[key] = f"the probe {self.probe} has no epochs"
            return DEFAULT.values[key]
        if self._explicit.get(key) is not None:
            self.origins[key] = _line(self._config, key)
            return self._explicit[key]
        self.origins[key], value = self._without(key)
        return value

    def _without(self, key: str) -> tuple[str, Any]:
        """What would hold had the user said nothing."""
        return next(((source, values[key]) for source, values in self._below if values.get(key) is not None), ("default", None))

    def training_configs(self) -> dict[str, BaseModel]:
        if self._config.training_configs:
            key = "training_configs" if "training_configs" in self._config.explicit else "grid"
            self.origins["training_configs"] = _line(self._config, key)
            return dict(self._config.training_configs)
        self.origins["training_configs"], configs = self._default_configs()
        return configs

    def _default_configs(self) -> tuple[str, dict[str, BaseModel]]:
        model = get_probe(self.probe).Config
        for source, values in self._below:
            if source == f"protocol {self._protocol.name}" and values.get("grid"):
                values = {**values, "grid": self._protocol.grid_for(values["grid"], int(self.get("batch_size")))}
            if found := _configs(model, source, values):
                return source, found
        return "default", {"default": _record(model, f"{self.probe} needs training_configs or grid", {})}

    def _are_default(self, configs: Mapping[str, BaseModel]) -> bool:
        try:
            return dict(configs) == self._default_configs()[1]
        except UserError:  # a probe that has to be given its training configs
            return False

    def changed(self, configs: Mapping[str, BaseModel], request: str) -> dict[str, Any]:
        """What the user gave and differs from what the protocol (with the task's defaults) says: it goes on the card."""
        keys = [*_OF_PROTOCOL, *(["probe"] if "probe" in self._protocol.values else [])]
        options = self._protocol.options
        changed = {
            key: self._explicit[key] for key in keys if self._explicit.get(key) not in (None, self._without(key)[1], *options.get(key, ()))
        }
        if request not in (_canonical(self._without("features")[1], self.probe), *options.get("features", ())):
            changed["features"] = request
        if self._config.training_configs and not self._are_default(configs):
            changed["training_configs"] = list(configs)
        plain = {key: canonical(value) if isinstance(value, BaseModel) else value for key, value in changed.items()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def _protocol(config: TaskConfig, task: Task, override: str | None) -> Protocol:
    name = override or config.protocol or str(task.defaults.get("protocol", DEFAULT.name))
    if name not in PROTOCOLS:
        raise _problem(config, "protocol", no_protocol(name))
    return PROTOCOLS[name]


def _heads(config: TaskConfig, task: Task) -> tuple[str | None, str | None]:
    """Whose heads are scored: a glob, or the label or id of a task; nothing for a task that trains its own."""
    path, label = config.task_head_weights_path, config.heads_from
    if path is None and config.on_task("head_layout"):
        raise _problem(config, "head_layout", "is of heads that others trained; it needs task_head_weights_path")
    if path is None and label is None:
        label = task.heads_from
    if path is None and label is None:
        if config.class_map is not None:
            raise _problem(config, "class_map", "says which class of other heads is which; it needs heads_from or task_head_weights_path")
        return None, None
    of_training = [key for key in ("training_configs", "grid", *_OF_TRAINING) if config.on_task(key)]
    if of_training:
        whose = label if path is None else path
        raise _problem(config, of_training[0], f"nothing is trained: the task scores heads of {whose}, as they are; leave it out")
    if REPORT not in task.roles:
        key = "task_head_weights_path" if path is not None else "heads_from"
        raise _problem(config, key, f"the task {task.id} has no labelled samples to score heads on")
    if label == config.label:
        raise _problem(config, "heads_from", "names this very task")
    return path, label


def _views(config: TaskConfig, values: _Values) -> tuple[int | str, str, bool]:
    """Number of views or "fresh", the augmentation, and whether features are encoded while heads train.

    Several views are of augmented images, unless that is denied; ``pre_encode: false`` with augmentation means fresh views (as in 2021).
    """
    views, augment, keep = values.get("views"), values.get("augment"), values.get("pre_encode")
    if augment == "none" and views != 1:
        if "augment" in config.explicit:
            raise _problem(config, "augment", f"without augmentation all views are equal, but views is {views}; leave out one of them")
        augment, values.origins["augment"] = "crop-flip", f"views: {views}"
    if keep is False and views == 1 and augment != "none" and "views" not in config.explicit:
        views, values.origins["views"] = "fresh", "pre_encode: false"
    if keep is True and views == "fresh":
        raise _problem(config, "pre_encode", f"fresh views ({values.origins['views']}) cannot be encoded in advance")
    return views, str(augment), keep is False or views == "fresh"


def _requests(config: TaskConfig, values: _Values) -> list[str]:
    """Canonical texts; two that mean the same are a mistake."""
    asked = values.get("features")
    found: dict[str, str] = {}
    for text in [asked] if isinstance(asked, str) else asked:
        try:
            request = _canonical(text, values.probe)
        except ValueError as error:
            raise _problem(config, "features", str(error)) from None
        if request in found:
            raise _problem(config, "features", f"{text} and {found[request]} are the same request")
        found[request] = text
    return list(found)


def _canonical(text: str, probe: str) -> str:
    """The request's canonical text. A probe on vectors takes the [CLS] of several blocks as one vector, so that the images of a sample are
    the only axis beside it."""
    request = Request.parse(text)
    if hasattr(get_probe(probe), "check_features"):
        request = Request(tuple(replace(term, reductions=(_FLATTEN,)) if _is_stack(term) else term for term in request.terms))
    return str(request)


def _is_stack(term: Term) -> bool:
    return term.output.name == "cls" and term.output.several and not term.reductions


def _label_of(request: str) -> str:
    """A request as part of a label: ``tokens[-1].mean`` -> ``tokens-1.mean``, ``cls[-4:]`` -> ``cls-4..``."""
    text = request.replace("(norm=false)", "-raw").replace(":", "..").replace(",", "_")
    return "".join(letter for letter in text if letter not in "[]() ")


def _checked(source: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a task or protocol, by the rules that hold for YAML."""
    report = Report()
    record = check(TaskKeys, {**values, "task": source}, _nowhere, report)
    if record is None:
        raise UserError(f"{source} has wrong defaults: " + "; ".join(f"{p.key}: {p.message}" for p in report))
    found = {key: getattr(record, key) for key in values}
    return {**found, "views": found["num_dataset_repeats"]} if found.get("num_dataset_repeats") else found


def _record(model: type[BaseModel], source: str, content: Mapping[str, Any]) -> BaseModel:
    report = Report()
    record = check(model, content, _nowhere, report)
    if record is None:
        raise UserError(f"{source}: " + "; ".join(f"{p.key}: {p.message}" for p in report))
    return record


def _configs(model: type[BaseModel], source: str, values: Mapping[str, Any]) -> dict[str, BaseModel]:
    """The training configs that ``values`` name, those of their grid included."""
    named, grid = values.get("training_configs") or {}, values.get("grid")
    points = expand(grid, _nowhere, Report()) if grid else ()
    found = {**named, **{point.name: point.values for point in points}}
    return {name: _record(model, f"{source}, training config {name}", content) for name, content in found.items()}


def configs_of_protocol(protocol: Protocol, probe: str) -> dict[str, BaseModel]:
    """The training configs of a protocol for a probe, learning rates as they are written there."""
    return _configs(get_probe(probe).Config, f"protocol {protocol.name}", protocol.layer(probe))


def _nowhere(path: KeyPath, *, missing: bool = False) -> Where:
    return Where("", 0, dotted(path))


def _problem(config: TaskConfig, key: str, message: str) -> ConfigError:
    """At the key where it was given, else at the task."""
    where = config.explicit.get(key, config.where)
    return ConfigError([Problem(where.file, where.line, where.key or config.label, message)])


def _line(config: TaskConfig, key: str) -> str:
    where = config.explicit.get(key)
    return str(where) if where else "default"


def canonical(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")
