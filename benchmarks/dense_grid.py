"""What a grid of dense heads costs against one head: python benchmarks/dense_grid.py [--quick]

One epoch of training at 512 x 512, ViT-S/16 with random weights, batch 16. ``streamed``: the encoder runs for every batch, once for all
heads; ``cached``: maps are read from memory. Linear heads share normalisation and products, decoders take their steps one after the other;
each loss has its backward at once, so the memory of activations is that of one head. Nothing is scored.

The loop of 2021 (benchmarks/loop2021.py) takes one head after the other, and where maps are streamed it encodes for each of them. Its
images are float in memory and its loss is taken at our grid, not at all pixels: both favour it. One head is measured, times their number.

The last columns are the arithmetic of a head's step (forward and both gradients) and the activations that it keeps for its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import loop2021
import numpy as np
import torch
from frame import Table, main, paired, seconds_text, threads, timed, times, verdict
from torch import Tensor, nn
from torch.utils.data import DataLoader

import virb
from virb.config.dense import DeepLabConfig, DenseConfig, DenseLinearConfig, PixelShuffleConfig
from virb.data.images import ArrayImages
from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.features.encoding import Numerics, PassOptions
from virb.features.feature_set import SampleFeatures
from virb.probes.base import RoleData, Seen
from virb.probes.dense_data import DenseSplit, loss_grid
from virb.probes.dense_heads import MapShape, build_head
from virb.probes.dense_losses import find_dense_loss
from virb.probes.dense_train import DenseRecipe, train_heads
from virb.probes.inputs import encoded_rows, stream_batch
from virb.runner.worker import ENCODE_BATCH

BATCH = 16
TARGET = 1.60


def split(maps: Sequence[SampleFeatures], n: int, size: int, n_classes: int, device: torch.device) -> DenseSplit:
    geometry = Geometry((size, size), "squash", "none", 1.0, "bilinear", None)
    labels = np.random.default_rng(0).integers(0, n_classes, (n, size // 8, size // 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    ids = np.array([str(i) for i in range(n)])
    seen = Seen((geometry,), (size, size), np.arange(n), np.arange(n + 1))
    return DenseSplit("fit", RoleData(maps[0], list(labels), ids, ids, tuple(maps), seen), DenseTarget("labels"), device, n_classes)


def map_shape(features: SampleFeatures) -> MapShape:
    channels, height, width = (features.shape or ())[-3:]
    return channels, height, width


def epoch(configs: dict[str, DenseConfig], data: DenseSplit, n_classes: int, device: torch.device) -> Callable[[], object]:
    """Trains all of them for an epoch; warm already, and targets are kept."""
    shapes = [map_shape(features) for features in data.role.maps]
    grids = {
        name: loss_grid(data.seen, output_grid(config, shapes, n_classes), config.loss_size, config.every_output)
        for name, config in configs.items()
    }
    recipe = DenseRecipe(1, BATCH, BATCH, 0, "cross_entropy", ("miou",), True, only_last=True)

    def run() -> None:
        train_heads(
            lambda name: build_head(configs[name], shapes, n_classes).to(device),
            configs,
            data,
            None,
            recipe,
            find_dense_loss("cross_entropy"),
            grids,
        )

    run()
    return run


def output_grid(config: DenseConfig, shapes: Sequence[MapShape], n_classes: int) -> tuple[int, int]:
    head = build_head(config, shapes, n_classes).to("meta").eval()
    found = head([torch.empty((1, *shape), device="meta") for shape in shapes])
    return found.shape[-2], found.shape[-1]


def source(n: int, size: int, device: torch.device) -> tuple[Encoder, ArrayImages]:
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    encoder = virb.load_encoder({"arch": "vit_small", "weights": "random", "input": {"size": size}}, name="vit_small")
    return encoder.to(device), ArrayImages("noise", pixels, [str(i) for i in range(n)])


def loop_2021(config: DenseConfig, kind: str, request: str, data: DenseSplit, n_classes: int) -> float:
    """Seconds of its epoch of one head."""
    shapes = [map_shape(features) for features in data.role.maps]
    grid = loss_grid(data.seen, output_grid(config, shapes, n_classes), config.loss_size, config.every_output)
    labels = data.at_grid(np.arange(len(data)), grid).cpu()
    encoder, images = source(len(data), data.seen.canvas[0], data.device)
    pixels = torch.from_numpy(images.array).permute(0, 3, 1, 2)
    ready = [(encoder.prepare(one[None].to(data.device))[0].cpu(), target) for one, target in zip(pixels, labels, strict=True)]
    wanted = [str(one) for one in encoder.spec.expand(request)]
    head = build_head(config, shapes, n_classes).to(data.device)

    def streamed() -> Iterator[tuple[list[Tensor], Tensor]]:
        for pixels, targets in DataLoader(ready, BATCH, shuffle=True):
            with torch.no_grad():
                found = encoder(pixels.to(data.device), wanted)
            yield [found[one] for one in wanted], targets.to(data.device)

    def cached() -> Iterator[tuple[list[Tensor], Tensor]]:
        for samples in torch.randperm(len(data)).split(BATCH):
            yield [maps.float() for maps in data.maps(samples.numpy())], labels[samples].to(data.device)

    def outputs(maps: list[Tensor]) -> Tensor:
        return nn.functional.interpolate(head(maps), grid, mode="bilinear", align_corners=False)

    batches = streamed() if kind == "streamed" else cached()
    return timed(lambda: loop2021.one_pass(outputs, batches, loop2021.batch_iou, loop2021.optimizer_of(config, head)))


def features(kind: str, request: str, n: int, size: int, device: torch.device) -> list[SampleFeatures]:
    """Maps of images in memory: encoded as a run's stream encodes them, or all of them encoded before."""
    encoder, images = source(n, size, device)
    shape = (encoder.spec.embed_dim, size // 16, size // 16)
    shapes = {str(one): shape for one in encoder.spec.expand(request)}
    geometry = Geometry((size, size), "squash", "none", 1.0, "bilinear", None)
    numerics = Numerics("float32" if device.type == "cpu" else "bfloat16", device.type)
    streams = encoded_rows(
        images, geometry, shapes, encoder, device, PassOptions(numerics, stream_batch(BATCH, ENCODE_BATCH[device.type]), 0)
    )
    places = np.arange(n), np.arange(n + 1)
    if kind == "streamed":
        return [SampleFeatures([rows], *places, device, "streamed") for rows in streams]
    tier = "host" if device.type == "cpu" else "device"
    parts = [[rows.read(places[0][start : start + BATCH]) for rows in streams] for start in range(0, n, BATCH)]
    return [SampleFeatures([_Kept(torch.cat(maps))], *places, device, tier) for maps in zip(*parts, strict=True)]


class _Kept:
    """Maps in memory."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self.shape: tuple[int, ...] | None = tuple(values.shape[1:])
        self.nbytes = values.nbytes

    def __len__(self) -> int:
        return len(self._values)

    def read(self, rows: np.ndarray) -> torch.Tensor:
        return self._values[torch.from_numpy(rows)]

    def read_one(self, row: int) -> torch.Tensor:
        return self._values[row]


def arithmetic(config: DenseConfig, maps: Sequence[SampleFeatures], n_classes: int) -> tuple[float, float]:
    """GFLOP of a step of one head on one image, and MB of activations kept for its backward."""
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    shapes = [map_shape(one) for one in maps]
    head = build_head(config, shapes, n_classes).train()
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, lambda tensor: tensor):
        out = head([torch.randn(2, *shape) for shape in shapes])
        out.sum().backward()
    weights = sum(parameter.numel() * 4 for parameter in head.parameters())
    return counter.get_total_flops() / 2e9, max(0, sum(held.values()) - weights) / 2e6


def table(quick: bool = False) -> Table:
    """On a CPU with one thread, as workers compute."""
    with threads(1):
        return _table(quick, torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))


def _table(quick: bool, device: torch.device) -> Table:
    n, size, repeats = (BATCH, 128, 1) if quick else (2 * BATCH, 512, 1 if device.type == "cpu" else 3)
    heads: list[tuple[str, DenseConfig, str, int, tuple[str, ...], int]] = [
        ("dense-linear, 21 classes", DenseLinearConfig(optimizer="adamw", lr=1e-3), "tokens[-1]", 21, ("streamed", "cached"), 8),
        ("dense-linear, 150 classes", DenseLinearConfig(optimizer="adamw", lr=1e-3), "tokens[-1]", 150, ("streamed", "cached"), 8),
    ]
    if not quick:
        heads += [
            ("pixelshuffle, 21 classes", PixelShuffleConfig(optimizer="adamw", lr=1e-4), "pyramid", 21, ("streamed",), 2),
            ("deeplab, 21 classes", DeepLabConfig(optimizer="adamw", lr=1e-4), "pyramid", 21, ("streamed",), 2),
        ]
    rows = []
    loop2021.warm(device)
    for title, config, request, n_classes, kinds, k in heads:
        for kind in kinds:
            maps = features(kind, request, n, size, device)
            data = split(maps, n, size, n_classes, device)
            many = {f"lr{i}": config.model_copy(update={"lr": config.lr * 1.3**i}) for i in range(k)}
            together, one, ratio = paired(epoch(many, data, n_classes, device), epoch({"one": config}, data, n_classes, device), repeats)
            flops, held = arithmetic(config, maps, n_classes)
            aim = (f"<= {TARGET:.2f} x", verdict(ratio <= TARGET)) if kind == "streamed" and "linear, 21" in title else ("", "")
            cells = (str(k), seconds_text(together), seconds_text(one), times(ratio), *aim, f"{flops:.2f}", f"{held:.1f}")
            rows.append((f"{title}, {kind}: one head", *cells))
            old = k * loop_2021(config, kind, request, data, n_classes)
            cells = (str(k), seconds_text(together), seconds_text(old), times(together / old), "", "", "", "")
            rows.append((f"{title}, {kind}: the loop of 2021", *cells))
    notes = [
        "streamed maps are encoded once for all heads of a batch, by the loop of 2021 for each anew (one measured, times their number)",
        "cached maps leave the heads alone: what these cost is their losses",
    ]
    if device.type == "cuda":
        notes.append(f"peak device memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GB")
    return Table(
        f"A grid of dense heads: an epoch of {n} images at {size} px, ViT-S/16, batch {BATCH}",
        ("head, features: baseline", "heads", "all heads", "baseline", "ratio", "target", "reached", "GFLOP/image", "MB/image"),
        tuple(rows),
        tuple(notes),
        gpu="" if device.type == "cuda" else "python benchmarks/dense_grid.py",
    )


if __name__ == "__main__":
    main(table, __doc__)
