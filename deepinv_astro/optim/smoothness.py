r"""Edge-preserving smoothness with a weight for each pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def edge_preserving(
    x: Tensor, epsilon: Tensor | float, weight: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Smoothness :math:`\sum_p w_p(\sqrt{|\nabla x|_p^2 + \varepsilon_p^2} - \varepsilon_p)` and its gradient.

    :math:`\nabla` are forward differences, zero across the last row and column: hyperbolic total
    variation (Charbonnier+
    1997; used by REXPACO, Flasseur+ 2021). Quadratic for differences below :math:`\varepsilon`,
    linear above.

    :param torch.Tensor x: images ``(..., H, W)``.
    :param torch.Tensor, float epsilon: scale :math:`\varepsilon > 0` of the differences, broadcast
        to ``x``.
    :param torch.Tensor, float weight: :math:`w \ge 0`, broadcast to ``x``.
    :return: tuple of the sum over all pixels (scalar) and its gradient (shape of ``x``).

    |sep|

    :Examples:

        >>> import torch
        >>> x = torch.tensor([[0.0, 3.0], [4.0, 4.0]], dtype=torch.float64)
        >>> value, gradient = edge_preserving(x, 1e-9)
        >>> round(float(value), 6)
        6.0
    """
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=down[..., :-1, :])
    torch.sub(x[..., :, 1:], x[..., :, :-1], out=right[..., :, :-1])
    length = (down.square() + right.square() + epsilon**2).sqrt()
    value = (weight * (length - epsilon)).sum()
    slope = weight / length
    down, right = down * slope, right * slope
    gradient = -down - right
    gradient[..., 1:, :] += down[..., :-1, :]
    gradient[..., :, 1:] += right[..., :, :-1]
    return value, gradient
