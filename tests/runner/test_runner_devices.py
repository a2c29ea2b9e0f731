"""What --devices and --precision mean."""

from __future__ import annotations

import pytest
import torch

from virb.errors import UserError
from virb.io import available_cores
from virb.runner import devices
from virb.runner.devices import parse_devices, resolve_precision, set_up


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    pretend(0)
    monkeypatch.setattr(devices, "available_cores", lambda: 3)
    return pretend


@pytest.mark.parametrize(
    ("text", "count", "names"),
    [
        ("auto", 0, ("cpu",) * 3),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cpu", 2, ("cpu",) * 3),
        ("cpu:1", 0, ("cpu",)),
        ("cpu:4", 2, ("cpu",) * 4),
        ("cpu:1,cpu:2", 0, ("cpu",) * 3),
        ("cuda", 1, ("cuda:0",)),
        ("cuda:2, cuda:0", 3, ("cuda:2", "cuda:0")),
    ],
)
def test_names(gpus, text, count, names):
    gpus(count)
    assert parse_devices(text) == names


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        ("", 0, "'' is no device"),
        ("gpu", 1, "'gpu' is no device; use auto, cpu, cpu:4 or cuda:0,cuda:2"),
        ("cpu:-1", 0, "no device"),
        ("cuda:0,", 1, "no device"),
        ("cpu:0", 0, "at least one worker"),
        ("cuda:0", 0, r"there is no cuda:0 here \(0 CUDA devices found\)"),
        ("cuda:0,cuda:2", 2, r"there is no cuda:2 here \(2 CUDA"),
        ("cuda:1,cuda:0,cuda:1", 2, "named twice"),
        ("cuda,cuda:0", 2, "named twice"),
        ("cpu,cuda:0", 1, "mixing cpu and cuda"),
    ],
)
def test_mistakes(gpus, text, count, words):
    gpus(count)
    with pytest.raises(UserError, match=words) as caught:
        parse_devices(text)
    assert f"--devices {text}" in str(caught.value)


def test_cores():
    assert 1 <= available_cores() <= 4096


@pytest.mark.parametrize(
    ("workers", "jobs", "share"),
    [(1, 9, 8), (8, 9, 1), (3, 9, 2), (8, 2, 4), (8, 1, 8), (16, 20, 1), (2, 0, 8)],
)
def test_a_worker_has_its_share_of_the_cores(monkeypatch, workers, jobs, share):
    """Workers without a job leave theirs to the others."""
    monkeypatch.setattr(devices, "available_cores", lambda: 8)
    assert devices.cores_of_worker(("cpu",) * workers, jobs) == share
    assert devices.cores_of_worker(("cuda:0",), jobs) == 1


def test_a_cpu_worker_computes_with_one_thread():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        set_up("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float32_means_float32_on_cuda():
    torch.backends.cuda.matmul.allow_tf32 = True
    set_up("cuda:0")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("text", "device", "name"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda:1", "bfloat16"),
        ("auto", "cuda", "bfloat16"),
        ("fp32", "cuda:0", "float32"),
        ("bf16", "cpu", "bfloat16"),
        ("fp16", "cuda:0", "float16"),
    ],
)
def test_precision(text, device, name):
    assert resolve_precision(text, device) == name


def test_precision_mistakes():
    with pytest.raises(UserError, match="--precision half: use auto, fp32, bf16 or fp16"):
        resolve_precision("half", "cpu")
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        resolve_precision("fp16", "cpu")
