r"""Images scaled about a point, and the recipe of scale-equivariant imaging."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from deepinv_astro.physics.functional.scaling import (
    Antialias,
    Continuation,
    Kernel,
    ScaleSampler,
)
from deepinv_astro.physics.generator import Uniform
from deepinv_astro.transform.base import (
    Keep,
    Law,
    LinearTransform,
    Parameter,
    check_law,
    draw,
    unchanged,
)

__all__ = ["Scale", "ScaleEIRecipe", "scale_ei_recipe"]


class Scale(LinearTransform):
    r"""Scaling of images about a point.

    .. math::

        (T_{s,c}\, x)(p) = x\!\left(c + \frac{p - c}{s}\right) \cdot
        \begin{cases} 1 & \text{brightness kept} \\ s^{-2} & \text{flux kept} \end{cases}

    A factor :math:`s < 1` makes things smaller, :math:`s > 1` larger; the point :math:`c` stays in
    place. At :math:`s = 1` it is the identity. Two interpolations, one along each axis, work for any
    shape of images. ``inverse`` scales by :math:`1/s` about the same point; ``adjoint`` is the exact
    transpose. Gradients flow to the image, the factor and the centre.

    A larger image has lost what left the field, a smaller one the details beyond :math:`s` times its
    Nyquist frequency: what is left, ``inverse`` recovers to the accuracy of the interpolation.

    :param factors: factors :math:`s` to choose from, with equal chances, or
        :class:`LogUniform`, or :class:`~deepinv_astro.physics.generator.Uniform`.
    :param str, tuple center: ``"random"``, anywhere on the image; ``"star"``, at ``(H // 2, W //
        2)``; or a fixed ``(row, column)``.
    :param Antialias antialias: of images that become smaller: ``"bandlimited"`` or ``"none"``.
    :param Continuation boundary: what smaller images show around them: their mirror image,
        ``"reflect"``, or nothing, ``"zeros"``.
    :param Keep keep: ``"brightness"`` or ``"flux"``.
    :param Kernel kernel: ``"spline"``, ``"bicubic"``, or ``"linear"``.
    :param kwargs: ``n_trans``, ``rng`` and others, see :class:`LinearTransform`.
    :raises ValueError: for a factor that is not positive, another centre, or a factor given to a
        transform of random centre without one.

    The parameters of ``transform``, ``inverse``, ``adjoint`` are ``factor``, ``(n, B)``, and
    ``center``, ``(n, B, 2)``, or fewer axes (see :class:`LinearTransform`); ``center`` may be left
    out where it is fixed or the star's.

    |sep|

    :Examples:

        A star two rows above the centre and one column left of it, under a factor of three:

        >>> import torch
        >>> from deepinv_astro.transform import Scale
        >>> x = torch.zeros(1, 1, 15, 9)
        >>> x[0, 0, 9, 3] = 1.0
        >>> scale = Scale((1 / 3, 3.0), center="star", boundary="zeros")
        >>> y = scale(x, factor=3.0)
        >>> divmod(int(y.argmax()), 9), divmod(int(scale.inverse(y, factor=3.0).argmax()), 9)
        ((13, 1), (9, 3))
    """

    parameters_of: ClassVar = {
        "factor": Parameter(0, torch.reciprocal),
        "center": Parameter(1, unchanged),
    }

    def __init__(
        self,
        factors: Law = (0.5, 0.75),
        center: str | tuple[float, float] = "random",
        *,
        antialias: Antialias | str = Antialias.BANDLIMITED,
        boundary: Continuation | str = Continuation.REFLECT,
        keep: Keep | str = Keep.BRIGHTNESS,
        kernel: Kernel | str = Kernel.SPLINE,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.factors = check_law("factors", factors, positive=True)
        if isinstance(center, str):
            if center not in ("random", "star"):
                raise ValueError(
                    f'`center` must be "random", "star" or (row, column), got "{center}"'
                )
        elif len(center) != 2:
            raise ValueError(f"`center` must be (row, column), got {center}")
        self.center = center
        self.antialias, self.boundary = Antialias(antialias), Continuation(boundary)
        self.keep, self.kernel = Keep(keep), Kernel(kernel)

    def _defaults(self, x: Tensor) -> dict[str, Any]:
        if self.center == "random":
            return {}
        if self.center == "star":
            return {"center": (x.shape[-2] // 2, x.shape[-1] // 2)}
        return {"center": self.center}

    def _complete(self, x: Tensor, params: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.center == "random" and "factor" in params and "center" not in params:
            raise ValueError(
                "`center` is random and was not given beside `factor`: pass `center=(row, column)`, "
                'or make the transform with `center="star"`, the middle (H // 2, W // 2)'
            )
        return super()._complete(x, params)

    def _get_params(self, x: Tensor) -> dict[str, Tensor]:
        shape = (self.n_trans, len(x))
        params = {"factor": draw(self.factors, shape, self.rng)}
        if self.center == "random":
            last = torch.tensor([n - 1.0 for n in x.shape[-2:]], device=self.rng.device)
            params["center"] = last * draw(Uniform(0.0, 1.0), (*shape, 2), self.rng)
        else:
            center = torch.tensor(self._defaults(x)["center"], dtype=torch.float64)
            params["center"] = center.expand(*shape, 2)
        return {name: value.to(x.device) for name, value in params.items()}

    def _apply_linear(self, x: Tensor, adjoint: bool, **params: Tensor) -> Tensor:
        factor, center = params["factor"], params["center"]
        if not all(0 < float(end) < math.inf for end in factor.detach().aminmax()):
            raise ValueError(f"`factor` must be positive and finite, got {factor.tolist()}")
        size = (x.shape[-2], x.shape[-1])
        dtype = torch.promote_types(x.dtype, torch.float32)
        choice = (self.kernel, self.antialias, self.boundary)
        sampler = ScaleSampler(factor, center, size, *choice, dtype)
        y = sampler.adjoint(x) if adjoint else sampler.forward(x)
        if self.keep is Keep.FLUX:
            y = y * factor.to(x.dtype)[:, None, None, None] ** -2
        return y


class ScaleEIRecipe(NamedTuple):
    """Settings of :class:`deepinv.loss.EILoss`, so that ``EILoss(**recipe._asdict())`` is the loss.

    :param Scale transform: the transform.
    :param float weight: of the equivariance loss, beside a SURE loss of weight one.
    :param bool apply_noise: noise is added to the measurements of transformed images.
    :param bool no_grad: no gradient flows through transformed images.
    """

    transform: Scale
    weight: float
    apply_noise: bool
    no_grad: bool


def scale_ei_recipe(n_trans: int = 1, rng: torch.Generator | None = None) -> ScaleEIRecipe:
    r"""Scale-equivariant imaging as it was published (Scanvic, Davies, Abry & Tachella, 2026).

    Factors :math:`\tfrac12` and :math:`\tfrac34` with equal chances, a centre anywhere on the image,
    bicubic interpolation with the slope -3/4, mirrored edges, no antialiasing, brightness kept; one
    transform for each image, weight one, noise added, and no gradient through the transformed image.

    One thing differs. The published grid reads at :math:`\tfrac{N-1}{N}` of the intended position,
    up to a pixel off at the far edge, and mixes rows with columns where :math:`H \ne W`; here the
    positions are right.

    :param int n_trans: number of transforms for each image.
    :param torch.Generator rng: source of randomness.
    :return: (:class:`ScaleEIRecipe`) the transform, and the settings of the loss.

    |sep|

    :Examples:

        >>> from deepinv.loss import EILoss
        >>> from deepinv_astro.transform import scale_ei_recipe
        >>> recipe = scale_ei_recipe()
        >>> recipe.transform.factors, recipe.no_grad
        ((0.5, 0.75), True)
        >>> loss = EILoss(**recipe._asdict())
    """
    transform = Scale(
        (0.5, 0.75), "random", antialias="none", kernel="bicubic", n_trans=n_trans, rng=rng
    )
    return ScaleEIRecipe(transform, weight=1.0, apply_noise=True, no_grad=True)
