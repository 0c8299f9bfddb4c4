r"""Likelihood of a sequence whose speckles have an unknown mean and covariance in space, patch by patch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from deepinv.optim import DataFidelity
from deepinv.physics import Physics
from torch import Tensor

from deepinv_astro.optim.patch_statistics import (
    Fit,
    Gaps,
    fill_gaps,
    find_gaps,
    fit_patches,
    frame_weights,
    quadratic_forms,
    summed_precision,
    usable_places,
)
from deepinv_astro.optim.patches import Patches


class TemporalScale(str, Enum):
    r"""Scale factor :math:`\sigma_t^2` of the covariance in each frame and patch."""

    CONSTANT = "constant"
    ROBUST = "robust"


class TemporalMean(str, Enum):
    """Static part of the speckles: as estimated, or at its best value for each residual."""

    FROZEN = "frozen"
    PROFILED = "profiled"


@dataclass(frozen=True)
class PatchStatistics:
    r"""Statistics of the speckles, frozen; made by :meth:`PatchCovariance.estimate`.

    :param Patches patches: :math:`N` patches of :math:`K` places.
    :param torch.Tensor mean: :math:`\hat m`, ``(B, C, N, F, K)``, for the frames of each fold.
    :param torch.Tensor precision: :math:`\hat C^{-1}`, ``(B, C, N, F, K, K)``, the identity at
        unused places.
    :param torch.Tensor shrinkage: :math:`\hat\rho`, ``(B, C, N, F)``.
    :param torch.Tensor weights: :math:`\sigma_t^{-2}`, ``(B, C, N, T)``, of mean one over the
        frames.
    :param torch.Tensor usable: places that take part, ``(B, C, N, K)``.
    :param torch.Tensor valid: data that were seen, ``(B, C, T, h, w)``.
    :param torch.Tensor folds: fold of each frame, ``(T,)``.
    """

    patches: Patches
    mean: Tensor
    precision: Tensor
    shrinkage: Tensor
    weights: Tensor
    usable: Tensor
    valid: Tensor
    folds: Tensor


@dataclass(frozen=True)
class PatchCovariance:
    r"""Model of the speckles: in each patch, independent frames :math:`r_t \sim \mathcal N(m, \sigma_t^2 C)`.

    :math:`\hat m` and :math:`\hat S` are the sample mean and covariance over time, and
    :math:`\hat C = (1-\hat\rho)\,\hat S + \hat\rho \operatorname{diag}(\hat S)` (PACO, Flasseur+
    2018; the shrinkage is
    :func:`deepinv_astro.optim.patch_statistics.shrinkage_factor`). Missing data (NaN) are
    marginalised: the estimate is
    the one of maximum likelihood for the pixels that were seen, by expectation-maximisation.

    With folds, the statistics for the frames of a fold are those of the other frames
    (cross-fitting).

    :param Patches patches: where the patches lie.
    :param torch.Tensor folds: fold of each frame, integers from 0, ``(T,)``; see
        :func:`interleaved_folds` and
        :func:`contiguous_folds`. Default: every frame takes part in the statistics of all.
    :param TemporalScale scale: ``"constant"`` for :math:`\sigma_t = 1`, or ``"robust"`` for the
        fixed point
        :math:`\sigma_t^2 = (r_t-\hat m)^\top \hat C^{-1} (r_t-\hat m) / K`, with the mean of
        :math:`\sigma_t^{-2}`
        pinned to one at each step (Flasseur+ 2020).
    :param float rho: shrinkage in [0, 1] instead of the data-driven one.
    :param int iterations: most steps of the fixed points.
    :param float tol: relative change at which they stop.
    :param int max_bytes: memory for temporary arrays.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.optim.patches import Patches
        >>> model = PatchCovariance(Patches.grid((4, 6), (2, 3)))
        >>> r = torch.randn(1, 1, 8, 4, 6, generator=torch.Generator().manual_seed(0))
        >>> model.estimate(r).precision.shape
        torch.Size([1, 1, 4, 1, 6, 6])
    """

    patches: Patches
    folds: Tensor | None = None
    scale: TemporalScale | str = TemporalScale.CONSTANT
    rho: float | None = None
    iterations: int = 30
    tol: float = 1e-5
    max_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        TemporalScale(self.scale)
        if self.rho is not None and not 0 <= self.rho <= 1:
            raise ValueError(f"rho must be between 0 and 1, got {self.rho}")
        if self.folds is not None and len(self.folds.unique()) < 2:
            raise ValueError(
                "folds must hold at least two different values, or be None for no cross-fitting"
            )

    def estimate(self, residual: Tensor) -> PatchStatistics:
        r"""Statistics of a residual :math:`r = y - A x`.

        Pixels seen in fewer than three frames, or that do not change in time, carry no information
        and are left out.

        :param torch.Tensor residual: ``(B, C, T, h, w)``; missing data are NaN.
        :return: (:class:`PatchStatistics`) in the precision of the residual.
        :raises ValueError: if the shape does not fit, or no pixel can be used.
        """
        folds = self._checked_folds(residual)
        batch, channels, frames = residual.shape[:3]
        valid = residual.isfinite()
        flat = torch.where(valid, residual, 0).flatten(0, 1)
        patches = self.patches.to(residual.device)
        fits = []
        per_patch = (
            8
            * batch
            * channels
            * patches.index.shape[1]
            * (6 * frames + 6 * patches.index.shape[1])
        )
        for part in _parts(len(patches.index), per_patch, self.max_bytes):
            vectors = patches.gather(flat, part).flatten(0, 1).double()
            real = (patches.weight[part] > 0).repeat(batch * channels, 1)[:, None]
            seen = patches.gather(valid.flatten(0, 1), part).flatten(0, 1) & real
            fit = self._fit(vectors, seen, folds)
            fits.append([value.to(residual).unflatten(0, (batch, channels, -1)) for value in fit])
        mean, precision, rho, weights, usable = (
            torch.cat(values, 2) for values in zip(*fits, strict=True)
        )
        if not bool(usable.any()):
            raise ValueError(
                "no pixel is seen in three frames or more with values that change: check the data and the bad pixels"
            )
        return PatchStatistics(patches, mean, precision, rho, weights, usable.bool(), valid, folds)

    def _checked_folds(self, residual: Tensor) -> Tensor:
        if residual.ndim != 5 or tuple(residual.shape[-2:]) != self.patches.size:
            raise ValueError(
                f"the residual must be of shape (B, C, T, h, w) with (h, w) = {self.patches.size}, "
                f"got {tuple(residual.shape)}"
            )
        frames = residual.shape[2]
        if self.folds is None:
            return torch.zeros(frames, dtype=torch.long, device=residual.device)
        if len(self.folds) != frames:
            raise ValueError(
                f"folds are given for {len(self.folds)} frames, the residual has {frames}"
            )
        return self.folds.to(residual.device).unique(return_inverse=True)[1]

    def _fit(self, vectors: Tensor, seen: Tensor, folds: Tensor) -> Fit:
        """Statistics of some patches, stacked over the folds."""
        number = int(folds.max()) + 1
        training = [folds != f if number > 1 else folds == f for f in range(number)]
        usable = torch.stack(
            [usable_places(vectors[:, use], seen[:, use]) for use in training]
        ).all(0)
        seen = seen & usable[:, None]
        fits = [
            fit_patches(
                vectors[:, use],
                seen[:, use],
                usable,
                scaled=TemporalScale(self.scale) is TemporalScale.ROBUST,
                rho=self.rho,
                iterations=self.iterations,
                tol=self.tol,
            )
            for use in training
        ]
        weights = fits[0].weights
        if number > 1:
            weights = self._weights_out_of_fold(vectors, seen, folds, fits)
        mean, precision, rho = (torch.stack([fit[i] for fit in fits], 1) for i in range(3))
        return Fit(mean, precision, rho, weights, usable)

    def _weights_out_of_fold(
        self, vectors: Tensor, seen: Tensor, folds: Tensor, fits: list[Fit]
    ) -> Tensor:
        weights = vectors.new_ones(vectors.shape[:2])
        if TemporalScale(self.scale) is TemporalScale.CONSTANT:
            return weights
        squares = torch.zeros_like(weights)
        for f, fit in enumerate(fits):
            own, shown = vectors[:, folds == f], seen[:, folds == f]
            gaps = find_gaps(fit.usable[:, None] & ~shown)
            squares[:, folds == f] = quadratic_forms(own, shown, fit.mean, fit.precision, gaps)
        return frame_weights(squares, seen.sum(-1))


class PatchLikelihood(DataFidelity):
    r"""Gaussian likelihood of the speckles with frozen statistics of patches.

    .. math::

        J(x) = \frac12 \sum_n \sum_t \sigma_{n,t}^{-2} \left\| D_n^{1/2} (r_{n,t} - m_n) \right\|^2_{\hat C_n^{-1}} ,
        \qquad r = y - A x ,

    with :math:`D` the weights of overlapping patches (one for a tiling). The mean is
    :math:`\hat m_n` as estimated (``"frozen"``: Flasseur+ 2021), or :math:`m_n = \arg\min_m J` for
    each :math:`x` (``"profiled"``, the default): the
    weighted temporal mean of the residual is projected out, so that the cost does not depend on
    any static halo. Missing data drop out of their patch in their frame: the norm is that of the
    marginal Gaussian of the pixels seen.

    :param PatchStatistics statistics: frozen statistics.
    :param TemporalMean mean: ``"profiled"`` or ``"frozen"``.
    :param int max_bytes: memory for temporary arrays.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.optim.patches import Patches
        >>> r = torch.randn(1, 1, 8, 4, 6, generator=torch.Generator().manual_seed(0)).double()
        >>> likelihood = PatchLikelihood(
        ...     PatchCovariance(Patches.grid((4, 6), (2, 3)), rho=1.0).estimate(r)
        ... )
        >>> likelihood.of_residual(r + 5.0)[0]  # half of 8 frames x 24 pixels, whatever the mean
        tensor([96.], dtype=torch.float64)
    """

    def __init__(
        self,
        statistics: PatchStatistics,
        mean: TemporalMean | str = TemporalMean.PROFILED,
        max_bytes: int = 1 << 28,
    ):
        super().__init__()
        self.temporal_mean = TemporalMean(mean)
        self.max_bytes = max_bytes
        self._size = statistics.patches.size
        self._gaps: dict[tuple[int, torch.device], list[Gaps]] = {}
        self.register_buffer("index", statistics.patches.index)
        self.register_buffer("overlap", statistics.patches.weight.to(statistics.precision))
        root = (self.overlap * statistics.usable + ~statistics.usable).sqrt()[:, :, :, None, :]
        self.register_buffer(
            "precision", statistics.precision * root[..., :, None] * root[..., None, :]
        )
        self.register_buffer("mean", statistics.mean)
        for name in ("weights", "usable", "valid", "folds"):
            self.register_buffer(name, getattr(statistics, name))

    def fn(self, x: Tensor, y: Tensor, physics: Physics, *args: Any, **kwargs: Any) -> Tensor:
        """Cost :math:`J(x)`, shape ``(B,)``."""
        return self.of_residual(y - physics.A(x))[0]

    def grad(self, x: Tensor, y: Tensor, physics: Physics, *args: Any, **kwargs: Any) -> Tensor:
        r"""Gradient :math:`-A^\top \partial J/\partial r` of the cost in the image, shape of ``x``."""
        return -physics.A_adjoint(self.of_residual(y - physics.A(x))[1])

    def of_residual(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        r"""Cost and its gradient in the residual :math:`y - A x`.

        :param torch.Tensor residual: ``(B, C, T, h, w)``; what is missing in the statistics may be
            NaN.
        :return: cost ``(B,)`` in double precision and gradient ``(B, C, T, h, w)``, zero at
            missing data.
        :raises ValueError: if the shape is not the one of the statistics.
        """
        if residual.shape != self.valid.shape:
            raise ValueError(
                f"the residual must have the shape {tuple(self.valid.shape)} of the statistics, "
                f"got {tuple(residual.shape)}"
            )
        patches = Patches(self.index, self.overlap, self._size)
        flat = torch.where(self.valid, residual, 0).flatten(0, 1)
        cost: Tensor | float = 0.0
        gradient = torch.zeros_like(flat)
        places, frames = self.index.shape[1], residual.shape[2]
        per_patch = residual.element_size() * flat.shape[0] * places * 6 * frames
        for part in _parts(len(self.index), per_patch, self.max_bytes):
            vectors = patches.gather(flat, part)
            value, slope = self._of_vectors(vectors.flatten(0, 1), part)
            cost = cost + value.unflatten(0, (*residual.shape[:2], -1)).sum((1, 2))
            gradient = gradient + patches.scatter(slope.view_as(vectors), part)
        return torch.as_tensor(cost), gradient.unflatten(0, residual.shape[:2])

    def _of_vectors(self, vectors: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Cost (Q,) and gradient (Q, T, K) of the vectors of some patches."""
        gaps = self._find_gaps(part)
        seen = self._seen(part) if gaps else self.usable[:, :, part].flatten(0, 2)[:, None]
        weights = self.weights[:, :, part].flatten(0, 2)
        precision = self.precision[:, :, part].flatten(0, 2)
        vectors = vectors * seen

        def weighted(v: Tensor) -> Tensor:
            filled = fill_gaps(v, precision, gaps, self.folds)
            return _product(filled, precision, self.folds) * weights[..., None] * seen

        if self.temporal_mean is TemporalMean.FROZEN:
            mean = self.mean[:, :, part].flatten(0, 2)[:, self.folds]
        elif gaps or precision.shape[1] > 1:
            total = summed_precision(precision, weights, gaps, self.folds)
            mean = torch.linalg.solve(total, weighted(vectors).sum(1))[:, None]
        else:
            mean = ((weights[..., None] * vectors).sum(1) / weights.sum(1, keepdim=True))[:, None]
        centred = (vectors - mean) * seen
        slope = weighted(centred)
        return 0.5 * (slope * centred).sum(-1).double().sum(-1), slope

    def _seen(self, part: slice) -> Tensor:
        patches = Patches(self.index, self.overlap, self._size)
        seen = patches.gather(self.valid.flatten(0, 1), part).flatten(0, 1)
        return seen & self.usable[:, :, part].flatten(0, 2)[:, None]

    def _find_gaps(self, part: slice) -> list[Gaps]:
        key = (part.start, self.valid.device)
        if key not in self._gaps:
            self._gaps[key] = find_gaps(
                self.usable[:, :, part].flatten(0, 2)[:, None] & ~self._seen(part)
            )
        return self._gaps[key]


def interleaved_folds(frames: int, number: int) -> Tensor:
    """Folds 0, 1, 2, 0, 1, 2, ...: statistics of empty sky stay normal, at little gain in throughput.

    :param int frames: number of frames.
    :param int number: number of folds, between 2 and ``frames``.
    :return: (:class:`torch.Tensor`) fold of each frame.
    :raises ValueError: if there are fewer frames than folds.

    |sep|

    :Examples:

        >>> interleaved_folds(5, 2)
        tensor([0, 1, 0, 1, 0])
    """
    _check_folds(frames, number)
    return torch.arange(frames) % number


def contiguous_folds(frames: int, number: int) -> Tensor:
    """Folds 0, 0, 1, 1, 2, 2, ...: a companion moves between folds, which raises its throughput.

    :param int frames: number of frames.
    :param int number: number of folds, between 2 and ``frames``.
    :return: (:class:`torch.Tensor`) fold of each frame.
    :raises ValueError: if there are fewer frames than folds.

    |sep|

    :Examples:

        >>> contiguous_folds(5, 2)
        tensor([0, 0, 0, 1, 1])
    """
    _check_folds(frames, number)
    return torch.arange(frames) * number // frames


def _check_folds(frames: int, number: int) -> None:
    if not 2 <= number <= frames:
        raise ValueError(
            f"the number of folds must be between 2 and the {frames} frames, got {number}"
        )


def _product(vectors: Tensor, precision: Tensor, folds: Tensor) -> Tensor:
    """Each vector (Q, T, K) times the precision (Q, F, K, K) of its fold."""
    number = precision.shape[1]
    if number == 1:
        return vectors @ precision[:, 0]
    products = [vectors[:, folds == f] @ precision[:, f] for f in range(number)]
    return torch.cat(products, 1)[:, folds.argsort(stable=True).argsort()]


def _parts(patches: int, bytes_each: int, max_bytes: int) -> Iterator[slice]:
    """Slices of the patches that fit in memory."""
    step = max(1, max_bytes // bytes_each)
    return (slice(start, min(start + step, patches)) for start in range(0, patches, step))
