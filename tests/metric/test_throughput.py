"""Throughput and contrast, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.metric import contrast_curve, snr, snr_threshold, throughput
from deepinv_astro.models import PCA, temporal_mean
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.aperture import aperture_weights


def gaussian(fwhm: float) -> torch.Tensor:
    line = torch.exp(-4 * math.log(2) * (torch.arange(-8.0, 9.0).double() / fwhm) ** 2)
    return line[:, None] * line / line.sum() ** 2


@pytest.fixture
def physics() -> ADI:
    angles = torch.linspace(-10, 60, 8)
    return ADI((1, 45, 51), angles, gaussian(4.0), center=(23.0, 24.5), dtype=torch.float64)


def test_of_known_methods(physics: ADI) -> None:
    """North-up frames kept whole, or with a gain that grows with the row: throughput at the row."""
    p = ADI((1, 45, 51), torch.zeros(2), gaussian(4.0), dtype=torch.float64)
    y = torch.randn(
        1, 1, 2, 45, 51, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    whole = throughput(lambda y, p: y.mean(2), y, p, [5.0, 9.0], [10.0, 200.0], 7.0, 4.0)
    torch.testing.assert_close(whole.value, torch.ones(2, 2).double(), atol=1e-5, rtol=0)
    gain = torch.linspace(0, 1, 45).double()[:, None]
    tilted = throughput(lambda y, p: y.mean(2) * gain, y, p, [10.0], [0.0, 90.0], [7.0], 4.0)
    torch.testing.assert_close(
        tilted.value, torch.tensor([[32 / 44, 0.5]]).double(), atol=1e-4, rtol=0
    )
    assert tilted.separation.tolist() == [[10.0, 10.0]]
    across = torch.linspace(0, 1, 51).double()
    east = throughput(lambda y, p: y.mean(2) * across, y, p, [10.0], [90.0, 270.0], 7.0, 4.0)
    expected = torch.tensor([[0.3, 0.7]]).double()  # East is towards decreasing columns
    torch.testing.assert_close(east.value, expected, atol=1e-4, rtol=0)


def test_of_pca_grows_outwards_and_falls_with_components(
    physics: ADI, rng: torch.Generator
) -> None:
    y = torch.randn(1, 1, 8, 45, 51, dtype=torch.float64, generator=rng) + 100
    curves = [
        throughput(PCA(k, temporal_mean), y, physics, [5.0, 16.0], [40.0, 300.0], 200.0, 4.0).mean()
        for k in (0, 3)
    ]
    assert 0 < curves[0][0] < curves[0][1] < 1
    assert bool((curves[1] < curves[0]).all())


def test_depends_on_the_flux_given_per_radius(physics: ADI) -> None:
    y = torch.zeros(1, 1, 8, 45, 51, dtype=torch.float64)
    saturated = lambda y, p: PCA(0, temporal_mean)(y, p).clamp_max(0.5)  # noqa: E731
    result = throughput(saturated, y, physics, [8.0, 8.0], [90.0], [1.0, 100.0], 4.0)
    assert float(result.value[0]) > 3 * float(result.value[1])


def test_outside_is_missing(physics: ADI) -> None:
    y = torch.zeros(1, 1, 8, 45, 51, dtype=torch.float64)
    result = throughput(lambda y, p: y[:, :, 0], y, physics, [24.0], [0.0, 90.0], 1.0, 4.0)
    assert bool(result.value[0, 0].isnan())
    assert bool(result.mean().isnan().all()) == bool(result.value.isnan().all())


def test_wrong_inputs_are_named(physics: ADI) -> None:
    y = torch.zeros(1, 1, 8, 45, 51, dtype=torch.float64)
    with pytest.raises(ValueError, match="one for each of 2 radii, got 3"):
        throughput(PCA(1), y, physics, [3.0, 4.0], [0.0], [1.0, 2.0, 3.0], 4.0)
    with pytest.raises(ValueError, match=r"got \(2, 1, 8, 45, 51\)"):
        throughput(PCA(1), y.repeat(2, 1, 1, 1, 1), physics, [3.0], [0.0], 1.0, 4.0)
    with pytest.raises(ValueError, match=r"got shapes \(1, 9, 9\) and \(1,\)"):
        contrast_curve(torch.zeros(1, 9, 9), 1.0, gaussian(4.0), 4.0, [3.0], torch.ones(1))


def test_contrast_of_white_noise_has_a_closed_form(rng: torch.Generator) -> None:
    fwhm, sigma, star_flux = 4.0, 3.0, 1e5
    radii = [10.0, 20.0, 60.0]
    kept = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    curves = []
    for _ in range(20):
        image = sigma * torch.randn(131, 141, dtype=torch.float64, generator=rng)
        curves.append(contrast_curve(image, star_flux, gaussian(fwhm), fwhm, radii, kept))
    curve = curves[0]
    contrast = torch.stack([c.contrast for c in curves]).square().mean(0).sqrt()
    weights = aperture_weights((17, 17), (8, 8), fwhm / 2)
    share = float((weights * gaussian(fwhm)).sum())
    deviation = sigma * float(weights.square().sum().sqrt())
    for i, radius in enumerate(radii):
        others = math.floor(2 * math.pi * radius / fwhm) - 1
        threshold = float(snr_threshold(torch.tensor(others), 2.8665e-7))
        expected = (
            threshold * deviation * math.sqrt(1 + 1 / others) / (float(kept[i]) * star_flux * share)
        )
        assert float(contrast[i]) == pytest.approx(expected, rel=0.08)
        assert float(curve.threshold[i]) == pytest.approx(threshold)
    assert float(curve.threshold[0]) > 1.3 * float(curve.threshold[2])


def test_a_source_at_the_limit_has_the_threshold_as_its_snr(rng: torch.Generator) -> None:
    """Injected into white noise at the contrast of the curve, it stands at the threshold on average."""
    fwhm, radius = 4.0, 18.0
    psf = gaussian(fwhm)
    ratios = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(61, 71, dtype=torch.float64, generator=generator)
        curve = contrast_curve(image, 1.0, psf, fwhm, [radius], torch.ones(1).double())
        image[48 - 8 : 48 + 9, 35 - 8 : 35 + 9] += curve.contrast * psf
        # the wings of the source reach into the apertures next to it
        found = snr(image, (48, 35), fwhm, skip_neighbours=1)
        ratios.append(float(found.snr / curve.threshold))
    assert sum(ratios) / 30 == pytest.approx(1.0, abs=0.08)


def test_a_known_source_can_be_hidden(rng: torch.Generator) -> None:
    image = torch.randn(61, 71, dtype=torch.float64, generator=rng)
    bright = image.clone()
    bright[46:51, 33:38] += 1000
    hidden = torch.where(bright > 500, torch.nan, bright)
    args = (1.0, gaussian(4.0), 4.0, [18.0], torch.ones(1).double())
    plain, seen, masked = (
        float(contrast_curve(z, *args).contrast) for z in (image, bright, hidden)
    )
    assert seen > 20 * plain
    assert masked == pytest.approx(plain, rel=0.15)
