"""ReaL accuracy and the two mean corruption errors, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from virb.data.datasets.imagenet import CORRUPTIONS
from virb.metrics.base import find_metric
from virb.metrics.robustness import ALEXNET


def test_any_right_label_is_right_and_samples_without_one_are_left_out() -> None:
    scores = np.eye(4)[[0, 1, 2, 3, 0]]
    labels = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=np.uint8)
    assert find_metric("real_accuracy").score(scores, labels) == pytest.approx(2 / 4)
    assert find_metric("real_accuracy").score(np.full((1, 4), np.nan), np.ones((1, 4), dtype=np.uint8)) == 0.0
    assert find_metric("real_accuracy").score(scores[3:4], labels[3:4]) is None


def corrupted(errors: dict[int, float], n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets with this share of errors in each corruption, over five severities."""
    scores, targets = [], []
    for corruption, share in errors.items():
        for i in range(n):
            scores.append(np.eye(3)[1 if i < round(share * n) else 0])
            targets.append((0, corruption, 1 + i % 5))
    return np.array(scores), np.array(targets)


def test_errors_are_relative_to_alexnets_and_as_they_are() -> None:
    errors = {c: (c + 1) / 20 for c in range(15)}
    scores, targets = corrupted(errors)
    assert find_metric("mCE").score(scores, targets) == pytest.approx(np.mean([errors[c] / ALEXNET[c] for c in range(15)]))
    assert find_metric("mean_corruption_error").score(scores, targets) == pytest.approx(np.mean(list(errors.values())))
    assert not find_metric("mCE").higher_is_better


def test_alexnet_itself_has_an_mce_of_one() -> None:
    assert len(ALEXNET) == len(CORRUPTIONS) == 15
    sums = np.stack([np.repeat(ALEXNET, 5) * 1e6, np.full(75, 1e6)], axis=1)
    assert find_metric("mCE").value(sums) == pytest.approx(1.0)


def test_fewer_corruptions_have_no_mce_but_a_mean() -> None:
    scores, targets = corrupted({0: 0.5, 3: 0.1})
    assert find_metric("mCE").score(scores, targets) is None
    assert find_metric("mean_corruption_error").score(scores, targets) == pytest.approx(0.3)


def test_fewer_severities_have_no_mce() -> None:
    """Error rates at severity 1 alone are no mean over five of them; one missing severity of one corruption is enough."""
    scores, targets = corrupted(dict.fromkeys(range(15), 0.5))
    for kept in (targets[:, 2] == 1, (targets[:, 1] != 7) | (targets[:, 2] != 4)):
        assert find_metric("mCE").score(scores[kept], targets[kept]) is None
        assert find_metric("mean_corruption_error").score(scores[kept], targets[kept]) is not None


@pytest.mark.parametrize("target", [(0, 15, 1), (0, -1, 1), (0, 0, 0), (0, 0, 6)])
def test_numbers_that_are_no_corruption_or_severity(target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected corruptions 0 to 14 and severities 1 to 5"):
        find_metric("mCE").score(np.zeros((1, 4)), np.array([target]))


@pytest.mark.parametrize(("name", "target"), [("real_accuracy", np.zeros(3, dtype=int)), ("mCE", np.zeros((3, 2), dtype=int))])
def test_other_targets_are_refused(name: str, target: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Expected argument"):
        find_metric(name).score(np.zeros((3, 4)), target)
