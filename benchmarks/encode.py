"""What our encoders cost over their bare networks, as ratios within one run: python benchmarks/encode.py [--arch vit_small resnet50 ...]

- images/s from uint8 tensors in memory to the embedding, in fp32 and bf16, against a bare ``torch`` loop over the same network: medians of
  five interleaved pairs. The target is at least 95 % of the bare loop on a GPU, 90 % on a CPU.
- the same against the loop of 2021 (benchmarks/loop2021.py), from float images on the CPU to features in fp16 there, in fp32. Ours computes
  as a run does: in fp32 on a CPU, in bf16 on a GPU.
- peak memory of a ViT's attention output at 480x480 with patch 8 (3,600 tokens) against its plain forward: the target is below 1.5 times.

``--device cuda`` measures on a GPU; without one, its rows say so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loop2021
import torch
from frame import Table, machine, verdict
from torch import Tensor

from virb.encoders.base import Encoder
from virb.encoders.load import load_encoder

PAIRS, PAIRS_2021 = 5, 3
TARGETS = {"cuda": 0.95, "cpu": 0.90}
MEMORY_TARGET = 1.5
SIDE, PATCH = 480, 8


def seconds(call: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def load(arch: str, size: int) -> Encoder:
    """``arch`` is one of ours, or ``timm:NAME``."""
    what: dict[str, Any] = {"timm": arch.removeprefix("timm:")} if arch.startswith("timm:") else {"arch": arch}
    return load_encoder({**what, "weights": "random", "input": {"size": size}})


def bare(encoder: Encoder, pixels: Tensor, batch: int) -> None:
    """What somebody would write by hand: the network on normalised batches."""
    network = encoder.network
    mean = torch.tensor(encoder.spec.input.mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(encoder.spec.input.std, device=pixels.device).view(3, 1, 1)
    for images in pixels.split(batch):
        network((images.float() / 255 - mean) / std)


def ours(encoder: Encoder, pixels: Tensor, batch: int) -> None:
    for images in pixels.split(batch):
        encoder(encoder.prepare(images), ("embedding",))


def speed(arch: str, dtype: str, options: argparse.Namespace, loop: bool = False) -> tuple[float, float, float]:
    """Images/s of ours and of the bare network or the loop of 2021, and the median of the ratios of pairs run in turn."""
    device, n = options.device, options.batch * options.batches
    encoder = load(arch, options.size).to(device)
    pixels = torch.randint(0, 256, (n, 3, options.size, options.size), dtype=torch.uint8, device=device)
    float_images = [(encoder.prepare(some).cpu(), torch.zeros(len(some))) for some in (pixels.split(loop2021.BATCH) if loop else ())]

    def loop_2021(encoder: Encoder, pixels: Tensor, batch: int) -> None:
        with torch.autocast(device, enabled=False):
            loop2021.encode(encoder, float_images, pixels.device)

    baseline = loop_2021 if loop else bare
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
        for call in (ours, baseline):  # warm
            seconds(lambda call=call: call(encoder, pixels[: options.batch], options.batch), device)  # type: ignore[misc]
        pairs = []
        for i in range(PAIRS_2021 if loop else PAIRS):
            order = (ours, baseline) if i % 2 == 0 else (baseline, ours)  # neither is always the one that runs on a warmer machine
            took = {call: seconds(lambda call=call: call(encoder, pixels, options.batch), device) for call in order}  # type: ignore[misc]
            pairs.append((took[ours], took[baseline]))
    return (
        n / statistics.median(a for a, _ in pairs),
        n / statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def peak_of(want: str, options: argparse.Namespace) -> float:
    """MB above the loaded encoder in one forward; in its own process, for a peak is never taken back."""
    call = [sys.executable, __file__, "--peak", want, "--device", options.device, "--threads", str(options.threads)]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once, so that it is not used again unseen
    return float(subprocess.run(call, check=True, capture_output=True, text=True, env=env).stdout)


def measure_peak(want: str, device: str) -> float:
    encoder = load_encoder({"arch": "vit_small", "weights": "random", "args": {"patch_size": PATCH}}).to(device)
    encoder(torch.zeros(1, 3, 2 * PATCH, 2 * PATCH, device=device), (want,))  # what libraries allocate once
    images = torch.zeros(1, 3, SIDE, SIDE, device=device)
    if device == "cuda":
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        encoder(images, (want,))
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident("VmRSS")
    encoder(images, (want,))
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MB, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def table(quick: bool = False, options: argparse.Namespace | None = None) -> Table:
    options = options or parser().parse_args(["--quick"] if quick else [])
    if quick:
        options.size, options.batches, options.arch = 64, 1, options.arch[:2]
    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here")
    target = TARGETS[options.device]
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread{'s' * (options.threads != 1)}"
    rows: list[tuple[str, ...]] = []
    for arch in () if options.memory_only else options.arch:
        for dtype in ("fp32", "bf16"):
            mine, plain, ratio = speed(arch, dtype, options)
            cells = (f"{mine:.1f} img/s", f"{plain:.1f} img/s", f"{ratio:.3f} x", f">= {target:.2f} x", verdict(ratio >= target))
            rows.append((f"{arch} {dtype}, embedding: the bare network", *cells))
        dtype = "bf16" if options.device == "cuda" else "fp32"
        mine, plain, ratio = speed(arch, dtype, options, loop=True)
        rows.append((f"{arch} {dtype}, embedding: the loop of 2021", f"{mine:.1f} img/s", f"{plain:.1f} img/s", f"{ratio:.3f} x", "", ""))
    if options.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise SystemExit("peak memory on a CPU is measured on Linux only")
    repeats = 1 if quick else 3
    attention, plain = (statistics.median(peak_of(want, options) for _ in range(repeats)) for want in ("attention[-1]", "embedding"))
    share = attention / plain
    cells = (f"{attention:.1f} MB", f"{plain:.1f} MB", f"{share:.3f} x", f"< {MEMORY_TARGET} x", verdict(share < MEMORY_TARGET))
    rows.append((f"peak memory of attention[-1], vit_small/{PATCH} at {SIDE} px: its plain forward", *cells))
    return Table(
        f"Our encoders, batches of {options.batch} at {options.size} px, {where}",
        ("ours: baseline", "ours", "baseline", "ratio", "target", "reached"),
        tuple(rows),
        (
            f"medians of {PAIRS} pairs run in turn, of the loop of 2021 {PAIRS_2021}; memory is that above the weights",
            "images lie in memory as uint8, for the loop of 2021 on the CPU as float; it encodes them in fp32, 32 at a time",
        ),
        gpu="" if options.device == "cuda" else "python benchmarks/encode.py --device cuda --batch 256 --batches 8",
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--arch", nargs="+", default=["vit_small", "resnet50", "timm:vit_small_patch16_224"])
    made.add_argument("--batch", type=int, default=256 if torch.cuda.is_available() else 16)
    made.add_argument("--batches", type=int, default=8 if torch.cuda.is_available() else 2, help="batches in one measurement")
    made.add_argument("--size", type=int, default=224)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--memory_only", action="store_true", help="leave the images/s out")
    made.add_argument("--quick", action="store_true", help="small sizes: to see that it works, not for figures")
    made.add_argument("--peak", help=argparse.SUPPRESS)
    return made


def main() -> None:
    options = parser().parse_args()
    if options.peak:
        torch.set_num_threads(options.threads)
        print(measure_peak(options.peak, options.device))
    else:
        print(f"{machine()}\n\n{table(options.quick, options).text()}")


if __name__ == "__main__":
    main()
