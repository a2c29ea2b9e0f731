"""The tasks of THOR, Taskonomy, KITTI and COCO: built of what exists, and as published where they say so."""

from __future__ import annotations

import inspect

import pytest

from virb.data.datasets import find_dataset
from virb.data.datasets.facts import FACTS
from virb.metrics.base import find_metric
from virb.probes.dense_losses import find_dense_loss
from virb.tasks.base import all_tasks, check_task, find_task

IDS = ("THORDepth", "TaskonomyDepth", "TaskonomyEdges", "TaskonomyInpainting", "KITTI", "COCODetection")
# Loss and metric of ViRB's runner, by its own names
PUBLISHED = {
    "THORDepth": ("l1", "virb2021_l1"),
    "TaskonomyDepth": ("l1", "virb2021_l1"),
    "TaskonomyEdges": ("weighted_l1", "virb2021_l1"),
    "TaskonomyInpainting": ("l1", "virb2021_l1"),
    "KITTI": ("nonzero_l1", "virb2021_neighbor"),
    "COCODetection": ("cross_entropy(ignore=0)", "virb2021_iou"),
}


@pytest.mark.parametrize("task_id", [*IDS, *(f"{task_id}@virb2021" for task_id in IDS)])
def test_a_task_is_made_of_what_there_is(task_id):
    task = find_task(task_id)
    check_task(task)
    assert task.available
    assert task.level == "pixelwise"
    assert task.kind == ("semantic" if task_id.startswith("COCO") else "structural")
    assert task.dataset in FACTS
    assert set(task.options) <= set(inspect.signature(find_dataset(task.dataset)).parameters)
    assert task.dense is not None
    find_dense_loss(task.loss, task.dense.kind)
    assert task.geometry is not None
    assert task.geometry.resize == "squash"  # every pixel is seen, so that scores are of whole images
    assert task.about


@pytest.mark.parametrize("task_id", IDS)
def test_old_and_new_never_share_a_metric(task_id):
    plain, historic = find_task(task_id), find_task(f"{task_id}@virb2021")
    assert (historic.loss, historic.metrics) == (PUBLISHED[task_id][0], (PUBLISHED[task_id][1],))
    assert not any(name.startswith("virb2021") for name in plain.metrics)
    assert historic.options == {**plain.options, "variant": "virb2021"}
    assert plain.dense.at == "native"
    assert historic.dense.at == ("native" if task_id == "TaskonomyInpainting" else "view")
    assert historic.features == "pyramid"
    assert historic.probe == ("siamese" if task_id == "KITTI" else "pixelshuffle")
    assert historic.geometry.size == ((376, 1242) if task_id == "KITTI" else (224, 224))


def test_directions_and_units():
    primary = {task_id: find_metric(find_task(task_id).metrics[0]) for task_id in IDS}
    higher = {task_id for task_id, metric in primary.items() if metric.higher_is_better}
    assert higher == {"COCODetection"}
    assert primary["TaskonomyDepth"].unit == "m"
    assert all(find_metric(name).unit != "m" for name in find_task("THORDepth").metrics)  # its range is unknown
    assert primary["KITTI"].unit == "px"


def test_images_of_one_geometry_are_encoded_once():
    depth, edges = find_task("TaskonomyDepth"), find_task("TaskonomyEdges")
    assert (depth.geometry, depth.features, depth.dataset) == (edges.geometry, edges.features, edges.dataset)


def test_ids_stand_once():
    assert {f"{task_id}{variant}" for task_id in IDS for variant in ("", "@virb2021")} <= set(all_tasks())
