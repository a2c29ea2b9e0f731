"""What a run costs against the number of encoders, tasks, training configs and images: python benchmarks/scaling.py [--quick]

Whole runs on a folder of JPEG files with one worker, planning and results included, and the most memory of a pass over N images. The
baseline are separate runs, each of one encoder, one task: they are really run. (Of configs and of images, so many times the smallest run.)
The loop of 2021 (benchmarks/loop2021.py) does the same encoders, tasks, configs and images, all of it really run; of what ours does it
lacks planning, the validation split and intervals. On a CPU these are seconds of the process's own CPU time, which hardly depend on what
else the machine does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import loop2021
import torch
from frame import Table, main, seconds_text, threads, timed, times, verdict
from jpegs import make_folder

import virb
from virb.config import GradientConfig
from virb.data.images import FileImages
from virb.data.transforms import Geometry
from virb.features.cache import FeatureCache, slice_bounds
from virb.features.encoding import Numerics, PassOptions
from virb.features.passes import Wanted, run_slices

SIZE = 96
WIDTH, DEPTH = 192, 4
EPOCHS, BATCH = 20, 256
LR = [1e-3 * 1.2**i for i in range(64)]


def table(quick: bool = False) -> Table:
    n = 32 if quick else 512
    counts = (1, 2) if quick else (1, 2, 4)
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folder(root / "images", 4 * n if not quick else 2 * n)
        make_folder(root / "images", n // 4, split="test")
        run = _Runs(root, "cuda:0" if cuda else "cpu:1")
        run.seconds(1, 1, 1, n // 2)
        one = run.seconds(1, 1, 8, n)
        run.loop(1, 1, 1, n // 2)  # libraries are loaded
        rows = [_row(f"1 encoder, 1 task, 8 configs, {n:,} images", one, None, None, run.loop(1, 1, 8, n))]
        apart = [one, *(run.seconds([i], 1, 8, n) for i in range(1, counts[-1]))]
        for k in counts[1:]:
            rows.append(_row(f"{k} encoders", run.seconds(k, 1, 8, n), one, sum(apart[:k]), run.loop(k, 1, 8, n)))
        apart = [one, *(run.seconds(1, [i], 8, n) for i in range(1, counts[-1]))]
        for k in counts[1:]:
            rows.append(_row(f"{k} tasks on the same images", run.seconds(1, k, 8, n), one, sum(apart[:k]), run.loop(1, k, 8, n)))
        single = run.seconds(1, 1, 1, n)
        rows.append(_row("1 config", single, one, None, run.loop(1, 1, 1, n)))
        for k in (16,) if quick else (32, 64):
            rows.append(_row(f"{k} configs", run.seconds(1, 1, k, n), one, k * single, run.loop(1, 1, k, n)))
        for k in counts[1:]:
            rows.append(_row(f"{k * n:,} images", run.seconds(1, 1, 8, k * n), one, k * one, run.loop(1, 1, 8, k * n)))
        small, large = (512, 1024) if quick else (1024, 8192)
        peaks = [_peak(root / "images", images) for images in (small, large)]
    more, features = (peaks[1] - peaks[0]) * 1024 / (large - small), 2 * WIDTH / 1024
    rows += [
        (f"most memory of a pass over {small:,} images", f"{peaks[0]:.0f} MiB", *[""] * 7),
        (
            f"most memory of a pass over {large:,} images",
            f"{peaks[1]:.0f} MiB",
            f"{more:.2f} kB an image more (its pixels: {3 * SIZE * SIZE / 1024:.0f} kB)",
            *[""] * 4,
            f"its features at most: {features:.2f} kB",
            verdict(more <= features),
        ),
    ]
    return Table(
        f"A run's cost, ViTs of 192 channels at {SIZE} px, {torch.cuda.get_device_name() if cuda else 'one CPU worker'}",
        (
            *("what", "time or memory", "against the first row", "separate runs", "against separate runs"),
            *("loop of 2021", "against the loop", "target", "reached"),
        ),
        tuple(rows),
        (
            "an encoder more costs its arithmetic, a task more on the same images its heads, an image more its decoding and encoding",
            "separate runs of configs and images are multiples of the smallest run",
            "the loop of 2021 does all of it, image by image and config by config, but plans nothing and computes no intervals",
            "memory is that of the process above the loaded encoder (VmHWM), in a process of its own; features leave it slice by slice",
        ),
        gpu="" if cuda else "python benchmarks/scaling.py",
    )


def _row(what: str, seconds: float, one: float | None, separate: float | None, loop: float) -> tuple[str, ...]:
    beside = ("", "") if separate is None else (seconds_text(separate), times(seconds / separate))
    first = "" if one is None else times(seconds / one)
    return what, seconds_text(seconds), first, *beside, seconds_text(loop), times(seconds / loop), "", ""


class _Runs:
    """Whole runs, each with a cache and a results folder of its own."""

    def __init__(self, root: Path, devices: str) -> None:
        self._root, self._devices, self._count = root, devices, 0
        self._clock = time.perf_counter if devices.startswith("cuda") else time.process_time

    def seconds(self, encoders: int | list[int], tasks: int | list[int], configs: int, images: int) -> float:
        """``encoders``, ``tasks``: how many, or which."""
        self._count += 1
        out = self._root / f"out{self._count}"
        given = {f"vit{i}": _encoder(i) for i in _which(encoders)}
        grid = {"optimizer": ["sgd"], "lr": LR[:configs]}
        limits = {"data": {"root": str(self._images(images))}, "num_epochs": EPOCHS, "batch_size": BATCH, "grid": grid}
        wanted = {f"task{i}": {"task": "folder", "seeds": [i], **limits} for i in _which(tasks)}
        failed: dict[str, str] = {}

        def run() -> None:
            failed.update(virb.run(given, wanted, out, devices=self._devices, progress=False, cache_dir=out / "cache").failed)

        seconds = timed(run, self._clock)
        if failed:
            raise SystemExit(f"the run failed: {failed}")
        return seconds

    def loop(self, encoders: int, tasks: int, configs: int, images: int) -> float:
        """The same by the loop of 2021."""
        self._count += 1
        root, out = self._images(images), self._root / f"out{self._count}"
        device = torch.device("cpu" if self._devices.startswith("cpu") else self._devices)
        wanted = {f"lr{i}": GradientConfig(optimizer="sgd", lr=lr) for i, lr in enumerate(LR[:configs])}

        def run() -> None:
            for number in range(encoders):
                encoder = virb.load_encoder(_encoder(number), name=f"vit{number}").to(device)
                for task in range(tasks):
                    photos = [loop2021.folder(root / split, encoder.spec.input) for split in ("train", "test")]
                    fit, test = (loop2021.encode(encoder, loop2021.loader(one, device), device) for one in photos)
                    loop2021.train(wanted, fit, test, 4, EPOCHS, BATCH, out / f"vit{number}" / f"task{task}")

        with threads(1):
            return timed(run, self._clock)

    def _images(self, n: int) -> Path:
        """A folder of the first n training images, as links."""
        folder = self._root / f"images{n}"
        for split, most in (("train", n), ("test", 10**9)):
            for path in sorted((self._root / "images" / split).rglob("*.jpg"), key=lambda path: path.name)[:most]:
                link = folder / split / path.parent.name / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    os.link(path, link)
        return folder


def _which(given: int | list[int]) -> list[int]:
    return list(range(given)) if isinstance(given, int) else given


def _encoder(number: int) -> dict[str, Any]:
    """Of equal arithmetic, and none like another: they were made for other sizes, from which positions are interpolated."""
    args = {"width": WIDTH, "depth": DEPTH, "heads": 3, "patch_size": 16, "img_size": SIZE + 16 * number}
    return {"arch": "vit", "weights": "random", "args": args, "input": {"size": SIZE}}


def _peak(root: Path, n: int) -> float:
    """MiB above the loaded encoder, in its own process, for a peak is never taken back."""
    command = [sys.executable, __file__, "--peak", str(root), str(n)]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once, so that it is not used again unseen
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def measure_peak(root: Path, n: int) -> float:
    torch.set_num_threads(1)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    images = FileImages("jpegs", root, [files[i % len(files)] for i in range(n)])
    encoder = virb.load_encoder(_encoder(0), name="vit")
    geometry = Geometry(size=(SIZE, SIZE), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None)
    options, wanted = PassOptions(Numerics("float32", "cpu"), 32, 1), [Wanted("vit", geometry, "embedding", "0" * 64)]
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder))
        run_slices(images, [(0, 64)], wanted, {"vit": encoder}, cache, torch.device("cpu"), options)  # what libraries allocate once
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        run_slices(images, slice_bounds(n), wanted, {"vit": encoder}, cache, torch.device("cpu"), options)
        return max(_resident("VmHWM") - before, 0.1)


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peak", nargs=2)
    options, rest = parser.parse_known_args()
    if options.peak:
        print(measure_peak(Path(options.peak[0]), int(options.peak[1])))
    else:
        main(table, __doc__, rest)
