"""Projected quasi-Newton steps against closed forms, the conditions of optimality and scipy's solver."""

from __future__ import annotations

import pytest
import torch

from deepinv_astro.optim.bounded import minimize_bounded
from deepinv_astro.optim.projected import minimize_projected


def quadratic(rng, n=12, condition=1e3):
    """Correlated quadratic cost whose constrained minimum has zeros."""
    basis = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.logspace(0, torch.tensor(condition).log10(), n).double())
    matrix = matrix @ basis.mT
    target = torch.randn(n, generator=rng, dtype=torch.float64)

    def cost(x):
        slope = matrix @ (x - target)
        return 0.5 * (x - target) @ slope, slope

    return cost


@pytest.mark.parametrize("lower", [0.0, -0.5, 0.3])
def test_conditions_of_optimality(lower, rng):
    cost = quadratic(rng)
    start = lower + torch.rand(12, generator=rng, dtype=torch.float64)
    found = minimize_projected(cost, start, lower=lower, max_iter=300)
    slope = cost(found.x)[1]
    bound = found.x <= lower
    assert 0 < int(bound.sum()) < 12
    assert float(found.x.min()) >= lower
    assert float(slope[~bound].abs().max()) < 1e-5
    assert float(slope[bound].min()) > 0
    assert found.cost == float(cost(found.x)[0])
    none = minimize_projected(cost, start, lower=lower, max_iter=0)
    torch.testing.assert_close(none.x, start)
    assert none.iterations == 0


def test_as_few_iterations_as_scipy(rng):
    cost = quadratic(rng, 60, 1e4)
    start = torch.zeros(60, dtype=torch.float64)
    lowest = minimize_bounded(cost, start, max_iter=2000, ftol=1e-15).cost
    wanted = lowest + 1e-3 * (float(cost(start)[0]) - lowest)

    def needed(solver, **options):
        costs = []
        solver(cost, start, max_iter=200, callback=lambda i, c: costs.append(c), **options)
        return next(i for i, c in enumerate(costs) if c < wanted)

    assert needed(minimize_projected) <= 1.3 * needed(minimize_bounded, ftol=1e-15) + 2


def test_scaled_variables_are_another_metric(rng):
    """The path in x / s of the cost is the path of the cost as a function of x / s."""
    cost = quadratic(rng)
    scale = 0.1 + torch.rand(12, generator=rng, dtype=torch.float64)
    start = torch.rand(12, generator=rng, dtype=torch.float64)
    one = minimize_projected(cost, start, scale=scale, max_iter=5)
    other = minimize_projected(
        lambda v: (cost(scale * v)[0], scale * cost(scale * v)[1]), start / scale, max_iter=5
    )
    torch.testing.assert_close(one.x, scale * other.x)
    assert not torch.allclose(one.x, minimize_projected(cost, start, max_iter=5).x)


def test_units_do_not_matter(rng):
    cost = quadratic(rng)
    start = torch.rand(12, generator=rng, dtype=torch.float64)
    one = minimize_projected(cost, start, max_iter=7)
    for unit in (1e-12, 1e12):
        other = minimize_projected(
            lambda x, a=unit: (cost(x / a)[0], cost(x / a)[1] / a), unit * start, max_iter=7
        )
        torch.testing.assert_close(other.x / unit, one.x)


def test_stops_after_two_small_gains_in_a_row(rng):
    cost = quadratic(rng, 40, 1e4)
    costs: list[float] = []
    start = torch.ones(40, dtype=torch.float64)
    found = minimize_projected(
        cost, start, max_iter=500, tolerance=0.05, callback=lambda i, c: costs.append(c)
    )
    gains = -torch.tensor(costs).diff()
    assert found.message == "tolerance"
    assert found.iterations == len(costs) < 500
    assert bool((gains[-2:] < 0.05).all())
    assert not bool(((gains[:-2] < 0.05) & (gains[1:-1] < 0.05)).any())
    assert bool((gains > 0).all())


def test_curvature_of_the_wrong_sign(rng):
    """A cost that is not convex: it falls in each iteration, to a stationary point."""
    bend = torch.linspace(0.5, 3, 8, dtype=torch.float64)

    def cost(x):
        return (1 - (-bend * (x - 1).square()).exp()).sum(), (
            2 * bend * (x - 1) * (-bend * (x - 1).square()).exp()
        )

    start = torch.full((8,), 2.6, dtype=torch.float64)
    costs: list[float] = []
    found = minimize_projected(cost, start, max_iter=400, callback=lambda i, c: costs.append(c))
    assert bool((torch.tensor(costs).diff() <= 0).all())
    torch.testing.assert_close(found.x, torch.ones_like(start), rtol=0, atol=1e-3)


def test_precision_shape_and_start_at_the_minimum(rng):
    target = torch.rand(2, 3, generator=rng)

    def cost(x):
        return (x - target).square().sum(), 2 * (x - target)

    found = minimize_projected(cost, torch.zeros(2, 3), max_iter=30)
    assert found.x.dtype == torch.float32
    torch.testing.assert_close(found.x, target, rtol=0, atol=1e-5)
    again = minimize_projected(cost, target.clone())
    assert torch.equal(again.x, target)
    assert (again.iterations, again.message) == (0, "no step lowers the cost")
    blank = minimize_projected(lambda x: (x.sum(), torch.ones_like(x)), torch.zeros(4))
    assert torch.equal(blank.x, torch.zeros(4))
