r"""Flux and position of a point source, by the marginal likelihood in time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.optim.regions import EXCLUDED
from deepinv_astro.optim.temporal import TemporalLikelihood, TemporalModel
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.points import point_image

#: Fraction of the energy of a source, over the variance of the data, that may fall on regions left out.
LEFT_OUT = 0.01

#: Least curvature, over that with frozen statistics: where less is left, nothing is known.
LEAST_CURVATURE = 0.02


class Expansion(NamedTuple):
    """Cost, its gradient, the curvature with the statistics frozen, and the whole curvature."""

    cost: Tensor
    gradient: Tensor
    metric: Tensor
    hessian: Tensor


class LinearLikelihood:
    r"""The marginal likelihood of a residual along a few directions.

    With the whitened residual :math:`R - \sum_i \theta_i D_i` of a region of :math:`K` pixels,
    :math:`w = K (1 + \nu)`,

    .. math::

        J(\theta) = \tfrac12 \sum_g w \log\det G(\theta), \qquad
        G = \nu K I + R R^\top - \sum_i \theta_i S_i + \sum_{ij} \theta_i \theta_j E_{ij},

    :math:`S_i = D_i R^\top + R D_i^\top`, :math:`E_{ij} = \tfrac12 (D_i D_j^\top + D_j D_i^\top)`:
    matrices of :math:`T` rows, whatever the number of pixels. With :math:`G_i = \partial_i G`,

    .. math::

        \partial_i J = \tfrac12 \sum_g w \operatorname{tr} G^{-1} G_i, \quad
        N_{ij} = \sum_g w \operatorname{tr} G^{-1} E_{ij}, \quad
        H_{ij} = N_{ij} - \tfrac12 \sum_g w \operatorname{tr} G^{-1} G_i G^{-1} G_j .

    :math:`N` is the curvature with the covariance of the speckles frozen. The data must tell the
    source from that covariance too, so the curvature :math:`H` is less.

    :param TemporalLikelihood likelihood: gives variance, strength of the prior, and references.
    :param Iterable labels: maps of regions ``(h, w)``, of equal weight; regions that hold hardly
        anything of the first direction are left out.
    :param torch.Tensor residual: ``(1, 1, T, h, w)``.
    :param torch.Tensor directions: sequences :math:`D`, ``(n, 1, T, h, w)``.

    |sep|

    :Examples:

        Two pixels with the same speckles, and a source in one of them. The speckles tell its flux,
        4, but some of the curvature goes into telling them:

        >>> from deepinv_astro.optim.temporal import TemporalLikelihood
        >>> speckles = torch.tensor([3.0, -1.0, 2.0, -4.0, 0.5])
        >>> source = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
        >>> residual = torch.stack([speckles, speckles + 4 * source], 1)[None, None, :, None]
        >>> direction = torch.stack([0 * source, source], 1)[None, None, :, None]
        >>> regions = torch.zeros(1, 2, dtype=torch.long)
        >>> likelihood = TemporalLikelihood([], torch.ones(1, 2), nu=0.01)
        >>> linear = LinearLikelihood(likelihood, [regions], residual, direction)
        >>> theta = linear.minimum(torch.zeros(1, dtype=torch.float64))
        >>> at = linear(theta)
        >>> round(float(theta), 2), bool(0 < at.hessian < at.metric)
        (4.0, True)
    """

    def __init__(
        self,
        likelihood: TemporalLikelihood,
        labels: Iterable[Tensor],
        residual: Tensor,
        directions: Tensor,
    ):
        scale = likelihood.variance.rsqrt()[..., None, :, :]
        rows = torch.cat([residual, directions]) * scale
        if likelihood.references is not None:
            more = torch.zeros_like(likelihood.references).repeat(len(rows), 1, 1, 1, 1)
            more[:1] = likelihood.references * scale
            rows = torch.cat([rows, more], 2)
        rows = (rows - rows.mean(2, keepdim=True))[:, 0].flatten(2)
        frames, count = rows.shape[1], len(rows)
        weights, constants, slopes, curvatures = [], [], [], []
        maps = list(labels)
        for label in maps:
            for region in _touched(label.flatten(), rows[1].square().sum(0)):
                flat = rows[:, :, region].flatten(0, 1).double()
                gram = (flat @ flat.mT).view(count, frames, count, frames).transpose(1, 2)
                gram = 0.5 * (gram + gram.transpose(0, 1))
                prior = likelihood.nu * len(region) * torch.eye(frames).to(gram)
                constants.append(gram[0, 0] + prior)
                slopes.append(-2 * gram[0, 1:])
                curvatures.append(gram[1:, 1:])
                weights.append(len(region) * (1 + likelihood.nu) / len(maps))
        self._weight = torch.tensor(weights, dtype=torch.float64).to(constants[0])
        self._constant, self._slope = torch.stack(constants), torch.stack(slopes)
        self._curvature = torch.stack(curvatures)

    def __call__(self, theta: Tensor) -> Expansion:
        r"""Expand about :math:`\theta`.

        :param torch.Tensor theta: ``(n,)``, double precision.
        :return: (:class:`Expansion`) of shapes ``()``, ``(n,)``, ``(n, n)`` and ``(n, n)``.
        """
        bend = torch.einsum("gijst,j->gist", self._curvature, theta)
        gram = self._constant + torch.einsum("gist,i->gst", self._slope + bend, theta)
        slope = self._slope + 2 * bend
        factor = torch.linalg.cholesky(gram)
        cost = (self._weight * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)).sum()
        inverse = torch.cholesky_inverse(factor)
        weighted = self._weight[:, None, None] * inverse
        gradient = 0.5 * torch.einsum("gts,gist->i", weighted, slope)
        metric = torch.einsum("gts,gijst->ij", weighted, self._curvature)
        turned = inverse[:, None] @ slope
        lost = torch.einsum("g,gist,gjts->ij", self._weight, turned, turned)
        return Expansion(cost, gradient, metric, metric - 0.5 * lost)

    def minimum(self, theta: Tensor, most: int = 100, tolerance: float = 1e-3) -> Tensor:
        r"""Descend to a minimum.

        Newton steps where they descend; else :math:`-N^{-1} \nabla J`, which always does, as the
        logarithm of a determinant lies below its tangents.

        :param torch.Tensor theta: where to start.
        :param int most: most steps.
        :param float tolerance: stop when a step is less than this fraction of the formal errors.
        :return: (:class:`torch.Tensor`) the minimum.
        """
        here = self(theta)
        for _ in range(most):
            step = -_solve(here.hessian, here.gradient)
            there = self(theta + step)
            if not bool(there.cost < here.cost):
                step = -_solve(here.metric, here.gradient)
                there = self(theta + step)
            small = step @ here.metric @ step < tolerance**2
            theta, here = theta + step, there
            if bool(small):
                break
        return theta


class SourceFit(NamedTuple):
    r"""Result of :func:`fit_source`.

    :param float row: of the sky grid, in pixels.
    :param float column: of the sky grid, in pixels.
    :param float flux: in data units.
    :param torch.Tensor metric: :math:`N` at the minimum, ``(3, 3)``, in the variables
        :math:`(f, f\,\delta_\mathrm{row}, f\,\delta_\mathrm{column})`.
    :param torch.Tensor inverse: :math:`H^{-1}` in the same variables.
    :param torch.Tensor sequence: of the source, ``(1, 1, T, h, w)``.
    """

    row: float
    column: float
    flux: float
    metric: Tensor
    inverse: Tensor
    sequence: Tensor


def fit_source(
    model: TemporalModel, y: Tensor, physics: ADI, start: tuple[float, float], most: int = 6
) -> SourceFit:
    r"""Flux and position of one source, with the statistics of the residual.

    Minimises the marginal likelihood of :math:`y - f\,t(p)`. About the last position :math:`t` is
    linear in the displacement, which leaves matrices of :math:`T` rows only
    (:class:`LinearLikelihood`); then the position, and the profile of the variance, are renewed.

    If the score (gradient) has the covariance :math:`V`, flux and displacement scatter by
    :math:`H^{-1} V H^{-1}`, as :math:`\hat\theta - \theta \approx -H^{-1} \nabla J(\theta)`.

    :param TemporalModel model: makes the likelihood.
    :param torch.Tensor y: the sequence ``(1, 1, T, h, w)``, without NaN.
    :param ADI physics: its operator.
    :param tuple start: row and column to start from, less than a PSF width away.
    :param int most: most positions about which the source is expanded.
    :return: (:class:`SourceFit`) a flux that is not positive means that there is no source.
    """
    row, column = (torch.tensor(float(s)).to(y) for s in start)
    theta = torch.zeros(3, dtype=torch.float64, device=y.device)
    for _ in range(most):
        basis = tangents(physics, row, column)
        flux = theta[0]
        linear = LinearLikelihood(model(y - flux.to(y) * basis[:1]), model.labels, y, basis)
        theta = linear.minimum(torch.stack([flux, 0 * flux, 0 * flux]))
        if theta[0] <= 0:
            break
        move = (theta[1:] / theta[0]).clamp(-1.0, 1.0).to(y)
        row, column = row + move[0], column + move[1]
        if bool(move.abs().max() < 0.01) and bool((theta[0] - flux).abs() < 0.002 * theta[0]):
            break
    at = linear(theta)
    sequence = theta[0].to(y) * physics.A(_points(physics, row[None], column[None])[:, None])
    place = float(row), float(column), float(theta[0])
    return SourceFit(*place, at.metric, _inverse(at.hessian, at.metric), sequence)


def tangents(physics: ADI, row: Tensor, column: Tensor, step: float = 0.25) -> Tensor:
    """Sequences of a unit source and of its derivatives in row and column, ``(3, 1, T, h, w)``."""
    offsets = torch.tensor([[0.0, step, -step, 0.0, 0.0], [0.0, 0.0, 0.0, step, -step]]).to(row)
    x = _points(physics, row + offsets[0], column + offsets[1])
    slopes = [(x[1] - x[2]) / (2 * step), (x[3] - x[4]) / (2 * step)]
    return physics.A(torch.stack([x[0], *slopes])[:, None])


def _points(physics: ADI, rows: Tensor, columns: Tensor) -> Tensor:
    return point_image((physics.img_size[1], physics.img_size[2]), rows, columns)


def _touched(label: Tensor, energy: Tensor) -> list[Tensor]:
    """Pixels of each region that holds more than its part of the energy left out."""
    regions = [torch.nonzero(label == k)[:, 0] for k in label.unique() if k != EXCLUDED]
    parts = torch.stack([energy[region].sum() for region in regions])
    order = parts.argsort()
    left = parts[order].cumsum(0) <= LEFT_OUT * parts.sum()
    out = set(order[left].tolist())
    return [region for k, region in enumerate(regions) if k not in out]


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.linalg.pinv(matrix, hermitian=True) @ vector


def _inverse(hessian: Tensor, metric: Tensor) -> Tensor:
    """Inverse of the curvature, kept positive: at least :data:`LEAST_CURVATURE` of the metric."""
    values, vectors = torch.linalg.eigh(metric)
    root = vectors * values.clamp_min(1e-12 * float(values[-1])).rsqrt()
    kept, turn = torch.linalg.eigh(root.mT @ hessian @ root)
    root = root @ turn
    return (root / kept.clamp_min(LEAST_CURVATURE)) @ root.mT
