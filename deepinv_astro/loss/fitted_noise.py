r"""Noise as a loss has learned it, for measurements that are simulated while it learns."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import NoiseModel
from torch import Tensor

from deepinv_astro.loss.covariances import PoissonGaussian, RegionVariances, StationaryKernel
from deepinv_astro.loss.unsure import UNSURELoss
from deepinv_astro.physics.noise import white

__all__ = ["FittedNoise"]


class FittedNoise(NoiseModel):
    r"""Gaussian noise of the covariance that UNSURE has learned so far.

    .. math::

        y = z + \varepsilon, \qquad \varepsilon \sim \mathcal N(0, \Sigma_\eta(z)), \qquad
        \Sigma_\eta = \sum_j \eta_j \Psi_j,

    with the multipliers :math:`\eta` of the loss at the time of the call, without their gradient,
    and zero until they have their first value. They exceed the variance of the noise, by
    :math:`1 / (1 - \mathrm{MMSE} / \sigma^2)`: little where the data determine the image. After
    training, :func:`estimate_noise` corrects them, and
    ``HeteroscedasticNoise(estimate.variance.sqrt(), per="region", labels=labels)`` is the noise.

    Photons are drawn as Gaussian noise of the variance :math:`\eta_1 + \eta_2 z`, at least 0.

    :param UNSURELoss loss: the loss that learns, shared, not copied. It keeps its state.
    :param torch.Generator rng: source of randomness.
    :raises ValueError: if the family of the loss is none of :class:`RegionVariances`,
        :class:`StationaryKernel`, :class:`PoissonGaussian`.

    |sep|

    :Examples:

        Robust equivariant imaging where nobody knows the noise:

        >>> import torch
        >>> from deepinv.transform import Shift
        >>> from deepinv_astro.loss import EquivariantLoss, FittedNoise, UNSURELoss
        >>> fidelity = UNSURELoss()
        >>> losses = [fidelity, EquivariantLoss(Shift(), noise_model=FittedNoise(fidelity))]
    """

    def __init__(self, loss: UNSURELoss, rng: torch.Generator | None = None) -> None:
        super().__init__(rng=rng)
        if not isinstance(loss.family, RegionVariances | StationaryKernel | PoissonGaussian):
            raise ValueError(
                f"noise of {type(loss.family).__name__} cannot be drawn: use RegionVariances, "
                "StationaryKernel or PoissonGaussian, or write a noise model"
            )
        self.loss = loss

    @torch.no_grad()
    def sample(self, z: Tensor) -> Tensor:
        r"""Draw :math:`\varepsilon`.

        :param torch.Tensor z: clean measurements.
        :return: (:class:`torch.Tensor`) noise of their shape.
        """
        if not bool(self.loss.started):
            return torch.zeros_like(z)
        family, eta = self.loss.family, self.loss.multipliers.to(z)
        if isinstance(family, StationaryKernel):
            return _stationary(family.autocorrelation(eta), z, self.rng)
        variance = family.apply_to(eta, torch.ones_like(z), z)
        return variance.clamp_min(0).sqrt() * white(z, self.rng)

    def forward(self, z: Tensor, seed: int | None = None, **kwargs: Any) -> Tensor:
        r"""Add noise.

        :param torch.Tensor z: clean measurements.
        :param int seed: seed of the generator given to the constructor.
        :return: (:class:`torch.Tensor`) noisy ones.
        """
        self.rng_manual_seed(seed)
        return z + self.sample(z)


def _stationary(covariance: Tensor, z: Tensor, rng: torch.Generator | None) -> Tensor:
    """Noise of a covariance that depends on the lag, on a torus so large that no lag wraps."""
    rows, columns = (n + k // 2 for n, k in zip(z.shape[-2:], covariance.shape, strict=True))
    rows, columns = max(rows, covariance.shape[0]), max(columns, covariance.shape[1])
    lags = z.new_zeros(rows, columns)
    lags[: covariance.shape[0], : covariance.shape[1]] = covariance
    shifts = [-(k // 2) for k in covariance.shape]
    spectrum = torch.fft.rfft2(lags.roll(shifts, (0, 1))).real.clamp_min(0)
    field = white(z.new_empty(*z.shape[:-2], rows, columns), rng)
    drawn: Tensor = torch.fft.irfft2(torch.fft.rfft2(field) * spectrum.sqrt(), s=(rows, columns))
    return drawn[..., : z.shape[-2], : z.shape[-1]]
