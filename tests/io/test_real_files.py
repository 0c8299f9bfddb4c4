"""The real sequences, where DEEPINV_ASTRO_DATA names their folder."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from deepinv_astro.io import fit_core, read_sequence


@pytest.fixture(scope="module")
def naco(data_root):
    folder = data_root / "naco_betapic"
    return read_sequence(
        *(folder / f"naco_betapic_{part}.fits" for part in ("cube", "pa", "psf")),
        center=(51, 51),
        pixel_scale="27.19 mas",
        true_north=-104.39,
        star_flux_aperture=(764939.6, 4.80),
        wavelengths="3.8 um",
    )


def test_naco_shapes_and_calibration(naco):
    assert naco.y.shape == (1, 1, 61, 101, 101)
    assert bool(naco.valid.all())
    stored = naco.angles + 104.39
    torch.testing.assert_close(
        stored[[0, -1]], torch.tensor([-14.27, 67.10], dtype=torch.float64), atol=0.005, rtol=0
    )
    assert naco.psf.shape == (1, 39, 39)
    core = fit_core(naco.psf[0].numpy())
    np.testing.assert_allclose(core[:2], (19, 19), atol=2e-3)
    # 30.04 % of the stamp's flux is within one FWHM.
    np.testing.assert_allclose(naco.star_flux, [2.546e6], rtol=1e-3)


def test_naco_psf_alone_tells_no_star_flux(data_root, caplog):
    folder = data_root / "naco_betapic"
    seq = read_sequence(*(folder / f"naco_betapic_{p}.fits" for p in ("cube", "pa", "psf")))
    assert seq.star_flux is None
    assert "sums to 4.349" in caplog.text


def test_planet_b_is_where_the_conventions_say(naco):
    """Median-subtracted frames, turned with scipy about the star, against the published position."""
    frames = naco.y[0, 0].double().numpy()
    flat = (frames - frames.mean(0)).reshape(len(frames), -1)
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    residual = (flat - (left[:, :10] * values[:10]) @ right[:10]).reshape(frames.shape)
    center = np.array(naco.center)
    image = np.zeros(frames.shape[1:])
    for frame, angle in zip(residual, np.deg2rad(naco.angles.numpy()), strict=True):
        # The value at p comes from where p was before the frame turned counter-clockwise.
        back = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        image += affine_transform(frame, back, center - back @ center, order=3)
    rows, columns = np.indices(image.shape)
    radius = np.hypot(rows - 51, columns - 51)
    image[(radius < 12) | (radius > 40)] = -np.inf
    row, column = np.unravel_index(image.argmax(), image.shape)
    separation = np.hypot(row - 51, column - 51) * naco.pixel_scale.to_value(u.mas)
    position_angle = np.rad2deg(np.arctan2(-(column - 51), row - 51)) % 360
    assert abs(separation - 452) < 25
    assert abs(position_angle - 210.6) < 4


def test_rylup_geometry_in_the_dialect_of_the_data_center(data_root):
    folder = data_root / "sphere_rylup"
    frames = np.random.default_rng(0).normal(size=(80, 284, 284)).astype(np.float32)
    seq = read_sequence(
        frames,
        folder / "rylup_rotation_vector.fits",
        folder / "rylup_psf_cube.fits",
        wavelengths=folder / "rylup_lambda_vector.fits",
        transmission=folder / "sphere_coronagraph_h2_transmission_cube.fits",
        dialect="sphere-dc",
    )
    np.testing.assert_allclose(seq.angles[[0, -1]], [111.515, 182.489], atol=1e-3)
    assert seq.center == (142.0, 142.0)
    assert seq.psf.shape == (1, 65, 65)
    np.testing.assert_allclose(fit_core(seq.psf[0].numpy())[:2], (32, 32), atol=2e-3)
    np.testing.assert_allclose(seq.star_flux, [768443.7], rtol=1e-3)
    np.testing.assert_allclose(seq.wavelengths.to_value(u.um), [1.593])
    assert seq.transmission[142, 142] < 0.01
    assert seq.transmission[0, 0] == 1


def test_v471tau_psf_of_39_wavelengths(data_root):
    folder = data_root / "sphere_v471tau"
    frames = np.random.default_rng(0).normal(0, 0.01, (39, 24, 40, 50)).astype(np.float32)
    seq = read_sequence(
        frames, folder / "pa.fits", folder / "psf.fits", wavelengths=folder / "wl.fits"
    )
    assert seq.psf.shape == (39, 25, 25)
    widths = []
    for stamp in seq.psf.numpy():
        core = fit_core(stamp)
        np.testing.assert_allclose(core[:2], (12, 12), atol=5e-3)
        widths.append(core.fwhm)
    # Diffraction: the width grows with the wavelength.
    ratio = seq.wavelengths.value / seq.wavelengths.value[0]
    assert np.corrcoef(widths, ratio)[0, 1] > 0.95
    assert seq.star_flux.shape == (39,)
    assert any("by their values" in n for n in seq.provenance)
