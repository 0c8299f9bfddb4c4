r"""Weighted least squares of a sequence, in the space of the image and in units of its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from deepinv_astro.optim.smoothness import edge_preserving

#: Power iterations for the largest eigenvalue, and what is added to its estimate, which is low.
_POWER_STEPS, _MARGIN = 8, 1.1


class Unseen(Protocol):
    """The part of images that data say nothing of: that of a first image, or the least."""

    def of_first(self, x: Tensor, first: Tensor) -> Tensor:
        """Images whose unseen part is that of others."""

    def least(self, x: Tensor, first: Tensor) -> Tensor:
        """Images whose unseen part is the least, and no more than that of others."""


@dataclass(frozen=True)
class NormalEquations:
    r"""Data of an image: a quadratic cost, the noise of each pixel, and an image to start from.

    .. math::

        \tfrac12 \| A x - y \|_W^2 = \tfrac12 x^\top N x - b^\top x + \text{const}, \qquad
        N = A^\top W A, \quad b = A^\top W y .

    If :math:`W` is the inverse covariance of the noise, :math:`b` has the covariance :math:`N`. So
    :math:`\sigma_p = N_{pp}^{-1/2}` is the error of the flux of pixel :math:`p` alone, and in
    :math:`u = x / \sigma` the equations are free of units: with :math:`y \to a y` they stay as
    they are.

    :param Callable normal: :math:`x \mapsto N x`.
    :param torch.Tensor back: :math:`b`, ``(B, C, H, W)``.
    :param torch.Tensor scale: :math:`\sigma > 0`, broadcast to ``(B, C, H, W)``.
    :param torch.Tensor start: image :math:`x_0`, ``(B, C, H, W)``.
    :param torch.Tensor largest: :meth:`largest_eigenvalue`, where it is known already.
    :param Unseen unseen: the part of images that the data say nothing of, if that is known.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.models import NormalEquations
        >>> b, zero = torch.tensor([[[[8.0, 4.0]]]]), torch.zeros(1, 1, 1, 2)
        >>> equations = NormalEquations(lambda x: 4 * x, b, torch.tensor(0.5), zero)
        >>> equations.gradient(zero)  # sigma (N sigma u - b)
        tensor([[[[-4., -2.]]]])
        >>> round(float(equations.largest_eigenvalue()), 3)
        1.0
    """

    normal: Callable[[Tensor], Tensor]
    back: Tensor
    scale: Tensor
    start: Tensor
    largest: Tensor | None = None
    unseen: Unseen | None = None

    @classmethod
    def stack(cls, parts: Sequence[NormalEquations]) -> NormalEquations:
        r"""Equations of several images of one size, each with its own map :math:`N`.

        :param parts: equations, of one image or more each.
        :return: (:class:`NormalEquations`) of all of them, in this order.
        """
        counts = [len(part.start) for part in parts]

        def normal(x: Tensor) -> Tensor:
            own = zip(parts, x.split(counts), strict=True)
            return torch.cat([part.normal(images) for part, images in own])

        back, start = (torch.cat([getattr(p, n) for p in parts]) for n in ("back", "start"))
        scale = torch.cat([part.scale.expand_as(part.start) for part in parts])
        largest = torch.cat([part.largest_eigenvalue() for part in parts])
        return cls(
            normal,
            back,
            scale,
            start,
            largest,
            _Several(tuple(part.unseen for part in parts), counts),
        )

    def with_first(self, x: Tensor) -> Tensor:
        """
        Image whose part that the data say nothing of is that of :math:`x_0`, as far as that is known.

        :param torch.Tensor x: images ``(B, C, H, W)``.
        :return: (:class:`torch.Tensor`) of the same shape; the same images if nothing is known.
        """
        return x if self.unseen is None else self.unseen.of_first(x, self.start)

    def with_least(self, x: Tensor) -> Tensor:
        """
        Image whose part that the data say nothing of is the least, as far as that is known.

        :param torch.Tensor x: images ``(B, C, H, W)``.
        :return: (:class:`torch.Tensor`) of the same shape; the same images if nothing is known.
        """
        return x if self.unseen is None else self.unseen.least(x, self.start)

    def gradient(self, u: Tensor) -> Tensor:
        r"""Gradient of the cost in units of noise, :math:`\sigma (N \sigma u - b)`.

        :param torch.Tensor u: image divided by :math:`\sigma`, ``(B, C, H, W)``.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        return self.scale * (self.normal(self.scale * u) - self.back)

    def largest_eigenvalue(self) -> Tensor:
        r"""Largest eigenvalue of :math:`\sigma N \sigma`, by power iterations from :math:`b`.

        From below, without gradients; 1 where there are no data.

        :return: (:class:`torch.Tensor`) ``(B, 1, 1, 1)``.
        """
        if self.largest is not None:
            return self.largest
        with torch.no_grad():
            v = (self.scale * self.back).expand_as(self.start).clone()
            value = v.new_ones(len(v), 1, 1, 1)
            for _ in range(_POWER_STEPS):
                length = _norm(v)
                v = v / torch.where(length > 0, length, 1)
                v = self.scale * self.normal(self.scale * v)
                value = _norm(v)
        return torch.where(value > 0, value, 1)

    def smooth(self, smoothness: float, sparsity: float, iterations: int) -> NormalEquations:
        r"""The same equations, with a smooth and sparse solution to start from.

        .. math::

            \min_{u \ge 0}\; \tfrac12 u^\top \sigma N \sigma u - u^\top \sigma b + \sum_p \left[
            \kappa_s \left(\sqrt{|\nabla u|_p^2 + \varepsilon^2} - \varepsilon\right)
            + \kappa_1 u_p \right], \qquad \varepsilon = 1/4,

        by accelerated projected gradients, a number of steps that is fixed: the solution is a
        function of the data that is continuous. No gradient flows through it.

        :param float smoothness: :math:`\kappa_s`.
        :param float sparsity: :math:`\kappa_1`.
        :param int iterations: number of steps.
        :return: (:class:`NormalEquations`) the equations with that ``start``.
        :raises ValueError: if a strength is negative.
        """
        if min(smoothness, sparsity) < 0:
            raise ValueError(
                f"strengths must not be negative, got smoothness {smoothness} and sparsity {sparsity}"
            )
        epsilon = 0.25
        with torch.no_grad():
            step = 1 / (_MARGIN * self.largest_eigenvalue() + 8 * smoothness / epsilon)
            u = (self.start / self.scale).clamp_min(0)
            ahead, momentum = u, 1.0
            for _ in range(iterations):
                slope = self.gradient(ahead) + sparsity
                slope += edge_preserving(ahead, epsilon, smoothness)[1]
                new = (ahead - step * slope).clamp_min(0)
                following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
                ahead = new + (momentum - 1) / following * (new - u)
                u, momentum = new, following
        return replace(self, start=self.scale * u)


@dataclass(frozen=True)
class _Several:
    """The unseen parts of several images, each chosen on its own."""

    parts: tuple[Unseen | None, ...]
    counts: list[int]

    def of_first(self, x: Tensor, first: Tensor) -> Tensor:
        return torch.cat([p.of_first(v, w) if p else v for p, v, w in self._own(x, first)])

    def least(self, x: Tensor, first: Tensor) -> Tensor:
        return torch.cat([p.least(v, w) if p else v for p, v, w in self._own(x, first)])

    def _own(self, x: Tensor, first: Tensor) -> Iterator[tuple[Unseen | None, Tensor, Tensor]]:
        return zip(self.parts, x.split(self.counts), first.split(self.counts), strict=True)


def _norm(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
