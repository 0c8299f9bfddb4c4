r"""Linear transformations of images with parameters for each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import torch
from deepinv.transform import Transform
from torch import Tensor

from deepinv_astro.physics.generator import Uniform

__all__ = ["Keep", "LinearTransform", "LogUniform", "Parameter"]


class Keep(str, Enum):
    """What a transform that changes areas leaves as it is."""

    #: The values of the image: areas that grow have more flux.
    BRIGHTNESS = "brightness"
    #: The sum of the image: values are divided by the change of area.
    FLUX = "flux"


class LogUniform(NamedTuple):
    """Positive values whose logarithm is uniform: a factor and its inverse are equally likely.

    :param float low: smallest value, more than zero.
    :param float high: largest value.
    """

    low: float
    high: float


class Parameter(NamedTuple):
    """What a transform knows of one of its parameters.

    :param int axes: number of axes of one value: 0 for numbers, 1 for positions.
    :param Callable inverse: from the parameter of a transform to that of its inverse.
    """

    axes: int
    inverse: Callable[[Tensor], Tensor]


def unchanged(value: Tensor) -> Tensor:
    """The parameter of the inverse is that of the transform."""
    return value


Law = Sequence[float] | Uniform | LogUniform


def check_law(name: str, law: Law, positive: bool) -> Law:
    """The law itself, or a ValueError that names the argument."""
    values = [float(value) for value in law]
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"`{name}` must hold one finite number or more, got {law}")
    if (positive or isinstance(law, LogUniform)) and min(values) <= 0:
        raise ValueError(f"`{name}` must be positive, got {law}")
    if isinstance(law, Uniform | LogUniform) and values[0] > values[1]:
        raise ValueError(f"`{name}` must run from low to high, got {law}")
    return law


def draw(law: Law, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Values of a law: one of a sequence, or between the ends of a range."""
    u = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
    if isinstance(law, LogUniform):
        low, high = (math.log(end) for end in law)
        return torch.exp(low + (high - low) * u)
    if isinstance(law, Uniform):
        return law.low + (law.high - law.low) * u
    values = torch.tensor([float(v) for v in law], dtype=u.dtype, device=u.device)
    return values[(u * len(values)).long()]


def _tensor(value: Any) -> Tensor:
    """A tensor as it is, or numbers in double precision."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


class LinearTransform(Transform):
    r"""Base of transforms :math:`x \mapsto T_g x` that are linear in the image.

    Three maps, for the same parameters :math:`g`: ``transform`` is :math:`T_g`; ``inverse`` is the
    transform by the inverse parameters :math:`T_{g^{-1}}`, which undoes it up to what it has
    lost; ``adjoint`` is the transpose :math:`T_g^\top`, exactly.

    **Parameters.** Each is a number, a vector ``(n,)``, or a matrix ``(n, b)``, with ``b`` a divisor
    of the batch ``B`` (and a last axis of two for positions). A batch gives ``n B`` images,
    those of the batch next to each other, as everywhere in deepinv: image ``i`` under the ``t``-th
    transform is ``t B + i``, and has the parameter ``[t, i mod b]``. So a vector means one
    transform for each value, each applied to the whole batch; a matrix with one row, one
    value for each image. Random parameters are ``(n_trans, B)``.

    Sequences ``(B, C, T, H, W)`` are transformed frame by frame with the same parameters.

    Transforms compose with ``*``, ``+`` and ``|`` to a :class:`Chain`, a :class:`Stack` and a
    :class:`Choice`, which have an exact adjoint and an inverse as well.

    :param int n_trans: number of random transforms for each image.
    :param torch.Generator rng: source of randomness. Default: a new generator with torch's fixed
        seed.
    :param kwargs: given to :class:`deepinv.transform.Transform`.
    """

    #: The parameters by name.
    parameters_of: ClassVar[Mapping[str, Parameter]] = {}

    def __init__(self, *, n_trans: int = 1, rng: torch.Generator | None = None, **kwargs: Any):
        if n_trans < 1:
            raise ValueError(f"`n_trans` must be 1 or more, got {n_trans}")
        super().__init__(n_trans=n_trans, rng=rng, **kwargs)

    def __mul__(self, other: Transform) -> LinearTransform:
        from deepinv_astro.transform.chain import Chain

        return Chain(self, other)

    def __add__(self, other: Transform) -> LinearTransform:
        from deepinv_astro.transform.chain import Stack

        return Stack(self, other)

    def __or__(self, other: Transform) -> LinearTransform:
        from deepinv_astro.transform.chain import Choice

        return Choice(self, other)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(self.parameters_of)

    def count(self, params: Mapping[str, Any]) -> int:
        """Number :math:`n` of transforms that parameters stand for.

        :param dict params: parameters, as :meth:`transform` takes them.
        :return: (int) :math:`n`.
        """
        given = [
            (_tensor(params[name]), self.parameters_of[name].axes)
            for name in self.names
            if name in params
        ]
        return max((len(value) for value, axes in given if value.ndim > axes), default=1)

    def _apply_linear(self, x: Tensor, adjoint: bool, **params: Tensor) -> Tensor:
        """Transform each of the images, or apply the transpose, with one parameter for each."""
        raise NotImplementedError

    def _defaults(self, x: Tensor) -> dict[str, Any]:
        """Parameters that need not be given."""
        return {}

    def _complete(self, x: Tensor, params: Mapping[str, Any]) -> dict[str, Tensor]:
        """The parameters of this transform, ``(n, b)`` for a batch of ``b`` images or a divisor."""
        given = {**self._defaults(x), **params}
        missing = [name for name in self.parameters_of if name not in given]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs the parameters {missing}; pass them all (those of the "
                f"second of one kind in a chain have a number, `{missing[0]}_2`)"
            )
        full = {}
        for name, (axes, _) in self.parameters_of.items():
            value = _tensor(given[name]).to(x.device)
            lead = value.ndim - axes
            if lead not in (0, 1, 2):
                raise ValueError(
                    f"`{name}` must have {axes} to {axes + 2} axes: for all, (n,) or (n, b), "
                    f"got shape {tuple(value.shape)}"
                )
            for _ in range(2 - lead):
                value = value.unsqueeze(lead)
            full[name] = value
        return full

    def _each(self, params: Mapping[str, Tensor], images: int) -> tuple[int, dict[str, Tensor]]:
        """Number of transforms ``n``, and the parameters of ``n * images`` images."""
        shapes = {name: tuple(value.shape[:2]) for name, value in params.items()}
        try:
            n, b = torch.broadcast_shapes(*shapes.values())
        except RuntimeError as error:
            raise ValueError(f"parameters must have alike (n, b), got {shapes}") from error
        if images % b:
            raise ValueError(f"a batch of {images} is no multiple of {b} parameters in a row")
        each = {}
        for name, value in params.items():
            if b != images or tuple(value.shape[:2]) != (n, b):
                axes = value.ndim - 2
                value = value.expand(n, b, *value.shape[2:]).repeat(1, images // b, *[1] * axes)
            each[name] = value.flatten(0, 1)
        return n, each

    def invert_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the inverse transform; those of other transforms as they are."""
        inverted = dict(params)
        for name, (_, inverse) in self.parameters_of.items():
            if name in params:
                inverted[name] = inverse(_tensor(params[name]))
        return inverted

    def _transform(self, x: Tensor, **params: Any) -> Tensor:
        n, each = self._each(self._complete(x, params), len(x))
        return self._apply_linear(x if n == 1 else x.repeat(n, 1, 1, 1), False, **each)

    def _matched(self, x: Tensor, adjoint: bool, params: Mapping[str, Any]) -> Tensor:
        """Apply to images that are already ``n B``, without making more of them."""
        full = self._complete(x, params)
        n = self.count(full)
        if len(x) % n:
            raise ValueError(f"{len(x)} images cannot come from {n} transforms of a batch")
        _, each = self._each(full, len(x) // n)
        images = self._apply_linear(x, adjoint, **each)
        return images.unflatten(0, (n, -1)).sum(0) if adjoint else images

    def adjoint(self, y: Tensor, **params: Any) -> Tensor:
        r"""Transpose of :meth:`transform`: :math:`\sum_t T_{g_t}^\top y_t`.

        :param torch.Tensor y: the ``n B`` images (or sequences) that ``transform`` returns.
        :param params: the parameters that it was given.
        :return: (:class:`torch.Tensor`) ``B`` images.
        """

        def transposed(images: Tensor) -> Tensor:
            return self._matched(images, True, params)

        return (self.wrap_flatten_C(transposed) if self._check_x_5D(y) else transposed)(y)

    def inverse(self, x: Tensor, batchwise: bool = True, **params: Any) -> Tensor:
        r"""The transform by the inverse parameters, :math:`T_{g^{-1}} x`.

        :param torch.Tensor x: images (or sequences).
        :param bool batchwise: apply each of the ``n`` transforms to every image, which gives ``n``
            times as many; otherwise ``x`` holds the ``n B`` images that ``transform`` returned, and
            each is sent back by its own.
        :param params: the parameters of the *forward* transform; random if none is given.
        :return: (:class:`torch.Tensor`) images.
        """
        inverted = self.invert_params(params or self.get_params(x))
        if batchwise:
            return self.transform(x, **inverted)

        def back(images: Tensor) -> Tensor:
            return self._matched(images, False, inverted)

        return (self.wrap_flatten_C(back) if self._check_x_5D(x) else back)(x)

    def iterate_params(self, params: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """The parameters of one transform after the other, each with one row."""
        full = {}
        for name, value in params.items():
            value = _tensor(value)
            axes = self.parameters_of[name].axes if name in self.parameters_of else 0
            full[name] = value.reshape(1, *value.shape) if value.ndim == axes else value
        n = max(len(value) for value in full.values())
        return [
            {name: value[t : t + 1] if len(value) == n else value for name, value in full.items()}
            for t in range(n)
        ]
