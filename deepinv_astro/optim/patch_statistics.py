r"""Mean and shrunk covariance of patches, with missing data and scale factors in time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

#: Smallest number of frames in which a pixel must be seen to take part.
FEWEST_FRAMES = 3
#: Smallest scale factor: a frame never weighs more than the inverse of this, relative to the plain mean.
SMALLEST_SCALE = 0.05
#: Elements of the largest temporary array in the treatment of missing data.
_MAX_ELEMENTS = 1 << 24


class Gaps(NamedTuple):
    """Vectors of patches with the same number of missing pixels: patch, frame ``(n,)`` and places ``(n, j)``."""

    patch: Tensor
    frame: Tensor
    places: Tensor


class Fit(NamedTuple):
    r"""Statistics of patches.

    ``mean`` :math:`\hat m` ``(Q, K)``; ``precision`` :math:`\hat C^{-1}` ``(Q, K, K)``, the
    identity at unused places; ``shrinkage`` :math:`\hat\rho` ``(Q,)``; ``weights``
    :math:`\sigma_t^{-2}` ``(Q, T)``; ``usable`` ``(Q, K)``.
    """

    mean: Tensor
    precision: Tensor
    shrinkage: Tensor
    weights: Tensor
    usable: Tensor


def shrinkage_factor(covariance: Tensor, frames: int) -> Tensor:
    r"""Weight :math:`\hat\rho` of the diagonal in a shrunk covariance (Flasseur+ 2018; Chen+ 2010).

    .. math::

        \hat\rho = \frac{\operatorname{tr}(\hat S^2) + \operatorname{tr}^2(\hat S) - 2 \sum_i \hat S_{ii}^2}
        {(T+1) \left( \operatorname{tr}(\hat S^2) - \sum_i \hat S_{ii}^2 \right)},
        \quad\text{clipped to } [0, 1].

    :param torch.Tensor covariance: sample covariances :math:`\hat S`, ``(..., K, K)``.
    :param int frames: number :math:`T` of frames.
    :return: (:class:`torch.Tensor`) ``(...)``; one where no two pixels are correlated.

    |sep|

    :Examples:

        >>> import torch
        >>> shrinkage_factor(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), 9)
        tensor(0.3000)
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    squares = covariance.square().sum((-2, -1))
    diagonal = variance.square().sum(-1)
    numerator = squares + variance.sum(-1).square() - 2 * diagonal
    denominator = (frames + 1) * (squares - diagonal)
    tiny = torch.finfo(covariance.dtype).eps * squares
    return torch.where(
        denominator > tiny,
        numerator / denominator.clamp_min(torch.finfo(covariance.dtype).tiny),
        1.0,
    ).clamp(0, 1)


def shrink(covariance: Tensor, rho: Tensor) -> Tensor:
    r"""Shrunk covariance :math:`\hat C = (1-\hat\rho)\,\hat S + \hat\rho \operatorname{diag}(\hat S)`."""
    diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    return torch.lerp(covariance, diagonal, rho[..., None, None])


def inverse(covariance: Tensor, usable: Tensor) -> Tensor:
    """Inverse on the usable places, the identity elsewhere; computed on the correlations, which are well scaled."""
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(usable, 1 / std, torch.zeros_like(std))
    correlation = covariance * scale[..., :, None] * scale[..., None, :]
    correlation = correlation + torch.diag_embed((~usable).to(std))
    root = torch.linalg.cholesky(correlation)
    precision = torch.cholesky_inverse(root) * scale[..., :, None] * scale[..., None, :]
    return precision + torch.diag_embed((~usable).to(std))


def find_gaps(missing: Tensor) -> list[Gaps]:
    """Group the vectors with missing pixels by their number; ``missing`` is boolean ``(Q, T, K)``."""
    count = missing.sum(-1)
    gaps: list[Gaps] = []
    for number in count.unique().tolist():
        if number:
            patch, frame = (count == number).nonzero(as_tuple=True)
            places = missing[patch, frame].nonzero()[:, 1].view(-1, number)
            step = max(1, _MAX_ELEMENTS // (number * missing.shape[-1]))
            gaps += map(
                Gaps._make,
                zip(patch.split(step), frame.split(step), places.split(step), strict=True),
            )
    return gaps


def _blocks(
    gaps: list[Gaps], precision: Tensor, folds: Tensor
) -> Iterator[tuple[Gaps, Tensor, Tensor]]:
    """Rows of the precision at the missing places, (n, j, K), and their block at these places, (n, j, j)."""
    for gap in gaps:
        patch, fold = gap.patch[:, None], folds[gap.frame][:, None]
        rows = precision[patch, fold, gap.places]
        block = rows.gather(-1, gap.places[:, None, :].expand(-1, gap.places.shape[1], -1))
        yield gap, rows, block


def fill_gaps(vectors: Tensor, precision: Tensor, gaps: list[Gaps], folds: Tensor) -> Tensor:
    r"""Put the conditional mean at missing places, given the pixels seen.

    With it the quadratic form of the whole vector equals the one of the marginal distribution of
    the pixels seen,
    :math:`r_o^\top (C_{oo})^{-1} r_o`, and :math:`C^{-1} r` is zero at the missing places:
    zero-mean Gaussian data are
    marginalised exactly.

    :param torch.Tensor vectors: ``(Q, T, K)``, zero at missing places.
    :param torch.Tensor precision: :math:`C^{-1}` of each fold, ``(Q, F, K, K)``.
    :param list gaps: from :func:`find_gaps`.
    :param torch.Tensor folds: fold of each frame, ``(T,)``.
    :return: (:class:`torch.Tensor`) completed vectors, shape of ``vectors``.
    """
    filled = vectors
    for gap, rows, block in _blocks(gaps, precision, folds):
        seen = (rows @ vectors[gap.patch, gap.frame][..., None])[..., 0]
        values = -torch.linalg.solve(block, seen)
        where = (gap.patch[:, None], gap.frame[:, None], gap.places)
        filled = filled.index_put(where, values)
    return filled


def gap_covariance(precision: Tensor, gaps: list[Gaps], folds: Tensor) -> Tensor:
    """Sum over the frames of the conditional covariance of the missing places, ``(Q, K, K)``, for one fold."""
    total = torch.zeros_like(precision[:, 0])
    for gap, _, block in _blocks(gaps, precision, folds):
        where = (gap.patch[:, None, None], gap.places[:, :, None], gap.places[:, None, :])
        total.index_put_(where, torch.linalg.inv(block), accumulate=True)
    return total


def summed_precision(precision: Tensor, weights: Tensor, gaps: list[Gaps], folds: Tensor) -> Tensor:
    r"""Sum over the frames of the weighted marginal precisions, :math:`\sum_t \sigma_t^{-2} (C_{oo})^{-1}`.

    :param torch.Tensor precision: ``(Q, F, K, K)``.
    :param torch.Tensor weights: ``(Q, T)``.
    :return: (:class:`torch.Tensor`) ``(Q, K, K)``.
    """
    share = torch.stack([weights[:, folds == f].sum(1) for f in range(precision.shape[1])], 1)
    total = torch.einsum("qf,qfij->qij", share, precision)
    for gap, rows, block in _blocks(gaps, precision, folds):
        lost = rows.mT @ torch.linalg.solve(block, rows)
        total = total.index_add(0, gap.patch, -weights[gap.patch, gap.frame][:, None, None] * lost)
    return total


def frame_weights(squares: Tensor, seen: Tensor) -> Tensor:
    r"""Weights :math:`\sigma_t^{-2}` from the quadratic forms of the frames, their mean pinned to one.

    :math:`\sigma_t^2 = q_t / K_t`, with :math:`q_t` the quadratic form of the :math:`K_t` pixels
    seen. Without the pin
    the common factor of :math:`\sigma_t^2 C` drifts.

    :param torch.Tensor squares: :math:`q_t`, ``(Q, T)``.
    :param torch.Tensor seen: :math:`K_t`, ``(Q, T)``; frames where it is zero weigh one.
    :return: (:class:`torch.Tensor`) ``(Q, T)``.

    |sep|

    :Examples:

        >>> import torch
        >>> frame_weights(torch.tensor([[4.0, 1.0, 8.0]]), torch.tensor([[2, 1, 2]]))
        tensor([[0.8571, 1.7143, 0.4286]])
    """
    active = seen > 0
    scale = squares / seen.clamp_min(1)
    level = (scale * active).sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp_min(1)
    weights = 1 / scale.clamp_min(SMALLEST_SCALE * level).clamp_min(torch.finfo(scale.dtype).tiny)
    weights = torch.where(active, weights, 0)
    weights = weights / (weights.sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp_min(1))
    return torch.where(active, weights, 1)


def usable_places(vectors: Tensor, valid: Tensor) -> Tensor:
    """Places seen in at least :data:`FEWEST_FRAMES` frames, with values that change in time; ``(Q, K)``."""
    high = torch.where(valid, vectors, -torch.inf).amax(1)
    low = torch.where(valid, vectors, torch.inf).amin(1)
    return (valid.sum(1) >= FEWEST_FRAMES) & (high > low)


def fit_patches(
    vectors: Tensor,
    valid: Tensor,
    usable: Tensor,
    *,
    scaled: bool,
    rho: float | None,
    iterations: int,
    tol: float,
) -> Fit:
    r"""Mean, shrunk covariance and scale factors by fixed point; missing pixels by expectation-maximisation.

    :math:`\hat m = \sum_t \sigma_t^{-2} r_t / \sum_t \sigma_t^{-2}`,
    :math:`\hat S = \frac1T \sum_t [\sigma_t^{-2} (r_t - \hat m)(r_t - \hat m)^\top + V_t]`, with
    the missing part of
    :math:`r_t` at its conditional mean and :math:`V_t` its conditional covariance. Whole data
    without scale factors
    need one step.

    :param torch.Tensor vectors: ``(Q, T, K)`` in double precision, zero where missing.
    :param torch.Tensor valid: where a pixel was seen, ``(Q, T, K)``.
    :param torch.Tensor usable: places that take part, ``(Q, K)``.
    :param bool scaled: estimate scale factors.
    :param float rho: shrinkage; ``None`` for :func:`shrinkage_factor`.
    :param int iterations: most iterations.
    :param float tol: stop when the covariance changes by less than this, relative to the variances.
    :return: (:class:`Fit`).
    """
    frames = vectors.shape[1]
    folds = torch.zeros(frames, dtype=torch.long, device=vectors.device)
    seen = valid & usable[:, None]
    gaps = find_gaps(usable[:, None] & ~valid)
    weights = vectors.new_ones(vectors.shape[:2])
    vectors = vectors * seen
    counts = seen.sum(1).clamp_min(1)
    mean = vectors.sum(1) / counts
    variance = ((vectors - mean[:, None]) * seen).square().sum(1) / counts
    precision = inverse(torch.diag_embed(variance), usable)
    factor = torch.zeros_like(variance[:, 0])
    previous = None
    for _ in range(iterations if gaps or scaled else 1):
        centred = fill_gaps((vectors - mean[:, None]) * seen, precision[:, None], gaps, folds)
        shift = (weights[..., None] * centred).sum(1) / weights.sum(1)[:, None]
        mean, centred = mean + shift, centred - shift[:, None]
        covariance = (weights[..., None] * centred).mT @ centred
        covariance = (covariance + gap_covariance(precision[:, None], gaps, folds)) / frames
        covariance = covariance * usable[:, :, None] * usable[:, None, :]
        factor = (
            shrinkage_factor(covariance, frames) if rho is None else torch.full_like(factor, rho)
        )
        covariance = shrink(covariance, factor)
        precision = inverse(covariance, usable)
        if scaled:
            squares = quadratic_forms(vectors, seen, mean, precision, gaps)
            weights = frame_weights(squares, seen.sum(-1))
        if previous is not None and _settled(covariance, previous, tol):
            break
        previous = covariance
    return Fit(mean * usable, precision, factor, weights, usable)


def quadratic_forms(
    vectors: Tensor, seen: Tensor, mean: Tensor, precision: Tensor, gaps: list[Gaps]
) -> Tensor:
    r"""Quadratic forms :math:`q_t = (r_t - m)_o^\top (C_{oo})^{-1} (r_t - m)_o` of the pixels seen, ``(Q, T)``."""
    folds = torch.zeros(vectors.shape[1], dtype=torch.long, device=vectors.device)
    filled = fill_gaps((vectors - mean[:, None]) * seen, precision[:, None], gaps, folds)
    return ((filled @ precision) * filled).sum(-1)


def _settled(covariance: Tensor, previous: Tensor, tol: float) -> bool:
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = (std[:, :, None] * std[:, None, :]).clamp_min(torch.finfo(std.dtype).tiny)
    return bool(((covariance - previous).abs() <= tol * scale).all())
