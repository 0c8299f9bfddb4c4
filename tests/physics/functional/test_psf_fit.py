"""Fits of PSFs: exact recovery, errors that cover, what is not determined, a real star."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from astropy.io import fits

from deepinv_astro.physics.functional.adaptive_optics import ResidualPhase, adaptive_optics_psf
from deepinv_astro.physics.functional.psf_fit import fit_psf
from deepinv_astro.physics.functional.psf_shapes import airy_psf, gaussian_psf, moffat_psf
from deepinv_astro.physics.functional.pupil import PupilShape, telescope_pupil
from deepinv_astro.physics.functional.pupil_psf import pupil_psf, wavefront, zernike_basis

SHAPE = (17, 20)
OFFSET = torch.tensor([0.3, -0.45], dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def test_exact_data_give_back_the_parameters():
    truth = moffat_psf(SHAPE, scalar(3.2), 2.5, ratio=0.8, angle=30.0, offset=OFFSET)
    fit = fit_psf(
        700 * truth + 3,
        partial(moffat_psf, SHAPE),
        {"fwhm": 4.0, "beta": 3.5, "ratio": 1.0, "angle": 0.0},
        noise=1.0,
        bounds={"ratio": (0.2, 5.0), "beta": (1.01, 30.0)},
    )
    assert fit.converged
    assert fit.names == ("fwhm", "beta", "ratio", "angle", "row", "column", "flux", "background")
    expected = scalar([3.2, 2.5, 0.8, 30.0, 0.3, -0.45, 700.0, 3.0])
    values = fit.values.clone()
    values[3] %= 180
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fit.model, 700 * truth + 3, rtol=0, atol=1e-5)
    centred = moffat_psf(SHAPE, scalar(3.2), 2.5, ratio=0.8, angle=30.0)
    torch.testing.assert_close(fit.psf, centred, rtol=0, atol=1e-7)
    assert fit["beta"] == (float(fit.values[1]), float(fit.std[1]))
    assert not fit.at_bound
    assert not fit.undetermined


def test_covariance_is_the_inverse_of_the_fisher_information():
    """Derivatives by finite differences, noise that differs from pixel to pixel."""
    truth = scalar([3.0, 0.3, -0.45, 500.0, 2.0])
    sigma = 1 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def image(v):
        return v[3] * gaussian_psf(SHAPE, v[0], offset=v[1:3]) + v[4]

    steps = 1e-4 * torch.eye(5, dtype=torch.float64)
    slopes = torch.stack([(image(truth + h) - image(truth - h)).flatten() / 2e-4 for h in steps])
    expected = torch.linalg.inv((slopes / sigma.flatten() ** 2) @ slopes.T)
    fit = fit_psf(image(truth), partial(gaussian_psf, SHAPE), {"fwhm": 2.5}, noise=sigma)
    torch.testing.assert_close(fit.covariance, expected, rtol=1e-5, atol=1e-12)


def test_unknown_noise_is_that_of_the_residuals():
    clean = 500 * gaussian_psf(SHAPE, scalar(3.0), offset=OFFSET)
    star = clean + 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).double()
    unit, unknown = (
        fit_psf(star, partial(gaussian_psf, SHAPE), {"fwhm": 2.9}, noise=n) for n in (1.0, None)
    )
    variance = float((star - unit.model).square().sum()) / (17 * 20 - 5)
    assert unit.reduced_chi2 == pytest.approx(variance)
    assert variance == pytest.approx(4.0, rel=0.2)
    assert unknown.reduced_chi2 == 1.0
    torch.testing.assert_close(
        unknown.covariance, variance * unit.covariance, rtol=1e-6, atol=1e-12
    )


def coverage(psf, start, truth, level, draws, **options):
    """Share of draws within one standard deviation, mean and scatter in standard deviations."""
    generator = torch.Generator().manual_seed(0)
    clean = 1000 * psf(**truth, offset=OFFSET) + 1
    pulls = []
    for _ in range(draws):
        error = level * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        fit = fit_psf(clean + error, psf, start, **options)
        values = torch.cat([torch.as_tensor(v).double().flatten() for v in truth.values()])
        expected = torch.cat([values, OFFSET, scalar([1000.0, 1.0])])
        pulls.append((fit.values - expected) / fit.std)
    return torch.stack(pulls)


def assert_covers(pulls):
    within = (pulls.abs() < 1).double()
    assert float(within.mean()) == pytest.approx(0.683, abs=0.03)
    # 200 draws: the share of one parameter has a standard deviation of .033
    assert float((within.mean(0) - 0.683).abs().max()) < 0.1
    assert float(pulls.mean(0).abs().max()) < 0.3
    assert float((pulls.std(0) - 1).abs().max()) < 0.15


@pytest.mark.parametrize("noise", [2.0, pytest.param(None, marks=pytest.mark.slow)])
def test_errors_cover_the_truth_68_percent_of_the_time(noise):
    psf, truth = partial(gaussian_psf, (11, 12), oversampling=1), {"fwhm": scalar(3.0)}
    assert_covers(coverage(psf, {"fwhm": 2.9}, truth, 2.0, 200, noise=noise))


@pytest.mark.slow
def test_errors_of_a_moffat_cover_too():
    psf, truth = partial(moffat_psf, SHAPE), {"fwhm": scalar(3.0), "beta": scalar(3.0)}
    bounds = {"beta": (1.01, 30.0)}
    start = {"fwhm": 2.6, "beta": 4.0}
    assert_covers(coverage(psf, start, truth, 1.5, 200, noise=1.5, bounds=bounds))


def test_zernike_coefficients_of_a_known_pupil():
    """Focal-plane wavefront sensing; an even mode has no sign with a symmetric pupil."""
    pupil, modes = telescope_pupil(32, PupilShape(0.2)), zernike_basis(4, 32, first=4)

    def psf(a, sampling, offset):
        return pupil_psf((21, 24), pupil, sampling, phase=wavefront(a, modes), offset=offset)

    truth = {"a": scalar([0.3, -0.1, 0.2, 0.15]), "sampling": scalar(2.6)}
    start = {"a": scalar([0.2, -0.2, 0.1, 0.0]), "sampling": 2.5}
    clean = 1e4 * psf(**truth, offset=OFFSET)
    noise = 0.5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    fit = fit_psf(clean + noise, psf, start, noise=0.5)
    assert fit.names[:5] == ("a[0]", "a[1]", "a[2]", "a[3]", "sampling")
    pulls = (fit.values[:5] - torch.cat([truth["a"], truth["sampling"][None]])) / fit.std[:5]
    assert float(pulls.abs().max()) < 3
    assert float(fit.std[:4].max()) < 0.01
    assert fit.reduced_chi2 == pytest.approx(1.0, abs=0.2)
    assert fit.parameters["a"].shape == (4,)


def test_fried_parameter_behind_adaptive_optics():
    pupil = telescope_pupil(24)

    def psf(fried, core_variance, offset):
        residual = ResidualPhase(fried, core_variance, 0.8, 1.6)
        return adaptive_optics_psf((41, 40), pupil, 2.0, residual, 6.0, offset=offset)

    truth = {"fried": scalar(0.12), "core_variance": scalar(0.6)}
    star = 1e5 * psf(**truth, offset=OFFSET) + 2
    star += torch.randn(star.shape, generator=torch.Generator().manual_seed(3))
    bounds = {"fried": (0.01, 1.0), "core_variance": (0.0, 5.0)}
    fit = fit_psf(star, psf, {"fried": 0.2, "core_variance": 0.2}, noise=1.0, bounds=bounds)
    assert float(((fit.values[:2] - scalar([0.12, 0.6])) / fit.std[:2]).abs().max()) < 3
    assert float(fit.std[0]) < 0.01


def test_channels_share_parameters_and_position():
    wavelength = scalar([1.0, 1.3, 1.6])
    flux, level = scalar([500.0, 700.0, 900.0]), scalar([1.0, -2.0, 0.5])
    truth = airy_psf(SHAPE, 2.4 * wavelength, obscuration=0.2, offset=OFFSET)
    cube = flux[:, None, None] * truth + level[:, None, None]

    def psf(scale, obscuration, offset):
        return airy_psf(SHAPE, scale * wavelength, obscuration=obscuration, offset=offset)

    bounds = {"obscuration": (0.0, 0.9)}
    fit = fit_psf(cube, psf, {"scale": 2.0, "obscuration": 0.1}, noise=1.0, bounds=bounds)
    assert fit.names[4:] == (
        *(f"flux[{c}]" for c in range(3)),
        *(f"background[{c}]" for c in range(3)),
    )
    expected = torch.cat([scalar([2.4, 0.2]), OFFSET, flux, level])
    torch.testing.assert_close(fit.values, expected, rtol=1e-5, atol=1e-5)
    assert fit.psf.shape == (3, *SHAPE)


def test_bad_pixels_are_left_out_and_values_can_be_fixed():
    star = 300 * gaussian_psf(SHAPE, scalar(3.0), offset=OFFSET)
    noise = torch.ones(SHAPE, dtype=torch.float64)
    spoilt = star.clone()
    spoilt[8, 10] = 1e5  # a hot pixel in the core
    noise[8, 10] = math.inf
    model = partial(gaussian_psf, SHAPE)
    fit = fit_psf(spoilt, model, {"fwhm": 2.0}, noise=noise, fixed={"background": 0.0, "row": 0.3})
    assert fit.names == ("fwhm", "column", "flux")
    torch.testing.assert_close(fit.values, scalar([3.0, -0.45, 300.0]), rtol=1e-6, atol=1e-6)
    assert fit.reduced_chi2 < 1e-6


def test_a_parameter_at_its_bound_is_named_and_has_no_error():
    star = 300 * moffat_psf(SHAPE, scalar(3.0), 2.0, offset=OFFSET)
    start, bounds = {"fwhm": 3.0, "beta": 4.0}, {"beta": (3.0, 10.0)}
    fit = fit_psf(star, partial(moffat_psf, SHAPE), start, noise=1.0, bounds=bounds)
    assert fit.at_bound == ("beta",)
    assert math.isnan(fit["beta"][1])
    held = fit_psf(star, partial(moffat_psf, SHAPE, beta=3.0), {"fwhm": 3.0}, noise=1.0)
    kept = [0, 2, 3, 4, 5]
    torch.testing.assert_close(fit.covariance[kept][:, kept], held.covariance, rtol=1e-4, atol=1e-9)


def test_what_the_data_do_not_determine_is_named():
    def psf(a, b, idle, fwhm, offset):
        return gaussian_psf(SHAPE, fwhm + a - b, offset=offset) + 0 * idle

    star = 300 * gaussian_psf(SHAPE, scalar(3.0), offset=OFFSET)
    start = {"a": 0.1, "b": 0.2, "idle": 1.0, "fwhm": 2.5}
    fit = fit_psf(star, psf, start, noise=1.0)
    assert fit.undetermined == ("a", "b", "idle", "fwhm")
    assert torch.isinf(fit.std[:4]).all()
    alone = fit_psf(star, partial(gaussian_psf, SHAPE), {"fwhm": 2.5}, noise=1.0)
    torch.testing.assert_close(
        fit.covariance[4:, 4:], alone.covariance[1:, 1:], rtol=1e-3, atol=1e-9
    )


def test_a_star_two_pixels_off_in_single_precision():
    offset = torch.tensor([-1.8, 1.6])
    star = 300 * gaussian_psf(SHAPE, torch.tensor(2.0), offset=offset) + 10
    fit = fit_psf(star, partial(gaussian_psf, SHAPE), {"fwhm": 3.0})
    torch.testing.assert_close(fit.values[1:3], offset.double(), rtol=0, atol=1e-4)
    assert fit.values.dtype == torch.float64


def test_wrong_input_is_refused():
    star, model = torch.rand(SHAPE), partial(gaussian_psf, SHAPE)
    with pytest.raises(ValueError, match="'flux'"):
        fit_psf(star, model, {"flux": 1.0})
    with pytest.raises(ValueError, match="'beta'"):
        fit_psf(star, model, {"fwhm": 1.0}, bounds={"beta": (1.0, 2.0)})
    with pytest.raises(ValueError, match="'fwhm'"):
        fit_psf(star, model, {"fwhm": 1.0}, fixed={"fwhm": 2.0})
    with pytest.raises(ValueError, match="guess 1 of fwhm is out of its bounds"):
        fit_psf(star, model, {"fwhm": 1.0}, bounds={"fwhm": (2.0, 3.0)})
    with pytest.raises(ValueError, match=r"shape \(5, 5\), the data are \(17, 20\)"):
        fit_psf(star, partial(gaussian_psf, (5, 5)), {"fwhm": 1.0})
    with pytest.raises(ValueError, match="must be positive in every pixel"):
        fit_psf(star, model, {"fwhm": 1.0}, noise=0.0)
    with pytest.raises(ValueError, match="noise to infinity"):
        fit_psf(torch.full(SHAPE, torch.nan), model, {"fwhm": 1.0})
    with pytest.raises(ValueError, match="4 pixels cannot determine 5"):
        fit_psf(torch.rand(2, 2), partial(gaussian_psf, (2, 2)), {"fwhm": 1.0})


@pytest.fixture(scope="module")
def naco(data_root):
    """Off-axis PSF of VLT/NACO at L', unit sum."""
    stamp = fits.getdata(data_root / "naco_betapic" / "naco_betapic_psf.fits").astype(np.float64)
    return torch.from_numpy(stamp / stamp.sum())


def misfit(stamp, fit):
    return float((stamp - fit.model).norm() / stamp.norm())


def test_naco_star_is_better_described_by_optics_than_by_formulas(naco):
    shape = (39, 39)
    moffat = fit_psf(
        naco,
        partial(moffat_psf, shape, oversampling=2),
        {"fwhm": 4.5, "beta": 2.5},
        bounds={"fwhm": (1.0, 20.0), "beta": (1.01, 20.0)},
    )
    airy = fit_psf(
        naco,
        partial(airy_psf, shape, oversampling=2),
        {"sampling": 4.0, "obscuration": 0.2},
        bounds={"sampling": (2.0, 8.0), "obscuration": (0.0, 0.5)},
    )
    pupil, modes = telescope_pupil(32), zernike_basis(12, 32, first=4)

    def aberrated(sampling, a, offset):
        return pupil_psf(shape, pupil, sampling, phase=wavefront(a, modes), offset=offset)

    start = {"sampling": 4.3, "a": torch.full((12,), 0.05)}
    optics = fit_psf(naco, aberrated, start, bounds={"sampling": (2.0, 8.0)})
    assert misfit(naco, moffat) == pytest.approx(0.19, abs=0.02)
    assert misfit(naco, airy) == pytest.approx(0.21, abs=0.02)
    assert misfit(naco, optics) < 0.125
    assert max(abs(fit["row"][0]) for fit in (moffat, airy, optics)) < 0.1
    assert optics["sampling"][0] == pytest.approx(4.4, abs=0.3)


@pytest.mark.slow
def test_naco_star_needs_a_halo_and_static_aberrations(naco):
    shape, pupil, modes = (39, 39), telescope_pupil(32), zernike_basis(12, 32, first=4)

    def long(sampling, a, offset, **values):
        residual = ResidualPhase(**values)
        phase = wavefront(a, modes)
        return adaptive_optics_psf(
            shape, pupil, sampling, residual, 7.0, phase=phase, offset=offset
        )

    start = {"fried": 0.15, "core_variance": 0.2, "core_width": 0.8, "core_slope": 1.5}
    bounds = {
        "sampling": (2.0, 8.0),
        "fried": (0.01, 2.0),
        "core_variance": (0.0, 5.0),
        "core_width": (0.1, 6.0),
        "core_slope": (1.01, 6.0),
    }
    start |= {"sampling": 4.3, "a": torch.full((12,), 0.05)}
    fit = fit_psf(naco, long, start, bounds=bounds)
    assert misfit(naco, fit) < 0.085
