"""``--compile true``: the same training, by code that a compiler made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from command_support import flags

from virb.cli import main

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="torch.compile for CPUs needs a C++ compiler")]


def test_a_compiled_training_is_the_same_training(tmp_path: Path) -> None:
    """Three steps of two micro-batches each; the names in the checkpoint are those of the networks."""
    more = dict(epochs=1, batch_size_per_gpu=200, accumulation_steps=2, drop_path_rate=0.3, depth=1, warmup_epochs=0)
    for name in ("false", "true"):
        torch.compiler.reset()
        assert main(flags(tmp_path / name, compile=name, **more)) == 0
    plain, compiled = (torch.load(tmp_path / name / "checkpoint.pth", weights_only=True) for name in ("false", "true"))
    assert plain["virb"]["step"] == compiled["virb"]["step"] == 3
    for branch in ("student", "teacher", "dino_loss"):
        assert plain[branch].keys() == compiled[branch].keys()
        for name, value in plain[branch].items():
            torch.testing.assert_close(compiled[branch][name], value, rtol=1e-3, atol=1e-4)
    # It goes on, also without the compiler.
    assert main(flags(tmp_path / "true", **{**more, "epochs": 2})) == 0
    assert torch.load(tmp_path / "true" / "checkpoint.pth", weights_only=True)["virb"]["step"] == 6
