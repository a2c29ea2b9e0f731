"""Where the time of a loader goes, one thread: decoding, resizing, copying; and what ``--decoder fast`` brings and changes.

    python benchmarks/decode.py [--quick] [--folder PHOTOS]

``--folder``: measure on the images in there, at any depth, instead of on JPEG files made up here. simplejpeg is
measured when it is installed (``pip install 'virb[fast]'``); pixels are compared with Pillow's, which are the reference.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import loop2021
import numpy as np
import torch
from frame import Table, machine, threads, times
from jpegs import make_folder
from PIL import Image, features

from virb.data.datasets.common import image_paths
from virb.data.decode import REFUSED, read_pixels, read_rgb
from virb.data.images import FileImages
from virb.data.loader import load_batches
from virb.data.transforms import Geometry, covering_size
from virb.encoders.base import InputSpec

BATCH = 32
WORTH = 1.3  # times the loader's speed that a second decoder has to bring
MODES: tuple[Literal["bilinear", "bicubic"], ...] = ("bilinear", "bicubic")


def table(quick: bool, folder: Path | None = None) -> Table:
    with threads(1), tempfile.TemporaryDirectory() as made:
        return measured(folder or make_folder(Path(made), 16 if quick else 200), quick)


def measured(root: Path, quick: bool) -> Table:
    names = sorted(image_paths(root))
    files = [str(root / name) for name in names]
    pictures = [read_rgb(path) for path in files]
    arrays = [np.array(picture) for picture in pictures]
    images = FileImages("photos", root, names)
    has_fast = importlib.util.find_spec("simplejpeg") is not None
    place = np.zeros((3, 224, 224), dtype=np.uint8)
    calls: dict[str, Callable[[], Any]] = {"decode": lambda: [read_rgb(path) for path in files]}
    if has_fast:
        calls["decode by simplejpeg"] = lambda: [read_pixels(path, "fast") for path in files]
    for mode in MODES:
        geometry = Geometry((224, 224), interpolation=mode)
        fast, whole = replace(geometry, decoder="fast"), Image.Resampling[mode.upper()]
        calls[f"resize all to 256, crop 224, {mode}"] = lambda g=geometry, m=whole: [resize_all(image, g, m) for image in pictures]
        calls[f"the same pixels by us, {mode}"] = lambda g=geometry: [g.fit(image, 0) for image in pictures]
        calls[f"resize by torch, {mode}"] = lambda g=fast: [g.apply(array, 0) for array in arrays]
        calls[f"loader, {mode}"] = lambda g=geometry: list(load_batches(images, range(len(images)), [g], BATCH))
        calls[f"Pillow decodes, torch resizes, {mode}"] = lambda g=fast: [g.write(read_rgb(path), 0, place) for path in files]
        if has_fast:
            calls[f"simplejpeg decodes, Pillow resizes, {mode}"] = lambda g=geometry: [
                g.write(read_pixels(path, "fast"), 0, place) for path in files
            ]
            calls[f"loader, --decoder fast, {mode}"] = lambda g=fast: list(load_batches(images, range(len(images)), [g], BATCH))
        photos = loop2021.Photos(images, range(len(images)), InputSpec(interpolation=mode))
        calls[f"loader of 2021, {mode}"] = lambda p=photos: list(loop2021.loader(p, torch.device("cpu"), BATCH))
    small = [Geometry((224, 224)).fit(image, 0) for image in pictures]
    calls["copy into the batch"] = lambda: [Geometry(None, "none", "none").write(image, 0, place) for image in small]
    took = in_turn(calls, 1 if quick else 5)
    n = len(files)
    rows = tuple((name, f"{n / seconds:,.0f}", f"{1000 * seconds / n:.2f} ms") for name, seconds in took.items())
    notes = [f"{n} images of {statistics.mean(p.width * p.height for p in pictures) / 1e6:.2f} megapixels on average, one thread",
             "the loop of 2021 makes images float on the CPU; ours leaves them uint8, to be made float on the device",
             *(text for mode in MODES for text in _about(mode, took)),
             *(_parity(mode, pictures, arrays) for mode in MODES),
             _parity_of_decoding(files, arrays) if has_fast else "--decoder fast: not measured (pip install simplejpeg)"]  # fmt: skip
    pillow = f"Pillow {Image.__version__} with libjpeg-turbo {features.version('libjpeg_turbo') or 'absent'}"
    return Table(f"Loading images, {pillow}", ("step", "images/s", "an image"), rows, tuple(notes))


def _about(mode: str, took: Mapping[str, float]) -> Iterator[str]:
    ours, loader = took[f"the same pixels by us, {mode}"], took[f"loader, {mode}"]
    yield (f"{mode}: resizing takes {ours / loader:.0%} of the loader's time; "
           f"ours is {times(took[f'resize all to 256, crop 224, {mode}'] / ours)} as fast as resizing all and cropping, bit for bit equal; "
           f"the loader is {times(took[f'loader of 2021, {mode}'] / loader)} as fast as that of 2021")  # fmt: skip
    if (fast := took.get(f"loader, --decoder fast, {mode}")) is not None:
        yield f"{mode}: --decoder fast makes the loader {times(loader / fast)} as fast; it is worth having from {WORTH} x"


def _parity(mode: Literal["bilinear", "bicubic"], pictures: list[Image.Image], arrays: list[np.ndarray]) -> str:
    """How far torch's resizing is from Pillow's, on the same decoded pixels."""
    geometry = Geometry((224, 224), interpolation=mode)
    fast = replace(geometry, decoder="fast")
    differences = np.stack([
        np.abs(fast.apply(array, 0).numpy().astype(int) - geometry.apply(image, 0).numpy())
        for array, image in zip(arrays, pictures, strict=True)
    ])  # fmt: skip
    return (f"{mode}: torch's pixels differ from Pillow's in {(differences > 0).mean():.2%} of the values, by at most {differences.max()} "
            f"of 255 and {differences.mean():.4f} on average")  # fmt: skip


def _parity_of_decoding(files: list[str], arrays: list[np.ndarray]) -> str:
    refused = REFUSED.value
    equal = sum(np.array_equal(np.asarray(read_pixels(path, "fast")), array) for path, array in zip(files, arrays, strict=True))
    version = importlib.metadata.version("simplejpeg")
    return f"simplejpeg {version} gives Pillow's pixels for {equal} of {len(files)} files, {REFUSED.value - refused} of them left to Pillow"


def resize_all(image: Image.Image, geometry: Geometry, mode: Image.Resampling) -> Image.Image:
    """What torchvision's Resize and CenterCrop do."""
    assert geometry.size is not None
    height, width = covering_size(image.height, image.width, geometry.size, geometry.crop_pct)
    top, left = round((height - geometry.size[0]) / 2), round((width - geometry.size[1]) / 2)
    return image.resize((width, height), mode).crop((left, top, left + geometry.size[1], top + geometry.size[0]))


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of this process's CPU time of each, all taking turns: another program on the machine then matters less."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images: to see that it works, not for figures")
    parser.add_argument("--folder", type=Path, help="images to measure on")
    options = parser.parse_args()
    print(f"{machine()}\n\n{table(options.quick, options.folder).text()}")
