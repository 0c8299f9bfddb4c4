"""Results written: coordinates, units, parameters, and nothing half or lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from deepinv_astro.io import (
    atomic_path,
    check_writable,
    offset_wcs,
    read_parameters,
    read_sequence,
    write_json,
    write_result,
)
from deepinv_astro.io.strict_json import to_json
from deepinv_astro.io.writer import ascii_text

H, W = 9, 14


@pytest.fixture
def image():
    return np.random.default_rng(3).normal(size=(H, W))


def left_overs(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_maps_units_and_checksums(tmp_path, image):
    path = write_result(
        tmp_path / "new" / "image.fits",
        torch.from_numpy(image)[None, None],
        uncertainty=np.abs(image),
        snr=image * 2,
        visibility=np.full((1, H, W), 0.5),
        unit=u.adu / u.s,
        wavelengths=[3.8] * u.um,
        target="β Pictoris",
        history=["Turned by 3°.", "x" * 200],
        header={"METHOD": ("marginal", "how"), "SEED": 7},
    )
    with fits.open(path, checksum=True) as hdus:
        names = [h.name for h in hdus]
        assert names == ["PRIMARY", "UNCERTAINTY", "SNR", "VISIBILITY", "WAVELENGTHS"]
        np.testing.assert_array_equal(hdus[0].data, image)
        np.testing.assert_array_equal(hdus["UNCERTAINTY"].data, np.abs(image))
        np.testing.assert_array_equal(hdus["SNR"].data, image * 2)
        assert hdus["VISIBILITY"].data.dtype.itemsize == 8
        assert [h.header.get("BUNIT") for h in hdus[:4]] == ["adu s-1", "adu s-1", None, None]
        header = hdus[0].header
        assert (header["METHOD"], header["SEED"], header["OBJECT"]) == (
            "marginal",
            7,
            "beta Pictoris",
        )
        assert "".join(header["HISTORY"]) == "Turned by 3 deg." + "x" * 200
        assert hdus["WAVELENGTHS"].data["WAVELENGTH"].tolist() == [3.8]
        assert hdus["WAVELENGTHS"].columns["WAVELENGTH"].unit == "um"
    assert left_overs(path.parent) == ["image.fits"]


def test_offsets_east_is_left_and_north_is_up(tmp_path, image):
    path = write_result(tmp_path / "i.fits", image, center=(3.5, 6.25), pixel_scale=20 * u.mas)
    for hdu in (0,):
        header = fits.getheader(path, hdu)
        wcs = WCS(header)
        # A source 10 columns left of the star and 2 rows above it.
        east, north = wcs.pixel_to_world_values(6.25 - 10, 3.5 + 2)
        np.testing.assert_allclose([east, north], [0.200, 0.040], atol=1e-12)
        assert (header["CRPIX1"], header["CRPIX2"]) == (7.25, 4.5)
        assert (header["STARROW"], header["STARCOL"], header["PIXSCALE"]) == (3.5, 6.25, 0.02)
        assert header["CDELT1"] < 0 < header["CDELT2"]


def test_default_center_and_no_scale(tmp_path, image):
    header = fits.getheader(write_result(tmp_path / "i.fits", image))
    assert (header["CRPIX1"], header["CRPIX2"]) == (W // 2 + 1, H // 2 + 1)
    assert header["CUNIT1"].strip() in ("pix", "pixel")
    np.testing.assert_allclose(WCS(header).pixel_to_world_values(0, 0), (W // 2, -(H // 2)))


def test_celestial_coordinates_against_astropy_offsets(tmp_path, image):
    star = SkyCoord(86.82119 * u.deg, -51.06651 * u.deg)
    path = write_result(
        tmp_path / "i.fits", image, center=(4.0, 6.0), pixel_scale=27.19 * u.mas, star=star
    )
    wcs = WCS(fits.getheader(path))
    assert wcs.has_celestial
    separation, angle = 5 * 27.19 * u.mas, 210.6 * u.deg
    expected = star.directional_offset_by(angle, separation)
    row, column = 4.0 + 5 * np.cos(angle), 6.0 - 5 * np.sin(angle)
    found = wcs.pixel_to_world(column, row)
    assert found.separation(expected).to_value(u.mas) < 1e-3


def test_cube_of_channels(tmp_path):
    data = np.arange(3.0 * H * W).reshape(3, H, W)
    path = write_result(tmp_path / "i.fits", data, snr=data, pixel_scale=20 * u.mas, center=(2, 3))
    with fits.open(path) as hdus:
        np.testing.assert_array_equal(hdus["SNR"].data, data)
        wcs = WCS(hdus["SNR"].header)
    np.testing.assert_allclose(wcs.pixel_to_world_values(4, 5, 2), (-0.02, 0.06, 3))
    assert offset_wcs((1, 2), None, naxis=3).naxis == 3


def test_the_scale_that_was_written_is_read_again(tmp_path):
    data = np.random.default_rng(0).normal(size=(4, H, W))
    path = write_result(tmp_path / "i.fits", data, pixel_scale=27.19 * u.mas)
    seq = read_sequence(path, [0.0, 10.0, 20.0, 30.0])
    np.testing.assert_allclose(seq.pixel_scale.to_value(u.mas), 27.19)


def test_parameters_survive_exactly(tmp_path, image):
    parameters = {
        "kappa": 0.1,
        "third": 1 / 3,
        "center": (51.0, 51.0),
        "method": "marginal",
        "note": "β, 'quotes' and \"more\"",
        "folds": None,
        "nested": {"a": [1, 2.5, True], "long": list(range(200))},
    }
    path = write_result(tmp_path / "i.fits", image, parameters=parameters)
    assert read_parameters(path) == parameters | {"center": [51.0, 51.0]}
    with pytest.raises(ValueError, match="no extension PARAMETERS"):
        read_parameters(write_result(tmp_path / "j.fits", image))


def test_units_that_fits_does_not_know(tmp_path, image):
    unit = u.def_unit("widget")
    path = write_result(tmp_path / "i.fits", image, unit=unit)
    assert fits.getheader(path)["BUNIT"] == "widget"


@pytest.mark.parametrize(("shape", "name"), [((H, W + 1), "snr"), ((H,), "image")])
def test_wrong_shapes_are_refused_before_anything_is_written(tmp_path, image, shape, name):
    with pytest.raises(ValueError, match="must"):
        write_result(tmp_path / "i.fits", **({"image": image} | {name: np.ones(shape)}))
    assert left_overs(tmp_path) == []


def test_nothing_is_overwritten_unasked(tmp_path, image):
    path = write_result(tmp_path / "i.fits", image)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"i\.fits exists.*`overwrite=True`"):
        write_result(path, image + 1)
    assert path.read_bytes() == before
    write_result(path, image + 1, overwrite=True)
    np.testing.assert_array_equal(fits.getdata(path), image + 1)
    assert left_overs(tmp_path) == ["i.fits"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_no_file(tmp_path, error):
    def interrupted(path, overwrite):
        with atomic_path(path, overwrite) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".png"
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupted(tmp_path / "a.png", False)
    assert left_overs(tmp_path) == []
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(error):
        interrupted(tmp_path / "a.png", True)
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert left_overs(tmp_path) == ["a.png"]


def test_a_failing_fits_write_leaves_no_file(tmp_path, image, monkeypatch):
    def fail(self, name, **options):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(fits.HDUList, "writeto", fail)
    with pytest.raises(OSError, match="disk full"):
        write_result(tmp_path / "i.fits", image)
    assert left_overs(tmp_path) == []


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.txt"

    def race():
        with atomic_path(path) as temporary:
            temporary.write_text("mine")
            path.write_text("theirs")

    with pytest.raises(FileExistsError):
        race()
    assert path.read_text() == "theirs"
    assert left_overs(tmp_path) == ["a.txt"]


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot make the folder"):
        check_writable(tmp_path / "file" / "a.txt", False)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_writable(tmp_path, True)

    def denied(self, mode="r", *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PermissionError, match=r"cannot write in the folder .*change its mode"):
        write_json(tmp_path / "a.json", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write in the folder"):
        write_json(tmp_path / "a.json", {})


def test_json_is_strict(tmp_path):
    content = {
        "snr": float("nan"),
        "map": np.array([[1.0, np.inf], [2.0, 3.0]]),
        "flux": torch.tensor(2.5),
        "scale": 27.19 * u.mas,
        "unit": u.adu,
        "path": Path("a") / "b",
        "n": np.int32(3),
        "ok": np.bool_(True),
        "name": "β Pic",
        1: range(2),
    }
    path = write_json(tmp_path / "r.json", content)

    def no_constants(name):
        raise AssertionError(name)

    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constants) == {
        "snr": None,
        "map": [[1.0, None], [2.0, 3.0]],
        "flux": 2.5,
        "scale": {"value": 27.19, "unit": "mas"},
        "unit": "adu",
        "path": "a/b",
        "n": 3,
        "ok": True,
        "name": "β Pic",
        "1": [0, 1],
    }
    with pytest.raises(FileExistsError):
        write_json(path, content)
    with pytest.raises(TypeError, match="object"):
        to_json(object())


@pytest.mark.parametrize(
    ("text", "plain"),
    [("é°\n x", "e deg x"), ("σ Ori ± 2", "sigma Ori +- 2"), ("日", "?"), ("α\tΩ", "alpha Omega")],
)
def test_header_text_is_ascii(text, plain):
    assert ascii_text(text) == plain
