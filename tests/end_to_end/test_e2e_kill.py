"""``kill -9`` of the whole process group at any moment, again and again: the results are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from e2e_support import Bench, assert_same_results

import virb
from virb.results.samples import read_samples
from virb.results.schema import Job, validate

pytestmark = pytest.mark.slow

ROOT = Path(virb.__file__).parent.parent
ENCODERS = """
pixels: {arch: pixels}
vit: {arch: vit_tiny, weights: random, args: {patch_size: 8, img_size: 32}}
"""
TASKS = """
defaults: {num_epochs: 50, batch_size: 64}
linear: {task: digits, grid: {optimizer: [adamw, sgd], lr: [0.001, 0.01, 0.1]}}
mlp: {task: digits, probe: mlp, training_configs: {small: {optimizer: adam, lr: 0.001, hidden: 64}, large: {optimizer: adamw, lr: 0.001}}}
count: {task: shapes-count, data: {n_train: 1200, n_test: 100, size: 32}, grid: {optimizer: [adamw], lr: [0.01, 0.1]}}
"""
KILLS = 10


def start(bench: Bench, out: Path) -> subprocess.Popen[bytes]:
    """The command as a user types it, at the head of a process group of its own."""
    arguments = bench.arguments("--cache_dir", str(out) + "-cache", out=out, devices="cpu:2")[1:]
    log = open(f"{out}.log", "ab")  # noqa: SIM115 - the process keeps it
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=bench.folder, env=environment, start_new_session=True)


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    code = process.wait(timeout=300)
    assert code == 0, Path(f"{out}.log").read_text()


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    wait_for_group_to_end(process.pid, 30)


def wait_for_group_to_end(group: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while group_lives(group):
        assert time.monotonic() < deadline, "a child lives on"
        time.sleep(0.05)


def group_lives(group: int) -> bool:
    """Whether any process of the group is left (those that only wait to be buried do not count)."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                return True
    return False


def done_jobs(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each finished job's record, which must be whole, with all that it promises beside it."""
    found = {}
    for path in out.glob("*/*/job.json"):
        job = validate(path)
        assert isinstance(job, Job)
        assert job.status == "done"
        read_samples(path.parent / "samples.npz")
        for row in job.surface:
            assert validate(path.parent.parent / f"{job.task.label}-{row.config}" / "results.json").key == job.key  # type: ignore[union-attr]
        head = path.parent.parent / f"{job.task.label}-{job.chosen}" / "model_head.pt"
        assert torch.load(head, weights_only=True)
        found[f"{job.encoder.name}/{job.task.label}"] = (path.stat().st_ino, path.stat().st_mtime_ns)
    for path in out.rglob("*.json"):
        if not path.name.startswith(".tmp-"):
            validate(path)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_ten_kills_at_random_moments(bench: Bench) -> None:
    bench.write(ENCODERS, TASKS)
    calm = bench.folder / "calm"
    began = time.monotonic()
    finish(start(bench, calm), calm)
    length = time.monotonic() - began
    assert len(done_jobs(calm)) == 6

    generator = random.Random(0)
    moments = [(k + generator.random()) / KILLS * length for k in range(KILLS)]  # one in each tenth of the run
    generator.shuffle(moments)
    rounds = 0
    out, seen = bench.folder / "out0", {}
    while moments:
        process = start(bench, out)
        try:
            process.wait(timeout=moments[-1])
        except subprocess.TimeoutExpired:
            moments.pop()
        else:  # it was done before its hour had come: compare, and kill another one at that moment
            finish(process, out)
            seen = keep_watch(out, seen)
            assert_same_results(calm, out)
            rounds += 1
            moments[-1] *= 0.8  # the machine may have been busier while the calm run was at work
            assert rounds < 2 * KILLS
            out, seen = bench.folder / f"out{rounds}", {}
            continue
        kill(process)
        seen = keep_watch(out, seen)
    finish(start(bench, out), out)
    keep_watch(out, seen)
    assert_same_results(calm, out)
    assert not list(out.glob("*/*/.tmp-*"))
    assert not (out / ".jobs").exists()
    assert not (out / ".run.lease").exists()


def keep_watch(out: Path, seen: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """No finished job ran again."""
    now = done_jobs(out) if out.exists() else {}
    assert {name: now.get(name) for name in seen} == seen
    return now


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("who", ["the whole group, as a terminal does", "the parent alone", "the parent, by kill"])
def test_ctrl_c_ends_within_seconds_and_keeps_what_is_done(bench: Bench, who: str) -> None:
    bench.write(ENCODERS, TASKS)
    process = start(bench, bench.out)
    try:
        deadline = time.monotonic() + 120
        while not list(bench.out.glob("*/*/job.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None, Path(f"{bench.out}.log").read_text()
            time.sleep(0.05)
        if who.startswith("the whole group"):
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM if who.endswith("by kill") else signal.SIGINT)
        began = time.monotonic()
        code = process.wait(timeout=20)
        wait_for_group_to_end(process.pid, 10)
        assert time.monotonic() - began < 10
    finally:
        kill(process)
    log = Path(f"{bench.out}.log").read_text()
    kept = done_jobs(bench.out)
    assert kept
    if not who.endswith("by kill"):
        assert code == 130
        assert "Traceback" not in log
        assert log.rstrip().endswith("stopped; finished jobs are kept, the same command goes on from here")
        assert not (bench.out / ".run.lease").exists()
    assert len(kept) < 6
    finish(start(bench, bench.out), bench.out)
    assert len(keep_watch(bench.out, kept)) == 6
