"""PSFs given by a formula against astropy, error functions and their own widths."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from astropy.modeling.models import AiryDisk2D, Gaussian2D, Moffat2D

from deepinv_astro.physics.functional.psf import half_maximum_width
from deepinv_astro.physics.functional.psf_shapes import (
    airy_psf,
    gaussian_psf,
    moffat_alpha,
    moffat_fwhm,
    moffat_psf,
)

SHAPE = (13, 16)  # even columns: the star is at column 8
OFFSET = torch.tensor([0.3, -0.45], dtype=torch.float64)
FWHM = 2 * math.sqrt(2 * math.log(2))


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def sampled(model):
    """Model of astropy on the pixels, x along columns, of unit sum."""
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    values = model(column.astype(float), row.astype(float))
    return values / values.sum()


def test_elliptical_gaussian_is_that_of_astropy():
    along, across = 3.1 / math.sqrt(0.7), 3.1 * math.sqrt(0.7)
    model = Gaussian2D(1, 7.55, 6.3, along / FWHM, across / FWHM, math.radians(25))
    found = gaussian_psf(SHAPE, scalar(3.1), ratio=0.7, angle=25.0, offset=OFFSET, oversampling=1)
    np.testing.assert_allclose(found, sampled(model), atol=1e-14)


def test_moffat_is_that_of_astropy():
    alpha = moffat_alpha(scalar(3.1), scalar(2.3))
    model = Moffat2D(1, 7.55, 6.3, float(alpha), 2.3)
    assert model.fwhm == pytest.approx(3.1)
    found = moffat_psf(SHAPE, scalar(3.1), 2.3, offset=OFFSET, oversampling=1)
    np.testing.assert_allclose(found, sampled(model), atol=1e-14)
    torch.testing.assert_close(moffat_fwhm(alpha, scalar(2.3)), scalar(3.1))


def test_airy_is_that_of_astropy():
    zero = scipy.special.jn_zeros(1, 1)[0] / math.pi
    found = airy_psf(SHAPE, scalar(2.7), offset=OFFSET, oversampling=1)
    np.testing.assert_allclose(found, sampled(AiryDisk2D(1, 7.55, 6.3, 2.7 * zero)), atol=1e-11)


def test_obstructed_airy_is_the_closed_form():
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    v = math.pi * np.hypot(row - 6.3, column - 7.55) / 2.7
    amplitude = 2 * scipy.special.j1(v) / v - 0.3 * 2 * scipy.special.j1(0.3 * v) / v
    expected = amplitude**2 / (amplitude**2).sum()
    found = airy_psf(SHAPE, scalar(2.7), obscuration=0.3, offset=OFFSET, oversampling=1)
    np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize(("fwhm", "error"), [(1.5, 3e-6), (1.0, 1e-4)])
def test_pixels_of_a_narrow_gaussian_are_error_functions(fwhm, error):
    edges = [
        torch.arange(n + 1.0).double() - 0.5 - n // 2 - o
        for n, o in zip(SHAPE, OFFSET, strict=True)
    ]
    down, across = (torch.erf(e * FWHM / fwhm / math.sqrt(2)).diff() for e in edges)
    expected = down[:, None] * across
    expected = expected / expected.sum()
    found = gaussian_psf(SHAPE, scalar(fwhm), offset=OFFSET)
    torch.testing.assert_close(found, expected, atol=error * float(expected.max()), rtol=0)
    middle = gaussian_psf(SHAPE, scalar(fwhm), offset=OFFSET, oversampling=1)
    assert float((middle - expected).abs().max()) > 0.05 * float(expected.max())


@pytest.mark.parametrize(
    ("psf", "profile"),
    [
        (partial(moffat_psf, beta=2.0), lambda r2: (1 + r2 * 4 * (2**0.5 - 1) / 1.5**2) ** -2.0),
        (
            airy_psf,
            lambda r2: (lambda v: (2 * scipy.special.j1(v) / v) ** 2)(math.pi / 1.5 * r2**0.5),
        ),
    ],
)
def test_pixels_are_integrals(psf, profile):
    """Ratio of two pixels, against adaptive quadrature."""
    pixels = [
        scipy.integrate.dblquad(
            lambda c, r: profile(r**2 + c**2), a - 0.5, a + 0.5, b - 0.5, b + 0.5, epsabs=1e-10
        )[0]
        for a, b in ((-0.2, 0.1), (0.8, 2.1))
    ]
    star = psf((9, 9), scalar(1.5), offset=torch.tensor([0.2, -0.1], dtype=torch.float64))
    assert float(star[5, 6] / star[4, 4]) == pytest.approx(pixels[1] / pixels[0], rel=3e-5)


def test_width_is_the_full_width_at_half_maximum():
    for psf in (gaussian_psf, partial(moffat_psf, beta=2.5)):
        assert half_maximum_width(psf((61, 57), 12.0)) == pytest.approx(12.0, rel=0.01)
        stretched = psf((61, 57), 12.0, ratio=0.6, angle=30.0)
        assert half_maximum_width(stretched) == pytest.approx(12.0, rel=0.01)
    # 1.029 lambda/D for Airy
    assert half_maximum_width(airy_psf((61, 57), 12.0)) == pytest.approx(1.029 * 12, rel=0.01)


def test_long_axis_points_from_columns_to_rows():
    psf = gaussian_psf((31, 31), scalar(5.0), ratio=0.5, angle=30.0)
    axis = torch.arange(31, dtype=torch.float64) - 15
    row_row = (psf * axis[:, None] ** 2).sum()
    row_column = (psf * axis[:, None] * axis).sum()
    column_column = (psf * axis**2).sum()
    turn = 0.5 * torch.atan2(2 * row_column, column_column - row_row)
    assert math.degrees(float(turn)) == pytest.approx(30, abs=0.1)


def test_offset_moves_the_centroid_along_its_own_axis():
    psf = gaussian_psf((21, 30), scalar(2.5), offset=OFFSET)
    assert float((psf.sum(1) * (torch.arange(21) - 10)).sum()) == pytest.approx(0.3, abs=1e-6)
    assert float((psf.sum(0) * (torch.arange(30) - 15)).sum()) == pytest.approx(-0.45, abs=1e-6)


def test_light_beyond_the_stamp_of_a_moffat_is_as_stated():
    small, large = (moffat_psf((n, n), scalar(4.0), 2.0, oversampling=2) for n in (41, 401))
    fraction = float(small.max() / large.max()) - 1
    alpha = float(moffat_alpha(scalar(4.0), scalar(2.0)))
    assert fraction == pytest.approx((20.5 / alpha) ** -2, rel=0.3)


CASES = {
    "gaussian": lambda w, q, t, o: gaussian_psf((5, 6), w, ratio=q, angle=t, offset=o),
    "moffat": lambda w, q, t, o: moffat_psf((5, 6), w, 1 + w, ratio=q, angle=t, offset=o),
    "airy": lambda w, q, t, o: airy_psf((5, 6), w, obscuration=q / 2, offset=o),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_unit_sum_and_broadcast(name):
    psf = CASES[name]
    values = (scalar([[2.0], [3.0]]), scalar([0.5, 0.6, 0.8]), scalar(20.0), OFFSET)
    many = psf(*values)
    assert many.shape == (2, 3, 5, 6)
    torch.testing.assert_close(many.sum((-2, -1)), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(many[1, 2], psf(scalar(3.0), scalar(0.8), *values[2:]))
    inputs = tuple(v.clone().requires_grad_() for v in values)
    if name == "airy":
        inputs = (*inputs[:2], values[2], inputs[3])
    assert torch.autograd.gradcheck(psf, inputs)
    single = psf(*(v.float() for v in values))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), many, atol=1e-6, rtol=1e-4)


def test_a_centred_star_has_finite_gradients():
    w = scalar(2.0).requires_grad_()
    offset = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for oversampling in (1, 3):  # a node on the star itself
        airy_psf((5, 5), w, offset=offset, oversampling=oversampling).square().sum().backward()
    assert torch.isfinite(w.grad)
    assert torch.isfinite(offset.grad).all()


def test_numbers_give_the_default_precision_and_integers_are_taken():
    assert gaussian_psf((3, 4), 2.0).dtype == torch.get_default_dtype()
    assert gaussian_psf((3, 4), torch.tensor(2)).dtype == torch.get_default_dtype()


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"fwhm must be positive, got -1\.0"):
        gaussian_psf((5, 5), -1.0)
    with pytest.raises(ValueError, match="beta must be positive"):
        moffat_psf((5, 5), 2.0, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"obscuration .* got 1\.0"):
        airy_psf((5, 5), 2.0, obscuration=1.0)
    with pytest.raises(ValueError, match=r"offset .* got \(3,\)"):
        gaussian_psf((5, 5), 2.0, offset=torch.zeros(3))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        gaussian_psf((5, 5), 2.0, oversampling=0)
    with pytest.raises(ValueError, match=r"rows and columns of a stamp, got \(0, 5\)"):
        gaussian_psf((0, 5), 2.0)
