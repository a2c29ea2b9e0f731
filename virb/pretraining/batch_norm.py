"""Batch norm over the joint batch of all ranks on CPUs, where torch has none: its ``SyncBatchNorm`` takes GPUs only.

So ranks on CPUs learn what one process with the joint batch learns, as ranks on GPUs do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Joint(torch.autograd.Function):
    """The sum over ranks. What a rank adds is in every rank's sum, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class JointBatchNorm(_BatchNorm):
    """A batch norm of any number of axes whose mean and variance are those of the joint batch, in training. All ranks have to call it
    alike; in evaluation none needs the others. Parameters, buffers and their names are those of the batch norm that it stands for; modules
    inside are what timm's have there (dropout and activation), and follow."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2 axes, got {input.ndim}")

    @torch.compiler.disable  # messages between ranks are not for compilers
    def forward(self, input: Tensor) -> Tensor:
        out = self._joint(input) if self.training else super().forward(input)
        for after in self.children():
            out = after(out)
        return out

    def _joint(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        x = input.float()
        n = x.numel() // x.shape[1]
        sums = _Joint.apply(torch.cat([x.sum(axes), x.new_tensor([float(n)])]))
        count = sums[-1].detach()
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        var = _Joint.apply(centred.square().sum(axes)) / count  # of what is centred: sums of squares would lose digits
        if self.track_running_stats:
            self._follow(mean.detach(), var.detach() * count / (count - 1))
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)


def join_batch_norm(network: nn.Module) -> nn.Module:
    """The network with all its batch norms joint ones; parameters and buffers are the same tensors."""
    if isinstance(network, _BatchNorm) and not isinstance(network, nn.SyncBatchNorm | JointBatchNorm):
        joint = JointBatchNorm(network.num_features, network.eps, network.momentum, network.affine, network.track_running_stats)
        joint.weight, joint.bias = network.weight, network.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(joint, name, getattr(network, name))
        for name, after in network.named_children():
            setattr(joint, name, after)
        return joint.train(network.training)
    for name, child in network.named_children():
        setattr(network, name, join_batch_norm(child))
    return network
