r"""Gaussian noise correlated between pixels: a stationary kernel, or a few modes."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from deepinv_astro.physics.blur import Boundary
from deepinv_astro.physics.noise import (
    GaussianModel,
    batched,
    check_measurements,
    finite,
    nonnegative,
    of_batch,
    white,
)

__all__ = ["LowRankNoise", "StationaryNoise"]


class StationaryNoise(GaussianModel):
    r"""White noise seen through a kernel: the same correlation everywhere in a frame.

    .. math::

        n = k * w, \qquad w \sim \mathcal N(0, I), \qquad
        \operatorname{cov}(n_i, n_j) = \sum_p k_p\, k_{p + j - i}.

    Frames and channels are independent of each other.

    :param torch.Tensor kernel: :math:`k`, of any sum and sign: ``(k, l)``, ``(c, k, l)`` or
        ``(b, c, k, l)`` with ``c`` 1 or ``C``.
    :param Boundary boundary: ``"valid"``: a frame is a window on a larger field, pixels at opposite
        edges are independent; ``"periodic"``: they are neighbours, and :math:`\Sigma` is diagonal
        in Fourier space, so that :meth:`precision` is cheap.
    :param torch.Generator rng: source of randomness.
    :raises ValueError: if a shape does not fit or a value is not finite.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import StationaryNoise
        >>> noise = StationaryNoise(torch.tensor([[1.0, 0.5]]))
        >>> unit = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]])
        >>> noise.covariance(unit).round(decimals=3).abs()
        tensor([[[[1.2500, 0.5000, 0.0000],
                  [0.0000, 0.0000, 0.0000]]]])
    """

    names = ("kernel",)

    def __init__(
        self,
        kernel: Tensor,
        boundary: Boundary | str = Boundary.VALID,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(rng=rng)
        self.boundary = Boundary(boundary)
        if self.boundary is Boundary.ZERO:
            raise ValueError("noise has no edge of its own: use boundary 'valid' or 'periodic'")
        self.update_parameters(kernel=kernel)

    def _shaped(self, name: str, value: Any) -> Tensor:
        value = torch.as_tensor(value)
        kernel = finite(
            name, batched(name, value, ("c", "k", "l") if value.ndim > 2 else ("k", "l"))
        )
        return kernel if kernel.ndim == 4 else kernel[:, None]

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw noise; see :meth:`GaussianModel.sample`."""
        response, (rows, columns) = self._response(like)
        field = white(like.new_empty(*like.shape[:-2], rows, columns), generator)
        return self._crop(_filter(field, response), like)

    def covariance(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma v`; see :meth:`GaussianModel.covariance`."""
        response, grid = self._response(v)
        return self._crop(_filter(self._pad(v, grid), response.abs().square()), v)

    def precision(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma^+ v` for a periodic boundary; see :meth:`GaussianModel.precision`."""
        if self.boundary is not Boundary.PERIODIC:
            return super().precision(v)
        power = self._response(v)[0].abs().square()
        floor = power.amax((-2, -1), keepdim=True) * torch.finfo(power.dtype).eps ** 2
        return _filter(v, torch.where(power > floor, 1 / power.clamp_min(floor), 0))

    def variance(self, like: Tensor) -> Tensor:
        r"""Variance of each measurement; see :meth:`GaussianModel.variance`."""
        power = self._kernel_for(like).square().sum((-2, -1), keepdim=True)
        return power.expand(like.shape)

    def _kernel_for(self, like: Tensor) -> Tensor:
        check_measurements(like)
        if self.kernel.shape[1] not in (1, like.shape[1]):
            raise ValueError(
                f"kernel has {self.kernel.shape[1]} channels, the measurements {like.shape[1]}"
            )
        kernel = of_batch("kernel", self.kernel, like)
        size = tuple(zip(like.shape[-2:], kernel.shape[-2:], strict=True))
        if self.boundary is Boundary.PERIODIC and any(k > s for s, k in size):
            raise ValueError(
                f"a kernel of {tuple(kernel.shape[-2:])} pixels does not fit in periodic "
                f"frames of {tuple(like.shape[-2:])}"
            )
        return kernel if like.ndim == 4 else kernel[:, :, None]

    def _response(self, like: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Fourier transform of the kernel on the grid of the white field, and the size of that grid."""
        kernel = self._kernel_for(like)
        size = tuple(zip(like.shape[-2:], kernel.shape[-2:], strict=True))
        if self.boundary is Boundary.PERIODIC:
            grid = (like.shape[-2], like.shape[-1])
        else:
            rows, columns = (s + k - 1 for s, k in size)
            grid = (rows, columns)
        return torch.fft.rfft2(kernel, s=grid), grid

    def _crop(self, field: Tensor, like: Tensor) -> Tensor:
        """The window on the field that the whole kernel reaches: its last rows and columns."""
        rows, columns = (f - s for f, s in zip(field.shape[-2:], like.shape[-2:], strict=True))
        return field[..., rows:, columns:]

    def _pad(self, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """Transpose of the crop."""
        rows, columns = (g - s for g, s in zip(grid, v.shape[-2:], strict=True))
        return torch.nn.functional.pad(v, (columns, 0, rows, 0))


class LowRankNoise(GaussianModel):
    r"""A few modes of random amplitude, and independent noise.

    .. math::

        n = L a + \sigma \odot w, \qquad a, w \sim \mathcal N(0, I), \qquad
        \Sigma = L L^\top + \operatorname{diag}(\sigma^2).

    Modes of the size of a frame have independent amplitudes in each frame and channel (residual
    speckles); modes of the size of the whole measurement have one (what an error of calibration
    does, :math:`L_j = s_j\, \partial_j A x`).

    :param torch.Tensor modes: columns :math:`L_j`, which hold their standard deviation: for frames
        ``(r, H, W)`` or ``(b, r, H, W)``; for whole measurements ``(b, r, C, H, W)`` or
        ``(b, r, C, T, H, W)``.
    :param torch.Tensor, float sigma: :math:`\sigma`: ``()`` or ``(b,)``, a map ``(H, W)`` or
        ``(b, H, W)``, or for each element ``(b, C, H, W)`` or ``(b, C, T, H, W)``.
    :param torch.Generator rng: source of randomness.
    :raises ValueError: if a shape does not fit, a value is not finite, or a level is negative.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import LowRankNoise
        >>> noise = LowRankNoise(torch.tensor([[[1.0, 2.0, 0.0]]]), sigma=3.0)
        >>> noise.covariance(torch.tensor([[[[1.0, 0.0, 0.0]]]]))
        tensor([[[[10.,  2.,  0.]]]])
    """

    names = ("modes", "sigma")

    def __init__(
        self, modes: Tensor, sigma: Tensor | float, rng: torch.Generator | None = None
    ) -> None:
        super().__init__(rng=rng)
        self.update_parameters(modes=modes, sigma=sigma)

    def _shaped(self, name: str, value: Any) -> Tensor:
        value = torch.as_tensor(value)
        axes: tuple[str, ...]
        if name == "modes":
            axes = (
                ("r", "C", "T", "H", "W")[: value.ndim - 1] if value.ndim > 4 else ("r", "H", "W")
            )
            return finite(name, batched(name, value, axes))
        axes = ("C", "T", "H", "W")[: value.ndim - 1] if value.ndim > 3 else ("H", "W")
        return nonnegative(name, batched(name, value, axes if value.ndim > 1 else ()))

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw noise; see :meth:`GaussianModel.sample`."""
        modes, flat = self._modes_for(like), self._flat(like)
        amplitudes = white(like.new_empty(*flat.shape[:2], modes.shape[1]), generator)
        return self._std(like) * white(like, generator) + (amplitudes @ modes).view_as(like)

    def covariance(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma v`; see :meth:`GaussianModel.covariance`."""
        modes, flat = self._modes_for(v), self._flat(v)
        return self._std(v).square() * v + (flat @ modes.mT @ modes).view_as(v)

    def precision(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma^{-1} v` by the Woodbury identity; see :meth:`GaussianModel.precision`.

        :raises ValueError: if a level is zero: :math:`\Sigma` may then be singular.
        """
        if not bool((self.sigma > 0).all()):
            raise ValueError("precision needs sigma > 0 everywhere, got a level of zero")
        modes, weight = self._modes_for(v), self._flat_weight(v)
        scaled = self._flat(v) * weight
        # (I + L' D^-1 L) of each frame, or one for all where the levels are the same in all
        inner = torch.einsum("brm,bkm,bsm->bkrs", modes.expand(len(v), -1, -1), weight, modes)
        inner = inner + torch.eye(modes.shape[1]).to(inner)
        amplitudes = torch.linalg.solve(inner, (scaled @ modes.mT)[..., None])[..., 0]
        return (scaled - weight * (amplitudes @ modes)).view_as(v)

    def variance(self, like: Tensor) -> Tensor:
        r"""Variance of each measurement; see :meth:`GaussianModel.variance`."""
        power = self._modes_for(like).square().sum(1, keepdim=True)
        spread = power.expand(len(like), self._flat(like).shape[1], -1).reshape(like.shape)
        return spread + self._std(like).square()

    def _modes_for(self, like: Tensor) -> Tensor:
        """Modes (b, r, elements) of each image."""
        check_measurements(like)
        wanted = tuple(like.shape[-2:] if self.modes.ndim == 4 else like.shape[1:])
        if tuple(self.modes.shape[2:]) != wanted:
            raise ValueError(
                f"modes are of shape {tuple(self.modes.shape[2:])}, "
                f"measurements of shape {tuple(like.shape)} need {wanted}"
            )
        return of_batch("modes", self.modes, like).flatten(2)

    def _flat(self, v: Tensor) -> Tensor:
        """Measurements (B, frames, elements of a mode)."""
        return v.reshape(len(v), -1, prod(self.modes.shape[2:]))

    def _std(self, like: Tensor) -> Tensor:
        sigma = of_batch("sigma", self.sigma, like)
        wanted = like.shape[1:] if sigma.ndim > 3 else like.shape[-2:]
        if sigma.ndim > 1 and sigma.shape[1:] != wanted:
            raise ValueError(
                f"sigma is of shape {tuple(sigma.shape[1:])} for each image, "
                f"measurements of shape {tuple(like.shape)} need {tuple(wanted)}"
            )
        return sigma.reshape(len(sigma), *[1] * (like.ndim - sigma.ndim), *sigma.shape[1:])

    def _flat_weight(self, like: Tensor) -> Tensor:
        """Inverse variances (B, 1 or frames, elements of a mode)."""
        weight = 1 / self._std(like).square()
        whole = self.modes.ndim > 4 or prod(weight.shape[1:-2]) > 1
        shape = like.shape[1:] if whole else (*weight.shape[1:-2], *like.shape[-2:])
        return self._flat(weight.expand(len(like), *shape))


def _filter(field: Tensor, response: Tensor) -> Tensor:
    rows, columns = field.shape[-2:]
    return torch.fft.irfft2(torch.fft.rfft2(field) * response, s=(rows, columns))
