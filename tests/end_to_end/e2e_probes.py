"""One tiny probe of each shape, with its metric and task, as a user writes his own: ``probe: e2e_probes:NearestMean``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from virb.data.transforms import Geometry
from virb.errors import ViRBError
from virb.metrics.base import Metric, Statistics
from virb.probes.base import (
    AUX,
    FIT,
    REPORT,
    REPORT_UNLABELLED,
    Batch,
    BatchLoader,
    ConfigOutcome,
    Context,
    OnlineSample,
    Outcome,
    Predictions,
    ProbeConfig,
    RoleData,
    Run,
    Settings,
)
from virb.probes.pieces import Sizes, Stage
from virb.tasks.base import Task

SHAPES = Geometry((32, 32), "squash")


def ratio(sums: np.ndarray) -> np.ndarray:
    """First statistic over the second, of one group."""
    return sums[..., 0, 0] / sums[..., 0, 1]


def single(settings: Settings, predictions: Predictions, head: dict[str, Tensor] | None = None, epoch: int | None = None) -> Outcome:
    (name,) = settings.configs
    config = ConfigOutcome(name, report=predictions, head=head, epoch=epoch)
    return Outcome([Run(settings.seeds[0], {name: config}, name)], name, selected_on="none")


# --- from_features -------------------------------------------------------------------------------------------------------------------


class NearestMean:
    """The class whose mean feature is nearest; a sample of several rows is the mean of its rows, so videos may differ in length."""

    name: ClassVar[str] = "nearest-mean"
    shape: ClassVar[str] = "features"
    Config: ClassVar[type] = ProbeConfig

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        assert settings.n_classes is not None
        fit, report = (_sample_means(roles[role]) for role in (FIT, REPORT))
        labels = torch.as_tensor(roles[FIT].targets)
        means = torch.stack([fit[labels == c].mean(0) for c in range(settings.n_classes)])
        return single(settings, Predictions((-torch.cdist(report, means)).numpy()), {"means": means})


def _sample_means(role: RoleData) -> Tensor:
    return torch.stack([torch.stack(role.features.sample(i)).mean(0) for i in range(len(role))])


class Retrieval:
    """Ranks the whole database (an unlabelled role) for every query by cosine."""

    name: ClassVar[str] = "retrieval"
    shape: ClassVar[str] = "features"
    Config: ClassVar[type] = ProbeConfig

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        assert roles[AUX].targets is None
        queries, database = (F.normalize(roles[role].features.gather(np.arange(len(roles[role]))), dim=1) for role in (REPORT, AUX))
        return single(settings, Predictions((queries @ database.T).argsort(dim=1, descending=True).numpy()))


class TwoMeans:
    """Two clusters of the reported features themselves: transductive, so the labels must not be there."""

    name: ClassVar[str] = "two-means"
    shape: ClassVar[str] = "features"
    Config: ClassVar[type] = ProbeConfig

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        (data,) = roles.values()
        assert data.targets is None
        x = data.features.gather(np.arange(len(data)))
        centres = x[[0, int((x - x[0]).norm(dim=1).argmax())]]
        for _ in range(10):
            nearest = torch.cdist(x, centres).argmin(1)
            centres = torch.stack([x[nearest == c].mean(0) for c in range(2)])
        return single(settings, Predictions(nearest.numpy()))


class InPieces(NearestMean):
    """The same in five pieces, that several devices can share. Each piece found leaves a line in ``found.log`` (its number, the process);
    the fourth waits while there is a file ``wait``, and fails while there is one ``fail``."""

    name: ClassVar[str] = "in-pieces"

    @staticmethod
    def stages(configs: Mapping[str, Any], sizes: Sizes) -> tuple[Stage, ...]:
        return (Stage("means", 1e12, 5),)

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        def find(numbers: Sequence[int]) -> Iterator[list[float]]:
            for number in numbers:
                while number == 3 and Path("wait").exists():
                    time.sleep(0.05)
                if number == 3 and Path("fail").exists():
                    raise ViRBError("the fourth piece does not like the weather")
                with open("found.log", "a") as file:
                    file.write(f"{number} {os.getpid()}\n")
                yield [float(number)]

        found = context.pieces.of("means", range(5), find)
        outcome = super().from_features(roles, settings, context)
        outcome.notes.append(f"pieces {found}")
        return outcome


# --- from_batches --------------------------------------------------------------------------------------------------------------------


class DenseConfig(ProbeConfig):
    """Learning rate of the 1 x 1 head."""

    lr: float = 0.1


class DenseHead:
    """A 1 x 1 convolution on ``tokens[-1]``, trained while the encoder runs; predictions are scored batch by batch, not kept."""

    name: ClassVar[str] = "dense-head"
    shape: ClassVar[str] = "batches"
    Config: ClassVar[type] = DenseConfig

    def from_batches(self, encoder: Any, loaders: Mapping[str, BatchLoader], settings: Settings, context: Context) -> Outcome:
        assert settings.n_classes is not None
        ((name, config),) = settings.configs.items()
        torch.manual_seed(settings.seeds[0])
        head: torch.nn.Module | None = None
        history = []
        for epoch in range(settings.num_epochs):
            order = np.random.default_rng(epoch).permutation(len(loaders[FIT]))
            losses = []
            for batch in loaders[FIT].batches(settings.batch_size, order):
                maps, masks = _maps(encoder, batch), _masks(batch)
                if head is None:
                    head = torch.nn.Conv2d(maps.shape[1], settings.n_classes, 1)
                    optimizer = torch.optim.Adam(head.parameters(), lr=config.lr)  # type: ignore[attr-defined]
                loss = F.cross_entropy(_resized(head(maps), masks), masks)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            context.scalars(name, "loss/train", float(np.mean(losses)), epoch + 1)
            context.progress("training", epoch + 1, settings.num_epochs)
            history.append({"epoch": epoch + 1, "train_loss": float(np.mean(losses))})
        assert head is not None
        parts = []
        with torch.no_grad():
            for batch in loaders[REPORT].batches(settings.test_batch_size):
                masks = _masks(batch)
                parts.append(pixel_statistics(_resized(head(_maps(encoder, batch)), masks).argmax(1), masks))
        outcome = single(
            settings, Predictions(None, statistics={"share_of_pixels": Statistics.concatenate(parts)}), dict(head.state_dict())
        )
        outcome.runs[0].configs[name].history = history
        return outcome


class Background(DenseHead):
    """Says "background" everywhere, as a list of maps that the runner scores: what a dense head has to beat."""

    name: ClassVar[str] = "background"

    def from_batches(self, encoder: Any, loaders: Mapping[str, BatchLoader], settings: Settings, context: Context) -> Outcome:
        maps = [np.zeros(batch.images.shape[-2:], dtype=np.int64) for batch in loaders[REPORT].batches(7) for _ in batch.samples]
        return single(settings, Predictions(maps))


def _maps(encoder: Any, batch: Batch) -> Tensor:
    return encoder(batch.images, ["tokens[-1]"])["tokens[-1]"].clone()


def _masks(batch: Batch) -> Tensor:
    return torch.from_numpy(np.stack(batch.targets))


def _resized(scores: Tensor, masks: Tensor) -> Tensor:
    return F.interpolate(scores, masks.shape[-2:], mode="bilinear", align_corners=False)


def pixel_statistics(prediction: Any, target: Any) -> Statistics:
    """(right pixels, pixels) per sample; predictions and targets may be lists of maps of any sizes."""
    pairs = zip(prediction, target, strict=True)
    return Statistics(np.array([[float((np.asarray(p) == np.asarray(t)).sum()), float(np.asarray(t).size)] for p, t in pairs]))


# --- online --------------------------------------------------------------------------------------------------------------------------


class CropTracker:
    """Follows the first given box: in each next frame the shifted or same box whose crop looks most like the first one."""

    name: ClassVar[str] = "crop-tracker"
    shape: ClassVar[str] = "online"
    Config: ClassVar[type] = ProbeConfig
    reach: ClassVar[int] = 6

    def online(self, encoder: Any, sample: OnlineSample, settings: Settings, context: Context) -> list[np.ndarray]:
        box = np.asarray(sample.given[0][:4], dtype=float)
        template = self.embed(encoder, sample.image(0), [box])[0]
        found = [box]
        for t in range(1, sample.n_images):
            frame = sample.image(t)
            shifts = range(-self.reach, self.reach + 1, 2)
            candidates = [found[-1] + np.array([x, y, x, y]) for y in shifts for x in shifts]
            found.append(candidates[int((self.embed(encoder, frame, candidates) @ template).argmax())])
        return found

    def embed(self, encoder: Any, frame: Tensor, boxes: Sequence[np.ndarray]) -> Tensor:
        height, width = frame.shape[1:]
        crops = []
        for x0, y0, x1, y1 in boxes:
            left, top = int(np.clip(x0, 0, width - 2)), int(np.clip(y0, 0, height - 2))
            right, bottom = int(np.clip(x1, left + 2, width)), int(np.clip(y1, top + 2, height))
            crops.append(F.interpolate(frame[None, :, top:bottom, left:right].float(), (16, 16), mode="bilinear")[0].to(torch.uint8))
        return F.normalize(encoder(encoder.prepare(torch.stack(crops)))["embedding"], dim=1)


class StandStill(CropTracker):
    """Leaves the box where it was: what a tracker has to beat."""

    name: ClassVar[str] = "stand-still"

    def online(self, encoder: Any, sample: OnlineSample, settings: Settings, context: Context) -> list[np.ndarray]:
        return [np.asarray(sample.given[0][:4], dtype=float)] * sample.n_images


def _overlap_statistics(prediction: Any, target: Any) -> Statistics:
    """(sum of overlaps, frames) per video over the frames after the first in which the first object is seen."""
    rows = []
    for boxes, tracks in zip(prediction, target, strict=True):
        number = tracks[0][0][5]
        pairs = [(box, row[:4]) for box, frame in zip(boxes[1:], tracks[1:], strict=True) for row in frame if row[5] == number]
        rows.append([sum(overlap(a, b) for a, b in pairs), float(len(pairs))])
    return Statistics(np.array(rows))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))


def _recall_statistics(ranking: Any, relevant: Any) -> Statistics:
    return Statistics(np.array([[float(row[0] in right), 1.0] for row, right in zip(ranking, relevant, strict=True)]))


def _purity_statistics(cluster: Any, target: Any) -> Statistics:
    """Agreement with the better of the two ways to name two clusters is no sum, so the name is fixed by the first sample."""
    return Statistics(np.array([[float((c == cluster[0]) == (t == target[0])), 1.0] for c, t in zip(cluster, target, strict=True)]))


PIXEL_ACCURACY = Metric("share_of_pixels", "pixels", True, "%", pixel_statistics, ratio)
MEAN_OVERLAP = Metric("mean_overlap", "mean IoU", True, "%", _overlap_statistics, ratio)
RECALL_1 = Metric("recall1", "R@1", True, "%", _recall_statistics, ratio)
PURITY = Metric("purity", "purity", True, "%", _purity_statistics, ratio)

MASKS = Task(
    id="Masks", level="pixelwise", kind="semantic", dataset="shapes", target="mask", probe="e2e_probes:DenseHead",
    metrics=("e2e_probes:PIXEL_ACCURACY",), roles={FIT: "train", REPORT: "test"}, geometry=SHAPES,
)  # fmt: skip
TRACKS = Task(
    id="Tracks", level="video", kind="structural", dataset="shapes-video", target="tracks", probe="e2e_probes:CropTracker",
    metrics=("e2e_probes:MEAN_OVERLAP",), roles={REPORT: "test"},
)  # fmt: skip
VIDEO_KIND = Task(
    id="VideoKind", level="video", kind="semantic", dataset="shapes-video", probe="e2e_probes:NearestMean",
    metrics=("top1", "mean_class_accuracy"), roles={FIT: "train", REPORT: "test"}, geometry=SHAPES,
)  # fmt: skip
RETRIEVAL = Task(
    id="Retrieval", level="image-level", kind="semantic", dataset="shapes-retrieval", target="relevant", probe="e2e_probes:Retrieval",
    metrics=("e2e_probes:RECALL_1",), roles={REPORT: "queries", AUX: "database"}, geometry=SHAPES,
)  # fmt: skip
CLUSTERS = Task(
    id="Clusters", level="image-level", kind="semantic", dataset="e2e_data:blobs", probe="e2e_probes:TwoMeans",
    metrics=("e2e_probes:PURITY",), roles={REPORT_UNLABELLED: "test"}, options={"n_classes": 2},
)  # fmt: skip
PICKY = Task(
    id="Picky", level="image-level", kind="semantic", dataset="e2e_data:blobs", metrics=("e2e_probes:PURITY_OF_TOP", "top1"),
)  # fmt: skip


def _right(scores: Any, target: Any) -> Statistics:
    hit = np.asarray(torch.as_tensor(scores).argmax(1)) == np.asarray(target)
    return Statistics(np.stack([hit, np.ones(len(hit))], 1))


PURITY_OF_TOP = Metric("wrong_share", "wrong", False, "%", _right, lambda sums: 1 - ratio(sums))
