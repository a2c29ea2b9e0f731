"""Pixelwise tasks with a class at every pixel, and those on NYU: the five of ViRB 2021, and those this field expects beside them.

Plain ids: what is void or not measured is ignored, and predictions are scored at the size of the target as it is stored. ``test`` is what
is reported; where it is the official val, or there is none, training configs and epochs are chosen on a hold-out of ``train``.
``ID@virb2021``: target, loss, metric and head as published, for old numbers; images to train on are neither cropped nor jittered.
"""

from __future__ import annotations

from dataclasses import replace

from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.tasks.base import Task, register_task

_HELD_OUT = "chosen on a hold-out of train"
_OFFICIAL = "chosen on the official val"
_VIRB2021 = "as published in 2021, for old numbers only"
_CLASSES = ("miou", "pixel_accuracy", "mean_pixel_class_accuracy")
_OBJECT = ("foreground_iou", "miou", "pixel_accuracy", "boundary_f")  # something or not
_DEPTH = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3", "rmse_aligned", "abs_rel_aligned", "delta1_aligned")


def _squash(height: int, width: int) -> Geometry:
    return Geometry(size=(height, width), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None)


def _segmentation(
    task_id: str,
    dataset: str,
    size: tuple[int, int],
    num_epochs: int,
    about: str,
    metrics: tuple[str, ...] = _CLASSES,
    choice: str = _HELD_OUT,
) -> Task:
    """``size``: height and width that images are squashed to, near the aspect that most of them have."""
    return Task(
        id=task_id,
        level="pixelwise",
        kind="semantic",
        dataset=dataset,
        target="mask",
        features="tokens[-1]",
        probe="dense-linear",
        loss="cross_entropy",
        metrics=metrics,
        geometry=_squash(*size),
        dense=DenseTarget("labels"),
        defaults={"num_epochs": num_epochs, "batch_size": 16},
        about=f"{about}; {choice}",
    )


def _as_published(
    task: Task, dense: DenseTarget, probe: str, loss: str, metric: str, about: str, size: tuple[int, int] | None = None
) -> Task:
    """``size``: height and width of the images, where the plain task has another."""
    return replace(
        task,
        id=f"{task.id}@virb2021",
        features="pyramid",
        probe=probe,
        loss=loss,
        metrics=(metric,),
        dense=dense,
        geometry=_squash(*size) if size else task.geometry,
        about=f"{about}; {_VIRB2021}",
    )


_PETS = _segmentation(
    "Pets-Detection",
    "pets-masks",
    (224, 224),
    20,
    "where the cat or dog is; the border around it is ignored; official trainval and test",
    _OBJECT,
)
_EGOHANDS = _segmentation(
    "EgoHands", "egohands", (352, 640), 10, "left and right hands of oneself and the other; the split of the paper", choice=_OFFICIAL
)
_CITYSCAPES = _segmentation(
    "CityscapesSemanticSegmentation", "cityscapes", (512, 1024), 50, "19 classes of what is in a street; test = official val"
)
_WALKABLE = replace(
    _segmentation("NYUWalkable", "nyu-walkable", (224, 224), 50, "where a room can be walked on; test = ViRB's", _OBJECT), kind="structural"
)
_NYU_DEPTH = replace(
    _segmentation("NYUDepth", "nyu-depth", (480, 640), 50, "depth of rooms in metres, up to 10 m; official split, else ViRB's", _DEPTH),
    kind="structural",
    target="depth",
    loss="sig_loss",
    dense=DenseTarget("depth", range=(1e-3, 10.0)),
    options={"crop": "eigen"},
)

_MASK_2021 = DenseTarget("mask", at="view", resample="bicubic")  # resized by the filter that Pillow takes by itself
_PUBLISHED = (
    replace(
        _as_published(_PETS, _MASK_2021, "pixelshuffle", "bce", "virb2021_iou_binary", "where there is no cat or dog, border included"),
        options={"variant": "virb2021"},
    ),
    _as_published(
        _EGOHANDS,
        DenseTarget("labels"),
        "deeplab@virb2021",
        "cross_entropy(0.1,1,1,1,1)",
        "virb2021_iou",
        "left and right hands of oneself and the other, IoU within test batches; trained on whole frames where ViRB had crops of 513",
        (720, 1280),
    ),
    replace(
        _as_published(
            _CITYSCAPES,
            DenseTarget("labels"),
            "deeplab@virb2021",
            "cross_entropy",
            "virb2021_iou",
            "19 classes and void, IoU within test batches; trained on whole images where ViRB had scaled crops of 450",
            (1024, 2048),
        ),
        options={"variant": "virb2021"},
    ),
    replace(
        _as_published(
            _WALKABLE, _MASK_2021, "pixelshuffle", "bce", "virb2021_iou_binary", "where a room can be walked on, borders widened"
        ),
        options={"variant": "virb2021"},
    ),
    replace(
        _as_published(
            _NYU_DEPTH,
            DenseTarget("map", at="view", resample="bicubic"),
            "pixelshuffle",
            "l1",
            "virb2021_l1",
            "depth as stored, pixels without a measurement included",
        ),
        geometry=_squash(224, 224),
        options={"variant": "virb2021"},
    ),
)

_OTHERS = (
    _segmentation("NYU40", "nyu40", (480, 640), 50, "40 classes of what is in a room; official split"),
    _segmentation("ADE20K", "ade20k", (512, 512), 10, "150 classes, scenes of all kinds; test = official validation"),
    _segmentation(
        "PascalVOC", "voc2012-masks", (512, 512), 20, "20 classes and background; trainaug where it is there; test = official val"
    ),
    _segmentation("CamVid", "camvid", (384, 480), 100, "11 classes of what is in a street; SegNet's split", choice=_OFFICIAL),
)

for _entry in (_PETS, _EGOHANDS, _CITYSCAPES, _WALKABLE, _NYU_DEPTH, *_PUBLISHED, *_OTHERS):
    register_task(_entry)
