"""Radial profiles against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.optim.radial import MAD, radial_profile
from deepinv_astro.optim.regions import separation

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
