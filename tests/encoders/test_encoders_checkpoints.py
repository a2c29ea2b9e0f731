"""Weights files in the layouts that people have, and files that are something else."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from virb.encoders.checkpoints import from_state, read
from virb.encoders.filling import fill
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


def test_of_student_and_teacher_the_teacher_is_taken_unless_the_student_is_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(dino_file(state), tmp_path / "full.pth")
    teacher = load(tmp_path / "full.pth")
    student = load(tmp_path / "full.pth", checkpoint_key="student")
    assert torch.equal(teacher.network.pos_embed, state["pos_embed"])
    assert torch.equal(student.network.pos_embed, state["pos_embed"] + 1)
    assert 'teacher, branch "teacher", prefix "backbone.", not taken: student.backbone' in teacher.spec.source
    assert 'student, branch "student", prefix "module.backbone."' in student.spec.source
    assert load(tmp_path / "full.pth", checkpoint_key="teacher").spec.encoder_id == teacher.spec.encoder_id != student.spec.encoder_id
    with pytest.raises(UserError) as caught:
        load(tmp_path / "full.pth", checkpoint_key="techer")
    assert "no network under checkpoint_key 'techer'" in str(caught.value)
    assert "teacher.backbone, student.backbone" in str(caught.value)


def test_a_teacher_that_lacks_a_tensor_is_not_replaced_by_the_student(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    content = dino_file(state)
    del content["teacher"]["backbone.norm.bias"]
    torch.save(content, tmp_path / "full.pth")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "full.pth")
    assert "1 missing: norm.bias" in str(caught.value)
    assert str(caught.value).endswith("try   checkpoint_key: student.backbone")


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
    torch.save({**state, "blocks.0.gamma_1": torch.ones(32), "blocks.1.gamma_1": torch.ones(32)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"2 unexpected: blocks\.0\.gamma_1, blocks\.1\.gamma_1"):
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

    network = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    network["b"].weight = network["a"].weight
    with pytest.raises(UserError, match="differs from the file"):
        fill(network, from_state({"a.weight": torch.zeros(2, 2), "b.weight": torch.ones(2, 2)}, "x.pth"), "net")


def test_a_loader_that_loses_a_tensor_is_found_out(state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of batch norm, parameters: whatever a loader reports, the values in memory decide."""
    from torchvision import models

    network = models.resnet18(weights=None, num_classes=2)
    state = {key: value + 1 for key, value in network.state_dict().items()}
    fill(network, from_state(state, "x.pth"), "net")
    network = models.resnet18(weights=None, num_classes=2)
    honest = network.load_state_dict
    for lost in ("layer3.1.bn2.running_var", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias"):
        monkeypatch.setattr(
            network, "load_state_dict", lambda given, strict, lost=lost: honest({k: v for k, v in given.items() if k != lost}, strict)
        )
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.detach().zero_()
        with pytest.raises(UserError, match=f"{lost} in memory differs"):
            fill(network, from_state(state, "x.pth"), "net")


def test_one_dropped_running_variance_is_an_error(tmp_path: Path) -> None:
    from torchvision import models

    state = models.resnet18(weights=None).state_dict()
    torch.save({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, tmp_path / "net.pth")
    assert "100 of 100 tensors filled" in load_encoder(tmp_path / "net.pth").spec.source
    for lost in ("layer4.0.downsample.1.running_var", "bn1.running_mean"):
        torch.save({key: value for key, value in state.items() if key != lost}, tmp_path / "net.pth")
        with pytest.raises(UserError, match=f"1 missing: {lost}"):
            load_encoder(tmp_path / "net.pth")


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
        (folder / f"nearly_{name}").write_bytes(content[:-40])
    (folder / "long.safetensors").write_bytes(content + b"more")
    (folder / "header.safetensors").write_bytes((10**6).to_bytes(8, "little") + b'{"a": 1}')
    (folder / "nonsense.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a": 1}')
    (folder / "page.pth").write_text("\n<!DOCTYPE html><html><body>Confirm download</body></html>")
    (folder / "page.safetensors").write_text("<html><head><title>Google Drive - Virus scan warning</title></head></html>")
    (folder / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    (folder / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("these are not the weights you are looking for")
    (folder / "folder.pth").mkdir()
    with zipfile.ZipFile(folder / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with tarfile.open(folder / "tar.pth", "w") as tar:
        tar.add(folder / "text.pth")
    with zipfile.ZipFile(folder / "script.pt", "w") as archive:
        for part in ("data.pkl", "constants.pkl", "code/__torch__/net.py"):
            archive.writestr(f"net/{part}", pickle.dumps({}, 2))
    torch.save([1, 2], folder / "list.pth")
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2), "step": 3}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"optimizer": optimizer, "epoch": 3}, folder / "optimizer.pth")
    torch.save(optimizer, folder / "bare_optimizer.pth")
    linear = {"module.linear.weight": torch.zeros(1000, 1536), "module.linear.bias": torch.zeros(1000)}
    torch.save({"epoch": 100, "state_dict": linear, "optimizer": optimizer, "scheduler": {}, "best_acc": 77.0}, folder / "linear.pth")
    torch.save({"head.mlp.0.weight": torch.zeros(3, 2), "head.last_layer.weight_g": torch.zeros(3, 1)}, folder / "head.pth")
    return {
        "absent.pth": "does not exist",
        "cut_whole.pth": "truncated",
        "cut_old.pth": "truncated",
        "cut_whole.safetensors": "truncated",
        "nearly_whole.pth": "truncated",
        "nearly_old.pth": "truncated",
        "nearly_whole.safetensors": "truncated",
        "long.safetensors": "something was added",
        "header.safetensors": "truncated",
        "nonsense.safetensors": "cannot be read as safetensors",
        "page.pth": "web page",
        "page.safetensors": "web page",
        "lfs.pth": "git lfs pull",
        "lfs.safetensors": "git lfs pull",
        "empty.pth": "is empty",
        "text.pth": "text.pth is not a weights file (neither torch nor safetensors)",
        "folder.pth": "cannot be read",
        "archive.pth": "a zip archive of readme.txt, not a torch file",
        "tar.pth": "a tar archive",
        "script.pt": "TorchScript",
        "list.pth": "holds no state dict (it has a list)",
        "optimizer.pth": "only the state of an optimizer: it has keys optimizer, epoch",
        "bare_optimizer.pth": "only the state of an optimizer",
        "linear.pth": "only heads or a linear classifier (module.linear.weight 1000x1536, module.linear.bias 1000)",
        "head.pth": "only heads or a linear classifier",
    }


def test_what_is_no_weights_file_says_so_in_a_line_or_two(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for name, says in broken_files(tmp_path, state).items():
        with pytest.raises(UserError) as caught:
            load_encoder(tmp_path / name)
        assert says in str(caught.value), (name, str(caught.value))
        assert str(tmp_path / name) in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 2, name


def test_a_truncated_file_is_never_read_wherever_it_ends(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    small = {key: value for key, value in state.items() if not key.startswith("blocks.1")}
    for new in (True, False):
        torch.save({"state_dict": small, "scalar": Path("x")}, tmp_path / "whole.pth", _use_new_zipfile_serialization=new)
        read(tmp_path / "whole.pth")
        content = (tmp_path / "whole.pth").read_bytes()
        for cut in range(1, len(content), len(content) // 40):
            (tmp_path / "cut.pth").write_bytes(content[:cut])
            with pytest.raises(UserError):
                read(tmp_path / "cut.pth")


def test_the_only_state_dict_of_a_file_is_found_under_any_key(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"a": {"b": {"c": state}}, "epoch": 2}, tmp_path / "net.pth")
    assert 'branch "a.b.c"' in load(tmp_path / "net.pth").spec.source
    assert 'branch "a.b.c"' in load(tmp_path / "net.pth", checkpoint_key="a.b.c").spec.source
    assert 'branch "a.b.c"' in load(tmp_path / "net.pth", checkpoint_key="b").spec.source


def test_the_wrong_architecture_says_what_the_file_is(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    from torchvision import models

    resnet = models.resnet18(weights=None).state_dict()
    torch.save(resnet, tmp_path / "resnet.pth")
    wide = load_encoder({"arch": "vit_tiny", "args": {"img_size": 32, "patch_size": 8}, "weights": "random"})
    torch.save(wide.network.state_dict(), tmp_path / "vit.pth")
    cases = [
        ({"arch": "resnet50", "weights": "resnet.pth"}, ["filled ", "of resnet50", "of another shape", "arch: resnet18"]),
        ({"arch": "vit_small", "weights": "resnet.pth"}, ["filled 0 of 150", "conv1.weight", "arch: resnet18"]),
        ({"arch": "resnet18", "weights": "vit.pth"}, ["filled 0 of 100", "patch_embed", "arch: vit"]),
        ({"arch": "vit_base", "weights": "vit.pth"}, ["of vit_base/8", "pos_embed is 1x17x192", "arch: vit"]),
        ({"timm": "vit_tiny_patch16_224", "weights": "vit.pth"}, ["of another shape: ", "arch: vit"]),
        ({"timm": "resnet18", "weights": "vit.pth"}, ["filled 0 of 100"]),
    ]
    for recipe, says in cases:
        with pytest.raises(UserError) as caught:
            load_encoder({**recipe, "weights": tmp_path / recipe["weights"]})
        for text in says:
            assert text in str(caught.value), (recipe, str(caught.value))
    assert load_encoder({"timm": "resnet18", "weights": tmp_path / "resnet.pth"}).spec.source.partition(";")[0].endswith("(100 %)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_said(dtype: torch.dtype, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({key: value.to(dtype) for key, value in state.items()}, tmp_path / "net.pth")
    encoder = load(tmp_path / "net.pth")
    assert f"cast from {str(dtype).removeprefix('torch.')}" in encoder.spec.source
    assert encoder.network.pos_embed.dtype == torch.float32
    assert torch.equal(encoder.network.pos_embed, state["pos_embed"].to(dtype).float())


# Shards


def shards(folder: Path, state: dict[str, torch.Tensor], suffix: str = "safetensors") -> Path:
    keys = list(state)
    places = {key: f"model-0000{1 + (at % 3)}-of-00003.{suffix}" for at, key in enumerate(keys)}
    for place in set(places.values()):
        part = {key: state[key] for key in keys if places[key] == place}
        save_file(part, folder / place) if suffix == "safetensors" else torch.save(part, folder / place)
    index = folder / ("model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_index_with_shards(suffix: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    index = shards(tmp_path, state, suffix)
    for path in (index, tmp_path):
        network = load(path).network
        assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())
    (tmp_path / f"model-00002-of-00003.{suffix}").unlink()
    with pytest.raises(UserError, match=f"names 1 shards that are not there: model-00002-of-00003.{suffix}"):
        load(index)


def test_a_wrong_index(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    index = shards(tmp_path, state)
    content = json.loads(index.read_text())
    cases = {
        "is no index of weights": "[]",
        "no index": "{",
        "shards are files in its own folder": json.dumps({"weight_map": {"a": "../model-00001-of-00003.safetensors"}}),
        "lacks 1 tensors": json.dumps({"weight_map": {**content["weight_map"], "extra": "model-00001-of-00003.safetensors"}}),
    }
    for says, text in cases.items():
        index.write_text(text)
        with pytest.raises(UserError, match=says):
            load(index)


def test_reading_keeps_the_file_out_of_memory(tmp_path: Path) -> None:
    """Weights are in memory twice at most: the network and what is read of the file, which is mapped."""
    import subprocess
    import sys

    size = 200
    torch.save({"state_dict": {"weight": torch.zeros(size, 1 << 18)}, "path": Path("x")}, tmp_path / "big.pth")  # 200 MiB, not plain
    program = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from virb.encoders.checkpoints import read; from virb.encoders.filling import fill\n"
        f"network = torch.nn.Linear(1 << 18, {size}, bias=False)\n"
        "network.weight.data.fill_(1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "fill(network, read(Path(sys.argv[1])), 'net')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "big.pth")], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.6 * size  # one copy, and what the comparison needs for a moment (flags, a byte per number)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bn1.running_var", lambda t: t * float("nan"), "holds NaN or infinite values"),
        ("bn1.running_mean", lambda t: t + float("inf"), "holds NaN or infinite values"),
        ("bn1.running_var", lambda t: -t - 1, "holds negative variances"),
        ("bn1.weight", lambda t: t.double() * 1e300 * 1e300, "holds NaN or infinite values"),
        ("conv1.weight", lambda t: t.to(torch.int8), "int8 values, expected plain floating-point numbers"),
        ("conv1.weight", lambda t: torch.complex(t, t), "complex64 values, expected plain floating-point numbers"),
    ],
)
def test_what_no_network_can_have_is_refused(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    state = dict(load_encoder({"arch": "resnet18", "weights": "random"}).network.state_dict())
    state[name] = change(state[name])
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=f"{re.escape(name)} .*{message}"):
        load_encoder({"arch": "resnet18", "weights": str(tmp_path / "odd.pt")})


def test_a_small_file_that_holds_itself_many_times_does_not_hang(tmp_path: Path) -> None:
    knot: dict[str, Any] = {}
    knot.update({str(i): knot for i in range(40)})
    (tmp_path / "knot.pkl").write_bytes(pickle.dumps(knot))
    with pytest.raises(UserError, match="is nested more than any checkpoint is"):
        _ = read(tmp_path / "knot.pkl").branches


def test_an_index_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a/data.pkl", "w", force_zip64=True) as part,
    ):
        for _ in range(257):
            part.write(bytes(1 << 20))
    with pytest.raises(UserError, match="an index of more than 256 MB"):
        read(tmp_path / "bomb.pt")
