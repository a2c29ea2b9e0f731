"""A folder of JPEG files like ImageNet's: 500 x 375 pixels, about 100 kB each, one class folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (500, 375)


def photo(seed: int) -> Image.Image:
    """Smooth shapes with fine texture: about as hard to decode as a photograph (uniform noise would be far harder)."""
    random = np.random.default_rng(seed)
    picture = np.zeros((SIZE[1], SIZE[0], 3))
    for cells, strength in ((4, 70.0), (16, 40.0), (64, 22.0), (200, 14.0)):
        small = random.normal(0, strength, (cells * 3 // 4 + 1, cells, 3))
        layer = [Image.fromarray(small[:, :, c].astype(np.float32)).resize(SIZE, Image.Resampling.BICUBIC) for c in range(3)]
        picture += np.stack([np.asarray(channel) for channel in layer], axis=2)
    return Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8))


def make_folder(root: Path, n: int, classes: int = 4, split: str = "train") -> Path:
    """``root/<split>/<class>/<number>.jpg``; what is there already stays."""
    for i in range(n):
        path = root / split / f"class{i % classes}" / f"{i:06}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(i).save(path, quality=92)
    return root
