"""Adaptation to one sequence: never worse by its own risk, which is that of frames held out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch

from deepinv_astro.loss import frame_subset
from deepinv_astro.models import (
    MarginalPilot,
    NormalEquations,
    PilotCorrection,
    SmallUNet,
    UnrolledADI,
    WhitePilot,
    temporal_level,
)
from deepinv_astro.optim import Marginal
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import ADI
from deepinv_astro.training import adapt, adaptation, fit_ring_gains, with_visible_change
from deepinv_astro.training.adaptation import _groups, _runs

FRAMES, SIZE = 8, (13, 15)


@pytest.fixture(scope="module")
def sequence() -> tuple[torch.Tensor, ADI]:
    """A bright arc in white noise; gains, so that frames are told apart."""
    g = torch.Generator().manual_seed(1)
    gain = 1 + 0.1 * torch.rand(FRAMES, generator=g)
    physics = ADI((1, *SIZE), torch.linspace(-10, 90, FRAMES), gain=gain)
    x = torch.zeros(1, 1, *SIZE)
    x[..., 8:11, 9:13] = 6.0
    halo = 50 * torch.rand(1, 1, 1, *SIZE, generator=g)
    return halo + physics.A(x) + torch.randn(1, 1, FRAMES, *SIZE, generator=g), physics


def network(spread: float = 0.02) -> UnrolledADI:
    """Weights at random: there is something to gain."""
    torch.manual_seed(5)
    model = UnrolledADI(MarginalPilot(Marginal(iterations=(3, 4))), [SmallUNet(4)] * 2)
    for net in model.prox:
        torch.nn.init.normal_(net.last.weight, std=spread)
    return model.eval()


def independent_risk(make: Callable[..., torch.Tensor], y: torch.Tensor, physics: ADI) -> float:
    """Mean over four groups, of the error in the held frames."""
    pilot = network().pilot
    start, total = pilot(y, physics).start, 0.0
    for g in range(4):
        held = torch.tensor([t for t in range(FRAMES) if t % 4 == g])
        rest = torch.tensor([t for t in range(FRAMES) if t % 4 != g])
        own = frame_subset(physics, held)
        metric = pilot.at(start, y[:, :, held], own).normal.metric
        x = make(y[:, :, rest], frame_subset(physics, rest))
        r, blank = y[:, :, held] - own.A(x), y[:, :, held]
        total += float((r * metric(r)).sum() - (blank * metric(blank)).sum())
    return total / 4 / x.numel()


def test_a_bad_network_gets_better_and_the_risk_is_that_of_held_out_frames(
    sequence: tuple[torch.Tensor, ADI],
) -> None:
    y, physics = sequence
    model = network(1.0)
    before = copy.deepcopy(model.state_dict())
    seen: list[int] = []
    found = adapt(model, y, physics, steps=12, every=4, learning_rate=3e-3, progress=seen.append)
    assert seen == list(range(1, 13))
    assert [line.step for line in found.history] == [0, 4, 8, 12]
    with torch.no_grad():
        assert found.before == pytest.approx(independent_risk(model, y, physics), rel=1e-3)
    assert found.chosen > 0
    chosen = next(line for line in found.history if line.step == found.chosen)
    assert chosen.risk == min(line.risk for line in found.history)
    assert found.after < min(chosen.risk, found.before)  # gains are fitted to what judges them
    # the model given stays, the one returned moved
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not torch.equal(found.model.prox[0].last.weight, model.prox[0].last.weight)
    assert not found.model.training
    # the image has the change where it is seen
    with torch.no_grad():
        equations = model.prepare(y, physics)
        zero, moved = model.refine(equations), found.model.refine(equations)
        bright = found.gains(moved)
        expected = with_visible_change(equations, zero, bright, 0.01).clamp_min(0)
    assert torch.allclose(found.image, expected, atol=1e-4)
    assert not torch.allclose(found.image, zero, atol=1e-2)


def test_no_weights_see_the_frames_that_judge_them(sequence: tuple[torch.Tensor, ADI]) -> None:
    y, physics = sequence

    def frames(equations: NormalEquations) -> set[float]:
        return set(equations.normal.physics.angles.flatten().tolist())

    every = set(physics.angles.flatten().tolist())
    whole, *runs = _runs(network(), y, physics, _groups(physics, 4, 3), 0, 1e-4)
    assert frames(whole.whole) == every
    assert whole.judge is None
    assert set.union(*(frames(run.judge) for run in runs)) == every
    for run in (whole, *runs):
        held = frames(run.judge) if run.judge else set()
        assert frames(run.whole) == every - held
        assert len(run.splits) == 4 - bool(held)
        for part in run.splits:
            other = set(part.normal.physics.angles.flatten().tolist())
            assert frames(part.given) == every - held - other
            assert not other & held


def test_never_worse_than_zero_shot_by_the_risk(
    sequence: tuple[torch.Tensor, ADI], monkeypatch: pytest.MonkeyPatch
) -> None:
    y, physics = sequence
    model = network(0.0)
    with torch.no_grad():
        zero = model(y, physics)
    # steps so large that they spoil everything, or a margin that nothing passes
    for arguments in ({"learning_rate": 1.0}, {"learning_rate": 3e-3, "margin": 1e6}):
        found = adapt(model, y, physics, steps=4, every=2, **arguments)
        assert found.chosen == 0
        assert found.after < found.before
        assert all(
            torch.equal(v, model.state_dict()[k]) for k, v in found.model.state_dict().items()
        )
    none = adapt(model, y, physics)  # gains alone
    assert torch.equal(none.image, found.image)
    assert not torch.equal(none.image, zero)
    assert none.history == (found.history[0],)
    # what frames held out do not ask for is not done
    monkeypatch.setattr(adaptation, "fit_ring_gains", partial(fit_ring_gains, std=1e-9))
    monkeypatch.setattr(adaptation._Run, "changed", lambda run, zero, moved, weight: moved + 1)
    same = adapt(model, y, physics)
    assert same.after == same.before
    assert torch.equal(same.image, zero)
    assert torch.equal(same.gains.values, torch.ones(6, dtype=torch.float64))


class Dim(UnrolledADI):
    """Shows half of the light of the inner part, and all of the other."""

    def refine(self, equations: NormalEquations) -> torch.Tensor:
        x = super().refine(equations)
        return torch.where(separation(SIZE, (6, 7)) < 3.25, 0.5 * x, x)


def test_a_ring_that_is_shown_too_faint_gets_its_light_back() -> None:
    g = torch.Generator().manual_seed(3)
    physics = ADI((1, *SIZE), torch.linspace(-10, 120, 16))
    x = torch.zeros(1, 1, *SIZE)
    x[..., 7, 9:11], x[..., 10, 9] = 40.0, 40.0
    y = physics.A(x) + torch.randn(1, 1, 16, *SIZE, generator=g)
    model = Dim(MarginalPilot(Marginal(iterations=(10, 10))), [SmallUNet(4)]).eval()
    found = adapt(model, y, physics)
    assert found.gains.labels.unique().tolist() == [0, 1, 2, 3, 4, 5]
    ring = [int(found.gains.labels[r, c]) for r, c in ((7, 9), (10, 9))]
    gains = found.gains.values[ring]
    assert float(gains[0]) > 1.5  # the prior allows for .15
    assert abs(float(gains[1]) - 1) < 0.1
    errors = [float((v - x).detach().norm()) for v in (model(y, physics), found.image)]
    assert errors[1] < 0.6 * errors[0]
    assert found.gains.std[ring[0]] < found.gains.std[0] <= 0.15


def test_ring_gains_are_those_of_the_dense_problem(rng: torch.Generator) -> None:
    n, shape, rings = 30, (1, 1, 5, 6), 2
    images, judges, curvature, slope = [], [], 0.0, 0.0
    labels = (separation((5, 6), (2, 2)) / 1.25).long().clamp_max(1).flatten()
    parts = []
    for _ in range(3):
        root = torch.randn(20, n, generator=rng, dtype=torch.float64)
        x, b = torch.randn(2, n, generator=rng, dtype=torch.float64).unbind()
        normal, b = root.T @ root, root.T @ root @ x + 30 * b
        basis = torch.stack([x * (labels == j) for j in range(rings)])
        parts.append((basis @ normal @ basis.T, basis @ b))
        images.append(x.view(shape))
        judges.append(
            NormalEquations(
                lambda v, normal=normal: (normal @ v.flatten()).view(shape),  # type: ignore[misc]
                b.view(shape), torch.ones(shape), images[-1],
            )
        )  # fmt: skip
    curvature, slope = (sum(own) for own in zip(*parts, strict=True))  # type: ignore[arg-type]
    common = [
        (slope - q).sum() / (curvature - p).sum()  # type: ignore[attr-defined]
        for p, q in parts
    ]
    c = torch.stack(common).var(correction=0) * 2 * curvature.sum()  # type: ignore[attr-defined]
    assert c > 1
    precision = curvature / c + torch.eye(2) / 0.3**2
    expected = 1 + torch.linalg.solve(precision, (slope - curvature.sum(1)) / c)  # type: ignore[attr-defined]
    found = fit_ring_gains(images, judges, (2.0, 2.0), rings=rings, std=0.3)
    torch.testing.assert_close(found.values, expected)
    assert found.pixels_per_datum == pytest.approx(float(c))
    torch.testing.assert_close(found.std, torch.linalg.inv(precision).diagonal().sqrt())
    for g, (p, q) in enumerate(parts):  # nothing of a group is in the gains that it judges
        own = (curvature - p) / c + torch.eye(2) / 0.3**2
        delta = torch.linalg.solve(own, (slope - q - (curvature - p).sum(1)) / c)
        torch.testing.assert_close(found.without[g], 1 + delta)
        assert torch.equal(found.leaving(g).values, found.without[g])
    one_only = fit_ring_gains([images[0], *[0 * x for x in images[1:]]], judges, (2.0, 2.0))
    assert one_only.values.tolist() == [1.0] * 6  # one group shows something: no scatter, no gains
    empty = [torch.zeros(shape, dtype=torch.float64)] * 3
    blank = fit_ring_gains(empty, judges, (2.0, 2.0), rings=rings, std=0.3)
    torch.testing.assert_close(blank.values, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(blank.std, torch.full((2,), 0.3, dtype=torch.float64))


def test_deterministic_and_seeded(sequence: tuple[torch.Tensor, ADI]) -> None:
    y, physics = sequence
    state = torch.get_rng_state()
    one, again, other = (
        adapt(network(), y, physics, steps=3, every=3, learning_rate=3e-3, seed=s)
        for s in (0, 0, 1)
    )
    torch.manual_seed(5)  # as the network drew
    assert one.history == again.history
    assert torch.equal(one.image, again.image)
    assert one.history[0] == other.history[0]
    assert one.history[1] != other.history[1]
    torch.set_rng_state(state)
    model = network()
    before = torch.get_rng_state()
    adapt(model, y, physics, steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_data_and_channels(sequence: tuple[torch.Tensor, ADI]) -> None:
    y, physics = sequence
    both = ADI((2, *SIZE), physics.angles[0], gain=physics.gain[0])
    y = y.repeat(1, 2, 1, 1, 1)
    y[0, 1] *= 3
    y[0, 0, 3, 5] = torch.nan
    y[0, :, :, 9, 4] = torch.nan
    y[0, 1, 7, 2:4] = torch.nan
    found = adapt(network(), y, both, steps=4, every=2, learning_rate=3e-3)
    assert bool(torch.isfinite(found.image).all())
    assert found.image.shape == (1, 2, *SIZE)
    assert found.after <= found.before


def test_interrupted_the_model_stays_as_it_was(sequence: tuple[torch.Tensor, ADI]) -> None:
    y, physics = sequence
    model = network().train()
    before = copy.deepcopy(model.state_dict())

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(model, y, physics, steps=2, progress=stop)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_adapted_to(sequence: tuple[torch.Tensor, ADI]) -> None:
    y, physics = sequence
    still = ADI((1, *SIZE), torch.full((FRAMES,), 20.0))
    with pytest.raises(ValueError, match="without rotation"):
        adapt(network(), y, still)
    # turns only between the first and the second half: each group sees it
    halves = torch.where(torch.arange(FRAMES) < FRAMES // 2, 0.0, 50.0)
    adapt(network(), y, ADI((1, *SIZE), halves), steps=0)
    with pytest.raises(ValueError, match=r"7 frames are too few to adapt to: at least 8"):
        adapt(network(), y[:, :, :7], frame_subset(physics, torch.arange(7)))
    with pytest.raises(ValueError, match="one sequence"):
        adapt(network(), y.expand(2, -1, -1, -1, -1), physics)
    with pytest.raises(ValueError, match="MarginalPilot"):
        adapt(UnrolledADI(WhitePilot(temporal_level), [SmallUNet(4)]), y, physics)
    for name, value in (
        ("steps", -1),
        ("groups", 2),
        ("every", 0),
        ("learning_rate", 0.0),
        ("weight", 0.0),
        ("margin", -1.0),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            adapt(network(), y, physics, **{name: value})


def test_visible_change_against_a_dense_solution(rng: torch.Generator) -> None:
    n, shape = 12, (1, 1, 3, 4)
    root = torch.randn(5, n, generator=rng, dtype=torch.float64)  # sees 5 of 12 modes
    normal = root.T @ root
    scale = (1 + torch.rand(n, generator=rng, dtype=torch.float64)).view(shape)
    first, moved = torch.randn(2, *shape, generator=rng, dtype=torch.float64).unbind()
    whitened = scale.flatten()[:, None] * normal * scale.flatten()
    largest = torch.linalg.eigvalsh(whitened)[-1]
    equations = NormalEquations(
        lambda x: (normal @ x.flatten()).view(shape), first, scale, first, largest.view(1, 1, 1, 1)
    )
    x = with_visible_change(equations, first, moved, 0.05)
    change = ((moved - first) / scale).flatten()
    dense = torch.linalg.solve(
        whitened + 0.05 * largest * torch.eye(n, dtype=torch.float64), whitened @ change
    )
    expected = first + scale * dense.view(shape)
    assert torch.allclose(x, expected, rtol=1e-3, atol=1e-3)
    # what nothing sees stays: the change lies in the range of N
    hidden = torch.linalg.svd(root * scale.flatten())[2][5:]
    assert (hidden @ ((x - first) / scale).flatten()).abs().max() < 1e-9
    assert torch.equal(with_visible_change(equations, first, first), first)


def test_the_baseline_and_other_groups(sequence: tuple[torch.Tensor, ADI]) -> None:
    y, physics = sequence
    with pytest.raises(ValueError, match="too few"):
        adapt(network(), y, physics, groups=5)
    baseline = PilotCorrection(MarginalPilot(Marginal(iterations=(3, 4))), SmallUNet(4)).eval()
    found = adapt(baseline, y, physics, steps=1)  # type: ignore[arg-type]
    assert found.image.shape == (1, 1, *SIZE)
