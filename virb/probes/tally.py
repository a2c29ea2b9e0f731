"""Metrics of K heads at once, summed on the device over a whole split: the host reads a few numbers once per epoch.

The definitions are those of ``virb.metrics`` (a tie goes to the lower class); the built-in accuracies are counted here without leaving the
device, any other metric is summed on the host from its own statistics, batch by batch; of one that is no function of sums the statistics
themselves are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from virb.metrics.base import Metric, Statistics, find_metric

_TOP_K = {"top1": 1, "top5": 5}
_BY_CLASS = "mean_class_accuracy"


def read(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """All tensors on the host as float64, with one transfer."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors]).cpu().numpy()
    pieces = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


class Tally:
    """Sums of metrics of K heads over a split."""

    def __init__(self, names: Sequence[str], n_heads: int, n_outputs: int, device: torch.device) -> None:
        self.metrics: list[Metric] = [find_metric(name) for name in names]
        self._top_k = max((_TOP_K.get(name, 1) for name in names if name in _TOP_K or name == _BY_CLASS), default=0)
        self._n_heads = n_heads
        self._samples = torch.zeros(1, dtype=torch.int64, device=device)
        self._hits = {name: torch.zeros(n_heads, dtype=torch.int64, device=device) for name in names if name in _TOP_K}
        if _BY_CLASS in names:
            self._class_hits = torch.zeros(n_outputs, n_heads, dtype=torch.int64, device=device)
            self._class_samples = torch.zeros(n_outputs, dtype=torch.int64, device=device)
        self._clear_host()

    @property
    def on_device(self) -> bool:
        """Whether all is counted on the device: then ``update`` is a fixed list of kernels on tensors that stay where they are."""
        return not self._host

    def clear(self) -> None:
        """Back to nothing, in the same tensors."""
        for tensor in self.sums():
            tensor.zero_()
        self._clear_host()

    def _clear_host(self) -> None:
        own = [metric for metric in self.metrics if metric.name not in _TOP_K and metric.name != _BY_CLASS]
        self._host: dict[str, list[np.ndarray | float]] = {metric.name: [0.0] * self._n_heads for metric in own}
        self._kept: dict[str, list[list[Statistics]]] = {m.name: [[] for _ in range(self._n_heads)] for m in own if m.weighted}

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch: outputs (B, K, C), targets (B,)."""
        self._samples += len(outputs)
        if self._top_k:
            rank = rank_of_target(outputs, targets, self._top_k)
            for name, hits in self._hits.items():
                hits += (rank < min(_TOP_K[name], outputs.shape[-1])).sum(0)
            if _BY_CLASS in [metric.name for metric in self.metrics]:
                self._class_hits.index_add_(0, targets, (rank < 1).long())
                self._class_samples.index_add_(0, targets, torch.ones_like(targets))
        for metric in self.metrics:
            if metric.name in self._host:
                sums = self._host[metric.name]
                for head in range(outputs.shape[1]):
                    statistics = metric.statistics(outputs[:, head], targets)
                    if metric.weighted is not None:
                        self._kept[metric.name][head].append(statistics)
                    else:
                        sums[head] = sums[head] + statistics.total()

    def sums(self) -> list[Tensor]:
        """What is on the device, to be read together with other numbers; ``values`` takes what was read."""
        by_class = [self._class_hits, self._class_samples] if hasattr(self, "_class_hits") else []
        return [self._samples, *self._hits.values(), *by_class]

    def values(self, numbers: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Metric name -> (K,) float64, NaN where there is nothing to say."""
        samples = numbers[0][0] if len(numbers) else 0
        hits = dict(zip(self._hits, numbers[1:], strict=False))
        result = {}
        for metric in self.metrics:
            if metric.name in hits:
                counted = hits[metric.name]
                sums = np.stack([counted, np.full_like(counted, samples)], -1)[:, None]
            elif metric.name in self._kept:
                whole = [metric.of(Statistics.concatenate(parts)) if parts else None for parts in self._kept[metric.name]]
                result[metric.name] = np.array([np.nan if value is None else value for value in whole])
                continue
            elif metric.name in self._host:
                sums = np.stack([np.asarray(total) for total in self._host[metric.name]])
            else:
                class_hits, class_samples = numbers[-2:]
                sums = np.stack([class_hits.T, np.broadcast_to(class_samples, class_hits.T.shape)], -1)
            result[metric.name] = metric.values(sums)
        return result


def rank_of_target(outputs: Tensor, targets: Tensor, most: int) -> Tensor:
    """How many classes stand before the true one, (B, K); what is ``most`` or more may be any such number."""
    if outputs.device.type == "cpu":
        return _rank_on_host(outputs, targets)
    return _rank(outputs, targets) if most > 1 else (outputs.argmax(-1) != targets[:, None]).long()


def _rank(outputs: Tensor, targets: Tensor) -> Tensor:
    """A tie goes to the lower class."""
    own = outputs.gather(-1, targets.view(-1, 1, 1).expand(-1, outputs.shape[1], 1))
    before = torch.arange(outputs.shape[-1], device=outputs.device) < targets.view(-1, 1, 1)
    return ((outputs > own) | ((outputs == own) & before)).sum(-1)


def _rank_on_host(outputs: Tensor, targets: Tensor) -> Tensor:
    """Several times faster on CPUs, where comparisons that give floats are done many at a time and those that give booleans (like the
    arg max) one by one. Ties are looked for, and only then broken."""
    own = outputs.gather(-1, targets.view(-1, 1, 1).expand(-1, outputs.shape[1], 1))
    flags = torch.empty_like(outputs)
    if bool((torch.eq(outputs, own, out=flags).sum(-1) > 1).any()):
        return _rank(outputs, targets)
    return torch.gt(outputs, own, out=flags).sum(-1)
