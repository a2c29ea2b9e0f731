"""What a job loses when its features do not fit: the same linear grid from host memory and from the memory-mapped cache.

    python benchmarks/tiers.py [--quick]

The whole job reads from the slower tier, as one whose features are ten times the budget does for nearly all of its rows; both train the
same heads to the same bits. Baselines are the job that fits, and reading of the mapped slices in line, batch by batch. The loop of 2021
knows features on the device alone: its epoch stands against that of the job that fits. Nothing is scored. On a GPU an epoch is as long as
one of ImageNet: a shorter one would be the capture of its steps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import loop2021
import numpy as np
import torch
from frame import Table, main, paired, seconds_text, threads, times, verdict

from virb.config.training import GradientConfig
from virb.features.cache import FeatureCache, slice_bounds
from virb.features.feature_set import MappedRows, SampleFeatures
from virb.probes.grid import Recipe, train_grid
from virb.probes.heads import HeadShape
from virb.probes.split import Split

DIMS, CLASSES, BATCH = 384, 100, 256
TARGET = 1.5


class InLine(SampleFeatures):
    """The same, without reading ahead."""

    reads_ahead = False  # type: ignore[assignment]


def table(quick: bool = False) -> Table:
    with threads(1):
        return _table(quick)


def _table(quick: bool) -> Table:
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    n, epochs, repeats = (4_000, 1, 1) if quick else (50_000 if device.type == "cpu" else 1_281_167, 1, 3)
    rows = []
    loop2021.warm(device)
    with tempfile.TemporaryDirectory() as folder:
        source = features(Path(folder), n)
        targets = torch.from_numpy(np.random.default_rng(1).integers(0, CLASSES, n)).to(device)
        for configs in (1, 32):
            fast = "device" if device.type == "cuda" else "host"
            slow_ones = [("host", SampleFeatures), ("mapped", SampleFeatures)] if device.type == "cuda" else [("mapped", SampleFeatures)]
            for tier, kind in [*slow_ones, ("mapped", InLine)]:
                fits = split_of(source, targets, fast, device, SampleFeatures)
                does_not = split_of(source, targets, tier, device, kind)
                ours, best, ratio = paired(
                    lambda split=does_not, k=configs: train(split, k, epochs, device),  # type: ignore[misc]
                    lambda split=fits, k=configs: train(split, k, epochs, device),  # type: ignore[misc]
                    repeats,
                )
                name = f"{configs} config{'s' * (configs > 1)}, {tier}{'' if kind is SampleFeatures else ' without reading ahead'}"
                target = (f"<= {TARGET} x", verdict(ratio <= TARGET)) if kind is SampleFeatures else ("", "")
                rows.append((name, seconds_text(ours / epochs), seconds_text(best / epochs), times(ratio), *target))
            table = source.read(np.arange(n)).half().to(device), targets
            old, best, ratio = paired(
                lambda table=table, k=configs: loop2021.train(heads(k), table, None, CLASSES, epochs, BATCH),
                lambda split=fits, k=configs: train(split, k, epochs, device),
                1,
            )
            name = f"{configs} config{'s' * (configs > 1)}, {fast}: the loop of 2021"
            rows.append((name, seconds_text(old / epochs), seconds_text(best / epochs), times(ratio), "", ""))
    return Table(
        f"Tiers: an epoch of linear heads on {n:,} x {DIMS} features, {CLASSES} classes, batch {BATCH}",
        ("heads, tier", "epoch", f"epoch from {fast}", "ratio", "target", "reached"),
        tuple(rows),
        ("the mapped slices are in the page cache of the system: a cold disk adds its own time, which reading ahead overlaps",),
        gpu="" if device.type == "cuda" else "python benchmarks/tiers.py",
    )


def features(folder: Path, n: int) -> MappedRows:
    cache = FeatureCache(folder)
    for start, stop in slice_bounds(n):
        cache.write_slice("ab" * 32, start, np.random.default_rng(start).normal(size=(stop - start, DIMS)).astype(np.float32), {})
    return MappedRows(cache.slices("ab" * 32, n))


def split_of(rows: MappedRows, targets: torch.Tensor, tier: str, device: torch.device, kind: type[SampleFeatures]) -> Split:
    n = len(rows)
    return Split("fit", ((kind([rows], np.arange(n), np.arange(n + 1), device, tier), torch.arange(n)),), targets)


def train(split: Split, n_configs: int, epochs: int, device: torch.device) -> None:
    configs = heads(n_configs)
    shapes = {name: HeadShape(DIMS, CLASSES) for name in configs}
    train_grid(shapes, configs, split, None, Recipe(epochs, BATCH, BATCH, seed=0), device)


def heads(count: int) -> dict[str, GradientConfig]:
    return {f"c{i}": GradientConfig(optimizer="sgd", lr=0.001 * 1.2**i, momentum=0.9) for i in range(count)}


if __name__ == "__main__":
    main(table, __doc__)
