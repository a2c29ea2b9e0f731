"""One pass for four encoders that share a signature, over a folder of JPEG files: python benchmarks/fanout.py [--quick]

The pass may cost decoding once and the sum of the bare encodes; where a GPU encodes while threads decode, hardly more than the slower of
the two, by the clock. The loop of 2021 decodes anew for each encoder and each task (here one).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import loop2021
import numpy as np
import torch
from frame import Table, main, seconds_text, threads, timed, times, verdict
from jpegs import make_folder

import virb
from virb.data.decode import DECODED
from virb.data.images import FileImages, ImageList
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.features.cache import FeatureCache, slice_bounds
from virb.features.encoding import Numerics, PassOptions
from virb.features.layout import place
from virb.features.passes import Wanted, run_slices
from virb.runner.worker import ENCODE_BATCH

REPEATS = 3
TARGET = 1.10
THROUGHPUT = 0.90
ARCHITECTURES = ("vit_tiny", "vit_small", "resnet18", "resnet34")


def table(quick: bool = False) -> Table:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda:0" if cuda else "cpu")
    n, size = (32, 96) if quick else (8192, 224) if cuda else (160, 160)
    with threads(1), tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), min(n, 512))
        files = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.jpg"))
        images = FileImages("jpegs", folder, [files[i % len(files)] for i in range(n)])
        return _measure(images, _encoders(size, device), device, size, 1 if quick else REPEATS)


def _encoders(size: int, device: torch.device) -> dict[str, Encoder]:
    seen = {"size": size, "resize": "shorter", "crop": "center", "crop_pct": 0.875, "interpolation": "bicubic"}
    given = {"weights": "random", "input": seen}
    return {arch: place(virb.load_encoder({"arch": arch, **given}, name=arch), device) for arch in ARCHITECTURES}


def _measure(images: ImageList, encoders: dict[str, Encoder], device: torch.device, size: int, repeats: int) -> Table:
    geometry = Geometry(size=(size, size), resize="shorter", crop="center", crop_pct=0.875, interpolation="bicubic", view=None)
    numerics = Numerics("float32" if device.type == "cpu" else "bfloat16", device.type)
    batch, n = ENCODE_BATCH[device.type], len(images)
    rows = np.arange(n)
    loaders = 0 if device.type == "cpu" else 16
    pixels = torch.cat([b.pixels[geometry] for b in load_batches(images, rows, (geometry,), batch, loaders)])  # type: ignore[arg-type]

    resident = pixels.to(device)

    def one_pass(names: tuple[str, ...], loader_threads: int) -> float:
        """Returns the seconds that encoders were at work in it."""
        options = PassOptions(numerics, batch, loader_threads)
        with tempfile.TemporaryDirectory() as folder:
            wanted = [Wanted(name, geometry, "embedding", f"{i:064}") for i, name in enumerate(names)]
            report = run_slices(images, slice_bounds(n), wanted, encoders, FeatureCache(Path(folder)), device, options)
        return report.seconds["compute"]

    def decode() -> None:
        for _ in load_batches(images, rows, (geometry,), batch, loaders):
            pass

    def bare() -> None:
        """Each network on uint8 batches that lie on the device already."""
        with torch.inference_mode(), numerics.context():
            for encoder in encoders.values():
                for begin in range(0, n, batch):
                    encoder.network(encoder.prepare(resident[begin : begin + batch]))

    def loop_2021() -> None:
        for encoder in encoders.values():
            loop2021.encode(encoder, loop2021.loader(loop2021.Photos(images, range(n), encoder.spec.input), device), device)

    everyone = tuple(encoders)
    inside: list[float] = []
    calls: dict[str, Callable[[], object]] = {
        "pass": lambda: inside.append(one_pass(everyone, loaders)),
        "decode": decode,
        "bare": bare,
        "apart": lambda: [one_pass((name,), loaders) for name in everyone],
        "2021": loop_2021,
    }
    if device.type == "cpu":
        calls["overlapped"] = lambda: one_pass(everyone, 1)
    one_pass(everyone, loaders)  # warm
    before = DECODED.value
    one_pass(everyone, loaders)
    decoded = DECODED.value - before
    # One thread: its CPU time does not depend on what else the machine does. Two of them, and a GPU, are seen on the clock.
    took: dict[str, list[float]] = {name: [] for name in calls}
    clock: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.process_time()
            clock[name].append(timed(call))
            took[name].append(time.process_time() - began if device.type == "cpu" else clock[name][-1])

    def ratio(of: str, *to: str, by: dict[str, list[float]] = took) -> float:
        return statistics.median(by[of][i] / sum(by[name][i] for name in to) for i in range(repeats))

    parts = ratio("pass", "decode", "bare")
    # In line, encoders have their part of the pass. On a GPU the clock says whether they were kept at work: by the time of the whole pass.
    in_pass = inside if device.type == "cpu" else clock["pass"]
    throughput = statistics.median(clock["bare"][i] / in_pass[i] for i in range(repeats))
    loader_bound = device.type == "cuda" and statistics.median(clock["decode"]) > statistics.median(clock["bare"])
    middle = {name: statistics.median((clock if name == "overlapped" else took)[name]) for name in calls}
    apart, old = (1 / ratio("pass", name) for name in ("apart", "2021"))
    here = [
        ("decoding once", seconds_text(middle["decode"]), "", "", ""),
        ("bare encodes of four encoders", seconds_text(middle["bare"]), "", "", ""),
        ("one pass for all four", seconds_text(middle["pass"]), times(parts), f"<= {TARGET:.2f} x", verdict(parts <= TARGET)),
    ]
    if "overlapped" in took:
        overlapped = ratio("overlapped", "decode", "bare", by=clock)
        cell = (times(overlapped), f"<= {TARGET:.2f} x", verdict(overlapped <= TARGET))
        here.append(("the same, decoding in a thread beside (by the clock)", seconds_text(middle["overlapped"]), *cell))
    if device.type == "cuda":
        slower = statistics.median(clock["pass"][i] / max(clock["decode"][i], clock["bare"][i]) for i in range(repeats))
        cell = (f"{times(slower)} the slower of the two", f"<= {1 / THROUGHPUT:.2f} x", verdict(slower <= 1 / THROUGHPUT))
        here.append((f"the same, {'loader' if loader_bound else 'encoder'}-bound", seconds_text(middle["pass"]), *cell))
    here += [
        (
            "throughput of the encoders in the pass, against bare",
            f"{len(everyone) * n / statistics.median(in_pass):,.0f} img/s",
            times(throughput),
            f">= {THROUGHPUT:.2f} x",
            "loader-bound" if loader_bound else verdict(throughput >= THROUGHPUT),
        ),
        ("a pass per encoder", seconds_text(middle["apart"]), f"{times(apart)} the one pass", "", ""),
        ("the loop of 2021, per encoder (and again for each task)", seconds_text(middle["2021"]), f"{times(old)} the one pass", "", ""),
    ]
    where = torch.cuda.get_device_name() if device.type == "cuda" else "one CPU thread"
    return Table(
        f"{n:,} JPEG files of 500 x 375 through {', '.join(ARCHITECTURES)} at {size} px, {numerics.compute}, {where}",
        ("what", "time", "against decoding once + bare encodes", "target", "reached"),
        tuple(here),
        (
            f"the pass decoded {decoded:,} images for {n:,} files and {len(everyone)} encoders, counted in the decoder",
            "on a CPU these are seconds of the process's own CPU time, but where a thread works beside",
        ),
        gpu="" if device.type == "cuda" else "python benchmarks/fanout.py",
    )


if __name__ == "__main__":
    main(table, __doc__)
