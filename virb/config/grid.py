"""``grid:`` sugar: lists of values become named training configs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from virb.config.check import Locate
from virb.config.tree import KeyPath, Report

MAX_CONFIGS = 10_000
_SHORT = {"weight_decay": "wd", "momentum": "m"}
_ONLY_SGD = ("momentum", "nesterov")


@dataclass(frozen=True)
class GridConfig:
    """One point of the grid; ``origin`` is where each of its values stands, as a path inside the grid."""

    name: str
    values: dict[str, Any]
    origin: dict[str, KeyPath]


def expand(grid: Mapping[str, Any], locate: Locate, report: Report) -> list[GridConfig]:
    """All combinations in file order, the last key varying fastest.

    Names consist of the varying keys in file order: optimizer and scheduler by their bare value, ``lr0.001``, ``wd0``, ``m0.9``, others as
    key and value; when nothing varies, of the optimizer alone. ``momentum`` and ``nesterov`` are left out for optimizers that do not
    take them, so ``optimizer: [sgd, adam], momentum: [0, 0.9]`` is three configs: sgd-m0, sgd-m0.9 and adam.
    """
    axes: list[list[tuple[str, Any, KeyPath]]] = []
    for key, value in grid.items():
        choices = value if isinstance(value, list) else [value]
        if not choices:
            report.add(locate((key,)), "is empty")
            return []
        paths: list[KeyPath] = [(key, index) for index in range(len(choices))] if isinstance(value, list) else [(key,)]
        for index, choice in enumerate(choices):
            if any(choice == other and type(choice) is type(other) for other in choices[:index]):
                report.add(locate(paths[index]), f"given twice in {key}")
                return []
        axes.append([(key, choice, path) for choice, path in zip(choices, paths, strict=True)])
    size = 1
    for axis in axes:
        size *= len(axis)
    if size > MAX_CONFIGS:
        report.add(locate(()), f"makes {size} training configs; at most {MAX_CONFIGS} are possible")
        return []

    varying = [axis[0][0] for axis in axes if len(axis) > 1]
    configs: dict[str, GridConfig] = {}
    for point in itertools.product(*axes):
        values = {key: value for key, value, _ in point}
        dropped = () if _is_sgd(values.get("optimizer", "sgd")) else _ONLY_SGD
        values = {key: value for key, value in values.items() if key not in dropped}
        origin = {key: path for key, _, path in point if key in values}
        parts = [_part(key, values[key]) for key in varying if key in values]
        name = "-".join(parts) or (_part("optimizer", values["optimizer"]) if isinstance(values.get("optimizer"), str) else "default")
        if name not in configs:
            configs[name] = GridConfig(name, values, origin)
        elif configs[name].values != values:
            differ = next(key for key in values if values[key] != configs[name].values.get(key))
            report.add(locate(origin[differ]), f"two training configs of the grid would be named {name}; name them under training_configs")
    return list(configs.values())


def _is_sgd(optimizer: Any) -> bool:
    return isinstance(optimizer, str) and optimizer.casefold() == "sgd"


def _part(key: str, value: Any) -> str:
    if key == "scheduler" and isinstance(value, Mapping):
        value = value.get("type")
    text = _text(value)
    if key in ("optimizer", "scheduler"):
        return text.lower() if key == "optimizer" else text
    return _SHORT.get(key, key) + text


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, (list, tuple)):
        return "+".join(map(_text, value))
    return str(value)
