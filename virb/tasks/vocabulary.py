"""The words of tasks, probes and protocols: what the YAML checker asks, and how a probe's name becomes its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from virb.encoders.known import known_names
from virb.errors import UserError, did_you_mean
from virb.probes.base import find_probe, probe_names
from virb.tasks.base import Task, all_tasks, find_task
from virb.tasks.protocols import DEFAULT, PROTOCOLS, Protocol

_METHODS = {"features": "from_features", "batches": "from_batches", "online": "online"}  # what a probe of each shape has to have


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
        bundle = PROTOCOLS.get(protocol or DEFAULT.name, DEFAULT)
        return str(bundle.values.get("probe", variant_of(find_task(task_id), bundle).probe))

    def probe_names(self) -> Sequence[str]:
        return probe_names()

    def probe_config(self, name: str) -> type[BaseModel]:
        return get_probe(name).Config

    def protocol_names(self) -> Sequence[str]:
        return sorted(PROTOCOLS)

    def arch_names(self) -> Sequence[str]:
        return self._archs

    def weight_names(self) -> Sequence[str]:
        return known_names()


def variant_of(task: Task, protocol: Protocol) -> Task:
    """The task as this protocol measures it: ``virb2021`` maps ids to ``ID@virb2021`` where the historic definition differs."""
    if protocol.variant is None or "@" in task.id:
        return task
    return all_tasks().get(f"{task.id}@{protocol.variant}", task)


def get_probe(name: str) -> Any:
    """The probe's class; a user's own by ``module:Class``. UserError when it is none."""
    if ":" not in name:
        try:
            return find_probe(name)
        except KeyError:
            raise UserError(f"no probe {name!r}{did_you_mean(name, probe_names())}") from None
    probe = find_probe(name)
    config = getattr(probe, "Config", None)
    if not (isinstance(probe, type) and hasattr(probe, "shape") and isinstance(config, type) and issubclass(config, BaseModel)):
        raise UserError(f"{name} is no probe: it needs to be a class with shape and Config (see virb.probes.base)")
    method = _METHODS.get(probe.shape)
    if method is None:
        raise UserError(f"the probe {name} has the shape {probe.shape!r}; expected one of {', '.join(_METHODS)}")
    if not callable(getattr(probe, method, None)):
        raise UserError(f"the probe {name} has the shape {probe.shape!r} and needs a method {method}")
    return probe
