"""Stamps of one star: where it is, how wide, moved to the centre and cropped."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares

Image = NDArray[np.float64]
_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


class Core(NamedTuple):
    """
    Gaussian fit of the core of a star.

    :param float row: row of the centre in pixels.
    :param float column: column of the centre in pixels.
    :param float fwhm: geometric mean of the widths along rows and columns, in pixels.
    :param float peak: height above ``level``.
    :param float level: constant under the core.
    """

    row: float
    column: float
    fwhm: float
    peak: float
    level: float


def fit_core(stamp: NDArray[Any]) -> Core:
    r"""
    Position and width of a star from the least-squares fit of an elliptical Gaussian.

    .. math::
        g(r, c) = b + a \exp\left( -\tfrac12 \left[ \left(\tfrac{r - r_0}{\sigma_r}\right)^2
        + \left(\tfrac{c - c_0}{\sigma_c}\right)^2 \right] \right)

    Only the pixels within one FWHM of the peak count, so that halo, diffraction rings and
    neighbours do not pull the centre.

    :param numpy.ndarray stamp: image (h, w) of one star.
    :return: the fit.
    :raises ValueError: if the stamp has no peak that a Gaussian describes.

    >>> r, c = np.mgrid[:21, :30]
    >>> core = fit_core(np.exp(-((r - 9.3) ** 2 + (c - 17.6) ** 2) / (2 * 1.7**2)))
    >>> print(f"{core.row:.3f} {core.column:.3f} {core.fwhm:.3f}")
    9.300 17.600 4.003
    """
    stamp = np.asarray(stamp, dtype=np.float64)
    # The smoothing keeps a single hot pixel from posing as the star.
    smooth = gaussian_filter(stamp, 1.0)
    row, column = (int(i) for i in np.unravel_index(int(smooth.argmax()), stamp.shape))
    height = float(stamp[row, column])
    if not height > 0:
        raise ValueError(f"the brightest pixel of the stamp is {height:g}, not positive")
    area = int((stamp >= height / 2)[_window(row, column, 15, stamp.shape)].sum())
    fwhm = max(2.0, 2 * math.sqrt(area / math.pi))
    for _ in range(2):
        core = _fit_window(stamp, row, column, fwhm)
        row, column, fwhm = round(core.row), round(core.column), max(1.5, core.fwhm)
        if not (0 <= row < stamp.shape[0] and 0 <= column < stamp.shape[1]):
            raise ValueError("the fitted star lies outside the stamp")
    return core


def _window(row: int, column: int, half: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    return (
        slice(max(0, row - half), min(shape[0], row + half + 1)),
        slice(max(0, column - half), min(shape[1], column + half + 1)),
    )


def _fit_window(stamp: Image, row: int, column: int, fwhm: float) -> Core:
    window = _window(row, column, max(2, math.ceil(fwhm)), stamp.shape)
    rows, columns = (g[window] for g in np.mgrid[: stamp.shape[0], : stamp.shape[1]])
    near = (rows - row) ** 2 + (columns - column) ** 2 <= max(2.3, fwhm) ** 2
    rows, columns, values = rows[near], columns[near], stamp[window][near]
    scale = float(np.abs(values).max())

    def residual(p: Image) -> Image:
        exponent = ((rows - p[0]) / p[2]) ** 2 + ((columns - p[1]) / p[3]) ** 2
        return np.asarray(p[4] * np.exp(-exponent / 2) + p[5] - values / scale)

    sigma = fwhm / _FWHM_PER_SIGMA
    fit = least_squares(residual, [row, column, sigma, sigma, 1.0, 0.0], xtol=1e-12, ftol=1e-12)
    r, c, sr, sc, peak, level = (float(v) for v in fit.x)
    width = _FWHM_PER_SIGMA * math.sqrt(abs(sr * sc))
    if math.hypot(r - row, c - column) > max(2.0, fwhm) or not (
        peak > 0 and width < max(rows.shape)
    ):
        raise ValueError("the stamp has no peak that a Gaussian describes")
    return Core(r, c, width, peak * scale, level * scale)


def shift_image(image: NDArray[Any], rows: float, columns: float) -> Image:
    r"""
    Shift an image by a fraction of a pixel with its Fourier series, without wrapping round.

    .. math::
        \tilde x(r, c) = x(r - \delta_r, c - \delta_c)

    The image is first extended by its mirror images, which makes it continuous and periodic: what
    leaves one side does not come back on the other.

    :param numpy.ndarray image: (..., h, w).
    :param float rows: shift towards increasing row, in pixels.
    :param float columns: shift towards increasing column, in pixels.
    :return: the shifted image, of the same shape.

    >>> print(shift_image(np.eye(3, 5), 0.0, 1.0).argmax(axis=1)[1:])
    [2 3]
    """
    image = np.asarray(image, dtype=np.float64)
    h, w = image.shape[-2:]
    pad = [(0, 0)] * (image.ndim - 2)
    mirrored = np.pad(image, [*pad, (h, h), (w, w)], mode="symmetric")
    phases = _phase(np.fft.fftfreq(3 * h), rows)[:, None] * _phase(np.fft.rfftfreq(3 * w), columns)
    spectrum = np.fft.rfft2(mirrored) * phases
    return np.fft.irfft2(spectrum, s=mirrored.shape[-2:])[..., h : 2 * h, w : 2 * w]


def _phase(frequency: NDArray[Any], shift: float) -> NDArray[Any]:
    phase = np.exp(-2j * np.pi * frequency * shift)
    # The highest frequency of an even length stands for both signs: only its cosine is real.
    phase[np.abs(frequency) == 0.5] = math.cos(math.pi * shift)
    return phase


def center_stamp(stamp: NDArray[Any], core: Core) -> Image:
    """
    The largest odd square stamp about a star, with the star at its centre to sub-pixel accuracy.

    :param numpy.ndarray stamp: (h, w), any size.
    :param Core core: where the star is.
    :return: (k, k), k odd.

    >>> center_stamp(np.eye(8, 10), Core(5.0, 4.0, 2.0, 1.0, 0.0)).shape
    (5, 5)
    """
    row, column = round(core.row), round(core.column)
    moved = shift_image(stamp, row - core.row, column - core.column)
    half = min(row, stamp.shape[0] - 1 - row, column, stamp.shape[1] - 1 - column)
    return moved[row - half : row + half + 1, column - half : column + half + 1]


def crop_center(stamps: Image, side: int) -> Image:
    """
    The central part of odd stamps.

    >>> crop_center(np.arange(25.0).reshape(1, 5, 5), 3)[0, 0]
    array([6., 7., 8.])
    """
    middle, half = stamps.shape[-1] // 2, side // 2
    window = slice(middle - half, middle + half + 1)
    return stamps[..., window, window]


def trimmed_side(stamps: Image, kept: float) -> int:
    """
    Side of the smallest odd central stamp that holds a given part of the flux in each channel.

    :param numpy.ndarray stamps: (C, k, k), k odd.
    :param float kept: the part, between 0 and 1.
    :return: the side.

    >>> trimmed_side(np.pad(np.ones((1, 3, 3)), [(0, 0), (4, 4), (4, 4)]), kept=0.99)
    3
    """
    total = stamps.sum(axis=(-2, -1))
    for side in range(1, stamps.shape[-1], 2):
        if (crop_center(stamps, side).sum(axis=(-2, -1)) >= kept * total).all():
            return side
    return int(stamps.shape[-1])
