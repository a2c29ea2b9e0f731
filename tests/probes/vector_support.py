"""Roles with planted classes for probes on vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel

from virb.probes.base import Context, Outcome, RoleData, Settings

CLASSES, WIDTH = 5, 16
CPU = Context(torch.device("cpu"))


class ArrayFeatures:
    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.from_numpy(values.astype(np.float32))
        self.shape: tuple[int, ...] | None = tuple(values.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    def set_epoch(self, epoch: int) -> None:
        pass

    def gather(self, samples: torch.Tensor | np.ndarray) -> torch.Tensor:
        return self.values[torch.as_tensor(samples)]

    def sample(self, index: int) -> list[torch.Tensor]:
        return [self.values[index]]


def planted(name: str, n: int, seed: int, noise: float = 2.0, classes: int = CLASSES) -> RoleData:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(77).normal(size=(CLASSES, WIDTH))
    targets = rng.permutation(np.arange(n) % classes)
    return role(name, centres[targets] + noise * rng.normal(size=(n, WIDTH)), targets)


def role(name: str, x: np.ndarray, targets: np.ndarray) -> RoleData:
    ids = np.array([f"{name}{i}" for i in range(len(x))])
    return RoleData(ArrayFeatures(x), targets, ids, ids)


def roles(select: bool = True, noise: float = 2.0) -> dict[str, RoleData]:
    found = {"fit": planted("fit", 210, 1, noise), "report": planted("report", 83, 3, noise)}
    return found | ({"select": planted("select", 61, 2, noise)} if select else {})


def x_of(data: RoleData) -> np.ndarray:
    return data.features.values.numpy()


def settings(configs: Mapping[str, BaseModel], **changes: object) -> Settings:
    base = Settings(
        configs=configs,
        num_epochs=1,
        batch_size=32,
        test_batch_size=25,
        selection="val",
        seeds=(0,),
        refit=False,
        loss="cross_entropy",
        metrics=("top1", "top5", "mean_class_accuracy"),
        n_classes=CLASSES,
    )
    return replace(base, **changes)


def shuffled(data: dict[str, RoleData], name: str) -> dict[str, RoleData]:
    """The same roles with the targets of one in another order."""
    targets = np.random.default_rng(9).permutation(np.asarray(data[name].targets))
    return data | {name: replace(data[name], targets=targets)}


def predicted(outcome: Outcome, run: int = 0) -> np.ndarray:
    report = outcome.runs[run].configs[outcome.chosen].report
    assert report is not None
    return report.values
