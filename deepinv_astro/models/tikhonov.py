r"""The linear reconstruction: smoothest image that explains the data."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["Tikhonov", "squared_gradient"]


class Tikhonov(nn.Module):
    r"""Tikhonov regularisation by the gradient, for any linear operator.

    .. math::

        \hat x = \arg\min_x \|A x - y\|^2 + \lambda \|\nabla x\|^2
        \quad\Leftrightarrow\quad (A^\top A + \lambda \nabla^\top \nabla)\, \hat x = A^\top y,

    with differences of neighbours :math:`\nabla`, none across the border, by conjugate gradients from
    zero. Each image of a batch has its own steps. With noise of variance :math:`\sigma^2` and
    differences of neighbours of variance :math:`v` in the sky, :math:`\lambda = \sigma^2 / v`.

    :param float weight: :math:`\lambda`.
    :param int iterations: of conjugate gradients.
    :raises ValueError: if a number is not positive.

    |sep|

    :Examples:

        Data in the middle only; the smoothest image is flat:

        >>> import torch
        >>> from deepinv.physics import Inpainting
        >>> from deepinv_astro.models import Tikhonov
        >>> physics = Inpainting((1, 1, 3), mask=torch.tensor([[[0.0, 1.0, 0.0]]]))
        >>> Tikhonov(0.1)(torch.tensor([[[[0.0, 2.0, 0.0]]]]), physics).round(decimals=4)
        tensor([[[[2., 2., 2.]]]])
    """

    weight: Tensor

    def __init__(self, weight: float, iterations: int = 15) -> None:
        super().__init__()
        if not weight > 0 or iterations < 1:
            raise ValueError(
                f"weight and iterations must be positive, got {weight} and {iterations}"
            )
        self.register_buffer("weight", torch.tensor(float(weight), dtype=torch.float64))
        self.iterations = iterations

    def forward(self, y: Tensor, physics: LinearPhysics, **kwargs: Any) -> Tensor:
        r"""Reconstruct.

        :param torch.Tensor y: measurements ``(B, C, h, w)``.
        :param deepinv.physics.LinearPhysics physics: the operator.
        :return: (:class:`torch.Tensor`) images ``(B, C, H, W)``.
        """
        r: Tensor = physics.A_adjoint(y)
        x, p, energy = torch.zeros_like(r), r, _squares(r)
        weight = self.weight.to(y)
        for _ in range(self.iterations):
            q = physics.A_adjoint(physics.A(p)) + weight * squared_gradient(p)
            # at the solution, r = p = 0: stay there
            step = energy / (p * q).flatten(1).sum(1).clamp_min(torch.finfo(y.dtype).tiny)
            x = x + _each(step, x) * p
            r = r - _each(step, x) * q
            before, energy = energy, _squares(r)
            p = r + _each(energy / before.clamp_min(torch.finfo(y.dtype).tiny), x) * p
        return x


def squared_gradient(x: Tensor) -> Tensor:
    r"""Apply :math:`\nabla^\top \nabla` of differences along the last two axes.

    :param torch.Tensor x: images ``(..., H, W)``.
    :return: (:class:`torch.Tensor`) of the same shape.

    |sep|

    :Examples:

        >>> import torch
        >>> squared_gradient(torch.tensor([[0.0, 1.0, 4.0]]))
        tensor([[-1., -2.,  3.]])
    """
    rows, columns = x.diff(dim=-2), x.diff(dim=-1)
    along_rows = pad(rows, (0, 0, 1, 0)) - pad(rows, (0, 0, 0, 1))
    return along_rows + pad(columns, (1, 0)) - pad(columns, (0, 1))


def _squares(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def _each(value: Tensor, like: Tensor) -> Tensor:
    """One number for each image, with as many axes as images."""
    return value.reshape(-1, *[1] * (like.ndim - 1))
