"""Reading sequences from every kind of file, good and bad; sizes differ on every axis."""

from __future__ import annotations

import gzip
import logging

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from deepinv_astro.io import AnglesUnit, Dialect, SequenceError, fit_core, read_sequence
from deepinv_astro.io.dialects import as_stored, fft_center

C, T, H, W = 3, 5, 14, 19
ANGLES = np.array([-14.2, -3.0, 10.5, 31.0, 67.1])


def frames(channels=1):
    return np.random.default_rng(1).normal(100, 5, (channels, T, H, W)).astype(np.float32)


def star(shape=(12, 16), center=(5.3, 7.8), flux=4000.0, sigma=1.2):
    r, c = np.mgrid[: shape[0], : shape[1]]
    stamp = np.exp(-((r - center[0]) ** 2 + (c - center[1]) ** 2) / (2 * sigma**2))
    return flux * stamp / stamp.sum()


def save(path, data, name="", extension=False, **cards):
    image = fits.ImageHDU(data, name=name) if extension else fits.PrimaryHDU(data)
    for key, value in cards.items():
        image.header[key] = value
    hdus = [fits.PrimaryHDU(), image] if extension else [image]
    fits.HDUList(hdus).writeto(path)
    return path


@pytest.fixture
def cube(tmp_path):
    return save(tmp_path / "cube.fits", frames()[0])


@pytest.fixture
def angles(tmp_path):
    return save(tmp_path / "angles.fits", ANGLES)


# ---------------------------------------------------------------- cubes


def test_primary_cube(cube, angles):
    seq = read_sequence(str(cube), angles)
    assert seq.y.shape == (1, 1, T, H, W)
    assert seq.y.dtype == torch.float32
    assert np.array_equal(seq.y[0, 0].numpy(), frames()[0])
    assert seq.y.numpy().dtype.isnative
    np.testing.assert_array_equal(seq.angles.numpy(), ANGLES)
    assert seq.psf is seq.star_flux is seq.center is seq.pixel_scale is seq.transmission is None


def test_chromatic_cube_in_the_first_extension_with_enough_dimensions(tmp_path, angles):
    path = tmp_path / "c.fits"
    hdus = [fits.PrimaryHDU(np.ones((H, W))), fits.ImageHDU(frames(C), name="SCI")]
    fits.HDUList([*hdus, fits.ImageHDU(frames()[0] + 1, name="OTHER")]).writeto(path)
    assert read_sequence(path, angles).y.shape == (1, C, T, H, W)
    for hdu in ("other", 2, "2"):
        seq = read_sequence(path, angles, hdu=hdu)
        assert np.array_equal(seq.y[0, 0].numpy(), frames()[0] + 1)
    with pytest.raises(SequenceError, match=r"HDU 1 'SCI': 4D.*an HDU 'NOPE'"):
        read_sequence(path, angles, hdu="NOPE")
    with pytest.raises(SequenceError, match="not a single image"):
        read_sequence(path, angles, hdu=0)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ("<f4", torch.float32),
        (">f4", torch.float32),
        (">f8", torch.float64),
        (">i2", torch.float32),
        ("u2", torch.float32),
        ("u1", torch.float32),
        (">i4", torch.float64),
    ],
)
def test_types_become_native_floats_without_loss(tmp_path, angles, stored, dtype):
    data = np.round(frames()[0]).astype(stored)
    seq = read_sequence(save(tmp_path / "c.fits", data), angles)
    assert seq.y.dtype == dtype
    assert np.array_equal(seq.y[0, 0].numpy(), data.astype(np.float64))
    assert torch.isfinite((seq.y * 2).sum())


def test_bscale_and_blank(tmp_path, angles):
    hdu = fits.PrimaryHDU(np.full((T, H, W), 4, dtype=np.int16))
    hdu.data[1, 2, 3] = -999
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.5, 10.0, -999
    path = tmp_path / "c.fits"
    # Written as they are: astropy would otherwise fold the scale into the data.
    raw = fits.PrimaryHDU(hdu.data)
    raw.writeto(path)
    with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
        for key, value in (("BSCALE", 0.5), ("BZERO", 10.0), ("BLANK", -999)):
            hdus[0].header[key] = value
    seq = read_sequence(path, angles)
    assert seq.y[0, 0, 0, 0, 0] == 12.0
    assert torch.isnan(seq.y[0, 0, 1, 2, 3])
    assert (~seq.valid).sum() == 1


def test_gzip_and_fpack(tmp_path, cube, angles):
    zipped = tmp_path / "c.fits.gz"
    zipped.write_bytes(gzip.compress(cube.read_bytes()))
    assert np.array_equal(read_sequence(zipped, angles).y[0, 0].numpy(), frames()[0])
    packed = tmp_path / "c.fits.fz"
    data = np.round(frames()[0]).astype(np.int16)
    fits.CompImageHDU(data, compression_type="RICE_1").writeto(packed)
    assert np.array_equal(read_sequence(packed, angles).y[0, 0].numpy(), data)


def test_arrays_and_tensors_are_taken_as_files_are(angles):
    seq = read_sequence(torch.from_numpy(frames(C)), torch.from_numpy(ANGLES))
    assert seq.y.shape == (1, C, T, H, W)


def test_input_array_is_left_alone():
    data = frames()[0]
    read_sequence(data, ANGLES, bad_pixels=np.eye(H, W))
    assert np.isfinite(data).all()


# ---------------------------------------------------------------- angles


@pytest.mark.parametrize("shape", [(T,), (T, 1), (1, T), (1, T, 1)])
def test_angles_of_any_orientation(tmp_path, cube, shape):
    path = save(tmp_path / "a.fits", ANGLES.reshape(shape).astype(">f8"))
    np.testing.assert_array_equal(read_sequence(cube, path).angles.numpy(), ANGLES)


@pytest.mark.parametrize("name", ["PARANG", "pa", "Angle", "rotation", "derot-angle"])
def test_angles_from_a_table_by_column_name(tmp_path, cube, name):
    table = Table({"MJD": np.arange(T) + 59000.0, name: ANGLES})
    table.write(tmp_path / "a.fits")
    np.testing.assert_array_equal(read_sequence(cube, tmp_path / "a.fits").angles, ANGLES)
    table.write(tmp_path / "a.csv")
    np.testing.assert_array_equal(read_sequence(cube, tmp_path / "a.csv").angles, ANGLES)


@pytest.mark.parametrize("name", ["a.fits", "a.csv"])
def test_ambiguous_columns_are_refused(tmp_path, cube, name):
    Table({"PARANG": ANGLES, "ANGLE": -ANGLES}).write(tmp_path / name)
    with pytest.raises(SequenceError, match=r"several candidate columns: PARANG, ANGLE"):
        read_sequence(cube, tmp_path / name)
    Table({"A": ANGLES, "B": -ANGLES}).write(tmp_path / f"b{name}")
    with pytest.raises(SequenceError, match="columns A, B"):
        read_sequence(cube, tmp_path / f"b{name}")


TEXTS = {
    "lines": "\n".join(map(str, ANGLES)),
    "comment": "# derotation\n\n" + "\n".join(map(str, ANGLES)) + "\n\n",
    "one line": " ".join(map(str, ANGLES)),
    "commas": ",".join(map(str, ANGLES)),
    "named": "frame;pa [deg]\n" + "\n".join(f"{i}; {a}" for i, a in enumerate(ANGLES)),
    "commented header": "# mjd PA\n" + "\n".join(f"{i} {a}" for i, a in enumerate(ANGLES)),
    "words": "file,parang\n" + "\n".join(f"f{i}.fits,{a}" for i, a in enumerate(ANGLES)),
    "byte order mark": "\ufeff" + "\r\n".join(map(str, ANGLES)),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_angles_from_text(tmp_path, cube, kind):
    path = tmp_path / "a.txt"
    path.write_text(TEXTS[kind], encoding="utf-8")
    np.testing.assert_array_equal(read_sequence(cube, path).angles.numpy(), ANGLES)


BAD_TEXTS = {
    "two unnamed columns": ("1 2\n3 4\n5 6\n7 8\n9 1\n", "2 columns without names"),
    "ragged": ("a,pa\n1,2\n3\n", "row 2"),
    "word": ("1\n2\nthree\n4\n5\n", "'three' in row 3"),
    "nothing": ("# only a comment\n", "no numbers"),
    "nan": ("1\n2\nnan\n4\n5\n", r"non-finite angles at \[2\]"),
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_bad_text_is_refused(tmp_path, cube, kind):
    text, reason = BAD_TEXTS[kind]
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(SequenceError, match=reason) as caught:
        read_sequence(cube, path)
    assert "a.txt" in str(caught.value)


def test_binary_text_is_refused(tmp_path, cube):
    path = tmp_path / "a.dat"
    path.write_bytes(b"\x00\xff\xfe\x80" * 9)
    with pytest.raises(SequenceError, match="binary"):
        read_sequence(cube, path)


def test_angles_in_the_file_of_the_cube(tmp_path):
    path = tmp_path / "both.fits"
    table = fits.BinTableHDU(Table({"PARANG": ANGLES, "AIRMASS": np.ones(T)}), name="LOG")
    fits.HDUList([fits.PrimaryHDU(frames()[0]), table]).writeto(path)
    np.testing.assert_array_equal(read_sequence(path).angles.numpy(), ANGLES)


def test_missing_angles_are_asked_for(cube):
    with pytest.raises(SequenceError, match="name the file with the angles"):
        read_sequence(cube)
    with pytest.raises(SequenceError, match="name the file with the angles"):
        read_sequence(frames()[0])


@pytest.mark.parametrize("number", [T - 1, T + 1, 1])
def test_wrong_number_of_angles(tmp_path, cube, number):
    path = save(tmp_path / "a.fits", np.linspace(0, 40, number))
    with pytest.raises(SequenceError, match=rf"{number} angles; expected {T}, one per frame"):
        read_sequence(cube, path)


def test_an_image_is_no_vector_of_angles(tmp_path, cube):
    path = save(tmp_path / "a.fits", np.ones((T, 2)))
    with pytest.raises(SequenceError, match=r"shape \(5, 2\); expected a vector"):
        read_sequence(cube, path)


def test_angles_that_look_like_radians(cube):
    radians = np.deg2rad(ANGLES)
    with pytest.raises(SequenceError, match=r"look like radians.*angles_unit='rad'"):
        read_sequence(cube, radians)
    seq = read_sequence(cube, radians, angles_unit="rad")
    np.testing.assert_allclose(seq.angles.numpy(), ANGLES, rtol=1e-14)
    assert any("radians to degrees" in n for n in seq.provenance)
    np.testing.assert_array_equal(read_sequence(cube, radians, angles_unit="deg").angles, radians)
    np.testing.assert_allclose(read_sequence(cube, radians * u.rad).angles.numpy(), ANGLES)
    with pytest.raises(SequenceError, match="angles_unit"):
        read_sequence(cube, ANGLES, angles_unit="gon")
    assert AnglesUnit("auto") is AnglesUnit.AUTO


def test_the_unit_in_the_file_is_believed(tmp_path, cube):
    radians = np.deg2rad(ANGLES)
    path = save(tmp_path / "r.fits", radians, BUNIT="rad")
    np.testing.assert_allclose(read_sequence(cube, path).angles.numpy(), ANGLES)
    Table({"PA": radians * u.rad}).write(tmp_path / "t.fits")
    np.testing.assert_allclose(read_sequence(cube, tmp_path / "t.fits").angles.numpy(), ANGLES)
    path = save(tmp_path / "d.fits", radians, BUNIT="deg")
    np.testing.assert_allclose(read_sequence(cube, path).angles.numpy(), radians)


@pytest.mark.parametrize("track", [np.linspace(170, 176, T), np.linspace(0, 7, T)])
def test_a_short_track_in_degrees_is_not_taken_for_radians(cube, track):
    np.testing.assert_array_equal(read_sequence(cube, track).angles.numpy(), track)


def test_angles_that_do_not_vary(cube):
    with pytest.raises(SequenceError, match="do not vary"):
        read_sequence(cube, np.full(T, 42.0))
    with pytest.raises(SequenceError, match="do not vary"):
        read_sequence(cube, np.full(T, 42.0) + 360 * np.arange(T))


def test_angles_are_unwrapped(cube):
    seq = read_sequence(cube, [170.0, 175.0, -179.0, -170.0, -160.0])
    np.testing.assert_allclose(seq.angles, [170, 175, 181, 190, 200])
    assert any("Unwrapped" in n for n in seq.provenance)


# ---------------------------------------------------------------- dialects


def test_dialects_and_true_north(cube):
    def read(**options):
        return read_sequence(cube, ANGLES, **options)

    np.testing.assert_array_equal(read(true_north=-104.39).angles, ANGLES - 104.39)
    sphere = read(dialect="sphere-dc", true_north=1.5)
    np.testing.assert_array_equal(sphere.angles, -ANGLES + 1.5)
    assert sphere.center == (H // 2, W // 2)
    assert sphere.true_north == 1.5
    assert read(dialect="pynpoint").center == ((H - 1) / 2, (W - 1) / 2)
    assert read(dialect="sphere-dc", center=(3, 4)).center == (3.0, 4.0)
    own = Dialect("mine", lambda a: as_stored(a) + 90, fft_center, "nm", "Mine.")
    seq = read(dialect=own, wavelengths=[1593.0])
    np.testing.assert_array_equal(seq.angles, ANGLES + 90)
    assert seq.provenance[0] == "Mine."
    np.testing.assert_allclose(seq.wavelengths.to_value(u.um), [1.593])
    with pytest.raises(SequenceError, match="one of generic, sphere-dc, pynpoint"):
        read(dialect="keck")
    with pytest.raises(SequenceError, match="true_north"):
        read(true_north=np.nan)


def test_folder_of_the_sphere_data_center(tmp_path):
    start = "ird_convert_recenter_dc5-IRD_SCIENCE_"
    save(tmp_path / f"{start}REDUCED_MASTER_CUBE-center_im.fits", frames(2))
    save(tmp_path / f"{start}PARA_ROTATION_CUBE-rotnth.fits", ANGLES)
    save(tmp_path / f"{start}LAMBDA_INFO-lam.fits", np.array([1.593, 1.667]))
    exposures = np.stack([[star(), 3 * star()], [star(), star()]])
    save(tmp_path / f"{start}PSF_MASTER_CUBE-median_unsat.fits", exposures)
    seq = read_sequence(tmp_path, dialect="sphere-dc")
    np.testing.assert_array_equal(seq.angles, -ANGLES)
    np.testing.assert_allclose(seq.wavelengths.to_value(u.um), [1.593, 1.667])
    np.testing.assert_allclose(seq.star_flux, [8000, 4000], rtol=1e-3)
    assert any("Averaged the 2 exposures" in n for n in seq.provenance)


def test_folders_that_do_not_tell(tmp_path):
    with pytest.raises(SequenceError, match="an empty folder"):
        read_sequence(tmp_path, ANGLES)
    with pytest.raises(SequenceError, match="an empty folder; expected one file like"):
        read_sequence(tmp_path, dialect="sphere-dc")
    (tmp_path / "notes.txt").write_text("1")
    with pytest.raises(SequenceError, match=r"a folder with notes\.txt"):
        read_sequence(tmp_path, ANGLES)
    with pytest.raises(SequenceError, match=r"a folder with notes\.txt; expected a file"):
        read_sequence(frames()[0], tmp_path)


# ---------------------------------------------------------------- VIP datasets


def vip_file(path, **fields):
    names = ["cube", "psf", "psfn", "angles", "fwhm", "wavelengths", "px_scale", "cuberef"]
    data = dict.fromkeys(names) | {"cube": frames()[0], "angles": ANGLES} | fields
    marks = {f"_item_{k}": True for k, v in data.items() if not isinstance(v, np.ndarray)}
    np.savez_compressed(path, _vip_version="2.1.1", _vip_object="HCIDataset", **data, **marks)
    return path


def test_vip_dataset(tmp_path):
    path = vip_file(tmp_path / "d.npz", psf=star(), px_scale=0.02719, fwhm=4.8)
    seq = read_sequence(path, true_north=2.0)
    assert np.array_equal(seq.y[0, 0].numpy(), frames()[0])
    np.testing.assert_array_equal(seq.angles, ANGLES + 2)
    np.testing.assert_allclose(seq.pixel_scale.to_value(u.mas), 27.19)
    np.testing.assert_allclose(seq.star_flux, [4000], rtol=1e-3)
    assert seq.wavelengths is None
    again = read_sequence(path, -ANGLES, pixel_scale="30 mas")
    np.testing.assert_array_equal(again.angles, -ANGLES)
    assert again.pixel_scale == 30 * u.mas


def test_vip_dataset_that_is_none(tmp_path):
    path = vip_file(tmp_path / "d.npz", angles=np.arange(3.0))
    with pytest.raises(SequenceError, match=r"d\.npz \(angles\): found 3 angles"):
        read_sequence(path)
    with pytest.raises(SequenceError, match=r"d2\.npz: found fields \['angles'\]"):
        read_sequence(vip_file(tmp_path / "d2.npz", cube=None))
    (tmp_path / "d3.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(SequenceError, match="cannot be read"):
        read_sequence(tmp_path / "d3.npz")
    scaling = vip_file(
        tmp_path / "d4.npz", cube=frames(C), wavelengths=np.array([1.3, 1.1, 1.0]), angles=ANGLES
    )
    with pytest.raises(SequenceError, match="scaling factors"):
        read_sequence(scaling)


# ---------------------------------------------------------------- PSF and star


@pytest.mark.parametrize(
    ("shape", "center", "side"),
    [((12, 13), (5.3, 6.2), 11), ((13, 13), (6, 6), 13), ((13, 12), (6.6, 5.6), 11)],
)
def test_psf_is_centred_normalised_and_odd(cube, angles, shape, center, side):
    seq = read_sequence(cube, angles, star(shape, center))
    assert seq.psf.shape == (1, side, side)
    assert seq.psf.sum().item() == pytest.approx(1, abs=1e-6)
    core = fit_core(seq.psf[0].numpy())
    np.testing.assert_allclose(core[:2], (side // 2, side // 2), atol=2e-3)
    np.testing.assert_allclose(core.fwhm, 1.2 * 2.3548, rtol=4e-3)
    np.testing.assert_allclose(seq.star_flux, [4000], rtol=1e-3)


def test_psf_of_each_channel(tmp_path, angles):
    moves = ((0.2, 3e3), (0.0, 4e3), (-0.4, 5e3))
    stamps = np.stack([star(center=(5 + d, 7 - d), flux=f) for d, f in moves])
    path = save(tmp_path / "psf.fits", stamps.astype(np.float32))
    seq = read_sequence(frames(C), angles, path)
    assert seq.psf.shape == (C, 11, 11)
    np.testing.assert_allclose(seq.star_flux, [3e3, 4e3, 5e3], rtol=1e-3)
    for stamp in seq.psf.numpy():
        np.testing.assert_allclose(fit_core(stamp)[:2], (5, 5), atol=2e-3)
    with pytest.raises(SequenceError, match=r"psf\.fits.*shape \(3, 12, 16\).*\(2, k, k\)"):
        read_sequence(frames(2), angles, path)


def test_psfs_before_and_after_are_averaged_and_recorded(tmp_path, cube, angles):
    paths = [
        save(tmp_path / "before.fits", star((13, 13), (6.2, 6.1), 3e3)),
        save(tmp_path / "after.fits", star((11, 12), (5.4, 5.1), 5e3)),
    ]
    seq = read_sequence(cube, angles, paths)
    assert seq.psf.shape == (1, 11, 11)
    np.testing.assert_allclose(seq.star_flux, [4e3], rtol=1e-3)
    (note,) = [n for n in seq.provenance if n.startswith("Averaged")]
    assert "before.fits" in note
    assert "after.fits" in note
    with pytest.raises(SequenceError, match="empty list"):
        read_sequence(cube, angles, [])


def test_large_psf_is_trimmed(angles):
    data = np.random.default_rng(0).normal(0, 1, (T, 110, 120))
    seq = read_sequence(data, angles, star((100, 103), (49.7, 50.2)))
    assert seq.psf.shape[-1] < 15
    (note,) = [n for n in seq.provenance if "Trimmed" in n]
    assert float(note.split("hold ")[1].split("%")[0]) >= 99.9
    np.testing.assert_allclose(seq.star_flux, [4000], rtol=1.1e-3)


def test_psf_larger_than_the_frames_is_cut_to_fit(cube, angles):
    seq = read_sequence(cube, angles, star((17, 17), (8, 8)))
    assert seq.psf.shape == (1, 13, 13)  # frames of 14 x 19
    assert any("Trimmed" in n and "from 17 to 13 pixels" in n for n in seq.provenance)
    np.testing.assert_allclose(fit_core(seq.psf[0].numpy())[:2], (6, 6), atol=2e-3)


def test_the_cube_is_no_psf(cube, angles):
    with pytest.raises(
        SequenceError, match=r"star off the coronagraph.*not the frames of the cube"
    ):
        read_sequence(cube, angles, cube)


@pytest.mark.parametrize(("level", "noted", "warned"), [(0.1, 0, 0), (1.5, 1, 0), (5.0, 1, 1)])
def test_background_of_the_psf_is_kept_and_reported(cube, angles, caplog, level, noted, warned):
    with caplog.at_level(logging.WARNING):
        seq = read_sequence(cube, angles, star((13, 13), (6, 6)) + level)
    np.testing.assert_allclose(seq.star_flux, [4000 + level * 169], rtol=1e-3)
    assert sum("nothing was subtracted" in n for n in seq.provenance) == noted
    assert caplog.text.count("nothing was subtracted") == warned


def with_nan():
    stamp = star()
    stamp[0, 0] = np.nan
    return stamp


BAD_PSFS = {
    "negative": (lambda: -star(), "a positive sum"),
    "zero": (lambda: np.zeros((9, 9)), "a positive sum"),
    "negative background": (lambda: star() - 100, "a positive sum"),
    "nan": (with_nan, "1 pixels that are NaN"),
    "star in the corner": (lambda: star(center=(1.0, 14.0)), "room on each side"),
    "flat": (lambda: np.ones((9, 9)), "image of one star"),
    "vector": (lambda: np.ones(9), "2 to 4 dimensions"),
}


@pytest.mark.parametrize("case", BAD_PSFS)
def test_bad_psf_is_refused_by_name(tmp_path, cube, angles, case):
    make, reason = BAD_PSFS[case]
    path = save(tmp_path / "star.fits", make())
    with pytest.raises(SequenceError, match=reason) as caught:
        read_sequence(cube, angles, path)
    assert "star.fits" in str(caught.value)


def test_star_flux_given(cube, angles):
    psf = star((13, 13), (6, 6))
    assert read_sequence(cube, angles, psf, star_flux=7.5).star_flux.tolist() == [7.5]
    assert read_sequence(cube, angles, star_flux=7.5).star_flux.tolist() == [7.5]
    many = read_sequence(frames(C), angles, star_flux=[1.0, 2.0, 3.0])
    assert many.star_flux.tolist() == [1, 2, 3]
    for bad in (0.0, -3.0, np.nan, [1.0, 2.0]):
        with pytest.raises(SequenceError, match="star_flux"):
            read_sequence(cube, angles, star_flux=bad)


def test_star_flux_in_an_aperture_is_converted_to_the_total(cube, angles):
    # A Gaussian holds half of its flux within a diameter of one FWHM.
    fwhm = 1.7 * 2.35482
    psf = star((13, 13), (6, 6), sigma=1.7)
    seq = read_sequence(cube, angles, psf, star_flux_aperture=(500.0, fwhm))
    np.testing.assert_allclose(seq.star_flux, [1000.0], rtol=0.03)
    assert any("to the total" in n for n in seq.provenance)
    with pytest.raises(SequenceError, match="no PSF"):
        read_sequence(cube, angles, star_flux_aperture=(500.0, fwhm))
    with pytest.raises(SequenceError, match="one of them"):
        read_sequence(cube, angles, psf, star_flux=3.0, star_flux_aperture=(500.0, fwhm))


def test_a_normalised_psf_tells_no_flux(cube, angles, caplog):
    seq = read_sequence(cube, angles, star((13, 13), (6, 6), flux=1.0))
    assert seq.star_flux is None
    assert any("rescaled" in n for n in seq.provenance)
    assert "star_flux_aperture" in caplog.text


def test_units(tmp_path, angles):
    cube = save(tmp_path / "c.fits", frames()[0], BUNIT="ADU/s", OBJECT="HR 4796 A")

    def read(unit, **options):
        psf = save(tmp_path / f"{len(list(tmp_path.iterdir()))}.fits", star(), BUNIT=unit)
        return read_sequence(cube, angles, psf, **options)

    seq = read("adu / s")
    assert seq.unit == u.adu / u.s
    assert seq.target == "HR 4796 A"
    np.testing.assert_allclose(seq.star_flux, [4000], rtol=1e-3)
    with pytest.raises(SequenceError, match=r"mixed units: PSF in 'adu', cube in 'adu / s'"):
        read("adu")
    assert read("adu", star_flux=90.0).star_flux.tolist() == [90]
    assert read("adu", star_flux=5400 * u.adu / u.min).star_flux.tolist() == [90]
    with pytest.raises(SequenceError, match="star_flux"):
        read("adu/s", star_flux=90.0 * u.Jy)


def test_convertible_units_are_converted(tmp_path, angles):
    cube = save(tmp_path / "c.fits", frames()[0], BUNIT="adu/min")
    psf = save(tmp_path / "p.fits", star(), BUNIT="adu/s")
    seq = read_sequence(cube, angles, psf)
    np.testing.assert_allclose(seq.star_flux, [4000 * 60], rtol=1e-3)
    assert any("times 60" in n for n in seq.provenance)


def test_psfs_in_two_units_are_refused(tmp_path, cube, angles):
    paths = [save(tmp_path / f"{i}.fits", star(), BUNIT=i) for i in ("adu", "electron")]
    with pytest.raises(SequenceError, match=r"mixed units: 'adu' in .*adu\.fits"):
        read_sequence(cube, angles, paths)


def test_an_unknown_unit_is_kept_by_name(tmp_path, angles):
    cube = save(tmp_path / "c.fits", frames()[0], BUNIT="ADU per coadd")
    assert str(read_sequence(cube, angles).unit) == "ADU per coadd"
    assert read_sequence(frames()[0], angles).unit == u.dimensionless_unscaled
