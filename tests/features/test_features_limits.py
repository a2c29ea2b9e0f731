"""One limit of the encoders' weights for plan and workers, shared by the workers of a host."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from virb.features import limits
from virb.features.limits import encoder_limit, weight_bytes


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


def test_weights_are_float32():
    assert weight_bytes(SimpleNamespace(n_params=1000)) == 4000
