"""Conversion: every script on a file of its layout, what is written, and what is refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torchvision import models

from virb.encoders.convert import EXPECTED, command, convert, main
from virb.encoders.load import load_encoder
from virb.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "convert_weights"
State = dict[str, Tensor]


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture(scope="module")
def resnet() -> State:
    return {key: value for key, value in models.resnet18(weights=None).state_dict().items() if not key.startswith("fc.")}


@pytest.fixture(scope="module")
def vit() -> State:
    tiny = {"arch": "vit_tiny", "weights": "random", "args": {"img_size": 32, "patch_size": 8}}
    return dict(load_encoder(tiny).network.state_dict())


def fc(*shape: int) -> State:
    return {"fc.weight": torch.zeros(shape), "fc.bias": torch.zeros(shape[0])}


def original(name: str, resnet: State, vit: State) -> tuple[dict[str, Any], State]:
    """A file of the layout that the script is for, and the network in it."""
    trunk = {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", resnet), "heads": {}}}}}
    student = under("module.backbone.", {key: value + 1 for key, value in vit.items()})
    dino = {"student": student, "teacher": under("backbone.", vit), "epoch": 1, "args": argparse.Namespace(arch="vit_tiny")}
    sincos = {**vit, "pos_embed": torch.cat([torch.zeros(1, 1, 192), vit["pos_embed"][:, 1:]], dim=1)}
    files: dict[str, tuple[dict[str, Any], State]] = {
        "swav": (under("module.", {**resnet, "prototypes.weight": torch.zeros(3, 2)}), resnet),
        "moco": ({"state_dict": under("module.encoder_q.", {**resnet, **fc(128, 512)}), "arch": "resnet18"}, resnet),
        "simsiam": ({"state_dict": {**under("module.encoder.", resnet), "module.predictor.0.weight": torch.zeros(3, 2)}}, resnet),
        "byol": ({"online_backbone": under("module.", resnet)}, resnet),
        "barlowtwins": ({"model": {**under("module.backbone.", resnet), "module.projector.0.weight": torch.zeros(3, 2)}}, resnet),
        "mocov3": ({"state_dict": under("module.base_encoder.", sincos)}, sincos),
        "torchvision": ({**resnet, **fc(1000, 512)}, resnet),
        "timet": ({**under("feature_extractor.backbone.", vit), "prototypes": torch.zeros(3, 2)}, vit),
        "mae": ({"model": {**vit, "decoder_embed.weight": torch.zeros(3, 192), "mask_token": torch.zeros(1, 1, 3)}}, vit),
    }
    files |= dict.fromkeys(("pirl", "exemplar", "simclr", "vissl"), (trunk, resnet))
    files |= dict.fromkeys(("dino", "dora", "ibot", "patchwise_dino"), (dino, vit))
    return files[name]


def test_there_is_a_script_for_each_layout() -> None:
    assert {path.stem.removesuffix("_to_virb") for path in SCRIPTS.glob("*_to_virb.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_scripts(name: str, resnet: State, vit: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    content, state = original(name, resnet, vit)
    torch.save(content, tmp_path / "in.pth")
    for suffix in ("pt", "safetensors"):
        target = tmp_path / f"out.{suffix}"
        monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "in.pth"), str(target)])
        monkeypatch.syspath_prepend(str(SCRIPTS))
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(SCRIPTS / f"{name}_to_virb.py"), run_name="__main__")
        assert done.value.code == 0
        line = capsys.readouterr().out
        assert line.count("\n") == 1
        assert f"{tmp_path / 'in.pth'} -> {target}" in line
        if suffix == "pt" and state is resnet:
            continue  # read below, without ViRB
        memory = load_encoder(str(target)).network.state_dict()
        assert all(torch.equal(memory[key], value) for key, value in state.items() if not key.endswith("num_batches_tracked"))
    if state is resnet:
        flat = torch.load(tmp_path / "out.pt", weights_only=True)
        assert set(flat) == {f"model.{key}" for key in resnet}
        assert all(torch.equal(flat[f"model.{key}"], value) for key, value in resnet.items())


def test_a_script_runs_from_anywhere(resnet: State, vit: State, tmp_path: Path) -> None:
    torch.save(original("moco", resnet, vit)[0], tmp_path / "in.pth")
    script = [sys.executable, str(SCRIPTS / "moco_to_virb.py")]
    done = subprocess.run([*script, "in.pth", "out.pt"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "MoCo v1/v2" in done.stdout
    done = subprocess.run([*script, "none.pth", "out.pt"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "none.pth does not exist\n")


def test_moco_v1_becomes_a_file_that_virb_2021_reads(tmp_path: Path) -> None:
    """Its wrapper holds torchvision's ResNet-50 as ``model`` and loads without being strict; another shape of fc made it fail."""
    whole = models.resnet50(weights=None)
    body = {key: value for key, value in whole.state_dict().items() if not key.startswith("fc.")}
    torch.save({"state_dict": under("module.encoder_q.", {**body, **fc(128, 2048)})}, tmp_path / "moco_v1_200ep_pretrain.pth.tar")
    convert(tmp_path / "moco_v1_200ep_pretrain.pth.tar", tmp_path / "MoCov1_200.pt", "moco")
    wrapper = torch.nn.Module()
    wrapper.model = models.resnet50(weights=None)
    answer = wrapper.load_state_dict(torch.load(tmp_path / "MoCov1_200.pt", weights_only=True), strict=False)
    assert answer.unexpected_keys == []
    assert answer.missing_keys == ["model.fc.weight", "model.fc.bias"]
    assert torch.equal(wrapper.model.layer4[2].bn3.running_var, whole.layer4[2].bn3.running_var)
    assert 'ViRB 2021, prefix "model."' in load_encoder(tmp_path / "MoCov1_200.pt").spec.source


def test_the_metadata_tells_what_no_shape_does(tmp_path: Path) -> None:
    """MoCo v3's ViT-S has 12 heads; its converted file still says so."""
    small = load_encoder({"arch": "vit", "weights": "random", "args": {"width": 384, "depth": 1, "heads": 12, "img_size": 32}})
    state = small.network.state_dict()
    state["pos_embed"][:, 0] = 0
    torch.save({"state_dict": under("module.base_encoder.", state)}, tmp_path / "vit-s.pth.tar")
    for suffix in ("pt", "safetensors"):
        line = convert(tmp_path / "vit-s.pth.tar", tmp_path / f"out.{suffix}", "mocov3")
        assert "MoCo v3" in line
        encoder = load_encoder(tmp_path / f"out.{suffix}")
        assert encoder.spec.n_heads == 12
        assert "converted from vit-s.pth.tar" in encoder.spec.source
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["virb.sha256"] == hashlib.sha256((tmp_path / "vit-s.pth.tar").read_bytes()).hexdigest()
    assert metadata["virb.architecture"] == "vit"
    assert json.loads(metadata["virb.arguments"])["heads"] == 12
    assert metadata["virb.layout"] == 'MoCo v3, branch "state_dict", prefix "module.base_encoder."'


def test_a_file_of_another_layout_is_refused(resnet: State, vit: State, tmp_path: Path, capsys: Any) -> None:
    torch.save(original("swav", resnet, vit)[0], tmp_path / "swav.pth")
    torch.save(original("dino", resnet, vit)[0], tmp_path / "dino.pth")
    for script, file, says in (("moco", "swav", "its layout is SwAV"), ("swav", "dino", "its layout is DINO"), ("mae", "dino", "teacher")):
        assert main(script, [str(tmp_path / f"{file}.pth"), str(tmp_path / "out.pt")]) == 2
        message = capsys.readouterr().err
        assert says in message
        assert f"virb convert {tmp_path / file}.pth" in message
        assert not (tmp_path / "out.pt").exists()


def test_the_other_branch_and_the_command(resnet: State, vit: State, tmp_path: Path, capsys: Any) -> None:
    torch.save(original("dino", resnet, vit)[0], tmp_path / "dino.pth")
    options = argparse.Namespace(source=tmp_path / "dino.pth", destination=str(tmp_path / "s.safetensors"), checkpoint_key="student")
    assert command(options) == 0
    assert "student" in capsys.readouterr().out
    assert torch.equal(load_encoder(tmp_path / "s.safetensors").network.norm.bias, vit["norm.bias"] + 1)


def test_half_precision_becomes_float32(vit: State, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in vit.items()}, tmp_path / "half.pth")
    convert(tmp_path / "half.pth", tmp_path / "out.safetensors")
    encoder = load_encoder(tmp_path / "out.safetensors")
    assert "cast" not in encoder.spec.source
    assert torch.equal(encoder.network.norm.weight, vit["norm.weight"].half().float())


def test_what_cannot_be_converted_leaves_nothing_behind(resnet: State, vit: State, tmp_path: Path) -> None:
    torch.save({key: value for key, value in resnet.items() if key != "bn1.running_var"}, tmp_path / "in.pth")
    cases = [
        ("in.pth", "out.pt", "1 missing: bn1.running_var"),
        ("in.pth", "out.bin", "ends in .pt, .pth, .safetensors"),
        ("in.pth", "in.pth", "is the file to be converted"),
        ("none.pth", "out.pt", "does not exist"),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    for source, target, says in cases:
        with pytest.raises(UserError) as caught:
            convert(tmp_path / source, tmp_path / target)
        assert says in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_a_file_notes_of_itself_opens_no_file_and_no_address(resnet: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    from virb.encoders import timm

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("built from what an unknown file says")

    monkeypatch.setattr(timm, "create", fail)
    state = {key: value.clone() for key, value in resnet.items()}
    for architecture, arguments, says in (
        ("resnet18", {"checkpoint_path": "evil.bin"}, "does not write"),
        ("timm:resnet18", {"checkpoint_path": "evil.bin"}, "does not write"),
        ("timm:hf-hub:attacker/model", {}, "does not write"),
        ("timm:attacker/model", {}, "does not write"),
        ("resnet18", {"width": "64"}, "does not write"),
        ("timm:vit_giant_patch14_dinov2", {"img_size": 518}, "its shapes are those of resnet18"),
        ("resnet50", {}, "its shapes are those of resnet18"),
    ):
        noted = {"virb.format": "1", "virb.architecture": architecture, "virb.arguments": json.dumps(arguments)}
        save_file(state, tmp_path / "net.safetensors", noted)
        torch.save({"state_dict": state, "virb": noted}, tmp_path / "net.pt")
        for name in ("net.safetensors", "net.pt"):
            with pytest.raises(UserError, match=says):
                load_encoder(tmp_path / name)


def test_timm_loads_no_file_on_the_side() -> None:
    with pytest.raises(UserError, match="named by `weights:`"):
        load_encoder({"timm": "resnet18", "weights": "random", "args": {"checkpoint_path": "evil.bin"}})


def trained(arch: str) -> dict[str, Any]:
    """A checkpoint as the pretraining writes it, of timm's network whose names no layout knows."""
    import timm

    state = timm.create_model("test_efficientnet_ln", num_classes=0).state_dict()
    student = under("module.backbone.", {key: value + 1 for key, value in state.items()})
    note = {"engine": 1, "method": "dino", "step": 7, "recipe": "mine", "options": {"arch": arch, "data_path": "digits"}}
    teacher = {**under("backbone.", state), "head.mlp.weight": torch.zeros(2, 2)}
    return {"student": student, "teacher": teacher, "epoch": 3, "virb": note}


def test_networks_of_timm_that_were_trained_here_need_no_name(tmp_path: Path) -> None:
    content = trained("timm:test_efficientnet_ln")
    torch.save(content, tmp_path / "checkpoint.pth")
    line = convert(tmp_path / "checkpoint.pth", tmp_path / "net.safetensors")
    assert "timm:test_efficientnet_ln" in line
    for name in ("checkpoint.pth", "net.safetensors"):
        encoder = load_encoder(tmp_path / name)
        assert dict(encoder.spec.training) == {"method": "dino", "step": 7, "recipe": "mine", "epoch": 3, "data": "digits"}
        assert encoder.spec.input.mean == (0.485, 0.456, 0.406)  # as it was trained
        for key, value in encoder.network.state_dict().items():
            assert torch.equal(value, content["teacher"][f"backbone.{key}"])


@pytest.mark.parametrize("arch", ["timm:hf-hub:attacker/model", "timm:attacker/model", "vit"])
def test_a_name_in_a_checkpoint_opens_no_address(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from virb.encoders import timm

    monkeypatch.setattr(timm, "create", lambda *_, **__: pytest.fail("built from what an unknown file says"))
    torch.save(trained(arch), tmp_path / "checkpoint.pth")
    with pytest.raises(UserError):
        load_encoder(tmp_path / "checkpoint.pth")
