r"""Equivariant imaging: what is not measured, learned from what a transformation makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepinv.loss import Loss
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor
from torch.nn import Module

from deepinv_astro.loss.sure import mean_product, root_mean_square

__all__ = ["EquivariantLoss"]


class EquivariantLoss(Loss):
    r"""Equivariant imaging loss, EI (Chen+ 2021); with scalings, scale-EI (Scanvic+ 2026).

    .. math::

        \frac1n \left\| T_g \hat x - f\!\left( A\, T_g \hat x + \varepsilon \right) \right\|^2,
        \qquad \hat x = f(y),

    for transformations :math:`T_g` under which the set of images is invariant: :math:`T_g \hat x` is
    a new image whose truth is known, in directions that :math:`A` does not see. It says nothing
    where :math:`T_g` commutes with :math:`A`, as rotations about the star do with ADI.

    It is no fidelity. Give both to :class:`deepinv.Trainer`, which evaluates :math:`f(y)` once for
    them: ``losses=[SUREGaussianLoss(), EquivariantLoss(transform)]`` is robust EI (Chen+ 2022), and
    :class:`UNSURELoss`, :class:`RecorruptedLoss` take the place of the first where the noise is
    unknown or not Gaussian.

    A transform with ``n_trans`` of :math:`k` gives :math:`k B` images, image fastest. They are
    measured and reconstructed :math:`k` times :math:`B`, so that an operator, a noise or a model
    with parameters for each image of the batch meets the images they belong to.

    Randomness is that of the transform and of the noise: pass a generator to each.

    :param Callable transform: :math:`T_g`, drawn anew at each call; a
        :class:`deepinv.transform.Transform` or any function of images that torch differentiates.
    :param bool stop_gradient: hold :math:`T_g \hat x` fixed, as published for scale-EI: else a
        network may lower the loss by images that are easy to reconstruct.
    :param Callable noise_model: map from clean measurements to noisy ones that draws
        :math:`\varepsilon`: a noise model, e.g. :class:`FittedNoise`; for none,
        :class:`deepinv.physics.ZeroNoise`. Default: the noise of the operator. Photon noise refuses
        negative rates, which reconstructions have: :class:`deepinv_astro.physics.DetectorNoise`
        with ``clip_positive=True``.
    :param Callable metric: distance of two images, one value for each image or one for all.
        Default: the mean square.
    :param float weight: factor of the loss.
    :param int margin: pixels along each edge of the image that are not compared, where the
        transform had to invent what comes from outside.
    :param float amplitude_bound: :math:`\beta`: where :math:`T_g` brightens, :math:`T_g \hat x` is
        dimmed until :math:`\| A T_g \hat x \| \le \beta \| A \hat x \|`, without which training
        with a stretch diverges. It supposes that images may be dimmed, and a linear operator.
        Default: no bound.
    :param deepinv.physics.Physics operator: :math:`A` of the transformed images, where it differs
        from that of the measurements: after a crop, which is a shift without the seam that a
        periodic one leaves inside the image, the same PSF on a smaller sky. Default: that of the
        measurements.
    :raises ValueError: if a number is negative, or the bound not positive.

    |sep|

    :Examples:

        An operator that sees the first of two pixels, a shift, and a reconstruction that leaves
        the second empty: the shift moves 3 out of sight.

        >>> import torch
        >>> from deepinv.physics import Inpainting
        >>> from deepinv_astro.loss import EquivariantLoss
        >>> class Adjoint(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return physics.A_adjoint(y)
        >>> physics = Inpainting((1, 1, 2), mask=torch.tensor([[[1.0, 0.0]]]))
        >>> loss = EquivariantLoss(lambda x: x.roll(1, -1))
        >>> x_net = torch.tensor([[[[3.0, 0.0]]]])
        >>> loss(x_net=x_net, y=None, physics=physics, model=Adjoint())  # 3^2 / 2
        tensor([4.5000])
    """

    def __init__(
        self,
        transform: Callable[[Tensor], Tensor],
        *,
        stop_gradient: bool = False,
        noise_model: Callable[[Tensor], Tensor] | None = None,
        metric: Callable[[Tensor, Tensor], Tensor] | None = None,
        weight: float = 1.0,
        margin: int = 0,
        amplitude_bound: float | None = None,
        operator: Physics | None = None,
    ) -> None:
        super().__init__()
        if weight < 0 or margin < 0:
            raise ValueError(f"weight and margin must not be negative, got {weight} and {margin}")
        if amplitude_bound is not None and not amplitude_bound > 0:
            raise ValueError(
                f"amplitude_bound must be positive, got {amplitude_bound}; None for no bound"
            )
        self.transform = transform
        self.stop_gradient = stop_gradient
        self.noise_model = noise_model
        self.metric = metric
        self.weight = weight
        self.margin = margin
        self.amplitude_bound = amplitude_bound
        self.operator = operator

    def forward(
        self, x_net: Tensor, physics: Physics, model: Module, y: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        r"""Compare transformed reconstructions with what is reconstructed of them.

        :param torch.Tensor x_net: reconstruction :math:`\hat x`, ``(B, C, H, W)`` or
            ``(B, C, T, H, W)``.
        :param deepinv.physics.Physics physics: the operator :math:`A`.
        :param torch.nn.Module model: the reconstructor :math:`f`.
        :param torch.Tensor y: not used.
        :return: (:class:`torch.Tensor`) one value for each image, ``(B,)``, or what the metric
            returns.
        :raises ValueError: if the transform gives no whole number of batches, the margin leaves
            nothing, or the operator is not linear and there is a bound.
        """
        if self.stop_gradient:
            with torch.no_grad():
                transformed = self.transform(x_net).detach()  # the identity returns its argument
        else:
            transformed = self.transform(x_net)
        batch = len(x_net)
        if len(transformed) == 0 or len(transformed) % batch:
            raise ValueError(
                f"the transform made {len(transformed)} images of {batch}: "
                "it must give a whole number of each, and not change their shape into batches"
            )
        reference = None
        if self.amplitude_bound is not None:
            if not isinstance(physics, LinearPhysics):
                raise ValueError(
                    f"{type(physics).__name__} is not linear: amplitude_bound scales measurements "
                    "with the image; set it to None"
                )
            with torch.no_grad():
                reference = self.amplitude_bound * root_mean_square(physics.A(x_net))
        if self.operator is not None:
            physics = self.operator
        values = [self._of(x, reference, physics, model) for x in transformed.split(batch)]
        return self.weight * torch.stack(values).mean(0)

    def _of(self, x: Tensor, reference: Tensor | None, physics: Physics, model: Module) -> Tensor:
        """Value of one batch of transformed images, in the order of the batch."""
        z = physics.A(x)
        if reference is not None:
            size = root_mean_square(z.detach())
            factor = torch.where(size > reference, reference / size, 1)
            z, x = factor * z, factor.reshape(-1, *[1] * (x.ndim - 1)) * x
        noisy = physics.noise(z) if self.noise_model is None else self.noise_model(z)
        found = model(physics.sensor(noisy), physics)
        return self._distance(self._inside(found), self._inside(x))

    def _distance(self, found: Tensor, x: Tensor) -> Tensor:
        if self.metric is not None:
            return self.metric(found, x)
        return mean_product(found - x, found - x)

    def _inside(self, x: Tensor) -> Tensor:
        m = self.margin
        if 2 * m >= min(x.shape[-2:]):
            raise ValueError(
                f"a margin of {m} leaves nothing of images of {tuple(x.shape[-2:])}: reduce `margin`"
            )
        return x[..., m : x.shape[-2] - m, m : x.shape[-1] - m]
