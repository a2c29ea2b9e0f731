"""The labelled NYU data set in miniature: MATLAB's axes backwards, scenes as references to arrays of characters."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

CLASSES = tuple(f"thing {i}" for i in range(40))
N_LABELS = 60


def frames(n: int, height: int, width: int) -> dict[str, np.ndarray]:
    """images (n, H, W, 3), raw depths in metres with zeros, labels 0 to 60."""
    random = np.random.default_rng(5)
    depths = random.uniform(0.5, 9.9, (n, height, width)).astype(np.float32)
    depths[:, ::5, ::3] = 0
    return {
        "images": random.integers(0, 256, (n, height, width, 3), dtype=np.uint8),
        "rawDepths": depths,
        "labels": random.integers(0, N_LABELS + 1, (n, height, width)).astype(np.uint16),
    }


def mapping() -> np.ndarray:
    """Label 1 to 60 -> class 1 to 40."""
    return (np.arange(N_LABELS) * 7 % 40 + 1).astype(np.uint8)


def write_nyu(folder: Path, arrays: dict[str, np.ndarray], train: list[int], test: list[int], scenes: list[str]) -> None:
    """``train``, ``test``: frames counted from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for key, array in arrays.items():
            file[key] = np.ascontiguousarray(np.moveaxis(array, 0, -1).T)  # MATLAB's H x W x ... x N, saved in its own order
        file["depths"] = file["rawDepths"][...] + 1  # filled in: not what is read
        file.create_dataset("scenes", (1, len(scenes)), dtype=h5py.ref_dtype)
        for i, scene in enumerate(scenes):
            file[f"#refs#/{i}"] = np.array([[ord(letter)] for letter in scene], dtype=np.uint16)
            file["scenes"][0, i] = file[f"#refs#/{i}"].ref
    with open(folder / "nyu_depth_v2_labeled.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))
    savemat(folder / "splits.mat", {"trainNdxs": np.array(train, np.uint16)[:, None], "testNdxs": np.array(test, np.uint16)[:, None]})
    names = np.array([CLASSES], dtype=object)
    savemat(folder / "classMapping40.mat", {"mapClass": mapping()[None], "className": names})
