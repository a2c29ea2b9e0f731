"""L2-regularised softmax regression (multinomial logistic regression) for many strengths at once, by L-BFGS on all samples.

The objective is scikit-learn's: sum of losses times C plus half the squared norm of the weights, the bias left free (divided by C and the
number of samples, so that its tolerance on the gradient means the same). With two classes scikit-learn has one weight vector instead of
two; the same decision comes from the difference of two vectors when these are penalised twice as hard, which is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from virb.functional.lbfgs import Minima, minimise

_LOGITS = 1 << 25  # numbers of one batch of logits: 128 MB in float32


@dataclass(frozen=True)
class Fitted:
    """Per strength: ``weight`` (K, C, D) and ``bias`` (K, C); how the search went."""

    weight: Tensor
    bias: Tensor
    minima: Minima


def fit_softmax(
    read: Callable[[Iterable[Tensor]], Iterable[tuple[Tensor, Tensor]]],
    targets: Tensor,
    n_classes: int,
    strengths: Sequence[float],
    *,
    tolerance: float = 1e-5,
    max_iter: int = 1000,
    dtype: torch.dtype = torch.float32,
    shift: Tensor,
    spread: Tensor,
    on_evaluation: Callable[[int, int], None] = lambda done, left: None,
) -> Fitted:
    """``read(chunks)`` gives each chunk of positions (of samples 0 to N-1, on the CPU) with its features (B, D), which are written to, at
    every evaluation anew; ``targets`` (N,) are their classes, every one of which has a sample; ``strengths`` are the values of C.

    ``shift`` (D,) is taken off the features and ``spread`` (D,) is their standard deviation: they make the search short and, the bias
    being free, do not change what it finds.
    """
    n, width, device = len(targets), len(shift), targets.device
    shift, spread = shift.to(device, dtype), spread.to(device, dtype)
    n_problems, n_params = len(strengths), n_classes * (width + 1)
    penalty = torch.tensor([(2.0 if n_classes == 2 else 1.0) / (c * n) for c in strengths], dtype=torch.float64, device=device)

    def objective(points: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        count = len(points)
        params = points.view(count, n_classes, width + 1)
        weight, bias = params[:, :, :width].reshape(count * n_classes, width), params[:, :, width].reshape(-1)
        value = torch.zeros(count, dtype=torch.float64, device=device)
        grad = torch.zeros(count * n_classes, width + 1, dtype=dtype, device=device)
        for positions, features in read(torch.arange(n).split(max(1, _LOGITS // (count * n_classes)))):
            x = features.to(dtype).sub_(shift)
            y = targets[positions.to(device)].view(-1, 1, 1).expand(-1, count, 1)
            logits = torch.addmm(bias, x, weight.t()).view(len(x), count, n_classes)
            logits = torch.log_softmax(logits, -1)
            value -= logits.gather(-1, y).sum((0, 2), dtype=torch.float64)
            slopes = logits.exp_().scatter_add_(-1, y, logits.new_full((1, 1, 1), -1.0).expand(y.shape)).view(len(x), -1)
            grad[:, :width].addmm_(slopes.t(), x)
            grad[:, width] += slopes.sum(0)
        strength = penalty[problems]
        grad = grad.div_(n).view(count, n_classes, width + 1)
        grad[:, :, :width] += strength.to(dtype)[:, None, None] * params[:, :, :width]
        norm = params[:, :, :width].double().square().sum((1, 2))
        return value / n + 0.5 * strength * norm, grad.reshape(count, n_params)

    # The second derivative of the loss by a weight is about p (1 - p) times the feature's variance, p being the class's share.
    curve = (n_classes - 1) / n_classes**2
    by_weight = curve * spread.square()[None] + penalty.to(dtype)[:, None]
    scale = torch.cat([1.0 / by_weight, torch.full((n_problems, 1), 1.0 / curve, dtype=dtype, device=device)], 1)
    scale = scale[:, None, :].expand(-1, n_classes, -1).reshape(n_problems, n_params)
    start = torch.zeros(n_problems, n_params, dtype=dtype, device=device)
    found = minimise(objective, start, tolerance=tolerance, max_iter=max_iter, scale=scale, on_evaluation=on_evaluation)
    params = found.x.view(n_problems, n_classes, width + 1)
    weight = params[:, :, :width].contiguous()
    return Fitted(weight, params[:, :, width] - weight @ shift, found)
