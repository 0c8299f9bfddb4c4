r"""Equivariant splitting: one part of a measurement predicts the other, seen by virtual operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from deepinv.loss import Loss
from deepinv.physics import LinearPhysics
from deepinv.transform import Transform
from torch import Tensor
from torch.nn import Module

__all__ = [
    "BernoulliMask",
    "EquivariantSplittingLoss",
    "Split",
    "SplitModel",
    "VirtualOperator",
]

#: A mask of 0 and 1 for measurements: ``mask(y, generator)``, of axes that broadcast to ``y``.
Mask = Callable[[Tensor, torch.Generator | None], Tensor]


class VirtualOperator(LinearPhysics):
    r"""The operator that sees a transformed image, and only some of its measurements.

    .. math::

        \tilde A = S A T_g, \qquad \tilde A^\top = T_g^\top A^\top S

    with the transpose of :math:`T_g`, not its inverse: they differ for all but permutations of
    pixels, and a network or a solver that is fed with the inverse in its place solves another
    problem. The transpose is taken by automatic differentiation, exactly.

    :param deepinv.physics.LinearPhysics physics: :math:`A`, shared.
    :param Callable transform: :math:`T_g`, linear, fixed, from images to images.
    :param torch.Tensor kept: diagonal of :math:`S`, of axes that broadcast to measurements. Default:
        the identity.

    |sep|

    :Examples:

        A shift that loses what leaves the image:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv_astro.loss import VirtualOperator
        >>> shift = lambda x: torch.nn.functional.pad(x, (1, -1))
        >>> virtual = VirtualOperator(Denoising(), shift, torch.tensor([1.0, 0.0, 1.0]))
        >>> virtual.A(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
        tensor([[[[0., 0., 2.]]]])
        >>> virtual.A_adjoint(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
        tensor([[[[0., 3., 0.]]]])
    """

    def __init__(
        self,
        physics: LinearPhysics,
        transform: Callable[[Tensor], Tensor],
        kept: Tensor | None = None,
    ) -> None:
        super().__init__(noise_model=physics.noise_model, sensor_model=physics.sensor_model)
        for name in ("solver", "max_iter", "tol", "implicit_backward_solver"):
            setattr(self, name, getattr(physics, name))
        self.physics = physics
        self.transform = transform
        self.register_buffer("kept", kept)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        r"""Measure, :math:`S A T_g x`.

        :param torch.Tensor x: images.
        :param kwargs: given to the operator.
        :return: (:class:`torch.Tensor`) measurements, zero where they are not kept.
        """
        return self._keep(self.physics.A(self.transform(x), **kwargs))

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        r"""Transpose of :meth:`A`.

        :param torch.Tensor y: measurements.
        :param kwargs: given to the operator.
        :return: (:class:`torch.Tensor`) images.
        """
        back = self.physics.A_adjoint(self._keep(y), **kwargs)
        images: Tensor = _Transposed.apply(back, self.transform)
        return images

    def _keep(self, y: Tensor) -> Tensor:
        return y if self.kept is None else self.kept * y


class _Transposed(torch.autograd.Function):
    """Transpose of a linear map of images; its own derivative is the map."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.linear = linear
        with torch.enable_grad():
            x = torch.zeros_like(v).requires_grad_()
            (transposed,) = torch.autograd.grad(linear(x), x, v)
        return transposed

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.linear(gradient[0]), None


class BernoulliMask:
    r"""Each pixel is kept with the same probability, independently, in all channels and frames alike.

    For noise that is independent from pixel to pixel.

    :param float ratio: probability :math:`p` of a pixel to be kept.
    :raises ValueError: if it is not between 0 and 1.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import BernoulliMask
        >>> mask = BernoulliMask(0.9)(torch.zeros(2, 3, 50, 40), torch.Generator().manual_seed(0))
        >>> mask.shape, round(float(mask.mean()), 1)
        (torch.Size([2, 1, 50, 40]), 0.9)
    """

    def __init__(self, ratio: float = 0.9) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, got {ratio}")
        self.ratio = ratio

    def __call__(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw a mask.

        :param torch.Tensor y: measurements.
        :param torch.Generator generator: source of randomness.
        :return: (:class:`torch.Tensor`) 0 and 1, one for each image and pixel.
        """
        shape = (len(y), *[1] * (y.ndim - 3), *y.shape[-2:])
        uniform = y.new_empty(shape).uniform_(generator=generator)
        return (uniform < self.ratio).to(y)


class Split(NamedTuple):
    r"""One draw of a splitting."""

    #: Diagonal of :math:`S`, 1 for what the network sees.
    kept: Tensor
    #: Parameters :math:`g` of the transform.
    parameters: Mapping[str, Tensor]


class SplitModel(Module):
    r"""An equivariant reconstructor of parts of measurements.

    .. math::

        R(y, A) = \frac1N \sum_i T_{g_i}\, f( S_i\, y,\ S_i A T_{g_i} )

    One draw of :math:`(S, g)` in training mode, ``samples`` in ``eval`` mode. Made by
    :meth:`EquivariantSplittingLoss.adapt_model`.

    :param torch.nn.Module model: :math:`f`, called with ``(y, physics)``.
    :param deepinv.transform.Transform transform: as in :class:`EquivariantSplittingLoss`.
    :param Callable mask: as in :class:`EquivariantSplittingLoss`.
    :param int samples: :math:`N` in ``eval`` mode.
    :param torch.Generator rng: source of the masks.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv.transform import Shift
        >>> from deepinv_astro.loss import BernoulliMask, SplitModel
        >>> class Adjoint(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return physics.A_adjoint(y)
        >>> model = SplitModel(Adjoint(), Shift(), BernoulliMask(0.7), samples=1)
        >>> y = torch.arange(12.0).view(1, 1, 3, 4)
        >>> x_net = model(y, Denoising(), update_parameters=True)
        >>> torch.equal(x_net, model.drawn.kept * y)  # shifted back and forth
        True
    """

    def __init__(
        self,
        model: Module,
        transform: Transform,
        mask: Mask,
        samples: int,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.transform = transform
        self.mask = mask
        self.samples = samples
        self.rng = rng
        # from a call with update_parameters to the loss; no part of the state
        self.drawn: Split | None = None

    def forward(
        self, y: Tensor, physics: LinearPhysics, update_parameters: bool = False, **kwargs: Any
    ) -> Tensor:
        r"""Reconstruct.

        :param torch.Tensor y: measurements.
        :param deepinv.physics.LinearPhysics physics: the operator.
        :param bool update_parameters: keep the draw for the loss, in training mode, as
            :class:`deepinv.Trainer` asks for.
        :param kwargs: given to the model.
        :return: (:class:`torch.Tensor`) the reconstruction.
        :raises ValueError: if the transform makes several images of one.
        """
        with torch.no_grad():
            image = physics.A_adjoint(y)
        outs, split = [], None
        for _ in range(1 if self.training else self.samples):
            split = Split(self.mask(y, self.rng), self.transform.get_params(image))
            outs.append(self.reconstruct(y, physics, split, **kwargs))
        if update_parameters:  # a mean of several draws has no part that none of them saw
            self.drawn = split if self.training else None
        return torch.stack(outs).mean(0)

    def reconstruct(self, y: Tensor, physics: LinearPhysics, split: Split, **kwargs: Any) -> Tensor:
        r"""The reconstruction of one draw, :math:`T_g f(S y, S A T_g)`.

        :param torch.Tensor y: measurements.
        :param deepinv.physics.LinearPhysics physics: the operator.
        :param Split split: mask and parameters.
        :param kwargs: given to the model.
        :return: (:class:`torch.Tensor`) the reconstruction.
        :raises ValueError: if the transform makes several images of one.
        """

        def transform(x: Tensor) -> Tensor:
            out: Tensor = self.transform.transform(x, **split.parameters)
            if len(out) != len(x):
                raise ValueError(
                    f"the transform made {len(out)} images of {len(x)}: set its n_trans to 1; "
                    "`samples` is the number of draws in eval mode"
                )
            return out

        virtual = VirtualOperator(physics, transform, split.kept)
        return transform(self.model(split.kept * y, virtual, **kwargs))


class _Held(Module):
    """A split model with its draw held fixed: a function of the measurements."""

    def __init__(self, model: SplitModel, split: Split) -> None:
        super().__init__()
        self.model, self.split = model, split
        self.training = model.training  # its parts keep their own mode

    def forward(self, y: Tensor, physics: LinearPhysics, **kwargs: Any) -> Tensor:
        return self.model.reconstruct(y, physics, self.split, **kwargs)


class EquivariantSplittingLoss(Loss):
    r"""Equivariant splitting loss (Sechaud+ 2026).

    .. math::

        \frac{1}{\operatorname{tr}(I - S)} \| (I - S) (y - A\, R(y, A)) \|^2
        + w\, \ell_{\text{cons}}(R), \qquad R(y, A) = T_g\, f( S y,\ S A T_g ),

    with a random part :math:`S` of the measurements and a random transformation :math:`T_g`. The
    part that the network does not see judges it, without bias where the noise of the two parts
    is independent. The network meets the operators :math:`A T_g` in place of :math:`A` alone: as a
    function of the data and the operator, :math:`R(y, A T_g) = T_g^{-1} R(y, A)` on average, and what
    one of them does not see is learned from the others. It evaluates the network once, where
    :class:`EquivariantLoss` does so twice.

    What can be learned is the range of :math:`\mathbb E_g\, T_g^\top A^\top A T_g`, with :math:`T_g`
    as it is given: scalings by factors above 1 make :math:`A` see finer detail. (For
    :class:`EquivariantLoss` it is the other way round: there they are below 1.)

    The model must be adapted, as :class:`deepinv.Trainer` does: ``model = loss.adapt_model(model)``.

    The consistency judges all measurements, for :math:`R` as a function of :math:`y` at fixed
    :math:`S` and :math:`g`: :class:`SUREGaussianLoss` or :class:`UNSURELoss` where there is noise,
    :class:`deepinv.loss.MCLoss` where there is none.

    :param deepinv.transform.Transform transform: :math:`T_g`, linear, with ``n_trans`` of 1, not
        joined by ``|``.
    :param Callable mask: ``mask(y, generator)`` draws :math:`S`; for noise that is correlated, of
        parts larger than the correlation. Default: ``BernoulliMask(0.9)``.
    :param deepinv.loss.Loss consistency: :math:`\ell_{\text{cons}}`, one that needs no adapted
        model. Default: none.
    :param float weight: :math:`w`.
    :param int samples: number of draws averaged in ``eval`` mode.
    :param torch.Generator rng: source of the masks; the transform has its own.
    :raises ValueError: if a number is out of range, or the transform is a choice.

    |sep|

    :Examples:

        Data of ones, and a network that fills nothing in: the hidden part is missed by 1.

        >>> import torch
        >>> from deepinv.physics import Denoising
        >>> from deepinv.transform import Shift
        >>> from deepinv_astro.loss import EquivariantSplittingLoss
        >>> class Adjoint(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return physics.A_adjoint(y)
        >>> loss, y = EquivariantSplittingLoss(Shift()), torch.ones(2, 1, 30, 20)
        >>> model = loss.adapt_model(Adjoint())
        >>> x_net = model(y, Denoising(), update_parameters=True)
        >>> loss(x_net=x_net, y=y, physics=Denoising(), model=model)
        tensor([1., 1.])
    """

    def __init__(
        self,
        transform: Transform,
        *,
        mask: Mask | None = None,
        consistency: Loss | None = None,
        weight: float = 1.0,
        samples: int = 5,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if weight < 0 or samples < 1:
            raise ValueError(
                f"weight must not be negative and samples be positive, got {weight} and {samples}"
            )
        if any(hasattr(part, "recent_choice") for part in transform.modules()):
            raise ValueError(
                "transforms joined by | choose anew at each application, and have no transpose: "
                "pass one of them as `transform`"
            )
        self.transform = transform
        self.mask = BernoulliMask() if mask is None else mask
        self.consistency = consistency
        self.weight = weight
        self.samples = samples
        self.rng = rng

    def forward(
        self, x_net: Tensor, y: Tensor, physics: LinearPhysics, model: Module, **kwargs: Any
    ) -> Tensor:
        r"""Judge a reconstruction by what it did not see.

        :param torch.Tensor x_net: output of the adapted model, called with ``update_parameters``.
        :param torch.Tensor y: measurements.
        :param deepinv.physics.LinearPhysics physics: the operator :math:`A`.
        :param torch.nn.Module model: the adapted model.
        :return: (:class:`torch.Tensor`) one value for each image, ``(B,)``.
        :raises ValueError: if the model was not adapted or not called.
        """
        split = getattr(model, "drawn", None)
        if not isinstance(model, SplitModel) or split is None or len(split.kept) != len(y):
            raise ValueError(
                "there is no splitting of these measurements: use model = loss.adapt_model(model) "
                "and, in training mode, x_net = model(y, physics, update_parameters=True)"
            )
        hidden = (1 - split.kept).expand_as(y).flatten(1)
        error = (y - physics.A(x_net)).flatten(1).square()
        value = (hidden * error).sum(1) / hidden.sum(1).clamp_min(1)
        if self.consistency is not None:
            held = _Held(model, split)
            cost = self.consistency(x_net=x_net, y=y, physics=physics, model=held, **kwargs)
            value = value + self.weight * cost
        return value

    def adapt_model(self, model: Module, **kwargs: Any) -> Module:
        r"""Feed a model with parts of measurements and virtual operators.

        :param torch.nn.Module model: reconstructor :math:`f`.
        :return: (:class:`SplitModel`) the adapted one.
        :raises ValueError: if the consistency would adapt the model as well.
        """
        if isinstance(model, SplitModel):
            return model
        if self.consistency is not None and self.consistency.adapt_model(model) is not model:
            raise ValueError(
                f"{type(self.consistency).__name__} adapts the model itself: for `consistency` use a "
                "risk of the model as it is, such as SUREGaussianLoss"
            )
        return SplitModel(model, self.transform, self.mask, self.samples, self.rng)
