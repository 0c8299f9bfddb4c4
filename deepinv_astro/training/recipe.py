r"""What a training without ground truth is made of, and by how much of each."""

from __future__ import annotations

import dataclasses

import torch
from deepinv.loss import Loss

from deepinv_astro.loss import SUREGaussianLoss
from deepinv_astro.loss.equivariance import EquivariantLoss
from deepinv_astro.training.schedule import Schedule
from deepinv_astro.transform import LogUniform, Scale

__all__ = ["Recipe"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    r"""Scale-equivariant training of a reconstructor :math:`f` from measurements alone.

    .. math::

        \min_f \; \mathrm{SURE}(f) + w\,
        \mathbb E_{s} \big\| T_s \hat x - f(A\, T_s \hat x + \varepsilon) \big\|^2,
        \qquad \hat x = f(y) \text{ held fixed},

    (robust EI with scalings :math:`T_s`; Chen+ 2022, Scanvic+ 2026). Losses are in units of the
    squared contrast of the images. What the defaults gain over the published settings is in the
    benchmarks.

    :param float equivariance: :math:`w`; zero for SURE alone.
    :param tuple factors: least and largest factor :math:`s`, drawn evenly in their logarithm.
    :param int crop: rows and columns of the measured crops.
    :param int validation_crops: most crops of one validation.
    :param schedule: ``batch`` (crops of a step) and the other fields of :class:`Schedule`.
    :raises ValueError: if a number is out of range; the message names it.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.training import Recipe
        >>> [type(loss).__name__ for loss in Recipe(steps=100).losses(torch.Generator())]
        ['SUREGaussianLoss', 'EquivariantLoss']
    """

    equivariance: float = 1.0
    factors: tuple[float, float] = (0.5, 1.0)
    crop: int = 48
    validation_crops: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("crop", "validation_crops")
        self.check_weights("equivariance")
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
