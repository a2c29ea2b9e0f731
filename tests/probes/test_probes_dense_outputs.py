"""From raw outputs to values and predictions, by hand and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from virb.config.dense import DenseConfig, DenseLinearConfig, PixelShuffleConfig, SiameseConfig
from virb.data.placement import DenseTarget
from virb.errors import UserError
from virb.probes.dense_outputs import FLOW_UNIT, depth_output, n_outputs, prediction, values

LABELS, MASK, FLOW = DenseTarget("labels"), DenseTarget("mask"), DenseTarget("flow")
DEPTH, OPEN_DEPTH = DenseTarget("depth", range=(0.5, 4.5)), DenseTarget("depth")
EDGES, COLOURS = DenseTarget("map"), DenseTarget("map", channels=3)


def linear(**options) -> DenseLinearConfig:
    return DenseLinearConfig(optimizer="adam", lr=0.1, **options)


SHUFFLE = PixelShuffleConfig(optimizer="adam", lr=0.1)


@pytest.mark.parametrize(
    ("target", "n_classes", "config", "expected"),
    [
        (LABELS, 21, linear(), 21),
        (LABELS, 2, linear(n_bins=8), 2),
        (MASK, None, linear(), 1),
        (MASK, 2, linear(), 1),
        (FLOW, None, SiameseConfig(optimizer="adam", lr=0.1), 2),
        (EDGES, None, SHUFFLE, 1),
        (COLOURS, None, SHUFFLE, 3),
        (DEPTH, None, linear(), 256),
        (DEPTH, None, linear(n_bins=64), 64),
        (DEPTH, None, linear(output="direct"), 1),
        (DEPTH, None, SHUFFLE, 1),
        (DEPTH, None, PixelShuffleConfig(optimizer="adam", lr=0.1, output="bins"), 256),
        (OPEN_DEPTH, None, linear(), 1),  # no range, no bins
        (OPEN_DEPTH, None, linear(output="direct"), 1),
    ],
)
def test_how_many_outputs(target: DenseTarget, n_classes: int | None, config: DenseConfig, expected: int) -> None:
    assert n_outputs(target, n_classes, config) == expected


@pytest.mark.parametrize(
    ("target", "n_classes", "config", "message"),
    [
        (LABELS, None, linear(), "at least two classes are needed, but the task has none"),
        (LABELS, 1, linear(), "but the task has 1"),
        (LABELS, 5, linear(output="bins"), "output: bins belongs to depth, but this task's target is of kind labels; leave it out"),
        (FLOW, None, linear(output="direct"), "output: direct belongs to depth"),
        (OPEN_DEPTH, None, linear(output="bins"), "needs a range of depths to divide, and this task has none; use output: direct"),
    ],
)
def test_what_does_not_go_together(target: DenseTarget, n_classes: int | None, config: DenseConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        n_outputs(target, n_classes, config)


def test_bins_by_hand() -> None:
    """Five bins at 0.5, 1.5, 2.5, 3.5, 4.5; weights max(output, 0) + 0.1."""
    raw = torch.tensor([-3.0, 0.9, -1.0, 0.4, 0.0]).view(1, 5, 1, 1)
    expected = (0.1 * 0.5 + 1.0 * 1.5 + 0.1 * 2.5 + 0.5 * 3.5 + 0.1 * 4.5) / 1.8
    found = values(raw, DEPTH, linear(n_bins=5))
    assert found.shape == (1, 1, 1, 1)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    # nothing positive anywhere: the middle of the range; one bin towers above all: its centre
    assert float(values(torch.full((1, 5, 1, 1), -9.0), DEPTH, linear(n_bins=5))) == pytest.approx(2.5)
    towering = torch.zeros(1, 5, 1, 1)
    towering[0, 3] = 1e6
    assert float(values(towering, DEPTH, linear(n_bins=5))) == pytest.approx(3.5, rel=1e-5)


def test_bins_against_numpy() -> None:
    raw = np.random.default_rng(0).normal(size=(2, 256, 3, 4)).astype(np.float32)
    weights = np.maximum(raw.astype(np.float64), 0) + 0.1
    expected = (weights / weights.sum(1, keepdims=True) * np.linspace(0.5, 4.5, 256)[:, None, None]).sum(1)
    found = values(torch.from_numpy(raw), DEPTH, linear())
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-5)
    assert found.min() >= 0.5
    assert found.max() <= 4.5


def test_bins_are_combined_before_up_sampling() -> None:
    """Depth between two cells is between their depths, whatever their bins are."""
    raw = torch.zeros(1, 5, 1, 2)
    raw[0, 0, 0, 0], raw[0, 4, 0, 1] = 1e6, 1e6
    up = F.interpolate(values(raw, DEPTH, linear(n_bins=5)), (1, 8), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(up[0, 0, 0].numpy(), 0.5 + 4 * np.clip((np.arange(8) + 0.5) / 4 - 0.5, 0, 1), atol=1e-4)


@pytest.mark.parametrize(("target", "least"), [(DEPTH, 0.5), (OPEN_DEPTH, 1e-3)])
def test_direct_depth_is_above_the_least_one_and_always_has_a_slope(target: DenseTarget, least: float) -> None:
    raw = torch.tensor([-8.0, -1.0, 0.0, 2.0, 30.0]).view(1, 1, 1, 5).requires_grad_()
    found = values(raw, target, linear(output="direct"))
    expected = least + np.logaddexp(0, [-8.0, -1.0, 0.0, 2.0, 30.0])
    np.testing.assert_allclose(found.detach().numpy().ravel(), expected, rtol=1e-5)
    found.sum().backward()
    assert (raw.grad > 0).all()


def test_the_probes_habit_for_depth() -> None:
    assert depth_output(DEPTH, linear()) == "bins"
    assert depth_output(OPEN_DEPTH, linear()) == depth_output(DEPTH, SHUFFLE) == depth_output(DEPTH, linear(output="direct")) == "direct"


def test_flow_is_in_pixels_and_others_are_as_they_are() -> None:
    raw = torch.randn(2, 2, 3, 4)
    assert torch.equal(values(raw, FLOW, linear()), raw * FLOW_UNIT)
    for target in (LABELS, MASK, EDGES):
        assert torch.equal(values(raw, target, linear()), raw)


def test_half_precision_outputs_become_float32() -> None:
    raw = torch.randn(1, 4, 2, 2, dtype=torch.bfloat16)
    for target in (LABELS, DEPTH, FLOW, COLOURS):
        assert values(raw, target, linear(n_bins=4)).dtype == torch.float32


def test_predictions_of_labels_are_the_first_of_the_greatest() -> None:
    logits = torch.zeros(4, 2, 3)
    logits[2, 0, 1], logits[1, 1, 2], logits[3, 1, 2] = 1.0, 5.0, 5.0
    found = prediction(logits, LABELS)
    assert found.dtype == torch.int64
    assert found.tolist() == [[0, 2, 0], [0, 0, 1]]
    assert torch.equal(prediction(logits[None], LABELS), found[None])


def test_prediction_of_a_mask_is_what_is_more_likely_than_not() -> None:
    logits = torch.tensor([[[-0.1, 0.0, 1e-6, 3.0]]])
    assert prediction(logits, MASK).tolist() == [[0, 0, 1, 1]]
    assert prediction(logits, MASK).tolist() == torch.sigmoid(logits.double()).round().long()[0].tolist()  # as in 2021


def test_prediction_of_depth_is_within_the_range() -> None:
    depth = torch.tensor([[[0.1, 2.0, 9.0]]])
    np.testing.assert_allclose(prediction(depth, DEPTH).numpy(), [[0.5, 2.0, 4.5]])
    np.testing.assert_allclose(prediction(depth, OPEN_DEPTH).numpy(), depth[0].numpy())


def test_predictions_of_flow_and_maps_are_the_values() -> None:
    flow, colours = torch.randn(2, 3, 4), torch.randn(3, 3, 4)
    assert prediction(flow, FLOW).shape == (2, 3, 4)
    assert torch.equal(prediction(flow, FLOW), flow)
    assert torch.equal(prediction(colours, COLOURS), colours)
