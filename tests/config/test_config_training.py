"""Hyper-parameters of gradient heads: ranges, defaults and what belongs to what."""

from __future__ import annotations

from typing import Any

import pytest

from virb.config import GradientConfig, MlpConfig, SchedulerConfig, Where
from virb.config.check import check
from virb.config.tree import KeyPath, Report, dotted


def messages(values: Any, model: type[GradientConfig] = GradientConfig) -> list[str]:
    def locate(path: KeyPath, *, missing: bool = False) -> Where:
        return Where("x", 0, dotted(path))

    report = Report()
    record = check(model, values, locate, report)
    assert (record is None) == bool(len(report))
    return [f"{problem.key}: {problem.message}" if problem.key else problem.message for problem in report]


def test_defaults() -> None:
    config = GradientConfig(optimizer="sgd", lr=1)
    assert config == GradientConfig(optimizer="sgd", lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, scheduler=None)
    assert MlpConfig(optimizer="adam", lr=0.1).hidden == 512


@pytest.mark.parametrize("model", [GradientConfig, MlpConfig])
def test_standardise_is_written_where_it_is_true(model: type[GradientConfig]) -> None:
    """Records of results from before there was the key are those of configs without it."""
    plain, standardised = (model(optimizer="sgd", lr=1, standardise=value) for value in (False, True))
    assert "standardise" not in plain.model_dump(mode="json")
    assert standardised.model_dump(mode="json") == {**plain.model_dump(mode="json"), "standardise": True}
    assert model.model_validate(standardised.model_dump()) == standardised
    assert model.model_validate(plain.model_dump()) == plain == model(optimizer="sgd", lr=1)


def scheduler(**values: Any) -> SchedulerConfig:
    return SchedulerConfig.model_validate(values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "StepLR", "step_size": 3, "gamma": 0.5}, {"type": "StepLR", "per": "epoch", "step_size": 3, "gamma": 0.5}),
        ({"type": "poly", "exponent": 0.9}, {"type": "Poly", "per": "step", "exponent": 0.9, "warmup": 0}),
        ({"type": "COSINE"}, {"type": "cosine", "per": "epoch", "min_lr": 0.0, "warmup": 0}),
        (
            {"type": "onecycle", "per": "step", "anneal": "cos"},
            {
                "type": "OneCycle",
                "per": "step",
                "pct_start": 0.3,
                "div_factor": 25.0,
                "final_div_factor": 1e4,
                "anneal": "cos",
                "cycle_momentum": True,
                "base_momentum": 0.85,
                "max_momentum": 0.95,
            },
        ),
    ],
)
def test_schedules_get_the_parameters_of_their_type(given: dict[str, Any], expected: dict[str, Any]) -> None:
    config = scheduler(**given)
    assert config.model_dump(exclude_none=True) == expected
    assert SchedulerConfig.model_validate(config.model_dump()) == config  # what is written can be read


@pytest.mark.parametrize("absent", [None, "none", "None", {"type": "none"}])
def test_no_schedule_is_one_thing(absent: Any) -> None:
    assert GradientConfig(optimizer="sgd", lr=0.1, scheduler=absent) == GradientConfig(optimizer="sgd", lr=0.1)


def test_bare_name_of_a_schedule() -> None:
    assert GradientConfig(optimizer="sgd", lr=0.1, scheduler="cosine").scheduler == scheduler(type="cosine")  # type: ignore[arg-type]
    assert messages({"optimizer": "sgd", "lr": 0.1, "scheduler": "cosin"}) == [
        'scheduler.type: "cosin" is none of none, StepLR, OneCycle, Poly, cosine; did you mean cosine?'
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"optimizer": "sgdd"}, ['optimizer: "sgdd" is none of sgd, adam, adamw; did you mean sgd?']),
        ({"optimizer": 3}, ["optimizer: 3 is none of sgd, adam, adamw"]),
        ({"lr": "fast"}, ['lr: expected a number, got "fast"']),
        ({"lr": True}, ["lr: expected a number, got true"]),
        ({"lr": None}, ["lr: expected a number, got nothing"]),
        ({"lr": 0}, ["lr: expected more than 0, got 0"]),
        ({"lr": float("nan")}, ["lr: expected a finite number, got NaN"]),
        ({"lr": [1]}, ["lr: expected a number, got [1]"]),
        ({"momentum": 1}, ["momentum: expected less than 1, got 1"]),
        ({"momentum": -0.1}, ["momentum: expected at least 0, got -0.1"]),
        ({"optimizer": "Adam", "momentum": 0.9}, ["momentum: adam takes no momentum; it belongs to sgd"]),
        ({"optimizer": "adamw", "nesterov": True}, ["nesterov: adamw takes no nesterov; it belongs to sgd"]),
        ({"nesterov": True}, ["nesterov: nesterov needs momentum above 0"]),
        ({"nesterov": "yes"}, ['nesterov: expected true or false, got "yes"']),
        ({"standardise": "always"}, ['standardise: expected true or false, got "always"']),
        ({"standardize": True}, ["standardize: unknown key; did you mean standardise?"]),
        ({"weight_decay": -1}, ["weight_decay: expected at least 0, got -1"]),
        ({"wieght_decay": 0}, ["wieght_decay: unknown key; did you mean weight_decay?"]),
        ({"qqq": 0}, ["qqq: unknown key; known are optimizer, lr, momentum, nesterov, weight_decay, scheduler, head, init, standardise"]),
        ({"scheduler": 3}, ["scheduler: expected a mapping, got 3"]),
        ({"scheduler": {"gamma": 0.1}}, ["scheduler.type: missing key"]),
        (
            {"scheduler": {"type": "StepLR"}},
            ["scheduler.step_size: missing key; StepLR needs it", "scheduler.gamma: missing key; StepLR needs it"],
        ),
        ({"scheduler": {"type": "Poly"}}, ["scheduler.exponent: missing key; Poly needs it"]),
        (
            {"scheduler": {"type": "cosine", "gamma": 0.1}},
            ["scheduler.gamma: the schedule cosine takes no gamma; it belongs to StepLR"],
        ),
        (
            {"scheduler": {"type": "none", "per": "step"}},
            ["scheduler.per: the schedule none takes no per; it belongs to StepLR, OneCycle, Poly, cosine"],
        ),
        (
            {"scheduler": {"type": "StepLR", "step_size": 1, "gamma": 0.1, "warmup": 3}},
            ["scheduler.warmup: the schedule StepLR takes no warmup; it belongs to Poly, cosine"],
        ),
        ({"scheduler": {"type": "cosine", "warmup": -1}}, ["scheduler.warmup: expected at least 0, got -1"]),
        ({"scheduler": {"type": "cosine", "warmup": 0.5}}, ["scheduler.warmup: expected a whole number, got 0.5"]),
        ({"scheduler": {"type": "cosine", "minlr": 0.1}}, ["scheduler.minlr: unknown key; did you mean min_lr?"]),
        (
            {"scheduler": {"type": "StepLR", "step_size": 1.5, "gamma": 0}},
            ["scheduler.step_size: expected a whole number, got 1.5", "scheduler.gamma: expected more than 0, got 0"],
        ),
        ({"scheduler": {"type": "cosine", "per": "batch"}}, ['scheduler.per: "batch" is none of step, epoch']),
        (
            {"hidden": 3},
            ["hidden: unknown key; known are optimizer, lr, momentum, nesterov, weight_decay, scheduler, head, init, standardise"],
        ),
    ],
)
def test_mistakes(values: dict[str, Any], expected: list[str]) -> None:
    assert messages({"optimizer": "sgd", "lr": 0.1, **values}) == expected


def test_all_mistakes_at_once() -> None:
    found = messages({"lr": "x", "momentum": 2, "scheduler": {"type": "StepLRR", "gama": 1}, "foo": 1})
    assert [message.split(":")[0] for message in found] == ["optimizer", "lr", "momentum", "scheduler.type", "scheduler.gama", "foo"]


def test_no_mapping_at_all() -> None:
    assert messages("adam") == ['expected a mapping, got "adam"']
    assert messages({"optimizer": "sgd", "lr": 0.1, "hidden": 0}, MlpConfig) == ["hidden: expected at least 1, got 0"]
