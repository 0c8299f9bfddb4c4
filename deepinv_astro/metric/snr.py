r"""Signal-to-noise ratio of point sources with few independent samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import norm, t
from torch import Tensor

from deepinv_astro.physics.functional.aperture import aperture_weights
from deepinv_astro.physics.functional.resampling import SplineLookup, spline_coefficients

Position = tuple[float, float]


class SmallSampleSNR(NamedTuple):
    """Signal-to-noise ratio and the number of samples behind it.

    :param torch.Tensor snr: the test statistic; NaN where it is not defined.
    :param torch.Tensor references: number of reference apertures, of the shape of ``snr``.
    """

    snr: Tensor
    references: Tensor


def aperture_sums(image: Tensor, fwhm: float) -> Tensor:
    r"""Sums over disks of diameter FWHM centred on each pixel, partial pixels by their overlap.

    :param torch.Tensor image: ``(..., H, W)``, missing data NaN.
    :param float fwhm: diameter in pixels.
    :return: (:class:`torch.Tensor`) ``(..., H, W)``, NaN where the disk meets missing data or
        leaves the image.
    """
    half = math.ceil(fwhm / 2)
    disk = aperture_weights((2 * half + 1, 2 * half + 1), (half, half), fwhm / 2, dtype=image.dtype)
    kernel = disk.to(image.device)[None, None]
    stack = image.reshape(-1, 1, *image.shape[-2:])
    padded = torch.nn.functional.pad(stack, [half] * 4, value=torch.nan)
    missing = padded.isnan()
    sums = torch.nn.functional.conv2d(padded.masked_fill(missing, 0.0), kernel)
    touched = torch.nn.functional.conv2d(missing.to(image.dtype), kernel) > 1e-3
    return sums.masked_fill(touched, torch.nan).view(image.shape)


def snr(
    image: Tensor,
    position: Position,
    fwhm: float,
    center: Position | None = None,
    skip_neighbours: int = 0,
) -> SmallSampleSNR:
    r"""Signal-to-noise ratio at one position, by Student's statistic (Mawet et al. 2014).

    .. math::

        \mathrm{S/N} = \frac{\bar x_1 - \bar x_2}{s_2 \sqrt{1 + 1/n_2}}, \qquad
        n_2 = \lfloor 2 \pi r / \mathrm{FWHM} \rfloor - 1 ,

    with :math:`\bar x_1` the sum in an aperture of diameter FWHM at the position, at the distance
    :math:`r` from the star, and :math:`\bar x_2`, :math:`s_2` the mean and the standard deviation
    (:math:`n_2 - 1` in its denominator) of the sums in the other :math:`n_2` apertures that fit,
    evenly spaced, on the circle. Apertures that meet missing data or leave the image are not
    counted.

    :param torch.Tensor image: ``(..., H, W)``, missing data NaN.
    :param tuple position: row and column of the source.
    :param float fwhm: diameter of the apertures, pixels.
    :param tuple center: row and column of the star; default ``(H // 2, W // 2)``.
    :param int skip_neighbours: reference apertures to leave out on each side of the source, where
        ADI puts negative lobes: 0 as published, 1 where the lobes would count as noise.
    :return: (:class:`SmallSampleSNR`) tensors of shape ``(...)``; NaN with fewer than two
        references.
    :raises ValueError: if the FWHM is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> image = torch.randn(
        ...     41, 51, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ... )
        >>> image[29:32, 30:33] += 5.0
        >>> result = snr(image, (30, 31), fwhm=4.0)
        >>> print(f"{result.snr:.1f} with {result.references} references")
        13.3 with 17 references
    """
    star = _center(image, center)
    offset = (position[0] - star[0], position[1] - star[1])
    count = int(reference_count(torch.tensor(math.hypot(*offset), dtype=torch.float64), fwhm))
    sums = [_aperture_sum(image, position, fwhm)]
    for turn in _turns(count, skip_neighbours):
        angle = 2 * math.pi * turn / (count + 1)
        row = star[0] + math.cos(angle) * offset[0] + math.sin(angle) * offset[1]
        column = star[1] - math.sin(angle) * offset[0] + math.cos(angle) * offset[1]
        sums.append(_aperture_sum(image, (row, column), fwhm))
    stacked = torch.stack(sums, -1)
    return two_sample(stacked[..., 0], stacked[..., 1:])


def _turns(count: int, skip_neighbours: int) -> range:
    """Numbers of the reference apertures that count, going around the circle from the source."""
    return range(1 + skip_neighbours, count + 1 - skip_neighbours)


def _aperture_sum(image: Tensor, position: Position, fwhm: float) -> Tensor:
    """Sum in an aperture, NaN if it meets missing data or leaves the image."""
    size = (image.shape[-2], image.shape[-1])
    weights = aperture_weights(size, position, fwhm / 2, dtype=torch.float64, device=image.device)
    if float(weights.sum()) < math.pi * fwhm**2 / 4 * (1 - 1e-9) - 1e-3:
        return image.new_full(image.shape[:-2], torch.nan)
    inside = weights > 0
    return (image[..., inside] * weights[inside].to(image.dtype)).sum(-1)


def two_sample(signal: Tensor, references: Tensor) -> SmallSampleSNR:
    r"""Student's statistic of one sample against others.

    :param torch.Tensor signal: ``(...)``.
    :param torch.Tensor references: ``(..., n)``, NaN for those that do not count.
    :return: (:class:`SmallSampleSNR`) tensors of shape ``(...)``.

    |sep|

    :Examples:

        >>> import torch
        >>> two_sample(torch.tensor(7.0), torch.tensor([1.0, 2.0, 3.0]))
        SmallSampleSNR(snr=tensor(4.3301), references=tensor(3))
    """
    known = references.isfinite()
    number = known.sum(-1)
    mean = references.nanmean(-1)
    squares = torch.where(known, references - mean.unsqueeze(-1), 0.0).square().sum(-1)
    return _statistic(signal - mean, squares, number)


def _statistic(difference: Tensor, squares: Tensor, number: Tensor) -> SmallSampleSNR:
    """S/N from the difference to the mean, the sum of squared deviations and their number."""
    n = number.to(difference)
    deviation = (squares / (n - 1)).sqrt()
    ratio = difference / (deviation * (1 + 1 / n).sqrt())
    return SmallSampleSNR(ratio.masked_fill(n < 2, torch.nan), number)


def reference_count(radius: Tensor, fwhm: float) -> Tensor:
    r"""Number of reference apertures on a circle.

    .. math::

        n_2 = \lfloor 2 \pi r / \mathrm{FWHM} \rfloor - 1

    :param torch.Tensor radius: distances from the star, pixels.
    :param float fwhm: diameter of an aperture, pixels.
    :return: (:class:`torch.Tensor`) integers, not negative.
    :raises ValueError: if the FWHM is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> reference_count(torch.tensor([0.0, 4.0, 12.0]), fwhm=4.0)
        tensor([ 0,  5, 17])
    """
    if not (fwhm > 0 and math.isfinite(fwhm)):
        raise ValueError(f"fwhm must be a positive number of pixels, got {fwhm}")
    return (torch.floor(2 * math.pi * radius / fwhm).long() - 1).clamp_min(0)


def snr_map(
    image: Tensor, fwhm: float, center: Position | None = None, skip_neighbours: int = 0
) -> SmallSampleSNR:
    r"""Signal-to-noise ratio of a point source at each pixel, as :func:`snr`.

    Sums over apertures are computed once for each pixel, by a convolution, and read between the
    pixels by cubic B-splines: the S/N of images as smooth as the PSF is that of :func:`snr` within
    0.03, that of white noise within 0.15.

    :param torch.Tensor image: ``(..., H, W)``, missing data NaN.
    :param float fwhm: diameter of the apertures, pixels.
    :param tuple center: row and column of the star; default ``(H // 2, W // 2)``.
    :param int skip_neighbours: reference apertures to leave out on each side of the source, where
        ADI puts negative lobes: 0 as published, 1 where the lobes would count as noise.
    :return: (:class:`SmallSampleSNR`) maps ``(..., H, W)``; NaN with fewer than two references.
    :raises ValueError: if the FWHM is not positive.

    |sep|

    :Examples:

        >>> import torch
        >>> image = torch.randn(
        ...     41, 51, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ... )
        >>> image[29:32, 30:33] += 5.0
        >>> ratio = snr_map(image, fwhm=4.0).snr
        >>> divmod(int(ratio.nan_to_num().argmax()), 51)
        (30, 30)
    """
    star = _center(image, center)
    size = (image.shape[-2], image.shape[-1])
    rows = torch.arange(size[0], dtype=torch.float64, device=image.device) - star[0]
    columns = torch.arange(size[1], dtype=torch.float64, device=image.device) - star[1]
    d_row, d_column = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    count = reference_count(torch.hypot(d_row, d_column), fwhm)
    sums = aperture_sums(image.double().reshape(-1, *size), fwhm)
    ring = _Ring(sums, d_row, d_column, count, star)
    signal = sums.flatten(1)
    total, squares, number = (torch.zeros_like(signal) for _ in range(3))
    for turn in _turns(int(count.max()), skip_neighbours):
        pixels, value = ring.read(turn, skip_neighbours)
        # relative to the signal, so that the squares lose no digits
        value = value - signal[:, pixels]
        known = value.isfinite()
        value = torch.where(known, value, 0.0)
        total[:, pixels] += value
        squares[:, pixels] += value.square()
        number[:, pixels] += known
    mean = total / number
    result = _statistic(-mean, (squares - number * mean.square()).clamp_min(0), number)
    shape = image.shape
    return SmallSampleSNR(
        result.snr.view(shape).to(image.dtype), result.references.view(shape).long()
    )


class _Ring:
    """Sums over the reference apertures of all pixels, one turn at a time."""

    def __init__(
        self, sums: Tensor, d_row: Tensor, d_column: Tensor, count: Tensor, star: Position
    ):
        self.d_row, self.d_column, self.count, self.star = d_row, d_column, count, star
        self.valid = sums.isfinite()[:, None]
        self.coefficients = spline_coefficients(sums.nan_to_num(0.0))[:, None]
        self.size = (sums.shape[-2], sums.shape[-1])

    def read(self, turn: int, skip_neighbours: int) -> tuple[Tensor, Tensor]:
        """Pixels that have an aperture of this number, and the sums over these apertures."""
        pixels = (self.count >= turn + skip_neighbours).nonzero()[:, 0]
        angle = 2 * math.pi * turn / (self.count[pixels] + 1)
        d_row, d_column = self.d_row[pixels], self.d_column[pixels]
        row = self.star[0] + angle.cos() * d_row + angle.sin() * d_column
        column = self.star[1] - angle.sin() * d_row + angle.cos() * d_column
        positions = torch.stack([row, column])[None, :, None]
        lookup = SplineLookup(positions, self.size, self.coefficients.dtype)
        values = lookup(self.coefficients).masked_fill(~lookup.seen(self.valid), torch.nan)
        return pixels, values[:, 0, 0]


def _center(image: Tensor, center: Position | None) -> Position:
    return (image.shape[-2] // 2, image.shape[-1] // 2) if center is None else center


def false_alarm_probability(result: SmallSampleSNR) -> Tensor:
    r"""Probability that noise alone gives this S/N or more, from Student's distribution.

    .. math::

        P = \int_{\mathrm{S/N}}^\infty p_t(u \mid n_2 - 1)\, du

    :param SmallSampleSNR result: S/N and number of references.
    :return: (:class:`torch.Tensor`) probabilities of the shape of ``result.snr``; NaN where it is
        NaN.

    |sep|

    :Examples:

        An S/N of 5 says little next to the star:

        >>> import torch
        >>> result = SmallSampleSNR(torch.tensor([5.0, 5.0]), torch.tensor([5, 40]))
        >>> [f"{p:.1e}" for p in false_alarm_probability(result)]
        ['3.7e-03', '6.3e-06']
    """
    ratio = result.snr
    tail = t.sf(ratio.detach().double().cpu(), (result.references - 1).clamp_min(1).cpu())
    return torch.as_tensor(tail).to(ratio)


def gaussian_sigma(result: SmallSampleSNR) -> Tensor:
    r"""Number of standard deviations of a normal variable with the same false-alarm probability.

    :param SmallSampleSNR result: S/N and number of references.
    :return: (:class:`torch.Tensor`) of the shape of ``result.snr``; NaN where it is NaN.

    |sep|

    :Examples:

        >>> import torch
        >>> result = SmallSampleSNR(torch.tensor([5.0, 5.0]), torch.tensor([5, 40]))
        >>> gaussian_sigma(result)
        tensor([2.6742, 4.3683])
    """
    ratio = result.snr.detach().double().cpu()
    freedom = (result.references - 1).clamp_min(1).cpu()
    # by the lower tail of the absolute value, which keeps its digits far out
    sigma = torch.as_tensor(norm.isf(t.sf(ratio.abs(), freedom)))
    return torch.copysign(sigma, ratio).to(result.snr)


def snr_threshold(references: Tensor, fpf: float) -> Tensor:
    r"""S/N :math:`\tau` whose false-alarm probability :math:`P(\tau)` is given.

    :param torch.Tensor references: number of references, two or more.
    :param float fpf: false-positive fraction, between 0 and 1.
    :return: (:class:`torch.Tensor`) thresholds, double precision.
    :raises ValueError: if ``fpf`` is not between 0 and 1.

    |sep|

    :Examples:

        >>> import torch
        >>> snr_threshold(torch.tensor([5, 40]), fpf=2.87e-7)
        tensor([56.8311,  5.9678], dtype=torch.float64)
    """
    if not 0 < fpf < 1:
        raise ValueError(f"fpf must be between 0 and 1, got {fpf}; five sigma are 2.87e-7")
    return torch.as_tensor(t.isf(fpf, (references - 1).clamp_min(1).cpu())).to(references.device)
