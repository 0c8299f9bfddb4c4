r"""Point sources at positions between the pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Half width, in pixels, of the kernel that stands for a point.
REACH = 8


def point_image(size: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    r"""Images of unit point sources, band-limited so that they lie between pixels.

    .. math::

        x(p) = k(p_r - r)\, k(p_c - c), \qquad
        k(u) \propto \operatorname{sinc}(u)\,\cos^2\!\left(\frac{\pi u}{2 a}\right), \quad |u| < a
        = 8,

    with :math:`\sum_p x(p) = 1`: a windowed sinc. Blurred by a PSF of FWHM 3 pixels the result is
    that PSF at :math:`(r, c)` to :math:`10^{-3}` of its peak (FWHM 2 pixels:
    :math:`5\times10^{-3}`). At integer positions it is one pixel. What falls off the image is lost.

    :param tuple size: rows and columns of the images.
    :param torch.Tensor rows: rows of the sources, shape ``(N,)``.
    :param torch.Tensor columns: columns of the sources, shape ``(N,)``.
    :return: (:class:`torch.Tensor`) images ``(N, H, W)``, one for each source; differentiable in
        the positions.

    |sep|

    :Examples:

        >>> import torch
        >>> image = point_image((20, 18), torch.tensor([7.25]), torch.tensor([9.0]))[0]
        >>> round(float((image.sum(1) * torch.arange(20)).sum()), 2)
        7.25
    """
    down, across = (
        _kernel(torch.arange(s, device=at.device).to(at) - at[:, None])
        for s, at in zip(size, (rows, columns), strict=True)
    )
    return down[:, :, None] * across[:, None, :]


def _kernel(offset: Tensor) -> Tensor:
    window = torch.cos(offset * (math.pi / (2 * REACH))).square()
    values = torch.where(offset.abs() < REACH, torch.sinc(offset) * window, 0.0)
    # normalised over an unbounded line, so that a source off the image does not gain flux
    fraction = offset[:, :1] % 1
    line = torch.arange(-REACH, REACH + 1, device=offset.device).to(offset) + fraction
    full = torch.where(
        line.abs() < REACH,
        torch.sinc(line) * torch.cos(line * (math.pi / (2 * REACH))).square(),
        0.0,
    )
    return values / full.sum(1, keepdim=True)
