r"""Radial profiles about the star: noise levels of images whose noise depends on the separation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deepinv_astro.physics import ADI

#: Ratio of the standard deviation of a Gaussian to its median absolute deviation from zero.
MAD = 1.482602218505602

#: Degrees of freedom of a robust scale, for each square of one PSF width.
FREEDOM = 0.9

_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda inside: inside.nanmean(-1),
    "median": lambda inside: inside.nanmedian(-1).values,
    "scale": lambda inside: MAD * inside.abs().nanmedian(-1).values,
    "count": lambda inside: _positive(inside.isfinite().sum(-1).to(inside)),
}


def _positive(count: Tensor) -> Tensor:
    return count.masked_fill(count == 0, math.nan)


def radial_profile(
    values: Tensor, distance: Tensor, width: float, reduce: str, at: Tensor | None = None
) -> Tensor:
    r"""Statistic of an image in a running annulus, at the separation of each pixel.

    At the knots :math:`0, \Delta, 2\Delta, \dots` the statistic is taken over the pixels within
    :math:`\pm\Delta` of the knot, and interpolated linearly between knots.

    :param torch.Tensor values: images ``(..., H, W)``; NaN is left out.
    :param torch.Tensor distance: separation of each pixel, ``(H, W)``.
    :param float width: distance :math:`\Delta` of the knots, in pixels.
    :param str reduce: ``"mean"``, ``"median"``, ``"count"`` (number of finite pixels), or
        ``"scale"``: 1.48 times the median of the absolute values, the robust standard deviation of
        values that are zero on average.
    :param torch.Tensor at: separations to give the profile at; default ``distance``.
    :return: (:class:`torch.Tensor`) the profile, shape ``(*values.shape[:-2], *at.shape)``. Annuli
        without a finite pixel take the value of the nearest one inside, those within the innermost
        finite one take its value; NaN if there is no finite pixel at all.
    :raises ValueError: if the statistic is not known.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.optim.regions import separation
        >>> distance = separation((3, 4), (1, 0))
        >>> radial_profile(distance, distance, 1.0, "mean")[1]
        tensor([0.7500, 1.1183, 1.7001, 2.6328], dtype=torch.float64)
    """
    if reduce not in _STATISTICS:
        raise ValueError(f"reduce must be one of {', '.join(_STATISTICS)}, got {reduce!r}")
    statistic = _STATISTICS[reduce]
    knots = int(torch.ceil(distance.max() / width)) + 1
    profile: list[Tensor] = []
    for knot in range(knots):
        inside = values[..., (distance - knot * width).abs() <= width]
        empty = inside.shape[-1] == 0
        profile.append(inside.new_full(inside.shape[:-1], math.nan) if empty else statistic(inside))
    sources = [(k, k - 1) for k in range(1, knots)] + [(k, k + 1) for k in range(knots - 2, -1, -1)]
    for knot, source in sources:
        profile[knot] = torch.where(profile[knot].isfinite(), profile[knot], profile[source])
    table = torch.stack([*profile, profile[-1]], -1)
    position = ((distance if at is None else at) / width).clamp_max(knots - 1).to(values)
    below = position.floor().long()
    fraction = position - below
    return table[..., below] * (1 - fraction) + table[..., below + 1] * fraction


def null_map(slope: Tensor, flipped: ADI) -> Tensor:
    r"""The null gradient :math:`A_-^\top g`.

    :math:`A_-` is the operator with the signs of the angles flipped: in :math:`A_-^\top g` the sky
    is smeared out and the speckles stay.

    :param torch.Tensor slope: sequence :math:`g`, ``(B, C, T, h, w)``.
    :param ADI flipped: :math:`A_-`.
    :return: (:class:`torch.Tensor`) ``(B, C, H, W)``; NaN where less than a quarter of the frames
        look.
    """
    coverage = flipped.A_adjoint(torch.ones_like(slope))
    unseen = coverage < 0.25 * coverage.amax((-2, -1), keepdim=True)
    return flipped.A_adjoint(slope).masked_fill(unseen, math.nan)


def null_scale(slope: Tensor, flipped: ADI, distance: Tensor, width: float) -> Tensor:
    r"""Robust radial standard deviation of the null gradient, :func:`null_map`.

    Pixels that less than a quarter of the frames see do not count, and take the value of the
    nearest separation inside.

    :param torch.Tensor slope: sequence :math:`g`, ``(B, C, T, h, w)``.
    :param ADI flipped: the operator with the signs of the angles flipped.
    :param torch.Tensor distance: separations on the sky ``(H, W)``.
    :param float width: distance of the knots of the profile.
    :return: (:class:`torch.Tensor`) ``(B, C, H, W)``.
    """
    return radial_profile(null_map(slope, flipped), distance, width, "scale")


def scale_freedom(null: Tensor, distance: Tensor, fwhm: float, at: Tensor | None = None) -> Tensor:
    r"""Degrees of freedom of the radial scale of a map, knots half a PSF width apart.

    .. math::

        \nu(r) = \max\left(1,\; 0.9\, \frac{n(r)}{\mathrm{FWHM}^2}\right)
        \approx 0.9 \cdot 2\pi r / \mathrm{FWHM},

    with :math:`n` the finite pixels of the annulus of one FWHM. :math:`\nu` is defined by the
    scatter of the scale, :math:`\operatorname{var} \ln \hat\sigma = 1 / 2\nu`. The factor is
    that of the median absolute value of white noise filtered by the PSF (simulated: 0.7 to 1.1 at
    all separations, for a FWHM of 3 and 4.6 pixels). Noise that is correlated over more than a
    pixel has fewer, down to half as many where it is all speckles.

    :param torch.Tensor null: the map ``(..., H, W)``; NaN is left out.
    :param torch.Tensor distance: separations ``(H, W)``.
    :param float fwhm: of the PSF, in pixels.
    :param torch.Tensor at: separations to give the result at; default ``distance``.
    :return: (:class:`torch.Tensor`) shape as of :func:`radial_profile`.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.optim.regions import separation
        >>> distance = separation((41, 45), (20, 20))
        >>> null = torch.ones(41, 45)
        >>> [round(float(scale_freedom(null, distance, 4.0)[20, c]), 1) for c in (20, 24, 32)]
        [1.0, 5.8, 17.3]
    """
    count = radial_profile(null, distance, fwhm / 2, "count", at)
    return (FREEDOM * count / fwhm**2).clamp_min(1.0)


def gaussian_equivalent(ratio: Tensor, freedom: Tensor) -> Tensor:
    r"""Gaussian S/N with the false-alarm probability of a ratio whose scale is little known.

    A Gaussian variable over an independent estimate of its standard deviation with :math:`\nu`
    degrees of freedom follows Student's distribution: close to the star few resolution elements
    tell the noise :cite:p:`Mawet2014`. (The factor :math:`\sqrt{1 + 1/n}` there is for a mean that
    is subtracted; here none is.) By the closed form of Wallace (1959),

    .. math::

        z = \operatorname{sign}(t)\, \frac{8\nu + 1}{8\nu + 3}
            \sqrt{\nu \ln\left(1 + t^2 / \nu\right)},

    monotone, without overflow; within 2 % of :math:`\Phi^{-1}(F_\nu(t))` for :math:`\nu \ge 5` and
    :math:`t \le 50`, and too low rather than too high beyond.

    :param torch.Tensor ratio: :math:`t`.
    :param torch.Tensor freedom: :math:`\nu > 0`, of a shape that broadcasts.
    :return: (:class:`torch.Tensor`) :math:`z`.

    |sep|

    :Examples:

        >>> import torch
        >>> gaussian_equivalent(torch.tensor([-5.0, 5.0]), torch.tensor([4.0, 40.0]))
        tensor([-2.6541,  4.3796])
    """
    shrink = (8 * freedom + 1) / (8 * freedom + 3)
    return ratio.sign() * shrink * (freedom * torch.log1p(ratio.square() / freedom)).sqrt()


def student_spread(freedom: Tensor) -> Tensor:
    r"""Half-width of the 68 % interval of Student's distribution.

    The inverse of :func:`gaussian_equivalent` at 1: an error whose scale has :math:`\nu` degrees of
    freedom is to be this many times wider.

    :param torch.Tensor freedom: :math:`\nu > 0`.
    :return: (:class:`torch.Tensor`) 1 or more.

    >>> student_spread(torch.tensor([3.0, 100.0]))
    tensor([1.1940, 1.0050])
    """
    shrink = (8 * freedom + 1) / (8 * freedom + 3)
    return (freedom * torch.expm1(shrink**-2 / freedom)).sqrt()
