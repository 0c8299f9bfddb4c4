r"""Point sources in a sequence: detection, photometry and astrometry with calibrated errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from deepinv_astro.optim.radial import (
    gaussian_equivalent,
    null_map,
    radial_profile,
    scale_freedom,
    student_spread,
)
from deepinv_astro.optim.regions import separation
from deepinv_astro.optim.source_fit import (
    LEAST_CURVATURE,
    LinearLikelihood,
    SourceFit,
    fit_source,
)
from deepinv_astro.optim.temporal import TemporalModel
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
        W)``, in standard deviations of a Gaussian with the same false-alarm probability.
    :param torch.Tensor flux_std: standard deviation of the fitted flux of a further point source at
        each pixel, in data units: the sources found are subtracted before.
    :param torch.Tensor visibility: fraction of the energy of a point source that is left when the
        temporal mean of each pixel is removed.
    :param tuple sources: the sources above the threshold in the order in which they were found, the
        highest :math:`b / \sigma_b` first.
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

    *Detection* uses the statistics of the data as they are. The scatter of :math:`b` is measured,
    not assumed: :math:`b` computed with the angles' signs flipped smears every real source and
    keeps the speckles; :math:`\sigma_b(r)` is its robust standard deviation at each separation. Near
    the star few resolution elements tell it, so that :math:`b / \sigma_b` follows Student's
    distribution with :math:`\nu(r) \approx 0.9 \cdot 2 \pi r / \mathrm{FWHM}` degrees of freedom
    (:func:`~deepinv_astro.optim.radial.scale_freedom`). The S/N is the Gaussian one of equal
    false-alarm probability (:func:`~deepinv_astro.optim.radial.gaussian_equivalent`),

    .. math::

        \mathrm{S/N}_p = \Phi^{-1}\big(F_{\nu}(b_p / \sigma_b)\big),

    much less than the ratio where that is large: a ratio of 25 from 20 degrees of freedom is 8.2.

    *Photometry and astrometry* fit flux and position together, with :math:`W` that of the residual
    without the source, which removes the self-subtraction
    (:func:`~deepinv_astro.optim.source_fit.fit_source`). Sources are taken one at a time, the
    highest :math:`b / \sigma_b` first, each subtracted before the next. Their errors are those of
    an estimate whose curvature :math:`H` is not the covariance :math:`V` of its score,

    .. math::

        \operatorname{Cov} \hat\theta = H^{-1} V H^{-1}, \qquad V = S N S, \qquad
        S_{ii} = \max\big(1, \sigma_i / \sqrt{N_{ii}}\big),

    :math:`N` the curvature with the covariance of the speckles frozen (near the star :math:`H` is
    several times less), and :math:`\sigma_i` the robust scatter, at the separation of the source, of
    the map :math:`b` (for the flux) and of its derivatives (for the position) once all sources are
    subtracted and left out, times the half-width of Student's distribution
    (:func:`~deepinv_astro.optim.radial.student_spread`). What they do not hold: star centre, PSF,
    and anything else that is the same at all position angles.

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
        size = (physics.img_size[1], physics.img_size[2])
        field = _Field(physics, flipped, separation(size, physics.sky_center).to(y.device))
        first = current = self._maps(y, field)
        fits: list[SourceFit] = []
        peaks: list[float] = []
        cleaned = y
        while len(fits) < self.max_sources:
            peak = self._peak(current, fits)
            if peak is None:
                break
            fit = fit_source(self.model, cleaned, physics, peak)
            if fit.flux <= 0:
                break
            fits.append(fit)
            peaks.append(float(current.snr[0, 0, peak[0], peak[1]]))
            cleaned = cleaned - fit.sequence
            current = self._maps(cleaned, field)
            if callback is not None:
                callback(len(fits))
        for n in self._crowded(fits):  # measured again without their neighbours
            alone = cleaned + fits[n].sequence
            again = fit_source(self.model, alone, physics, (fits[n].row, fits[n].column))
            if again.flux > 0:
                fits[n], cleaned = again, alone - again.sequence
        spreads = self._spreads(cleaned, field, fits)
        found = [_source(*of) for of in zip(fits, spreads, peaks, strict=True)]
        curvature, visibility = self._templates(cleaned, field)
        flux_std = self._maps(cleaned, field).scatter / curvature
        return Detection(first.snr, flux_std, visibility, tuple(found))

    def _crowded(self, sources: list[SourceFit]) -> list[int]:
        """Sources with one or two others within three widths of the PSF; more are a disk, cut into points."""
        at = torch.tensor([[s.row, s.column] for s in sources]).view(-1, 2)
        others = (torch.cdist(at, at) < 3 * self.model.fwhm).sum(1) - 1
        return [n for n in range(len(sources)) if 1 <= int(others[n]) <= 2]

    def _maps(self, y: Tensor, field: _Field) -> _Maps:
        white = self.model(y).of_residual(y)[1]
        null = null_map(white, field.flipped)
        noise = radial_profile(null, field.distance, self.model.fwhm / 2, "scale")
        freedom = scale_freedom(null, field.distance, self.model.fwhm)
        score = field.physics.A_adjoint(white)
        tiny = torch.finfo(noise.dtype).tiny
        ratio = torch.where(noise > 0, score / noise.clamp_min(tiny), 0.0)
        return _Maps(ratio, gaussian_equivalent(ratio, freedom), noise * student_spread(freedom))

    def _spreads(self, cleaned: Tensor, field: _Field, fits: list[SourceFit]) -> list[Tensor]:
        """For each source the scatter of the score in flux, row and column, ``(3,)``."""
        if not fits:
            return []
        fwhm, size = self.model.fwhm, (field.distance.shape[0], field.distance.shape[1])
        score = null_map(self.model(cleaned).of_residual(cleaned)[1], field.physics)[0, 0].double()
        for fit in fits:
            near = separation(size, (fit.row, fit.column)) < fwhm
            score = score.masked_fill(near.to(score.device), torch.nan)
        star = field.physics.sky_center.tolist()
        at = torch.tensor([[f.row - star[0], f.column - star[1]] for f in fits]).double()
        at = at.norm(dim=1).to(score.device)

        def scale(values: Tensor) -> Tensor:
            return radial_profile(values, field.distance, fwhm / 2, "scale", at).nan_to_num(0.0)

        down, across = torch.gradient(score, dim=(-2, -1))
        position = ((scale(down).square() + scale(across).square()) / 2).sqrt()
        spread = torch.stack([scale(score), position, position])
        freedom = scale_freedom(score, field.distance, fwhm, at).nan_to_num(1.0)
        return list((spread * student_spread(freedom)).unbind(-1))

    def _peak(self, maps: _Maps, known: list[SourceFit]) -> tuple[int, int] | None:
        """Local maximum of the S/N above the threshold with the highest ratio, away from known sources."""
        size = 2 * round(self.model.fwhm / 2) + 1
        highest = max_pool2d(maps.snr, size, 1, size // 2) == maps.snr
        top = torch.where(highest & (maps.snr >= self.threshold), maps.ratio, 0.0)[0, 0]
        for source in known:
            near = separation((top.shape[0], top.shape[1]), (source.row, source.column))
            top = top.masked_fill((near < self.model.fwhm).to(top.device), 0.0)
        row, column = divmod(int(top.argmax()), top.shape[1])
        return (row, column) if top[row, column] > 0 else None

    def _templates(self, y: Tensor, field: _Field) -> tuple[Tensor, Tensor]:
        """Curvature ``H`` in the flux and visibility of a point source: profiles, each knot the mean of two pixels."""
        physics, distance, likelihood = field.physics, field.distance, self.model(y)
        spacing = self.model.fwhm
        count = int(float(distance.max()) / spacing) + 2
        profile = torch.zeros(2, count, dtype=torch.float64)
        whole = 0.0
        for knot in range(count):
            away = (distance - knot * spacing).abs().flatten()
            ring = torch.nonzero(away <= away.min() + 0.5)[:, 0]
            pair = ring[[len(ring) // 4, 3 * len(ring) // 4]]  # about opposite, never off the image
            places = (pair // distance.shape[1], pair % distance.shape[1])
            rows, columns = (at.to(physics.sky_center) for at in places)
            t = physics.A(point_image(physics.img_size[1:], rows, columns)[:, None])
            total = float(t.square().sum())
            whole = max(whole, total)
            if total <= 1e-6 * whole:  # never on the detector
                continue
            profile[1, knot] = float((t - t.mean(2, keepdim=True)).square().sum()) / total
            for one in t.split(1):
                linear = LinearLikelihood(likelihood, self.model.labels, y, one)
                at = linear(torch.zeros(1, dtype=torch.float64, device=y.device))
                left = torch.maximum(at.hessian, LEAST_CURVATURE * at.metric)
                profile[0, knot] += 0.5 * float(left)
        position = (distance / spacing).clamp_max(count - 1.001).cpu()
        below = position.long()
        fraction = position - below
        on_sky = profile[:, below] * (1 - fraction) + profile[:, below + 1] * fraction
        curvature, visibility = on_sky.to(physics.sky_center)[:, None, None]
        return curvature, visibility


class _Maps(NamedTuple):
    """The matched filter over its scatter, its S/N, and the scatter, as wide as it is uncertain."""

    ratio: Tensor
    snr: Tensor
    scatter: Tensor


@dataclass(frozen=True)
class _Field:
    """The operator, that with the angles' signs flipped, and the separations on the sky."""

    physics: ADI
    flipped: ADI
    distance: Tensor


def _source(fit: SourceFit, spread: Tensor, snr: float) -> PointSource:
    """A source with the errors that a score of this scatter gives."""
    formal = fit.metric.diagonal().sqrt()
    inflation = (spread.to(formal) / formal).clamp_min(1.0)
    half = fit.inverse * inflation @ fit.metric
    std = (half * inflation @ fit.inverse).diagonal().sqrt()
    errors = std / torch.tensor([1.0, fit.flux, fit.flux]).to(std)
    flux_std, row_std, column_std = errors.tolist()
    return PointSource(fit.row, fit.column, fit.flux, row_std, column_std, flux_std, snr)
