"""Point sources between the pixels."""

from __future__ import annotations

import pytest
import torch

from deepinv_astro.physics.functional.points import point_image
from deepinv_astro.physics.functional.psf import blur

SIZE = (30, 35)


def positions(rng, count, margin=9.0):
    return tuple(
        margin + (s - 1 - 2 * margin) * torch.rand(count, generator=rng, dtype=torch.float64)
        for s in SIZE
    )


def gaussian(rows, columns, sigma):
    r = torch.arange(SIZE[0], dtype=torch.float64)[:, None] - rows[:, None, None]
    c = torch.arange(SIZE[1], dtype=torch.float64) - columns[:, None, None]
    return torch.exp(-(r**2 + c**2) / (2 * sigma**2)) / (2 * torch.pi * sigma**2)


def test_at_a_pixel_it_is_that_pixel():
    image = point_image(SIZE, torch.tensor([3.0, 12.0]), torch.tensor([0.0, 34.0]))
    expected = torch.zeros(2, *SIZE)
    expected[0, 3, 0] = expected[1, 12, 34] = 1.0
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)
    assert image.dtype == torch.float32


def test_flux_and_centroid(rng):
    rows, columns = positions(rng, 20)
    image = point_image(SIZE, rows, columns)
    torch.testing.assert_close(image.sum((1, 2)), torch.ones(20, dtype=torch.float64))
    r = (image.sum(2) * torch.arange(SIZE[0])).sum(1)
    c = (image.sum(1) * torch.arange(SIZE[1])).sum(1)
    torch.testing.assert_close(r, rows, atol=0.02, rtol=0)
    torch.testing.assert_close(c, columns, atol=0.02, rtol=0)


@pytest.mark.parametrize(("fwhm", "error"), [(2.0, 5e-3), (3.0, 1e-3), (4.8, 1e-3)])
def test_blurred_it_is_the_shifted_psf(fwhm, error, rng):
    sigma = fwhm / 2.3548200450309493
    rows, columns = positions(rng, 25)
    middle = torch.tensor([SIZE[0] // 2.0]), torch.tensor([SIZE[1] // 2.0])
    psf = gaussian(*middle, sigma)[0]
    found = blur(point_image(SIZE, rows, columns)[:, None], psf)[:, 0]
    expected = gaussian(rows, columns, sigma)
    assert float((found - expected).abs().max()) < error * float(psf.max())


def test_flux_off_the_image_is_lost(rng):
    """A part of an image is the image of a part."""
    rows, columns = torch.tensor([-0.6, 5.3, -20.0]), torch.tensor([4.2, 11.9, 3.0])
    part = point_image((8, 13), rows, columns)
    whole = point_image((48, 53), rows + 20, columns + 20)
    torch.testing.assert_close(part, whole[:, 20:28, 20:33], atol=1e-5, rtol=1e-4)
    assert not part[2].any()


def test_derivatives_in_position(rng):
    rows, columns = (p.requires_grad_() for p in positions(rng, 3, 2.0))
    assert torch.autograd.gradcheck(lambda r, c: point_image((11, 9), r, c), (rows, columns))
