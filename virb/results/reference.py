"""Published numbers (``reference.yaml``), and which of them a result can be held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from virb.io import hash_record
from virb.results.schema import Job
from virb.tasks.protocols import PROTOCOLS, Protocol

FILE = Path(__file__).with_name("reference.yaml")


@dataclass(frozen=True)
class Reference:
    """A published number of an encoder on a task, by a probe under a protocol. ``encoder`` is the short name of its weights, or what an
    experiment list says under ``meta: {reference: NAME}``."""

    encoder: str
    task: str
    probe: str
    protocol: str
    features: str
    metric: str
    value: float  # in the metric's own unit, fractions for %
    tolerance: float
    source: str
    changed: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> tuple[str, ...]:
        return self.encoder, self.task, self.probe, self.protocol, self.features, self.metric


@lru_cache(maxsize=1)
def references() -> tuple[Reference, ...]:
    """All of them, as the file has them."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(Reference(**{**entry, "source": content["sources"][entry["source"]]}) for entry in content["values"])


def reference_of(job: Job, metric: str) -> Reference | None:
    """The published number of this very thing: same encoder by name, same task, probe, protocol, features and metric, and nothing else
    changed in the protocol than the published run had changed. Learning rates, which it chose for its encoder, are free; so are more views
    than the protocol's."""
    name, protocol = job.encoder.meta.get("reference"), PROTOCOLS.get(job.protocol.name)
    if not isinstance(name, str) or protocol is None:
        return None
    key = (name, job.task.id, job.task.probe, job.protocol.name, *job.task.features, metric)
    found = next((reference for reference in references() if reference.key() == key), None)
    return found if found is not None and dict(found.changed) == _changed(job, protocol) else None


def _changed(job: Job, protocol: Protocol) -> dict[str, Any]:
    """What the job changed in its protocol, but for what is free."""
    changed, views = dict(job.protocol.changed), protocol.values.get("views")
    if isinstance(views, int) and isinstance(changed.get("views"), int) and changed["views"] > views:
        del changed["views"]
    if "training_configs" in changed:
        from virb.tasks.resolve import canonical, configs_of_protocol  # imports torch, which reading results does without

        settings = {_but_the_rate(row.settings) for row in job.surface}
        if settings == {_but_the_rate(canonical(config)) for config in configs_of_protocol(protocol, job.task.probe).values()}:
            del changed["training_configs"]
    return changed


def _but_the_rate(settings: Mapping[str, Any]) -> str:
    return hash_record({key: value for key, value in settings.items() if key != "lr"})
