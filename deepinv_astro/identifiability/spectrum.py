r"""Spectra of symmetric maps: exact for small ones, by Lanczos for large ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from deepinv_astro.identifiability.virtual import Map, Progress


@dataclass(frozen=True)
class Spectrum:
    r"""Eigenvalues with how often each occurs.

    :param torch.Tensor values: eigenvalues, largest first.
    :param torch.Tensor counts: number of directions of each (not whole numbers where estimated).

    |sep|

    :Examples:

        >>> import torch
        >>> spectrum = Spectrum(torch.tensor([2.0, 0.5, 1e-6]), torch.tensor([1.0, 2.0, 4.0]))
        >>> spectrum.size, spectrum.rank(1e-3), spectrum.rank(0.5)
        (7.0, 3.0, 1.0)
    """

    values: Tensor
    counts: Tensor

    @property
    def size(self) -> float:
        """Number of directions."""
        return float(self.counts.sum())

    @property
    def largest(self) -> float:
        """Largest eigenvalue."""
        return float(self.values[0])

    def rank(self, floor: float) -> float:
        r"""Effective rank :math:`\#\{\lambda > \epsilon \lambda_{\max}\}`.

        :param float floor: :math:`\epsilon`.
        :return: (:class:`float`) a whole number where the spectrum is exact.
        """
        return float(self.counts[self.values > floor * self.largest].sum())


def dense_spectrum(matrix: Tensor) -> tuple[Spectrum, Tensor]:
    """Exact spectrum, and the eigenvectors as rows in its order.

    :param torch.Tensor matrix: symmetric ``(n, n)``, positive semi-definite.
    :return: (:class:`tuple`) spectrum and eigenvectors ``(n, n)``.
    """
    values, vectors = torch.linalg.eigh(matrix)
    values = values.flip(0).clamp_min(0)  # of rounding
    return Spectrum(values, torch.ones_like(values)), vectors.flip(1).mT


def lanczos(
    product: Map, start: Tensor, steps: int, progress: Callable[[], None] | None = None
) -> tuple[Tensor, Tensor]:
    r"""Quadrature of a symmetric map seen from one vector.

    After :math:`m` steps :math:`b^\top f(M)\, b \approx \sum_j w_j f(\lambda_j)`, exact for
    polynomials of degree :math:`2m - 1` (Golub & Welsch 1969). Vectors are orthogonalised against
    all the earlier ones.

    :param Callable product: :math:`v \mapsto M v`, on ``(1, n)``.
    :param torch.Tensor start: :math:`b`, ``(n,)``.
    :param int steps: :math:`m`.
    :param Callable progress: called after each step.
    :return: (:class:`tuple`) nodes :math:`\lambda_j` and weights :math:`w_j`, whose sum is
        :math:`\|b\|^2`.

    |sep|

    :Examples:

        >>> import torch
        >>> diagonal = torch.tensor([3.0, 1.0, 1.0])
        >>> nodes, weights = lanczos(lambda v: diagonal * v, torch.ones(3), 3)
        >>> nodes.round(decimals=4), weights.round(decimals=4)
        (tensor([1., 3.]), tensor([2., 1.]))
    """
    norm = start.norm()
    basis, diagonal, beside = [start / norm], [], []
    for step in range(min(steps, len(start))):
        w = product(basis[-1][None])[0]
        diagonal.append(w @ basis[-1])
        if progress is not None:
            progress()
        if step + 1 == min(steps, len(start)):
            break
        q = torch.stack(basis)
        for _ in range(2):
            w = w - q.mT @ (q @ w)
        length = w.norm()
        if length <= 1e3 * torch.finfo(w.dtype).eps * (torch.stack(diagonal).abs().max()):
            break  # the vector lies in an invariant subspace: the quadrature is exact
        basis.append(w / length)
        beside.append(length)
    matrix = torch.diag(torch.stack(diagonal))
    for i, value in enumerate(beside):
        matrix[i, i + 1] = matrix[i + 1, i] = value
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes, norm.square() * vectors[0].square()


def lanczos_spectrum(
    product: Map,
    like: Tensor,
    generator: torch.Generator,
    steps: int = 60,
    probes: int = 6,
    progress: Progress | None = None,
) -> Spectrum:
    r"""Spectrum of a large symmetric map, by Lanczos from random signs.

    The quadratures of :func:`lanczos` from vectors :math:`z` of random signs, averaged: the number
    of eigenvalues in an interval is estimated without bias but for the resolution of the
    quadrature.

    :param Callable product: :math:`v \mapsto M v`, on ``(1, n)``.
    :param torch.Tensor like: any vector ``(n,)``, for size, dtype and device.
    :param torch.Generator generator: of the signs.
    :param int steps: of each quadrature.
    :param int probes: number of vectors.
    :param Callable progress: called with the steps done and the steps in all.
    :return: (:class:`Spectrum`) with counts that sum to :math:`n`.
    """
    done, parts = 0, []

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps * probes)

    for _ in range(probes):
        parts.append(lanczos(product, random_signs(like, generator), steps, tick))
    values = torch.cat([nodes for nodes, _ in parts]).clamp_min(0)
    counts = torch.cat([weights for _, weights in parts]) / probes
    order = values.argsort(descending=True)
    return Spectrum(values[order], counts[order])


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Vector of +1 and -1."""
    return (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like)


def smallest_vectors(
    product: Map, like: Tensor, number: int, generator: torch.Generator, tolerance: float = 1e-3
) -> Tensor:
    """Eigenvectors of the smallest eigenvalues of a large map, by implicitly restarted Lanczos.

    :param Callable product: on ``(1, n)``.
    :param torch.Tensor like: any vector ``(n,)``.
    :param int number: of vectors.
    :param torch.Generator generator: of the start.
    :param float tolerance: of the eigenvalues, relative.
    :return: (:class:`torch.Tensor`) orthonormal rows ``(number, n)``.
    """

    def matvec(v: np.ndarray) -> np.ndarray:
        product_of = product(torch.from_numpy(v.reshape(1, -1).copy()).to(like))
        return product_of[0].double().cpu().numpy()

    n = len(like)
    operator = LinearOperator((n, n), matvec=matvec, dtype=np.float64)
    start = torch.randn(n, generator=generator, dtype=torch.float64).numpy()
    _, vectors = eigsh(
        operator, k=number, which="SA", v0=start, tol=tolerance, ncv=min(n, 4 * number + 20)
    )
    return torch.from_numpy(vectors.T.copy()).to(like)
