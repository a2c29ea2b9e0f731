"""Planted maps for tests of dense probes: an encoder that shows colours, images of blocks, and splits made as the runner makes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from virb.data.images import ImageList, Samples
from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.data.windows import WindowedImages, windowed_samples
from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Single, Stage
from virb.features.encoding import Numerics, PassOptions
from virb.probes.base import RoleData, Seen
from virb.probes.dense_data import DenseSplit
from virb.probes.inputs import encoded_rows, role_data

CPU = torch.device("cpu")
OPTIONS = PassOptions(Numerics("float32", "cpu"), 4, 0)


class Colours(Encoder):
    """A map of the colours, 0 to 1, each cell the mean of ``patch`` x ``patch`` pixels; ``pyramid``: that and one of half its size."""

    family = "colours"

    def __init__(self, patch: int = 1) -> None:
        stages = (Stage("pyramid[0]", 3, patch), Stage("pyramid[1]", 3, 2 * patch))
        outputs = ("embedding", "tokens", "pyramid")
        size = InputSpec(size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        padded = patch if patch > 1 else None
        super().__init__(
            nn.Identity(), EncoderSpec("", 3, padded, stages, None, size, 0, "", "", self.family, 1, outputs), {"patch": patch}
        )
        self.patch, self.calls = patch, 0
        self.seal("colours", "the colours of pixels")

    def _outputs(self, images: torch.Tensor, wanted: Collection[Single]) -> dict[Single, torch.Tensor]:
        self.calls += 1
        found = {}
        for single in wanted:
            side = self.patch * (2 if single.name == "pyramid" and single.block == 1 else 1)
            cells = F.avg_pool2d(images, side, ceil_mode=True, count_include_pad=False) if side > 1 else images
            found[single] = images.mean((2, 3)) if single.name == "embedding" else cells
        return found


class Pictures(ImageList):
    """Images of different sizes, in memory."""

    def __init__(self, arrays: Sequence[np.ndarray], name: str = "pictures") -> None:
        self.name, self.arrays, self.ids = name, list(arrays), [f"{name}/{i}" for i in range(len(arrays))]

    def read(self, i: int) -> Image.Image:
        return Image.fromarray(self.arrays[i])

    def image_size(self, i: int) -> tuple[int, int]:
        return self.arrays[i].shape[0], self.arrays[i].shape[1]

    def _describe(self) -> dict[str, Any]:
        return {"kind": "pictures"}

    def _contents(self) -> Any:
        return (array.tobytes() for array in self.arrays)


def squash(height: int, width: int, interpolation: Any = "nearest") -> Geometry:
    return Geometry((height, width), "squash", "none", 1.0, interpolation, None)


def blocks(classes: np.ndarray, side: tuple[int, int]) -> np.ndarray:
    """(rows, columns) of class ids as a label map in which each is ``side`` (height, width) pixels."""
    return np.kron(classes, np.ones(side, dtype=classes.dtype)).astype(np.uint8)


def make_split(
    images: ImageList,
    targets: Sequence[np.ndarray],
    views: Sequence[Geometry],
    encoder: Encoder,
    target: DenseTarget,
    n_classes: int | None = None,
    request: str = "tokens[-1]",
    per_sample: int = 1,
    windows: WindowedImages | None = None,
    name: str = "report",
) -> DenseSplit:
    """What the runner makes of image lists and targets, with features that are encoded when they are read."""
    rows = np.arange(len(images)).reshape(-1, per_sample)
    samples = Samples.from_rows([f"sample{i}" for i in range(len(rows))], images.name, rows, {"map": list(targets)})
    used: ImageList = images
    if windows is not None:
        samples, used = windowed_samples(samples, windows), windows
    size = views[0].size
    assert size is not None
    requests = [str(one) for one in encoder.spec.expand(request)]
    shapes = encoder.output_shapes(requests, size)
    streams = [encoded_rows(used, view, {one: shapes[one] for one in requests}, encoder, CPU, OPTIONS) for view in views]
    patch = encoder.spec.patch_size or 1
    canvas = (-(-size[0] // patch) * patch, -(-size[1] // patch) * patch)

    def stored(row: int) -> tuple[int, int]:
        return images.image_size(row if windows is None else windows.window_of(row)[0])

    def seen(values: np.ndarray, offsets: np.ndarray) -> Seen:
        return Seen(tuple(views), canvas, values, offsets, windows, stored)

    maps = [[stream[number] for stream in streams] for number in range(len(requests))]
    data: RoleData = role_data(samples, "map", np.arange(len(samples)), maps, CPU, "streamed", seen)
    return DenseSplit(name, data, target, CPU, n_classes)


class Held:
    """Maps that lie in memory, one per sample (``virb.probes.base.Features``)."""

    device = CPU

    def __init__(self, *views: torch.Tensor) -> None:
        self.views, self.view = views, 0
        self.shape = tuple(views[0].shape[1:])

    def __len__(self) -> int:
        return len(self.views[0])

    def set_epoch(self, epoch: int) -> None:
        self.view = epoch % len(self.views)

    def gather(self, samples: Any) -> torch.Tensor:
        return self.views[self.view][torch.as_tensor(samples)].clone()

    gather_rows = gather


def held_split(
    maps: Sequence[torch.Tensor], targets: np.ndarray, target: DenseTarget, n_classes: int | None = None, name: str = "fit"
) -> DenseSplit:
    """Maps (N, C, h, w) in memory, and targets at the size of the canvas."""
    n, size = len(targets), (targets.shape[-2], targets.shape[-1])
    seen = Seen((squash(*size),), size, np.arange(n), np.arange(n + 1), None, None)
    features: Any = tuple(Held(one) for one in maps)
    ids = np.array([f"{name}/{i}" for i in range(n)])
    return DenseSplit(name, RoleData(features[0], list(targets), ids, ids, features, seen), target, CPU, n_classes)


class Planted(nn.Module):
    """A head that makes something of the last map by a rule."""

    def __init__(self, rule: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.rule(maps[-1])
