"""The Wiener error against its closed form and its matrices."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.identifiability import Gram, power_law, wiener_error
from deepinv_astro.identifiability.gain import decibels
from deepinv_astro.testing import dense_matrix

F64 = torch.float64


def filtered(response):
    """Periodic convolution."""
    return lambda x: torch.fft.ifft2(torch.fft.fft2(x) * response).real


def test_prior_is_a_power_law_with_the_stated_deviation():
    for height, width in ((6, 8), (5, 7)):
        like = torch.zeros(1, 1, height, width, dtype=F64)
        root = dense_matrix(power_law(like, 3.0, 0.4), like)
        torch.testing.assert_close(root, root.mT)
        covariance = root @ root
        torch.testing.assert_close(
            covariance.diagonal(), torch.full((height * width,), 0.16, dtype=F64)
        )
        f = torch.fft.fftfreq(height, dtype=F64)[:, None] ** 2 + (
            torch.fft.fftfreq(width, dtype=F64) ** 2
        )
        law = (f + 1 / max(height, width) ** 2).flatten() ** -1.5
        found = torch.linalg.eigvalsh(covariance)
        torch.testing.assert_close(found, law.sort().values * (0.16 * height * width / law.sum()))


def test_error_of_a_periodic_blur_frequency_by_frequency():
    like = torch.zeros(1, 1, 8, 10, dtype=F64)
    f = torch.hypot(torch.fft.fftfreq(8, dtype=F64)[:, None], torch.fft.fftfreq(10, dtype=F64))
    h, root = torch.exp(-20 * f**2), power_law(like, 2.0, 0.3)
    pixel = torch.zeros_like(like)
    pixel[0, 0, 0, 0] = 1.0
    s = torch.fft.fft2(root(root(pixel)))[0, 0].real
    for noise in (0.02, 0.3):
        expected = float((s / (1 + h**2 * s / noise**2)).mean())
        gram = Gram(filtered(h), like)
        assert wiener_error(gram, noise, root, matrix=gram.dense()) == pytest.approx(expected)
        estimated = wiener_error(gram, noise, root, steps=40, probes=50)
        assert estimated == pytest.approx(expected, rel=0.06)


def test_error_on_a_support_by_matrices(rng):
    like = torch.zeros(1, 1, 4, 5, dtype=F64)
    support = torch.ones(4, 5, dtype=torch.bool)
    support[0, 1:] = False
    a = torch.randn(6, 20, generator=rng, dtype=F64)
    gram = Gram(lambda x: x.flatten(1) @ a.mT, like, support=support)
    root = power_law(like)
    index = support.flatten()
    prior = (dense_matrix(root, like) @ dense_matrix(root, like))[index][:, index]
    information = torch.linalg.inv(prior) + (a.mT @ a)[index][:, index] / 0.05**2
    expected = float(torch.linalg.inv(information).trace()) / 16
    assert wiener_error(gram, 0.05, root, matrix=gram.dense()) == pytest.approx(expected)
    estimated = wiener_error(gram, 0.05, root, probes=400)
    assert estimated == pytest.approx(expected, rel=0.05)


def test_more_information_less_error_and_what_is_refused():
    like = torch.zeros(1, 1, 4, 5, dtype=F64)
    root = power_law(like, std=0.5)
    gram = Gram(lambda x: x, like)
    errors = [wiener_error(gram, s, root, matrix=gram.dense()) for s in (1e-3, 0.1, 1e3)]
    assert errors == sorted(errors)
    assert errors[2] == pytest.approx(0.25, rel=1e-3)
    assert decibels(1.0, 0.1) == pytest.approx(10.0)
    assert decibels(1.0, 2.0) == pytest.approx(-10 * math.log10(2))
    with pytest.raises(ValueError, match="got 0"):
        wiener_error(gram, 0.0, root)
