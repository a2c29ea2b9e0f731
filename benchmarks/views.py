"""What augmented training views are worth to a linear head: python benchmarks/views.py [--root IMAGES --experiment_list FILE]

The same head, learning rates and epochs on plain features, on V cached views (random crops and flips that the epochs cycle through), and on
fresh views (a new one each epoch). Printed are top-1 with its interval, and the difference to plain features, paired: both are resampled
alike. ``--root`` is a folder of images, {train,test}/<class>/*; without it the built-in shapes are taken.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import virb
from virb.metrics.base import find_metric
from virb.results.samples import read_samples
from virb.results.statistics import resampled_values

_LR = {"sgd": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0], "adamw": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]}


def tasks(root: Path | None, views: list[int], epochs: int, optimizer: str, fresh: bool) -> dict[str, dict[str, Any]]:
    """Label -> keys of the task."""
    data = {"task": "shapes-class"} if root is None else {"task": "folder", "data": {"root": str(root.resolve())}}
    momentum = {"momentum": 0.9} if optimizer == "sgd" else {}
    grid = {"optimizer": [optimizer], "lr": _LR[optimizer], **momentum, "scheduler": ["cosine"]}
    same = {**data, "num_epochs": epochs, "batch_size": 256, "selection": "val", "seeds": 3, "grid": grid}
    found: dict[str, dict[str, Any]] = {"plain": same}
    found |= {f"views-{number}": {**same, "views": number, "augment": "crop-flip"} for number in views}
    return found | ({"fresh": {**same, "views": "fresh"}} if fresh else {})


def resamples(out: Path, encoder: str, label: str) -> np.ndarray:
    samples = read_samples(out / encoder / label / "samples.npz")
    return resampled_values(find_metric("top1"), samples.statistics["top1"], samples.unit_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, help="images, {train,test}/<class>/* (default: the built-in shapes)")
    parser.add_argument("--experiment_list", type=Path, help="encoders (default: pixels and a random ResNet-18)")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--optimizer", choices=list(_LR), default="sgd")
    parser.add_argument("--fresh", action="store_true", help="also a new view each epoch (encodes as often as there are epochs)")
    parser.add_argument("--devices", default="auto")
    options = parser.parse_args()
    encoders: Any = options.experiment_list or {"pixels": {"arch": "pixels"}, "random_resnet18": {"arch": "resnet18", "weights": "random"}}
    wanted = tasks(options.root, options.views, options.epochs, options.optimizer, options.fresh)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        began = time.perf_counter()
        results = virb.run(encoders, wanted, out, devices=options.devices, progress=False)
        for name, reason in results.failed.items():
            print(f"{name} failed: {reason.splitlines()[0]}")
        table = results.table()
        for encoder in dict.fromkeys(table["encoder"]):
            rows = table[table["encoder"] == encoder].set_index("label")
            plain = resamples(out, encoder, "plain")
            for label in wanted:
                row = rows.loc[label]
                line = f"{encoder:<18} {label:<9} top-1 {100 * row['value']:5.1f} % [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
                if label != "plain":
                    difference = 100 * (resamples(out, encoder, label) - plain)
                    low, high = np.quantile(difference, [0.025, 0.975])
                    line += f"   against plain {100 * (row['value'] - rows.loc['plain', 'value']):+.1f} [{low:+.1f}, {high:+.1f}]"
                print(line)
        print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
