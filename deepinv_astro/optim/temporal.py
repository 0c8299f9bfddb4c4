r"""Likelihood of a sequence whose speckles have an unknown covariance in time, integrated out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepinv.optim import DataFidelity
from deepinv.physics import Physics
from torch import Tensor

from deepinv_astro.optim.missing import exclude_blind, fill_missing, without_dead_pixels
from deepinv_astro.optim.radial import radial_profile
from deepinv_astro.optim.regions import EXCLUDED, Partition, Regions, annular_regions, separation
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import half_maximum_width

#: Degrees of rotation under which a sequence is refused.
LEAST_ROTATION = 0.1

#: Width of the PSF, in pixels, when the operator has none.
DEFAULT_FWHM = 3.0


class TemporalLikelihood(DataFidelity):
    r"""Marginal likelihood of correlated speckles, one covariance in time for each region of the detector.

    In region :math:`g` of :math:`K_g` pixels the residual :math:`y - A x`, its temporal mean
    removed (a static halo with a flat prior, integrated) and divided by :math:`\sqrt d` (profile
    of its temporal variance), forms the matrix
    :math:`R_g` of :math:`T` rows, whose columns share an unknown :math:`T\times T` covariance.
    With an inverse-Wishart
    prior of scale :math:`\nu K_g I` and :math:`\nu K_g` degrees of freedom that covariance
    integrates out to

    .. math::

        J(x) = \sum_g \frac{K_g (1+\nu)}{2} \log\det\left(\nu K_g I_T + R_g R_g^\top\right), \qquad
        \frac{\partial J}{\partial R_g} = K_g (1+\nu) \left(\nu K_g I_T + R_g R_g^\top\right)^{-1} R_g .

    Pixels of no region and padding take no part. Reference frames, which show speckles but no
    object, join as further rows of :math:`R_g`. Several partitions share the data in equal parts.

    :param Sequence partitions: the regions (:class:`deepinv_astro.optim.regions.Partition`), e.g.
        annuli, tiles, or both.
    :param torch.Tensor variance: temporal variance :math:`d > 0`, broadcast to ``(B, C, h, w)``.
    :param float nu: strength :math:`\nu` of the prior, relative to the data.
    :param torch.Tensor references: frames without object ``(B, C, T', h, w)``, or ``None``.

    |sep|

    :Examples:

        Without any residual, :math:`J = \tfrac{1}{2} T \sum_g K_g (1+\nu) \log(\nu K_g)`:

        >>> import torch
        >>> from deepinv_astro.optim.regions import Partition
        >>> one = Partition.from_labels(torch.zeros(2, 3).long())
        >>> likelihood = TemporalLikelihood([one], torch.ones(2, 3), nu=0.5)
        >>> cost, gradient = likelihood.of_residual(torch.zeros(1, 1, 4, 2, 3))
        >>> round(float(cost), 4), round(0.5 * 4 * 6 * 1.5 * math.log(0.5 * 6), 4)
        (19.775, 19.775)
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        variance: Tensor,
        nu: float = 1e-3,
        references: Tensor | None = None,
    ):
        super().__init__()
        self.partitions = list(partitions)
        self.nu = nu
        self.register_buffer("variance", variance)
        self.register_buffer("references", references)

    def fn(self, x: Tensor, y: Tensor, physics: Physics, *args: Any, **kwargs: Any) -> Tensor:
        """Cost :math:`J(x)`, shape ``(B,)``."""
        return self._evaluate(y - physics.A(x), want_gradient=False)[0]

    def grad(self, x: Tensor, y: Tensor, physics: Physics, *args: Any, **kwargs: Any) -> Tensor:
        """Gradient of the cost in the image."""
        return -physics.A_adjoint(self.of_residual(y - physics.A(x))[1])

    def of_residual(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        r"""Cost and its gradient in the residual :math:`y - A x`.

        :param torch.Tensor residual: ``(B, C, T, h, w)``.
        :return: cost ``(B,)`` in double precision and gradient ``(B, C, T, h, w)``.
        """
        return self._evaluate(residual, want_gradient=True)

    def freeze(self, residual: Tensor) -> FrozenMetric:
        r"""The metric :math:`W` of a residual, kept while the image moves.

        Without references :math:`\partial J/\partial R` is :math:`W` applied to the residual; applied to other
        sequences it whitens
        them, for matched filters, convex solves, or a risk.

        :param torch.Tensor residual: ``(B, C, T, h, w)``.
        :return: (:class:`FrozenMetric`) a symmetric, positive semi-definite map of sequences
            without references.
        """
        white = self._white(residual)
        inverses = [self._inverses(part, part.gather(white))[1] for part in self.partitions]
        return FrozenMetric(self, inverses)

    def _white(self, residual: Tensor) -> Tensor:
        """Rows (B C, T, pixels): scaled, references joined, temporal mean removed."""
        scale = self._scale()
        white = residual * scale
        if self.references is not None:
            white = torch.cat([white, self.references * scale], 2)
        white = white - white.mean(2, keepdim=True)
        return white.flatten(3).flatten(0, 1)

    def _scale(self) -> Tensor:
        scale = self.variance.rsqrt()
        return scale[..., None, :, :] if scale.ndim > 2 else scale

    def _inverses(self, partition: Partition, blocks: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        r"""Cost of a partition, and the matrix of each region.

        :return: :math:`\sum_g \tfrac{K_g(1+\nu)}{2}\log\det(\nu K_g I + R_g R_g^\top)`, ``(B C,)``
            in double precision, and
            :math:`K_g(1+\nu)` times the inverses, ``(B C, regions, T, T)`` for each block.
        """
        counts = partition.counts.double()
        prior = torch.diag_embed((self.nu * counts[:, None]).expand(-1, blocks[0].shape[-2]))
        gram = torch.cat([rows @ rows.mT for rows in blocks], 1).double()
        factor, failed = torch.linalg.cholesky_ex(gram + prior)
        if bool(failed.any()):  # far from the solution the prior drowns in the rounding of products
            gram = torch.cat([(wide := rows.double()) @ wide.mT for rows in blocks], 1)
            factor = torch.linalg.cholesky(gram + prior)
        weight = counts * (1 + self.nu)
        cost = (weight[:, None] * factor.diagonal(dim1=-2, dim2=-1).log()).sum((-2, -1))
        inverse = (weight[:, None, None] * torch.cholesky_inverse(factor)).to(blocks[0])
        return cost, list(inverse.split([regions for regions, _ in partition.blocks], 1))

    def _unwhite(self, slope: Tensor, shape: torch.Size) -> Tensor:
        """Transpose of :meth:`_white`, for the frames that are not references."""
        batch, channels, frames, height, width = shape
        slope = (slope - slope.mean(1, keepdim=True))[:, :frames]
        return slope.unflatten(0, (batch, channels)).unflatten(-1, (height, width)) * self._scale()

    def _evaluate(self, residual: Tensor, want_gradient: bool) -> tuple[Tensor, Tensor]:
        batch, channels, _, height, width = residual.shape
        white = self._white(residual)
        cost = torch.zeros(batch, dtype=torch.float64, device=white.device)
        parts: list[Tensor] = []
        share = 1 / len(self.partitions)
        for partition in self.partitions:
            blocks = partition.gather(white)
            value, inverses = self._inverses(partition, blocks)
            cost += share * value.unflatten(0, (batch, channels)).sum(1)
            if want_gradient:
                slopes = [inverse @ rows for inverse, rows in zip(inverses, blocks, strict=True)]
                parts.append(partition.scatter(slopes, height * width))
        if not want_gradient:
            return cost, residual
        slope = parts[0] if len(parts) == 1 else share * torch.stack(parts).sum(0)
        return cost, self._unwhite(slope, residual.shape)


@dataclass(frozen=True)
class TemporalModel:
    r"""Makes the likelihood of a residual: the regions of the detector, and what is estimated from the residual.

    :param torch.Tensor distance: separation of each pixel of the detector, ``(h, w)``.
    :param tuple labels: maps of regions ``(h, w)``, pixels with too few data excluded.
    :param tuple partitions: the same, gathered.
    :param float fwhm: full width at half maximum of the PSF, in pixels.
    :param float nu: strength of the prior on the covariance.
    :param torch.Tensor references: frames without object, or ``None``.
    """

    distance: Tensor
    labels: tuple[Tensor, ...]
    partitions: tuple[Partition, ...]
    fwhm: float
    nu: float
    references: Tensor | None

    @classmethod
    def for_sequence(
        cls,
        y: Tensor,
        physics: ADI,
        regions: Regions = annular_regions,
        nu: float = 1e-3,
        references: Tensor | None = None,
    ) -> TemporalModel:
        r"""Model for one sequence.

        :param torch.Tensor y: the sequence ``(1, C, T, h, w)``; NaN where nothing was measured.
        :param ADI physics: its operator; gives the star's position and, by its PSF, the width of
            the regions.
        :param Callable regions: makes the maps of regions.
        :param float nu: strength of the prior on the covariance.
        :param torch.Tensor references: frames without object ``(1, C, T', h, w)``, or ``None``.
        :return: (:class:`TemporalModel`)
        :raises ValueError: if shapes do not fit, or the frames do not differ.
        """
        expected = (1, physics.img_size[0], physics.frames, *physics.detector_size)
        if tuple(y.shape) != expected:
            raise ValueError(
                f"y must be of shape {expected} to fit its operator, got {tuple(y.shape)}"
            )
        if float(physics.angles.amax() - physics.angles.amin()) < LEAST_ROTATION:
            raise ValueError(
                "the angles do not vary: without rotation the sky cannot be told from the halo. "
                "Check the angles (degrees, one for each frame)"
            )
        if references is not None and (
            references.ndim != 5 or references[:, :, :1].shape != y[:, :, :1].shape
        ):
            raise ValueError(
                f"references must be of shape (1, C, T', h, w) like y {tuple(y.shape)}, got {tuple(references.shape)}"
            )
        fwhm = DEFAULT_FWHM if physics.filter is None else half_maximum_width(physics.filter)
        center = physics.center[0].mean(0)
        frames = y.shape[2] + (0 if references is None else references.shape[2])
        valid = torch.isfinite(without_dead_pixels(y))
        if bool(torch.isfinite(y).any()) and not bool(valid.any()):
            raise ValueError("the frames do not differ: a sequence of copies tells nothing")
        if references is not None:
            valid = torch.cat([valid, torch.isfinite(references)], 2)
        labels = tuple(
            exclude_blind(label.to(y.device), valid)
            for label in regions(physics.detector_size, center, fwhm, frames)
        )
        distance = separation(physics.detector_size, center).to(y.device)
        partitions = tuple(Partition.from_labels(label) for label in labels)
        model = cls(distance, labels, partitions, fwhm, nu, None)
        if references is not None:
            model = replace(model, references=model.fill(references))
        return model

    def fill(self, residual: Tensor) -> Tensor:
        """Residual without NaN: missing data are replaced by :func:`~deepinv_astro.optim.missing.fill_missing`."""
        if bool(torch.isfinite(residual).all()):
            return residual
        return fill_missing(residual, self.labels[0], self.nu)

    def variance(self, residual: Tensor) -> Tensor:
        """Radial profile of the temporal variance of a residual, ``(1, C, h, w)``."""
        seen = residual.var(2, correction=0).masked_fill(self.labels[0] == EXCLUDED, math.nan)
        profile = radial_profile(seen, self.distance, 0.6 * self.fwhm, "mean")
        if not bool((profile > 0).all()):
            raise ValueError(
                "the frames do not differ at some separation: a sequence of copies tells nothing"
            )
        return profile

    def __call__(self, residual: Tensor) -> TemporalLikelihood:
        """Likelihood with the profile of the variance of a residual ``(1, C, T, h, w)`` without NaN."""
        return TemporalLikelihood(
            self.partitions, self.variance(residual), self.nu, self.references
        )


class FrozenMetric:
    r"""Symmetric map :math:`W` of sequences, from the statistics of one residual.

    Made by :meth:`TemporalLikelihood.freeze`.
    """

    def __init__(self, likelihood: TemporalLikelihood, inverses: list[list[Tensor]]):
        self._likelihood, self._inverses = likelihood, inverses

    def __call__(self, sequence: Tensor) -> Tensor:
        """Apply to sequences ``(N, C, T, h, w)``, ``N`` the batch of the residual, or any if that was 1."""
        own = self._likelihood
        count = len(sequence)
        frames = sequence.shape[2]
        scaled = sequence * own._scale()
        if own.references is not None:  # sequences are zero in the reference frames
            more = own.references.shape[2]
            scaled = torch.nn.functional.pad(scaled, (0, 0, 0, 0, 0, more))
        white = (scaled - scaled.mean(2, keepdim=True)).flatten(3).flatten(0, 1)
        slope = torch.zeros_like(white)
        for partition, inverses in zip(own.partitions, self._inverses, strict=True):
            slopes = [
                inverse.repeat(len(rows) // len(inverse), 1, 1, 1) @ rows / len(own.partitions)
                for inverse, rows in zip(inverses, partition.gather(white), strict=True)
            ]
            slope += partition.scatter(slopes, white.shape[-1])
        shape = torch.Size((count, sequence.shape[1], frames, *sequence.shape[-2:]))
        return own._unwhite(slope, shape)

    def resigned(self, residual: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""
        Another draw of the noise, made of a residual.

        In each region :math:`g`, with the eigenvectors :math:`U_g` of its covariance in time and random
        signs :math:`S_g`,

        .. math::

            \tilde R_g = U_g S_g U_g^\top R_g .

        The covariance in time is that of the residual, and each mode keeps its shape in space. What
        turns with the sky is scattered over the frames. With several partitions it is the mean over them.

        :param torch.Tensor residual: ``(B, C, T, h, w)``, ``B`` as for the call; zero where a
            pixel takes no part.
        :param torch.Generator generator: source of the signs.
        :return: (:class:`torch.Tensor`) of the same shape, of temporal mean zero.
        """
        own = self._likelihood
        scale = own._scale()
        white = residual * scale
        white = (white - white.mean(2, keepdim=True)).flatten(3).flatten(0, 1)
        out = torch.zeros_like(white)
        for partition, inverses in zip(own.partitions, self._inverses, strict=True):
            blocks = []
            for inverse, rows in zip(inverses, partition.gather(white), strict=True):
                modes = torch.linalg.eigh(inverse.double())[1].to(rows)
                modes = modes.repeat(len(rows) // len(modes), 1, 1, 1)
                signs = torch.randint(0, 2, (*rows.shape[:-1], 1), generator=generator)
                blocks.append(modes @ ((2 * signs - 1).to(rows) * (modes.mT @ rows)))
            out += partition.scatter(blocks, white.shape[-1]) / len(own.partitions)
        out = out - out.mean(1, keepdim=True)
        return out.view(residual.shape) / scale

    def state(self) -> dict[str, Tensor]:
        """
        All of it as tensors, for a file.

        :return: (dict) for :meth:`from_state`.
        :raises ValueError: if there are reference frames.
        """
        own = self._likelihood
        if own.references is not None:
            raise ValueError("a metric with reference frames has no state: freeze one without")
        state = {"variance": own.variance, "nu": torch.tensor(own.nu, dtype=torch.float64)}
        for k, (partition, inverses) in enumerate(zip(own.partitions, self._inverses, strict=True)):
            state[f"order{k}"], state[f"counts{k}"] = partition.order, partition.counts
            state[f"blocks{k}"] = torch.tensor(partition.blocks)
            state[f"inverses{k}"] = torch.cat(inverses, 1)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FrozenMetric:
        """
        The metric again.

        :param state: of :meth:`state`.
        :return: (:class:`FrozenMetric`)
        """
        partitions: list[Partition] = []
        inverses: list[list[Tensor]] = []
        while f"order{(k := len(partitions))}" in state:
            blocks = tuple((int(n), int(m)) for n, m in state[f"blocks{k}"])
            partitions.append(Partition(state[f"order{k}"], blocks, state[f"counts{k}"]))
            inverses.append(list(state[f"inverses{k}"].split([n for n, _ in blocks], 1)))
        likelihood = TemporalLikelihood(partitions, state["variance"], float(state["nu"]), None)
        return cls(likelihood, inverses)
