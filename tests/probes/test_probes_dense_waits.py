"""Dense heads leave their sums on the device: the host waits for it as often in a long epoch as in a short one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from dense_support import held_split
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from virb.config.dense import DenseConfig, DenseLinearConfig
from virb.data.placement import DenseTarget
from virb.metrics import segmentation
from virb.metrics.base import find_metric
from virb.metrics.segmentation import LabelMaps, counts_on_host, pixel_counts
from virb.probes.dense_data import DenseSplit
from virb.probes.dense_heads import build_head
from virb.probes.dense_losses import find_dense_loss
from virb.probes.dense_outputs import n_outputs
from virb.probes.dense_score import score_heads
from virb.probes.dense_train import DenseRecipe, train_heads

BATCH, GRID = 4, (6, 6)
CONFIGS: dict[str, DenseConfig] = {
    "a": DenseLinearConfig(optimizer="sgd", lr=0.1, momentum=0.9),
    "b": DenseLinearConfig(optimizer="adamw", lr=0.01),
    "alone": DenseLinearConfig(optimizer="adam", lr=0.01, dropout=0.3),
}
TARGETS = {
    "labels": DenseTarget("labels"),
    "mask": DenseTarget("mask"),
    "depth": DenseTarget("depth", range=(0.1, 10.0)),
    "flow": DenseTarget("flow"),
    "map": DenseTarget("map", channels=3),
}
LOSSES = {"labels": "cross_entropy(1,2,1)", "mask": "bce", "depth": "sig_loss", "flow": "flow_l1", "map": "l1"}


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers that it reads, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.paused = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        words = ("local_scalar", "nonzero", "bincount", "masked_select", "unique")
        by_mask = "index.Tensor" in str(func) and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        self.note(any(word in str(func) for word in words) or by_mask)
        return func(*args, **(kwargs or {}))

    def note(self, waits: bool = True) -> None:
        self.count += waits and not self.paused


@contextmanager
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Also of tensors that are copied to the host. What optimizers read is theirs: step counters, which live on the host."""
    seen = Waits()

    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.note()
            return real(*args, **kwargs)

        return call

    def unseen(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.paused = True
            try:
                return real(*args, **kwargs)
            finally:
                seen.paused = False

        return call

    with monkeypatch.context() as patch:
        for name in ("tolist", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name)))
        for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            patch.setattr(kind, "step", unseen(kind.step))
        patch.setattr(segmentation, "_is_on_host", lambda labels: False)
        with seen:
            yield seen


def data(kind: str, n: int) -> DenseSplit:
    random = np.random.default_rng(n)
    maps = [torch.from_numpy(random.normal(size=(n, 5, 6, 6)).astype(np.float32))]
    if kind in ("labels", "mask"):
        truth = random.integers(0, 3 if kind == "labels" else 2, (n, 12, 12)).astype(np.uint8)
        truth[:, :2] = 255
    else:
        channels = {"depth": (), "flow": (3,), "map": (3,)}[kind]
        truth = random.uniform(0.2, 3, (n, *channels, 12, 12)).astype(np.float32)  # type: ignore[assignment]
        truth[..., 0, :] = np.nan
    return held_split(maps, truth, TARGETS[kind], 3 if kind == "labels" else None)


def counted(kind: str, n: int, scored: bool, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of two epochs after the first."""
    fit, score = data(kind, n), data(kind, n) if scored else None
    metric = {"labels": ("miou", "pixel_accuracy"), "mask": ("foreground_iou",)}.get(kind, ("none",))
    recipe = DenseRecipe(3, BATCH, BATCH, 0, LOSSES[kind], metric, True, score_every=True)

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        return build_head(CONFIGS[name], [(5, 6, 6)], n_outputs(TARGETS[kind], 3, CONFIGS[name]))

    totals: list[int] = []
    with waits(monkeypatch) as seen:
        found = train_heads(
            make,
            CONFIGS,
            fit,
            score,
            recipe,
            find_dense_loss(LOSSES[kind], kind),
            dict.fromkeys(CONFIGS, GRID),
            on_epoch=lambda epoch, records: totals.append(seen.count),
        )
    assert all(len(one.history) == 3 for one in found.values())
    return totals[-1] - totals[0]


@pytest.mark.parametrize(("kind", "scored"), [*((kind, False) for kind in TARGETS), ("labels", True), ("mask", True)])
def test_as_many_waits_in_a_long_epoch_as_in_a_short_one(kind: str, scored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = counted(kind, 2 * BATCH, scored, monkeypatch), counted(kind, 9 * BATCH, scored, monkeypatch)
    assert few == many
    assert 0 < few <= 2 * (6 if scored else 3)  # of two epochs


def test_what_the_host_reads_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would prove nothing."""
    x = torch.arange(6)
    with waits(monkeypatch) as seen:
        for number, wait in enumerate(
            (lambda: int(x.sum()), lambda: x[x > 2], lambda: torch.bincount(x), x.tolist, lambda: bool((x > 7).any()), x.cpu), 1
        ):
            wait()
            assert seen.count == number
        assert (x[torch.tensor([1])] + x).shape == (6,)
        assert seen.count == 6


# --- the counts themselves ------------------------------------------------------------------------------------------------------------


def test_counts_of_pixels_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    found = [torch.from_numpy(random.integers(0, 5, size)) for size in ((40, 31), (1, 1), (7, 300))]
    truth = [torch.from_numpy(np.where(random.random(f.shape) < 0.2, 255, random.integers(0, 5, f.shape)).astype(np.uint8)) for f in found]
    expected = LabelMaps(found, 5).counts(truth).values
    on_host = pixel_counts(LabelMaps(found, 5), truth)
    monkeypatch.setattr(segmentation, "_is_on_host", lambda labels: False)
    on_device = pixel_counts(LabelMaps(found, 5), truth)
    for counts in (on_host, on_device):
        np.testing.assert_array_equal(counts_on_host(counts.numpy()), expected)
    for metric in ("miou", "foreground_iou", "pixel_accuracy", "mean_pixel_class_accuracy"):
        of_counts = find_metric(metric).of_counts
        assert of_counts is not None
        whole = find_metric(metric).statistics(LabelMaps(found, 5), truth)
        np.testing.assert_array_equal(of_counts(counts_on_host(on_device.numpy())).values, whole.values)


@pytest.mark.parametrize("unseen", [False, True])
def test_labels_that_are_no_class_are_refused_wherever_they_are_counted(unseen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, negative = (torch.tensor([[value, 1]]) for value in (0, 2, -1))
    monkeypatch.setattr(segmentation, "_is_on_host", lambda labels: not unseen)
    for found, truth in ((bad, good), (negative, good), (good, bad), (good, negative)):
        with pytest.raises(ValueError, match=r"Expected the labels"):
            counts_on_host(pixel_counts(LabelMaps([good, found], 2), [good, truth]).numpy())
    void = torch.tensor([[255, 1]])
    assert counts_on_host(pixel_counts(LabelMaps([good], 2), [void]).numpy()).tolist() == [[0, 1, 0, 1, 0, 1]]


def test_what_is_pending_is_read_before_it_grows_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and losses are the same however often that happens."""
    from virb.probes import dense_score

    split = data("labels", 11)
    torch.manual_seed(0)
    head = build_head(CONFIGS["a"], [(5, 6, 6)], 3)
    found = []
    for most in (0, 1 << 26):
        monkeypatch.setattr(dense_score, "_PENDING_BYTES", most)
        metrics = ("pixel_accuracy", "boundary_f", "miou")
        loss = find_dense_loss("cross_entropy")
        sheet = score_heads({"a": head}, CONFIGS, split, metrics, loss, {"a": GRID}, 2)["a"]
        assert list(sheet.numbers()) == list(metrics)
        found.append((sheet.loss, sheet.numbers(), sheet.statistics()["miou"].values.tolist()))
        assert len(sheet.parts["miou"]) == (6 if most == 0 else 1)
    assert found[0] == found[1]
