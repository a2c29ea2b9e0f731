"""Training configs of dense heads: what each probe's record takes, defaults, and mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from virb.config import GradientConfig, OptimizerConfig, Where
from virb.config.check import check
from virb.config.dense import (
    DeepLab2021Config,
    DeepLabConfig,
    DenseConfig,
    DenseLinearConfig,
    DenseMultiConfig,
    PixelShuffleConfig,
    SiameseConfig,
)
from virb.config.tree import KeyPath, Report, dotted

ALL = (DenseLinearConfig, DenseMultiConfig, PixelShuffleConfig, DeepLabConfig, DeepLab2021Config, SiameseConfig)
BASE = {"optimizer": "adam", "lr": 0.1}
OPTIMIZER = {"optimizer", "lr", "momentum", "nesterov", "weight_decay", "scheduler"}
COMMON = OPTIMIZER | {"output", "n_bins", "loss_size"}


def messages(values: Any, model: type[DenseConfig]) -> list[str]:
    def locate(path: KeyPath, *, missing: bool = False) -> Where:
        return Where("x", 0, dotted(path))

    report = Report()
    check(model, {**BASE, **values}, locate, report)
    return [f"{problem.key}: {problem.message}" for problem in report]


def test_the_keys_of_every_probe() -> None:
    assert set(OptimizerConfig.model_fields) == OPTIMIZER
    assert set(GradientConfig.model_fields) == OPTIMIZER | {"head", "init", "standardise"}  # of linear heads, which dense ones do not have
    own = {model: set(model.model_fields) - COMMON for model in ALL}
    assert all(set(model.model_fields) >= COMMON for model in ALL)
    assert own == {
        DenseLinearConfig: {"norm", "dropout"},
        DenseMultiConfig: {"norm", "dropout"},
        PixelShuffleConfig: set(),
        DeepLabConfig: set(),
        DeepLab2021Config: set(),
        SiameseConfig: {"fusion", "radius"},
    }


@pytest.mark.parametrize("model", ALL)
def test_defaults(model: type[DenseConfig]) -> None:
    config = model(optimizer="adam", lr=0.1)
    assert (config.output, config.n_bins, config.loss_size) == (None, 256, None)
    assert config.depth_by_default == ("direct" if model in (PixelShuffleConfig, SiameseConfig) else "bins")
    assert "depth_by_default" not in config.model_dump()  # what a probe always does is no hyper-parameter
    assert model.model_validate(config.model_dump()) == config


def test_defaults_of_the_probes_own_keys() -> None:
    linear = DenseLinearConfig(optimizer="adam", lr=0.1)
    assert (linear.norm, linear.dropout) == ("batch", 0.0)
    siamese = SiameseConfig(optimizer="adam", lr=0.1)
    assert (siamese.fusion, siamese.radius) == ("concat", 4)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (DenseLinearConfig, {"norm": "none", "dropout": 0.1, "output": "direct", "loss_size": 100}),
        (DenseMultiConfig, {"n_bins": 64, "output": "bins"}),
        (SiameseConfig, {"fusion": "correlation", "radius": 2}),
        (PixelShuffleConfig, {"scheduler": {"type": "Poly", "per": "step", "exponent": 1.0, "warmup": 5}}),
    ],
)
def test_given_values_are_kept(model: type[DenseConfig], given: dict[str, Any]) -> None:
    dumped = model.model_validate({**BASE, **given}).model_dump(exclude_none=True)
    assert {key: dumped[key] for key in given} == given
    assert model.model_validate({**BASE, "output": "Bins"}).output == "bins"


@pytest.mark.parametrize(
    ("model", "values", "expected"),
    [
        (DenseLinearConfig, {"norm": "layer"}, ['norm: "layer" is none of batch, none']),
        (DenseLinearConfig, {"dropout": 1}, ["dropout: expected less than 1, got 1"]),
        (DenseLinearConfig, {"output": "bin"}, ['output: "bin" is none of direct, bins; did you mean bins?']),
        (DenseLinearConfig, {"n_bins": 1}, ["n_bins: expected at least 2, got 1"]),
        (DenseLinearConfig, {"loss_size": 0}, ["loss_size: expected at least 1, got 0"]),
        (DenseLinearConfig, {"drop_out": 0.1}, ["drop_out: unknown key; did you mean dropout?"]),
        (DenseMultiConfig, {"momentum": 0.9}, ["momentum: adam takes no momentum; it belongs to sgd"]),
        (SiameseConfig, {"fusion": "concatenate"}, ['fusion: "concatenate" is none of concat, correlation; did you mean concat?']),
        (SiameseConfig, {"radius": 17}, ["radius: expected at most 16, got 17"]),
        *((model, {"standardise": True}, ["standardise: unknown key; known are " + ", ".join(model.model_fields)]) for model in ALL),
        (PixelShuffleConfig, {"head": "mean"}, ["head: unknown key; known are " + ", ".join(PixelShuffleConfig.model_fields)]),
    ],
)
def test_mistakes(model: type[DenseConfig], values: dict[str, Any], expected: list[str]) -> None:
    assert messages(values, model) == expected
