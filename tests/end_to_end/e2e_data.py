"""Datasets and tasks that tests name in YAML, as a user names his own: ``task: e2e_data:BLOBS``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from virb.data.images import ArrayImages, Dataset, Samples
from virb.tasks.base import Task


def blobs(
    root: Path | None = None,
    permute_test: int = 0,
    unit_size: int = 1,
    with_val: bool = False,
    n_train: int = 90,
    n_test: int = 30,
    n_classes: int = 3,
) -> Dataset:
    """Grey images of 8 x 8 pixels whose brightness tells the class, with overlap. ``permute_test``: a seed that shuffles the test labels.
    ``unit_size``: neighbouring train samples are of one unit."""
    random = np.random.default_rng(0)
    lists, samples = {}, {}
    for split, count in {"train": n_train, "val": 24 if with_val else 0, "test": n_test}.items():
        if not count:
            continue
        labels = np.arange(count) // unit_size % n_classes
        level = 60 + 60 * labels[:, None, None] + random.normal(0, 25, (count, 1, 1)) + random.normal(0, 10, (count, 8, 8))
        pixels = np.clip(level, 0, 255).astype(np.uint8)
        lists[split] = ArrayImages(split, pixels, [f"{split}/{i:03}" for i in range(count)])
        if split == "test" and permute_test:
            labels = np.random.default_rng(permute_test).permutation(labels)
        units = [f"{split}/unit{i // unit_size:03}" for i in range(count)]
        samples[split] = Samples.one_per_image(lists[split], {"class": labels.astype(np.int64)}, units)
    return Dataset("blobs", lists, samples, {"class": tuple("abcdefgh"[:n_classes])})


BLOBS = Task(id="Blobs", level="image-level", kind="semantic", dataset="e2e_data:blobs", metrics=("top1", "mean_class_accuracy"))
