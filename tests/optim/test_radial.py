"""Radial profiles against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from deepinv_astro.optim.radial import (
    MAD,
    gaussian_equivalent,
    null_map,
    null_scale,
    radial_profile,
    scale_freedom,
    student_spread,
)
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import ADI

SIZE, CENTER = (31, 38), (14.5, 20.0)
DISTANCE = separation(SIZE, CENTER)


@pytest.mark.parametrize("reduce", ["mean", "median"])
def test_constant_stays_constant(reduce):
    values = torch.tensor([2.0, -5.0], dtype=torch.float64)[:, None, None, None].expand(2, 1, *SIZE)
    profile = radial_profile(values, DISTANCE, 2.3, reduce)
    torch.testing.assert_close(profile, values.contiguous())
    scale = radial_profile(values, DISTANCE, 2.3, "scale")
    torch.testing.assert_close(scale, MAD * values.abs())


@pytest.mark.parametrize("reduce", ["mean", "median"])
def test_linear_profile_is_reproduced(reduce):
    """In a ring of half-width w at r >> w the mean separation is r (1 + w^2 / 3 r^2)."""
    profile = radial_profile(3 * DISTANCE + 1, DISTANCE, 2.0, reduce)
    inner = (DISTANCE > 4) & (DISTANCE < 12)
    torch.testing.assert_close(profile[inner], (3 * DISTANCE + 1)[inner], atol=1.0, rtol=0)


def test_knots_are_statistics_of_rings_and_linear_between(rng):
    values = torch.randn(3, *SIZE, generator=rng, dtype=torch.float64)
    at = torch.tensor([0.0, 3.0, 6.0, 9.0, 4.2], dtype=torch.float64)
    for reduce, statistic in (
        ("mean", lambda v: v.mean(-1)),
        ("median", lambda v: v.median(-1).values),
        ("scale", lambda v: 1.4826022185 * v.abs().median(-1).values),
    ):
        found = radial_profile(values, DISTANCE, 3.0, reduce, at=at)
        knots = [statistic(values[:, (DISTANCE - k).abs() <= 3.0]) for k in (0, 3, 6, 9)]
        torch.testing.assert_close(found[:, :4], torch.stack(knots, -1))
        torch.testing.assert_close(found[:, 4], 0.6 * knots[1] + 0.4 * knots[2])


def test_scale_is_the_standard_deviation_of_noise_that_grows_outwards(rng):
    values = (1 + DISTANCE) * torch.randn(200, *SIZE, generator=rng, dtype=torch.float64)
    found = radial_profile(values, DISTANCE, 2.0, "scale").mean(0)
    away = (DISTANCE > 5) & (DISTANCE < 20)
    torch.testing.assert_close(found[away], (1 + DISTANCE)[away], rtol=0.04, atol=0)
    # a planet in one ring does not count
    values[:, 15, 26] = 1e6
    again = radial_profile(values, DISTANCE, 2.0, "scale").mean(0)
    torch.testing.assert_close(again[away], found[away], rtol=0.15, atol=0)


def test_nan_is_left_out_and_empty_rings_take_a_neighbour():
    values = torch.ones(SIZE, dtype=torch.float64)
    values[DISTANCE > 5] = 4.0
    values[0, 20] = math.nan
    assert bool(radial_profile(values, DISTANCE, 2.0, "mean").isfinite().all())
    outer = radial_profile(values.masked_fill(DISTANCE > 11, math.nan), DISTANCE, 2.0, "mean")
    torch.testing.assert_close(outer[DISTANCE > 8], torch.full_like(outer[DISTANCE > 8], 4.0))
    inner = radial_profile(values.masked_fill(DISTANCE < 7, math.nan), DISTANCE, 2.0, "mean")
    torch.testing.assert_close(inner, torch.full_like(inner, 4.0))
    both = torch.stack([values, values.masked_fill(DISTANCE < 7, math.nan)])
    together = radial_profile(both, DISTANCE, 2.0, "mean")
    torch.testing.assert_close(together[1], inner)
    assert bool(radial_profile(values * math.nan, DISTANCE, 2.0, "mean").isnan().all())


def test_star_beyond_the_image():
    distance = separation((4, 7), (-9.0, 3.0))
    profile = radial_profile(torch.full((4, 7), 2.5), distance, 1.0, "median")
    assert torch.equal(profile, torch.full((4, 7), 2.5))


def test_float32_and_far_separations():
    profile = radial_profile(torch.ones(2, *SIZE), DISTANCE, 1.7, "mean", at=DISTANCE * 10)
    assert profile.dtype == torch.float32
    assert torch.equal(profile, torch.ones(2, *SIZE))


def test_unknown_statistic_is_an_error():
    with pytest.raises(ValueError, match="mode"):
        radial_profile(torch.ones(SIZE), DISTANCE, 2.0, "mode")


def test_count_is_the_number_of_finite_pixels():
    values = torch.ones(2, *SIZE, dtype=torch.float64)
    values[1, :, :20] = math.nan
    found = radial_profile(values, DISTANCE, 3.0, "count", at=torch.tensor([6.0]).double())
    ring = (DISTANCE - 6).abs() <= 3
    assert found[:, 0].tolist() == [int(ring.sum()), int(ring[:, 20:].sum())]
    lost = values.masked_fill(DISTANCE > 10, math.nan)
    assert bool((radial_profile(lost, DISTANCE, 2.0, "count") > 0).all())


@pytest.mark.parametrize("fwhm", [3.0, 4.5])
@pytest.mark.parametrize("shape", [(45, 51), (15, 51)])
def test_freedom_is_that_of_filtered_noise(fwhm, shape, rng):
    """var ln sigma = 1 / 2 nu, for white noise in the data, in the map filtered by the PSF."""
    rows, columns = shape
    sigma = fwhm / 2.3548
    u = torch.fft.fftfreq(rows + 32)[:, None].square() + torch.fft.rfftfreq(columns + 32).square()
    transfer = torch.exp(-2 * math.pi**2 * sigma**2 * u)
    noise = torch.randn(500, rows + 32, columns + 32, generator=rng)
    noise = torch.fft.irfft2(torch.fft.rfft2(noise) * transfer, s=noise.shape[-2:])
    distance = separation(shape, (rows // 2, columns // 2))
    at = fwhm * torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0]).double()
    scale = radial_profile(noise[:, 16:-16, 16:-16], distance, fwhm / 2, "scale", at)
    measured = 1 / (2 * scale.log().var(0))
    expected = scale_freedom(torch.ones(shape), distance, fwhm, at)
    torch.testing.assert_close(measured.float(), expected.float(), rtol=0.3, atol=0)


def test_freedom_counts_what_is_seen():
    null = torch.ones(SIZE)
    whole = scale_freedom(null, DISTANCE, 3.0)
    assert float(whole[14, 35]) == pytest.approx(0.9 * 2 * math.pi * 15 / 3, rel=0.1)
    null[:, :20] = math.nan
    half = scale_freedom(null, DISTANCE, 3.0)
    assert float(half[14, 35] / whole[14, 35]) == pytest.approx(0.5, abs=0.1)
    assert float(half.min()) == 1.0


def test_gaussian_equivalent_against_scipy():
    ratio = torch.linspace(-50, 50, 201, dtype=torch.float64)
    for freedom, tolerance in ((1.0, 0.09), (5.0, 0.02), (20.0, 0.006), (200.0, 1e-3)):
        exact = torch.as_tensor(stats.norm.isf(stats.t.sf(ratio.abs(), freedom))) * ratio.sign()
        exact[ratio == 0] = 0
        usable = exact.isfinite()
        found = gaussian_equivalent(ratio, torch.tensor(freedom).double())
        torch.testing.assert_close(found[usable], exact[usable], rtol=tolerance, atol=1e-12)
        assert bool((found.diff() > 0).all())


def test_gaussian_equivalent_does_not_overflow():
    ratio = torch.tensor([1e3, 1e6, 1e12])
    found = gaussian_equivalent(ratio, torch.tensor(1000.0))
    assert bool(found.isfinite().all())
    assert bool((found.diff() > 0).all())
    # a scale that is well known changes nothing
    known = gaussian_equivalent(torch.tensor(5.0).double(), torch.tensor(1e9).double())
    assert float(known) == pytest.approx(5.0, rel=1e-6)


def test_student_spread_holds_68_per_cent():
    freedom = torch.tensor([2.0, 4.0, 15.0, 400.0]).double()
    exact = stats.t.isf(stats.norm.sf(1), freedom)
    torch.testing.assert_close(student_spread(freedom), torch.as_tensor(exact), rtol=5e-3, atol=0)
    one = gaussian_equivalent(student_spread(freedom), freedom)
    torch.testing.assert_close(one, torch.ones_like(one))


def test_null_map_smears_the_sky_and_hides_what_is_not_seen(rng):
    angles = torch.linspace(0, 90, 10, dtype=torch.float64)
    physics = ADI((1, 31, 31), angles, detector_size=(15, 31), dtype=torch.float64)
    flipped = physics.variant(angles=-angles)
    x = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    x[0, 0, 15, 24] = 1.0
    null = null_map(physics.A(x), flipped)
    assert float(null.nan_to_num().max()) < 0.3 * float(physics.A_adjoint(physics.A(x)).max())
    seen = flipped.A_adjoint(torch.ones(1, 1, 10, 15, 31, dtype=torch.float64))
    assert torch.equal(null.isnan(), seen < 0.25 * seen.max())
    assert 0 < int(null.isnan().sum()) < null.numel()
    slope = torch.randn(1, 1, 10, 15, 31, generator=rng, dtype=torch.float64)
    distance = separation((31, 31), (15, 15))
    expected = radial_profile(null_map(slope, flipped), distance, 2.0, "scale")
    assert torch.equal(null_scale(slope, flipped, distance, 2.0), expected)
