r"""Point sources in a sequence: detection, photometry and astrometry with calibrated errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from deepinv_astro.optim.radial import null_scale
from deepinv_astro.optim.regions import separation
from deepinv_astro.optim.temporal import FrozenMetric, TemporalModel
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.points import point_image


class PointSource(NamedTuple):
    """A point source: position on the sky grid in pixels, flux in data units, their errors, and its S/N."""

    row: float
    column: float
    flux: float
    row_std: float
    column_std: float
    flux_std: float
    snr: float


@dataclass(frozen=True)
class Detection:
    r"""What a search for point sources gives.

    :param torch.Tensor snr: signal-to-noise ratio of a point source at each pixel, ``(1, 1, H,
        W)``.
    :param torch.Tensor flux_std: standard deviation of the flux of a point source at each pixel, in
        data units.
    :param torch.Tensor visibility: fraction of the energy of a point source that is left when the
        temporal mean of each pixel is removed.
    :param tuple sources: the sources above the threshold, the brightest first.
    """

    snr: Tensor
    flux_std: Tensor
    visibility: Tensor
    sources: tuple[PointSource, ...]


class PointSourceSearch:
    r"""Search for point sources with the speckles' covariance in time.

    With the metric :math:`W` of the residual :math:`r`
    (:class:`deepinv_astro.optim.temporal.TemporalLikelihood`) and :math:`t_p = A\delta_p` the
    sequence of a unit source at :math:`p`, the matched filter is

    .. math::

        b_p = t_p^\top W r, \qquad a_p = t_p^\top W t_p, \qquad \hat f_p = b_p / a_p .

    Its scatter is measured, not assumed: :math:`b` computed with the angles' signs flipped smears
    every real source and keeps the speckles; :math:`\sigma_b(r)` is its robust standard deviation
    at each separation, and

    .. math::

        \mathrm{S/N}_p = b_p / \sigma_b, \qquad \sigma_{f} = \sigma_b / a_p .

    *Detection* uses the statistics of the data as they are. *Photometry and astrometry* fit flux
    and position together by Gauss-Newton steps whose :math:`W` is that of the residual without the
    source, which removes the self-subtraction. Sources are taken one at a time, the most
    significant first, each subtracted before the next.

    :param TemporalModel model: makes the likelihood of a residual.
    :param float threshold: least S/N of a source.
    :param int max_sources: most sources.
    """

    def __init__(
        self,
        model: TemporalModel,
        threshold: float = 5.0,
        max_sources: int = 10,
    ):
        self.model = model
        self.threshold, self.max_sources = threshold, max_sources

    def __call__(
        self, y: Tensor, physics: ADI, callback: Callable[[int], None] | None = None
    ) -> Detection:
        """Search one sequence ``(1, 1, T, h, w)`` without missing data.

        :param torch.Tensor y: the sequence.
        :param ADI physics: its operator.
        :param Callable callback: called with the number of sources found so far.
        :return: (:class:`Detection`)
        :raises ValueError: for more than one sequence or channel, or missing data.
        """
        if y.shape[:2] != (1, 1):
            raise ValueError(
                f"search one channel of one sequence at a time, got shape {tuple(y.shape)}"
            )
        if not bool(torch.isfinite(y).all()):
            raise ValueError("y holds NaN: replace missing data first, by TemporalModel.fill")
        flipped = physics.variant(angles=-physics.angles)
        distance = separation(physics.img_size[1:], physics.sky_center).to(y.device)
        snr, noise = self._map(y, physics, flipped, distance)
        power, visibility = _templates(self.model(y).freeze(y), physics, distance)
        sources: list[PointSource] = []
        models: list[Tensor] = []
        cleaned, current = y, snr
        while len(sources) < self.max_sources:
            peak = self._peak(current, sources)
            if peak is None:
                break
            source, model = self._fit(cleaned, physics, flipped, distance, peak)
            if source.flux <= 0:
                break
            sources.append(source._replace(snr=float(current[0, 0, peak[0], peak[1]])))
            models.append(source.flux * model)
            cleaned = cleaned - models[-1]
            current, _ = self._map(cleaned, physics, flipped, distance)
            if callback is not None:
                callback(len(sources))
        for n in self._crowded(sources):  # measured again without their neighbours
            start = (round(sources[n].row), round(sources[n].column))
            alone = cleaned + models[n]
            source, model = self._fit(alone, physics, flipped, distance, start)
            sources[n] = source._replace(snr=sources[n].snr)
            models[n] = source.flux * model
            cleaned = alone - models[n]
        sources.sort(key=lambda s: -s.snr)
        return Detection(snr, noise / power, visibility, tuple(sources))

    def _crowded(self, sources: list[PointSource]) -> list[int]:
        """Sources with one or two others within three widths of the PSF; more are a disk, cut into points."""
        at = torch.tensor([[s.row, s.column] for s in sources]).view(-1, 2)
        others = (torch.cdist(at, at) < 3 * self.model.fwhm).sum(1) - 1
        return [n for n in range(len(sources)) if 1 <= int(others[n]) <= 2]

    def _map(
        self, y: Tensor, physics: ADI, flipped: ADI, distance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """S/N at each pixel, and the scatter of the matched filter."""
        white = self.model(y).of_residual(y)[1]
        noise = null_scale(white, flipped, distance, self.model.fwhm / 2)
        score = physics.A_adjoint(white)
        return torch.where(
            noise > 0, score / noise.clamp_min(torch.finfo(noise.dtype).tiny), 0.0
        ), noise

    def _peak(self, snr: Tensor, known: list[PointSource]) -> tuple[int, int] | None:
        """Most significant local maximum above the threshold, away from known sources."""
        size = 2 * round(self.model.fwhm / 2) + 1
        top = torch.where(max_pool2d(snr, size, 1, size // 2) == snr, snr, 0.0)[0, 0]
        for source in known:
            near = (
                separation((top.shape[0], top.shape[1]), (source.row, source.column))
                < self.model.fwhm
            )
            top = top.masked_fill(near.to(top.device), 0.0)
        best = int(top.argmax())
        row, column = divmod(best, top.shape[1])
        return (row, column) if top[row, column] >= self.threshold else None

    def _fit(
        self,
        y: Tensor,
        physics: ADI,
        flipped: ADI,
        distance: Tensor,
        start: tuple[int, int],
        steps: int = 8,
    ) -> tuple[PointSource, Tensor]:
        """Flux and position of one source, with the statistics of the residual."""
        row, column = (torch.tensor([float(s)], dtype=y.dtype, device=y.device) for s in start)
        flux = torch.zeros((), dtype=y.dtype, device=y.device)
        for _ in range(steps):
            basis = _derivatives(physics, row, column)
            residual = y - flux * basis[:1]
            likelihood = self.model(residual)
            white = likelihood.of_residual(residual)[1]  # W r, reference frames included
            # in flux, and in flux times the displacements
            normal = torch.einsum(
                "ictyx,jctyx->ij", basis, likelihood.freeze(residual)(basis)
            ).double()
            gradient = torch.einsum("ictyx,jctyx->i", basis, white).double()
            if flux == 0:
                flux = (gradient[0] / normal[0, 0]).to(y)
                continue
            step = torch.linalg.solve(normal, gradient)
            move = (step[1:] / flux).clamp(-1.0, 1.0).to(y)
            flux = flux + step[0].to(y)
            row, column = row + move[0], column + move[1]
            if float(move.abs().max()) < 0.01 and abs(float(step[0])) < 0.002 * abs(float(flux)):
                break
        noise = null_scale(white, flipped, distance, self.model.fwhm / 2)
        near = noise[0, 0, start[0], start[1]].double()
        # measured over formal scatter; not below 1, as the speckles are whitened by themselves
        inflation = (near / normal[0, 0].sqrt()).clamp_min(1.0)
        std = inflation * torch.linalg.inv(normal).diagonal().sqrt()
        position_std = std[1:] / flux.abs()
        model = physics.A(point_image(physics.img_size[1:], row, column)[None])
        values = (row, column, flux, *position_std, std[0])
        source = PointSource._make([*(float(value) for value in values), math.nan])
        return source, model


def _derivatives(physics: ADI, row: Tensor, column: Tensor, step: float = 0.25) -> Tensor:
    """Sequences of a unit source and of its derivatives in row and column, (3, 1, T, h, w)."""
    rows = row + torch.tensor([0.0, step, -step, 0.0, 0.0]).to(row)
    columns = column + torch.tensor([0.0, 0.0, 0.0, step, -step]).to(row)
    t = physics.A(point_image(physics.img_size[1:], rows, columns)[:, None])
    return torch.stack([t[0], (t[1] - t[2]) / (2 * step), (t[3] - t[4]) / (2 * step)])


def _templates(
    metric: FrozenMetric, physics: ADI, distance: Tensor, spacing: float = 3.0
) -> tuple[Tensor, Tensor]:
    """``a`` and the visibility of a point source: radial profiles, each knot the mean of two pixels."""
    knots = torch.arange(0.0, float(distance.max()) + spacing, spacing, dtype=torch.float64)
    values = []
    for radius in knots:
        away = (distance - radius).abs().flatten()
        ring = torch.nonzero(away <= away.min() + 0.5)[:, 0]
        pair = ring[[len(ring) // 4, 3 * len(ring) // 4]]  # about opposite, never off the image
        rows, columns = (
            at.to(physics.sky_center)
            for at in (pair // distance.shape[1], pair % distance.shape[1])
        )
        t = physics.A(point_image(physics.img_size[1:], rows, columns)[:, None])
        seen = t - t.mean(2, keepdim=True)
        values.append(
            torch.stack([(t * metric(t)).sum(), seen.square().sum(), t.square().sum()]).double()
        )
    power, seen, total = torch.stack(values, 1)
    lost = total <= 1e-6 * total.max()  # never on the detector
    profile = torch.stack([power / 2, torch.where(lost, 0.0, seen / total)])
    position = (distance / spacing).clamp_max(len(knots) - 1.001)
    below = position.long()
    fraction = position - below
    on_sky = profile[:, below] * (1 - fraction) + profile[:, below + 1] * fraction
    power_map, visibility_map = on_sky.to(physics.sky_center)[:, None, None]
    return power_map, visibility_map
