"""Splits of sequences, operators of a part of the frames, and what the loss estimates."""

from __future__ import annotations

import deepinv as dinv
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deepinv_astro.datasets import SyntheticSurvey
from deepinv_astro.identifiability import mode_visibility
from deepinv_astro.loss import (
    FrameSplit,
    FrameSplittingLoss,
    FrameSplittingModel,
    draw_split,
    frame_subset,
    temporal_metric,
    without_temporal_mean,
)
from deepinv_astro.models import MarginalPilot, SmallUNet, UnrolledADI
from deepinv_astro.optim import Marginal
from deepinv_astro.physics import ADI
from deepinv_astro.testing import (
    assert_loss_double,
    assert_loss_quiet,
    assert_validation_quiet,
    dense_matrix,
)

H, W, T, SIGMA = 5, 4, 9, 0.7
GIVEN, HELD = torch.tensor([0, 1, 2, 5, 6]), torch.tensor([3, 4, 7, 8])


class Matched(nn.Module):
    """Linear: a multiple of the adjoint of the centred sequence."""

    def forward(self, y: Tensor, physics: ADI) -> Tensor:
        return 0.2 * physics.A_adjoint(without_temporal_mean(y))


def everything(rng: torch.Generator, batch: int = 2) -> ADI:
    """All parameters that belong to frames, and some that do not."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, dtype=torch.float64)

    return ADI(
        (2, H, W),
        90 * draw(batch, T),
        filter=draw(batch, 2, T, 3, 3) / 5,
        center=1.5 + draw(batch, T, 2),
        gain=0.5 + draw(batch, T),
        smear=5 * draw(1, T),
        transmission=0.3 + draw(1, H, W),
        smear_steps=2,
        dtype=torch.float64,
        noise_model=GaussianNoise(SIGMA),
    )


def sky(rng: torch.Generator, batch: int = 2) -> Tensor:
    return torch.rand(batch, 2, H, W, generator=rng, dtype=torch.float64)


class Fixed(FrameSplittingModel):
    """Always the same split."""

    chosen = FrameSplit(GIVEN, HELD)

    def _draw(self, physics: ADI, generator: torch.Generator | None) -> FrameSplit:
        return self.chosen


class Leaking(Fixed):
    """A frame in both parts."""

    chosen = FrameSplit(torch.tensor([0, 1, 2, 4, 5, 6]), HELD)


# ---------------------------------------------------------------- splits
@pytest.mark.parametrize(
    ("frames", "block", "fraction"),
    [(12, 3, 1 / 3), (61, 5, 0.3), (10, 3, 0.5), (7, 2, 0.9), (6, 1, 0.5)],
)
def test_splits_share_out_all_frames_by_blocks(
    frames: int, block: int, fraction: float, rng: torch.Generator
) -> None:
    angles = torch.linspace(0, 70, frames)
    drawn = set()
    for _ in range(40):
        given, held = draw_split(
            angles, block=block, fraction=fraction, diversity=0.0, generator=rng
        )
        assert torch.equal(torch.cat([given, held]).sort().values, torch.arange(frames))
        assert torch.equal(given, given.sort().values)
        assert torch.equal(held, held.sort().values)
        label = torch.zeros(frames, dtype=torch.long)
        label[held] = 1
        edges = torch.nonzero(label != label.roll(1))[:, 0]
        lengths = torch.diff(torch.cat([edges, edges[:1] + frames]))
        assert bool((lengths >= block).all()), label
        blocks = frames // block
        expected = min(max(round(fraction * blocks), 1), blocks - 1)
        assert expected * block <= len(held) < (expected + 1) * block
        drawn.add(tuple(held.tolist()))
    assert len(drawn) > 4


def test_both_parts_keep_diversity(rng: torch.Generator) -> None:
    angles = torch.linspace(0, 70, 24) ** 2 / 70
    whole = mode_visibility(angles, 2)[1]

    def least(diversity: float) -> float:
        worst = 1.0
        for _ in range(60):
            split = draw_split(angles, block=3, diversity=diversity, generator=rng)
            for part in split:
                worst = min(worst, float(mode_visibility(angles[part], 2)[1] / whole))
        return worst

    assert least(0.6) >= 0.6
    assert least(0.0) < 0.3


def test_diversity_is_asked_of_the_whole_batch(rng: torch.Generator) -> None:
    one = torch.linspace(0, 70, 24)
    other = torch.where(torch.arange(24) < 9, 7.0 * torch.arange(24), 60.0)
    both = torch.stack([one, other])
    whole = mode_visibility(both, 2)[:, 1]
    for _ in range(30):
        split = draw_split(both, block=3, diversity=0.4, generator=rng)
        for part in split:
            assert bool((mode_visibility(both[:, part], 2)[:, 1] >= 0.4 * whole).all())


def test_splits_follow_the_generator() -> None:
    angles = torch.linspace(0, 60, 30)
    draws = [draw_split(angles, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0].held, draws[1].held)
    assert not torch.equal(draws[0].held, draws[2].held)


# ---------------------------------------------------------------- operators
def test_operator_of_some_frames_gives_these_frames(rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    for frames in (HELD, torch.tensor([8, 0, 3]), torch.tensor([5])):
        part = frame_subset(physics, frames)
        torch.testing.assert_close(part.A(x), physics.A(x)[:, :, frames])
    assert physics.frames == T


def test_shared_parameters_stay_shared(rng: torch.Generator) -> None:
    physics = ADI((1, H, W), torch.rand(T, generator=rng), torch.ones(2, 2), center=(1.0, 2.5))
    x = torch.rand(3, 1, H, W, generator=rng)
    torch.testing.assert_close(frame_subset(physics, HELD).A(x), physics.A(x)[:, :, HELD])


# ---------------------------------------------------------------- the loss
def test_value_against_dense_matrices(rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    loss = FrameSplittingLoss()
    model = Fixed(Matched(), loss)
    y = physics(x) + 100 * torch.rand(2, 2, 1, H, W, generator=rng, dtype=torch.float64)
    x_net = model(y, physics, update_parameters=True)
    found = loss(x_net=x_net, y=y, physics=physics, model=model)
    for n in range(2):
        given, held = parts(physics, x, n)
        image = 0.2 * given.mT @ y[n][:, GIVEN].flatten()
        target = y[n][:, HELD] - y[n][:, HELD].mean(1, keepdim=True)
        expected = (target.flatten() - held @ image).square().mean()
        torch.testing.assert_close(found[n], expected)


def expectation(loss: FrameSplittingLoss, model: nn.Module, physics: ADI, x: Tensor) -> Tensor:
    r"""Exact mean over the noise of a loss that is quadratic in it.

    :math:`E\, q(n) = q(0) + \sigma^2 \sum_i \left[ (q(e_i) + q(-e_i)) / 2 - q(0) \right]`, all
    evaluated as one batch.
    """
    clean = physics.A(x)
    number = clean[0].numel()
    unit = torch.eye(number, dtype=x.dtype).view(number, 1, *clean.shape[1:])
    shifts = torch.cat([0 * unit[:1], unit, -unit])  # (2 number + 1, 1, ...)
    y = (clean + shifts).flatten(0, 1)
    x_net = model(y, physics, update_parameters=True)
    q = loss(x_net=x_net, y=y, physics=physics, model=model).view(-1, len(x))
    return q[0] + SIGMA**2 * (q[1:].sum(0) / 2 - number * q[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_expectation_of_a_linear_reconstructor(weighted: bool, rng: torch.Generator) -> None:
    """Risk at the held-out frames plus the noise there, by dense matrices."""
    physics, x = everything(rng), sky(rng)
    weight = WEIGHT if weighted else torch.ones_like(WEIGHT)
    loss = FrameSplittingLoss(
        metric=(lambda y, physics: lambda v: v * WEIGHT) if weighted else None
    )
    expected = []
    for n in range(2):
        given, held = parts(physics, x, n)
        w = weight.expand(2, len(HELD), H, W).flatten()
        bias = held @ (x[n].flatten() - 0.2 * given.mT @ given @ x[n].flatten())
        spread = SIGMA**2 * (w[:, None] * (0.2 * held @ given.mT).square()).sum()
        floor = SIGMA**2 * w.sum() * (len(HELD) - 1) / len(HELD)
        expected.append(((w * bias.square()).sum() + spread + floor) / len(held))
    found = expectation(loss, Fixed(Matched(), loss), physics, x)
    torch.testing.assert_close(found, torch.stack(expected))
    # a frame in both parts: the reconstructor has seen the noise that it is judged by
    leaking = expectation(loss, Leaking(Matched(), loss), physics, x)
    given, held = frame_subset(physics, Leaking.chosen.given), frame_subset(physics, HELD)
    error = without_temporal_mean(held.A(x - Matched()(given.A(x), given)))
    risk = (weight * error.square()).flatten(1).mean(1)
    assert bool((leaking - risk < found - risk).all())
    assert_exchangeable(loss, Fixed(Matched(), loss), physics, x)
    with pytest.raises(AssertionError, match="depends on the noise"):
        assert_exchangeable(loss, Leaking(Matched(), loss), physics, x)


def assert_exchangeable(
    loss: FrameSplittingLoss, model: nn.Module, physics: ADI, x: Tensor
) -> None:
    """No frame that is held out moves the reconstruction."""
    y = physics.A(x)
    before = model(y, physics, update_parameters=True)
    other = y.clone()
    other[:, :, model.split.held] += 1.0 + torch.arange(W)
    other[:, :, model.split.held[0]] *= 2
    if not torch.equal(model(other, physics, update_parameters=True), before):
        raise AssertionError("the reconstruction depends on the noise of frames held out")


@pytest.mark.parametrize("seed", range(3))
def test_drawn_splits_do_not_leak(seed: int, rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    loss = FrameSplittingLoss(block=2, rng=torch.Generator().manual_seed(seed))
    model = loss.adapt_model(Matched())
    y = physics.A(x)
    before = model(y, physics, update_parameters=True)
    held = model.split.held
    y[:, :, held] += torch.randn(2, 2, len(held), H, W, generator=rng, dtype=torch.float64)
    loss.rng.manual_seed(seed)
    assert torch.equal(model(y, physics, update_parameters=True), before)
    assert torch.equal(model.split.held, held)


def parts(physics: ADI, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Dense matrices of the given and of the held-out frames, centred in time."""
    dense = dense_matrix(physics.sample(n).A, x[:1]).view(2, T, H * W, -1)
    given, held = (v - v.mean(1, keepdim=True) for v in (dense[:, GIVEN], dense[:, HELD]))
    return given.reshape(-1, 2 * H * W), held.reshape(-1, 2 * H * W)


WEIGHT = torch.linspace(0.2, 2.0, H * W, dtype=torch.float64).view(H, W)


def test_a_static_halo_has_no_part(rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    y = physics(x)
    halo = 1e3 * torch.rand(2, 2, 1, H, W, generator=rng, dtype=torch.float64)
    loss = FrameSplittingLoss()
    model = Fixed(Matched(), loss)
    x_net = model(y, physics, update_parameters=True)
    values = [loss(x_net=x_net, y=v, physics=physics, model=model) for v in (y, y + halo)]
    torch.testing.assert_close(*values)


def test_missing_data_take_no_part(rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    y = physics.A(x)
    loss = FrameSplittingLoss()
    model = Fixed(Matched(), loss)
    model(y, physics, update_parameters=True)
    y[:, :, 4, 2, 3] = torch.nan
    assert float(loss(x_net=x, y=y, physics=physics, model=model).max()) < 1e-20
    wrong = loss(x_net=0 * x, y=y, physics=physics, model=model)
    assert bool(torch.isfinite(wrong).all())
    assert float(wrong.min()) > 1e-3


def test_temporal_metric_is_symmetric_whitening(rng: torch.Generator) -> None:
    """Speckles of one strong mode in time: what varies as they do hardly counts."""
    size = (15, 14)
    physics = ADI((1, *size), torch.linspace(0, 60, T).double(), dtype=torch.float64)
    mode = torch.linspace(-1, 1, T, dtype=torch.float64).view(1, 1, T, 1, 1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    y = noise(2, 1, T, *size) + 30 * mode * noise(2, 1, 1, *size)
    weight = temporal_metric(y, physics)
    u, v = noise(2, 1, T, *size), noise(2, 1, T, *size)
    torch.testing.assert_close((u * weight(v)).sum(), (v * weight(u)).sum())
    centred = y - y.mean(2, keepdim=True)
    sizes = [(a * b).flatten(1).sum(1) for a, b in ((y, weight(y)), (centred, centred))]
    torch.testing.assert_close(*sizes)
    along = mode / mode.norm() * noise(2, 1, 1, *size)
    across = mode.square() - mode.square().mean()
    across = across / across.norm() * noise(2, 1, 1, *size)
    ratio = (along * weight(along)).sum() / (across * weight(across)).sum()
    assert float(ratio) < 0.05
    with_metric = FrameSplittingLoss(metric=temporal_metric)
    model = Fixed(Matched(), with_metric)
    x_net = model(y, physics, update_parameters=True)
    held = y[:, :, HELD]
    residual = without_temporal_mean(held - frame_subset(physics, HELD).A(x_net))
    own = temporal_metric(held, frame_subset(physics, HELD))
    expected = (residual * own(residual)).flatten(1).mean(1)
    found = with_metric(x_net=x_net, y=y, physics=physics, model=model)
    torch.testing.assert_close(found, expected)


def test_eval_sees_all_frames_or_a_mean(rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    y = physics(x)
    whole = FrameSplittingLoss(block=2, rng=rng).adapt_model(Matched()).eval()
    torch.testing.assert_close(whole(y, physics), Matched()(y, physics))
    mean = FrameSplittingLoss(block=2, eval_splits=3, rng=rng).adapt_model(Matched()).eval()
    assert torch.equal(mean(y, physics), mean(y, physics))
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(3):
        given = draw_split(physics.angles, block=2, generator=generator).given
        parts.append(Matched()(y[:, :, given], frame_subset(physics, given)))
    torch.testing.assert_close(mean(y, physics), torch.stack(parts).mean(0))


def test_a_call_of_another_loss_keeps_the_split(rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    y = physics(x)
    model = FrameSplittingLoss(block=2, rng=rng).adapt_model(Matched())
    model(y, physics, update_parameters=True)
    kept = model.split
    for _ in range(5):
        model(y, physics)
    assert model.split is kept
    assert FrameSplittingLoss().adapt_model(model) is model


def test_laws_of_losses(rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    loss = FrameSplittingLoss(block=2, rng=torch.Generator())
    assert_loss_quiet_in_training(loss, physics, x)
    assert_loss_double(loss, physics, Matched(), x)


def assert_loss_quiet_in_training(loss: FrameSplittingLoss, physics: ADI, x: Tensor) -> None:
    assert_loss_quiet(loss, physics, Matched(), x)
    assert_validation_quiet(loss, physics, Matched(), x)


def test_errors_name_the_remedy(rng: torch.Generator) -> None:
    physics, x = everything(rng), sky(rng)
    loss = FrameSplittingLoss(block=2)
    y = physics(x)
    with pytest.raises(ValueError, match="adapt_model"):
        loss(x_net=x, y=y, physics=physics, model=Matched())
    model = loss.adapt_model(Matched())
    model.eval()(y, physics, update_parameters=True)
    with pytest.raises(ValueError, match="in training mode"):
        loss(x_net=x, y=y, physics=physics, model=model)
    with pytest.raises(ValueError, match="reduce `block`"):
        draw_split(torch.linspace(0, 9, 9), block=5)
    with pytest.raises(ValueError, match="increase `block`"):
        draw_split(torch.linspace(0, 9, 4), block=1, fraction=0.1)
    for wrong in ({"block": 0}, {"fraction": 1.0}, {"diversity": 1.5}):
        with pytest.raises(ValueError, match="must be positive"):
            draw_split(torch.linspace(0, 9, 9), **wrong)
    with pytest.raises(ValueError, match="eval_splits"):
        FrameSplittingLoss(eval_splits=-1)
    with pytest.raises(ValueError, match="got Denoising"):
        frame_subset(Denoising(), HELD)
    with pytest.raises(ValueError, match="frames is empty"):
        frame_subset(physics, HELD[:0])


@pytest.mark.filterwarnings("ignore:non_blocking_transfers")
def test_trainer_trains_a_network_on_a_survey() -> None:
    """The whole chain: simulated stars, splits by blocks, whitening, network, deepinv's Trainer."""
    survey = SyntheticSurvey.small(4, img_size=(21, 19), frames=10)
    physics = ADI((1, 21, 19), torch.zeros(10), filter=torch.ones(1, 1), gain=torch.ones(10))
    torch.manual_seed(0)
    pilot = MarginalPilot(Marginal(iterations=(3, 4)))
    model = UnrolledADI(pilot, [SmallUNet(4)] * 2)
    before = [value.detach().clone() for value in model.parameters()]
    rng = torch.Generator().manual_seed(0)
    trainer = dinv.Trainer(
        model=model,
        physics=physics,
        epochs=2,
        losses=FrameSplittingLoss(block=2, metric=temporal_metric, rng=rng),
        optimizer=torch.optim.Adam(model.parameters(), 1e-2),
        device="cpu",
        save_path=None,
        train_dataloader=DataLoader(survey, batch_size=2),
        online_measurements=False,
        metrics=[],
        verbose=False,
        show_progress_bar=False,
    )
    trained = trainer.train()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)
    item = survey[0]
    physics.update(**{name: value[None] for name, value in item["params"].items()})
    image = trained.eval()(item["y"][None], physics)
    assert bool(torch.isfinite(image).all())
