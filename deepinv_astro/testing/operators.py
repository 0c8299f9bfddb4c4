r"""The laws of operators: adjoint, linearity, batches, state, precision, flux, gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

__all__ = [
    "assert_adjoint",
    "assert_batches_independent",
    "assert_dtype_kept",
    "assert_flux",
    "assert_gradients",
    "assert_linear",
    "assert_state_restored",
    "dense_matrix",
]

Map = Callable[[Tensor], Tensor]


def dense_matrix(linear: Map, like: Tensor) -> Tensor:
    r"""Matrix of a linear map, one column for each element of its input.

    .. math::

        M_{ij} = [A e_j]_i

    :param Callable linear: the map :math:`A`.
    :param torch.Tensor like: any input of the map, for its shape, dtype and device.
    :return: (:class:`torch.Tensor`) shape ``(elements of the output, elements of the input)``.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.testing import dense_matrix
        >>> dense_matrix(lambda x: torch.stack([x[0] - x[1], 2 * x[1], x[0]]), torch.zeros(2))
        tensor([[ 1., -1.],
                [ 0.,  2.],
                [ 1.,  0.]])
    """
    columns = []
    for index in range(like.numel()):
        unit = torch.zeros_like(like).view(-1)
        unit[index] = 1.0
        columns.append(linear(unit.view_as(like)).detach().reshape(-1))
    return torch.stack(columns, dim=1)


def assert_adjoint(physics: LinearPhysics, x: Tensor, rtol: float = 1e-12) -> Tensor:
    r"""``A_adjoint`` is the transpose of ``A``, element by element.

    .. math::

        \max_{ij} | M^\top - N |_{ij} \le \mathrm{rtol} \cdot \max_{ij} |M_{ij}|

    with :math:`M` and :math:`N` the dense matrices of ``A`` and of ``A_adjoint``. An inner product
    with random vectors misses errors of a few per cent in few elements; this does not. For images
    of some hundred pixels.

    :param deepinv.physics.LinearPhysics physics: the operator.
    :param torch.Tensor x: any image (batch included) that it accepts.
    :param float rtol: tolerance, relative to the largest element.
    :return: (:class:`torch.Tensor`) the dense matrix of ``A``.
    :raises AssertionError: if an element differs, if the adjoint has another shape, or if the
        matrix is zero.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.physics import LinearPhysics
        >>> from deepinv_astro.testing import assert_adjoint
        >>> physics = LinearPhysics(A=lambda x: x[..., :2, :], A_adjoint=lambda y: 2 * y)
        >>> assert_adjoint(physics, torch.zeros(1, 1, 3, 1))
        Traceback (most recent call last):
        ...
        AssertionError: A_adjoint returns shape (1, 1, 2, 1) for images of shape (1, 1, 3, 1)
    """
    y = physics.A(x).detach()
    back = physics.A_adjoint(y)
    if back.shape != x.shape:
        raise AssertionError(
            f"A_adjoint returns shape {tuple(back.shape)} for images of shape {tuple(x.shape)}"
        )
    forward = dense_matrix(physics.A, x)
    adjoint = dense_matrix(physics.A_adjoint, y)
    scale = float(forward.abs().max())
    if not scale > 0:
        raise AssertionError("A maps every image to zero (or to NaN): nothing can be compared")
    error = float((forward.mT - adjoint).abs().max()) / scale
    if not error <= rtol:  # true for NaN as well
        raise AssertionError(
            f"A_adjoint is not the transpose of A: largest difference {error:.1e} "
            f"of the largest element, allowed {rtol:.1e}"
        )
    return forward


def assert_linear(linear: Map, x: Tensor, rtol: float = 1e-12, seed: int = 0) -> None:
    r"""A map is linear: :math:`A(a u + v) = a A u + A v`, and zero goes to zero.

    :param Callable linear: the map, e.g. ``physics.A`` or ``physics.A_adjoint``.
    :param torch.Tensor x: any input, for its shape, dtype and device.
    :param float rtol: tolerance, relative to the largest element of the output.
    :param int seed: seed of the random inputs.
    :raises AssertionError: if the law is broken.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.testing import assert_linear
        >>> assert_linear(lambda x: 3 * x.flip(0), torch.zeros(4, dtype=torch.float64))
    """
    u, v = _random(x, seed), _random(x, seed + 1)
    factor = -2.7
    expected = factor * linear(u) + linear(v)
    scale = float(expected.abs().max())
    error = float((linear(factor * u + v) - expected).abs().max())
    zero = float(linear(torch.zeros_like(x)).abs().max())
    if not max(error, zero) <= rtol * scale:
        raise AssertionError(
            f"not linear: A(au + v) differs from aAu + Av by {error:.1e}, A(0) reaches {zero:.1e}, "
            f"for values up to {scale:.1e}"
        )


def assert_batches_independent(linear: Map, x: Tensor, seed: int = 0) -> None:
    r"""Sample ``n`` of the output depends on sample ``n`` of the input, and on no other.

    Each sample in turn is replaced: its output must change, the others must not, to the last bit.

    :param Callable linear: the map, e.g. ``physics.A``.
    :param torch.Tensor x: any input with two samples or more, for its shape, dtype and device.
    :param int seed: seed of the random inputs.
    :raises AssertionError: if samples mix.
    :raises ValueError: if there is only one sample.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.testing import assert_batches_independent
        >>> assert_batches_independent(lambda x: x - x.mean(), torch.zeros(2, 3))
        Traceback (most recent call last):
        ...
        AssertionError: sample 1 of the output changes with sample 0 of the input
    """
    if len(x) < 2:
        raise ValueError(f"x must hold two samples or more to see whether they mix, got {len(x)}")
    x, other = _random(x, seed), _random(x, seed + 1)
    y = linear(x)
    if len(y) != len(x):
        raise AssertionError(f"{len(x)} samples go to {len(y)}")
    for changed in range(len(x)):
        mixed = x.clone()
        mixed[changed] = other[changed]
        out = linear(mixed)
        for n in range(len(x)):
            same = torch.equal(out[n], y[n])
            if n == changed and same:
                raise AssertionError(f"sample {n} of the output ignores sample {n} of the input")
            if n != changed and not same:
                raise AssertionError(
                    f"sample {n} of the output changes with sample {changed} of the input"
                )


def assert_state_restored(physics: LinearPhysics, other: LinearPhysics, x: Tensor) -> None:
    r"""All tensors of an operator are registered, and its ``state_dict`` carries all that it does.

    :param deepinv.physics.LinearPhysics physics: an operator.
    :param deepinv.physics.LinearPhysics other: one of the same shapes with other values in *every*
        parameter; it is made equal to ``physics`` by ``load_state_dict``.
    :param torch.Tensor x: an image.
    :raises AssertionError: if a tensor is neither parameter nor buffer, or if the loaded operator
        differs.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> from deepinv_astro.testing import assert_state_restored
        >>> one = ADI((1, 5, 4), torch.tensor([0.0, 20.0]), center=(2.0, 1.5))
        >>> other = ADI((1, 5, 4), torch.tensor([9.0, 80.0]), center=(2.1, 2.5), sky_center=(3, 1))
        >>> assert_state_restored(one, other, torch.rand(1, 1, 5, 4))
    """
    loose = [name for name, _ in _loose_tensors(physics)]
    if loose:
        raise AssertionError(f"tensors that are neither buffers nor parameters: {', '.join(loose)}")
    y, before = physics.A(x), other.A(x)
    state = copy.deepcopy(physics.state_dict())
    alike = [k for k, v in other.state_dict().items() if k in state and torch.equal(v, state[k])]
    if alike:
        raise AssertionError(f"both operators have the same {', '.join(alike)}: nothing is tested")
    if torch.equal(before, y):
        raise AssertionError("both operators give the same output: nothing is tested")
    other.load_state_dict(state)
    if not torch.equal(other.A(x), y):
        raise AssertionError("after load_state_dict the operators differ")
    v = torch.ones_like(y)
    if not torch.equal(other.A_adjoint(v), physics.A_adjoint(v)):
        raise AssertionError("after load_state_dict the adjoints differ")


def assert_dtype_kept(physics: LinearPhysics, x: Tensor, rtol: float = 1e-4) -> None:
    r"""An operator keeps single and double precision, with about the same values.

    :param deepinv.physics.LinearPhysics physics: the operator; copies of it are moved.
    :param torch.Tensor x: an image.
    :param float rtol: largest difference between both, relative to the largest value.
    :raises AssertionError: if the law is broken.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> from deepinv_astro.testing import assert_dtype_kept
        >>> assert_dtype_kept(ADI((1, 5, 4), torch.tensor([0.0, 50.0])), torch.rand(1, 1, 5, 4))
    """
    results = {}
    for dtype in (torch.float64, torch.float32):
        moved = copy.deepcopy(physics).to(dtype)
        y = moved.A(x.to(dtype))
        back = moved.A_adjoint(y)
        for name, value in (("A", y), ("A_adjoint", back)):
            if value.dtype != dtype:
                raise AssertionError(f"{name} returns {value.dtype} for {dtype}")
        results[dtype] = (y.double(), back.double())
    names = ("A", "A_adjoint")
    pairs = zip(names, results[torch.float64], results[torch.float32], strict=True)
    for name, double, single in pairs:
        error = float((double - single).abs().max() / double.abs().max())
        if not error <= rtol:
            raise AssertionError(
                f"{name} changes by {error:.1e} with the precision, allowed {rtol:.1e}"
            )


def assert_flux(y: Tensor, expected: Tensor, rtol: float) -> float:
    r"""The flux of each frame is what it should be.

    :param torch.Tensor y: frames ``(..., h, w)``, everything that shines well inside.
    :param torch.Tensor expected: their total flux, broadcast to ``(...)``.
    :param float rtol: allowed relative error.
    :return: (float) the largest relative error.
    :raises AssertionError: if a frame is off by more.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.testing import assert_flux
        >>> assert_flux(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]), torch.tensor(3.0), 1e-6)
        0.0
    """
    error = float((y.sum((-2, -1)) / expected - 1).abs().max())
    if not error <= rtol:
        raise AssertionError(f"the flux is off by {error:.2e}, allowed {rtol:.1e}")
    return error


def assert_gradients(
    physics: LinearPhysics, x: Tensor, parameters: Mapping[str, Tensor], seed: int = 0
) -> None:
    r"""Gradients of ``A`` and ``A_adjoint`` to image and parameters equal finite differences.

    In double precision, along random directions, by :func:`torch.autograd.gradcheck`. The parameters
    are passed as keyword arguments, and the operator keeps them, without their gradients.

    :param deepinv.physics.LinearPhysics physics: the operator, in double precision.
    :param torch.Tensor x: an image.
    :param Mapping parameters: values by name, away from where the operator has a kink.
    :param int seed: seed of the random data.
    :raises AssertionError: if a gradient is missing, zero or wrong.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> from deepinv_astro.testing import assert_gradients
        >>> angles = torch.tensor([10.0, 50.0], dtype=torch.float64)
        >>> physics = ADI((1, 4, 3), angles, dtype=torch.float64)
        >>> x = torch.rand(1, 1, 4, 3, dtype=torch.float64)
        >>> assert_gradients(physics, x, {"angles": angles + 1})
    """
    names = list(parameters)
    leaves = [parameters[name].detach().clone().requires_grad_() for name in names]
    image = _random(x, seed).requires_grad_()
    with torch.no_grad():
        data = _random(physics.A(image, **dict(zip(names, leaves, strict=True))), seed + 1)
    data.requires_grad_()
    for label, linear, inp in (("A", physics.A, image), ("A_adjoint", physics.A_adjoint, data)):

        def call(first: Tensor, *values: Tensor, linear: Callable[..., Tensor] = linear) -> Tensor:
            return linear(first, **dict(zip(names, values, strict=True)))

        out = call(inp, *leaves)
        grads = torch.autograd.grad(
            out, [inp, *leaves], _random(out, seed + 2), allow_unused=True, materialize_grads=True
        )
        zero = [n for n, g in zip(["image", *names], grads, strict=True) if not g.abs().max() > 0]
        if zero:
            raise AssertionError(f"no gradient of {label} to {', '.join(zero)}")
        try:
            torch.autograd.gradcheck(
                call, (inp, *leaves), eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True
            )
        except GradcheckError as error:
            raise AssertionError(f"wrong gradient of {label}: {error}") from error
    with torch.no_grad():
        physics.update_parameters(**{n: v.detach() for n, v in zip(names, leaves, strict=True)})


def _random(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _loose_tensors(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}".lstrip("."), value
