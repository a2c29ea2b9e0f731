"""From what a YAML says of a task to all that decides its numbers, with where each value came from.

Order: explicit key > protocol > task default > general default. A protocol whose values are overridden says so on its card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from virb.config import TaskConfig, Where
from virb.config.grid import expand
from virb.config.tree import Report
from virb.data.transforms import Geometry
from virb.errors import NotAvailableYet, UserError
from virb.probes.base import Probe, find_probe, probe_names
from virb.tasks.base import Task, all_tasks, find_task, import_attribute
from virb.tasks.protocols import GENERAL, PROTOCOLS, Protocol


@dataclass(frozen=True)
class ResolvedTask:
    """A task ready to be planned: every knob has its final value."""

    label: str
    task: Task
    protocol: str
    changed: Mapping[str, Any]  # keys of the protocol that the user changed: such numbers are never shown as the protocol's
    probe: str
    features: str
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
    stream: bool  # pre_encode: false
    data: Mapping[str, Any]
    geometry: Geometry | None  # where the protocol or the task fixes it
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    where: Where | None = field(default=None, compare=False)


class TaskVocabulary:
    """What the YAML checker needs to know of tasks, probes and encoders."""

    def __init__(self, arch_names: Sequence[str]) -> None:
        self._archs = tuple(arch_names)

    def task_ids(self) -> Sequence[str]:
        return sorted(all_tasks())

    def has_task(self, task_id: str) -> bool:
        try:
            find_task(task_id)
        except KeyError:
            return False
        return True

    def default_probe(self, task_id: str, protocol: str | None) -> str:
        values = PROTOCOLS[protocol].values if protocol in PROTOCOLS else {}
        return str(values.get("probe", find_task(task_id).probe))

    def probe_names(self) -> Sequence[str]:
        return probe_names()

    def probe_config(self, name: str) -> type[BaseModel]:
        return get_probe(name).Config

    def protocol_names(self) -> Sequence[str]:
        return sorted(PROTOCOLS)

    def arch_names(self) -> Sequence[str]:
        return self._archs


def get_probe(name: str) -> type[Probe]:
    """The probe's class; a user's own by ``module:Class``."""
    if ":" not in name:
        return find_probe(name)
    probe = import_attribute(name, "probe")
    if not (hasattr(probe, "shape") and hasattr(probe, "Config")):
        raise UserError(f"{name} is no probe: it needs name, shape and Config (see virb.probes.base)")
    return probe


def resolve_task(config: TaskConfig, protocol_override: str | None = None, seed: int = 0) -> list[ResolvedTask]:
    """One resolved task, or one per request when ``features`` is a list (a layer sweep)."""
    if config.task_head_weights_path is not None:
        raise NotAvailableYet("task_head_weights_path: scoring the heads of another task is not available yet")
    protocol = PROTOCOLS[protocol_override or config.protocol or "default"]
    task = _variant(find_task(config.task), protocol)
    origins: dict[str, str] = {"protocol": "--protocol" if protocol_override else _origin(config, "protocol")}

    def value(key: str) -> Any:
        for source, values in (
            (_origin(config, key), {key: getattr(config, key, None)} if key in config.explicit else {}),
            (f"protocol {protocol.name}", {**protocol.values, **protocol.probes.get(probe, {})}),
            (f"task {task.id}", {"probe": task.probe, "features": task.features, **task.defaults}),
            ("default", GENERAL),
        ):
            if values.get(key) is not None:
                origins[key] = source
                return values[key]
        origins[key] = "default"
        return None

    probe = ""
    probe = str(value("probe"))
    views = value("views")
    augment = value("augment")
    if augment == "none" and "augment" not in config.explicit and views != 1:
        augment, origins["augment"] = "crop-flip", f"views: {views}"
    if config.pre_encode is False and views == 1 and augment != "none":
        views, origins["views"] = "fresh", "pre_encode: false"
    batch_size = int(value("batch_size"))
    test_batch_size = value("test_batch_size")
    seeds = tuple(seed + s for s in value("seeds"))
    requests = value("features")
    requests = [requests] if isinstance(requests, str) else list(requests)
    configs = _configs(config, protocol, probe, origins)
    settled = {
        "num_epochs": int(value("num_epochs")),
        "batch_size": batch_size,
        "test_batch_size": int(test_batch_size or max(batch_size, 1024)),
        "selection": value("selection"),
        "refit": bool(value("refit")),
        "on_bad_image": value("on_bad_image"),
    }
    bundle = {**protocol.values, **protocol.probes.get(probe, {})}
    changed = {key: _plain(getattr(config, key)) for key in config.explicit if key in bundle and key not in ("training_configs", "grid")}
    if ("training_configs" in config.explicit or "grid" in config.explicit) and ({"training_configs", "grid"} & set(bundle)):
        changed["training_configs"] = list(configs)
    return [
        ResolvedTask(
            label=config.label if len(requests) == 1 else f"{config.label}@{re.sub(r'[^A-Za-z0-9._+-]', '', request.replace('[', '.'))}",
            task=task,
            protocol=protocol.name,
            changed=changed,
            probe=probe,
            features=request,
            configs=configs,
            seeds=seeds,
            views=views,
            augment=augment,
            stream=config.pre_encode is False or views == "fresh",
            data={**task.options, **(config.data or {})},
            geometry=protocol.geometry or task.geometry,
            origins=origins,
            where=config.where,
            **settled,
        )
        for request in requests
    ]


def _variant(task: Task, protocol: Protocol) -> Task:
    """``--protocol virb2021`` maps ids to ``ID@virb2021`` where the historic definition differs."""
    if protocol.variant is None or "@" in task.id:
        return task
    return all_tasks().get(f"{task.id}@{protocol.variant}", task)


def _configs(config: TaskConfig, protocol: Protocol, probe: str, origins: dict[str, str]) -> dict[str, BaseModel]:
    if config.training_configs is not None:
        key = "training_configs" if "training_configs" in config.explicit else "grid"
        origins["training_configs"] = _origin(config, key)
        return dict(config.training_configs)
    model = get_probe(probe).Config
    bundle = protocol.probes.get(probe) or PROTOCOLS["default"].probes.get(probe, {})
    origins["training_configs"] = f"protocol {protocol.name if probe in protocol.probes else 'default'}"
    if "training_configs" in bundle:
        return {name: model(**values) for name, values in bundle["training_configs"].items()}
    if "grid" in bundle:
        points = expand(bundle["grid"], lambda path, *, missing=False: Where("", 0, ""), Report())
        return {point.name: model(**point.values) for point in points}
    return {"default": model()}


def _origin(config: TaskConfig, key: str) -> str:
    where = config.explicit.get(key)
    return f"{where.file}:{where.line}" if where else "default"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def canonical(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")
