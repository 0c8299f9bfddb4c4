"""Statistics of a halo, to compare a simulated sequence with a real one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SequenceStatistics", "sequence_statistics"]


class SequenceStatistics(NamedTuple):
    """What one number per radius and per sequence says of a halo.

    :param torch.Tensor radii: pixels, ``(R,)``.
    :param torch.Tensor mean: temporal mean, median over each ring, ``(R,)``.
    :param torch.Tensor std: temporal standard deviation, rms over each ring, ``(R,)``.
    :param float correlation: mean correlation of consecutive frames.
    :param torch.Tensor variance_fractions: share of the temporal variance in each principal
        component, largest first, ``(T,)``.
    """

    radii: Tensor
    mean: Tensor
    std: Tensor
    correlation: float
    variance_fractions: Tensor


def sequence_statistics(
    y: Tensor,
    center: tuple[float, float],
    radii: tuple[float, ...] = (5, 10, 15, 20, 30, 40, 48),
    width: float = 4.0,
) -> SequenceStatistics:
    r"""Temporal and spatial statistics of a sequence of frames.

    :param torch.Tensor y: frames, ``(T, H, W)``, finite.
    :param tuple center: row and column of the star.
    :param tuple radii: of the rings, pixels.
    :param float width: of the rings, pixels; about the FWHM of the PSF.
    :return: :class:`SequenceStatistics`.
    :raises ValueError: if ``y`` is not ``(T, H, W)`` or has missing data.

    >>> ramp = torch.arange(4.0)[:, None, None] * torch.ones(4, 21, 31)
    >>> result = sequence_statistics(ramp, (10, 15), radii=(5,))
    >>> round(float(result.std), 4), round(float(result.variance_fractions[0]), 4)
    (1.291, 1.0)
    """
    if y.ndim != 3 or not bool(torch.isfinite(y).all()):
        raise ValueError(
            f"y must be (T, H, W) without missing data, got shape {tuple(y.shape)}; "
            "take one channel, and fill or cut the missing pixels"
        )
    rows = torch.arange(y.shape[1], dtype=y.dtype, device=y.device)[:, None] - center[0]
    columns = torch.arange(y.shape[2], dtype=y.dtype, device=y.device) - center[1]
    distance = torch.hypot(rows, columns)
    mean, variance = y.mean(dim=0), y.var(dim=0)
    rings = [(distance - r).abs() <= width / 2 for r in radii]
    flat = y.flatten(1)
    spatial = flat - flat.mean(dim=1, keepdim=True)
    spatial = spatial / spatial.norm(dim=1, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
    variances = torch.linalg.svdvals(flat - flat.mean(dim=0)).square()
    return SequenceStatistics(
        radii=torch.as_tensor(radii, dtype=y.dtype, device=y.device),
        mean=torch.stack([mean[ring].median() for ring in rings]),
        std=torch.stack([variance[ring].mean().sqrt() for ring in rings]),
        correlation=float((spatial[1:] * spatial[:-1]).sum(dim=1).mean()),
        variance_fractions=variances / variances.sum(),
    )
