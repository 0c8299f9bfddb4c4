"""Small-sample S/N: against least squares, against Student's law by simulation, map against positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from deepinv_astro.metric import (
    SmallSampleSNR,
    aperture_sums,
    false_alarm_probability,
    gaussian_sigma,
    reference_count,
    snr,
    snr_map,
    snr_threshold,
    two_sample,
)
from deepinv_astro.physics.functional.aperture import aperture_flux


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_statistic_is_the_t_value_of_a_regression(rng: torch.Generator) -> None:
    """The S/N is the t value of the dummy variable of the source in a linear model."""
    samples = torch.randn(9, dtype=torch.float64, generator=rng)
    design = np.zeros((9, 2))
    design[:, 0], design[0, 1] = 1.0, 1.0
    beta = np.linalg.lstsq(design, samples.numpy(), rcond=None)[0]
    rest = samples.numpy() - design @ beta
    variance = rest @ rest / (9 - 2) * np.linalg.inv(design.T @ design)[1, 1]
    result = two_sample(samples[0], samples[1:])
    assert int(result.references) == 8
    assert float(result.snr) == pytest.approx(beta[1] / math.sqrt(variance), rel=1e-12)
    p_value = stats.t.sf(beta[1] / math.sqrt(variance), 9 - 2)
    assert float(false_alarm_probability(result)) == pytest.approx(p_value, rel=1e-12)


def test_apertures_are_evenly_spaced_on_the_circle() -> None:
    """An image of one bright pixel is seen by the apertures that hold it, and by no other."""
    fwhm, star = 4.0, (20.0, 24.0)
    angles = 2 * math.pi * np.arange(15) / 15  # floor(2 pi 10 / 4) = 15 apertures
    image = torch.zeros(41, 49, dtype=torch.float64)
    image[20, 34] = 1.0  # right of the star, where the source will be
    for number, angle in enumerate(angles):
        position = (star[0] + 10 * math.sin(angle), star[1] + 10 * math.cos(angle))
        result = snr(image, position, fwhm, star)
        assert int(result.references) == 14
        if number == 0:
            assert math.isinf(float(result.snr))
        else:  # one reference of value 1 among 14: mean 1/14, variance 1/14
            expected = -(1 / 14) / math.sqrt(1 / 14 * (1 + 1 / 14))
            assert float(result.snr) == pytest.approx(expected, rel=1e-6)


def test_skipped_neighbours_are_not_counted() -> None:
    fwhm, star = 4.0, (20.0, 24.0)
    image = torch.zeros(41, 49, dtype=torch.float64) + 1e-3 * noise(41, 49)
    for turn in (1, 14):
        angle = 2 * math.pi * turn / 15
        image[round(20 + 10 * math.sin(angle)), round(24 + 10 * math.cos(angle))] = -50.0
    image[20, 34] = 1.0
    published = snr(image, (20, 34), fwhm, star)
    skipped = snr(image, (20, 34), fwhm, star, skip_neighbours=1)
    assert (int(published.references), int(skipped.references)) == (14, 12)
    assert float(published.snr) < 2 < 100 < float(skipped.snr)
    mapped = snr_map(image, fwhm, star, skip_neighbours=1)
    assert int(mapped.references[20, 34]) == 12
    assert float(snr_map(image, fwhm, star).snr[20, 34]) < 2 < 20 < float(mapped.snr[20, 34])


@pytest.mark.parametrize("size", [(40, 51), (41, 44)])
def test_map_agrees_with_single_positions(size: tuple[int, int]) -> None:
    image = noise(2, *size)
    image[0] = torch.nn.functional.avg_pool2d(image[:1], 3, 1, 1)[0]
    star = (20.4, 22.7)
    result = snr_map(image, 3.7, star)
    for position in ((20, 30), (25, 15), (30, 33), (11, 22)):
        expected = snr(image, position, 3.7, star)
        got = result.snr[:, position[0], position[1]]
        assert torch.equal(result.references[:, position[0], position[1]], expected.references)
        difference = (got - expected.snr).abs()
        assert difference[0] < 0.03  # smooth
        assert difference[1] < 0.15  # white noise, which splines smooth between the pixels
    assert bool(result.snr[:, 20, 23].isnan().all())  # no two references next to the star


def test_false_alarms_happen_as_often_as_said() -> None:
    """White noise at 1.9 FWHM, 4000 images: p-values are uniform, those of a normal law are not."""
    image = noise(4000, 21, 23)
    result = snr(image, (10, 19), 4.0, (10.0, 11.5))
    assert result.references.unique().tolist() == [10]
    p = false_alarm_probability(result).numpy()
    assert stats.kstest(p, "uniform").pvalue > 0.01
    for level in (0.1, 0.01):
        expected = 4000 * level
        assert abs((p < level).sum() - expected) < 3.5 * math.sqrt(expected)
    assert (p < 1e-3).sum() < 12 < (stats.norm.sf(result.snr.numpy()) < 1e-3).sum()
    sigma = gaussian_sigma(result).numpy()
    assert stats.kstest(sigma, "norm").pvalue > 0.01


def test_map_of_noise_has_the_false_alarms_of_student() -> None:
    image = noise(60, 45, 41, seed=4)
    result = snr_map(image, 3.0)
    p = false_alarm_probability(result)[:, 18:27, 30].flatten().numpy()
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p > 0.95).mean() == pytest.approx(0.05, abs=0.03)


def test_threshold_inverts_the_probability() -> None:
    references = torch.tensor([4, 17, 60])
    threshold = snr_threshold(references, 1e-4)
    p = false_alarm_probability(SmallSampleSNR(threshold, references))
    torch.testing.assert_close(p, torch.full_like(p, 1e-4))
    with pytest.raises(ValueError, match=r"between 0 and 1, got 5\.0; five sigma are 2\.87e-7"):
        snr_threshold(references, 5.0)


def test_gaussian_sigma_far_out_and_negative() -> None:
    result = SmallSampleSNR(torch.tensor([40.0, -40.0, 0.0]).double(), torch.tensor([400] * 3))
    sigma = gaussian_sigma(result)
    assert torch.isfinite(sigma).all()
    assert float(sigma[0]) == pytest.approx(float(stats.norm.isf(stats.t.sf(40.0, 399))))
    torch.testing.assert_close(sigma[1], -sigma[0])
    assert float(sigma[2]) == 0.0


def test_sums_are_apertures() -> None:
    image = noise(15, 18)
    sums = aperture_sums(image, 3.3)
    for position in ((7, 9), (2, 2), (12, 15)):
        assert float(sums[position]) == pytest.approx(float(aperture_flux(image, position, 1.65)))
    assert sums.isnan().logical_not().nonzero().amin(0).tolist() == [2, 2]


def test_missing_data_and_edges_are_not_counted() -> None:
    image = noise(41, 49)
    whole = snr(image, (20, 34), 4.0)
    image[20, 14] = torch.nan  # opposite to the source
    result = snr(image, (20, 34), 4.0)
    assert int(whole.references) - int(result.references) in (1, 2)
    assert int(snr_map(image, 4.0).references[20, 34]) == int(result.references)
    edge = snr(image, (20, 46), 4.0)  # the circle leaves the image above and below
    assert int(edge.references) < int(reference_count(torch.tensor(22.0), 4.0)) - 5
    assert bool(snr(image, (0, 0), 4.0).snr.isnan())


def test_near_the_star_there_is_no_answer() -> None:
    result = snr(noise(21, 21), (10, 11), 4.0)
    assert bool(result.snr.isnan())
    with pytest.raises(ValueError, match="fwhm must be a positive number of pixels, got 0"):
        reference_count(torch.tensor(3.0), 0.0)
