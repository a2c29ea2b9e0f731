"""How the training goes, besides its loss: k-NN scores of the teacher on labelled data, and signs of collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from virb.data.datasets import dataset_names, load_dataset
from virb.data.images import Dataset
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.errors import UserError
from virb.functional.knn import nearest, normalise, vote
from virb.pretraining.augment import MEAN, STD

_BATCH = 64
_NEAR = 0.005  # how near to its bound, in shares of ln K, an entropy or a loss looks collapsed
_FLAT = 3  # epochs


class KNN:
    """Weighted k-NN (temperature 0.07) of the backbone's embedding: from ``train``, scored on ``val`` if there is one, else ``test``."""

    def __init__(self, data: str, side: int, k: int = 20, workers: int = 0) -> None:
        """``data``: a built-in set, or a folder with ``train`` and ``val`` or ``test``, a folder per class in each. ``side``: in pixels."""
        self.data = labelled(data)
        names = [name for name in ("train", "val", "test") if name in self.data.samples]
        if "train" not in names or len(names) < 2:
            raise UserError(f"knn_data {data}: needs a train and a val or test split, it has {', '.join(self.data.samples)}")
        self._splits = ("train", names[1])
        self._geometry = Geometry((side, side), "shorter", "center", 1.0 if side <= 64 else 0.875, "bicubic", None)
        self._k, self._workers = k, workers

    def score(self, backbone: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> float:
        """Top-1 in percent. Leaves the backbone as it was, and draws nothing at random."""
        modes = [(module, module.training) for module in backbone.modules()]
        backbone.eval()
        try:
            bank, known = self._encode(backbone, self._splits[0], device, dtype)
            queries, truth = self._encode(backbone, self._splits[1], device, dtype)
        finally:
            for module, mode in modes:
                module.training = mode
        similarity, index = nearest(queries, bank, min(self._k, len(bank)))
        votes = vote(similarity, known[index], int(max(known.max(), truth.max())) + 1)
        return 100.0 * float((votes.argmax(1) == truth).double().mean())

    @torch.no_grad()
    def _encode(self, backbone: nn.Module, split: str, device: torch.device, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        samples = self.data.samples[split]
        rows = samples.fixed_rows()
        if rows is None or rows.shape[1] != 1:
            raise UserError(f"{self.data.name}: k-NN needs one image per sample")
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        found = []
        for batch in load_batches(
            self.data.lists[samples.images], rows[:, 0], (self._geometry,), _BATCH, self._workers, on_bad_image="error"
        ):
            pixels = batch.pixels[self._geometry]
            assert isinstance(pixels, Tensor)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                out = backbone((pixels.to(device).float() / 255 - mean) / std)
            out = out[0] if isinstance(out, tuple) else out
            out = out[:, 0] if out.ndim == 3 else out.mean((2, 3)) if out.ndim == 4 else out
            found.append(out.float().cpu())
        return normalise(torch.cat(found)), torch.from_numpy(np.asarray(samples.targets["class"], dtype=np.int64))


def labelled(data: str) -> Dataset:
    """Built-in by name, or a folder."""
    if data in dataset_names() and not Path(data).is_dir():
        return load_dataset(data, None)
    return load_dataset("folder", Path(data).expanduser())


class Alarm:
    """Watches loss and teacher entropy: collapsed networks give every image the same output (entropy 0), or none at all (entropy ln K, and
    a loss that stays at ln K). A training starts near ln K, so nothing is said before the learning rate is up."""

    def __init__(self, n_outputs: int | None, quiet_steps: int) -> None:
        self._bound = math.log(n_outputs) if n_outputs and n_outputs > 1 else None
        self._quiet = quiet_steps
        self.rung = False
        self.flat_epochs = 0  # in a row, with a loss at ln K: a loss that passes by there is none

    def look(self, means: Mapping[str, float], step: int) -> str | None:
        """What to say at the end of an epoch with these means; each run says it once."""
        if self._bound is None or self.rung or step <= self._quiet:
            return None
        sign = self._sign(means)
        self.rung = sign is not None
        if sign is None:
            return None
        return (
            f"this looks like a collapse: {sign}\n  try a lower teacher temperature or learning rate, a longer freeze_last_layer, "
            "norm_last_layer: true, or a larger batch"
        )

    def _sign(self, means: Mapping[str, float]) -> str | None:
        assert self._bound is not None
        entropy, loss, weight = means.get("teacher_entropy"), means.get("loss"), means.get("loss_weight", 1.0)
        loss = loss / weight if loss is not None and weight > 0 else None
        if entropy is not None and entropy < _NEAR * self._bound:
            return f"the teacher's entropy is {entropy:.4f}, it gives one prototype to every image"
        if entropy is not None and entropy > (1 - _NEAR) * self._bound:
            return f"the teacher's entropy is {entropy:.4f}, that of no opinion at all (ln K = {self._bound:.4f})"
        self.flat_epochs = self.flat_epochs + 1 if loss is not None and abs(loss - self._bound) < _NEAR * self._bound else 0
        if self.flat_epochs >= _FLAT:
            return f"the loss stays at ln K ({loss:.4f}, ln K = {self._bound:.4f})"
        return None

    def record(self) -> dict[str, Any]:
        return {"rung": self.rung, "flat_epochs": self.flat_epochs}

    def resume(self, record: Any) -> None:
        if isinstance(record, Mapping):
            self.rung, self.flat_epochs = bool(record.get("rung")), int(record.get("flat_epochs", 0))
