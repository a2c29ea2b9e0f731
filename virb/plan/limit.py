"""``limit: {train: 5000, test: 1000}``: fewer samples, for trying things. Which ones is a function of the split alone, not of the encoder.

A limited split is an image list of its own: only the images of its samples are encoded, and they are encoded again for the whole split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virb.data.images import Dataset, ImageList, Samples
from virb.data.subsets import subset
from virb.functional.randomness import numpy_generator
from virb.probes.inputs import pick_targets


@dataclass(frozen=True)
class Limited:
    samples: Samples
    images: ImageList
    indices: tuple[int, ...]  # of the split's samples, ascending


def limit_split(dataset: Dataset, split: str, count: int, target: str) -> Limited | None:
    """``count`` samples of a split, its classes in proportion; None when the split has no more than that."""
    samples = dataset.samples[split]
    if count >= len(samples):
        return None
    chosen = draw(samples.targets.get(target), len(samples), count, split)
    rows, row_values = np.unique(samples.rows_of(chosen), return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(np.diff(samples.row_offsets)[chosen])])
    targets = {name: pick_targets(values, chosen) for name, values in samples.targets.items()}
    images = subset(dataset.lists[samples.images], rows)
    part = Samples(samples.ids[chosen], samples.images, row_values.reshape(-1), offsets, targets, samples.units[chosen])
    return Limited(part, images, tuple(chosen.tolist()))


def draw(targets: object, n_samples: int, count: int, split: str) -> np.ndarray:
    """Ascending int64 indices. Class c of n_c samples gets count x n_c / n of them (the largest remainders rounded up), at least one while
    there are enough for every class; targets of any other kind are not looked at."""
    if not (isinstance(targets, np.ndarray) and targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)):
        return np.sort(numpy_generator(0, f"limit {split}").permutation(n_samples)[:count])
    classes, class_of, sizes = np.unique(targets, return_inverse=True, return_counts=True)
    class_of = class_of.reshape(-1)
    chosen = [
        numpy_generator(0, f"limit {split}", int(c)).permutation(np.flatnonzero(class_of == number))[:quota]
        for number, (c, quota) in enumerate(zip(classes, _quotas(sizes, count), strict=True))
    ]
    return np.sort(np.concatenate(chosen))


def _quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    least = np.ones(len(sizes), dtype=np.int64) if count >= len(sizes) else np.zeros(len(sizes), dtype=np.int64)
    share = count * sizes / sizes.sum()
    quotas = np.maximum(np.floor(share).astype(np.int64), least)
    by_need = np.argsort(-(share - quotas), kind="stable")
    while quotas.sum() < count:
        for c in by_need[: count - quotas.sum()]:
            quotas[c] += quotas[c] < sizes[c]
    while quotas.sum() > count:  # small classes got one more than their share: the largest give
        quotas[np.argmax(np.where(quotas > least, quotas - share, -np.inf))] -= 1
    return quotas
