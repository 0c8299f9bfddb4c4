r"""A reconstructor that knows its instrument only in part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deepinv.models import Reconstructor
from deepinv.physics import Physics
from torch import Tensor, nn

from deepinv_astro.physics.calibration import Calibration


class Calibrated(Reconstructor):
    r"""Reconstruction with the operator as it is calibrated now.

    .. math::

        \hat x = f(y, A_{\bar\theta}), \qquad \bar\theta = \text{value of } \theta
        \text{ without its gradient}

    The operator is updated in place before each reconstruction, so losses that are evaluated next
    see the same one, detached: only
    :class:`~deepinv_astro.loss.CalibrationLoss` moves :math:`\theta`.

    Everything that training changes is a part of this module: the optimiser, gradient clipping,
    checkpoints and resuming of an unmodified :class:`deepinv.Trainer` see the network, the
    calibration, and the ``state``: likelihoods with nuisance parameters, losses with multipliers.

    The operator that simulates measurements while training (``online_measurements=True``) would be
    recalibrated as well: simulate with another one, or beforehand.

    :param torch.nn.Module model: reconstructor :math:`f`, called with ``(y, physics)``.
    :param deepinv_astro.physics.Calibration calibration: the free parameters.
    :param list[torch.nn.Module] state: further modules with parameters or buffers to optimise, save
        and restore.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import Blur, Free
        >>> psf = lambda a: torch.stack([a / 2, 1 - a, a / 2])[None]
        >>> calibration = Calibration(Free("filter", torch.tensor(0.5), std=0.1, link=psf))
        >>> physics = Blur((1, 1, 4), torch.ones(1, 3) / 3)
        >>> class Adjoint(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return physics.A_adjoint(y)
        >>> model = Calibrated(Adjoint(), calibration)
        >>> model(torch.tensor([[[[4.0, 0.0, 0.0, 0.0]]]]), physics).round(decimals=4)
        tensor([[[[2., 1., 0., 1.]]]])
        >>> physics.filter
        tensor([[[[0.2500, 0.5000, 0.2500]]]])
    """

    def __init__(self, model: nn.Module, calibration: Calibration, state: Iterable[nn.Module] = ()):
        super().__init__()
        self.model, self.calibration = model, calibration
        self.state = nn.ModuleList(state)

    def forward(self, y: Tensor, physics: Physics, **kwargs: Any) -> Tensor:
        r"""Reconstruct.

        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: the operator; it takes and keeps the calibrated
            values.
        :param kwargs: for the model.
        :return: (:class:`torch.Tensor`) reconstruction.
        """
        physics.update(**self.calibration.detached())
        return self.model(y, physics, **kwargs)
