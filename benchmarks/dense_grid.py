"""What a grid of dense heads costs against one head, in one run: python benchmarks/dense_grid.py [--device cuda] [--quick]

One epoch of training at 512 x 512, ViT-S/16 with random weights, batch 16. ``streamed``: the encoder runs for every batch, once for all
heads; ``cached``: maps are read from memory. Heads take their step one after the other, so the memory of activations is that of one head.
The last columns are the arithmetic of a head's step (forward and both gradients) and the activations that it keeps for its backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

import virb
from virb.config.dense import DeepLabConfig, DenseConfig, DenseLinearConfig, PixelShuffleConfig
from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.features.feature_set import EncodedRows, SampleFeatures
from virb.probes.base import RoleData, Seen
from virb.probes.dense_data import DenseSplit, loss_grid
from virb.probes.dense_heads import MapShape, build_head
from virb.probes.dense_losses import find_dense_loss
from virb.probes.dense_train import DenseRecipe, train_heads

SIZE, BATCH = 512, 16


def split(maps: Sequence[SampleFeatures], n: int, n_classes: int, device: torch.device) -> DenseSplit:
    geometry = Geometry((SIZE, SIZE), "squash", "none", 1.0, "bilinear", None)
    labels = np.random.default_rng(0).integers(0, n_classes, (n, SIZE // 8, SIZE // 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    ids = np.array([str(i) for i in range(n)])
    seen = Seen((geometry,), (SIZE, SIZE), np.arange(n), np.arange(n + 1))
    return DenseSplit("fit", RoleData(maps[0], list(labels), ids, ids, tuple(maps), seen), DenseTarget("labels"), device, n_classes)


def map_shape(features: SampleFeatures) -> MapShape:
    channels, height, width = (features.shape or ())[-3:]
    return channels, height, width


def epoch_seconds(configs: dict[str, DenseConfig], data: DenseSplit, n_classes: int, device: torch.device) -> float:
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
        if device.type == "cuda":
            torch.cuda.synchronize()

    run()  # warm, and targets are kept
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def output_grid(config: DenseConfig, shapes: Sequence[MapShape], n_classes: int) -> tuple[int, int]:
    head = build_head(config, shapes, n_classes).to("meta").eval()
    found = head([torch.empty((1, *shape), device="meta") for shape in shapes])
    return found.shape[-2], found.shape[-1]


def features(kind: str, request: str, n: int, device: torch.device) -> list[SampleFeatures]:
    encoder = virb.load_encoder({"arch": "vit_small", "weights": "random"}, name="vit_small").to(device)
    names = [str(one) for one in encoder.spec.expand(request)]
    pixels = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    last: dict[str, torch.Tensor] = {}

    def encode(name: str) -> Callable[[np.ndarray], torch.Tensor]:
        def read(rows: np.ndarray) -> torch.Tensor:
            if kind == "cached":
                return kept[name][torch.from_numpy(rows)]
            if name not in last:
                last.update(forward(rows))
            return last.pop(name)

        return read

    def forward(rows: np.ndarray) -> dict[str, torch.Tensor]:
        with torch.no_grad():  # heads record these for their backward
            found = encoder(encoder.prepare(pixels[torch.from_numpy(rows)].to(device)), names)
        return {name: found[name] for name in names}

    kept = {}
    if kind == "cached":
        parts = [forward(np.arange(start, min(start + BATCH, n))) for start in range(0, n, BATCH)]
        kept = {name: torch.cat([part[name] for part in parts]) for name in names}
    side = SIZE // 16
    shape = (encoder.spec.embed_dim, side, side)
    return [SampleFeatures([EncodedRows(n, shape, encode(name))], np.arange(n), np.arange(n + 1), device, "streamed") for name in names]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one batch an epoch and no decoders")
    given = parser.parse_args()
    device = torch.device(given.device)
    n = BATCH * (1 if given.quick else 2)
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; ViT-S/16 at {SIZE}, batch {BATCH}, {n // BATCH} steps\n"
    )
    print(f"{'head':<28} {'features':<9} {'K=1':>9} {'K=8':>9} {'ratio':>6} {'GFLOP/image':>12} {'MB/image':>9}")
    rows: list[tuple[str, DenseConfig, str, int, tuple[str, ...], int]] = [
        ("dense-linear, 21 classes", DenseLinearConfig(optimizer="adamw", lr=1e-3), "tokens[-1]", 21, ("streamed", "cached"), 8),
        ("dense-linear, 150 classes", DenseLinearConfig(optimizer="adamw", lr=1e-3), "tokens[-1]", 150, ("streamed", "cached"), 8),
    ]
    if not given.quick:
        rows += [
            ("pixelshuffle, 21 classes", PixelShuffleConfig(optimizer="adamw", lr=1e-4), "pyramid", 21, ("streamed",), 2),
            ("deeplab, 21 classes", DeepLabConfig(optimizer="adamw", lr=1e-4), "pyramid", 21, ("streamed",), 2),
        ]
    for title, config, request, n_classes, kinds, k in rows:
        for kind in kinds:
            maps = features(kind, request, n, device)
            data = split(maps, n, n_classes, device)
            many = {f"lr{i}": config.model_copy(update={"lr": config.lr * 1.3**i}) for i in range(k)}
            ones, alls = [], []
            for _ in range(1 if device.type == "cpu" else 3):
                ones.append(epoch_seconds({"one": config}, data, n_classes, device))
                alls.append(epoch_seconds(many, data, n_classes, device))
            one, together = statistics.median(ones), statistics.median(alls)
            flops, held = arithmetic(config, maps, n_classes)
            print(
                f"{title:<28} {kind:<9} {one:8.2f}s {together:8.2f}s {together / one:6.2f} {flops:12.2f} {held:9.1f}"
                + (f"   (K={k})" if k != 8 else "")
            )
    if device.type == "cuda":
        print(f"\npeak device memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GB")


if __name__ == "__main__":
    main()
