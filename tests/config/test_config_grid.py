"""Grid sugar: which configs, under which names."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from virb.config import Where
from virb.config.grid import GridConfig, expand
from virb.config.tree import KeyPath, Report, dotted


def locate(path: KeyPath, *, missing: bool = False) -> Where:
    return Where("x", 0, dotted(("grid", *path)))


def points(grid: dict[str, Any]) -> list[GridConfig]:
    report = Report()
    configs = expand(grid, locate, report)
    assert list(report) == []
    return configs


def names(grid: dict[str, Any]) -> list[str]:
    return [point.name for point in points(grid)]


def test_all_combinations_the_last_key_fastest() -> None:
    grid = {"optimizer": ["sgd", "adamw"], "lr": [1e-3, 1e-2], "weight_decay": [0]}
    found = points(grid)
    assert [point.name for point in found] == ["sgd-lr0.001", "sgd-lr0.01", "adamw-lr0.001", "adamw-lr0.01"]
    assert [tuple(point.values.values()) for point in found] == list(itertools.product(*grid.values()))
    assert found[1].origin == {"optimizer": ("optimizer", 0), "lr": ("lr", 1), "weight_decay": ("weight_decay", 0)}


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"optimizer": "adam", "lr": 0.1}, ["adam"]),
        ({"optimizer": ["ADAM"], "lr": [0.1]}, ["adam"]),
        ({"lr": 0.1}, ["default"]),
        ({"k": [10, 20]}, ["k10", "k20"]),
        ({"lr": [0.1, 1e-5, 1]}, ["lr0.1", "lr1e-05", "lr1"]),
        ({"lr": [0.1234567, 0.1234568]}, ["lr0.1234567", "lr0.1234568"]),
        ({"optimizer": "adamw", "lr": [0.1, 0.2], "weight_decay": [0, 1e-2]}, ["lr0.1-wd0", "lr0.1-wd0.01", "lr0.2-wd0", "lr0.2-wd0.01"]),
        ({"weight_decay": [0, 1], "lr": [1, 2]}, ["wd0-lr1", "wd0-lr2", "wd1-lr1", "wd1-lr2"]),
        ({"scheduler": ["none", {"type": "Poly", "exponent": 0.9}]}, ["none", "Poly"]),
        ({"optimizer": "sgd", "nesterov": [True, False]}, ["nesterovtrue", "nesterovfalse"]),
        ({"betas": [[0.9, 0.99], [0.9, 0.95]]}, ["betas0.9+0.99", "betas0.9+0.95"]),
    ],
)
def test_names(grid: dict[str, Any], expected: list[str]) -> None:
    assert names(grid) == expected


def test_momentum_only_where_the_optimizer_takes_it() -> None:
    found = points({"optimizer": ["sgd", "adam"], "lr": [1, 2], "momentum": [0, 0.9], "nesterov": False})
    assert [point.name for point in found] == ["sgd-lr1-m0", "sgd-lr1-m0.9", "sgd-lr2-m0", "sgd-lr2-m0.9", "adam-lr1", "adam-lr2"]
    assert "momentum" in found[0].values
    assert set(found[-1].values) == {"optimizer", "lr"}
    assert names({"optimizer": ["sgd", "adam"], "momentum": 0.9}) == ["sgd", "adam"]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"lr": []}, "x  grid.lr  is empty"),
        ({"lr": [0.1, 0.2, 0.1]}, "x  grid.lr[2]  given twice in lr"),
        (
            {"scheduler": [{"type": "Poly", "exponent": 1}, {"type": "Poly", "exponent": 2}]},
            "x  grid.scheduler[1]  two training configs of the grid would be named Poly; name them under training_configs",
        ),
        (
            {"scheduler": ["none", None]},
            "x  grid.scheduler[1]  two training configs of the grid would be named none; name them under training_configs",
        ),
        (
            {"a": list(range(101)), "b": list(range(100))},
            "x  grid  makes 10100 training configs; at most 10000 are possible",
        ),
    ],
)
def test_mistakes(grid: dict[str, Any], expected: str) -> None:
    report = Report()
    expand(grid, locate, report)
    assert [str(problem) for problem in report] == [expected]
