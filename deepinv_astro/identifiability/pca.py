r"""What the subtraction of principal components leaves of a planet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepinv_astro.identifiability.virtual import Progress
from deepinv_astro.models.pca import gram
from deepinv_astro.physics import ADI

#: Planets that are traced together.
CHUNK = 16


class PCAThroughput(NamedTuple):
    """Fractions of a planet that are left, for each number of components and each position.

    :param torch.Tensor projected: energy left by the projection, components held: ``(K, H, W)``.
    :param torch.Tensor energy: energy left to first order when the components are refitted with
        the planet in the data, ``(K, H, W)``.
    :param torch.Tensor flux: flux left in the same case, as a fit of the track would find it,
        ``(K, H, W)``.
    """

    projected: Tensor
    energy: Tensor
    flux: Tensor


class _Components(NamedTuple):
    """Singular vectors and values of centred frames."""

    temporal: Tensor  # U, (T, T)
    spatial: Tensor  # V, (P, T); zero where the singular value is
    values: Tensor  # (T,)


def pca_throughput(
    frames: Tensor,
    physics: ADI,
    components: Sequence[int],
    *,
    where: Tensor | None = None,
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> PCAThroughput:
    r"""Exact throughput of PCA for a faint planet at each position.

    With the centred frames :math:`Y = U \Sigma V^\top`, a planet adds its centred track
    :math:`\epsilon p`, and PCA leaves :math:`R = (I - U_k U_k^\top) Y`. With the components held,
    :math:`\dot R = (I - U_k U_k^\top) p`. But the planet turns the components: to first order in
    :math:`\epsilon`, with :math:`C = U^\top p V`,

    .. math::

        \dot R = (I - U_k U_k^\top)\, p - \sum_{i \le k < j} q_{ij}
        \left( \sigma_i u_j v_i^\top + \sigma_j u_i v_j^\top \right), \qquad
        q_{ij} = \frac{\sigma_i C_{ji} + \sigma_j C_{ij}}{\sigma_i^2 - \sigma_j^2} .

    The second term is the self-subtraction; the flux that a fit of the track finds,
    :math:`\langle p, \dot R \rangle`, loses
    :math:`\sum q_{ij}^2 (\sigma_i^2 - \sigma_j^2) \ge 0` by it. Fractions refer to
    the track before its mean is removed. Valid for planets much fainter than the speckles.

    :param torch.Tensor frames: ``(T, h, w)``, finite, with no planet or a faint one.
    :param ADI physics: the operator of the sequence, one channel, with its PSF.
    :param components: numbers of components :math:`k`, each less than ``T``.
    :param torch.Tensor where: booleans ``(H, W)``: pixels of the sky where a planet is tried;
        default all. The maps are NaN elsewhere, and where the planet leaves no trace.
    :param torch.Tensor mask: booleans ``(h, w)``: pixels that are analysed, e.g. an annulus.
    :param Callable progress: called with the planets done and the planets in all.
    :return: (:class:`PCAThroughput`)
    :raises ValueError: if a shape does not fit or there are too many components.

    |sep|

    :Examples:

        More components, less planet:

        >>> import torch
        >>> from deepinv_astro.physics import ADI
        >>> generator = torch.Generator().manual_seed(0)
        >>> frames = torch.randn(6, 15, 13, generator=generator, dtype=torch.float64)
        >>> physics = ADI((1, 15, 13), torch.linspace(0, 60, 6), dtype=torch.float64)
        >>> where = torch.zeros(15, 13, dtype=torch.bool)
        >>> where[10, 8] = True
        >>> left = pca_throughput(frames, physics, [0, 1, 3], where=where)
        >>> left.projected[:, 10, 8].round(decimals=2)
        tensor([0.7400, 0.6200, 0.3500], dtype=torch.float64)
    """
    height, width = physics.img_size[1:]
    where = torch.ones(height, width, dtype=torch.bool) if where is None else where
    _check(frames, physics, components, where, mask)
    inside = torch.ones_like(frames[0], dtype=torch.bool) if mask is None else mask.bool()
    pixels = frames[:, inside]
    found = _decompose(pixels - pixels.mean(0))
    index = where.flatten().nonzero()[:, 0].to(frames.device)
    maps = frames.new_full((3, len(components), height * width), torch.nan)
    for chunk in index.split(CHUNK):
        planets = frames.new_zeros(len(chunk), height * width)
        planets[torch.arange(len(chunk)), chunk] = 1.0
        with torch.no_grad():
            tracks = physics.A(planets.view(-1, 1, height, width))[:, 0, :, inside]
        for number, k in enumerate(components):
            maps[:, number, chunk] = _left(tracks, found, k)
        if progress is not None:
            progress(int((index <= chunk[-1]).sum()), len(index))
    return PCAThroughput(*maps.view(3, len(components), height, width))


def _decompose(centred: Tensor) -> _Components:
    values, vectors = torch.linalg.eigh(gram(centred))
    values, vectors = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1).to(centred)
    small = values <= 1e-6 * values[0]  # one at least: the mean is removed
    scale = torch.where(small, 0.0, 1 / values.masked_fill(small, 1.0))
    return _Components(
        vectors,
        centred.mT @ vectors * scale.to(centred),
        values.masked_fill(small, 0.0).to(centred),
    )


def _left(tracks: Tensor, found: _Components, k: int) -> Tensor:
    """Energy with the components held, energy and flux with them refitted, of tracks (b, T, P)."""
    whole = tracks.square().sum((1, 2))
    p = tracks - tracks.mean(1, keepdim=True)
    rows = found.temporal.mT @ p  # U^T p
    held = rows[:, k:].square().sum((1, 2))
    c = rows @ found.spatial
    c_ji, c_ij = c[:, k:, :k], c[:, :k, k:].mT
    first, rest = found.values[:k], found.values[k:, None]
    gap = first.square() - rest.square()
    q = (first * c_ji + rest * c_ij) / gap
    flux = held - (q.square() * gap).sum((1, 2))
    turned = (c_ji - first * q).square() - c_ji.square() + (rest * q).square()
    energy = held + turned.sum((1, 2))
    return torch.stack([held, energy, flux]) / whole.masked_fill(whole == 0, torch.nan)


def _check(
    frames: Tensor, physics: ADI, components: Sequence[int], where: Tensor, mask: Tensor | None
) -> None:
    if frames.ndim != 3 or frames.shape != (physics.frames, *physics.detector_size):
        raise ValueError(
            f"frames must be (T, h, w) = {(physics.frames, *physics.detector_size)}, "
            f"got {tuple(frames.shape)}"
        )
    if physics.img_size[0] != 1:
        raise ValueError("physics has several channels: pass one, `physics.channel(c)`")
    if not components or not all(0 <= k < len(frames) - 1 for k in components):
        raise ValueError(
            f"`components` must be numbers from 0 to {len(frames) - 2}, got {list(components)}"
        )
    for name, value, size in (
        ("where", where, physics.img_size[1:]),
        ("mask", mask, physics.detector_size),
    ):
        if value is not None and tuple(value.shape) != tuple(size):
            raise ValueError(f"`{name}` must be of shape {size}, got {tuple(value.shape)}")
