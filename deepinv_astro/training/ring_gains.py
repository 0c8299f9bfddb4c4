r"""How bright an image should be, ring by ring, as frames see it that it was not made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.models import NormalEquations
from deepinv_astro.training.noise_levels import ring_labels

__all__ = ["RingGains", "fit_ring_gains"]


class RingGains(NamedTuple):
    """
    A factor for each ring about the star.

    :param torch.Tensor values: ``(J,)``, from the star outwards.
    :param torch.Tensor std: their posterior standard deviations.
    :param float pixels_per_datum: by how much the noise is wider than that of independent pixels.
    :param torch.Tensor labels: ring of each pixel, ``(H, W)``.
    """

    values: Tensor
    std: Tensor
    pixels_per_datum: float
    labels: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        """
        The image with its rings multiplied.

        :param torch.Tensor image: ``(1, C, H, W)``.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        return image * self.values.to(image)[self.labels.to(image.device)]


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
    curvature, slope = (torch.stack(list(found)).sum(0) for found in zip(*parts, strict=True))
    c = _pixels_per_datum([(float(p.sum()), float(q.sum())) for p, q in parts])
    prior = torch.eye(rings, dtype=torch.float64) / std**2
    posterior = torch.linalg.inv(curvature / c + prior)
    delta = posterior @ ((slope - curvature.sum(1)) / c)
    return RingGains(1 + delta, posterior.diagonal().sqrt(), c, labels)


def _forms(basis: list[Tensor], judge: NormalEquations) -> tuple[Tensor, Tensor]:
    """Quadratic and linear form of the frames held out, in the coefficients of images."""
    flat = torch.stack(basis).flatten(1).double()
    seen = torch.stack([judge.normal(v) for v in basis]).flatten(1).double()
    return (flat @ seen.mT).cpu(), (flat @ judge.back.flatten().double()).cpu()


def _pixels_per_datum(parts: list[tuple[float, float]]) -> float:
    """Jackknife variance of the common gain, in units of its variance for independent pixels."""
    curvature, slope = (sum(own) for own in zip(*parts, strict=True))
    if not curvature > 0:
        return 1.0
    left = torch.tensor([(slope - q) / (curvature - p) for p, q in parts], dtype=torch.float64)
    count = len(parts)
    variance = float((left - left.mean()).square().sum()) * (count - 1) / count
    return max(1.0, variance * curvature)
