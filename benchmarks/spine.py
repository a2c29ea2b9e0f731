"""What the spine costs, as ratios within one run: python benchmarks/spine.py

- start-up of ``virb --help`` against a bare Python;
- rendering the built-in world, in images per second;
- a pass (decode, resize, encode, write) against decoding alone plus the bare network on tensors in memory;
- a grid of training configs trained together against ``torch.nn.Linear`` + ``torch.optim``, one config after the other.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import virb
from virb.config import GradientConfig
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.features.cache import FeatureCache
from virb.features.feature_set import SampleFeatures
from virb.features.passes import Numerics, PassOptions, Wanted, run_slice
from virb.probes.base import Context, RoleData, Settings
from virb.probes.linear import LinearProbe

REPEATS = 3


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def paired(ours: Callable[[], object], baseline: Callable[[], object]) -> tuple[float, float, float]:
    """Medians of both, and the median of the ratios of pairs run in turn."""
    pairs = [(seconds(ours), seconds(baseline)) for _ in range(REPEATS)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


def start_up() -> tuple[float, float, float]:
    root = Path(__file__).parent.parent
    return paired(
        lambda: subprocess.run([sys.executable, str(root / "main.py"), "--help"], check=True, stdout=subprocess.DEVNULL),
        lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
    )


def rendering(n: int = 2000) -> float:
    images = virb.dataset("shapes", n_train=n, n_test=10).lists["train"]
    return n / seconds(lambda: [images.read(i) for i in range(n)])


def a_pass(n: int = 512) -> tuple[float, float, float]:
    images = virb.dataset("shapes", n_train=n, n_test=10).lists["train"]
    encoder = virb.load_encoder({"arch": "resnet18", "weights": "random"}, name="resnet18")
    geometry = Geometry(size=(64, 64), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None)
    options = PassOptions(Numerics("float32", "cpu"), 32, 0)
    rows = np.arange(n)
    pixels = torch.cat([b.pixels[geometry] for b in load_batches(images, rows, (geometry,), 32, 0, on_bad_image="error")])  # type: ignore[arg-type]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            wanted = [Wanted("resnet18", geometry, "embedding", "0" * 64)]
            run_slice(images, 0, n, wanted, {"resnet18": encoder}, FeatureCache(Path(folder)), torch.device("cpu"), options)

    def baseline() -> None:
        for _ in load_batches(images, rows, (geometry,), 32, 0, on_bad_image="error"):
            pass
        with torch.inference_mode():
            for begin in range(0, n, 32):
                encoder.network(encoder.prepare(pixels[begin : begin + 32]))

    baseline()  # warm
    return paired(ours, baseline)


def a_grid(k: int = 32, n: int = 10_000, d: int = 384, c: int = 100, epochs: int = 2) -> tuple[float, float, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((n, d), generator=generator)
    y = torch.randint(0, c, (n,), generator=generator)
    configs = {f"lr{i}": GradientConfig(optimizer="sgd", lr=1e-3 * 1.2**i, momentum=0.9) for i in range(k)}
    ids = np.array([str(i) for i in range(n)])

    def roles() -> dict[str, RoleData]:
        source = _InMemory(x)
        features = SampleFeatures([source], np.arange(n), np.arange(n + 1), torch.device("cpu"), "host")
        return {name: RoleData(features, y.numpy(), ids, ids) for name in ("fit", "select", "report")}

    settings = Settings(
        configs=configs,
        num_epochs=epochs,
        batch_size=256,
        test_batch_size=1024,
        selection="val",
        seeds=(0,),
        refit=False,
        loss="cross_entropy",
        metrics=("top1",),
        n_classes=c,
    )

    def ours() -> None:
        LinearProbe().from_features(roles(), settings, Context(torch.device("cpu")))

    def baseline() -> None:
        """The way of 2021: one config after the other, ``.item()`` at every step, an evaluation each epoch."""
        for config in configs.values():
            head = torch.nn.Linear(d, c)
            optimizer = torch.optim.SGD(head.parameters(), lr=config.lr, momentum=0.9)
            for _ in range(epochs):
                for index in torch.randperm(n).split(256):
                    optimizer.zero_grad()
                    logits = head(x[index])
                    loss = torch.nn.functional.cross_entropy(logits, y[index])
                    loss.backward()
                    optimizer.step()
                    loss.item()
                    (logits.argmax(1) == y[index]).float().mean().item()
                with torch.no_grad():
                    for index in torch.arange(n).split(256):
                        (head(x[index]).argmax(1) == y[index]).float().mean().item()

    return paired(ours, baseline)


class _InMemory:
    nbytes = 0

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self.shape: tuple[int, ...] | None = tuple(values.shape[1:])

    def __len__(self) -> int:
        return len(self._values)

    def read(self, rows: np.ndarray) -> torch.Tensor:
        return self._values[torch.from_numpy(rows)]

    def read_one(self, row: int) -> torch.Tensor:
        return self._values[row]


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread; medians of {REPEATS} interleaved pairs\n")
    print(f"{'what':<58} {'ours':>9} {'baseline':>9} {'ratio':>6}")
    for name, run in (
        ("virb --help against python -c pass", start_up),
        ("pass over 512 images, resnet18 at 64 px, against its parts", a_pass),
        ("32 linear configs together against one after the other", a_grid),
    ):
        ours, baseline, ratio = run()
        print(f"{name:<58} {ours:8.2f}s {baseline:8.2f}s {ratio:6.2f}")
    print(f"\nrendering shapes at 64 px: {rendering():,.0f} images/s ({10_000 / rendering():.0f} s for 10,000)")


if __name__ == "__main__":
    main()
