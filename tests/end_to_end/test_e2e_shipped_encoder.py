"""The encoder that ships with ViRB, weights/dino_tiny.safetensors: it is what the docs say, and knows what it knew when it was shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from virb.config import load_experiment_list
from virb.data.datasets import load_dataset
from virb.data.loader import load_batches
from virb.encoders.base import Encoder
from virb.encoders.load import encoder_names, load_encoder
from virb.functional.knn import nearest, normalise, vote
from virb.tasks.base import find_task
from virb.tasks.vocabulary import TaskVocabulary

ROOT = Path(__file__).parents[2]
KNN = {"dino_tiny": 86.4, "dino_tiny_random": 76.3}  # per cent of the test images of digits


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Encoder]:
    """As the quickstart's experiment list names them, from the root of a clone."""
    monkeypatch.chdir(ROOT)
    found = load_experiment_list(ROOT / "configs/experiment_lists/quickstart.yaml", TaskVocabulary(encoder_names())).checked()
    return {config.name: load_encoder(config, name=config.name) for config in found if config.name in KNN}


def test_it_is_small_says_where_it_is_from_and_has_a_twin(encoders: dict[str, Encoder]) -> None:
    assert (ROOT / "weights/dino_tiny.safetensors").stat().st_size < 3_000_000
    trained, random = encoders["dino_tiny"], encoders["dino_tiny_random"]
    told = dict(trained.spec.training)
    assert (told["method"], told["recipe"], told["data"]) == ("dino", "dino_tiny", "digits+shapes")
    assert (trained.spec.architecture, trained.arguments) == (random.spec.architecture, random.arguments)
    assert trained.spec.n_params == random.spec.n_params
    assert trained.spec.input == random.spec.input


def test_it_knows_the_digits_as_it_did(encoders: dict[str, Encoder]) -> None:
    scores = {name: knn_score(encoder) for name, encoder in encoders.items()}
    assert scores == pytest.approx(KNN, abs=1.0)  # three or four images: machines differ in the last bits
    assert scores["dino_tiny"] > scores["dino_tiny_random"] + 5


def knn_score(encoder: Encoder) -> float:
    digits = load_dataset("digits")
    (bank, known), (queries, truth) = (embed(encoder, digits.lists[split], digits.samples[split]) for split in ("train", "test"))
    similarity, index = nearest(queries, bank, 20)
    return 100 * float((vote(similarity, known[index], 10).argmax(1) == truth).double().mean())


def embed(encoder: Encoder, images: object, samples: object) -> tuple[Tensor, Tensor]:
    geometry = find_task("digits").geometry
    assert geometry is not None
    parts = []
    for batch in load_batches(images, np.arange(len(images)), (geometry,), 256):  # type: ignore[arg-type]
        pixels = batch.pixels[geometry]
        assert isinstance(pixels, Tensor)
        parts.append(encoder(encoder.prepare(pixels), ["embedding"])["embedding"])
    return normalise(torch.cat(parts)), torch.from_numpy(np.asarray(samples.targets["class"]))  # type: ignore[attr-defined]
