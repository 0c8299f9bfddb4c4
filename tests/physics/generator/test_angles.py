"""Angle tracks against spherical astronomy by astropy."""

from __future__ import annotations

import astropy.units as u
import pytest
import torch
from astropy.coordinates import (
    AltAz,
    EarthLocation,
    HADec,
    SkyCoord,
    position_angle,
)
from astropy.time import Time
from astropy.utils import iers

from deepinv_astro.physics.generator import (
    PARANAL_LATITUDE,
    AngleTrackGenerator,
    parallactic_angles,
)

BETA_PICTORIS = -51.0665


@pytest.mark.parametrize("latitude", [-24.627, 19.82, 51.5])
@pytest.mark.parametrize("declination", [-51.07, -10.0, 37.0])
def test_parallactic_angle_is_the_position_angle_of_the_zenith(latitude, declination):
    h = torch.linspace(-75, 60, 13, dtype=torch.float64)
    ours = parallactic_angles(h, torch.tensor(declination, dtype=torch.float64), latitude)
    # The star at right ascension 0, the zenith at right ascension h and declination = latitude.
    theirs = position_angle(0 * u.deg, declination * u.deg, h.numpy() * u.deg, latitude * u.deg)
    difference = (ours - torch.from_numpy(theirs.to_value(u.deg)) + 180) % 360 - 180
    torch.testing.assert_close(difference, torch.zeros_like(h), atol=1e-9, rtol=0)


def test_against_the_sky_over_paranal():
    """The whole chain of astropy: a star's altitude and azimuth, and where the pole is from it."""
    site = EarthLocation.from_geodetic(-70.4 * u.deg, PARANAL_LATITUDE * u.deg, 2635 * u.m)
    time = Time("2013-01-31T01:30:00") + torch.arange(5).numpy() * u.hour
    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
        star = SkyCoord(86.821 * u.deg, BETA_PICTORIS * u.deg)
        at_site = star.transform_to(HADec(obstime=time, location=site))
        frame = AltAz(obstime=time, location=site)
        pole = HADec(0 * u.hourangle, 90 * u.deg, obstime=time, location=site)
        local, north = at_site.transform_to(frame), pole.transform_to(frame)
        # Azimuth runs clockwise: seen from inside, the pole's bearing counts the other way round.
        bearing = -position_angle(local.az, local.alt, north.az, north.alt)
    h = torch.from_numpy(at_site.ha.to_value(u.deg)).clone()
    ours = parallactic_angles(
        h, torch.from_numpy(at_site.dec.to_value(u.deg)).clone(), site.lat.deg
    )
    difference = (ours + torch.from_numpy(bearing.to_value(u.deg)) + 180) % 360 - 180
    assert float(difference.abs().max()) < 1e-6


def test_north_of_the_zenith_the_track_passes_180_without_a_jump():
    h = torch.linspace(-30, 30, 61, dtype=torch.float64)
    track = parallactic_angles(h, torch.tensor(-10.0, dtype=torch.float64), PARANAL_LATITUDE)
    assert float(torch.diff(track).abs().max()) < 10
    assert float(track[30]) == pytest.approx(-180.0)
    assert float(track[30] - track[0]) == pytest.approx(float(track[-1] - track[30]))


def test_beta_pictoris_turns_as_fast_as_in_the_real_sequence():
    """-14.3 to 67.1 degrees took NACO three and a half hours around the meridian."""
    generator = AngleTrackGenerator(
        400, BETA_PICTORIS, hour_angle=1.2, duration=3.4, dtype=torch.float64
    )
    track = generator.step(seed=1)["angles"][0]
    assert float(track[0]) == pytest.approx(-14.3, abs=1.5)
    assert float(track[-1]) == pytest.approx(67.1, abs=1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
def test_generator_contract(dtype, batch):
    generator = AngleTrackGenerator(7, dtype=dtype)
    first = generator.step(batch, seed=3)["angles"]
    assert first.shape == (batch, 7)
    assert first.dtype == dtype
    torch.testing.assert_close(generator.step(batch, seed=3)["angles"], first, rtol=0, atol=0)
    assert not torch.equal(generator.step(batch)["angles"], first)
    generator.reset_rng()
    start = generator.step(batch)["angles"]
    generator.reset_rng()
    torch.testing.assert_close(generator.step(batch)["angles"], start, rtol=0, atol=0)
    assert "angles" in generator.average(n=4, batch_size=2)


def test_sequences_of_a_batch_differ_and_stay_in_their_ranges():
    generator = AngleTrackGenerator(
        5, (-60.0, -55.0), hour_angle=0.0, duration=2.0, true_north=100.0, dtype=torch.float64
    )
    tracks = generator.step(16, seed=0)["angles"]
    torch.testing.assert_close(tracks[:, 2], torch.full((16,), 100.0, dtype=torch.float64))
    spans = tracks[:, -1] - tracks[:, 0]
    assert len(spans.unique()) == 16
    h = torch.tensor([-15.0, 15.0], dtype=torch.float64)
    for low, high in [(-60.0, -55.0)]:
        slow, fast = (
            torch.diff(parallactic_angles(h, torch.tensor(d).double(), PARANAL_LATITUDE)).item()
            for d in (low, high)
        )
        assert slow < float(spans.min()) < float(spans.max()) < fast


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="two frames, got n_frames=1"):
        AngleTrackGenerator(1)
    with pytest.raises(ValueError, match=r"declination .* got 95"):
        AngleTrackGenerator(4, declination=95.0)
    with pytest.raises(ValueError, match=r"hour_angle .* got \(2.0, 1.0\)"):
        AngleTrackGenerator(4, hour_angle=(2.0, 1.0))
    with pytest.raises(ValueError, match="duration must be positive"):
        AngleTrackGenerator(4, duration=0.0)
    with pytest.raises(ValueError, match="between the poles"):
        AngleTrackGenerator(4, latitude=90.0)
