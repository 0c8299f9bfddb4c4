"""Combining frames in which pixels are missing, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepinv_astro.models.combine import fill_missing, temporal_mean, temporal_median


def frames(count: int, missing: float, rng: torch.Generator) -> torch.Tensor:
    y = torch.randn(2, 3, count, 5, 4, dtype=torch.float64, generator=rng)
    return y.masked_fill(torch.rand(y.shape, generator=rng) < missing, torch.nan)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 13, 61])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.filterwarnings("ignore:.*(All-NaN|Mean of empty):RuntimeWarning")
def test_mean_and_median_are_numpys(count: int, missing: float, rng: torch.Generator) -> None:
    y = frames(count, missing, rng)
    for ours, theirs in ((temporal_mean, np.nanmean), (temporal_median, np.nanmedian)):
        np.testing.assert_allclose(ours(y).numpy(), theirs(y.numpy(), axis=2), rtol=1e-12)


def test_a_pixel_that_nobody_sees_is_missing() -> None:
    y = torch.ones(1, 1, 4, 2, 3)
    y[..., 1, 2] = torch.nan
    for combine in (temporal_mean, temporal_median):
        assert combine(y).isnan().nonzero().tolist() == [[0, 0, 1, 2]]
    assert fill_missing(y)[0, 0, :, 1, 2].tolist() == [0.0] * 4


def test_filling_keeps_the_mean_and_what_is_known(rng: torch.Generator) -> None:
    y = frames(9, 0.2, rng)
    filled = fill_missing(y)
    known = y.isfinite()
    assert torch.equal(filled[known], y[known])
    torch.testing.assert_close(filled.mean(2), temporal_mean(y))


def test_median_has_gradients(rng: torch.Generator) -> None:
    y = frames(5, 0.0, rng).requires_grad_()
    temporal_median(y).sum().backward()
    assert y.grad is not None
    torch.testing.assert_close(y.grad.sum(2), torch.ones_like(y.grad[:, :, 0]))
