"""Where the time of a loader goes, one thread: decoding, resizing, copying; and whether another decoder would be worth having.

    python benchmarks/decode.py [--quick] [--folder PHOTOS]

``--folder``: measure on the images in there, at any depth, instead of on JPEG files made up here. Another decoder is compared when it is
installed (``pip install simplejpeg``), and first with Pillow's pixels, which are the reference.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loop2021
import numpy as np
import torch
from frame import Table, machine, times
from jpegs import make_folder
from PIL import Image, features

from virb.data.datasets.common import image_paths
from virb.data.decode import read_rgb
from virb.data.images import FileImages
from virb.data.loader import load_batches
from virb.data.transforms import Geometry, covering_size
from virb.encoders.base import InputSpec

BATCH = 32
WORTH = 1.3  # times the loader's speed that a second decoder has to bring


def table(quick: bool, folder: Path | None = None) -> Table:
    if folder is not None:
        return measured(folder, quick)
    with tempfile.TemporaryDirectory() as made:
        return measured(make_folder(Path(made), 16 if quick else 200), quick)


def measured(root: Path, quick: bool) -> Table:
    names = sorted(image_paths(root))
    files = [str(root / name) for name in names]
    pictures = [read_rgb(path) for path in files]
    images = FileImages("photos", root, names)
    calls: dict[str, Callable[[], Any]] = {"decode": lambda: [read_rgb(path) for path in files]}
    for mode in ("bilinear", "bicubic"):
        geometry = Geometry((224, 224), interpolation=mode)  # type: ignore[arg-type]
        whole = Image.Resampling[mode.upper()]
        calls[f"resize all to 256, crop 224, {mode}"] = lambda g=geometry, m=whole: [resize_all(image, g, m) for image in pictures]
        calls[f"the same pixels by us, {mode}"] = lambda g=geometry: [g.fit(image, 0) for image in pictures]
        calls[f"loader, {mode}"] = lambda g=geometry: list(load_batches(images, range(len(images)), [g], BATCH))
        photos = loop2021.Photos(images, range(len(images)), InputSpec(interpolation=mode))  # type: ignore[arg-type]
        calls[f"loader of 2021, {mode}"] = lambda p=photos: list(loop2021.loader(p, torch.device("cpu"), BATCH))
    small = [Geometry((224, 224)).fit(image, 0) for image in pictures]
    place = np.zeros((3, 224, 224), dtype=np.uint8)
    calls["copy into the batch"] = lambda: [Geometry(None, "none", "none").write(image, 0, place) for image in small]
    notes = [f"{len(files)} images of {statistics.mean(p.width * p.height for p in pictures) / 1e6:.2f} megapixels on average, one thread",
             "the loop of 2021 makes images float on the CPU; ours leaves them uint8, to be made float on the device"]  # fmt: skip
    other = fast_decoder()
    if other is not None:
        name, fast = other
        equal = sum(np.array_equal(np.asarray(picture), fast(path)) for picture, path in zip(pictures, files, strict=True))
        calls[f"decode by {name}"] = lambda: [Image.fromarray(fast(path)) for path in files]
        notes.append(f"{name} gives Pillow's pixels for {equal} of {len(files)} files")
    took = in_turn(calls, 1 if quick else 5)
    n = len(files)
    rows = tuple((name, f"{n / seconds:,.0f}", f"{1000 * seconds / n:.2f} ms") for name, seconds in took.items())
    for mode in ("bilinear", "bicubic"):
        gain = took[f"resize all to 256, crop 224, {mode}"] / took[f"the same pixels by us, {mode}"]
        notes.append(f"{mode}: resizing takes {took[f'the same pixels by us, {mode}'] / took[f'loader, {mode}']:.0%} of the loader's time; "
                     f"ours is {times(gain)} as fast as resizing all and cropping, bit for bit equal; the loader is "
                     f"{times(took[f'loader of 2021, {mode}'] / took[f'loader, {mode}'])} as fast as that of 2021")  # fmt: skip
    if other is not None:
        saved = took["decode"] - took[f"decode by {other[0]}"]
        gain = took["loader, bilinear"] / (took["loader, bilinear"] - saved)
        notes.append(f"{other[0]} would make the loader {times(gain)} as fast; it would be worth having from {WORTH} x")
    pillow = f"Pillow {Image.__version__} with libjpeg-turbo {features.version('libjpeg_turbo') or 'absent'}"
    return Table(f"Loading images, {pillow}", ("step", "images/s", "an image"), rows, tuple(notes))


def resize_all(image: Image.Image, geometry: Geometry, mode: Image.Resampling) -> Image.Image:
    """What torchvision's Resize and CenterCrop do."""
    assert geometry.size is not None
    height, width = covering_size(image.height, image.width, geometry.size, geometry.crop_pct)
    top, left = round((height - geometry.size[0]) / 2), round((width - geometry.size[1]) / 2)
    return image.resize((width, height), mode).crop((left, top, left + geometry.size[1], top + geometry.size[0]))


def fast_decoder() -> tuple[str, Callable[[str], np.ndarray]] | None:
    if importlib.util.find_spec("simplejpeg") is None:
        return None
    import simplejpeg

    def decode(path: str) -> np.ndarray:
        try:
            found: np.ndarray = simplejpeg.decode_jpeg(Path(path).read_bytes(), colorspace="RGB", fastdct=False, fastupsample=False)
            return found
        except ValueError:  # no JPEG, or one that it refuses
            return np.asarray(read_rgb(path))

    return f"simplejpeg {simplejpeg.__version__}", decode


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
    torch.set_num_threads(1)
    print(f"{machine()}\n\n{table(options.quick, options.folder).text()}")
