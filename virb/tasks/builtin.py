"""Tasks on the built-in data: for trying and testing ViRB, never for claims about encoders."""

from __future__ import annotations

from virb.data.placement import DenseTarget
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

_PIXELWISE = {"num_epochs": 10, "batch_size": 32}

register_task(
    Task(
        id="shapes-segmentation",
        level="pixelwise",
        kind="semantic",
        dataset="shapes",
        target="mask",
        features="tokens[-1]",
        probe="dense-linear",
        metrics=("miou", "pixel_accuracy", "boundary_f"),
        geometry=_SHAPES,
        dense=DenseTarget("labels"),
        defaults=_PIXELWISE,
        about="which kind of object each pixel of a rendered scene shows: five kinds and the background",
    )
)
register_task(
    Task(
        id="shapes-depth",
        level="pixelwise",
        kind="structural",
        dataset="shapes",
        target="depth",
        features="tokens[-1]",
        probe="dense-linear",
        loss="sig_loss",
        metrics=("rmse", "abs_rel", "delta1"),
        geometry=_SHAPES,
        dense=DenseTarget("depth", range=(0.5, 10.0)),
        defaults=_PIXELWISE,
        about="how far away each pixel of a rendered scene is, in metres",
    )
)
register_task(
    Task(
        id="shapes-flow",
        level="pixelwise",
        kind="structural",
        dataset="shapes-pairs",
        target="flow",
        features="pyramid",
        probe="siamese",
        loss="flow_l1",
        metrics=("epe", "fl_all"),
        geometry=_SHAPES,
        dense=DenseTarget("flow"),
        defaults=_PIXELWISE,
        about="where each pixel of a rendered scene is in the next frame, in pixels",
    )
)
