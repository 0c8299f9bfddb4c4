"""Errors of disks, against closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from deepinv_astro.metric import (
    DiskNRMSE,
    false_structure,
    flux_ratio,
    nrmse_db,
    remove_invisible,
    support,
)
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur


def images(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=rng)


def test_blur_is_the_convolution(rng: torch.Generator) -> None:
    x, psf = images(rng, 2, 3, 12, 17), images(rng, 3, 5, 7)
    z = blur(x, psf)
    for n in range(2):
        for c in range(3):
            full = convolve2d(x[n, c].numpy(), psf[c].numpy(), mode="full")
            np.testing.assert_allclose(z[n, c].numpy(), full[2:14, 3:20], atol=1e-12)
    assert blur(x, None) is x


def test_blur_is_that_of_the_operator(rng: torch.Generator) -> None:
    x = torch.zeros(4, 2, 21, 25, dtype=torch.float64)
    x[:, :, 8:12, 10:14] = images(rng, 4, 2, 4, 4)
    line = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / 4.5).double()
    psf = torch.stack([line[:, None] * line, line[:, None] * line**2])[None]
    psf = torch.cat([psf, 2 * psf])
    p = ADI((2, 21, 25), torch.tensor([[0.0]] * 2), psf, dtype=torch.float64)
    torch.testing.assert_close(blur(x, p.filter), p.A(x)[:, :, 0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"psf must be of shape .* got \(3,\)"):
        blur(x, torch.ones(3))


def test_decibels(rng: torch.Generator) -> None:
    z = images(rng, 2, 1, 6, 7)
    scale = torch.tensor([0.1, 0.01], dtype=torch.float64).view(2, 1, 1, 1)
    torch.testing.assert_close(nrmse_db(z + scale * z, z), torch.tensor([20.0, 40.0]).double())
    torch.testing.assert_close(nrmse_db(0 * z, z), torch.zeros(2).double(), atol=1e-12, rtol=0)
    region = torch.zeros_like(z, dtype=torch.bool)
    region[..., :3, :] = True
    wrong = z.clone()
    wrong[..., 3:, :] = 100.0  # outside of the region
    wrong[..., :3, :] *= 0.5
    expected = torch.full((2,), 20 * math.log10(2.0)).double()
    torch.testing.assert_close(nrmse_db(wrong, z, region), expected)
    unseen = torch.where(region, z, torch.nan)
    torch.testing.assert_close(nrmse_db(unseen, z), nrmse_db(unseen.nan_to_num(0.0), z))


def test_support_is_relative_to_each_image() -> None:
    z = torch.tensor([[[[0.0, 0.4, 0.6, 10.0]]], [[[0.0, 0.4, 0.6, 2.0]]]])
    assert support(z).flatten(1).tolist() == [[False, False, True, True], [False, True, True, True]]


def test_flux_ratio_is_taken_on_the_support() -> None:
    z = torch.tensor([[[[8.0, 2.0, 0.01]]]])
    estimate = torch.tensor([[[[4.0, 3.0, 50.0]]]])
    assert flux_ratio(estimate, z).tolist() == pytest.approx([0.7])
    everywhere = torch.ones_like(z, dtype=torch.bool)
    assert flux_ratio(estimate, z, everywhere).tolist() == pytest.approx([57 / 10.01])


def test_false_structure_of_normal_noise(rng: torch.Generator) -> None:
    noise = torch.linspace(0.5, 30, 200, dtype=torch.float64)
    image = images(rng, 1, 1, 300, 200) * noise
    image[..., :5] = torch.nan
    found = false_structure(image, noise)
    assert float(found.rms) == pytest.approx(1.0, abs=0.02)
    assert float(found.above_two_sigma) == pytest.approx(0.0228, abs=0.003)
    assert 3.5 < float(found.peak) < 5.5
    image[..., 7, 100] = -9 * noise[100]
    assert float(false_structure(image, noise).peak) == pytest.approx(9.0)


def test_rings_are_removed_and_the_rest_stays(rng: torch.Generator) -> None:
    star = (14.3, 19.8)
    row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (31, 37)), indexing="ij"
    )
    radius = torch.hypot(row - star[0], column - star[1])
    angle = torch.atan2(row - star[0], column - star[1])
    ring = torch.exp(-((radius - 9) ** 2) / 18)
    gone = remove_invisible(ring, star)
    assert gone.norm() < 0.03 * ring.norm()
    assert remove_invisible(ring, (14.3, 15.8)).norm() > 0.3 * ring.norm()
    two = ring * torch.cos(2 * angle)
    kept = remove_invisible(two, star)
    assert (kept - two).norm() < 0.03 * two.norm()
    # an orthogonal projection
    z = images(rng, 2, 31, 37)
    once = remove_invisible(z, star)
    torch.testing.assert_close(remove_invisible(once, star), once)
    assert float((once * (z - once)).sum()) == pytest.approx(0.0, abs=1e-8)


def test_metric_is_a_deepinv_metric(rng: torch.Generator) -> None:
    x = images(rng, 2, 1, 9, 11).abs()
    psf = images(rng, 3, 3).abs()
    noisy = x + 0.1 * images(rng, 2, 1, 9, 11)
    expected = nrmse_db(blur(noisy, psf), blur(x, psf))
    metric = DiskNRMSE(psf=psf)
    torch.testing.assert_close(metric(noisy, x), expected)
    assert float(DiskNRMSE(psf=psf, reduction="mean")(noisy, x)) == pytest.approx(
        float(expected.mean())
    )
    z = blur(x, psf)
    on_support = nrmse_db(blur(noisy, psf), z, support(z, 0.5))
    torch.testing.assert_close(DiskNRMSE(psf=psf, level=0.5)(noisy, x), on_support)
    assert metric.state_dict()["psf"].shape == (3, 3)
    assert not metric.lower_better
