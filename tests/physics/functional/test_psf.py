"""Width of PSFs and convolution with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.signal import convolve2d

from deepinv_astro.io import read_sequence
from deepinv_astro.physics.functional.psf import blur, half_maximum_width

FWHM = 2 * math.sqrt(2 * math.log(2))


def gaussian(size, sigmas, center=None, turn=0.0):
    center = (size[0] // 2, size[1] // 2) if center is None else center
    r = torch.arange(size[0], dtype=torch.float64)[:, None] - center[0]
    c = torch.arange(size[1], dtype=torch.float64) - center[1]
    u, v = r * math.cos(turn) + c * math.sin(turn), c * math.cos(turn) - r * math.sin(turn)
    return torch.exp(-(u**2 / sigmas[0] ** 2 + v**2 / sigmas[1] ** 2) / 2)


@pytest.mark.parametrize("sigma", [0.9, 1.3, 2.04, 3.7])
@pytest.mark.parametrize(
    ("size", "center"),
    [((39, 39), None), ((40, 36), None), ((33, 40), (15.7, 20.4)), ((41, 39), (17.0, 22.5))],
)
def test_circular_gaussian(sigma, size, center):
    found = half_maximum_width(gaussian(size, (sigma, sigma), center))
    assert found == pytest.approx(FWHM * sigma, rel=0.025)


@pytest.mark.parametrize("turn", [0.0, 0.6])
def test_elliptical_gaussian_gives_the_geometric_mean(turn):
    found = half_maximum_width(gaussian((45, 40), (1.5, 3.2), turn=turn))
    assert found == pytest.approx(FWHM * math.sqrt(1.5 * 3.2), rel=0.01)


def test_neither_flux_nor_type_matters_and_several_are_averaged():
    one, two = gaussian((25, 27), (1.5, 1.5)), gaussian((25, 27), (2.5, 2.5))
    width = half_maximum_width(one)
    assert half_maximum_width(1e-12 * one) == width
    assert half_maximum_width((1e6 * one).float()) == pytest.approx(width, rel=1e-3)
    several = half_maximum_width(torch.stack([one, two])[None, :, None])
    assert several == half_maximum_width((one + two) / 2)
    assert width < several < half_maximum_width(two)


def test_finer_sampling_is_more_exact():
    psf = gaussian((25, 25), (1.37, 1.37))
    errors = [abs(half_maximum_width(psf, n) - FWHM * 1.37) for n in (1, 4, 32)]
    assert errors[2] < 0.005
    assert errors[0] > errors[2]


def test_naco_psf(data_root):
    """Against splines; 5 % below the 4.80 pixels of a Gaussian fitted to this Airy-like core."""
    folder = data_root / "naco_betapic"
    seq = read_sequence(*(folder / f"naco_betapic_{p}.fits" for p in ("cube", "pa", "psf")))
    rows = np.linspace(9, 29, 801)
    core = map_coordinates(seq.psf[0].double().numpy(), np.meshgrid(rows, rows, indexing="ij"))
    area = (core >= core.max() / 2).sum() * (rows[1] - rows[0]) ** 2
    found = half_maximum_width(seq.psf)
    assert found == pytest.approx(2 * math.sqrt(area / math.pi), rel=0.01)
    assert found == pytest.approx(4.80, rel=0.06)


@pytest.mark.parametrize("stamp", [(5, 3), (4, 6), (1, 1), (15, 17)])
def test_blur_is_convolution_about_the_middle_of_the_stamp(stamp, rng):
    x = torch.randn(2, 3, 9, 12, generator=rng, dtype=torch.float64)
    psf = torch.rand(3, *stamp, generator=rng, dtype=torch.float64)
    found = blur(x, psf)
    top, left = stamp[0] // 2, stamp[1] // 2
    for b in range(2):
        for c in range(3):
            full = convolve2d(x[b, c].numpy(), psf[c].numpy())
            np.testing.assert_allclose(
                found[b, c], full[top : top + 9, left : left + 12], atol=1e-12
            )
    torch.testing.assert_close(blur(x, psf[0])[:, 1], blur(x[:, 1:2], psf[0])[:, 0])


def test_blur_with_the_filter_of_an_operator(rng):
    x = torch.randn(4, 2, 8, 7, generator=rng, dtype=torch.float64)
    psf = torch.rand(2, 2, 3, 5, 5, generator=rng, dtype=torch.float64)  # (b, c, t, k, k)
    found = blur(x, psf)
    for n in range(4):
        torch.testing.assert_close(found[n], blur(x[n : n + 1], psf[n % 2].mean(1))[0])
    assert blur(x, None) is x
    with pytest.raises(ValueError, match=r"\(4,\)"):
        blur(x, torch.ones(4))
