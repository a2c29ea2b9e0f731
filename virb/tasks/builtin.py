"""Tasks on the built-in data: for trying and testing ViRB, never for claims about encoders."""

from __future__ import annotations

from virb.data.transforms import Geometry
from virb.tasks.base import Task, register_task

_DIGITS = Geometry(size=(32, 32), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None)
_SHAPES = Geometry(size=(64, 64), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None)

register_task(
    Task(
        id="digits",
        level="image-level",
        kind="semantic",
        dataset="digits",
        geometry=_DIGITS,
        about="which digit a scan shows (1,797 real 8x8 scans that come with scikit-learn)",
    )
)
register_task(
    Task(
        id="shapes-class",
        level="image-level",
        kind="semantic",
        dataset="shapes",
        geometry=_SHAPES,
        about="the kind of the object in front, in rendered scenes",
    )
)
register_task(
    Task(
        id="shapes-count",
        level="image-level",
        kind="structural",
        dataset="shapes",
        target="count",
        metrics=("top1", "mean_class_accuracy"),
        geometry=_SHAPES,
        about="how many objects a rendered scene shows, 1 to 6",
    )
)
