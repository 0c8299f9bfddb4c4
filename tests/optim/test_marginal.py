"""The default reconstruction: what must hold whatever its strengths are."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from deepinv_astro.optim.marginal import Marginal
from deepinv_astro.optim.regions import annular_regions, both_regions, separation, tiled_regions
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur

SIZE, T = (25, 29), 12
STAR = (12.0, 14.5)
ANGLES = torch.linspace(-30, 60, T, dtype=torch.float64)


@cache
def operator(channels: int = 1) -> ADI:
    rows = torch.arange(-4.0, 5.0, dtype=torch.float64)
    stamp = torch.exp(-(rows[:, None] ** 2 + rows**2) / 3)
    return ADI(
        (channels, *SIZE), ANGLES, stamp / stamp.sum(), STAR, sky_center=STAR, dtype=torch.float64
    )


def speckles(rng, channels=1, frames=T):
    """Static halo, patterns with slow fluctuations, noise; stronger near the star."""
    level = 20 * torch.exp(-separation(SIZE, STAR) / 5) + 1
    patterns = torch.randn(1, channels, 3, *SIZE, generator=rng, dtype=torch.float64)
    times = torch.linspace(0, 3, frames, dtype=torch.float64)
    phases = torch.arange(3, dtype=torch.float64)
    times = torch.cos(times[:, None] * (1 + phases) + phases)
    moving = torch.einsum("tk,bckhw->bcthw", times, patterns)
    white = 0.2 * torch.randn(1, channels, frames, *SIZE, generator=rng, dtype=torch.float64)
    return level * (moving + white + 10)


def scene():
    x = torch.zeros(1, 1, *SIZE, dtype=torch.float64)
    x[..., 19, 8] = 150.0
    x[..., 5:8, 18:22] = 20.0
    return x


def method(iterations=25, **options):
    return Marginal(iterations=(iterations,) * len(Marginal().iterations), **options)


def error(image, truth, physics):
    psf = physics.filter
    return float((blur(image - truth, psf)).norm() / blur(truth, psf).norm())


@pytest.fixture
def y(rng):
    return speckles(rng) + operator().A(scene())


@pytest.mark.parametrize("regions", [annular_regions, tiled_regions, both_regions])
def test_simple_scene_is_recovered(regions, y):
    image = method(40, regions=regions)(y, operator())
    assert image.shape == (1, 1, *SIZE)
    assert image.dtype == torch.float64
    assert float(image.min()) >= 0
    assert error(image, scene(), operator()) < 0.45
    planet = separation(SIZE, (19, 8)) < 3
    assert float(image[0, 0][planet].sum()) == pytest.approx(150, rel=0.3)
    seen = blur(image, operator().filter)
    assert divmod(int(seen.argmax()), SIZE[1]) == (19, 8)


def test_speckles_are_known_better_than_by_the_median(y):
    """The classical answer on the same data, as an error to beat by far."""
    moving = y - y.median(2, keepdim=True).values
    median = operator().A_adjoint(moving) / T
    truth = blur(scene(), operator().filter)
    classical = float((median - truth).norm() / truth.norm())
    assert error(method(40)(y, operator()), scene(), operator()) < 0.5 * classical


def test_empty_sky_stays_near_zero(rng):
    y = speckles(rng)
    image = method()(y, operator())
    noise = (y - y.mean(2, keepdim=True)).square().mean(2).sqrt()
    assert float((blur(image, operator().filter) / noise).max()) < 0.7


@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_image_scales_with_the_unit(unit, dtype, y):
    expected = method(12)(y, operator())
    physics = ADI(
        (1, *SIZE), ANGLES, operator().filter[0, 0, 0], STAR, sky_center=STAR, dtype=dtype
    )
    image = method(12)((unit * y).to(dtype), physics)
    assert image.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float64 else 5e-3
    top = float(expected.max())
    torch.testing.assert_close(image.double() / unit, expected, rtol=0, atol=tolerance * top)


def test_a_bright_object_does_not_vanish(rng):
    y = speckles(rng) + 300 * operator().A(scene())
    image = method(60)(y, operator()) / 300
    assert error(image, scene(), operator()) < 0.4
    assert float(image.sum() / scene().sum()) == pytest.approx(1, abs=0.4)


def test_wrong_sign_of_the_angles_finds_less(y):
    flipped = operator().variant(angles=-operator().angles)
    wrong = method()(y, flipped)
    assert (
        error(wrong, scene(), operator())
        > 0.8
        > error(method()(y, operator()), scene(), operator())
    )


# ------------------------------------------------------------------ missing data


def test_value_of_missing_data_does_not_matter_and_little_is_lost(y, rng):
    holes = torch.rand(1, 1, T, *SIZE, generator=rng) < 0.03
    holes[0, 0, 3, 18:21, 7:10] = True
    result = method().reconstruct(y.masked_fill(holes, math.nan), operator())
    assert bool(result.image.isfinite().all())
    assert error(result.image, scene(), operator()) < 0.5
    assert bool(result.filled.isfinite().all())
    assert torch.equal(result.filled[~holes], y[~holes])
    level = (y - y.mean(2, keepdim=True)).square().mean().sqrt()
    assert float((result.filled - y)[holes].square().mean().sqrt()) < 1.0 * float(level)


def test_one_missing_datum_changes_little_and_locally(y):
    hole = y.clone()
    hole[0, 0, 4, 12, 3] = math.nan
    one, two = method(15)(y, operator()), method(15)(hole, operator())
    assert float((one - two).abs().max()) < 0.05 * float(one.max())


def test_pixels_rarely_seen_have_no_say(y):
    """What is left of them may be anything."""
    rare = y.clone()
    rare[0, 0, : T - 4, 10, 22] = math.nan
    other = rare.clone()
    other[0, 0, T - 4 :, 10, 22] += torch.tensor([1e4, -1e4, 3e4, 0.0], dtype=torch.float64)
    one, two = (method(10)(s, operator()) for s in (rare, other))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-9 * float(one.max()))


def test_star_behind_a_mask_and_a_missing_frame(y):
    broken = y.clone()
    broken[..., separation(SIZE, STAR) < 4] = math.nan
    broken[0, 0, 5] = math.nan
    image = method()(broken, operator())
    assert bool(image.isfinite().all())
    assert error(image, scene(), operator()) < 0.6


# ------------------------------------------------------------------ batches, references, progress


def test_images_of_a_batch_do_not_mix(y, rng):
    angles = torch.stack([ANGLES, ANGLES * 0.7 + 20])
    physics = ADI((1, *SIZE), angles, operator().filter[0, 0, 0], STAR, sky_center=STAR,
                  dtype=torch.float64)  # fmt: skip
    both = torch.cat([y, speckles(rng) + physics.A(scene().repeat(2, 1, 1, 1))[1:]])
    result = method(8).reconstruct(both, physics)
    assert result.image.shape == (2, 1, *SIZE)
    assert result.filled.shape == both.shape
    assert len(result.likelihoods) == 2
    for n in range(2):
        alone = method(8)(both[n : n + 1], physics.sample(n))
        torch.testing.assert_close(result.image[n : n + 1], alone)


def test_sequences_of_one_operator(y, rng):
    both = torch.cat([y, speckles(rng) + operator().A(0.5 * scene())])
    result = method(8).reconstruct(both, operator())
    for n in range(2):
        alone = method(8).reconstruct(both[n : n + 1], operator())
        torch.testing.assert_close(result.image[n : n + 1], alone.image)
        torch.testing.assert_close(result.gradient_noise[n : n + 1], alone.gradient_noise)


def test_noise_of_the_gradient_is_the_null_one_at_the_image(y):
    result = method(8).reconstruct(y, operator())
    slope = result.likelihoods[0].of_residual(y - operator().A(result.image))[1]
    flipped = operator().variant(angles=-operator().angles)
    null = flipped.A_adjoint(slope)[0, 0]
    distance = separation(SIZE, STAR)
    for r in (4.0, 9.0):  # 1.48 times the median in a ring, whatever the width of the knots
        ring = (distance - r).abs() < 1
        expected = 1.4826 * null[ring].abs().median()
        found = result.gradient_noise[0, 0][ring].median()
        assert float(found / expected) == pytest.approx(1, abs=0.35)


def test_wavelengths(rng):
    x = scene().repeat(1, 2, 1, 1)
    x[:, 1] *= 2
    y = speckles(rng, 2) + operator(2).A(x)
    image = method()(y, operator(2))
    assert image.shape == (1, 2, *SIZE)
    for c in range(2):
        assert error(image[:, c : c + 1], x[:, c : c + 1], operator()) < 0.5


def test_wavelengths_in_other_units_do_not_mix(rng):
    y = speckles(rng, 2) + operator(2).A(scene().repeat(1, 2, 1, 1))
    expected = method()(y, operator(2))
    y[:, 1] *= 100
    image = method()(y, operator(2))
    image[:, 1] /= 100
    assert float((image - expected).norm()) < 0.2 * float(expected.norm())


def test_references_bring_back_what_hardly_turns(rng):
    """Two and a half degrees hide a disk; frames of another star show the speckles alone."""
    physics = ADI((1, *SIZE), ANGLES / 36, operator().filter[0, 0, 0], STAR, sky_center=STAR,
                  dtype=torch.float64)  # fmt: skip
    both = speckles(rng, frames=3 * T)
    # interleaved: the references share halo and patterns with the sequence
    pick = torch.arange(3 * T) % 3 == 0
    y = both[:, :, pick] + physics.A(scene())
    references = both[:, :, ~pick]
    alone = method(30)(y, physics)
    joined = method(30)(y, physics, references)
    assert error(joined, scene(), operator()) < 0.7 * error(alone, scene(), operator())
    assert error(joined, scene(), operator()) < 0.5


def test_progress_is_told_and_costs_fall(y):
    told = []
    method(6).reconstruct(y, operator(), callback=lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert len(stages) == len(Marginal().iterations)
    for stage in stages:
        steps = [(iteration, cost) for name, iteration, cost in told if name == stage]
        assert [i for i, _ in steps] == list(range(1, len(steps) + 1))
        assert len(steps) <= 6
        assert steps[-1][1] < steps[0][1]


def test_no_gradient_is_kept_and_the_input_is_left_alone(y):
    kept = y.clone()
    angles = operator().angles.clone()
    image = method(3)(y.requires_grad_(), operator())
    assert not image.requires_grad
    assert torch.equal(y.detach(), kept)
    assert torch.equal(operator().angles, angles)


def test_errors(y):
    with pytest.raises(ValueError, match=r"y must be of shape .*got \(1, 1, 11"):
        method()(y[:, :, 1:], operator())
    with pytest.raises(ValueError, match="no pixel is left"):
        method()(y * math.nan, operator())
    with pytest.raises(ValueError, match="references"):
        method()(y, operator(), y[:, :, :, 1:])
