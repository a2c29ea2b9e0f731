"""The protocol ``dino-linear``: its features are those of DINO's own evaluation, its views are made as DINO's training crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from virb.config import encoder_config_from_mapping, task_config_from_mapping
from virb.encoders.load import load_encoder
from virb.plan.build import build_plan
from virb.plan.jobs import RunSettings
from virb.tasks.vocabulary import TaskVocabulary

GOLDEN = Path(__file__).parents[1] / "golden" / "dino_linear_features.npz"


def test_features_are_those_of_dinos_evaluation(tmp_path: Path) -> None:
    stored = np.load(GOLDEN)
    torch.save({key[3:]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith("sd.")}, tmp_path / "vit.pth")
    encoder = load_encoder({"arch": "vit", "weights": str(tmp_path / "vit.pth"), "args": {"heads": 2, "position_mode": "dino"}})
    requests = {"n4": "cls[-4:].flatten", "n1": "embedding", "n1_avgpool": "cls[-1]+tokens[-1].mean"}
    found = encoder(torch.from_numpy(stored["x"]), list(requests.values()))
    for case, request in requests.items():
        ours = found[request].numpy()
        if case == "n1_avgpool":
            half = ours.shape[1] // 2
            ours = np.stack([ours[:, :half], ours[:, half:]], 2).reshape(len(ours), -1)
        np.testing.assert_allclose(ours, stored[f"{case}.features"], atol=2e-5)


def test_ten_views_are_cropped_bilinearly_and_the_rest_is_seen_as_dino_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = TaskVocabulary(["vit_tiny"])
    encoder = encoder_config_from_mapping("e", {"arch": "vit_tiny", "weights": "random"}, words)
    task = task_config_from_mapping("t", {"task": "digits", "protocol": "dino-linear"}, words)
    plan = build_plan(RunSettings(), [encoder], [task])
    (job,) = plan.jobs
    geometries = {role: [plan.context.entries[key].wanted.geometry for key in role_plan.entries] for role, role_plan in job.roles.items()}
    assert [(g.view.number, g.interpolation, g.size) for g in geometries["fit"]] == [(v, "bilinear", (224, 224)) for v in range(10)]
    (report,) = geometries["report"]
    assert (report.view, report.interpolation, report.resize, report.crop_pct) == (None, "bicubic", "shorter", 0.875)
    assert set(job.roles) == {"fit", "report"}  # as published: the choice is made on the reported samples, and the card says so
    assert plan.context.entries[job.roles["report"].entries[0]].row_shape == (4 * 192,)
