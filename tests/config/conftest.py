"""A small world of words for the checker, and a folder to write YAML in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from virb.config import GradientConfig, MlpConfig, Strict
from virb.errors import UserError

# The 25 ids of ViRB 2021, and two of our own.
TASKS = [
    "Imagenet",
    "Imagenetv2",
    "SUN397",
    "CIFAR-100",
    "CalTech-101",
    "Eurosat",
    "Pets",
    "dtd",
    "CLEVRNumObjects",
    "CLEVRDist",
    "THORNumSteps",
    "THORActionPrediction",
    "nuScenesActionPrediction",
    "KineticsActionPrediction",
    "Pets-Detection",
    "EgoHands",
    "CityscapesSemanticSegmentation",
    "NYUWalkable",
    "NYUDepth",
    "THORDepth",
    "TaskonomyDepth",
    "TaskonomyEdges",
    "TaskonomyInpainting",
    "KITTI",
    "COCODetection",
    "digits",
    "folder",
]


class KnnConfig(Strict):
    k: int
    temperature: float = 0.07


class LaxConfig(BaseModel):
    """A user's own record that forgot extra="forbid"."""

    power: float = 1.0


class Words:
    def task_ids(self) -> Sequence[str]:
        return TASKS

    def has_task(self, task_id: str) -> bool:
        if ":" in task_id and task_id != "mylab.tasks:Birds":
            raise UserError(f"{task_id.split(':')[0]} cannot be imported")
        return task_id in TASKS or ":" in task_id

    def default_probe(self, task_id: str, protocol: str | None) -> str:
        return "knn" if protocol == "dino-knn" else "linear"

    def probe_names(self) -> Sequence[str]:
        return ["linear", "mlp", "knn"]

    def probe_config(self, name: str) -> type[BaseModel]:
        if name == "mylab.probes:Missing":
            raise UserError("mylab.probes has no Missing")
        return {"linear": GradientConfig, "mlp": MlpConfig, "knn": KnnConfig, "mylab.probes:Lax": LaxConfig}[name]

    def protocol_names(self) -> Sequence[str]:
        return ["default", "dino-linear", "dino-knn", "virb2021"]

    def arch_names(self) -> Sequence[str]:
        return ["pixels", "resnet18", "resnet50", "vit_tiny", "vit_small"]

    def weight_names(self) -> Sequence[str]:
        return ["dino_vits16", "dino_resnet50"]


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a file below a fresh current folder; returns its relative path."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return write_file
