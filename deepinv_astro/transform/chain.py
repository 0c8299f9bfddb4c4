r"""Transforms one after the other, side by side, or one of two."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from deepinv.transform import Transform
from torch import Tensor

from deepinv_astro.transform.base import LinearTransform

__all__ = ["Chain", "Choice", "Stack"]


@dataclass(frozen=True)
class _Member:
    """One of the transforms with its parameters."""

    transform: Transform
    params: dict[str, Any]

    @property
    def count(self) -> int:
        """Number of images that it makes of one."""
        own = isinstance(self.transform, LinearTransform)
        return self.transform.count(self.params) if own else self.transform.n_trans

    def __call__(self, x: Tensor) -> Tensor:
        return self.transform.transform(x, **self.params)

    def inverse(self, x: Tensor, batchwise: bool) -> Tensor:
        return self.transform.inverse(x, batchwise=batchwise, **self.params)

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose: that of ours, or of whatever one of deepinv's computes."""
        if isinstance(self.transform, LinearTransform):
            return self.transform.adjoint(y, **self.params)
        like = torch.zeros_like(y[: len(y) // self.count])
        transposed = torch.func.vjp(self.__call__, like)[1]
        x: Tensor = transposed(y)[0]
        return x


class _Composition(LinearTransform):
    """Two transforms, whose parameters are kept apart by their names."""

    def __init__(self, t1: Transform, t2: Transform, n_trans: int, own: tuple[str, ...] = ()):
        t1, t2 = _ours(t1), _ours(t2)
        super().__init__(
            n_trans=n_trans,
            constant_shape=t1.constant_shape and t2.constant_shape,
            flatten_video_input=t1.flatten_video_input and t2.flatten_video_input,
        )
        self.t1, self.t2 = t1, t2
        taken = list(_names(t1))
        self._renamed = {name: _free(name, taken) for name in _names(t2)}
        self._own = tuple(_free(name, taken) for name in own)
        self._all = tuple(taken)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters: a number is added to those of the second of one kind."""
        return self._all

    def _first(self, params: Mapping[str, Any]) -> _Member:
        return self._member(self.t1, {name: name for name in _names(self.t1)}, params)

    def _second(self, params: Mapping[str, Any]) -> _Member:
        return self._member(self.t2, self._renamed, params)

    def _member(
        self, transform: Transform, names: Mapping[str, str], params: Mapping[str, Any]
    ) -> _Member:
        given = {name: params[here] for name, here in names.items() if here in params}
        if names and not given:
            raise ValueError(
                f"{type(transform).__name__} got no parameters: pass {', '.join(names.values())} as well"
            )
        return _Member(transform, given)

    def _merged(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
        return {**first, **{self._renamed[name]: value for name, value in second.items()}}

    def _get_params(self, x: Tensor) -> dict[str, Any]:
        return self._merged(self.t1.get_params(x), self.t2.get_params(x))

    def invert_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the inverse of each; their order changes as well, see :meth:`inverse`."""
        both = (self._first(params), self._second(params))
        return self._merged(*(member.transform.invert_params(member.params) for member in both))

    def iterate_params(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The parameters of one pair of transforms after the other."""
        first, second = (
            member.transform.iterate_params(member.params)
            for member in (self._first(params), self._second(params))
        )
        return [self._merged(one, two) for two in second for one in first]


class Chain(_Composition):
    r"""One transform after the other, :math:`T = T_2 T_1`; ``t1 * t2``.

    .. math::

        T^\top = T_1^\top T_2^\top, \qquad T^{-1} = T_1^{-1} T_2^{-1}

    Parameters keep their names; where the second has one of the same name it gets a number:
    ``factor`` and ``factor_2``. :math:`n_1` and :math:`n_2` transforms give :math:`n_1 n_2` images
    of each; ``t2`` counts slowest.

    Transforms of deepinv may be members: they must be linear in the image, and their adjoint is the
    gradient of what they compute. With one of them on the left, ``shift * scale`` is a chain of
    deepinv, which has no adjoint: write ``Chain(shift, scale)``.

    :param deepinv.transform.Transform t1: applied first.
    :param deepinv.transform.Transform t2: applied to the images of ``t1``.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.transform import Amplitude, Scale
        >>> chain = Scale(center="star") * Amplitude() * Amplitude()
        >>> chain.names
        ('factor', 'center', 'amplitude', 'amplitude_2')
        >>> x = torch.ones(1, 1, 3, 4)
        >>> g = {"factor": 0.5, "amplitude": 2.0, "amplitude_2": 3.0}
        >>> y = chain(x, **g)
        >>> round(float(y.mean()), 3), round(float(chain.inverse(y, **g).mean()), 3)
        (6.0, 1.0)
    """

    def __init__(self, t1: Transform, t2: Transform):
        super().__init__(t1, t2, t1.n_trans * t2.n_trans)

    def count(self, params: Mapping[str, Any]) -> int:
        """Number of both, multiplied."""
        return self._first(params).count * self._second(params).count

    def _transform(self, x: Tensor, **params: Any) -> Tensor:
        return self._second(params)(self._first(params)(x))

    def adjoint(self, y: Tensor, **params: Any) -> Tensor:
        """The transposes in the opposite order."""
        return self._first(params).adjoint(self._second(params).adjoint(y))

    def inverse(self, x: Tensor, batchwise: bool = True, **params: Any) -> Tensor:
        """The inverses in the opposite order."""
        params = params or self.get_params(x)
        first, second = self._first(params), self._second(params)
        x = second.inverse(x, batchwise)
        if batchwise:
            return first.inverse(x, True)
        return torch.cat([first.inverse(part, False) for part in x.chunk(second.count)])


class Stack(_Composition):
    r"""The images of both transforms, one after the other in the batch; ``t1 + t2``.

    .. math::

        T = \begin{pmatrix} T_1 \\ T_2 \end{pmatrix}, \qquad
        T^\top y = T_1^\top y_1 + T_2^\top y_2

    ``inverse`` sends the images of each back by its own. Names of parameters as in :class:`Chain`.

    :param deepinv.transform.Transform t1: makes the first images.
    :param deepinv.transform.Transform t2: makes those that follow.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.transform import Amplitude
        >>> both = Amplitude() + Amplitude()
        >>> y = both(torch.ones(1, 1, 1, 1), amplitude=2.0, amplitude_2=3.0)
        >>> y.flatten(), both.adjoint(y, amplitude=2.0, amplitude_2=3.0).flatten()
        (tensor([2., 3.]), tensor([13.]))
    """

    def __init__(self, t1: Transform, t2: Transform):
        super().__init__(t1, t2, t1.n_trans + t2.n_trans)

    def count(self, params: Mapping[str, Any]) -> int:
        """Number of both, added."""
        return self._first(params).count + self._second(params).count

    def _transform(self, x: Tensor, **params: Any) -> Tensor:
        return torch.cat([self._first(params)(x), self._second(params)(x)])

    def _parts(self, y: Tensor, params: Mapping[str, Any]) -> list[tuple[_Member, Tensor]]:
        """Each transform with its images."""
        first, second = self._first(params), self._second(params)
        images, rest = divmod(len(y), first.count + second.count)
        if rest:
            raise ValueError(
                f"{len(y)} images cannot come from {first.count} + {second.count} transforms of a batch"
            )
        split = y.split([images * first.count, images * second.count])
        return list(zip((first, second), split, strict=True))

    def adjoint(self, y: Tensor, **params: Any) -> Tensor:
        """The sum of the transposes, each of its own images."""
        one, two = (member.adjoint(part) for member, part in self._parts(y, params))
        return one + two

    def inverse(self, x: Tensor, batchwise: bool = True, **params: Any) -> Tensor:
        """The inverse of each, of its own images."""
        parts = self._parts(x, params or self.get_params(x))
        return torch.cat([member.inverse(part, batchwise) for member, part in parts])


class Choice(_Composition):
    r"""One of two transforms, with equal chances; ``t1 | t2``.

    The parameter ``choice`` is 0 for the first and 1 for the second, one number for the whole batch.
    With it among the parameters, ``transform``, ``inverse`` and ``adjoint`` are those of one and the
    same. Names of the others as in :class:`Chain`; only those of the chosen one are needed.

    :param deepinv.transform.Transform t1: the first.
    :param deepinv.transform.Transform t2: the second. The number of images may differ.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.transform import Amplitude, StarRotation
        >>> either = StarRotation() | Amplitude()
        >>> either(torch.ones(1, 1, 1, 1), choice=1, amplitude=3.0).flatten()
        tensor([3.])
    """

    def __init__(self, t1: Transform, t2: Transform):
        super().__init__(t1, t2, max(t1.n_trans, t2.n_trans), ("choice",))

    def _chosen(self, params: Mapping[str, Any]) -> _Member:
        [name] = self._own
        choice = int(params[name]) if name in params else -1
        if choice not in (0, 1):
            found = params.get(name, "none")
            raise ValueError(f"`{name}` must be 0 or 1, for {self._kinds()}, got {found}")
        return self._second(params) if choice else self._first(params)

    def _kinds(self) -> str:
        return f"{type(self.t1).__name__} or {type(self.t2).__name__}"

    def _get_params(self, x: Tensor) -> dict[str, Any]:
        choice = torch.randint(2, (1,), generator=self.rng, device=self.rng.device)
        return {**super()._get_params(x), self._own[0]: choice.to(x.device)}

    def count(self, params: Mapping[str, Any]) -> int:
        """Number of the chosen one."""
        return self._chosen(params).count

    def _transform(self, x: Tensor, **params: Any) -> Tensor:
        return self._chosen(params)(x)

    def adjoint(self, y: Tensor, **params: Any) -> Tensor:
        """The transpose of the chosen one."""
        return self._chosen(params).adjoint(y)

    def inverse(self, x: Tensor, batchwise: bool = True, **params: Any) -> Tensor:
        """The inverse of the chosen one."""
        return self._chosen(params or self.get_params(x)).inverse(x, batchwise)

    def invert_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the inverses; the choice is the same."""
        return {**super().invert_params(params), self._own[0]: params[self._own[0]]}

    def iterate_params(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The parameters of one transform of the chosen kind after the other."""
        chosen, [name] = self._chosen(params), self._own
        first = chosen.transform is self.t1
        return [
            {**(self._merged(one, {}) if first else self._merged({}, one)), name: params[name]}
            for one in chosen.transform.iterate_params(chosen.params)
        ]


def _ours(transform: Transform) -> Transform:
    """A composition of deepinv as one of ours."""
    kinds = {"ChainTransform": Chain, "StackTransform": Stack, "EitherTransform": Choice}
    kind = kinds.get(type(transform).__name__)
    return transform if kind is None else kind(transform.t1, transform.t2)


def _names(transform: Transform) -> tuple[str, ...]:
    """Parameters of ours, or those that deepinv's takes by name."""
    if isinstance(transform, LinearTransform):
        return transform.names
    taken = list(inspect.signature(transform._transform).parameters.values())[1:]
    return tuple(p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD)


def _free(name: str, taken: list[str]) -> str:
    """The name, or with the first number that makes it one of its own; taken from then on."""
    free, number = name, 2
    while free in taken:
        free, number = f"{re.sub(r'_[0-9]+$', '', name)}_{number}", number + 1
    taken.append(free)
    return free
