"""Miniatures with planted answers: every class has a colour, so an image says its class however it was listed, moved or decoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from virb.data.images import Dataset

_STEPS = (20, 75, 130, 185, 240)  # far enough apart for JPEG


class Palette:
    """A colour for each class name, up to 125 of them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        i = np.arange(len(self.names)) * 31 % 125  # 31 and 125 have no common factor: neighbours in number are not alike
        self.colours = np.stack([np.take(_STEPS, i // 25), np.take(_STEPS, i // 5 % 5), np.take(_STEPS, i % 5)], axis=1)

    def colour(self, name: str) -> tuple[int, int, int]:
        red, green, blue = self.colours[self.names.index(name)]
        return int(red), int(green), int(blue)

    def pixels(self, name: str, size: int) -> np.ndarray:
        """(size, size, 3) uint8 of this class's colour."""
        return np.broadcast_to(np.array(self.colour(name), dtype=np.uint8), (size, size, 3)).copy()

    def put(self, path: Path, name: str, size: tuple[int, int] = (20, 16)) -> None:
        """An image file of this class, in the format that its ending says."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
        Image.new("RGB", size, self.colour(name)).save(path, kind, **({"quality": 95} if kind == "JPEG" else {}))

    def name_of(self, image: Image.Image) -> str:
        """The class whose colour an image has; fails when it has none's."""
        mean = np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1))
        distance = np.abs(self.colours - mean).max(axis=1)
        assert distance.min() < 12, f"no class has the colour {mean}"
        return self.names[int(distance.argmin())]


def answers(dataset: Dataset, split: str, target: str = "class") -> list[tuple[str, ...]]:
    """Per sample, the name of its class and the id."""
    samples = dataset.samples[split]
    return [(dataset.classes[target][int(c)], str(i)) for c, i in zip(samples.targets[target], samples.ids, strict=True)]


def check_planted(dataset: Dataset, palette: Palette, target: str = "class") -> None:
    """Each image of each sample, read through list and rows, shows the class that the target names."""
    for split, samples in dataset.samples.items():
        images = dataset.lists[samples.images]
        assert len(samples) > 0
        for i in range(len(samples)):
            name = dataset.classes[target][int(samples.targets[target][i])]
            assert {palette.name_of(images.read(row)) for row in samples.rows(i)} == {name}, (split, samples.ids[i])


def shown(dataset: Dataset, split: str, palette: Palette, target: str = "class") -> Counter[tuple[str, int]]:
    """How often which colour comes with which class number."""
    samples = dataset.samples[split]
    images = dataset.lists[samples.images]
    return Counter((palette.name_of(images.read(samples.rows(i)[0])), int(samples.targets[target][i])) for i in range(len(samples)))


def shown_by(theirs: Any, palette: Palette) -> Counter[tuple[str, int]]:
    """The same of a torchvision dataset."""
    return Counter((palette.name_of(image), int(label)) for image, label in (theirs[i] for i in range(len(theirs))))


def write(path: Path, content: Any) -> None:
    """Text as it is, everything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def video(path: Path, colours: list[tuple[int, int, int]], size: int = 32) -> None:
    """A real mp4 with one frame per colour."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for colour in colours:
            picture = np.broadcast_to(np.array(colour, dtype=np.uint8), (size, size, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
