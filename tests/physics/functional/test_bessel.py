"""Bessel functions against scipy, and their derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

from deepinv_astro.physics.functional.bessel import bessel_ratio


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_against_scipy_on_both_sides_of_the_switch(order):
    z = np.concatenate([np.linspace(0.05, 20, 400), np.linspace(20, 300, 200)])
    found = bessel_ratio(torch.from_numpy(z**2), order).numpy()
    np.testing.assert_allclose(found * z**order, scipy.special.jv(order, z), atol=3e-11)


def test_at_zero_it_is_the_first_term_of_the_series():
    zero = torch.zeros(1, dtype=torch.float64)
    assert [float(bessel_ratio(zero, m)) for m in range(4)] == [1, 1 / 2, 1 / 8, 1 / 48]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_derivatives_of_first_and_second_order(order):
    q = torch.tensor([0.0, 0.3, 7.0, 195.0, 197.0, 900.0], dtype=torch.float64)
    inner = (q + 0.01).requires_grad_()  # a step below zero has no meaning
    assert torch.autograd.gradcheck(lambda q: bessel_ratio(q, order), inner)
    assert torch.autograd.gradgradcheck(lambda q: bessel_ratio(q, order), inner)
    q.requires_grad_()
    (slope,) = torch.autograd.grad(bessel_ratio(q, order).sum(), q)
    torch.testing.assert_close(slope, -0.5 * bessel_ratio(q, order + 1))


def test_single_precision_and_wrong_order():
    q = torch.linspace(0, 900, 50)
    assert bessel_ratio(q, 1).dtype == torch.float32
    torch.testing.assert_close(
        bessel_ratio(q, 1).double(), bessel_ratio(q.double(), 1), atol=1e-7, rtol=1e-5
    )
    with pytest.raises(ValueError, match="got -1"):
        bessel_ratio(q, -1)
