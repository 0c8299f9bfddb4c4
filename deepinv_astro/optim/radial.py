r"""Radial profiles about the star: noise levels of images whose noise depends on the separation."""

from __future__ import annotations

import torch
from torch import Tensor

#: Ratio of the standard deviation of a Gaussian to its median absolute deviation from zero.
MAD = 1.482602218505602


def radial_profile(
    values: Tensor, distance: Tensor, width: float, reduce: str, at: Tensor | None = None
) -> Tensor:
    r"""Statistic of an image in a running annulus, at the separation of each pixel.

    At the knots :math:`0, \Delta, 2\Delta, \dots` the statistic is taken over the pixels within :math:`\pm\Delta` of the
    knot, and interpolated linearly between knots.

    :param torch.Tensor values: images ``(..., H, W)``; NaN is left out.
    :param torch.Tensor distance: separation of each pixel, ``(H, W)``.
    :param float width: distance :math:`\Delta` of the knots, in pixels.
    :param str reduce: ``"mean"``, ``"median"``, or ``"scale"``: 1.48 times the median of the absolute values, the
        robust standard deviation of values that are zero on average.
    :param torch.Tensor at: separations to give the profile at; default ``distance``.
    :return: (:class:`torch.Tensor`) the profile, shape ``(*values.shape[:-2], *at.shape)``. Annuli without a finite pixel take
        the value of the nearest one inside.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.optim.regions import separation
        >>> distance = separation((3, 4), (1, 0))
        >>> radial_profile(distance, distance, 1.0, "mean")[1]
        tensor([0.5469, 1.1825, 1.9443, 2.6892], dtype=torch.float64)
    """
    knots = int(torch.ceil(distance.max() / width)) + 1
    profile: list[Tensor] = []
    for knot in range(knots):
        ring = (distance - knot * width).abs() <= width
        if not bool(ring.any()):
            profile.append(profile[-1])
            continue
        inside = values[..., ring]
        if reduce == "mean":
            value = inside.nanmean(-1)
        elif reduce == "median":
            value = inside.nanmedian(-1).values
        else:
            value = MAD * inside.abs().nanmedian(-1).values
        profile.append(torch.where(value.isfinite(), value, profile[-1]) if profile else value)
    table = torch.stack(profile, -1)
    table = torch.cat([table, table[..., -1:]], -1)
    position = ((distance if at is None else at) / width).clamp_max(knots - 1).to(values)
    below = position.floor().long()
    fraction = position - below
    return table[..., below] * (1 - fraction) + table[..., below + 1] * fraction
