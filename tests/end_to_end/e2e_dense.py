"""Pixelwise tasks with planted answers, as a user names his own in YAML: images whose colours tell class and depth of every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from virb.data.decode import DECODED
from virb.data.images import Dataset, ImageList, Samples
from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Stage
from virb.tasks.base import Task

PALETTE = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], dtype=np.uint8)
LEVELS = np.array([0.5, 1.0, 2.5, 4.0], dtype=np.float32)
CLASSES = ("none", "red", "green", "blue")
# Native sizes of 4 x 6 blocks that squash to 24 x 36 pixels by whole numbers, so that no block is cut: each with an aspect of its own.
SIDES = [(6, 6), (3, 6), (6, 3), (12, 12), (2, 1), (3, 3), (12, 6)]


class Painted(ImageList):
    """Label maps in colours."""

    def __init__(self, name: str, labels: Sequence[np.ndarray]) -> None:
        self.name, self.labels, self.ids = name, list(labels), [f"{name}/{i:03}" for i in range(len(labels))]

    def read(self, i: int) -> Image.Image:
        DECODED.add()
        return Image.fromarray(PALETTE[self.labels[i]])

    def image_size(self, i: int) -> tuple[int, int]:
        return self.labels[i].shape[0], self.labels[i].shape[1]

    def _describe(self) -> dict[str, Any]:
        return {"kind": "painted"}

    def _contents(self) -> Any:
        return (f"{label.shape}".encode() + label.tobytes() for label in self.labels)


def colours(
    root: Path | None = None,
    n_train: int = 14,
    n_test: int = 7,
    permute_test: int = 0,
    with_val: bool = False,
    side: int = 0,
    void: bool = True,
    cut: bool = False,
    damage: str = "",
) -> Dataset:
    """``side``: of every block, in pixels (0: sizes differ). ``permute_test``: a seed that shuffles the classes of the test targets.
    ``cut``: a class per row or column of blocks of 6 (or 12) pixels, the last of which are a sixth smaller. ``damage``: what is wrong with
    the second test target."""
    random = np.random.default_rng(0)
    lists: dict[str, ImageList] = {}
    samples = {}
    for split, count in {"train": n_train, "val": 7 if with_val else 0, "test": n_test}.items():
        if not count:
            continue
        labels = []
        for i in range(count):
            classes = random.integers(0, len(CLASSES), (4, 6))
            if cut:  # the last two alike, for the cut cells lie elsewhere than the whole ones
                classes[:, 5], classes[3] = classes[:, 4], classes[2]
                classes = np.broadcast_to(classes[:, :1] if i % 2 else classes[:1], classes.shape)
            sides = (6 * (1 + i // 2 % 2),) * 2 if cut else (side, side) if side else SIDES[i % len(SIDES)]
            label = np.kron(classes, np.ones(sides, int)).astype(np.uint8)
            labels.append(label[: -(sides[0] // 6), : -(sides[1] // 6)] if cut else label)
        lists[split] = Painted(split, labels)
        masks = [label.copy() for label in labels]
        if split == "test" and permute_test:
            shuffled = np.random.default_rng(permute_test).permutation(len(CLASSES))
            masks = [shuffled[mask].astype(np.uint8) for mask in masks]
        depths = [LEVELS[mask] for mask in masks]
        if void:
            for mask, depth in zip(masks, depths, strict=True):
                mask[0, : mask.shape[1] // 2] = 255
                depth[0, : mask.shape[1] // 2] = np.nan
        if split == "test" and damage:
            masks[1], depths[1] = _damaged(masks[1], depths[1], damage)
        if cut:
            masks = [_without_borders(mask) for mask in masks]
        samples[split] = Samples.one_per_image(lists[split], {"mask": masks, "depth": depths})
    return Dataset("colours", lists, samples, {"mask": CLASSES})


def _without_borders(mask: np.ndarray) -> np.ndarray:
    """A sixth of a block at both sides of a border between classes is void: there the margins of two classes decide."""
    padded, void = np.pad(mask, 2, mode="edge"), np.zeros(mask.shape, bool)
    height, width = mask.shape
    for down, along in [(-1, 0), (1, 0), (0, -1), (0, 1)]:
        for step in range(1, 2 if height < 30 else 3):
            top, left = 2 + down * step, 2 + along * step
            void |= padded[top : top + height, left : left + width] != mask
    return np.where(void, np.uint8(255), mask)


def _damaged(mask: np.ndarray, depth: np.ndarray, damage: str) -> tuple[np.ndarray, np.ndarray]:
    if damage == "size":
        return mask[:-1], depth[:-1]
    if damage == "class":
        mask = mask.copy()
        mask[1, 1] = 9
        return mask, depth
    return mask, np.full_like(depth, np.nan)


GEOMETRY = Geometry((24, 36), "squash", "none", 1.0, "nearest", None)
MASKS = Task(
    id="Masks",
    level="pixelwise",
    kind="semantic",
    dataset="e2e_dense:colours",
    target="mask",
    features="tokens[-1]",
    probe="dense-linear",
    metrics=("miou", "pixel_accuracy", "foreground_iou"),
    geometry=GEOMETRY,
    dense=DenseTarget("labels"),
)
PADDED = replace(MASKS, id="Padded", geometry=replace(GEOMETRY, size=(23, 35)), options={"cut": True})
DEPTHS = Task(
    id="Depths",
    level="pixelwise",
    kind="structural",
    dataset="e2e_dense:colours",
    target="depth",
    features="tokens[-1]",
    probe="dense-linear",
    loss="l1",
    metrics=("abs_rel", "delta1"),
    geometry=GEOMETRY,
    dense=DenseTarget("depth", range=(0.25, 10.0)),
)


class Colours(nn.Module):
    """Maps of the colours: which of them a pixel has, at stride 1, and the colours at stride 2."""

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        colours = torch.from_numpy(PALETTE).to(images).float()[None, :, :, None, None] / 255
        distances = (images[:, None] - colours).square().sum(2)
        which = torch.nn.functional.one_hot(distances.argmin(1), len(PALETTE)).permute(0, 3, 1, 2).to(images)
        return {"tokens": which, "pyramid": (which, images[:, :, ::2, ::2])}


class Patches(Encoder):
    """The colour of most pixels of each patch of 6 x 6, of images that are padded to whole patches."""

    family = "patches"

    def __init__(self) -> None:
        given = InputSpec(size=(24, 36), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        spec = EncoderSpec("", 4, 6, (Stage("tokens[-1]", 4, 6),), None, given, 0, "", "", self.family, 1, ("tokens", "pyramid"))
        super().__init__(Colours(), spec, {})
        self.seal("patches", "planted")

    def _outputs(self, images: torch.Tensor, wanted: Any) -> dict[Any, torch.Tensor]:
        shares = torch.nn.functional.avg_pool2d(self.network(images)["tokens"], 6)
        return dict.fromkeys(wanted, torch.nn.functional.one_hot(shares.argmax(1), len(PALETTE)).permute(0, 3, 1, 2).to(images))


class Vector(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))
