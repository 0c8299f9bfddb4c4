"""Point sources of a sequence, channel by channel, and the maps that go with the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import astropy.units as u
import torch
from torch import Tensor

from deepinv_astro.optim.detection import PointSource, PointSourceSearch
from deepinv_astro.optim.radial import radial_profile
from deepinv_astro.optim.regions import separation
from deepinv_astro.optim.rexpaco import single_channel
from deepinv_astro.optim.temporal import TemporalModel

if TYPE_CHECKING:
    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.cli.progress import Stages

#: Peaks of the S/N map nearer to the star than this many PSF widths do not tell the angles' sign.
SIGN_INNER = 1.5


class Found(NamedTuple):
    """Maps ``(1, C, H, W)`` and the sources of each channel, the most significant first."""

    snr: Tensor
    flux_std: Tensor
    visibility: Tensor
    sources: tuple[tuple[PointSource, ...], ...]


def search(problem: Problem, stages: Stages, threshold: float, most: int = 10) -> Found:
    """
    Search all channels for point sources.

    :param Problem problem: data and operator.
    :param Stages stages: where progress is shown.
    :param float threshold: least S/N.
    :param int most: most sources of a channel.
    :return: maps and sources.
    """
    results = []
    channels = problem.sequence.img_size[0]
    advance = stages.begin("point sources", channels * (most + 1))
    with torch.no_grad():
        for channel in range(channels):
            y = problem.sequence.y[:, channel : channel + 1]
            physics = single_channel(problem.physics, 0, channel)
            model = TemporalModel.for_sequence(y, physics)
            done = channel * (most + 1)
            results.append(
                PointSourceSearch(model, threshold, most)(
                    model.fill(y), physics, lambda number, done=done: advance(done + 1 + number)
                )
            )
    maps = (torch.cat([getattr(r, k) for r in results], 1) for k in ("snr", "flux_std", "visibility"))
    return Found(*maps, tuple(r.sources for r in results))


class SignTest(NamedTuple):
    """Highest S/N of a point source with the angles as given, and with their signs changed."""

    as_given: float
    reversed: float

    @property
    def suspicious(self) -> bool:
        """Whether a source stands out with the changed signs only."""
        return self.reversed > 6.0 and self.as_given < 5.0


def sign_test(problem: Problem) -> SignTest:
    r"""
    Try both signs of the angles.

    The matched filter of :class:`~deepinv_astro.optim.detection.PointSourceSearch` is applied with
    both; a real source adds up with the right sign and is smeared with the other, while speckles do not
    know. The lesser scatter of the two maps at each separation is the noise of both.

    :param Problem problem: data and operator; the first channel is used.
    :return: both peaks.
    """
    with torch.no_grad():
        y = problem.sequence.y[:, :1]
        physics = single_channel(problem.physics, 0, 0)
        model = TemporalModel.for_sequence(y, physics)
        filled = model.fill(y)
        white = model(filled).freeze(filled)(filled)
        scores = [
            p.A_adjoint(white) for p in (physics, physics.variant(angles=-physics.angles))
        ]
        distance = separation(physics.img_size[1:], physics.sky_center).to(y.device)
        noise = torch.minimum(
            *(radial_profile(s, distance, model.fwhm / 2, "scale") for s in scores)
        )
        usable = (noise > 0) & (distance > SIGN_INNER * model.fwhm)
        peaks = [torch.where(usable, s / noise, 0.0).max() for s in scores]
    return SignTest(*(float(p) for p in peaks))


def source_entry(
    source: PointSource,
    center: tuple[float, float],
    pixel_scale: u.Quantity | None,
    star_flux: float | None,
) -> dict[str, Any]:
    r"""
    A source in the terms in which it is reported.

    :param PointSource source: on the sky grid.
    :param tuple center: row and column of the star on the sky grid.
    :param astropy.units.Quantity pixel_scale: angle per pixel; ``None`` if unknown.
    :param float star_flux: in data units; ``None`` if unknown.
    :return: position, separation, position angle, flux, contrast, S/N, and their errors.

    >>> found = PointSource(row=50.0, column=47.0, flux=30.0, row_std=0.1, column_std=0.3, flux_std=3.0, snr=9.0)
    >>> entry = source_entry(found, (50.0, 50.0), 20 * u.mas, 3e5)
    >>> entry["separation_arcsec"], entry["position_angle_deg"], entry["contrast"]
    (0.06, 90.0, 0.0001)
    """
    down, across = source.row - center[0], source.column - center[1]
    distance = math.hypot(down, across)
    near = max(distance, 1e-6)
    std = math.hypot(down * source.row_std, across * source.column_std) / near
    turn = math.degrees(math.hypot(across * source.row_std, down * source.column_std) / near**2)
    arcsec = None if pixel_scale is None else float(pixel_scale.to_value(u.arcsec))
    return {
        "row": source.row,
        "column": source.column,
        "row_std": source.row_std,
        "column_std": source.column_std,
        "separation_px": distance,
        "separation_px_std": std,
        "separation_arcsec": None if arcsec is None else round(arcsec * distance, 9),
        "separation_arcsec_std": None if arcsec is None else arcsec * std,
        "position_angle_deg": math.degrees(math.atan2(-across, down)) % 360,
        "position_angle_deg_std": turn,
        "flux": source.flux,
        "flux_std": source.flux_std,
        "contrast": None if star_flux is None else source.flux / star_flux,
        "contrast_std": None if star_flux is None else source.flux_std / star_flux,
        "snr": source.snr,
    }
