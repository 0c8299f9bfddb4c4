"""The laws of losses catch losses that break them."""

from __future__ import annotations

import pytest
import torch
from deepinv.loss import Loss
from deepinv.loss.sure import mc_div
from deepinv.physics import Denoising, GaussianNoise

from deepinv_astro.testing import (
    assert_loss_double,
    assert_loss_quiet,
    assert_loss_state_restored,
    assert_operator_untouched,
    assert_unbiased,
    assert_validation_quiet,
)

SIGMA = 0.5


class Shrink(torch.nn.Module):
    def __init__(self, factor: float = 0.2) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, y, physics):
        return self.factor * y


class Sure(Loss):
    """SURE of white noise, whose terms can be spoilt."""

    def __init__(self, divergence: float = 2.0, offset: float = 1.0) -> None:
        super().__init__()
        self.divergence, self.offset = divergence, offset

    def forward(self, x_net, x, y, physics, model, **kwargs):
        divergence = mc_div(physics.A(x_net), y, model, physics, 1e-2)
        error = (physics.A(x_net) - y).square().flatten(1).mean(1)
        return error + SIGMA**2 * (self.divergence * divergence - self.offset)


class Ascent(Loss):
    """A loss with a state that moves when, and where, it is told to."""

    def __init__(self, level: float, moves=lambda loss, model: loss.training and model.training):
        super().__init__()
        self.register_buffer("level", torch.tensor(level))
        self.register_buffer("speed", torch.zeros(()))
        self.moves = moves

    def forward(self, x_net, x, y, physics, model, **kwargs):
        error = (physics.A(x_net) - y).square().mean()
        if self.moves(self, model) and torch.is_grad_enabled():
            self.speed += 0.1 * error.detach()
            self.level += self.speed
        return self.level * error


class Forgetful(Ascent):
    """Its momentum is not in the state."""

    def __init__(self, level: float) -> None:
        super().__init__(level)
        speed = self._buffers.pop("speed")
        self._buffers["speed"] = speed
        self._non_persistent_buffers_set.add("speed")


class Backward(Ascent):
    """Moves once the value has been back-propagated."""

    def forward(self, x_net, x, y, physics, model, **kwargs):
        error = (physics.A(x_net) - y).square().mean()
        if self.training and model.training and error.requires_grad:
            error.register_hook(self._move)
        return self.level * error

    def _move(self, slope):
        self.level += 0.1


PHYSICS = Denoising(GaussianNoise(SIGMA))
IMAGES = torch.linspace(-1, 2, 2 * 6 * 5).reshape(2, 1, 6, 5)


def test_unbiased_loss_passes():
    assert abs(assert_unbiased(Sure(), PHYSICS, Shrink(), IMAGES)) < 4


@pytest.mark.parametrize(
    "spoilt",
    [Sure(divergence=-2.0), Sure(divergence=1.0), Sure(divergence=0.0), Sure(offset=-1.0)],
    ids=["sign", "factor", "none", "offset"],
)
def test_wrong_terms_are_seen(spoilt):
    with pytest.raises(AssertionError, match="times the true risk"):
        assert_unbiased(spoilt, PHYSICS, Shrink(), IMAGES)


def test_too_few_draws_do_not_pass():
    with pytest.raises(AssertionError, match="use more draws"):
        assert_unbiased(Sure(), PHYSICS, Shrink(), IMAGES, draws=20, resolution=0.02)


def test_noise_and_probe_do_not_share_a_seed():
    """With the probe equal to the noise, the divergence is that of the noise itself."""

    class Probed(Sure):
        def __init__(self) -> None:
            super().__init__()
            self.rng = torch.Generator()

        def forward(self, x_net, x, y, physics, model, **kwargs):
            b = torch.empty_like(y).normal_(generator=self.rng)
            slope = (b * (model(y + 0.01 * b, physics) - x_net) / 0.01).flatten(1).mean(1)
            error = (x_net - y).square().flatten(1).mean(1)
            # b.n vanishes only if both are independent
            shared = (b * (y - x)).flatten(1).mean(1)
            return error + SIGMA**2 * (2 * slope - 1) + shared

    physics = Denoising(GaussianNoise(SIGMA, rng=torch.Generator()))
    assert_unbiased(Probed(), physics, Shrink(), IMAGES, draws=1000)


def test_restored_state_passes():
    assert_loss_state_restored(Ascent(1.0), Ascent(2.0), PHYSICS, Shrink(), IMAGES)


def test_momentum_out_of_the_state_is_seen():
    with pytest.raises(AssertionError, match=r"3 steps after load_state_dict, level"):
        assert_loss_state_restored(Forgetful(1.0), Forgetful(2.0), PHYSICS, Shrink(), IMAGES)


def test_equal_losses_are_refused():
    still = [Ascent(1.0, moves=lambda loss, model: False) for _ in range(2)]
    with pytest.raises(AssertionError, match="nothing is tested"):
        assert_loss_state_restored(*still, PHYSICS, Shrink(), IMAGES)


def test_loose_tensors_are_seen():
    loose = Ascent(1.0)
    loose.extra = torch.zeros(2)
    with pytest.raises(AssertionError, match="neither buffers nor parameters: extra"):
        assert_loss_state_restored(loose, Ascent(2.0), PHYSICS, Shrink(), IMAGES)


@pytest.mark.parametrize(
    ("moves", "when"),
    [
        (lambda loss, model: model.training, "loss in eval"),
        (lambda loss, model: loss.training, "model in eval"),
    ],
)
def test_loud_losses_are_seen(moves, when):
    with pytest.raises(AssertionError, match=when):
        assert_loss_quiet(Ascent(1.0, moves), PHYSICS, Shrink(), IMAGES)


def test_a_change_under_no_grad_is_seen():
    class NoGrad(Ascent):
        def forward(self, x_net, x, y, physics, model, **kwargs):
            if self.training and model.training:
                self.level += 0.1
            return self.level * x_net.mean()

    with pytest.raises(AssertionError, match="under no_grad"):
        assert_loss_quiet(NoGrad(1.0), PHYSICS, Shrink(), IMAGES)


def test_quiet_losses_pass():
    assert_loss_quiet(Ascent(1.0), PHYSICS, Shrink(), IMAGES)
    assert_loss_quiet(Backward(1.0), PHYSICS, Shrink(), IMAGES)
    assert_validation_quiet(Backward(1.0), PHYSICS, Shrink(), IMAGES)
    moved = Backward(1.0)
    moved(IMAGES * Shrink().factor, IMAGES, IMAGES, PHYSICS, Shrink()).backward()
    assert float(moved.level) == pytest.approx(1.1)


def test_validation_is_seen():
    with pytest.raises(AssertionError, match="without backward"):
        assert_validation_quiet(Ascent(1.0), PHYSICS, Shrink(), IMAGES)


def test_double_precision_passes():
    assert_loss_double(Sure(), PHYSICS, Shrink(), IMAGES)


@pytest.mark.parametrize("where", ["output", "inside"])
def test_single_precision_is_seen(where):
    class Single(Sure):
        def forward(self, x_net, x, y, physics, model, **kwargs):
            value = super().forward(x_net.float(), x, y.float(), physics, model).float()
            return value if where == "output" else value.to(y.dtype)

    message = "is torch.float32 for" if where == "output" else "in double precision the gradient"
    with pytest.raises(AssertionError, match=message):
        assert_loss_double(Single(), PHYSICS, Shrink(), IMAGES)


@pytest.mark.parametrize(
    "touch",
    [
        lambda physics: physics.noise_model.sigma.mul_(2),
        lambda physics: physics.update(sigma=physics.noise_model.sigma.clone()),
        lambda physics: physics.register_buffer("gain", torch.ones(1)),
    ],
    ids=["value", "object", "new"],
)
def test_operator_that_is_touched(touch):
    class Touching(Sure):
        def forward(self, x_net, x, y, physics, model, **kwargs):
            touch(physics)
            return super().forward(x_net, x, y, physics, model, **kwargs)

    physics, x = Denoising(GaussianNoise(SIGMA)), torch.ones(2, 1, 4, 3)
    assert_operator_untouched(Sure(), physics, Shrink(), x)
    with pytest.raises(AssertionError, match=r"the loss changes (noise_model\.sigma|gain) of"):
        assert_operator_untouched(Touching(), physics, Shrink(), x)
