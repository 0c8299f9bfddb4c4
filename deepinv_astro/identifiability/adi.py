r"""What angular differential imaging can see of a sky when the static halo is unknown."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinv_astro.physics import ADI


def mode_visibility(angles: Tensor, modes: int = 10) -> Tensor:
    r"""Fraction of the energy of each angular mode that a sequence sees.

    With an unknown static halo only the change in time counts. A structure that varies as
    :math:`e^{im\phi}` about the star keeps, after the temporal mean is removed, the fraction

    .. math::

        \lambda_m = 1 - |\varphi(m)|^2, \qquad \varphi(m) = \frac{1}{T} \sum_t e^{i m \theta_t},

    of its energy. :math:`\lambda_0 = 0` for any rotation: a face-on ring is invisible.

    :param torch.Tensor angles: derotation angles in degrees ``(..., T)``.
    :param int modes: number of modes, from :math:`m = 0`.
    :return: (:class:`torch.Tensor`) visibilities in [0, 1], shape ``(..., modes)``.
    :raises ValueError: if there is no angle or no mode.

    |sep|

    :Examples:

        Two frames half a turn apart see all of the odd modes, and nothing of the even ones:

        >>> import torch
        >>> mode_visibility(torch.tensor([10.0, 190.0]), modes=4).round(decimals=3).abs()
        tensor([0., 1., 0., 1.])
    """
    if angles.shape[-1] == 0 or modes < 1:
        raise ValueError(
            f"at least one angle and one mode are needed, got {angles.shape[-1]} and {modes}"
        )
    m = torch.arange(modes, device=angles.device)
    phase = torch.deg2rad(angles)[..., None, :] * m[:, None]
    seen = 1 - phase.cos().mean(-1) ** 2 - phase.sin().mean(-1) ** 2
    return seen.clamp_min(0)  # of rounding


def visibility(x: Tensor, physics: ADI) -> Tensor:
    r"""Fraction of the energy of images that is seen beside an unknown static halo.

    .. math::

        v(x) = \frac{\|P A x\|^2}{\|A x\|^2}, \qquad P = I - \tfrac{1}{T}\mathbf{1}\mathbf{1}^\top
        \text{ in time.}

    0 for an image that the data do not constrain, 1 for one that is seen in full.

    :param torch.Tensor x: images ``(B, C, H, W)``.
    :param ADI physics: the operator.
    :return: (:class:`torch.Tensor`) visibilities ``(B,)``; 0 for an image that leaves no trace on
        the detector.
    """
    y = physics.A(x)
    total = y.square().flatten(1).sum(1)
    seen = (y - y.mean(2, keepdim=True)).square().flatten(1).sum(1)
    return torch.where(total > 0, seen / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
