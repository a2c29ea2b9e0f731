"""Losses of labels and numbers against torch, and what they say of wrong targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from virb.errors import ViRBError
from virb.probes.losses import count_outputs, find_loss

OUTPUTS = torch.randn(7, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
NUMBERS = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = (NUMBERS > 0).double()


@pytest.mark.parametrize(
    ("name", "targets", "reference"),
    [
        ("bce", LABELS, functional.binary_cross_entropy_with_logits),
        ("mse", NUMBERS, functional.mse_loss),
        ("l1", NUMBERS, functional.l1_loss),
    ],
)
def test_values_and_gradients_are_torchs(name: str, targets: torch.Tensor, reference: object) -> None:
    loss, before = find_loss(name), OUTPUTS.clone()
    values, grad = loss.values_and_grad(OUTPUTS, targets)
    torch.testing.assert_close(loss.values(OUTPUTS, targets), values)
    assert torch.equal(OUTPUTS, before)
    for head in range(3):
        single = OUTPUTS[:, head].clone().requires_grad_()
        torch.testing.assert_close(values[:, head], reference(single, targets, reduction="none").mean(1).detach())
        reference(single, targets).backward()
        torch.testing.assert_close(grad[:, head], single.grad)


def test_open_labels_have_no_loss_and_no_gradient() -> None:
    labels = LABELS.clone()
    labels[2:5, 1] = -1
    values, grad = find_loss("bce").values_and_grad(OUTPUTS, labels)
    assert (grad[2:5, :, 1] == 0).all()
    known = functional.binary_cross_entropy_with_logits(OUTPUTS[3, 0], LABELS[3], weight=(labels[3] >= 0).double())
    torch.testing.assert_close(values[3, 0], known)
    assert torch.isfinite(find_loss("bce").values(torch.full((1, 1, 4), 1e4), labels[:1])).all()


def test_heads_have_as_many_outputs_as_the_targets_need() -> None:
    assert count_outputs(find_loss("cross_entropy"), np.zeros(5, int), 7) == 7
    assert count_outputs(find_loss("bce"), np.zeros((5, 3)), 3) == 3
    assert count_outputs(find_loss("bce"), np.zeros((5, 3)), None) == 3
    assert count_outputs(find_loss("mse"), np.zeros(5), None) == 1
    assert count_outputs(find_loss("l1"), np.zeros((5, 2)), None) == 2
    with pytest.raises(ViRBError, match="at least two classes"):
        count_outputs(find_loss("cross_entropy"), np.zeros(5, int), None)


def test_targets_are_checked() -> None:
    labels, numbers = find_loss("bce").check, find_loss("mse").check
    assert labels(np.array([[1, -1], [0, 1]], dtype=np.int8), 2, "fit").dtype == torch.float32
    assert numbers(np.arange(3), 1, "fit").shape == (3, 1)
    with pytest.raises(ViRBError, match="a label of each of 3 classes"):
        labels(np.zeros(4), 3, "fit")
    with pytest.raises(ViRBError, match="fit labels are not all 1, 0 or -1"):
        labels(np.full((2, 3), 2), 3, "fit")
    with pytest.raises(ViRBError, match="1 of 3 report targets are NaN or infinite"):
        numbers(np.array([0.0, np.nan, 1.0]), 1, "report")
    with pytest.raises(ViRBError, match="needs 1 number per sample"):
        numbers(np.zeros((3, 2)), 1, "select")
    with pytest.raises(ViRBError, match="needs 1 number per sample"):
        numbers(np.array(["a"]), 1, "select")
