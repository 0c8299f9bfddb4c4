"""Noise drawn as UNSURE knows it: the covariance of many draws, and its life beside the loss."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Denoising, ZeroNoise
from deepinv.transform import Shift

from deepinv_astro.loss import (
    CovarianceFamily,
    EquivariantLoss,
    FittedNoise,
    PoissonGaussian,
    RegionVariances,
    StationaryKernel,
    UNSURELoss,
)
from deepinv_astro.testing import assert_loss_quiet, assert_loss_state_restored, dense_matrix

SIZE = (4, 3)
LABELS = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 1], [0, -1, 0]])
KERNEL = torch.tensor([[1.0, 0.6], [-0.3, 0.2]], dtype=torch.float64)


def _learned(family, multipliers):
    loss = UNSURELoss(family)
    truth = torch.tensor(multipliers, dtype=torch.float64)
    state = {"multipliers": truth, "ceiling": 4 * truth.abs(), "started": torch.tensor(True)}
    loss.double().load_state_dict({**loss.state_dict(), **state})
    return loss


def _autocorrelation():
    """Of the kernel, at the lags of the family."""
    wide = torch.nn.functional.pad(KERNEL, (1, 1, 1, 1))
    lags = StationaryKernel(2).lags
    return [float((wide * wide.roll((i, j), (0, 1))).sum()) for i, j in lags]


FAMILIES = {
    "regions": (RegionVariances(LABELS), [1.0, 4.0]),
    "kernel": (StationaryKernel(2), _autocorrelation()),
    "photons": (PoissonGaussian(), [0.5, 0.25]),
}


@pytest.mark.parametrize(("family", "multipliers"), FAMILIES.values(), ids=FAMILIES)
def test_covariance_of_draws(family, multipliers):
    """Entry by entry, against the products of the family."""
    draws = 20000
    z = torch.arange(12.0, dtype=torch.float64).view(1, 1, *SIZE)
    noise = FittedNoise(_learned(family, multipliers), torch.Generator().manual_seed(0))
    drawn = (noise(z.expand(draws, -1, -1, -1)) - z).flatten(1)
    eta = torch.tensor(multipliers, dtype=torch.float64)
    expected = dense_matrix(lambda v: family.apply_to(eta, v, z), z)
    found = drawn.T @ drawn / draws
    variances = expected.diagonal()
    error = ((variances[:, None] * variances + expected.square()) / draws).sqrt()
    assert ((found - expected).abs() <= 5 * error + 1e-12).all()
    assert (drawn.mean(0).abs() <= 5 * (variances / draws).sqrt() + 1e-12).all()


def test_sequences_and_seed():
    noise = FittedNoise(_learned(StationaryKernel((1, 3)), [2.0, 1.0, 0.5]), torch.Generator())
    z = torch.zeros(2, 1, 3, *SIZE)
    found = noise(z, seed=1)
    assert found.dtype == torch.float32
    assert torch.equal(found, noise(z, seed=1))
    assert not torch.equal(found, noise(z, seed=2))
    assert len(found.flatten(0, 2).unique(dim=0)) == 6


class Half(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, y, physics):
        return self.a * y


def test_follows_the_loss_and_leaves_it():
    """Silent until the loss has begun; then as noisy as it says, without a gradient to it."""
    fidelity, model = UNSURELoss(), Half()
    noise = FittedNoise(fidelity, torch.Generator().manual_seed(0))
    physics, z = Denoising(ZeroNoise()), torch.zeros(4, 1, 64, 64)
    assert torch.equal(noise(z), z)
    y = 3 * torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    loss = EquivariantLoss(Shift(), noise_model=noise)
    x_net = model(y, physics)
    sum(
        one(x_net=x_net, y=y, physics=physics, model=model).mean() for one in (fidelity, loss)
    ).backward()
    level = fidelity.multipliers.clone()
    assert level.isfinite().all()
    torch.testing.assert_close(noise(z).square().mean(), level[0], rtol=0.05, atol=0)
    value = loss(x_net=0 * y, y=y, physics=physics, model=model).mean()
    torch.testing.assert_close(value.detach(), level[0] / 4, rtol=0.05, atol=0)
    value.backward()
    assert torch.equal(fidelity.multipliers, level)


def test_laws():
    losses = []
    for level in (0.1, 0.3):
        noise = FittedNoise(_learned(RegionVariances(), [level]))
        noise.loss.velocity += level
        losses.append(EquivariantLoss(Shift(rng=torch.Generator()), noise_model=noise))
    physics, x = Denoising(ZeroNoise()), torch.ones(2, 1, 5, 4, dtype=torch.float64)
    assert_loss_state_restored(*losses, physics, Half().double(), x)
    assert_loss_quiet(losses[0], physics, Half().double(), x)


class _Other(CovarianceFamily):
    def fields(self, v, y):
        return v[None]

    def pilot(self, y):
        return y.new_ones(1)


def test_family_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="noise of _Other cannot be drawn"):
        FittedNoise(UNSURELoss(_Other(1)))
