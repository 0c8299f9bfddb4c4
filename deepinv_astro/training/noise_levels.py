r"""Noise whose level nobody knows: multipliers that ascend while a network descends."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deepinv_astro.optim.regions import separation
from deepinv_astro.training.loop import Share

__all__ = ["NoiseLevels", "ring_labels", "steeper"]

#: The largest multiplier, and the first one: from above the truth, training ends in a constant image.
_CEILING, _START = 10.0, 0.5
#: Relative step for an image that takes all of the noise, and weight of the past in the slope.
_RATE, _MOMENTUM = 0.1, 0.9


class NoiseLevels(nn.Module):
    r"""Variance of the noise of each ring about the star, in units of the estimated one.

    .. math::

        u_j \leftarrow \beta u_j + (1 - \beta)\, \operatorname{clip}(g_j, -1, 1), \qquad
        \log \eta_j \leftarrow \log \eta_j + \alpha\, u_j, \qquad
        g_j = \frac{1}{2 s_j} \frac{\partial \ell}{\partial \eta_j} ,

    once for each ``backward`` through a loss that uses them, with :math:`s_j` the share of ring
    :math:`j` in the pixels of a square field about the star. There :math:`g_j` is the mean divergence for
    each pixel of the ring, over the stars of a batch that use the levels: 1 for an image that takes all of the
    noise. The same rings hold for all stars of a survey; processes of ``torchrun`` share them.

    :param int rings: number of multipliers.

    |sep|

    :Examples:

        >>> from deepinv_astro.training import NoiseLevels
        >>> levels = NoiseLevels(2)
        >>> (levels() * torch.tensor([1.0, -1.0])).sum().backward()
        >>> levels.levels
        tensor([0.5050, 0.4969])
    """

    levels: Tensor
    velocity: Tensor
    share: Tensor

    def __init__(self, rings: int) -> None:
        super().__init__()
        edges = torch.arange(rings + 1) / rings
        share = (math.pi / 4 * edges.square()).diff()
        share[-1] += 1 - math.pi / 4  # the corners
        self.register_buffer("levels", torch.full((rings,), _START))
        self.register_buffer("velocity", torch.zeros(rings))
        self.register_buffer("share", share)

    def forward(self) -> Tensor:
        r"""
        Multipliers, which make a step when a loss of them is differentiated.

        :return: (:class:`torch.Tensor`) :math:`\eta`, ``(J,)``.
        """
        levels = self.levels.clone().requires_grad_()
        levels.register_hook(self._ascend)
        return levels

    @torch.no_grad()
    def _ascend(self, gradient: Tensor) -> None:
        share = Share.own()
        slope = share.sum(gradient.clone()) / share.world / (2 * self.share)
        self.velocity.lerp_(slope.clamp(-1, 1), 1 - _MOMENTUM)
        self.levels.mul_((_RATE * self.velocity).exp()).clamp_(max=_CEILING)


def ring_labels(size: tuple[int, int], center: tuple[float, float], rings: int) -> Tensor:
    """
    Number of the ring of each pixel: of equal width out to half of the shorter side; what is farther is in the last.

    :param tuple size: of the detector in pixels.
    :param tuple center: row and column of the star.
    :param int rings: number of rings.
    :return: (:class:`torch.Tensor`) integers from 0, ``(h, w)``.

    >>> from deepinv_astro.training.noise_levels import ring_labels
    >>> ring_labels((3, 5), (1.0, 1.0), 2)
    tensor([[1, 1, 1, 1, 1],
            [1, 0, 1, 1, 1],
            [1, 1, 1, 1, 1]])
    """
    return (2 * rings * separation(size, center) / min(size)).long().clamp_max(rings - 1)


def steeper(levels: Tensor, factor: float) -> Tensor:
    """
    The same values, whose gradient is multiplied on its way back.

    :param torch.Tensor levels: multipliers.
    :param float factor: of the gradient.
    :return: (:class:`torch.Tensor`) equal to ``levels``.
    """
    fixed = levels.detach()
    return fixed + factor * (levels - fixed)
