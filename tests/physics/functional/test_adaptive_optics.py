"""Long exposures against closed forms, a quadrature in polar coordinates, and phase screens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch

from deepinv_astro.physics.functional.adaptive_optics import (
    KOLMOGOROV,
    SPECTRUM,
    ResidualPhase,
    adaptive_optics_psf,
    residual_psd,
    residual_variance,
    structure_function,
)
from deepinv_astro.physics.functional.pupil import PupilShape, focal_field, telescope_pupil
from deepinv_astro.physics.functional.pupil_psf import otf_psf, pupil_otf, pupil_psf, zernike_basis


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def residual(**values):
    given = {"fried": 0.05, "core_variance": 0.5, "core_width": 0.4, "core_slope": 1.4, **values}
    return ResidualPhase(**{name: scalar(value) for name, value in given.items()})


def separations(n):
    nu = torch.arange(1 - n, n, dtype=torch.float64) / n
    return torch.hypot(nu[:, None], nu)


def test_constants_of_kolmogorov():
    assert pytest.approx(6.88, abs=0.005) == KOLMOGOROV
    assert pytest.approx(0.0229, abs=5e-5) == SPECTRUM
    # both belong together: D(1) = 2 int W (1 - cos)
    z = np.geomspace(1e-3, 1e4, 2_000_001)
    below = 0.75 * 1e-3 ** (1 / 3)  # 1 - J0(z) is z^2 / 4 there
    integral = below + np.trapezoid(z ** (-8 / 3) * (1 - scipy.special.j0(z)), z)
    assert 4 * math.pi * SPECTRUM * (2 * math.pi) ** (5 / 3) * integral == pytest.approx(
        KOLMOGOROV, rel=1e-3
    )


def test_without_correction_it_is_frieds_long_exposure():
    n, fried = 48, 0.13
    pupil = telescope_pupil(n, PupilShape(0.2))
    otf = pupil_otf(pupil) * torch.exp(-3.44 * (separations(n) / fried) ** (5 / 3))
    expected = otf_psf((41, 36), otf, 2.0)
    found = adaptive_optics_psf((41, 36), pupil, 2.0, ResidualPhase(scalar(fried)), 0.0)
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.max()), rtol=0)


def test_variance_of_turbulence_is_that_of_noll():
    """Half the mean of D over the pupil is 1.0299 (D/r0)^(5/3); without both tilts, 0.134."""
    n, fried = 64, 0.4
    pupil = telescope_pupil(n, PupilShape(), oversampling=1)
    spread = structure_function(ResidualPhase(scalar(fried)), 0.0, n)
    modes = torch.cat([pupil[None], zernike_basis(2, n)]) * pupil / pupil.sum()
    power = torch.fft.fftn(modes, s=(2 * n, 2 * n), dim=(1, 2)).abs().square()
    # autocorrelation of each mode, separation zero in the middle
    pairs = torch.fft.fftshift(torch.fft.ifftn(power, dim=(1, 2)).real, dim=(1, 2))[:, 1:, 1:]
    piston, tip, tilt = (-(p * spread).sum() / 2 * fried ** (5 / 3) for p in pairs)
    assert float(-piston) == pytest.approx(1.0299, rel=0.01)
    assert float(tip) == pytest.approx(0.448, rel=0.01)
    assert float(-piston - tip - tilt) == pytest.approx(0.134, rel=0.03)


@pytest.mark.parametrize(("cutoff", "error"), [(3.0, 2e-4), (7.0, 1e-4), (20.0, 1e-4)])
def test_core_against_polar_quadrature(cutoff, error):
    p = residual(plateau=1e-3, ratio=0.6, angle=25.0)
    n = 32
    found = structure_function(p, cutoff, n) - structure_function(ResidualPhase(p.fried), cutoff, n)
    x, w = np.polynomial.legendre.leggauss(300)
    f, weight = cutoff * ((x + 1) / 2) ** 3, w / 2 * cutoff * 3 * ((x + 1) / 2) ** 2
    turn = 2 * math.pi * np.arange(360) / 360
    row, column = (torch.from_numpy(f[:, None] * g) for g in (np.sin(turn), np.cos(turn)))
    psd = residual_psd(p, cutoff + 1e-9, row, column).numpy()
    for i, j in ((31, 30), (35, 25), (50, 50), (3, 40), (62, 62)):
        phase = 2 * math.pi * (row * (i - 31) / n + column * (j - 31) / n).numpy()
        total = (2 * psd * (1 - np.cos(phase)) * (weight * f)[:, None]).sum() * 2 * math.pi / 360
        assert float(found[i, j]) == pytest.approx(total, rel=error, abs=2e-5)


@pytest.mark.parametrize(("width", "slope", "error"), [(0.05, 2.4, 1e-3), (0.1, 5.0, 2e-4)])
def test_narrow_cores_are_as_exact_as_stated(width, slope, error):
    found = structure_function(residual(core_width=width, core_slope=slope), 7.0, 8)
    found = found - structure_function(ResidualPhase(scalar(0.05)), 7.0, 8)
    for steps in (1, 6):

        def integrand(f, rho=steps / 8):
            density = (slope - 1) / (math.pi * width**2) * (1 + (f / width) ** 2) ** -slope
            return f * density * (1 - scipy.special.j0(2 * math.pi * f * rho))

        parts = [scipy.integrate.quad(integrand, *ends)[0] for ends in ((0, 0.5), (0.5, 7.0))]
        share = 1 - (1 + (7.0 / width) ** 2) ** (1 - slope)
        expected = 4 * math.pi * 0.5 * sum(parts) / share
        assert float(found[7, 7 + steps]) == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("cutoff", [2.0, 12.0])
def test_halo_against_its_integral(cutoff):
    found = structure_function(ResidualPhase(scalar(0.05)), cutoff, 16)
    for i, j in ((15, 16), (20, 12), (30, 30)):
        rho = math.hypot(i - 15, j - 15) / 16

        def integrand(f, rho=rho):
            return f ** (-8 / 3) * scipy.special.j0(2 * math.pi * f * rho)

        oscillating = scipy.integrate.quad(integrand, cutoff, 60 * cutoff, limit=2000)[0]
        total = 0.6 * cutoff ** (-5 / 3) - oscillating
        expected = 4 * math.pi * SPECTRUM * 0.05 ** (-5 / 3) * total
        assert float(found[i, j]) == pytest.approx(expected, rel=1e-3)


def test_spectrum_holds_its_variance():
    p = residual(plateau=2e-3)
    f = torch.linspace(0, 400, 2_000_001, dtype=torch.float64)[1:]
    psd = residual_psd(p, 10.0, torch.zeros_like(f), f)
    beyond = 1.2 * math.pi * SPECTRUM * (0.05 * 400) ** (-5 / 3)
    total = float(torch.trapezoid(2 * math.pi * f * psd, f)) + beyond
    assert float(residual_variance(p, 10.0)) == pytest.approx(total, rel=1e-3)
    assert float(residual_variance(ResidualPhase(scalar(0.05), 0.5), 10.0)) == pytest.approx(
        0.5 + 1.2 * math.pi * SPECTRUM * 0.5 ** (-5 / 3)
    )


def test_elliptical_core_is_wide_along_its_direction():
    p = residual(ratio=0.5, angle=90.0, fried=10.0)  # slow decay of W along rows
    f = scalar([1.0])
    zero = torch.zeros_like(f)
    assert float(residual_psd(p, 5.0, f, zero)) > float(residual_psd(p, 5.0, zero, f))
    circle = residual(fried=10.0)
    along = residual_psd(circle, 5.0, f * math.sqrt(0.5), zero)
    # same height at zero, so the same value at the same elliptical radius
    torch.testing.assert_close(residual_psd(p, 5.0, f, zero), along)


def test_strehl_is_about_the_exponential_of_the_variance():
    pupil = telescope_pupil(64, PupilShape(0.2))
    p = residual(core_width=2.5, core_variance=0.3, core_slope=1.8, fried=0.1)
    long = pupil_otf(pupil) * torch.exp(-structure_function(p, 15.0, 64) / 2)
    strehl = float(long.mean().real / pupil_otf(pupil).mean().real)
    assert strehl == pytest.approx(math.exp(-float(residual_variance(p, 15.0))), rel=0.02)


def test_another_wavelength_sees_the_same_paths():
    p = residual(plateau=1e-3, ratio=0.8, angle=10.0)
    spread, longer = (structure_function(q, 6.0, 12) for q in (p, p.at(1.7)))
    torch.testing.assert_close(longer, spread / 1.7**2)
    many = structure_function(p.at(scalar([1.0, 1.7])), 6.0, 12)
    torch.testing.assert_close(many, torch.stack([spread, longer]))


def test_it_is_the_mean_of_many_exposures():
    """Screens with the spectrum of the model, against whom nothing of the code is shared."""
    n, cutoff, factor = 24, 6.0, 8
    p = residual(
        core_variance=0.6, core_width=1.0, core_slope=1.6, fried=0.25, ratio=0.5, angle=30.0
    )
    size = factor * n
    f = torch.fft.fftfreq(size, 1 / n, dtype=torch.float64)  # cycles per diameter
    psd = residual_psd(p, cutoff, f[:, None], f)
    psd[0, 0] = 0.0
    amplitude = torch.sqrt(psd) / factor * size**2
    generator = torch.Generator().manual_seed(0)
    pupil = telescope_pupil(n)
    static = 0.4 * zernike_basis(1, n, first=7)[0]
    total = torch.zeros(21, 24, dtype=torch.float64)
    for _ in range(40):
        noise = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
        screens = torch.fft.ifft2(amplitude * torch.complex(*noise))
        tiles = torch.cat([screens.real, screens.imag]).reshape(-1, n, factor, n).transpose(1, 2)
        field = pupil * torch.exp(1j * (tiles.reshape(-1, n, n) + static))
        total += focal_field(field, 2.5, (21, 24), (10, 12)).abs().square().sum(0)
    expected = total / total.sum()
    # the values in the pixels, not the integrals over them: undo the pixel by fine pixels
    found = adaptive_optics_psf(
        (21 * 9, 24 * 9),
        telescope_pupil(n),
        2.5 * 9,
        p,
        cutoff,
        phase=static,
        offset=scalar([10 * 9 + 4 - 94.0, 12 * 9 + 4 - 108.0]),
    )[4::9, 4::9]
    found = found / found.sum()
    assert float((found - expected).abs().max()) < 0.02 * float(expected.max())
    flat = pupil_psf((21, 24), pupil, 2.5, phase=static)
    assert float((found - flat).abs().max()) > 0.2 * float(expected.max())
    # the ellipse of the core turns the halo: second moments against those of the screens
    r, c = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(24.0) - 12, indexing="ij")
    near = torch.hypot(r, c) < 10
    cross = [(r * c * near * q).sum() / (near * q * (r**2 + c**2)).sum() for q in (found, expected)]
    assert float(cross[0]) == pytest.approx(float(cross[1]), abs=0.01)
    assert abs(float(cross[1])) > 0.03


def test_gradients_to_every_parameter():
    pupil = telescope_pupil(8)

    def psf(sampling, offset, phase, *values):
        return adaptive_optics_psf(
            (4, 5), pupil, sampling, ResidualPhase(*values), 3.0, phase=phase, offset=offset
        )

    values = [scalar(v) for v in (0.2, 0.5, 0.9, 1.6, 0.01, 0.7, 20.0)]
    values[0] = scalar([0.2, 0.3])
    inputs = (scalar(2.0), scalar([0.1, -0.2]), 0.2 * zernike_basis(1, 8, 4)[0], *values)
    assert torch.autograd.gradcheck(psf, tuple(v.clone().requires_grad_() for v in inputs))


def test_precision_leading_axes_and_inference_mode():
    pupil = telescope_pupil(16, dtype=torch.float32)
    fried = torch.tensor([[0.1], [0.2]])
    p = ResidualPhase(fried, 0.3, 1.0, 1.5).at(torch.tensor([1.0, 1.2, 1.4]))
    sampling = torch.tensor([2.0, 2.4, 2.8])
    with torch.inference_mode():
        frozen = adaptive_optics_psf((11, 12), pupil, sampling, p, 4.25)
    fried.requires_grad_()
    p = ResidualPhase(fried, 0.3, 1.0, 1.5).at(torch.tensor([1.0, 1.2, 1.4]))
    many = adaptive_optics_psf((11, 12), pupil, sampling, p, 4.25)  # tables are kept, gradients not
    many.square().sum().backward()
    assert torch.isfinite(fried.grad).all()
    assert many.shape == (2, 3, 11, 12)
    assert many.dtype == torch.float32
    torch.testing.assert_close(many.sum((-2, -1)), torch.ones(2, 3))
    torch.testing.assert_close(many.detach(), frozen.clone())
    double = ResidualPhase(*(scalar(v) for v in (0.2 * 1.2**1.2, 0.3 / 1.2**2, 1.0, 1.5)))
    one = adaptive_optics_psf((11, 12), pupil.double(), 2.4, double, 4.25)
    torch.testing.assert_close(many[1, 1].double(), one, atol=1e-6, rtol=1e-4)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="got -1"):
        structure_function(residual(), -1.0, 8)
    with pytest.raises(ValueError, match="fried must be positive"):
        structure_function(residual(fried=0.0), 3.0, 8)
    with pytest.raises(ValueError, match=r"core_width .* on both axes.*got 0\.04"):
        structure_function(residual(core_width=0.08, ratio=0.25), 3.0, 8)
    with pytest.raises(ValueError, match="core_slope must be above 1"):
        structure_function(residual(core_slope=1.0), 3.0, 8)
    with pytest.raises(ValueError, match="variance is infinite"):
        residual_variance(residual(), 0.0)
