"""Simulated sequences: the truth they report is the truth they contain."""

from __future__ import annotations

import math
from dataclasses import replace

import astropy.units as u
import pytest
import scipy.ndimage
import torch

from deepinv_astro.datasets import (
    NoCoronagraph,
    Planet,
    SpeckleModel,
    demo_sequence,
    gaussian_blob,
    simulate_sequence,
)
from deepinv_astro.physics.functional.rotation import rotate

SMALL = SpeckleModel(pupil_size=32, exposures=2)
#: A star so faint and a detector so good that the sky is all there is.
NOISELESS = replace(SMALL, read_noise=0.0, sky_background=0.0, electrons_per_count=1e9)
ANGLES = torch.tensor([-10.0, 0.0, 35.0, 80.0], dtype=torch.float64)


def test_parts_and_shapes():
    sim = simulate_sequence(
        ANGLES, img_size=(41, 51), planets=[Planet(9.0, 200.0, 1e-3)], model=SMALL, psf_size=15
    )
    assert sim.sequence.y.shape == (1, 1, 4, 41, 51)
    assert sim.x.shape == sim.disk.shape == (1, 1, 41, 51)
    assert sim.speckles.shape == (1, 1, 4, 41, 51)
    assert sim.sequence.psf.shape == (1, 15, 15)
    assert torch.equal(sim.sequence.angles, ANGLES)
    assert sim.sequence.center == (20.0, 25.0)
    assert float(sim.sequence.star_flux) == SMALL.star_flux
    assert sim.sequence.unit == u.ct
    assert sim.sequence.wavelengths.to_value(u.um) == pytest.approx([3.8])


def test_planet_truth_is_what_derotated_frames_show():
    """Independent of the operator: frames turned by scipy, a centroid measured on the result."""
    planet = Planet(separation_px=12.3, position_angle_deg=63.0, contrast=2e-3)
    angles = torch.tensor([0.0, 40.0, 95.0], dtype=torch.float64)
    sim = simulate_sequence(
        angles, img_size=(61, 61), planets=[planet], model=NOISELESS, psf_size=21,
        dtype=torch.float64,
    )  # fmt: skip
    truth = sim.planets[0]
    theta = math.radians(63.0)
    assert truth.row == pytest.approx(30 + 12.3 * math.cos(theta))
    assert truth.column == pytest.approx(30 - 12.3 * math.sin(theta))
    assert truth.flux == pytest.approx(2e-3 * NOISELESS.star_flux)
    assert float(sim.x.sum()) == pytest.approx(truth.flux)
    sky = (sim.sequence.y - sim.speckles)[0, 0]
    for frame, angle in zip(sky, angles, strict=True):
        # scipy turns from the column axis towards the row axis for negative angles.
        north_up = scipy.ndimage.rotate(frame.numpy(), -float(angle), reshape=False, order=3)
        row, column = round(truth.row), round(truth.column)
        stamp = torch.from_numpy(north_up[row - 3 : row + 4, column - 3 : column + 4].copy())
        stamp = stamp.clamp_min(0) ** 2
        offsets = torch.arange(-3, 4, dtype=stamp.dtype)
        found = (
            row + float((stamp.sum(1) * offsets).sum() / stamp.sum()),
            column + float((stamp.sum(0) * offsets).sum() / stamp.sum()),
        )
        assert found == pytest.approx((truth.row, truth.column), abs=0.1)


def test_flux_of_the_sky_arrives_on_the_detector():
    disk = gaussian_blob((61, 71), 8.0, 120.0, flux=5e4)
    sim = simulate_sequence(
        ANGLES, img_size=(61, 71), disk=disk, model=NOISELESS, psf_size=15, dtype=torch.float64
    )
    arrived = (sim.sequence.y - sim.speckles).sum(dim=(0, 1, 3, 4))
    torch.testing.assert_close(arrived, torch.full_like(arrived, 5e4), rtol=5e-3, atol=0)
    torch.testing.assert_close(sim.disk[0, 0], disk)
    assert sim.planets == ()


def test_center_and_gain():
    gain = torch.tensor([1.0, 0.5, 2.0, 1.0])
    model = replace(NOISELESS, coronagraph=NoCoronagraph(), jitter_rms=0.0, residual_rms=50.0)
    steady = simulate_sequence(ANGLES, img_size=(41, 51), model=model, psf_size=15)
    sim = simulate_sequence(
        ANGLES, img_size=(41, 51), model=model, gain=gain, center=(18.0, 27.0), psf_size=15
    )
    assert sim.sequence.center == (18.0, 27.0)
    for k in range(4):
        assert divmod(int(sim.speckles[0, 0, k].argmax()), 51) == (18, 27)
    ratio = sim.speckles[0, 0, :, 18, 27] / steady.speckles[0, 0, :, 20, 25]
    torch.testing.assert_close(ratio, gain, rtol=1e-3, atol=0)
    torch.testing.assert_close(sim.sequence.y, sim.speckles, rtol=1e-3, atol=1.0)


def test_sky_turns_about_the_star_and_shares_its_gain():
    gain = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    sim = simulate_sequence(
        ANGLES, img_size=(51, 61), planets=[Planet(10.0, 0.0, 1e-2)], model=NOISELESS, gain=gain,
        center=(23.0, 33.0), psf_size=15, dtype=torch.float64,
    )  # fmt: skip
    sky = (sim.sequence.y - sim.speckles)[0, 0]
    assert divmod(int(sky[1].argmax()), 61) == (33, 33)  # angle 0: due North of the star
    turned = divmod(int(sky[3].argmax()), 61)  # angle 80: clockwise, towards the West
    assert turned == (round(23 + 10 * math.cos(math.radians(80))), round(33 + 10 * 0.985))
    torch.testing.assert_close(sky.sum(dim=(1, 2)), sky[1].sum() / 0.5 * gain, rtol=0.01, atol=0)


def test_noise_is_that_of_the_detector():
    model = replace(SMALL, read_noise=4.0, sky_background=0.0, electrons_per_count=1e9)
    sim = simulate_sequence(ANGLES, img_size=(61, 71), model=model, psf_size=15)
    noise = sim.sequence.y - sim.speckles
    assert float(noise.std()) == pytest.approx(4.0, rel=0.03)


def test_same_seed_same_sequence():
    options = {"img_size": (31, 31), "model": SMALL, "psf_size": 15}
    first = simulate_sequence(ANGLES, seed=3, **options)
    assert torch.equal(first.sequence.y, simulate_sequence(ANGLES, seed=3, **options).sequence.y)
    other = simulate_sequence(ANGLES, seed=4, **options)
    assert not torch.allclose(first.sequence.y, other.sequence.y)
    assert not torch.allclose(first.speckles, other.speckles)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"vector of T values, got shape \(1, 4\)"):
        simulate_sequence(ANGLES[None], model=SMALL)
    with pytest.raises(ValueError, match=r"disk must be of shape \(41, 51\), got \(51, 41\)"):
        simulate_sequence(ANGLES, img_size=(41, 51), disk=torch.zeros(51, 41), model=SMALL)


@pytest.fixture(scope="module")
def demo():
    return demo_sequence()


def test_demo_has_the_rotation_of_its_star(demo):
    angles = demo.sequence.angles
    assert len(angles) == 48
    assert float(angles[-1] - angles[0]) == pytest.approx(70, abs=2)
    assert bool((torch.diff(angles) > 0).all())


def test_demo_hides_its_sky_in_a_frame(demo):
    """The sky is dimmer than the speckles everywhere, and so is the planet than its neighbours."""
    y, halo = demo.sequence.y[0, 0], demo.speckles[0, 0]
    sky = (y - halo).mean(dim=0)
    rows, columns = torch.arange(101.0)[:, None] - 50, torch.arange(101.0) - 50
    distance = torch.hypot(rows, columns)
    for radius in (10, 15, 20, 25):
        ring = (distance - radius).abs() < 1.5
        assert float(sky[ring].max()) < 0.7 * float(halo[0][ring].max())


def test_demo_planet_comes_out_of_the_oracle_and_of_median_adi(demo):
    planet = demo.planets[0]
    y, angles = demo.sequence.y[0, 0], demo.sequence.angles.float()
    residual = y - y.median(dim=0).values
    for frames in (y - demo.speckles[0, 0], residual):
        image = rotate(frames, angles, center=demo.sequence.center).mean(dim=0)
        row, column = round(planet.row), round(planet.column)
        window = image[row - 3 : row + 4, column - 3 : column + 4]
        assert divmod(int(window.argmax()), 7)[0] in (2, 3, 4)
        assert divmod(int(window.argmax()), 7)[1] in (2, 3, 4)
