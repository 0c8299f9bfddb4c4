r"""Errors of images of disks."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from deepinv.loss.metric import Metric
from torch import Tensor

from deepinv_astro.physics.functional.psf import blur

Position = tuple[float, float]


def support(truth: Tensor, level: float = 0.05) -> Tensor:
    r"""Where a disk is: pixels with :math:`Hx > \alpha \max Hx`, a fraction of the peak.

    :param torch.Tensor truth: blurred sky ``(B, C, H, W)``; the peak of each image of the batch,
        over all wavelengths.
    :param float level: fraction :math:`\alpha`.
    :return: (:class:`torch.Tensor`) booleans ``(B, C, H, W)``.

    |sep|

    :Examples:

        >>> import torch
        >>> support(torch.tensor([[[[0.0, 0.4, 10.0]]]]), level=0.05)
        tensor([[[[False, False,  True]]]])
    """
    return truth > level * truth.amax((-3, -2, -1), keepdim=True)


def nrmse_db(estimate: Tensor, truth: Tensor, region: Tensor | None = None) -> Tensor:
    r"""Normalised error in decibels; the more, the better.

    .. math::

        -20 \log_{10} \frac{\|\hat z - z\|}{\|z\|}

    Zero decibels is the score of an empty image. Missing pixels (NaN) of the estimate count as
    zero: what a method does not see is not seen.

    :param torch.Tensor estimate: :math:`\hat z`, e.g. the blurred estimate :math:`H\hat x`, ``(B,
        C, H, W)``.
    :param torch.Tensor truth: :math:`z`, e.g. :math:`Hx`, ``(B, C, H, W)``.
    :param torch.Tensor region: booleans, where both norms are taken (see :func:`support`); default:
        the whole field.
    :return: (:class:`torch.Tensor`) ``(B,)``.

    |sep|

    :Examples:

        >>> import torch
        >>> z = torch.tensor([[[[3.0, 4.0, 0.0]]]])
        >>> nrmse_db(z + torch.tensor([0.3, 0.4, 0.0]), z).round(decimals=4)
        tensor([20.])
    """
    weight = torch.ones_like(truth) if region is None else region.to(truth)
    axes = (-3, -2, -1)
    error = ((estimate.nan_to_num(0.0) - truth) * weight).square().sum(axes)
    return -10 * torch.log10(error / (truth * weight).square().sum(axes))


def flux_ratio(estimate: Tensor, truth: Tensor, region: Tensor | None = None) -> Tensor:
    r"""Flux of the estimate over the true flux in a region; one is best.

    .. math::

        \frac{\sum_p \hat z_p}{\sum_p z_p}

    :param torch.Tensor estimate: :math:`\hat z`, ``(B, C, H, W)``; NaN counts as zero.
    :param torch.Tensor truth: :math:`z`, ``(B, C, H, W)``.
    :param torch.Tensor region: booleans; default: the support of the truth, :func:`support`.
    :return: (:class:`torch.Tensor`) ``(B,)``.

    |sep|

    :Examples:

        >>> import torch
        >>> flux_ratio(torch.tensor([[[[1.0, 2.0, 5.0]]]]), torch.tensor([[[[2.0, 4.0, 0.0]]]]))
        tensor([0.5000])
    """
    weight = (support(truth) if region is None else region).to(truth)
    axes = (-3, -2, -1)
    return (estimate.nan_to_num(0.0) * weight).sum(axes) / (truth * weight).sum(axes)


class FalseStructure(NamedTuple):
    """What an image shows where there is nothing, in units of the local noise.

    :param torch.Tensor rms: root mean square, ``(B,)``.
    :param torch.Tensor peak: largest absolute value, ``(B,)``.
    :param torch.Tensor above_two_sigma: fraction of the pixels above twice the noise, ``(B,)``.
    """

    rms: Tensor
    peak: Tensor
    above_two_sigma: Tensor


def false_structure(image: Tensor, noise: Tensor) -> FalseStructure:
    r"""False structure in the image of empty data (or in what remains of an image less the truth).

    :param torch.Tensor image: ``(B, C, H, W)``; pixels that are NaN are left out.
    :param torch.Tensor noise: local standard deviation, broadcast to the image, in its unit; pixels
        where it is not positive are left out.
    :return: (:class:`FalseStructure`) a normal variable of that deviation gives 1, about 4, and
        .0228.

    |sep|

    :Examples:

        >>> import torch
        >>> image = torch.tensor([[[[3.0, 0.0, -4.0, float("nan")]]]])
        >>> false_structure(image, torch.tensor(1.0)).peak
        tensor([4.])
    """
    ratio = image / torch.where(noise > 0, noise, torch.nan)
    known = ratio.isfinite().flatten(1)
    value = torch.where(known, ratio.flatten(1), 0.0)
    number = known.sum(1)
    return FalseStructure(
        (value.square().sum(1) / number).sqrt(),
        value.abs().amax(1),
        (value > 2).sum(1) / number,
    )


def remove_invisible(image: Tensor, center: Position | None = None) -> Tensor:
    r"""Image without its part that is invariant by rotation about the star, which ADI cannot see.

    .. math::

        \left(I - B (B^\top B)^{-1} B^\top\right) z,

    with the columns of :math:`B` piecewise linear functions of the distance from the star, one for
    each pixel of distance: an orthogonal projection, the angular Fourier mode :math:`m = 0` on the
    pixel grid. Apply it to estimate and truth alike.

    :param torch.Tensor image: ``(..., H, W)``; NaN counts as zero.
    :param tuple center: row and column of the star; default ``(H // 2, W // 2)``.
    :return: (:class:`torch.Tensor`) ``(..., H, W)``.

    |sep|

    :Examples:

        >>> import torch
        >>> cone = torch.hypot(torch.arange(7.0)[:, None] - 3, torch.arange(9.0) - 4).double()
        >>> bool(remove_invisible(cone).abs().max() < 1e-6)
        True
    """
    height, width = image.shape[-2:]
    row, column = (height // 2, width // 2) if center is None else center
    basis = _rings(height, width, float(row), float(column), image.device)
    pixels = image.nan_to_num(0.0).flatten(-2).double()
    visible: Tensor = pixels - (pixels @ basis) @ basis.mT
    return visible.to(image.dtype).view(image.shape)


@lru_cache(maxsize=8)
def _rings(height: int, width: int, row: float, column: float, device: torch.device) -> Tensor:
    """Orthonormal basis of images that depend on the separation only, ``(pixels, n)``."""
    rows = torch.arange(height, dtype=torch.float64, device=device) - row
    columns = torch.arange(width, dtype=torch.float64, device=device) - column
    distance = torch.hypot(rows[:, None], columns[None]).flatten()
    knots = torch.arange(math.ceil(float(distance.max())) + 1, device=device)
    hats = (1 - (distance[:, None] - knots).abs()).clamp_min(0)
    hats = hats[:, hats.sum(0) > 0]
    basis: Tensor = torch.linalg.qr(hats).Q
    return basis


class DiskNRMSE(Metric):
    r"""Error of a disk in decibels, on the blurred images.

    .. math::

        -20 \log_{10} \frac{\|H\hat x - Hx\|}{\|Hx\|}

    Deconvolved details finer than the PSF, which no measurement can confirm, weigh little. Higher
    is better.

    :param torch.Tensor psf: PSF that blurs both images, see :func:`blur`; ``None`` for images that
        are blurred already.
    :param float level: restrict to the support of the truth, :func:`support`; ``None`` for the
        whole field.
    :param kwargs: given to :class:`deepinv.loss.metric.Metric`.

    |sep|

    :Examples:

        >>> import torch
        >>> x = torch.zeros(1, 1, 8, 9)
        >>> x[0, 0, 3:6, 4] = 1.0
        >>> metric = DiskNRMSE(psf=torch.full((3, 3), 1 / 9))
        >>> metric(0.9 * x, x).round(decimals=3)
        tensor([20.])
    """

    def __init__(self, psf: Tensor | None = None, level: float | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.register_buffer("psf", psf)
        self.level = level
        self.lower_better = False

    def metric(self, x_net: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        r"""Decibels of each image.

        :param torch.Tensor x_net: estimate ``(B, C, H, W)``.
        :param torch.Tensor x: truth ``(B, C, H, W)``.
        :return: (:class:`torch.Tensor`) ``(B,)``.
        """
        truth = blur(x, self.psf)
        region = None if self.level is None else support(truth, self.level)
        return nrmse_db(blur(x_net.nan_to_num(0.0), self.psf), truth, region)
