"""rotate and the two samplers against a closed form, scipy.ndimage and exact quarter turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from deepinv_astro import testing
from deepinv_astro.physics.functional.rotation import (
    Interpolation,
    ShearSampler,
    rotate,
    sky_positions,
)

F64 = torch.float64
METHODS = ["spline", "shear"]
CLOSE = {"spline": 2e-3, "shear": 2e-5}  # of the peak, for a Gaussian of 3.8 x 5.2 pixels (FWHM)


def blob(place: complex, turned: float, size: tuple[int, int]) -> Tensor:
    """Elliptic Gaussian at column + i row, its long axis turned from the column to the row axis."""
    row, column = np.mgrid[: size[0], : size[1]].astype(float)
    along = ((column - place.real) + 1j * (row - place.imag)) * np.exp(-1j * math.radians(turned))
    return torch.from_numpy(np.exp(-((along.real / 2.2) ** 2 + (along.imag / 1.6) ** 2) / 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(58, 53), (55, 60), (56, 56)])
def test_closed_form(method, size):
    """Position, orientation and sign, about an off-grid centre of each frame, H != W, T != B."""
    angles = torch.tensor([0.0, 33.0, -71.0, 160.0, 405.0], dtype=F64)
    centers = torch.tensor(
        [[28.2, 27.6], [28.0, 28.0], [27.3, 26.9], [28.5, 26.4], [27.0, 27.5]], dtype=F64
    )
    middles = [complex(c, r) for r, c in centers.tolist()]
    offsets = [5.3 + 3.1j, -4.4 + 6.0j]  # two images
    image = torch.stack([torch.stack([blob(m + o, 20.0, size) for m in middles]) for o in offsets])
    found = rotate(image, angles, centers, method)
    assert found.shape == image.shape
    for b, offset in enumerate(offsets):
        for t, angle in enumerate(angles.tolist()):
            place = middles[t] + offset * np.exp(1j * math.radians(angle))
            expected = blob(place, 20.0 + angle, size)
            seen = found[b, t]
            assert float((seen - expected).abs().max()) < CLOSE[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1, 5])
def test_quarter_turns_move_pixels(method, turns, rng):
    image = torch.rand(1, 9, 9, generator=rng, dtype=F64)
    found = rotate(image, torch.tensor([90.0 * turns], dtype=F64), interpolation=method)
    # torch.rot90 over (column, row): from the column axis towards the row axis
    expected = torch.rot90(image, turns, (-1, -2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(9, 9), (8, 8), (7, 10)])
def test_default_centre_is_a_pixel(method, size):
    image = torch.zeros(1, *size, dtype=F64)
    image[0, size[0] // 2, size[1] // 2] = 1.0
    found = rotate(image, torch.tensor([90.0, 180.0, 270.0], dtype=F64), None, method)
    torch.testing.assert_close(found, image.expand(3, *size), rtol=0, atol=1e-4)


def test_spline_twin_of_scipy(rng):
    """scipy.ndimage.rotate turns the row axis towards the column axis, about (N - 1) / 2."""
    image = torch.rand(1, 21, 21, generator=rng, dtype=F64)
    expected = scipy.ndimage.rotate(image[0].numpy(), -28.0, reshape=False, order=3, mode="mirror")
    found = rotate(image, torch.tensor([28.0], dtype=F64))[0].numpy()
    row, column = np.mgrid[:21, :21] - 10
    inside = np.hypot(row, column) < 10
    np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=1e-4)


def test_outside_reads_fill():
    image = torch.ones(1, 8, 5, dtype=F64)
    angles = torch.tensor([0.0, 90.0], dtype=F64)
    found = rotate(image, angles, (4, 2), fill=math.nan)
    assert not found[0].isnan().any()
    # rows 4 +- 2 come from the five columns, all five columns from rows within the eight
    assert found[1].isnan().any(1).tolist() == [True, True] + [False] * 5 + [True]
    assert rotate(image, angles, (4, 2))[1, 0].tolist() == [0.0] * 5


@pytest.mark.parametrize(("method", "allowed"), [("spline", 1e-5), ("shear", 2e-3)])
@pytest.mark.parametrize("size", [(41, 38), (24, 27)])
def test_a_constant_frame_stays_constant(method, allowed, size):
    """Real frames do not end at zero: no ringing comes in from their edges."""
    image = torch.ones(1, *size, dtype=F64)
    angles = torch.tensor([33.0, -58.0], dtype=F64)
    found = rotate(image, angles, interpolation=method)
    star = torch.tensor([[s // 2 for s in size]], dtype=F64)
    row, column = sky_positions(-angles, star, star[0], size).unbind(1)
    inside = (row >= 0) & (row <= size[0] - 1) & (column >= 0) & (column <= size[1] - 1)
    assert float((found[inside] - 1).abs().max()) < allowed


@pytest.mark.parametrize("method", METHODS)
def test_turning_back(method):
    image = blob(26 + 31j, 20.0, (57, 58))[None]
    angles = torch.tensor([37.0], dtype=F64)
    back = rotate(rotate(image, angles, (28, 28), method), -angles, (28, 28), method)
    assert float((back - image).abs().max()) < 2 * CLOSE[method]


@pytest.mark.parametrize("method", METHODS)
def test_one_image_by_many_angles_and_leading_axes(method, rng):
    image = torch.rand(2, 3, 1, 6, 5, generator=rng, dtype=F64)
    angles = torch.tensor([10.0, 200.0], dtype=F64)
    found = rotate(image, angles, (2.5, 2.0), method)
    assert found.shape == (2, 3, 2, 6, 5)
    for t in range(2):
        alone = rotate(image[1, 2], angles[t : t + 1], (2.5, 2.0), method)[0]
        torch.testing.assert_close(found[1, 2, t], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method, rng):
    image = torch.rand(2, 5, 4, generator=rng, dtype=F64).requires_grad_()
    angles = torch.tensor([20.0, 130.0], dtype=F64).requires_grad_()
    center = torch.tensor([2.2, 1.7], dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda i, a, c: rotate(i, a, c, method), (image, angles, center), fast_mode=True
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 6), (6, 1), (1, 1), (2, 2)])
def test_tiny_images(method, size):
    found = rotate(torch.ones(1, *size, dtype=F64), torch.tensor([0.0], dtype=F64), None, method)
    torch.testing.assert_close(found, torch.ones(1, *size, dtype=F64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_precision_is_kept(method):
    image = torch.rand(1, 6, 5)
    assert rotate(image, torch.tensor([30.0]), interpolation=method).dtype == torch.float32
    assert rotate(image.double(), torch.tensor([30.0]), interpolation=method).dtype == F64


def test_errors():
    image = torch.ones(3, 6, 5)
    with pytest.raises(
        ValueError, match=r"angles must be a vector of 3 values, .* got shape \(2,\)"
    ):
        rotate(image, torch.zeros(2))
    with pytest.raises(ValueError, match="one for each frame"):
        rotate(image, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"center must be \(row, column\) .* got shape \(3,\)"):
        rotate(image, torch.zeros(3), (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="bilinear"):
        rotate(image, torch.zeros(3), interpolation="bilinear")


def test_sky_positions_are_turned_complex_numbers():
    """Detector to sky: counter-clockwise by the derotation angle, from one star to the other."""
    angles = torch.tensor([25.0, -140.0], dtype=F64)
    center = torch.tensor([[2.6, 4.3], [3.0, 4.9]], dtype=F64)
    star = torch.tensor([3.4, 2.2], dtype=F64)
    found = sky_positions(angles, center, star, (4, 6))
    assert found.shape == (2, 2, 4, 6)
    assert found.dtype == F64
    row, column = np.mgrid[:4, :6].astype(float)
    for t, angle in enumerate(angles.tolist()):
        offset = (column - float(center[t, 1])) + 1j * (row - float(center[t, 0]))
        at = offset * np.exp(1j * math.radians(angle)) + complex(2.2, 3.4)
        np.testing.assert_allclose(found[t, 0], at.imag, atol=1e-12)
        np.testing.assert_allclose(found[t, 1], at.real, atol=1e-12)
    one_star = sky_positions(angles, center[:1], star, (4, 6))
    torch.testing.assert_close(one_star[0], found[0])


@pytest.mark.parametrize("shared", [True, False])
def test_shear_adjoint_is_the_transpose(shared):
    angles = torch.tensor([33.0, -170.0, 100.0], dtype=F64)
    center = torch.tensor([[2.3, 1.6]], dtype=F64)
    sampler = ShearSampler(
        angles,
        center,
        torch.tensor([2.8, 2.1], dtype=F64),
        (5, 3),
        (7, 6),
        (-1, -2),
        shared,
    )
    images = torch.zeros(1 if shared else 3, 7, 6, dtype=F64)
    forward = testing.dense_matrix(sampler.forward, images)
    adjoint = testing.dense_matrix(sampler.adjoint, torch.zeros(3, 5, 3, dtype=F64))
    torch.testing.assert_close(forward.mT, adjoint, rtol=0, atol=1e-13)
    assert float(forward.abs().max()) > 0.2


def test_shear_is_orthogonal_where_nothing_leaves_the_frame():
    """A turn keeps the energy: the Gram matrix of sources near the star is that of the sky."""
    sampler = ShearSampler(
        torch.tensor([38.0], dtype=F64),
        torch.tensor([[40.0, 40.0]], dtype=F64),
        torch.tensor([4.0, 4.0], dtype=F64),
        (81, 81),
        (9, 9),
        (0, 0),
        True,
    )
    sources = torch.stack([blob(4 + 5j, 0.0, (9, 9)), blob(5 + 3j, 50.0, (9, 9))])
    frames = torch.stack([sampler.forward(s[None])[0] for s in sources]).flatten(1)
    expected = sources.flatten(1) @ sources.flatten(1).mT
    torch.testing.assert_close(frames @ frames.mT, expected, rtol=2e-2, atol=0)


def test_names():
    assert [m.value for m in Interpolation] == METHODS
