"""What a probe cannot do with a task, its features or its training configs is said before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_support import DIGITS, PIXELS, MakePlan

from virb.errors import ConfigError

LABELS = """
import numpy as np
from virb.data.images import ArrayImages, Dataset, Samples
from virb.tasks.base import Task

def labels(root=None):
    rng = np.random.default_rng(0)
    lists, samples = {}, {}
    for split, n in (("train", 30), ("test", 10)):
        lists[split] = ArrayImages(split, rng.integers(0, 255, (n, 8, 8), dtype=np.uint8), [f"{split}{i}" for i in range(n)])
        samples[split] = Samples.one_per_image(lists[split], {"labels": rng.integers(0, 2, (n, 3)).astype(np.int8)})
    return Dataset("labels", lists, samples, {"labels": ("a", "b", "c")})

TASK = Task(
    id="lab-labels", level="image-level", kind="semantic", dataset="lab_labels:labels", target="labels", loss="bce", metrics=("mAP",)
)
"""


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A task whose samples have several labels each."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lab_labels.py").write_text(LABELS)
    return {"task": "lab_labels:TASK"}


@pytest.mark.parametrize("probe", ["knn", "logistic", "ncm", "fewshot", "lowshot"])
def test_probes_that_answer_with_a_class_need_one_class_per_sample(make_plan: MakePlan, labels: dict[str, str], probe: str) -> None:
    with pytest.raises(ConfigError, match=f"the probe {probe} needs one class per sample, which lab-labels has not") as error:
        make_plan({"e": PIXELS, "f": PIXELS}, {"t": {**labels, "probe": probe}})
    (problem,) = error.value.problems  # once, not for each encoder
    assert problem.key == "t.probe"
    (job,) = make_plan(None, {"t": labels}).jobs  # a linear head has an output for each label
    assert job.task.probe == "linear"


@pytest.mark.parametrize("head", ["mean", "attention"])
def test_a_head_that_pools_needs_several_images_per_sample(make_plan: MakePlan, head: str) -> None:
    keys = {**DIGITS, "grid": {"optimizer": ["adam"], "lr": [0.1], "head": ["concat", head]}}
    with pytest.raises(
        ConfigError, match=rf"the training config head{head} has head: {head}, but a sample of this task has one image"
    ) as error:
        make_plan(None, {"t": keys})
    assert error.value.problems[0].key == "t.grid"


@pytest.mark.parametrize(
    ("probe", "configs", "message"),
    [
        ("lowshot", {"a": {"share": 0.1}, "b": {"share": 0.2}}, "differ in share or list"),
        ("lowshot", {"a": {"list": "no_such_list.txt"}}, "there is no list of samples data/no_such_list.txt"),
    ],
)
def test_what_a_probe_says_of_its_configs_is_said_while_planning(
    make_plan: MakePlan, probe: str, configs: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_plan(None, {"t": {**DIGITS, "probe": probe, "training_configs": configs}})
    assert error.value.problems[0].key == "t.training_configs"
