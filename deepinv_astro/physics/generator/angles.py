"""Tracks of derotation angles, as a star makes them when it crosses the sky."""

from __future__ import annotations

import math

import torch
from deepinv.physics.generator import PhysicsGenerator
from torch import Tensor

__all__ = ["PARANAL_LATITUDE", "AngleTrackGenerator", "parallactic_angles"]

#: Latitude of the Very Large Telescope, degrees.
PARANAL_LATITUDE = -24.627

Range = float | tuple[float, float]


def parallactic_angles(hour_angle: Tensor, declination: Tensor, latitude: float) -> Tensor:
    r"""Parallactic angle of a star, the position angle of the zenith seen from it.

    .. math::

        \tan q = \frac{\sin h}{\tan\phi \cos\delta - \sin\delta \cos h}

    In pupil-stabilised mode the zenith stays fixed on the detector, here towards increasing row,
    and turning a frame by :math:`+q` counter-clockwise brings North there: the derotation angle is
    :math:`q` plus the constant offset of the instrument.

    :param torch.Tensor hour_angle: :math:`h` in degrees, West positive, ``(..., T)`` in time order.
    :param torch.Tensor declination: :math:`\delta` in degrees, to broadcast with the hour angle.
    :param float latitude: :math:`\phi` of the telescope, degrees North.
    :return: :math:`q` in degrees, without jumps of 360 degrees along the last axis: it passes 180
        continuously where a star culminates between the zenith and the pole.

    >>> h = torch.tensor([-15.0, 0.0, 15.0], dtype=torch.float64)
    >>> beta_pictoris = torch.tensor(-51.07, dtype=torch.float64)
    >>> parallactic_angles(h, beta_pictoris, -24.627).round(decimals=2).tolist()
    [-29.19, 0.0, 29.19]
    """
    h, delta = torch.deg2rad(hour_angle), torch.deg2rad(declination)
    opposite = torch.sin(h)
    adjacent = math.tan(math.radians(latitude)) * torch.cos(delta) - torch.sin(delta) * torch.cos(h)
    q = torch.rad2deg(torch.atan2(opposite, adjacent))
    jumps = torch.round(torch.diff(q, dim=-1) / 360)
    turns = torch.nn.functional.pad(torch.cumsum(jumps, dim=-1), (1, 0))
    return q - 360 * turns


class AngleTrackGenerator(PhysicsGenerator):
    r"""Derotation angles of pupil-stabilised sequences of random stars.

    .. math::

        \theta_t = q(h_t, \delta) + \theta_0, \qquad
        h_t = h_\text{mid} + \Delta h \left( \frac{t}{T - 1} - \frac12 \right)

    with :math:`q` of :func:`parallactic_angles`. Each parameter is a number, or a range from which
    each sequence draws uniformly.

    :param int n_frames: :math:`T`, number of frames.
    :param declination: :math:`\delta` in degrees.
    :param hour_angle: :math:`h_\text{mid}`, hour angle at half time, in hours.
    :param duration: :math:`\Delta h`, from the first frame to the last, in hours.
    :param float latitude: of the telescope in degrees, default that of Paranal.
    :param float true_north: offset :math:`\theta_0` of the instrument in degrees.
    :param torch.Generator rng: source of randomness.
    :param str device: of the angles.
    :param torch.dtype dtype: of the angles.
    :raises ValueError: for fewer than two frames, a declination or latitude beyond the poles, a
        duration that is not positive or a range that runs backwards.

    >>> generator = AngleTrackGenerator(4, declination=-51.07, hour_angle=1.0, duration=2.0)
    >>> generator.step(batch_size=1, seed=0)["angles"]
    tensor([[ 0.0000, 19.9633, 37.6731, 52.3574]])
    """

    def __init__(
        self,
        n_frames: int,
        declination: Range = (-70.0, 10.0),
        hour_angle: Range = (-0.5, 0.5),
        duration: Range = (1.0, 3.0),
        *,
        latitude: float = PARANAL_LATITUDE,
        true_north: float = 0.0,
        rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(rng=rng, device=device, dtype=dtype)
        if n_frames < 2:
            raise ValueError(f"a track has at least two frames, got n_frames={n_frames}")
        if abs(latitude) >= 90:
            raise ValueError(f"latitude must lie between the poles, got {latitude} degrees")
        self.n_frames = n_frames
        self.declination = _range("declination", declination, -90, 90)
        self.hour_angle = _range("hour_angle", hour_angle, -12, 12)
        self.duration = _range("duration", duration, 0, 24)
        if self.duration[0] <= 0:
            raise ValueError(f"duration must be positive, in hours, got {duration}")
        self.latitude = latitude
        self.true_north = true_north

    def step(
        self, batch_size: int = 1, seed: int | str | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        r"""Draw tracks.

        :param int batch_size: number of sequences :math:`B`.
        :param int seed: seed of the generator.
        :return: dictionary with ``"angles"`` of shape ``(B, T)``, degrees.
        """
        self.rng_manual_seed(seed)
        declination = self._uniform(batch_size, self.declination)
        middle = self._uniform(batch_size, self.hour_angle)
        duration = self._uniform(batch_size, self.duration)
        time = torch.linspace(-0.5, 0.5, self.n_frames, dtype=torch.float64, device=self.device)
        # float64 until the end: near the zenith q is a ratio of small differences.
        hour_angle = 15 * (middle + duration * time)
        angles = parallactic_angles(hour_angle, declination, self.latitude) + self.true_north
        return {"angles": angles.to(**self.factory_kwargs)}

    def _uniform(self, batch_size: int, bounds: tuple[float, float]) -> Tensor:
        """Draw (B, 1) values between bounds."""
        unit = torch.rand(
            batch_size, 1, generator=self.rng, device=self.device, dtype=torch.float64
        )
        return bounds[0] + (bounds[1] - bounds[0]) * unit


def _range(name: str, value: Range, lowest: float, highest: float) -> tuple[float, float]:
    """Bounds of a parameter given as a number or as a pair."""
    low, high = value if isinstance(value, tuple) else (value, value)
    if not lowest <= low <= high <= highest:
        raise ValueError(
            f"{name} must be a number or an increasing pair between {lowest} and {highest}, "
            f"got {value}"
        )
    return low, high
