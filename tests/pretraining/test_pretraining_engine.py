"""The training survives: kills, signals, steps that are not finite, other numbers of ranks."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_support import Tiny, TinyData, options_for, run, same
from rich.console import Console

from virb.errors import UserError, ViRBError
from virb.io import Held, Lease
from virb.pretraining.distributed import Ranks
from virb.pretraining.methods import Views
from virb.pretraining.monitor import Alarm
from virb.pretraining.plan import BatchPlan
from virb.pretraining.step import Trainer

SCRIPT = Path(__file__).with_name("engine_support.py")
ROOT = Path(__file__).parents[2]
CPU = Ranks(0, 1, torch.device("cpu"))


class Killed(Exception):
    pass


class Mortal(TinyData):
    """Ends the program instead of giving the data of a step."""

    def __init__(self, n: int, at: int) -> None:
        super().__init__(n)
        self.at = at

    def batches(self, plan: BatchPlan, first_step: int) -> Generator[Views, None, None]:
        for number, views in enumerate(super().batches(plan, first_step)):
            if first_step + number // plan.micro == self.at:
                raise Killed
            yield views


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{SCRIPT.parent}", "OMP_NUM_THREADS": "1", **more}


def start(folder: Path, *keys: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), *keys], env=environment(**more), stderr=subprocess.PIPE, text=True, cwd=folder.parent
    )


def start_ranks(folder: Path, world: int, *keys: str) -> list[subprocess.Popen[str]]:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = range(world)
    return [
        start(folder, *keys, RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for r in ranks
    ]


def wait(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


@pytest.mark.parametrize(
    "keys", [dict(), dict(accumulation_steps=2, optimizer="sgd", dropout=0.3), dict(optimizer="lars", clip_mode="global")]
)
def test_resume_at_any_step_equals_uninterrupted(tmp_path: Path, keys: dict[str, Any]) -> None:
    run(tmp_path / "whole", **keys)
    steps = 3 * (26 // (4 * keys.get("accumulation_steps", 1)))
    for at in range(1, steps, 4 if steps > 10 else 3):
        folder = tmp_path / f"at{at}"
        with pytest.raises(Killed):
            run(folder, data=Mortal(26, at), save_every_steps=1, **keys)
        run(folder, save_every_steps=1, **keys)
        same(tmp_path / "whole" / "checkpoint.pth", folder / "checkpoint.pth")
        assert (folder / "log.txt").read_bytes() == (tmp_path / "whole" / "log.txt").read_bytes()


def test_what_was_not_saved_is_done_again(tmp_path: Path) -> None:
    """Killed late in the second epoch with only the first one's checkpoint."""
    run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", data=Mortal(26, 11))
    seen: list[Any] = []
    run(tmp_path / "cut", data=TinyData(26, seen=seen))
    assert seen[0][0] == 6
    same(tmp_path / "whole" / "checkpoint.pth", tmp_path / "cut" / "checkpoint.pth")


def test_kill_9_and_resume(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    at = int(np.random.default_rng(0).integers(1, 17))
    assert wait(start(tmp_path / "killed", "save_every_steps=2", f"die_at={at}"))[0] == -signal.SIGKILL
    assert wait(start(tmp_path / "killed", "save_every_steps=2"))[0] == 0
    same(tmp_path / "whole" / "checkpoint.pth", tmp_path / "killed" / "checkpoint.pth")
    assert (tmp_path / "killed" / "log.txt").read_bytes() == (tmp_path / "whole" / "log.txt").read_bytes()


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow)])
def test_a_signal_saves_first(tmp_path: Path, name: str) -> None:
    run(tmp_path / "whole", epochs=3)
    process = start(tmp_path / "cut", "pause=0.3", "saveckp_freq=1")
    deadline = time.monotonic() + 40
    while not (tmp_path / "cut" / ".lease").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.8)
    process.send_signal(getattr(signal, name))
    code, errors = wait(process)
    assert code == 128 + getattr(signal, name), errors
    saved = torch.load(tmp_path / "cut" / "checkpoint.pth", weights_only=True)
    assert 0 < saved["virb"]["step"] < 18
    assert not (tmp_path / "cut" / ".lease").exists()
    run(tmp_path / "cut")
    same(tmp_path / "whole" / "checkpoint.pth", tmp_path / "cut" / "checkpoint.pth")


def close_to(a: Path, b: Path) -> None:
    one, two = (torch.load(path, weights_only=True) for path in (a, b))
    for branch in ("student", "teacher", "dino_loss"):
        for name, value in one[branch].items():
            torch.testing.assert_close(value, two[branch][name], rtol=1e-5, atol=1e-6)
    assert one["virb"]["step"] == two["virb"]["step"]


def test_two_ranks_equal_one_with_the_joint_batch(tmp_path: Path) -> None:
    run(tmp_path / "one", batch_size_per_gpu=8)
    for process in start_ranks(tmp_path / "two", 2):
        assert wait(process)[0] == 0
    close_to(tmp_path / "one" / "checkpoint.pth", tmp_path / "two" / "checkpoint.pth")
    logs = [[json.loads(line) for line in (tmp_path / name / "log.txt").read_text().splitlines()] for name in ("one", "two")]
    for mine, theirs in zip(*logs, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_two_ranks_are_killed_and_resume(tmp_path: Path) -> None:
    run(tmp_path / "one", batch_size_per_gpu=4, accumulation_steps=2)
    keys = ("save_every_steps=2", "accumulation_steps=1")
    codes = [wait(process)[0] for process in start_ranks(tmp_path / "two", 2, *keys, "die_at=5", "die_rank=1")]
    assert codes == [1, -signal.SIGKILL]
    assert [wait(process)[0] for process in start_ranks(tmp_path / "two", 2, *keys)] == [0, 0]
    close_to(tmp_path / "one" / "checkpoint.pth", tmp_path / "two" / "checkpoint.pth")


def test_accumulation_equals_the_joint_batch(tmp_path: Path) -> None:
    run(tmp_path / "one", batch_size_per_gpu=8)
    run(tmp_path / "two", batch_size_per_gpu=4, accumulation_steps=2)
    close_to(tmp_path / "one" / "checkpoint.pth", tmp_path / "two" / "checkpoint.pth")


@pytest.mark.parametrize(
    ("how", "rank"), [("kill", 1), pytest.param("error", 0, marks=pytest.mark.slow), pytest.param("error", 1, marks=pytest.mark.slow)]
)
def test_a_lost_rank_stops_all_with_the_reason(tmp_path: Path, how: str, rank: int) -> None:
    processes = start_ranks(tmp_path / "run", 2, "die_at=3", f"die_rank={rank}", f"die_how={how}", "batch_size_per_gpu=2")
    ended = [wait(process) for process in processes]
    for number, (code, errors) in enumerate(ended):
        if number == rank:
            continue
        assert code == 1
        wanted = f"rank {rank} was lost" if how == "kill" else f"rank {rank} on"
        assert f"rank {number} stops: {wanted}" in errors, errors
        assert how == "kill" or "the images are gone" in errors


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    run(tmp_path / "a", break_from=3, break_until=5, console=console)
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.txt").read_text().splitlines()]
    assert [line["bad_steps"] for line in lines] == [2, 2, 2]
    assert "2 in a row" in console.file.getvalue()  # type: ignore[attr-defined]

    options = options_for(tmp_path / "b", break_from=1, break_until=2)
    trainer = Trainer(Tiny(options), options, CPU, 6)
    plan = BatchPlan(4, 1, 0, 1, 6, 18)
    batches = TinyData(26).batches(plan, 0)
    trainer.step(batches)
    before = {name: value.clone() for name, value in {**trainer.networks.teacher.state_dict(), **trainer.state.state_dict()}.items()}
    report = trainer.step(batches)
    after = {**trainer.networks.teacher.state_dict(), **trainer.state.state_dict()}
    assert report.bad
    assert not report.moved
    assert trainer.step_number == 2
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.step(batches).moved


def test_too_many_bad_steps_stop_with_a_dump(tmp_path: Path) -> None:
    with pytest.raises(ViRBError, match=r"3 steps in a row were not finite.*bad_step.pth"):
        run(tmp_path, break_from=2, max_bad_steps=3)
    dump = torch.load(tmp_path / "bad_step.pth", weights_only=True)
    assert dump["virb"]["step"] == 5
    assert dump["views"][0]["crops"][0].shape == (4, 3, 4, 4)
    assert not any(torch.isnan(value).any() for value in dump["student"].values())


def test_collapse_alarm(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    run(tmp_path / "a", flat=True, epochs=40, n=13, console=console)
    assert console.file.getvalue().count("this looks like a collapse") == 1  # type: ignore[attr-defined]
    alarm = Alarm(1000, quiet_steps=10)
    assert alarm.look({"teacher_entropy": 0.001, "loss": 3.0}, 10) is None
    assert alarm.look({"teacher_entropy": 3.0, "loss": 5.0}, 20) is None
    assert "one prototype" in str(alarm.look({"teacher_entropy": 0.001, "loss": 0.1}, 20))
    flat = Alarm(1000, 0)
    for loss in (6.9, 6.9, 5.0, 6.9, 6.91):
        assert flat.look({"teacher_entropy": 4.0, "loss": loss}, 20) is None
    weighed = Alarm(1000, 0)  # by weights that sum to 2 where views overlap, which they do for half of the images
    means = {"teacher_entropy": 4.0, "loss": 1.5 * 6.9, "loss_weight": 1.5}
    assert [weighed.look(means, 20) is None for _ in range(3)] == [True, True, False]
    again = Alarm(1000, 0)
    again.resume(flat.record())
    assert "stays at ln K" in str(again.look({"teacher_entropy": 4.0, "loss": 6.9}, 20))


def test_another_batch_size_after_a_resume_leaves_no_image_out(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, n=32, data=Mortal(32, 13), save_every_steps=1)  # 5 of 8 steps of the second epoch: 20 images
    seen: list[Any] = []
    console = Console(file=io.StringIO(), width=300)
    run(tmp_path, data=TinyData(32, seen=seen), batch_size_per_gpu=8, console=console)
    assert seen[0][0] == 4 + 2  # 16 images are 2 whole steps of 8
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "batch_size_per_gpu: 4 -> 8" in told
    assert "a step took 4 images then and takes 8 now" in told


def test_a_finished_run_says_so_and_more_epochs_go_on(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "checkpoint.pth").read_bytes()
    console = Console(file=io.StringIO(), width=300)
    run(tmp_path, console=console)
    assert "all epochs (3) are done" in console.file.getvalue()  # type: ignore[attr-defined]
    assert (tmp_path / "checkpoint.pth").read_bytes() == before
    assert run(tmp_path, epochs=4).step == 24


def test_what_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a step takes 64 images .* but there are only 26; lower batch_size_per_gpu"):
        run(tmp_path / "a", batch_size_per_gpu=64)
    with pytest.raises(UserError, match="there is only 1"):
        run(tmp_path / "a", n=1)
    run(tmp_path / "b")
    with pytest.raises(UserError, match="is there already"):
        run(tmp_path / "b", resume=False)
    with Lease(tmp_path / "c" / ".lease"), pytest.raises(Held, match="is in use"):
        run(tmp_path / "c")
    with pytest.raises(UserError, match="fp16 is for GPUs"):
        run(tmp_path / "d", precision="fp16")


def test_bf16_on_cpu_trains(tmp_path: Path) -> None:
    summary = run(tmp_path, precision="bf16", epochs=1)
    assert summary.last["loss"] == pytest.approx(1.55, abs=0.1)


def test_schedules_of_the_engine(tmp_path: Path) -> None:
    """Peak learning rate in proportion to the joint batch; weight decay by a cosine; a warm-up longer than the training."""
    options = options_for(tmp_path, epochs=10, warmup_epochs=2, lr=0.1, min_lr=0.0, batch_size_per_gpu=64, accumulation_steps=2)
    trainer = Trainer(Tiny(options), options, CPU, 5)
    rates = []
    for step in range(50):
        trainer.step_number = step
        rates.append(trainer.rates(trainer.progress))
    lr, decay = np.array(rates).T
    assert lr[0] == 0
    assert lr[9] == pytest.approx(0.05)
    assert lr[10] == pytest.approx(0.05)
    assert lr[30] == pytest.approx(0.025)
    assert lr[-1] < 0.001
    assert decay[0] == pytest.approx(0.04)
    assert decay[25] == pytest.approx(0.07)
    run(tmp_path / "long", warmup_epochs=10, epochs=1)


def test_checkpoint_of_every_epoch_is_seen_by_what_comes_after(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def after(path: Path, epochs: int, stopping: Any) -> None:
        seen.append((epochs, torch.load(path, weights_only=True)["epoch"]))
        if epochs == 2 and seen.count((2, 2)) == 1:
            raise Killed

    from virb.pretraining.engine import train

    options = options_for(tmp_path)
    with pytest.raises(Killed):
        train(Tiny(options), options, TinyData(26), CPU, after_epoch=after)
    train(Tiny(options), options, TinyData(26), CPU, after_epoch=after)  # asked again for the epoch that was cut off
    assert seen == [(1, 1), (2, 2), (2, 2), (3, 3)]
