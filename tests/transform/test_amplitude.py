"""Positive factors."""

import pytest
import torch

from deepinv_astro.testing import (
    assert_inverse,
    assert_neutral,
    assert_parameters_per_image,
    assert_reproducible,
    assert_transform_adjoint,
)
from deepinv_astro.transform import Amplitude


def test_laws():
    x = torch.rand(2, 1, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    transform = Amplitude((0.5, 3.0, 7.0), n_trans=4)
    params = transform.get_params(x)
    assert set(params["amplitude"].flatten().tolist()) <= {0.5, 3.0, 7.0}
    assert_parameters_per_image(transform, x, params)
    assert_reproducible(Amplitude(), x)
    assert_neutral(transform, x, 0.0, amplitude=1.0)
    assert_inverse(transform, x, 1e-15, amplitude=4.0)
    matrix = assert_transform_adjoint(transform, x, amplitude=torch.tensor([[2.0, 3.0]]))
    torch.testing.assert_close(
        matrix.diag(), torch.tensor([2.0, 3.0]).repeat_interleave(6).double()
    )


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`factors` must be positive"):
        Amplitude((1.0, -1.0))
    with pytest.raises(ValueError, match="`amplitude` must be positive"):
        Amplitude()(torch.ones(1, 1, 2, 2), amplitude=-1.0)
