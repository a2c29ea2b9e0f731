"""1,797 real scans of handwritten digits, 8 x 8 pixels: they come with scikit-learn, so nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.images import ArrayImages, Dataset, Samples
from virb.functional.randomness import numpy_generator

_TEST_SHARE = 0.2


@register_dataset("digits")
def digits(root: Path | None = None) -> Dataset:
    """Lists and splits ``train`` (1,438) and ``test`` (359), target ``class``. The split is fixed and stratified; an id is the scan's
    number in scikit-learn's order. ``root`` is not used."""
    from sklearn.datasets import load_digits  # heavy, and only needed here

    scans, labels = load_digits(return_X_y=True)
    pixels = np.rint(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    lists, samples = {}, {}
    for split, rows in split_digits(labels).items():
        lists[split] = ArrayImages(split, pixels[rows], [f"digits/{row:04d}" for row in rows])
        samples[split] = Samples.one_per_image(lists[split], {"class": labels[rows].astype(np.int64)})
    return Dataset("digits", lists, samples, {"class": tuple("0123456789")})


def split_digits(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rising row numbers of ``train`` and ``test``: a fifth of every class, drawn with seed 0, is for testing."""
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        order = numpy_generator(0, "digits/split", label).permutation(members)
        test[order[: round(_TEST_SHARE * len(members))]] = True
    return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
