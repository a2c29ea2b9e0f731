"""Which geometry an eval-only job has: that of its heads, unless its images were published cut to a size of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from virb.config import EncoderConfig, Where, task_config_from_mapping
from virb.data.transforms import Geometry
from virb.encoders.load import load_encoder
from virb.plan.geometry import geometry_of_score
from virb.plan.jobs import RunSettings
from virb.tasks.resolve import resolve_task
from virb.tasks.vocabulary import TaskVocabulary

DINO = Geometry((224, 224), "shorter", "center", 0.875, "bicubic")
CUT = Geometry((224, 224), "none", "center", 1.0)


def chosen(task_id: str, known: Geometry | None, **settings: int) -> tuple[Geometry, str]:
    (task,) = resolve_task(task_config_from_mapping("label", {"task": task_id}, TaskVocabulary(["pixels"])))
    spec = load_encoder({"arch": "pixels"}).spec
    config = EncoderConfig(name="e", arch="pixels", where=Where("f", 1))
    return geometry_of_score(RunSettings(**settings), config, spec, task, known, "Imagenet")  # type: ignore[arg-type]


def test_heads_know_how_they_see() -> None:
    assert chosen("Imagenetv2", DINO) == (DINO, "heads of Imagenet")
    assert chosen("Imagenetv2", DINO, input_size=96) == (replace(DINO, size=(96, 96)), "--input_size")


@pytest.mark.parametrize("known", [DINO, Geometry((224, 224), "squash")])
def test_images_that_were_published_cut_are_not_cut_again(known: Geometry) -> None:
    assert chosen("ImagenetC", known) == (CUT, "task ImagenetC")


@pytest.mark.parametrize("known", [replace(DINO, size=(384, 384)), DINO])
def test_at_another_size_they_are_resized_whole(known: Geometry) -> None:
    settings = {"input_size": 384} if known is DINO else {}
    geometry, origin = chosen("ImagenetC", known, **settings)
    assert geometry == Geometry((384, 384), "squash", "none", 1.0, "bicubic")
    assert origin == "task ImagenetC"


def test_heads_of_which_nothing_is_known_see_as_the_encoder_does() -> None:
    own, origin = chosen("Imagenetv2", None)
    assert origin == "the encoder's default"
    assert chosen("ImagenetC", None)[0].size == own.size
