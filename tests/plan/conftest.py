"""Small plans: the pixels encoder on digits, from mappings as YAML would give them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from plan_support import DIGITS, PIXELS, MakePlan

from virb.config import encoder_config_from_mapping, task_config_from_mapping
from virb.plan.build import build_plan
from virb.plan.jobs import Plan, RunSettings
from virb.tasks.vocabulary import TaskVocabulary


@pytest.fixture
def make_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    """``make_plan({name: encoder}, {label: task}, **settings)``; out lies in a fresh current folder."""
    monkeypatch.chdir(tmp_path)
    words = TaskVocabulary(["pixels", "vit_tiny", "resnet18"])

    def make(encoders: Mapping[str, Any] | None = None, tasks: Mapping[str, Any] | None = None, **settings: Any) -> Plan:
        protocol = settings.get("protocol")
        return build_plan(
            RunSettings(**settings),
            [encoder_config_from_mapping(name, what, words) for name, what in (encoders or {"e": PIXELS}).items()],
            [task_config_from_mapping(label, keys, words, protocol=protocol) for label, keys in (tasks or {"t": DIGITS}).items()],
        )

    return make
