r"""Images made brighter or fainter."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from deepinv_astro.transform.base import (
    Law,
    LinearTransform,
    LogUniform,
    Parameter,
    check_law,
    draw,
)

__all__ = ["Amplitude"]

_OCTAVES = LogUniform(0.5, 2.0)


class Amplitude(LinearTransform):
    r"""A positive factor for each image, :math:`T_a x = a\, x`.

    It teaches nothing about a linear operator, but what lies above a saturation, where
    :math:`f(a y) = a f(y)` holds for the reconstruction (Sechaud, Jacques, Abry & Tachella 2024).
    ``inverse`` divides by :math:`a`.

    :param factors: factors :math:`a` to choose from, with equal chances, or :class:`LogUniform`, or
        :class:`~deepinv_astro.physics.generator.Uniform`. Default: ``LogUniform(0.5, 2.0)``.
    :param kwargs: ``n_trans``, ``rng`` and others, see :class:`LinearTransform`.
    :raises ValueError: for a factor that is not positive.

    The parameter is ``amplitude``, ``(n, B)``.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.transform import Amplitude
        >>> Amplitude()(torch.tensor([1.0, -2.0]).view(1, 1, 1, 2), amplitude=3.0).flatten()
        tensor([ 3., -6.])
    """

    parameters_of: ClassVar = {"amplitude": Parameter(0, torch.reciprocal)}

    def __init__(self, factors: Law = _OCTAVES, **kwargs: Any):
        super().__init__(**kwargs)
        self.factors = check_law("factors", factors, positive=True)

    def _get_params(self, x: Tensor) -> dict[str, Tensor]:
        return {"amplitude": draw(self.factors, (self.n_trans, len(x)), self.rng).to(x.device)}

    def _apply_linear(self, x: Tensor, adjoint: bool, **params: Tensor) -> Tensor:
        amplitude = params["amplitude"]
        if not bool(((amplitude > 0) & torch.isfinite(amplitude)).all()):
            raise ValueError(f"`amplitude` must be positive and finite, got {amplitude.tolist()}")
        return x * amplitude.to(x.dtype)[:, None, None, None]
