"""What the feature cache saves, and how fast it is read: python benchmarks/cache.py [--quick]

A first run encodes a folder of JPEG files and trains a grid; a second one trains another grid on the cached features. Whole runs are timed,
planning and results included. The loop of 2021 (benchmarks/loop2021.py) kept no features: any run decodes and encodes anew, then trains one
config after the other. The same of runs that stream, with and without decoded images kept. Then the rate at which features are read,
against plain memory-mapped reading of the same bytes.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import loop2021
import numpy as np
import torch
from frame import Table, main, paired, seconds_text, threads, timed, times, verdict
from jpegs import make_folder
from torch.utils.data import Subset

import virb
from virb.config import GradientConfig
from virb.encoders.base import Encoder
from virb.features.cache import FeatureCache
from virb.features.feature_set import MappedRows

TARGET = 20.0
EPOCHS, BATCH = 20, 256
HOW = {"num_epochs": EPOCHS, "batch_size": BATCH}
FIRST = {"optimizer": ["adamw"], "lr": [1e-3, 1e-2], "weight_decay": [0, 1e-2]}
SECOND = {"optimizer": ["sgd"], "lr": [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0]}


def table(quick: bool = False) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        cuda = torch.cuda.is_available()
        rows = [*_reruns(Path(folder), quick, cuda), *_streams(Path(folder), quick), *_reading(Path(folder), 20_000 if quick else 400_000)]
    where = torch.cuda.get_device_name() if cuda else "one CPU worker"
    return Table(
        f"The feature cache, {where}",
        ("what", "time or rate", "ratio", "target", "reached"),
        tuple(rows),
        ("a rerun plans (loads the encoder once, lists the files), reads, trains, scores with intervals and writes: it decodes no image",),
        gpu="" if cuda else "python benchmarks/cache.py",
    )


def _reruns(root: Path, quick: bool, cuda: bool) -> list[tuple[str, ...]]:
    n = 32 if quick else 20_000 if cuda else 1024
    arch = "vit_tiny" if quick else "vit_small"
    make_folder(root / "images", n)
    make_folder(root / "images", 64 if not quick else 16, split="test")
    given: dict[str, Any] = {"devices": "cuda:0" if cuda else "cpu:1", "progress": False, "cache_dir": root / "cache"}
    encoders = {arch: {"arch": arch, "weights": "random"}}

    def run(out: str, grid: dict[str, Any]) -> None:
        task = {"task": "folder", "data": {"root": str(root / "images")}, "probe": "linear", **HOW, "grid": grid}
        results = virb.run(encoders, {"jpegs": task}, root / out, **given)
        if results.failed:
            raise SystemExit(f"the run failed: {results.failed}")

    run("warm", {"optimizer": ["sgd"], "lr": [0.1]}) if quick else None
    first = timed(lambda: run("first", FIRST))
    again = statistics.median(timed(lambda i=i: run(f"again{i}", SECOND)) for i in range(3))  # type: ignore[misc]
    gain = first / again
    device = torch.device("cuda:0" if cuda else "cpu")
    encoder = virb.load_encoder(encoders[arch], name=arch).to(device)
    part = n if cuda else min(n, 128)
    with threads(1):
        old = _loop_2021(encoder, root / "images", part, root / "loop2021", device)
    what = f"{n:,} JPEG files, {arch} at 224 px"
    return [
        (f"first run: {what}, 4 linear configs", seconds_text(first), "", "", ""),
        (
            "second run: 8 other configs, from the cache",
            seconds_text(again),
            f"{times(gain)} faster",
            f">= {TARGET:.0f} x",
            verdict(gain >= TARGET),
        ),
        (
            f"the loop of 2021 with the 8 configs, in this as in any run (encoding measured on {part:,} images)",
            seconds_text(old),
            f"{times(old / again)} the second run",
            "",
            "",
        ),
    ]


def _loop_2021(encoder: Encoder, root: Path, part: int, out: Path, device: torch.device) -> float:
    """Seconds for all images and the configs of ``SECOND``; only ``part`` images are encoded, and the time multiplied."""
    fit, test = (loop2021.folder(root / split, encoder.spec.input) for split in ("train", "test"))
    few = Subset(fit, range(part))
    loop2021.warm(device)
    encoding = timed(lambda: loop2021.encode(encoder, loop2021.loader(few, device), device)) * (len(fit) + len(test)) / part
    generator = torch.Generator().manual_seed(0)
    width = encoder.spec.embed_dim
    tables = [
        (torch.randn((len(one), width), generator=generator).half().to(device), torch.arange(len(one), device=device) % 4)
        for one in (fit, test)
    ]
    configs = {f"lr{lr:g}": GradientConfig(optimizer="sgd", lr=lr) for lr in SECOND["lr"]}
    return encoding + timed(lambda: loop2021.train(configs, tables[0], tables[1], 4, EPOCHS, BATCH, out))


def _streams(root: Path, quick: bool) -> list[tuple[str, ...]]:
    """Heads that train while features are encoded, by an encoder that costs next to nothing: what is left is reading images."""
    n, epochs = (16, 3) if quick else (256, 10)
    make_folder(root / "streamed", n)
    make_folder(root / "streamed", n // 4, split="test")
    encoders = {"pixels": {"arch": "pixels", "args": {"side": 14}, "input": {"size": 224}}}
    how = {"pre_encode": False, "augment": "none", "views": 1, "num_epochs": epochs, "grid": {"optimizer": ["sgd"], "lr": [0.1]}}

    def run(out: str, budget: str, cache: str) -> None:
        task = {"task": "folder", "data": {"root": str(root / "streamed")}, **how}
        given: dict[str, Any] = {"devices": "cpu:1", "progress": False, "cache_dir": root / cache, "cache_budget": budget}
        results = virb.run(encoders, {"jpegs": task}, root / out, **given)
        if results.failed:
            raise SystemExit(f"the run failed: {results.failed}")

    seconds: dict[str, list[float]] = {"each": [], "once": [], "found": []}
    for i in range(1 if quick else 3):
        for name, budget, cache in (("each", "0", f"none{i}"), ("once", "80%", f"kept{i}"), ("found", "80%", f"kept{i}")):
            seconds[name].append(timed(lambda b=budget, c=cache, o=f"{name}{i}": run(o, b, c)))  # type: ignore[misc]
    each, once, found = (statistics.median(values) for values in seconds.values())
    return [
        (f"streamed run: {n:,} JPEG files, {epochs} epochs, decoding in each", seconds_text(each), "", "", ""),
        ("decoding once, into the cache", seconds_text(once), f"{times(each / once)} faster", "", ""),
        ("a run that finds the decoded images there", seconds_text(found), f"{times(each / found)} faster", "", ""),
    ]


def _reading(root: Path, n: int, width: int = 384) -> list[tuple[str, ...]]:
    cache, key = FeatureCache(root / "reading"), "ab" * 32
    values = np.random.default_rng(0).standard_normal((512, width), dtype=np.float32)
    slices = n // 512

    def write() -> None:
        for i in range(slices):
            cache.write_slice(key, i * 512, values, {})

    written = timed(write)
    n = slices * 512
    order = np.random.default_rng(1).permutation(n)

    def ours() -> None:
        MappedRows(cache.slices(key, n)).read(np.arange(n))

    def plain() -> None:
        """Somebody's loop: every file mapped and copied into one tensor, nothing checked."""
        out = torch.empty((n, width), dtype=torch.float16)
        for i in range(slices):
            block = np.memmap(cache.entry_folder(key) / f"{i * 512:010d}.bin", dtype=np.float16, mode="r").reshape(-1, width)
            out[i * 512 : i * 512 + 512] = torch.from_numpy(np.array(block))

    mine, theirs, ratio = paired(ours, plain)
    rows = MappedRows(cache.slices(key, n))
    shuffled = timed(lambda: [rows.read(order[i : i + 4096]) for i in range(0, n, 4096)])

    def rate(seconds: float) -> str:
        return f"{n / seconds / 1e6:.2f} M rows/s"

    return [
        (f"writing {n:,} rows of {width}, float16, checksummed and synced", rate(written), "", "", ""),
        ("reading all of them with checksums", rate(mine), f"{times(ratio)} the time of plain mapping", "", ""),
        ("plain mapping, nothing checked", rate(theirs), "", "", ""),
        ("reading them in random order, 4,096 at a time", rate(shuffled), "", "", ""),
    ]


if __name__ == "__main__":
    main(table, __doc__)
