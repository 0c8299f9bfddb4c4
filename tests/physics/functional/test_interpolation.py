"""Cubic B-splines against scipy.interpolate and scipy.ndimage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import torch
from torch import Tensor

from deepinv_astro import testing
from deepinv_astro.physics.functional.interpolation import (
    SplineGrid,
    SplineSampler,
    spline_prefilter_response,
    spline_weights,
)

F64 = torch.float64
SIZE, FRAMES, SAMPLES = (9, 6), 3, (4, 5)


@pytest.fixture
def positions(rng: torch.Generator) -> Tensor:
    """Also beyond all edges."""
    unit = torch.rand(FRAMES, 2, *SAMPLES, generator=rng, dtype=F64)
    return unit * torch.tensor([13.0, 10.0], dtype=F64).view(1, 2, 1, 1) - 2


def grid(shared: bool = True, dtype: torch.dtype = F64) -> SplineGrid:
    return SplineGrid(SIZE, (-1, 0), (5, 4), shared, dtype)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_weights_are_those_of_the_b_spline(order):
    spline = scipy.interpolate.BSpline.basis_element(np.arange(-2, 3), extrapolate=False)
    fraction = torch.tensor([0.03, 0.4, 0.77], dtype=F64)
    weights = spline_weights(fraction, order)
    for f, row in zip(fraction.tolist(), weights.tolist(), strict=True):
        expected = (
            spline.derivative(order)(f - np.arange(-1, 3))
            if order
            else spline(f - np.arange(-1, 3))
        )
        np.testing.assert_allclose(row, np.nan_to_num(expected), atol=1e-12)


def test_weights_keep_the_precision():
    assert spline_weights(torch.tensor([[0.25]])).dtype == torch.float32
    assert spline_weights(torch.zeros(2, 3, dtype=F64)).shape == (2, 3, 4)


def test_prefilter_is_that_of_scipy(rng):
    image = torch.rand(*SIZE, generator=rng, dtype=F64)
    response = spline_prefilter_response(SIZE, image)
    found = torch.fft.irfft2(torch.fft.rfft2(image) * response, s=SIZE)
    expected = scipy.ndimage.spline_filter(image.numpy(), order=3, mode="grid-wrap")
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keep", [True, False])
def test_sampler_is_that_of_scipy(positions, keep, rng):
    coefficients = torch.rand(FRAMES, *SIZE, generator=rng, dtype=F64)
    found = SplineSampler(positions, grid(shared=False), keep).forward(coefficients)
    expected = np.stack(
        [
            scipy.ndimage.map_coordinates(c, p, order=3, mode="grid-wrap", prefilter=False)
            for c, p in zip(coefficients.numpy(), positions.numpy(), strict=True)
        ]
    )
    row, column = positions.numpy().transpose(1, 0, 2, 3)
    outside = (row < -1.5) | (row > 5.5) | (column < -0.5) | (column > 4.5)
    assert 0 < outside.sum() < outside.size
    expected[outside] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_adjoint_is_the_transpose(positions, keep, shared):
    sampler = SplineSampler(positions, grid(shared), keep)
    images = torch.zeros(1 if shared else FRAMES, *SIZE, dtype=F64)
    forward = testing.dense_matrix(sampler.forward, images)
    adjoint = testing.dense_matrix(sampler.adjoint, torch.zeros(FRAMES, *SAMPLES, dtype=F64))
    torch.testing.assert_close(forward.mT, adjoint, rtol=0, atol=1e-14)
    assert float(forward.abs().max()) > 0.2


def test_far_positions_read_zero():
    far = torch.full((1, 2, 1, 1), 1e12, dtype=F64)
    sampler = SplineSampler(far, grid(), keep=True)
    assert sampler.forward(torch.ones(1, *SIZE, dtype=F64)).item() == 0.0


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_both_directions(positions, shared, rng):
    images = torch.rand(1 if shared else FRAMES, *SIZE, generator=rng, dtype=F64)
    samples = torch.rand(FRAMES, *SAMPLES, generator=rng, dtype=F64)
    where = positions.requires_grad_()

    def forward(images: Tensor, where: Tensor) -> Tensor:
        return SplineSampler(where, grid(shared), keep=False).forward(images)

    def adjoint(samples: Tensor, where: Tensor) -> Tensor:
        return SplineSampler(where, grid(shared), keep=False).adjoint(samples)

    assert torch.autograd.gradcheck(forward, (images.requires_grad_(), where), fast_mode=True)
    assert torch.autograd.gradcheck(adjoint, (samples.requires_grad_(), where), fast_mode=True)
    assert torch.autograd.gradgradcheck(forward, (images, where), fast_mode=True)
    assert torch.autograd.gradgradcheck(adjoint, (samples, where), fast_mode=True)


def test_gradient_through_kept_tables(positions, rng):
    images = torch.rand(1, *SIZE, generator=rng, dtype=F64).requires_grad_()
    samples = torch.rand(FRAMES, *SAMPLES, generator=rng, dtype=F64).requires_grad_()
    sampler = SplineSampler(positions, grid(), keep=True)
    assert torch.autograd.gradcheck(sampler.forward, (images,))
    assert torch.autograd.gradcheck(sampler.adjoint, (samples,))
