"""What the spine costs, as ratios within one run: python benchmarks/spine.py

- the whole quickstart, by the clock;
- start-up of ``virb --help`` against a bare Python, and of ``virb check`` against importing torch;
- rendering the built-in world, in images per second;
- a pass (decode, resize, encode, write) against decoding alone plus the bare network on tensors in memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from frame import Table, children_time, main, paired, seconds_text, threads, timed, times, verdict

import virb
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.features.cache import FeatureCache
from virb.features.encoding import Numerics, PassOptions
from virb.features.passes import Wanted, run_slices
from virb.io import available_cores

ROOT = Path(__file__).parent.parent
QUICKSTART = [f"{kind}/quickstart.yaml" for kind in ("configs/experiment_lists", "configs/task_configs")]


def python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def start_up() -> tuple[float, float, float]:
    return paired(lambda: python("main.py", "--help"), lambda: python("-c", "pass"), clock=children_time)


def check() -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as out:
        files = ["--experiment_list", QUICKSTART[0], "--task_configs", QUICKSTART[1], "--out", out]
        return paired(lambda: python("main.py", "check", *files), lambda: python("-c", "import torch, torchvision"), clock=children_time)


def quickstart() -> float:
    with tempfile.TemporaryDirectory() as out:
        return timed(lambda: python("main.py", "--experiment_list", QUICKSTART[0], "--task_configs", QUICKSTART[1], "--out", out))


def rendering(n: int = 2000) -> float:
    images = virb.dataset("shapes", n_train=n, n_test=10).lists["train"]
    return n / timed(lambda: [images.read(i) for i in range(n)])


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
            run_slices(images, [(0, n)], wanted, {"resnet18": encoder}, FeatureCache(Path(folder)), torch.device("cpu"), options)

    def baseline() -> None:
        for _ in load_batches(images, rows, (geometry,), 32, 0, on_bad_image="error"):
            pass
        with torch.inference_mode():
            for begin in range(0, n, 32):
                encoder.network(encoder.prepare(pixels[begin : begin + 32]))

    baseline()  # warm
    return paired(ours, baseline)


def table(quick: bool = False) -> Table:
    with threads(1):
        return _table(quick)


def _table(quick: bool) -> Table:
    rows: list[tuple[str, ...]] = []

    def add(what: str, found: tuple[float, float, float], target: str, reached: bool | None) -> None:
        ours, baseline, ratio = found
        rows.append((what, seconds_text(ours), seconds_text(baseline), times(ratio), target, "" if reached is None else verdict(reached)))

    if not quick:
        seconds = quickstart()
        rows.append((f"the whole quickstart, {available_cores()} cores", seconds_text(seconds), "", "", "< 180 s", verdict(seconds < 180)))
    help_ = start_up()
    add("virb --help against python -c pass", help_, "< 0.5 s", help_[0] < 0.5)
    checked = check()
    add("virb check of the quickstart against importing torch and torchvision", checked, "at most 4 s more", checked[0] - checked[1] <= 4)
    n = 64 if quick else 512
    add(f"pass over {n} images, resnet18 at 64 px, against decoding once + the bare network", a_pass(n), "", None)
    rate = rendering(200 if quick else 2000)
    return Table(
        "What the spine costs, one thread",
        ("what", "ours", "baseline", "ratio", "target", "reached"),
        tuple(rows),
        (f"rendering shapes at 64 px: {rate:,.0f} images/s ({10_000 / rate:.0f} s for 10,000)", "start-up is CPU time of the process"),
    )


if __name__ == "__main__":
    main(table, __doc__)
