"""Unrolled networks: equations against dense matrices, amplitude, shapes, precision, gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from deepinv.models import RAM, DRUNet
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from deepinv_astro.loss import without_temporal_mean
from deepinv_astro.models import (
    DenoiserCorrection,
    MarginalPilot,
    NormalEquations,
    PilotCorrection,
    SmallUNet,
    UnrolledADI,
    WhitePilot,
    temporal_level,
)
from deepinv_astro.models.invariant import InvariantPart
from deepinv_astro.optim import Marginal
from deepinv_astro.optim.temporal import TemporalModel
from deepinv_astro.physics import ADI
from deepinv_astro.testing import dense_matrix

H, W, T = 13, 11, 6
FAST = Marginal(iterations=(4, 6))
WHITE = WhitePilot(temporal_level, without_temporal_mean, iterations=15)


def psf(rng: torch.Generator) -> Tensor:
    row, column = torch.arange(-2.0, 3)[:, None], torch.arange(-2.0, 3)
    kernel = torch.exp(-(row**2 / 3 + column**2 / 5)).double()
    return kernel / kernel.sum()


def problem(
    rng: torch.Generator, *, batch: int = 2, channels: int = 1, frames: int = T, size=(H, W)
) -> tuple[Tensor, ADI]:
    """Disks of a planet and noise, with an angle track for each sequence."""
    angles = torch.linspace(0, 80, frames).double() + 20 * torch.arange(batch)[:, None]
    physics = ADI((channels, *size), angles, psf(rng), dtype=torch.float64)
    x = torch.zeros(batch, channels, *size, dtype=torch.float64)
    x[..., 2, 3] = 60.0
    noise = torch.randn(batch, channels, frames, *size, generator=rng, dtype=torch.float64)
    halo = 50 * torch.rand(batch, channels, 1, *size, generator=rng, dtype=torch.float64)
    return physics.A(x) + noise + halo, physics


def trained(model: nn.Module, rng: torch.Generator) -> nn.Module:
    """The model in double precision, its weights all moved: an untrained one corrects nothing."""
    model = model.double()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn(value.shape, generator=rng, dtype=value.dtype)
    return model


def network(pilot=WHITE, steps: int = 2) -> UnrolledADI:
    return UnrolledADI(pilot, [SmallUNet(4) for _ in range(steps)])


# ---------------------------------------------------------------- equations and pilots
def random_equations(rng: torch.Generator) -> tuple[NormalEquations, Tensor]:
    root = torch.randn(2, 12, 12, generator=rng, dtype=torch.float64)
    matrix = root @ root.mT
    scale = 0.5 + torch.rand(2, 1, 3, 4, generator=rng, dtype=torch.float64)
    back = torch.randn(2, 1, 3, 4, generator=rng, dtype=torch.float64)

    def normal(x: Tensor) -> Tensor:
        return (matrix @ x.flatten(1)[..., None]).view_as(x)

    return NormalEquations(normal, back, scale, torch.zeros_like(back)), matrix


def test_gradient_is_that_of_the_cost(rng: torch.Generator) -> None:
    equations, matrix = random_equations(rng)
    u = torch.randn(2, 1, 3, 4, generator=rng, dtype=torch.float64).requires_grad_()
    x = (equations.scale * u).flatten(1)
    cost = (0.5 * torch.einsum("bi,bij,bj->b", x, matrix, x)).sum()
    cost = cost - (x * equations.back.flatten(1)).sum()
    expected = torch.autograd.grad(cost, u)[0]
    torch.testing.assert_close(equations.gradient(u), expected)


def test_largest_eigenvalue_is_close_and_below(rng: torch.Generator) -> None:
    equations, matrix = random_equations(rng)
    d = equations.scale.flatten(1)
    exact = torch.linalg.eigvalsh(d[:, :, None] * matrix * d[:, None, :])[:, -1]
    found = equations.largest_eigenvalue().flatten()
    assert bool((found <= exact * (1 + 1e-12)).all())
    assert bool((found >= 0.9 * exact).all())


def test_smooth_start_is_the_minimum(rng: torch.Generator) -> None:
    """Strong convexity and no penalty but sparsity: compare with the conditions of optimality."""
    equations, matrix = random_equations(rng)
    eye = torch.eye(12, dtype=torch.float64)
    regular = NormalEquations(
        lambda x: ((matrix + 5 * eye) @ x.flatten(1)[..., None]).view_as(x),
        equations.back,
        equations.scale,
        equations.start,
    )
    found = regular.smooth(0.0, 0.3, 2000)
    u = found.start / found.scale
    slope = regular.gradient(u) + 0.3
    assert bool((slope[u > 0].abs() < 1e-8).all())
    assert bool((slope[u == 0] > -1e-8).all())
    assert bool((u > 0).any())
    assert bool((u == 0).any())


def test_smoothness_flattens_the_start(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    rough, smooth = (
        WhitePilot(temporal_level, without_temporal_mean, smoothness=k)(y, physics).start
        for k in (0.0, 3.0)
    )
    variation = [v.diff(dim=-1).abs().sum() / v.sum() for v in (rough, smooth)]
    assert float(variation[1]) < 0.5 * float(variation[0])


@pytest.mark.parametrize("channels", [1, 2])
def test_white_pilot_against_dense_matrices(rng: torch.Generator, channels: int) -> None:
    y, physics = problem(rng, channels=channels)
    equations = WHITE(y, physics)
    level = temporal_level(y)
    x = torch.randn(2, channels, H, W, generator=rng, dtype=torch.float64)
    back, normal = equations.back, equations.normal(x)
    for n in range(2):
        matrix = dense_matrix(physics.sample(n).A, x[:1])
        mean = torch.full((T, T), 1 / T, dtype=torch.float64)
        centre = torch.eye(T, dtype=torch.float64) - mean
        shaped = matrix.view(channels, T, H * W, -1)
        projected = torch.einsum("st,ctpk->cspk", centre, shaped).reshape(matrix.shape)
        expected = projected.mT @ projected @ x[n].flatten() / level[n] ** 2
        torch.testing.assert_close(normal[n].flatten(), expected)
        expected = projected.mT @ y[n].flatten() / level[n] ** 2
        torch.testing.assert_close(back[n].flatten(), expected)
        diagonal = projected.square().sum(0).mean() / level[n] ** 2
        torch.testing.assert_close(equations.scale[n].view(()), diagonal.rsqrt(), rtol=0.15, atol=0)


def test_marginal_pilot_uses_the_metric_of_its_residual(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    equations = MarginalPilot(FAST)(y, physics)
    x = torch.randn(2, 1, H, W, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(equations.start, FAST(y, physics))
    got = equations.normal(x)
    for n in range(2):
        own, data = physics.sample(n), y[n : n + 1]
        likelihood = FAST.reconstruct(data, own).likelihoods[0]
        metric = likelihood.freeze(data - own.A(equations.start[n : n + 1]))
        matrix = dense_matrix(own.A, x[:1])
        weights = dense_matrix(metric, data)
        torch.testing.assert_close(
            got[n].flatten(), matrix.mT @ (weights @ (matrix @ x[n].flatten()))
        )
        expected = matrix.mT @ (weights @ data.flatten())
        torch.testing.assert_close(equations.back[n].flatten(), expected)


def test_pilot_at_its_own_image_is_the_pilot(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    pilot = MarginalPilot(FAST)
    whole = pilot(y, physics)
    again = pilot.at(whole.start, y, physics)
    for name in ("back", "scale", "start"):
        torch.testing.assert_close(getattr(again, name), getattr(whole, name))
    other = pilot.at(0 * whole.start, y, physics)
    assert not torch.allclose(other.back, whole.back)
    with pytest.raises(ValueError, match="MarginalPilot is for ADI"):
        pilot.at(whole.start, y, LinearPhysics())


def test_stacked_equations_are_those_of_each_image(rng: torch.Generator) -> None:
    y, physics = problem(rng, batch=3)
    pilot = MarginalPilot(FAST)
    whole = pilot(y, physics)
    parts = [pilot(y[n : n + 1], physics.sample(n)) for n in range(3)]
    stacked = NormalEquations.stack(parts)
    model = trained(network(MarginalPilot(FAST)), rng)
    for training in (True, False):  # the unseen part is chosen in another way
        model.train(training)
        torch.testing.assert_close(model.refine(stacked), model.refine(whole))
    assert not torch.equal(stacked.with_least(stacked.start + 1), stacked.with_first(stacked.start))
    torch.testing.assert_close(stacked.largest_eigenvalue(), whole.largest_eigenvalue())
    assert stacked.largest is not None


def test_scale_is_the_noise_of_a_pixel(rng: torch.Generator) -> None:
    """White noise: the diagonal of N is known; the null gradient must tell its inverse root."""
    size, frames = (25, 23), 12
    angles = torch.linspace(0, 120, frames).double()
    physics = ADI((1, *size), angles, psf(rng), dtype=torch.float64)
    y = 3 * torch.randn(1, 1, frames, *size, generator=rng, dtype=torch.float64)
    equations = MarginalPilot(Marginal(sparsity=50.0, iterations=(3, 3)))(y, physics)
    unit = torch.zeros(8, 1, *size, dtype=torch.float64)
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    places = [(12 + 4 * i, 11 + 4 * j) for i, j in around]  # the star itself is hardly seen
    for k, (row, column) in enumerate(places):
        unit[k, 0, row, column] = 1
    diagonal = [float((equations.normal(u[None]) * u).sum()) for u in unit]
    scale = torch.tensor([float(equations.scale[0, 0, r, c]) for r, c in places])
    ratio = scale * torch.tensor(diagonal).sqrt()
    assert bool((ratio > 0.8).all())
    assert bool((ratio < 1.25).all())


def test_default_first_image_stops_early_and_is_as_good(rng: torch.Generator) -> None:
    """As low a cost as that of many iterations, but for a few nats, in less than half of them."""
    y, physics = problem(rng, batch=1, frames=12, size=(25, 23))
    y = y + 20 * torch.sin(torch.arange(12.0))[:, None, None] * torch.rand(25, 23, generator=rng)
    default, told, long = MarginalPilot().method, [], []
    default.reconstruct(y, physics, callback=lambda *step: told.append(step))
    Marginal(iterations=(150, 1)).reconstruct(y, physics, callback=lambda *s: long.append(s))
    pilot, full = ([c for stage, _, c in steps if stage == "pilot"] for steps in (told, long))
    assert len(pilot) < 0.5 * len(full)
    assert len(told) - len(pilot) < 20
    assert full[-1] - 1e-6 * abs(full[-1]) <= pilot[-1] < full[-1] + 10 < full[0]


def test_missing_data_do_not_spoil_a_pilot(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    y[:, :, 2, 4, 4:6] = torch.nan
    image = trained(network(MarginalPilot(FAST)), rng)(y, physics).detach()
    assert bool(torch.isfinite(image).all())
    assert float(image.abs().max()) > 0


def test_temporal_level_ignores_what_is_static(rng: torch.Generator) -> None:
    noise = torch.randn(2, 1, 20, 30, 31, generator=rng)
    noise[1] *= 7
    level = temporal_level(noise + 1000 * torch.rand(1, 1, 1, 30, 31, generator=rng))
    torch.testing.assert_close(level, torch.tensor([1.0, 7.0]), rtol=0.03, atol=0)


# ---------------------------------------------------------------- networks
@pytest.mark.parametrize("pilot", [WHITE, MarginalPilot(FAST)], ids=["white", "marginal"])
@pytest.mark.parametrize("kind", ["unrolled", "correction"])
def test_amplitude(rng: torch.Generator, pilot, kind: str) -> None:
    y, physics = problem(rng)
    model = network(pilot) if kind == "unrolled" else PilotCorrection(pilot, SmallUNet(4))
    model = trained(model, rng)
    one = model(y, physics)
    for factor in (0.25, 1024.0):  # powers of two: the solver takes the same path
        torch.testing.assert_close(model(factor * y, physics), factor * one, rtol=1e-5, atol=0)
    odd = model(3.7 * y, physics)
    error = ((odd - 3.7 * one).norm() / (3.7 * one).norm()).item()
    assert error < 1e-5, error


def test_untrained_network_is_gradient_descent(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    model = network(steps=3).double().eval()
    lengths = torch.tensor([1.0, 0.2, 1.6], dtype=torch.float64)
    model.log_steps.data = lengths.log()
    equations = model.prepare(y, physics)
    u = equations.start / equations.scale
    for length in lengths:
        u = u - length * equations.gradient(u) / equations.largest_eigenvalue()
    expected = (equations.scale * u).clamp_min(0)
    torch.testing.assert_close(model(y, physics), expected)


def test_proximal_network_sees_image_start_and_noise(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            seen.append(features)
            return 0.5 * features[:, 1:2]

    model = UnrolledADI(WHITE, [Spy()], positive=False).double()
    equations = model.prepare(y, physics)
    x = model.refine(equations)
    first = equations.start / equations.scale
    q = (1 + first.square().mean((-2, -1), keepdim=True)).sqrt()
    v = first - equations.gradient(first) / equations.largest_eigenvalue()
    torch.testing.assert_close(seen[0], torch.cat([v / q, first / q, (1 / q).expand_as(v)], 1))
    torch.testing.assert_close(x, equations.scale * (v + 0.5 * first / q))


@pytest.mark.parametrize("kind", [UnrolledADI, PilotCorrection])
def test_what_no_data_test_is_chosen_by_the_equations(kind: type, rng: torch.Generator) -> None:
    """The part that is invariant by rotation about the star, wherever the star is."""
    y, plain = problem(rng)
    physics = ADI(
        (1, H, W), plain.angles, plain.filter[0, 0, 0], sky_center=(5.0, 6.5), dtype=torch.float64
    )
    model = trained(kind(MarginalPilot(FAST), positive=False), rng)
    equations = model.prepare(y, physics)
    part = InvariantPart((5.0, 6.5))
    with torch.no_grad():
        free = model.eval().refine(replace(equations, unseen=None))
        assert float((free - equations.start).norm()) > 0.01 * float(equations.start.norm())
        torch.testing.assert_close(model.refine(equations), part.least(free, equations.start))
        of_first = part.of_first(free, equations.start)
        torch.testing.assert_close(model.seen(equations), of_first)
        torch.testing.assert_close(model.train().refine(equations), of_first)
    assert not torch.allclose(of_first, free, atol=1e-4)


def test_corrections_of_bright_images_are_no_larger(rng: torch.Generator) -> None:
    """A network of bounded values changes images by so many times the noise, however bright they are."""
    start = 1e4 * torch.rand(1, 1, 8, 9, generator=rng, dtype=torch.float64)
    sigma = torch.tensor(0.5, dtype=torch.float64)
    equations = NormalEquations(lambda x: 0 * x, 0 * start, sigma, start)

    class Bounded(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return torch.tanh(features[:, :1])

    for model in (UnrolledADI(WHITE, [Bounded()]), PilotCorrection(WHITE, Bounded())):
        change = (model.double().refine(equations) - start).detach().abs().max()
        assert 0.1 < float(change) <= 0.5


def test_shared_network_and_number_of_weights() -> None:
    one = SmallUNet(8)
    shared, own = UnrolledADI(prox=[one] * 3), UnrolledADI(prox=[SmallUNet(8) for _ in range(3)])
    count = [sum(p.numel() for p in m.parameters()) for m in (one, shared, own, UnrolledADI())]
    assert count[1] == count[0] + 3
    assert count[2] == 3 * count[0] + 3
    assert count[3] <= 500_000


@pytest.mark.parametrize(("frames", "size"), [(4, (9, 14)), (9, (16, 16)), (7, (7, 6))])
def test_any_number_of_frames_and_size(rng: torch.Generator, frames: int, size) -> None:
    y, physics = problem(rng, frames=frames, size=size, channels=2)
    model = trained(network(), rng).eval()
    image = model(y, physics)
    assert image.shape == (2, 2, *size)
    assert bool((image >= 0).all())
    parts = [model(y[n : n + 1], physics.sample(n)) for n in range(2)]
    torch.testing.assert_close(image, torch.cat(parts))


def test_wavelengths_are_images_of_their_own(rng: torch.Generator) -> None:
    net = trained(SmallUNet(4), rng)
    model = UnrolledADI(WHITE, [net]).double()
    start = torch.rand(2, 3, 8, 9, generator=rng, dtype=torch.float64)
    zero = torch.zeros_like(start)
    one = torch.ones((), dtype=torch.float64)
    together = model.refine(NormalEquations(lambda x: 0 * x, zero, one, start))
    for c in range(3):
        part = slice(c, c + 1)
        alone = model.refine(NormalEquations(lambda x: 0 * x, zero[:, part], one, start[:, part]))
        torch.testing.assert_close(together[:, part], alone)


def test_single_precision_is_close_and_kept(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    model = trained(network(), rng)
    double = model(y, physics)
    single = copy.deepcopy(model).float()(y.float(), copy.deepcopy(physics).float())
    assert double.dtype == torch.float64
    assert single.dtype == torch.float32
    assert ((single - double).norm() / double.norm()).item() < 1e-3


def test_gradients_of_all_weights(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    model = UnrolledADI(WHITE, [trained(SmallUNet(2), rng)] * 2, positive=False).double()
    equations = model.prepare(y, physics)
    weights = dict(model.named_parameters())

    def value() -> Tensor:
        return model.refine(equations).square().mean()

    gradients = torch.autograd.grad(value(), list(weights.values()))
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        assert float(gradient.abs().max()) > 0, name
        direction = torch.randn(weight.shape, generator=rng, dtype=weight.dtype)
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                weight += sign * 1e-5 * direction
                values.append(value())
                weight -= sign * 1e-5 * direction
        difference = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-4, atol=1e-6)


def test_gradient_reaches_the_data_through_the_equations(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    for pilot in (WHITE, MarginalPilot(FAST)):
        leaf = y.clone().requires_grad_()
        trained(network(pilot), rng)(leaf, physics).sum().backward()
        assert float(leaf.grad.abs().max()) > 0


def test_state_is_restored(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    one, other = (trained(network(), rng) for _ in range(2))
    before = other(y, physics)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(y, physics), other(y, physics))
    assert not torch.equal(before, other(y, physics))


def test_denoiser_takes_level_and_image(rng: torch.Generator) -> None:
    class Level(nn.Module):
        def forward(self, v: Tensor, sigma: Tensor) -> Tensor:
            return v * sigma.view(-1, 1, 1, 1)

    y, physics = problem(rng)
    model = PilotCorrection(WHITE, DenoiserCorrection(Level()), positive=False)
    equations = model.prepare(y, physics)
    first = equations.start / equations.scale
    q = (1 + first.square().mean((-2, -1), keepdim=True)).sqrt()
    expected = first + q * (first / q**2 - first / q)
    torch.testing.assert_close(model(y, physics), equations.scale * expected)


@pytest.mark.parametrize("denoiser", [DRUNet, RAM])
def test_denoisers_of_deepinv(denoiser: type, rng: torch.Generator) -> None:
    """Here with random weights."""
    y, physics = problem(rng, batch=1)
    y, physics = y.float(), physics.float()  # RAM has no double precision
    options = {"in_channels": 1, "out_channels": 1} if denoiser is DRUNet else {"in_channels": (1,)}
    torch.manual_seed(0)
    net = denoiser(**options, pretrained=None)
    model = UnrolledADI(WHITE, [DenoiserCorrection(net)]).eval()
    with torch.no_grad():
        image = model(y, physics)
        assert image.shape == (1, 1, H, W)
        assert bool(torch.isfinite(image).all())
        assert not torch.equal(image, model.prepare(y, physics).start)


def test_errors_name_the_remedy(rng: torch.Generator) -> None:
    y, physics = problem(rng)
    with pytest.raises(ValueError, match="`prox` is empty"):
        UnrolledADI(prox=[])
    with pytest.raises(ValueError, match="WhitePilot"):
        MarginalPilot()(y, LinearPhysics(A=lambda x: x, A_adjoint=lambda x: x))
    with pytest.raises(ValueError, match="`level` must return 2 positive numbers"):
        WhitePilot(lambda v: torch.zeros(2))(y, physics)
    with pytest.raises(ValueError, match="T at least 2"):
        temporal_level(y[:, :, :1])
    with pytest.raises(ValueError, match="strengths must not be negative"):
        WHITE(y, physics).smooth(-1.0, 0.0, 3)


def test_training_lowers_the_error(rng: torch.Generator) -> None:
    y, physics = problem(rng, batch=4)
    truth = torch.zeros(4, 1, H, W, dtype=torch.float64)
    truth[..., 2, 3] = 60.0
    torch.manual_seed(0)
    model = network().double()
    equations = model.prepare(y, physics)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    errors = []
    for _ in range(40):
        loss = (model.refine(equations) - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * errors[0]


def test_labels_of_the_likelihood_are_found(rng: torch.Generator) -> None:
    """A sequence that TemporalModel refuses is refused by the pilot, with the same remedy."""
    y, physics = problem(rng, batch=1)
    still = physics.variant(angles=torch.zeros(1, T, dtype=torch.float64))
    with pytest.raises(ValueError, match="angles do not vary"):
        TemporalModel.for_sequence(y, still)
    with pytest.raises(ValueError, match="angles do not vary"):
        network(MarginalPilot(FAST))(y, still)


@pytest.mark.parametrize("kind", [UnrolledADI, PilotCorrection])
def test_dark_pixels_come_back_in_training(kind, rng: torch.Generator) -> None:
    """Below 0 the result is cut, but not while it is trained: there every pixel has a gradient."""
    model = trained(kind(WHITE), rng)
    equations = model.prepare(*problem(rng))
    assert (model.train().refine(equations) < 0).any()
    assert (model.eval().refine(equations) >= 0).all()
