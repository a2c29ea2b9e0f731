"""Weights files in the layouts that people have, and files that are something else."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from virb.encoders.checkpoints import find_branch, read_file
from virb.encoders.load import load_encoder
from virb.errors import UserError

SMALL = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32}
RECIPE = {"arch": "vit", "args": {"heads": 2}}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(load_encoder({"arch": "vit", "weights": "random", "args": SMALL}, seed=5).network.state_dict())


def with_prefix(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def dino_file(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A whole DINO checkpoint; the student's values differ from the teacher's."""
    head = {"head.mlp.0.weight": torch.zeros(4, 32), "head.last_layer.weight_g": torch.ones(4, 1)}
    student = with_prefix({key: value + 1 for key, value in state.items()}, "backbone.")
    return {
        "student": with_prefix({**student, **head}, "module."),
        "teacher": {**with_prefix(state, "backbone."), **head},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def load(path: Path, **more: Any) -> Any:
    return load_encoder({**RECIPE, "weights": str(path), **more})


PREFIXES = ("", "module.", "backbone.", "encoder.", "model.", "module.module.", "module.backbone.", "_orig_mod.module.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("branch", ["", "state_dict", "model"])
def test_prefixes_and_branches(state: dict[str, torch.Tensor], prefix: str, branch: str, tmp_path: Path) -> None:
    content = with_prefix(state, prefix)
    torch.save({branch: content, "epoch": 1} if branch else content, tmp_path / "net.pth")
    encoder = load(tmp_path / "net.pth")
    for key, value in encoder.network.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_formats(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "net.safetensors")
    (tmp_path / "other_name.bin").write_bytes((tmp_path / "net.safetensors").read_bytes())
    ids = {load(tmp_path / name).spec.encoder_id for name in ("zip.pt", "legacy.pth", "net.safetensors", "other_name.bin")}
    assert len(ids) == 1


def test_half_precision_files_are_read_into_float32(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth")
    network = load(tmp_path / "half.pth").network
    assert network.norm.weight.dtype == torch.float32
    assert torch.equal(network.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"].half().float())


def test_dino_checkpoint_needs_a_branch_and_loads_the_named_one(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(dino_file(state), tmp_path / "full.pth")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "full.pth")
    assert "several state dicts" in str(caught.value)
    assert "teacher: backbone.cls_token" in str(caught.value)
    assert "checkpoint_key: teacher" in str(caught.value)
    teacher = load(tmp_path / "full.pth", checkpoint_key="teacher")
    student = load(tmp_path / "full.pth", checkpoint_key="student")
    assert torch.equal(teacher.network.pos_embed, state["pos_embed"])
    assert torch.equal(student.network.pos_embed, state["pos_embed"] + 1)
    assert 'branch "teacher", prefix "backbone."' in teacher.spec.source
    assert 'branch "student", prefix "module.backbone."' in student.spec.source
    with pytest.raises(UserError, match="checkpoint_key 'techer'"):
        load(tmp_path / "full.pth", checkpoint_key="techer")


def test_the_wrong_branch_says_which_one_would_fill_everything(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"student": {"layers.0.weight": torch.zeros(3), "layers.1.weight": torch.zeros(3)}, "teacher": state}, tmp_path / "full.pth")
    with pytest.raises(UserError) as caught:
        load_encoder({"arch": "vit", "args": SMALL, "weights": tmp_path / "full.pth", "checkpoint_key": "student"})
    lines = str(caught.value).splitlines()
    assert lines[0] == f'{tmp_path}/full.pth: filled 0 of {len(state)} parameters of vit_32x2h2/8 from branch "student".'
    assert lines[1] == "  the file's keys look like   student: layers.0.weight"
    assert lines[2].startswith(f"  {len(state)} missing: cls_token, pos_embed")
    assert lines[3] == "  2 unexpected: layers.0.weight, layers.1.weight"
    assert lines[-1] == "  try   checkpoint_key: teacher"


def test_every_single_tensor_is_needed(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for key in state:
        torch.save({other: value for other, value in state.items() if other != key}, tmp_path / "net.pth")
        with pytest.raises(UserError, match=f"1 missing: {key}"):
            load_encoder({"arch": "vit", "args": SMALL, "weights": str(tmp_path / "net.pth")})


def test_tensors_that_the_network_would_not_use_are_an_error(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({**state, "blocks.0.ls1.gamma": torch.ones(32), "blocks.1.ls1.gamma": torch.ones(32)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"2 unexpected: blocks\.0\.ls1\.gamma, blocks\.1\.ls1\.gamma"):
        load(tmp_path / "net.pth")
    torch.save({**state, "head.weight": torch.zeros(10, 32), "mask_token": torch.zeros(1, 1, 32)}, tmp_path / "net.pth")
    load(tmp_path / "net.pth")


def test_other_shapes_are_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match="1 of another shape: pos_embed is 1x17x32, expected 1x65x32"):
        load(tmp_path / "net.pth", args={"heads": 2, "img_size": 64})


def test_weights_that_are_not_numbers_are_an_error(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({**state, "norm.bias": torch.full((32,), float("nan"))}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"norm\.bias holds NaN"):
        load(tmp_path / "net.pth")


def test_values_in_memory_are_compared_with_the_file(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Two names for one parameter, two values in the file: a loader reports success, and one value is lost."""
    from torch import nn

    from virb.encoders.checkpoints import Branch, fill

    network = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    network["b"].weight = network["a"].weight
    with pytest.raises(UserError, match="differs from the file"):
        fill(network, Branch("", {"a.weight": torch.zeros(2, 2), "b.weight": torch.ones(2, 2)}), Path("x.pth"), "net")


class Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_file_cannot_run_code(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Attack()}, protocol=2))
    else:
        torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Attack()}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError) as caught:
        load_encoder(path)
    assert not (tmp_path / "hacked").exists()
    assert "bad.pth" in str(caught.value)
    assert "system" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def broken_files(folder: Path, state: dict[str, torch.Tensor]) -> dict[str, str]:
    """file name -> what the message says"""
    torch.save(state, folder / "whole.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "whole.safetensors")
    for name in ("whole.pth", "old.pth", "whole.safetensors"):
        content = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(content[: len(content) // 2])
    (folder / "page.pth").write_text("\n<!DOCTYPE html><html><body>Confirm download</body></html>")
    (folder / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("these are not the weights you are looking for")
    (folder / "folder.pth").mkdir()
    with zipfile.ZipFile(folder / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"optimizer": {"state": {0: {"m": torch.zeros(2)}}, "param_groups": []}, "epoch": 3}, folder / "optimizer.pth")
    return {
        "absent.pth": "does not exist",
        "cut_whole.pth": "truncated",
        "cut_old.pth": "truncated",
        "cut_whole.safetensors": "truncated",
        "page.pth": "web page",
        "lfs.pth": "git lfs pull",
        "empty.pth": "is empty",
        "text.pth": "cannot be read as weights",
        "folder.pth": "cannot be read",
        "archive.pth": "cannot be read as weights",
        "list.pth": "holds no state dict (it has a list)",
        "optimizer.pth": "holds no state dict (it has keys optimizer, epoch)",
    }


def test_what_is_no_weights_file_says_so_in_a_line_or_two(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for name, says in broken_files(tmp_path, state).items():
        with pytest.raises(UserError) as caught:
            load_encoder(tmp_path / name)
        assert says in str(caught.value), name
        assert str(tmp_path / name) in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 2, name


def test_the_only_state_dict_of_a_file_is_found_under_any_key(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"a": {"b": {"c": state}}, "epoch": 2}, tmp_path / "net.pth")
    content = read_file(tmp_path / "net.pth")
    assert find_branch(content, tmp_path / "net.pth").name == "a.b.c"
    assert find_branch(content, tmp_path / "net.pth", "a.b.c").state.keys() == state.keys()
