r"""The laws of linear transforms: neutral parameters, adjoint, inverse, one parameter per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from deepinv.transform import Transform
from torch import Tensor

from deepinv_astro.testing.operators import dense_matrix
from deepinv_astro.transform import LinearTransform

__all__ = [
    "assert_inverse",
    "assert_neutral",
    "assert_parameters_per_image",
    "assert_reproducible",
    "assert_transform_adjoint",
]


def assert_neutral(transform: Transform, x: Tensor, atol: float = 1e-6, **neutral: Any) -> None:
    r"""With its neutral parameters a transform is the identity, to the last corner.

    :param deepinv.transform.Transform transform: the transform.
    :param torch.Tensor x: images, ``(B, C, H, W)``, best of white noise.
    :param float atol: largest difference, in units of the largest value of ``x``.
    :param neutral: the parameters, e.g. ``factor=1.0``.
    :raises AssertionError: if the law is broken.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.testing import assert_neutral
        >>> from deepinv_astro.transform import Scale
        >>> assert_neutral(Scale(center="star"), torch.eye(5)[None, None], factor=1.01)
        Traceback (most recent call last):
        ...
        AssertionError: not the identity: pixels change by up to 0.00...
    """
    y = transform.transform(x, **neutral)
    if y.shape != x.shape:
        raise AssertionError(f"shape {tuple(x.shape)} becomes {tuple(y.shape)}")
    error = float((y - x).abs().max() / x.abs().max())
    if not error <= atol:
        raise AssertionError(f"not the identity: pixels change by up to {error:.2g}")


def assert_transform_adjoint(
    transform: LinearTransform, x: Tensor, rtol: float = 1e-10, **params: Any
) -> Tensor:
    r"""``adjoint`` is the transpose of ``transform``, element by element.

    :param LinearTransform transform: the transform.
    :param torch.Tensor x: images of some ten pixels, in double precision.
    :param float rtol: tolerance, relative to the largest element.
    :param params: the parameters.
    :return: (:class:`torch.Tensor`) the dense matrix of the transform.
    :raises AssertionError: if an element differs.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.testing import assert_transform_adjoint
        >>> from deepinv_astro.transform import Scale
        >>> x = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
        >>> assert_transform_adjoint(Scale(), x, factor=0.7, center=(1.0, 0.3)).shape
        torch.Size([6, 6])
    """
    y = transform.transform(x, **params)
    forward = dense_matrix(lambda v: transform.transform(v, **params), x)
    adjoint = dense_matrix(lambda v: transform.adjoint(v, **params), y)
    if adjoint.shape != forward.mT.shape:
        raise AssertionError(f"the adjoint has shape {tuple(adjoint.shape)}, not its transpose")
    scale = float(forward.abs().max())
    error = float((forward.mT - adjoint).abs().max())
    if not (scale > 0 and error <= rtol * scale):
        raise AssertionError(
            f"the adjoint is not the transpose: largest difference {error:.1e}, "
            f"largest element {scale:.1e}"
        )
    return forward


def assert_inverse(transform: Transform, x: Tensor, rtol: float = 0.01, **params: Any) -> None:
    r"""``inverse`` undoes ``transform``: :math:`\| T_{g^{-1}} T_g x - x \| \le \mathrm{rtol} \| x \|`.

    :param deepinv.transform.Transform transform: the transform.
    :param torch.Tensor x: images that lose nothing: band-limited, and dark where they leave the
        field.
    :param float rtol: tolerance.
    :param params: the parameters of one transform (``n`` = 1).
    :raises AssertionError: if an image of the batch comes back worse than that.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv.transform import Shift
        >>> from deepinv_astro.testing import assert_inverse
        >>> shift = {"x_shift": torch.tensor([1]), "y_shift": torch.tensor([2])}
        >>> assert_inverse(Shift(), torch.rand(2, 1, 4, 3), **shift)
    """
    back = transform.inverse(transform.transform(x, **params), **params)
    error = (back - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    if not bool((error <= rtol).all()):
        raise AssertionError(f"errors of the round trip: {error.tolist()}, allowed {rtol:.1e}")


def assert_parameters_per_image(
    transform: LinearTransform, x: Tensor, params: Mapping[str, Tensor], rtol: float = 1e-6
) -> None:
    r"""Image ``t B + i`` of a batch is image ``i`` under the parameter ``[t, i]``, alone.

    :param LinearTransform transform: the transform.
    :param torch.Tensor x: batch of ``B`` images, all different.
    :param dict params: parameters of shape ``(n, B, ...)``, all different.
    :param float rtol: tolerance, relative to the largest value.
    :raises AssertionError: if images or parameters are mixed up, in the transform, its inverse
        (also of images that come with their own transform), or its adjoint.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.testing import assert_parameters_per_image
        >>> from deepinv_astro.transform import Scale
        >>> transform = Scale(center="star", n_trans=3)
        >>> x = torch.rand(2, 1, 5, 4)
        >>> assert_parameters_per_image(transform, x, transform.get_params(x))
    """
    n, images = next(iter(params.values())).shape[:2]
    y = transform.transform(x, **params)
    back = transform.inverse(y, batchwise=False, **params)
    transposed = transform.adjoint(y, **params)
    expected_transposed = torch.zeros_like(x)
    for t in range(n):
        for i in range(images):
            alone = {name: value[t : t + 1, i : i + 1] for name, value in params.items()}
            number = t * images + i
            one = transform.transform(x[i : i + 1], **alone)
            _assert_same(f"image {i} under transform {t}", y[number], one[0], rtol)
            inverse = transform.inverse(one, True, **alone)
            _assert_same(f"its way back ({i}, {t})", back[number], inverse[0], rtol)
            expected_transposed[i] += transform.adjoint(one, **alone)[0]
    _assert_same("the adjoint", transposed, expected_transposed, rtol)


def assert_reproducible(transform: Transform, x: Tensor, seed: int = 0) -> None:
    r"""The same seed gives the same images, another seed others.

    :param deepinv.transform.Transform transform: a random transform.
    :param torch.Tensor x: images.
    :param int seed: seed of ``transform.rng``.
    :raises AssertionError: if the transform draws from elsewhere, or does not draw.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.testing import assert_reproducible
        >>> from deepinv_astro.transform import Scale
        >>> assert_reproducible(Scale(), torch.rand(1, 1, 6, 5))
    """
    drawn = []
    for s in (seed, seed, seed + 1):
        transform.rng.manual_seed(s)
        drawn.append(transform(x))
    if not torch.equal(drawn[0], drawn[1]):
        raise AssertionError("two runs with one seed differ")
    if torch.equal(drawn[0], drawn[2]):
        raise AssertionError("two seeds give the same images")


def _assert_same(what: str, value: Tensor, expected: Tensor, rtol: float) -> None:
    error = float((value - expected).abs().max() / expected.abs().max())
    if not error <= rtol:
        raise AssertionError(f"{what} differs by {error:.1e} of its largest value")
