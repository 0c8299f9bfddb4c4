r"""Optical transfer functions of turned point-spread functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def turned_otf(psf: Tensor, angles: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Transfer function of a PSF turned counter-clockwise, evaluated exactly.

    A PSF :math:`h` given on a stamp is the band-limited function with the samples :math:`h_p` at
    the offsets :math:`p` from the stamp's centre. Turned by :math:`\theta`, its transfer function
    is

    .. math::

        \hat h_\theta(\omega) = \hat h(R_{-\theta}\,\omega) = \sum_p h_p\, e^{-i\,\omega\cdot R_\theta p},

    and as :math:`\omega\cdot R_\theta p` is separable in the two frequencies, the sum over the
    :math:`K` pixels of the stamp is one product of real matrices: :math:`O(K)` operations for each
    frequency, no interpolation.

    :param torch.Tensor psf: stamps ``(..., k, k)``, star at pixel ``(k // 2, k // 2)``.
    :param torch.Tensor angles: angles :math:`\theta` in degrees, shape ``(T,)``.
    :param tuple size: rows and columns of the (periodic) image to convolve.
    :return: (:class:`torch.Tensor`) complex, shape ``(..., T, rows, columns // 2 + 1)``, the
        layout of ``torch.fft.rfft2``. Differentiable in the PSF and the angles. If ``psf`` has an
        axis of length ``T`` before the stamp, give it as ``(..., T, k, k)`` to :func:`turned_otfs`.
    """
    stacked = psf[..., None, :, :].expand(*psf.shape[:-2], len(angles), *psf.shape[-2:])
    return turned_otfs(stacked, angles, size)


def turned_otfs(psf: Tensor, angles: Tensor, size: tuple[int, int]) -> Tensor:
    r"""The same as :func:`turned_otf` with one PSF for each angle.

    :param torch.Tensor psf: stamps ``(..., T, k, k)``.
    :param torch.Tensor angles: angles in degrees, shape ``(T,)``.
    :param tuple size: rows and columns of the image to convolve.
    :return: (:class:`torch.Tensor`) complex, shape ``(..., T, rows, columns // 2 + 1)``.

    |sep|

    :Examples:

        A PSF displaced to the right, turned by 90 degrees, is displaced upwards:

        >>> import torch
        >>> psf = torch.zeros(1, 3, 3, dtype=torch.float64)
        >>> psf[0, 1, 2] = 1.0
        >>> otf = turned_otfs(psf, torch.tensor([90.0], dtype=torch.float64), (4, 5))
        >>> torch.fft.irfft2(otf, s=(4, 5))[0, :, 0].round(decimals=6).abs()
        tensor([0., 1., 0., 0.], dtype=torch.float64)
    """
    rows, columns = (
        torch.arange(n, dtype=torch.float64, device=psf.device) - n // 2 for n in psf.shape[-2:]
    )
    # frequencies from 0 to the highest: the others follow, as the PSF is real
    u, v = (
        2 * math.pi / n * torch.arange(n // 2 + 1, dtype=torch.float64, device=psf.device)
        for n in size
    )
    theta = torch.deg2rad(angles.double())
    otfs = []
    for frame, turn in enumerate(theta):
        # the column axis turns towards the row axis
        left = _waves(u, turn.cos() * rows, turn.sin() * columns, psf)
        right = _waves(v, -turn.sin() * rows, turn.cos() * columns, psf)
        stamp = psf[..., frame, :, :].flatten(-2)[..., None, :]
        products = (left * stamp) @ right.mT
        otfs.append(_both_signs(products, size[0]))
    return torch.stack(otfs, dim=-3)


def centred_otf(psf: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Transfer function of a PSF on a periodic grid, its centre at the origin.

    .. math::

        \hat h(\omega) = \sum_p h_p\, e^{-i\,\omega \cdot p}

    with :math:`p` the offset from the stamp's centre. A stamp larger than the grid is folded.

    :param torch.Tensor psf: stamps ``(..., k, l)``, centre at pixel ``(k // 2, l // 2)``.
    :param tuple size: rows and columns of the grid.
    :return: (:class:`torch.Tensor`) complex, ``(..., rows, columns // 2 + 1)``, the layout of
        ``torch.fft.rfft2``. Differentiable.

    |sep|

    :Examples:

        >>> import torch
        >>> psf = torch.tensor([[0.25, 0.5, 0.25]])
        >>> centred_otf(psf, (1, 4)).real  # (1 + cos w) / 2
        tensor([[1.0000, 0.5000, 0.0000]])
    """
    grid = psf
    for axis in (-2, -1):
        length, n = grid.shape[axis], size[axis]
        places = (torch.arange(length, device=psf.device) - length // 2) % n
        shape = list(grid.shape)
        shape[axis] = n
        grid = grid.new_zeros(shape).index_add(axis, places, grid)
    return torch.fft.rfft2(grid)


def _waves(frequency: Tensor, rows: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    r"""Cosines, then sines, of :math:`\omega (r_i + c_j)`, ``(2 n, rows * columns)``.

    Phases are reduced in double precision and then cast; the sum is by the addition theorem, as
    cosines are dear.
    """
    cosines, sines = [], []
    for offset in (rows, columns):
        phase = torch.remainder(frequency[:, None] * offset, 2 * math.pi)
        cosines.append(phase.cos().to(like))
        sines.append(phase.sin().to(like))
    cos_row, sin_row = cosines[0][:, :, None], sines[0][:, :, None]
    cos_column, sin_column = cosines[1][:, None, :], sines[1][:, None, :]
    cos = cos_row * cos_column - sin_row * sin_column
    sin = sin_row * cos_column + cos_row * sin_column
    return torch.cat([cos, sin]).flatten(1)


def _both_signs(products: Tensor, rows: int) -> Tensor:
    """``exp(-i (a + b))`` for both signs of the row frequency, from products of cosines and sines."""
    halves = products.unflatten(-2, (2, -1)).unflatten(-1, (2, -1))
    (cos_cos, cos_sin), (sin_cos, sin_sin) = (
        [halves[..., i, :, j, :] for j in range(2)] for i in range(2)
    )
    positive = torch.complex(cos_cos - sin_sin, -sin_cos - cos_sin)
    negative = torch.complex(cos_cos + sin_sin, sin_cos - cos_sin)
    return torch.cat([positive[..., : (rows + 1) // 2, :], negative[..., 1:, :].flip(-2)], -2)
