"""What identifies a job's numbers: a hash of all that decides them, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.io import hash_record
from virb.plan.heads import HeadSource
from virb.plan.jobs import RolePlan, RunSettings
from virb.plan.samples import TaskData
from virb.sources import source_hash
from virb.tasks.resolve import ResolvedTask, canonical

RESULT_FORMAT = 1  # raised when code changes what a probe or metric computes


def job_key(
    settings: RunSettings, encoder: Encoder, task: ResolvedTask, geometry: Geometry, data: TaskData, roles: Mapping[str, RolePlan]
) -> str:
    """Hash of all that decides a job's numbers, and of nothing else: no label, name, device count, folder or number of threads."""
    return hash_record(
        {
            "format": RESULT_FORMAT,
            "encoder": encoder.spec.encoder_id,
            "geometry": geometry.record(),
            "normalisation": normalisation(encoder),
            "request": task.features,
            "numerics": settings.numerics.record(encoder, geometry),
            "roles": {
                role: {"entries": plan.entries, "list": plan.list_id, "samples": data.ids[role], "held_out": plan.held_out}
                for role, plan in roles.items()
            },
            "n_classes": len(data.classes) if data.classes else None,
            "task": {"id": task.task.id, "target": task.task.target, "loss": task.task.loss, "metrics": task.task.metrics},
            **({} if task.task.dense is None else {"dense": _dense_record(task)}),
            "probe": task.probe,
            "sources": source_hash(task.modules),
            "protocol": task.protocol,
            "configs": {name: canonical(config) for name, config in task.configs.items()},
            "num_epochs": task.num_epochs,
            "batch_size": task.batch_size,
            "test_batch_size": task.test_batch_size,
            "selection": task.selection,
            "seeds": task.seeds,
            "refit": task.refit,
            "views": task.views,
            "augment": task.augment,
            "on_bad_image": task.on_bad_image,
            **({"listed": data.listed.positions} if data.listed else {}),
        }
    )


def _dense_record(task: ResolvedTask) -> dict[str, Any]:
    windows = canonical(task.windows) if task.windows else None
    return {"target": asdict(task.task.dense), "windows": windows, "score_size": task.score_size}  # type: ignore[arg-type]


def score_key(
    settings: RunSettings,
    encoder: Encoder,
    task: ResolvedTask,
    geometry: Geometry,
    data: TaskData,
    roles: Mapping[str, RolePlan],
    sources: Sequence[HeadSource],
) -> str:
    """The key of an eval-only job. Heads count by the key of the job that trains them: it is the same before and after their training."""
    return hash_record(
        {
            "format": RESULT_FORMAT,
            "kind": "score",
            "encoder": encoder.spec.encoder_id,
            "geometry": geometry.record(),
            "normalisation": normalisation(encoder),
            "request": task.features,
            "numerics": settings.numerics.record(encoder, geometry),
            "roles": {role: {"entries": plan.entries, "list": plan.list_id, "samples": data.ids[role]} for role, plan in roles.items()},
            "task": {"id": task.task.id, "target": task.task.target, "metrics": task.task.metrics},
            "heads": [
                {"key": source.key, "columns": source.columns, **({"layout": source.layout} if source.layout else {})} for source in sources
            ],
            "on_bad_image": task.on_bad_image,
        }
    )


def normalisation(encoder: Encoder) -> dict[str, Any]:
    return {**encoder.spec.input.normalisation(), "patch_size": encoder.spec.patch_size}
