"""REXPACO on tiny simulated sequences."""

from __future__ import annotations

import pytest
import torch

from deepinv_astro.optim.bounded import minimize_bounded
from deepinv_astro.optim.nuisance import PatchCovariance, PatchLikelihood
from deepinv_astro.optim.patches import Patches
from deepinv_astro.optim.regions import separation
from deepinv_astro.optim.rexpaco import (
    REXPACO,
    Prior,
    noise_relative_maps,
    penalised,
)
from deepinv_astro.physics import ADI

SIZE, FRAMES = (18, 21), 20


def operator(channels: int = 1, angles: torch.Tensor | None = None, **options) -> ADI:
    rows = torch.arange(-3, 4, dtype=torch.float64)
    psf = torch.exp(-(rows[:, None] ** 2 + rows[None, :] ** 2) / 3)
    psf = torch.stack([psf / psf.sum(), psf**2 / (psf**2).sum()])[:channels][None]
    angles = torch.linspace(-30, 60, FRAMES) if angles is None else angles
    return ADI((channels, *SIZE), angles, psf, dtype=torch.float64, **options)


def speckles(rng: torch.Generator, batch: int = 1, channels: int = 1) -> torch.Tensor:
    """Static halo, a few patterns with slow fluctuations, a little white noise; stronger near the star."""
    level = 20 * torch.exp(-separation(SIZE, (9, 10)) / 5) + 1
    patterns = torch.randn(batch, channels, 4, *SIZE, generator=rng, dtype=torch.float64)
    patterns = sum(patterns.roll((i, j), (-2, -1)) for i in range(3) for j in range(3)) / 3
    times = torch.randn(batch, channels, FRAMES, 4, generator=rng, dtype=torch.float64) / 2
    moving = torch.einsum("bctk,bckhw->bcthw", times, patterns)
    white = 0.1 * torch.randn(moving.shape, generator=rng, dtype=torch.float64)
    return level * (moving + white + 10)


def scene() -> torch.Tensor:
    x = torch.zeros(1, 1, *SIZE, dtype=torch.float64)
    x[..., 14, 6] = 60.0
    x[..., 4, 12:16] = 15.0
    return x


def method(**options) -> REXPACO:
    return REXPACO(**{"n_refinements": 3, "patch": (4, 5), "max_iter": 12, **options})


def error(image: torch.Tensor, truth: torch.Tensor, physics: ADI) -> float:
    return float((physics.A(image - truth)).norm() / physics.A(truth).norm())


def test_scene_is_recovered_and_better_than_with_white_noise(rng):
    physics, x = operator(), scene()
    y = speckles(rng) + physics.A(x)
    found = method().reconstruct(y, physics)
    variance = (y - y.mean(2, keepdim=True)).square().mean()

    def white(residual: torch.Tensor):
        centred = residual - residual.mean(2, keepdim=True)
        return 0.5 * centred.square().sum((1, 2, 3, 4)) / variance, centred / variance

    plain = []
    for factor in (1.0, 3.0, 10.0):  # the best of three strengths
        prior = Prior(*noise_relative_maps(white, y, physics), factor * 0.1, factor * 0.2)
        plain.append(
            minimize_bounded(
                penalised(white, prior, y, physics), torch.zeros_like(x), max_iter=75
            ).x
        )
    assert error(found.image, x, physics) < 0.7 * min(error(p, x, physics) for p in plain)
    assert error(found.image, x, physics) < 0.6
    assert divmod(int(found.image.argmax()), SIZE[1]) == (14, 6)
    assert found.image.min() >= 0


@pytest.mark.parametrize("refinement", ["alternate", "joint"])
@pytest.mark.parametrize("unit", [1e6, 1e-6])
def test_result_scales_with_the_unit(refinement, unit, rng):
    physics = operator()
    y = speckles(rng) + physics.A(scene())
    reconstruct = method(n_refinements=2, max_iter=10, refinement=refinement)
    torch.testing.assert_close(
        reconstruct(unit * y, physics) / unit, reconstruct(y, physics), rtol=1e-4, atol=1e-4
    )


def test_empty_sky_stays_near_zero(rng):
    physics = operator()
    y = speckles(rng)
    image = method()(y, physics)
    level = (y - y.mean(2, keepdim=True)).square().mean(2).sqrt()
    assert float((physics.A(image)[:, :, 0] / level).max()) < 0.5


def test_images_and_wavelengths_do_not_mix(rng):
    angles = torch.stack([torch.linspace(0, 80, FRAMES), torch.linspace(50, -40, FRAMES)])
    physics = operator(2, angles)
    y = speckles(rng, 2, 2) + physics.A(scene().repeat(2, 2, 1, 1))
    reconstruct = method(n_refinements=2, max_iter=8)
    together = reconstruct.reconstruct(y, physics)
    assert together.image.shape == (2, 2, *SIZE)
    alone = operator(2, angles[1:])
    alone = ADI((1, *SIZE), angles[1], alone.filter[0, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(
        together.image[1:, 1:], reconstruct(y[1:, 1:], alone), rtol=1e-6, atol=1e-6
    )
    assert len(together.statistics) == len(together.history) == 2
    assert [len(steps) for steps in together.history[0]] == [2, 2]


def test_one_channel_of_an_operator_is_that_channel(rng):
    angles = torch.stack([torch.linspace(0, 80, FRAMES), torch.linspace(50, -40, FRAMES)])
    physics = operator(
        2, angles, gain=torch.rand(2, FRAMES) + 1, center=torch.rand(2, FRAMES, 2) + 10
    )
    x = torch.rand(2, 2, *SIZE, generator=rng, dtype=torch.float64)
    y = physics.A(x)
    for n in range(2):
        for c in range(2):
            torch.testing.assert_close(
                physics.sample(n).channel(c).A(x[n : n + 1, c : c + 1]), y[n : n + 1, c : c + 1]
            )


def test_missing_data_cost_little_and_infect_nothing(rng):
    physics, x = operator(), scene()
    y = speckles(rng) + physics.A(x)
    bad = torch.rand(y.shape, generator=rng) < 0.01
    bad[..., 9, 17] = True
    reconstruct = method(n_refinements=2)
    image, whole = (reconstruct(data, physics) for data in (y.masked_fill(bad, torch.nan), y))
    assert image.isfinite().all()
    assert error(image, x, physics) < 1.2 * error(whole, x, physics) + 0.02
    zeroed = y.clone()
    zeroed[..., :4] = 0.0  # outside the field of view
    nan = y.clone()
    nan[..., :4] = torch.nan
    reconstruct = method(n_refinements=1, max_iter=5)
    torch.testing.assert_close(reconstruct(zeroed, physics), reconstruct(nan, physics))


def test_history_and_callback(rng):
    physics = operator()
    y = speckles(rng) + physics.A(scene())
    seen: list[int] = []
    found = method(max_iter=5).reconstruct(y, physics, lambda k, cost: seen.append(k))
    (steps,) = found.history[0]
    assert seen == list(range(1, sum(s.iterations for s in steps) + 1))
    assert steps[-1].change < steps[0].change == 1.0
    final = method().covariance(SIZE).estimate(y - physics.A(found.image))
    torch.testing.assert_close(found.statistics[0][0].precision, final.precision)


def test_weights_are_the_spread_of_the_gradient_of_noise(rng):
    """For white noise of variance v, the gradient of the likelihood at pixel p has variance |A e_p|^2 / v."""
    physics, variance = operator(), 4.0
    noise = variance**0.5 * torch.randn(1, 1, FRAMES, *SIZE, generator=rng, dtype=torch.float64)
    weight, std = noise_relative_maps(
        lambda r: (0.5 * r.square().sum().view(1) / variance, r / variance), noise, physics
    )
    for place in [(14, 10), (6, 14), (4, 6)]:
        x = torch.zeros(1, 1, *SIZE, dtype=torch.float64)
        x[(0, 0, *place)] = 1
        expected = float(physics.A(x).norm()) / variance**0.5
        assert float(weight[(0, 0, *place)]) == pytest.approx(expected, rel=0.4)
        assert float(std[(0, 0, *place)]) == pytest.approx(variance**0.5, rel=0.15)


def test_prior_gradient(rng):
    x = torch.rand(1, 1, 4, 6, generator=rng, dtype=torch.float64)
    weight, epsilon = (
        torch.rand(1, 1, 4, 6, generator=rng, dtype=torch.float64) + 0.2 for _ in range(2)
    )
    prior = Prior(weight, epsilon, 0.3, 0.7)
    move = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    slope = (
        prior.cost_and_gradient(x + 1e-5 * move)[0] - prior.cost_and_gradient(x - 1e-5 * move)[0]
    ) / 2e-5
    torch.testing.assert_close(
        slope, (prior.cost_and_gradient(x)[1] * move).sum(), rtol=1e-7, atol=0
    )


def test_selected_factor_is_not_far_from_the_best(rng):
    physics, x = operator(), scene()
    y = speckles(rng) + physics.A(x)
    factors = (0.1, 1.0, 30.0)
    reconstruct = method(n_refinements=2, max_iter=20)
    found = reconstruct.select(y, physics, factors, rng)
    assert found.candidates == factors
    assert found.choice in (0.1, 1.0)
    assert found.risks[2] > found.risks[1]
    statistics = PatchCovariance(Patches.grid(SIZE, (4, 5))).estimate(speckles(rng))
    assert PatchLikelihood(statistics).fn(x, y, physics).shape == (1,)


def test_bad_arguments_are_refused(rng):
    with pytest.raises(ValueError, match="n_refinements"):
        REXPACO(n_refinements=0)
    with pytest.raises(ValueError, match="smoothness"):
        REXPACO(smoothness=-1.0)
    with pytest.raises(ValueError, match="epsilon"):
        REXPACO(epsilon=0.0)
    with pytest.raises(ValueError, match="scale factors"):
        REXPACO(refinement="joint", scale="robust")
    with pytest.raises(ValueError, match="y must be of shape"):
        method()(torch.zeros(1, 1, FRAMES - 1, *SIZE), operator())


def test_statistics_of_each_refinement_are_those_of_the_last_residual(rng, monkeypatch):
    physics = operator()
    y = speckles(rng) + physics.A(scene())
    residuals = []
    estimate = PatchCovariance.estimate

    def spy(self, residual):
        residuals.append(residual)
        return estimate(self, residual)

    monkeypatch.setattr(PatchCovariance, "estimate", spy)
    images = [method(n_refinements=n, max_iter=4)(y, physics) for n in (1, 2)]
    assert len(residuals) == 2 + 3
    torch.testing.assert_close(residuals[3], y - physics.A(images[0]))
    torch.testing.assert_close(residuals[4], y - physics.A(images[1]))
    assert torch.equal(residuals[2], y)
