"""Random point-spread functions of a stated family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from deepinv.physics.generator import PhysicsGenerator
from torch import Tensor

__all__ = ["Normal", "PSFGenerator", "Uniform"]


class Uniform(NamedTuple):
    """Values drawn uniformly between two, elements independently.

    :param torch.Tensor, float low: smallest values.
    :param torch.Tensor, float high: largest values, of the same shape.
    """

    low: Tensor | float
    high: Tensor | float


class Normal(NamedTuple):
    """Values drawn from a Gaussian.

    :param torch.Tensor, float mean: a number, or a vector ``(P,)``.
    :param torch.Tensor, float covariance: the variance of a number, or a matrix ``(P, P)``.
    """

    mean: Tensor | float
    covariance: Tensor | float


class PSFGenerator(PhysicsGenerator):
    r"""Point-spread functions with random parameters.

    .. math::

        \theta \sim p(\theta), \qquad h = h_\theta

    for any function of keywords that makes stamps, such as those of
    ``deepinv_astro.physics.functional``, and an independent law for each of its parameters.

    :param psf: function of keywords whose parameters have leading axes ``(B, 1)`` (a vector
        parameter ``(B, 1, P)``) and whose stamps are ``(B, C, k, l)``. Keep fixed arguments with
        :func:`functools.partial`; a fixed ``sampling`` of shape ``(C,)`` gives a stack.
    :param dict parameters: law of each parameter: :class:`Uniform`, :class:`Normal`, or a number
        that does not vary.
    :param torch.Generator rng: source of randomness.
    :param str device: of the stamps.
    :param torch.dtype dtype: of the stamps.
    :raises ValueError: for bounds that run backwards or differ in shape, or a covariance that is
        none.

    |sep|

    :Examples:

        >>> from functools import partial
        >>> from deepinv_astro.physics.functional.psf_shapes import moffat_psf
        >>> generator = PSFGenerator(
        ...     partial(moffat_psf, (11, 11)),
        ...     {"fwhm": Uniform(1.5, 3.0), "beta": Normal(3.0, 0.04)},
        ... )
        >>> generator.step(batch_size=2, seed=0)["filter"].shape
        torch.Size([2, 1, 11, 11])
    """

    def __init__(
        self,
        psf: Callable[..., Tensor],
        parameters: Mapping[str, Uniform | Normal | float],
        *,
        rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(rng=rng, device=device, dtype=dtype)
        self.psf = psf
        self.laws = {name: self._law(name, law) for name, law in parameters.items()}

    def step(
        self, batch_size: int = 1, seed: int | str | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        r"""Draw PSFs.

        :param int batch_size: number of PSFs :math:`B`.
        :param int seed: seed of the generator.
        :return: dictionary with ``"filter"`` of shape ``(B, C, k, l)``.
        """
        stamps = self.psf(**self.draw(batch_size, seed))
        return {"filter": stamps.to(**self.factory_kwargs)}

    def draw(self, batch_size: int = 1, seed: int | str | None = None) -> dict[str, Tensor]:
        r"""Draw the parameters that :meth:`step` would.

        :param int batch_size: number of draws :math:`B`.
        :param int seed: seed of the generator.
        :return: parameters by name, ``(B, 1)`` or ``(B, 1, P)``.
        """
        self.rng_manual_seed(seed)
        return {name: law(batch_size)[:, None] for name, law in self.laws.items()}

    def _law(self, name: str, law: Uniform | Normal | float) -> Callable[[int], Tensor]:
        """Function that draws a number of values."""
        if not isinstance(law, (Uniform, Normal)):
            law = Uniform(law, law)
        first, second = (torch.as_tensor(v, **self.factory_kwargs) for v in law)
        if isinstance(law, Uniform):
            if first.shape != second.shape or not bool((first <= second).all()):
                raise ValueError(f"bounds of {name} must be increasing and of one shape, got {law}")
            return partial(self._uniform, first, second)
        wanted = first.shape * 2
        if first.ndim > 1 or second.shape != wanted:
            raise ValueError(
                f"{name} has a mean of shape {tuple(first.shape)}, so its covariance must be of "
                f"shape {tuple(wanted)}, got {tuple(second.shape)}"
            )
        values, vectors = torch.linalg.eigh(second.reshape(first.numel(), -1))
        if not bool((values >= -1e-6 * values.abs().max()).all()):
            raise ValueError(f"the covariance of {name} has a negative eigenvalue {values.min():g}")
        return partial(self._normal, first, vectors * values.clamp_min(0).sqrt())

    def _uniform(self, low: Tensor, high: Tensor, count: int) -> Tensor:
        unit = torch.rand(count, *low.shape, generator=self.rng, **self.factory_kwargs)
        return low + (high - low) * unit

    def _normal(self, mean: Tensor, root: Tensor, count: int) -> Tensor:
        white = torch.randn(count, len(root), generator=self.rng, **self.factory_kwargs)
        return mean + (white @ root.mT).reshape(count, *mean.shape)
