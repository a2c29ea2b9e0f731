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
from virb.encoders.requests import Request
from virb.metrics.base import find_metric
from virb.results.load import load_results
from virb.results.reference import reference_of, references
from virb.results.schema import Job
from virb.results.tables import text_table
from virb.runner.records import _known
from virb.tasks.base import find_task
from virb.tasks.protocols import PROTOCOLS
from virb.tasks.resolve import canonical, configs_of_protocol
from virb.tasks.vocabulary import get_probe

Make = Callable[..., Any]
Publish = Callable[..., Job]
LINEAR = {"probe": "linear", "protocol": "dino-linear", "features": "cls[-4:].flatten"}


def test_every_reference_is_of_something_that_can_be_run() -> None:
    for reference in references():
        assert reference.metric in find_task(reference.task).metrics
        assert PROTOCOLS[reference.protocol].values.get("probe") == reference.probe
        assert get_probe(reference.probe).name == reference.probe
        assert str(Request.parse(reference.features)) == reference.features
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
        "features": "embedding",
        **changes,
    }
    return job.model_copy(
        update={
            "encoder": job.encoder.model_copy(update={"meta": {"reference": values["meta"]}}),
            "task": job.task.model_copy(update={"id": values["task"], "probe": values["probe"], "features": [values["features"]]}),
            "protocol": job.protocol.model_copy(update={"name": values["protocol"], "changed": values["changed"]}),
        }
    )


def test_the_same_thing_is_compared(published: Publish) -> None:
    found = reference_of(published(), "top1")
    assert found is not None
    assert found.value == 0.745
    linear = reference_of(published(**LINEAR, changed={"views": 20}), "top1")
    assert linear is not None
    assert linear.value == 0.770


@pytest.mark.parametrize(
    ("change", "compared"),
    [({"lr": 0.07}, True), ({"optimizer": "adam", "momentum": 0.0}, False), ({"weight_decay": 1e-6}, False), ({"init": "torch"}, False)],
)
def test_learning_rates_are_free_and_nothing_else_of_a_head(published: Publish, change: dict[str, object], compared: bool) -> None:
    config = canonical(next(iter(configs_of_protocol(PROTOCOLS["dino-linear"], "linear").values())))
    job = published(**LINEAR, changed={"training_configs": ["a"]})
    row = job.surface[0].model_copy(update={"settings": {**config, **change}})
    found = reference_of(job.model_copy(update={"surface": [row]}), "top1")
    assert (found is not None) == compared


def test_another_choice_of_k_is_not_compared(published: Publish) -> None:
    job = published(changed={"training_configs": ["k20"]})
    config = canonical(configs_of_protocol(PROTOCOLS["dino-knn"], "knn")["k20"])
    row = job.surface[0].model_copy(update={"settings": config})
    assert reference_of(job.model_copy(update={"surface": [row]}), "top1") is None


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
        {"features": "cls[-4:].flatten"},  # the k-NN is of the output
        {"probe": "linear", "protocol": "dino-linear"},  # the classifier of the last four blocks
        {"probe": "linear", "protocol": "dino-linear", "features": "cls[-4:].flatten", "changed": {"batch_size": 64}},
        {"probe": "linear", "protocol": "dino-linear", "features": "cls[-4:].flatten", "changed": {"views": 3}},
        {"meta": "dora_vits16_venice", "task": "Imagenette", **LINEAR},  # theirs had 10 epochs
    ],
)
def test_nothing_else_is(published: Publish, changes: dict[str, object]) -> None:
    assert reference_of(published(**changes), "top1") is None
    assert reference_of(published(), "top5") is None


def test_a_published_run_may_have_changed_its_protocol(published: Publish) -> None:
    same = {"meta": "dora_vits16_venice", "task": "Imagenette", **LINEAR}
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
