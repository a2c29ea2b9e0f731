"""``virb pretrain`` from end to end, with DINO on built-in data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_support import ROOT, TINY, environment, flags
from engine_support import same, tensors

from virb.cli import main
from virb.encoders.load import load_encoder
from virb.pretraining.catalogue import load_method, option_names, option_sources
from virb.pretraining.methods import find_method, method_names


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**TINY, "saveckp_freq": 1}))
    assert main(["pretrain", "dino", "--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_leaves_what_the_original_leaves(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {"train_loss", "train_lr", "train_wd", "train_momentum", "train_teacher_temp", "train_teacher_entropy", "train_kl"} <= lines[
        0
    ].keys()
    saved = torch.load(trained / "checkpoint.pth", weights_only=True)
    assert {"student", "teacher", "optimizer", "epoch", "args", "dino_loss"} <= saved.keys()
    assert saved["epoch"] == 2
    assert all(name.startswith(("module.backbone.", "module.head.")) for name in saved["student"])
    assert all(name.startswith(("backbone.", "head.")) for name in saved["teacher"])
    assert saved["dino_loss"]["center"].shape == (1, 32)
    assert type(saved["args"]) is dict
    assert saved["args"]["lr"] == 0.0005
    assert (trained / "checkpoint0000.pth").exists()
    assert (trained / "checkpoint0001.pth").exists()


def test_the_encoder_reader_takes_the_teacher_and_says_where_it_is_from(trained: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(trained / "checkpoint0000.pth"))
    saved = torch.load(trained / "checkpoint0000.pth", weights_only=True)
    assert torch.equal(encoder.network.state_dict()["blocks.0.attn.qkv.weight"], saved["teacher"]["backbone.blocks.0.attn.qkv.weight"])
    assert dict(encoder.spec.training) == {"method": "dino", "step": 5, "epoch": 1, "recipe": "recipe", "data": "digits"}
    assert "trained by dino, step 5, epoch 1, recipe recipe" in encoder.spec.source
    assert main(["convert", str(trained / "checkpoint0000.pth"), str(tmp_path / "backbone.safetensors")]) == 0
    again = load_encoder(str(tmp_path / "backbone.safetensors"))
    assert again.spec.training == encoder.spec.training
    assert again.spec.encoder_id == encoder.spec.encoder_id


def test_going_on_tells_what_changed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.pth").write_bytes((trained / "checkpoint.pth").read_bytes())
    assert main(flags(run, epochs=3, teacher_temp=0.05)) == 0
    told = capsys.readouterr().out
    assert "step 10, epoch 3" in told
    assert "epochs: 2 -> 3" in told
    assert "teacher_temp: 0.04 -> 0.05" in told
    assert main(flags(run, epochs=4, out_dim=64)) == 2
    error = capsys.readouterr().err
    assert "of another architecture" in error
    assert "set out_dim to the file's" in error
    assert main(["pretrain", "patchwise", *flags(run)[2:]]) == 2
    assert "is of a training by dino, not patchwise" in capsys.readouterr().err


def test_init_from(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = str(trained / "checkpoint.pth")
    saved = torch.load(full, weights_only=True)
    frozen = dict(
        lr=0.0, min_lr=0.0, weight_decay=0.0, weight_decay_end=0.0, epochs=1, center_momentum=1.0, momentum_teacher=1.0, drop_path_rate=0.0
    )

    def begin(name: str, **keys: Any) -> dict[str, Any]:
        assert main(flags(tmp_path / name, init_from=full, **{**frozen, **keys})) == 0
        return torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)

    kept = begin("kept")
    assert torch.equal(kept["dino_loss"]["center"], saved["dino_loss"]["center"])
    assert kept["virb"]["step"] == 5
    assert all(torch.equal(value, saved["teacher"][name]) for name, value in kept["teacher"].items())
    assert "starting from" in capsys.readouterr().out
    assert not begin("zero", init_center="false")["dino_loss"]["center"].any()
    went_on = begin("on", init_schedule="continue", init_optimizer="true", epochs=3)
    assert went_on["virb"]["step"] == 15
    steps = {float(value) for name, value in tensors(went_on["optimizer"]).items() if name.endswith("/step")}
    assert steps == {15.0, 10.0}  # the last layer was frozen in the first epoch

    assert main(["convert", full, str(tmp_path / "backbone.safetensors")]) == 0
    assert main(flags(tmp_path / "bare", **{**frozen, "init_from": tmp_path / "backbone.safetensors"})) == 0
    bare = torch.load(tmp_path / "bare" / "checkpoint.pth", weights_only=True)
    assert torch.equal(bare["student"]["module.backbone.norm.weight"], saved["teacher"]["backbone.norm.weight"])

    capsys.readouterr()
    assert main(flags(tmp_path / "no", init_from=full, depth=1)) == 2
    assert "not in this network" in capsys.readouterr().err
    assert main(flags(tmp_path / "no", init_from=full, init_schedule="continue")) == 2
    assert "has 2 epochs already" in capsys.readouterr().err
    assert main(flags(tmp_path / "no", init_from=tmp_path / "backbone.safetensors", init_optimizer="true")) == 2
    assert "has no optimizer" in capsys.readouterr().err
    for optimizer in ("sgd", "lars"):
        assert main(flags(tmp_path / "no", init_from=full, init_optimizer="true", optimizer=optimizer)) == 2
        assert f"its optimizer does not fit {optimizer} of these networks (it is of another kind" in capsys.readouterr().err


def test_a_checkpoint_of_the_original_is_resumed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has a pickled Namespace for args and knows nothing of ours."""
    import argparse

    saved = torch.load(trained / "checkpoint.pth", weights_only=True)
    del saved["virb"]
    saved["args"] = argparse.Namespace(**saved["args"])
    run = tmp_path / "run"
    run.mkdir()
    torch.save(saved, run / "checkpoint.pth")
    assert main(flags(run, epochs=3)) == 0
    assert "weights, centre, optimizer, schedules from epoch 3" in capsys.readouterr().out
    assert torch.load(run / "checkpoint.pth", weights_only=True)["virb"]["step"] == 15


def test_an_original_args_txt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {**TINY, "global_crops_scale": "(0.25, 1.0)", "use_fp16": "False", "output_dir": str(tmp_path / "run"), "epochs": 1}
    extra = {
        "gpu": 0,
        "rank": 0,
        "world_size": 16,
        "dist_backend": "nccl",
        "dist_url": "env://",
        "local_rank": 0,
        "hydra": "x",
        "comment": "",
    }
    lines = [f"{name}: {value}" for name, value in {**keys, **extra}.items()]
    (tmp_path / "args.txt").write_text("\n".join(sorted(lines)))
    assert main(["pretrain", "dino", "--config", str(tmp_path / "args.txt")]) == 0
    told = capsys.readouterr().err
    assert "left out: hydra" in told
    assert "of a run on 16 devices, this one has 1: a step takes 240 images instead of 3,840" in told
    args = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["args"]
    assert args["global_crops_scale"] == [0.25, 1.0]
    assert args["use_fp16"] is False


def test_help_names_every_key_and_imports_no_torch() -> None:
    call = "main(['pretrain', 'patchwise', '--help'])"
    code = f"import sys; from virb.cli import main\ntry: {call}\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True).stdout
    original = """
        arch patch_size out_dim norm_last_layer momentum_teacher use_bn_in_head warmup_teacher_temp teacher_temp
        warmup_teacher_temp_epochs use_fp16 weight_decay weight_decay_end clip_grad batch_size_per_gpu epochs freeze_last_layer lr
        warmup_epochs min_lr optimizer drop_path_rate global_crops_scale local_crops_number local_crops_scale data_path output_dir
        saveckp_freq seed num_workers dist_url local_rank ngpus nodes timeout partition use_volta32 comment
        global_crops_number global_scale local_scale
    """
    assert [name for name in original.split() if f"--{name} " not in found and f"--{name}," not in found] == []


def test_the_catalogue_is_that_of_the_methods() -> None:
    assert option_names() == method_names()
    for name in option_names():
        keys, method = option_sources(name), find_method(name)
        assert keys.Options is method.Options
        assert dict(keys.aliases) == dict(method.aliases)
        assert load_method(name) is method


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "dinu"], "no pretraining method 'dinu'; did you mean dino?"),
        (["pretrain", "--lr", "1"], "name the method first"),
        (["pretrain", "dino", "--lrr", "1"], "unknown option --lrr; did you mean --lr?"),
        (["pretrain", "dino", "--lr", "x", "--epochs", "0"], "--epochs  expected at least 1, got 0"),
        (["pretrain", "dino", "--global_crops_scale", "0.5"], "expected 2 values"),
        (["pretrain", "dino", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["pretrain", "dino", "--optimizer", "adam"], "is none of adamw, sgd, lars"),
        (["pretrain", "no.such.module:Method"], "cannot be imported"),
        (["pretrain", "dino", "--output_dir", "runs/%j"], "output_dir runs/%j: %j is a Slurm job's number, and this is none"),
        (["pretrain", "patchwise", "--global_scale", "32", "--global_crops_size", "64"], "given twice: global_scale is the same key"),
    ],
)
def test_mistakes_in_the_command(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data_path": "nowhere"}, "nowhere does not exist"),
        ({"patch_size": 5}, "patches of 5 pixels do not divide views of 16"),
        ({"batch_size_per_gpu": 2000}, "a step takes 2,000 images (batch_size_per_gpu 2000), but there are only 1,438"),
        ({"arch": "vit_smal", "embed_dim": "null", "depth": "null", "num_heads": "null"}, "did you mean vit_small"),
        ({"init_from": "nowhere.pth"}, "nowhere.pth does not exist"),
        ({"probe": "nowhere.yaml"}, "nowhere.yaml    does not exist"),
        ({"knn_every": 1, "knn_data": "nowhere"}, "nowhere does not exist"),
        ({"device": "cuda:7"}, "cuda:7 is not there"),
    ],
)
def test_what_cannot_be_trained(keys: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(tmp_path / "run", **keys)) == 2
    assert words in capsys.readouterr().err


def test_mistakes_of_the_probe_are_told_before_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tasks.yaml").write_text("a: {task: digitz}\n")
    assert main(flags(tmp_path / "run", probe=tmp_path / "tasks.yaml")) == 2
    assert "did you mean digits?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    assert main(flags(tmp_path / "run", data_path=images)) == 2
    assert "no images" in capsys.readouterr().err
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(images / "0.png")
    assert main(flags(tmp_path / "run", data_path=images)) == 2
    assert "has one image" in capsys.readouterr().err
    for number in range(1, 5):
        Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(images / f"{number}.png")
    assert main(flags(tmp_path / "run", data_path=images, batch_size_per_gpu=2, epochs=1)) == 0
    (images / "3.png").write_bytes(b"no image")
    assert main(flags(tmp_path / "bad", data_path=images, batch_size_per_gpu=5, epochs=1)) == 1
    assert "3.png" in capsys.readouterr().err
    skip = dict(data_path=images, batch_size_per_gpu=2, epochs=2, on_bad_image="skip")
    assert main(flags(tmp_path / "skipped", **skip)) == 0
    assert "1 image could not be decoded; others stood in for it (" in capsys.readouterr().out
    (images / "0.png").write_bytes(b"no image")
    assert main(flags(tmp_path / "first", **skip)) == 0
    assert "2 images could not be decoded; others stood in for them (" in capsys.readouterr().out
    assert main(flags(tmp_path / "first", data_path=images)) == 2
    assert "the first image cannot be read" in capsys.readouterr().err


def test_patchwise_trains(tmp_path: Path) -> None:
    assert main(["pretrain", "patchwise", *flags(tmp_path, epochs=1)[2:]]) == 0
    encoder = load_encoder(str(tmp_path / "checkpoint.pth"))
    assert dict(encoder.spec.training)["method"] == "patchwise"


def test_activations_that_are_computed_again_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("false", "true"):
        assert main(flags(tmp_path / name, epochs=1, checkpoint_activations=name)) == 0
    one, two = (torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["student"] for name in ("false", "true"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    gone = dict(embed_dim="null", depth="null", num_heads="null", patch_size=8)
    assert main(flags(tmp_path / "no", arch="resnet18", checkpoint_activations="true", **gone)) == 2
    assert "this architecture cannot" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resnet_trains_with_sgd(tmp_path: Path) -> None:
    gone = dict(embed_dim="null", depth="null", num_heads="null")
    more = dict(arch="resnet18", optimizer="sgd", global_crops_size=32, local_crops_size=32, batch_size_per_gpu=700, epochs=1, **gone)
    assert main(flags(tmp_path, **more)) == 0
    encoder = load_encoder(str(tmp_path / "checkpoint.pth"))
    assert encoder.family == "resnet"


@pytest.mark.slow
def test_kill_9_of_the_command_at_random_steps(tmp_path: Path) -> None:
    more = dict(epochs=4, save_every_steps=1, num_workers=2, accumulation_steps=2, batch_size_per_gpu=120, use_bn_in_head="true")
    assert main(flags(tmp_path / "whole", **more)) == 0
    draw = np.random.default_rng(1)
    for _ in range(3):
        log = (tmp_path / "cut.txt").open("w")
        process = subprocess.Popen(
            [sys.executable, "main.py", *flags(tmp_path / "cut", **more)], cwd=ROOT, env=environment(), stdout=log, stderr=log
        )
        before = 0.0
        for _ in range(1200):
            path = tmp_path / "cut" / "checkpoint.pth"
            before = before or (path.stat().st_mtime_ns if path.exists() else 0.0)
            if process.poll() is not None or (path.exists() and path.stat().st_mtime_ns != before):
                break
            subprocess.run(["sleep", "0.05"], check=True)
        subprocess.run(["sleep", str(float(draw.uniform(0, 0.5)))], check=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(flags(tmp_path / "cut", **more)) == 0
    same(tmp_path / "whole" / "checkpoint.pth", tmp_path / "cut" / "checkpoint.pth")
    assert (tmp_path / "cut" / "log.txt").read_bytes() == (tmp_path / "whole" / "log.txt").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("more", [dict(), dict(use_bn_in_head="true", optimizer="sgd"), dict(arch="resnet18", optimizer="sgd")])
def test_two_torchrun_ranks_equal_one(tmp_path: Path, more: dict[str, Any]) -> None:
    if "arch" in more:
        more |= dict(embed_dim="null", depth="null", num_heads="null", drop_path_rate=0.0, global_crops_size=32)
    assert main(flags(tmp_path / "one", **{"epochs": 1, **more})) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "main.py"]
    subprocess.run(
        [*command, *flags(tmp_path / "two", **{"epochs": 1, **more, "batch_size_per_gpu": 120})], cwd=ROOT, env=environment(), check=True
    )
    one, two = (torch.load(tmp_path / name / "checkpoint.pth", weights_only=True) for name in ("one", "two"))
    for branch in ("teacher", "dino_loss"):
        for name, value in one[branch].items():
            torch.testing.assert_close(value, two[branch][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_ranks_save_and_end_when_torchrun_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "main.py"]
    with open(tmp_path / "log", "w") as log:
        more = dict(epochs=500, batch_size_per_gpu=60, num_workers=1)
        torchrun = subprocess.Popen([*command, *flags(tmp_path / "run", **more)], cwd=ROOT, env=environment(), stdout=log, stderr=log)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "log.txt").exists() and torchrun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    torchrun.kill()
    torchrun.wait()
    while (tmp_path / "run" / ".lease").exists() and time.monotonic() < deadline:  # the first rank gives it back when it ends
        time.sleep(0.1)
    told = (tmp_path / "log").read_text()
    assert not (tmp_path / "run" / ".lease").exists(), told
    assert "stopped by SIGTERM after step" in told or "stops: torchrun was lost" in told, told  # the latter where an epoch has just ended
    assert 0 < torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["virb"]["step"] < 500 * 11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_the_last_probe_is_run_by_the_next_start(tmp_path: Path, name: str) -> None:
    """Though the training itself is complete."""
    import virb

    (tmp_path / "tasks.yaml").write_text("digits_knn: {task: digits, probe: knn}\n")
    command = [sys.executable, "main.py", *flags(tmp_path / "run", epochs=1, probe=tmp_path / "tasks.yaml", every=1)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "probes" / "epoch0001.log").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    told, _ = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if name == "SIGKILL" else 128 + signal.SIGTERM), told
    assert name == "SIGKILL" or "stopped by SIGTERM after step 5" in told
    assert not list((tmp_path / "run" / "probes").rglob("job.json"))
    again = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
    assert "all epochs (1) are done" in again
    assert "probe   epoch0001" in again
    assert list(virb.load_results(tmp_path / "run" / "probes")["encoder_step"]) == [5]


@pytest.mark.slow
def test_probes_and_a_glob_of_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import virb

    (tmp_path / "tasks.yaml").write_text("digits_knn: {task: digits, probe: knn}\n")
    run = tmp_path / "run"
    assert main(flags(run, saveckp_freq=1, probe=tmp_path / "tasks.yaml", every=1)) == 0
    told = capsys.readouterr().out
    assert "probe   epoch0001" in told, (run / "probes" / "epoch0001.log").read_text()
    assert "probe   epoch0002" in told
    table = virb.load_results(run / "probes")
    assert sorted(table["encoder_step"]) == [5, 10]

    (tmp_path / "list.yaml").write_text(f"mine: '{run}/checkpoint0*.pth'\n")
    out = tmp_path / "out"
    assert (
        main(["run", "--experiment_list", str(tmp_path / "list.yaml"), "--task_configs", str(tmp_path / "tasks.yaml"), "--out", str(out)])
        == 0
    )
    table = virb.load_results(out).sort_values("encoder_step")
    assert list(table["encoder"]) == ["mine@0000", "mine@0001"]
    assert list(table["encoder_step"]) == [5, 10]
    record = json.loads((out / "mine@0001" / "digits_knn" / "job.json").read_text())
    assert record["encoder"]["meta"] == {"method": "dino", "step": 10, "epoch": 2, "data": "digits", "series": "mine", "checkpoint": "0001"}
