"""Miniatures whose masks are planted: images of noise (no two are equal) and label images with known values."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from virb.data.images import Dataset

SIZE = (13, 17)  # height, width: neither square nor even


def put_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """Noise that depends on the file's name alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def put_labels(path: Path, values: np.ndarray, palette: bool = False) -> Path:
    """A label image of one channel; with a ``palette`` as VOC's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image = image.convert("P") if image.mode != "P" else image
        image = Image.frombytes("P", image.size, values.astype(np.uint8).tobytes())
        image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(path)
    return path


def every_value(values: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) with these values in turn, row by row."""
    return np.resize(np.array(values), size)


def target(dataset: Dataset, split: str, i: int, name: str = "mask") -> np.ndarray:
    found = dataset.samples[split].targets[name][i]
    assert isinstance(found, np.ndarray)
    return found


def ids(dataset: Dataset, split: str) -> list[str]:
    return [str(i) for i in dataset.samples[split].ids]
