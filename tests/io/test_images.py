"""Single images: what is read, what is refused, and where a finer grid lies on the sky."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.images import (
    finer_coordinates,
    image_files,
    read_gray_image,
    write_gray_image,
)

RAMP = np.arange(12.0).reshape(3, 4)


def test_fits_of_any_type_and_extension(tmp_path: Path) -> None:
    hdus = fits.HDUList([
        fits.PrimaryHDU(header=fits.Header({"OBJECT": "M 1"})),
        fits.ImageHDU(np.zeros((2, 3, 4))),
        fits.ImageHDU(RAMP.astype(">i2"), name="SCI"),
    ])  # fmt: skip
    hdus.writeto(tmp_path / "a.fits")
    read = read_gray_image(tmp_path / "a.fits")
    assert np.array_equal(read.values, RAMP)
    assert read.header is not None
    assert read.header["EXTNAME"] == "SCI"


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 255], [51, 102]], np.uint8), [[0.0, 1.0], [0.2, 0.4]]),
        (np.array([[0, 65535], [13107, 26214]], np.uint16), [[0.0, 1.0], [0.2, 0.4]]),
        (np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), [[0.299, 0.114]]),
        (np.array([[[0, 255, 0, 9], [255, 255, 255, 0]]], np.uint8), [[0.587, 1.0]]),
    ],
)
def test_png_becomes_brightness(tmp_path: Path, pixels: np.ndarray, expected: list) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_gray_image(tmp_path / "a.png")
    assert np.allclose(read.values, expected, atol=1e-6)
    assert read.header is None


def test_a_folder_gives_its_images_by_name(tmp_path: Path) -> None:
    write_gray_image(tmp_path / "b.png", RAMP / 11)
    write_gray_image(tmp_path / "a.fits", RAMP)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.fits").write_text("no image")
    assert [path.name for path in image_files(tmp_path)] == ["a.fits", "b.png"]
    assert np.allclose(read_gray_image(tmp_path / "b.png").values, RAMP / 11, atol=0.5 / 255 + 1e-6)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match=r"no such folder.*`images`"):
        image_files(tmp_path / "none")
    with pytest.raises(SequenceError, match="no FITS and no PNG"):
        image_files(tmp_path)
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(SequenceError, match=r"a\.png.*a PNG"):
        read_gray_image(tmp_path / "a.png")
    write_gray_image(tmp_path / "b.fits", np.array([[1.0, np.nan], [np.inf, 2.0]]))
    with pytest.raises(SequenceError, match="2 pixels that are not finite"):
        read_gray_image(tmp_path / "b.fits")
    with pytest.raises(FileExistsError):
        write_gray_image(tmp_path / "b.fits", RAMP)


@pytest.mark.parametrize("matrix", ["CDELT", "CD"])
def test_a_finer_grid_keeps_its_place_on_the_sky(matrix: str) -> None:
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 3.0, "CRPIX2": 5.5})
    header.update({"CRVAL1": 40.0, "CRVAL2": 20.0})
    if matrix == "CD":
        header.update({"CD1_1": -2e-5, "CD1_2": 1e-5, "CD2_1": 1e-5, "CD2_2": 2e-5})
    else:
        header.update({"CDELT1": -2e-5, "CDELT2": 2e-5})
    coarse, fine = WCS(header), WCS(finer_coordinates(header, 2))
    # pixel 4 is covered by the fine pixels 8 and 9: their middle is its own
    for pixel, same in (([4, 7], [8.5, 14.5]), ([0, 1], [0.5, 2.5])):
        places = coarse.wcs_pix2world([pixel], 0), fine.wcs_pix2world([same], 0)
        assert np.allclose(*places, rtol=0.0, atol=1e-9)
    assert header["CRPIX1"] == 3.0
