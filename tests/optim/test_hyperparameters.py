"""The risk estimate against its closed form, and its average against the true risk."""

from __future__ import annotations

import math

import pytest
import torch
from deepinv.physics import Denoising

from deepinv_astro.optim.hyperparameters import estimate_risks, select_strength, sign_flipped
from deepinv_astro.optim.nuisance import PatchCovariance, PatchLikelihood
from deepinv_astro.optim.patches import Patches

PHYSICS = Denoising()


def ridge(y: torch.Tensor, strength: float) -> torch.Tensor:
    return y / (1 + strength)


def white(residual: torch.Tensor):
    return 0.5 * residual.square().sum((1, 2, 3, 4)), residual


def test_linear_estimate_has_the_risk_of_the_formula(rng):
    y, probe = (torch.randn(2, 1, 4, 3, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    risks = estimate_risks(ridge, y, PHYSICS, white, [0.1, 0.5, 2.0], [probe])
    for strength, risk in zip([0.1, 0.5, 2.0], risks.tolist(), strict=True):
        a = 1 / (1 + strength)
        expected = (1 - a) ** 2 * float(y.square().sum()) + 2 * a * float(probe.square().sum())
        assert math.isclose(risk, expected, rel_tol=1e-9)


def test_average_risk_is_the_true_one_for_a_nonlinear_estimate_and_correlated_noise(rng):
    """Soft threshold, noise of covariance C, metric C^-1: risk - E|n|^2_P is the error, over many draws."""
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.3, 0.3, 2.0]], dtype=torch.float64)
    precision = torch.linalg.inv(mix @ mix.T)
    draws = 20000
    noise, probe = (
        (torch.randn(draws, 3, generator=rng, dtype=torch.float64) @ mix.T).view(1, 1, draws, 1, 3)
        for _ in range(2)
    )
    truth = torch.tensor([4.0, 0.5, 0.0], dtype=torch.float64)

    def soft(y: torch.Tensor, strength: float) -> torch.Tensor:
        return y.sign() * (y.abs() - strength).clamp_min(0)

    def cost(residual: torch.Tensor):
        gradient = residual @ precision
        return 0.5 * (gradient * residual).sum().view(1), gradient

    strengths = [0.3, 1.0, 2.5]
    risks = (
        estimate_risks(soft, truth + noise, PHYSICS, cost, strengths, [probe], step=0.01) / draws
        - 3
    )
    for strength, risk in zip(strengths, risks.tolist(), strict=True):
        error = soft(truth + noise, strength) - truth
        assert risk == pytest.approx(2 * float(cost(error)[0]) / draws, rel=0.06, abs=0.05)


def test_choice_is_near_the_best_strength_with_frozen_patches_and_missing_data(rng):
    size, frames = (6, 8), 40
    residual = torch.randn(1, 1, frames, *size, generator=rng, dtype=torch.float64)
    residual = residual + residual.roll(1, -1)
    signal = torch.zeros_like(residual)
    signal[..., 2:5, :] = torch.linspace(-3, 3, frames, dtype=torch.float64)[:, None, None]
    y = (residual + signal).masked_fill(torch.rand(residual.shape, generator=rng) < 0.02, torch.nan)
    likelihood = PatchLikelihood(
        PatchCovariance(Patches.grid(size, (3, 4))).estimate(residual + 0 * y)
    )
    candidates = [0.03, 0.3, 1.0, 3.0, 10.0, 30.0]

    def estimate(data: torch.Tensor, strength: float) -> torch.Tensor:
        return data.nan_to_num() / (1 + strength)

    probes = [sign_flipped(residual + 0 * y, rng) for _ in range(4)]
    found = select_strength(estimate, y, PHYSICS, likelihood.of_residual, candidates, probes)
    true = [float(likelihood.of_residual(estimate(y, k) - signal)[0]) for k in candidates]
    assert abs(candidates.index(found.choice) - true.index(min(true))) <= 1
    assert found.choice not in (candidates[0], candidates[-1])


def test_sign_flips_keep_the_covariance_in_space_and_the_spectrum_in_time(rng):
    residual = torch.randn(2, 2, 6, 3, 4, generator=rng, dtype=torch.float64) + 5
    flipped = sign_flipped(residual, rng)
    centred = residual - residual.mean(2, keepdim=True)
    assert not torch.allclose(flipped.abs(), centred.abs())
    torch.testing.assert_close(flipped.mean(2), torch.zeros(2, 2, 3, 4, dtype=torch.float64))
    rows, new = centred.flatten(-2), flipped.flatten(-2)
    # U diag(s) U^T is orthogonal and commutes with the temporal covariance: both second moments are kept.
    torch.testing.assert_close(new.mT @ new, rows.mT @ rows)
    torch.testing.assert_close(new @ new.mT, rows @ rows.mT)
    residual[0, 0, 2, 1, 1] = torch.nan
    assert sign_flipped(residual, rng)[0, 0, 2, 1, 1] == 0


def test_selection_warns_at_the_end_of_the_range(rng, caplog):
    y = 100 * torch.ones(1, 1, 2, 2, 3, dtype=torch.float64)
    select_strength(ridge, y, PHYSICS, white, [0.5, 1.0], [torch.ones_like(y)])
    assert "widen the range" in caplog.text


def test_bad_arguments_are_refused(rng):
    y = torch.ones(1, 1, 2, 2, 3)
    with pytest.raises(ValueError, match="increasing"):
        estimate_risks(ridge, y, PHYSICS, white, [2.0, 1.0], [y])
    with pytest.raises(ValueError, match="probe"):
        estimate_risks(ridge, y, PHYSICS, white, [1.0], [])
