r"""How bright an image should be, ring by ring, as frames see it that it was not made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.models import NormalEquations
from deepinv_astro.training.noise_levels import ring_labels

__all__ = ["RingGains", "fit_ring_gains"]

#: Groups that must show something, for their scatter to mean anything.
_FEWEST = 3


class RingGains(NamedTuple):
    """
    A factor for each ring about the star.

    :param torch.Tensor values: ``(J,)``, from the star outwards.
    :param torch.Tensor std: their posterior standard deviations.
    :param torch.Tensor without: the same gains without each group of frames in turn, ``(G, J)``.
    :param float pixels_per_datum: by how much the noise is wider than that of independent pixels.
    :param torch.Tensor labels: ring of each pixel, ``(H, W)``.
    """

    values: Tensor
    std: Tensor
    without: Tensor
    pixels_per_datum: float
    labels: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        """
        The image with its rings multiplied.

        :param torch.Tensor image: ``(1, C, H, W)``.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        return image * self.values.to(image)[self.labels.to(image.device)]

    def leaving(self, group: int) -> RingGains:
        """
        Those of the other groups: frames of this one may judge them.

        :param int group: number of the group of frames.
        :return: (:class:`RingGains`)
        """
        return self._replace(values=self.without[group])


def fit_ring_gains(
    images: Sequence[Tensor],
    judges: Sequence[NormalEquations],
    center: tuple[float, float],
    *,
    rings: int = 6,
    std: float = 0.15,
) -> RingGains:
    r"""Gains of the rings of an image, by frames that it was not made of.

    With :math:`\hat x_g` made without the frames of group :math:`g`, :math:`N_g, b_g` the normal equations of
    these frames, and :math:`1_j` the pixels of ring :math:`j`,

    .. math::

        \min_\delta\; \frac1c \sum_g \left( x_g^\top N_g x_g - 2\, b_g^\top x_g \right)
        + \frac{\| \delta \|^2}{s^2}, \qquad x_g = \sum_j (1 + \delta_j)\, 1_j \hat x_g ,

    a quadratic form in few numbers: the most probable gains, where :math:`\delta_j \sim N(0, s^2)`.
    The metric takes pixels as independent, and speckles are as wide as the PSF: :math:`c \ge 1`
    is the variance of a gain common to all rings, by the jackknife over the groups, over that of the metric.
    Where less than three groups show anything there is no jackknife, and gains are one.

    :param list images: :math:`\hat x_g`, ``(1, C, H, W)``.
    :param list judges: equations of the frames held out.
    :param tuple center: row and column of the star in the image.
    :param int rings: number of rings, of equal width; corners are in the last.
    :param float std: :math:`s`.
    :return: (:class:`RingGains`)

    |sep|

    :Examples:

        Two pixels, of which the frames held out see 1.5 and 0.8 times what is shown:

        >>> import torch
        >>> from deepinv_astro.models import NormalEquations
        >>> from deepinv_astro.training import fit_ring_gains
        >>> x, n = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[[1e6, 1e6]]]])
        >>> judge = NormalEquations(lambda v: n * v, n * x * torch.tensor([1.5, 0.8]), x, x)
        >>> fit_ring_gains([x] * 3, [judge] * 3, (0.0, 0.0), rings=2).values
        tensor([1.5000, 0.8000], dtype=torch.float64)
    """
    size = images[0].shape[-2:]
    labels = ring_labels((size[0], size[1]), center, rings)
    masks = [(labels == j).to(images[0]) for j in range(rings)]
    pairs = zip(images, judges, strict=True)
    parts = [_forms([mask * x for mask in masks], judge) for x, judge in pairs]
    curvatures, slopes = (torch.stack(found) for found in zip(*parts, strict=True))
    c = _pixels_per_datum(curvatures.sum((1, 2)), slopes.sum(1))
    prior = torch.eye(rings, dtype=torch.float64) / std**2

    def solve(curvature: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        posterior = torch.linalg.inv(curvature / c + prior)
        return 1 + posterior @ ((slope - curvature.sum(1)) / c), posterior

    curvature, slope = curvatures.sum(0), slopes.sum(0)
    values, posterior = solve(curvature, slope)
    left = zip(curvature - curvatures, slope - slopes, strict=True)
    without = torch.stack([solve(*own)[0] for own in left])
    return RingGains(values, posterior.diagonal().sqrt(), without, c, labels)


def _forms(basis: list[Tensor], judge: NormalEquations) -> tuple[Tensor, Tensor]:
    """Quadratic and linear form of the frames held out, in the coefficients of images."""
    flat = torch.stack(basis).flatten(1).double()
    seen = torch.stack([judge.normal(v) for v in basis]).flatten(1).double()
    return (flat @ seen.mT).cpu(), (flat @ judge.back.flatten().double()).cpu()


def _pixels_per_datum(curvatures: Tensor, slopes: Tensor) -> float:
    """Jackknife variance of the common gain, in units of its variance for independent pixels."""
    count, curvature = len(curvatures), curvatures.sum()
    if int((curvatures > 0).sum()) < _FEWEST:
        return math.inf
    left = (slopes.sum() - slopes) / (curvature - curvatures)
    variance = (left - left.mean()).square().sum() * (count - 1) / count
    return max(1.0, float(variance * curvature))
