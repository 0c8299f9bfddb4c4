"""UNSURE: the laws of losses, the solution on closed forms, starts, state, and its reading."""

from __future__ import annotations

import copy
import math

import deepinv
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise

from deepinv_astro.loss import (
    PoissonGaussian,
    RegionVariances,
    StationaryKernel,
    UNSURELoss,
    corrected_variance,
    estimate_noise,
)
from deepinv_astro.physics import DetectorNoise, HeteroscedasticNoise, StationaryNoise
from deepinv_astro.testing import (
    assert_loss_double,
    assert_loss_quiet,
    assert_loss_state_restored,
    assert_unbiased,
    assert_validation_quiet,
    measurement_risk,
)

LABELS = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 2], [2, 2, 2, 2]])
KERNEL = torch.tensor([[0.5, 1.0], [-0.3, 0.8]])


class Bent(torch.nn.Module):
    """A smooth reconstructor that is not linear, uses neighbours, and can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.6))

    def forward(self, y, physics):
        return self.gain * y + 0.3 * torch.tanh(y.roll(1, -1)) - 0.2 * y.roll(1, -2)


def _families():
    """Each family, and a noise that it holds with its multipliers."""
    kernel = StationaryKernel(2)
    lags = torch.tensor(
        [
            float((KERNEL**2).sum()),
            0.5 * 1.0 + -0.3 * 0.8,  # (0, 1)
            1.0 * -0.3,  # (1, -1)
            0.5 * -0.3 + 1.0 * 0.8,  # (1, 0)
            0.5 * 0.8,  # (1, 1)
        ]
    )
    return {
        "white": (RegionVariances(), torch.tensor([0.25]), GaussianNoise(0.5)),
        "regions": (
            RegionVariances(LABELS),
            torch.tensor([0.04, 0.5, 1.3]),
            HeteroscedasticNoise(torch.tensor([0.04, 0.5, 1.3]).sqrt(), "region", LABELS),
        ),
        "kernel": (kernel, lags, StationaryNoise(KERNEL)),
    }


def _known(name, shape=(2, 3, 3, 4), **options):
    """A loss that holds the truth, as if it had been learned."""
    family, truth, noise = _families()[name]
    loss = UNSURELoss(family, **options)
    loss.load_state_dict(
        {
            **loss.state_dict(),
            "multipliers": truth,
            "ceiling": 4 * truth,
            "started": torch.tensor(True),
        }
    )
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    return loss, Denoising(noise), x


# ---------------------------------------------------------------- laws
@pytest.mark.parametrize("name", ["white", "regions", "kernel"])
def test_unbiased_at_the_truth(name):
    loss, physics, x = _known(name, shape=(20, 3, 3, 4), tau=1e-2)
    assert_unbiased(loss, physics, Bent(), x, draws=400)


def test_normalized_is_the_risk_in_that_metric():
    loss, physics, x = _known("regions", shape=(20, 3, 3, 4), normalized=True)
    weight = 1 / torch.tensor([0.04, 0.5, 1.3])[LABELS]

    def risk(x_net, x, physics):
        return measurement_risk(weight.sqrt() * x_net, weight.sqrt() * x, physics)

    assert_unbiased(loss, physics, Bent(), x, risk=risk, draws=400)


def test_poisson_gaussian_unbiased_at_the_truth():
    noise = DetectorNoise(4.0, read_noise=2.0)  # gain of 1/4 per electron, variance of 1/4
    loss = UNSURELoss(PoissonGaussian())
    state = {"multipliers": torch.tensor([0.25, 0.25]), "ceiling": torch.ones(2)}
    loss.load_state_dict({**loss.state_dict(), **state, "started": torch.tensor(True)})

    class Linear(torch.nn.Module):  # the first order is exact for it
        def forward(self, y, physics):
            return 0.7 * y + 0.2 * y.roll(1, -1)

    assert_unbiased(loss, Denoising(noise), Linear(), 5 + torch.rand(20, 1, 3, 4), draws=400)


@pytest.mark.parametrize("name", ["white", "regions", "kernel"])
def test_state(name):
    family, truth, noise = _families()[name]
    physics, x = Denoising(noise), torch.rand(2, 1, 3, 4)
    losses = [UNSURELoss(copy.deepcopy(family), init) for init in (truth, 2 * truth)]
    losses[1].load_state_dict(
        {k: v + 1 if v.is_floating_point() else v for k, v in losses[1].state_dict().items()}
    )
    assert_loss_state_restored(*losses, physics, Bent(), x)


@pytest.mark.parametrize("name", ["white", "regions", "kernel"])
def test_quiet_and_double(name):
    family, truth, noise = _families()[name]
    physics, x, model = Denoising(noise), torch.rand(2, 1, 6, 4), Bent()
    if name == "regions":
        x = torch.rand(2, 1, 3, 4)
    loss = UNSURELoss(family, truth / 10)
    assert_loss_quiet(loss, physics, model, x)
    assert_validation_quiet(loss, physics, model, x)
    assert_loss_double(loss, physics, model, x)


def test_moves_with_backward_alone():
    loss, model, y = UNSURELoss(), Bent(), torch.randn(2, 1, 8, 8)
    value = loss(x_net=model(y, None), y=y, physics=Denoising(), model=model)
    assert torch.isinf(loss.multipliers).all()
    value.mean().backward()
    first = loss.multipliers.clone()
    assert torch.isfinite(first).all()
    assert not loss.multipliers.requires_grad
    loss(x_net=model(y, None), y=y, physics=Denoising(), model=model).mean().backward()
    assert not torch.equal(loss.multipliers, first)


def test_momentum():
    """For f = y each slope is 1: u = 1 - beta^n after n steps, and log eta grows by alpha u."""

    class Identity(Bent):
        def forward(self, y, physics):
            return y * (self.gain / 0.6)

    model, y = Identity(), torch.randn(2, 1, 16, 16, dtype=torch.float64)
    loss = UNSURELoss(rate=0.1, momentum=0.8)
    for _ in range(3):
        loss(x_net=model(y, None), y=y, physics=Denoising(), model=model).mean().backward()
    start = float(loss.family.pilot(y)) / 2
    growth = 0.1 * sum(1 - 0.8**n for n in (1, 2, 3))
    assert float(loss.velocity) == pytest.approx(1 - 0.8**3, rel=1e-4)
    assert float(loss.multipliers) == pytest.approx(start * math.exp(growth), rel=1e-4)


def test_gradient_of_the_reconstructor_is_that_of_the_lagrangian():
    """Also while the multipliers move in the same backward pass."""
    loss, physics, x = _known("kernel", shape=(2, 1, 6, 5), rng=torch.Generator())
    y, model = physics(x), Bent()
    loss.rng.manual_seed(1)
    value = loss(x_net=model(y, physics), y=y, physics=physics, model=model).mean()
    value.backward()
    loss.eval()
    _, truth, _ = _families()["kernel"]
    loss.multipliers.copy_(truth)
    values = []
    for change in (1e-2, -1e-2):
        loss.rng.manual_seed(1)
        moved = Bent()
        with torch.no_grad():
            moved.gain.add_(change)
            values.append(loss(x_net=moved(y, physics), y=y, physics=physics, model=moved).mean())
    assert model.gain.grad.item() == pytest.approx(float(values[0] - values[1]) / 2e-2, rel=1e-2)


# ---------------------------------------------------------------- solutions
class Circular(torch.nn.Module):
    """A circular convolution, which is the best there is for stationary Gaussian signals."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.zeros(size, size))
        with torch.no_grad():
            self.kernel[0, 0] = 1.0

    def forward(self, y, physics):
        return torch.fft.ifft2(torch.fft.fft2(y) * torch.fft.fft2(self.kernel)).real


def _train(loss, model, draw, steps, lr):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    physics = Denoising()
    for _ in range(steps):
        y = draw()
        optimizer.zero_grad()
        loss(x_net=model(y, physics), y=y, physics=physics, model=model).mean().backward()
        optimizer.step()


def test_kernel_on_gaussian_signals():
    """All is known: the score of y has the spectrum 1 / S_y, hence eta = Q^-1 v in Fourier space."""
    size, generator = 16, torch.Generator().manual_seed(0)
    omega = 2 * math.pi * torch.fft.fftfreq(size)
    signal = 4 * torch.exp(-4 * (omega[:, None] ** 2 + omega**2))
    family = StationaryKernel((1, 2))
    rows = omega[:, None].expand(size, size)
    columns = omega.expand(size, size)
    noise = 1 + 2 * 0.4 * torch.cos(columns)  # lags (0, 0) and (0, 1) of 1 and .4
    power = signal + noise
    psi = torch.stack([torch.ones_like(rows), 2 * torch.cos(columns)]).flatten(1)
    q = psi @ (psi / power.flatten()).mT / size**2
    expected = torch.linalg.solve(q, torch.tensor([1.0, 0.0]))

    def draw():
        white = torch.randn(16, 1, size, size, generator=generator)
        return torch.fft.ifft2(torch.fft.fft2(white) * power.sqrt()).real

    loss = UNSURELoss(family, torch.tensor([0.1, 0.0]), rate=0.02, rng=generator)
    _train(loss, Circular(size), draw, 500, 5e-3)
    assert torch.allclose(loss.multipliers, expected, rtol=0.06, atol=0.03)
    assert expected[0] > 1.03  # larger than the noise, as the theory says


@pytest.mark.parametrize("start", [0.1, 1.0, 10.0])
def test_starts(start):
    """Two frames whose noise differs by 16, a gain for each: it ends where eta = E y^2."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).view(2, 1, 1).expand(2, 8, 8)
    sigma2 = torch.tensor([1.0, 16.0])

    class Gains(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(2))

        def forward(self, y, physics):
            return self.gain[labels] * y

    def draw():
        x = torch.randn(64, 2, 8, 8, generator=generator)
        return x + sigma2.sqrt()[labels] * torch.randn(64, 2, 8, 8, generator=generator)

    loss = UNSURELoss(
        RegionVariances(labels), start * sigma2, rate=0.05, normalized=True, rng=generator
    )
    _train(loss, Gains(), draw, 300, 2e-2)
    assert torch.allclose(loss.multipliers, 1 + sigma2, rtol=0.05)


def test_ceiling_and_start():
    y = 3 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    loss, model = UNSURELoss(init=torch.tensor([900.0])), Bent()
    pilot = loss.family.pilot(y)
    assert float(pilot) == pytest.approx(9, rel=0.1)
    loss(x_net=model(y, None), y=y, physics=Denoising(), model=model).mean().backward()
    assert float(loss.multipliers) == pytest.approx(float(pilot) / 2, rel=0.03)

    class Expanding(Bent):  # a divergence that says "more" for ever
        def forward(self, y, physics):
            return (1 + self.gain) * y

    model = Expanding()
    for _ in range(200):
        loss(x_net=model(y, None), y=y, physics=Denoising(), model=model).mean().backward()
    assert float(loss.multipliers) == pytest.approx(4 * float(pilot))


def test_other_axes():
    """Frames of sequences; excluded pixels count for nothing, whatever they hold."""
    labels = torch.tensor([0, 1, -1]).view(3, 1, 1)
    y = torch.randn(2, 1, 3, 8, 9)
    y[:, :, 2] = 1e4
    model = torch.nn.Conv3d(1, 1, 1)
    loss = UNSURELoss(RegionVariances(labels), normalized=True)

    class OfData(torch.nn.Module):
        def forward(self, y, physics):
            return model(y)

    loss(x_net=model(y), y=y, physics=Denoising(), model=OfData()).mean().backward()
    assert loss.multipliers.shape == (2,)
    assert (loss.multipliers < 5).all()
    assert all(p.grad.abs().max() < 100 for p in model.parameters())


# ---------------------------------------------------------------- reading
def test_correction_on_a_closed_form():
    """Bernoulli-Gaussian pixels: the best divergence-free f, then sigma from it."""
    share, spread, sigma = 0.05, 3.0, 0.5
    generator = torch.Generator().manual_seed(0)
    shape = (20, 1, 100, 100)
    x = spread * torch.randn(shape, generator=generator)
    x = x * (torch.rand(shape, generator=generator) < share)
    y = x + sigma * torch.randn(shape, generator=generator)
    total = spread**2 + sigma**2

    def score(y):
        odds = share / (1 - share) * sigma / total**0.5
        weight = torch.sigmoid(math.log(odds) + 0.5 * y**2 * (1 / sigma**2 - 1 / total))
        return -y * ((1 - weight) / sigma**2 + weight / total)

    eta = 1 / score(y).square().mean()
    mmse = (y + sigma**2 * score(y) - x).square().mean()
    assert float(eta) == pytest.approx(sigma**2 / (1 - float(mmse) / sigma**2), rel=0.02)

    class Best(torch.nn.Module):
        def forward(self, y, physics):
            return y + eta * score(y)

    loss = UNSURELoss(init=eta.view(1))
    state = {**loss.state_dict(), "multipliers": eta.view(1), "started": torch.tensor(True)}
    loss.load_state_dict(state)
    # the residual says nothing about sigma: it is eta
    assert float((y - Best()(y, None)).square().mean()) == pytest.approx(float(eta), rel=1e-3)
    found = estimate_noise(loss, y, Denoising(), Best(), smooth=1, quantile=0.3)
    assert math.sqrt(float(eta)) > 1.05 * sigma
    assert math.sqrt(float(found.variance)) == pytest.approx(sigma, rel=0.02)
    assert float(found.ratio) == pytest.approx(float(mmse) / sigma**2, rel=0.15)


def test_correction_formula():
    found = corrected_variance(torch.tensor([2.0, 2.0]), torch.tensor([-1.0, 0.3]))
    assert found.variance.tolist() == [1.0, 2.0]
    assert found.ratio.tolist() == [0.5, 0.0]


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": torch.ones(2)}, "1 multipliers"),
        ({"init": -torch.ones(1)}, "positive"),
        ({"rate": 0.0}, "rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"tau": 0.0}, "tau"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        UNSURELoss(**options)


def test_errors_of_the_reading():
    y, model = torch.zeros(1, 1, 8, 8), Bent()
    with pytest.raises(ValueError, match="StationaryKernel"):
        estimate_noise(UNSURELoss(StationaryKernel(2)), y, Denoising(), model)
    with pytest.raises(ValueError, match="probes"):
        estimate_noise(UNSURELoss(), y, Denoising(), model, probes=3)


class Convolution(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, y, physics):
        return self.kernel(y)


@pytest.mark.filterwarnings("default")  # of deepinv's trainer
def test_resumed_with_the_model_that_holds_it(tmp_path):
    """As a part of the model, multipliers, momentum and probes are in the trainer's checkpoints."""
    y = torch.randn(8, 1, 16, 15, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader([{"y": image} for image in y], batch_size=4)

    def train(epochs, folder, checkpoint=None):
        torch.manual_seed(1)
        loss, model = UNSURELoss(rng=torch.Generator().manual_seed(0)), Convolution()
        model.noise = loss
        deepinv.Trainer(
            model,
            Denoising(),
            torch.optim.Adam(model.parameters(), 1e-2),
            loader,
            losses=loss,
            metrics=None,
            online_measurements=False,
            epochs=epochs,
            ckp_interval=1,
            save_path=tmp_path / folder,
            ckpt_pretrained=checkpoint,
            plot_images=False,
            verbose=False,
            device="cpu",
        ).train()
        return loss.multipliers

    whole = train(3, "whole")
    train(2, "part")
    (last,) = (tmp_path / "part").rglob("ckp_1.pth.tar")
    assert torch.equal(train(3, "resumed", str(last)), whole)
