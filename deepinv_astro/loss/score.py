r"""UNSURE in closed form, through a learned score."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.loss import Loss
from deepinv.models.base import Reconstructor
from deepinv.physics import Physics
from torch import Tensor
from torch.nn import Module

from deepinv_astro.loss.covariances import CovarianceFamily, RegionVariances

__all__ = ["ScoreDenoiser", "ScoreMatchingLoss", "closed_form_multipliers"]


def closed_form_multipliers(gram: Tensor, volumes: Tensor) -> Tensor:
    r"""Multipliers of the constraint of zero traces, from the second moments of the score.

    .. math::

        \eta = Q^{-1} v

    solves :math:`\mathbb E \operatorname{tr}(\Psi_i J) = 0` for :math:`f = y + \sum_j \eta_j a_j`, as
    :math:`\mathbb E \operatorname{tr}(\Psi_i\, \partial a_j / \partial y) = -\mathbb E\, a_i^\top a_j`.

    :param torch.Tensor gram: :math:`Q_{ij} = \mathbb E\, a_i^\top a_j / m`, ``(K, K)``.
    :param torch.Tensor volumes: :math:`v_i = \operatorname{tr}(\Psi_i) / m`, ``(K,)``.
    :return: (:class:`torch.Tensor`) :math:`\eta`, ``(K,)``.

    |sep|

    :Examples:

        Two regions, each half of the field, with scores of variance 1/4 and 1/9:

        >>> import torch
        >>> from deepinv_astro.loss import closed_form_multipliers
        >>> closed_form_multipliers(
        ...     torch.tensor([[0.125, 0.0], [0.0, 1 / 18]]), torch.full((2,), 0.5)
        ... )
        tensor([4., 9.])
    """
    q, v = gram.double(), volumes.double()
    size = q.diagonal().clamp_min(torch.finfo(q.dtype).tiny).rsqrt()  # columns of like size
    scaled = torch.linalg.solve(size[:, None] * q * size, size * v)
    return (size * scaled).to(gram)


class ScoreDenoiser(Reconstructor):
    r"""The divergence-free denoiser of a learned score.

    .. math::

        f(y) = y + \sum_j \eta_j a_j(y), \qquad a_j = \Psi_j s + \nabla \cdot \Psi_j, \qquad
        \eta = Q^{-1} v

    with the score :math:`s = (D(y) - y) / \varsigma^2` of a backbone :math:`D` shaped like a denoiser.
    The moments :math:`Q` and :math:`v` are running means over the batches of the training, buffers that
    :class:`ScoreMatchingLoss` updates. Nothing has to be tuned between noise and network: the score does
    not depend on :math:`\eta`. For denoising, :math:`A = I`.

    :param torch.nn.Module backbone: :math:`D(y, physics)`, of the shape of ``y``.
    :param float scale: :math:`\varsigma`, the rough size of the noise; a unit, it need not be right.
    :param CovarianceFamily family: the basis. Default: white noise of one level.
    :param float decay: of the running means.
    """

    gram: Tensor
    volumes: Tensor

    def __init__(
        self,
        backbone: Module,
        scale: float,
        family: CovarianceFamily | None = None,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        if not (scale > 0 and 0 <= decay < 1):
            raise ValueError(f"scale > 0 and 0 <= decay < 1 are required, got {scale} and {decay}")
        self.backbone = backbone
        self.scale = scale
        self.family = RegionVariances() if family is None else family
        self.decay = decay
        self.register_buffer("gram", torch.zeros(self.family.count, self.family.count))
        self.register_buffer("volumes", torch.zeros(self.family.count))

    def score(self, y: Tensor, physics: Physics) -> Tensor:
        r"""The score :math:`s(y)`.

        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: passed to the backbone.
        :return: (:class:`torch.Tensor`) of the shape of ``y``.
        """
        out: Tensor = self.backbone(y, physics)
        return (out - y) / self.scale**2

    @property
    def multipliers(self) -> Tensor:
        r""":math:`\eta`, made feasible. Zero before any training."""
        if not bool(self.gram.any()):
            return torch.zeros_like(self.volumes)
        return self.family.feasible(closed_form_multipliers(self.gram, self.volumes))

    def forward(self, y: Tensor, physics: Physics, **kwargs: Any) -> Tensor:
        r"""Denoise.

        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: passed to the backbone.
        :return: (:class:`torch.Tensor`) :math:`f(y)`.
        """
        drifts = self.family.drifts(self.score(y, physics), y)
        return y + torch.tensordot(self.multipliers.to(y), drifts, 1)

    @torch.no_grad()
    def observe(self, y: Tensor, s: Tensor) -> None:
        r"""Take a batch into the running means of :math:`Q` and :math:`v`.

        Both start at zero and share their weights, which cancel in :math:`Q^{-1} v`.

        :param torch.Tensor y: measurements.
        :param torch.Tensor s: their score.
        """
        for mean, value in (
            (self.gram, self.family.gram(s, y)),
            (self.volumes, self.family.volumes(y)),
        ):
            mean.lerp_(value.to(mean), 1 - self.decay)


class ScoreMatchingLoss(Loss):
    r"""Denoising score matching at one small noise level, with pairs of opposite probes.

    .. math::

        \frac{1}{2 m \tau^2} \sum_{\pm} \left( \| \pm b + \tau\, s(y \pm \tau b) \|^2 - \| b \|^2 \right),
        \qquad b \sim \mathcal N(0, I), \quad \tau = \delta \varsigma

    (Lim+ 2020, whose :math:`\tau` is random and whose probes are not paired). Its minimiser is the score of
    :math:`y + \tau b`, whose variance is :math:`\delta^2 \varsigma^2` larger than that of :math:`y`; so are the
    multipliers of white noise. The pair removes :math:`2 b^\top s(y) / \tau`, of mean 0, which
    otherwise hides what is left: an estimate of :math:`\| s \|^2 + 2 \operatorname{tr} \partial s`, of
    bounded variance for small :math:`\tau`.

    :param float delta: :math:`\delta`, in units of the denoiser's scale.
    :param torch.Generator rng: source of the probes.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.loss import ScoreDenoiser, ScoreMatchingLoss
        >>> class Zero(torch.nn.Module):  # the score of a Gaussian of variance 4
        ...     def forward(self, y, physics):
        ...         return 0 * y
        >>> generator = torch.Generator().manual_seed(0)
        >>> model, loss = ScoreDenoiser(Zero(), scale=2.0), ScoreMatchingLoss(rng=generator)
        >>> y = 2 * torch.randn(8, 1, 100, 80, generator=generator)
        >>> value = loss(y=y, physics=Denoising(), model=model)  # mean of y^2 / 16 - 2 / 4
        >>> abs(value.mean() + 0.25) < 0.02
        tensor(True)
    """

    def __init__(self, delta: float = 0.1, rng: torch.Generator | None = None) -> None:
        super().__init__()
        if not delta > 0:
            raise ValueError(f"delta must be positive, got {delta}")
        self.delta = delta
        self.rng = rng

    def forward(self, y: Tensor, physics: Physics, model: ScoreDenoiser, **kwargs: Any) -> Tensor:
        r"""Evaluate the loss; ``backward`` through it updates the moments of the denoiser.

        :param torch.Tensor y: measurements.
        :param deepinv.physics.Physics physics: passed to the score.
        :param ScoreDenoiser model: the denoiser whose score is trained.
        :return: (:class:`torch.Tensor`) one value for each image, ``(B,)``.
        :raises ValueError: if the model is no :class:`ScoreDenoiser`.
        """
        if not isinstance(model, ScoreDenoiser):
            raise ValueError(
                f"the model must be a ScoreDenoiser, got {type(model).__name__}: wrap it first"
            )
        data = y.detach()
        tau = self.delta * model.scale
        b = torch.empty_like(data).normal_(generator=self.rng)
        ahead = model.score(data + tau * b, physics)
        behind = model.score(data - tau * b, physics)
        squares = (ahead.square() + behind.square()) / 2
        value = (squares + b * (ahead - behind) / tau).flatten(1).mean(1)
        if self.training and model.training and value.requires_grad:
            middle = ((ahead + behind) / 2).detach()
            value.register_hook(lambda _: model.observe(data, middle))
        return value
