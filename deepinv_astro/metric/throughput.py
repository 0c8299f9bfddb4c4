r"""What a method keeps of a point source, and the faintest one it would find."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.metric.snr import aperture_sums, reference_count, snr_threshold
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur
from deepinv_astro.physics.functional.resampling import SplineLookup, spline_coefficients

#: ``reconstructor(y, physics)`` estimates the blurred sky, in the unit of the frames per pixel.
Reconstructor = Callable[[Tensor, ADI], Tensor]


class Throughput(NamedTuple):
    """Fraction of the flux of point sources that a method keeps.

    :param torch.Tensor separation: distance of each injection from the star, ``(R, P)`` pixels;
        injections are at the nearest pixels of the sky grid.
    :param torch.Tensor value: fraction kept, ``(R, P)``.
    """

    separation: Tensor
    value: Tensor

    def mean(self) -> Tensor:
        """Mean over position angles, ``(R,)``, of the injections that lie in the image."""
        return self.value.nanmean(1)


def throughput(
    reconstructor: Reconstructor,
    y: Tensor,
    physics: ADI,
    radii: Sequence[float],
    position_angles: Sequence[float],
    flux: float | Sequence[float],
    fwhm: float,
) -> Throughput:
    r"""Throughput of a method, by injection of point sources with the forward operator.

    .. math::

        \tau(r, \phi) = \frac{\langle w,\ \hat z(y + A x_{r,\phi}) - \hat z(y) \rangle}
        {\langle w,\ H x_{r,\phi} \rangle}

    with :math:`x_{r,\phi}` a point source at the separation :math:`r` and position angle
    :math:`\phi`, one at a time, in the pixel nearest to there, :math:`w` an aperture of diameter
    FWHM about that pixel, and :math:`H` the PSF of ``physics``.

    :param Callable reconstructor: ``reconstructor(y, physics)`` gives the image :math:`\hat z` in
        the unit of the frames per pixel, as the classical :mod:`~deepinv_astro.models`. For a
        method that deconvolves, give ``lambda y, physics: blur(method(y, physics),
        physics.filter)``.
    :param torch.Tensor y: sequence ``(1, 1, T, h, w)``, without a bright source where the
        injections go.
    :param ADI physics: forward operator with its PSF.
    :param Sequence radii: separations, pixels, ``R`` of them.
    :param Sequence position_angles: degrees East of North, ``P`` of them.
    :param float, Sequence flux: total flux of the sources in the unit of the data, one or ``R``; 5
        to 20 times the noise in an aperture is usual, as the throughput of a non-linear method
        depends on it.
    :param float fwhm: diameter of the aperture, pixels.
    :return: (:class:`Throughput`) NaN where the source or its aperture leaves the image.
    :raises ValueError: if there is more than one sequence, or the fluxes do not fit.

    |sep|

    :Examples:

        A method that returns half of the sky has throughput one half:

        >>> import torch
        >>> physics = ADI(
        ...     (1, 21, 25), angles=torch.tensor([0.0, 40.0]), filter=torch.full((3, 3), 1 / 9)
        ... )
        >>> half = lambda y, physics: 0.5 * y[:, :, 0]  # the first frame has North up
        >>> y = torch.zeros(1, 1, 2, 21, 25)
        >>> result = throughput(
        ...     half, y, physics, radii=[6.0], position_angles=[0.0, 90.0], flux=10.0, fwhm=4.0
        ... )
        >>> result.mean().round(decimals=3)
        tensor([0.5000])
    """
    fluxes = [float(flux)] * len(radii) if isinstance(flux, (int, float)) else list(flux)
    if len(fluxes) != len(radii):
        raise ValueError(
            f"flux must be one value or one for each of {len(radii)} radii, got {len(fluxes)}"
        )
    if y.ndim != 5 or tuple(y.shape[:2]) != (1, 1):
        raise ValueError(
            f"y must be one sequence of one wavelength, (1, 1, T, h, w), got {tuple(y.shape)}"
        )
    before = reconstructor(y, physics)
    star = [float(value) for value in physics.sky_center]
    separation = torch.zeros(len(radii), len(position_angles), dtype=torch.float64)
    value = torch.full_like(separation, torch.nan)
    for i, (radius, amount) in enumerate(zip(radii, fluxes, strict=True)):
        for j, angle in enumerate(position_angles):
            phi = math.radians(angle)
            row, column = (
                round(star[0] + radius * math.cos(phi)),
                round(star[1] - radius * math.sin(phi)),
            )
            separation[i, j] = math.hypot(row - star[0], column - star[1])
            value[i, j] = _kept(reconstructor, y, physics, before, (row, column), amount, fwhm)
    return Throughput(separation.to(y), value.to(y))


def _kept(
    reconstructor: Reconstructor,
    y: Tensor,
    physics: ADI,
    before: Tensor,
    pixel: tuple[int, int],
    flux: float,
    fwhm: float,
) -> float:
    """Throughput of one source in one pixel of the sky."""
    height, width = physics.img_size[1:]
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        return math.nan
    x = y.new_zeros(1, 1, height, width)
    x[0, 0, pixel[0], pixel[1]] = flux
    change = reconstructor(y + physics.A(x), physics) - before
    ideal = blur(x, physics.filter)
    sums = (aperture_sums(z, fwhm)[0, 0, pixel[0], pixel[1]] for z in (change, ideal))
    kept, sent = (float(total) for total in sums)
    return kept / sent


class ContrastCurve(NamedTuple):
    """Faintest point source found at a fixed false-positive fraction, against the separation.

    :param torch.Tensor separation: pixels, ``(R,)``.
    :param torch.Tensor contrast: flux of that source over the flux of the star, ``(R,)``.
    :param torch.Tensor noise: standard deviation of aperture sums in the image, ``(R,)``.
    :param torch.Tensor threshold: S/N that has the false-positive fraction, ``(R,)``.
    :param torch.Tensor throughput: fraction of the flux that the method keeps, ``(R,)``.
    """

    separation: Tensor
    contrast: Tensor
    noise: Tensor
    threshold: Tensor
    throughput: Tensor


def contrast_curve(
    image: Tensor,
    star_flux: float,
    psf: Tensor,
    fwhm: float,
    radii: Sequence[float],
    kept: Tensor,
    *,
    center: tuple[float, float] | None = None,
    fpf: float = 2.8665e-7,
    starts: int = 12,
) -> ContrastCurve:
    r"""Contrast of the faintest point source found at a fixed false-positive fraction.

    .. math::

        c(r) = \frac{t_{n_2 - 1}^{-1}(1 - \mathrm{FPF})\; s(r) \sqrt{1 + 1/n_2}}
        {\tau(r)\, f_\star\, e}

    with :math:`s` the standard deviation of the sums in apertures of diameter FWHM on the circle
    (mean variance over ``starts`` angles of the first aperture),
    :math:`n_2 = \lfloor 2 \pi r/\mathrm{FWHM} \rfloor - 1` as for
    :func:`~deepinv_astro.metric.snr`, :math:`\tau` the throughput, :math:`f_\star` the flux of the
    star and :math:`e` the share of the flux of the PSF in the aperture. Source: Mawet et al., ApJ
    792, 97, 2014.

    :param torch.Tensor image: result of the method without injections, ``(H, W)``, in the unit of
        the frames per pixel; hide known sources by NaN.
    :param float star_flux: total flux of the star in the unit of the data.
    :param torch.Tensor psf: stamp ``(k, k)`` of unit sum.
    :param float fwhm: diameter of the apertures, pixels.
    :param Sequence radii: separations, pixels.
    :param torch.Tensor kept: throughput at these separations, ``(R,)``, e.g.
        ``throughput(...).mean()``.
    :param tuple center: row and column of the star in the image; default ``(H // 2, W // 2)``.
    :param float fpf: false-positive fraction; the default is that of five standard deviations of a
        normal variable.
    :param int starts: number of rotations of the circle of apertures.
    :return: (:class:`ContrastCurve`)
    :raises ValueError: if shapes or ``fpf`` do not fit.

    |sep|

    :Examples:

        >>> import torch
        >>> image = torch.randn(61, 71, generator=torch.Generator().manual_seed(0))
        >>> psf = torch.zeros(5, 5)
        >>> psf[2, 2] = 1.0
        >>> curve = contrast_curve(image, 1e4, psf, 4.0, [8.0, 24.0], kept=torch.tensor([0.5, 0.8]))
        >>> [f"{c:.1e}" for c in curve.contrast]
        ['8.9e-03', '2.5e-03']
    """
    if image.ndim != 2 or kept.shape != (len(radii),):
        raise ValueError(
            f"image must be (H, W) and kept one value for each of {len(radii)} radii, "
            f"got shapes {tuple(image.shape)} and {tuple(kept.shape)}"
        )
    star = (image.shape[0] // 2, image.shape[1] // 2) if center is None else center
    separation = torch.tensor([float(r) for r in radii], dtype=torch.float64, device=image.device)
    references = reference_count(separation, fwhm)
    threshold = snr_threshold(references, fpf)
    noise = _ring_noise(image.double(), separation, fwhm, star, starts)
    middle = (psf.shape[-2] // 2, psf.shape[-1] // 2)
    margin = math.ceil(fwhm)
    padded = torch.nn.functional.pad(psf.double(), [margin] * 4)
    share = aperture_sums(padded, fwhm)[middle[0] + margin, middle[1] + margin]
    limit = threshold * noise * (1 + 1 / references).sqrt()
    contrast = limit / (kept.double() * star_flux * share)
    values = (separation, contrast, noise, threshold, kept)
    return ContrastCurve(*(value.to(image) for value in values))


def _ring_noise(
    image: Tensor, radii: Tensor, fwhm: float, star: tuple[float, float], starts: int
) -> Tensor:
    """Standard deviation of the sums in the whole apertures of each circle, ``(R,)``."""
    sums = aperture_sums(image, fwhm)[None]
    coefficients = spline_coefficients(sums.nan_to_num(0.0))[:, None]
    size = (image.shape[0], image.shape[1])
    noise = []
    for radius, others in zip(radii, reference_count(radii, fwhm), strict=True):
        number = int(others) + 1
        step = torch.arange(number, dtype=image.dtype, device=image.device)
        first = torch.arange(starts, dtype=image.dtype, device=image.device) / starts
        angle = 2 * math.pi * (step + first[:, None]) / number
        positions = torch.stack([star[0] + radius * angle.cos(), star[1] - radius * angle.sin()])
        lookup = SplineLookup(positions[None], size, image.dtype)
        seen = lookup.seen(sums.isfinite()[:, None])[0, 0]
        values = lookup(coefficients)[0, 0].masked_fill(~seen, torch.nan)
        squares = (values - values.nanmean(1, keepdim=True)).square().nansum(1)
        noise.append((squares / (seen.sum(1) - 1)).nanmean().sqrt())
    return torch.stack(noise)
