"""Image and calibration in turns: truth recovered, directions held, frames heard, errors carried to the image."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from deepinv_astro.optim import REXPACO, CalibrationFrames, Marginal, TemporalLikelihood, Term
from deepinv_astro.optim.adi_calibration import SpeckleExpansion
from deepinv_astro.optim.regions import Partition
from deepinv_astro.optim.self_calibration import SelfCalibration, scatter, self_calibrate
from deepinv_astro.physics import ADI, Calibration, Free, free_angles, free_center, free_gain

SIZE, FRAMES = (25, 23), 8
STAR = (12.0, 11.0)
COMPANIONS = ((19, 14), (8, 18), (14, 3))


def psf(log_width: Tensor) -> Tensor:
    r = torch.arange(-5, 6).to(log_width)
    h = torch.exp(-(r[:, None] ** 2 + r**2) / (2 * torch.exp(2 * log_width)))
    return h / h.sum()


def sequence(flux: float = 3000.0, seed: int = 3) -> tuple[Tensor, ADI, ADI, Tensor]:
    """Data, the operator as it is thought to be, as it is, and the sky; smooth speckles and white noise."""
    rng = torch.Generator().manual_seed(seed)
    angles = torch.linspace(0.0, 100.0, FRAMES)
    thought = ADI((1, *SIZE), angles, psf(torch.tensor(0.2)), STAR, gain=torch.ones(FRAMES))
    gain = 1 + 0.08 * torch.randn(FRAMES, generator=rng)
    truth = thought.variant(
        center=torch.tensor([STAR[0] + 0.4, STAR[1] - 0.3]),
        angles=angles + 0.8 * torch.randn(FRAMES, generator=rng),
        gain=gain / gain.mean(),
    )
    x = torch.zeros(1, 1, *SIZE)
    for row, column in COMPANIONS:
        x[0, 0, row, column] = flux
    speckles = torch.randn(1, FRAMES, *SIZE, generator=rng)
    speckles = torch.nn.functional.avg_pool2d(speckles, 3, 1, 1)
    noise = 10 * speckles + torch.randn(1, FRAMES, *SIZE, generator=rng)
    return truth.A(x) + noise[None] + 200.0, thought, truth, x


def free(thought: ADI) -> Calibration:
    return Calibration(
        free_center(thought.center.flatten(), 0.5),
        free_angles(thought.angles[0], 1.0, true_north_std=0.5),
        free_gain(thought.gain[0], 0.1),
    )


@lru_cache(1)
def found() -> tuple[SelfCalibration, Calibration, list[int]]:
    y, thought, _, _ = sequence()
    calibration, told = free(thought), []
    answer = self_calibrate(y, thought, calibration, callback=lambda k, step: told.append(k))
    return answer, calibration, told


def test_truth_is_recovered_within_its_errors():
    _, thought, truth, _ = sequence()
    answer, _, told = found()
    report = answer.report
    true = torch.cat([truth.center.flatten(), torch.zeros(1), truth.angles[0], truth.gain[0]])
    z = (report.values - true) / report.posterior_std
    assert float(z.abs().max()) < 4.0
    assert float(z.square().mean().sqrt()) < 1.6
    assert float((report.values[:2] - true[:2]).abs().max()) < 0.1  # half a pixel before
    before = float((thought.gain - truth.gain).square().mean().sqrt())
    assert float((report.values[-FRAMES:] - true[-FRAMES:]).square().mean().sqrt()) < 0.6 * before
    assert answer.converged
    assert told == list(range(1, len(answer.history) + 1))
    torch.testing.assert_close(answer.physics.center.flatten(), report.values[:2])


def test_what_is_not_known_stays_and_is_listed():
    answer, calibration, _ = found()
    report = answer.report
    held = report.kept_directions
    assert held.shape[1] >= 3  # true North, common angle, common gain
    assert float((held.T @ calibration.u.detach()).abs().max()) < 1e-6
    assert float(report.values[2]) == pytest.approx(0.0, abs=1e-4)
    assert float(report.ratio[2]) == pytest.approx(1.0, abs=1e-3)
    assert float(report.values[-FRAMES:].mean()) == pytest.approx(1.0, abs=0.01)
    assert any("true north" in line for line in report.describe_kept())


def test_image_gains_from_the_calibration():
    y, thought, _, x = sequence()
    answer, _, _ = found()

    def missed(image: Tensor) -> float:
        return float((thought.A(image) - thought.A(x)).norm() / thought.A(x).norm())

    before = Marginal(iterations=(60, 60))(y, thought)
    assert missed(answer.image) < 0.7 * missed(before)


def test_operator_is_left_alone_and_answer_repeats():
    y, thought, _, _ = sequence()
    self_calibrate(y, thought, free(thought), max_iter=1)
    torch.testing.assert_close(thought.center.flatten(), torch.tensor(STAR))
    first, second = (
        self_calibrate(y, thought, free(thought), max_iter=1, probes=1).report.values
        for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1.0), (2.0, 4.0)])
def test_scatter_elsewhere_is_what_is_expected_of_white_noise(factor, expected):
    """And the square of its excess where a filter finds more; the place of the filter itself is left out."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 1, FRAMES, *SIZE, generator=rng)
    labels = torch.zeros(SIZE, dtype=torch.long)
    likelihood = TemporalLikelihood([Partition.from_labels(labels)], torch.ones(SIZE), 1e-3)
    speckles = SpeckleExpansion(likelihood, noise, None)
    filters = torch.zeros(30, 1, FRAMES, *SIZE)
    for k in range(30):
        filters[k, 0, k % FRAMES, 18 + k % 4, 12 + k // 8] = 1.0
    speckles.score = factor * speckles.score
    speckles.score[..., 18:22, 12:16] = 1e3
    assert float(scatter(speckles, filters, torch.tensor([11.6, 11.2]))) == pytest.approx(
        expected, rel=0.35
    )


def test_errors_of_calibration_reach_the_image():
    """The flux of the image is uncertain by the gain that no one knows."""
    answer, _, _ = found()
    assert answer.image_std.shape == answer.image.shape
    row, column = COMPANIONS[0]
    here = (..., slice(row - 1, row + 2), slice(column - 1, column + 2))
    assert float(answer.image_std[here].max()) > 0.01 * float(answer.image[here].max())
    # a common gain of 1/sqrt(T) of the prior's 10 % changes all of the flux in the image
    common = 0.1 / FRAMES**0.5
    expected = common * float(answer.image[here].sum())
    assert float(answer.image_std[here].sum()) > expected / 2
    # a point source there has the flux error of the gain, and of a little more
    assert 0.8 < float(answer.flux_std[0, 0, row, column]) / (common * 3000) < 1.6
    assert float(answer.flux_std[0, 0, 2, 2]) < 1e-3
    assert not torch.equal(answer.first, answer.image)


def test_frames_of_the_star_tell_the_width_that_the_sequence_does_not():
    y, thought, _, _ = sequence()
    prior = Free("filter", torch.tensor(0.3), std=0.2, link=psf, labels=("log width",))
    alone = Calibration(prior)
    told = self_calibrate(y, thought.variant(filter=psf(torch.tensor(0.3))), alone, max_iter=1)
    assert float(told.report.ratio) > 0.9
    assert float(told.report.values) == pytest.approx(0.3)
    stamps = 100 * psf(torch.tensor(0.2))[None, None]
    with_frames = Calibration(prior)
    told = self_calibrate(
        y, thought, with_frames, terms=[Term(CalibrationFrames(1, noise=0.02), stamps)], max_iter=1
    )
    assert float(told.report.ratio) < 0.1
    assert float(told.report.values) == pytest.approx(0.2, abs=0.02)


def test_missing_data_and_other_solvers():
    y, thought, truth, _ = sequence()
    y[0, 0, 2, 5:8, 5:8] = torch.nan
    calibration = Calibration(free_center(thought.center.flatten(), 0.5))
    physics = truth.variant(center=thought.center)
    answer = self_calibrate(y, physics, calibration, solver=REXPACO(smoothness=0.1, sparsity=0.2))
    assert float((answer.report.values - truth.center.flatten()).abs().max()) < 0.12


def test_dark_sky_tells_nothing():
    _, thought, _, _ = sequence()
    y = torch.randn(1, 1, FRAMES, *SIZE)
    calibration = free(thought)
    answer = self_calibrate(y, thought, calibration, max_iter=2)
    torch.testing.assert_close(answer.report.values, calibration.mean)
    assert bool(answer.report.kept.all())
    assert answer.converged


def test_bad_input_is_refused():
    y, thought, _, _ = sequence()
    with pytest.raises(ValueError, match="one sequence at a time"):
        self_calibrate(y.repeat(2, 1, 1, 1, 1), thought, free(thought))
    with pytest.raises(ValueError, match="max_iter must be 1 or more"):
        self_calibrate(y, thought, free(thought), max_iter=0)
