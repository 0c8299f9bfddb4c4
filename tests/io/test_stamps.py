"""Stamps of stars: fitted position, shift without wrapping, crops, aperture fluxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepinv_astro.io.psf import flux_from_aperture
from deepinv_astro.io.stamps import (
    Core,
    center_stamp,
    crop_center,
    fit_core,
    shift_image,
    trimmed_side,
)
from deepinv_astro.physics.functional.aperture import aperture_flux, aperture_weights


def gaussian(shape, center, sigma=2.0):
    r, c = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((r - center[0]) ** 2 + (c - center[1]) ** 2) / (2 * sigma**2))


@pytest.mark.parametrize("center", [(9.3, 17.6), (12.0, 11.5), (6.49, 20.51)])
def test_fit_finds_center_and_width_over_background(center):
    stamp = 50 * gaussian((24, 31), center, 1.8) + 3.0
    core = fit_core(stamp)
    np.testing.assert_allclose(core[:2], center, atol=1e-6)
    np.testing.assert_allclose(core.fwhm, 1.8 * 2 * math.sqrt(2 * math.log(2)), rtol=1e-6)
    np.testing.assert_allclose([core.peak, core.level], [50, 3], rtol=1e-5)


def test_fit_is_not_fooled_by_hot_pixel_or_by_halo_of_a_neighbour():
    stamp = 50 * gaussian((33, 41), (15.3, 20.7)) + 10 * gaussian((33, 41), (27, 35))
    stamp[3, 4] = 55.0
    core = fit_core(stamp)
    np.testing.assert_allclose(core[:2], (15.3, 20.7), atol=0.01)


def test_fit_is_accurate_with_noise(rng):
    generator = np.random.default_rng(5)
    errors = []
    for _ in range(20):
        center = generator.uniform(12, 16, 2)
        noisy = 1000 * gaussian((29, 30), center) + generator.normal(0, 5, (29, 30))
        errors.append(np.subtract(fit_core(noisy)[:2], center))
    # Cramer-Rao: sigma_noise / peak * sqrt(2 / pi) = .004 px per axis.
    assert np.std(errors) < 0.008


@pytest.mark.parametrize("stamp", [-gaussian((9, 9), (4, 4)), np.zeros((9, 11))])
def test_fit_refuses_what_is_no_star(stamp):
    with pytest.raises(ValueError, match="not positive"):
        fit_core(stamp)


@pytest.mark.parametrize("shape", [(24, 31), (25, 30)])
def test_shift_is_exact_for_a_band_limited_star(shape):
    shift = (0.37, -0.45)
    moved = shift_image(gaussian(shape, (11, 14)), *shift)
    np.testing.assert_allclose(moved, gaussian(shape, (11.37, 13.55)), atol=1e-6)


def test_shift_does_not_wrap_round():
    ramp = np.linspace(0, 100, 20)[None, :] * np.ones((13, 1))
    moved = shift_image(ramp, 0.0, 0.5)
    # A periodic shift of this ramp would ring by tens near the sides.
    np.testing.assert_allclose(moved[:, 2:-2], ramp[:, 2:-2] - 0.5 * 100 / 19, atol=0.5)
    star = gaussian((20, 22), (1, 11), 1.0)
    assert shift_image(star, -0.5, 0.0)[-4:].max() < 1e-3


def test_center_stamp_puts_the_star_in_the_middle_of_an_odd_stamp():
    for shape in [(24, 31), (30, 30), (27, 22)]:
        stamp = gaussian(shape, (13.4, 12.7), 1.7)
        cut = center_stamp(stamp, fit_core(stamp))
        side = cut.shape[0]
        assert cut.shape == (side, side)
        assert side % 2 == 1
        np.testing.assert_allclose(fit_core(cut)[:2], (side // 2, side // 2), atol=1e-4)
        assert side == 2 * min(13, shape[0] - 14, shape[1] - 14) + 1


def test_crop_and_trim_keep_the_flux_asked_for():
    stamps = np.stack([gaussian((41, 41), (20, 20), s) for s in (1.0, 3.0)])
    side = trimmed_side(stamps, 0.99)
    kept = crop_center(stamps, side).sum((1, 2)) / stamps.sum((1, 2))
    smaller = crop_center(stamps, side - 2).sum((1, 2)) / stamps.sum((1, 2))
    assert kept.min() >= 0.99 > smaller.min()


def test_core_is_a_named_tuple_of_floats():
    assert all(isinstance(v, float) for v in fit_core(gaussian((15, 17), (7, 8))))
    assert Core._fields == ("row", "column", "fwhm", "peak", "level")


@pytest.mark.parametrize(
    ("center", "radius"),
    [((5.0, 7.0), 3.0), ((4.3, 6.9), 0.3), ((5.5, 6.5), 2.4), ((0.2, 12.8), 2)],
)
def test_aperture_weights_against_fine_oversampling(center, radius):
    shape, n = (11, 14), 100
    fine_r = (np.arange(shape[0] * n) + 0.5) / n - 0.5
    fine_c = (np.arange(shape[1] * n) + 0.5) / n - 0.5
    inside = np.hypot(fine_r[:, None] - center[0], fine_c[None] - center[1]) <= radius
    oracle = inside.reshape(shape[0], n, shape[1], n).mean((1, 3))
    weights = aperture_weights(shape, center, radius).numpy()
    np.testing.assert_allclose(weights, oracle, atol=2e-3)


def test_aperture_weights_sum_to_the_area_and_are_differentiable_input():
    assert aperture_weights((20, 25), (9.1, 12.7), 6.3).sum() == pytest.approx(math.pi * 6.3**2)
    image = torch.rand(2, 20, 25, dtype=torch.float64, requires_grad=True)
    flux = aperture_flux(image, (9.1, 12.7), 6.3)
    assert flux.shape == (2,)
    (gradient,) = torch.autograd.grad(flux[1], image)
    torch.testing.assert_close(gradient[1], aperture_weights((20, 25), (9.1, 12.7), 6.3))
    assert gradient[0].abs().max() == 0
    assert aperture_flux(image.float(), (9, 12), 2.0).dtype == torch.float32


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_aperture_refuses_radius(radius):
    with pytest.raises(ValueError, match="radius"):
        aperture_weights((5, 6), (2, 3), radius)


def test_flux_from_aperture_inverts_the_aperture_of_a_gaussian():
    sigmas, diameters = (1.5, 2.2), (3.0, 5.0)
    psf = np.stack([gaussian((41, 41), (20, 20), s) / (2 * math.pi * s**2) for s in sigmas])
    # A pixel holds the value at its centre, so the closed form is met to the pixel's curvature.
    inside = [
        1 - math.exp(-((d / 2) ** 2) / (2 * s**2)) for s, d in zip(sigmas, diameters, strict=True)
    ]
    total = flux_from_aperture(psf, np.multiply([100.0, 300.0], inside), np.array(diameters))
    np.testing.assert_allclose(total, [100, 300], rtol=0.03)
