"""Frame gains against the moments of their law."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.physics.generator import GainGenerator


def test_mean_scatter_and_memory():
    scatter, tau = 0.3, 4.0
    generator = GainGenerator(50, scatter, tau, dtype=torch.float64)
    gain = generator.step(4000, seed=0)["gain"]
    assert float(gain.mean()) == pytest.approx(1.0, abs=0.01)
    z = (gain.log() + scatter**2 / 2) / scatter
    assert float(z[:, 0].std()) == pytest.approx(1.0, abs=0.05)  # stationary from the first frame
    assert float(z[:, -1].std()) == pytest.approx(1.0, abs=0.05)
    for lag in (1, 5):
        correlation = float((z[:, lag:] * z[:, :-lag]).mean())
        assert correlation == pytest.approx(math.exp(-lag / tau), abs=0.02)


def test_no_memory_and_no_scatter():
    z = GainGenerator(40, 0.2, 0.0, dtype=torch.float64).step(1000, seed=1)["gain"].log()
    z = z - z.mean()
    assert abs(float((z[:, 1:] * z[:, :-1]).mean() / z.var())) < 0.02
    assert torch.equal(GainGenerator(3, 0.0).step(2, seed=0)["gain"], torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_generator_contract(dtype):
    generator = GainGenerator(6, dtype=dtype)
    first = generator.step(2, seed=3)["gain"]
    assert first.shape == (2, 6)
    assert first.dtype == dtype
    torch.testing.assert_close(generator.step(2, seed=3)["gain"], first, rtol=0, atol=0)
    assert not torch.equal(generator.step(2)["gain"], first)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="n_frames=0"):
        GainGenerator(0)
    with pytest.raises(ValueError, match="must not be negative"):
        GainGenerator(3, scatter=-0.1)
