"""The likelihood of patches against dense Gaussian likelihoods, written out with explicit covariances."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.optim.nuisance import (
    PatchCovariance,
    PatchLikelihood,
    contiguous_folds,
    interleaved_folds,
)
from deepinv_astro.optim.patch_statistics import shrinkage_factor
from deepinv_astro.optim.patches import Patches
from deepinv_astro.optim.profiled import ProfiledPatchLikelihood
from deepinv_astro.physics import ADI

SIZE, FRAMES = (5, 7), 13


def speckles(
    rng: torch.Generator, batch: int = 2, channels: int = 2, size=SIZE, frames: int = FRAMES
):
    """Correlated, non-stationary residual with a static part."""
    white = torch.randn(batch, channels, frames, *size, generator=rng, dtype=torch.float64)
    mixed = white + 0.8 * white.roll(1, -1) + 0.5 * white.roll(1, -2)
    level = torch.linspace(0.5, 3, size[0] * size[1], dtype=torch.float64).view(size)
    return level * mixed + 10 * torch.rand(*size, generator=rng, dtype=torch.float64)


def with_gaps(residual: torch.Tensor, rng: torch.Generator, fraction: float = 0.1) -> torch.Tensor:
    """Bad pixels of all frames, of some, and a whole frame of one image."""
    bad = torch.rand(residual.shape, generator=rng) < fraction
    bad[0, 0, :, 2, 3] = True
    bad[-1, -1, 4] = True
    return residual.masked_fill(bad, torch.nan)


def grid(stride=None, offset=(1, 0)) -> Patches:
    return Patches.grid(SIZE, (3, 3), stride=stride, offset=offset)


def dense_cost(statistics, residual: torch.Tensor, image: int, mean: str) -> torch.Tensor:
    """Sum over patches of marginal Gaussians, one frame at a time, the mean by explicit least squares."""
    patches, total = statistics.patches, 0.0
    for c in range(residual.shape[1]):
        flat = residual[image, c].flatten(-2)
        for n, (places, weight) in enumerate(zip(patches.index, patches.weight, strict=True)):
            terms = []
            for t in range(residual.shape[2]):
                f = statistics.folds[t]
                covariance = torch.linalg.inv(statistics.precision[image, c, n, f])
                use = [
                    k
                    for k, p in enumerate(places.tolist())
                    if p < flat.shape[1]
                    and statistics.usable[image, c, n, k]
                    and flat[t, p].isfinite()
                ]
                root = weight[use].sqrt()
                precision = (
                    torch.linalg.inv(covariance[use][:, use]) * root[:, None] * root[None, :]
                )
                pick = torch.eye(len(places), dtype=flat.dtype)[use]
                precision = statistics.weights[image, c, n, t] * precision
                terms.append(
                    (pick, precision, flat[t, places[use]], statistics.mean[image, c, n, f][use])
                )
            if mean == "profiled":
                normal = sum(e.T @ p @ e for e, p, _, _ in terms)
                right = sum(e.T @ p @ r for e, p, r, _ in terms)
                best = torch.linalg.pinv(normal, hermitian=True) @ right
                total += sum(0.5 * (r - e @ best) @ p @ (r - e @ best) for e, p, r, _ in terms)
            else:
                total += sum(0.5 * (r - m) @ p @ (r - m) for _, p, r, m in terms)
    return total


CASES = {
    "tiling": {},
    "overlap": {"stride": (2, 1)},
    "robust": {"scale": "robust"},
    "folds": {"folds": interleaved_folds(FRAMES, 3), "stride": (2, 2)},
    "gaps": {"gaps": True},
    "all": {
        "gaps": True,
        "folds": contiguous_folds(FRAMES, 2),
        "scale": "robust",
        "stride": (2, 2),
    },
}


def make(case: str, rng: torch.Generator):
    options = dict(CASES[case])
    residual = speckles(rng, channels=1)
    if options.pop("gaps", False):
        residual = with_gaps(residual, rng, 0.08)
    model = PatchCovariance(grid(options.pop("stride", None)), **options)
    return residual, model.estimate(residual)


@pytest.mark.parametrize("mean", ["profiled", "frozen"])
@pytest.mark.parametrize("case", CASES)
def test_cost_equals_dense_gaussian_likelihood(case, mean, rng):
    residual, statistics = make(case, rng)
    other = residual + torch.randn(residual.shape, generator=rng, dtype=residual.dtype)
    cost = PatchLikelihood(statistics, mean).of_residual(other)[0]
    for image in range(2):
        torch.testing.assert_close(
            cost[image], dense_cost(statistics, other, image, mean), rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("mean", ["profiled", "frozen"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_equals_finite_differences_and_is_zero_at_gaps(case, mean, rng):
    residual, statistics = make(case, rng)
    likelihood = PatchLikelihood(statistics, mean)
    gradient = likelihood.of_residual(residual)[1]
    assert gradient.isfinite().all()
    assert (gradient[residual.isnan()] == 0).all()
    move = torch.randn(residual.shape, generator=rng, dtype=residual.dtype)
    ahead, behind = (likelihood.of_residual(residual + s * 1e-3 * move)[0].sum() for s in (1, -1))
    torch.testing.assert_close(
        (gradient * move).sum(), (ahead - behind) / 2e-3, rtol=1e-7, atol=1e-9
    )


def test_memory_limit_changes_nothing(rng):
    residual, statistics = make("all", rng)
    model = PatchCovariance(
        grid((2, 2)), folds=contiguous_folds(FRAMES, 2), scale="robust", max_bytes=1
    )
    again = model.estimate(residual)
    torch.testing.assert_close(
        again.precision, statistics.precision, rtol=1e-4, atol=1e-6
    )  # stops at other steps
    (cost, gradient), (cost1, gradient1) = (
        PatchLikelihood(statistics, max_bytes=m).of_residual(residual) for m in (1, 1 << 28)
    )
    torch.testing.assert_close(cost, cost1)
    torch.testing.assert_close(gradient, gradient1)


def test_statistics_against_formulas_written_with_loops(rng):
    residual = speckles(rng, batch=1, channels=1)
    statistics = PatchCovariance(Patches.grid(SIZE, (3, 4))).estimate(residual)
    for n, places in enumerate(statistics.patches.index.tolist()):
        real = [k for k, p in enumerate(places) if p < 35]
        rows = residual[0, 0].flatten(-2)[:, [places[k] for k in real]].numpy()
        mean = rows.mean(0)
        s = sum(((r - mean)[:, None] * (r - mean)[None, :]) for r in rows) / FRAMES
        square, diagonal = (
            sum(sum(s[i, j] ** 2 for j in range(len(s))) for i in range(len(s))),
            (s.diagonal() ** 2).sum(),
        )
        rho = (
            (square + s.trace() ** 2 - 2 * diagonal) / ((FRAMES + 1) * (square - diagonal))
            if len(s) > 1
            else 1.0
        )
        rho = min(max(rho, 0.0), 1.0)
        assert math.isclose(statistics.shrinkage[0, 0, n, 0], rho, rel_tol=1e-12)
        shrunk = torch.as_tensor((1 - rho) * s)
        shrunk.diagonal()[:] = torch.as_tensor(s.diagonal().copy())
        precision = statistics.precision[0, 0, n, 0][real][:, real]
        torch.testing.assert_close(
            precision @ shrunk, torch.eye(len(real), dtype=torch.float64), rtol=0, atol=1e-11
        )
        torch.testing.assert_close(statistics.mean[0, 0, n, 0][real], torch.as_tensor(mean))


def test_shrinkage_is_one_without_correlation_and_small_with_many_frames():
    assert shrinkage_factor(torch.diag(torch.tensor([1.0, 2.0])), 5) == 1
    full = torch.ones(4, 4, dtype=torch.float64)
    # rank one: tr(S^2) = tr^2(S) = 16, sum S_ii^2 = 4, hence 24 / (12 (T + 1))
    assert math.isclose(shrinkage_factor(full, 99), 0.02, rel_tol=1e-12)


def test_profiled_cost_ignores_the_static_halo_and_frozen_one_does_not(rng):
    residual, statistics = make("all", rng)
    halo = 100 * torch.rand(1, 1, 1, *SIZE, generator=rng, dtype=torch.float64)
    before, after = (
        PatchLikelihood(statistics).of_residual(r)[0] for r in (residual, residual + halo)
    )
    torch.testing.assert_close(before, after, rtol=1e-8, atol=0)
    frozen = PatchLikelihood(statistics, "frozen")
    assert (frozen.of_residual(residual + halo)[0] > 10 * frozen.of_residual(residual)[0]).all()


def test_missing_data_estimate_is_stationary_for_the_marginal_likelihood(rng):
    """Without shrinkage, no change of mean or covariance raises the likelihood of the pixels seen."""
    size, frames = (2, 2), 40
    residual = speckles(rng, 1, 1, size, frames)
    residual[torch.rand(residual.shape, generator=rng) < 0.2] = torch.nan
    model = PatchCovariance(Patches.grid(size, size), rho=0.0, iterations=2000, tol=1e-12)
    statistics = model.estimate(residual)
    rows = residual[0, 0].flatten(-2)
    mean = statistics.mean[0, 0, 0, 0].clone().requires_grad_()
    covariance = torch.linalg.inv(statistics.precision[0, 0, 0, 0]).requires_grad_()

    def negative_log_likelihood(mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            o = row.isfinite().nonzero()[:, 0]
            block, r = covariance[o][:, o], row[o] - mean[o]
            total = total + 0.5 * torch.logdet(block) + 0.5 * r @ torch.linalg.solve(block, r)
        return total

    slopes = torch.autograd.grad(negative_log_likelihood(mean, covariance), (mean, covariance))
    assert max(float(s.abs().max()) for s in slopes) < 1e-6 * frames
    assert negative_log_likelihood(mean, 1.05 * covariance) > negative_log_likelihood(
        mean, covariance
    )


def test_whole_data_need_no_expectation_maximisation_and_dead_pixels_drop_out(rng):
    residual = speckles(rng, 1, 1)
    dead = residual.clone()
    dead[..., 1, 2] = 7.0
    missing = residual.clone()
    missing[..., 1, 2] = torch.nan
    first, second = (PatchCovariance(grid()).estimate(r) for r in (dead, missing))
    torch.testing.assert_close(first.precision, second.precision)
    assert int((~first.usable & (first.patches.weight > 0)).sum()) == 1
    cost = [PatchLikelihood(s).of_residual(r)[0] for s, r in ((first, dead), (second, missing))]
    torch.testing.assert_close(*cost)


def test_scale_factors_solve_their_fixed_point_with_the_pin(rng):
    residual = speckles(rng, 1, 1, frames=30)
    residual[:, :, 4] *= 5
    statistics = PatchCovariance(grid(), scale="robust", iterations=500, tol=1e-10).estimate(
        residual
    )
    weights = statistics.weights[0, 0]
    torch.testing.assert_close(weights.mean(-1), torch.ones(len(weights), dtype=torch.float64))
    full = int((statistics.patches.index < 35).all(1).nonzero()[0])
    places = statistics.patches.index[full]
    rows, w = residual[0, 0].flatten(-2)[:, places], weights[full]
    mean = (w[:, None] * rows).sum(0) / w.sum()
    s = (w[:, None] * (rows - mean)).T @ (rows - mean) / 30
    rho = statistics.shrinkage[0, 0, full, 0]
    shrunk = (1 - rho) * s + rho * torch.diag(s.diagonal())
    q = ((rows - mean) @ torch.linalg.inv(shrunk) * (rows - mean)).sum(1) / 9
    torch.testing.assert_close(w, (1 / q) / (1 / q).mean(), rtol=1e-6, atol=0)
    assert w[4] < 0.3
    torch.testing.assert_close(statistics.mean[0, 0, full, 0], mean, rtol=1e-6, atol=0)


def test_statistics_of_a_fold_come_from_the_other_frames(rng):
    residual = speckles(rng)
    folds = contiguous_folds(FRAMES, 3)
    statistics = PatchCovariance(grid(), folds=folds).estimate(residual)
    for f in range(3):
        alone = PatchCovariance(grid()).estimate(residual[:, :, folds != f])
        torch.testing.assert_close(statistics.precision[:, :, :, f], alone.precision[:, :, :, 0])
        torch.testing.assert_close(statistics.mean[:, :, :, f], alone.mean[:, :, :, 0])


def test_data_fidelity_of_an_operator(rng):
    physics = ADI(
        (2, 6, 8),
        torch.linspace(0, 50, FRAMES),
        detector_size=SIZE,
        dtype=torch.float64,
        center=(2.2, 3.1),
    )
    y = with_gaps(speckles(rng), rng)
    x = torch.rand(2, 2, 6, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    likelihood = PatchLikelihood(PatchCovariance(grid()).estimate(y))
    cost = likelihood.fn(x, y, physics)
    assert cost.shape == (2,)
    (expected,) = torch.autograd.grad(cost.sum(), x)
    torch.testing.assert_close(
        likelihood.grad(x.detach(), y, physics), expected, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        cost[1], dense_cost(likelihood_statistics(y), y - physics.A(x), 1, "profiled")
    )


def likelihood_statistics(y: torch.Tensor):
    return PatchCovariance(grid()).estimate(y)


def test_single_precision_agrees_with_double(rng):
    residual = with_gaps(speckles(rng), rng)
    likelihoods = [
        PatchLikelihood(PatchCovariance(grid()).estimate(residual.to(t)))
        for t in (torch.float64, torch.float32)
    ]
    cost, gradient = likelihoods[0].of_residual(residual)
    cost32, gradient32 = likelihoods[1].of_residual(residual.float())
    assert gradient32.dtype == torch.float32
    torch.testing.assert_close(cost32, cost, rtol=1e-3, atol=0)
    assert (gradient32 - gradient).norm() < 1e-2 * gradient.norm()


def test_profiled_covariance_equals_minimum_over_the_covariance(rng):
    residual = speckles(rng, frames=20)
    residual[:, :, :, 3, 4] = torch.nan
    statistics = PatchCovariance(grid()).estimate(residual)
    likelihood = ProfiledPatchLikelihood(statistics)
    cost, gradient = likelihood.of_residual(residual)
    torch.testing.assert_close(cost, 10.0 * statistics.usable.sum((1, 2, 3)).double())
    other = residual + speckles(rng, frames=20)
    sample = torch.linalg.inv(PatchCovariance(grid(), rho=0.0).estimate(other).precision)
    window = 1 - statistics.shrinkage[..., None, None] * (1 - torch.eye(9, dtype=torch.float64))
    gain = torch.logdet(window * sample) + torch.logdet(statistics.precision)
    torch.testing.assert_close(
        likelihood.of_residual(other)[0] - cost, 10 * gain.sum((1, 2, 3)), rtol=1e-6, atol=0
    )
    move = torch.randn(residual.shape, generator=rng, dtype=residual.dtype)
    ahead, behind = (likelihood.of_residual(residual + s * 1e-4 * move)[0].sum() for s in (1, -1))
    torch.testing.assert_close(
        (gradient * move).nansum(), (ahead - behind) / 2e-4, rtol=1e-6, atol=0
    )


def test_errors_name_the_remedy(rng):
    residual = speckles(rng)
    model = PatchCovariance(grid())
    with pytest.raises(ValueError, match=r"\(h, w\) = \(5, 7\)"):
        model.estimate(residual[..., :-1])
    with pytest.raises(ValueError, match="no pixel is seen"):
        model.estimate(torch.full_like(residual, torch.nan))
    with pytest.raises(ValueError, match="folds are given for 4 frames"):
        PatchCovariance(grid(), folds=interleaved_folds(4, 2)).estimate(residual)
    with pytest.raises(ValueError, match="rho must be"):
        PatchCovariance(grid(), rho=1.5)
    with pytest.raises(ValueError, match="at least two different"):
        PatchCovariance(grid(), folds=torch.zeros(FRAMES))
    with pytest.raises(ValueError, match="number of folds"):
        contiguous_folds(3, 4)
    with pytest.raises(ValueError, match="of the statistics"):
        PatchLikelihood(model.estimate(residual)).of_residual(residual[:1])
    with pytest.raises(ValueError, match="each pixel in all frames or in none"):
        ProfiledPatchLikelihood(model.estimate(with_gaps(residual, rng)))
