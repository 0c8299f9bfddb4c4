r"""The part of an image that no rotation shows, chosen from what it does show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.metric.disk import remove_invisible
from deepinv_astro.physics import ADI

#: Fraction of the pixels of an annulus that may be negative, and half of its width in pixels.
_NEGATIVE, _HALF_WIDTH = 0.1, 0.5


@dataclass(frozen=True)
class InvariantPart:
    r"""Images whose part that is invariant by rotation is chosen.

    ADI sees :math:`v = x - S x`, with :math:`S` the projection on images that do not change when they
    are turned about the star (:func:`~deepinv_astro.metric.remove_invisible`), and says nothing of
    :math:`S x`. It may be that of a first image, :meth:`of_first`, or the :meth:`least` that the rest
    allows: the sky is not negative. At the separation :math:`r` that is

    .. math::

        x = v + \min\left\{ c_+(r),\; (S x_0)(r) \right\}, \qquad
        c_+(r) = -\,\mathrm{quantile}_{0.1} \left\{ v_p : |r_p - r| \le \tfrac12 \right\} ,

    the least that leaves nine tenths of the pixels positive, and no more than that of a first image
    :math:`x_0`. A disk that does not fill its annulus is left as it is; light that is the same all round
    is not added to it, and the flux of a disk that is seen face-on is a lower bound.

    :param tuple center: row and column of the star.

    |sep|

    :Examples:

        A source, and a halo that no rotation shows:

        >>> import torch
        >>> from deepinv_astro.models.invariant import InvariantPart
        >>> source = torch.zeros(1, 1, 11, 12)
        >>> source[0, 0, 5, 9] = 8.0
        >>> found = InvariantPart((5.0, 6.0)).least(source - 1, source + 2)
        >>> bool(found[0, 0, 5, 9] > 7.5), bool(found[0, 0, 5, 3].abs() < 0.5)
        (True, True)
    """

    center: tuple[float, float]

    @classmethod
    def of(cls, physics: ADI) -> InvariantPart:
        """
        That of an operator.

        :param ADI physics: gives the star.
        :return: (:class:`InvariantPart`)
        """
        row, column = physics.sky_center.tolist()
        return cls((row, column))

    def of_first(self, x: Tensor, first: Tensor) -> Tensor:
        r"""
        Images with the invariant part of others, :math:`v + S x_0`.

        :param torch.Tensor x: images ``(..., H, W)``, of which only the rest is used.
        :param torch.Tensor first: :math:`x_0`, of the same shape.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        return first + remove_invisible(x - first, self.center)

    def least(self, x: Tensor, first: Tensor) -> Tensor:
        r"""
        Images with the least invariant part, :math:`v + \min\{c_+, S x_0\}`.

        :param torch.Tensor x: images ``(..., H, W)``, of which only the rest is used.
        :param torch.Tensor first: :math:`x_0`, of the same shape.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        seen = remove_invisible(x, self.center)
        most = first - remove_invisible(first, self.center)
        return seen + torch.minimum(self.floor(seen), most)

    def floor(self, seen: Tensor) -> Tensor:
        """
        What lifts nine tenths of each annulus above zero.

        :param torch.Tensor seen: :math:`v`, ``(..., H, W)``.
        :return: (:class:`torch.Tensor`) :math:`c_+` at each pixel, of the same shape.
        """
        annuli = _annuli(*seen.shape[-2:], *self.center, seen.device)
        values = seen.flatten(-2)[..., annuli.pixels]
        low = values.masked_fill(annuli.padding, math.inf).sort(-1).values
        rank = annuli.rank.expand(*low.shape[:-1], 1)
        profile = -low.gather(-1, rank)[..., 0]
        below = annuli.distance.long()
        part = (annuli.distance - below).to(seen.dtype)
        lifted = torch.lerp(profile[..., below], profile[..., below + 1], part)
        return lifted.view(seen.shape)


class _Annuli(NamedTuple):
    """
    Annuli about integer separations.

    pixels: those of each annulus ``(n, k)``, the nearest ones first; padding: which are beyond it;
    rank: of the quantile ``(n, 1)``; distance: separation of each pixel ``(H * W,)``.
    """

    pixels: Tensor
    padding: Tensor
    rank: Tensor
    distance: Tensor


@lru_cache(maxsize=8)
def _annuli(height: int, width: int, row: float, column: float, device: torch.device) -> _Annuli:
    rows = torch.arange(height, dtype=torch.float64, device=device) - row
    columns = torch.arange(width, dtype=torch.float64, device=device) - column
    distance = torch.hypot(rows[:, None], columns[None]).flatten()
    radii = torch.arange(int(distance.max()) + 2, device=device)
    off = (distance - radii[:, None]).abs()
    inside = off <= _HALF_WIDTH
    # a separation without pixels takes the nearest one
    inside[torch.arange(len(radii), device=device), off.argmin(1)] = True
    count = inside.sum(1, keepdim=True)
    near = off.argsort(1)[:, : int(count.max())]
    padding = ~inside.gather(1, near)
    rank = ((count - 1) * _NEGATIVE).round().long()
    return _Annuli(near, padding, rank, distance)
