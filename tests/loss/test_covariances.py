"""Families of covariances against dense matrices and draws."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.loss import PoissonGaussian, RegionVariances, StationaryKernel
from deepinv_astro.physics import StationaryNoise
from deepinv_astro.testing import dense_matrix

LABELS = torch.tensor([[0, 0, 1, -1], [0, 1, 1, 2], [2, -1, 2, 2]])
FAMILIES = {
    "white": lambda: RegionVariances(),
    "regions": lambda: RegionVariances(LABELS),
    "frames": lambda: RegionVariances(torch.tensor([1, 0]).view(2, 1, 1)),
    "kernel": lambda: StationaryKernel((2, 3)),
    "photons": lambda: PoissonGaussian(),
}
Y = 1 + torch.rand(1, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _basis(family):
    """Dense Psi_j."""
    return torch.stack(
        [dense_matrix(lambda v, j=j: family.fields(v, Y)[j], Y) for j in range(family.count)]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_against_dense_matrices(name):
    family = FAMILIES[name]()
    generator = torch.Generator().manual_seed(1)
    basis, m = _basis(family), Y.numel()
    assert torch.equal(basis, basis.mT)
    eta = torch.rand(family.count, generator=generator, dtype=torch.float64)
    applied = dense_matrix(lambda v: family.apply_to(eta, v, Y), Y)
    torch.testing.assert_close(applied, torch.tensordot(eta, basis, 1))

    # traces: over all pairs of signs the probe is exact; here, b = e_i summed over i
    jacobian = torch.randn(m, m, generator=generator, dtype=torch.float64)
    traces = 0
    for i in range(m):
        unit = torch.zeros(m, dtype=torch.float64)
        unit[i] = 1
        traces = traces + family.traces(unit.view_as(Y), (jacobian @ unit).view_as(Y), Y)
    expected = torch.einsum("kij,ji->k", basis, jacobian) / m
    torch.testing.assert_close(traces, expected)
    volumes = torch.einsum("kii->k", basis) / m
    torch.testing.assert_close(family.volumes(Y), volumes)

    s = torch.randn(Y.shape, generator=generator, dtype=torch.float64)
    drifts = (basis @ s.flatten()).view(-1, *Y.shape)
    if name == "photons":
        drifts[1] += 1
    torch.testing.assert_close(family.drifts(s, Y), drifts)
    a = drifts.flatten(1)
    torch.testing.assert_close(family.gram(s, Y), a @ a.mT / m)


@pytest.mark.parametrize("name", ["white", "regions", "frames", "photons"])
def test_slope_of_the_identity_is_one(name):
    family = FAMILIES[name]()
    b = torch.ones_like(Y)
    torch.testing.assert_close(family.slopes(b, b, Y), torch.ones(family.count, dtype=Y.dtype))


def test_kernel_matches_the_noise():
    """The autocorrelation is placed as StationaryNoise places it."""
    kernel = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, 0.1]], dtype=torch.float64)
    family = StationaryKernel((2, 3))
    full = torch.nn.functional.conv2d(kernel[None, None], kernel[None, None], padding=(1, 2))[0, 0]
    eta = torch.stack([full[1 + i, 2 + j] for i, j in family.lags])
    assert torch.equal(family.autocorrelation(eta), full)
    v = torch.randn(2, 1, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(
        family.apply_to(eta, v, v), StationaryNoise(kernel).covariance(v), atol=1e-10, rtol=1e-8
    )
    assert (family.spectrum(eta) > -1e-12).all()


def test_spectrum_is_the_transform_of_the_autocorrelation():
    """Which tells a lag (1, -1) from (1, 1): the kernel has a direction."""
    family = StationaryKernel((2, 3))
    kernel = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, 0.1]], dtype=torch.float64)
    full = torch.nn.functional.conv2d(kernel[None, None], kernel[None, None], padding=(1, 2))[0, 0]
    eta = torch.stack([full[1 + i, 2 + j] for i, j in family.lags])
    size = math.isqrt(len(family.spectra))
    power = torch.fft.fft2(kernel, s=(size, size)).abs().square()
    torch.testing.assert_close(family.spectrum(eta), power.flatten())


def test_pilot_of_a_kernel_with_a_direction():
    """Noise along one diagonal: of lags (1, 1) and (1, -1), the pilot picks that one."""
    noise = StationaryNoise(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    family = StationaryKernel(2)
    y = noise.sample(torch.zeros(8, 1, 64, 64), torch.Generator().manual_seed(0))
    found = dict(zip(family.lags, (family.pilot(y) / 2).tolist(), strict=True))
    assert found[1, 1] == pytest.approx(0.5, abs=0.1)
    assert found[1, -1] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("name", ["regions", "kernel", "photons"])
def test_ascent_stays_allowed(name):
    family = FAMILIES[name]()
    generator = torch.Generator().manual_seed(0)
    eta = family.feasible(torch.rand(family.count, generator=generator))
    for _ in range(200):
        eta = family.ascend(eta, 5 * torch.randn(family.count, generator=generator), 0.3)
        values = family.spectrum(eta) if name == "kernel" else eta
        assert (values > 0).all()


def test_kernel_ascent_leaves_the_boundary():
    """With a spectrum near 0 at one frequency, the others still shrink and grow."""
    family = StationaryKernel((1, 2))
    eta = torch.tensor([1.0, 0.4999])
    assert family.spectrum(eta).min() < 1e-3
    for _ in range(100):
        eta = family.ascend(eta, torch.tensor([-1.0, 0.0]), 0.05)
    assert eta[0] < 0.1


def test_kernel_ascent_is_newton_for_white_noise():
    family = StationaryKernel(1)
    eta = family.ascend(torch.tensor([2.0]), torch.tensor([0.5]), 0.1)
    assert float(eta) == pytest.approx(2 * (1 + 0.1 * 0.5), rel=3e-3)


def test_pilots():
    """Within a factor of 1.6 from above on images with edges, at two scales of the data."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(64.0)
    discs = [
        (rows[:, None] - 64 * u[0]) ** 2 + (rows - 64 * u[1]) ** 2 < (8 + 16 * u[2]) ** 2
        for u in torch.rand(24, 3, generator=generator)
    ]
    x = torch.stack(discs).float()[:, None]
    labels = (rows < 20).long().expand(64, 64)
    noise = torch.where(labels == 0, 0.1, 0.3) * torch.randn(x.shape, generator=generator)
    for unit in (1.0, 1e4):
        ratio = RegionVariances(labels).pilot(unit * (x + noise)) / unit**2
        ratio = ratio / torch.tensor([0.01, 0.09])
        assert (ratio > 0.9).all()
        assert (ratio < 1.6).all()
    kernel = torch.ones(2, 2) / 2
    y = x + 0.2 * StationaryNoise(kernel)(torch.zeros_like(x))
    pilot = StationaryKernel(2).pilot(y) / 0.04
    assert 0.9 < float(pilot[0]) < 2
    assert float(pilot[1] / pilot[0]) == pytest.approx(0.5, abs=0.2)
    gain, read = 0.05, 0.1
    flux = 1 + 9 * x
    y = gain * torch.poisson(flux / gain, generator=generator)
    y = y + read * torch.randn(x.shape, generator=generator)
    found = PoissonGaussian().pilot(y)
    assert 0.3 < float((found[0] + found[1] * y.mean()) / (read**2 + gain * y.mean())) < 2


def test_pilot_of_constants_and_of_few_pixels():
    assert RegionVariances().pilot(torch.full((1, 1, 5, 5), 3.0)) > 0
    assert RegionVariances().pilot(torch.randn(1, 1, 2, 50)) > 0
    corner = torch.zeros(6, 6, dtype=torch.long)
    corner[0, 0] = 1
    assert (RegionVariances(corner).pilot(torch.randn(1, 1, 6, 6)) > 0).all()
    pilot = StationaryKernel(3).pilot(torch.ones(1, 1, 9, 9))
    assert pilot[0] > 0
    assert torch.isfinite(pilot).all()


@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), torch.tensor([0.0, 1.0]), -torch.ones(2)])
def test_label_errors(labels):
    with pytest.raises(ValueError, match="labels must be integers"):
        RegionVariances(labels)


def test_shape_errors():
    with pytest.raises(ValueError, match="do not broadcast"):
        RegionVariances(LABELS).apply_to(torch.ones(3), Y[..., :2], Y)
    with pytest.raises(ValueError, match="support"):
        StationaryKernel((0, 3))
