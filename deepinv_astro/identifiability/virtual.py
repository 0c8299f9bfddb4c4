r"""The virtual operators :math:`A T_g` that a transformation adds to an operator, and their normal map."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from deepinv.transform import Transform
from torch import Tensor

Map = Callable[[Tensor], Tensor]
#: Called with the number of steps done and the number of all.
Progress = Callable[[int, int], None]

#: Images that pass through the operator together where a matrix is built.
CHUNK = 64


class Through(str, Enum):
    """Which virtual operators a :class:`deepinv.transform.Transform` stands for."""

    #: :math:`A T_g^+`: what the equivariance loss with :math:`T_g` learns from.
    INVERSE = "inverse"
    #: :math:`A T_g`.
    FORWARD = "forward"


def draw_maps(
    transform: Transform | Map | Sequence[Transform | Map],
    like: Tensor,
    draws: int | Sequence[Mapping[str, Any]] = 8,
    *,
    through: Through | str = Through.INVERSE,
    generator: torch.Generator | None = None,
) -> list[Map]:
    r"""Fixed maps :math:`x \mapsto T_g^+ x` (or :math:`T_g x`), the parameters drawn once.

    :param Transform, Callable transform: a :class:`deepinv.transform.Transform`, or a linear map
        of images, used as it is (once, in either direction), or a sequence of those.
    :param torch.Tensor like: an image ``(1, C, H, W)``, for shape, dtype and device.
    :param int draws: how many parameters each transform draws, or a list of the parameters
        themselves, ``transform(x, **parameters)``.
    :param Through through: ``"inverse"`` for :math:`T_g^+` by ``transform.inverse``, or
        ``"forward"`` for :math:`T_g`.
    :param torch.Generator generator: of the parameters; default seed 0.
    :return: (:class:`list`) the maps.
    :raises ValueError: if a map changes the shape of an image, or is not the same at each call.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.transform import Shift
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
        >>> move = {"x_shift": torch.tensor([1]), "y_shift": torch.tensor([0])}
        >>> [forward] = draw_maps(Shift(), x, [move], through="forward")
        >>> [inverse] = draw_maps(Shift(), x, [move])
        >>> forward(x).flatten(), inverse(x).flatten()
        (tensor([4., 1., 2., 3.]), tensor([2., 3., 4., 1.]))
    """
    through = Through(through)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if not draws or (isinstance(draws, int) and draws < 1):
        raise ValueError(f"`draws` must be 1 or more, or a list of parameters, got {draws}")
    given = [transform] if callable(transform) else list(transform)
    maps: list[Map] = []
    for one in given:
        if isinstance(one, Transform):
            maps += _drawn(one, like, draws, through, generator)
        else:
            maps.append(one)
    if not maps:
        raise ValueError("no transform is given: pass one, or a list with one or more")
    for one in maps:
        _check(one, like)
    return maps


def _drawn(
    transform: Transform,
    like: Tensor,
    draws: int | Sequence[Mapping[str, Any]],
    through: Through,
    generator: torch.Generator,
) -> list[Map]:
    own = copy.deepcopy(transform)  # the caller's generator and n_trans stay as they are
    for part in own.modules():
        if isinstance(part, Transform):
            part.rng, part.n_trans = generator, 1
        if hasattr(part, "choose"):  # deepinv's |, which chooses anew at each call
            raise ValueError(_RANDOM)
    if isinstance(draws, int):
        parameters = [dict(own.get_params(like)) for _ in range(draws)]
    else:
        parameters = [dict(given) for given in draws]

    def fixed(through: Through, given: dict[str, Any]) -> Map:
        if through is Through.INVERSE:
            return lambda x: own.inverse(x, **given)
        return lambda x: own.transform(x, **given)

    _check(fixed(Through.FORWARD, parameters[0]), like)
    return [fixed(through, given) for given in parameters]


_RANDOM = "a transform is random at each call. Pass transforms joined by | as a list instead"


def _check(one: Map, like: Tensor) -> None:
    probe = torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like)
    first, second = one(probe), one(probe)
    if first.shape != like.shape:
        raise ValueError(
            f"a transform turns images of shape {tuple(like.shape)} into {tuple(first.shape)}; it "
            "must keep the shape. Pass transforms joined by + as a list instead"
        )
    if not torch.equal(first, second):
        raise ValueError(_RANDOM)


class Gram:
    r"""The normal map of an operator behind transformations.

    .. math::

        M = \mathbb{E}_g\, T_g^\top A^\top P^\top P A\, T_g, \qquad
        M v = \nabla_v\, \tfrac12 \mathbb{E}_g \| P A T_g v \|^2 .

    The gradient gives the exact transpose of whatever the maps compute, so that neither the
    operator nor the projection nor the transformations need an adjoint of their own. Images are
    vectors of :math:`n` numbers here, the pixels of ``support``.

    :param Callable measure: :math:`P A`, linear and differentiable, sample by sample.
    :param torch.Tensor like: an image ``(1, C, H, W)``, for shape, dtype and device.
    :param maps: :math:`T_g`; none for the identity.
    :param torch.Tensor support: booleans ``(H, W)``: pixels where images may differ from zero.
    :param weights: of the maps in the expectation; default all alike.
    :raises ValueError: if ``like``, ``support`` or ``weights`` do not fit.

    |sep|

    :Examples:

        The first pixel is seen; with a shift by one pixel, the second as well:

        >>> import torch
        >>> first = lambda x: x[..., :1]
        >>> shift = lambda x: x.roll(-1, -1)
        >>> Gram(first, torch.zeros(1, 1, 1, 3), [shift]).dense()
        tensor([[0., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """

    def __init__(
        self,
        measure: Map,
        like: Tensor,
        maps: Sequence[Map] = (),
        support: Tensor | None = None,
        weights: Sequence[float] | None = None,
    ):
        if like.ndim != 4 or len(like) != 1:
            raise ValueError(f"`like` must be one image (1, C, H, W), got {tuple(like.shape)}")
        if support is not None and support.shape != like.shape[-2:]:
            raise ValueError(
                f"`support` must be of shape {tuple(like.shape[-2:])}, got {tuple(support.shape)}"
            )
        self.measure, self.like = measure, like.detach()
        self.maps: list[Map] = list(maps) or [lambda x: x]
        self.weights = list(weights) if weights else [1 / len(self.maps)] * len(self.maps)
        if len(self.weights) != len(self.maps):
            raise ValueError(f"{len(self.weights)} weights are given for {len(self.maps)} maps")
        inside = torch.ones_like(like[0, 0], dtype=torch.bool) if support is None else support
        inside = inside.to(like.device).bool().expand(like.shape[1:])
        self.index = inside.flatten().nonzero()[:, 0]
        self.n = len(self.index)
        if self.n == 0:
            raise ValueError("`support` is empty: mark the pixels where images may be non-zero")

    def images(self, v: Tensor) -> Tensor:
        """Images ``(b, C, H, W)`` of vectors ``(b, n)``, zero outside the support."""
        flat = v.new_zeros(len(v), self.like.numel()).index_copy(1, self.index, v)
        return flat.view(len(v), *self.like.shape[1:])

    def vectors(self, x: Tensor) -> Tensor:
        """Vectors ``(b, n)`` of images ``(b, C, H, W)``."""
        return x.flatten(1)[:, self.index]

    def energy(self, x: Tensor) -> Tensor:
        r""":math:`x^\top M x` of images, ``(b,)``."""
        total = x.new_zeros(len(x))
        with torch.no_grad():
            for t, weight in zip(self.maps, self.weights, strict=True):
                total += weight * self.measure(t(x)).square().flatten(1).sum(1)
        return total

    def __call__(self, v: Tensor) -> Tensor:
        r""":math:`M v` of vectors ``(b, n)``."""
        total = torch.zeros_like(v)
        for t, weight in zip(self.maps, self.weights, strict=True):
            with torch.enable_grad():
                leaf = v.detach().requires_grad_()
                energy = 0.5 * self.measure(t(self.images(leaf))).square().sum()
            total += weight * torch.autograd.grad(energy, leaf)[0]
        return total

    def dense(self, inner: Tensor | None = None, progress: Progress | None = None) -> Tensor:
        r"""The matrix :math:`M`, ``(n, n)``, by :math:`\mathbb{E}_g T_g^\top K T_g`.

        :param torch.Tensor inner: :math:`K = A^\top P^\top P A` of all pixels if at hand
            (:func:`inner_matrix`).
        :param Callable progress: called with the steps done and the steps in all.
        :return: (:class:`torch.Tensor`) symmetric.
        """
        if inner is None:
            inner = inner_matrix(self.measure, self.like, progress)
        values, vectors = torch.linalg.eigh(inner)  # few are above rounding where A is a blur
        above = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
        root = vectors[:, above] * values[above].sqrt()
        matrix = torch.zeros(self.n, self.n).to(self.like)
        units = self.images(torch.eye(self.n).to(self.like))
        for t, weight in zip(self.maps, self.weights, strict=True):
            seen = torch.cat([columns @ root for columns in _columns(t, units)])
            matrix += weight * (seen @ seen.mT)
        return matrix


def inner_matrix(measure: Map, like: Tensor, progress: Progress | None = None) -> Tensor:
    r""":math:`K = A^\top P^\top P A` as a matrix of all pixels.

    :param Callable measure: :math:`P A`.
    :param torch.Tensor like: an image ``(1, C, H, W)``.
    :param Callable progress: called with the pixels done and the pixels in all.
    :return: (:class:`torch.Tensor`) ``(n, n)``.
    """
    whole, rows = Gram(measure, like), []
    for chunk in torch.eye(whole.n).to(like).split(CHUNK):
        rows.append(whole(chunk))
        if progress is not None:
            progress(min(len(rows) * CHUNK, whole.n), whole.n)
    return torch.cat(rows)


def _columns(t: Map, units: Tensor) -> Iterator[Tensor]:
    """Columns of a map, as rows."""
    with torch.no_grad():
        for chunk in units.split(CHUNK):
            yield t(chunk).flatten(1)
