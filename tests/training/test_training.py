"""The loop: exact resume, validation that disturbs nothing, averages, early stop."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from deepinv.loss import Loss
from torch import Tensor, nn

from deepinv_astro.loss import SUREGaussianLoss
from deepinv_astro.loss.equivariance import EquivariantLoss
from deepinv_astro.training import Recipe, Restoration, Training

RECIPE = Recipe(crop=12, batch=2, steps=12, warmup=3, validate_every=4, validation_crops=3)
NOISE = 0.1


def measured(count: int = 3, height: int = 40, width: int = 31) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [
        torch.randn(1, height, width + k, generator=g).cumsum(-1).cumsum(-2) / 20
        for k in range(count)
    ]


def make(recipe: Recipe = RECIPE, **options: Any) -> Training:
    y = measured()
    restoration = Restoration(torch.ones(3, 3), NOISE, 1, y, features=4, seed=1)
    physics = restoration.physics(recipe.crop, recipe.crop)
    return Training(restoration.model, physics, y[:2], y[2:], recipe, seed=2, **options)


class Counting(Loss):
    """A loss with a state, that moves while it trains."""

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        self.sure = SUREGaussianLoss(rng=rng)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled():
            self.count += 1
        return self.sure(**kwargs) + torch.rand(()) * (1 + self.count) * kwargs["x_net"].mean()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@pytest.mark.parametrize("losses", [None, lambda rng: [Counting(rng)]])
def test_a_resumed_training_ends_with_the_same_bits(losses: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = make(losses=losses)
    whole.run()
    torch.manual_seed(3)
    path, part = tmp_path / "c.pt", make(losses=losses)

    def stop(step: int) -> None:
        if step == 6:  # two steps after the checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.run(path, stop)
    torch.manual_seed(99)
    rest = make(losses=losses)
    rest.load_state_dict(torch.load(path, weights_only=True))
    assert rest.step == 4
    rest.run(path)
    one, two = whole.state_dict(), rest.state_dict()
    for state in (one, two):  # but the clock
        state["seconds"], state["history"] = 0, [line[:3] for line in state["history"]]
    assert [k for k in one if not same(one[k], two[k])] == []


def test_validation_changes_nothing_and_repeats() -> None:
    training = make(losses=lambda rng: [Counting(rng)])
    training._one_step()
    before = training.state_dict()
    before = {k: (v.clone() if isinstance(v, Tensor) else v) for k, v in before.items()}
    first, second = training.validation(), training.validation()
    assert first == second
    assert all(same(before[k], training.state_dict()[k]) for k in before)


def test_result_is_the_best_average() -> None:
    training = make()
    training.run()
    values = [line.validation for line in training.history if line.step >= 6]
    assert training.chosen.validation == min(values)
    assert [line.step for line in training.history] == [0, 4, 8, 12]
    training.average.load_state_dict(training.best)
    assert training.validation() == pytest.approx(min(values), rel=1e-6)
    assert same(training.result().state_dict(), training.best)


def test_average_follows_its_equation() -> None:
    training = make(dataclasses.replace(RECIPE, averaging=0.3))
    start = training.average.first.weight.clone()
    training._one_step()  # (1 + 0) / 10 of the past
    once = 0.1 * start + 0.9 * training.model.first.weight
    assert torch.allclose(training.average.first.weight, once, atol=1e-7)
    training.step = 50  # 51 / 60 is more than 0.3
    training._one_step()
    twice = 0.3 * once + 0.7 * training.model.first.weight
    assert torch.allclose(training.average.first.weight, twice, atol=1e-7)


def test_it_stops_when_the_validation_does_not_improve() -> None:
    class Worse(Loss):
        def forward(self, x_net: Tensor, **kwargs: Any) -> Tensor:
            grown = torch.is_grad_enabled()
            return (-1.0 if grown else 1.0) * x_net.square().mean()

    recipe = dataclasses.replace(RECIPE, steps=100, patience=2)
    training = make(recipe, losses=lambda rng: [Worse()])
    training.run()
    assert training.step == 52 + 2 * recipe.validate_every  # 52 is the first of the second half
    assert training.finished
    assert training.chosen.step == 52


def test_losses_are_in_units_of_the_contrast() -> None:
    one, ten = make(), make(scale=10.0)
    assert one.validation() == pytest.approx(100 * ten.validation(), rel=1e-5)


def test_gradients_are_shortened_and_rates_follow_the_recipe() -> None:
    recipe = dataclasses.replace(RECIPE, gradient_norm=1e-9)
    training = make(recipe)
    training._one_step()
    norms = [p.grad.norm() for p in training.model.parameters() if p.grad is not None]
    assert float(torch.stack(norms).norm()) <= 1.001e-9
    assert training.optimizer.param_groups[0]["lr"] == recipe.rate(0)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    class Broken(Loss):
        def forward(self, x_net: Tensor, **kwargs: Any) -> Tensor:
            return x_net.mean() * (math.nan if torch.is_grad_enabled() else 1.0)

    with pytest.raises(FloatingPointError, match="step 0"):
        make(losses=lambda rng: [Broken()]).run()


def test_another_recipe_or_images_too_small_are_refused() -> None:
    state = make().state_dict()
    with pytest.raises(ValueError, match="'batch': 2"):
        make(dataclasses.replace(RECIPE, batch=3)).load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"crops of 50 pixels do not fit in images of 31 \(train\)"
    ):
        make(dataclasses.replace(RECIPE, crop=50))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("warmup", 1500), ("learning_rate", 0.0), ("equivariance", -1.0),
     ("averaging", 1.0), ("final_rate", 0.0), ("factors", (0.8, 0.2)), ("crop", 2.5)],
)  # fmt: skip
def test_a_recipe_says_what_is_wrong(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        dataclasses.replace(Recipe(), **{name: value})


def test_the_terms_are_sure_and_equivariance_with_fixed_images() -> None:
    rng = torch.Generator()
    sure, ei = Recipe(equivariance=2.0, factors=(0.4, 0.6)).losses(rng, margin=3)
    assert isinstance(sure, SUREGaussianLoss)
    assert isinstance(ei, EquivariantLoss)
    assert (ei.weight, ei.margin, ei.stop_gradient) == (2.0, 3, True)
    factors = torch.cat([ei.transform.get_params(torch.zeros(50, 1, 9, 9))["factor"][0]])
    assert 0.4 <= float(factors.min()) < 0.45 < 0.55 < float(factors.max()) <= 0.6
    assert len(Recipe(equivariance=0.0).losses(rng)) == 1


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_training import *
torch.set_num_threads(1)
make(dataclasses.replace(RECIPE, steps=100000, validate_every=2)).run({path!r})
"""


@pytest.mark.slow
def test_a_killed_training_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    code = _KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    state = torch.load(path, weights_only=True)
    assert state["step"] >= 2
    assert state["step"] % 2 == 0
    rest = make(dataclasses.replace(RECIPE, steps=100000, validate_every=2))
    rest.load_state_dict(state)
    rest._one_step()


def test_model_is_trained_in_place_and_improves() -> None:
    training = make(dataclasses.replace(RECIPE, steps=40, validate_every=40, learning_rate=3e-3))
    before = [p.clone() for p in training.model.parameters()]
    training.run()
    assert any(
        not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True)
    )
    assert isinstance(training.result(), nn.Module)
    assert not training.result().training
