"""ViRB 2021's depth from AI2-THOR: a render and its depth as an 8-bit picture. The unit is the scene, of which many samples come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, locate
from virb.data.datasets.dense import checked_variant, from_pairs, paired_folders
from virb.data.decode import read_target
from virb.data.images import Dataset

_GREATEST = np.float32(255)


@register_dataset("thor-depth")
def thor_depth(root: Path | None, variant: str | None = None) -> Dataset:
    """Depth of rendered rooms. ``{train,test}/<scene>/<name>rgb.jpg`` and ``<name>depth.jpg``, joined by name.

    Target ``depth``, float32 (H, W): grey / 255 of the JPEG, in units of a range that was never published (1 is the most that a file can
    say), NaN where the grey is 0. ``variant="virb2021"``: (1, H, W), (grey / 255 - 0.5) / 0.25, from -2 to 2, nothing masked.
    """
    name = "thor-depth"
    historic = checked_variant(name, variant) is not None
    folder, _ = locate(name, root, (Layout("ViRB 2021", ("train", "test")),))
    splits = {}
    for split in ("train", "test"):
        pairs = paired_folders(name, folder, (split, "rgb"), (split, "depth"), (".jpg",), "depth map")
        splits[split] = replace(pairs, units=[path.rpartition("/")[0] for path in pairs.images])
    read, unit = (read_signed, "2021") if historic else (read_share, "range")
    return from_pairs(name, folder, splits, "depth", read, {"unit": unit})


def read_share(path: str) -> np.ndarray:
    """float32 (H, W) in (0, 1], NaN where the grey is 0, which has no ratio to anything."""
    depth = _grey(path) / _GREATEST
    depth[depth == 0] = np.nan
    return depth


def read_signed(path: str) -> np.ndarray:
    """float32 (1, H, W) from -2 to 2: ViRB's ``(x - 0.5) / 0.25``."""
    return ((_grey(path) / _GREATEST - np.float32(0.5)) / np.float32(0.25))[None]


def _grey(path: str) -> np.ndarray:
    return np.asarray(read_target(path).convert("L"), dtype=np.float32)
