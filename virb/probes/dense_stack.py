"""Linear heads of one form take their products as one: maps are normalised once, and one 1x1 convolution gives the outputs of all heads.

A head's scale and shift after the normalisation are folded into its convolution, whose gradients reach them through the fold. Losses, at
grids far larger than the maps, stay one after the other, each with its backward at once: that memory is that of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from virb.probes.dense_decoders import resize
from virb.probes.dense_heads import DenseLinear


def form_of(head: nn.Module) -> Hashable | None:
    """Heads of equal form can be one stack; None stacks with nothing: decoders, and dropout, which draws for each head."""
    if not isinstance(head, DenseLinear) or head.dropout.p > 0:
        return None
    return (tuple(head.channels), tuple(isinstance(norm, nn.BatchNorm2d) for norm in head.norms))


def learn_together(heads: Sequence[DenseLinear], maps: Sequence[Tensor], losses: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
    """The losses of heads of one form in training mode, with their gradients left in the parameters: as each alone, to rounding.

    ``losses``: from the outputs of the head at its own grid, (B, n_outputs, h, w), to a scalar.
    """
    outputs = _outputs(heads, maps)
    means, gradients = [], []
    for output, loss in zip(outputs, losses, strict=True):
        leaf = output.detach().requires_grad_()
        mean = loss(leaf)
        mean.backward()
        means.append(mean.detach())
        gradients.append(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf))
    torch.autograd.backward(outputs, gradients)
    return means


def _outputs(heads: Sequence[DenseLinear], maps: Sequence[Tensor]) -> Sequence[Tensor]:
    first = heads[0]
    used = [_normalised(x, [head.norms[i] for head in heads]) for i, x in enumerate(maps[-len(first.channels) :])]
    folded = [_folded(head) for head in heads]
    weight, bias = (torch.cat(parts) for parts in zip(*folded, strict=True))
    if len({x.shape[-2:] for x in used}) == 1:
        outputs = F.conv2d(torch.cat(used, 1) if len(used) > 1 else used[0], weight, bias)
    else:
        height, width = max((x.shape[-2:] for x in used), key=lambda grid: grid[0] * grid[1])
        parts = [resize(F.conv2d(x, one), (height, width)) for x, one in zip(used, weight.split(first.channels, 1), strict=True)]
        outputs = torch.stack(parts).sum(0) + bias[:, None, None]
    return outputs.split([head.conv.out_channels for head in heads], 1)


def _folded(head: DenseLinear) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that takes normalised maps without scale and shift."""
    weight, bias = head.conv.weight, head.conv.bias
    if bias is None:
        bias = weight.new_zeros(len(weight))
    if not any(isinstance(norm, nn.BatchNorm2d) for norm in head.norms):
        return weight, bias
    scale = torch.cat([norm.weight for norm in head.norms])  # type: ignore[misc]
    shift = torch.cat([norm.bias for norm in head.norms])  # type: ignore[misc]
    return weight * scale[:, None, None], bias + weight[:, :, 0, 0] @ shift


def _normalised(x: Tensor, norms: Sequence[nn.Module]) -> Tensor:
    """With the statistics of the batch, which every head's running ones take note of."""
    batch_norms = [norm for norm in norms if isinstance(norm, nn.BatchNorm2d)]
    if not batch_norms:
        return x
    mean, variance = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    with torch.no_grad():
        normalised = F.batch_norm(x, mean, variance, None, None, True, 1.0, batch_norms[0].eps)
        for norm in batch_norms:
            momentum = norm.momentum or 0.0
            for running, seen in ((norm.running_mean, mean), (norm.running_var, variance)):
                if running is not None:
                    running.mul_(1 - momentum).add_(seen, alpha=momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
    return normalised
