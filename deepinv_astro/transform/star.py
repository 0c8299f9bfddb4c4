r"""Transforms about the star: rotation, and the stretch of another inclination."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepinv_astro.physics.functional.affine import (
    AffineSampler,
    rotation_matrix,
    stretch_matrix,
    stretch_response,
)
from deepinv_astro.physics.functional.scaling import Antialias, Continuation
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

__all__ = ["InclinationStretch", "StarRotation", "Stretch"]

_TURN, _HALF_TURN = Uniform(-180.0, 180.0), Uniform(0.0, 180.0)


class _AboutStar(LinearTransform):
    """A transform that leaves the star in place."""

    def __init__(
        self, star: tuple[float, float] | None, boundary: Continuation | str, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if star is not None and len(star) != 2:
            raise ValueError(f"`star` must be (row, column), got {star}")
        self.star, self.boundary = star, Continuation(boundary)

    def _defaults(self, x: Tensor) -> dict[str, Any]:
        star = self.star
        return {"star": (x.shape[-2] // 2, x.shape[-1] // 2) if star is None else star}


class StarRotation(_AboutStar):
    r"""Rotation of the sky about the star.

    .. math::

        (T_\theta x)(p) = x\!\left(c + R_{-\theta} (p - c)\right)

    turns images counter-clockwise as displayed (:doc:`/conventions`) by any angle, by the cubic
    splines of :class:`~deepinv_astro.physics.ADI`. ``inverse`` turns back, ``adjoint`` is the exact
    transpose. Gradients flow to the image, the angle and the star.

    Such rotations commute with angular differential imaging: equivariance to them teaches nothing
    that its data do not say.

    :param angles: angles in degrees to choose from, with equal chances, or
        :class:`~deepinv_astro.physics.generator.Uniform`. Default: all.
    :param tuple star: row and column :math:`c`. Default ``(H // 2, W // 2)``.
    :param Continuation boundary: what is beyond the edges: nothing, ``"zeros"``, or the mirror
        image, ``"reflect"``.
    :param kwargs: ``n_trans``, ``rng`` and others, see :class:`LinearTransform`.
    :raises ValueError: for no angles, or another star.

    The parameters are ``angle``, ``(n, B)``, and ``star``, ``(n, B, 2)``, which may be left out.

    |sep|

    :Examples:

        A planet right of the star (West) comes above it (North):

        >>> import torch
        >>> from deepinv_astro.transform import StarRotation
        >>> x = torch.zeros(1, 1, 7, 9)
        >>> x[0, 0, 3, 6] = 1.0
        >>> divmod(int(StarRotation()(x, angle=90.0).argmax()), 9)
        (5, 4)
    """

    parameters_of: ClassVar = {
        "angle": Parameter(0, torch.neg),
        "star": Parameter(1, unchanged),
    }

    def __init__(
        self,
        angles: Law = _TURN,
        star: tuple[float, float] | None = None,
        *,
        boundary: Continuation | str = Continuation.ZEROS,
        **kwargs: Any,
    ):
        super().__init__(star, boundary, **kwargs)
        self.angles = check_law("angles", angles, positive=False)

    def _get_params(self, x: Tensor) -> dict[str, Tensor]:
        return {"angle": draw(self.angles, (self.n_trans, len(x)), self.rng).to(x.device)}

    def _apply_linear(self, x: Tensor, adjoint: bool, **params: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        matrix = rotation_matrix(params["angle"].double())
        sampler = AffineSampler(matrix, params["star"], size, self.boundary)
        return sampler.adjoint(x) if adjoint else sampler.forward(x)


class Stretch(str, Enum):
    """Which way an image is stretched."""

    #: As a disk seen from above looks from the side: compressed across the axis.
    INCLINE = "incline"
    #: The opposite: expanded across the axis.
    DEPROJECT = "deproject"
    #: Either, with equal chances.
    EITHER = "either"


class InclinationStretch(_AboutStar):
    r"""The look of a flat disk at another inclination.

    .. math::

        (T_{q,\varphi}\, x)(p) = g\; x\!\left(c + \left[ I + (\tfrac1q - 1)\, n n^\top \right] (p - c)\right)
        \cdot \begin{cases} 1 & \text{brightness kept} \\ q^{-1} & \text{flux kept} \end{cases}

    multiplies distances across an axis through the star by the axis ratio :math:`q`. With
    :math:`q = \cos i` a disk seen from above is seen at the inclination :math:`i`, its major axis at the
    position angle :math:`\varphi`; :math:`n = (\sin\varphi, \cos\varphi)` is the direction across it,
    in rows and columns. ``inverse`` is the deprojection, :math:`1/q` about the same axis;
    ``adjoint`` the exact transpose. Gradients flow to the image and all parameters.

    Disks are seen from random directions, so that :math:`\cos i` is uniform, and their distribution is
    about the same after a stretch. Unlike rotations it does not commute with angular differential
    imaging.

    Training is stable only where transformed images are not brighter on the detector than the
    original ones. ``detector`` sees to it: random parameters then have the gain

    .. math::

        g = \min\!\left(1, \|A x\| / \|A T_{q,\varphi}\, x\|\right).

    :param tuple inclinations: smallest and largest :math:`i` in degrees, in [0, 90).
    :param position_angles: of the axis, degrees East of North: values to choose from, or
        :class:`~deepinv_astro.physics.generator.Uniform`. Default: all.
    :param tuple star: row and column :math:`c`. Default ``(H // 2, W // 2)``.
    :param Stretch direction: ``"incline"``, ``"deproject"`` or ``"either"``.
    :param Keep keep: ``"flux"`` or ``"brightness"``.
    :param Antialias antialias: of what is compressed: ``"bandlimited"`` or ``"none"``.
    :param Continuation boundary: what is beyond the edges: ``"zeros"`` or ``"reflect"``.
    :param Callable detector: the operator :math:`A`, e.g. ``physics.A``, of images ``(B, C, H, W)``.
    :param kwargs: ``n_trans``, ``rng`` and others, see :class:`LinearTransform`.
    :raises ValueError: for an inclination out of [0, 90), or another star.

    The parameters are ``axis_ratio`` and ``position_angle``, ``(n, B)``; ``gain``, ``(n, B)``, and
    ``star``, ``(n, B, 2)``, may be left out.

    |sep|

    :Examples:

        A ring seen from above, then at 60 degrees with its major axis East-West:

        >>> import torch
        >>> from deepinv_astro.datasets import ring
        >>> from deepinv_astro.transform import InclinationStretch
        >>> above = ring((41, 51), 15.0, 0.0, 0.0)[None, None]
        >>> side = InclinationStretch()(above, axis_ratio=0.5, position_angle=90.0)
        >>> [int(image[0, 0, :20, 25].argmax()) for image in (above, side)]  # along the rows
        [5, 12]
        >>> [int(image[0, 0, 20, :25].argmax()) for image in (above, side)]  # along the columns
        [10, 10]
    """

    parameters_of: ClassVar = {
        "axis_ratio": Parameter(0, torch.reciprocal),
        "position_angle": Parameter(0, unchanged),
        "gain": Parameter(0, torch.reciprocal),
        "star": Parameter(1, unchanged),
    }

    def __init__(
        self,
        inclinations: tuple[float, float] = (0.0, 75.0),
        position_angles: Law = _HALF_TURN,
        star: tuple[float, float] | None = None,
        *,
        direction: Stretch | str = Stretch.INCLINE,
        keep: Keep | str = Keep.FLUX,
        antialias: Antialias | str = Antialias.BANDLIMITED,
        boundary: Continuation | str = Continuation.ZEROS,
        detector: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ):
        super().__init__(star, boundary, **kwargs)
        if len(inclinations) != 2 or not 0 <= inclinations[0] <= inclinations[1] < 90:
            raise ValueError(
                f"`inclinations` must be (smallest, largest) in [0, 90) degrees, got {inclinations}"
            )
        self.inclinations = inclinations
        self.position_angles = check_law("position_angles", position_angles, positive=False)
        self.direction, self.keep = Stretch(direction), Keep(keep)
        self.antialias, self.detector = Antialias(antialias), detector

    def _defaults(self, x: Tensor) -> dict[str, Any]:
        return {**super()._defaults(x), "gain": 1.0}

    def _get_params(self, x: Tensor) -> dict[str, Tensor]:
        shape = (self.n_trans, len(x))
        largest, smallest = (math.cos(math.radians(i)) for i in self.inclinations)
        ratio = draw(Uniform(smallest, largest), shape, self.rng)
        angle = draw(self.position_angles, shape, self.rng)
        if self.direction is Stretch.EITHER:
            ratio = ratio ** draw((1.0, -1.0), shape, self.rng)
        elif self.direction is Stretch.DEPROJECT:
            ratio = 1 / ratio
        params = {"axis_ratio": ratio.to(x.device), "position_angle": angle.to(x.device)}
        if self.detector is not None:
            with torch.no_grad():
                after = self.detector(self._transform(x, **params)).flatten(1).norm(dim=1)
                before = self.detector(x).flatten(1).norm(dim=1).expand(shape)
                gain = before / after.view(shape)
            params["gain"] = torch.where(gain < 1, gain, 1.0)
        return params

    def _apply_linear(self, x: Tensor, adjoint: bool, **params: Tensor) -> Tensor:
        ratio, angle = params["axis_ratio"].double(), params["position_angle"].double()
        if not bool(((ratio > 0) & torch.isfinite(ratio)).all()):
            raise ValueError(f"`axis_ratio` must be positive and finite, got {ratio.tolist()}")
        size = (x.shape[-2], x.shape[-1])
        response = None
        if self.antialias is Antialias.BANDLIMITED:
            mirrored = (max(2 * (size[0] - 1), 1), max(2 * (size[1] - 1), 1))
            response = stretch_response(ratio, angle, mirrored)
        matrix = stretch_matrix(ratio, angle)
        sampler = AffineSampler(matrix, params["star"], size, self.boundary, response)
        y = sampler.adjoint(x) if adjoint else sampler.forward(x)
        weight = params["gain"].double() * (1 / ratio if self.keep is Keep.FLUX else 1)
        return y * weight.to(x.dtype)[:, None, None, None]
