"""Equivariant imaging against dense matrices, loops over single images, and deepinv's own loss."""

from __future__ import annotations

import deepinv as dinv
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, LinearPhysics, Physics, ZeroNoise
from deepinv.transform import Reflect, Rotate, Shift

from deepinv_astro.loss import EquivariantLoss, SUREGaussianLoss, UNSURELoss
from deepinv_astro.physics import ADI, Blur, HeteroscedasticNoise
from deepinv_astro.testing import (
    assert_loss_double,
    assert_loss_quiet,
    assert_loss_state_restored,
    assert_operator_untouched,
    assert_validation_quiet,
)

SIZE = (4, 3)
PIXELS, DATA = 12, 20


def _random(seed: int, *shape: int, low: float = -0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + torch.rand(shape, generator=generator, dtype=torch.float64)


class Dense(LinearPhysics):
    """A matrix: images of twelve pixels seen as sequences of two frames."""

    def __init__(self, noise=None) -> None:
        super().__init__(noise_model=noise)
        self.register_buffer("matrix", _random(0, DATA, PIXELS))

    def A(self, x, **kwargs):
        return (x.flatten(1) @ self.matrix.T).view(-1, 1, 2, 5, 2)

    def A_adjoint(self, y, **kwargs):
        return (y.flatten(1) @ self.matrix).view(-1, 1, *SIZE)


class Linear(torch.nn.Module):
    """The image ``M y``."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(_random(1, PIXELS, DATA))

    def forward(self, y, physics):
        return (y.flatten(1) @ self.matrix.T).view(-1, 1, *SIZE)


class Bent(torch.nn.Module):
    """A reconstructor that is not linear, whose pixels know their neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    def forward(self, y, physics):
        x = physics.A_adjoint(y)
        return torch.tanh(self.a * x) + 0.3 * x.roll(1, -1) + 0.1 * x * x.roll(1, -2)


TURNED = _random(2, PIXELS, PIXELS)


def turned(x):
    """A linear transform without any symmetry."""
    return (x.flatten(1) @ TURNED.T).view_as(x)


def two_turned(x):
    """Two different transforms of each image, image fastest."""
    return torch.cat([turned(x), 2 * turned(x.roll(1, -1))])


@pytest.mark.parametrize("stopped", [False, True], ids=["full", "stopped"])
def test_linear_reconstructor_has_the_closed_form(stopped):
    r"""|(I - MA) T M y|^2 / n and its gradient, of which one half is stopped."""
    physics, model, y = Dense(), Linear(), _random(3, 3, 1, 2, 5, 2)
    loss = EquivariantLoss(turned, stop_gradient=stopped, weight=0.7)
    value = loss(x_net=model(y, physics), x=None, y=y, physics=physics, model=model)
    value.sum().backward()

    m, a, data = model.matrix.detach(), physics.matrix, y.flatten(1).T
    u = TURNED @ m @ data
    r = u - m @ a @ u
    torch.testing.assert_close(value.detach(), 0.7 * r.square().mean(0))
    gradient = -r @ (a @ u).T
    if not stopped:
        gradient = gradient + TURNED.T @ (r - a.T @ m.T @ r) @ data.T
    torch.testing.assert_close(model.matrix.grad, 0.7 * 2 / PIXELS * gradient)


LEVELS = torch.tensor([0.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("given", [False, True], ids=["of the operator", "given"])
def test_noise_adds_the_variance_of_what_it_makes(given):
    r"""E |u - M (A u + e)|^2 = |u - MAu|^2 + s^2 |M|^2, with a level s for each image."""
    own, other = HeteroscedasticNoise(LEVELS), HeteroscedasticNoise(3 * LEVELS)
    physics, model, draws = Dense(own), Linear(), 4000
    x = _random(4, 2, 1, *SIZE).repeat(draws, 1, 1, 1)
    loss = EquivariantLoss(two_turned, noise_model=other if given else None)
    torch.manual_seed(0)
    with torch.no_grad():
        found = loss(x_net=x, physics=physics, model=model).view(draws, 2)
        quiet = EquivariantLoss(two_turned, noise_model=ZeroNoise())
        bias = quiet(x_net=x[:2], physics=physics, model=model)
        levels = 3 * LEVELS if given else LEVELS
        expected = bias + levels.square() * model.matrix.square().sum() / PIXELS
    error = found.std(0) / draws**0.5
    assert ((found.mean(0) - expected).abs() < 4 * error).all()
    assert (20 * error < expected - bias).all()


def test_sensor_acts_after_the_noise():
    physics = Physics(lambda x, **kwargs: 2 * x, GaussianNoise(0.0), sensor_model=lambda y: y + 1)
    model = _Plain(lambda y, physics: y)
    found = EquivariantLoss(lambda x: 3 * x)(
        x_net=torch.ones(1, 1, 2, 3), physics=physics, model=model
    )
    torch.testing.assert_close(found, torch.tensor([16.0]))  # (2 x 3 + 1 - 3)^2


class _Plain(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, y, physics):
        return self.function(y, physics)


BATCH = 3
ANGLES = torch.tensor([[0.0, 20.0], [5.0, 50.0], [-30.0, 10.0]], dtype=torch.float64)


def _batched_operators():
    """Name, operator with parameters for each of three images, and the same for image n alone."""
    psf = _random(5, BATCH, 1, 3, 3, low=0.0)

    def theirs(filters):
        return dinv.physics.Blur(filters, padding="circular")

    def ours(filters):
        return Blur((1, 9, 8), filters, boundary="zero", dtype=torch.float64)

    def sequence(angles):
        return ADI((1, 9, 8), angles, psf[0, 0], dtype=torch.float64)

    def noisy(gains):
        return Denoising(_Gain(gains))

    gains = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    for name, make, values in (
        ("deepinv", theirs, psf),
        ("Blur", ours, psf),
        ("ADI", sequence, ANGLES),
        ("noise", noisy, gains),
    ):
        yield pytest.param(make(values), [make(v[None]) for v in values], id=name)


class _Gain(dinv.physics.NoiseModel):
    """A noise without chance, with one number for each image."""

    def __init__(self, gain) -> None:
        super().__init__()
        self.register_buffer("gain", gain)

    def forward(self, z, **kwargs):
        assert len(z) == len(self.gain)
        return self.gain.view(-1, 1, 1, 1) * z


def _transforms():
    rng = torch.Generator()
    yield pytest.param(rng, Shift(n_trans=3, rng=rng), id="shift")
    yield pytest.param(
        rng, Rotate(n_trans=2, multiples=180, rng=rng) * Shift(n_trans=2, rng=rng), id="chain"
    )
    yield pytest.param(rng, Shift(rng=rng) + Reflect(dim=[-1], rng=rng), id="sum")


@pytest.mark.parametrize(("physics", "alone"), list(_batched_operators()))
@pytest.mark.parametrize(("rng", "transform"), list(_transforms()))
def test_parameters_of_a_batch_meet_their_images(physics, alone, rng, transform):
    x, model = _random(6, BATCH, 1, 9, 8), Bent()
    loss = EquivariantLoss(transform)
    with torch.no_grad():
        rng.manual_seed(1)
        together = loss(x_net=x, physics=physics, model=model)
        for n, single in enumerate(alone):
            rng.manual_seed(1)
            expected = loss(x_net=x[n : n + 1], physics=single, model=model)
            torch.testing.assert_close(together[n : n + 1], expected)
    assert len(together.unique()) == BATCH


def test_sequences_of_images():
    """Five axes on both sides: frames are transformed alike."""
    rng = torch.Generator()
    x, model = _random(6, 2, 1, 3, 5, 4), Bent()
    loss = EquivariantLoss(Shift(n_trans=2, rng=rng))
    rng.manual_seed(2)
    found = loss(x_net=x, physics=Denoising(ZeroNoise()), model=model)
    rng.manual_seed(2)
    flat = Shift(n_trans=2, rng=rng)(x.flatten(1, 2)).view(2, 2, 1, 3, 5, 4)
    expected = torch.stack(
        [(v - model(v, Denoising(ZeroNoise()))).square().flatten(1).mean(1) for v in flat]
    )
    torch.testing.assert_close(found, expected.mean(0))


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("stopped", [False, True], ids=["full", "stopped"])
def test_equals_the_loss_of_deepinv(copies, stopped):
    """Where that is right: one operator for all images."""
    rng, noise = torch.Generator(), GaussianNoise(0.1 if copies == 1 else 0.0)
    physics = dinv.physics.Inpainting((1, 9, 8), 0.5, noise_model=noise).to(torch.float64)
    y, model = physics(_random(7, 2, 1, 9, 8)), Bent()
    found = []
    for make, name in ((dinv.loss.EILoss, "no_grad"), (EquivariantLoss, "stop_gradient")):
        torch.manual_seed(0)
        rng.manual_seed(0)
        loss = make(Shift(n_trans=copies, rng=rng), **{name: stopped})
        value = loss(
            x_net=model(y, physics), x=None, y=y, physics=physics, model=model, epoch=0
        ).mean()
        found.append((value, *torch.autograd.grad(value, model.parameters())))
    torch.testing.assert_close(*found)


def test_metric_may_be_one_of_deepinv():
    physics, model, x = Dense(), Linear(), _random(3, 2, 1, *SIZE)
    for metric, shape in ((dinv.metric.MAE(), (2,)), (torch.nn.L1Loss(), ())):
        found = EquivariantLoss(two_turned, metric=metric)(x_net=x, physics=physics, model=model)
        u = two_turned(x)
        error = (u - model(physics.A(u), physics)).abs().mean()
        assert found.shape == shape
        torch.testing.assert_close(found.mean(), error)


def test_margin_is_not_compared():
    x = torch.arange(30.0).view(1, 1, 5, 6)
    model = _Plain(lambda y, physics: 0 * y)
    found = EquivariantLoss(lambda x: x, margin=2)(x_net=x, physics=Denoising(), model=model)
    torch.testing.assert_close(found, torch.tensor([(14.0**2 + 15.0**2) / 2]))
    with pytest.raises(ValueError, match="margin of 3 leaves nothing"):
        EquivariantLoss(lambda x: x, margin=3)(x_net=x, physics=Denoising(), model=model)


def test_crop_is_seen_by_its_own_operator():
    """A shift without a seam: the same blur, on a window of the reconstruction."""
    psf, model, x = _random(5, 3, 3, low=0.0), Bent(), _random(6, 2, 1, 9, 8)
    whole, window = (Blur((1, *s), psf, dtype=torch.float64) for s in ((9, 8), (5, 6)))
    loss = EquivariantLoss(lambda x: x[..., 1:6, 2:], operator=window, amplitude_bound=0.5)
    found = loss(x_net=x, physics=whole, model=model)
    u = x[..., 1:6, 2:]
    levels = [v.square().flatten(1).mean(1).sqrt() for v in (whole.A(x), window.A(u))]
    u = (0.5 * levels[0] / levels[1]).clamp_max(1).view(-1, 1, 1, 1) * u
    expected = (u - model(window.A(u), window)).square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected)


def test_bound_dims_what_became_brighter():
    r"""A T x is dimmed to beta |A x|, T x by the same number, and that number has no gradient."""
    physics, model = Dense(), Linear()
    x = _random(8, 3, 1, *SIZE).requires_grad_()
    gains = torch.tensor([0.3, 1.0, 10.0], dtype=torch.float64).view(-1, 1, 1, 1)
    loss = EquivariantLoss(lambda x: gains * x, amplitude_bound=0.9)
    found = loss(x_net=x, physics=physics, model=model)
    factors = torch.tensor([0.3, 0.9, 0.9], dtype=torch.float64)
    u = factors.view(-1, 1, 1, 1) * x
    expected = (u - model(physics.A(u), physics)).square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (found, expected)))
    dark = loss(x_net=0 * x, physics=physics, model=model)
    assert torch.equal(dark, torch.zeros_like(dark))


def _loss(level: float = 0.1) -> EquivariantLoss:
    noise = HeteroscedasticNoise(torch.tensor(level).double(), rng=torch.Generator())
    return EquivariantLoss(Shift(n_trans=2, rng=torch.Generator()), noise_model=noise, margin=1)


def test_laws():
    physics, x = Denoising(HeteroscedasticNoise(0.1)), _random(9, 2, 1, 6, 5)
    assert_loss_state_restored(_loss(), _loss(0.3), physics, Bent(), x)
    assert_loss_quiet(_loss(), physics, Bent(), x)
    assert_validation_quiet(_loss(), physics, Bent(), x)
    assert_operator_untouched(_loss(), physics, Bent(), x)
    assert_loss_double(_loss(), physics, Bent(), x)


@pytest.mark.filterwarnings("default")  # of deepinv's trainer
@pytest.mark.parametrize("fidelity", [SUREGaussianLoss, UNSURELoss], ids=["sure", "unsure"])
def test_trainer_of_deepinv_takes_it_beside_a_fidelity(fidelity, train):
    trainer = train([fidelity(), EquivariantLoss(Shift(n_trans=2), stop_gradient=True)])
    assert trainer.loss_history["EquivariantLoss"][0] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EquivariantLoss(turned, weight=-1.0), "got -1.0 and 0"),
        (lambda: EquivariantLoss(turned, margin=-1), "and -1"),
        (lambda: EquivariantLoss(turned, amplitude_bound=0.0), "must be positive, got 0.0"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_calls():
    x, model = torch.ones(2, 1, 4, 3), _Plain(lambda y, physics: y)
    with pytest.raises(ValueError, match="made 3 images of 2"):
        EquivariantLoss(lambda x: torch.cat([x, x[:1]]))(x_net=x, physics=Denoising(), model=model)
    square = Physics(lambda x, **kwargs: x.square())
    with pytest.raises(ValueError, match="Physics is not linear"):
        EquivariantLoss(lambda x: x, amplitude_bound=1.0)(x_net=x, physics=square, model=model)
