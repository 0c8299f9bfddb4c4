r"""What a network is told of a sequence: a first image, and the noise that is left beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from deepinv_astro.models.invariant import InvariantPart
from deepinv_astro.models.normal_equations import NormalEquations
from deepinv_astro.optim.marginal import Marginal, MarginalResult
from deepinv_astro.optim.projected import minimize_projected
from deepinv_astro.optim.temporal import FrozenMetric
from deepinv_astro.physics import ADI

#: Makes the equations of measurements and their operator.
Pilot = Callable[[Tensor, LinearPhysics], NormalEquations]

#: A symmetric linear map of measurements.
Map = Callable[[Tensor], Tensor]

#: Random signs with which the mean diagonal of a matrix is estimated; fixed, so that a pilot is a
#: function of the data.
_PROBES, _SEED = 4, 20240229

#: Fall of the marginal likelihood in one iteration, in nats, under which it is not worth another.
_TOLERANCE = 1.0


def _first_image() -> Marginal:
    solver = partial(minimize_projected, tolerance=_TOLERANCE)
    return Marginal(iterations=(40, 50), solver=solver)


@dataclass(frozen=True)
class MarginalPilot:
    r"""First image and metric of ADI sequences, by the marginal likelihood of the speckles in time.

    :math:`x_0` is the image of :class:`deepinv_astro.optim.Marginal`, with few iterations, as long
    as each gains one in the logarithm of the likelihood, and
    :math:`W` the metric of its residual,
    :class:`deepinv_astro.optim.temporal.FrozenMetric`: static halo removed, one covariance in time
    for each annulus. :math:`\sigma` is the inverse of the robust radial deviation of the null
    gradient :math:`A_-^\top W r`, with the signs of the angles flipped. No gradient flows through any of
    them.

    :param deepinv_astro.optim.Marginal method: gives :math:`x_0`; data may be missing (NaN).

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.models import MarginalPilot
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 16, 15), torch.linspace(0, 80, 9))
        >>> y = torch.randn(1, 1, 9, 16, 15, generator=torch.Generator().manual_seed(0))
        >>> one, other = (MarginalPilot()(a * y, physics) for a in (1, 4))
        >>> bool(torch.allclose(other.scale, 4 * one.scale, rtol=1e-3))
        True
    """

    method: Marginal = field(default_factory=_first_image)

    def __call__(self, y: Tensor, physics: LinearPhysics) -> NormalEquations:
        r"""Equations of sequences.

        :param torch.Tensor y: sequences ``(B, C, T, h, w)``.
        :param ADI physics: their operator; the equations use it as it is now, until it is updated.
        :return: (:class:`NormalEquations`)
        :raises ValueError: if the operator is not :class:`deepinv_astro.physics.ADI`.
        """
        with torch.no_grad():
            found = self.method.reconstruct(y, _adi(physics))
        return _equations(found, y, _adi(physics))

    def at(self, image: Tensor, y: Tensor, physics: LinearPhysics) -> NormalEquations:
        r"""Equations of sequences, whose first image is known.

        :param torch.Tensor image: :math:`x_0`, ``(B, C, H, W)``.
        :param torch.Tensor y: sequences ``(B, C, T, h, w)``.
        :param ADI physics: their operator, as for the call.
        :return: (:class:`NormalEquations`)
        :raises ValueError: if the operator is not :class:`deepinv_astro.physics.ADI`.
        """
        return _equations(self.method.at(image, y, _adi(physics)), y, _adi(physics))


def _adi(physics: LinearPhysics) -> ADI:
    if not isinstance(physics, ADI):
        raise ValueError(
            f"MarginalPilot is for ADI, got {type(physics).__name__}: give `pilot` another one, "
            "e.g. WhitePilot()"
        )
    return physics


def _equations(found: MarginalResult, y: Tensor, physics: ADI) -> NormalEquations:
    with torch.no_grad():
        residual = found.filled - physics.A(found.image)
        pairs = zip(found.likelihoods, residual.split(1), strict=True)
        metrics = tuple(likelihood.freeze(own) for likelihood, own in pairs)
    normal = WhitenedOperator(physics, metrics)
    data = torch.where(torch.isfinite(y), y, found.filled)
    back = physics.A_adjoint(normal.metric(data))
    return NormalEquations(
        normal,
        back,
        1 / found.gradient_noise,
        found.image,
        unseen=InvariantPart.of(physics),
    )


@dataclass(frozen=True)
class WhitenedOperator:
    r"""The map :math:`N = A^\top W A` of sequences, one metric :math:`W` for each.

    :param ADI physics: :math:`A`, as it is when the map is applied.
    :param tuple metrics: :math:`W` of each sequence, or one for all.
    """

    physics: ADI
    metrics: tuple[FrozenMetric, ...]

    def metric(self, v: Tensor) -> Tensor:
        r"""
        Apply :math:`W`.

        :param torch.Tensor v: sequences ``(B, C, T, h, w)``.
        :return: (:class:`torch.Tensor`) of the same shape.
        """
        if len(self.metrics) == 1:
            return self.metrics[0](v)
        parts = zip(self.metrics, v.split(1), strict=True)
        return torch.cat([own(part) for own, part in parts])

    def __call__(self, x: Tensor) -> Tensor:
        """Apply :math:`N` to images ``(B, C, H, W)``."""
        back: Tensor = self.physics.A_adjoint(self.metric(self.physics.A(x)))
        return back


@dataclass(frozen=True)
class WhitePilot:
    r"""First image of any linear operator with noise that is white, but for a projection.

    .. math::

        W = P / s^2, \qquad \sigma = s \left( \tfrac1n \operatorname{tr} A^\top P A \right)^{-1/2},

    and :math:`x_0` is smooth and sparse, :meth:`NormalEquations.smooth`. Cheap: some products with
    the operator. No gradient flows through :math:`s` and :math:`x_0`.

    :param Callable level: standard deviation :math:`s` of the noise of each measurement,
        :math:`y \mapsto` ``(B,)``, homogeneous in :math:`y`.
    :param Callable projection: :math:`P`, e.g. :func:`deepinv_astro.loss.without_temporal_mean`.
    :param float smoothness: :math:`\kappa_s` of the first image.
    :param float sparsity: :math:`\kappa_1` of the first image.
    :param int iterations: steps to it.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import without_temporal_mean
        >>> from deepinv_astro.models import WhitePilot, temporal_level
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 9, 8), torch.tensor([0.0, 40.0, 80.0]))
        >>> y = torch.randn(2, 1, 3, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> pilot = WhitePilot(temporal_level, without_temporal_mean)
        >>> pilot(y, physics).start.shape
        torch.Size([2, 1, 9, 8])
    """

    level: Map
    projection: Map = field(default=lambda v: v)
    smoothness: float = 0.3
    sparsity: float = 0.3
    iterations: int = 40

    def __call__(self, y: Tensor, physics: LinearPhysics) -> NormalEquations:
        r"""Equations of measurements.

        :param torch.Tensor y: measurements ``(B, ...)``.
        :param deepinv.physics.LinearPhysics physics: their operator.
        :return: (:class:`NormalEquations`)
        :raises ValueError: if the level of the noise is not positive.
        """
        with torch.no_grad():
            level = self.level(y)
            if level.shape != y.shape[:1] or not bool((level > 0).all()):
                raise ValueError(
                    f"`level` must return {len(y)} positive numbers, one for each sequence, "
                    f"got {level.tolist()}"
                )
            weight = level.square().reciprocal()

        def metric(v: Tensor) -> Tensor:
            return self.projection(v) * weight.view(-1, *[1] * (v.ndim - 1))

        def normal(x: Tensor) -> Tensor:
            back: Tensor = physics.A_adjoint(metric(physics.A(x)))
            return back

        back = physics.A_adjoint(metric(y))
        blank = torch.zeros_like(back.detach())
        with torch.no_grad():
            scale = _mean_diagonal(normal, blank).rsqrt()
        equations = NormalEquations(normal, back, scale, blank)
        return equations.smooth(self.smoothness, self.sparsity, self.iterations)


def temporal_level(y: Tensor) -> Tensor:
    r"""Robust level of the noise of sequences, blind to what is static.

    .. math::

        s = 1.48\, \operatorname{median}_{t, p}\, |y_{t+1,p} - y_{t,p}| \,/ \sqrt2

    :param torch.Tensor y: sequences ``(B, C, T, h, w)`` of two frames or more.
    :return: (:class:`torch.Tensor`) standard deviations ``(B,)``.
    :raises ValueError: if there is one frame only.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.models import temporal_level
        >>> noise = torch.randn(2, 1, 9, 30, 31, generator=torch.Generator().manual_seed(0))
        >>> temporal_level(100 + 3 * noise).round()
        tensor([3., 3.])
    """
    if y.ndim != 5 or y.shape[2] < 2:
        raise ValueError(
            f"sequences are of shape (B, C, T, h, w) with T at least 2, got {tuple(y.shape)}"
        )
    steps = y.diff(dim=2).abs().flatten(1)
    return 1.482602218505602 * steps.nanmedian(1).values / 2**0.5


def _mean_diagonal(normal: Map, like: Tensor) -> Tensor:
    r"""Mean of the diagonal of a matrix for each image, ``(B, 1, 1, 1)``: :math:`E\, v^\top N v / n`."""
    generator = torch.Generator().manual_seed(_SEED)
    total = like.new_zeros(len(like))
    for _ in range(_PROBES):
        v = torch.randint(0, 2, like.shape[1:], generator=generator).to(like) * 2 - 1
        v = v.expand_as(like)
        total += (v * normal(v)).flatten(1).mean(1)
    return (total / _PROBES).view(-1, 1, 1, 1)
