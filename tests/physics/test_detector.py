"""Moments of photon and read-out noise, and saturation."""

from __future__ import annotations

import copy

import pytest
import torch
from deepinv.physics import Denoising

from deepinv_astro.physics import ADI, DetectorNoise, HeteroscedasticNoise, Saturation


def test_moments_of_batched_parameters(rng):
    gain, read, background = (
        torch.tensor([2.0, 5.0]),
        torch.tensor([3.0, 1.0]),
        torch.tensor([4.0, 9.0]),
    )
    noise = DetectorNoise(gain, read, background, rng=rng)
    z = torch.tensor([-3.0, 0.0, 50.0], dtype=torch.float64).expand(4, 1, 20_000, 3)
    y = noise(z)
    assert y.dtype == torch.float64
    for n in range(4):
        g, r, b = (float(p[n % 2]) for p in (gain, read, background))
        expected = (z[n, 0, 0] + b) / g + (r / g) ** 2
        torch.testing.assert_close(
            y[n, 0].mean(0), z[n, 0, 0], rtol=0, atol=float(5 * (expected.max() / 20_000).sqrt())
        )
        torch.testing.assert_close(y[n, 0].var(0), expected, rtol=0.06, atol=0)
        torch.testing.assert_close(noise.variance(z)[n, 0, 0], expected)


def test_without_read_noise_electrons_are_counted(rng):
    noise = DetectorNoise(4.0, 0.0, 2.5, rng=rng)
    electrons = 4 * (noise(torch.full((1, 2, 3, 5, 6), 7.0)) + 2.5)
    torch.testing.assert_close(electrons, electrons.round())
    assert electrons.unique().numel() > 10


def test_third_moment_is_that_of_photons(rng):
    """Skewness tells a Poisson law from a normal one: third central moment (z + b) / g^2."""
    noise = DetectorNoise(0.5, 1.0, 1.0, rng=rng)
    y = noise(torch.full((1, 1, 1000, 1000), 2.0, dtype=torch.float64))
    assert float((y - 2).pow(3).mean()) == pytest.approx(3.0 / 0.25, rel=0.1)


def test_map_of_background():
    background = torch.arange(6.0).reshape(2, 3)
    noise = DetectorNoise(1.0, 0.0, background)
    found = noise.variance(torch.zeros(2, 1, 4, 2, 3))
    assert torch.equal(found[1, 0, 2], background)


def test_negative_rates():
    x = torch.full((1, 1, 2, 2), -1.0)
    with pytest.raises(ValueError, match=r"got -2 electrons: give the background"):
        DetectorNoise(2.0)(x)
    assert torch.equal(DetectorNoise(2.0, clip_positive=True)(x), torch.zeros_like(x))


def test_seeded_and_restored(rng):
    noise, other = DetectorNoise(2.0, 3.0, 4.0, rng=rng), DetectorNoise(1.0, 0.0, 0.0, rng=rng)
    x = torch.full((2, 1, 3, 4), 6.0)
    first = noise(x, seed=1)
    assert torch.equal(first, noise(x, seed=1))
    other.load_state_dict(noise.state_dict())
    assert torch.equal(first, other(x, seed=1))
    assert torch.equal(first, copy.deepcopy(noise)(x, seed=1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conversion_gain": 0.0}, "must be positive"),
        ({"read_noise": -1.0}, "not negative"),
        ({"read_noise": torch.ones(1, 1)}, r"\(\) or \(b,\)"),
        ({"background": torch.ones(1, 1, 1, 1)}, r"\(H, W\)"),
    ],
)
def test_wrong_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        DetectorNoise(**given)


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        ({"background": torch.ones(2, 3)}, (1, 1, 3, 2), r"map of \(2, 3\)"),
        ({"conversion_gain": torch.ones(2)}, (3, 1, 2, 2), "batch of 3"),
        ({}, (2, 2), "must be real"),
    ],
)
def test_nothing_is_broadcast(given, shape, message):
    with pytest.raises(ValueError, match=message):
        DetectorNoise(**given)(torch.ones(shape))


def test_gain_of_frames_does_not_reach_the_detector():
    noise = DetectorNoise(3.0, 0.0, 1.0)
    physics = ADI((1, 5, 4), torch.tensor([0.0, 10.0]), gain=torch.ones(2), noise_model=noise)
    physics.update(gain=torch.tensor([2.0, 3.0]), read_noise=torch.tensor(2.0))
    assert float(noise.conversion_gain) == 3.0
    assert float(noise.read_noise) == 2.0
    assert physics.gain.tolist() == [[2.0, 3.0]]


def test_saturation_acts_after_the_noise():
    sensor = Saturation(1.5)
    physics = Denoising(HeteroscedasticNoise(1.0))
    physics = ADI(
        (1, 8, 9), torch.tensor([0.0, 10.0]), noise_model=physics.noise_model, sensor_model=sensor
    )
    x = torch.ones(2, 1, 8, 9)
    y = physics(x)
    assert float(y.max()) == 1.5
    assert 0.2 < float(sensor.saturated(y).float().mean()) < 0.4  # P(w > 1/2) = .31
    assert "sensor_model.level" in physics.state_dict()
    assert float(physics.A(2 * x).max()) > 1.5  # the operator stays linear


def test_saturation_levels():
    y = torch.full((4, 1, 2, 2, 3), 5.0, requires_grad=True)
    out = Saturation(torch.tensor([3.0, 7.0]))(y)
    assert out[:, 0, 0, 0, 0].tolist() == [3.0, 5.0, 3.0, 5.0]
    out.sum().backward()
    assert y.grad[:, 0, 0, 0, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    level = torch.tensor([[1.0, 2.0, 9.0], [torch.inf, 4.0, 6.0]])
    assert torch.equal(Saturation(level)(y)[1, 0, 1], level.clamp_max(5.0))
    with pytest.raises(ValueError, match="map of"):
        Saturation(level)(y.mT)
    with pytest.raises(ValueError, match="NaN"):
        Saturation(torch.nan)
