"""Edge-preserving smoothness against a sum written with loops and against finite differences."""

from __future__ import annotations

import math

import torch

from deepinv_astro.optim.smoothness import edge_preserving


def looped(x: torch.Tensor, epsilon: torch.Tensor, weight: torch.Tensor) -> float:
    total = 0.0
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                down = float(x[b, i + 1, j] - x[b, i, j]) if i + 1 < x.shape[1] else 0.0
                right = float(x[b, i, j + 1] - x[b, i, j]) if j + 1 < x.shape[2] else 0.0
                e = float(epsilon[i, j])
                total += float(weight[i, j]) * (math.sqrt(down**2 + right**2 + e**2) - e)
    return total


def test_value_equals_looped_sum_and_gradient_finite_differences(rng):
    x = torch.randn(2, 4, 6, generator=rng, dtype=torch.float64)
    epsilon = torch.rand(4, 6, generator=rng, dtype=torch.float64) + 0.1
    weight = torch.rand(4, 6, generator=rng, dtype=torch.float64)
    value, gradient = edge_preserving(x, epsilon, weight)
    assert math.isclose(float(value), looped(x, epsilon, weight), rel_tol=1e-12)
    for place in range(x.numel()):
        move = torch.zeros_like(x)
        move.view(-1)[place] = 1e-5
        slope = (
            edge_preserving(x + move, epsilon, weight)[0]
            - edge_preserving(x - move, epsilon, weight)[0]
        ) / 2e-5
        assert math.isclose(
            float(slope), float(gradient.view(-1)[place]), rel_tol=1e-6, abs_tol=1e-9
        )


def test_constant_costs_nothing_and_large_edges_their_length(rng):
    flat = torch.full((3, 5), 7.0, dtype=torch.float64)
    value, gradient = edge_preserving(flat, 0.1)
    assert float(value) == 0
    assert not gradient.any()
    step = flat.clone()
    step[:, 3:] += 1e6
    assert math.isclose(float(edge_preserving(step, 1.0)[0]), 3 * 1e6, rel_tol=1e-5)


def test_small_differences_are_quadratic():
    x = torch.zeros(1, 2, dtype=torch.float64)
    x[0, 1] = 1e-4
    assert math.isclose(float(edge_preserving(x, 2.0, 3.0)[0]), 3 * 1e-8 / (2 * 2.0), rel_tol=1e-5)
