"""Batch norm of several ranks against torch's own on the joint batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from virb.pretraining.batch_norm import JointBatchNorm, join_batch_norm

ROOT = Path(__file__).parents[2]
# Both ranks have all the data, train the plain network on all of it and the joint one on their share, and compare.
COMPARE = """
import copy, torch
from torch import nn
from virb.pretraining import distributed
from virb.pretraining.batch_norm import join_batch_norm
ranks = distributed.join("cpu", 60)
torch.manual_seed(0)
plain = nn.Sequential(
    nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6, affine=False, momentum=None), nn.Flatten(), nn.Linear(96, 7),
    nn.BatchNorm1d(7, track_running_stats=False), nn.GELU(), nn.BatchNorm1d(7, momentum=0.3), nn.Linear(7, 2))
joint = join_batch_norm(copy.deepcopy(plain))
assert list(joint.state_dict()) == list(plain.state_dict())
sizes = [5, 3]  # of unlike ranks
for step in range(3):
    x = (100 + torch.randn(8, 3, 6, 6)).requires_grad_()
    mine = x.detach().split(sizes)[ranks.rank].clone().requires_grad_()
    whole, part = plain(x), joint(mine)
    torch.testing.assert_close(part, whole.split(sizes)[ranks.rank], rtol=1e-4, atol=1e-5)
    whole.square().sum().backward()
    part.square().sum().backward()
    torch.testing.assert_close(mine.grad, x.grad.split(sizes)[ranks.rank], rtol=1e-3, atol=1e-5)
    grads = [p.grad.clone() for p in joint.parameters()]
    ranks.add_up(grads)
    for p, grad in zip(plain.parameters(), grads):
        torch.testing.assert_close(grad, p.grad, rtol=1e-3, atol=1e-4)
    plain.zero_grad(), joint.zero_grad()
for name, value in plain.state_dict().items():
    torch.testing.assert_close(joint.state_dict()[name], value, rtol=1e-4, atol=1e-5)
if ranks.rank == 0:  # without the other
    y = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(joint.eval()(y), plain.eval()(y), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert joint[1](y.bfloat16().repeat(1, 2, 1, 1)).dtype == torch.bfloat16
ranks.close()
"""


def test_two_ranks_normalise_by_the_joint_batch() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", COMPARE], env={**shared, "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(90) for process in processes] == [0, 0]


def test_what_is_inside_a_batch_norm_of_timm_stays() -> None:
    layers = pytest.importorskip("timm.layers")
    network = nn.Sequential(layers.BatchNormAct2d(4, act_layer=nn.SiLU)).eval()
    x = torch.randn(2, 4, 3, 3)
    expected, names = network(x), list(network.state_dict())
    joint = join_batch_norm(network)
    assert isinstance(joint[0], JointBatchNorm)
    assert torch.equal(joint(x), expected)
    assert list(joint.state_dict()) == names


def test_synchronising_keeps_what_is_inside_a_batch_norm_of_timm() -> None:
    from virb.pretraining.networks import synchronise_batch_norm

    layers = pytest.importorskip("timm.layers")
    network = nn.Sequential(layers.BatchNormAct2d(4, act_layer=nn.SiLU), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = network[0](x)
    found = synchronise_batch_norm(network)
    assert all(isinstance(module, nn.SyncBatchNorm) for module in found)
    assert torch.equal(found[0](x), expected)  # in evaluation it takes CPUs, too
