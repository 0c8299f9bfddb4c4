"""Multi-operator imaging against separate operators, which it must neither copy nor change."""

from __future__ import annotations

import copy

import deepinv as dinv
import pytest
import torch
from deepinv.loss import MCLoss
from deepinv.physics import Denoising, Physics, StackedLinearPhysics, ZeroNoise
from deepinv.physics.generator import PhysicsGenerator
from deepinv.transform import Shift

from deepinv_astro.loss import EquivariantLoss, MultiOperatorLoss, exchanged, with_parameters
from deepinv_astro.physics import ADI, Blur, HeteroscedasticNoise, StationaryNoise
from deepinv_astro.testing import (
    assert_loss_double,
    assert_loss_quiet,
    assert_loss_state_restored,
    assert_operator_untouched,
    assert_validation_quiet,
)

BATCH = 3


def _random(seed: int, *shape: int, low: float = -0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + torch.rand(shape, generator=generator, dtype=torch.float64)


ANGLES = 60 * _random(0, BATCH, 2)
PSFS = _random(1, BATCH, 1, 3, 3, low=0.1)
X = _random(2, BATCH, 1, 7, 6)


class Bent(torch.nn.Module):
    """A reconstructor that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    def forward(self, y, physics):
        return torch.tanh(self.a * physics.A_adjoint(y))


class Solved(Bent):
    """A reconstructor with a solver, whose backward pass calls the operator."""

    def forward(self, y, physics):
        z = self.a * physics.A_adjoint(y)
        return physics.prox_l2(z, y, gamma=1.0, solver="CG", max_iter=60, tol=1e-12)


def adi(angles, noise=None):
    return ADI((1, 7, 6), angles, PSFS[0], dtype=torch.float64, noise_model=noise or ZeroNoise())


def blur(psf, noise=None):
    return Blur((1, 7, 6), psf, dtype=torch.float64, noise_model=noise or ZeroNoise())


def theirs(psf, noise=None):
    return dinv.physics.Blur(psf, padding="circular", noise_model=noise or ZeroNoise())


OPERATORS = {
    "ADI": (adi, "angles", ANGLES),
    "Blur": (blur, "filter", PSFS),
    "deepinv": (theirs, "filter", PSFS),
}
each_operator = pytest.mark.parametrize(
    ("make", "name", "values"), OPERATORS.values(), ids=OPERATORS
)


def _snapshot(physics):
    return {k: (v, v.clone(), v._version) for k, v in physics.named_buffers()}


def _assert_untouched(physics, before):
    for name, value in physics.named_buffers():
        kept, values, version = before[name]
        assert value is kept, name
        assert value._version == version, name
        assert torch.equal(value, values), name


@each_operator
@pytest.mark.parametrize("model", [Bent(), Solved()], ids=["plain", "implicit"])
def test_equals_a_separate_operator(make, name, values, model):
    """Value and gradient, also where the backward pass calls the operator after the loss is made."""
    x = X.clone().requires_grad_()
    physics, y = make(values), None
    before = _snapshot(physics)
    loss = MultiOperatorLoss(exchanged(name), rng=torch.Generator().manual_seed(1))
    found = loss(x_net=x, x=None, y=y, physics=physics, model=model, epoch=0)
    _assert_untouched(physics, before)
    steps = []
    for step in (1, 2):
        other = make(values.roll(-step, 0))
        r = x - model(other.A(x), other)
        steps.append(r.square().flatten(1).mean(1))
    (expected,) = (e for e in steps if torch.allclose(e, found, rtol=1e-8))
    pairs = [torch.autograd.grad(v.sum(), (x, model.a)) for v in (found, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-6, atol=1e-10)
    _assert_untouched(physics, before)


def test_exchange_takes_each_other_image_and_never_its_own():
    physics, rng = adi(ANGLES), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        found = exchanged("angles", "center")(physics, BATCH, rng)
        (step,) = (s for s in range(BATCH) if torch.equal(found["angles"], ANGLES.roll(-s, 0)))
        assert torch.equal(found["center"], physics.center)  # shared by all
        seen.add(step)
    assert seen == {1, 2}
    single = adi(ANGLES[:1])
    assert torch.equal(exchanged("angles")(single, BATCH, rng)["angles"], ANGLES[:1])


class _Tracks(PhysicsGenerator):
    def step(self, batch_size=1, seed=None, **kwargs):
        draw = torch.rand(batch_size, 2, generator=self.rng, dtype=torch.float64)
        return {"angles": 90 * draw, "sigma": torch.full((batch_size,), 2.0).double()}


def test_generator_draws_for_each_image_operator_and_noise():
    noise, model, rng = HeteroscedasticNoise(0.0), Bent(), torch.Generator()
    physics = adi(ANGLES, noise)
    before = _snapshot(physics)
    loss = MultiOperatorLoss(_Tracks(rng=rng))
    rng.manual_seed(3)
    torch.manual_seed(0)
    found = loss(x_net=X, physics=physics, model=model)
    rng.manual_seed(3)
    torch.manual_seed(0)
    other = adi(_Tracks(rng=rng).step(BATCH)["angles"], HeteroscedasticNoise(2.0).double())
    expected = (X - model(other(X), other)).square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected)
    _assert_untouched(physics, before)


def test_list_is_drawn_from_uniformly():
    physics, model = blur(PSFS[0]), Bent()
    loss = MultiOperatorLoss([{"filter": p} for p in PSFS], rng=torch.Generator().manual_seed(0))
    possible = []
    for psf in PSFS:
        other = blur(psf)
        possible.append((X - model(other.A(X), other)).square().flatten(1).mean(1))
    counts = [0, 0, 0]
    with torch.no_grad():
        for _ in range(60):
            found = loss(x_net=X, physics=physics, model=model)
            counts[[torch.allclose(found, p) for p in possible].index(True)] += 1
    assert min(counts) >= 10  # 20 expected, standard deviation 3.7


def test_with_a_transform():
    """Multi-operator equivariant imaging, as deepinv's for one operator of a list."""
    transform = Shift(n_trans=2, rng=torch.Generator())
    model, other, found = Bent(), blur(PSFS[1]), []
    for loss in (
        dinv.loss.MOEILoss(transform, [other], apply_noise=False),
        MultiOperatorLoss([{"filter": PSFS[1]}], EquivariantLoss(transform)),
    ):
        transform.rng.manual_seed(0)
        found.append(loss(x_net=X, y=None, physics=blur(PSFS[0]), model=model).mean())
    torch.testing.assert_close(*found)


def test_gradient_may_stop_at_the_target():
    loss = MultiOperatorLoss(
        exchanged("filter"), EquivariantLoss(lambda x: x, stop_gradient=True, weight=0.5)
    )
    x, model = X.clone().requires_grad_(), Bent()
    value = loss(x_net=x, physics=blur(PSFS), model=model).sum()
    assert torch.autograd.grad(value, x, allow_unused=True, retain_graph=True) == (None,)
    (gradient,) = torch.autograd.grad(value, model.a)
    assert gradient.abs() > 0


def test_shared_operator_holds_the_same_tensors_and_generators():
    noise = StationaryNoise(PSFS[0], rng=torch.Generator())
    physics = adi(ANGLES, noise)
    other = with_parameters(physics, angles=ANGLES + 1)
    assert other.filter is physics.filter
    assert other.noise_model.rng is noise.rng
    assert other.noise_model is not noise
    assert torch.equal(other.angles, ANGLES + 1)
    assert torch.equal(physics.angles, ANGLES)
    kernel = with_parameters(physics, kernel=2 * PSFS[0]).noise_model
    y = torch.zeros(1, 1, 50, 50, dtype=torch.float64)
    noise.rng.manual_seed(0)
    quiet = noise.noise_model(y)  # the function that products of noise models call
    noise.rng.manual_seed(0)
    torch.testing.assert_close(kernel.noise_model(y), 2 * quiet)


def test_parts_of_a_stack_are_not_changed():
    """Their list of operators is no module; its parts are shared all the same."""
    stack = StackedLinearPhysics([theirs(PSFS[0][None]), theirs(PSFS[1][None])])
    before = [copy.deepcopy(p.filter) for p in stack.physics_list]
    with_parameters(stack).physics_list[0].update(filter=PSFS[2][None])
    assert all(torch.equal(p.filter, b) for p, b in zip(stack.physics_list, before, strict=True))


def test_laws():
    physics = Blur((1, 6, 5), PSFS[0], dtype=torch.float64, noise_model=HeteroscedasticNoise(0.1))
    x = _random(9, 2, 1, 6, 5)
    losses = [
        MultiOperatorLoss([{"filter": s * PSFS[0]}], rng=torch.Generator()) for s in (1.0, 2.0)
    ]
    assert_loss_state_restored(*losses, physics, Bent(), x)
    assert_loss_quiet(losses[0], physics, Bent(), x)
    assert_validation_quiet(losses[0], physics, Bent(), x)
    assert_operator_untouched(losses[0], physics, Bent(), x)
    assert_loss_double(losses[0], physics, Bent(), x)


@pytest.mark.filterwarnings("default")  # of deepinv's trainer
def test_trainer_of_deepinv_takes_it(train):
    """The PSF of each image comes with the data, and another image's is tried."""
    train([MCLoss(), MultiOperatorLoss(exchanged("filter"))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiOperatorLoss([]), "got \\[\\]"),
        (lambda: MultiOperatorLoss([{"a": X}, {"b": X}]), "\\[\\['a'\\], \\['b'\\]\\]"),
        (lambda: exchanged(), "name the parameters"),
        (lambda: exchanged("psf")(blur(PSFS), 3, None), "Blur has no tensor named 'psf'"),
        (lambda: with_parameters(blur(PSFS), psf=X), "Blur and its noise have no parameter 'psf'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_operator_may_be_any():
    """An operator without parameters, e.g. one that is not linear, with a list that changes its noise."""
    physics = Physics(lambda x, **kwargs: x.square(), HeteroscedasticNoise(0.0))
    loss = MultiOperatorLoss([{"sigma": torch.tensor([0.0])}])
    model = torch.nn.Identity()
    model.forward = lambda y, physics: y
    x = torch.full((1, 1, 2, 3), 3.0)
    torch.testing.assert_close(loss(x_net=x, physics=physics, model=model), torch.tensor([36.0]))
    assert isinstance(with_parameters(Denoising()), Denoising)
