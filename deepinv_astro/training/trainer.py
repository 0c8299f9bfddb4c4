"""Training from measured images, which stops and goes on at any step."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from deepinv.loss import Loss
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from deepinv_astro.datasets.images import grid_crops, random_crops
from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.training.recipe import Recipe

__all__ = ["Training", "Validation"]

#: Seed of the probes, factors and noise of validations: the same in each.
_VALIDATION_SEED = 1


class Validation(NamedTuple):
    """
    One line of the log.

    :param int step: steps done.
    :param float train: mean loss since the line before.
    :param float validation: loss on images held out.
    :param float seconds: of training so far, those before an interruption included.
    """

    step: int
    train: float
    validation: float
    seconds: float


class Training:
    r"""Minimise losses over crops of measured images.

    The losses are those of deepinv, called with ``x_net, y, physics, model``; none sees a ground
    truth. :class:`deepinv.Trainer` takes the same losses; this loop is for runs that are
    interrupted: all that changes while it trains is in one checkpoint, which appears whole or not
    at all: weights, their moving average, the optimiser, the states of losses, of the generator,
    and of torch's own. A run that is killed and resumed ends with the same bits.

    Validation is the sum of the same losses on held-out crops, for the averaged weights in ``eval``
    mode, with the same random numbers each time, and it leaves the generators as they were. The
    weights with the least validation in the second half of the steps are kept. Earlier ones
    are no candidates: an equivariance loss is small for a network that makes images smooth, as
    the untrained one, and can be compared only between networks that are alike.

    :param torch.nn.Module model: :math:`f`, called with ``(y, physics)``; trained in place.
    :param deepinv.physics.LinearPhysics physics: operator of a crop, with its noise model.
    :param train: measured images ``(C, h, w)``.
    :param validate: held-out images.
    :param Recipe recipe: parts and weights.
    :param losses: makes losses from a generator. Default: those of the recipe.
    :param float scale: contrast of the images; losses are divided by its square.
    :param int seed: of all that is random.
    :raises ValueError: if the crop does not fit the operator or the images.
    """

    def __init__(
        self,
        model: nn.Module,
        physics: LinearPhysics,
        train: Sequence[Tensor],
        validate: Sequence[Tensor],
        recipe: Recipe,
        *,
        losses: Callable[[torch.Generator], Sequence[Loss]] | None = None,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        for name, images in (("train", train), ("validate", validate)):
            least = min((min(i.shape[-2:]) for i in images), default=0)
            if least < recipe.crop:
                raise ValueError(
                    f"crops of {recipe.crop} pixels do not fit in images of {least} ({name}): "
                    "give larger images or a smaller `crop`"
                )
        self.model, self.physics, self.recipe, self.scale = model, physics, recipe, scale
        self.train, self.validate = (
            train,
            grid_crops(validate, recipe.crop, recipe.validation_crops),
        )
        self.rng = torch.Generator().manual_seed(seed)
        noise = physics.noise_model
        if getattr(noise, "rng", None) is not None:
            noise.rng = self.rng  # one generator, which checkpoints hold
        self.losses = nn.ModuleList((losses or recipe.losses)(self.rng))
        self.average = copy.deepcopy(model).eval()
        self.best = copy.deepcopy(self.average.state_dict())
        self.optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
        self.step, self.history = 0, list[Validation]()
        self._sum, self._seconds = 0.0, 0.0

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the validation has not improved for long enough."""
        values = [line.validation for line in self._candidates()]
        late = len(values) - 1 - values.index(min(values)) if values else 0
        return self.step >= self.recipe.steps or late >= self.recipe.patience

    @property
    def chosen(self) -> Validation:
        """The validation of :meth:`result`."""
        return min(self._candidates() or self.history[-1:], key=lambda line: line.validation)

    def _candidates(self) -> list[Validation]:
        return [line for line in self.history if 2 * line.step >= self.recipe.steps]

    def run(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Callable[[int], None] | None = None,
        log: Callable[[Training], None] | None = None,
    ) -> None:
        """
        Train to the end, from wherever it is.

        :param checkpoint: file that is replaced after each validation; none by default.
        :param progress: called with the number of steps done.
        :param log: called after each validation.
        :raises FloatingPointError: if a loss is not finite; the last checkpoint stays.
        """
        if not self.history:
            self._close_interval(checkpoint, log)
        while not self.finished:
            start = time.perf_counter()
            self._sum += self._one_step()
            self._seconds += time.perf_counter() - start
            self.step += 1
            if progress is not None:
                progress(self.step)
            if self.step % self.recipe.validate_every == 0 or self.step == self.recipe.steps:
                self._close_interval(checkpoint, log)

    def validation(self) -> float:
        """
        Loss of the averaged weights on the held-out crops.

        :return: (float) mean over the crops, in units of the squared contrast.
        """
        total = 0.0
        with _repeatable(self.rng, _VALIDATION_SEED), torch.no_grad():
            for y in self.validate.split(self.recipe.batch):
                total += float(self.objective(self.average, y)) * len(y)
        return total / len(self.validate)

    def result(self) -> nn.Module:
        """
        The reconstructor with the least validation of the second half; before that, the last one.

        :return: (:class:`torch.nn.Module`) a copy, in ``eval`` mode.
        """
        made = copy.deepcopy(self.average)
        made.load_state_dict(self.best)
        return made

    def state_dict(self) -> dict[str, Any]:
        """
        All that changes while it trains.

        :return: (dict) tensors and numbers only.
        """
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "losses": self.losses.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "torch_rng": torch.get_rng_state(),
            "step": self.step,
            "sum": self._sum,
            "seconds": self._seconds,
            "history": [tuple(line) for line in self.history],
            "recipe": dataclasses.asdict(self.recipe),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on where a checkpoint was written.

        :param dict state: of :meth:`state_dict`.
        :raises ValueError: if it was written with another recipe.
        """
        mine = dataclasses.asdict(self.recipe)
        other = {k: v for k, v in state["recipe"].items() if mine.get(k) != v}
        if other:
            raise ValueError(f"the checkpoint was written with {other}: pass the same to resume")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.best = state["best"]
        self.losses.load_state_dict(state["losses"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        torch.set_rng_state(state["torch_rng"])
        self.step, self._sum, self._seconds = state["step"], state["sum"], state["seconds"]
        self.history = [Validation(*line) for line in state["history"]]

    def _one_step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        y = random_crops(self.train, self.recipe.crop, self.recipe.batch, self.rng)
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.objective(self.model, y)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss of step {self.step} is {loss.item()}: lower `learning_rate`"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        # the first steps are forgotten sooner: they are far from what follows
        past = min(self.recipe.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            weights = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for mean, weight in weights:
                mean.lerp_(weight, 1 - past)
            for copied, buffer in zip(self.average.buffers(), self.model.buffers(), strict=True):
                copied.copy_(buffer)
        return loss.item()

    def objective(self, model: nn.Module, y: Tensor) -> Tensor:
        r"""
        Sum of the losses on a batch of crops, in units of the squared contrast.

        :param torch.nn.Module model: the trained one, or the average.
        :param torch.Tensor y: crops ``(B, C, h, w)``.
        :return: (:class:`torch.Tensor`) a number.
        """
        x_net = model(y, self.physics)
        terms = [
            loss(x=None, x_net=x_net, y=y, physics=self.physics, model=model).mean()
            for loss in self.losses
        ]
        return torch.stack(terms).sum() / self.scale**2

    def _close_interval(
        self,
        checkpoint: str | os.PathLike[str] | None,
        log: Callable[[Training], None] | None,
    ) -> None:
        """Validate, keep the best, write the checkpoint and the log."""
        steps = self.step - (self.history[-1].step if self.history else 0)
        value = self.validation()
        mean = self._sum / steps if steps else math.nan
        self.history.append(Validation(self.step, mean, value, self._seconds))
        if value <= min((line.validation for line in self._candidates()), default=value):
            self.best = copy.deepcopy(self.average.state_dict())
        self._sum = 0.0
        if log is not None:
            log(self)
        if checkpoint is not None:
            with atomic_path(checkpoint, overwrite=True) as temporary:
                torch.save(self.state_dict(), temporary)


@contextmanager
def _repeatable(rng: torch.Generator, seed: int) -> Iterator[None]:
    """The same random numbers in the block each time, and none are used up."""
    states = rng.get_state(), torch.get_rng_state()
    rng.manual_seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        rng.set_state(states[0])
        torch.set_rng_state(states[1])
