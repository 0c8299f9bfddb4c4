"""Calibration without an image: likelihoods against dense covariances, Fisher information against draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deepinv_astro.optim import (
    CalibrationFrames,
    FourierMarginal,
    Term,
    calibrate,
    fisher_information,
    taper,
)
from deepinv_astro.optim.calibration import CalibrationLikelihood, _jacobian
from deepinv_astro.optim.fourier_marginal import (
    KNEE,
    KNEE_LOG_STD,
    SLOPE,
    SLOPE_STD,
    _best_amplitude,
)
from deepinv_astro.physics import Blur, Calibration, Free
from deepinv_astro.testing import dense_matrix

F64 = torch.float64


def gaussian(log_width: Tensor, size: int = 9) -> Tensor:
    r = torch.arange(size).to(log_width) - size // 2
    h = torch.exp(-(r[:, None] ** 2 + r**2) / (2 * torch.exp(2 * log_width)))
    return h / h.sum()


def free_width(width: float, std: float = math.log(1.2)) -> Calibration:
    start = torch.tensor(math.log(width), dtype=F64)
    return Calibration(Free("filter", start, std=std, link=gaussian, labels=("log width",)))


def spectrum(size: tuple[int, int], knee: float, slope: float) -> Tensor:
    row, column = (torch.fft.fftfreq(n, dtype=F64) for n in size)
    f = torch.hypot(row[:, None], column)
    return (1 + (f / knee) ** 2) ** (-slope / 2)


def field(spectrum: Tensor, number: int, rng: torch.Generator) -> Tensor:
    """Periodic Gaussian images of a spectrum, ``(number, 1, H, W)``."""
    white = torch.randn(number, 1, *spectrum.shape, generator=rng, dtype=F64)
    return torch.fft.ifft2(torch.fft.fft2(white) * spectrum.sqrt()).real


def stationary(spectrum: Tensor) -> Tensor:
    """Dense covariance of a periodic field."""

    def apply(x: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x) * spectrum).real

    return dense_matrix(apply, torch.zeros(spectrum.shape, dtype=F64))


# ---------------------------------------------------------------- the Fourier form


@pytest.mark.parametrize(("factor", "sampling"), [(1, "point"), (2, "point"), (3, "mean")])
def test_cost_is_that_of_the_dense_gaussian(factor, sampling, rng):
    """ln det and quadratic form of A S_x A^T + S_n, the mean of the image left out."""
    fine = (6, 12) if factor < 3 else (6, 9)
    psf = torch.rand(3, 2, generator=rng, dtype=F64)
    nuisance = torch.tensor([1.2, -0.4, 0.7], dtype=F64)
    likelihood = FourierMarginal(0.3, noise_log_std=0.5, factor=factor, sampling=sampling).double()
    sky = spectrum(fine, KNEE * math.exp(1.2 * KNEE_LOG_STD), SLOPE - 0.4 * SLOPE_STD)
    physics = Blur((1, *fine), psf, factor, sampling=sampling, dtype=F64)
    a = dense_matrix(physics.A, torch.zeros(1, 1, *fine, dtype=F64))
    n = len(a)
    centred = torch.eye(n, dtype=F64) - 1 / n
    y = torch.randn(2, 1, *physics.detector_size, generator=rng, dtype=F64)
    noise = 0.3 * math.exp(0.35)
    found = likelihood.cost({"filter": psf}, y, nuisance)
    signal, level = likelihood.expected(psf, y, nuisance)
    weights, power = likelihood.weights(y), likelihood.periodogram(y)
    amplitude = _best_amplitude(signal, level, power, weights).flatten()

    def dense(k: int, factor: float) -> Tensor:
        c = torch.eye(n, dtype=F64) * noise + factor * amplitude[k] * a @ stationary(sky) @ a.T
        c = centred @ c @ centred + torch.ones(n, n, dtype=F64) / n  # unit variance of the mean
        d = centred @ y[k].flatten()
        return (torch.logdet(c) + d @ torch.linalg.solve(c, d)) / 2

    for k in range(2):
        torch.testing.assert_close(found[k], dense(k, 1.0))
        assert dense(k, 1.0) < min(dense(k, 0.9), dense(k, 1.1))


def test_windowed_periodogram_has_the_expectation(rng):
    """Of an image cut out of a larger one: no leakage is left in the model, unlike without the window's lags."""
    sky = spectrum((48, 40), 0.05, 3.0)
    window = taper((16, 20), 0.5).double()
    likelihood = FourierMarginal(1e-6, window=window).double()
    psf = gaussian(torch.tensor(math.log(1.2), dtype=F64))
    blur = Blur((1, 48, 40), psf, dtype=F64)
    y = blur.A(field(sky, 4000, rng))[..., :16, :20]
    y = y + 1e-3 * torch.randn(y.shape, generator=rng, dtype=F64)
    nuisance = torch.tensor([math.log(0.05 / KNEE) / KNEE_LOG_STD, 0.0, 0.0], dtype=F64)
    signal, noise = likelihood.expected(psf, y[:1], nuisance)
    # without subtracting the mean, whose effect is left out with the lowest frequencies
    power = torch.fft.rfft2(window * y).abs().square().mean((0, 1)) / window.square().sum()
    ratio = power / (signal + noise)[0, 0]
    assert float(ratio.log().abs().max()) < 0.12  # 5 sigma of 4000 draws
    # and about so many frequencies are independent: the mean of P / V has the variance 2 / sum
    weights = likelihood.weights(y)
    each = likelihood.periodogram(y)[:, 0] / (signal + noise)[0, 0]
    mean = (weights * each).sum((1, 2)) / weights.sum()
    assert float(mean.var() * weights.sum() / 2) == pytest.approx(1.0, rel=0.3)


def test_gradient_and_features(rng):
    """Gradient equals differences; the Jacobian squared is the mean of the squared scores."""
    y = torch.randn(2, 2, 7, 6, generator=rng, dtype=F64)
    likelihood = FourierMarginal(0.4, noise_log_std=0.3, window=taper((7, 6), 0.8)).double()

    def cost(point: Tensor) -> Tensor:
        return likelihood.cost({"filter": gaussian(point[0], 5)}, y, point[1:])

    point = torch.tensor([0.2, 0.4, -0.3, 0.1], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(cost, (point,), fast_mode=True, atol=1e-5)


def test_jacobian():
    def function(p: Tensor) -> Tensor:
        return torch.stack([p[0] * p[1], p[1] ** 2, p.detach()[0] * p[1]])

    found = _jacobian(function, torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([[3.0, 2.0], [0.0, 6.0], [0.0, 2.0]]))


def test_information_is_the_variance_of_the_score(rng):
    """E[g g^T] over draws of periodic data at the truth, amplitude eliminated: within Monte-Carlo error."""
    sky, size = spectrum((20, 24), 0.06, 3.0), (20, 24)
    point = torch.tensor([0.3, math.log(2.0) / KNEE_LOG_STD, 0.0, 0.0], dtype=F64)
    psf = gaussian(point[0])
    blurred = Blur((1, *size), psf, dtype=F64).A(2.0 * field(sky, 400, rng))
    y = blurred + 0.1 * torch.randn(blurred.shape, generator=rng, dtype=F64)
    likelihood = FourierMarginal(0.01, noise_log_std=1.0).double()
    scores = []
    for image in y.split(1):
        leaf = point.clone().requires_grad_()
        cost = likelihood.cost({"filter": gaussian(leaf[0])}, image, leaf[1:]).sum()
        scores.append(torch.autograd.grad(cost, leaf)[0])
    scores = torch.stack(scores)
    observed = scores.T @ scores / len(y)

    def features(p: Tensor) -> Tensor:
        return likelihood.features({"filter": gaussian(p[0])}, y[:60], p[1:]).flatten()

    jacobian = _jacobian(features, point)
    expected = jacobian.T @ jacobian / 60
    scale = expected.diagonal().rsqrt()
    whitened = scale[:, None] * (observed - expected) * scale
    assert float(whitened.abs().max()) < 0.3


def test_width_is_recovered_and_the_error_is_stated(rng):
    """From 20 % wrong on both sides, images that are not periodic, noise level known to a half."""
    sky = spectrum((120, 120), 0.02, 2.8)
    psf = gaussian(torch.tensor(math.log(1.5), dtype=F64), 15)
    blurred = Blur((1, 120, 120), psf, dtype=F64).A(3 * field(sky, 6, rng))[..., :80, :72]
    y = blurred + 0.005 * torch.randn(blurred.shape, generator=rng, dtype=F64)
    found = []
    for start in (1.25, 1.8):
        calibration = free_width(start)
        likelihood = FourierMarginal(3e-5, noise_log_std=0.5, window=taper((80, 72)))
        fit = calibrate(calibration, [Term(likelihood, y)])
        assert not fit.report.kept.any()
        error = float(fit.report.values - math.log(1.5))
        assert abs(error) < 3 * float(fit.report.posterior_std) < 0.15
        noise = float(likelihood.noise_spectrum(likelihood.nuisance.detach()))
        assert noise == pytest.approx(2.5e-5, rel=0.03)
        torch.testing.assert_close(calibration.theta.detach(), fit.report.values)
        found.append(float(fit.report.values))
    assert abs(found[0] - found[1]) < 0.03  # the prior pulls by that much


def test_images_of_other_brightness_count_alike(rng):
    """Fluxes of images do not matter, beside the noise."""
    sky = spectrum((40, 40), 0.05, 3.0)
    y = Blur((1, 40, 40), gaussian(torch.tensor(-0.5, dtype=F64)), dtype=F64).A(field(sky, 3, rng))
    brightness = torch.tensor([1.0, 30.0, 1e-2], dtype=F64).view(-1, 1, 1, 1)
    values, nuisance = (
        {"filter": gaussian(torch.tensor(-0.6, dtype=F64))},
        torch.zeros(3, dtype=F64),
    )
    likelihood = FourierMarginal(1e-12).double()
    plain = likelihood.cost(values, y, nuisance)
    bright = likelihood.cost(values, brightness * y, nuisance)
    frequencies = 40 * 40 - 1
    torch.testing.assert_close(
        bright - plain, frequencies * brightness.flatten().log(), rtol=1e-4, atol=0.1
    )


# ---------------------------------------------------------------- calibration frames


def test_frames_cost_is_the_least_squares(rng):
    """Against a dense fit of flux and background to shifted and sampled PSFs."""
    psf = gaussian(torch.tensor(math.log(2.5), dtype=F64), 21)
    noise = 0.5 + torch.rand(2, 1, 9, 8, generator=rng, dtype=F64)
    frames = CalibrationFrames(2, noise, shift_std=0.5, factor=2, sampling="mean").double()
    shift = torch.tensor([[0.5, -1.0], [0.0, 1.5]], dtype=F64)  # detector pixels: 1, -2, 0, 3 fine
    y = torch.randn(2, 1, 9, 8, generator=rng, dtype=F64)
    found = frames.cost({"filter": psf}, y, (shift / 0.5).flatten())
    for k in range(2):
        sky = torch.zeros(1, 1, 18 + 20, 16 + 20, dtype=F64)
        row, column = (2 * shift[k]).long().tolist()
        sky[0, 0, 10 + 8 + row, 10 + 8 + column] = 1.0
        model = Blur(tuple(sky.shape[1:]), psf, 2, sampling="mean", dtype=F64).A(sky)
        model = model[0, 0, 5 : 5 + 9, 5 : 5 + 8]
        columns = (
            torch.stack([model, torch.ones_like(model)], -1) / noise[k, 0][..., None]
        ).flatten(0, 1)
        data = (y[k, 0] / noise[k, 0]).flatten()
        residual = data - columns @ torch.linalg.lstsq(columns, data[:, None]).solution[:, 0]
        torch.testing.assert_close(found[k], residual.square().sum() / 2, rtol=1e-6, atol=1e-6)


def test_frames_recover_width_and_shift_with_the_stated_error(rng):
    """Sixteen fits from stamps with noise: bias and scatter against the posterior."""
    truth, errors, shift = math.log(1.5), [], torch.tensor([0.35, -0.2], dtype=F64)
    psf = gaussian(torch.tensor(truth, dtype=F64), 15)
    phase = sum(
        shift[k]
        * 2
        * math.pi
        * torch.fft.fftfreq(15, dtype=F64).view(-1 if k == 0 else 1, 1 if k == 0 else -1)
        for k in range(2)
    )
    shifted = torch.fft.ifft2(torch.fft.fft2(psf) * torch.exp(-1j * phase)).real
    for _ in range(16):
        y = 7.0 * shifted + 2.0 + 0.02 * torch.randn(1, 1, 15, 15, generator=rng, dtype=F64)
        calibration, frames = free_width(1.8), CalibrationFrames(1, 0.02)
        fit = calibrate(calibration, [Term(frames, y)])
        errors.append(float((fit.report.values - truth) / fit.report.posterior_std))
    torch.testing.assert_close(frames.shifts()[0].double(), shift, atol=0.08, rtol=0)
    errors = torch.tensor(errors)
    assert abs(float(errors.mean())) < 0.8
    assert 0.55 < float(errors.std()) < 1.5


def test_frames_information_is_that_of_the_joint_fit():
    """Width, shift, flux and background together, then all but the width eliminated."""
    calibration = free_width(1.5)
    frames = CalibrationFrames(1, 0.3, shift_std=0.2).double()

    def model(p: Tensor) -> Tensor:
        psf = calibration.at(p[:1])["filter"]
        return p[3] * frames._model(psf, torch.zeros(1, 1, 11, 12), p[1:3]).flatten() + p[4]

    point = torch.tensor([0.0, 0.0, 0.0, 20.0, 3.0], dtype=F64)
    jacobian = _jacobian(model, point) / 0.3
    whole = jacobian.T @ jacobian + torch.tensor([0.0, 1, 1, 0, 0]).diag()
    expected = 1 / torch.linalg.inv(whole)[:1, :1]
    y = model(point).view(1, 1, 11, 12)
    found = fisher_information(calibration, [Term(frames, y)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert float(found) < 0.5 * float(whole[0, 0])  # the flux could imitate the width


def test_terms_add_their_information(rng):
    y = torch.randn(1, 1, 15, 15, generator=rng) + 50 * gaussian(torch.tensor(0.4), 15)
    calibration, frames = free_width(1.5), CalibrationFrames(1, 1.0)
    one = fisher_information(calibration, [Term(frames, y)])
    both = fisher_information(calibration, [Term(frames, y), Term(CalibrationFrames(1, 0.5), y)])
    torch.testing.assert_close(both, 5 * one, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- solver


class Linear(CalibrationLikelihood):
    """y = M theta + N z + noise: everything in closed form."""

    def __init__(self, matrix: Tensor, nuisance: Tensor):
        super().__init__(nuisance.shape[1])
        self.register_buffer("matrix", matrix)
        self.register_buffer("other", nuisance)

    def features(self, values, y, nuisance):
        return self.matrix @ values["gain"] + self.other @ nuisance

    def cost(self, values, y, nuisance):
        return (y - self.features(values, y, nuisance)).square().sum(1) / 2


def test_solver_against_the_gaussian_posterior(rng):
    """Mean and covariance with the nuisance integrated out, in one problem of dense algebra."""
    matrix = torch.randn(9, 3, generator=rng, dtype=F64)
    other = torch.randn(9, 2, generator=rng, dtype=F64)
    y = torch.randn(1, 9, generator=rng, dtype=F64)
    std = torch.tensor([0.5, 2.0, 1.0], dtype=F64)
    mean = torch.tensor([1.0, -1.0, 0.0], dtype=F64)
    calibration = Calibration(Free("gain", mean, std))
    likelihood = Linear(matrix, other).double()
    fit = calibrate(calibration, [Term(likelihood, y)])
    covariance = torch.eye(9, dtype=F64) + other @ other.T
    precision = matrix.T @ torch.linalg.solve(covariance, matrix) + (std**-2).diag()
    right = matrix.T @ torch.linalg.solve(covariance, y[0]) + mean / std**2
    torch.testing.assert_close(
        fit.report.values, torch.linalg.solve(precision, right), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(fit.report.covariance, torch.linalg.inv(precision))


def test_uninformed_directions_do_not_move(rng):
    """Two gains of which the data see the sum, and pull at the difference too weakly."""
    matrix = torch.tensor([[10.0, 10.0], [0.3, -0.3]], dtype=F64)
    y = torch.tensor([[30.0, 5.0]], dtype=F64)
    calibration = Calibration(Free("gain", torch.ones(2, dtype=F64), std=1.0))
    fit = calibrate(calibration, [Term(Linear(matrix, torch.zeros(2, 0)).double(), y)])
    values = calibration.detached()["gain"]
    torch.testing.assert_close(values[0], values[1])  # the difference stayed
    assert float(values.sum()) == pytest.approx(3.0, abs=0.01)
    torch.testing.assert_close(fit.report.values, values)
    assert fit.report.kept.tolist() == [False, True]
    (line,) = fit.report.describe_kept()
    assert "gain[0]" in line
    # the error of each is dominated by the direction that was not measured
    torch.testing.assert_close(
        fit.report.posterior_std, torch.full((2,), math.sqrt(0.5), dtype=F64), rtol=1e-2, atol=0
    )
    # a weaker demand lets it move
    free = calibrate(
        calibration, [Term(Linear(matrix, torch.zeros(2, 0)).double(), y)], threshold=1.0
    )
    assert not free.report.kept.any()
    assert float(calibration.u.detach().diff().abs()) > 0.5


def test_single_precision_is_kept(rng):
    y = torch.randn(2, 1, 12, 14, generator=rng)
    start = torch.tensor(math.log(1.5))
    calibration = Calibration(Free("filter", start, std=0.2, link=gaussian))
    likelihood = FourierMarginal(0.9)
    calibrate(calibration, [Term(likelihood, y)])
    assert calibration.u.dtype == likelihood.nuisance.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrate(free_width(1.5), []), "one term or more"),
        (lambda: FourierMarginal(0.0), "positive variance"),
        (lambda: CalibrationFrames(1, -1.0), "positive standard deviation"),
        (lambda: taper((3, 4), 0.0), r"width must be in \(0, 1\]"),
        (
            lambda: calibrate(
                free_width(1.5), [Term(FourierMarginal(1.0), torch.full((1, 1, 4, 4), torch.nan))]
            ),
            "cost is nan at the start",
        ),
        (
            lambda: calibrate(free_width(1.5), [Term(FourierMarginal(1.0), torch.zeros(4, 4))]),
            "y must be images",
        ),
        (
            lambda: calibrate(
                free_width(1.5), [Term(CalibrationFrames(2, 1.0), torch.zeros(1, 1, 4, 4))]
            ),
            "stamps must be",
        ),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
