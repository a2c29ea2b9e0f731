"""The loop of 2021: the work of a benchmark done as the first ViRB did it, to be its baseline in the same run.

For each encoder and each task anew, images are opened, resized, made float and normalised one after the other on the CPU, stacked, and
encoded in float32; features go to the CPU batch by batch in fp16 and all of them to the device at the end. Nothing is kept for another
task or another run. Then one training config comes after the other, batch by batch, with ``.item()`` of the loss and of the metric at every
step; after every epoch all test samples are scored and the results and the head's weights are written anew. Pixelwise tasks kept no
features: their encoder runs in every step of every config.

Where the original did less than ours, the loop does the same: no sample is left out (it dropped those that fill no batch). What it did
besides is left out, in its favour: TensorBoard's events, a copy of the encoder for each config, and on a CPU the processes of its loader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from virb.config import GradientConfig
from virb.data.datasets.common import image_paths
from virb.data.images import FileImages, ImageList
from virb.encoders.base import Encoder, InputSpec
from virb.io import available_cores

BATCH = 32  # of its encoders, and by default of its heads
WORKERS = 12  # of its loader, shared by the GPUs

Table = tuple[Tensor, Tensor]  # features (N, D) in fp16 and labels (N,), on the device
Batches = Iterable[tuple[Any, Tensor]]
Metric = Callable[[Tensor, Tensor], Tensor]


class Photos(Dataset[tuple[Tensor, Any]]):
    """Images as an encoder wants them, float and normalised, each with its target."""

    def __init__(self, images: ImageList, targets: Sequence[Any], spec: InputSpec) -> None:
        from torchvision import transforms

        mode = transforms.InterpolationMode(spec.interpolation)
        whole = spec.size if spec.resize == "squash" else round(min(spec.size) / spec.crop_pct)
        fit = [transforms.Resize(whole, mode), *([transforms.CenterCrop(spec.size)] if spec.crop == "center" else [])]
        steps = [*fit, transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
        self._images, self._targets, self._prepare = images, targets, transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        return self._prepare(self._images.read(i)), self._targets[i]


def folder(root: Path, spec: InputSpec) -> Photos:
    """``root/<class>/<image>``, labelled by class."""
    names = sorted(image_paths(root))
    classes = sorted({Path(name).parts[0] for name in names})
    return Photos(FileImages("photos", root, names), [classes.index(Path(name).parts[0]) for name in names], spec)


def loader(photos: Dataset[Any], device: torch.device, batch: int = BATCH) -> DataLoader[Any]:
    """With processes that start anew for every pass, where there is a GPU to feed."""
    workers = min(WORKERS // torch.cuda.device_count(), available_cores()) if device.type == "cuda" else 0
    return DataLoader(photos, batch, num_workers=workers, multiprocessing_context="spawn" if workers else None)


@torch.no_grad()
def encode(encoder: Encoder, batches: Batches, device: torch.device) -> Table:
    """Of float images on the CPU and their labels, batch by batch."""
    found, labels = [], []
    for pixels, targets in batches:
        found.append(encoder.network(pixels.to(device)).to("cpu", torch.float16))
        labels.append(targets)
    return torch.cat(found).to(device), torch.cat(labels).to(device)


def train(
    configs: Mapping[str, Any],
    fit: Table,
    test: Table | None,
    n_classes: int,
    epochs: int,
    batch: int = BATCH,
    out: Path | None = None,
) -> None:
    """Linear heads, or MLPs where configs have ``hidden``, one after the other. ``out``: where results and heads are written."""
    for name, config in configs.items():
        width, hidden = fit[0].shape[1], getattr(config, "hidden", None)
        layers = [nn.Linear(width, n_classes)] if hidden is None else [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, n_classes)]
        head = nn.Sequential(*layers).to(fit[0].device)
        optimizer = optimizer_of(config, head)
        for _ in range(epochs):
            order = torch.randperm(len(fit[0]), device=fit[0].device)
            found = [*one_pass(head, _rows(fit, order, batch), accuracy, optimizer)]
            if test is not None:
                with torch.no_grad():
                    found += one_pass(head, _rows(test, torch.arange(len(test[0]), device=test[0].device), batch), accuracy)
            if out is not None:
                (out / name).mkdir(parents=True, exist_ok=True)
                record = dict(zip(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), found, strict=False))
                (out / name / "results.json").write_text(json.dumps(record), encoding="utf-8")
                torch.save(head.state_dict(), out / name / "model_head.pt")


def warm(device: torch.device) -> None:
    """What libraries do once, before a loop is timed."""
    table = torch.zeros((2, 4), dtype=torch.float16, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    configs = {name: GradientConfig(optimizer=name, lr=0.1) for name in ("sgd", "adamw")}
    train(configs, table, table, n_classes=2, epochs=1)


def optimizer_of(config: Any, head: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(head.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def one_pass(
    head: Callable[[Any], Tensor], batches: Batches, metric: Metric, optimizer: torch.optim.Optimizer | None = None
) -> tuple[float, float]:
    """Mean cross-entropy and metric over all samples, weighted by the sizes of batches; with an optimizer, a step per batch."""
    loss, value, count = 0.0, 0.0, 0
    for inputs, targets in batches:
        outputs = head(inputs)
        of_batch = nn.functional.cross_entropy(outputs, targets)
        if optimizer is not None:
            optimizer.zero_grad()
            of_batch.backward()
            optimizer.step()
        loss += of_batch.item() * len(targets)
        value += metric(outputs.detach(), targets).item() * len(targets)
        count += len(targets)
    return loss / count, value / count


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(1) == labels).float().mean()


def batch_iou(outputs: Tensor, labels: Tensor) -> Tensor:
    """Of each class but 0 that the batch has: the mean over all its images, 1 where an image has none of it; then over classes."""
    predicted, tiny, found = outputs.argmax(1), 1e-8, []
    for number in labels.unique().tolist():
        if number:
            ours, theirs = predicted == number, labels == number
            found.append((((ours & theirs).sum((1, 2)) + tiny) / ((ours | theirs).sum((1, 2)) + tiny)).mean())
    return torch.stack(found).mean() if found else outputs.new_tensor(float("nan"))


def _rows(table: Table, order: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in order.split(batch):
        yield table[0][rows].float(), table[1][rows]
