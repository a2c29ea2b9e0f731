"""The published definitions against values of the released code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from virb.metrics.base import Statistics, find_metric
from virb.metrics.segmentation import LabelMaps

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "virb_metrics.npz")
BINARY, IOU, L1, NEIGHBOR = (find_metric(f"virb2021_{name}") for name in ("iou_binary", "iou", "l1", "neighbor"))


def case(name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    out, labels = (torch.from_numpy(GOLDEN[f"{name}.{part}"]) for part in ("out", "labels"))
    return out, labels, float(GOLDEN[f"{name}.value"])


def classes(out: torch.Tensor) -> LabelMaps:
    return LabelMaps(list(out.argmax(dim=1)), out.shape[1])


def masks(out: torch.Tensor) -> LabelMaps:
    return LabelMaps(list((torch.sigmoid(out[:, 0]) > 0.5).long()), 2)


@pytest.mark.parametrize("name", ["iou_binary", "iou_binary_one_image"])
def test_binary_iou(name: str) -> None:
    out, labels, value = case(name)
    targets = list(labels[:, 0].to(torch.uint8))
    assert BINARY.score(masks(out), targets) == pytest.approx(value, rel=2e-6)
    parts = [BINARY.statistics(masks(out)[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
    assert BINARY.of(Statistics.concatenate(parts)) == pytest.approx(value, rel=2e-6)  # batches do not matter


def test_binary_iou_of_empty_masks() -> None:
    out, labels, _ = case("iou_binary")
    rows = BINARY.statistics(masks(out), list(labels[:, 0].to(torch.uint8))).values
    assert rows[2, 0] == pytest.approx(0, abs=1e-9)
    assert rows[3, 0] == 1
    plain = find_metric("foreground_iou").score(masks(out), list(labels[:, 0].to(torch.uint8)))
    assert plain != pytest.approx(rows[:, 0].mean(), abs=0.05)


MULTI = [
    "iou_multi",
    *(f"iou_multi_image{i}" for i in range(4)),
    "iou_multi_background_everywhere",
    "iou_multi_background_everywhere_alone",
]


@pytest.mark.parametrize("name", MULTI)
def test_multi_class_iou_is_that_of_a_batch(name: str) -> None:
    out, labels, value = case(name)
    assert IOU.score(classes(out), list(labels)) == pytest.approx(value, rel=2e-6)


def test_multi_class_iou_over_batches_is_the_mean_weighted_by_their_sizes() -> None:
    out, labels, whole = case("iou_multi")
    parts = [IOU.statistics(classes(out)[here], list(labels[here])) for here in (slice(0, 3), slice(3, 4))]
    values = [part.values[0, 0] for part in parts]
    assert values[1] == pytest.approx(case("iou_multi_image3")[2], rel=2e-6)
    found = IOU.of(Statistics.concatenate(parts))
    assert found == pytest.approx((3 * values[0] + values[1]) / 4)
    assert found != pytest.approx(whole, abs=1e-3)


def test_a_batch_of_background_poisons_the_split() -> None:
    out, labels, value = case("iou_multi_only_background")
    assert np.isnan(value)
    assert IOU.score(classes(out), list(labels)) is None
    more = case("iou_multi_background_everywhere")
    parts = [IOU.statistics(classes(o), list(t)) for o, t, _ in ((out, labels, 0.0), more)]
    assert IOU.of(Statistics.concatenate(parts)) is None


def test_share_of_non_zero_labels_that_are_met() -> None:
    out, labels, value = case("neighbor_error")
    assert NEIGHBOR.score(list(out), list(labels)) == value
    parts = [NEIGHBOR.statistics(list(out)[here], list(labels)[here]) for here in (slice(0, 2), slice(2, 3))]
    shares = [
        float((((out[here, 0] - labels[here]).abs() <= 0.05) & (labels[here] != 0)).sum() / (labels[here] != 0).sum())
        for here in (slice(0, 2), slice(2, 3))
    ]
    assert NEIGHBOR.of(Statistics.concatenate(parts)) == pytest.approx((2 * shares[0] + shares[1]) / 3)
    assert NEIGHBOR.score([np.ones((2, 2))], [np.zeros((2, 2))]) is None


def test_l1_is_torchs() -> None:
    out, labels, _ = case("weighted_l1")
    expected = float(torch.nn.functional.l1_loss(out, labels))
    assert L1.score(list(out), list(labels)) == pytest.approx(expected, rel=2e-6)
    assert L1.score(out.numpy(), labels.numpy()) == pytest.approx(expected, rel=2e-6)
    assert L1.score([np.ones((1, 2, 2))], [np.array([[0.0, 1.0], [1.0, -1.0]])]) == pytest.approx(3 / 4)


def test_padding_outside_the_image_takes_no_part() -> None:
    pad = torch.nn.functional.pad
    out, labels, value = case("iou_multi")
    wider = [pad(one, (0, 3, 0, 2), value=255) for one in labels]
    assert IOU.score(LabelMaps([pad(one, (0, 3, 0, 2), value=1) for one in out.argmax(dim=1)], 5), wider) == pytest.approx(value, rel=2e-6)
    out, labels, value = case("iou_binary")
    wider = [pad(one.long(), (0, 3), value=255) for one in labels[:, 0]]
    assert BINARY.score(LabelMaps([pad(one, (0, 3), value=1) for one in masks(out)], 2), wider) == pytest.approx(value, rel=2e-6)
    out, labels, value = case("neighbor_error")
    assert NEIGHBOR.score(list(pad(out, (0, 5))), list(pad(labels, (0, 5), value=float("nan")))) == value
    found = L1.score(list(pad(out, (0, 5))), list(pad(labels, (0, 5), value=float("nan"))))
    assert found == pytest.approx(float((out[:, 0] - labels).abs().mean()), rel=2e-6)


def test_the_pixel_accuracy_of_2021_is_ours() -> None:
    out, labels, value = case("pixel_accuracy")
    assert find_metric("pixel_accuracy").score(masks(out), list(labels[:, 0].long())) == pytest.approx(value, rel=2e-6)


def test_directions_and_units() -> None:
    assert [(m.higher_is_better, m.unit) for m in (BINARY, IOU, NEIGHBOR, L1)] == [(True, "%")] * 3 + [(False, "")]
    for metric in (BINARY, IOU):
        assert metric.score(LabelMaps([], 2), []) is None
    assert L1.score([], []) is None
    assert NEIGHBOR.score([], []) is None
