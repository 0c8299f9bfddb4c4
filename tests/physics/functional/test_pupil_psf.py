"""PSFs of pupils against closed forms, the field itself, and the laws of diffraction."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from deepinv_astro.physics.functional.psf_shapes import airy_psf
from deepinv_astro.physics.functional.pupil import (
    KECK,
    VLT,
    PupilShape,
    focal_field,
    telescope_pupil,
)
from deepinv_astro.physics.functional.pupil_psf import (
    fourier_basis,
    fourier_frequencies,
    otf_psf,
    pupil_otf,
    pupil_psf,
    wavefront,
    wavefront_psf,
    zernike_basis,
)

OFFSET = torch.tensor([0.3, -0.45], dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def random_phase(size, rms, count=30):
    generator = torch.Generator().manual_seed(1)
    modes = zernike_basis(count, size, first=4)
    a = torch.randn(count, generator=generator, dtype=torch.float64)
    return wavefront(rms * a / a.norm(), modes)


def test_transfer_function_of_a_disc():
    n = 256
    otf = pupil_otf(telescope_pupil(n, PupilShape()))
    nu = torch.arange(1 - n, n, dtype=torch.float64) / n
    radius = torch.hypot(nu[:, None], nu).clamp_max(1)
    expected = 2 / math.pi * (torch.acos(radius) - radius * torch.sqrt(1 - radius**2))
    # the pixels of the edge are grey, which costs the normalisation a little
    torch.testing.assert_close(otf.real, expected, atol=3e-3, rtol=0)
    assert float(otf.imag.abs().max()) < 1e-12
    assert float(otf.real[n - 1, n - 1]) == pytest.approx(1.0)


@pytest.mark.parametrize("obscuration", [0.0, 0.3])
def test_perfect_telescope_is_airy_whatever_the_pixels(obscuration):
    pupil = telescope_pupil(128, PupilShape(obscuration))
    sampling = scalar([1.3, 2.0, 4.4])  # below Nyquist too
    found = pupil_psf((25, 22), pupil, sampling, offset=OFFSET)
    expected = airy_psf((25, 22), sampling, obscuration=obscuration, offset=OFFSET, oversampling=8)
    peak = expected.amax((-2, -1), keepdim=True)
    torch.testing.assert_close(found / peak, expected / peak, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [VLT, KECK])
def test_it_is_the_squared_field_averaged_over_the_pixels(shape):
    """Against focal_field on nine points per pixel and axis, by Gauss and Legendre."""
    pupil, phase = telescope_pupil(40, shape), random_phase(40, 1.0)
    nodes, weights = np.polynomial.legendre.leggauss(9)
    field = (pupil * torch.exp(1j * phase)).to(torch.complex128)
    expected = torch.zeros(17, 20, dtype=torch.float64)
    for x, v in zip(nodes / 2, weights / 2, strict=True):
        for z, w in zip(nodes / 2, weights / 2, strict=True):
            origin = (8 + 0.3 - x, 10 - 0.45 - z)
            expected += v * w * focal_field(field, 2.2, (17, 20), origin).abs().square()
    found = pupil_psf((17, 20), pupil, 2.2, phase=phase, offset=OFFSET)
    torch.testing.assert_close(found, expected / expected.sum(), atol=1e-12, rtol=0)


def test_coarse_pixels_are_sums_of_fine_ones():
    pupil, phase = telescope_pupil(32), random_phase(32, 0.7)
    fine = pupil_psf((30, 34), pupil, 4.0, phase=phase, offset=scalar([0.6, -1.0]))
    coarse = fine.reshape(15, 2, 17, 2).sum((1, 3))
    # the middle of fine pixels 2 i and 2 i + 1 is at 2 i + 1/2; the star at 15.6, 16
    offset = scalar([(15.6 - 0.5) / 2 - 7, (16.0 - 0.5) / 2 - 8])
    torch.testing.assert_close(pupil_psf((15, 17), pupil, 2.0, phase=phase, offset=offset), coarse)


def test_unit_sum_is_that_of_the_infinite_plane_over_a_period():
    """The peak against the transfer function itself, which knows of no stamp."""
    otf = pupil_otf(telescope_pupil(16), random_phase(16, 1.0, 10))
    psf = otf_psf((32, 32), otf, 2.0)
    row, column = divmod(int(psf.argmax()), 32)
    nu = torch.arange(-15, 16, dtype=torch.float64) / 16 / 2.0
    turns = nu[:, None] * (row - 16) + nu * (column - 16)
    pixel = torch.sinc(nu)[:, None] * torch.sinc(nu)
    value = (otf * pixel * torch.exp(-2j * math.pi * turns)).real.sum() / (16 * 2.0) ** 2
    assert float(value) == pytest.approx(float(psf.max()), rel=1e-12)


def test_tilt_moves_the_star_as_an_offset_does():
    """Noll's tilts of unit rms are 4 u over the disc: 2 pi k u is k pi / 2 of them."""
    pupil, modes = telescope_pupil(64, PupilShape(0.2)), zernike_basis(2, 64)
    sampling = 3.0
    shift = scalar([0.8, -0.5])  # row, column in pixels
    phase = wavefront(math.pi / 2 * shift.flip(0) / sampling, modes)  # Z2 is along columns
    tilted = pupil_psf((21, 24), pupil, sampling, phase=phase)
    # the pixels that the edge crosses in part hold the tilt in part
    moved = pupil_psf((21, 24), pupil, sampling, offset=shift)
    torch.testing.assert_close(tilted, moved, atol=6e-3 * float(moved.max()), rtol=0)


@pytest.mark.parametrize("rms", [0.1, 0.3])
def test_marechal(rms):
    pupil = telescope_pupil(64, PupilShape())
    phase = random_phase(64, rms)
    light = pupil / pupil.sum()
    variance = float((light * phase**2).sum() - (light * phase).sum() ** 2)
    strehl = float(pupil_otf(pupil, phase).mean().real / pupil_otf(pupil).mean().real)
    assert strehl == pytest.approx(math.exp(-variance), rel=0.4 * variance**2)


def test_a_ripple_makes_two_speckles_where_its_frequency_says():
    pupil = telescope_pupil(64, PupilShape())
    ripples = fourier_basis(scalar([[4.0, 0.0], [0.0, 6.0], [3.0, -5.0]]), 64)
    flat = pupil_psf((61, 61), pupil, 3.0)
    for k, (row, column) in enumerate([(12, 0), (0, 18), (9, -15)]):
        # over a whole turn of the ripple the speckles do not interfere with Airy's rings
        turned = torch.cat([ripples[2 * k : 2 * k + 2], -ripples[2 * k : 2 * k + 2]])
        extra = pupil_psf((61, 61), pupil, 3.0, phase=0.05 * turned).mean(0) - flat
        for side in (1, -1):  # half of the variance in each
            speckle = float(extra[30 + side * row, 30 + side * column])
            assert speckle == pytest.approx(0.05**2 / 2 * float(flat.max()), rel=0.02)


def test_fourier_frequencies_cover_half_the_plane_once():
    f = fourier_frequencies(3.5)
    both = {tuple(v) for v in torch.cat([f, -f]).tolist()}
    expected = {
        (float(i), float(j))
        for i in range(-4, 5)
        for j in range(-4, 5)
        if 0 < i**2 + j**2 <= 3.5**2
    }
    assert both == expected
    assert 2 * len(f) == len(expected)
    basis = fourier_basis(f, 32).flatten(1)
    torch.testing.assert_close(basis @ basis.T / 32**2, torch.eye(len(basis), dtype=torch.float64))


def test_zernike_basis_is_counted_as_noll_does():
    from deepinv_astro.physics.functional.pupil import pupil_grid, zernike

    basis = zernike_basis(3, 20, first=5)
    torch.testing.assert_close(basis[2], zernike(7, *pupil_grid(20)))


def test_lengths_become_radians_at_each_wavelength():
    pupil, path = telescope_pupil(32), 80 * random_phase(32, 1.0)  # nm
    wavelength = scalar([1200.0, 1600.0])
    sampling = wavelength / 500
    found = wavefront_psf((21, 18), pupil, sampling, path=path, wavelength=wavelength)
    for c in range(2):
        phase = 2 * math.pi * path / wavelength[c]
        torch.testing.assert_close(found[c], pupil_psf((21, 18), pupil, sampling[c], phase=phase))


def test_a_band_is_the_mean_of_its_wavelengths():
    pupil, path = telescope_pupil(48), 150 * random_phase(48, 1.0)
    arguments = {"path": path, "wavelength": 1600.0, "offset": OFFSET}
    found = wavefront_psf((31, 28), pupil, 3.0, bandwidth=0.2, **arguments)
    scales = 1 + 0.2 * ((torch.arange(400).double() + 0.5) / 400 - 0.5)
    phases = 2 * math.pi * path / (1600.0 * scales[:, None, None])
    expected = sum(
        pupil_psf((31, 28), pupil, 3.0 * float(s), phase=p, offset=OFFSET) / 400
        for s, p in zip(scales, phases, strict=True)
    )
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    one = wavefront_psf((31, 28), pupil, 3.0, **arguments)
    assert float((one - found).abs().max()) > 1e-4


def test_gradients_to_everything():
    modes = zernike_basis(3, 8, first=4)
    pupil = telescope_pupil(8, VLT, oversampling=2)

    def psf(a, sampling, offset, pupil):
        phase = wavefront(a, modes)
        return pupil_psf((4, 5), pupil, sampling, phase=phase, offset=offset)

    inputs = (scalar([0.3, -0.2, 0.4]), scalar(2.1), OFFSET, pupil)
    assert torch.autograd.gradcheck(psf, tuple(v.clone().requires_grad_() for v in inputs))

    def band(path, wavelength):
        return wavefront_psf(
            (4, 5), pupil, wavelength / 3, path=path, wavelength=wavelength, bandwidth=0.3
        )

    inputs = (0.3 * modes[0] + 0.1, scalar([5.0, 6.0]))
    inputs = (inputs[0][None], inputs[1])
    assert torch.autograd.gradcheck(band, tuple(v.clone().requires_grad_() for v in inputs))


def test_second_derivatives_are_finite():
    """Fits differentiate twice; sinc at zero once made them NaN."""
    s = scalar(2.0).requires_grad_()
    psf = partial(pupil_psf, (5, 5), telescope_pupil(8))
    (first,) = torch.autograd.grad(psf(s)[2, 2], s, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(first, s)[0])


def test_leading_axes_broadcast_and_precision_is_kept():
    modes = zernike_basis(2, 16, first=4, dtype=torch.float32)
    pupil = telescope_pupil(16, dtype=torch.float32)
    a = torch.randn(3, 1, 2)
    sampling = torch.tensor([2.0, 3.0])
    offset = torch.randn(3, 2, 2)
    many = pupil_psf((9, 10), pupil, sampling, phase=wavefront(a, modes), offset=offset)
    assert many.shape == (3, 2, 9, 10)
    assert many.dtype == torch.float32
    torch.testing.assert_close(many.sum((-2, -1)), torch.ones(3, 2))
    one = pupil_psf((9, 10), pupil, 3.0, phase=wavefront(a[2, 0], modes), offset=offset[2, 1])
    torch.testing.assert_close(many[2, 1], one)


def test_wrong_input_is_refused():
    pupil = telescope_pupil(16)
    with pytest.raises(ValueError, match=r"field of 16 lambda / D, too small .* finer pupil"):
        pupil_psf((41, 41), pupil, 2.0)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        otf_psf((5, 5), pupil_otf(pupil), 0.0)
    with pytest.raises(ValueError, match=r"square and of one size, got \(16, 16\) and \(8, 8\)"):
        pupil_otf(pupil, torch.zeros(8, 8))
    with pytest.raises(ValueError, match="3 modes, but 2 coefficients"):
        wavefront(torch.zeros(2), zernike_basis(3, 8))
    with pytest.raises(ValueError, match="count=0"):
        zernike_basis(0, 8)
    with pytest.raises(ValueError, match=r"at least 1, got 0\.5"):
        fourier_frequencies(0.5)
    with pytest.raises(ValueError, match=r"bandwidth .* got 2\.5"):
        wavefront_psf((5, 5), pupil, 2.0, path=pupil, wavelength=1.0, bandwidth=2.5)
