r"""Generalized recorrupted-to-recorrupted: two independent measurements made of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from deepinv.loss import Loss
from deepinv.physics import GammaNoise, GaussianNoise, Physics
from torch import Tensor
from torch.nn import Module

from deepinv_astro.loss.sure import detector_model, gaussian_model, mean_product
from deepinv_astro.physics import DetectorNoise, GaussianModel
from deepinv_astro.physics.noise import batched, over_pixels

__all__ = ["RecorruptedLoss", "RecorruptedModel", "RecorruptedPair", "recorrupt"]


class RecorruptedPair(NamedTuple):
    r"""Two measurements of mean :math:`A x`, independent of each other given :math:`x`."""

    #: :math:`y_1`, the input of the network.
    first: Tensor
    #: :math:`y_2`, its target.
    second: Tensor


def recorrupt(
    y: Tensor, noise_model: Module, alpha: float, generator: torch.Generator | None = None
) -> RecorruptedPair:
    r"""Split a measurement in two (Monroy+ 2025).

    .. math::

        y_2 = \frac{y - (1 - \alpha)\, y_1}{\alpha},

    with :math:`y_1` for :math:`y = z + n` and Gaussian noise of covariance :math:`\Sigma`

    .. math::

        y_1 = y + \sqrt{\tfrac{\alpha}{1 - \alpha}}\; \omega, \qquad \omega \sim \mathcal N(0, \Sigma),

    for photons of gain :math:`g` and background :math:`\beta`, :math:`g (y + \beta) \sim
    \mathcal P(g (z + \beta))`,

    .. math::

        y_1 = \frac{y + \beta - \omega / g}{1 - \alpha} - \beta, \qquad
        \omega \sim \operatorname{Bin}(g (y + \beta), \alpha),

    and for Gamma noise of shape :math:`\ell` and mean :math:`z`

    .. math::

        y_1 = \frac{y\, (1 - \omega)}{1 - \alpha}, \qquad
        \omega \sim \operatorname{Beta}(\ell \alpha, \ell (1 - \alpha)).

    The covariance of :math:`y_1` is that of :math:`y` divided by :math:`1 - \alpha`, and of
    :math:`y_2` divided by :math:`\alpha`.

    :param torch.Tensor y: measurements.
    :param torch.nn.Module noise_model: their noise: a model with a covariance or
        :class:`deepinv.physics.GaussianNoise`; :class:`deepinv_astro.physics.DetectorNoise` without
        read-out noise or :class:`deepinv.physics.PoissonNoise`; or
        :class:`deepinv.physics.GammaNoise`. Parameters may be batched.
    :param float alpha: :math:`\alpha`, share of the information that goes to :math:`y_2`.
    :param torch.Generator generator: source of randomness.
    :return: (:class:`RecorruptedPair`) :math:`y_1` and :math:`y_2`.
    :raises ValueError: if the noise cannot be split, the data are no counts where counts are
        needed, or :math:`\alpha` is not between 0 and 1.

    |sep|

    :Examples:

        Seven electrons, shared out:

        >>> import torch
        >>> from deepinv_astro.loss import recorrupt
        >>> from deepinv_astro.physics import DetectorNoise
        >>> y, rng = torch.full((1, 1, 1, 3), 3.5), torch.Generator().manual_seed(0)
        >>> first, second = recorrupt(y, DetectorNoise(2.0), 0.5, rng)
        >>> first + second
        tensor([[[[7., 7., 7.]]]])
        >>> first.equal(first.round())  # two electrons a unit, each counted twice
        True
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    if isinstance(noise_model, GammaNoise):
        first = _thin_gamma(y, noise_model, alpha, generator)
    elif isinstance(noise_model, GaussianModel | GaussianNoise):
        noise = gaussian_model(noise_model).sample(y, generator)
        first = y + math.sqrt(alpha / (1 - alpha)) * noise
    else:
        first = _thin_photons(y, detector_model(noise_model), alpha, generator)
    return RecorruptedPair(first, (y - (1 - alpha) * first) / alpha)


class RecorruptedLoss(Loss):
    r"""Generalized recorrupted-to-recorrupted loss (Pang+ 2021, Monroy+ 2025).

    .. math::

        \frac1m \| A f(y_1) - y_2 \|^2

    with :math:`y_1, y_2` from :func:`recorrupt`. As they are independent, its expectation is the
    risk of :math:`f` at the noisier input, plus a constant:
    :math:`\mathbb E \| A f(y_1) - A x \|^2 / m + \operatorname{tr}(\operatorname{cov} y) / (\alpha m)`.

    The model must be adapted, as :class:`deepinv.Trainer` does: ``model = loss.adapt_model(model)``
    feeds it with :math:`y_1`, and averages several draws of it in ``eval`` mode.

    :param torch.nn.Module noise_model: noise of the measurements, as in :func:`recorrupt`. Default:
        that of the operator.
    :param float alpha: :math:`\alpha`, share of the information that goes to the target.
    :param int samples: number of draws averaged in ``eval`` mode.
    :param Callable metric: distance of :math:`A f(y_1)` and :math:`y_2`. Default: the mean square
        for each image.
    :param torch.Generator rng: source of randomness.
    :raises ValueError: if :math:`\alpha` is not between 0 and 1, or there is no draw.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.loss import RecorruptedLoss
        >>> from deepinv_astro.physics import HeteroscedasticNoise
        >>> physics = Denoising(HeteroscedasticNoise(torch.tensor([1.0, 2.0])))
        >>> loss = RecorruptedLoss(alpha=0.5, rng=torch.Generator().manual_seed(0))
        >>> class Data(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return y
        >>> model = loss.adapt_model(Data())
        >>> y = torch.zeros(2, 1, 100, 100)
        >>> x_net = model(y, physics, update_parameters=True)
        >>> loss(x_net=x_net, y=y, physics=physics, model=model).round()  # (y_1 - y_2)^2
        tensor([ 4., 16.])
    """

    def __init__(
        self,
        noise_model: Module | None = None,
        alpha: float = 0.15,
        samples: int = 5,
        metric: Callable[[Tensor, Tensor], Tensor] | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < alpha < 1 or samples < 1:
            raise ValueError(
                f"alpha must lie between 0 and 1 and samples be positive, got {alpha} and {samples}"
            )
        self.noise_model = noise_model
        self.alpha = alpha
        self.samples = samples
        self.metric = metric
        self.rng = rng

    def forward(
        self, x_net: Tensor, y: Tensor, physics: Physics, model: Module, **kwargs: Any
    ) -> Tensor:
        r"""Compare the reconstruction of :math:`y_1` with :math:`y_2`.

        :param torch.Tensor x_net: output of the adapted model, called with ``update_parameters``.
        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: the operator :math:`A`.
        :param torch.nn.Module model: the adapted model.
        :return: (:class:`torch.Tensor`) one value for each image, ``(B,)``, or what the metric
            returns.
        :raises ValueError: if the model was not adapted or not called.
        """
        second = getattr(model, "target", None)
        if second is None or second.shape != y.shape:
            raise ValueError(
                "there is no target for these measurements: use model = loss.adapt_model(model) and, "
                "in training mode, x_net = model(y, physics, update_parameters=True)"
            )
        found = physics.A(x_net)
        if self.metric is not None:
            return self.metric(found, second)
        return mean_product(found - second, found - second)

    def adapt_model(self, model: Module, **kwargs: Any) -> Module:
        r"""Feed a model with recorrupted measurements.

        :param torch.nn.Module model: reconstructor :math:`f`.
        :return: (:class:`RecorruptedModel`) the adapted one.
        """
        if isinstance(model, RecorruptedModel):
            return model
        return RecorruptedModel(model, self.noise_model, self.alpha, self.samples, self.rng)


class RecorruptedModel(Module):
    r"""A reconstructor of recorrupted measurements, :math:`\frac1N \sum_i f(y_1^{(i)})`.

    One draw in training mode, ``samples`` in ``eval`` mode. Made by
    :meth:`RecorruptedLoss.adapt_model`.

    :param torch.nn.Module model: :math:`f`.
    :param torch.nn.Module noise_model: as in :class:`RecorruptedLoss`.
    :param float alpha: as in :class:`RecorruptedLoss`.
    :param int samples: :math:`N` in ``eval`` mode.
    :param torch.Generator rng: source of randomness.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.physics import Denoising, GaussianNoise
        >>> from deepinv_astro.loss import RecorruptedModel
        >>> class Data(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return y
        >>> model = RecorruptedModel(Data(), None, alpha=0.5, samples=100).eval()
        >>> out = model(torch.ones(1, 1, 30, 30), Denoising(GaussianNoise(2.0)))
        >>> abs(float(out.std()) - 0.2) < 0.03  # 2 sqrt(a / (1 - a) / 100)
        True
    """

    def __init__(
        self,
        model: Module,
        noise_model: Module | None,
        alpha: float,
        samples: int,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.noise_model = noise_model
        self.alpha = alpha
        self.samples = samples
        self.rng = rng
        # from a call with update_parameters to the loss; no part of the state
        self.target: Tensor | None = None

    def forward(
        self, y: Tensor, physics: Physics, update_parameters: bool = False, **kwargs: Any
    ) -> Tensor:
        r"""Reconstruct.

        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: the operator.
        :param bool update_parameters: keep the target of the draw for the loss, in training mode,
            as :class:`deepinv.Trainer` asks for.
        :param kwargs: given to the model.
        :return: (:class:`torch.Tensor`) the reconstruction.
        """
        noise = physics.noise_model if self.noise_model is None else self.noise_model
        total: Tensor | None = None
        samples = 1 if self.training else self.samples
        for _ in range(samples):
            pair = recorrupt(y, noise, self.alpha, self.rng)
            out = self.model(pair.first, physics, **kwargs)
            total = out if total is None else total + out
        if update_parameters:  # a mean of several draws has no target independent of all
            self.target = pair.second.detach() if self.training else None
        return torch.as_tensor(total) / samples


def _thin_photons(
    y: Tensor, noise: DetectorNoise, alpha: float, generator: torch.Generator | None
) -> Tensor:
    gain, read_noise, background = noise.parameters_for(y)
    if bool((read_noise > 0).any()):
        raise ValueError(
            "photons with read-out noise cannot be split: use SUREPoissonGaussianLoss, "
            "or Gaussian noise of their variance"
        )
    electrons = gain * (y + background)
    whole = electrons.round()
    tolerance = 0.01 + 8 * torch.finfo(y.dtype).eps * whole.abs()
    if not bool(((electrons - whole).abs() <= tolerance).all()) or bool((whole < 0).any()):
        raise ValueError(
            "measurements must be whole numbers of photons, gain (y + background), not negative: "
            "check the gain and the background, and leave the data as they were counted"
        )
    taken = torch.binomial(whole, torch.full_like(whole, alpha), generator=generator)
    return (whole - taken) / (gain * (1 - alpha)) - background


def _thin_gamma(
    y: Tensor, noise: GammaNoise, alpha: float, generator: torch.Generator | None
) -> Tensor:
    shape = over_pixels("l", batched("l", noise.l, ()), y).expand(y.shape)
    beta = torch.distributions.Beta(shape * alpha, shape * (1 - alpha))
    if generator is None:
        taken = beta.sample()
    else:  # distributions take no generator: seed torch's own from it, for this draw
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng([y.device] if y.is_cuda else []):
            torch.manual_seed(seed)
            taken = beta.sample()
    return y * (1 - taken) / (1 - alpha)
