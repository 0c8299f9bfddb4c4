"""Turned and stretched grids against scipy, the separable scaling and dense matrices."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from deepinv_astro.physics.functional.affine import (
    AffineSampler,
    rotation_matrix,
    stretch_matrix,
    stretch_response,
)
from deepinv_astro.physics.functional.scaling import ScaleSampler
from deepinv_astro.testing import dense_matrix

DOUBLE = {"dtype": torch.float64}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def test_it_is_scipy():
    x, matrix = noise(2, 2, 17, 12), torch.tensor([[[1.1, 0.4], [-0.9, 0.7]]], **DOUBLE)
    matrix = torch.cat([matrix, 2.7 * matrix.mT])
    center = torch.tensor([[4.4, 8.1], [9.0, 2.2]], **DOUBLE)
    y = AffineSampler(matrix, center, (17, 12)).forward(x)
    for b in range(2):
        pixels = np.stack(np.meshgrid(np.arange(17.0), np.arange(12.0), indexing="ij"))
        c = center[b].numpy()[:, None, None]
        grid = c + np.einsum("ij,jhw->ihw", matrix[b].numpy(), pixels - c)
        for channel in range(2):
            expected = map_coordinates(x[b, channel].numpy(), grid, order=3, mode="mirror")
            np.testing.assert_allclose(y[b, channel].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("boundary", ["reflect", "zeros"])
def test_it_is_the_scaling(boundary):
    x, factor = noise(1, 1, 11, 14), torch.tensor([0.4], **DOUBLE)
    center = torch.tensor([[3.3, 9.1]], **DOUBLE)
    matrix = torch.eye(2, **DOUBLE)[None] / factor
    ours = AffineSampler(matrix, center, (11, 14), boundary).forward(x)
    other = ScaleSampler(factor, center, (11, 14), "spline", "none", boundary).forward(x)
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("boundary", ["reflect", "zeros"])
@pytest.mark.parametrize("size", [(6, 5), (2, 7), (1, 4), (1, 1)])
def test_adjoint(boundary, size):
    ratio, angle = torch.tensor([0.6, 1.4], **DOUBLE), torch.tensor([20.0, 110.0], **DOUBLE)
    mirrored = tuple(max(2 * (n - 1), 1) for n in size)
    sampler = AffineSampler(
        rotation_matrix(angle) @ stretch_matrix(ratio, angle),
        torch.tensor([[0.3, 0.2], [0.1, 0.4]], **DOUBLE),
        size,
        boundary,
        stretch_response(ratio, angle, mirrored),
    )
    x = noise(2, 1, *size)
    forward, adjoint = (dense_matrix(f, x) for f in (sampler.forward, sampler.adjoint))
    torch.testing.assert_close(adjoint, forward.mT, rtol=0, atol=1e-13)
    assert float(forward.abs().max()) > 0.1


def test_matrices():
    """Degrees, rows before columns; an axis keeps its length, what is across is divided."""
    turn = rotation_matrix(torch.tensor([30.0], **DOUBLE))[0]
    torch.testing.assert_close(turn @ turn @ turn, rotation_matrix(torch.tensor(90.0, **DOUBLE)))
    q, phi = torch.tensor(0.4, **DOUBLE), torch.tensor(25.0, **DOUBLE)
    matrix, radians = stretch_matrix(q, phi), torch.deg2rad(phi)
    axis = torch.stack([radians.cos(), -radians.sin()])  # North is up, East left
    beside = torch.stack([radians.sin(), radians.cos()])
    torch.testing.assert_close(matrix @ axis, axis)
    torch.testing.assert_close(matrix @ beside, beside / q)


def test_response_is_neutral_where_nothing_is_compressed():
    ratio, angle = torch.tensor([1.0, 1.7], **DOUBLE), torch.tensor([33.0, 90.0], **DOUBLE)
    torch.testing.assert_close(
        stretch_response(ratio, angle, (6, 8)), torch.ones(2, 6, 5, **DOUBLE)
    )
    low = stretch_response(torch.tensor([0.5], **DOUBLE), torch.tensor([90.0], **DOUBLE), (8, 8))
    assert float(low[0, 4].max()) < 0.02  # varies along rows, across an axis to the East
    torch.testing.assert_close(low[0, 0], torch.ones(5, **DOUBLE))
