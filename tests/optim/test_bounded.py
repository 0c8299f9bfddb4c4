"""The bounded solver against closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import nnls

from deepinv_astro.optim.bounded import minimize_bounded


def problem(rng: torch.Generator):
    a = torch.randn(9, 6, generator=rng, dtype=torch.float64)
    b = torch.randn(9, generator=rng, dtype=torch.float64)

    def cost(x: torch.Tensor):
        r = a @ x.flatten() - b
        return 0.5 * r @ r, (a.T @ r).view_as(x)

    return a, b, cost


def test_positive_least_squares_equal_scipys(rng):
    a, b, cost = problem(rng)
    found = minimize_bounded(cost, torch.zeros(2, 3, dtype=torch.float64), max_iter=300, ftol=1e-15)
    expected = torch.as_tensor(nnls(a.numpy(), b.numpy())[0])
    assert (expected == 0).any()
    torch.testing.assert_close(found.x.flatten(), expected, rtol=1e-5, atol=1e-6)
    assert found.x.min() >= 0
    assert found.cost == pytest.approx(float(cost(found.x)[0]), rel=1e-9)


def test_without_bound_equals_least_squares(rng):
    a, b, cost = problem(rng)
    found = minimize_bounded(
        cost, torch.zeros(6, dtype=torch.float64), lower=None, max_iter=300, ftol=1e-15
    )
    expected = torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
    assert (expected < 0).any()
    torch.testing.assert_close(found.x, expected, rtol=1e-5, atol=1e-6)


def test_lower_bound_is_the_one_given(rng):
    _, _, cost = problem(rng)
    found = minimize_bounded(cost, torch.ones(6, dtype=torch.float64), lower=0.25, max_iter=100)
    assert float(found.x.min()) == pytest.approx(0.25)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_path_does_not_depend_on_the_unit(unit, rng):
    _, _, cost = problem(rng)

    def scaled(x: torch.Tensor):
        value, gradient = cost(x / unit)
        return value, gradient / unit

    start = torch.zeros(6, dtype=torch.float64)
    first, second = (
        minimize_bounded(cost, start, max_iter=4),
        minimize_bounded(scaled, start, max_iter=4),
    )
    torch.testing.assert_close(second.x / unit, first.x, rtol=1e-6, atol=1e-9)
    assert first.iterations == second.iterations == 4


def test_callback_counts_iterations_and_precision_is_kept(rng):
    seen: list[tuple[int, float]] = []
    found = minimize_bounded(
        lambda x: (
            (x - 2).square().sum() + x[0] ** 4,
            2 * (x - 2) + 4 * x**3 * torch.tensor([1.0, 0.0]),
        ),
        torch.zeros(2),
        callback=lambda k, cost: seen.append((k, cost)),
    )
    assert [k for k, _ in seen] == list(range(1, found.iterations + 1))
    assert seen[-1][1] <= seen[0][1]
    assert found.x.dtype == torch.float32


def test_start_at_the_minimum_stays_there():
    found = minimize_bounded(
        lambda x: (x.square().sum(), 2 * x), torch.zeros(3, dtype=torch.float64)
    )
    assert torch.equal(found.x, torch.zeros(3, dtype=torch.float64))
