"""Statistics against a sequence built by hand and against the known figures of the real cube."""

from __future__ import annotations

import math

import pytest
import torch
from astropy.io import fits

from deepinv_astro.datasets.statistics import sequence_statistics

RADII = (5, 10, 15, 20, 30, 40, 48)


def test_statistics_of_a_known_sequence():
    """Three orthogonal patterns with known amplitudes, on a ring and off it."""
    t = torch.arange(8, dtype=torch.float64)
    waves = torch.stack([torch.cos(math.pi * (k + 1) * (t + 0.5) / 8) for k in range(3)])
    y = torch.full((8, 41, 51), 10.0, dtype=torch.float64)
    y += 3 * waves[0][:, None, None] * torch.ones(41, 51)
    y[:, :20] += 2 * waves[1][:, None, None]
    result = sequence_statistics(y, (30.0, 25.0), radii=(4.0,))  # ring wholly below the patch
    assert float(result.mean[0]) == pytest.approx(10.0)
    assert float(result.std[0]) == pytest.approx(3 * float(waves[0].std()))
    fractions = result.variance_fractions
    assert float(fractions[:2].sum()) == pytest.approx(1.0)
    matrix = torch.tensor([[9.0 * 41 * 51, 6.0 * 20 * 51], [6.0 * 20 * 51, 4.0 * 20 * 51]])
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert float(fractions[0]) == pytest.approx(float(eigenvalues[1] / eigenvalues.sum()))


def test_statistics_of_the_real_cube_are_the_known_figures(data_root):
    cube = fits.getdata(data_root / "naco_betapic" / "naco_betapic_cube.fits")
    result = sequence_statistics(torch.from_numpy(cube.astype(float)), (51, 51), RADII)
    expected = torch.tensor([145.0, 82.0, 30.0, 21.5, 12.5, 5.9, 3.7], dtype=torch.float64)
    torch.testing.assert_close(result.std, expected, rtol=0.05, atol=0)
    assert result.correlation == pytest.approx(0.997, abs=0.001)
    assert float(result.variance_fractions[:3].sum()) == pytest.approx(0.79, abs=0.01)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="without missing data"):
        sequence_statistics(torch.full((2, 5, 5), math.nan), (2, 2))
    with pytest.raises(ValueError, match=r"must be \(T, H, W\)"):
        sequence_statistics(torch.zeros(1, 2, 5, 5), (2, 2))
