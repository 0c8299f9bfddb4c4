r"""Radial profiles about the star: noise levels of images whose noise depends on the separation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deepinv_astro.physics import ADI

#: Ratio of the standard deviation of a Gaussian to its median absolute deviation from zero.
MAD = 1.482602218505602

_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda inside: inside.nanmean(-1),
    "median": lambda inside: inside.nanmedian(-1).values,
    "scale": lambda inside: MAD * inside.abs().nanmedian(-1).values,
}


def radial_profile(
    values: Tensor, distance: Tensor, width: float, reduce: str, at: Tensor | None = None
) -> Tensor:
    r"""Statistic of an image in a running annulus, at the separation of each pixel.

    At the knots :math:`0, \Delta, 2\Delta, \dots` the statistic is taken over the pixels within
    :math:`\pm\Delta` of the knot, and interpolated linearly between knots.

    :param torch.Tensor values: images ``(..., H, W)``; NaN is left out.
    :param torch.Tensor distance: separation of each pixel, ``(H, W)``.
    :param float width: distance :math:`\Delta` of the knots, in pixels.
    :param str reduce: ``"mean"``, ``"median"``, or ``"scale"``: 1.48 times the median of the
        absolute values, the robust standard deviation of values that are zero on average.
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


def null_scale(slope: Tensor, flipped: ADI, distance: Tensor, width: float) -> Tensor:
    r"""Robust radial standard deviation of :math:`A_-^\top g`, the null gradient.

    :math:`A_-` is the operator with the signs of the angles flipped: in :math:`A_-^\top g` the sky
    is smeared out and the
    speckles stay. Pixels that less than a quarter of the frames see do not count, and take the
    value of the nearest separation inside.

    :param torch.Tensor slope: sequence :math:`g`, ``(B, C, T, h, w)``.
    :param ADI flipped: :math:`A_-`.
    :param torch.Tensor distance: separations on the sky ``(H, W)``.
    :param float width: distance of the knots of the profile.
    :return: (:class:`torch.Tensor`) ``(B, C, H, W)``.
    """
    coverage = flipped.A_adjoint(torch.ones_like(slope))
    unseen = coverage < 0.25 * coverage.amax((-2, -1), keepdim=True)
    null = flipped.A_adjoint(slope).masked_fill(unseen, math.nan)
    return radial_profile(null, distance, width, "scale")
