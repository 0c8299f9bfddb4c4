r"""What a training without ground truth is made of, and by how much of each."""

from __future__ import annotations

import dataclasses
import math

import torch
from deepinv.loss import Loss

from deepinv_astro.loss import SUREGaussianLoss
from deepinv_astro.loss.equivariance import EquivariantLoss
from deepinv_astro.transform import LogUniform, Scale

__all__ = ["Recipe"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    r"""Scale-equivariant training of a reconstructor :math:`f` from measurements alone.

    .. math::

        \min_f \; \mathrm{SURE}(f) + w\,
        \mathbb E_{s} \big\| T_s \hat x - f(A\, T_s \hat x + \varepsilon) \big\|^2,
        \qquad \hat x = f(y) \text{ held fixed},

    (robust EI with scalings :math:`T_s`; Chen+ 2022, Scanvic+ 2026) by Adam, with a rate that rises
    over the first steps and falls as half a cosine, and with the moving average of the weights as
    result. What the defaults gain over the published settings is in the benchmarks.

    :param float equivariance: :math:`w`; zero for SURE alone.
    :param tuple factors: least and largest factor :math:`s`, drawn evenly in their logarithm.
    :param int crop: rows and columns of the measured crops.
    :param int batch: crops of a step.
    :param int steps: of the optimiser.
    :param float learning_rate: the largest rate.
    :param int warmup: steps of the rise.
    :param float final_rate: last rate, in units of the largest.
    :param float averaging: weight of the past in the moving average, of one step.
    :param float gradient_norm: longer gradients are shortened to it; losses are in units of the
        squared contrast of the images.
    :param int validate_every: steps between validations, each followed by a checkpoint.
    :param int patience: validations without a better one until the training stops, in the second
        half of the steps; see :class:`Training`.
    :param int validation_crops: most crops of one validation.
    :raises ValueError: if a number is out of range; the message names it.

    |sep|

    :Examples:

        >>> from deepinv_astro.training import Recipe
        >>> recipe = Recipe(steps=100, warmup=10, learning_rate=0.01)
        >>> [round(recipe.rate(step), 4) for step in (0, 9, 55, 100)]
        [0.001, 0.01, 0.0051, 0.0002]
    """

    equivariance: float = 1.0
    factors: tuple[float, float] = (0.5, 1.0)
    crop: int = 48
    batch: int = 4
    steps: int = 1500
    learning_rate: float = 3e-3
    warmup: int = 20
    final_rate: float = 0.02
    averaging: float = 0.995
    gradient_norm: float = 1.0
    validate_every: int = 100
    patience: int = 6
    validation_crops: int = 16

    def __post_init__(self) -> None:
        counts = ("crop", "batch", "steps", "validate_every", "patience", "validation_crops")
        for name in counts:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {value}")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"`warmup` must be in [0, {self.steps}), got {self.warmup}")
        for name in ("learning_rate", "gradient_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if not self.equivariance >= 0:
            raise ValueError(f"`equivariance` must not be negative, got {self.equivariance}")
        if not (0 < self.final_rate <= 1 and 0 <= self.averaging < 1):
            raise ValueError(
                "`final_rate` must be in (0, 1] and `averaging` in [0, 1), "
                f"got {self.final_rate} and {self.averaging}"
            )
        low, high = self.factors
        if not 0 < low <= high:
            raise ValueError(f"`factors` must be positive, the least first, got {self.factors}")

    def losses(self, rng: torch.Generator, margin: int = 0) -> list[Loss]:
        r"""The terms, each for :class:`deepinv.Trainer` as well; their noise is the operator's.

        :param torch.Generator rng: source of the probes and of the factors.
        :param int margin: pixels along each edge of the sky that the detector does not see.
        :return: (list) SURE, and the equivariance loss if it has a weight.
        """
        terms: list[Loss] = [SUREGaussianLoss(rng=rng)]
        if self.equivariance:
            scale = Scale(LogUniform(*self.factors), "random", rng=rng)
            terms.append(
                EquivariantLoss(scale, stop_gradient=True, weight=self.equivariance, margin=margin)
            )
        return terms

    def rate(self, step: int) -> float:
        r"""Learning rate of a step.

        :param int step: from 0.
        :return: (float) the rate.
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = min((step - self.warmup) / (self.steps - self.warmup), 1.0)
        fall = self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * fall
