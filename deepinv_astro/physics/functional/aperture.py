"""Flux in a circular aperture, with the exact overlap of the disk and each pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _segment(u: Tensor) -> Tensor:
    r"""Area of the unit disk on the left of the vertical line at :math:`u \in [-1, 1]`."""
    return math.pi / 2 + u * torch.sqrt((1 - u * u).clamp_min(0)) + torch.asin(u)


def _quadrant(u: Tensor, v: Tensor) -> Tensor:
    """Area of the unit disk with both coordinates below (u, v)."""
    u, v = u.clamp(-1, 1), v.clamp(-1, 1)
    inside = u * v + (_segment(u) + _segment(v)) / 2 - math.pi / 4
    # A corner outside the disk cuts off two separate segments, one or none.
    right, top = u >= 0, v >= 0
    outside = torch.where(
        right & top,
        _segment(u) + _segment(v) - math.pi,
        torch.where(top, _segment(u), torch.where(right, _segment(v), torch.zeros_like(u * v))),
    )
    return torch.where(u * u + v * v <= 1, inside, outside)


def aperture_weights(
    shape: tuple[int, int],
    center: tuple[float, float],
    radius: float,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""
    Fraction of each pixel that a disk covers, in closed form.

    .. math::
        w_{rc} = \left| \left[r \pm \tfrac12\right] \times \left[c \pm \tfrac12\right]
        \cap \left\{ \| p - p_0 \| \leq \rho \right\} \right|

    :param tuple shape: (H, W) of the image.
    :param tuple center: (row, column) of the disk :math:`p_0`, in float pixels.
    :param float radius: radius :math:`\rho` in pixels.
    :param torch.dtype dtype: type of the result.
    :param device: device of the result.
    :return: weights (H, W) in [0, 1]; they sum to :math:`\pi \rho^2` where the disk is inside.
    :raises ValueError: if the radius is not positive.

    >>> w = aperture_weights((9, 12), center=(4.3, 5.1), radius=2.4)
    >>> print(f"{w.sum().item() / (3.141592653589793 * 2.4**2):.6f}")
    1.000000
    """
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"the radius of an aperture must be positive and finite, got {radius}")
    edges = [
        (torch.arange(n + 1, dtype=dtype, device=device) - 0.5 - c) / radius
        for n, c in zip(shape, center, strict=True)
    ]
    area = _quadrant(edges[0][:, None], edges[1][None, :])
    overlap = area[1:, 1:] - area[:-1, 1:] - area[1:, :-1] + area[:-1, :-1]
    return (overlap * radius**2).clamp(0, 1)


def aperture_flux(image: Tensor, center: tuple[float, float], radius: float) -> Tensor:
    r"""
    Sum of an image in a circular aperture, partial pixels counted by their exact overlap.

    .. math::
        F = \sum_{rc} w_{rc} \, x_{rc}

    with the weights of :func:`aperture_weights`.

    :param torch.Tensor image: (..., H, W), in any unit.
    :param tuple center: (row, column) of the aperture, in float pixels.
    :param float radius: radius in pixels (half of a FWHM for an aperture of diameter one FWHM).
    :return: flux (...), in the unit of the image.
    :raises ValueError: if the radius is not positive.

    >>> print(f"{aperture_flux(torch.full((8, 11), 2.0), (3.0, 6.5), 1.5).item():.4f}")
    14.1372
    """
    weights = aperture_weights(
        (image.shape[-2], image.shape[-1]),
        center,
        radius,
        dtype=image.dtype,
        device=image.device,
    )
    return (image * weights).sum(dim=(-2, -1))
