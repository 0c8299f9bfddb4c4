"""Likelihood in time against brute force, the Student density, and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import multivariate_t

from deepinv_astro.optim.regions import EXCLUDED, Partition, annuli, both_regions, separation, tiles
from deepinv_astro.optim.temporal import FrozenMetric, TemporalLikelihood, TemporalModel
from deepinv_astro.physics import ADI

B, C, T, H, W = 2, 3, 5, 8, 11


def draw(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


@pytest.fixture
def maps():
    rings = annuli((H, W), (3, 6), 2.0, 1)  # of 13, 32, ... pixels: padding within blocks
    rings[2, 3:6] = EXCLUDED
    return [rings, tiles((H, W), (4, 5))]


@pytest.fixture
def variance(rng):
    return 0.3 + 2 * torch.rand(B, C, H, W, generator=rng, dtype=torch.float64)


def brute(residual, maps, variance, nu, references=None):
    """The formula of the class, one region after the other."""
    rows = residual if references is None else torch.cat([residual, references], 2)
    rows = rows / variance.sqrt()[:, :, None]
    rows = rows - rows.mean(2, keepdim=True)
    total = 0.0
    for labels in maps:
        for label in labels.unique():
            if label == EXCLUDED:
                continue
            r = rows[..., labels == label]  # (B, C, T, K)
            k = r.shape[-1]
            gram = nu * k * torch.eye(r.shape[2], dtype=r.dtype) + r @ r.mT
            total = total + k * (1 + nu) / 2 * torch.linalg.slogdet(gram)[1].sum(1) / len(maps)
    return total


@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("nu", [1e-3, 0.7])
@pytest.mark.parametrize("which", [slice(0, 1), slice(0, 2)])
def test_cost_and_gradient_equal_brute_force_and_autograd(extra, nu, which, maps, variance, rng):
    residual = (10 + draw(rng, B, C, T, H, W)).requires_grad_()
    references = 10 + draw(rng, B, C, extra, H, W) if extra else None
    maps = maps[which]
    likelihood = TemporalLikelihood(
        [Partition.from_labels(m) for m in maps], variance, nu, references
    )
    cost, gradient = likelihood.of_residual(residual.detach())
    expected = brute(residual, maps, variance, nu, references)
    torch.testing.assert_close(cost, expected.detach(), rtol=1e-12, atol=0)
    expected.sum().backward()
    torch.testing.assert_close(gradient, residual.grad, rtol=1e-8, atol=1e-10)


def test_blocks_of_one_size_and_mixed_sizes_agree(maps, variance, rng):
    residual = draw(rng, B, C, T, H, W)
    values = [
        TemporalLikelihood([Partition.from_labels(maps[0], slack)], variance).of_residual(residual)
        for slack in (1.0, 1.5, 1e9)  # the last pads all regions to one size
    ]
    for cost, gradient in values[1:]:
        torch.testing.assert_close(cost, values[0][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, values[0][1])


def student(columns, scale, freedom):
    """-log density of columns given one covariance of an inverse-Wishart prior, one by one.

    Each column given those before it is multivariate Student: the posterior of the covariance is
    inverse-Wishart again.
    """
    size = len(columns)
    total = 0.0
    for column in columns.T:
        dof = freedom - size + 1
        shape = (scale / dof).numpy()
        total -= multivariate_t.logpdf(column.numpy(), shape=shape, df=dof)
        scale, freedom = scale + torch.outer(column, column), freedom + 1
    return total


def test_equals_the_gaussian_density_with_the_covariance_integrated_out(rng):
    """A flat prior on the static halo leaves the contrasts in time, T - 1 of them."""
    labels = torch.zeros(4, 5).long()
    labels[:, 3:] = 1
    nu, frames = 1.5, 4
    variance = 0.5 + torch.rand(4, 5, generator=rng, dtype=torch.float64)
    likelihood = TemporalLikelihood([Partition.from_labels(labels)], variance, nu)
    basis = torch.linalg.qr(torch.cat([torch.ones(frames, 1), torch.eye(frames)[:, :-1]], 1))[0]
    contrasts = basis[:, 1:].double()
    contrasts = torch.linalg.qr(contrasts - contrasts.mean(0))[0]
    costs, densities = [], []
    for amplitude in (0.5, 1.0, 3.0):
        residual = 7 + amplitude * draw(rng, 1, 1, frames, 4, 5)
        costs.append(float(likelihood.of_residual(residual)[0]))
        total = 0.0
        for label in (0, 1):
            columns = contrasts.T @ (residual[0, 0] / variance.sqrt())[:, labels == label]
            weight = nu * columns.shape[1]
            total += student(columns, weight * torch.eye(frames - 1).double(), weight)
        densities.append(total)
    for cost, density in zip(costs[1:], densities[1:], strict=True):
        assert cost - costs[0] == pytest.approx(density - densities[0], rel=1e-9)


def test_fn_and_grad_are_those_of_the_image(maps, rng):
    psf = torch.rand(1, 1, 3, 3, generator=rng, dtype=torch.float64)
    angles = 100 * torch.rand(B, T, generator=rng, dtype=torch.float64)
    gain = 0.5 + torch.rand(B, T, generator=rng, dtype=torch.float64)
    physics = ADI((C, H, W), angles, psf, gain=gain, dtype=torch.float64)
    likelihood = TemporalLikelihood(
        [Partition.from_labels(m) for m in maps], torch.ones(H, W, dtype=torch.float64), 0.01
    )
    y, x = draw(rng, B, C, T, H, W), draw(rng, B, C, H, W).requires_grad_()
    value = likelihood.fn(x, y, physics)
    assert value.shape == (B,)
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(likelihood.grad(x, y, physics), expected, rtol=1e-8, atol=1e-9)


def test_a_static_halo_does_not_matter(maps, variance, rng):
    likelihood = TemporalLikelihood([Partition.from_labels(m) for m in maps], variance)
    residual = draw(rng, B, C, T, H, W)
    halo = 50 * draw(rng, B, C, 1, H, W)
    for one, two in zip(
        likelihood.of_residual(residual), likelihood.of_residual(residual + halo), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)
    assert float(likelihood.of_residual(residual)[1].mean(2).abs().max()) < 1e-12


def test_excluded_pixels_take_no_part_even_if_nan(maps, variance, rng):
    likelihood = TemporalLikelihood([Partition.from_labels(maps[0])], variance)
    residual = draw(rng, B, C, T, H, W)
    cost, gradient = likelihood.of_residual(residual)
    residual[..., 2, 3:6] = math.nan
    again, other = likelihood.of_residual(residual)
    assert torch.equal(cost, again)
    assert torch.equal(gradient, other)
    assert not gradient[..., 2, 3:6].any()


def test_images_and_wavelengths_do_not_mix(maps, variance, rng):
    residual = draw(rng, B, C, T, H, W)
    parts = [Partition.from_labels(m) for m in maps]
    cost, gradient = TemporalLikelihood(parts, variance).of_residual(residual)
    for b in range(B):
        alone = [
            TemporalLikelihood(parts, variance[b : b + 1, c : c + 1]).of_residual(
                residual[b : b + 1, c : c + 1]
            )
            for c in range(C)
        ]
        assert float(cost[b]) == pytest.approx(sum(float(a[0]) for a in alone), rel=1e-12)
        torch.testing.assert_close(gradient[b : b + 1], torch.cat([a[1] for a in alone], 1))


def test_single_precision_costs_double(maps, variance, rng):
    residual = draw(rng, B, C, T, H, W)
    likelihood = TemporalLikelihood([Partition.from_labels(m) for m in maps], variance)
    exact = likelihood.of_residual(residual)
    cost, gradient = likelihood.float().of_residual(residual.float())
    assert (cost.dtype, gradient.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(cost, exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------ the metric


def metric_of(maps, variance, rng, references=None):
    residual = 3 + draw(rng, len(variance), variance.shape[1], T, H, W)
    likelihood = TemporalLikelihood(
        [Partition.from_labels(m) for m in maps], variance, 0.02, references
    )
    return likelihood, residual, likelihood.freeze(residual)


def test_far_from_the_solution_single_precision_holds(maps, variance, rng):
    """A trial step of a solver: one bright mode, beside which the prior is less than rounding."""
    mode = draw(rng, B, C, T, 1, 1) * draw(rng, B, C, 1, H, W)
    residual = 1e4 * mode + 1e-3 * draw(rng, B, C, T, H, W)
    partitions = [Partition.from_labels(m) for m in maps]
    single = TemporalLikelihood(partitions, variance.float(), 1e-3)
    double = TemporalLikelihood(partitions, variance, 1e-3)
    found, slope = single.of_residual(residual.float())
    expected, _ = double.of_residual(residual.float().double())
    assert torch.allclose(found, expected, rtol=1e-3)
    assert bool(torch.isfinite(slope).all())


def test_metric_of_the_residual_is_the_gradient(maps, variance, rng):
    likelihood, residual, metric = metric_of(maps, variance, rng)
    torch.testing.assert_close(metric(residual), likelihood.of_residual(residual)[1])


def test_metric_with_references_is_the_gradient_less_what_the_references_add(maps, variance, rng):
    """The gradient is affine in the residual at a fixed metric; references are its constant."""
    references = draw(rng, B, C, 6, H, W)
    likelihood, residual, metric = metric_of(maps, variance, rng, references)
    rows = torch.cat([residual, references], 2)
    joint = TemporalLikelihood(likelihood.partitions, variance, likelihood.nu).freeze(rows)
    padded = torch.cat([residual, torch.zeros_like(references)], 2)
    torch.testing.assert_close(metric(residual), joint(padded)[:, :, :T])
    torch.testing.assert_close(joint(rows)[:, :, :T], likelihood.of_residual(residual)[1])


@pytest.mark.parametrize("extra", [0, 4])
def test_metric_is_symmetric_and_positive(extra, maps, variance, rng):
    references = draw(rng, B, C, extra, H, W) if extra else None
    metric = metric_of(maps, variance, rng, references)[2]
    u, v = draw(rng, B, C, T, H, W), draw(rng, B, C, T, H, W)
    assert float((u * metric(v)).sum()) == pytest.approx(float((v * metric(u)).sum()), rel=1e-10)
    assert bool(((u * metric(u)).flatten(1).sum(1) > 0).all())
    still = torch.ones_like(u)
    seen = float((still * metric(still)).sum())
    assert (
        seen > 1e-3 if extra else abs(seen) < 1e-9
    )  # a static halo is unknown, but for references
    torch.testing.assert_close(metric(2 * u - v), 2 * metric(u) - metric(v))


def test_metric_dense_eigenvalues(rng):
    variance = torch.ones(1, 1, H, W, dtype=torch.float64)
    metric = metric_of([tiles((H, W), (4, 6))], variance, rng)[2]
    some = torch.zeros(30, 1, T, H, W, dtype=torch.float64)
    for n in range(30):
        some[n, 0, n % T, n % H, (3 * n) % W] = 1.0
    dense = (metric(some).flatten(1) @ some.flatten(1).T).numpy()
    assert abs(dense - dense.T).max() < 1e-12
    assert torch.linalg.eigvalsh(torch.from_numpy(dense)).min() > -1e-12


def test_metric_of_one_residual_serves_any_batch(maps, variance, rng):
    metric = metric_of(maps, variance[:1], rng)[2]
    u = draw(rng, 4, C, T, H, W)
    together = metric(u)
    for n in range(4):
        torch.testing.assert_close(together[n : n + 1], metric(u[n : n + 1]))


def test_another_draw_has_the_covariance_of_the_residual(maps, variance, rng):
    """In each region, over time; only the regions of the first map, which do not overlap."""
    residual = draw(rng, 1, 1, T, H, W)
    residual = residual - residual.mean(2, keepdim=True)
    likelihood = TemporalLikelihood([Partition.from_labels(maps[0])], variance[:1, :1], 0.01)
    metric = likelihood.freeze(residual)
    draws = [metric.resigned(residual, rng) for _ in range(2)]
    assert not torch.allclose(draws[0], draws[1])
    white = [v / variance[:1, :1, None].sqrt() for v in (residual, *draws)]
    for label in maps[0].unique():
        rows = [v[0, 0][:, maps[0] == label] for v in white]
        if label == EXCLUDED:
            assert float(rows[1].abs().max()) == 0
            continue
        expected = rows[0] - rows[0].mean(0)
        gram = expected @ expected.mT
        assert torch.allclose(rows[1] @ rows[1].mT, gram, atol=1e-9 * float(gram.abs().max()))
        assert torch.allclose(rows[1].sum(0), torch.zeros(()).double(), atol=1e-9)


def test_metric_from_its_tensors_is_the_same(maps, variance, rng):
    likelihood = TemporalLikelihood([Partition.from_labels(m) for m in maps], variance, 0.01)
    metric = likelihood.freeze(draw(rng, B, C, T, H, W))
    v = draw(rng, B, C, T, H, W)
    assert torch.equal(FrozenMetric.from_state(metric.state())(v), metric(v))
    other = TemporalLikelihood(likelihood.partitions, variance, 0.01, draw(rng, B, C, 3, H, W))
    with pytest.raises(ValueError, match="reference frames"):
        other.freeze(draw(rng, B, C, T, H, W)).state()


def test_metric_of_a_batch_keeps_to_its_rows(maps, variance, rng):
    likelihood, residual, metric = metric_of(maps, variance, rng)
    u = draw(rng, B, C, T, H, W)
    for n in range(B):
        alone = TemporalLikelihood(likelihood.partitions, variance[n : n + 1], likelihood.nu)
        torch.testing.assert_close(
            metric(u)[n : n + 1], alone.freeze(residual[n : n + 1])(u[n : n + 1])
        )


# ------------------------------------------------------------------ the model


def operator(**options):
    angles = torch.linspace(0, 70, T, dtype=torch.float64)
    return ADI((1, 20, 23), angles, dtype=torch.float64, **options)


def halo_and_noise(rng, frames=T):
    distance = separation((20, 23), (10, 11))
    return 500 * torch.exp(-distance / 4) + (1 + 30 / (1 + distance)) * draw(
        rng, 1, 1, frames, 20, 23
    )


def test_variance_profile_is_that_of_the_noise(rng):
    model = TemporalModel.for_sequence(halo_and_noise(rng), operator())
    found = model.variance(halo_and_noise(rng, 400))
    expected = (1 + 30 / (1 + model.distance)) ** 2
    away = model.distance > 3
    torch.testing.assert_close(found[0, 0][away], expected[away], rtol=0.25, atol=0)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cost_does_not_depend_on_the_unit(unit, dtype, rng):
    y = halo_and_noise(rng)
    model = TemporalModel.for_sequence(y, operator())
    cost, gradient = model(y).of_residual(y)
    scaled = (unit * y).to(dtype)
    other, slope = model(scaled).of_residual(scaled)
    torch.testing.assert_close(other, cost, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope.double() * unit, gradient, rtol=1e-2, atol=1e-3)


def test_pixels_seen_too_rarely_are_excluded_in_all_partitions(rng):
    y = halo_and_noise(rng)
    y[0, 0, :, 4, 5] = math.nan
    y[0, 0, 1, 7, 7] = math.nan
    model = TemporalModel.for_sequence(y, operator(), both_regions)
    for labels in model.labels:
        assert torch.nonzero(labels == EXCLUDED).tolist() == [[4, 5]]
    filled = model.fill(y)
    assert bool(filled.isfinite().all())
    seen = y.isfinite()
    seen[..., 4, 5] = False
    assert torch.equal(filled[seen], y[seen])


def test_star_behind_a_mask(rng):
    y = halo_and_noise(rng)
    y[..., separation((20, 23), (10, 11)) < 3.5] = math.nan
    model = TemporalModel.for_sequence(y, operator())
    likelihood = model(model.fill(y))
    assert bool(likelihood.variance.isfinite().all())
    assert bool(likelihood.of_residual(model.fill(y))[1].isfinite().all())


def test_references_count_as_rows_and_may_hold_nan(rng):
    y, references = halo_and_noise(rng), halo_and_noise(rng, 9)
    references[0, 0, 3, 5, 5] = math.nan
    model = TemporalModel.for_sequence(y, operator(), references=references)
    assert bool(model.references.isfinite().all())
    plain = TemporalModel.for_sequence(y, operator())
    cost, gradient = model(y).of_residual(y)
    assert gradient.shape == y.shape
    joined = torch.cat([y, model.references], 2)
    both = TemporalLikelihood(model.partitions, plain.variance(y), model.nu)
    expected = both.of_residual(joined)
    torch.testing.assert_close(cost, expected[0])
    torch.testing.assert_close(gradient, expected[1][:, :, :T])


def test_errors_say_what_is_wrong(rng):
    y = halo_and_noise(rng)
    with pytest.raises(ValueError, match=r"\(1, 1, 5, 20, 23\).*got \(1, 1, 4, 20, 23\)"):
        TemporalModel.for_sequence(y[:, :, :4], operator())
    with pytest.raises(ValueError, match=r"references .*\(1, 1, 3, 20, 22\)"):
        TemporalModel.for_sequence(y, operator(), references=y[:, :, :3, :, :22])
    with pytest.raises(ValueError, match="no pixel is left"):
        TemporalModel.for_sequence(y * math.nan, operator())
    still = y[:, :, :1].expand_as(y)
    with pytest.raises(ValueError, match=r"do not differ|no pixel is left"):
        TemporalModel.for_sequence(still, operator())(still)
