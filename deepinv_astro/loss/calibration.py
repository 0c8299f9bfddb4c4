r"""Training a calibration beside a network: the only loss that may move it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from deepinv.loss import Loss
from deepinv.physics import Physics
from torch import Tensor, nn

from deepinv_astro.optim.calibration import CalibrationLikelihood, Term
from deepinv_astro.physics.calibration import Calibration


class CalibrationLoss(Loss):
    r"""Marginal likelihood of the free parameters of an operator, for minibatches.

    .. math::

        \ell_n(\theta, z) = \frac1m \left[ -\ln p(y_n \mid \theta, z)
        + \frac1N \left( \tfrac12 \|P u\|^2 + \tfrac12 \|z\|^2
        - \sum_i \ln p(d_i \mid \theta, z_i) \right) \right]

    for image :math:`n` of :math:`N`, of :math:`m` pixels: its mean over the data is the posterior of
    :func:`~deepinv_astro.optim.calibrate`, divided by :math:`N m`. The :math:`d_i` are calibration
    frames. It depends on the measurements alone: neither on the reconstruction nor on the operator
    that it is given, so no gradient reaches the network, and through
    :class:`~deepinv_astro.models.Calibrated` none reaches :math:`\theta` from the other losses.
    Those must not move it: unbiased risks are flat in :math:`\theta`, and with equivariance, or
    minimised jointly over image and PSF, prefer a PSF of one pixel.

    Calibration and likelihood are shared with the model, which must hold them for the optimiser and
    for checkpoints. Their coordinates are of order one, the network's weights much less: give them
    their own learning rate, about 0.02. What the data cannot tell is held at the prior beforehand:
    ``calibration.keep(calibration.report(fisher_information(calibration, terms)).kept_directions)``,
    and no optimiser moves it.

    :param deepinv_astro.physics.Calibration calibration: the free parameters.
    :param deepinv_astro.optim.CalibrationLikelihood likelihood: of the measurements.
    :param int images: number :math:`N` of measurements in the training set.
    :param list[deepinv_astro.optim.Term] frames: calibration frames with their likelihoods.
    :param float weight: factor of the loss.
    :raises ValueError: if the number of images is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.optim import FourierMarginal
        >>> from deepinv_astro.physics import Free
        >>> psf = lambda a: torch.stack([a / 2, 1 - a, a / 2]).view(1, 1, 1, 3)
        >>> calibration = Calibration(Free("filter", torch.tensor(0.3), std=0.1, link=psf))
        >>> loss = CalibrationLoss(calibration, FourierMarginal(noise=0.01), images=2)
        >>> y = torch.randn(2, 1, 16, 12, generator=torch.Generator().manual_seed(0))
        >>> loss(x_net=None, x=None, y=y, physics=None, model=None).sum().backward()
        >>> bool(calibration.u.grad.abs() > 0)
        True
    """

    def __init__(
        self,
        calibration: Calibration,
        likelihood: CalibrationLikelihood,
        images: int,
        frames: Sequence[Term] = (),
        weight: float = 1.0,
    ):
        super().__init__()
        if images < 1:
            raise ValueError(f"images must be the size of the training set, got {images}")
        self.calibration, self.likelihood = calibration, likelihood
        self.images, self.weight = images, weight
        self.frames = nn.ModuleList([term.likelihood for term in frames])
        for k, term in enumerate(frames):
            self.register_buffer(f"frames_{k}", term.y)

    def forward(
        self,
        x_net: Tensor | None,
        x: Tensor | None,
        y: Tensor,
        physics: Physics | None,
        model: nn.Module | None,
        **kwargs: Any,
    ) -> Tensor:
        r"""Loss of each measurement.

        :param torch.Tensor x_net: not used.
        :param torch.Tensor x: not used.
        :param torch.Tensor y: measurements ``(B, C, h, w)``.
        :param deepinv.physics.Physics physics: not used.
        :param torch.nn.Module model: not used.
        :return: (:class:`torch.Tensor`) ``(B,)``.
        """
        values, nuisance = self.calibration(), self.likelihood.nuisance
        common = self.calibration.prior_cost() + nuisance.square().sum() / 2
        for k, module in enumerate(self.frames):
            likelihood = cast(CalibrationLikelihood, module)
            stamps = self.get_buffer(f"frames_{k}")
            common = common + likelihood.cost(values, stamps, likelihood.nuisance).sum()
            common = common + likelihood.nuisance.square().sum() / 2
        cost = self.likelihood.cost(values, y, nuisance) + common / self.images
        return self.weight * cost / y[0].numel()
