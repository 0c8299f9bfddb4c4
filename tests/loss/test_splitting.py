"""Equivariant splitting against dense matrices and the true risk of what was not seen."""

from __future__ import annotations

import pytest
import torch
from deepinv.loss import MCLoss
from deepinv.physics import Denoising, LinearPhysics, ZeroNoise
from deepinv.transform import Rotate, Shift, Transform
from torchvision.transforms import InterpolationMode

from deepinv_astro.loss import (
    BernoulliMask,
    EquivariantSplittingLoss,
    RecorruptedLoss,
    Split,
    SplitModel,
    SUREGaussianLoss,
    VirtualOperator,
)
from deepinv_astro.physics import ADI, Blur, HeteroscedasticNoise
from deepinv_astro.testing import (
    assert_adjoint,
    assert_loss_double,
    assert_loss_quiet,
    assert_loss_state_restored,
    assert_operator_untouched,
    assert_unbiased,
    assert_validation_quiet,
    dense_matrix,
)
from deepinv_astro.transform import Scale

SIZE = (4, 3)
DATA = (1, 5, 4)


def _random(seed: int, *shape: int, low: float = -0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + torch.rand(shape, generator=generator, dtype=torch.float64)


class Dense(LinearPhysics):
    """Images of twelve pixels seen through a matrix."""

    def __init__(self, noise=None) -> None:
        super().__init__(noise_model=noise)
        self.register_buffer("matrix", _random(0, 20, 12))

    def A(self, x, **kwargs):
        return (x.flatten(1) @ self.matrix.T).view(-1, *DATA)

    def A_adjoint(self, y, **kwargs):
        return (y.flatten(1) @ self.matrix).view(-1, 1, *SIZE)


class Turned(Transform):
    """One of two matrices for each image, neither orthogonal nor symmetric."""

    matrices = _random(1, 2, 12, 12)

    def _get_params(self, x):
        return {"g": torch.randint(2, (len(x),), generator=self.rng)}

    def _transform(self, x, g, **params):
        return torch.einsum("bij,bj->bi", self.matrices[g], x.flatten(1)).view_as(x)


class Bent(torch.nn.Module):
    """A reconstructor that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    def forward(self, y, physics):
        x = physics.A_adjoint(y)
        return torch.tanh(self.a * x) + 0.3 * x.roll(1, -1)


TRANSFORMS = {
    "dense": (Turned(), {"g": torch.tensor([1, 0])}, Dense(), SIZE),
    "rotation": (
        Rotate(interpolation_mode=InterpolationMode.BILINEAR),
        {"theta": torch.tensor([20.0])},
        Blur((1, 7, 6), _random(2, 3, 3), dtype=torch.float64),
        (7, 6),
    ),
    "scale": (
        Scale(),
        {
            "factor": torch.tensor([[0.6, 1.3]]),
            "center": torch.tensor([[[2.0, 3.0], [4.0, 1.0]]], dtype=torch.float64),
        },
        Blur((1, 7, 6), _random(2, 3, 3), boundary="zero", dtype=torch.float64),
        (7, 6),
    ),
}


@pytest.mark.parametrize(
    ("transform", "parameters", "physics", "size"), TRANSFORMS.values(), ids=TRANSFORMS
)
def test_virtual_operator_has_the_exact_transpose(transform, parameters, physics, size):
    def fixed(x):
        return transform.transform(x, **parameters)

    x = _random(3, 2, 1, *size)
    kept = (_random(4, *physics.A(x).shape, low=-0.3) > 0).double()
    virtual = VirtualOperator(physics, fixed, kept)
    assert_adjoint(virtual, x)
    t, a, s = dense_matrix(fixed, x), dense_matrix(physics.A, x), torch.diag(kept.flatten())
    torch.testing.assert_close(dense_matrix(virtual.A, x), s @ a @ t)
    y = physics.A(x).requires_grad_()
    torch.testing.assert_close(dense_matrix(virtual.A_adjoint, y.detach()), (s @ a @ t).T)
    weights = _random(5, *x.shape)
    (gradient,) = torch.autograd.grad((weights * virtual.A_adjoint(y)).sum(), y)
    torch.testing.assert_close(gradient.flatten(), s @ a @ t @ weights.flatten())


def test_transpose_of_our_scale():
    transform, parameters, _, size = TRANSFORMS["scale"]
    virtual = VirtualOperator(Denoising(), lambda x: transform.transform(x, **parameters))
    y = _random(3, 2, 1, *size)
    torch.testing.assert_close(virtual.A_adjoint(y), transform.adjoint(y, **parameters))


def test_virtual_operator_keeps_noise_and_solver():
    noise = HeteroscedasticNoise(2.0)
    physics = LinearPhysics(
        noise_model=noise, solver="lsqr", max_iter=7, tol=0.3, implicit_backward_solver=False
    )
    virtual = VirtualOperator(physics, lambda x: x)
    assert virtual.noise_model is noise
    assert (virtual.solver, virtual.max_iter, virtual.tol) == ("lsqr", 7, 0.3)
    assert not virtual.implicit_backward_solver
    solved = VirtualOperator(Dense(), lambda x: 2 * x)
    x = _random(6, 1, 1, *SIZE)
    found = solved.A_dagger(solved.A(x), max_iter=200, tol=1e-12)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_adjoint_reconstruction_has_the_closed_form():
    """x = T T' A' S y, and the mean square of what S leaves out of y - A x."""
    physics, transform = Dense(), Turned()
    rng = torch.Generator().manual_seed(0)
    loss = EquivariantSplittingLoss(transform, mask=BernoulliMask(0.6), rng=rng)
    adjoint = torch.nn.Identity()
    adjoint.forward = lambda y, physics: physics.A_adjoint(y)
    model, y = loss.adapt_model(adjoint), _random(7, 3, *DATA)
    x_net = model(y, physics, update_parameters=True)
    found = loss(x_net=x_net, x=None, y=y, physics=physics, model=model, epoch=0)
    a = physics.matrix
    for n in range(3):
        t, s = transform.matrices[model.drawn.parameters["g"][n]], model.drawn.kept[n].flatten()
        x = t @ t.T @ a.T @ (s * y[n].flatten())
        torch.testing.assert_close(x_net[n].flatten(), x)
        error = ((1 - s) * (y[n].flatten() - a @ x)).square().sum() / (1 - s).sum()
        torch.testing.assert_close(found[n], error)


def test_network_does_not_see_what_judges_it():
    """Not even one that reads the data as they are: the reconstruction does not depend on them."""
    raw = torch.nn.Identity()
    raw.forward = lambda y, physics: y + y.roll(1, -1)
    model = EquivariantSplittingLoss(Shift(), mask=BernoulliMask(0.5)).adapt_model(raw)
    y = _random(12, 2, 1, 5, 4).requires_grad_()
    x_net = model(y, Denoising(), update_parameters=True)
    (slope,) = torch.autograd.grad(x_net.sum(), y)
    torch.testing.assert_close(slope, 2 * model.drawn.kept)


def test_operator_of_the_network_measures_what_it_is_given():
    """S A T, as a network with data consistency needs it."""
    seen = []
    network = torch.nn.Identity()
    network.forward = lambda y, physics: seen.append((y, physics)) or physics.A_adjoint(y)
    transform, physics, y = Turned(), Dense(), _random(12, 2, *DATA)
    model = SplitModel(network, transform, BernoulliMask(0.5), 1)
    model(y, physics, update_parameters=True)
    ((data, virtual),) = seen
    x = _random(13, 2, 1, *SIZE)
    kept, parameters = model.drawn
    torch.testing.assert_close(data, kept * y)
    measured = physics.A(transform.transform(x, **parameters))
    torch.testing.assert_close(virtual.A(x), kept * measured)


LEVEL = 0.7


def _adapted(consistency=None):
    noise = HeteroscedasticNoise(torch.tensor(LEVEL, dtype=torch.float64))
    loss = EquivariantSplittingLoss(
        Turned(rng=torch.Generator()),
        mask=BernoulliMask(0.6),
        consistency=consistency,
        weight=0.5,
    )
    return Dense(noise), loss, loss.adapt_model(Bent())


def _hidden_risk(model):
    def risk(x_net, x, physics):
        hidden = 1 - model.drawn.kept
        error = hidden * (physics.A(x_net - x).square() + LEVEL**2)
        return error.flatten(1).sum(1) / hidden.flatten(1).sum(1).clamp_min(1)

    return risk


def test_judges_what_is_hidden_without_bias():
    physics, loss, model = _adapted()
    x = _random(8, 200, 1, *SIZE)
    assert_unbiased(loss, physics, model, x, risk=_hidden_risk(model), draws=100)


def test_consistency_judges_everything_without_bias():
    """SURE of the split model as a function of the data, at a fixed split."""
    physics, loss, model = _adapted(SUREGaussianLoss(tau=1e-3))
    hidden = _hidden_risk(model)

    def risk(x_net, x, physics):
        return hidden(x_net, x, physics) + 0.5 * physics.A(x_net - x).square().flatten(1).mean(1)

    x = _random(8, 400, 1, *SIZE)
    assert_unbiased(loss, physics, model, x, risk=risk, draws=100, resolution=0.05)


def test_consistency_without_noise_is_that_of_deepinv():
    physics, loss, model = _adapted(MCLoss())
    y = physics.A(_random(9, 2, 1, *SIZE))
    x_net = model(y, physics, update_parameters=True)
    found = loss(x_net=x_net, y=y, physics=physics, model=model)
    loss.consistency = None
    alone = loss(x_net=x_net, y=y, physics=physics, model=model)
    expected = 0.5 * (y - physics.A(x_net)).square().mean()
    torch.testing.assert_close(found - alone, expected.expand(2))


def test_mean_of_draws_in_eval_mode_and_no_target():
    rng, mask = torch.Generator(), BernoulliMask(0.7)
    y = torch.ones(1, 1, 30, 20)
    adjoint = torch.nn.Identity()
    adjoint.forward = lambda y, physics: physics.A_adjoint(y)
    model = SplitModel(adjoint, Shift(rng=rng), mask, samples=20, rng=rng)
    model(y, Denoising(), update_parameters=True)
    assert model.drawn is not None
    model.eval()
    found = model(y, Denoising(), update_parameters=True)
    assert abs(float(found.mean()) - 0.7) < 0.03
    assert abs(float(found.std()) - (0.7 * 0.3 / 20) ** 0.5) < 0.02
    assert model.drawn is None
    assert isinstance(Split(y, {}), tuple)


def test_mask_is_one_for_channels_and_frames():
    y = torch.zeros(2, 3, 4, 50, 40)
    mask = BernoulliMask(0.25)(y, torch.Generator().manual_seed(0))
    assert mask.shape == (2, 1, 1, 50, 40)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert abs(float(mask.mean()) - 0.25) < 0.03
    assert not torch.equal(mask[0], mask[1])


def test_sequences():
    """Frames of an ADI sequence with angles for each image; one at a time gives the same."""
    angles = torch.tensor([[0.0, 30.0], [10.0, 70.0]], dtype=torch.float64)
    y, parameters = _random(10, 2, 1, 2, 7, 6), {"x_shift": [1], "y_shift": [2]}
    kept = BernoulliMask(0.6)(y, torch.Generator().manual_seed(0))
    model = SplitModel(Bent(), Shift(), BernoulliMask(), 1)
    together = model.reconstruct(
        y, ADI((1, 7, 6), angles, dtype=torch.float64), Split(kept, parameters)
    )
    for n in range(2):
        physics = ADI((1, 7, 6), angles[n], dtype=torch.float64)
        split = Split(kept[n : n + 1], parameters)
        torch.testing.assert_close(
            together[n : n + 1], model.reconstruct(y[n : n + 1], physics, split)
        )


def _loss() -> EquivariantSplittingLoss:
    noise = HeteroscedasticNoise(torch.tensor(0.1).double())
    return EquivariantSplittingLoss(
        Shift(rng=torch.Generator()),
        consistency=SUREGaussianLoss(noise, rng=torch.Generator()),
        rng=torch.Generator(),
    )


def test_laws():
    physics, x = Denoising(HeteroscedasticNoise(0.1)), _random(9, 2, 1, 6, 5)
    other = _loss()
    other.consistency.noise_model.update_parameters(sigma=torch.tensor(0.2).double())
    assert_loss_state_restored(_loss(), other, physics, Bent(), x)
    assert_loss_quiet(_loss(), physics, Bent(), x)
    assert_validation_quiet(_loss(), physics, Bent(), x)
    assert_operator_untouched(_loss(), physics, Bent(), x)
    assert_loss_double(_loss(), physics, Bent(), x)


@pytest.mark.filterwarnings("default")  # of deepinv's trainer
def test_trainer_of_deepinv_takes_it(train):
    train([EquivariantSplittingLoss(Shift(), consistency=SUREGaussianLoss())])


def _called(loss, model, y):
    return loss(x_net=y, y=y, physics=Denoising(ZeroNoise()), model=model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BernoulliMask(1.0), "between 0 and 1, got 1.0"),
        (lambda: EquivariantSplittingLoss(Shift(), weight=-1.0), "got -1.0 and 5"),
        (lambda: EquivariantSplittingLoss(Shift(), samples=0), "and 0"),
        (lambda: EquivariantSplittingLoss(Shift() | Shift()), "choose anew"),
        (
            lambda: EquivariantSplittingLoss(Shift(), consistency=RecorruptedLoss()).adapt_model(
                Bent()
            ),
            "RecorruptedLoss adapts the model itself",
        ),
        (
            lambda: _called(EquivariantSplittingLoss(Shift()), Bent(), torch.ones(1, 1, 4, 4)),
            "no splitting of these",
        ),
        (
            lambda: EquivariantSplittingLoss(Shift(n_trans=2)).adapt_model(Bent())(
                torch.ones(1, 1, 4, 4, dtype=torch.float64), Denoising()
            ),
            "made 2 images of 1: set its n_trans to 1",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
