r"""Properties of point-spread functions."""

from __future__ import annotations

import math

import torch
from scipy.fft import next_fast_len
from torch import Tensor


def half_maximum_width(psf: Tensor, oversampling: int = 8) -> float:
    r"""Full width at half maximum of a PSF, in pixels: the diameter of the disk as large as its core.

    .. math::

        \mathrm{FWHM} = 2 \sqrt{\mathcal A / \pi}, \qquad \mathcal A = |\{u : h(u) \ge \tfrac12 \max h\}|,

    with :math:`h` band-limited interpolated (Fourier), so that a core of a few pixels is measured
    well.

    :param torch.Tensor psf: stamp ``(k, l)`` or several ``(..., k, l)``, which are averaged.
    :param int oversampling: samples per pixel and axis of the interpolated PSF.
    :return: (float) width in pixels.

    |sep|

    :Examples:

        >>> import torch
        >>> row, column = torch.arange(-12.0, 13)[:, None], torch.arange(-10.0, 11)
        >>> round(half_maximum_width(torch.exp(-(row**2 / 8 + column**2 / 18))), 1)
        5.8
    """
    stamp = psf.double().flatten(0, -3).mean(0) if psf.ndim > 2 else psf.double()
    shape = (oversampling * stamp.shape[-2], oversampling * stamp.shape[-1])
    spectrum = torch.fft.fftshift(torch.fft.fft2(stamp))
    rows, columns = (size - s for size, s in zip(shape, stamp.shape, strict=True))
    # the zero frequency of the padded spectrum lies at its middle
    top = shape[0] // 2 - stamp.shape[0] // 2
    left = shape[1] // 2 - stamp.shape[1] // 2
    padded = torch.nn.functional.pad(spectrum, (left, columns - left, top, rows - top))
    fine = torch.fft.ifft2(torch.fft.ifftshift(padded)).real
    area = float((fine >= fine.max() / 2).sum()) / oversampling**2
    return 2 * math.sqrt(area / math.pi)


def blur(x: Tensor, psf: Tensor | None) -> Tensor:
    r"""Sky as the instrument would show it, :math:`Hx`: convolution by the PSF.

    The sky is zero beyond the edge of the image.

    :param torch.Tensor x: sky ``(B, C, H, W)``.
    :param torch.Tensor psf: stamps with the star at ``(k // 2, k // 2)``: ``(k, k)``, ``(C, k,
        k)``, or as the ``filter`` of :class:`~deepinv_astro.physics.ADI`, ``(b, c, t, k, k)``,
        whose mean over the frames is taken. ``None`` for no blur.
    :return: (:class:`torch.Tensor`) ``(B, C, H, W)``.
    :raises ValueError: if the shape of ``psf`` does not fit.

    |sep|

    :Examples:

        >>> import torch
        >>> x = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
        >>> x[0, 0, 1, 1] = 1.0
        >>> psf = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.6, 0.3], [0.0, 0.0, 0.0]])
        >>> blur(x, psf.double())[0, 0, 1].round(decimals=3).abs()
        tensor([0.1000, 0.6000, 0.3000, 0.0000], dtype=torch.float64)
    """
    if psf is None:
        return x
    if psf.ndim not in (2, 3, 4, 5):
        raise ValueError(
            f"psf must be of shape (k, k), (C, k, k) or (b, c, t, k, k), got {tuple(psf.shape)}"
        )
    stamps = psf.mean(2) if psf.ndim == 5 else psf
    height, width = x.shape[-2:]
    rows, columns = stamps.shape[-2:]
    size = (
        next_fast_len(height + rows - 1, real=True),
        next_fast_len(width + columns - 1, real=True),
    )
    stamps = stamps.to(x)
    if stamps.ndim == 4 and len(stamps) > 1:
        stamps = stamps.repeat(len(x) // len(stamps), 1, 1, 1)
    spectrum = torch.fft.rfft2(x, s=size) * torch.fft.rfft2(stamps, s=size)
    full: Tensor = torch.fft.irfft2(spectrum, s=size)
    top, left = rows // 2, columns // 2
    return full[..., top : top + height, left : left + width]
