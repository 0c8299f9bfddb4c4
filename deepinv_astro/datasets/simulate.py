"""Whole simulated sequences: a sky that turns behind the speckles of its star."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import astropy.units as u
import torch
from torch import Tensor

from deepinv_astro.datasets.disks import henyey_greenstein, point_sources, ring, sky_offset
from deepinv_astro.datasets.speckles import NACO_LP, SpeckleModel, detect, speckle_frames
from deepinv_astro.io import Sequence
from deepinv_astro.physics import ADI
from deepinv_astro.physics.generator import AngleTrackGenerator

__all__ = ["Planet", "PlanetTruth", "SimulatedSequence", "demo_sequence", "simulate_sequence"]


#: The demonstration's instrument on a steady night: more speckles than haze, and slow ones.
DEMO_MODEL = replace(
    NACO_LP,
    static_rms=260.0,
    static_slope=2.2,
    drift_rms=12.0,
    pointing_rms=0.02,
    residual_rms=220.0,
    seeing_scatter=0.06,
)

#: Brightest pixel of the demonstration's ring, counts.
DEMO_RING_PEAK = 100.0


class Planet(NamedTuple):
    """A planet to put into a simulation.

    :param float separation_px: distance from the star, pixels.
    :param float position_angle_deg: degrees East of North.
    :param float contrast: flux in units of the star's.
    """

    separation_px: float
    position_angle_deg: float
    contrast: float


class PlanetTruth(NamedTuple):
    """A planet as it is in the sky image, in the terms in which results are reported."""

    row: float
    column: float
    separation_px: float
    position_angle_deg: float
    flux: float
    contrast: float


@dataclass(frozen=True, eq=False)
class SimulatedSequence:
    """A sequence and everything that a real one hides.

    :param Sequence sequence: what an observer gets.
    :param torch.Tensor x: sky in counts per pixel, planets included, ``(1, C, H, W)``.
    :param torch.Tensor disk: the sky without planets, ``(1, C, H, W)``.
    :param torch.Tensor speckles: noiseless halo of the star, ``(1, C, T, H, W)``.
    :param tuple planets: one :class:`PlanetTruth` per planet.
    """

    sequence: Sequence
    x: Tensor
    disk: Tensor
    speckles: Tensor
    planets: tuple[PlanetTruth, ...]


def simulate_sequence(
    angles: Tensor,
    *,
    img_size: tuple[int, int] = (101, 101),
    disk: Tensor | None = None,
    planets: Iterable[Planet] = (),
    model: SpeckleModel = NACO_LP,
    gain: Tensor | None = None,
    center: tuple[float, float] | None = None,
    pixel_scale: u.Quantity = 27.19 * u.mas,
    psf_size: int = 39,
    target: str = "simulation",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SimulatedSequence:
    r"""Observe a disk and planets in angular differential imaging.

    .. math::

        y_t = \text{detector}\{ g_t (s_t + H Q_t x) \}

    with the speckles :math:`s_t` of :func:`~deepinv_astro.datasets.speckles.speckle_frames`, the
    rotation and PSF of :class:`~deepinv_astro.physics.ADI` and the noise of
    :func:`~deepinv_astro.datasets.speckles.detect`.

    :param torch.Tensor angles: derotation angles in degrees, ``(T,)``.
    :param tuple img_size: rows and columns of a frame and of the sky.
    :param torch.Tensor disk: sky without planets in counts per pixel, ``(H, W)``, its star at
        ``(H // 2, W // 2)``; default empty.
    :param planets: planets to add.
    :param SpeckleModel model: star, instrument and detector.
    :param torch.Tensor gain: gain :math:`g_t` of each frame, ``(T,)``; default one.
    :param tuple center: row and column of the star on the detector, default ``(H // 2, W // 2)``.
    :param astropy.units.Quantity pixel_scale: angle per pixel.
    :param int psf_size: side of the PSF's stamp, odd.
    :param str target: name of the star.
    :param int seed: of all that is random.
    :param torch.dtype dtype: of the tensors.
    :return: :class:`SimulatedSequence`.
    :raises ValueError: if ``angles`` is not a vector or ``disk`` is not of the size of a frame.

    >>> model = SpeckleModel(pupil_size=32, exposures=2)
    >>> angles = torch.tensor([0.0, 20.0, 50.0])
    >>> planet = Planet(separation_px=8.0, position_angle_deg=90.0, contrast=1e-3)
    >>> sim = simulate_sequence(
    ...     angles, img_size=(31, 41), planets=[planet], model=model, psf_size=21
    ... )
    >>> sim.sequence.y.shape, round(sim.planets[0].row, 3), round(sim.planets[0].column, 3)
    (torch.Size([1, 1, 3, 31, 41]), 15.0, 12.0)
    """
    if angles.ndim != 1:
        raise ValueError(f"angles must be a vector of T values, got shape {tuple(angles.shape)}")
    if disk is not None and tuple(disk.shape) != img_size:
        raise ValueError(f"disk must be of shape {img_size}, got {tuple(disk.shape)}")
    generator = torch.Generator().manual_seed(seed)
    origin = center if center is not None else (img_size[0] // 2, img_size[1] // 2)
    star = speckle_frames(
        model, len(angles), img_size, generator=generator, center=origin, psf_size=psf_size,
        dtype=dtype,
    )  # fmt: skip
    truths = tuple(_truth(planet, model.star_flux, img_size) for planet in planets)
    diffuse = torch.zeros(img_size) if disk is None else disk
    diffuse = diffuse.to(dtype)
    x = diffuse + _planet_image(truths, img_size).to(dtype)
    sky = _observe(x, angles, star.psf, origin)
    factor = torch.ones(len(angles), dtype=dtype) if gain is None else gain.to(dtype)
    halo = factor[:, None, None] * star.frames
    y = detect(halo + factor[:, None, None] * sky, model, generator=generator)
    sequence = Sequence(
        y=y[None, None],
        angles=angles.to(torch.float64),
        psf=star.psf[None],
        star_flux=torch.tensor([model.star_flux], dtype=dtype),
        center=(float(origin[0]), float(origin[1])),
        pixel_scale=pixel_scale,
        wavelengths=[model.wavelength] * u.nm,
        unit=u.ct,
        target=target,
        provenance=(f"Simulated with seed {seed}.",),
    )
    return SimulatedSequence(sequence, x[None, None], diffuse[None, None], halo[None, None], truths)


def demo_sequence(
    seed: int = 0, n_frames: int = 48, *, dtype: torch.dtype = torch.float32
) -> SimulatedSequence:
    r"""The target of ``deepinv-astro demo``: a ring and a planet hidden in speckles.

    Frames of 101 x 101 pixels that turn by 70 degrees, as a star at -51 degrees of declination
    does in two and a half hours around the meridian over Paranal. The ring is inclined by 75
    degrees and scatters light forward; the planet stands off its far side. Neither can be told
    from the speckles in a frame.

    :param int seed: of the speckles and the noise; the sky is always the same.
    :param int n_frames: number of frames.
    :param torch.dtype dtype: of the tensors.
    :return: :class:`SimulatedSequence`.

    >>> demo = demo_sequence(seed=1, n_frames=3)
    >>> demo.sequence.y.shape, len(demo.planets)
    (torch.Size([1, 1, 3, 101, 101]), 1)
    """
    img_size = (101, 101)
    track = AngleTrackGenerator(
        n_frames, declination=-51.0, hour_angle=0.45, duration=2.48, dtype=torch.float64
    )
    angles = track.step(seed=0)["angles"][0]
    phase = partial(henyey_greenstein, g=0.25)
    disk = ring(
        img_size, 27.0, 75.0, 62.0, phase=phase, slopes=(12.0, -6.0), scale_height=0.7, flux=1.0
    )
    disk = disk * (DEMO_RING_PEAK / disk.max())
    return simulate_sequence(
        angles,
        img_size=img_size,
        disk=disk,
        planets=[Planet(18.5, 310.0, 6e-4)],
        model=DEMO_MODEL,
        target="demo",
        seed=seed,
        dtype=dtype,
    )


def _truth(planet: Planet, star_flux: float, img_size: tuple[int, int]) -> PlanetTruth:
    """Where a planet is in the sky image and how bright."""
    row, column = sky_offset(planet.separation_px, planet.position_angle_deg)
    return PlanetTruth(
        row=img_size[0] // 2 + float(row),
        column=img_size[1] // 2 + float(column),
        separation_px=planet.separation_px,
        position_angle_deg=planet.position_angle_deg % 360,
        flux=planet.contrast * star_flux,
        contrast=planet.contrast,
    )


def _planet_image(truths: tuple[PlanetTruth, ...], img_size: tuple[int, int]) -> Tensor:
    """Image of all planets in float64."""
    if not truths:
        return torch.zeros(img_size, dtype=torch.float64)
    rows, columns, fluxes = (
        torch.tensor([getattr(t, name) for t in truths], dtype=torch.float64)
        for name in ("row", "column", "flux")
    )
    return point_sources(img_size, rows, columns, fluxes)


def _observe(x: Tensor, angles: Tensor, psf: Tensor, center: tuple[float, float]) -> Tensor:
    """The turning sky through the PSF, (T, H, W)."""
    physics = ADI((1, *x.shape), angles, filter=psf, center=center, dtype=x.dtype)
    y: Tensor = physics.A(x[None, None])
    return y[0, 0]
