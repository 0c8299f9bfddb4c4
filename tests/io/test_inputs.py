"""Damaged and misplaced files, maps of the detector, and what headers tell."""

from __future__ import annotations

import gzip
import os

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from deepinv_astro.io import SequenceError, read_sequence

C, T, H, W = 3, 5, 14, 19
ANGLES = np.array([-14.2, -3.0, 10.5, 31.0, 67.1])


def frames(channels=1):
    return np.random.default_rng(1).normal(100, 5, (channels, T, H, W)).astype(np.float32)


def save(path, data, **cards):
    hdu = fits.PrimaryHDU(data)
    for key, value in cards.items():
        hdu.header[key] = value
    hdu.writeto(path)
    return path


def read(cube=None, **options):
    return read_sequence(frames()[0] if cube is None else cube, ANGLES, **options)


# ---------------------------------------------------------------- files


def test_missing_file_is_named_with_its_neighbours(tmp_path):
    save(tmp_path / "cube_real.fits", frames()[0])
    with pytest.raises(SequenceError, match=r"cube\.fits: found no such file.*cube_real\.fits"):
        read(tmp_path / "cube.fits")
    with pytest.raises(SequenceError, match="its folder is missing or empty"):
        read(tmp_path / "nowhere" / "cube.fits")


def test_empty_file(tmp_path):
    (tmp_path / "c.fits").touch()
    with pytest.raises(SequenceError, match="an empty file"):
        read(tmp_path / "c.fits")


@pytest.mark.parametrize("content", [b"this is not FITS\n" * 300, b"\x89PNG" + bytes(4000)])
def test_not_fits(tmp_path, content):
    path = tmp_path / "c.fits"
    path.write_bytes(content)
    with pytest.raises(SequenceError, match=r"c\.fits.*cannot be read as FITS.*complete FITS file"):
        read(path)


@pytest.mark.filterwarnings("ignore")  # as users run it: astropy only warns
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
def test_truncated_fits(tmp_path, kept):
    whole = save(tmp_path / "whole.fits", frames(C)).read_bytes()
    path = tmp_path / "c.fits"
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(SequenceError, match=r"c\.fits.*copy it again"):
        read(path)


def test_truncated_gzip(tmp_path):
    whole = gzip.compress(save(tmp_path / "whole.fits", frames(C)).read_bytes())
    path = tmp_path / "c.fits.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SequenceError, match=r"c\.fits\.gz.*cannot be read"):
        read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = save(tmp_path / "c.fits", frames()[0])
    path.chmod(0)
    with pytest.raises(SequenceError, match="permission"):
        read(path)


BAD_CUBES = {
    "image": (frames()[0, 0], r"2D, shape \(14, 19\); expected a cube"),
    "five dimensions": (frames()[None], "expected a cube"),
    "single frame": (frames()[:, :1], "at least 2 frames"),
    "no data": (None, "no data; expected a cube"),
}


@pytest.mark.parametrize("case", BAD_CUBES)
def test_bad_cubes(tmp_path, case):
    data, reason = BAD_CUBES[case]
    with pytest.raises(SequenceError, match=reason) as caught:
        read(save(tmp_path / "c.fits", data))
    assert "c.fits" in str(caught.value)


def test_frames_without_data_are_named_with_the_file(tmp_path):
    data = frames(2)
    data[1, 3] = np.nan
    path = save(tmp_path / "c.fits", data)
    with pytest.raises(SequenceError, match=r"c\.fits.*no finite pixel in \(channel 1, frame 3\)"):
        read(path)


def test_nan_and_infinite_values_are_missing_data():
    data = frames()[0]
    data[1, 2, 3], data[2, 3, 4] = np.nan, np.inf
    seq = read(data)
    assert (~seq.valid[0, 0]).nonzero().tolist() == [[1, 2, 3], [2, 3, 4]]
    assert torch.isnan(seq.y[0, 0, 2, 3, 4])
    assert sum("Replaced 1 infinite" in n or "Took 1 NaN" in n for n in seq.provenance) == 2


def test_damaged_cards_elsewhere_do_no_harm(tmp_path):
    path = save(tmp_path / "c.fits", frames()[0], BUNIT="adu", JUNK="x")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"JUNK    = 'x       '", b"JUNK    = 1.2.3 abc "))
    assert read(path).unit == u.adu


# ---------------------------------------------------------------- maps


BAD = {
    "map": ((H, W), (0, 0)),
    "cube": ((T, H, W), (0, 1)),
    "channels": ((C, H, W), (1, 0)),
    "all": ((C, T, H, W), (1, 1)),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pixels_become_nan(tmp_path, kind):
    shape, (per_channel, per_frame) = BAD[kind]
    mask = np.zeros(shape, dtype=np.uint8)
    index = ((1,) if per_channel else ()) + ((2,) if per_frame else ())
    mask[(*index, 4, 7)] = 1
    seq = read(frames(C), bad_pixels=save(tmp_path / "bpm.fits", mask))
    expected = np.zeros((C, T, H, W), dtype=bool)
    expected[1 if per_channel else slice(None), 2 if per_frame else slice(None), 4, 7] = True
    assert np.array_equal(~seq.valid[0].numpy(), expected)
    assert any("as missing" in n and "bpm.fits" in n for n in seq.provenance)


def test_bad_pixel_maps_that_are_refused():
    with pytest.raises(SequenceError, match="invert the map"):
        read(bad_pixels=np.ones((H, W)))
    with pytest.raises(SequenceError, match=r"shape \(19, 14\)"):
        read(bad_pixels=np.zeros((W, H)))
    with pytest.raises(SequenceError, match="time or wavelength"):
        read(np.ones((T, T, H, W)), bad_pixels=np.zeros((T, H, W)))


def test_transmission_map(tmp_path):
    values = np.linspace(0, 1, H * W).reshape(H, W)
    for data in (values, values[None]):
        path = save(tmp_path / f"t{data.ndim}.fits", data.astype(">f8"))
        np.testing.assert_allclose(read(transmission=path).transmission, values, rtol=1e-6)
    with pytest.raises(SequenceError, match=r"t\.fits.*shape \(19, 14\).*\(14, 19\)"):
        read(transmission=save(tmp_path / "t.fits", values.T))
    with pytest.raises(SequenceError, match=r"t5\.fits.*between 0 and 1"):
        read(transmission=save(tmp_path / "t5.fits", 100 * values))


PROFILE = np.array([[0.0, 0.0], [3.0, 0.6], [6.0, 0.9], [30.0, 1.0]])


def test_radial_transmission(tmp_path):
    row, column = 6.3, 8.8
    r, c = np.mgrid[:H, :W]
    oracle = np.interp(np.hypot(r - row, c - column), *PROFILE.T)
    (tmp_path / "t.csv").write_text("radius,T\n" + "\n".join(f"{a},{b}" for a, b in PROFILE))
    (tmp_path / "s.csv").write_text("T,radius\n" + "\n".join(f"{b},{a}" for a, b in PROFILE))
    Table(PROFILE, names=["radius", "T"]).write(tmp_path / "t.fits")
    save(tmp_path / "v.fits", PROFILE)
    sources = [PROFILE, PROFILE.T, *(tmp_path / n for n in ("t.csv", "s.csv", "t.fits", "v.fits"))]
    for source in sources:
        seq = read(transmission=source, center=(row, column))
        np.testing.assert_allclose(seq.transmission, oracle, rtol=1e-6)
    np.testing.assert_allclose(read(transmission=PROFILE).transmission[H // 2, W // 2], 0)


@pytest.mark.parametrize("profile", [PROFILE[::-1], PROFILE - 1, np.vstack([PROFILE, PROFILE])])
def test_radial_transmission_that_is_refused(profile):
    with pytest.raises(SequenceError, match="increasing radii"):
        read(transmission=profile)


def test_profile_with_three_columns_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("0 0 1\n1 1 1\n")
    with pytest.raises(SequenceError, match="3 columns of numbers"):
        read(transmission=tmp_path / "t.txt")


# ---------------------------------------------------------------- wavelengths


@pytest.mark.parametrize(
    "values",
    [
        [1.1, 1.3, 1.6] * u.um,
        [1100.0, 1300.0, 1600.0] * u.nm,
        [1.1, 1.3, 1.6],
        [1100.0, 1300.0, 1600.0],
        [11000.0, 13000.0, 16000.0],
        [1.1e-6, 1.3e-6, 1.6e-6],
    ],
)
def test_wavelengths_in_any_unit(values):
    seq = read(frames(C), wavelengths=values)
    assert seq.wavelengths.unit == u.um
    np.testing.assert_allclose(seq.wavelengths.value, [1.1, 1.3, 1.6], rtol=1e-6)
    guessed = any("by their values" in n for n in seq.provenance)
    assert guessed != isinstance(values, u.Quantity)


def test_wavelengths_from_files(tmp_path):
    path = save(tmp_path / "l.fits", np.array([[1593.0]]), BUNIT="nm")
    np.testing.assert_allclose(read(wavelengths=path).wavelengths.value, [1.593])
    (tmp_path / "l.txt").write_text("1.6\n1.7\n1.8\n")
    seq = read(frames(C), wavelengths=tmp_path / "l.txt")
    np.testing.assert_allclose(seq.wavelengths.value, [1.6, 1.7, 1.8])
    assert read(wavelengths="3.8 um").wavelengths.value.tolist() == [3.8]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.6, 1.7], "one per channel"),
        ([1.2, 1.1, 1.0], "scaling factors"),
        ([1e3, 2e4, 2e5], "known unit"),
        ([1.6, 1.7, 1.8] * u.s, "3 lengths"),
    ],
)
def test_wavelengths_that_are_refused(values, reason):
    with pytest.raises(SequenceError, match=reason):
        read(frames(C), wavelengths=values)


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize(
    "given", ["27.19 mas", 27.19 * u.mas, "0.02719 arcsec", 27.19 / 3.6e6 * u.deg, "27.19 mas/pix"]
)
def test_pixel_scale_given(given):
    np.testing.assert_allclose(read(pixel_scale=given).pixel_scale.to_value(u.mas), 27.19)


@pytest.mark.parametrize("given", [27.19, "27.19", "12 furlong", "3 m", "-3 mas"])
def test_pixel_scale_without_an_angle_is_refused(given):
    with pytest.raises(SequenceError, match="pixel_scale"):
        read(pixel_scale=given)


CD = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
SCALES = {
    "arcsec": ({"PIXSCALE": 0.01225}, 12.25),
    "mas": ({"PIXSCALE": 12.25}, 12.25),
    "comment": ({"PLATESCL": (12.25, "[mas] per pixel")}, 12.25),
    "eso": ({"HIERARCH ESO INS PIXSCALE": 0.02719}, 27.19),
    "cd": (CD | {"CD1_1": -3e-6, "CD1_2": 4e-6, "CD2_1": 4e-6, "CD2_2": 3e-6}, 18.0),
    "cdelt": (CD | {"CDELT1": -5e-6, "CDELT2": 5e-6}, 18.0),
    "offset": ({"CUNIT1": "arcsec", "CDELT1": -0.02, "CDELT2": 0.02}, 20.0),
    "agree": (CD | {"CDELT1": -5e-6, "CDELT2": 5e-6, "PIXSCALE": 0.01801}, 18.01),
    "disagree": (CD | {"CDELT1": -5e-6, "CDELT2": 5e-6, "PIXSCALE": 0.012}, None),
    "not square": (CD | {"CDELT1": -5e-6, "CDELT2": 6e-6}, None),
    "no unit": ({"CDELT1": -5e-6, "CDELT2": 5e-6}, None),
    "neither": ({"PIXSCALE": 0.9}, None),
    "bool": ({"PIXSCALE": True}, None),
    "text": ({"PIXSCALE": "12 mas"}, None),
}


@pytest.mark.parametrize("case", SCALES)
def test_pixel_scale_from_the_header_where_it_is_clear(tmp_path, case):
    cards, expected = SCALES[case]
    header = fits.Header()
    for key, value in cards.items():
        header[key] = value
    fits.PrimaryHDU(frames()[0], header=header).writeto(tmp_path / "c.fits")
    seq = read(tmp_path / "c.fits")
    if expected is None:
        assert seq.pixel_scale is None
    else:
        np.testing.assert_allclose(seq.pixel_scale.to_value(u.mas), expected)
        assert any("from the header" in n for n in seq.provenance)
    assert any("disagree" in n for n in seq.provenance) == (case == "disagree")


@pytest.mark.parametrize(
    ("comment", "expected"), [("0-based", (6.5, 9.0)), ("pixel, 1-based", (5.5, 8.0)), ("", None)]
)
def test_center_from_the_header_where_it_is_clear(tmp_path, comment, expected):
    cards = {"STARCENX": (9.0, comment), "STARCENY": (6.5, comment), "CRPIX1": 3.0}
    path = save(tmp_path / "c.fits", frames()[0], **cards)
    seq = read(path)
    assert seq.center == expected
    assert any("STARCENX" in n for n in seq.provenance)
    assert read(path, center=(1, 2)).center == (1.0, 2.0)


@pytest.mark.parametrize("center", [(14.0, 3.0), (-1.0, 3.0), (3.0, 19.0), (18.0, 9.0)])
def test_center_outside_the_image(center):
    with pytest.raises(SequenceError, match="inside the image of 14 rows and 19 columns"):
        read(center=center)


def test_provenance_tells_each_correction_in_order(tmp_path):
    path = save(tmp_path / "c.fits", frames()[0], BUNIT="adu", OBJECT="beta Pic")
    seq = read(path, center=(7, 9), true_north=3.0, bad_pixels=np.eye(H, W), pixel_scale="20 mas")
    first = ["Read as generic", "Marked", "Took the star", "Took the pixel", "Added true north"]
    assert [n[: len(f)] for n, f in zip(seq.provenance, first, strict=True)] == first
    assert all(n.endswith(".") for n in seq.provenance)
    assert seq.target == "beta Pic"
    assert read(path, target="bet Pic").target == "bet Pic"
