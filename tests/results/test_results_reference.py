"""Published numbers: the file, when one applies, and how tables show it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from virb.config import EncoderConfig, Where
from virb.encoders.known import KNOWN
from virb.metrics.base import find_metric
from virb.results.load import load_results
from virb.results.reference import reference_of, references
from virb.results.schema import Job
from virb.results.tables import text_table
from virb.runner.records import _known
from virb.tasks.base import find_task
from virb.tasks.protocols import PROTOCOLS
from virb.tasks.vocabulary import get_probe

Make = Callable[..., Any]
Publish = Callable[..., Job]


def test_every_reference_is_of_something_that_can_be_run() -> None:
    for reference in references():
        assert reference.metric in find_task(reference.task).metrics
        assert PROTOCOLS[reference.protocol].values.get("probe") == reference.probe
        assert get_probe(reference.probe).name == reference.probe
        assert find_metric(reference.metric).unit == "%"
        assert 0 < reference.tolerance <= 0.01 < reference.value < 1
        assert len(reference.source) > 20
    keys = [reference.key() for reference in references()]
    assert len(set(keys)) == len(keys) > 20


@pytest.fixture
def published(make: Make) -> Callable[..., Job]:
    """Makes a job of DINO's ViT-S/16 on ImageNet as its k-NN is published, with changes."""
    return partial(_published, make().job)


def _published(job: Job, **changes: object) -> Job:
    values: dict[str, object] = {
        "meta": "dino_vits16",
        "task": "Imagenet",
        "probe": "knn",
        "protocol": "dino-knn",
        "changed": {},
        **changes,
    }
    return job.model_copy(
        update={
            "encoder": job.encoder.model_copy(update={"meta": {"reference": values["meta"]}}),
            "task": job.task.model_copy(update={"id": values["task"], "probe": values["probe"]}),
            "protocol": job.protocol.model_copy(update={"name": values["protocol"], "changed": values["changed"]}),
        }
    )


def test_the_same_thing_is_compared(published: Publish) -> None:
    found = reference_of(published(), "top1")
    assert found is not None
    assert found.value == 0.745
    linear = reference_of(published(probe="linear", protocol="dino-linear", changed={"training_configs": ["a"], "views": 3}), "top1")
    assert linear is not None
    assert linear.value == 0.770


@pytest.mark.parametrize(
    "changes",
    [
        {"meta": "dino_vits17"},
        {"meta": None},
        {"meta": 3},
        {"task": "Imagenetv2"},
        {"probe": "linear"},
        {"protocol": "default"},
        {"changed": {"limit": {"train": 5}}},
        {"changed": {"selection": "val"}},
        {"meta": "dora_vits16_venice", "task": "Imagenette", "probe": "linear", "protocol": "dino-linear"},  # theirs had 10 epochs
    ],
)
def test_nothing_else_is(published: Publish, changes: dict[str, object]) -> None:
    assert reference_of(published(**changes), "top1") is None
    assert reference_of(published(), "top5") is None


def test_a_published_run_may_have_changed_its_protocol(published: Publish) -> None:
    same = {"meta": "dora_vits16_venice", "task": "Imagenette", "probe": "linear", "protocol": "dino-linear"}
    assert reference_of(published(**same, changed={"num_epochs": 10}), "top1") is not None


def test_released_weights_are_known_by_their_short_name() -> None:
    assert _known(EncoderConfig(name="e", weights="dino_vits16", where=Where("f", 1))) == {"reference": "dino_vits16"}
    assert _known(EncoderConfig(name="e", weights="dino_deits16", where=Where("f", 1))) == {"reference": "dino_vits16"}
    assert _known(EncoderConfig(name="e", weights="mine.pth", where=Where("f", 1))) == {}
    assert _known(torch.nn.Identity()) == {}
    assert {reference.encoder for reference in references() if reference.encoder.startswith("dino")} <= set(KNOWN)


def test_tables_show_the_difference(tmp_path: Path, make: Make, published: Publish) -> None:
    made = make()
    made.job = published()
    made.write(tmp_path)
    (row,) = load_results(tmp_path).to_dict("records")
    assert row["reference"] == 0.745
    assert row["reference_difference"] == pytest.approx(row["value"] - 0.745)
    assert row["reference_source"].startswith("facebookresearch/dino")
    line = text_table(load_results(tmp_path))[-1]
    assert line.endswith(f"(published 74.5, {100 * row['reference_difference']:+.1f}!)")


def test_results_without_a_reference_are_shown_as_ever(tmp_path: Path, make: Make) -> None:
    make().write(tmp_path)
    assert load_results(tmp_path)["reference"].isna().all()
    assert "published" not in "".join(text_table(load_results(tmp_path)))
