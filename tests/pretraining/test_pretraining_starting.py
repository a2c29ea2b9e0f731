"""Starting from the weights of another training: what fits is taken, what does not is new, and what was done is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_support import flags
from torch import Tensor

from virb.cli import main
from virb.encoders.load import load_encoder

FROZEN: dict[str, Any] = dict(
    lr=0.0, min_lr=0.0, weight_decay=0.0, weight_decay_end=0.0, epochs=1, center_momentum=1.0, momentum_teacher=1.0, drop_path_rate=0.0
)
GONE: dict[str, Any] = dict(embed_dim="null", depth="null", num_heads="null")


def read(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pth", weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(flags(folder, epochs=1)) == 0
    return folder


def begin(folder: Path, source: Path, method: str = "dino", **keys: Any) -> dict[str, Any]:
    assert main(flags(folder, method, init_from=source / "checkpoint.pth", **{**FROZEN, **keys})) == 0
    return read(folder)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    assert len(one) > 0
    assert one.keys() == two.keys()
    return all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_head_of_another_size_starts_new(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method with fewer prototypes, from a released checkpoint."""
    saved = read(trained)
    capsys.readouterr()
    new = begin(tmp_path / "auto", trained, out_dim=16)
    told = capsys.readouterr().out
    assert "weights of the backbone; new: head (head.last_layer.weight_g is 32 x 1 in the file, 16 x 1 here), centre" in told
    for branch, prefix in (("student", "module.backbone."), ("teacher", "backbone.")):
        assert equal(part(new[branch], prefix), part(saved[branch], prefix))
    assert new["teacher"]["head.last_layer.weight_v"].shape == (16, 8)
    assert not torch.equal(new["teacher"]["head.mlp.0.weight"], saved["teacher"]["head.mlp.0.weight"])
    assert equal(part(new["teacher"], "head."), part(new["student"], "module.head."))
    assert not new["dino_loss"]["center"].any()

    assert main(flags(tmp_path / "no", init_from=trained / "checkpoint.pth", out_dim=16, init_head="load")) == 2
    assert "set out_dim to the file's" in capsys.readouterr().err


def test_a_new_head_although_the_files_would_fit(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = read(trained)
    new = begin(tmp_path / "new", trained, init_head="new")
    assert "new: head (init_head: new), centre" in capsys.readouterr().out
    assert equal(part(new["teacher"], "backbone."), part(saved["teacher"], "backbone."))
    assert not torch.equal(new["teacher"]["head.mlp.0.weight"], saved["teacher"]["head.mlp.0.weight"])
    assert main(flags(tmp_path / "no", init_from=trained / "checkpoint.pth", init_head="new", init_optimizer="true")) == 2
    assert "is of other weights (init_head: new)" in capsys.readouterr().err


def test_another_method_with_a_head_for_patches(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = read(trained)
    capsys.readouterr()
    new = begin(tmp_path / "patchwise", trained, "patchwise", separate_patch_head="true")
    told = capsys.readouterr().out
    assert "weights; new: centre (center is 1 x 32 in the file, 1 x 5 x 32 here), optimizer" in told
    assert "the head of the patches starts as that of [CLS]" in told
    head = part(saved["teacher"], "head.")
    assert equal(part(new["teacher"], "head."), head)
    assert equal(part(new["teacher"], "patch_head."), head)
    assert equal(part(new["student"], "module.patch_head."), part(saved["student"], "module.head."))
    begin(tmp_path / "new", trained, "patchwise", separate_patch_head="true", out_dim=16)
    assert "starts as that of [CLS]" not in capsys.readouterr().out
    back = begin(tmp_path / "back", tmp_path / "patchwise")
    assert "the file's head of the patches is left out" in capsys.readouterr().out
    assert equal(part(back["teacher"], ""), part(saved["teacher"], ""))


@pytest.mark.parametrize("mode", ["exact", "dino", "antialias"])
def test_positions_of_other_crops_are_resized_as_the_encoders_do(
    trained: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_encoder({"arch": "vit", "weights": str(trained / "checkpoint.pth"), "args": {"position_mode": mode}})
    expected = encoder.network.positions(32, 32)  # type: ignore[operator]
    capsys.readouterr()
    new = begin(tmp_path, trained, global_crops_size=32, position_mode=mode)
    assert f"positions resized from 2 x 2 patches to 4 x 4 (position_mode {mode})" in capsys.readouterr().out
    assert torch.equal(new["teacher"]["backbone.pos_embed"], expected)
    assert new["student"]["module.backbone.pos_embed"].shape == (1, 17, 16)


def test_a_backbone_alone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(trained / "checkpoint.pth"), str(tmp_path / "a.safetensors")]) == 0
    assert main(flags(tmp_path / "run", init_from=tmp_path / "a.safetensors", global_crops_size=32, **FROZEN)) == 0
    told = capsys.readouterr().out
    assert "weights of the backbone; new: head (the file has none), centre, optimizer, schedules" in told
    assert "positions resized" in told
    assert main(flags(tmp_path / "no", init_from=tmp_path / "a.safetensors", init_head="load")) == 2
    assert "holds a backbone alone" in capsys.readouterr().err


def test_init_from_beside_a_checkpoint_is_told(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, trained)
    assert main(flags(tmp_path, init_from="nowhere.pth", every=5, **FROZEN)) == 0
    told, noted = capsys.readouterr()
    assert "note: --every: not used, for there is no probe" in noted
    assert f"init_from nowhere.pth is not looked at: {tmp_path / 'checkpoint.pth'} is there, and the training goes on from it" in told


# What the file says


@pytest.mark.parametrize("mode", ["dino", "antialias"])
def test_the_reader_takes_the_positions_of_the_training(tmp_path: Path, mode: str) -> None:
    """Away from the stored grid the values depend on it."""
    assert main(flags(tmp_path, epochs=1, position_mode=mode)) == 0
    files = [str(tmp_path / "checkpoint.pth")]
    for suffix in (".safetensors", ".pth"):
        files.append(str(tmp_path / f"backbone{suffix}"))
        assert main(["convert", files[0], files[-1]]) == 0
    usual = load_encoder({"arch": "vit", "weights": files[0], "args": {"position_mode": "exact"}})
    for file in files:
        for what in (file, {"arch": "vit", "weights": file, "args": {"heads": 2}}):
            encoder = load_encoder(what)
            assert encoder.spec.position_mode == mode
            positions = encoder.network.positions(48, 48)  # type: ignore[operator]
            assert not torch.allclose(positions, usual.network.positions(48, 48))  # type: ignore[operator]
    assert usual.spec.position_mode == "exact"


def test_modes_that_do_not_exist_are_not_taken_from_files(trained: Path, tmp_path: Path) -> None:
    saved = read(trained)
    saved["virb"]["options"]["position_mode"] = "evil"
    torch.save(saved, tmp_path / "a.pth")
    assert load_encoder(str(tmp_path / "a.pth")).spec.position_mode == "exact"


def test_teachers_with_batch_norm_have_the_originals_names(trained: Path, tmp_path: Path) -> None:
    """There such a teacher is wrapped by DDP, and a resume looks for these names alone."""
    assert all(name.startswith(("backbone.", "head.")) for name in read(trained)["teacher"])
    keys = dict(epochs=1, use_bn_in_head="true")
    assert main(flags(tmp_path / "run", **keys)) == 0
    saved = read(tmp_path / "run")
    assert all(name.startswith(("module.backbone.", "module.head.")) for name in saved["teacher"])
    encoder = load_encoder(str(tmp_path / "run" / "checkpoint.pth"))
    assert equal(part(saved["teacher"], "module.backbone."), dict(encoder.network.state_dict()))
    assert main(flags(tmp_path / "run", **{**keys, "epochs": 2})) == 0
    assert read(tmp_path / "run")["virb"]["step"] == 10


def test_results_have_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the current one, where the next recipe would find a checkpoint of another network."""
    monkeypatch.chdir(tmp_path)
    rest = flags(tmp_path, epochs=1)[4:]
    assert main(["pretrain", "dino", *rest]) == 0
    Path("mine.yaml").write_text("seed: 1\n")
    assert main(["pretrain", "dino", "--config", "mine.yaml", *rest]) == 0
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert main(["pretrain", "dino", "--output_dir", "job%j", *rest]) == 0
    assert sorted(str(path.parent) for path in Path().rglob("checkpoint.pth")) == ["job12", "runs/dino", "runs/mine"]
    assert "-> runs/mine" in capsys.readouterr().out
