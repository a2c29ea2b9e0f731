"""Pixelwise tasks of ViRB 2021 on THOR, Taskonomy, KITTI and COCO.

Plain ids: targets in units where the data have them, what was not measured masked, predictions scored at the targets' own size. ``test``
is ViRB's (COCO: the official val); the choice is made on a hold-out of ``train`` where there is no official val. ``ID@virb2021``: targets,
loss, metric and head as published, for old numbers; images trained on are not jittered in colour, as the published ones were.
"""

from __future__ import annotations

from dataclasses import replace

from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.tasks.base import Kind, Task, register_task

_HELD_OUT = "chosen on a hold-out of train"
_OFFICIAL = "chosen on Taskonomy's official val where its split is there, else on a hold-out of train"
_VIRB2021 = "as published in 2021, for old numbers only"


def _squash(height: int, width: int) -> Geometry:
    return Geometry(size=(height, width), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None)


def _task(
    task_id: str,
    dataset: str,
    target: str,
    dense: DenseTarget,
    loss: str,
    metrics: tuple[str, ...],
    about: str,
    *,
    size: tuple[int, int] = (224, 224),
    num_epochs: int,
    kind: Kind = "structural",
    choice: str = _HELD_OUT,
    **fields: object,
) -> Task:
    task = Task(
        id=task_id,
        level="pixelwise",
        kind=kind,
        dataset=dataset,
        target=target,
        features="tokens[-1]",
        probe="dense-linear",
        loss=loss,
        metrics=metrics,
        geometry=_squash(*size),
        dense=dense,
        defaults={"num_epochs": num_epochs, "batch_size": 16},
        about=f"{about}; {choice}",
    )
    return replace(task, **fields)  # type: ignore[arg-type]


def _as_published(task: Task, dense: DenseTarget, loss: str, metric: str, about: str, size: tuple[int, int] = (224, 224)) -> Task:
    """ViRB's own decoder on five maps; KITTI keeps the one for two images."""
    return replace(
        task,
        id=f"{task.id}@virb2021",
        features="pyramid",
        probe="siamese" if task.probe == "siamese" else "pixelshuffle",
        loss=loss,
        metrics=(metric,),
        geometry=_squash(*size),
        dense=dense,
        options={**task.options, "variant": "virb2021"},
        about=f"{about}; {_VIRB2021}",
    )


_DEPTH_METRICS = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3", "rmse_aligned", "abs_rel_aligned", "delta1_aligned")
_RESIZED = DenseTarget("map", at="view", resample="bicubic")  # with the image, by the filter that Pillow takes by itself

_THOR = _task(
    "THORDepth",
    "thor-depth",
    "depth",
    # From half a step of grey to the greatest: no metres, as the files are 8-bit pictures of a range that nobody published.
    DenseTarget("depth", range=(0.5 / 255, 1.0)),
    "sig_loss",
    ("l1", "abs_rel", "delta1", "delta2", "delta3"),
    "depth in rendered rooms, normalised: 0 to 1 of an unknown range",
    num_epochs=50,
)
_DEPTH = _task(
    "TaskonomyDepth",
    "taskonomy",
    "depth",
    DenseTarget("depth", range=(1e-3, 20.0)),
    "sig_loss",
    _DEPTH_METRICS,
    "depth in rooms in metres, up to 20 m; what was not scanned is masked",
    num_epochs=50,
    options={"target": "depth"},
    choice=_OFFICIAL,
)
_EDGES = _task(
    "TaskonomyEdges",
    "taskonomy",
    "edges",
    DenseTarget("map"),
    "l1",
    ("l1", "weighted_l1"),
    "how strong the edge at each pixel is, 0 to 1 of what 16 bits hold",
    num_epochs=10,
    options={"target": "edges"},
    choice=_OFFICIAL,
)
_INPAINTING = _task(
    "TaskonomyInpainting",
    "taskonomy",
    "inpainting",
    DenseTarget("map", channels=3),
    "l1",
    ("l1", "l2"),
    "the colours, 0 to 1, of the blank middle of an image, scored there only",
    num_epochs=25,
    options={"target": "inpainting"},
    choice=_OFFICIAL,
)
_KITTI = _task(
    "KITTI",
    "kitti-flow",
    "flow",
    DenseTarget("flow"),
    "flow_l1",
    ("epe", "fl_all", "epe_noc", "fl_noc"),
    "optical flow between two frames from a driving car, in pixels; the last 10 % of the official training pairs are test",
    size=(384, 1248),
    num_epochs=100,
    features="pyramid",
    probe="siamese",
)
_COCO = _task(
    "COCODetection",
    "coco-panoptic",
    "labels",
    DenseTarget("labels"),
    "cross_entropy",
    ("miou", "pixel_accuracy", "mean_pixel_class_accuracy"),
    "which of 133 things and kinds of stuff each pixel shows; what is not annotated is ignored; test = official val",
    size=(512, 512),
    num_epochs=25,
    kind="semantic",
)

_ALL = (
    _THOR,
    _DEPTH,
    _EDGES,
    _INPAINTING,
    _KITTI,
    _COCO,
    _as_published(
        _THOR,
        DenseTarget("map", at="view", resample="bilinear"),
        "l1",
        "virb2021_l1",
        "depth in rendered rooms as grey from -2 to 2",
    ),
    _as_published(
        _DEPTH, replace(_RESIZED, rescale="far"), "l1", "virb2021_l1", "depth in rooms, scaled to each image, unscanned pixels included"
    ),
    _as_published(_EDGES, replace(_RESIZED, rescale="range"), "weighted_l1", "virb2021_l1", "edges, scaled to 0 to 1 in each image"),
    _as_published(
        _INPAINTING,
        DenseTarget("map", channels=3),
        "l1",
        "virb2021_l1",
        "a whole image of 224 x 224 whose middle is blank, in normalised colours",
    ),
    _as_published(
        _KITTI,
        _RESIZED,
        "nonzero_l1",
        "virb2021_neighbor",
        "the luminance of a picture of the flow, within 0.05; whole images where ViRB trained on crops of 224 x 224",
        size=(376, 1242),
    ),
    _as_published(
        _COCO,
        DenseTarget("labels", at="view", resample="bilinear"),
        "cross_entropy(ignore=0)",
        "virb2021_iou",
        "category ids 0 to 200, mixed where they are resized, scored batch by batch",
    ),
)

for _entry in _ALL:
    register_task(_entry)
