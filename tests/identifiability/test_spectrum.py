"""Spectra by Lanczos against those of matrices."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.identifiability.spectrum import (
    Spectrum,
    dense_spectrum,
    lanczos,
    lanczos_spectrum,
    smallest_vectors,
)

F64 = torch.float64


@pytest.fixture
def matrix(rng):
    """Symmetric, 60 x 60: 25 eigenvalues of zero, the others from 0.2 to 1."""
    q, _ = torch.linalg.qr(torch.randn(60, 60, generator=rng, dtype=F64))
    values = torch.cat([torch.zeros(25, dtype=F64), torch.linspace(0.2, 1.0, 35, dtype=F64)])
    return q @ torch.diag(values) @ q.mT


def test_dense_spectrum(matrix):
    spectrum, vectors = dense_spectrum(matrix)
    assert (spectrum.rank(1e-3), spectrum.size) == (35, 60)
    assert spectrum.largest == pytest.approx(1.0)
    assert spectrum.rank(0.6) == 17  # 0.2 + 0.8 j / 34 > 0.6
    assert float(spectrum.values.min()) >= 0
    torch.testing.assert_close(vectors @ matrix, spectrum.values[:, None] * vectors)


@pytest.mark.parametrize("f", [torch.exp, lambda v: 1 / (1 + 3 * v)])
def test_quadrature_gives_functions_of_the_map(matrix, f, rng):
    start = torch.randn(60, generator=rng, dtype=F64)
    nodes, weights = lanczos(lambda v: v @ matrix, start, 12)
    assert len(nodes) == 12
    values, vectors = torch.linalg.eigh(matrix)
    expected = ((vectors.mT @ start).square() * f(values)).sum()
    assert float((weights * f(nodes)).sum()) == pytest.approx(float(expected), rel=1e-6)
    assert float(weights.sum()) == pytest.approx(float(start.square().sum()), rel=1e-12)


def test_quadrature_stops_in_an_invariant_subspace(matrix):
    nodes, weights = lanczos(lambda v: v @ matrix, torch.ones(60, dtype=F64), 60)
    assert len(nodes) <= 40  # 36 different eigenvalues, and rounding
    vectors = torch.linalg.eigh(matrix).eigenvectors
    blind = vectors[:, :25].sum(0).square().sum()
    assert float(weights[nodes < 1e-9].sum()) == pytest.approx(float(blind), rel=1e-6)


def test_estimated_rank(matrix):
    told = []
    spectrum = lanczos_spectrum(
        lambda v: v @ matrix,
        torch.zeros(60, dtype=F64),
        torch.Generator().manual_seed(1),
        steps=40,
        probes=40,
        progress=lambda done, whole: told.append((done, whole)),
    )
    assert spectrum.size == pytest.approx(60, rel=1e-9)
    # Hutchinson's variance of a projection with diagonal d: 2 (rank - sum d^2) / probes
    std = math.sqrt(2 * 35 * 25 / 60 / 40)
    assert spectrum.rank(0.05) == pytest.approx(35, abs=4 * std)
    assert spectrum.largest == pytest.approx(1.0, rel=1e-6)
    assert told[-1][0] <= 1600
    assert (spectrum.values.diff() <= 0).all()


def test_smallest_vectors_are_in_the_null_space(matrix):
    found = smallest_vectors(
        lambda v: v @ matrix, torch.zeros(60, dtype=F64), 5, torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found @ found.mT, torch.eye(5, dtype=F64), atol=1e-8, rtol=0)
    assert float((found @ matrix).norm(dim=1).max()) < 1e-3


def test_ranks_of_a_weighted_spectrum():
    spectrum = Spectrum(torch.tensor([4.0, 1.0]), torch.tensor([1.5, 2.5]))
    assert (spectrum.rank(0.2), spectrum.rank(0.25)) == (4.0, 1.5)
