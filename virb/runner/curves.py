"""Live TensorBoard curves of a job: a folder per training config, or one folder with a tag per config when there are many.

They are written to a folder of their own while the job runs, and move to its results when it is done; so a job that fails or is killed
takes nothing from the curves of the job before it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virb.io import writing

_MANY = 16


class Curves:
    """Writers are opened when something is written; close them at the end of the job."""

    def __init__(self, folder: Path, configs: Sequence[str]) -> None:
        self.folder = folder
        self._folders = {name: folder / name for name in configs}
        self._together = folder if len(configs) > _MANY else None
        self._writers: dict[Path, Any] = {}
        shutil.rmtree(folder, ignore_errors=True)  # of a killed run: a resumed job tells its past epochs again

    def add(self, config: str, tag: str, value: float, step: int) -> None:
        folder = self._together or self._folders.get(config)
        if folder is not None:
            writer = self._writer(folder)
            with writing(folder):
                writer.add_scalar(f"{config}/{tag}" if self._together else tag, value, step)

    def add_picture(self, config: str, tag: str, picture: np.ndarray) -> None:
        """uint8 (H, W, 3)."""
        folder = self._together or self._folders.get(config)
        if folder is not None:
            writer = self._writer(folder)
            with writing(folder):
                writer.add_image(tag, picture, dataformats="HWC")

    def _writer(self, folder: Path) -> Any:
        if folder not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            with writing(folder):
                self._writers[folder] = SummaryWriter(str(folder))
        return self._writers[folder]

    def close(self) -> None:
        while self._writers:
            folder, writer = self._writers.popitem()
            with writing(folder):
                writer.close()
