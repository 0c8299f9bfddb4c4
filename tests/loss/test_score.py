"""The closed form of UNSURE through a score, exact and learned."""

from __future__ import annotations

import math

import pytest
import torch
from deepinv.physics import Denoising, PoissonGaussianNoise

from deepinv_astro.loss import (
    PoissonGaussian,
    RegionVariances,
    ScoreDenoiser,
    ScoreMatchingLoss,
    StationaryKernel,
    closed_form_multipliers,
)
from deepinv_astro.testing import assert_loss_quiet, assert_validation_quiet

PHYSICS = Denoising()


class Shrinking(torch.nn.Module):
    """A learned gain for each channel."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, y, physics):
        return self.gain * y


def _trained(model, draw, steps=300, lr=5e-2):
    loss = ScoreMatchingLoss(0.1, rng=torch.Generator().manual_seed(5))
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss(y=draw(), physics=PHYSICS, model=model).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("shape", [(16, 2, 12, 10), (4, 2, 5, 8, 10)])
def test_learned_score_of_gaussians(shape):
    """y of variances 1 and 9: the score is -y / variance, the multipliers the variances."""
    generator = torch.Generator().manual_seed(0)
    std = torch.tensor([1.0, 3.0]).view(2, *[1] * (len(shape) - 2))

    def draw():
        return std * torch.randn(shape, generator=generator)

    family = RegionVariances(torch.arange(2).view(2, *[1] * (len(shape) - 2)))
    backbone = Shrinking(2)
    if len(shape) == 5:
        backbone.gain = torch.nn.Parameter(torch.ones(2, 1, 1, 1))
    model = _trained(ScoreDenoiser(backbone, 1.5, family, decay=0.9), draw)
    slopes = (backbone.gain.flatten() - 1) / 1.5**2
    torch.testing.assert_close(slopes, torch.tensor([-1.0, -1 / 9]), rtol=0.06, atol=0.01)
    torch.testing.assert_close(model.multipliers, torch.tensor([1.0, 9.0]), rtol=0.06, atol=0)
    y = draw()
    assert model.eval()(y, PHYSICS).abs().max() < 0.1 * y.abs().max()


def test_kernel_of_pure_noise():
    """With y noise alone, s = -Sigma^-1 y, the multipliers are those of Sigma and f = 0."""
    size = 32
    omega = 2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64)
    spectrum = (1.5 + 0.8 * torch.cos(omega)).expand(size, size)  # lags 1.5 and .4
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(60, 1, size, size, generator=generator, dtype=torch.float64)
    y = torch.fft.ifft2(torch.fft.fft2(white) * spectrum.sqrt()).real

    class Exact(torch.nn.Module):
        def forward(self, y, physics):
            return y - torch.fft.ifft2(torch.fft.fft2(y) / spectrum).real

    family = StationaryKernel((1, 3))
    model = ScoreDenoiser(Exact(), 1.0, family).double()
    model.observe(y, model.score(y, PHYSICS))
    expected = torch.tensor([1.5, 0.4, 0.0], dtype=torch.float64)
    torch.testing.assert_close(model.multipliers, expected, rtol=0.03, atol=0.05)
    interior = model(y, PHYSICS)[..., 4:-4]
    assert interior.square().mean() < 0.01


def test_photons_and_read_out():
    """A matrix that is not diagonal; then fields of many fluxes, whose score is known."""
    gram = torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    expected = torch.linalg.solve(gram, torch.tensor([1.0, 3.0]))
    found = closed_form_multipliers(gram, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found, expected)

    gain, read = 0.05, 0.5
    flux = torch.linspace(5, 40, 200).view(-1, 1, 1, 1)
    torch.manual_seed(0)
    y = PoissonGaussianNoise(gain, read)(flux.expand(200, 1, 60, 60))
    # the score of a Gaussian of the same variance, with the skewness of the photons
    variance, away = gain * flux + read**2, y - flux
    s = -away / variance + 0.5 * gain / variance * (away.square() / variance - 1)
    family = PoissonGaussian()
    found = closed_form_multipliers(family.gram(s, y), family.volumes(y))
    assert float(found[1]) == pytest.approx(gain, rel=0.03)
    assert float(found[0]) == pytest.approx(read**2, rel=0.1)


def test_laws():
    x = torch.rand(2, 1, 6, 5)
    model = ScoreDenoiser(Shrinking(), 0.5)
    with torch.no_grad():
        model.backbone.gain.fill_(0.6)
    loss = ScoreMatchingLoss()
    assert_loss_quiet(loss, PHYSICS, model, x)
    assert_validation_quiet(loss, PHYSICS, model, x)
    assert not model.gram.any()
    loss(y=x, physics=PHYSICS, model=model).mean().backward()
    state = model.state_dict()
    other = ScoreDenoiser(Shrinking(), 0.5)
    other.load_state_dict(state)
    assert other.multipliers > 0
    torch.testing.assert_close(other(x, PHYSICS), model(x, PHYSICS))
    model.eval()
    before = model.gram.clone()
    loss(y=x, physics=PHYSICS, model=model).mean().backward()
    assert torch.equal(before, model.gram)


def test_value_is_that_of_score_matching():
    """For s = c y, the limit is c^2 y^2 + 2 c, in double precision."""
    model = ScoreDenoiser(Shrinking().double(), 1.0)
    with torch.no_grad():
        model.backbone.gain.fill_(0.6)  # c = -.4
    y = 2 * torch.randn(400, 1, 20, 20, dtype=torch.float64)
    value = ScoreMatchingLoss(0.01)(y=y, physics=PHYSICS, model=model).mean()
    assert value.dtype == torch.float64
    assert float(value.detach()) == pytest.approx(0.16 * 4 - 0.8, abs=0.1)


def test_errors():
    with pytest.raises(ValueError, match="ScoreDenoiser"):
        ScoreMatchingLoss()(y=torch.ones(1, 1, 2, 2), physics=PHYSICS, model=torch.nn.Identity())
    with pytest.raises(ValueError, match="delta"):
        ScoreMatchingLoss(0.0)
    with pytest.raises(ValueError, match="scale"):
        ScoreDenoiser(Shrinking(), 0.0)
