r"""What is taken from the measurements because nothing is known about it."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinv_astro.identifiability.virtual import Map
from deepinv_astro.models.pca import gram, residual_weights


def remove_mean(y: Tensor) -> Tensor:
    r"""Sequence without its temporal mean: an unknown static halo is projected out.

    .. math::

        P y_t = y_t - \tfrac1T \sum_s y_s

    :param torch.Tensor y: ``(B, C, T, h, w)``.
    :return: (:class:`torch.Tensor`) the same shape.

    |sep|

    :Examples:

        >>> import torch
        >>> remove_mean(torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1, 1)).flatten()
        tensor([-2., -1.,  3.])
    """
    return y - y.mean(2, keepdim=True)


def remove_components(frames: Tensor, n_components: int, mask: Tensor | None = None) -> Map:
    r"""Projection that removes the mean and the first principal components of given frames.

    .. math::

        P Y = (I - U_k U_k^\top)(I - \tfrac1T \mathbf 1 \mathbf 1^\top)\, Y,

    with :math:`U_k` the first temporal components of ``frames``, held fixed.

    :param torch.Tensor frames: ``(T, h, w)`` whose components are removed, finite.
    :param int n_components: :math:`k`.
    :param torch.Tensor mask: booleans ``(h, w)``: pixels that are analysed and kept, such as an
        annulus; the others are set to zero. Default all.
    :return: (:class:`collections.abc.Callable`) :math:`P`, on ``(B, C, T, h, w)``.
    :raises ValueError: if there are not enough frames, or a shape does not fit.

    |sep|

    :Examples:

        A halo that flickers leaves nothing, what else changes stays in part:

        >>> import torch
        >>> halo = torch.tensor([1.0, 2.0, 3.0])[:, None, None] * torch.tensor([[1.0, 4.0]])
        >>> project = remove_components(halo, n_components=1)
        >>> project(halo[None, None]).abs().max().round(decimals=5)
        tensor(0.)
        >>> bump = torch.tensor([0.0, 1.0, 0.0]).view(1, 1, 3, 1, 1).expand(-1, -1, -1, 1, 2)
        >>> project(bump)[0, 0, :, 0, 0].round(decimals=3)
        tensor([-0.3330,  0.6670, -0.3330])
    """
    if frames.ndim != 3 or not 0 <= n_components < len(frames):
        raise ValueError(
            "frames must be (T, h, w) with more frames than `n_components`, "
            f"got {tuple(frames.shape)} and {n_components}"
        )
    if mask is not None and mask.shape != frames.shape[1:]:
        raise ValueError(
            f"`mask` must be of shape {tuple(frames.shape[1:])}, got {tuple(mask.shape)}"
        )
    inside = torch.ones_like(frames[0]) if mask is None else mask.to(frames)
    pixels = (frames - frames.mean(0)).flatten(1)[:, inside.flatten() > 0]
    weights = residual_weights(gram(pixels), n_components).to(frames.dtype)

    def project(y: Tensor) -> Tensor:
        kept: Tensor = torch.einsum("st,bcthw->bcshw", weights, remove_mean(y)) * inside
        return kept

    return project
