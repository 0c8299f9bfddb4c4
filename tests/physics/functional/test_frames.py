"""The grid of the blurred sky, and maps of the detector seen from the sky."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.frames import Geometry, frame_otf, map_on_sky
from deepinv_astro.physics.functional.interpolation import spline_prefilter_response
from deepinv_astro.physics.functional.rotation import MARGIN, Interpolation

F64 = torch.float64


@pytest.mark.parametrize("stamp", [(1, 1), (3, 5), (4, 2), (9, 8)])
def test_grid_holds_the_blurred_sky_and_its_margin(stamp):
    geometry = Geometry((11, 6), stamp, (5, 7), Interpolation.SPLINE)
    spill = math.ceil(math.hypot(stamp[0] // 2, stamp[1] // 2))  # the corners turn too
    for axis in range(2):
        assert geometry.lower[axis] == -spill
        assert geometry.upper[axis] == geometry.sky[axis] - 1 + spill
        assert geometry.grid[axis] >= geometry.sky[axis] + 2 * spill + (
            MARGIN // 2 if spill else MARGIN
        )


def test_light_of_one_edge_does_not_reach_the_other():
    """A bright source in a corner leaves the opposite side of a larger detector dark."""
    row = torch.arange(-5, 6, dtype=F64) / 1.3
    psf = torch.exp(-(row[:, None] ** 2 + row**2) / 2)
    psf = psf / psf.sum()
    angles = torch.tensor([0.0, 20.0], dtype=F64)
    x = torch.zeros(1, 1, 12, 10, dtype=F64)
    x[0, 0, 0, 0] = 1.0
    physics = ADI((1, 12, 10), angles, filter=psf, detector_size=(40, 40), dtype=F64)
    y = physics.A(x)[0, 0]
    assert float(y.sum((-2, -1)).sub(1).abs().max()) < 1e-3
    rows, columns = torch.meshgrid(torch.arange(40) - 20, torch.arange(40) - 20, indexing="ij")
    behind = (rows + columns) > 8  # the source is at (-6, -5) from the star
    assert float(y[:, behind].abs().max()) < 1e-4


@pytest.mark.parametrize("interpolation", list(Interpolation))
def test_transfer_function_without_psf(interpolation):
    like = torch.zeros(1, dtype=F64)
    geometry = Geometry((11, 6), (1, 1), (5, 7), interpolation)
    otf = frame_otf(None, torch.zeros(3, dtype=F64), geometry, like)
    rows, columns = geometry.grid
    assert otf.shape == (1, 1, rows, columns // 2 + 1)
    assert otf.dtype == torch.complex128
    expected = torch.ones_like(otf.real)
    if interpolation is Interpolation.SPLINE:
        expected = expected * spline_prefilter_response(geometry.grid, like)
    torch.testing.assert_close(otf.real, expected)
    assert float(otf.imag.abs().max()) == 0.0


def test_map_on_sky_is_read_where_the_sky_falls(rng):
    values = torch.rand(6, 9, generator=rng, dtype=F64)
    angles = torch.tensor([25.0, -140.0], dtype=F64)
    center = torch.tensor([[2.6, 4.3], [3.0, 4.9]], dtype=F64)
    star = torch.tensor([3.4, 2.2], dtype=F64)
    found = map_on_sky(values, angles, center, star, (7, 5))
    assert found.shape == (2, 7, 5)
    row, column = np.mgrid[:7, :5].astype(float)
    offset = (column - 2.2) + 1j * (row - 3.4)
    for t, angle in enumerate(angles.tolist()):
        # the frame shows the sky turned clockwise by the derotation angle
        at = offset * np.exp(-1j * math.radians(angle))
        where = [at.imag + float(center[t, 0]), at.real + float(center[t, 1])]
        expected = scipy.ndimage.map_coordinates(values.numpy(), where, order=1, mode="nearest")
        np.testing.assert_allclose(found[t], expected, rtol=1e-9, atol=1e-9)


def test_map_of_one_row():
    values = torch.tensor([[1.0, 2.0, 4.0]])
    found = map_on_sky(
        values, torch.zeros(1), torch.tensor([[0.0, 1.0]]), torch.tensor([0.0, 1.0]), (1, 3)
    )
    assert found.dtype == torch.float32
    assert found.tolist() == [[[1.0, 2.0, 4.0]]]
