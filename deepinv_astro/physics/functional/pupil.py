"""Telescope pupils, Zernike polynomials and the step from the pupil to the focal plane."""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "KECK",
    "VLT",
    "PupilShape",
    "SegmentedShape",
    "focal_field",
    "pupil_grid",
    "telescope_pupil",
    "zernike",
]


class PupilShape(NamedTuple):
    r"""What blocks the light of a telescope; lengths in units of its diameter.

    :param float obscuration: diameter of the central obscuration, 0 to 1 (excluded).
    :param float spider_width: width of the spider's arms.
    :param tuple spider_angles: direction of each arm, an arm being a half line from the centre,
        in degrees from the column axis towards the row axis.
    """

    obscuration: float = 0.0
    spider_width: float = 0.0
    spider_angles: tuple[float, ...] = ()

    def mirror(self, row: Tensor, column: Tensor) -> Tensor:
        """Where the primary mirror is, a disc of diameter one."""
        return torch.hypot(row, column) <= 0.5


class SegmentedShape(NamedTuple):
    r"""A primary mirror made of rings of hexagonal segments around a missing one.

    Lengths are in units of the diameter of the circumscribed circle. Segments have their neighbours
    in the directions 0, 60, ... degrees from the column axis.

    :param int rings: of segments around the missing one: ``3 rings (rings + 1)`` segments.
    :param float gap: between the edges of two segments.
    :param float obscuration: diameter of the central obscuration, 0 to 1 (excluded).
    :param float spider_width: width of the spider's arms.
    :param tuple spider_angles: as for :class:`PupilShape`.
    """

    rings: int
    gap: float = 0.0
    obscuration: float = 0.0
    spider_width: float = 0.0
    spider_angles: tuple[float, ...] = ()

    def width(self) -> float:
        r"""Width :math:`w` of a segment between opposite edges.

        The corners farthest from the centre lie on the circle of diameter one:
        :math:`((r + \tfrac12) w + r g)^2 + w^2 / 12 = \tfrac14`.
        """
        a, b = self.rings + 0.5, self.rings * self.gap
        square = a**2 + 1 / 12
        return (math.sqrt(a**2 * b**2 - square * (b**2 - 0.25)) - a * b) / square

    def mirror(self, row: Tensor, column: Tensor) -> Tensor:
        """Where the primary mirror is."""
        half, pitch = self.width() / 2, self.width() + self.gap
        covered = torch.zeros_like(row, dtype=torch.bool)
        for i, j in product(range(-self.rings, self.rings + 1), repeat=2):
            if (i, j) == (0, 0) or abs(i + j) > self.rings:
                continue
            down, across = pitch * j * math.sqrt(0.75), pitch * (i + j / 2)
            inside = (column - across).abs() <= half
            for normal in (math.pi / 3, 2 * math.pi / 3):
                edge = (column - across) * math.cos(normal) + (row - down) * math.sin(normal)
                inside &= edge.abs() <= half
            covered |= inside
        return covered


#: A pupil like that of the 8.2 m Very Large Telescope: 1.16 m of central obscuration and four arms
#: of 4 cm, 101 degrees apart two by two. The arms here start at the centre, the real ones off it.
VLT = PupilShape(0.14, 0.005, (39.5, 140.5, 219.5, 320.5))

#: A pupil like that of the 10.95 m Keck telescopes: 36 segments of 0.9 m a side, 3 mm apart, 2.6 m
#: of central obscuration and six arms of 26 mm.
KECK = SegmentedShape(3, 0.003 / 10.95, 2.6 / 10.95, 0.026 / 10.95, (0, 60, 120, 180, 240, 300))


def pupil_grid(
    size: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    r"""Coordinates of the centres of ``size`` x ``size`` pupil pixels, in pupil diameters.

    The diameter spans the whole grid, so both coordinates run from
    :math:`-\tfrac12+\tfrac1{2n}` to :math:`\tfrac12-\tfrac1{2n}`.

    :param int size: number :math:`n` of pixels on a side.
    :return: ``(row, column)`` coordinates, each of shape ``(size, size)``.

    >>> row, column = pupil_grid(2)
    >>> column.tolist()
    [[-0.25, 0.25], [-0.25, 0.25]]
    """
    if size < 1:
        raise ValueError(f"size of a pupil grid must be at least 1, got {size}")
    axis = (torch.arange(size, dtype=dtype, device=device) + 0.5) / size - 0.5
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    return row, column


def telescope_pupil(
    size: int,
    shape: PupilShape | SegmentedShape = VLT,
    *,
    oversampling: int = 8,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Amplitude transmission of a telescope's pupil with its obscuration and spider.

    .. math::

        P(u) = 1[u \in \text{mirror}]\; 1[2|u| \ge \epsilon]\; \prod_k 1[u \notin \text{arm}_k]

    with a disc :math:`2|u| \le 1` or hexagonal segments as the primary mirror,
    averaged over each pixel by ``oversampling``\ :sup:`2` samples, so that arms thinner than a
    pixel and round edges block the right amount of light.

    :param int size: number of pixels across the diameter.
    :param PupilShape, SegmentedShape shape: primary mirror, obscuration and spider.
    :param int oversampling: samples per pixel and axis.
    :return: transmission from 0 to 1, of shape ``(size, size)``.
    :raises ValueError: if the obscuration is not in [0, 1).

    >>> pupil = telescope_pupil(64, PupilShape(obscuration=0.5))
    >>> round(float(pupil.mean()), 3)  # pi / 4 (1 - .5^2)
    0.589
    """
    if not 0 <= shape.obscuration < 1:
        raise ValueError(
            f"obscuration is a fraction of the diameter in [0, 1), got {shape.obscuration}"
        )
    row, column = pupil_grid(size * oversampling, dtype=dtype, device=device)
    clear = shape.mirror(row, column) & (torch.hypot(row, column) >= shape.obscuration / 2)
    for angle in shape.spider_angles:
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        along, across = column * cos + row * sin, row * cos - column * sin
        clear &= ~((along > 0) & (across.abs() < shape.spider_width / 2))
    blocks = clear.to(dtype).reshape(size, oversampling, size, oversampling)
    return blocks.mean(dim=(1, 3))


def _noll_orders(index: int) -> tuple[int, int]:
    """Radial order n and signed azimuthal order m of Noll's index j (m < 0 is a sine)."""
    n = 0
    remainder = index - 1
    while remainder > n:
        n += 1
        remainder -= n
    m = (n % 2) + 2 * ((remainder + (n + 1) % 2) // 2)
    return n, m if index % 2 == 0 else -m


def zernike(index: int, row: Tensor, column: Tensor) -> Tensor:
    r"""Zernike polynomial :math:`Z_j` of Noll (1976), unit rms over the full disc.

    .. math::

        Z_j = \sqrt{n+1}\, R_n^{|m|}(\rho)\, \times
        \{1,\; \sqrt2\cos m\varphi,\; \sqrt2 \sin m\varphi\},
        \qquad \rho = 2|u|

    with the angle :math:`\varphi` from the column axis towards the row axis: :math:`Z_2` is a slope
    along columns, :math:`Z_3` along rows, :math:`Z_4` defocus.

    :param int index: Noll's index :math:`j \ge 1`.
    :param torch.Tensor row: row coordinate in diameters, as from :func:`pupil_grid`.
    :param torch.Tensor column: column coordinate.
    :return: the polynomial, zero outside the disc, of the shape of ``row``.
    :raises ValueError: if ``index`` is less than 1.

    >>> row, column = pupil_grid(101)
    >>> tilt = zernike(3, row, column)
    >>> round(float(tilt[75, 50]), 2), round(float(tilt[50, 75]), 2)
    (0.99, 0.0)
    """
    if index < 1:
        raise ValueError(f"Noll's index of a Zernike polynomial starts at 1, got {index}")
    n, m = _noll_orders(index)
    rho, phi = 2 * torch.hypot(row, column), torch.atan2(row, column)
    radial = torch.zeros_like(rho)
    for k in range((n - abs(m)) // 2 + 1):
        c = (-1) ** k * math.comb(n - k, k) * math.comb(n - 2 * k, (n - abs(m)) // 2 - k)
        radial = radial + c * rho ** (n - 2 * k)
    if m != 0:
        radial = radial * math.sqrt(2) * (torch.cos(m * phi) if m > 0 else torch.sin(-m * phi))
    return torch.where(rho <= 1, math.sqrt(n + 1) * radial, torch.zeros_like(rho))


def focal_field(
    field: Tensor, sampling: float, shape: tuple[int, int], center: tuple[float, float]
) -> Tensor:
    r"""Field in the focal plane of a field in the pupil, on any pixel grid.

    .. math::

        E(r, c) = \frac{1}{n s} \sum_u A(u)\, e^{-2\pi i\, (u_r (r - r_0) + u_c (c - c_0)) / s}

    the matrix Fourier transform of Soummer et al. (2007): it costs two matrix products, gives any
    sampling and any centre exactly and computes only the pixels that are wanted. The factor keeps
    energy: summed over an infinite focal plane :math:`|E|^2` is :math:`\sum_u |A|^2`.

    :param torch.Tensor field: complex field in the pupil, shape ``(..., n, n)``, the grid spanning
        one diameter.
    :param float sampling: :math:`s = \lambda / D` in pixels.
    :param tuple shape: rows and columns of the result.
    :param tuple center: row and column of the optical axis.
    :return: complex field of shape ``(..., *shape)``.
    :raises ValueError: if ``field`` is not complex or not square.

    >>> flat = torch.ones(8, 8, dtype=torch.complex128)
    >>> field = focal_field(flat, 4.0, (5, 7), (2, 3))
    >>> field.shape, round(float(field[2, 3].real), 3)
    (torch.Size([5, 7]), 2.0)
    """
    if not field.is_complex() or field.shape[-1] != field.shape[-2]:
        raise ValueError(
            "the pupil field must be complex and square in its last two axes, "
            f"got {field.dtype} of shape {tuple(field.shape)}"
        )
    n = field.shape[-1]
    real = torch.empty(0, dtype=field.dtype).real.dtype
    u = (torch.arange(n, dtype=real, device=field.device) + 0.5) / n - 0.5
    kernels = []
    for length, origin in zip(shape, center, strict=True):
        position = torch.arange(length, dtype=real, device=field.device) - origin
        kernels.append(torch.exp(-2j * math.pi / sampling * position[:, None] * u))
    return kernels[0].to(field.dtype) @ field @ kernels[1].to(field.dtype).T / (n * sampling)
