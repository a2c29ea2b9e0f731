"""The examples of CONTRIBUTING.md, written out as they stand there and run through the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    """A folder of a user's own, with every example that has a file name."""
    for name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_users_encoder_task_and_probe_run(folder):
    assert len(list(folder.rglob("*.*"))) == 6
    command = "main.py --experiment_list encoders.yaml --task_configs tasks.yaml more_tasks.yaml --devices cpu".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr

    from virb import load_results

    found = load_results(folder / "out").set_index("label")
    assert found.loc["stripes", "value"] > 0.9  # a stripe's direction is easy for a convolution
    assert found.loc["digits_ridge", "value"] > 0.4  # ten classes, a random network
    assert found.loc["digits_ridge", "config"] in {"strength0.001", "strength0.01", "strength0.1"}
