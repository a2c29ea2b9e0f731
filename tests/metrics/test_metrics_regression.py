"""Errors of regression against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from virb.metrics.base import find_metric

MAE, RMSE = find_metric("mae"), find_metric("root_mean_squared_error")


def test_scikit_learns_errors() -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.normal(size=(50, 1)).astype(np.float32), rng.normal(size=50)
    for prediction, target in ((found, truth), (found[:, 0], truth), (torch.from_numpy(found), torch.from_numpy(truth)[:, None])):
        assert MAE.score(prediction, target) == pytest.approx(mean_absolute_error(truth, found[:, 0]))
        assert RMSE.score(prediction, target) == pytest.approx(root_mean_squared_error(truth, found[:, 0]))


def test_several_numbers_per_sample() -> None:
    found, truth = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 4.0], [0.0, 4.0]])
    assert MAE.score(found, truth) == pytest.approx(5 / 4)
    assert RMSE.score(found, truth) == pytest.approx(np.sqrt(13 / 4))
    assert not MAE.higher_is_better
    assert not RMSE.higher_is_better


def test_nothing_to_say_and_wrong_shapes() -> None:
    assert RMSE.score(np.zeros((0, 1)), np.zeros(0)) is None
    with pytest.raises(ValueError, match="alike"):
        MAE.statistics(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="N x D"):
        MAE.statistics(np.zeros((3, 2, 2)), np.zeros((3, 2, 2)))
