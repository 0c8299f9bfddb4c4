r"""The operator of each star of a survey, fitted to the star's own sequence before anything is learned from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_astro.models import MarginalPilot
from deepinv_astro.optim.self_calibration import self_calibrate
from deepinv_astro.physics import ADI, Calibration, Free, free_angles, free_center, free_gain

__all__ = ["StarCalibration"]

#: Alternations: the first one does most, and no network needs the last hundredth of a pixel.
_ALTERNATIONS, _PROBES = 3, 2


@dataclass(frozen=True, kw_only=True)
class StarCalibration:
    r"""Centre, angles and gains by the marginal likelihood of one sequence.

    .. math::

        \hat\theta = \arg\max_\theta\; \ln p(y \mid \theta) - \tfrac12 \| \theta - \theta_0 \|^2_{\Sigma_\theta^{-1}}

    with sky and speckles integrated out (:func:`~deepinv_astro.optim.self_calibrate`). Never by
    the loss of a network: unbiased risks are flat in :math:`\theta`, and with equivariance they
    prefer wrong ones. What the sequence does not tell stays as it was: a star that shows nothing
    bright keeps its operator.

    :param float center: prior standard deviation of the position of the star, pixels; 0 for known.
    :param float angles: of the angle of each frame, degrees.
    :param float gain: of the gain of each frame.
    :raises ValueError: if a number is negative or none is positive; when called, if the star has a
        position for each frame that is to be fitted.

    |sep|

    :Examples:

        A planet that turns about a point half a pixel from where it was said to be:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> from deepinv_astro.training import StarCalibration
        >>> rng = torch.Generator().manual_seed(0)
        >>> u = torch.arange(-4.0, 5)
        >>> psf = torch.exp(-(u[:, None] ** 2 + u**2) / 3)
        >>> truth = ADI((1, 16, 15), torch.linspace(0, 160, 9), psf / psf.sum(), (8.5, 7.0))
        >>> x = torch.zeros(1, 1, 16, 15)
        >>> x[0, 0, 12, 5] = 900.0
        >>> y = truth.A(x) + torch.randn(1, 1, 9, 16, 15, generator=rng)
        >>> told = truth.variant(center=torch.tensor([8.0, 7.0]))
        >>> found = StarCalibration(center=0.5)(y, told)
        >>> bool((found.center[0, 0] - torch.tensor([8.5, 7.0])).abs().max() < 0.1)
        True
    """

    center: float = 0.0
    angles: float = 0.0
    gain: float = 0.0

    def __post_init__(self) -> None:
        for name in ("center", "angles", "gain"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if not (self.center or self.angles or self.gain):
            raise ValueError("one of `center`, `angles` and `gain` must be positive")

    def __call__(self, y: Tensor, physics: ADI, pilot: MarginalPilot | None = None) -> ADI:
        r"""
        The calibrated operator.

        :param torch.Tensor y: one sequence ``(1, C, T, h, w)``; NaN where nothing was measured.
        :param ADI physics: its operator; not changed.
        :param MarginalPilot pilot: makes the images in between.
        :return: (:class:`~deepinv_astro.physics.ADI`)
        """
        calibration = Calibration(*self._free(physics)).to(y.device)
        solver = (pilot or MarginalPilot()).method
        return self_calibrate(
            y, physics, calibration, solver=solver, probes=_PROBES, max_iter=_ALTERNATIONS
        ).physics

    def _free(self, physics: ADI) -> list[Free]:
        free: list[Free] = []
        if self.center:
            if physics.center.shape[1] > 1:
                raise ValueError(
                    "`center`: the star has another position in each frame; register the frames first, or do "
                    "not fit it"
                )
            free.append(free_center(physics.center[0, 0], self.center))
        if self.angles:
            free.append(free_angles(physics.angles[0], self.angles))
        if self.gain:
            gain = torch.ones_like(physics.angles) if physics.gain is None else physics.gain
            free.append(free_gain(gain[0], self.gain))
        return free
