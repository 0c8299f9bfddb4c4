r"""What angular differential imaging can see of a sky when the static halo is unknown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from deepinv_astro.identifiability.projections import remove_mean
from deepinv_astro.identifiability.virtual import Map
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


def visibility(
    x: Tensor,
    physics: LinearPhysics,
    transforms: Sequence[Map] = (),
    projection: Map = remove_mean,
) -> Tensor:
    r"""Fraction of the energy of images that is seen beside an unknown nuisance.

    .. math::

        v(x) = \frac{\mathbb{E}_g \|P A T_g x\|^2}{\mathbb{E}_g \|A T_g x\|^2}, \qquad
        P = I - \tfrac{1}{T}\mathbf{1}\mathbf{1}^\top \text{ in time.}

    0 for an image that the data do not constrain, 1 for one that is seen in full.

    :param torch.Tensor x: images ``(B, C, H, W)``.
    :param deepinv.physics.LinearPhysics physics: the operator.
    :param transforms: maps :math:`T_g`, e.g. of
        :func:`~deepinv_astro.identifiability.draw_maps`; default the identity.
    :param Callable projection: :math:`P`, on measurements; default
        :func:`~deepinv_astro.identifiability.remove_mean`.
    :return: (:class:`torch.Tensor`) visibilities ``(B,)``; 0 for an image that leaves no trace on
        the detector.
    """
    total, seen = x.new_zeros(len(x)), x.new_zeros(len(x))
    for t in transforms or [lambda image: image]:
        y = physics.A(t(x))
        total = total + y.square().flatten(1).sum(1)
        seen = seen + projection(y).square().flatten(1).sum(1)
    return torch.where(total > 0, seen / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)


def angular_harmonics(
    modes: Sequence[int],
    size: tuple[int, int],
    center: tuple[float, float],
    radius: float,
    width: float,
) -> Tensor:
    r"""Rings about a point whose brightness varies as one angular mode, in both phases.

    .. math::

        x_m = e^{-(r - r_0)^2 / 2 w^2} \cos m\phi , \qquad
        x'_m = e^{-(r - r_0)^2 / 2 w^2} \sin m\phi

    :param modes: :math:`m`.
    :param tuple size: rows and columns.
    :param tuple center: row and column of the middle.
    :param float radius: :math:`r_0`, pixels.
    :param float width: :math:`w`, pixels.
    :return: (:class:`torch.Tensor`) ``(2, len(modes), H, W)``, float64.

    |sep|

    :Examples:

        >>> x = angular_harmonics([0, 1], (5, 7), (2.0, 3.0), radius=2.0, width=1.0)
        >>> x.shape, bool(x[0, 1, 2, 5] == 1.0), bool(x[1, 1, 4, 3] == 1.0)
        (torch.Size([2, 2, 5, 7]), True, True)
    """
    rows = torch.arange(size[0], dtype=torch.float64)[:, None] - center[0]
    columns = torch.arange(size[1], dtype=torch.float64) - center[1]
    ring = torch.exp(-((torch.hypot(rows, columns) - radius) ** 2) / (2 * width**2))
    phase = torch.atan2(rows, columns) * torch.tensor(modes, dtype=torch.float64)[:, None, None]
    return ring * torch.stack([phase.cos(), phase.sin()])


def measured_mode_visibility(
    physics: ADI,
    modes: int = 10,
    radius: float | None = None,
    width: float | None = None,
    projection: Map = remove_mean,
) -> Tensor:
    r"""Fraction of the energy of each angular mode that an operator sees, by applying it.

    The energies of :func:`angular_harmonics` before and after the projection, both phases added:
    without a PSF and on a ring that stays on the detector this is the closed form of
    :func:`mode_visibility`; a short detector, a transmission, gains, wandering centres, or
    principal components that are removed change it.

    :param ADI physics: the operator, for one sequence; of several channels the first counts.
    :param int modes: number of modes, from :math:`m = 0`.
    :param float radius: of the ring, pixels. Default half the distance to the nearest edge.
    :param float width: of the ring, pixels. Default a quarter of the radius.
    :param Callable projection: as in :func:`visibility`.
    :return: (:class:`torch.Tensor`) visibilities ``(modes,)``, dtype of the operator.
    :raises ValueError: if there is no mode, or a length is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> angles = torch.tensor([0.0, 20.0, 50.0], dtype=torch.float64)
        >>> physics = ADI((1, 40, 42), angles, dtype=torch.float64)
        >>> measured_mode_visibility(physics, 4).round(decimals=3).abs()
        tensor([0.0000, 0.1230, 0.4240, 0.7480], dtype=torch.float64)
        >>> mode_visibility(angles, 4).round(decimals=3)
        tensor([0.0000, 0.1230, 0.4240, 0.7480], dtype=torch.float64)
    """
    channels, height, width_of_sky = physics.img_size
    row, column = physics.sky_center.double().tolist()
    edge = min(row, height - 1 - row, column, width_of_sky - 1 - column)
    radius = edge / 2 if radius is None else radius
    width = radius / 4 if width is None else width
    if modes < 1 or not radius > 0 or not width > 0:
        raise ValueError(
            f"one mode or more and a positive `radius` and `width` are needed, "
            f"got {modes}, {radius} and {width}"
        )
    rings = angular_harmonics(range(modes), (height, width_of_sky), (row, column), radius, width)
    seen = rings.new_zeros(modes)
    for m in range(modes):
        x = rings[:, m, None].expand(-1, channels, -1, -1).to(physics.sky_center)
        y = physics.A(x)[:, :1]
        seen[m] = projection(y).square().sum() / y.square().sum()
    return seen.to(physics.sky_center)
