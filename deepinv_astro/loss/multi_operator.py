r"""Multi-operator imaging: what one operator does not see, learned from what others see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
from deepinv.loss import Loss
from deepinv.physics import Physics
from deepinv.physics.generator import PhysicsGenerator
from torch import Tensor
from torch.nn import Module

from deepinv_astro.loss.equivariance import EquivariantLoss

__all__ = ["MultiOperatorLoss", "exchanged", "with_parameters"]

#: Parameters of an operator for a batch: ``draw(physics, batch, generator)``.
Draw = Callable[[Physics, int, torch.Generator | None], Mapping[str, Tensor]]

_AnyModule = TypeVar("_AnyModule", bound=Module)


class MultiOperatorLoss(Loss):
    r"""Multi-operator imaging loss, MOI (Tachella+ 2022).

    .. math::

        \frac1n \left\| \hat x - f\!\left( A_g \hat x + \varepsilon, A_g \right) \right\|^2,
        \qquad \hat x = f(y, A),

    with :math:`A_g` the operator with other parameters, such as the angles or the PSF of another
    observation: images do not depend on what they were observed with. With a transform it is
    multi-operator equivariant imaging,
    :math:`\| T_{g'} \hat x - f(A_g T_{g'} \hat x, A_g) \|^2`.

    The operator that is given is not touched: :math:`A_g` shares all its tensors but the new
    ones (:func:`with_parameters`), and lives as long as the gradient needs it.

    :param operators: where the parameters of :math:`A_g` come from: a
        :class:`deepinv.physics.generator.PhysicsGenerator`, which draws a set for each image; a
        list of dictionaries, one of which is drawn for each batch; or a function
        ``draw(physics, batch, generator)`` that returns a dictionary, such as :func:`exchanged`.
    :param EquivariantLoss equivariance: the loss with one operator, for its transform, noise,
        metric, weight, and whether the gradient stops. Default: no transform, :math:`T_g = I`.
    :param torch.Generator rng: source of the choice from a list, and of ``draw``.
    :raises ValueError: if the list is empty, or its dictionaries have different names.

    |sep|

    :Examples:

        Two masks, of which the network inverts any:

        >>> import torch
        >>> from deepinv.physics import Inpainting, ZeroNoise
        >>> from deepinv_astro.loss import MultiOperatorLoss
        >>> class Adjoint(torch.nn.Module):
        ...     def forward(self, y, physics):
        ...         return physics.A_adjoint(y)
        >>> physics = Inpainting(
        ...     (1, 1, 2), mask=torch.tensor([[[1.0, 0.0]]]), noise_model=ZeroNoise()
        ... )
        >>> loss = MultiOperatorLoss([{"mask": torch.tensor([[[[0.0, 1.0]]]])}])
        >>> loss(x_net=torch.tensor([[[[3.0, 4.0]]]]), physics=physics, model=Adjoint())  # 3^2 / 2
        tensor([4.5000])
        >>> physics.mask
        tensor([[[[1., 0.]]]])
    """

    def __init__(
        self,
        operators: PhysicsGenerator | Sequence[Mapping[str, Tensor]] | Draw,
        equivariance: EquivariantLoss | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.count = 0
        self.names: tuple[str, ...] = ()
        self.draw: PhysicsGenerator | Draw = self._listed
        if isinstance(operators, Sequence):
            self._keep(operators)
        else:
            self.draw = operators
        self.equivariance = EquivariantLoss(lambda x: x) if equivariance is None else equivariance
        self.rng = rng

    def forward(
        self, x_net: Tensor, physics: Physics, model: Module, y: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        r"""Compare reconstructions with what another operator lets the model reconstruct of them.

        :param torch.Tensor x_net: reconstruction :math:`\hat x`.
        :param deepinv.physics.Physics physics: the operator :math:`A`; it is left as it is.
        :param torch.nn.Module model: the reconstructor :math:`f`.
        :param torch.Tensor y: not used.
        :return: (:class:`torch.Tensor`) one value for each image, ``(B,)``, or what the metric
            returns.
        :raises ValueError: if the operator has no parameter of a name that is drawn.
        """
        if isinstance(self.draw, PhysicsGenerator):
            parameters = self.draw.step(batch_size=len(x_net))
        else:
            parameters = self.draw(physics, len(x_net), self.rng)
        other = with_parameters(physics, **parameters)
        value: Tensor = self.equivariance(x_net=x_net, y=y, physics=other, model=model, **kwargs)
        return value

    def _keep(self, operators: Sequence[Mapping[str, Tensor]]) -> None:
        self.count = len(operators)
        if self.count == 0 or any(set(given) != set(operators[0]) for given in operators):
            raise ValueError(
                "operators must be dictionaries with the same names, got "
                f"{[sorted(given) for given in operators]}"
            )
        self.names = tuple(operators[0])
        for k, given in enumerate(operators):
            for name, value in given.items():
                self.register_buffer(f"{name}_{k}", torch.as_tensor(value))

    def _listed(
        self, physics: Physics, batch: int, rng: torch.Generator | None
    ) -> dict[str, Tensor]:
        device = "cpu" if rng is None else rng.device
        k = int(torch.randint(self.count, (), generator=rng, device=device))
        return {name: self.get_buffer(f"{name}_{k}") for name in self.names}


def exchanged(*names: str) -> Draw:
    r"""Draw the parameters of each image from another image of the same batch.

    Image :math:`n` of :math:`B` gets those of image :math:`(n + s) \bmod B`, with :math:`s` random
    from 1 to :math:`B - 1`, the same for all names. A batch of one, or parameters that all images
    share, stay as they are.

    :param str names: parameters that have a leading batch axis, e.g. ``"angles"``.
    :return: (Callable) for :class:`MultiOperatorLoss`.
    :raises ValueError: if there is no name; when drawing, if the operator has no such parameter.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import exchanged
        >>> from deepinv_astro.physics import ADI
        >>> physics = ADI((1, 5, 4), angles=torch.tensor([[0.0, 10.0], [0.0, 70.0]]))
        >>> exchanged("angles")(physics, 2, None)
        {'angles': tensor([[ 0., 70.],
                [ 0., 10.]])}
    """
    if not names:
        raise ValueError("name the parameters to exchange, e.g. exchanged('angles')")

    def draw(physics: Physics, batch: int, rng: torch.Generator | None) -> dict[str, Tensor]:
        found = {}
        for name in names:
            value = getattr(physics, name, None)
            if not isinstance(value, Tensor):
                raise ValueError(f"{type(physics).__name__} has no tensor named {name!r}")
            found[name] = value
        given = max(len(value) for value in found.values())
        if given == 1:
            return found
        device = "cpu" if rng is None else rng.device
        step = int(torch.randint(1, given, (), generator=rng, device=device))
        return {k: v if len(v) == 1 else v.roll(-step, 0) for k, v in found.items()}

    return draw


def with_parameters(physics: Physics, **parameters: Tensor) -> Physics:
    r"""The operator with other parameters, sharing every tensor that does not change.

    It costs no memory and, unlike an update that is undone, stays valid for a backward pass that
    calls it later, as that of an implicit solver does.

    :param deepinv.physics.Physics physics: the operator; it is left as it is.
    :param parameters: tensors, as for its ``update``; those of the noise as well.
    :return: (deepinv.physics.Physics) another object of the same class.
    :raises ValueError: if neither the operator nor its noise has a parameter of that name.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.loss import with_parameters
        >>> from deepinv_astro.physics import Blur
        >>> physics = Blur((1, 1, 3), torch.ones(1, 1))
        >>> other = with_parameters(physics, filter=torch.full((1, 1), 5.0))
        >>> x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> other.A(x).round(), physics.A(x).round()
        (tensor([[[[ 5., 10., 15.]]]]), tensor([[[[1., 2., 3.]]]]))
    """
    unknown = [k for k in parameters if not any(hasattr(m, k) for m in physics.modules())]
    if unknown:
        raise ValueError(
            f"{type(physics).__name__} and its noise have no parameter {unknown[0]!r}: "
            "name the parameters as `update` does"
        )
    other = _shared(physics, {})
    other.update(**parameters)
    return other


def _shared(module: _AnyModule, made: dict[int, Any]) -> _AnyModule:
    """A copy of a module and its parts that holds the same tensors and generators."""
    if id(module) in made:
        known: _AnyModule = made[id(module)]
        return known
    other = copy.copy(module)
    made[id(module)] = other
    state = vars(other)
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        state[name] = copy.copy(state[name])
    state["_modules"] = {
        k: None if m is None else _shared(m, made) for k, m in state["_modules"].items()
    }
    for name, value in list(state.items()):
        if isinstance(value, MethodType) and id(value.__self__) in made:
            state[name] = MethodType(value.__func__, made[id(value.__self__)])
        elif isinstance(value, list | tuple) and any(isinstance(v, Module) for v in value):
            parts = [_shared(v, made) if isinstance(v, Module) else v for v in value]
            state[name] = type(value)(parts)
    return other
