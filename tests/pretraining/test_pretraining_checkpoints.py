"""Checkpoints are whole or not there, and what does not fit is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import Net, run, same
from torch import nn

from virb.errors import UserError, ViRBError
from virb.pretraining import checkpoints


def content(value: float) -> dict[str, Any]:
    return {"student": {"weight": torch.full((300, 300), value)}, "epoch": 1}


class Full:
    """A disk that fills up while a large file is written."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.room -= len(memoryview(data).cast("B"))
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def fill_up(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    import builtins

    real = builtins.open

    def filling(path: Any, mode: str = "r", *args: Any, **keys: Any) -> Any:
        file = real(path, mode, *args, **keys)
        return Full(file, room) if mode == "wb" and "checkpoint" in str(path) else file

    monkeypatch.setattr("builtins.open", filling)


@pytest.mark.parametrize("room", [0, 50_000])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    path = tmp_path / "checkpoint.pth"
    checkpoints.save(path, content(1.0))
    with monkeypatch.context() as patched:
        fill_up(patched, room)
        with pytest.raises(ViRBError, match="the disk is full"):
            checkpoints.save(path, content(2.0))
    assert torch.equal(checkpoints.read(path)["student"]["weight"], torch.full((300, 300), 1.0))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_training_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "cut", epochs=1, warmup_epochs=1)
    with monkeypatch.context() as patched:
        fill_up(patched, 100)
        with pytest.raises(ViRBError, match="the disk is full"):
            run(tmp_path / "cut", epochs=3)
    saved = checkpoints.read(tmp_path / "cut" / "checkpoint.pth")
    assert saved["virb"]["step"] == 6
    assert not (tmp_path / "cut" / ".lease").exists()


def test_keeps_the_newest(tmp_path: Path) -> None:
    folder = checkpoints.Folder(tmp_path, every=2, keep=2)
    for epoch in range(9):
        folder.save({**content(float(epoch)), "epoch": epoch + 1}, epoch)
    assert [path.name for path in folder.numbered()] == ["checkpoint0006.pth", "checkpoint0008.pth"]
    assert checkpoints.read(tmp_path / "checkpoint0006.pth")["epoch"] == 7
    folder.save({**content(0.5), "epoch": 9})  # the last one does not change the numbered one that had the same bytes
    assert checkpoints.read(tmp_path / "checkpoint0008.pth")["epoch"] == 9
    assert float(checkpoints.read(tmp_path / "checkpoint0008.pth")["student"]["weight"][0, 0]) == 8.0


def test_numbered_checkpoints_of_a_run(tmp_path: Path) -> None:
    run(tmp_path, epochs=5, saveckp_freq=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == [
        "checkpoint.pth",
        "checkpoint0000.pth",
        "checkpoint0002.pth",
        "checkpoint0004.pth",
    ]
    same(tmp_path / "checkpoint0004.pth", tmp_path / "checkpoint.pth")


def test_fill_tells_what_does_not_fit(tmp_path: Path) -> None:
    state = Net(8, 0.0).state_dict()
    checkpoints.fill(Net(8, 0.0), {f"module.{name}": value for name, value in state.items()}, "student", tmp_path)
    with pytest.raises(UserError, match=r"backbone\.1\.weight is 8 x 48 in the file, 6 x 48 here"):
        checkpoints.fill(Net(6, 0.0), state, "student", tmp_path)
    with pytest.raises(UserError, match=r"missing: head\.bias"):
        checkpoints.fill(Net(8, 0.0), {name: value for name, value in state.items() if name != "head.bias"}, "student", tmp_path)
    with pytest.raises(UserError, match="not in this network: more"):
        checkpoints.fill(Net(8, 0.0), {**state, "more": torch.zeros(1)}, "student", tmp_path)
    head = nn.ModuleDict({"head": nn.ModuleDict({"last_layer": nn.Linear(4, 3)})})
    other = nn.ModuleDict({"head": nn.ModuleDict({"last_layer": nn.Linear(4, 5)})})
    with pytest.raises(UserError, match="set out_dim to the file's"):
        checkpoints.fill(head, other.state_dict(), "student", tmp_path)


def test_branches_of_all_kinds_of_files(tmp_path: Path) -> None:
    one, two = {"backbone.a": torch.ones(1), "head.b": torch.ones(1)}, {"backbone.a": torch.zeros(1), "head.b": torch.zeros(1)}
    student, teacher, has_head = checkpoints.branches({"student": {f"module.{k}": v for k, v in one.items()}, "teacher": two}, tmp_path)
    assert (student, teacher, has_head) == (one, two, True)
    assert checkpoints.branches({"teacher": two}, tmp_path) == (two, two, True)
    bare = checkpoints.branches({"a": torch.ones(1)}, tmp_path)
    assert bare == ({"backbone.a": torch.ones(1)},) * 2 + (False,)
    assert checkpoints.branches({"state_dict": {"a": torch.ones(1)}}, tmp_path) == bare
    with pytest.raises(UserError, match="has no weights"):
        checkpoints.branches({"epoch": 3}, tmp_path)


def test_compiled_names() -> None:
    state = {"module._orig_mod.backbone.a": torch.ones(1), "backbone._orig_mod.b": torch.ones(1), "epoch": 3}
    assert list(checkpoints.plain_names(state)) == ["backbone.a", "backbone.b"]


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="truncated"):
        run(tmp_path)
