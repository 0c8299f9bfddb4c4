r"""Skies in few unknowns, and linear systems for several of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Unknowns per right side up to which a system is solved directly.
DIRECT = 30

#: Columns that are processed at once.
CHUNK = 16


@dataclass(frozen=True, eq=False)
class SkyGrid:
    r"""Skies that are sums of cubic B-splines on a grid of knots.

    .. math::

        \delta(r, c) = \sum_{k,l} a_{kl}\, \beta(r / s - k)\, \beta(c / s - l)

    A PSF of the full width :math:`w` lets no wave shorter than about :math:`w` through: knots
    :math:`s = w / 2` apart tell all that it shows, with :math:`s^2` times fewer unknowns than pixels.

    :param torch.Tensor rows: :math:`\beta(r / s - k)`, ``(K, H)``.
    :param torch.Tensor columns: ``(L, W)``.

    |sep|

    :Examples:

        A broad sky needs a quarter of the unknowns:

        >>> import torch
        >>> x = torch.exp(-(torch.arange(-8.0, 9)[:, None] ** 2 + torch.arange(-6.0, 7) ** 2) / 12)
        >>> grid = SkyGrid.of(x[None, None], 2.0)
        >>> a = grid.transpose(x[None, None])
        >>> tuple(a.shape), tuple(grid(a).shape)
        ((1, 1, 11, 9), (1, 1, 17, 13))
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, x: Tensor, spacing: float) -> SkyGrid:
        """For images like ``x``, with this many pixels between the knots."""
        return cls(*(_splines(size, spacing).to(x) for size in x.shape[-2:]))

    def __call__(self, a: Tensor) -> Tensor:
        """Skies ``(N, C, H, W)`` of coefficients ``(N, C, K, L)``."""
        return self.rows.mT @ a @ self.columns

    def transpose(self, x: Tensor) -> Tensor:
        """Transpose of the sum."""
        return self.rows @ x @ self.columns.mT

    def overlap(self, free: Tensor) -> Tensor:
        """Which part of each spline lies where something is free, ``(1, C, K, L)``."""
        seen = free.to(self.rows)
        return self.transpose(seen) / self.transpose(torch.ones_like(seen))


def _splines(size: int, spacing: float) -> Tensor:
    """Values of the splines that reach into an axis, ``(K, size)``."""
    knots = torch.arange(-1, math.ceil((size - 1) / spacing) + 2, dtype=torch.float64)
    distance = (torch.arange(size, dtype=torch.float64) / spacing - knots[:, None]).abs()
    near, far = (2 / 3 - distance**2 + distance**3 / 2), (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def solve(
    curvature: Callable[[Tensor], Tensor],
    b: Tensor,
    free: Tensor,
    scale: Tensor,
    tol: float = 1e-2,
    max_iter: int = 100,
) -> Tensor:
    r"""Solve :math:`K x_i = b_i` for skies that are zero where nothing is free.

    By Cholesky's factor of :math:`K`, column by column, if that takes less work than conjugate
    gradients, preconditioned by a diagonal.

    :param Callable curvature: applies :math:`K`, symmetric and positive semi-definite, to skies
        ``(N, C, H, W)``.
    :param torch.Tensor b: right sides ``(N, C, H, W)``, zero where nothing is free.
    :param torch.Tensor free: the unknowns, ``(1, C, H, W)``.
    :param torch.Tensor scale: positive diagonal of about the size of that of :math:`K`.
    :param float tol: stop when each residual is smaller than this fraction of its right side.
    :param int max_iter: most conjugate gradients.
    :return: (:class:`torch.Tensor`) solutions, shape of ``b``.

    |sep|

    :Examples:

        >>> import torch
        >>> k = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> b = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
        >>> solve(lambda v: v @ k, b, torch.ones(1, 1, 1, 2, dtype=torch.bool), torch.ones(2))
        tensor([[[[1.0000, 1.0000]]]])
    """
    if int(free.sum()) > DIRECT * len(b):
        return conjugate_gradients(curvature, b, scale, tol, max_iter)
    places = torch.nonzero(free.flatten())[:, 0]
    rows = []
    for some in places.split(CHUNK):
        unit = torch.nn.functional.one_hot(some, free.numel()).to(b).view(-1, *free.shape[1:])
        rows.append(curvature(unit).flatten(1)[:, places].double())
    dense = torch.cat(rows)
    dense = (dense + dense.mT) / 2
    dense.diagonal().mul_(1 + 1e-6)  # of rounding
    x = torch.zeros_like(b).flatten(1)
    found = torch.cholesky_solve(b.flatten(1)[:, places].double().mT, torch.linalg.cholesky(dense))
    x[:, places] = found.mT.to(x)
    return x.view_as(b)


def conjugate_gradients(
    curvature: Callable[[Tensor], Tensor], b: Tensor, scale: Tensor, tol: float, max_iter: int
) -> Tensor:
    """Conjugate gradients for several right sides; arguments as in :func:`solve`."""

    def dot(a: Tensor, other: Tensor) -> Tensor:
        return (a * other).double().flatten(1).sum(1)

    def times(numbers: Tensor, a: Tensor) -> Tensor:
        return numbers.to(a).view(-1, *[1] * (a.ndim - 1)) * a

    tiny = torch.finfo(torch.float64).tiny
    x, residual = torch.zeros_like(b), b.clone()
    direction = residual / scale
    power = dot(residual, direction)
    enough = tol**2 * power
    for _ in range(max_iter):
        on = torch.nonzero(power > enough)[:, 0]
        if not len(on):
            break
        bent = curvature(direction[on])
        length = power[on] / dot(direction[on], bent).clamp_min(tiny)
        x[on] += times(length, direction[on])
        residual[on] -= times(length, bent)
        turned = residual[on] / scale
        before, power[on] = power[on], dot(residual[on], turned)
        direction[on] = turned + times(power[on] / before.clamp_min(tiny), direction[on])
    return x
