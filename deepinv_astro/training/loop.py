"""An optimisation that stops and goes on at any step, alone or shared by several processes."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.training.schedule import Schedule

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Loop", "Share", "Validation"]

#: Seed of the random numbers of validations: the same in each.
_VALIDATION_SEED = 1


class Validation(NamedTuple):
    """
    One line of the log.

    :param int step: steps done.
    :param float train: mean loss since the line before.
    :param float validation: loss on data held out.
    :param float seconds: of training so far, those before an interruption included.
    """

    step: int
    train: float
    validation: float
    seconds: float


class Share(NamedTuple):
    """
    Which of the examples of a batch are those of this process.

    :param int rank: number of the process, from 0.
    :param int world: number of processes.
    """

    rank: int
    world: int

    @classmethod
    def own(cls) -> Share:
        """
        That of this process, as ``torchrun`` and ``torch.distributed`` say; else all of it.

        :return: :class:`Share`.
        """
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls(0, 1)

    def sum(self, values: Tensor) -> Tensor:
        """
        Sum over the processes.

        :param torch.Tensor values: of this process.
        :return: (:class:`torch.Tensor`) the same in all of them.
        """
        if self.world > 1:
            distributed.all_reduce(values)
        return values


class Loop(ABC):
    r"""Minimise a loss over batches by a :class:`Schedule`.

    All that changes while it trains is in one checkpoint, which appears whole or not at all:
    weights, their moving average, the optimiser, the states of losses, of the generator, and of
    torch's own. A run that is killed and resumed ends with the same bits.

    Validation is for the averaged weights in ``eval`` mode, with the same random numbers each time,
    and leaves the generators as they were. The weights with the least validation in the second half
    of the steps are kept. Earlier ones are no candidates: an equivariance loss is small for a
    network that makes images smooth, as the untrained one, and can be compared only between
    networks that are alike.

    Processes started by ``torchrun``, with ``torch.distributed`` initialised, share each batch, and
    the gradient is the mean of theirs: two processes do together what one does with all of it.

    :param torch.nn.Module model: :math:`f`; trained in place.
    :param Schedule recipe: how long and how fast.
    :param losses: modules whose states belong to the training.
    :param int seed: of all that is random.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Schedule,
        *,
        losses: Callable[[torch.Generator], list[nn.Module]] = lambda rng: [],
        seed: int = 0,
    ) -> None:
        self.model, self.recipe, self.share = model, recipe, Share.own()
        self.rng = torch.Generator().manual_seed(seed)
        self.losses = nn.ModuleList(losses(self.rng))
        self.average = copy.deepcopy(model).eval()
        self.best = copy.deepcopy(self.average.state_dict())
        self.optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
        self.step, self.history = 0, list[Validation]()
        self._sum, self._seconds = 0.0, 0.0

    @abstractmethod
    def batch_loss(self) -> Tensor:
        """
        Loss of the model on the share of this process in the next batch.

        :return: (:class:`torch.Tensor`) a number, such that the mean over the processes is the loss
            of the whole batch.
        """

    @abstractmethod
    def validation_loss(self) -> Tensor:
        """
        Sums over the share of this process in what is held out, for the averaged weights.

        :return: (:class:`torch.Tensor`) the sum of the losses and the number of examples, ``(2,)``.
        """

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
        log: Callable[[Self], None] | None = None,
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
        Loss of the averaged weights on what is held out.

        :return: (float) mean over the examples.
        """
        with _repeatable(self.rng, _VALIDATION_SEED), torch.no_grad():
            total, count = self.share.sum(self.validation_loss()).tolist()
        return float(total / count)

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
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.batch_loss()
        value = float(self.share.sum(loss.detach().clone())) / self.share.world
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of step {self.step} is {value}: look for extreme values in the "
                "data, or lower the recipe's learning rate"
            )
        loss.backward()
        self._average_gradients()
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
        return value

    def _average_gradients(self) -> None:
        """Mean over the processes, in one message."""
        if self.share.world == 1:
            return
        weights = [p for p in self.model.parameters() if p.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        flat = self.share.sum(nn.utils.parameters_to_vector(parts)) / self.share.world
        for p, part in zip(weights, flat.split([p.numel() for p in weights]), strict=True):
            p.grad = part.view_as(p).clone()

    def _close_interval(
        self,
        checkpoint: str | os.PathLike[str] | None,
        log: Callable[[Self], None] | None,
    ) -> None:
        """Validate, keep the best; the first process writes the checkpoint and the log."""
        steps = self.step - (self.history[-1].step if self.history else 0)
        value = self.validation()
        mean = self._sum / steps if steps else math.nan
        self.history.append(Validation(self.step, mean, value, self._seconds))
        if value <= min((line.validation for line in self._candidates()), default=value):
            self.best = copy.deepcopy(self.average.state_dict())
        self._sum = 0.0
        if self.share.rank > 0:
            return
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
