"""Batched L-BFGS on problems with known minima, and each problem as if it were alone."""

from __future__ import annotations

import pytest
import torch

from virb.functional.lbfgs import minimise

GENERATOR = torch.Generator().manual_seed(0)
WIDTH = 12


def quadratics(conditions: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive definite matrices of these condition numbers, and the minima."""
    matrices = []
    for condition in conditions:
        basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=GENERATOR)).Q
        matrices.append(basis @ torch.diag(torch.logspace(0, torch.log10(torch.tensor(condition)).item(), WIDTH).double()) @ basis.t())
    return torch.stack(matrices), torch.randn(len(conditions), WIDTH, dtype=torch.float64, generator=GENERATOR)


CONDITIONS = [1.0, 10.0, 1e4, 100.0]
MATRIX, MINIMUM = quadratics(CONDITIONS)


def objective(x: torch.Tensor, problems: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    offset = x - MINIMUM[problems].to(x.dtype)
    grad = (MATRIX[problems].to(x.dtype) @ offset[:, :, None])[..., 0]
    return 0.5 * (offset * grad).sum(1) + 3.0, grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_finds_the_minima(dtype: torch.dtype, tolerance: float) -> None:
    found = minimise(objective, torch.zeros(4, WIDTH, dtype=dtype), tolerance=tolerance)
    assert found.converged.all()
    assert (found.gradient <= tolerance).all()
    torch.testing.assert_close(found.x.double(), MINIMUM, rtol=0, atol=20 * tolerance)
    torch.testing.assert_close(found.value, torch.full((4,), 3.0, dtype=torch.float64), rtol=0, atol=1e-5)
    assert found.iterations[0] < found.iterations[2]


def test_problems_do_not_touch_each_other() -> None:
    together = minimise(objective, torch.zeros(4, WIDTH, dtype=torch.float64), tolerance=1e-8)
    for row in range(4):
        alone = minimise(lambda x, p, row=row: objective(x, p + row), torch.zeros(1, WIDTH, dtype=torch.float64), tolerance=1e-8)
        torch.testing.assert_close(alone.x[0], together.x[row], rtol=1e-12, atol=1e-12)
        assert alone.iterations[0] == together.iterations[row]


def test_a_good_scale_shortens_the_way_and_keeps_the_end() -> None:
    steep = torch.logspace(0, 5, WIDTH, dtype=torch.float64)

    def diagonal(x: torch.Tensor, problems: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.5 * (steep * (x - 1).square()).sum(1), steep * (x - 1)

    start = torch.zeros(1, WIDTH, dtype=torch.float64)
    plain, scaled = minimise(diagonal, start, tolerance=1e-7), minimise(diagonal, start, tolerance=1e-7, scale=(1 / steep)[None])
    assert plain.converged.all()
    assert scaled.converged.all()
    assert scaled.iterations[0] <= 3 < plain.iterations[0]
    torch.testing.assert_close(scaled.x, torch.ones(1, WIDTH, dtype=torch.float64))


def test_the_start_may_be_the_minimum() -> None:
    found = minimise(objective, MINIMUM.clone())
    assert found.converged.all()
    assert found.iterations.tolist() == [0, 0, 0, 0]
    assert found.evaluations == 1


def test_not_converged_is_said() -> None:
    seen: list[tuple[int, int]] = []
    found = minimise(
        objective, torch.zeros(4, WIDTH, dtype=torch.float64), tolerance=1e-9, max_iter=3, on_evaluation=lambda *s: seen.append(s)
    )
    assert found.converged.tolist() == [True, False, False, False]
    assert found.iterations.max() == 3
    assert seen[0][1] == 4
    assert seen[-1] == (found.evaluations, 0)


def test_an_unreachable_tolerance_ends() -> None:
    found = minimise(objective, torch.zeros(4, WIDTH), tolerance=1e-30, max_iter=100_000)
    assert not found.converged.all()
    assert found.evaluations < 5000
    torch.testing.assert_close(found.x.double(), MINIMUM, rtol=0, atol=1e-3)


def test_steps_into_the_infinite_are_taken_back() -> None:
    def wall(x: torch.Tensor, problems: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x - log(x), infinite below zero; the first guess jumps over the wall."""
        return (x - torch.log(x))[:, 0], 1 - 1 / x

    found = minimise(wall, torch.tensor([[30.0], [1e-3]], dtype=torch.float64), tolerance=1e-8, scale=torch.full((2, 1), 1000.0).double())
    assert found.converged.all()
    torch.testing.assert_close(found.x, torch.ones(2, 1, dtype=torch.float64))
