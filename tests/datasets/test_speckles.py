"""Speckles against optics, noise against its moments, statistics against the real halo."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from deepinv_astro.datasets.coronagraph import (
    IdealCoronagraph,
    LyotCoronagraph,
    NoCoronagraph,
)
from deepinv_astro.datasets.speckles import (
    NACO_LP,
    SpeckleModel,
    _screens,
    detect,
    speckle_frames,
)
from deepinv_astro.datasets.statistics import sequence_statistics
from deepinv_astro.io import fit_core
from deepinv_astro.physics.functional.pupil import PupilShape, focal_field, telescope_pupil

RADII = (5, 10, 15, 20, 30, 40, 48)
#: Temporal standard deviation of the real halo at these radii, counts.
REAL_STD = torch.tensor([145.0, 82.0, 30.0, 21.5, 12.5, 5.9, 3.7], dtype=torch.float64)
PERFECT = SpeckleModel(
    static_rms=0.0, drift_rms=0.0, residual_rms=0.0, pointing_rms=0.0, jitter_rms=0.0,
    exposures=1, pupil_size=48,
)  # fmt: skip


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _frames(model: SpeckleModel, **options: object) -> torch.Tensor:
    settings = {"generator": _seeded(), "dtype": torch.float64, **options}
    return speckle_frames(model, 2, (31, 41), **settings).frames


def test_without_aberrations_an_ideal_coronagraph_leaves_nothing():
    open_star = _frames(replace(PERFECT, coronagraph=NoCoronagraph()))
    dark = _frames(PERFECT)
    assert float(dark.max()) < 1e-12 * float(open_star.max())
    assert divmod(int(open_star[0].argmax()), 41) == (15, 20)


def test_star_without_coronagraph_is_the_psf_times_its_flux():
    model = replace(PERFECT, coronagraph=NoCoronagraph(), star_flux=1234.0)
    stars = speckle_frames(
        model, 2, (31, 41), generator=_seeded(), psf_size=21, dtype=torch.float64
    )
    torch.testing.assert_close(stars.frames[1, 5:26, 10:31], 1234 * stars.psf, rtol=1e-9, atol=1e-9)
    assert float(stars.psf.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(stars.psf, stars.psf.flip(0, 1), rtol=1e-6, atol=1e-9)


def test_star_sits_where_the_center_says():
    model = replace(PERFECT, coronagraph=NoCoronagraph())
    frame = _frames(model, center=(14.0, 22.5))[0]
    assert float(frame[14, 22]) == pytest.approx(float(frame[14, 23]))
    torch.testing.assert_close(frame[14 - 9 : 14], frame[15 : 15 + 9].flip(0), rtol=1e-5, atol=1e-6)


def test_small_aberrations_make_a_halo_of_their_variance():
    """Behind an ideal coronagraph the energy is the phase variance, to first order (Marechal)."""
    model = replace(PERFECT, static_rms=30.0, static_slope=2.0, sampling=4.0)
    stars = speckle_frames(  # 192 = 48 x 4 pixels: all the light of a pupil of 48 pixels
        model, 1, (192, 192), generator=_seeded(), psf_size=191, dtype=torch.float64
    )
    variance = (2 * math.pi * 30 / model.wavelength) ** 2
    assert float(stars.frames.sum()) / model.star_flux == pytest.approx(variance, rel=0.01)


def test_a_sine_of_phase_makes_two_speckles_at_its_frequency():
    pupil = telescope_pupil(64, PupilShape())
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64 - 0.5
    phase = 0.1 * torch.cos(2 * math.pi * 5 * u).expand(64, 64)  # 5 cycles along columns
    left = IdealCoronagraph()(pupil * torch.exp(1j * phase), pupil)
    image = focal_field(left, 4.0, (21, 61), (10, 30)).abs().square()
    assert sorted(divmod(int(k), 61) for k in image.flatten().topk(2).indices) == [
        (10, 10),
        (10, 50),
    ]
    peak = focal_field(pupil.to(torch.complex128), 4.0, (21, 61), (10, 30)).abs().square().max()
    assert float(image.max() / peak) == pytest.approx(0.05**2, rel=0.03)  # (a / 2)^2


def test_lyot_coronagraph_removes_the_star_and_keeps_the_sky():
    pupil = telescope_pupil(64, PupilShape(0.14))
    lyot = LyotCoronagraph(radius=3.0)
    star = focal_field(lyot(pupil.to(torch.complex128), pupil), 4.0, (41, 41), (20, 20))
    psf = focal_field(lyot.stop(pupil).to(torch.complex128), 4.0, (41, 41), (20, 20))
    assert float(star.abs().square().sum() / psf.abs().square().sum()) < 0.012
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64 - 0.5
    tilt = torch.exp(2j * math.pi * 8 * u)  # 8 lambda/D away, behind no spot
    planet = focal_field(lyot(pupil * tilt, pupil), 4.0, (41, 81), (20, 40))
    far = planet.abs().square()
    assert divmod(int(far.argmax()), 81) == (20, 72)
    assert float(far.max() / psf.abs().square().max()) == pytest.approx(1.0, abs=0.03)


def test_a_spot_that_covers_everything_leaves_nothing():
    """Only so if the way back to the pupil does not turn it over: the phase is lopsided."""
    pupil = telescope_pupil(48, PupilShape())
    u = (torch.arange(48, dtype=torch.float64) + 0.5) / 48 - 0.5
    phase = 2 * u[:, None] ** 3 + u - 3 * u[:, None] * u**2
    field = pupil * torch.exp(2j * math.pi * phase)
    left = LyotCoronagraph(radius=12.0, samples=4)(field, pupil)
    assert float(left.abs().square().sum() / field.abs().square().sum()) < 0.01


def test_lyot_stop_is_smaller_than_the_pupil():
    pupil = telescope_pupil(80, PupilShape(0.14))
    stop = LyotCoronagraph(outer=0.8, inner=0.3).stop(pupil)
    assert float(stop.mean()) == pytest.approx(math.pi / 4 * (0.8**2 - 0.3**2), rel=0.02)
    assert stop.dtype == torch.float64


@pytest.mark.parametrize("slope", [0.0, 2.0, 11 / 3])
def test_screens_have_unit_variance_and_their_spectrum(slope):
    pupil = telescope_pupil(32)
    draw = _screens(pupil, lambda f: f**-slope)
    screens = draw(400, _seeded())
    assert screens.shape == (400, 32, 32)
    assert float(screens.var()) == pytest.approx(1.0, rel=0.05)
    # Power in a band by projection on windowed waves of 4 and 8 cycles per diameter.
    u = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    window = torch.sin(math.pi * u) ** 2
    power = [
        float(
            torch.einsum(
                "nij,i,j->n",
                screens.to(torch.complex128),
                window.to(torch.complex128),
                window * torch.exp(2j * math.pi * f * u),
            )
            .abs()
            .square()
            .mean()
        )
        for f in (4, 8)
    ]
    assert math.log(power[0] / power[1]) / math.log(2) == pytest.approx(slope, abs=0.35)


def test_adaptive_optics_darkens_the_field_inside_its_cutoff():
    model = replace(PERFECT, residual_rms=150.0, residual_slope=0.0, exposures=40, actuators=8)
    frame = speckle_frames(
        model, 1, (121, 121), generator=_seeded(), dtype=torch.float64
    ).frames  # cutoff at 4 lambda/D = 17.6 px
    mean = sequence_statistics(frame.repeat(2, 1, 1), (60, 60), (10, 14, 27, 35)).mean
    assert float(mean[0] / mean[1]) == pytest.approx(1.0, abs=0.3)
    assert float(mean[2] / mean[3]) == pytest.approx((35 / 27) ** (11 / 3), rel=0.3)


def test_drift_forgets_over_its_frames():
    model = replace(PERFECT, drift_rms=40.0, drift_frames=3.0, drift_slope=2.0, pupil_size=24)
    frames = speckle_frames(
        model, 300, (21, 21), generator=_seeded(), psf_size=21, dtype=torch.float64
    ).frames
    field = (frames - frames.mean(0)).flatten(1)
    correlation = [
        float((field[lag:] * field[: 300 - lag]).sum() / (field[lag:] ** 2).sum()) for lag in (1, 3)
    ]
    # Intensity is quadratic in the drift: its correlation is the square.
    assert correlation[0] == pytest.approx(math.exp(-2 / 3), abs=0.1)
    assert correlation[1] == pytest.approx(math.exp(-2), abs=0.1)


def test_static_aberrations_leave_the_core_of_the_star_in_its_place():
    model = replace(PERFECT, static_rms=300.0, static_slope=3.0, coronagraph=NoCoronagraph())
    for seed in range(3):
        frame = _frames(model, generator=_seeded(seed))[0]
        core = fit_core(frame.numpy())
        assert (core.row, core.column) == pytest.approx((15.0, 20.0), abs=0.02)


def test_slow_pointing_leaks_through_the_coronagraph_and_leaves_the_psf():
    model = replace(PERFECT, pointing_rms=0.02, drift_frames=0.01, pupil=PupilShape())
    stars = speckle_frames(
        model, 200, (31, 31), generator=_seeded(), psf_size=31, dtype=torch.float64
    )
    still = speckle_frames(PERFECT, 1, (31, 31), generator=_seeded(), dtype=torch.float64)
    # A tilt of a lambda/D has the phase variance (2 pi a)^2 / 16 over a disc, and there are two.
    expected = 2 * (2 * math.pi * 0.02) ** 2 / 16
    leak = float(stars.frames.sum(dim=(1, 2)).mean()) / model.star_flux
    assert leak == pytest.approx(expected, rel=0.25)
    assert float(still.frames.max()) < 1e-9 * model.star_flux
    torch.testing.assert_close(stars.psf, stars.psf.T, rtol=1e-3, atol=1e-6)


def test_halo_brightens_and_fades_with_the_seeing():
    model = replace(PERFECT, residual_rms=60.0, exposures=24, seeing_frames=0.01, pupil_size=24)
    steady, varying = (
        speckle_frames(
            replace(model, seeing_scatter=scatter), 50, (31, 31), generator=_seeded(),
            psf_size=21, dtype=torch.float64,
        ).frames.sum(dim=(1, 2)).log().std()
        for scatter in (0.0, 0.2)
    )  # fmt: skip
    # The halo goes as the square of the residual: twice the scatter of its logarithm.
    expected = math.sqrt(float(steady) ** 2 + 0.4**2)
    assert float(varying) == pytest.approx(expected, rel=0.2)
    assert float(steady) < 0.1


def test_same_seed_same_frames_and_another_differs():
    model = replace(PERFECT, static_rms=100.0, residual_rms=100.0)
    first = _frames(model)
    assert torch.equal(first, _frames(model))
    assert not torch.allclose(first, _frames(model, generator=_seeded(1)))
    assert _frames(model, dtype=torch.float32).dtype == torch.float32
    assert bool((first >= 0).all())


def test_detector_noise_has_the_variance_of_photons_and_read_out():
    model = SpeckleModel(read_noise=3.0, sky_background=50.0, electrons_per_count=4.0)
    clean = torch.tensor([0.0, 200.0], dtype=torch.float64)[:, None].expand(2, 40000)
    noisy = detect(clean, model, generator=_seeded())
    assert noisy.dtype == torch.float64
    for k, level in enumerate((0.0, 200.0)):
        variance = (level + 50) / 4 + 9
        assert float(noisy[k].mean()) == pytest.approx(level, abs=4 * math.sqrt(variance / 40000))
        assert float(noisy[k].var()) == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 3, 4))])
def test_the_preset_is_like_the_real_halo(seed):
    generator = _seeded(seed)
    stars = speckle_frames(NACO_LP, 61, (101, 101), generator=generator, center=(51, 51))
    y = detect(stars.frames, NACO_LP, generator=generator).double()
    result = sequence_statistics(y, (51, 51), RADII)
    ratio = result.std / REAL_STD
    assert 0.5 < float(ratio.min()) <= float(ratio.max()) < 2, ratio
    assert 0.98 < result.correlation < 0.9995
    assert 0.6 < float(result.variance_fractions[:3].sum()) < 0.9


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 \(Nyquist\), got 1.5"):
        SpeckleModel(sampling=1.5)
    with pytest.raises(ValueError, match="exposures must be positive, got 0"):
        SpeckleModel(exposures=0)
    with pytest.raises(ValueError, match="set pupil_size to 55 or more"):
        speckle_frames(PERFECT, 1, (21, 235), generator=_seeded())
    with pytest.raises(ValueError, match=r"psf_size must be odd.* got 20"):
        speckle_frames(PERFECT, 1, (21, 21), generator=_seeded(), psf_size=20)
