"""Empirical bases of PSFs: algebra of the components, registration, shifts."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from deepinv_astro.physics.functional.psf_basis import (
    psf_basis,
    register_psfs,
    shift_stamp,
)
from deepinv_astro.physics.functional.psf_fit import fit_psf
from deepinv_astro.physics.functional.psf_shapes import airy_psf, gaussian_psf, moffat_psf

SHAPE = (21, 24)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def stars(count=6, **options):
    fwhm = torch.linspace(4.0, 5.0, count, dtype=torch.float64)
    ratio = 0.8 + 0.4 * torch.rand(
        count, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return moffat_psf(SHAPE, fwhm, 2.5, ratio=ratio, **options)


def test_all_components_give_back_every_psf():
    psfs = stars()
    flux = torch.arange(1.0, 7.0)[:, None, None]
    basis = psf_basis(flux * psfs)
    assert basis.components.shape == (5, *SHAPE)
    assert basis.explained == pytest.approx(1.0)
    z = basis.coefficients(psfs)
    torch.testing.assert_close(basis(z), psfs, rtol=0, atol=1e-12)
    # scatter of the coefficients about the mean PSF
    torch.testing.assert_close(z.mean(0), torch.zeros(5).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.T.cov(), basis.covariance, rtol=1e-8, atol=1e-16)
    variances = basis.covariance.diagonal()
    assert bool((variances.diff() <= 0).all())


def test_components_are_orthonormal_and_keep_the_sum():
    basis = psf_basis(stars(), 3)
    flat = basis.components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(flat.sum(1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    z = torch.randn(2, 4, 3, dtype=torch.float64)
    for offset in (None, scalar([0.3, -0.2])):
        psf = basis(0.01 * z, offset=offset)
        assert psf.shape == (2, 4, *SHAPE)
        torch.testing.assert_close(psf.sum((-2, -1)), torch.ones(2, 4).double())


def test_few_components_are_the_best_of_their_number():
    """Eckart and Young: the error left is the sum of the variances left."""
    psfs = stars()
    whole, basis = psf_basis(psfs), psf_basis(psfs, 2)
    error = (basis(basis.coefficients(psfs)) - psfs).square().sum() / 5
    left = whole.covariance.diagonal()[2:].sum()
    torch.testing.assert_close(error, left)
    total = whole.covariance.diagonal().sum()
    assert basis.explained == pytest.approx(1 - float(left / total))


def test_one_before_and_one_after():
    before, after = stars(2)
    basis = psf_basis(torch.stack([before, after]))
    step = (after - before).norm()
    assert basis.components.shape[0] == 1
    assert float(basis.covariance) == pytest.approx(float(step**2) / 2)
    ends = basis(scalar([[0.5], [-0.5]]) * step)
    if float((ends[0] - after).norm()) > float((ends[0] - before).norm()):
        ends = ends.flip(0)  # the sign of a component is free
    torch.testing.assert_close(ends, torch.stack([after, before]), rtol=0, atol=1e-12)


def test_channels_share_coefficients():
    scale = torch.linspace(0.9, 1.1, 5, dtype=torch.float64)
    cubes = airy_psf(SHAPE, scale[:, None] * scalar([2.5, 3.5]))
    basis = psf_basis(cubes, 1)
    assert basis.components.shape == (1, 2, *SHAPE)
    offset = scalar([[0.2, 0.1], [0.0, -0.3], [0.4, 0.0]])
    psf = basis(0.01 * torch.ones(3, 1).double(), offset=offset)
    assert psf.shape == (3, 2, *SHAPE)
    one = basis(scalar([0.01]), offset=offset[1])
    torch.testing.assert_close(psf[1], one)
    assert psf_basis(cubes).coefficients(cubes).shape == (5, 4)


@pytest.mark.parametrize("shape", [(41, 38), (36, 33)])
def test_shift_is_that_of_the_formula(shape):
    offset = scalar([[0.3, -0.45], [1.7, 0.6]])
    found = shift_stamp(gaussian_psf(shape, scalar(3.5)), offset)
    expected = gaussian_psf(shape, scalar(3.5), offset=offset)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_light_does_not_come_back_on_the_other_side():
    edge = torch.zeros(11, 12, dtype=torch.float64)
    edge[:, -2:] = 1.0
    moved = shift_stamp(edge, scalar([0.0, 1.0]))
    torch.testing.assert_close(moved[:, 0], torch.zeros(11).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(moved[:, -1], torch.ones(11).double(), rtol=0, atol=1e-12)


def test_registration_finds_sub_pixel_shifts():
    offset = 1.5 * torch.rand(6, 2, generator=torch.Generator().manual_seed(1)).double() - 0.75
    expected = stars()
    found = register_psfs(500 * stars(offset=offset))
    peak = float(expected.max())
    # a fifth of a pixel alone would make 5 % of the peak
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * peak)
    chromatic = torch.stack([stars(offset=offset), 2 * stars(offset=offset)], 1)
    torch.testing.assert_close(register_psfs(chromatic)[:, 1], found, rtol=0, atol=1e-6)


def test_the_core_of_the_mean_lies_on_the_middle_pixel():
    """Lopsided stars: aligned with each other they would drift from where each core is."""
    tail = gaussian_psf(SHAPE, scalar(7.0), offset=scalar([2.0, 3.0]))
    share = torch.tensor([0.0, 0.0, 0.0, 0.6], dtype=torch.float64)[:, None, None]
    found = register_psfs((1 - share) * gaussian_psf(SHAPE, scalar(4.0)) + share * tail)
    core = found.mean(0)
    weight = torch.where(core > 0.3 * core.max(), 1.0, torch.inf)
    fit = fit_psf(
        core, partial(gaussian_psf, SHAPE), {"fwhm": 4.0}, noise=weight, fixed={"background": 0.0}
    )
    torch.testing.assert_close(fit.values[1:3], torch.zeros(2).double(), rtol=0, atol=1e-3)


def test_unregistered_stars_would_waste_components_on_their_position():
    offset = 0.6 * torch.rand(6, 2, generator=torch.Generator().manual_seed(1)).double() - 0.3
    raw = stars(offset=offset)
    assert psf_basis(raw, 2).explained < 0.98
    assert psf_basis(register_psfs(raw), 2).explained > 0.99


def test_a_star_between_the_measured_ones_is_fitted():
    basis = psf_basis(stars(8), 3)
    truth = moffat_psf(SHAPE, scalar(4.37), 2.5, ratio=1.02, offset=scalar([0.2, -0.1]))
    fit = fit_psf(1000 * truth + 2, basis_model(basis), {"coefficients": torch.zeros(3)}, noise=0.1)
    middle = moffat_psf(SHAPE, scalar(4.37), 2.5, ratio=1.02)
    error = float((fit.psf - middle).abs().max() / middle.max())
    alone = float((basis.mean - middle).abs().max() / middle.max())
    assert error < 0.01
    assert error < alone / 4


def basis_model(basis):
    return lambda coefficients, offset: basis(coefficients, offset=offset)


def test_gradients_and_precision():
    basis = psf_basis(stars()[:, 6:15, 7:15], 2)
    inputs = (0.01 * torch.randn(2, dtype=torch.float64), scalar([0.2, -0.3]))
    assert torch.autograd.gradcheck(
        lambda z, o: basis(z, offset=o), tuple(v.requires_grad_() for v in inputs)
    )
    assert basis(torch.zeros(2)).dtype == torch.float32
    assert register_psfs(stars(2).float()).dtype == torch.float32
    assert psf_basis(stars().float()).mean.dtype == torch.float32


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"two or more stamps.*got \(21, 24\)"):
        psf_basis(stars()[0])
    with pytest.raises(ValueError, match="6 PSFs have 1 to 5 components, got count=6"):
        psf_basis(stars(), 6)
    with pytest.raises(ValueError, match="subtract the background"):
        psf_basis(torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\), got \(3,\)"):
        psf_basis(stars(), 2)(torch.zeros(3))


def test_partial_works_as_a_model():
    basis = psf_basis(stars(), 1)
    model = partial(basis, offset=None)
    assert model(torch.zeros(1)).shape == SHAPE
