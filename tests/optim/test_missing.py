"""Missing data: conditional means against a dense Gaussian regression."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.optim.missing import exclude_blind, fill_missing
from deepinv_astro.optim.regions import EXCLUDED

T, H, W, NU = 7, 9, 11, 1e-3


@pytest.fixture
def labels():
    found = torch.zeros(H, W).long()
    found[5:] = 1
    return found


def speckles(rng, batch=1, channels=1, halo=1000.0):
    """A static halo, a common slow trend with amplitudes that differ, and a little noise."""
    trend = torch.linspace(-1, 1, T, dtype=torch.float64)
    draws = torch.randn(batch, channels, 2, 1, H, W, generator=rng, dtype=torch.float64)
    moving = draws[:, :, 0] * trend[:, None, None] + draws[:, :, 1] * trend.square()[:, None, None]
    noise = torch.randn(batch, channels, T, H, W, generator=rng, dtype=torch.float64)
    level = halo * torch.rand(1, 1, 1, H, W, generator=rng, dtype=torch.float64)
    return level + 5 * moving + 0.05 * noise


def test_equals_the_best_linear_unbiased_prediction(labels, rng):
    """Universal kriging with an unknown mean, solved as one dense constrained system."""
    y = speckles(rng, 2, 3)
    holes = [(1, 2, [0, 3], 2, 4), (0, 0, [6], 2, 4), (1, 0, [1, 2, 5], 7, 9)]
    broken = y.clone()
    for b, c, frames, row, column in holes:
        broken[b, c, frames, row, column] = math.nan
    filled = fill_missing(broken, labels, NU)
    assert torch.equal(filled[broken.isfinite()], y[broken.isfinite()])
    for b, c, frames, row, column in holes:
        flat = y[b, c].flatten(1)
        inside = (labels == labels[row, column]).flatten()
        inside &= broken[b, c].isfinite().all(0).flatten()
        rows = flat[:, inside] - flat[:, inside].mean(0)
        sigma = rows @ rows.mT / rows.shape[1]
        sigma = sigma + NU * sigma.trace() / T * torch.eye(T, dtype=torch.float64)
        seen = [t for t in range(T) if t not in frames]
        for t in frames:
            # least variance of y_t - w y_seen under sum(w) = 1
            system = torch.ones(len(seen) + 1, len(seen) + 1, dtype=torch.float64)
            system[:-1, :-1], system[-1, -1] = sigma[seen][:, seen], 0.0
            right = torch.cat([sigma[seen, t], torch.ones(1, dtype=torch.float64)])
            weights = torch.linalg.solve(system, right)[:-1]
            value = float(weights @ y[b, c, seen, row, column])
            assert float(filled[b, c, t, row, column]) == pytest.approx(value, abs=1e-5)


def test_prediction_is_good_beside_a_halo_a_thousand_times_brighter(labels, rng):
    y = speckles(rng)
    broken = y.clone()
    broken[0, 0, 5:, 3, 3] = math.nan
    filled = fill_missing(broken, labels, NU)
    error = (filled - y)[0, 0, 5:, 3, 3].abs().max()
    assert float(error) < 0.5
    naive = (y[0, 0, :5, 3, 3].mean() - y[0, 0, 5:, 3, 3]).abs().max()
    assert float(error) < 0.3 * float(naive)


def test_common_flicker_of_all_pixels_is_followed(labels, rng):
    flicker = torch.randn(T, 1, 1, generator=rng, dtype=torch.float64)
    y = (50 + 10 * torch.rand(H, W, generator=rng, dtype=torch.float64) + flicker)[None, None]
    broken = y.clone()
    broken[0, 0, 4, 2, 2] = math.nan
    assert float((fill_missing(broken, labels, 1e-6) - y).abs().max()) < 1e-2


def test_a_hole_changes_nothing_elsewhere(labels, rng):
    y = speckles(rng, 1, 2)
    first = y.clone()
    first[0, 0, 2, 1, 1] = math.nan
    second = first.clone()
    second[0, 1, 3, 7, 7] = math.nan  # other channel and region
    one, two = fill_missing(first, labels, NU), fill_missing(second, labels, NU)
    assert torch.equal(one[0, 0], two[0, 0])
    assert float(one[0, 0, 2, 1, 1]) != 0
    assert torch.equal(fill_missing(y, labels, NU), y)


def test_excluded_pixels_are_zero_and_a_pixel_never_seen_too(labels, rng):
    y = speckles(rng)
    labels[0, 0] = EXCLUDED
    y[0, 0, :, 4, 4] = math.nan
    y[0, 0, 1, 0, 0] = math.nan
    filled = fill_missing(y, labels, NU)
    assert not filled[..., 0, 0].any()
    assert not filled[..., 4, 4].any()
    assert bool(filled.isfinite().all())


def test_whole_frame_missing_takes_the_mean_of_the_others(labels, rng):
    """No pixel is seen in all frames, so nothing is known of the covariance."""
    y = speckles(rng)
    y[0, 0, 2] = math.nan
    filled = fill_missing(y, labels, NU)
    torch.testing.assert_close(filled[0, 0, 2], y[0, 0].nanmean(0))


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_units_and_precision(unit, labels, rng):
    y = speckles(rng)
    y[0, 0, 2, 1, 1] = math.nan
    expected = fill_missing(y, labels, NU)
    torch.testing.assert_close(fill_missing(y * unit, labels, NU) / unit, expected)
    single = fill_missing((y * unit).float(), labels, NU)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double() / unit, expected, rtol=1e-5, atol=1e-3)


def test_input_is_left_alone(labels, rng):
    y = speckles(rng)
    y[0, 0, 2, 1, 1] = math.nan
    kept = y.clone()
    fill_missing(y, labels, NU)
    torch.testing.assert_close(y, kept, equal_nan=True)


def test_blind_pixels_are_those_rarely_seen_in_some_channel():
    labels = torch.arange(12).view(3, 4)
    valid = torch.ones(1, 2, 4, 3, 4, dtype=torch.bool)
    valid[0, 0, :2, 0, 1] = False  # half: kept
    valid[0, 1, :3, 2, 3] = False  # a quarter, in the second channel
    valid[0, :, :, 1, 1] = False
    found = exclude_blind(labels, valid)
    expected = labels.clone()
    expected[2, 3] = expected[1, 1] = EXCLUDED
    assert torch.equal(found, expected)
    assert int((exclude_blind(labels, valid, least=0.8) == EXCLUDED).sum()) == 3
    assert torch.equal(labels, torch.arange(12).view(3, 4))
