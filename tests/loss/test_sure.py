"""Unbiased risks against closed forms of linear reconstructors, and against the true risk."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import (
    Denoising,
    GaussianNoise,
    LinearPhysics,
    PoissonGaussianNoise,
    PoissonNoise,
    UniformNoise,
)

from deepinv_astro.loss import SUREGaussianLoss, SUREPoissonGaussianLoss, without_temporal_mean
from deepinv_astro.physics import (
    ADI,
    DetectorNoise,
    HeteroscedasticNoise,
    LowRankNoise,
    PatchNoise,
    StationaryNoise,
    tile_index,
)
from deepinv_astro.testing import (
    assert_loss_double,
    assert_loss_quiet,
    assert_loss_state_restored,
    assert_unbiased,
    assert_validation_quiet,
    dense_matrix,
)

SIZE = (4, 3)
LABELS = torch.tensor([[0, 0, 1], [0, 1, 1], [2, 2, 1], [2, -1, 0]])
SEQUENCE = (1, 3, *SIZE)


def _random(seed: int, *shape: int, low: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + torch.rand(shape, generator=generator, dtype=torch.float64)


class Linear(torch.nn.Module):
    """The image ``M y``, with a dense matrix."""

    def __init__(self, matrix: torch.Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.shape = shape

    def forward(self, y, physics):
        return (y.flatten(1) @ self.matrix.T).unflatten(1, self.shape)


class Bent(torch.nn.Module):
    """A smooth reconstructor that is not linear, with neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    def forward(self, y, physics):
        x = physics.A_adjoint(y) / 3
        return torch.tanh(self.a * x) + 0.3 * x.roll(1, -1) + 0.1 * x * x.roll(1, -2)


class Quadratic(torch.nn.Module):
    """A polynomial of degree two, for which the expansion of the Poisson law is exact.

    Its mean slope is far from 1/2, where the terms of the variance would cancel.
    """

    def forward(self, y, physics):
        return (
            0.05 * y + 0.04 * y.square() + 0.02 * y * y.roll(1, -1) + 0.05 * y.roll(1, -1).square()
        )


NOISES = {
    "regions": HeteroscedasticNoise(_random(0, 2, 3), per="region", labels=LABELS),
    "frames": HeteroscedasticNoise(_random(0, 2, 3), per="frame"),
    "stationary": StationaryNoise(_random(1, 2, 1, 2, 3, low=-0.4)),
    "low-rank": LowRankNoise(_random(2, 2, 2, *SEQUENCE, low=-0.5), _random(2, 2)),
    "patches": PatchNoise(
        _random(3, 2, 1, 3, 4, 4, low=-0.4), tile_index(LABELS), SIZE
    ),
}  # fmt: skip
WEIGHTS = _random(5, *SEQUENCE)
FORMS = {
    "plain": (None, None),
    "weights": (lambda v: WEIGHTS * v, None),
    "projected": (None, without_temporal_mean),
    "both": (lambda v: WEIGHTS * v, without_temporal_mean),
}

each_noise = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


class Turning(LinearPhysics):
    """Frames of an image seen through a dense matrix each: fast on large batches."""

    def __init__(self, noise=None) -> None:
        super().__init__(noise_model=noise)
        self.register_buffer("matrices", _random(20, 3, 12, 12, low=-0.4))

    def A(self, x, **kwargs):
        y = torch.einsum("tij,bj->bti", self.matrices, x.flatten(1))
        return y.reshape(len(x), *SEQUENCE)

    def A_adjoint(self, y, **kwargs):
        return torch.einsum("tij,bti->bj", self.matrices, y.flatten(3)[:, 0]).view(-1, 1, *SIZE)


@each_noise
@each_form
def test_linear_reconstructor_has_the_closed_form(noise, form):
    """Over the probes, at fixed data: |r|_M^2 - tr(M S) + 2 tr(M H S), with M = PWP and H = A f."""
    metric, projection = form
    physics, shape = Turning(), (1, *SIZE)
    matrix = _random(6, 12, 36, low=-0.4)
    model = Linear(matrix, shape)
    y = _random(7, 2, *SEQUENCE, low=-0.5)
    probes = 3000
    loss = SUREGaussianLoss(noise, metric, projection, trace_probes=1)
    many = y.repeat(probes, 1, 1, 1, 1)
    found = loss(x_net=model(many, physics), y=many, physics=physics, model=model)
    h = dense_matrix(lambda v: physics.A(model(v, physics)), y[:1])
    p = dense_matrix(projection or (lambda v: v), y[:1])
    w = dense_matrix(metric or (lambda v: v), y[:1])
    m, sigma = p @ w @ p, dense_matrix(noise.covariance, y)
    for n in range(2):
        own = sigma[36 * n : 36 * (n + 1), 36 * n : 36 * (n + 1)]
        r = y[n].flatten() - h @ y[n].flatten()
        trace, divergence = (m @ own).trace(), (m @ h @ own).trace()
        expected = (r @ m @ r - trace + 2 * divergence) / 36
        values = found[n::2]
        error = float(values.std() / probes**0.5)
        assert abs(float(values.mean() - expected)) < 4 * error + 1e-9
        assert 4 * error < 0.2 * float(trace + 2 * divergence.abs()) / 36


@each_noise
@each_form
def test_expectation_is_the_true_risk(noise, form):
    metric, projection = form
    physics = Turning(noise)

    def risk(x_net, x, physics):
        error = physics.A(x_net - x)
        error = error if projection is None else projection(error)
        return (error * (error if metric is None else metric(error))).flatten(1).mean(1)

    x = _random(8, 200, 1, *SIZE, low=-0.5)
    loss = SUREGaussianLoss(None, metric, projection, tau=1e-3)
    assert_unbiased(loss, physics, Bent(), x, risk=risk, draws=60, resolution=0.15)


def test_images_without_frames():
    noise = StationaryNoise(_random(1, 2, 2))
    physics = Denoising(noise)
    x = _random(8, 40, 1, 9, 8, low=-0.5)
    assert_unbiased(SUREGaussianLoss(), physics, Bent(), x, draws=100, resolution=0.1)


def test_metric_of_the_noise_itself():
    """W = inverse of S: tr(W S) = m, without variance."""
    noise = LowRankNoise(_random(2, 2, *SIZE, low=-0.5), 0.3)
    loss = SUREGaussianLoss(noise, noise.precision)
    y = torch.zeros(2, 1, *SIZE, dtype=torch.float64)
    zero = Linear(torch.zeros(12, 12, dtype=torch.float64), (1, *SIZE))
    found = loss(x_net=y, y=y, physics=Denoising(), model=zero)
    torch.testing.assert_close(found, -torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("second", [False, True], ids=["gaussian", "photons"])
def test_estimate_scales_with_the_data(second):
    """Data in other units: the same steps, and the estimate in the squared units."""
    scale, y = 1e5, _random(9, 2, 1, 5, 4)

    class Homogeneous(torch.nn.Module):
        def forward(self, y, physics):
            return 0.5 * y.roll(1, -1).abs() + 0.2 * torch.hypot(y, y.roll(1, -2))

    found = []
    for s in (1.0, scale):
        rng = torch.Generator().manual_seed(0)
        if second:
            given = (8 / s, 0.5, 0.3 * s)
            noise = DetectorNoise(*(torch.tensor(v, dtype=torch.float64) for v in given))
            loss = SUREPoissonGaussianLoss(noise, rng=rng)
        else:
            loss = SUREGaussianLoss(HeteroscedasticNoise(torch.tensor(0.3 * s).double()), rng=rng)
        model, data = Homogeneous(), s * y
        found.append(loss(x_net=model(data, None), y=data, physics=Denoising(), model=model) / s**2)
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


def test_single_precision_of_large_data():
    """The step is not swallowed by the rounding of data a million times brighter than the noise."""
    y = torch.full((8, 1, 100, 100), 3e6) + torch.randn(8, 1, 100, 100)
    identity = Linear(torch.tensor(0.0), ())
    identity.forward = lambda y, physics: y
    loss = SUREGaussianLoss(HeteroscedasticNoise(1.0), rng=torch.Generator().manual_seed(0))
    found = loss(x_net=y, y=y, physics=Denoising(), model=identity)  # 0 - 1 + 2
    assert float((found - 1).abs().max()) < 0.1


PHOTONS = DetectorNoise(
    torch.tensor([2.0, 0.8]), torch.tensor([1.0, 1.5]), torch.tensor([3.0, 5.0])
)
FLUX = _random(10, 40, 1, 12, 10, low=0.5) * 2


def test_photon_risk_is_exact_for_polynomials_of_degree_two():
    physics = Denoising(PHOTONS)
    assert_unbiased(
        SUREPoissonGaussianLoss(), physics, Quadratic(), FLUX, draws=400, resolution=0.1
    )
    with pytest.raises(AssertionError, match="times the true risk"):
        assert_unbiased(SUREPoissonGaussianLoss(order=1), physics, Quadratic(), FLUX, draws=400)


def test_photon_risk_with_metric_and_projection():
    weights = _random(5, 12, 10)

    def risk(x_net, x, physics):
        error = without_temporal_mean(physics.A(x_net - x))
        return (weights * error.square()).flatten(1).mean(1)

    physics = Denoising(PHOTONS)
    loss = SUREPoissonGaussianLoss(None, lambda v: weights * v, without_temporal_mean)
    x = FLUX.unflatten(0, (10, 4)).mT.permute(0, 2, 1, 4, 3).reshape(10, 1, 4, 12, 10)
    assert_unbiased(loss, physics, Quadratic(), x, risk=risk, draws=400, resolution=0.15)


@pytest.mark.parametrize(
    "noise",
    [PoissonGaussianNoise(0.4, 0.5), PoissonNoise(0.4), DetectorNoise(2.5, 1.25)],
    ids=["theirs", "photons", "ours"],
)
def test_photon_noise_of_deepinv(noise):
    x = FLUX.float()
    loss = SUREPoissonGaussianLoss(noise)
    assert_unbiased(loss, Denoising(noise), Quadratic(), x, draws=200, resolution=0.1)


def test_gaussian_noise_of_deepinv():
    noise = GaussianNoise(torch.tensor([0.2, 0.7]))
    x = FLUX[:2].float()
    loss = SUREGaussianLoss(noise)
    y = x.clone()
    found = loss(x_net=0 * y, y=y, physics=Denoising(), model=_Nothing())
    expected = x.square().flatten(1).mean(1) - torch.tensor([0.04, 0.49])
    torch.testing.assert_close(found, expected)


class _Nothing(torch.nn.Module):
    def forward(self, y, physics):
        return 0 * y


def _losses(scale: float) -> list:
    generator = torch.Generator()
    return [
        SUREGaussianLoss(HeteroscedasticNoise(0.3 * scale), rng=generator),
        SUREGaussianLoss(StationaryNoise(scale * torch.ones(2, 2)), lambda v: 2 * v),
        SUREPoissonGaussianLoss(DetectorNoise(3 * scale, scale, 2 * scale), rng=generator),
    ]


@pytest.mark.parametrize("number", range(3))
def test_laws(number):
    physics, model = Denoising(DetectorNoise(3.0, 1.0, 4.0)), Bent()
    x = FLUX[:2]
    assert_loss_state_restored(_losses(1.0)[number], _losses(1.5)[number], physics, model, x)
    loss = _losses(1.0)[number]
    assert_loss_quiet(loss, physics, model, x)
    assert_validation_quiet(loss, physics, model, x)
    assert_loss_double(loss, physics, model, x)


def test_gradient_reaches_the_network_and_leaves_the_data():
    model, y = Bent(), FLUX[:2].clone()
    for loss in _losses(1.0):
        model.zero_grad()
        loss(x_net=model(y, Denoising()), y=y, physics=Denoising(), model=model).mean().backward()
        assert model.a.grad.abs() > 0
    assert not y.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SUREGaussianLoss(UniformNoise(0.1)), "UniformNoise has no covariance"),
        (lambda: SUREGaussianLoss(tau=0.0), "must be positive, got 0.0"),
        (lambda: SUREGaussianLoss(trace_probes=0), "and 0"),
        (lambda: SUREPoissonGaussianLoss(GaussianNoise(0.1)), "no Poisson-Gaussian noise"),
        (lambda: SUREPoissonGaussianLoss(PoissonNoise(0.1, normalize=False)), "normalize=True"),
        (lambda: SUREPoissonGaussianLoss(order=3), "order 1 or 2"),
        (lambda: without_temporal_mean(torch.zeros(1, 1, 2, 2)), "sequences are of shape"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_operator_without_noise_is_refused():
    y, physics = torch.zeros(1, 1, 1, 4, 3), ADI((1, 4, 3), torch.zeros(1))
    with pytest.raises(ValueError, match="ZeroNoise has no covariance"):
        SUREGaussianLoss()(x_net=y[:, :, 0], y=y, physics=physics, model=_Nothing())
