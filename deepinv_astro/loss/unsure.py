r"""Stein's unbiased risk with an unknown noise covariance, learned as multipliers of a constraint."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from deepinv.loss import Loss
from deepinv.physics import Physics
from torch import Tensor
from torch.nn import Module

from deepinv_astro.loss.covariances import CovarianceFamily, RegionVariances
from deepinv_astro.loss.sure import derivative_along, difference_step, mean_product, random_signs

__all__ = [
    "NoiseEstimate",
    "UNSURELoss",
    "corrected_variance",
    "estimate_noise",
]


class UNSURELoss(Loss):
    r"""Unknown-noise risk estimate, UNSURE: the noise is the multiplier of a zero-trace constraint.

    .. math::

        \min_f \max_\eta\ \frac1m \| y - h(y) \|^2
        + \frac2m \sum_j \eta_j \operatorname{tr}( \Psi_j J ),
        \qquad h = A f, \quad J = \partial h / \partial y

    (Tachella+ 2025). With :math:`A = I` the solution is :math:`f = y + \Sigma_\eta s(y)`, with the score
    :math:`s = \nabla \log p(y)`, :math:`\Sigma_\eta = \sum_j \eta_j \Psi_j` and
    :math:`\eta = Q^{-1} v`, :math:`Q_{ij} = \mathbb E\, s^\top \Psi_i^\top \Psi_j s / m`,
    :math:`v_i = \operatorname{tr}(\Psi_i) / m`. It is larger than the noise: for one white level
    :math:`\hat\eta = \sigma^2 / (1 - \mathrm{MMSE} / \sigma^2)`, and the error is
    :math:`\hat\eta - \sigma^2`. See :func:`estimate_noise` for the correction.

    The value is the above minus the constant :math:`\operatorname{tr}(\Sigma_\eta) / m`, i.e. the
    unbiased risk where :math:`\eta` is the truth.

    The multipliers ascend along the smoothed slope,
    :math:`u \leftarrow \beta u + (1 - \beta) g`, by :meth:`CovarianceFamily.ascend`, once for each
    ``backward`` through the loss and at no other time: not in validation, not in ``eval`` mode,
    not without gradients. They cost one evaluation of :math:`f`, whatever their number, hold no
    graph, and are saved in ``state_dict`` with the velocity :math:`u` and the pilot.

    The constraint holds as well for a constant :math:`f`, where training ends if it starts far
    above the truth. Therefore the first batch gives a robust pilot :math:`\eta^0` of the noise;
    the start is at most :math:`\eta^0 / 2`, and no multiplier ever exceeds :math:`4 \eta^0`.

    :param CovarianceFamily family: the basis :math:`\Psi_j`. Default: white noise of one level.
    :param torch.Tensor init: first multipliers ``(K,)``, reduced to half of the pilot where they
        are larger. Default: half of the pilot.
    :param float rate: relative step :math:`\alpha` of the multipliers. About ten times slower than
        the reconstructor learns.
    :param float momentum: :math:`\beta`.
    :param bool normalized: divide by the variances of the pilot, so that each region counts alike; for
        noise that differs by much. Then the value estimates the risk in that metric.
    :param float tau: step of the derivative along a probe, in units of the noise.
    :param torch.Generator rng: source of the probes; its state is saved with the loss.
    :raises ValueError: if ``init`` is not positive or of the wrong shape, or a number is out of
        range.

    |sep|

    :Examples:

        A learned gain on data that are noise alone, of variance 4. The best gain is 0:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.loss import UNSURELoss
        >>> class Gain(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gain = torch.nn.Parameter(torch.tensor(1.0))
        ...
        ...     def forward(self, y, physics):
        ...         return self.gain * y
        >>> generator = torch.Generator().manual_seed(0)
        >>> model, loss = Gain(), UNSURELoss(rate=0.05, rng=generator)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        >>> for _ in range(200):
        ...     y = 2 * torch.randn(4, 1, 32, 32, generator=generator)
        ...     optimizer.zero_grad()
        ...     loss(x_net=model(y, None), y=y, physics=Denoising(), model=model).mean().backward()
        ...     optimizer.step()
        >>> (loss.multipliers - 4).abs() < 0.1
        tensor([True])
    """

    multipliers: Tensor
    velocity: Tensor
    ceiling: Tensor
    started: Tensor

    def __init__(
        self,
        family: CovarianceFamily | None = None,
        init: Tensor | None = None,
        *,
        rate: float = 0.02,
        momentum: float = 0.9,
        normalized: bool = False,
        tau: float = 1e-2,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.family = RegionVariances() if family is None else family
        count = self.family.count
        start = torch.full((count,), torch.inf) if init is None else torch.as_tensor(init).clone()
        if start.shape != (count,) or not start[0] > 0:
            raise ValueError(
                f"init must hold {count} multipliers, the first one positive, got {init}"
            )
        if not (0 < rate <= 0.5 and 0 <= momentum < 1 and tau > 0):
            raise ValueError(
                "0 < rate <= 0.5, 0 <= momentum < 1 and tau > 0 are required, "
                f"got {rate}, {momentum} and {tau}"
            )
        self.rate = rate
        self.momentum = momentum
        self.normalized = normalized
        self.tau = tau
        self.rng = rng
        self.register_buffer("multipliers", start)
        self.register_buffer("velocity", torch.zeros_like(start))
        self.register_buffer("ceiling", torch.full_like(start, torch.inf))
        self.register_buffer("started", torch.tensor(False))

    def get_extra_state(self) -> Tensor:
        """State of the generator, a part of ``state_dict``; empty if there is none."""
        return torch.empty(0, dtype=torch.uint8) if self.rng is None else self.rng.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the probes where a saved loss was."""
        if self.rng is not None and len(state):
            self.rng.set_state(state.cpu())

    def forward(
        self, x_net: Tensor, y: Tensor, physics: Physics, model: Module, **kwargs: Any
    ) -> Tensor:
        r"""The Lagrangian at the current multipliers.

        :param torch.Tensor x_net: reconstruction :math:`f(y)`.
        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: the operator :math:`A`.
        :param torch.nn.Module model: the reconstructor :math:`f`.
        :return: (:class:`torch.Tensor`) one value for each image, ``(B,)``.
        """
        data = y.detach()
        eta, ceiling = self._state(data)
        h = physics.A(x_net)
        b = random_signs(data, self.rng)
        scale = self.family.scale(eta, data)
        size = torch.where(torch.isinf(scale), 0, scale).expand_as(data)
        step = difference_step(data, root_of_mean(size), self.tau)
        jb = derivative_along(b, step, h, y, physics, model)
        probe = self.family.apply_to(eta, b, data)
        weight = 1 / self.family.scale(ceiling / 4, data) if self.normalized else 1.0
        value = mean_product(y - h, weight * (y - h)) + mean_product(weight * probe, 2 * jb - b)
        if self.training and getattr(model, "training", True) and value.requires_grad:
            product = jb.detach()

            def ascend(gradient: Tensor) -> None:
                self._ascend(self.family.slopes(b, product, data), eta, ceiling)

            value.register_hook(ascend)
        return value

    def _state(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers and their ceiling; at the start, from these data."""
        if bool(self.started):
            return self.multipliers.clone(), self.ceiling.clone()
        pilot = self.family.pilot(y).to(self.multipliers)
        start = torch.where(torch.isfinite(self.multipliers), self.multipliers, pilot)
        return self.family.feasible(self.family.limit(start, pilot / 2)), 4 * pilot

    @torch.no_grad()
    def _ascend(self, slope: Tensor, eta: Tensor, ceiling: Tensor) -> None:
        self.velocity.lerp_(slope.to(self.velocity), 1 - self.momentum)
        ascended = self.family.ascend(eta, self.velocity, self.rate)
        self.multipliers.copy_(self.family.limit(ascended, ceiling))
        self.ceiling.copy_(ceiling)
        self.started.fill_(True)


class NoiseEstimate(NamedTuple):
    r"""What multipliers say about the noise of each region.

    ``multipliers`` :math:`\hat\eta`, which bound the variance from above; ``ratio``
    :math:`\delta = \mathrm{MMSE} / \sigma^2`; ``variance`` :math:`\sigma^2 = \hat\eta (1 - \delta)`.
    """

    multipliers: Tensor
    ratio: Tensor
    variance: Tensor


def corrected_variance(multipliers: Tensor, sensitivity: Tensor) -> NoiseEstimate:
    r"""Noise variance from multipliers, and the sensitivity of known pixels.

    .. math::

        \sigma^2 = \frac{\hat\eta}{1 - J_S}, \qquad
        \delta = \frac{\mathrm{MMSE}}{\sigma^2} = \frac{-J_S}{1 - J_S}

    Derivation. The best :math:`f` is :math:`y + \hat\eta s(y)`, and
    :math:`-\partial_i s_i = (1 - \operatorname{Var}(x_i \mid y) / \sigma^2) / \sigma^2`. Hence
    :math:`J_{ii} = 1 - (\hat\eta / \sigma^2)(1 - \operatorname{Var}(x_i \mid y) / \sigma^2)`: on average 0
    (the constraint, :math:`\hat\eta = \sigma^2 / (1 - \delta)`), and
    :math:`J_S = 1 - \hat\eta / \sigma^2 < 0` on a set of pixels whose :math:`x` the data determine.
    The residual cannot tell: :math:`\mathbb E (y - f)^2 = \hat\eta` for any :math:`\sigma`.
    Where no pixel is known the result is too large, as :math:`J_S` is then not negative enough.

    :param torch.Tensor multipliers: :math:`\hat\eta`.
    :param torch.Tensor sensitivity: :math:`J_S`, values above 0 count as 0.
    :return: (NoiseEstimate) with :math:`\delta` and :math:`\sigma^2`.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import corrected_variance
        >>> corrected_variance(torch.tensor([5.0]), torch.tensor([-0.25])).variance
        tensor([4.])
    """
    s = sensitivity.clamp_max(0)
    return NoiseEstimate(multipliers, -s / (1 - s), multipliers / (1 - s))


@torch.no_grad()
def estimate_noise(
    loss: UNSURELoss,
    y: Tensor,
    physics: Physics,
    model: Module,
    *,
    quantile: float = 0.1,
    smooth: int = 5,
    probes: int = 16,
    seed: int = 0,
) -> NoiseEstimate:
    r"""Corrected noise level of each region, from a trained reconstructor and data.

    :func:`corrected_variance` with :math:`J_S` the mean of :math:`J_{ii}` over the quietest pixels of a
    region: those where :math:`J_{ii}`, from half of the probes and smoothed by a box, is below the
    quantile. It is evaluated with the other half, so that choosing the smallest values biases
    nothing.

    :param UNSURELoss loss: a trained loss with :class:`RegionVariances`.
    :param torch.Tensor y: measurements.
    :param deepinv.physics.Physics physics: the operator :math:`A`.
    :param torch.nn.Module model: the reconstructor, put in ``eval`` mode during the call.
    :param float quantile: share of the pixels taken as quiet.
    :param int smooth: odd width of the box in pixels, 1 for none.
    :param int probes: even number of probes.
    :param int seed: of the probes.
    :return: (NoiseEstimate) one entry for each region.
    :raises ValueError: if the family is another one, or a number is out of range.
    """
    family = loss.family
    if not isinstance(family, RegionVariances):
        raise ValueError(
            f"the correction is known for RegionVariances, not for {type(family).__name__}; "
            "its multipliers bound the variance from above"
        )
    if not (0 < quantile <= 1 and smooth % 2 == 1 and probes >= 2 and probes % 2 == 0):
        raise ValueError(
            "quantile must be in (0, 1], smooth odd and probes even, "
            f"got {quantile}, {smooth} and {probes}"
        )
    generator = torch.Generator(y.device).manual_seed(seed)
    training = model.training
    model.eval()
    eta, _ = loss._state(y)
    size = root_of_mean(torch.where(torch.isinf(family.scale(eta, y)), 0, eta.mean()).expand_as(y))
    step = difference_step(y, size, loss.tau)
    h = physics.A(model(y, physics))
    halves = [torch.zeros_like(y), torch.zeros_like(y)]
    for number in range(probes):
        b = random_signs(y, generator)
        jb = derivative_along(b, step, h, y, physics, model)
        halves[number % 2] += 2 * b * jb / probes
    model.train(training)
    flat = halves[0].reshape(-1, 1, *y.shape[-2:])
    box = torch.nn.functional.avg_pool2d(flat, smooth, 1, smooth // 2, count_include_pad=False)
    choice, labels = box.view_as(y), family._over(y)
    found = []
    for j in range(family.count):
        inside = labels == j
        chosen = choice[inside]
        few = max(1, round(quantile * chosen.numel()))
        found.append(halves[1][inside][chosen <= chosen.kthvalue(few).values].mean())
    return corrected_variance(eta, torch.stack(found))


def root_of_mean(variance: Tensor) -> Tensor:
    """Root of the mean over each image, with as many axes."""
    return variance.flatten(1).mean(1).sqrt().reshape(-1, *[1] * (variance.ndim - 1))
