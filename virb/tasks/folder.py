"""A user's own images: ``root/{train,val,test}/<class>/*`` is a task in four YAML lines."""

from __future__ import annotations

from virb.tasks.base import Task, register_task

register_task(
    Task(
        id="folder",
        level="image-level",
        kind="semantic",
        dataset="folder",
        metrics=("top1", "top5", "mean_class_accuracy"),
        about="classes are folders: data: {root: ...} with train/<class>/*, test/<class>/* and, if there is one, val/<class>/*",
    )
)
