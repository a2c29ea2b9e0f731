"""The catalogue of image-level tasks against their datasets and the published sizes."""

from __future__ import annotations

import inspect

import pytest

from virb.data.datasets import dataset_names, find_dataset, load_dataset, needs_root
from virb.data.datasets.facts import FACTS
from virb.errors import UserError
from virb.tasks.base import all_tasks, find_task
from virb.tasks.image_level import _OTHERS, _SCORES, _VIRB

VIRB_2021 = (
    "Imagenet Imagenetv2 SUN397 CIFAR-100 CalTech-101 Eurosat Pets dtd CLEVRNumObjects CLEVRDist THORNumSteps THORActionPrediction "
    "nuScenesActionPrediction KineticsActionPrediction"
).split()
BESIDE = (
    "CIFAR-10 Imagenette Imagenet100 Food101 Flowers102 StanfordCars FGVCAircraft VOC2007 iNat2018 Places365 STL10 PCAM Country211"
).split()
SCORES = "Imagenetv2 ImagenetA ImagenetR ImagenetSketch ImagenetReaL ImagenetC".split()


def test_every_id_is_there_once():
    assert {task.id for task in (*_VIRB, *_SCORES)} >= set(VIRB_2021)
    assert {task.id for task in _OTHERS} == set(BESIDE)
    assert {task.id for task in _SCORES} == set(SCORES)
    assert set(VIRB_2021) | set(BESIDE) | set(SCORES) <= set(all_tasks())


@pytest.mark.parametrize(
    "task_id", [*VIRB_2021, *BESIDE, *SCORES, "Pets@virb2021", "CalTech-101@virb2021", "dtd@virb2021", "CLEVRDist@vtab"]
)
def test_a_task_names_a_dataset_that_takes_its_options(task_id):
    task = find_task(task_id)
    assert task.level == "image-level"
    assert task.dataset in FACTS
    parameters = inspect.signature(find_dataset(task.dataset)).parameters
    assert set(task.options) <= set(parameters)
    assert needs_root(task.dataset)
    assert task.about


def test_structural_tasks_are_those_of_virb():
    structural = {task.id for task in _VIRB if task.kind == "structural"}
    assert structural == {"CLEVRNumObjects", "CLEVRDist", "THORNumSteps", "THORActionPrediction", "nuScenesActionPrediction"}


def test_metrics_follow_the_convention():
    primary = {task.id: task.metrics[0] for task in (*_VIRB, *_OTHERS)}
    by_class = {task_id for task_id, metric in primary.items() if metric == "mean_class_accuracy"}
    assert by_class == {"Pets", "CalTech-101", "Flowers102", "FGVCAircraft"}
    assert primary.pop("VOC2007") == "mAP11"
    assert all(metric == "top1" for task_id, metric in primary.items() if task_id not in by_class)


def test_built_in_data_needs_no_root():
    assert not needs_root("digits")
    assert not needs_root("shapes")
    assert not needs_root("folder")  # it would take any folder: the user has to say which
    assert {name for name in dataset_names() if needs_root(name)} == set(FACTS)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_absent_data_say_where_to_get_them(tmp_path, name):
    with pytest.raises(UserError) as caught:
        load_dataset(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name}: not found: looked for ")
    assert FACTS[name].source in message
    assert FACTS[name].size in message
    assert FACTS[name].licence in message
    assert all(str(tmp_path / place) in message for place in FACTS[name].places)
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # looking makes nothing
    with pytest.raises(UserError, match="no folder is given"):
        load_dataset(name)


def test_sizes_add_up():
    expected = {name: facts.splits for name, facts in FACTS.items()}
    assert expected["dtd"]["train"] + expected["dtd"]["val"] == 3_760  # ViRB's README
    assert expected["flowers102"] == {"train": 1_020, "val": 1_020, "test": 6_149}
    assert expected["food101"]["train"] == 101 * 750
    assert expected["caltech101"]["train"] == 102 * 30
    assert expected["country211"] == {"train": 211 * 150, "val": 211 * 50, "test": 211 * 100}
    assert expected["places365"]["test"] == 365 * 100
    assert expected["inat2018"]["test"] == 8_142 * 3
    assert expected["voc2007"]["train"] + expected["voc2007"]["val"] == 5_011
    assert expected["pcam"]["train"] == 2**18
    assert expected["imagenet-c"]["test"] == 15 * 5 * expected["imagenet"]["test"]
    assert FACTS["eurosat"].total == 27_000
