"""Errors of a step: whose they are, what to do about them, and that nothing is lost by them."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_support import Tiny, TinyData, options_for, run, same
from rich.console import Console
from test_pretraining_engine import CPU, Mortal, close_to, start_ranks, wait

from virb.errors import BadImage, ViRBError
from virb.pretraining.engine import train
from virb.pretraining.methods import Views
from virb.pretraining.networks import BackboneConfig, find_backbone
from virb.pretraining.plan import BatchPlan
from virb.pretraining.step import Trainer
from virb.pretraining.troubles import explained, of_a_peer

# As gloo of torch 2.15 says it where a rank was killed, left, and did not answer.
OF_GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:5290: Connection reset by peer.",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2731",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 8000ms for recv operation to complete",
    "Application timeout caused pair closure",
)


def test_errors_of_others_and_own() -> None:
    for text in OF_GLOO:
        assert of_a_peer(RuntimeError(text))
    assert of_a_peer(dist.DistBackendError("NCCL error: remote process exited"))
    assert of_a_peer(dist.DistNetworkError("connection lost"))
    own = (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("gloo/"),
    )
    assert not any(map(of_a_peer, own))


@pytest.mark.parametrize(
    ("how", "rank"), [("memory", 0), ("shape", 1), *(pytest.param(*at, marks=pytest.mark.slow) for at in (("memory", 1), ("shape", 0)))]
)
def test_an_error_of_one_rank_is_told_by_all(tmp_path: Path, how: str, rank: int) -> None:
    reason = {"memory": "CUDA out of memory. Tried to allocate 20.00 GiB", "shape": "shapes cannot be multiplied"}[how]
    processes = start_ranks(tmp_path / "run", 2, "fail_at=3", f"fail_rank={rank}", f"fail_how={how}", "batch_size_per_gpu=2")
    ended = [wait(process) for process in processes]
    assert [code for code, _ in ended] == [1, 1]
    assert reason in ended[rank][1]
    assert "was lost" not in ended[rank][1]
    other = ended[1 - rank][1]
    assert f"rank {1 - rank} stops: rank {rank} on" in other
    assert reason in other
    assert "was lost" not in other
    assert torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["virb"]["step"] == 3


def test_what_to_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(ViRBError, match=r"out of memory on cpu in step 3: CUDA out of memory(.|\n)*smaller batch_size_per_gpu with more"):
        run(tmp_path / "a", fail_at=2)
    with pytest.raises(ViRBError, match=r"batch norm has nothing to compare on cpu in step 1: (.|\n)*larger batch_size_per_gpu"):
        run(tmp_path / "b", fail_at=0, fail_how="one")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # speaks for itself
        run(tmp_path / "c", fail_at=0, fail_how="shape")
    assert explained(MemoryError(), "cpu") is not None
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**62, dtype=torch.uint8)
    assert "out of memory" in str(explained(told.value, "cpu"))


def test_an_error_of_a_step_loses_none_before_it(tmp_path: Path) -> None:
    run(tmp_path / "whole", norm=True)
    for name, keys in (("a", dict(fail_at=8)), ("b", dict(fail_at=8, fail_how="shape"))):
        console = Console(file=io.StringIO(), width=300)
        with pytest.raises((ViRBError, RuntimeError)):
            run(tmp_path / name, norm=True, console=console, **keys)
        assert "everything up to step 8 is saved" in console.file.getvalue()  # type: ignore[attr-defined]
        run(tmp_path / name, norm=True)
        same(tmp_path / "whole" / "checkpoint.pth", tmp_path / name / "checkpoint.pth")
        assert (tmp_path / "whole" / "log.txt").read_bytes() == (tmp_path / name / "log.txt").read_bytes()


class Torn(Mortal):
    def batches(self, plan: BatchPlan, first_step: int) -> Generator[Views, None, None]:
        for number, views in enumerate(TinyData.batches(self, plan, first_step)):
            if first_step * plan.micro + number == self.at:
                raise BadImage("17.png: is broken")
            yield views


def test_a_bad_image_loses_no_step(tmp_path: Path) -> None:
    """In the second of three micro-batches of a step, so that half of it is done."""
    keys: dict[str, Any] = dict(norm=True, accumulation_steps=3, batch_size_per_gpu=2)
    run(tmp_path / "whole", **keys)
    with pytest.raises(BadImage, match=r"17\.png"):
        run(tmp_path / "cut", data=Torn(26, 3 * 6 + 1), **keys)
    assert torch.load(tmp_path / "cut" / "checkpoint.pth", weights_only=True)["virb"]["step"] == 6
    run(tmp_path / "cut", **keys)
    same(tmp_path / "whole" / "checkpoint.pth", tmp_path / "cut" / "checkpoint.pth")


def test_an_error_in_the_middle_of_moving_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = Tiny.after_step

    def failing(self: Tiny, networks: Any, state: Any, statistics: Any, progress: Any) -> None:
        if progress.step == 8:
            raise RuntimeError("half of it is done")
        after(self, networks, state, statistics, progress)

    monkeypatch.setattr(Tiny, "after_step", failing)
    with pytest.raises(RuntimeError, match="half"):
        run(tmp_path)
    assert torch.load(tmp_path / "checkpoint.pth", weights_only=True)["virb"]["step"] == 6


def test_a_skipped_step_moves_no_buffer(tmp_path: Path) -> None:
    class Bright(TinyData):
        def batches(self, plan: BatchPlan, first_step: int) -> Generator[Views, None, None]:
            for number, views in enumerate(super().batches(plan, first_step)):
                yield views if number != 1 else Views(tuple(crop / 0 for crop in views.crops), 2, views.geometry, views.samples)

    options = options_for(tmp_path / "a", norm=True)
    trainer = Trainer(Tiny(options), options, CPU, 6)
    batches = Bright(26).batches(BatchPlan(4, 1, 0, 1, 6, 18), 0)
    assert trainer.step(batches).moved
    networks = (trainer.networks.student, trainer.networks.teacher)
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    assert trainer.step(batches).bad
    for network, values in zip(networks, before, strict=True):
        assert any("running_var" in name for name in values)
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in values.items())
    assert trainer.step(batches).moved
    run(tmp_path / "b", data=Bright(26), norm=True)
    saved = torch.load(tmp_path / "b" / "checkpoint.pth", weights_only=True)
    assert all(torch.isfinite(value).all() for branch in ("student", "teacher") for value in saved[branch].values())


def test_an_epoch_without_a_good_step_is_an_error(tmp_path: Path) -> None:
    keys: dict[str, Any] = dict(n=13, max_bad_steps=100)  # three steps an epoch
    with pytest.raises(ViRBError, match=r"no step of epoch 3 was finite, the last is step 9; what it saw is in .*bad_step.pth\n  try"):
        run(tmp_path / "a", break_from=5, **keys)
    assert torch.load(tmp_path / "a" / "checkpoint.pth", weights_only=True)["virb"]["step"] == 9
    with pytest.raises(ViRBError, match="no step of the last epoch was finite"):  # it is not done by being started again
        run(tmp_path / "a", **keys)
    console = Console(file=io.StringIO(), width=300)
    run(tmp_path / "b", break_from=4, break_until=8, console=console, **keys)
    assert "4 of 9 steps were not finite and were skipped" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_follows_the_last_epoch_is_done_by_the_next_start(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    options = options_for(tmp_path)
    done: list[int] = []

    def after(path: Path, epochs: int, stopping: Any) -> None:
        if epochs == 3 and not done.count(-3):
            done.append(-3)
            raise Killed
        done.append(epochs)

    with pytest.raises(Killed):
        train(Tiny(options), options, TinyData(26), CPU, after_epoch=after)
    summary = train(Tiny(options), options, TinyData(26), CPU, after_epoch=after)
    assert done == [1, 2, -3, 3]
    assert summary.stopped is None


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_signal_in_what_follows_an_epoch_is_told(tmp_path: Path, epoch: int) -> None:
    options = options_for(tmp_path)
    done: list[int] = []

    def after(path: Path, epochs: int, stopping: Any) -> None:
        if epochs == epoch and -epoch not in done:
            done.append(-epoch)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopping()
            return
        done.append(epochs)

    console = Console(file=io.StringIO(), width=300)
    summary = train(Tiny(options), options, TinyData(26), CPU, after_epoch=after, console=console)
    assert summary.stopped == signal.SIGTERM
    assert f"stopped by SIGTERM after step {6 * epoch}" in console.file.getvalue()  # type: ignore[attr-defined]
    assert train(Tiny(options), options, TinyData(26), CPU, after_epoch=after).stopped is None
    assert done == [*range(1, epoch), -epoch, *range(epoch, 4)]


def test_a_job_that_is_preempted_goes_on_with_what_follows_an_epoch(tmp_path: Path) -> None:
    """Everything is saved, and whatever is done before it is killed need not be done again."""
    options = options_for(tmp_path)
    done: list[int] = []

    def after(path: Path, epochs: int, stopping: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stopping()
        done.append(epochs)

    assert train(Tiny(options), options, TinyData(26), CPU, after_epoch=after, keep_going_on_term=True).stopped is None
    assert done == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["probe_seconds", "save_seconds"])
def test_a_probe_and_saving_may_take_longer_than_a_rank_may_be_silent(tmp_path: Path, what: str) -> None:
    processes = start_ranks(tmp_path / "run", 2, "wait=6", f"{what}=9", "epochs=2", "batch_size_per_gpu=6", "saveckp_freq=0")
    for code, errors in map(wait, processes):
        assert code == 0, errors


def test_ranks_with_batch_norms_equal_one_with_the_joint_batch(tmp_path: Path) -> None:
    # Not AdamW, which makes whole steps of what rounding leaves of a gradient that is 0: that of a bias before a batch norm.
    run(tmp_path / "one", batch_size_per_gpu=8, norm=True, optimizer="sgd")
    for process in start_ranks(tmp_path / "two", 2, "norm=true", "optimizer=sgd"):
        assert wait(process)[0] == 0
    close_to(tmp_path / "one" / "checkpoint.pth", tmp_path / "two" / "checkpoint.pth")
    logs = [[json.loads(line) for line in (tmp_path / name / "log.txt").read_text().splitlines()] for name in ("one", "two")]
    for mine, theirs in zip(*logs, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_networks_with_auxiliary_classifiers_take_small_views() -> None:
    backbone = find_backbone(BackboneConfig("inception_v3", 16, (96, 80)), tokens=False)
    network = backbone.build(0.0).train()
    assert network(torch.zeros(2, 3, 80, 80)).shape == (2, backbone.width)
    assert not any("aux" in name.lower() for name in network.state_dict())
