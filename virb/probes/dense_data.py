"""The samples of a dense probe: feature maps of a role, and targets that follow the pixels the network saw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virb.data.placement import IGNORED, DenseTarget, Placement, sample_target, sent
from virb.errors import ViRBError
from virb.features.ahead import expecting, read_ahead
from virb.io import available_cores
from virb.probes.base import RoleData, Seen

LARGEST_GRID = 128  # longer side of the grid of the training loss, unless a config asks for another
CELLS_PER_OUTPUT = 4  # of that grid, along a side
_KEPT_BYTES = 2**31  # of a role's targets at grids, of all views together, kept from the first epoch on
_FAR_2021 = 10_000  # steps of 1/512 m, ViRB 2021's farthest
_CHECK_ROWS = 64
_CPU = torch.device("cpu")


@dataclass
class DenseSplit:
    """Samples numbered 0 to N-1 with their maps, and their targets at any grid or at native size."""

    name: str  # for messages: "fit", "select", "report"
    role: RoleData
    target: DenseTarget
    device: torch.device
    n_classes: int | None
    comes_again: bool = True  # every view is seen in several epochs, so that its targets are worth keeping
    _kept: dict[tuple[int, tuple[int, int]], _Kept] = field(default_factory=dict)
    _view: int = 0

    def __len__(self) -> int:
        return len(self.role)

    @property
    def seen(self) -> Seen:
        if self.role.seen is None:
            raise ViRBError(f"the {self.name} samples do not say how their images were seen; a dense probe needs a pixelwise task")
        return self.role.seen

    def set_epoch(self, epoch: int) -> None:
        """Turns to the augmented view of this epoch (0-based)."""
        self._view = epoch % len(self.seen.views)
        for features in self.role.maps:
            features.set_epoch(epoch)

    def maps(self, samples: np.ndarray) -> list[Tensor]:
        """For each tensor of the request (B, C, h, w), or (B, K, C, h, w) where samples have K images."""
        kinds = {getattr(features, "index_device", _CPU) for features in self.role.maps}
        index = {device: samples if device.type == "cpu" else sent(samples, device) for device in kinds}
        return [features.gather(index[getattr(features, "index_device", _CPU)]) for features in self.role.maps]

    def window_maps(self, samples: np.ndarray) -> list[Tensor]:
        """The same of all windows of these samples, one after the other."""
        return [features.gather_rows(samples) for features in self.role.maps]

    def read(
        self, batches: Iterable[np.ndarray], grids: Collection[tuple[int, int]] = (), of_windows: bool = False
    ) -> Generator[tuple[np.ndarray, list[Tensor], dict[tuple[int, int], tuple[Tensor, int]]], None, None]:
        """Each batch of samples with its maps (``of_windows``: those of all windows) and its targets at these grids, as ``counted_at_grid``
        gives them. What takes long to read is read ahead; of a stream the images are decoded ahead."""

        def read(samples: np.ndarray) -> tuple[list[Tensor], dict[tuple[int, int], tuple[Tensor, int]]]:
            maps = self.window_maps(samples) if of_windows else self.maps(samples)
            return maps, {grid: self.counted_at_grid(samples, grid) for grid in grids}

        if any(getattr(features, "reads_ahead", False) for features in self.role.maps):
            with closing(read_ahead(read, batches, self.device)) as ahead:
                for samples, (maps, targets) in ahead:
                    yield samples, maps, targets
            return
        batches = list(batches)
        with expecting((features, batches) for features in self.role.maps):
            for samples in batches:
                yield samples, *read(samples)

    def placement(self, sample: int, native: tuple[int, int]) -> Placement:
        """How the pixels of the present view lie on the sample's (first) image."""
        return self.seen.views[self._view].placement(*native, int(self.seen.rows(sample)[0]))

    def native(self, sample: int) -> np.ndarray:
        """The target as it is stored, checked; see DenseTarget."""
        if self.role.targets is None:
            raise ViRBError(f"the {self.name} samples have no targets")
        found = self._checked(np.asarray(self.role.targets[sample]), str(self.role.sample_ids[sample]))
        if self.seen.image_size is not None:
            size = self.seen.image_size(int(self.seen.rows(sample)[0]))
            if size != found.shape[-2:]:
                name, (height, width) = self.role.sample_ids[sample], found.shape[-2:]
                raise ViRBError(f"{name}: the image is {size[0]} x {size[1]} pixels, but its target {height} x {width}")
        return found

    def natives(self, samples: np.ndarray) -> list[np.ndarray]:
        """Of several samples, read side by side."""
        return _read_all(self.native, samples)

    def at_grid(self, samples: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """Targets in the frame of the present view at ``grid`` cells that cover its canvas, on the device: labels int64 (B, gh, gw), others
        float32 with their channels in front where they have any."""
        return self.counted_at_grid(samples, grid)[0]

    def counted_at_grid(self, samples: np.ndarray, grid: tuple[int, int]) -> tuple[Tensor, int]:
        """The same, and how many of the cells say something: counted on the host, for nobody is to wait for a GPU to know that."""
        key = (self._view, grid)
        if key not in self._kept:
            budget = _KEPT_BYTES - sum(kept.nbytes for kept in self._kept.values()) if self.comes_again else 0
            self._kept[key] = _Kept(len(self), budget)
        stacked, cells = self._kept[key].get(samples, lambda sample: self._sampled(sample, grid), self._valid_cells)
        tensor = sent(stacked, self.device)
        return tensor.long() if self.target.kind == "labels" else tensor.float(), cells

    def _valid_cells(self, target: np.ndarray) -> int:
        """Of one sample's target at a grid."""
        if self.target.kind in ("labels", "mask"):
            return int((target != IGNORED).sum())
        return int(np.isfinite(target if self.target.kind == "depth" else target[0]).sum())

    def _sampled(self, sample: int, grid: tuple[int, int]) -> np.ndarray:
        target = self.native(sample)
        placement = self.placement(sample, (target.shape[-2], target.shape[-1]))
        if self.target.at == "view":
            return resampled(target, self.target, placement, grid, self.seen.canvas)
        found = sample_target(target, self.target.kind, placement, grid, self.seen.canvas)
        return found if self.target.kind in ("labels", "mask") else found.astype(np.float32, copy=False)

    def _checked(self, target: np.ndarray, name: str) -> np.ndarray:
        kind = self.target.kind
        if kind in ("labels", "mask"):
            if target.ndim != 2 or not np.issubdtype(target.dtype, np.integer):
                raise ViRBError(f"{name}: a label map is integers H x W, but this is {target.dtype} of shape {target.shape}")
            target = target if target.dtype == np.uint8 else _as_bytes(target, name)
            if kind == "mask" and self.target.at == "view":
                return target  # raw values, which become 0 and 1 when they are resized with the image
            n_values = 2 if kind == "mask" else self.n_classes or IGNORED
            wrong = np.unique(target[(target >= n_values) & (target != IGNORED)])
            if len(wrong):
                raise ViRBError(f"{name}: label {int(wrong[0])} is none of the {n_values} classes (0 to {n_values - 1}, {IGNORED} ignored)")
            return target
        if kind == "flow" and target.ndim == 3 and len(target) == 2:  # without a word on occlusion all of it is visible
            target = np.concatenate([target, np.where(np.isnan(target[:1]), np.nan, 1.0).astype(target.dtype)])
        channels = {"depth": None, "flow": 3, "map": self.target.channels}[kind]
        if target.ndim != (2 if channels is None else 3) or (channels is not None and len(target) != channels):
            raise ViRBError(
                f"{name}: a {kind} target has shape {'H x W' if channels is None else f'{channels} x H x W'}, not {target.shape}"
            )
        target = target.astype(np.float32, copy=False)
        if self.target.range is not None:
            least, greatest = self.target.range
            target = np.where((target >= least) & (target <= greatest), target, np.float32(np.nan))
        if kind in ("depth", "flow") and not np.isfinite(target).any():
            within = f" from {self.target.range[0]:g} to {self.target.range[1]:g}" if self.target.range else ""
            raise ViRBError(f"{name}: the {kind} has no valid pixel{within}; leave the sample out")
        return target

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All samples in order, ``size`` at a time."""
        return (np.arange(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def check_finite(self) -> None:
        """ViRBError where features have NaN or infinity; streamed ones are checked when they are encoded."""
        for _, maps, _ in self.read(self.batches(_CHECK_ROWS), of_windows=True):
            if not all(bool(torch.isfinite(one).all()) for one in maps):
                raise ViRBError(f"the {self.name} features have NaN or infinite values: look at the encoder's weights and input")


@dataclass
class _Kept:
    """Targets at one grid, kept once they were read, as far as memory allows."""

    length: int
    most_bytes: int
    values: np.ndarray | None = None
    there: np.ndarray | None = None
    cells: np.ndarray | None = None  # of each that say something

    @property
    def nbytes(self) -> int:
        return 0 if self.values is None else self.values.nbytes

    def get(self, samples: np.ndarray, read: Any, count: Callable[[np.ndarray], int]) -> tuple[np.ndarray, int]:
        """Those of these samples, and the sum of ``count`` over them."""
        if self.values is None or self.there is None or self.cells is None:
            first = read(int(samples[0]))
            keep = first.nbytes * self.length <= self.most_bytes
            self.there = np.zeros(self.length if keep else 0, dtype=bool)
            self.values = np.empty((len(self.there), *first.shape), dtype=first.dtype)
            self.cells = np.zeros(len(self.there), dtype=np.int64)
        if not len(self.there):
            values = _read_all(read, samples)
            return np.stack(values), sum(map(count, values))
        missing = samples[~self.there[samples]]
        for sample, value in zip(missing.tolist(), _read_all(read, missing), strict=True):
            self.values[sample], self.cells[sample] = value, count(value)
        self.there[missing] = True
        return self.values[samples], int(self.cells[samples].sum())


def _read_all(read: Any, samples: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Target files are decoded by several threads, where there is more than one core to do it."""
    numbers = [int(sample) for sample in samples]
    if len(numbers) < 2 or available_cores() < 2:
        return [read(number) for number in numbers]
    with ThreadPoolExecutor(min(8, available_cores(), len(numbers))) as pool:
        return list(pool.map(read, numbers))


def _as_bytes(labels: np.ndarray, name: str) -> np.ndarray:
    if labels.size and (labels.min() < 0 or labels.max() > IGNORED):
        raise ViRBError(f"{name}: labels run from {labels.min()} to {labels.max()}; expected 0 to {IGNORED}")
    return labels.astype(np.uint8)


def loss_grid(seen: Seen, outputs: tuple[int, int], longer: int | None, every_output: bool = True) -> tuple[int, int]:
    """The cells at which the training loss compares: ``longer`` on the longer side of the canvas, or four for each cell that the head
    gives (``outputs``), at most 128. With ``every_output`` never fewer than the head gives, or what lies between them would be left to
    chance; a 1x1 convolution learns from some of its outputs what it needs for all."""
    height, width = seen.canvas
    if longer is None:
        longer = min(LARGEST_GRID, CELLS_PER_OUTPUT * max(outputs))
        longer = max(longer, *outputs) if every_output else longer
    scale = min(1.0, longer / max(height, width))  # never finer than the pixels
    return max(1, round(height * scale)), max(1, round(width * scale))


def resampled(target: np.ndarray, how: DenseTarget, placement: Placement, grid: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """The target resized with the image by an interpolating filter of Pillow, as ViRB 2021 did, also where that mixes labels. ``grid``
    cells cover the canvas; where that is padded to whole patches they are 255 or NaN."""
    from PIL import Image

    if placement.box != (0.0, 0.0, *map(float, placement.native)) or placement.flip:
        raise ViRBError("a target that is resized with the image goes with images that are squashed, not cropped or mirrored")
    height, width = (round(cells * side / padded) for cells, side, padded in zip(grid, placement.size, canvas, strict=True))
    filters = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    planes = target[None] if target.ndim == 2 else target
    resized = []
    for plane in planes:
        integers = np.issubdtype(plane.dtype, np.integer)
        raw = how.kind == "mask"  # an 8-bit picture
        picture = Image.fromarray(plane if raw else plane.astype(np.int32 if integers else np.float32))
        small = _rescaled(np.asarray(picture.resize((width, height), filters[how.resample])), how)
        whole = np.full(grid, IGNORED if integers else np.nan, dtype=plane.dtype)
        whole[:height, :width] = small != 0 if raw else small  # in 2021 whatever was not exactly 0 counted as the object
        resized.append(whole)
    return np.stack(resized) if target.ndim == 3 else resized[0]


def _rescaled(small: np.ndarray, how: DenseTarget) -> np.ndarray:
    """What ViRB 2021 did to Taskonomy's maps once they were resized; NaN where an image says nothing."""
    if how.rescale == "none":
        return small
    low = small - small.min() if how.rescale == "range" else np.minimum(small, np.float32(_FAR_2021))
    greatest = low.max()
    scaled = low / greatest if greatest > 0 else np.full_like(low, np.nan)
    return scaled if how.rescale == "range" else scaled - scaled.min()
