r"""Gaussian noise correlated within the tiles of a frame."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from deepinv_astro.physics.noise import (
    GaussianModel,
    batched,
    check_measurements,
    checked_labels,
    finite,
    of_batch,
    white,
)

__all__ = ["PatchNoise", "tile_index"]


class PatchNoise(GaussianModel):
    r"""Tiles of correlated pixels, independent of each other, of all frames and channels.

    .. math::

        n_{q,t} = F_q w_{q,t}, \qquad \Sigma_q = F_q F_q^\top \quad\text{for tile } q.

    This is the noise whose likelihood is :class:`deepinv_astro.optim.PatchLikelihood` on tiles with
    statistics from :class:`deepinv_astro.optim.PatchCovariance`:
    ``PatchNoise.from_covariance(statistics.precision[:, :, :, 0].inverse(),
    statistics.patches.index, statistics.patches.size)``. Pixels of no tile have no noise.

    :param torch.Tensor factor: :math:`F_q`, e.g. Cholesky factors: ``(N, K, K)``, ``(c, N, K, K)``
        or ``(b, c, N, K, K)`` with ``c`` 1 or ``C``.
    :param torch.Tensor index: flat index of the pixel at each place of a tile, ``(N, K)``, as
        :func:`tile_index` makes it from labels; ``H W`` (one past the end) where there is none.
    :param tuple size: rows and columns ``(H, W)``.
    :param torch.Generator rng: source of randomness.
    :raises ValueError: if a shape does not fit, a value is not finite, or tiles overlap.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import PatchNoise, tile_index
        >>> labels = torch.tensor([[0, 0, 1]])
        >>> covariance = torch.tensor([[[4.0, 1.0], [1.0, 2.0]], [[9.0, 0.0], [0.0, 1.0]]])
        >>> noise = PatchNoise.from_covariance(covariance, tile_index(labels), (1, 3))
        >>> noise.covariance(torch.tensor([[[[1.0, 0.0, 1.0]]]]))
        tensor([[[[4., 1., 9.]]]])
    """

    names = ("factor",)

    def __init__(
        self,
        factor: Tensor,
        index: Tensor,
        size: tuple[int, int],
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(rng=rng)
        self.size = (int(size[0]), int(size[1]))
        self.register_buffer("index", _checked_index(index, self.size[0] * self.size[1]))
        self.update_parameters(factor=factor)

    @classmethod
    def from_covariance(
        cls,
        covariance: Tensor,
        index: Tensor,
        size: tuple[int, int],
        rng: torch.Generator | None = None,
    ) -> PatchNoise:
        r"""The model with :math:`F_q` the Cholesky factors of covariances.

        :param torch.Tensor covariance: :math:`\Sigma_q`, shaped as ``factor``; what it holds at
            places without pixel does not matter.
        :param torch.Tensor index: as in the constructor.
        :param tuple size: as in the constructor.
        :param torch.Generator rng: as in the constructor.
        :raises ValueError: if a covariance is not positive definite.
        """
        real = index < size[0] * size[1]
        root, info = torch.linalg.cholesky_ex(_on_places(covariance, real))
        if bool((info > 0).any()):
            raise ValueError(
                f"{int((info > 0).sum())} covariances are not positive definite: shrink them, "
                "e.g. by deepinv_astro.optim.patch_statistics.shrink"
            )
        return cls(root, index, size, rng)

    def _shaped(self, name: str, value: Any) -> Tensor:
        value = torch.as_tensor(value)
        axes = ("N", "K", "K") if value.ndim == 3 else ("c", "N", "K", "K")
        factor = finite(name, batched(name, value, axes))
        tiles, places = self.index.shape
        if tuple(factor.shape[-3:]) != (tiles, places, places):
            raise ValueError(
                f"factor must hold {tiles} matrices of {places} x {places} as the index does, "
                f"got shape {tuple(value.shape)}"
            )
        return factor if factor.ndim == 5 else factor[:, None]

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw noise; see :meth:`GaussianModel.sample`."""
        factor = self._factor_for(like)
        return self._scatter(factor @ white(self._gather(like), generator), like)

    def covariance(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma v`; see :meth:`GaussianModel.covariance`."""
        factor = self._factor_for(v)
        return self._scatter(factor @ (factor.mT @ self._gather(v)), v)

    def precision(self, v: Tensor) -> Tensor:
        r"""Product :math:`\Sigma^+ v`; see :meth:`GaussianModel.precision`.

        :raises ValueError: if the covariance of a tile is singular.
        """
        factor = self._factor_for(v)
        root, info = torch.linalg.cholesky_ex(
            _on_places(factor @ factor.mT, self.index < prod(self.size))
        )
        if bool((info > 0).any()):
            raise ValueError("precision needs invertible covariances: a factor is singular")
        return self._scatter(torch.cholesky_solve(self._gather(v), root), v)

    def variance(self, like: Tensor) -> Tensor:
        r"""Variance of each measurement; see :meth:`GaussianModel.variance`."""
        power = self._factor_for(like).square().sum(-1, keepdim=True)
        return self._scatter(power.expand(self._gather(like).shape), like)

    def _factor_for(self, like: Tensor) -> Tensor:
        check_measurements(like)
        if tuple(like.shape[-2:]) != self.size:
            raise ValueError(
                f"the tiles are of frames of {self.size} pixels, got {tuple(like.shape[-2:])}"
            )
        if self.factor.shape[1] not in (1, like.shape[1]):
            raise ValueError(
                f"factor has {self.factor.shape[1]} channels, the measurements {like.shape[1]}"
            )
        return of_batch("factor", self.factor, like)

    def _gather(self, v: Tensor) -> Tensor:
        """Vectors (B, C, N, K, T) of the tiles; zero at places without pixel."""
        frames = v if v.ndim == 5 else v[:, :, None]
        flat = torch.nn.functional.pad(frames.flatten(-2), (0, 1))
        return flat[..., self.index.to(v.device)].permute(0, 1, 3, 4, 2)

    def _scatter(self, vectors: Tensor, like: Tensor) -> Tensor:
        """Put vectors back in place: the transpose of the gathering."""
        joined = vectors.permute(0, 1, 4, 2, 3).flatten(-2)
        out = joined.new_zeros(*joined.shape[:-1], prod(self.size) + 1)
        out = out.index_copy(-1, self.index.flatten().to(out.device), joined)
        return out[..., :-1].reshape(like.shape)


def tile_index(labels: Tensor) -> Tensor:
    r"""Pixels of each tile of a map of labels, row after row.

    :param torch.Tensor labels: integers ``(H, W)``; pixels with a negative label are in no tile.
    :return: (:class:`torch.Tensor`) flat indices ``(N, K)`` for the ``N`` labels in their order,
        with ``K`` the pixels of the largest tile; ``H W`` after the last pixel of smaller ones.
    :raises ValueError: if no pixel is in a tile.

    |sep|

    :Examples:

        >>> import torch
        >>> from deepinv_astro.physics import tile_index
        >>> tile_index(torch.tensor([[0, 0, 4], [0, -1, 4]]))
        tensor([[0, 1, 3],
                [2, 5, 6]])
    """
    flat = checked_labels(labels).flatten()
    tiles = [(flat == label).nonzero()[:, 0] for label in flat.unique().tolist() if label >= 0]
    return torch.nn.utils.rnn.pad_sequence(tiles, True, float(len(flat))).long()


def _on_places(covariance: Tensor, real: Tensor) -> Tensor:
    """Covariances with the identity at the places without pixel."""
    both = real[:, :, None] & real[:, None, :]
    unit = torch.eye(real.shape[1]).to(covariance)
    return torch.where(both.to(covariance.device), covariance, unit)


def _checked_index(index: Tensor, pixels: int) -> Tensor:
    if index.ndim != 2 or index.is_floating_point():
        raise ValueError(
            f"index must be integers of shape (N, K), got {index.dtype} {tuple(index.shape)}"
        )
    if not bool(((index >= 0) & (index <= pixels)).all()):
        raise ValueError(f"index must lie between 0 and {pixels} (no pixel), got {index.tolist()}")
    used = index[index < pixels]
    if len(used.unique()) < len(used):
        raise ValueError("tiles must not overlap: a pixel is in two of them")
    return index.clone().long()
