r"""Missing data in a sequence: conditional means given the frames in which a pixel was seen."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinv_astro.optim.regions import EXCLUDED


def exclude_blind(labels: Tensor, valid: Tensor, least: float = 0.5) -> Tensor:
    r"""Exclude the pixels that are seen in too few frames.

    :param torch.Tensor labels: regions ``(h, w)``.
    :param torch.Tensor valid: which data exist, ``(..., T, h, w)``.
    :param float least: fraction of the frames in which a pixel must be seen, in every channel.
    :return: (:class:`torch.Tensor`) labels, :data:`~deepinv_astro.optim.regions.EXCLUDED` for
        those pixels.

    |sep|

    :Examples:

        >>> import torch
        >>> valid = torch.tensor(
        ...     [[True, True, False], [True, False, False], [True, True, False]]
        ... ).view(3, 1, 3)
        >>> exclude_blind(torch.tensor([[0, 0, 1]]), valid)
        tensor([[ 0,  0, -1]])
    """
    seen = valid.flatten(0, -4) if valid.ndim > 3 else valid[None]
    rare = (seen.double().mean(-3) < least).any(0)
    return labels.masked_fill(rare, EXCLUDED)


def fill_missing(residual: Tensor, labels: Tensor, nu: float) -> Tensor:
    r"""Replace missing data of a residual by their conditional means, region by region.

    In each region the pixels that are seen in all frames give the covariance in time
    :math:`\Sigma = \nu \bar s I + \tfrac1K R R^\top` (:math:`\bar s` the mean variance, :math:`R`
    without its temporal means). A pixel seen in the frames :math:`o` and missing in :math:`m` has
    the mean
    :math:`\mu = \mathbf 1^\top \Sigma_{oo}^{-1} r_o / \mathbf 1^\top \Sigma_{oo}^{-1} \mathbf 1`
    and takes

    .. math::

        \hat r_m = \mu + \Sigma_{mo} \Sigma_{oo}^{-1} (r_o - \mu).

    A pixel that is never seen is set to zero, which does not change in time and so exerts no force.

    :param torch.Tensor residual: ``(B, C, T, h, w)``, NaN where nothing was measured.
    :param torch.Tensor labels: regions ``(h, w)``; pixels of none are set to zero.
    :param float nu: weight of the identity, relative to the mean variance.
    :return: (:class:`torch.Tensor`) the residual without NaN.
    """
    frames = residual.shape[2]
    flat = residual.transpose(1, 2).flatten(3).movedim(1, 2).flatten(0, 1).clone()
    filled = [_fill_channel(channel, labels.flatten(), nu) for channel in flat]
    shape = (*residual.shape[:2], frames, *residual.shape[3:])
    return torch.stack(filled).view(shape)


def _fill_channel(flat: Tensor, labels: Tensor, nu: float) -> Tensor:
    """One channel (T, pixels)."""
    missing = ~torch.isfinite(flat)
    whole = ~missing.any(0)
    flat[:, labels == EXCLUDED] = 0.0
    for label in labels[(labels != EXCLUDED) & ~whole].unique():
        region = labels == label
        rows = flat[:, region & whole].double()
        rows = rows - rows.mean(0, keepdim=True)
        covariance = rows @ rows.mT / max(rows.shape[1], 1)
        level = covariance.diagonal().mean()
        floor = nu * level if level > 0 else torch.ones_like(level)
        covariance.diagonal().add_(floor)
        for pixel in torch.nonzero(region & ~whole)[:, 0]:
            flat[:, pixel] = _conditional_mean(flat[:, pixel], missing[:, pixel], covariance)
    return flat


def _conditional_mean(values: Tensor, missing: Tensor, covariance: Tensor) -> Tensor:
    seen = ~missing
    if not bool(seen.any()):
        return torch.zeros_like(values)
    r = values[seen].double()
    both = torch.stack([r, torch.ones_like(r)], 1)
    solved = torch.linalg.solve(covariance[seen][:, seen], both)
    mean = solved[:, 0].sum() / solved[:, 1].sum()
    out = values.clone()
    correction = covariance[missing][:, seen] @ (solved[:, 0] - mean * solved[:, 1])
    out[missing] = (mean + correction).to(values)
    return out


def without_dead_pixels(y: Tensor) -> Tensor:
    """The sequence with NaN at pixels that never change in time, such as zeros outside the field."""
    low = torch.where(y.isnan(), torch.inf, y).amin(2, keepdim=True)
    high = torch.where(y.isnan(), -torch.inf, y).amax(2, keepdim=True)
    return torch.where(high > low, y, torch.nan)
