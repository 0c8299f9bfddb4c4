"""Recorrupted pairs: their moments, their independence, and the risk that the loss estimates."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import Denoising, GammaNoise, GaussianNoise, PoissonNoise, UniformNoise

from deepinv_astro.loss import RecorruptedLoss, recorrupt
from deepinv_astro.physics import DetectorNoise, HeteroscedasticNoise, StationaryNoise
from deepinv_astro.testing import (
    assert_loss_double,
    assert_loss_quiet,
    assert_unbiased,
    assert_validation_quiet,
)

NUMBER = 40_000
ALPHA = 0.3


class Bent(torch.nn.Module):
    def forward(self, y, physics):
        return 2 * torch.tanh(0.4 * y) + 0.2 * y.roll(1, -1)


def _two(*values: float, batch: int = 2) -> torch.Tensor:
    return torch.tensor(values).repeat(batch // 2)


# noise for a batch, of two parameters in turn (deepinv wants one for each image); its variance
# for image n at mean z
NOISES = {
    "gaussian": (
        lambda b: GaussianNoise(_two(0.5, 1.5, batch=b)),
        lambda n, z: (0.5, 1.5)[n] ** 2 + 0 * z,
    ),
    "channels": (
        lambda b: HeteroscedasticNoise(torch.tensor([[0.5, 1.0], [2.0, 0.2]]), per="channel"),
        lambda n, z: torch.tensor([[0.5, 1.0], [2.0, 0.2]])[n].square()[:, None, None] + 0 * z,
    ),
    "stationary": (lambda b: StationaryNoise(torch.ones(1, 2)), lambda n, z: 2 + 0 * z),
    "photons": (
        lambda b: DetectorNoise(_two(2.0, 0.7), 0.0, _two(1.0, 3.0)),
        lambda n, z: (z + (1.0, 3.0)[n]) / (2.0, 0.7)[n],
    ),
    "poisson": (lambda b: PoissonNoise(_two(0.4, 1.5, batch=b)), lambda n, z: (0.4, 1.5)[n] * z),
    "gamma": (lambda b: GammaNoise(torch.tensor(7.0)), lambda n, z: z.square() / 7),
}
each_noise = pytest.mark.parametrize(("make", "variance"), NOISES.values(), ids=NOISES)


@each_noise
def test_moments_and_independence(make, variance):
    z = torch.tensor([[[1.0, 3.0, 2.0]], [[4.0, 0.5, 2.0]]], dtype=torch.float64)
    noise = make(NUMBER)
    y = noise(z.expand(NUMBER, *z.shape).clone())
    pair = recorrupt(y, noise, ALPHA, torch.Generator().manual_seed(5))
    torch.testing.assert_close((1 - ALPHA) * pair.first + ALPHA * pair.second, y)
    for n in range(2):
        first, second = (p[n::2] - z for p in pair)
        wanted = variance(n, z)
        spread = (wanted / len(first)).sqrt()
        for part, share in ((first, 1 - ALPHA), (second, ALPHA)):
            assert bool((part.mean(0).abs() < 5 * spread / share**0.5).all())
            torch.testing.assert_close(part.var(0), wanted / share, rtol=0.1, atol=0)
        product = first * second
        error = product.std(0) / len(first) ** 0.5
        assert bool((product.mean(0).abs() < 5 * error).all())
        # of second order as well: independent, not only uncorrelated
        product = (first.square() - wanted / (1 - ALPHA)) * second
        assert bool((product.mean(0).abs() < 5 * product.std(0) / len(first) ** 0.5).all())


def test_covariance_of_the_pair_is_that_of_the_noise():
    noise = StationaryNoise(torch.ones(1, 2, dtype=torch.float64))
    y = noise(torch.zeros(NUMBER, 1, 1, 3, dtype=torch.float64))
    for part, share in zip(recorrupt(y, noise, ALPHA), (1 - ALPHA, ALPHA), strict=True):
        flat = part.flatten(1)
        expected = torch.tensor([[2.0, 1, 0], [1, 2, 1], [0, 1, 2]], dtype=torch.float64) / share
        torch.testing.assert_close(flat.T @ flat / NUMBER, expected, rtol=0, atol=0.08 / share)


@each_noise
def test_expectation_is_the_risk_and_a_constant(make, variance):
    """The input of the network has noise of variance v / (1 - alpha); the constant is v / alpha."""
    x = 0.5 + 3 * torch.rand(20, 2, 6, 7, generator=torch.Generator().manual_seed(0)).double()
    constant = torch.stack([variance(n % 2, one).mean() for n, one in enumerate(x)]) / ALPHA

    def risk(x_net, x, physics):
        return (x_net - x).square().flatten(1).mean(1) + constant

    loss = RecorruptedLoss(alpha=ALPHA)
    assert_unbiased(loss, Denoising(make(len(x))), Bent(), x, risk=risk, draws=200, resolution=0.05)


def test_seeded():
    for make, _ in NOISES.values():
        noise = make(2)
        y = noise(torch.full((2, 2, 3, 4), 2.0))
        first, again, other = (
            recorrupt(y, noise, 0.5, torch.Generator().manual_seed(s)).first for s in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_a_seeded_draw_leaves_the_global_generator():
    y, noise = torch.ones(1, 1, 2, 2), GammaNoise(2.0)
    state = torch.random.get_rng_state()
    recorrupt(y, noise, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.random.get_rng_state())


def test_draws_are_averaged_in_eval_mode():
    physics = Denoising(GaussianNoise(1.0))

    class Data(torch.nn.Module):
        def forward(self, y, physics):
            return y

    y = torch.zeros(1, 1, 100, 100)
    loss = RecorruptedLoss(alpha=0.5, samples=25)
    model = loss.adapt_model(Data())
    assert loss.adapt_model(model) is model
    assert float(model.train()(y, physics).std()) == pytest.approx(1.0, rel=0.05)
    assert float(model.eval()(y, physics).std()) == pytest.approx(0.2, rel=0.05)


def test_gradients_follow_the_caller():
    """No gradient under no_grad, also in training; a gradient in eval mode, also to the data."""
    model = RecorruptedLoss(GaussianNoise(1.0)).adapt_model(Bent())
    y = torch.zeros(1, 1, 3, 4, requires_grad=True)
    with torch.no_grad():
        assert not model.train()(y, Denoising()).requires_grad
    assert model.eval()(y, Denoising()).requires_grad


def test_other_metrics():
    loss = RecorruptedLoss(GaussianNoise(1.0), metric=torch.nn.L1Loss())
    model, y = loss.adapt_model(Bent()), torch.zeros(2, 1, 3, 4)
    x_net = model(y, Denoising(), update_parameters=True)
    found = loss(x_net=x_net, y=y, physics=Denoising(), model=model)
    torch.testing.assert_close(found, (x_net - model.target).abs().mean())


@pytest.mark.parametrize("noise", [make(2) for make, _ in NOISES.values()], ids=NOISES)
def test_laws(noise):
    x = 0.5 + torch.rand(2, 2, 4, 3)
    for law in (assert_loss_quiet, assert_validation_quiet):
        law(RecorruptedLoss(alpha=ALPHA), Denoising(noise), Bent(), x)
    if not isinstance(noise, DetectorNoise | PoissonNoise):  # counts of rounded rates may differ
        assert_loss_double(RecorruptedLoss(alpha=ALPHA), Denoising(noise), Bent(), x)


@pytest.mark.parametrize(
    ("noise", "y", "message"),
    [
        (DetectorNoise(2.0, 1.0), 1.0, "photons with read-out noise cannot be split"),
        (DetectorNoise(2.0), 1.25, "must be whole numbers of photons"),
        (DetectorNoise(2.0), -1.0, "must be whole numbers of photons"),
        (UniformNoise(0.1), 1.0, "UniformNoise is no Poisson-Gaussian"),
        (GammaNoise(torch.ones(2, 1, 1, 1)), 1.0, r"l must be of shape \(\) or \(b,\)"),
    ],
)
def test_noise_that_cannot_be_split(noise, y, message):
    with pytest.raises(ValueError, match=message):
        recorrupt(torch.full((2, 1, 2, 2), y), noise, 0.5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_wrong_shares(alpha):
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        recorrupt(torch.ones(1, 1, 2, 2), GaussianNoise(1.0), alpha)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        RecorruptedLoss(alpha=alpha)


def test_models_that_were_not_adapted_or_called():
    y, loss = torch.zeros(1, 1, 2, 2), RecorruptedLoss(GaussianNoise(1.0))
    model = loss.adapt_model(Bent())
    for wrong in (Bent(), model):
        with pytest.raises(ValueError, match="there is no target"):
            loss(x_net=y, y=y, physics=Denoising(), model=wrong)
    model(y, Denoising(), update_parameters=True)
    model.eval()(y, Denoising(), update_parameters=True)
    with pytest.raises(ValueError, match="in training mode"):
        loss(x_net=y, y=y, physics=Denoising(), model=model)
