"""Slurm jobs by submitit, as far as they can be tried without a cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_support import ROOT, flags
from engine_support import DEFAULTS, TinyData, options_for, run

from virb.cli import main
from virb.pretraining import launch
from virb.pretraining.launch import Task, parameters, rendezvous, submit
from virb.pretraining.options import plain

needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is an extra")


def train_here(method: str, values: Mapping[str, Any], recipe: str, keep_going_on_term: bool) -> int:
    """What a task of the job runs: the tiny method of these tests."""
    sys.path.insert(0, str(Path(__file__).parent))
    from engine_support import Tiny

    from virb.pretraining.distributed import join
    from virb.pretraining.engine import train

    keys = {name: value for name, value in values.items() if name not in ("output_dir",)}
    options = options_for(values["output_dir"], **keys)
    ranks = join("cpu")
    pause = 0.0 if (Path(options.output_dir) / "checkpoint.pth").exists() else 0.3  # time enough to be interrupted
    summary = train(Tiny(options), options, TinyData(26, pause=pause), ranks, recipe=recipe, keep_going_on_term=keep_going_on_term)
    ranks.close()
    return 128 + summary.stopped if summary.stopped else 0


class Place:
    """A task of a submitit job."""

    job_id, num_tasks, num_nodes, global_rank, local_rank = "77", 16, 2, 11, 3
    hostnames = ("n1", "n2")


def test_torchrun_variables_of_a_task() -> None:
    found = rendezvous(Place())
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("11", "16", "3", "8")
    assert found["MASTER_ADDR"] == "n1"
    assert 20_000 <= int(found["MASTER_PORT"]) < 40_000


def test_parameters_have_the_meaning_of_the_original_flags(tmp_path: Path) -> None:
    options = options_for(tmp_path, device="auto", partition="gpu", comment="for a deadline", use_volta32=True)
    assert parameters(options, "virb-dino") == {
        "name": "virb-dino",
        "nodes": 2,
        "tasks_per_node": 8,
        "gpus_per_node": 8,
        "cpus_per_task": 10,
        "mem_gb": 320,
        "timeout_min": 2800,
        "slurm_signal_delay_s": 120,
        "slurm_additional_parameters": {"requeue": True},
        "slurm_partition": "gpu",
        "slurm_comment": "for a deadline",
        "slurm_constraint": "volta32gb",
    }
    assert "gpus_per_node" not in parameters(options_for(tmp_path, device="cpu"), "virb-dino")


def submitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of all jobs that were submitted."""
    found: list[str] = []

    def submit(options: Any, task: Task, cluster: str = "slurm") -> tuple[str, Path]:
        found.append(options.output_dir)
        return "7", Path(options.output_dir)

    monkeypatch.setattr(launch, "submit", submit)
    return found


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data_path": "nowhere"}, "nowhere does not exist"),
        ({"data_path": "empty"}, "no images"),
        ({"init_from": "/nowhere.pth"}, "init_from: /nowhere.pth does not exist"),
        ({"probe": "/nowhere.yaml"}, "/nowhere.yaml    does not exist"),
        ({"probe": "wrong.yaml"}, "did you mean digits?"),
        ({"output_dir": "file/run"}, "a file is in its way"),
        ({"knn_every": 1, "knn_data": "nowhere"}, "nowhere does not exist"),
        ({"patch_size": 5}, "patches of 5 pixels do not divide views of 16"),
        ({"nodes": 2, "ngpus": 8}, "a step takes 3,840 images (batch_size_per_gpu 240 x 16 ranks), but there are only 1,438"),
    ],
)
def test_what_would_end_the_job_is_told_before_it_is_submitted(
    keys: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = submitted(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    Path("wrong.yaml").write_text("a: {task: digitz}\n")
    assert main(flags(tmp_path / "run", **{"launcher": "slurm", "nodes": 1, "ngpus": 1, **keys})) == 2
    assert words in capsys.readouterr().err
    assert jobs == []


def test_data_that_only_the_cluster_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = submitted(monkeypatch)
    assert main(flags(tmp_path / "runs" / "%j", launcher="slurm", ngpus=1, nodes=1, data_path="/nowhere/images")) == 0
    told = capsys.readouterr()
    assert "note: data_path /nowhere/images is not on this machine" in told.err
    assert "job 7 submitted" in told.out
    assert jobs == [str(tmp_path / "runs" / "%j")]


@needs_submitit
@pytest.mark.slow
def test_the_command_submits_a_job_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tasks, as Slurm would start them, end as one process with the joint batch."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{':'.join(sys.path)}")
    monkeypatch.setattr(launch, "submit", partial(submit, cluster="local"))
    more = dict(launcher="slurm", nodes=1, ngpus=2, mem_per_gpu=0, cpus_per_task=1, timeout=5)
    assert main(flags(tmp_path / "runs" / "%j", **{**more, "batch_size_per_gpu": 120})) == 0
    job = capsys.readouterr().out.split()[1]
    import submitit

    folder = tmp_path / "runs" / "slurm"
    deadline = time.monotonic() + 150
    while len(list(folder.glob(f"{job}_*_result.pkl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    told = (folder / f"{job}_0_log.out").read_text()
    assert submitit.local.local.LocalJob(folder, job, tasks=[0, 1]).results() == [0, 0], told
    assert "2 x cpu   240 images per step" in told
    assert main(flags(tmp_path / "one")) == 0
    one, two = (torch.load(path / "checkpoint.pth", weights_only=True) for path in (tmp_path / "one", tmp_path / "runs" / job))
    for branch in ("teacher", "dino_loss"):
        for name, value in one[branch].items():
            torch.testing.assert_close(value, two[branch][name], rtol=1e-4, atol=1e-5)


@needs_submitit
@pytest.mark.slow
def test_a_job_is_preempted_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks on this machine get the signal that Slurm sends; the job is requeued and ends as one that was left alone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{Path(__file__).parent}:{':'.join(sys.path)}")
    run(tmp_path / "whole", batch_size_per_gpu=8)
    options = options_for(tmp_path / "runs" / "%j", nodes=1, ngpus=2, mem_per_gpu=0, cpus_per_task=1, timeout=5)
    values = {name: value for name, value in plain(options).items() if name in DEFAULTS}
    job, folder = submit(options, Task(train_here, "tiny", values, "tiny_recipe"), cluster="local")
    import submitit

    handle = submitit.local.local.LocalJob(folder, job, tasks=[0, 1])
    output = tmp_path / "runs" / job
    deadline = time.monotonic() + 150
    while not (output / "log.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent == job:
            os.kill(int(path.name), signal.SIGUSR2)
    while not (folder / f"{job}_0_result.pkl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    log = (folder / f"{job}_0_log.out").read_text()
    assert "Requeued job" in log, log
    assert handle.results() == [0, 0], log
    one, two = (torch.load(path / "checkpoint.pth", weights_only=True) for path in (tmp_path / "whole", output))
    for name, value in one["teacher"].items():
        torch.testing.assert_close(value, two["teacher"][name], rtol=1e-5, atol=1e-6)
    assert two["virb"]["step"] == 9
