"""Live TensorBoard curves of a job: a folder per training config, or one folder with a tag per config when there are many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from virb.io import writing
from virb.results.store import config_folder, job_folder, remove_events

_MANY = 16


class Curves:
    """Writers are opened when something is written; close them at the end of the job."""

    def __init__(self, out: Path, encoder: str, label: str, configs: list[str]) -> None:
        self._folders = {name: config_folder(out, encoder, label, name) for name in configs}
        self._together = job_folder(out, encoder, label) if len(configs) > _MANY else None
        self._writers: dict[Path, Any] = {}
        for folder in [job_folder(out, encoder, label), *self._folders.values()]:
            remove_events(folder)  # curves of an earlier run never mix in; a resumed job tells its past epochs again

    def add(self, config: str, tag: str, value: float, step: int) -> None:
        folder = self._together or self._folders.get(config)
        if folder is None:
            return
        if folder not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            with writing(folder):
                self._writers[folder] = SummaryWriter(str(folder))
        with writing(folder):
            self._writers[folder].add_scalar(f"{config}/{tag}" if self._together else tag, value, step)

    def close(self) -> None:
        while self._writers:
            folder, writer = self._writers.popitem()
            with writing(folder):
                writer.close()
