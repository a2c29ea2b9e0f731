"""What our pretraining costs beside a plain loop written as the original's: python benchmarks/pretrain.py [--config YAML]

- augmentation: images/s of one thread, from decoded images to normalised views: the original's transforms (torchvision on Pillow),
  our reference path (the same, without its overhead) and our default path (tensors).
- training: steps/s by the clock, processor seconds per step of all processes, share of time spent waiting for data, and peak memory of
  the training process. The plain loop has the same networks (ours, without their drop path), batch and number of loading processes (never
  more than cores), and the original's precision: fp32 on CPUs, fp16 on a GPU. Targets: 1.5x on a CPU for a tiny recipe in which
  augmentation dominates (the default: 2 x 64 + 8 x 32 pixels of JPEG files, a ViT of two blocks); 2x on a GPU for ViT-S/16.
- two processes (torchrun, gloo, one thread each) beside one process with one thread: images/s.

Everything is measured in processes of its own, run in turn; medians of ``--pairs``. On a machine that others use too, believe the processor
seconds. ``--device cuda --config configs/pretraining/dino_vits16_100ep.yaml --data_path IMAGENET/train`` measures on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import Table, machine, times, verdict
from PIL import Image
from pretrain_plain import WARM, clocked, plain_training, plain_transform

from virb.io import available_cores
from virb.pretraining.augment import augment_pil, draw, normalize
from virb.pretraining.augment_tensors import augment_tensors
from virb.pretraining.catalogue import load_method, option_sources
from virb.pretraining.data import open_images, open_source
from virb.pretraining.distributed import join
from virb.pretraining.methods import Method
from virb.pretraining.options import from_flags, make_options, read_config
from virb.pretraining.plan import plan_batches
from virb.pretraining.step import Trainer

TINY = {  # augmentation dominates
    "arch": "vit", "embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 16, "global_crops_size": 64, "local_crops_size": 32,
    "out_dim": 1024, "head_hidden_dim": 128, "head_bottleneck_dim": 64, "batch_size_per_gpu": 64,
}  # fmt: skip
N_FILES = 512
TARGETS = {"cpu": 1.5, "cuda": 2.0}
Row = tuple[str, str, str, str, str]


# Ours


def our_training(method: Method, options: Any, steps: int) -> dict[str, float]:
    ranks = join(options.device, options.rank_timeout)
    source = open_source(options, method.views(), ranks.device)
    plan = plan_batches(options, len(source), ranks)
    if plan.total_steps < steps + WARM:
        raise SystemExit(f"the training has {plan.total_steps} steps; more --epochs are needed for {steps + WARM}")
    trainer = Trainer(method, options, ranks, plan.steps_per_epoch)
    batches = source.batches(plan, 0)
    found = clocked(lambda: trainer.step(batches).waited, steps, ranks.device.type)
    batches.close()
    found["images"] = plan.joint
    ranks.close()
    return found


def peak_memory(device: str) -> float:
    """MB of this process, or of the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def processor_seconds() -> float:
    return sum(u.ru_utime + u.ru_stime for u in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)))


# Augmentation alone


def augmentation(options: argparse.Namespace) -> list[Row]:
    """One thread's processor time, so that it does not matter what else the machine does."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    photographs = [Image.fromarray(photograph(i, 500, 375)) for i in range(8)]
    method, record = prepared(options)
    images = open_images(record.data_path)
    small = [images.read(i) for i in range(64)]
    epochs = iter(range(10**6))
    dino = load_method("dino")(make_options(option_sources("dino")))
    for name, images, views in (
        (f"{options.config.stem if options.config else 'tiny'}, {small[0].width} x {small[0].height} px", small, method.views()),
        ("dino 2 x 224 + 8 x 96, 500 x 375 px", photographs, dino.views()),
    ):
        crops = [plain_transform(recipe) for recipe in views.views]
        sizes = [(image.height, image.width) for image in images]
        tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]

        def original(images: Any = images, crops: Any = crops) -> None:
            columns = zip(*([crop(image) for crop in crops] for image in images), strict=True)
            for column in columns:
                torch.stack(column)

        def pil(images: Any = images, views: Any = views, sizes: Any = sizes) -> None:
            for crop in augment_pil(images, draw(views, 0, next(epochs), range(len(images)), sizes), views):
                normalize(crop)

        def ours(tensors: Any = tensors, views: Any = views, sizes: Any = sizes) -> None:
            for crop in augment_tensors(tensors, draw(views, 0, next(epochs), range(len(tensors)), sizes), views):
                normalize(crop)

        took: dict[str, list[float]] = {"original": [], "pil": [], "tensors": []}
        for call in (original, pil, ours):
            call()
        for _ in range(options.pairs):
            for key, call in zip(took, (original, pil, ours), strict=True):
                began = time.process_time()
                for _ in range(3):
                    call()
                took[key].append((time.process_time() - began) / 3)
        speed = {key: len(images) / statistics.median(values) for key, values in took.items()}
        ratio = statistics.median(a / b for a, b in zip(took["original"], took["tensors"], strict=True))
        ours_text = f"{speed['tensors']:,.1f} (by Pillow {speed['pil']:,.1f})"
        rows.append((f"augmentation, {name}: images/s of one thread", f"{speed['original']:,.1f}", ours_text, times(ratio), ""))
    return rows


def photograph(seed: int, width: int, height: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def make_files(folder: Path) -> Path:
    for i in range(N_FILES):
        Image.fromarray(photograph(i, 160, 120)).save(folder / f"{i:04}.jpg")
    return folder


# The runs


def prepared(options: argparse.Namespace) -> tuple[Method, Any]:
    """The method and its options: the recipe, with what the command line changes."""
    keys = option_sources(options.method)
    given = read_config(options.config)[0] if options.config else {}
    flags: dict[str, list[str]] = {} if options.config else {name: [str(value)] for name, value in TINY.items()}
    flags |= {"device": [options.device], "output_dir": ["."], "tensorboard": ["false"], "epochs": ["1000"], "knn_every": ["0"]}
    if options.data_path:
        flags["data_path"] = [options.data_path]
    if options.num_workers is not None:
        flags["num_workers"] = [str(options.num_workers)]
    if options.batch_size:
        flags["batch_size_per_gpu"] = [str(options.batch_size)]
    record = make_options(keys, given, from_flags(type(make_options(keys)), flags, keys.aliases))
    record = record.model_copy(update={"num_workers": min(record.num_workers, available_cores())})  # for both loops
    return load_method(options.method)(record), record


def measure(which: str, options: argparse.Namespace, world: int = 1, threads: int = 0) -> dict[str, float]:
    """One run in processes of its own."""
    call = [sys.executable]
    if world > 1:
        call += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    call += [__file__, "--inner", which, "--method", options.method, "--device", options.device]
    call += ["--steps", str(options.steps), "--threads", str(threads or options.threads)]
    for name in ("config", "data_path", "num_workers", "batch_size"):
        if getattr(options, name) is not None:
            call += [f"--{name}", str(getattr(options, name))]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads or options.threads), "OMP_WAIT_POLICY": "passive"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
    printed = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(next(line for line in printed.splitlines() if line.startswith('{"seconds"')))


def inner(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    method, record = prepared(options)
    before = processor_seconds()
    if options.inner == "plain":
        found = plain_training(method, record, options.steps, options.device)
    else:
        found = our_training(method, record, options.steps)
    found = {**found, "memory": peak_memory(options.device), "processor": (processor_seconds() - before) / (options.steps + WARM)}
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(found), flush=True)


def training(options: argparse.Namespace) -> list[Row]:
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for i in range(options.pairs):
        for which in ("plain", "ours") if i % 2 == 0 else ("ours", "plain"):
            runs[which].append(measure(which, options))
    found: list[Row] = []
    rows = (("steps/s", lambda r: 1 / r["seconds"]), ("processor ms per step", lambda r: 1e3 * r["processor"]))
    rows += (("peak memory, MB", lambda r: r["memory"]), ("share of time waiting for data", lambda r: r["waited"]))
    for name, value in rows:
        plain, ours = ([value(run) for run in runs[which]] for which in ("plain", "ours"))
        ratio = statistics.median(b / a if a else math.nan for a, b in zip(plain, ours, strict=True))
        target = TARGETS[options.device]
        reached = f">= {target} x: {verdict(ratio >= target)}" if name == "steps/s" else ""
        shown = times(ratio) if name != "share of time waiting for data" else ""
        found.append((f"training: {name}", f"{statistics.median(plain):,.2f}", f"{statistics.median(ours):,.2f}", shown, reached))
    return found


def scaling(options: argparse.Namespace) -> list[Row]:
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.pairs):
        for world, speed in speeds.items():
            found = measure("ours", options, world, threads=1)
            speed.append(found["images"] / found["seconds"])
    one, two = (statistics.median(speed) for speed in speeds.values())
    ratio = statistics.median(b / a for a, b in zip(speeds[1], speeds[2], strict=True))
    return [("two processes beside one, one thread each: images/s", f"{one:,.1f}", f"{two:,.1f}", times(ratio), "")]


def measured(options: argparse.Namespace) -> Table:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if not options.config and not options.data_path:
            options.data_path = str(make_files(Path(folder)))
        for part in (augmentation, training, scaling):
            if part.__name__ in options.only:
                rows += part(options)
    what = f"{options.method}, {options.config.stem if options.config else 'a tiny ViT, 2 x 64 + 8 x 32 px of JPEG files'}"
    workers = prepared(options)[1].num_workers
    again = "python benchmarks/pretrain.py --device cuda --config configs/pretraining/dino_vits16_100ep.yaml --data_path IMAGENET/train"
    return Table(
        f"Pretraining against a plain loop: {what}; {options.device}, {options.threads} thread(s), {workers} loading process(es) for each, "
        f"medians of {options.pairs}",
        ("what", "plain loop", "ours", "ratio", "target"),
        tuple(rows),
        gpu="" if options.device == "cuda" else again,
    )


def table(quick: bool) -> Table:
    return measured(arguments(["--pairs", "1", "--steps", "3"] if quick else []))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a recipe of configs/pretraining instead of the tiny one")
    parser.add_argument("--method", default="dino")
    parser.add_argument("--data_path", help="images (default: JPEG files that are made for this)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--num_workers", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--only", nargs="+", choices=("augmentation", "training", "scaling"), default=("augmentation", "training", "scaling")
    )
    parser.add_argument("--inner", choices=("plain", "ours"), help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    if options.inner:
        inner(options)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here")
    print(f"{machine()}\n\n{measured(options).text()}")


if __name__ == "__main__":
    main()
