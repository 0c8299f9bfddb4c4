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

    with differences of neighbours :math:`\nabla`, none across the border. With noise of variance
    :math:`\sigma^2` and differences of neighbours of variance :math:`v` in the sky, :math:`\lambda =
    \sigma^2 / v`.

    It is solved by Chebyshev iterations for eigenvalues between :math:`b / \kappa` and :math:`b =
    \|A\|^2 + 8 \lambda`, from the mean of the data: a fixed polynomial, hence linear in :math:`y`
    after any number of them, and the same for a crop as for the whole. (The steps of conjugate
    gradients depend on :math:`y`; stopped early, their derivative spoils risks such as SURE.)

    :param float weight: :math:`\lambda`.
    :param int iterations: of Chebyshev.
    :param float norm: :math:`\|A\|^2`, or a bound from above: for a PSF of unit sum, positive, 1;
        with means of ``r`` x ``r`` pixels, ``1 / r**2``.
    :param float condition: :math:`\kappa`; what has smaller eigenvalues converges in part, such as
        the sky far outside of the detector.
    :raises ValueError: if a number is out of range.

    |sep|

    :Examples:

        Data in the middle only; the smoothest image is flat:

        >>> import torch
        >>> from deepinv.physics import Inpainting
        >>> from deepinv_astro.models.tikhonov import Tikhonov
        >>> physics = Inpainting((1, 1, 3), mask=torch.tensor([[[0.0, 1.0, 0.0]]]))
        >>> Tikhonov(0.1, iterations=60)(torch.tensor([[[[0.0, 2.0, 0.0]]]]), physics).round(
        ...     decimals=3
        ... )
        tensor([[[[2., 2., 2.]]]])
    """

    weight: Tensor
    norm: Tensor

    def __init__(
        self, weight: float, iterations: int = 20, *, norm: float = 1.0, condition: float = 40.0
    ) -> None:
        super().__init__()
        if not (weight > 0 and norm > 0) or iterations < 1:
            raise ValueError(
                "weight, norm and iterations must be positive, "
                f"got {weight}, {norm} and {iterations}"
            )
        if not condition > 1:
            raise ValueError(f"condition must be more than 1, got {condition}")
        self.register_buffer("weight", torch.tensor(float(weight), dtype=torch.float64))
        self.register_buffer("norm", torch.tensor(float(norm), dtype=torch.float64))
        self.iterations, self.condition = iterations, condition

    def forward(self, y: Tensor, physics: LinearPhysics, **kwargs: Any) -> Tensor:
        r"""Reconstruct.

        :param torch.Tensor y: measurements ``(B, C, h, w)``.
        :param deepinv.physics.LinearPhysics physics: the operator.
        :return: (:class:`torch.Tensor`) images ``(B, C, H, W)``.
        """
        weight = float(self.weight)
        largest = float(self.norm) + 8 * weight
        middle = largest * (1 + 1 / self.condition) / 2
        ratio = (1 + 1 / self.condition) / (1 - 1 / self.condition)

        def normal(x: Tensor) -> Tensor:
            back: Tensor = physics.A_adjoint(physics.A(x))
            return back + weight * squared_gradient(x)

        r: Tensor = physics.A_adjoint(y)
        x = y.flatten(2).mean(2)[..., None, None].expand_as(r)
        r = r - normal(x)
        step, rho = r / middle, 1 / ratio
        for _ in range(self.iterations):
            x = x + step
            r = r - normal(step)
            before, rho = rho, 1 / (2 * ratio - rho)
            step = rho * before * step + 2 * rho * ratio / middle * r
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
