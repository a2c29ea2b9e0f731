"""Ranks that find each other, add up, take turns and part; what is lost is tested with the engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from virb.errors import UserError
from virb.pretraining.distributed import join

ROOT = Path(__file__).parents[2]
# Listens without a pause, so that a program that ends is nearly always inside the store.
RESTLESS = """
import torch
from virb.pretraining import distributed
def listen(self):
    while not self._closed.is_set():
        try:
            self._store.check(["nothing"])
        except RuntimeError:
            return
distributed.Ranks._listen = listen
ranks = distributed.join("cpu", 60)
tensor = torch.ones(2)
ranks.add_up([tensor])
assert tensor.tolist() == [2.0, 2.0]
with ranks.one_by_one():
    pass
ranks.close()
"""


def test_ranks_part_in_peace() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", RESTLESS], env={**shared, "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "must be whole numbers"),
    ],
)
def test_wrong_variables_are_told(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        join("cpu")


def test_one_process_needs_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    ranks = join("cpu")
    tensor = torch.ones(2)
    ranks.add_up([tensor])
    assert ranks.is_main
    assert tensor.tolist() == [1.0, 1.0]
