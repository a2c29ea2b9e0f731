"""Published numbers (``reference.yaml``), and which of them a result can be held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from virb.results.schema import Job

FILE = Path(__file__).with_name("reference.yaml")
# What the published runs tuned for each encoder, or did in another but equal way: no reason not to compare.
_FREE = frozenset({"training_configs", "batch_size", "views"})


@dataclass(frozen=True)
class Reference:
    """A published number of an encoder on a task, by a probe under a protocol. ``encoder`` is the short name of its weights, or what an
    experiment list says under ``meta: {reference: NAME}``."""

    encoder: str
    task: str
    probe: str
    protocol: str
    metric: str
    value: float  # in the metric's own unit, fractions for %
    tolerance: float
    source: str
    changed: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> tuple[str, ...]:
        return self.encoder, self.task, self.probe, self.protocol, self.metric


@lru_cache(maxsize=1)
def references() -> tuple[Reference, ...]:
    """All of them, as the file has them."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(Reference(**{**entry, "source": content["sources"][entry["source"]]}) for entry in content["values"])


def reference_of(job: Job, metric: str) -> Reference | None:
    """The published number of this very thing: same encoder by name, same task, probe, protocol and metric, and nothing else changed in the
    protocol than the published run had changed, or was free to choose for its encoder."""
    name = job.encoder.meta.get("reference")
    changed = {key: value for key, value in job.protocol.changed.items() if key not in _FREE}
    for reference in references() if isinstance(name, str) else ():
        if reference.key() == (name, job.task.id, job.task.probe, job.protocol.name, metric) and dict(reference.changed) == changed:
            return reference
    return None
