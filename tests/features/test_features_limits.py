"""One limit of the encoders' weights for plan and workers, shared by the workers of a host."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from virb.features import limits
from virb.features.limits import encoder_limit, weight_bytes, working_tier


@pytest.mark.parametrize(
    ("workers", "free", "limit"),
    [(1, 100e9, 4e9), (4, 100e9, 1e9), (1, 2e9, 1e9), (5, 2e9, 0.2e9)],
)
def test_cpu_workers_share_what_the_host_has(monkeypatch, workers, free, limit):
    monkeypatch.setattr(limits, "free_memory", lambda: free)
    assert encoder_limit(("cpu",) * workers) == limit


def test_each_cuda_worker_has_its_device_and_the_smallest_decides(monkeypatch):
    sizes = {"cuda:0": 140e9, "cuda:1": 24e9}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: SimpleNamespace(total_memory=sizes[name]))
    assert encoder_limit(("cuda:0",)) == 20e9
    assert encoder_limit(("cuda:0", "cuda:1")) == 12e9


def test_where_features_of_a_size_are_read_from(monkeypatch):
    monkeypatch.setattr(limits, "free_memory", lambda: 100)
    assert [working_tier(need, "cpu", 1) for need in (49, 50)] == ["host", "mapped"]
    assert [working_tier(need, "cpu", 2) for need in (24, 25)] == ["host", "mapped"]  # workers share the host
    assert working_tier(20, "cpu", 1, taken=70) == "mapped"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 1000) if str(device) == "cuda:1" else None)
    assert [working_tier(need, "cuda:1", 1) for need in (29, 30, 50)] == ["device", "host", "mapped"]
    assert working_tier(29, "cuda:1", 1, taken=10) == "host"
    # What the job before left to torch's allocator is free as well.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50 if str(device) == "cuda:1" else 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10 if str(device) == "cuda:1" else 0)
    assert [working_tier(need, "cuda:1", 1) for need in (49, 50)] == ["device", "mapped"]


def test_weights_are_float32():
    assert weight_bytes(SimpleNamespace(n_params=1000)) == 4000
