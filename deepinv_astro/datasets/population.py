"""What surrounds the stars of a survey: disks and planets of random shape and brightness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.datasets.disks import henyey_greenstein, ring, spiral

__all__ = ["DiskDraw", "PlanetDraw", "SkyDraw", "SkyPopulation"]

Range = tuple[float, float]


class DiskDraw(NamedTuple):
    r"""A disk of a population; lengths in units of the radius of the field.

    :param float inclination: degrees, 0 seen from above.
    :param float position_angle: of the major axis, degrees East of North.
    :param float radius: where the dust is densest, over half the shorter side of the image.
    :param float width: full width at half maximum of the density over the radius.
    :param float asymmetry: :math:`g` of Henyey and Greenstein; 0 for a spiral.
    :param float pitch: of the arms of a spiral, degrees; 0 for a ring.
    :param float signal: largest value of :math:`(Hx)_p / \sigma_p`, see :class:`SkyPopulation`.
    """

    inclination: float
    position_angle: float
    radius: float
    width: float
    asymmetry: float
    pitch: float
    signal: float


class PlanetDraw(NamedTuple):
    """A planet of a population.

    :param float separation: from the star, over half the shorter side of the image.
    :param float position_angle: degrees East of North.
    :param float signal: peak of its image over the local temporal deviation.
    """

    separation: float
    position_angle: float
    signal: float


class SkyDraw(NamedTuple):
    """The surroundings of one star: a disk or None, and planets."""

    disk: DiskDraw | None
    planets: tuple[PlanetDraw, ...]


@dataclass(frozen=True)
class SkyPopulation:
    r"""Laws from which the surroundings of each star are drawn, independently.

    .. math::

        \cos i \sim \mathcal U, \quad \mathrm{PA} \sim \mathcal U(0, 360), \quad
        r_0, w, g \sim \mathcal U, \quad
        \ln a \sim \mathcal U, \qquad a = \max_p \frac{(H x)_p}{\sigma_p}

    Disks are seen at random: :math:`\cos i` is uniform. The brightness :math:`a` is that of the
    disk behind the PSF :math:`H`, at its best pixel, in units of the temporal standard deviation
    :math:`\sigma(r)` of a pixel at that distance from the star: 1 is hidden in any frame, 30 is
    obvious. Of a planet, :math:`a` is the same at its own place. The profile of a ring has the
    slopes :math:`\pm\alpha`, which give the relative width

    .. math::

        w = 2 \sinh \frac{\operatorname{arcosh} 4}{2 \alpha} .

    :param float empty: share of the stars without a disk.
    :param float spirals: share of the disks that are spirals; the others are rings.
    :param tuple cosine: range of :math:`\cos i`, within (0, 1].
    :param tuple radius: range of :math:`r_0` over half the shorter side of the image.
    :param tuple width: range of :math:`w`.
    :param tuple asymmetry: range of :math:`g`.
    :param tuple pitch: range of the pitch of spirals, degrees.
    :param tuple signal: range of :math:`a` of disks.
    :param tuple planets: probabilities of 0, 1, 2, ... planets.
    :param tuple separation: range of the planets' separation over half the shorter side.
    :param tuple planet_signal: range of :math:`a` of planets.
    :param float scale_height: of rings, over their radius; 0 is fastest.
    :raises ValueError: for ranges that run backwards or leave their domain, or shares that are none.

    |sep|

    :Examples:

        >>> import torch
        >>> population = SkyPopulation(empty=0.0, spirals=0.0, radius=(0.5, 0.5))
        >>> sky = population.draw(torch.Generator().manual_seed(1))
        >>> population.image(sky.disk, (33, 41)).shape, sky.disk.radius
        (torch.Size([33, 41]), 0.5)
    """

    empty: float = 0.15
    spirals: float = 0.15
    cosine: Range = (0.1, 1.0)
    radius: Range = (0.25, 0.7)
    width: Range = (0.15, 0.6)
    asymmetry: Range = (0.0, 0.5)
    pitch: Range = (10.0, 30.0)
    signal: Range = (1.0, 30.0)
    planets: tuple[float, ...] = (0.6, 0.3, 0.1)
    separation: Range = (0.25, 0.75)
    planet_signal: Range = (1.0, 10.0)
    scale_height: float = 0.03

    def __post_init__(self) -> None:
        """Refuse laws that are none."""
        limits = {
            "cosine": (0.02, 1.0), "radius": (0.02, 1.0), "width": (0.02, 10.0),
            "asymmetry": (-0.99, 0.99), "pitch": (1.0, 89.0), "signal": (1e-6, 1e9),
            "separation": (0.0, 1.0), "planet_signal": (1e-6, 1e9),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            first, last = getattr(self, name)
            if not low <= first <= last <= high:
                raise ValueError(
                    f"{name} must be an increasing pair between {low:g} and {high:g}, "
                    f"got {(first, last)}"
                )
        for name in ("empty", "spirals"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        if min(self.planets, default=-1) < 0 or abs(sum(self.planets) - 1) > 1e-6:
            raise ValueError(
                f"planets must be the probabilities of 0, 1, ... planets, got {self.planets}"
            )
        if self.scale_height < 0:
            raise ValueError(f"scale_height must not be negative, got {self.scale_height}")

    def draw(self, generator: torch.Generator) -> SkyDraw:
        r"""Surroundings of one star.

        :param torch.Generator generator: source of randomness.
        :return: :class:`SkyDraw`; the same number of random values is used whatever is drawn.
        """
        u = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
        count = torch.rand((), generator=generator, dtype=torch.float64).item()
        places = torch.rand(len(self.planets), 3, generator=generator, dtype=torch.float64)
        round_ring = u[1] >= self.spirals
        disk = DiskDraw(
            inclination=math.degrees(math.acos(_between(u[2], self.cosine))),
            position_angle=360 * u[3],
            radius=_between(u[4], self.radius),
            width=_between(u[5], self.width),
            asymmetry=_between(u[6], self.asymmetry) if round_ring else 0.0,
            pitch=0.0 if round_ring else _between(u[7], self.pitch),
            signal=_log_between(u[8], self.signal),
        )
        cumulative = torch.tensor(self.planets, dtype=torch.float64).cumsum(0)[:-1]
        planets = tuple(
            PlanetDraw(_between(s, self.separation), 360 * p, _log_between(a, self.planet_signal))
            for s, p, a in places[: int((count >= cumulative).sum())].tolist()
        )
        return SkyDraw(None if u[0] < self.empty else disk, planets)

    def image(self, disk: DiskDraw, img_size: tuple[int, int]) -> Tensor:
        r"""Image of a disk, its star at ``(H // 2, W // 2)``.

        :param DiskDraw disk: what was drawn.
        :param tuple img_size: rows and columns.
        :return: image ``(H, W)`` in float64, of unit sum.
        """
        radius = disk.radius * field_radius(img_size)
        slope = math.acosh(4) / (2 * math.asinh(disk.width / 2))
        slopes = (slope, -slope)
        shape = (disk.inclination, disk.position_angle)
        if disk.pitch:
            return spiral(img_size, radius, *shape, pitch=disk.pitch, slopes=slopes)
        phase = partial(henyey_greenstein, g=disk.asymmetry)
        height = self.scale_height * radius
        return ring(
            img_size, radius, *shape, phase=phase, slopes=slopes, scale_height=height, nodes=5
        )


def field_radius(img_size: tuple[int, int]) -> float:
    """Unit of lengths of a population: half the shorter side of the image, pixels.

    >>> field_radius((33, 41))
    16.5
    """
    return min(img_size) / 2


def _between(unit: float, bounds: Range) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * unit


def _log_between(unit: float, bounds: Range) -> float:
    return math.exp(_between(unit, (math.log(bounds[0]), math.log(bounds[1]))))
