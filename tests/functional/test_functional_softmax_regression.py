"""The whole path of C at once against scikit-learn, one C at a time."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from virb.functional import softmax_regression
from virb.functional.softmax_regression import Fitted, fit_softmax

STRENGTHS = [1e-4, 1e-2, 1.0, 100.0]


def samples(classes: int, n: int = 150, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes; features far off zero and of different spread."""
    rng = np.random.default_rng(3)
    targets = np.arange(n) % classes
    x = rng.normal(size=(classes, width))[targets] + 1.5 * rng.normal(size=(n, width))
    return 5.0 + x * np.geomspace(0.3, 3.0, width), targets


def fitted(x: np.ndarray, targets: np.ndarray, classes: int, dtype: torch.dtype, tolerance: float) -> Fitted:
    features = torch.from_numpy(x).to(dtype)
    return fit_softmax(
        lambda chunks: ((positions, features[positions]) for positions in chunks),
        torch.from_numpy(targets),
        classes,
        STRENGTHS,
        tolerance=tolerance,
        max_iter=5000,
        dtype=dtype,
        shift=features.mean(0),
        spread=features.std(0),
    )


def reference(x: np.ndarray, targets: np.ndarray, strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=strength, tol=1e-9, max_iter=20_000).fit(x, targets)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize(("dtype", "tolerance", "close"), [(torch.float64, 1e-10, 2e-5), (torch.float32, 1e-6, 2e-4)])
def test_scikit_learn_finds_the_same(classes: int, dtype: torch.dtype, tolerance: float, close: float) -> None:
    x, targets = samples(classes)
    found = fitted(x, targets, classes, dtype, tolerance)
    assert found.minima.converged.all()
    for row, strength in enumerate(STRENGTHS):
        sk = reference(x, targets, strength)
        weight, bias = found.weight[row].double().numpy(), found.bias[row].double().numpy()
        logits = x @ weight.T + bias
        if classes == 2:  # scikit-learn's single vector is the difference of our two
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        scale = abs(sk.coef_).max()
        np.testing.assert_allclose(weight, sk.coef_, rtol=0, atol=close * scale)
        np.testing.assert_allclose(bias, sk.intercept_, rtol=0, atol=10 * close * max(1.0, scale))
        np.testing.assert_array_equal(logits.argmax(1), sk.predict(x))
        share = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(share / share.sum(1, keepdims=True), sk.predict_proba(x), rtol=0, atol=close)


def test_batches_of_samples_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x, targets = samples(3)
    whole = fitted(x, targets, 3, torch.float64, 1e-9)
    monkeypatch.setattr(softmax_regression, "_LOGITS", 7 * 3 * len(STRENGTHS))
    parts = fitted(x, targets, 3, torch.float64, 1e-9)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(parts.bias, whole.bias, rtol=1e-5, atol=1e-6)
