"""Which images a training sees: a folder, CIFAR as it is published, or built-in data; and which of them at which step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from virb.data.datasets import dataset_names, load_dataset, needs_root
from virb.data.datasets.common import EXTENSIONS, image_paths
from virb.data.images import FileImages, ImageList
from virb.errors import BadImage, UnreadImage, UserError, did_you_mean
from virb.functional.randomness import numpy_generator

if TYPE_CHECKING:
    import torch

    from virb.pretraining.loading import ViewSource
    from virb.pretraining.methods import ViewSpec
    from virb.pretraining.options import EngineOptions
    from virb.pretraining.plan import BatchPlan

_CIFAR = ("", "cifar-10-batches-py", "cifar-10-batches-bin")  # where its batches lie below the folder that is named
_LOOKS = 32
_HELD_OUT = ("val", "valid", "validation", "test")


def open_source(options: EngineOptions, spec: ViewSpec, device: torch.device) -> ViewSource:
    """The views of the images that ``options`` name, for the engine."""
    from virb.pretraining.loading import ViewSource

    if not options.data_path:
        raise UserError("data_path is not given; expected a folder with images, or built-in data: digits, shapes")
    skip = options.on_bad_image == "skip"
    images = open_images(options.data_path, skip)
    return ViewSource(images, spec, options.seed, options.num_workers, device, options.augmentation, skip)


def open_images(data_path: str | Path, skip_bad: bool = False) -> ImageList:
    """The images of a folder, at any depth, in the order of their paths (class folders need not be; labels are not looked at). Of a folder
    with ``train`` beside ``val`` or ``test``, those of ``train``; of a folder with CIFAR-10's pickles or binary files, its 50,000 training
    images. ``digits``, ``shapes``: the built-in training images; ``digits+shapes``: those of both.

    UserError when there are no two images, or the first cannot be read (``skip_bad``: unless others can be decoded in its place).
    """
    folder = Path(data_path).expanduser()
    images = _of_folder(folder) if folder.is_dir() else _built_in(str(data_path), folder)
    if len(images) < 2:
        raise UserError(f"{data_path} has one image; methods that compare images need at least two (and should have thousands)")
    try:
        images.read(0)
    except BadImage as error:
        if skip_bad and not isinstance(error, UnreadImage):
            return images
        raise UserError(f"the first image cannot be read: {error}") from error
    return images


class JoinedImages(ImageList):
    """Several lists of unlike images as one, one after the other."""

    def __init__(self, name: str, parts: Sequence[ImageList]) -> None:
        self.name = name
        self.parts = tuple(parts)
        self.ids = [name for part in parts for name in part.ids]

    def read(self, i: int) -> Image.Image:
        for part in self.parts:
            if i < len(part):
                return part.read(i)
            i -= len(part)
        raise IndexError(i)

    def _describe(self) -> dict[str, Any]:
        return {"kind": "joined"}

    def _contents(self) -> Iterable[bytes]:
        return (part.identity().encode() for part in self.parts)


def largest_size(images: ImageList) -> tuple[int, int]:
    """(height, width) of the largest of some images, spread evenly over the list, or over each of lists that were joined."""
    sizes = [(1, 1)]
    for part in images.parts if isinstance(images, JoinedImages) else (images,):
        for row in np.unique(np.linspace(0, len(part) - 1, _LOOKS).astype(np.int64)):
            with suppress(BadImage):  # whoever reads it says so
                sizes.append(part.image_size(int(row)))
    return max(sizes, key=lambda size: size[0] * size[1])


def _built_in(name: str, path: Path) -> ImageList:
    built_in = [known for known in dataset_names() if not needs_root(known)]
    parts = list(dict.fromkeys(name.split("+")))
    if all(part in built_in for part in parts):
        lists = [dataset.lists["train"] for dataset in map(load_dataset, parts) if "train" in dataset.lists]
        if len(lists) == len(parts):
            return lists[0] if len(lists) == 1 else JoinedImages(name, lists)
    if path.exists():
        raise UserError(f"data_path: {path} is a file; expected a folder with images (archives have to be unpacked)")
    if name in dataset_names():
        raise UserError(f"data_path: {name} lies in files; name the folder with its training images")
    usual = ("digits", "shapes", "digits+shapes")
    hint = did_you_mean(name, usual) or f"; expected a folder with images, or built-in data: {', '.join(usual)}"
    raise UserError(f"data_path: {path} does not exist{hint}")


def _of_folder(folder: Path) -> ImageList:
    for place in _CIFAR:
        if any((folder / place / f"data_batch_1{ending}").is_file() for ending in ("", ".bin")):
            return load_dataset("cifar10", folder / place).lists["train"]
    base = folder
    try:
        if (folder / "train").is_dir() and any((folder / name).is_dir() for name in _HELD_OUT):
            base = folder / "train"  # what is held out stays so
        paths = sorted(image_paths(base))
    except OSError as error:
        raise UserError(f"data_path: {error.filename or base} cannot be read ({error.strerror or error})") from error
    if not paths:
        kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
        raise UserError(f"data_path: there are no images in {base}, at any depth ({kinds})")
    return FileImages("train", base, paths)


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """All images in the order of an epoch: the same for any number of ranks."""
    order = numpy_generator(seed, "order", epoch).permutation(n)
    order.setflags(write=False)
    return order


def rows_of(plan: BatchPlan | Any, n: int, seed: int, number: int) -> tuple[int, np.ndarray]:
    """Epoch and rows of this rank's micro-batch ``number``, counted from the start of the training. A step takes the next ``joint`` images
    of the epoch's order; each of its micro-batches takes one part of them, and each rank one part of that. What does not fill a step at
    the end of an epoch is left out (and is other images in the next)."""
    step, micro = divmod(number, plan.micro)
    epoch, place = divmod(step, plan.steps_per_epoch)
    start = place * plan.joint + (micro * plan.world + plan.rank) * plan.batch
    return epoch, epoch_order(n, seed, epoch)[start : start + plan.batch]
