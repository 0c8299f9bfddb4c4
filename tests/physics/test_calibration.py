"""Free parameters: whitening, prior, reports in closed form, directions that are held, operators of others."""

from __future__ import annotations

import copy

import pytest
import torch
from deepinv.physics import BlurFFT, Downsampling
from torch import Tensor

from deepinv_astro.physics import (
    ADI,
    Blur,
    Calibration,
    Free,
    free_angles,
    free_center,
    free_gain,
    free_psf,
)

F64 = torch.float64


def gaussian(width: Tensor, size: int = 7) -> Tensor:
    """One PSF for each axis' width, ``(1, 1, k, k)``."""
    r = torch.arange(size).to(width) - size // 2
    h = torch.exp(-(r[:, None] ** 2) / (2 * width[0] ** 2) - r**2 / (2 * width[1] ** 2))
    return (h / h.sum())[None, None]


def widths(link=gaussian) -> Free:
    covariance = torch.tensor([[0.04, 0.01], [0.01, 0.09]], dtype=F64)
    return Free(
        "filter",
        torch.tensor([1.5, 2.0], dtype=F64),
        covariance=covariance,
        link=link,
        unit="px",
        labels=("row width", "column width"),
    )


def random_information(rng: torch.Generator, n: int) -> Tensor:
    root = torch.randn(n, n, generator=rng, dtype=F64)
    return root @ torch.logspace(-3, 3, n, dtype=F64).diag() @ root.T


def test_whitened_coordinates_have_the_prior(rng):
    """theta(u) with u ~ N(0, I) has the mean and covariance of the prior, block by block."""
    calibration = Calibration(widths(), Free("gain", torch.ones(3, dtype=F64), std=0.2))
    jacobian = torch.autograd.functional.jacobian(calibration.theta_at, calibration.u.detach())
    covariance = jacobian @ jacobian.T
    expected = torch.block_diag(widths().covariance, 0.04 * torch.eye(3, dtype=F64))
    torch.testing.assert_close(covariance, expected)
    torch.testing.assert_close(
        calibration.theta, torch.tensor([1.5, 2, 1, 1, 1], dtype=F64), check_dtype=True
    )
    u = torch.randn(5, generator=rng, dtype=F64)
    with torch.no_grad():
        calibration.u.copy_(u)
    error = calibration.theta - calibration.mean
    mahalanobis = error @ torch.linalg.solve(expected, error) / 2
    torch.testing.assert_close(calibration.prior_cost(), mahalanobis)


def test_report_is_the_gaussian_posterior(rng):
    """Posterior covariance (Sigma^-1 + L^-T F L^-1)^-1 while nothing is held."""
    calibration = Calibration(widths(), Free("gain", torch.ones(2, dtype=F64), std=0.2))
    information = random_information(rng, 4) + 10 * torch.eye(4, dtype=F64)
    report = calibration.report(information)
    root = calibration.root
    in_theta = torch.linalg.inv(root).T @ information @ torch.linalg.inv(root)
    expected = torch.linalg.inv(torch.linalg.inv(root @ root.T) + in_theta)
    torch.testing.assert_close(report.covariance, expected)
    torch.testing.assert_close(report.posterior_std, expected.diagonal().sqrt())
    torch.testing.assert_close(report.prior_std, torch.tensor([0.2, 0.3, 0.2, 0.2], dtype=F64))
    assert not report.kept.any()
    assert report.names == ("row width", "column width", "gain[0]", "gain[1]")
    assert report.units == ("px", "px", "", "")


def test_directions_without_information_are_held_and_listed():
    """Only the sum of two gains is measured: their difference keeps the error of the prior."""
    calibration = Calibration(Free("gain", torch.ones(2, dtype=F64), std=0.2))
    direction = torch.tensor([0.6, 0.8], dtype=F64)
    report = calibration.report(99.0 * direction[:, None] * direction)
    torch.testing.assert_close(report.direction_ratio, torch.tensor([0.1, 1.0], dtype=F64))
    assert report.kept.tolist() == [False, True]
    torch.testing.assert_close(report.covariance.trace() / 0.04, torch.tensor(1.01, dtype=F64))
    (line,) = report.describe_kept()
    assert "0.80 gain[0]" in line
    assert "0.60 gain[1]" in line
    assert "1.000" in line
    calibration.keep(report.kept_directions)
    with torch.no_grad():
        calibration.u.copy_(torch.tensor([3.0, -1.0]))  # whatever an optimiser did
    moved = calibration.theta - 1
    torch.testing.assert_close(moved, 0.2 * direction * (1.8 - 0.8))
    gradient = torch.autograd.grad(calibration()["gain"][0], calibration.u)[0]
    torch.testing.assert_close(gradient, 0.2 * 0.6 * direction)
    calibration.keep(torch.zeros(2, 0))
    torch.testing.assert_close(calibration.theta - 1, torch.tensor([0.6, -0.2], dtype=F64))


@pytest.mark.parametrize(("value", "kept"), [(0.2, True), (0.3, False)])
def test_the_threshold_is_on_the_ratio_of_standard_deviations(value, kept):
    """1 / sqrt(1 + F) = 0.9 at F = 0.235."""
    calibration = Calibration(Free("gain", torch.ones(1), std=5.0))
    report = calibration.report(torch.tensor([[value]]))
    assert bool(report.kept) is kept
    expected = 5.0 if kept else 5.0 / (1 + value) ** 0.5
    assert float(report.posterior_std) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["BlurFFT", "Downsampling", "Blur"])
def test_operators_with_buffers(name, rng):
    """Values reach the operator, with gradients that equal finite differences."""
    calibration = Calibration(widths())
    nominal, size = gaussian(torch.tensor([1.0, 1.0])).double(), (1, 8, 10)
    if name == "BlurFFT":
        physics = BlurFFT(size, nominal)
    elif name == "Downsampling":
        physics = Downsampling(size, nominal, 2)
    else:
        physics = Blur(size, nominal, 2, boundary="valid", dtype=F64)
    x = torch.randn(2, *size, generator=rng, dtype=F64)
    calibration.double()

    def seen(u: Tensor) -> Tensor:
        physics.update_parameters(**calibration.at(u))
        return physics.A(x)

    start = torch.tensor([0.3, -0.2], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(seen, (start,), fast_mode=True)
    physics.update_parameters(**calibration.detached())
    assert not physics.filter.requires_grad
    torch.testing.assert_close(physics.filter, gaussian(torch.tensor([1.5, 2.0], dtype=F64)))


def test_adi_takes_all_of_them(rng):
    angles = torch.tensor([0.0, 30.0, 80.0], dtype=F64)
    psf = gaussian(torch.tensor([1.0, 1.2], dtype=F64), 5)[0, 0]
    basis = torch.randn(2, 5, 5, generator=rng, dtype=F64) / 100
    calibration = Calibration(
        free_angles(angles, 0.1, true_north_std=0.5),
        free_center(torch.tensor([4.0, 4.5], dtype=F64), 0.2),
        free_gain(torch.ones(3, dtype=F64), 0.05),
        free_psf(psf, basis),
    )
    physics = ADI((1, 8, 9), angles, psf, dtype=F64)
    x = torch.rand(1, 1, 8, 9, generator=rng, dtype=F64)

    def seen(u: Tensor) -> Tensor:
        return physics.A(x, **calibration.at(u))

    start = torch.full((11,), 0.3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(seen, (start,), fast_mode=True)
    values = calibration.at(torch.tensor([1.0, *[0.0] * 8, 2.0, 0.0], dtype=F64))
    torch.testing.assert_close(values["angles"], angles + 0.5)  # true North turns all frames
    expected = psf + 2 * basis[0]
    torch.testing.assert_close(values["filter"], expected / expected.sum())
    assert calibration.names[:5] == ("true north", "angle[0]", "angle[1]", "angle[2]", "row")


def test_state_is_restored_and_moves(rng):
    calibration = Calibration(free_psf(torch.rand(3, 3), torch.rand(2, 3, 3)), widths_of_gain())
    other = Calibration(free_psf(torch.rand(3, 3), torch.rand(2, 3, 3)), widths_of_gain())
    with torch.no_grad():
        calibration.u.copy_(torch.randn(4, generator=rng))
    calibration.keep(torch.eye(4)[:, 1:2])
    assert not torch.equal(other()["filter"], calibration()["filter"])
    other.load_state_dict(copy.deepcopy(calibration.state_dict()))
    for name, value in calibration().items():
        assert torch.equal(other()[name], value)
    assert all(value.dtype == F64 for value in copy.deepcopy(other).double()().values())


def widths_of_gain() -> Free:
    return Free("gain", torch.ones(2), std=torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"std": -0.1}, "std of gain must be positive"),
        ({"std": torch.ones(3)}, r"broadcasts to \(2,\)"),
        ({}, "either std or covariance"),
        ({"std": 1.0, "covariance": torch.eye(2)}, "either std or covariance"),
        ({"covariance": torch.eye(3)}, r"symmetric of shape \(2, 2\)"),
        ({"covariance": -torch.eye(2)}, "positive definite"),
        ({"std": 1.0, "labels": ("a",)}, "2 elements and 1 labels"),
        ({"std": 1.0, "mean": torch.tensor([1.0, torch.nan])}, "finite"),
    ],
)
def test_wrong_priors(given, message):
    with pytest.raises(ValueError, match=message):
        Free("gain", **{"mean": torch.ones(2), **given})


def test_wrong_calls():
    spec = Free("gain", torch.ones(2), std=0.1)
    with pytest.raises(ValueError, match="each keyword once"):
        Calibration(spec, spec)
    with pytest.raises(ValueError, match="each keyword once"):
        Calibration()
    calibration = Calibration(spec)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        calibration.report(torch.eye(3))
    with pytest.raises(ValueError, match=r"shape \(2, k\)"):
        calibration.keep(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="basis must be of shape"):
        free_psf(torch.ones(3, 3), torch.ones(2, 3, 4))
