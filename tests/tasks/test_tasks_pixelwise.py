"""The catalogue of pixelwise tasks: every id of ViRB 2021 is there, plain and as published, and fits its data set."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from virb.data.datasets import find_dataset
from virb.data.datasets.facts import FACTS
from virb.data.placement import DenseTarget
from virb.errors import UserError
from virb.tasks.base import all_tasks, check_task, find_task

VIRB_2021 = (
    "Pets-Detection EgoHands CityscapesSemanticSegmentation NYUWalkable NYUDepth THORDepth TaskonomyDepth TaskonomyEdges "
    "TaskonomyInpainting KITTI COCODetection"
).split()
BESIDE = "ADE20K PascalVOC CamVid NYU40".split()
PIXELWISE = [task_id for task_id, task in all_tasks().items() if task.level == "pixelwise" and task.dataset in FACTS]


def test_every_id_is_there_and_nothing_is_reserved():
    assert set(PIXELWISE) == {*VIRB_2021, *(f"{task_id}@virb2021" for task_id in VIRB_2021), *BESIDE}
    assert all(task.available for task in all_tasks().values())


@pytest.mark.parametrize("task_id", PIXELWISE)
def test_a_task_fits_its_dataset(task_id):
    task = find_task(task_id)
    check_task(task)
    assert set(task.options) <= set(inspect.signature(find_dataset(task.dataset)).parameters)
    assert task.about
    assert task.geometry is not None
    assert task.geometry.resize == "squash"  # the whole image is seen, so that all of the target can be scored
    if "@" not in task_id:
        assert (task.dense.at, task.dense.resample) == ("native", "nearest")  # never resampled
        assert not any(name.startswith("virb2021") for name in task.metrics)
    else:
        assert all(name.startswith("virb2021_") for name in task.metrics)
        assert task.options.get("variant") == "virb2021" or task_id == "EgoHands@virb2021"  # whose target was right


def test_kinds_and_primary_metrics():
    primary = {task_id: find_task(task_id).metrics[0] for task_id in (*VIRB_2021, *BESIDE)}
    assert {task_id for task_id, name in primary.items() if name == "foreground_iou"} == {"Pets-Detection", "NYUWalkable"}
    assert {task_id for task_id, name in primary.items() if name == "rmse"} == {"NYUDepth", "TaskonomyDepth"}
    assert primary["KITTI"] == "epe"
    semantic = {task_id for task_id in VIRB_2021 if find_task(task_id).kind == "semantic"}
    assert semantic == {"Pets-Detection", "EgoHands", "CityscapesSemanticSegmentation", "COCODetection"}


def test_dense_targets_are_of_pixelwise_tasks():
    check_task(replace(find_task("CamVid"), dense=None))  # answered by a probe of one's own
    with pytest.raises(UserError, match=r"the task digits has a dense target, but is image-level"):
        check_task(replace(find_task("digits"), dense=DenseTarget("labels")))
