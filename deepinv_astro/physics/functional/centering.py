r"""Where the star is, from the symmetry of its halo."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample

#: Pixels nearer to the trial centre than this say little about symmetry, and hold coronagraph's leaks.
INNER_RADIUS = 3.0
#: Offsets, in pixels, of the searches about the peak of the light and about what the first one finds.
FAR, NEAR = range(-16, 17, 4), range(-4, 5)
#: An unocculted star outshines all that is beyond this many pixels by the factor given second.
CORE = (10.0, 10.0)
#: Sectors of position angle that are left out, one at a time, to measure the scatter.
SECTORS = 6


class StarCenter(NamedTuple):
    """Position of a star in float pixels, with its standard deviations.

    :param float row: row, 0 is the middle of the first.
    :param float column: column.
    :param float row_std: standard deviation of the row.
    :param float column_std: standard deviation of the column.
    """

    row: float
    column: float
    row_std: float
    column_std: float


def estimate_center(image: Tensor) -> StarCenter:
    r"""Point about which the halo of a star is symmetric.

    .. math::

        \hat c = \arg\min_c \sum_{u,\; 3 \le |u| \le R} \left| f(c + u) - f(c - u) \right| , \qquad
        f = (G * I)_+^{\gamma}

    with :math:`I` the temporal mean of the frames and :math:`G` a Gaussian of one pixel.
    Diffraction and the mean halo of adaptive optics are symmetric about the star whether or not a
    coronagraph or saturation spoils its core.
    :math:`\gamma = 1/2` tempers the few brightest speckles; where an unocculted core outshines the
    halo,
    :math:`\gamma = 1` and squares in place of absolute values let the core decide. The errors come
    from leaving out
    one sector of position angles at a time (jackknife).

    :param torch.Tensor image: mean of the frames ``(H, W)``, missing data NaN.
    :return: :class:`StarCenter`. The errors do not know of asymmetries that fill the whole field.
    :raises ValueError: if the image is not a map with light in it, or too small.

    |sep|

    :Examples:

        A ring of light around a dark core:

        >>> import torch
        >>> row, column = torch.arange(31.0)[:, None], torch.arange(40.0)
        >>> radius = torch.hypot(row - 15.7, column - 21.2)
        >>> found = estimate_center(torch.exp(-((radius - 6) ** 2) / 20))
        >>> f"{found.row:.1f} {found.column:.1f}"
        '15.7 21.2'
    """
    if image.ndim != 2 or min(image.shape) < 16:
        raise ValueError(
            f"image must be (H, W) of at least 16 x 16 pixels, got shape {tuple(image.shape)}"
        )
    smooth = _smooth(image.detach().double().cpu())
    if not bool((smooth > 0).any()):
        raise ValueError("the image holds no positive pixel, so no star can be found in it")
    exponent, power = (1.0, 2.0) if _has_core(smooth) else (0.5, 1.0)
    stretched = smooth.clamp_min(0) ** exponent
    start = _brightest_region(smooth)
    start = _coarse(stretched, start, *_half_plane(min(smooth.shape) / 3), power, FAR)
    rows, columns = _half_plane(_largest_radius(smooth, start))
    start = _coarse(stretched, start, rows, columns, power, NEAR)
    best = _refine(stretched, start, rows, columns, power)
    # two opposite sectors are one in the half plane
    sector = (torch.atan2(rows, columns) * (SECTORS / math.pi)).long().clamp(0, SECTORS - 1)
    kept = (sector != s for s in range(SECTORS))
    trials = torch.tensor([_refine(stretched, best, rows[k], columns[k], power) for k in kept])
    scatter = trials.double().var(0, correction=0).mul(SECTORS - 1).sqrt()
    return StarCenter(*best, float(scatter[0]), float(scatter[1]))


def _gaussian_sum(images: Tensor, sigma: float) -> Tensor:
    """Images ``(n, H, W)`` convolved with a Gaussian of unit sum, zero beyond the edge."""
    reach = math.ceil(3 * sigma)
    profile = torch.exp(
        -(torch.arange(-reach, reach + 1, dtype=images.dtype) ** 2) / (2 * sigma**2)
    )
    profile = profile / profile.sum()
    rows = conv2d(images[:, None], profile[None, None, :, None], padding="same")
    return conv2d(rows, profile[None, None, None], padding="same")[:, 0]


def _smooth(image: Tensor, sigma: float = 1.0) -> Tensor:
    """Image smoothed by a Gaussian, its missing data left out; NaN where all are missing."""
    valid = torch.isfinite(image)
    parts = torch.stack([torch.where(valid, image, 0.0), valid.to(image.dtype)])
    total, weight = _gaussian_sum(parts, sigma)
    return torch.where(weight > 0.1, total / weight, torch.nan)


def _has_core(smooth: Tensor) -> bool:
    """Whether an unocculted, unsaturated star outshines its halo."""
    radius, factor = CORE
    known = smooth.nan_to_num(0.0)
    row, column = divmod(int(known.argmax()), known.shape[1])
    down, across = (torch.arange(s, dtype=known.dtype) for s in known.shape)
    far = torch.hypot(down[:, None] - row, across - column) > radius
    return bool(known.max() > factor * known[far].max())


def _brightest_region(smooth: Tensor) -> tuple[float, float]:
    """Centre of light: the peak of the square root of the image under a wide Gaussian."""
    light = smooth.clamp_min(0).sqrt()
    light = (light - light.nanmedian()).clamp_min(0).nan_to_num(0.0)
    # not normalised at the edge, where the mean of few pixels near the star would win
    wide = _gaussian_sum(light[None], min(smooth.shape) / 6)[0]
    row, column = divmod(int(wide.argmax()), wide.shape[1])
    return float(row), float(column)


def _largest_radius(smooth: Tensor, center: tuple[float, float]) -> float:
    height, width = smooth.shape
    row, column = center
    radius = min(row, height - 1 - row, column, width - 1 - column) - 2
    if radius < 2 * INNER_RADIUS:
        raise ValueError(
            f"the light peaks at row {row:.0f}, column {column:.0f}, at the edge of the image of {height} x {width} "
            "pixels: the star's centre cannot be told from it"
        )
    return radius


def _half_plane(radius: float) -> tuple[Tensor, Tensor]:
    """Offsets from the centre, one of each pair of opposite ones."""
    reach = int(radius)
    rows, columns = torch.meshgrid(
        torch.arange(0.0, reach + 1, dtype=torch.float64),
        torch.arange(-reach, reach + 1.0, dtype=torch.float64),
        indexing="ij",
    )
    distance = torch.hypot(rows, columns)
    kept = (distance >= INNER_RADIUS) & (distance <= radius) & ((rows > 0) | (columns > 0))
    return rows[kept], columns[kept]


def _asymmetry(
    image: Tensor, center: tuple[float, float], rows: Tensor, columns: Tensor, power: float
) -> float:
    """Mean difference between opposite pixels about a trial centre."""
    sign = torch.tensor([1.0, -1.0], dtype=image.dtype)[:, None]
    height, width = image.shape
    down = 2 * (center[0] + sign * rows) / (height - 1) - 1
    across = 2 * (center[1] + sign * columns) / (width - 1) - 1
    points = torch.stack([across, down], -1)[None]
    a, b = grid_sample(image[None, None], points, align_corners=True, padding_mode="border")[0, 0]
    return float((a - b).abs().pow(power).nanmean())


def _coarse(
    image: Tensor,
    start: tuple[float, float],
    rows: Tensor,
    columns: Tensor,
    power: float,
    steps: Iterable[int],
) -> tuple[float, float]:
    trials = [(start[0] + down, start[1] + across) for down, across in product(steps, repeat=2)]
    inside = [t for t in trials if 0 <= t[0] < image.shape[0] and 0 <= t[1] < image.shape[1]]
    some = slice(None, None, 5)  # enough for a step of a pixel
    return min(
        inside, key=lambda center: _asymmetry(image, center, rows[some], columns[some], power)
    )


def _refine(
    image: Tensor, start: tuple[float, float], rows: Tensor, columns: Tensor, power: float
) -> tuple[float, float]:
    row, column = start
    simplex = [(row, column), (row + 0.7, column + 0.2), (row - 0.2, column + 0.7)]
    found = minimize(
        lambda center: _asymmetry(image, (center[0], center[1]), rows, columns, power),
        start,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.02, "fatol": math.inf},
    )
    return float(found.x[0]), float(found.x[1])
