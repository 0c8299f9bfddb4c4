"""A stretched PSF against Gaussians of the stretched widths; errors against their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepinv_astro.datasets import PSFError, RicianHalo, stretched_psf, temporal_deviation
from deepinv_astro.datasets.halos import Star
from deepinv_astro.datasets.speckles import NACO_LP, detect
from deepinv_astro.physics.functional.psf import half_maximum_width
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf

F64 = torch.float64


@pytest.mark.parametrize(
    ("width", "ratio", "angle"),
    [(1.0, 1.0, 0.0), (1.2, 1.0, 0.0), (0.9, 0.8, 30.0), (1.1, 1.3, -70.0)],
)
def test_a_gaussian_stays_a_gaussian(width, ratio, angle):
    round_ = gaussian_psf((35, 39), torch.tensor(4.5, dtype=F64), oversampling=1)
    expected = gaussian_psf(
        (35, 39), torch.tensor(4.5 * width, dtype=F64), ratio=ratio, angle=angle, oversampling=1
    )
    found = stretched_psf(round_, width, ratio, angle)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * float(expected.max()))
    assert float(found.sum()) == pytest.approx(1.0)


def test_an_elongated_gaussian_stretched_back_is_round():
    long = gaussian_psf(
        (41, 41), torch.tensor(4.5, dtype=F64), ratio=0.7, angle=25.0, oversampling=1
    )
    round_ = gaussian_psf((41, 41), torch.tensor(4.5, dtype=F64), oversampling=1)
    found = stretched_psf(long, 1.0, 1 / 0.7, 25.0)
    torch.testing.assert_close(found, round_, rtol=0, atol=2e-3 * float(round_.max()))


def test_errors_follow_their_laws():
    """Logarithms of the width with the stated deviation; the told PSF of unit sum, in its dtype."""
    psf = gaussian_psf((25, 25), 4.0)
    generator = torch.Generator().manual_seed(0)
    told = [PSFError(0.1, 0.0).apply(psf, generator) for _ in range(300)]
    widths = np.log([half_maximum_width(t) / half_maximum_width(psf) for t in told])
    assert widths.mean() == pytest.approx(0.0, abs=0.02)
    assert widths.std() == pytest.approx(0.1, rel=0.15)
    assert told[0].dtype == psf.dtype
    long = [PSFError(0.0, 0.2).apply(psf, generator) for _ in range(300)]
    u = torch.arange(25.0) - 12
    moments = []
    for h in long:  # log of the axis ratio from second moments, and its direction
        rr, cc = (h.sum(1) * u**2).sum(), (h.sum(0) * u**2).sum()
        rc = torch.einsum("i,ij,j", u, h, u)
        values, vectors = torch.linalg.eigh(torch.tensor([[rr, rc], [rc, cc]]))
        axis = vectors[:, 1]
        moments.append((0.5 * math.log(values[1] / values[0]), math.atan2(axis[0], axis[1])))
    ratios, directions = np.array(moments).T
    assert ratios.mean() == pytest.approx(0.2 * math.sqrt(2 / math.pi), rel=0.15)  # folded normal
    assert abs(np.exp(2j * directions).mean()) < 0.15


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match=r"elongation must not be negative, got -0.1"):
        PSFError(0.1, -0.1)
    with pytest.raises(ValueError, match="width and ratio must be positive, got 0 and 1"):
        stretched_psf(torch.ones(3, 3), 0, 1)


def test_temporal_deviation_is_that_of_detected_frames():
    generator = torch.Generator().manual_seed(3)
    star = RicianHalo(drift=(0.02, 0.02), memory=0.01).draw(2000, (21, 25), 11, generator)
    noisy = detect(star.frames, star.detector, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(21.0), torch.arange(25.0), indexing="ij")
    ring = torch.hypot(rows - 10, columns - 12).round()
    sigma = temporal_deviation(star)
    for r in (0, 3, 7, 12):
        measured = noisy[:, ring == r].var(0).mean().sqrt()
        assert float(sigma[ring == r].unique()) == pytest.approx(float(measured), rel=0.03)
    dark = Star(torch.full((4, 5, 5), 100.0), star.psf, NACO_LP)
    expected = math.sqrt((100 + NACO_LP.sky_background) / 100 + NACO_LP.read_noise**2)
    assert float(temporal_deviation(dark)[1, 1]) == pytest.approx(expected)
