"""The pixelwise ids of ViRB 2021: reserved, so that its files load and say which of their tasks are built."""

from __future__ import annotations

from typing import cast

from virb.tasks.base import Kind, Level, Task, register_task

_IDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("pixelwise", "semantic"): ("Pets-Detection", "EgoHands", "CityscapesSemanticSegmentation", "COCODetection"),
    ("pixelwise", "structural"): (
        "NYUWalkable", "NYUDepth", "THORDepth", "TaskonomyDepth", "TaskonomyEdges", "TaskonomyInpainting", "KITTI",
    ),
}  # fmt: skip

for (_level, _kind), _ids in _IDS.items():
    for _id in _ids:
        register_task(Task(id=_id, level=cast(Level, _level), kind=cast(Kind, _kind), dataset=_id, available=False))
