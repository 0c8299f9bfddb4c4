r"""Point-spread functions from the pupil of a telescope and the aberrations in it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from deepinv_astro.physics.functional.pupil import pupil_grid, zernike

__all__ = [
    "fourier_basis",
    "fourier_frequencies",
    "otf_psf",
    "pupil_otf",
    "pupil_psf",
    "wavefront",
    "wavefront_psf",
    "zernike_basis",
]


def zernike_basis(
    count: int,
    size: int,
    first: int = 2,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Zernike polynomials :math:`Z_j`, :math:`j = j_0, \dots, j_0 + J - 1`, unit rms over the disc.

    :param int count: number of modes :math:`J`.
    :param int size: pixels across the pupil.
    :param int first: Noll's index :math:`j_0` of the first mode: 2 leaves out piston, 4 tip and
        tilt too.
    :param torch.dtype dtype: of the result.
    :param torch.device, str device: of the result.
    :return: (:class:`torch.Tensor`) modes ``(J, size, size)``, see
        :func:`~deepinv_astro.physics.functional.pupil.zernike`.
    :raises ValueError: if there is no mode.

    |sep|

    :Examples:

        >>> zernike_basis(3, 32, first=4).shape  # defocus and astigmatism
        torch.Size([3, 32, 32])
    """
    if count < 1:
        raise ValueError(f"a basis has at least one mode, got count={count}")
    row, column = pupil_grid(size, dtype=dtype, device=device)
    return torch.stack([zernike(j, row, column) for j in range(first, first + count)])


def fourier_frequencies(highest: float) -> Tensor:
    r"""Frequencies of the Fourier modes up to a highest one, in cycles per pupil diameter.

    Whole numbers of cycles in half the plane, sorted by modulus; zero, which is piston, is left
    out.

    :param float highest: largest modulus, 1 or more.
    :return: (:class:`torch.Tensor`) ``(M, 2)``, row and column.
    :raises ValueError: if there is none.

    |sep|

    :Examples:

        >>> fourier_frequencies(1.5).tolist()
        [[0.0, 1.0], [1.0, 0.0], [1.0, -1.0], [1.0, 1.0]]
    """
    reach = int(highest)
    if reach < 1:
        raise ValueError(f"highest is in cycles per diameter and must be at least 1, got {highest}")
    half_plane = [
        (i, j)
        for i in range(reach + 1)
        for j in range(-reach, reach + 1)
        if (i > 0 or j > 0) and i**2 + j**2 <= highest**2
    ]
    half_plane.sort(key=lambda f: (f[0] ** 2 + f[1] ** 2, f))
    return torch.tensor(half_plane, dtype=torch.float64)


def fourier_basis(
    frequencies: Tensor,
    size: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Cosines and sines in the pupil, each of unit rms over whole periods.

    .. math::

        \sqrt2 \cos 2\pi f \cdot u, \quad \sqrt2 \sin 2\pi f \cdot u

    A mode of :math:`f` cycles per diameter makes a pair of speckles :math:`f\,\lambda/D` from the
    star, which is what the actuators of adaptive optics do.

    :param torch.Tensor frequencies: ``(M, 2)``, row and column, in cycles per diameter, for example
        of :func:`fourier_frequencies`.
    :param int size: pixels across the pupil.
    :param torch.dtype dtype: of the result.
    :param torch.device, str device: of the result.
    :return: (:class:`torch.Tensor`) modes ``(2 M, size, size)``: a cosine and a sine in turn.

    |sep|

    :Examples:

        >>> fourier_basis(fourier_frequencies(1.0), 16).shape
        torch.Size([4, 16, 16])
    """
    row, column = pupil_grid(size, dtype=dtype, device=device)
    f = frequencies.to(row)
    argument = 2 * math.pi * (f[:, 0, None, None] * row + f[:, 1, None, None] * column)
    modes = torch.stack([torch.cos(argument), torch.sin(argument)], dim=1)
    return math.sqrt(2) * modes.flatten(0, 1)


def wavefront(coefficients: Tensor, modes: Tensor) -> Tensor:
    r"""Sum of modes, :math:`w(u) = \sum_j a_j Z_j(u)`.

    :param torch.Tensor coefficients: :math:`a_j`, ``(..., J)``, in nm rms or in radians rms.
    :param torch.Tensor modes: ``(J, n, n)``, for example of :func:`zernike_basis`.
    :return: (:class:`torch.Tensor`) ``(..., n, n)`` in the units of the coefficients.
    :raises ValueError: if the number of coefficients is not that of the modes.

    |sep|

    :Examples:

        >>> import torch
        >>> modes = zernike_basis(2, 8)
        >>> wavefront(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), modes).shape
        torch.Size([3, 8, 8])
    """
    if coefficients.shape[-1] != len(modes):
        raise ValueError(
            f"there are {len(modes)} modes, but {coefficients.shape[-1]} coefficients "
            f"in the last axis of {tuple(coefficients.shape)}"
        )
    return torch.einsum("...j,jmn->...mn", coefficients, modes.to(coefficients))


def pupil_otf(pupil: Tensor, phase: Tensor | None = None) -> Tensor:
    r"""Optical transfer function: the autocorrelation of the field in the pupil.

    .. math::

        \tilde h(\nu) = \frac{\sum_u A(u + \nu)\, A^*(u)}{\sum_u |A(u)|^2}, \qquad
        A = P e^{i \varphi}

    exact for a field that is given on a grid. Its mean over the mean of that without a phase
    is the Strehl ratio.

    :param torch.Tensor pupil: transmission :math:`P` of the amplitude, ``(..., n, n)``.
    :param torch.Tensor phase: :math:`\varphi` in radians, ``(..., n, n)``. ``None`` for a flat one.
    :return: (:class:`torch.Tensor`) complex, ``(..., 2 n - 1, 2 n - 1)``, frequency zero in the
        middle, steps of :math:`D / (n \lambda)`.
    :raises ValueError: if the pupil is not square, or the shapes differ.

    |sep|

    :Examples:

        >>> import torch
        >>> otf = pupil_otf(torch.ones(2, 2, dtype=torch.float64))
        >>> otf.real.round(decimals=6)
        tensor([[0.2500, 0.5000, 0.2500],
                [0.5000, 1.0000, 0.5000],
                [0.2500, 0.5000, 0.2500]], dtype=torch.float64)
    """
    n = pupil.shape[-1]
    if pupil.ndim < 2 or pupil.shape[-2] != n or (phase is not None and phase.shape[-2:] != (n, n)):
        raise ValueError(
            "pupil and phase must be square and of one size, "
            f"got {tuple(pupil.shape)} and {None if phase is None else tuple(phase.shape)}"
        )
    field = pupil if phase is None else pupil * torch.exp(1j * phase)
    focal = torch.fft.fft2(field, s=(2 * n, 2 * n))
    power = focal.real.square() + focal.imag.square()
    otf = torch.fft.fftshift(torch.fft.ifft2(power), dim=(-2, -1))[..., 1:, 1:]
    return otf / pupil.abs().square().sum(dim=(-2, -1), keepdim=True)


def otf_psf(
    shape: tuple[int, int],
    otf: Tensor,
    sampling: Tensor | float,
    *,
    offset: Tensor | None = None,
) -> Tensor:
    r"""PSF of a transfer function on any pixel grid, integrated over the pixels.

    .. math::

        h(p) \propto \sum_\nu \tilde h(\nu)\, \operatorname{sinc}\frac{\nu_r}{s}\,
        \operatorname{sinc}\frac{\nu_c}{s}\; e^{-2\pi i\, \nu \cdot (p - p_0) / s}

    by two matrix products: exact for any sampling and any position, below Nyquist too.
    The sum over the stamp is one.

    :param tuple shape: rows and columns :math:`(k, l)` of the stamp.
    :param torch.Tensor otf: ``(..., 2 n - 1, 2 n - 1)`` of :func:`pupil_otf`.
    :param torch.Tensor, float sampling: :math:`s = \lambda / D` in pixels, of any leading shape.
    :param torch.Tensor offset: row and column of the star from ``(k // 2, l // 2)``, ``(..., 2)``.
    :return: (:class:`torch.Tensor`) stamps ``(..., k, l)``, leading axes broadcast.
    :raises ValueError: if the sampling is not positive, or the stamp larger than the :math:`n s`
        pixels after which a pupil sampled on :math:`n` pixels repeats the star.

    |sep|

    :Examples:

        >>> import torch
        >>> otf = pupil_otf(torch.ones(16, 16))
        >>> otf_psf((9, 7), otf, torch.tensor([2.0, 3.0]), offset=torch.tensor([0.0, 0.4])).shape
        torch.Size([2, 9, 7])
    """
    real = otf.real.dtype
    s = torch.as_tensor(sampling, dtype=real, device=otf.device)
    star = torch.zeros(2, dtype=real, device=otf.device) if offset is None else offset.to(otf.real)
    n = (otf.shape[-1] + 1) // 2
    if not bool((s > 0).all()):
        raise ValueError(f"sampling is lambda / D in pixels and must be positive, got {sampling}")
    if bool((n * s < max(shape)).any()):
        raise ValueError(
            f"a pupil of {n} pixels makes a field of {n} lambda / D, too small for a stamp of "
            f"{tuple(shape)} pixels at {float(s.min()):g} pixels per lambda / D: use a finer pupil"
        )
    nu = torch.arange(1 - n, n, dtype=real, device=otf.device) / n / s[..., None]
    kernels = []
    for axis, size in enumerate(shape):
        p = torch.arange(size, dtype=real, device=otf.device) - size // 2
        turns = (p - star[..., axis, None])[..., :, None] * nu[..., None, :]
        wave = torch.exp(-2j * math.pi * turns)
        kernels.append(wave * _sinc(nu)[..., None, :])
    psf = (kernels[0] @ otf @ kernels[1].mT).real
    return psf / psf.sum(dim=(-2, -1), keepdim=True)


def pupil_psf(
    shape: tuple[int, int],
    pupil: Tensor,
    sampling: Tensor | float,
    *,
    phase: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    r"""PSF at one wavelength of a pupil with a phase, integrated over the pixels.

    .. math::

        h(p) \propto \int_p \left| \sum_u P(u)\, e^{i \varphi(u)}\, e^{-2\pi i\, u \cdot (p - p_0) / s}
        \right|^2

    :param tuple shape: rows and columns of the stamp.
    :param torch.Tensor pupil: ``(n, n)`` of
        :func:`~deepinv_astro.physics.functional.pupil.telescope_pupil`.
    :param torch.Tensor, float sampling: :math:`s = \lambda / D` in pixels; ``(C,)`` for a stamp per
        wavelength.
    :param torch.Tensor phase: radians, ``(..., n, n)``.
    :param torch.Tensor offset: as for :func:`otf_psf`. Tip and tilt in the phase move the star too.
    :return: (:class:`torch.Tensor`) stamps ``(..., k, l)`` of unit sum over the stamp.
    :raises ValueError: as :func:`pupil_otf` and :func:`otf_psf`.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics.functional.pupil import telescope_pupil
        >>> phase = wavefront(torch.tensor([0.3, 0.0, 0.5]), zernike_basis(3, 24, first=4))
        >>> pupil_psf((21, 25), telescope_pupil(24), 3.0, phase=phase).shape
        torch.Size([21, 25])
    """
    return otf_psf(shape, pupil_otf(pupil, phase), sampling, offset=offset)


def wavefront_psf(
    shape: tuple[int, int],
    pupil: Tensor,
    sampling: Tensor | float,
    *,
    path: Tensor,
    wavelength: Tensor | float,
    bandwidth: float = 0.0,
    steps: int = 5,
    offset: Tensor | None = None,
) -> Tensor:
    r"""PSF of an aberration given as a length, mean over a band of wavelengths.

    .. math::

        h = \frac1b \int_{-b/2}^{b/2} h_{\lambda (1 + x)}\, dx, \qquad
        \varphi = \frac{2\pi\, w}{\lambda (1 + x)}, \quad s = s_\lambda\, (1 + x)

    by Gauss-Legendre quadrature; each wavelength has the same flux in its stamp.

    :param tuple shape: rows and columns of the stamp.
    :param torch.Tensor pupil: ``(n, n)``.
    :param torch.Tensor, float sampling: :math:`s_\lambda = \lambda / D` in pixels at the central
        wavelength; proportional to ``wavelength``, ``(C,)`` for several channels.
    :param torch.Tensor path: optical path difference :math:`w`, ``(..., n, n)``, of
        :func:`wavefront`; ``(..., 1, n, n)`` for several channels.
    :param torch.Tensor, float wavelength: :math:`\lambda` in the units of ``path``; ``(C,)`` for
        several channels.
    :param float bandwidth: :math:`b = \Delta\lambda / \lambda`; 0 for one wavelength.
    :param int steps: wavelengths in the band.
    :param torch.Tensor offset: as for :func:`otf_psf`.
    :return: (:class:`torch.Tensor`) stamps ``(..., k, l)`` of unit sum over the stamp.
    :raises ValueError: if the bandwidth is not in [0, 2), and as :func:`pupil_psf`.

    |sep|

    :Examples:

        Two channels see the same defocus of 100 nm:

        >>> import torch
        >>> from deepinv_astro.physics.functional.pupil import telescope_pupil
        >>> path = wavefront(torch.tensor([100.0]), zernike_basis(1, 32, first=4))
        >>> wavelength = torch.tensor([1600.0, 2200.0])
        >>> psf = wavefront_psf(
        ...     (31, 25), telescope_pupil(32), wavelength / 640, path=path, wavelength=wavelength
        ... )
        >>> psf.shape
        torch.Size([2, 31, 25])
    """
    if not 0 <= bandwidth < 2:
        raise ValueError(f"bandwidth is a fraction of the wavelength in [0, 2), got {bandwidth}")

    def at(scale: float) -> Tensor:
        length = torch.as_tensor(wavelength, dtype=path.dtype, device=path.device) * scale
        phase = 2 * math.pi * path / length[..., None, None]
        return pupil_psf(shape, pupil, sampling * scale, phase=phase, offset=offset)

    return _band_mean(at, bandwidth, steps)


def _sinc(x: Tensor) -> Tensor:
    """sin(pi x) / (pi x), whose second derivatives at zero are finite in torch too."""
    away = math.pi * torch.where(x == 0, 1.0, x)
    return torch.where(x == 0, 1.0, torch.sin(away) / away)


def _band_mean(at: Callable[[float], Tensor], bandwidth: float, steps: int) -> Tensor:
    """Mean of a function of the wavelength over the central one, over a band around 1."""
    if bandwidth == 0:
        return at(1.0)
    x, w = np.polynomial.legendre.leggauss(steps)
    nodes = zip((bandwidth / 2 * x).tolist(), (w / 2).tolist(), strict=True)
    return torch.stack([weight * at(1 + node) for node, weight in nodes]).sum(0)
