"""Point sources of a sequence, channel by channel, and the maps that go with the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import astropy.units as u
import torch
from torch import Tensor

from deepinv_astro.optim.detection import PointSource, PointSourceSearch
from deepinv_astro.optim.radial import gaussian_equivalent, radial_profile, scale_freedom
from deepinv_astro.optim.regions import separation
from deepinv_astro.optim.temporal import TemporalModel

if TYPE_CHECKING:
    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.cli.progress import Stages

#: Peaks of the S/N map nearer to the star than this many PSF widths do not tell the angles' sign.
SIGN_INNER = 1.5
#: Peaks whose fitted flux is less than this many of its errors are chance, mostly where few frames look.
CONFIRMED = 3.0
#: The search of a channel stops at this number of sources.
MOST_SOURCES = 10
#: A neighbour as bright as this fraction of a source makes it a piece of an extended object.
EXTENDED = 0.6


class Found(NamedTuple):
    """Maps ``(1, C, H, W)`` and the sources of each channel, the most significant first."""

    snr: Tensor
    flux_std: Tensor
    visibility: Tensor
    sources: tuple[tuple[PointSource, ...], ...]


def search(problem: Problem, stages: Stages, threshold: float, most: int = MOST_SOURCES) -> Found:
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
            physics = problem.physics.channel(channel)
            model = TemporalModel.for_sequence(y, physics)
            first = channel * (most + 1) + 1

            def progress(number: int, first: int = first) -> None:
                advance(first + number)

            results.append(
                PointSourceSearch(model, threshold, most)(model.fill(y), physics, progress)
            )
    found = Found(
        torch.cat([r.snr for r in results], 1),
        torch.cat([r.flux_std for r in results], 1),
        torch.cat([r.visibility for r in results], 1),
        tuple(tuple(s for s in r.sources if s.flux >= CONFIRMED * s.flux_std) for r in results),
    )
    return (
        found
        if problem.calibration_std is None
        else with_calibration(found, problem.calibration_std)
    )


def with_calibration(found: Found, std: Tensor) -> Found:
    r"""
    Add the error of the calibration to those of the fluxes, in quadrature.

    :param Found found: with the errors of the speckles and of the noise.
    :param torch.Tensor std: of the flux of a point source, ``(1, C, H, W)``.
    :return: the same with both.

    >>> none = torch.zeros(1, 1, 2, 3)
    >>> source = PointSource(1.1, 0.2, 50.0, 0.1, 0.1, flux_std=3.0, snr=9.0)
    >>> std = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 0.0]])[None, None]
    >>> both = with_calibration(Found(none, none + 3, none, ((source,),)), std)
    >>> round(float(both.flux_std[0, 0, 1, 0]), 6), round(both.sources[0][0].flux_std, 6)
    (5.0, 5.0)
    """

    def more(source: PointSource, channel: Tensor) -> PointSource:
        height, width = channel.shape
        row, column = round(source.row), round(source.column)
        here = channel[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
        return source._replace(flux_std=math.hypot(source.flux_std, float(here)))

    sources = tuple(
        tuple(more(source, channel) for source in own)
        for own, channel in zip(found.sources, std[0], strict=True)
    )
    return found._replace(flux_std=torch.hypot(found.flux_std, std), sources=sources)


def is_point(source: PointSource, image: Tensor, fwhm: float) -> bool:
    """
    Whether a source stands alone in the image, rather than on a disk.

    A search for points cuts a disk into pieces. Around a point the image falls fast; along a disk
    it is as bright one PSF width further.

    :param PointSource source: on the sky grid.
    :param torch.Tensor image: as the PSF shows it, ``(H, W)``.
    :param float fwhm: of the PSF, in pixels.
    :return: True where nothing between 1 and 1.8 widths away is :data:`EXTENDED` times as bright.

    >>> source = PointSource(10.0, 12.0, 1.0, 0.1, 0.1, 0.1, 9.0)
    >>> disk = torch.zeros(20, 25)
    >>> disk[9:12, 2:24] = 1.0
    >>> planet = torch.zeros(20, 25)
    >>> planet[10, 12] = 1.0
    >>> is_point(source, disk, 3.0), is_point(source, planet, 3.0)
    (False, True)
    """
    size = (image.shape[-2], image.shape[-1])
    distance = separation(size, (source.row, source.column)).to(image.device)
    inside = distance <= max(1.5, fwhm / 3)
    around = (distance > fwhm) & (distance < 1.8 * fwhm)
    if not bool(inside.any()) or not bool(around.any()):
        return True
    top, beside = float(image[inside].max()), float(image[around].max())
    return top <= 0 or beside < EXTENDED * top


class SignTest(NamedTuple):
    """Highest S/N of a point source with the angles as given, and with their signs changed."""

    as_given: float
    reversed: float

    @property
    def suspicious(self) -> bool:
        """Whether a source stands out with the changed signs only."""
        return self.reversed > 5.0 and self.as_given < 5.0


def sign_test(problem: Problem) -> SignTest:
    r"""
    Try both signs of the angles.

    The matched filter of :class:`~deepinv_astro.optim.detection.PointSourceSearch` is applied with
    both; a real source adds up with the right sign and is smeared with the other, while speckles do not
    know. The lesser scatter of the two maps at each separation is the noise of both; S/N are those
    of a Gaussian with the same false-alarm probability.

    :param Problem problem: data and operator; the first channel is used.
    :return: both peaks.
    """
    with torch.no_grad():
        y = problem.sequence.y[:, :1]
        physics = problem.physics.channel(0)
        model = TemporalModel.for_sequence(y, physics)
        filled = model.fill(y)
        white = model(filled).freeze(filled)(filled)
        scores = [p.A_adjoint(white) for p in (physics, physics.variant(angles=-physics.angles))]
        distance = separation(physics.img_size[1:], physics.sky_center).to(y.device)
        noise = torch.minimum(
            *(radial_profile(s, distance, model.fwhm / 2, "scale") for s in scores)
        )
        usable = (noise > 0) & (distance > SIGN_INNER * model.fwhm)
        freedom = scale_freedom(scores[0], distance, model.fwhm)
        ratios = [torch.where(usable, s / noise, 0.0) for s in scores]
        peaks = [gaussian_equivalent(ratio, freedom).max() for ratio in ratios]
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

    >>> found = PointSource(
    ...     row=50.0, column=47.0, flux=30.0, row_std=0.1, column_std=0.3, flux_std=3.0, snr=9.0
    ... )
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
