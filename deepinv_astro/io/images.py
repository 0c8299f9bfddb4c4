"""Single images: FITS and PNG in and out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from deepinv_astro.io.arrays import open_fits, read_image, to_float
from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.files import existing_file, is_fits

__all__ = ["ImageFile", "image_files", "read_gray_image", "write_gray_image"]

#: Weights of red, green and blue in the brightness (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


class ImageFile(NamedTuple):
    """
    An image and where it comes from.

    :param numpy.ndarray values: ``(H, W)`` in the file's units; PNG from 0 to 1.
    :param astropy.io.fits.Header header: of the FITS file; None for PNG.
    :param pathlib.Path path: the file.
    """

    values: NDArray[Any]
    header: fits.Header | None
    path: Path


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """
    FITS and PNG files of a folder, by name; hidden files are left out.

    :param folder: the folder.
    :return: paths.
    :raises SequenceError: if it is no folder, or holds no image.
    """
    folder = Path(folder).expanduser()
    expected, remedy = "a folder of FITS or PNG images", "give it with `images`"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise SequenceError(str(folder), found, expected, remedy)
    paths = sorted(p for p in folder.iterdir() if _is_image(p) and not p.name.startswith("."))
    if not paths:
        raise SequenceError(str(folder), "no FITS and no PNG file", expected, remedy)
    return paths


def read_gray_image(path: str | os.PathLike[str]) -> ImageFile:
    """
    One image without colours: the first two-dimensional HDU of a FITS file, or a PNG.

    Colours of a PNG become brightness, its values go from 0 to 1, and transparency is ignored.

    :param path: the file.
    :return: values, header and path.
    :raises SequenceError: if the file holds no such image, or values that are not finite.
    """
    path = existing_file(path, "image")
    if is_fits(path):
        values = read_image(path, "image", lambda n: n == 2, "an image of 2 dimensions").values
        with open_fits(path) as hdus:
            header = next(h.header for h in hdus if h.is_image and len(h.shape) == 2).copy()
    else:
        values, header = _read_png(path), None
    bad = int(np.size(values) - np.isfinite(values).sum())
    if bad:
        remedy = "interpolate over these pixels first"
        raise SequenceError(str(path), f"{bad} pixels that are not finite", "numbers", remedy)
    return ImageFile(values, header, path)


def write_gray_image(
    path: str | os.PathLike[str],
    values: NDArray[Any],
    header: fits.Header | None = None,
    factor: int = 1,
    overwrite: bool = False,
) -> None:
    """
    Write an image as FITS, or as PNG (8 bits, values from 0 to 1) where the name says so.

    :param path: the file; it appears whole or not at all.
    :param numpy.ndarray values: ``(H, W)``.
    :param astropy.io.fits.Header header: of the image that it was made from.
    :param int factor: pixels of the new image per pixel of that one, for its coordinates.
    :param bool overwrite: whether an existing file may be replaced.
    :raises OSError: if the file exists, or cannot be written.
    """
    path = Path(path)
    with atomic_path(path, overwrite) as temporary:
        if path.suffix.lower() == ".png":
            from PIL import Image

            levels = np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)
            Image.fromarray(levels).save(temporary, format="PNG")
        else:
            kept = fits.Header() if header is None else finer_coordinates(header, factor)
            fits.PrimaryHDU(np.asarray(values, np.float32), kept).writeto(temporary, overwrite=True)


def finer_coordinates(header: fits.Header, factor: int) -> fits.Header:
    r"""
    Header of an image whose pixels are split into ``factor`` x ``factor``.

    .. math::
        p' = r\,(p - \tfrac12) + \tfrac12

    of the reference pixel :math:`p` (FITS counts from 1), and :math:`1/r` of the angles per pixel.

    :param astropy.io.fits.Header header: of the image.
    :param int factor: :math:`r`.
    :return: a copy, without cards about the stored numbers.

    >>> header = fits.Header({"CRPIX1": 1.0, "CDELT1": 0.5, "BZERO": 32768})
    >>> dict(finer_coordinates(header, 2))
    {'CRPIX1': 1.5, 'CDELT1': 0.25}
    """
    new = header.copy()
    for name in ("BSCALE", "BZERO", "BLANK", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM"):
        new.remove(name, ignore_missing=True)
    for axis in (1, 2):
        if f"CRPIX{axis}" in new:
            new[f"CRPIX{axis}"] = factor * (new[f"CRPIX{axis}"] - 0.5) + 0.5
        for name in (f"CDELT{axis}", f"CD1_{axis}", f"CD2_{axis}"):
            if name in new:
                new[name] = new[name] / factor
    return new


def _is_image(path: Path) -> bool:
    return path.is_file() and (is_fits(path) or path.suffix.lower() == ".png")


def _read_png(path: Path) -> NDArray[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = file.convert("RGB") if file.mode in ("P", "RGBA", "LA", "1", "CMYK") else file
            pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        remedy = "check its origin and copy it again"
        raise SequenceError(str(path), "data that cannot be read", "a PNG", remedy) from error
    values = to_float(pixels) / (255 if pixels.dtype == np.uint8 else 65535)
    gray = values @ np.asarray(_LUMA, values.dtype) if values.ndim == 3 else values
    return gray.astype(np.float32)
