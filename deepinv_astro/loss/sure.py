r"""Unbiased estimates of the risk for correlated, uneven, and Poisson-Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from deepinv.loss import Loss
from deepinv.physics import GaussianNoise, Physics, PoissonGaussianNoise, PoissonNoise
from torch import Tensor
from torch.nn import Module

from deepinv_astro.physics import DetectorNoise, GaussianModel, HeteroscedasticNoise

__all__ = ["SUREGaussianLoss", "SUREPoissonGaussianLoss", "without_temporal_mean"]

#: A symmetric linear map of measurements.
Map = Callable[[Tensor], Tensor]

#: Smallest step of a finite difference, in units of the rounding of the data.
_ROUNDINGS = 64


class SUREGaussianLoss(Loss):
    r"""Stein's unbiased risk estimate for Gaussian noise of any known covariance.

    For :math:`y = A x + n`, :math:`n \sim \mathcal N(0, \Sigma)`, a reconstructor :math:`f`, a
    metric :math:`W` and a projection :math:`P`, both symmetric,

    .. math::

        \frac1m \| P (y - A f(y)) \|_W^2
        - \frac1m \operatorname{tr}(P W P\, \Sigma)
        + \frac2m \operatorname{tr}\!\left( P W P \,\frac{\partial A f}{\partial y}\, \Sigma \right)

    has the expectation of :math:`\| P A (x - f(y)) \|_W^2 / m`, with :math:`m` all measurements of
    an image (Stein 1981). The last trace is :math:`\mathbb E\, b^\top P W P J b` over
    :math:`b \sim \mathcal N(0, \Sigma)`, with :math:`J b` from the step :math:`\tau b` of the data
    (Ramani+ 2008): the probe scales with the noise, and so does the step. It is widened where
    rounding of large data would swallow it.

    :param torch.nn.Module noise_model: noise with a covariance, a
        :class:`deepinv_astro.physics.GaussianModel` or :class:`deepinv.physics.GaussianNoise`.
        Default: that of the operator.
    :param Callable metric: :math:`W v`, e.g. weights, or ``noise.precision``. Default: the
        identity.
    :param Callable projection: :math:`P v`, e.g. :func:`without_temporal_mean` where an unknown
        static halo is no part of :math:`A x`. Default: the identity.
    :param float tau: :math:`\tau`, step in units of the noise.
    :param int trace_probes: number of random signs with which the first trace, a constant of the
        training, is estimated where there is a metric or a projection; without variance where
        :math:`P W P \Sigma` is diagonal.
    :param torch.Generator rng: source of the probes.
    :raises ValueError: if the noise has no covariance, or a number is not positive.

    |sep|

    :Examples:

        A denoiser that divides by two, :math:`J = I / 2`:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.loss import SUREGaussianLoss
        >>> from deepinv_astro.physics import HeteroscedasticNoise
        >>> class Half(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return y / 2
        >>> noise = HeteroscedasticNoise(torch.tensor([1.0, 2.0]), per="channel")
        >>> loss = SUREGaussianLoss(noise, rng=torch.Generator().manual_seed(0))
        >>> y = torch.zeros(1, 2, 100, 100)  # 0 - 2.5 + 2 x 2.5 / 2
        >>> loss(x_net=y, y=y, physics=Denoising(), model=Half()).abs() < 0.1
        tensor([True])
    """

    def __init__(
        self,
        noise_model: Module | None = None,
        metric: Map | None = None,
        projection: Map | None = None,
        *,
        tau: float = 1e-2,
        trace_probes: int = 8,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not tau > 0 or trace_probes < 1:
            raise ValueError(f"tau and trace_probes must be positive, got {tau} and {trace_probes}")
        if noise_model is not None:
            gaussian_model(noise_model)
        self.noise_model = noise_model
        self.metric = metric
        self.projection = projection
        self.tau = tau
        self.trace_probes = trace_probes
        self.rng = rng

    def forward(
        self, x_net: Tensor, y: Tensor, physics: Physics, model: Module, **kwargs: Any
    ) -> Tensor:
        r"""Estimate the risk.

        :param torch.Tensor x_net: reconstruction :math:`f(y)`.
        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: the operator :math:`A`.
        :param torch.nn.Module model: the reconstructor :math:`f`.
        :return: (:class:`torch.Tensor`) one estimate for each image, ``(B,)``.
        """
        noise = gaussian_model(
            physics.noise_model if self.noise_model is None else self.noise_model
        )
        h = physics.A(x_net)
        b = noise.sample(y, self.rng)
        size = root_mean_square(b)
        step = difference_step(y, size, self.tau) / torch.where(size > 0, size, 1)
        jb = derivative_along(b, step, h, y, physics, model)
        error = mean_product(y - h, self._weighted(y - h))
        return error - self._trace(noise, y) + 2 * mean_product(self._weighted(b), jb)

    def _weighted(self, v: Tensor) -> Tensor:
        return weighted(v, self.metric, self.projection)

    def _trace(self, noise: GaussianModel, y: Tensor) -> Tensor:
        if self.metric is None and self.projection is None:
            return noise.variance(y).flatten(1).mean(1)
        traces = []
        for _ in range(self.trace_probes):
            signs = random_signs(y, self.rng)
            traces.append(mean_product(self._weighted(signs), noise.covariance(signs)))
        return torch.stack(traces).mean(0)


class SUREPoissonGaussianLoss(Loss):
    r"""Unbiased risk estimate for photon and read-out noise.

    For :class:`deepinv_astro.physics.DetectorNoise` write :math:`\gamma = 1 / g`,
    :math:`\sigma = r / g`, :math:`h = A f`, :math:`M = P W P`, and

    .. math::

        v_i = \gamma (y_i + \beta_i) + \sigma^2, \qquad
        u_i = \gamma^2 (y_i + \beta_i) + 2 \gamma \sigma^2 .

    From :math:`\mathbb E\, (z_i + \beta_i)\, h_i(y) = \mathbb E\, (y_i + \beta_i - \sigma^2
    \partial_i)\, h_i(y - \gamma e_i)` (Le Montagner+ 2014) and an expansion to second order in
    :math:`\gamma`,

    .. math::

        \frac1m \| P (y - h(y)) \|_W^2 - \frac1m \sum_i v_i M_{ii}
        + \frac2m \sum_i v_i\, \partial_i (M h)_i - \frac1m \sum_i u_i\, \partial_i^2 (M h)_i

    has the expectation of :math:`\| P A (x - f(y)) \|_W^2 / m`, exactly for quadratic :math:`h`.
    (The second derivatives enter with :math:`-2 \gamma \sigma^2`, with a minus, from the noise of
    the read-out, and with :math:`-\gamma^2 (y + \beta)` from the photons, which is of the same
    order and often the larger one.)

    First derivatives are probed by random signs; second ones by :math:`c` with
    :math:`\mathbb E\, c = 0`, :math:`\mathbb E\, c^2 = \mathbb E\, c^3 = 1`, of two values, through
    :math:`h(y + \delta c) + h(y - \delta c) - 2 h(y)`. The steps are :math:`\tau` and
    :math:`\tau_2` times the rms noise of each image, widened where rounding would swallow them.

    :param torch.nn.Module noise_model: :class:`deepinv_astro.physics.DetectorNoise`,
        :class:`deepinv.physics.PoissonGaussianNoise` or :class:`deepinv.physics.PoissonNoise`.
        Default: that of the operator.
    :param Callable metric: :math:`W v`. Default: the identity.
    :param Callable projection: :math:`P v`. Default: the identity.
    :param int order: 2, or 1 to leave the second derivatives out and save two evaluations.
    :param float tau: :math:`\tau`.
    :param float tau_second: :math:`\tau_2`.
    :param torch.Generator rng: source of the probes.
    :raises ValueError: if the noise is of another kind, or a number is wrong.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.loss import SUREPoissonGaussianLoss
        >>> from deepinv_astro.physics import DetectorNoise
        >>> class Constant(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return 0 * y + 3
        >>> loss = SUREPoissonGaussianLoss(DetectorNoise(2.0, read_noise=4.0))
        >>> y = torch.full((1, 1, 2, 3), 5.0)  # (5 - 3)^2 - 5/2 - (4/2)^2
        >>> loss(x_net=0 * y + 3, y=y, physics=Denoising(), model=Constant())
        tensor([-2.5000])
    """

    def __init__(
        self,
        noise_model: Module | None = None,
        metric: Map | None = None,
        projection: Map | None = None,
        *,
        order: int = 2,
        tau: float = 1e-2,
        tau_second: float = 0.1,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not min(tau, tau_second) > 0 or order not in (1, 2):
            raise ValueError(
                "tau and tau_second must be positive and order 1 or 2, "
                f"got {tau}, {tau_second} and {order}"
            )
        if noise_model is not None:
            detector_model(noise_model)
        self.noise_model = noise_model
        self.metric = metric
        self.projection = projection
        self.order = order
        self.tau = tau
        self.tau_second = tau_second
        self.rng = rng

    def forward(
        self, x_net: Tensor, y: Tensor, physics: Physics, model: Module, **kwargs: Any
    ) -> Tensor:
        r"""Estimate the risk.

        :param torch.Tensor x_net: reconstruction :math:`f(y)`.
        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: the operator :math:`A`.
        :param torch.nn.Module model: the reconstructor :math:`f`.
        :return: (:class:`torch.Tensor`) one estimate for each image, ``(B,)``.
        """
        noise = detector_model(
            physics.noise_model if self.noise_model is None else self.noise_model
        )
        gain, read_noise, background = noise.parameters_for(y)
        gamma, sigma = 1 / gain, read_noise / gain
        h, v = physics.A(x_net), gamma * (y + background) + sigma.square()
        size = v.clamp_min(0).flatten(1).mean(1).sqrt().reshape(-1, *[1] * (y.ndim - 1))

        b = random_signs(y, self.rng)
        step = difference_step(y, size, self.tau)
        jb = derivative_along(b, step, h, y, physics, model)
        probes = self._weighted(v * b)
        error = mean_product(y - h, self._weighted(y - h))
        value = error - mean_product(probes, b) + 2 * mean_product(probes, jb)
        if self.order == 1:
            return value

        u = gamma.square() * (y + background) + 2 * gamma * sigma.square()
        c = two_point(y, self.rng)
        step = difference_step(y, size, self.tau_second, power=0.5)
        ahead, behind = (physics.A(model(y + s * c, physics)) for s in (step, -step))
        hcc = (ahead + behind - 2 * h) / step.square()
        return value - mean_product(self._weighted(u * c), hcc)

    def _weighted(self, v: Tensor) -> Tensor:
        return weighted(v, self.metric, self.projection)


def without_temporal_mean(v: Tensor) -> Tensor:
    r"""Remove the mean of a sequence over its frames, :math:`P = I - \frac1T 1 1^\top`.

    :param torch.Tensor v: sequences ``(B, C, T, H, W)``.
    :return: (:class:`torch.Tensor`) of the same shape.
    :raises ValueError: if these are not sequences.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import without_temporal_mean
        >>> without_temporal_mean(torch.tensor([1.0, 3.0, 8.0]).view(1, 1, 3, 1, 1)).flatten()
        tensor([-3., -1.,  4.])
    """
    if v.ndim != 5:
        raise ValueError(f"sequences are of shape (B, C, T, H, W), got {tuple(v.shape)}")
    return v - v.mean(2, keepdim=True)


def gaussian_model(noise: Module) -> GaussianModel:
    """The noise as a model with a covariance."""
    if isinstance(noise, GaussianModel):
        return noise
    if isinstance(noise, GaussianNoise):
        return HeteroscedasticNoise(noise.sigma)
    raise ValueError(
        f"{type(noise).__name__} has no covariance: give a GaussianModel of deepinv_astro.physics "
        "or deepinv's GaussianNoise as noise_model"
    )


def detector_model(noise: Module) -> DetectorNoise:
    """The noise in the units of a detector."""
    if isinstance(noise, DetectorNoise):
        return noise
    if isinstance(noise, PoissonGaussianNoise):
        return DetectorNoise(1 / noise.gain, noise.sigma / noise.gain)
    if isinstance(noise, PoissonNoise) and bool(noise.normalize):
        return DetectorNoise(1 / noise.gain)
    raise ValueError(
        f"{type(noise).__name__} is no Poisson-Gaussian noise of mean A x: give DetectorNoise, or "
        "deepinv's PoissonGaussianNoise or PoissonNoise(normalize=True) as noise_model"
    )


def weighted(v: Tensor, metric: Map | None, projection: Map | None) -> Tensor:
    """:math:`P W P v`, the identity where there is none."""
    v = v if projection is None else projection(v)
    v = v if metric is None else metric(v)
    return v if projection is None else projection(v)


def mean_product(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each image, divided by the number of measurements."""
    return (a * b).flatten(1).mean(1)


def root_mean_square(v: Tensor) -> Tensor:
    """Of each image, with as many axes as ``v``."""
    return v.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (v.ndim - 1))


def difference_step(y: Tensor, size: Tensor, tau: float, power: float = 1.0) -> Tensor:
    """Step ``tau size`` of a finite difference, or what rounding of the data asks for, if larger.

    ``power`` is 1 for first differences and 1/2 for second ones.
    """
    largest = y.detach().flatten(1).abs().amax(1).reshape(size.shape)
    info = torch.finfo(y.dtype)
    floor = (_ROUNDINGS * info.eps) ** power * largest
    return torch.maximum(tau * size, floor).clamp_min(info.tiny**power)


def derivative_along(
    b: Tensor, step: Tensor, h: Tensor, y: Tensor, physics: Physics, model: Module
) -> Tensor:
    r""":math:`J b`, :math:`J = \partial A f / \partial y`, from a finite step; ``h`` is :math:`A f(y)`."""
    moved: Tensor = physics.A(model(y + step * b, physics))
    return (moved - h) / step


def random_signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent values 1 and -1."""
    uniform = _uniform(like, generator)
    return 1 - 2 * (uniform < 0.5).to(like)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent numbers from 0 to 1; a generator of another device draws them there."""
    device = like.device if generator is None else generator.device
    made = torch.empty_like(like, requires_grad=False, device=device)
    return made.uniform_(generator=generator).to(like.device)


def two_point(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent values of mean 0 and second and third moments 1: the golden ratio and 1 minus it."""
    golden = (1 + math.sqrt(5)) / 2
    uniform = _uniform(like, generator)
    return 1 - golden + math.sqrt(5) * (uniform < (1 - 1 / math.sqrt(5)) / 2).to(like)
