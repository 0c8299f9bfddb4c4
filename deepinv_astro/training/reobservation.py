r"""Stars observed again: what a network has found, seen by another instrument with other speckles."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.datasets.psf_error import PSFError
from deepinv_astro.models import MarginalPilot, PilotNetwork
from deepinv_astro.models.pilot import WhitenedOperator
from deepinv_astro.physics import ADI
from deepinv_astro.training.tasks import Observation, Part, Task
from deepinv_astro.transform import InclinationStretch, StarRotation

__all__ = ["Reobservation"]


class Reobservation(NamedTuple):
    r"""A new problem with a known answer, from what is known of two stars.

    The sky of star :math:`i`, as the network sees it, is transformed, measured through an operator of
    star :math:`j`, and put on noise of star :math:`j`:

    .. math::

        x' = a\, T_g \frac{\sigma_j}{\sigma_i} \hat x_i , \qquad
        y' = A'_j x' + \tilde n_j , \qquad
        \ell = \big\| A_j \left( f(y', A_j) - x' \right) \big\|_{W'}^2 , \qquad
        \hat x_i = f(y_i) \text{ held fixed}.

    This is equivariant imaging (:class:`~deepinv_astro.loss.EquivariantLoss`) and multi-operator imaging
    (:class:`~deepinv_astro.loss.MultiOperatorLoss`) at once, with noise that is no model: the residual of
    star :math:`j` with random signs of its modes in time
    (:meth:`~deepinv_astro.optim.temporal.FrozenMetric.resigned`).

    - :math:`\hat x_i`: with the invariant part of the first image; the network's own is a lower bound
      (:class:`~deepinv_astro.models.invariant.InvariantPart`).
    - :math:`T_g`: a rotation about the star. It teaches nothing with the operator of the same
      star, for which it commutes, but :math:`A_j` has other angles.
    - :math:`a`: log-uniform; below one, what is found of bright disks teaches what faint ones look like; above one,
      disks brighter than any of the survey.
    - :math:`A'_j`: with a PSF drawn about the one that is known, as far as it may be wrong; the network
      is told :math:`A_j` and learns not to trust it more than that.

    :param tuple amplitudes: range of :math:`a`.
    :param float stretch: probability of an inclination stretch, which dims what it brightens.
    :param PSFError psf_error: what may be wrong with the PSFs.
    :param bool exchange: whether another star gives the instrument, or the same one, as in equivariant
        imaging with one operator.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.datasets import SyntheticSurvey
        >>> from deepinv_astro.models import MarginalPilot, SmallUNet, UnrolledADI
        >>> from deepinv_astro.training import Reobservation, observe
        >>> survey = SyntheticSurvey.small(2, seed=1)
        >>> model = UnrolledADI(prox=[SmallUNet(4)])
        >>> stars = [observe(survey[i], model.pilot) for i in range(2)]
        >>> task = Reobservation()(model, stars[0], stars[1], torch.Generator().manual_seed(0))
        >>> task[0].given.start.shape
        torch.Size([1, 1, 33, 33])
    """

    amplitudes: tuple[float, float] = (0.2, 3.0)
    stretch: float = 0.0
    psf_error: PSFError = PSFError()
    exchange: bool = True

    def __call__(
        self,
        model: PilotNetwork,
        sky: Observation,
        instrument: Observation,
        generator: torch.Generator,
    ) -> Task:
        r"""
        Observe a star again.

        :param PilotNetwork model: :math:`f`, in the mode it is in.
        :param Observation sky: star :math:`i`.
        :param Observation instrument: star :math:`j`, frames of the same size.
        :param torch.Generator generator: source of the transformation and the noise.
        :return: the task.
        """
        pilot, physics, whole = model.pilot, instrument.physics, instrument.whole
        if not isinstance(pilot, MarginalPilot) or not isinstance(whole.normal, WhitenedOperator):
            raise TypeError("stars are observed again with MarginalPilot")
        with torch.no_grad():
            # the least one would be a little less each time that a network learns from its own images
            found = model.seen(sky.whole).clamp_min(0)
            x = self.transformed(found / sky.whole.scale, generator) * whole.scale
            residual = (instrument.y - physics.A(whole.start)).nan_to_num(0.0)
            noise = whole.normal.metrics[0].resigned(residual, generator)
            true = self._another(physics, generator)
            y = torch.where(torch.isfinite(instrument.y), noise + true.A(x), torch.nan)
            given = pilot(y, physics)
            return (Part(given, given.normal, given.normal(x)),)

    def transformed(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """
        Image turned, of another brightness, and stretched or not.

        :param torch.Tensor u: image ``(1, C, H, W)``.
        :param torch.Generator generator: source of randomness.
        :return: (:class:`torch.Tensor`) not negative.
        """
        low, high = (math.log(a) for a in self.amplitudes)
        draw = torch.rand(2, generator=generator).tolist()
        out: Tensor = StarRotation(rng=generator)(u)
        if draw[1] < self.stretch:
            stretched: Tensor = InclinationStretch(rng=generator)(out)
            # brighter on the detector than it was, training diverges
            out = stretched * (out.norm() / stretched.norm().clamp_min(1e-30)).clamp_max(1)
        return math.exp(low + (high - low) * draw[0]) * out.clamp_min(0)

    def _another(self, physics: ADI, generator: torch.Generator) -> ADI:
        """The operator with a PSF that it could have as well."""
        if physics.filter is None:
            return physics
        seed = int(torch.randint(1 << 31, (), generator=generator))
        # the same error for each wavelength and frame
        stamps = [
            self.psf_error.apply(psf, torch.Generator().manual_seed(seed))
            for psf in physics.filter.flatten(0, 2)
        ]
        return physics.variant(filter=torch.stack(stamps).view_as(physics.filter))
