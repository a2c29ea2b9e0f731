"""Losses and metrics of stacked heads against torch's loss and the metrics' own definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from virb.errors import UserError, ViRBError
from virb.metrics.base import Metric, Statistics, find_metric
from virb.metrics.classification import rank_of_target as rank_of_scores
from virb.probes import tally
from virb.probes.losses import find_loss
from virb.probes.tally import Tally, read

NAMES = ["top1", "top5", "mean_class_accuracy"]
CPU = torch.device("cpu")


def outputs_with_ties(n: int = 50, heads: int = 3, classes: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randint(0, 4, (n, heads, classes), generator=generator).float()  # many equal scores
    return outputs, torch.randint(0, classes - 1, (n,), generator=generator)  # the last class is absent


@pytest.mark.parametrize("names", [NAMES, ["top1"], ["mean_class_accuracy", "top1"], ["top5"]])
def test_sums_over_batches_are_the_metric_of_the_split(names: list[str]) -> None:
    outputs, targets = outputs_with_ties()
    count = Tally(names, 3, 8, CPU)
    for start, stop in ((0, 20), (20, 49), (49, 50)):
        count.update(outputs[start:stop], targets[start:stop])
    found = count.values(read(count.sums()))
    assert list(found) == names
    for name in names:
        for head in range(3):
            assert found[name][head] == pytest.approx(find_metric(name).score(outputs[:, head], targets), abs=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("most", [1, 5])
def test_ranks_are_the_same_by_either_way(tied: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's way breaks ties only where there are some; where there are none it must not need to."""
    outputs, targets = (
        outputs_with_ties() if tied else (torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(4)), torch.arange(50) % 8)
    )
    expected = torch.stack([torch.from_numpy(rank_of_scores(outputs[:, head], targets)) for head in range(3)], 1)
    assert torch.equal(tally._rank(outputs, targets), expected)
    if not tied:
        monkeypatch.delattr(tally, "_rank")
    assert torch.equal(tally.rank_of_target(outputs, targets, most), expected)


def test_clearing_leaves_tensors_in_their_place() -> None:
    """A captured step goes on adding to them."""
    outputs, targets = outputs_with_ties()
    count = Tally(NAMES, 3, 8, CPU)
    count.update(outputs, targets)
    tensors, first = count.sums(), read(count.sums())
    count.clear()
    assert not any(tensor.any() for tensor in tensors)
    count.update(outputs, targets)
    for tensor, again, value in zip(tensors, count.sums(), first, strict=True):
        assert tensor is again
        np.testing.assert_array_equal(tensor.numpy(), value)


def test_fewer_classes_than_five() -> None:
    outputs, targets = outputs_with_ties(classes=4)
    count = Tally(["top5"], 3, 4, CPU)
    count.update(outputs, targets)
    assert count.values(read(count.sums()))["top5"].tolist() == [1.0, 1.0, 1.0]


def test_any_other_metric_is_summed_from_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    error = Metric(
        "error",
        "error",
        False,
        "%",
        lambda scores, target: Statistics(np.stack([np.asarray(scores.argmax(1) != target, float), np.ones(len(target))], 1)),
        lambda sums: sums[..., 0, 0] / sums[..., 0, 1],
    )
    monkeypatch.setattr(tally, "find_metric", lambda name: error if name == "error" else find_metric(name))
    outputs, targets = outputs_with_ties()
    count = Tally(["error", "top1"], 3, 8, CPU)
    count.update(outputs[:30], targets[:30])
    count.update(outputs[30:], targets[30:])
    found = count.values(read(count.sums()))
    np.testing.assert_allclose(found["error"], 1 - found["top1"], atol=1e-12)


def test_cross_entropy_and_its_gradient_are_torchs() -> None:
    outputs = torch.randn(7, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 4
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 0])
    loss = find_loss("cross_entropy")
    before = outputs.clone()
    values, grad = loss.values_and_grad(outputs, targets)
    assert torch.equal(outputs, before)
    torch.testing.assert_close(loss.values(outputs, targets), values)
    for head in range(3):
        single = outputs[:, head].clone().requires_grad_()
        torch.testing.assert_close(values[:, head], torch.nn.functional.cross_entropy(single, targets, reduction="none").detach())
        torch.nn.functional.cross_entropy(single, targets).backward()
        torch.testing.assert_close(grad[:, head], single.grad)


def test_targets_are_checked() -> None:
    check = find_loss("cross_entropy").check
    assert check([0, 2], 3, "fit").dtype == torch.int64
    with pytest.raises(ViRBError, match="the report targets run from 0 to 3, but there are 3 classes"):
        check(np.array([0, 3]), 3, "report")
    with pytest.raises(ViRBError, match="one class number per sample"):
        check(np.array([0.5, 1.0]), 3, "fit")
    with pytest.raises(UserError, match="did you mean cross_entropy"):
        find_loss("cross_entrpy")
