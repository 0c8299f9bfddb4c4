"""Point sources of known position and flux, in noise and in a real sequence."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from deepinv_astro.datasets import simulate_sequence
from deepinv_astro.io import Sequence, read_sequence
from deepinv_astro.optim.detection import Detection, PointSourceSearch, _source
from deepinv_astro.optim.radial import (
    gaussian_equivalent,
    null_map,
    radial_profile,
    scale_freedom,
)
from deepinv_astro.optim.regions import separation
from deepinv_astro.optim.source_fit import SourceFit
from deepinv_astro.optim.temporal import TemporalModel
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.points import point_image

SIZE, STAR, T = (27, 31), (13.0, 15.5), 12
ANGLES = torch.linspace(-25, 70, T, dtype=torch.float64)
POSITION = (18.3, 20.6)


def psf(sigma: float = 1.3) -> torch.Tensor:
    rows = torch.arange(-5.0, 6.0, dtype=torch.float64)
    stamp = torch.exp(-(rows[:, None] ** 2 + rows**2) / (2 * sigma**2))
    return stamp / stamp.sum()


@cache
def operator() -> ADI:
    return ADI((1, *SIZE), ANGLES, psf(), center=STAR, sky_center=STAR, dtype=torch.float64)


def planet(physics: ADI, row: float, column: float, flux: float) -> torch.Tensor:
    at = torch.tensor([row]).to(physics.sky_center), torch.tensor([column]).to(physics.sky_center)
    return flux * physics.A(point_image(physics.img_size[1:], *at)[None])


def white(generator: torch.Generator, physics: ADI | None = None) -> torch.Tensor:
    """Static halo and white noise of unit variance."""
    size = SIZE if physics is None else physics.detector_size
    halo = 100 * torch.exp(-separation(size, (size[0] // 2, size[1] // 2)) / 6)
    noise = torch.randn(1, 1, T, *size, generator=generator, dtype=torch.float64)
    return halo + noise


def search(y: torch.Tensor, physics: ADI, threshold: float = 5.0, **options) -> Detection:
    model = TemporalModel.for_sequence(y, physics, **options.pop("model", {}))
    return PointSourceSearch(model, threshold, **options)(y, physics)


def test_planet_in_white_noise_many_times():
    """Unbiased in flux and position, with errors that cover."""
    truth = torch.tensor([*POSITION, 30.0], dtype=torch.float64)
    signal = planet(operator(), *POSITION, 30.0)
    found, maps = [], []
    for seed in range(36):
        generator = torch.Generator().manual_seed(seed)
        result = search(white(generator) + signal, operator(), 3.0, max_sources=1)
        found.append(result.sources[0])
        maps.append(float(result.flux_std[0, 0, 18, 21]))
    values = torch.tensor(found, dtype=torch.float64)
    offset = values[:, :3] - truth
    std = values[:, [3, 4, 5]]
    scatter = offset.std(0)
    assert bool((offset.mean(0).abs() < 3 * scatter / 6).all())
    coverage = (offset.abs() < std).double().mean(0)
    assert 0.53 <= float(coverage.mean()) <= 0.83
    ratio = std.mean(0) / scatter
    assert bool(((ratio > 0.7) & (ratio < 1.4)).all())
    assert sum(maps) / 36 / float(scatter[2]) == pytest.approx(1.0, abs=0.3)
    moving = signal - signal.mean(2, keepdim=True)
    limit = 30 * float(moving.square().sum()) ** -0.5  # white noise of unit variance
    assert float(scatter[2]) == pytest.approx(limit, rel=0.35)


def test_bright_planet_is_located_to_a_tenth_of_a_pixel(rng):
    for row, column in (POSITION, (6.75, 9.5), (20.0, 9.2)):
        y = white(rng) + planet(operator(), row, column, 300.0)
        (source,) = search(y, operator()).sources  # its wings are not sources
        assert math.hypot(source.row - row, source.column - column) < 0.1
        assert abs(source.flux - 300) < 4 * source.flux_std
        assert source.flux_std < 6


def test_empty_noise_shows_nothing_and_is_normal():
    values = []
    for seed in range(6):
        result = search(white(torch.Generator().manual_seed(seed)), operator())
        assert result.sources == ()
        values.append(result.snr[0, 0][separation(SIZE, STAR) > 3])
    snr = torch.stack(values)
    assert 0.8 < float(snr.std()) < 1.2
    assert abs(float(snr.mean())) < 0.1


def test_snr_is_the_gaussian_equivalent_of_the_filter_over_its_scatter():
    y, physics = white(torch.Generator().manual_seed(1)), operator()
    y = y + planet(physics, *POSITION, 40.0)
    model = TemporalModel.for_sequence(y, physics)
    snr = PointSourceSearch(model, max_sources=0)(y, physics).snr
    slope = model(y).of_residual(y)[1]
    null = null_map(slope, physics.variant(angles=-physics.angles))
    distance = separation(SIZE, STAR)
    ratio = physics.A_adjoint(slope) / radial_profile(null, distance, model.fwhm / 2, "scale")
    freedom = scale_freedom(null, distance, model.fwhm)
    torch.testing.assert_close(snr, gaussian_equivalent(ratio, freedom))
    assert float(ratio.max()) > 1.5 * float(snr.max())  # few resolution elements


@pytest.mark.slow
def test_empty_speckles_on_a_narrow_detector():
    """Few pixels at each separation: the ratio reaches 4, the S/N stays what it promises."""
    values = []
    for seed in range(8):
        angles = torch.linspace(-30, 30, 20)
        y = simulate_sequence(angles, img_size=(17, 43), psf_size=15, seed=seed).sequence
        physics = ADI((1, 17, 43), angles, y.psf, y.center)
        result = search(y.y, physics)
        assert result.sources == ()
        values.append(result.snr.flatten())
    snr = torch.cat(values).double()
    assert float(snr.max()) < 4.5
    above = float((snr > 2).double().mean()) / (0.5 * math.erfc(2 / math.sqrt(2)))
    assert 0.2 < above < 1.5


def test_visibility_of_a_point_source():
    result = search(white(torch.Generator().manual_seed(0)), operator())
    t = planet(operator(), 6.0, 12.0, 1.0)
    seen = (t - t.mean(2, keepdim=True)).square().sum() / t.square().sum()
    assert float(result.visibility[0, 0, 6, 12]) == pytest.approx(float(seen), abs=0.05)
    assert 0 <= float(result.visibility.min()) <= float(result.visibility.max()) <= 1
    assert float(result.visibility[0, 0, 13, 15]) < 0.1  # at the star nothing moves


def test_wrong_sign_of_the_angles_does_not_find_it(rng):
    y = white(rng) + planet(operator(), *POSITION, 25.0)
    flipped = operator().variant(angles=-operator().angles)
    good, bad = search(y, operator()), search(y, flipped)
    assert len(good.sources) == 1
    near = (good.sources[0].row - POSITION[0], good.sources[0].column - POSITION[1])
    assert math.hypot(*near) < 0.5
    assert float(bad.snr.max()) < 0.6 * float(good.snr.max())
    assert not any(math.hypot(s.row - 18.3, s.column - 20.6) < 2 for s in bad.sources)


def test_two_planets_brightest_first(rng):
    y = white(rng) + planet(operator(), *POSITION, 30.0) + planet(operator(), 8.4, 7.8, 60.0)
    counted = []
    model = TemporalModel.for_sequence(y, operator())
    result = PointSourceSearch(model)(y, operator(), counted.append)
    one, two = result.sources
    assert math.hypot(one.row - 8.4, one.column - 7.8) < 0.2
    assert math.hypot(two.row - 18.3, two.column - 20.6) < 0.3
    assert abs(one.flux - 60) < 4 * one.flux_std
    assert abs(two.flux - 30) < 4 * two.flux_std
    assert one.snr > two.snr >= 5
    assert counted == [1, 2]
    assert len(PointSourceSearch(model, max_sources=1)(y, operator()).sources) == 1


def test_faint_planet_beside_a_bright_one(rng):
    """5 pixels away: the first is subtracted before the second is measured."""
    y = white(rng) + planet(operator(), *POSITION, 400.0) + planet(operator(), 13.6, 22.4, 80.0)
    bright, faint = search(y, operator()).sources
    assert math.hypot(bright.row - 18.3, bright.column - 20.6) < 0.15
    assert bright.flux == pytest.approx(400, rel=0.1)
    assert math.hypot(faint.row - 13.6, faint.column - 22.4) < 0.15
    assert faint.flux == pytest.approx(80, rel=0.15)


def test_planet_under_the_threshold_is_not_reported(rng):
    y = white(rng) + planet(operator(), *POSITION, 30.0)
    top = float(search(y, operator()).snr.max())
    assert len(search(y, operator(), top * 0.99).sources) == 1
    assert search(y, operator(), top * 1.01).sources == ()
    faint = white(rng) + planet(operator(), *POSITION, 3.0)
    assert search(faint, operator()).sources == ()


@pytest.mark.parametrize("place", [(13.4, 28.6), (24.3, 14.0), (2.2, 15.0)])
def test_planet_next_to_the_edge(place, rng):
    """It leaves the detector in some frames."""
    y = white(rng) + planet(operator(), *place, 60.0)
    (source,) = search(y, operator()).sources
    assert math.hypot(source.row - place[0], source.column - place[1]) < 0.3
    assert abs(source.flux - 60) < 4 * source.flux_std


@pytest.mark.parametrize(("sky", "turn"), [((41, 45), 25.0), ((41, 45), 90.0)])
def test_sky_seen_in_part_only_brings_no_false_source(sky, turn):
    angles = torch.linspace(-20, turn - 20, T)
    physics = ADI((1, *sky), angles, psf(), detector_size=SIZE, dtype=torch.float64)
    false = 0
    for seed in range(4):
        result = search(white(torch.Generator().manual_seed(seed), physics), physics)
        false += len(result.sources)
        assert bool((result.flux_std[result.snr > 2] > 0).all())
    assert false == 0


def test_gain_and_transmission_are_taken_into_account():
    gain = torch.where(torch.arange(T) % 2 == 0, 1.0, 0.5).double()
    transmission = 0.4 + 0.6 * (separation(SIZE, STAR) > 6)
    physics = ADI(
        (1, *SIZE), ANGLES, psf(), STAR, transmission, gain, sky_center=STAR, dtype=torch.float64
    )
    fluxes, stds = [], []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        noise = white(generator)
        y = noise + planet(physics, *POSITION, 60.0)
        (source,) = search(y, physics, max_sources=1).sources
        fluxes.append(source.flux)
        stds.append(source.flux_std)
    mean = sum(fluxes) / len(fluxes)
    assert abs(mean - 60) < 4 * stds[0] / math.sqrt(8)
    assert abs(mean - 60) < 6


def test_reference_frames_join(rng):
    """Frames without the planet help to know the halo: a small rotation does."""
    angles = torch.linspace(0, 12, T, dtype=torch.float64)
    physics = ADI((1, *SIZE), angles, psf(), STAR, sky_center=STAR, dtype=torch.float64)
    y = white(rng) + planet(physics, *POSITION, 40.0)
    references = torch.cat([white(rng), white(rng)], 2)
    alone = search(y, physics, max_sources=1)
    joined = search(y, physics, max_sources=1, model={"references": references})
    (source,) = joined.sources
    assert math.hypot(source.row - POSITION[0], source.column - POSITION[1]) < 0.3
    assert abs(source.flux - 40) < 4 * source.flux_std
    assert float(joined.snr.max()) > 1.2 * float(alone.snr.max())


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_units_and_precision(unit, rng):
    y = white(rng) + planet(operator(), *POSITION, 40.0)
    (expected,) = search(y, operator(), max_sources=1).sources
    (source,) = search(unit * y, operator(), max_sources=1).sources
    assert source.flux / unit == pytest.approx(expected.flux, rel=1e-6)
    assert source[:2] == pytest.approx(expected[:2], abs=1e-6)
    physics = ADI((1, *SIZE), ANGLES, psf(), center=STAR, sky_center=STAR)
    single = search((unit * y).float(), physics, max_sources=1)
    assert single.snr.dtype == torch.float32
    assert single.sources[0].flux / unit == pytest.approx(expected.flux, rel=2e-3)


def test_errors(rng):
    y = white(rng)
    model = TemporalModel.for_sequence(y, operator())
    with pytest.raises(ValueError, match=r"\(2, 1, 12, 27, 31\)"):
        PointSourceSearch(model)(y.repeat(2, 1, 1, 1, 1), operator())
    y[0, 0, 3, 4, 5] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        PointSourceSearch(model)(y, operator())


def test_errors_of_a_source_from_curvature_and_scatter():
    """H^-1 S N S H^-1, S not below one; the position's errors over the flux."""
    metric = torch.tensor([[4.0, 1.0, 0.0], [1.0, 9.0, 0.0], [0.0, 0.0, 16.0]]).double()
    inverse = torch.tensor([[0.5, 0.1, 0.0], [0.1, 0.2, 0.0], [0.0, 0.0, 0.1]]).double()
    fit = SourceFit(3.0, 4.0, 50.0, metric, inverse, torch.zeros(1))
    source = _source(fit, torch.tensor([6.0, 1.0, 8.0]).double(), 9.0)
    scale = torch.tensor([3.0, 1.0, 2.0]).double().diag()
    std = (inverse @ scale @ metric @ scale @ inverse).diagonal().sqrt()
    expected = (3.0, 4.0, 50.0, float(std[1]) / 50, float(std[2]) / 50, float(std[0]), 9.0)
    assert source == pytest.approx(expected)


def test_errors_know_the_structure_at_other_position_angles(rng):
    """Six fainter sources at the same separation, not taken out."""
    y = white(rng) + planet(operator(), *POSITION, 60.0)
    (alone,) = search(y, operator(), max_sources=1).sources
    radius, turn = math.hypot(5.3, 5.1), math.atan2(5.3, 5.1)
    for n in range(1, 7):
        angle = turn + n * 2 * math.pi / 7
        place = STAR[0] + radius * math.sin(angle), STAR[1] + radius * math.cos(angle)
        y = y + planet(operator(), *place, 15.0)
    (among,) = search(y, operator(), max_sources=1).sources
    for one, other in zip(alone[3:6], among[3:6], strict=True):
        assert other > 1.5 * one


# ------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def naco(data_root) -> Sequence:
    folder = data_root / "naco_betapic"
    return read_sequence(
        *(folder / f"naco_betapic_{part}.fits" for part in ("cube", "pa", "psf")),
        center=(51, 51),
        true_north=-104.39,
    )


def cropped(naco: Sequence, sign: float) -> tuple[torch.Tensor, ADI]:
    """61 x 61 pixels about the star, every second frame."""
    y = naco.y[:, :, ::2, 21:82, 21:82].double()
    stamp = naco.psf[0, 5:34, 5:34].double()
    return y, ADI((1, 61, 61), sign * naco.angles[::2], stamp / stamp.sum(), dtype=torch.float64)


def test_planets_injected_in_the_real_sequence(naco):
    """Angles reversed: planet b smears out, the speckles stay."""
    y, physics = cropped(naco, -1)
    for row, column, flux in ((45.3, 37.6, 3000.0), (12.4, 22.7, 2000.0), (30.2, 50.6, 1500.0)):
        result = search(y + planet(physics, row, column, flux), physics, max_sources=1)
        (source,) = result.sources
        assert math.hypot(source.row - row, source.column - column) < 0.35
        assert abs(source.flux - flux) < 4 * source.flux_std
        assert source.flux == pytest.approx(flux, rel=0.15)
        assert 30 < source.flux_std < 400
    bright = search(y + planet(physics, 45.3, 37.6, 2e4), physics, max_sources=1).sources[0]
    assert math.hypot(bright.row - 45.3, bright.column - 37.6) < 0.1
    assert bright.flux == pytest.approx(2e4, rel=0.02)


@pytest.mark.parametrize(
    ("radius", "flux"), [(17.3, 2000.0), pytest.param(9.0, 8000.0, marks=pytest.mark.slow)]
)
def test_reported_errors_are_the_scatter_of_injections(naco, radius, flux):
    """In flux and position, and the map of flux errors; close to the star too."""
    y, physics = cropped(naco, -1)
    pulls, ratios, offsets = [], [], []
    for angle in range(0, 360, 45):
        turn = math.radians(angle)
        row, column = 30 + radius * math.sin(turn), 30 + radius * math.cos(turn)
        result = search(y + planet(physics, row, column, flux), physics, 3.0, max_sources=1)
        (s,) = result.sources
        offsets.append(s.flux - flux)
        ratios.append(float(result.flux_std[0, 0, round(row), round(column)]) / s.flux_std)
        errors = (s.row - row, s.column - column, s.flux - flux)
        pulls.append([e / std for e, std in zip(errors, s[3:6], strict=True)])
    rms = torch.tensor(pulls).square().mean(0).sqrt()
    assert bool(((rms > 0.4) & (rms < 1.6)).all()), rms
    assert abs(sum(offsets) / 8) < 0.08 * flux
    assert 0.6 < sum(ratios) / 8 < 2.5


def test_empty_real_sequence(naco):
    y, physics = cropped(naco, -1)
    assert search(y, physics, max_sources=2).sources == ()


def test_beta_pictoris_b(naco):
    """Position of the literature, contrast as measured for this sequence."""
    y = naco.y
    physics = ADI((1, 101, 101), naco.angles, naco.psf[0], naco.center, sky_center=(51.0, 51.0))
    source = search(y, physics, max_sources=1).sources[0]
    down, across = source.row - 51, source.column - 51
    assert 27.19 * math.hypot(down, across) == pytest.approx(452, abs=14)
    assert math.degrees(math.atan2(-across, down)) % 360 == pytest.approx(210.6, abs=1.5)
    assert source.flux / (764939.6 / 0.3004) == pytest.approx(9.4e-4, rel=0.15)
    assert 7.5 < source.snr < 11
    assert 0.01 < source.flux_std / source.flux < 0.05
