"""Write images North-up as FITS, with coordinates, units, history and the exact parameters."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import torch
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from deepinv_astro.io.arrays import open_fits
from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.io.files import existing_file
from deepinv_astro.io.strict_json import to_json


def offset_wcs(
    center: tuple[float, float],
    pixel_scale: u.Quantity | None,
    star: SkyCoord | None = None,
    naxis: int = 2,
) -> WCS:
    r"""
    Coordinates of a North-up image: offsets from the star, East towards decreasing column.

    .. math::
        \Delta_\text{East} = -s \, (c - c_0), \qquad \Delta_\text{North} = s \, (r - r_0)

    With the star's coordinates these are a tangent projection about it; without, two linear
    axes in arcseconds, or in pixels where the scale is unknown.

    :param tuple center: (row, column) of the star in float pixels, counted from 0.
    :param pixel_scale: angle per pixel :math:`s`, or None.
    :param astropy.coordinates.SkyCoord star: coordinates of the star, if known.
    :param int naxis: 2, or 3 for an image per channel.
    :return: the coordinate system.

    >>> wcs = offset_wcs((4.0, 6.5), 20 * u.mas)
    >>> east, north = wcs.pixel_to_world_values(1.5, 9.0)
    >>> print(f"{east:.3f} {north:.3f}")
    0.100 0.100
    """
    row, column = center
    wcs = WCS(naxis=naxis)
    if pixel_scale is not None and star is not None:
        step, unit = pixel_scale.to_value(u.deg), "deg"
        kinds = ["RA---TAN", "DEC--TAN"]
        position = star.icrs
        values = [float(position.ra.deg), float(position.dec.deg)]
        wcs.wcs.radesys = "ICRS"
    else:
        step, unit = (
            (1.0, "pixel") if pixel_scale is None else (pixel_scale.to_value(u.arcsec), "arcsec")
        )
        kinds, values = ["XOFFSET", "YOFFSET"], [0.0, 0.0]
        wcs.wcs.cname = ["East offset", "North offset"] + [""] * (naxis - 2)
    channel = [1.0] * (naxis - 2)
    wcs.wcs.ctype = kinds + ["CHANNEL"] * (naxis - 2)
    wcs.wcs.cunit = [unit, unit] + [""] * (naxis - 2)
    wcs.wcs.cdelt = [-step, step, *channel]
    wcs.wcs.crpix = [column + 1.0, row + 1.0, *channel]
    wcs.wcs.crval = [*values, *channel]
    return wcs


def write_result(
    path: str | os.PathLike[str],
    image: ArrayLike | torch.Tensor,
    *,
    uncertainty: ArrayLike | torch.Tensor | None = None,
    snr: ArrayLike | torch.Tensor | None = None,
    visibility: ArrayLike | torch.Tensor | None = None,
    unit: u.UnitBase = u.dimensionless_unscaled,
    center: tuple[float, float] | None = None,
    pixel_scale: u.Quantity | None = None,
    star: SkyCoord | None = None,
    wavelengths: u.Quantity | None = None,
    target: str = "",
    parameters: Mapping[str, Any] | None = None,
    history: Iterable[str] = (),
    header: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Write a North-up image with its maps in one FITS file, whole or not at all.

    The image is in the primary HDU; UNCERTAINTY, SNR and VISIBILITY are image extensions with the
    same coordinates; PARAMETERS is a table of names and JSON values, see :func:`read_parameters`;
    WAVELENGTHS is a table if they are given.

    :param path: the file.
    :param image: (H, W), (C, H, W) or (1, C, H, W), North towards increasing row, East towards
        decreasing column, in ``unit`` per pixel.
    :param uncertainty: its standard deviation, same shape and unit.
    :param snr: signal-to-noise ratio, same shape.
    :param visibility: fraction of the signal that the data constrain, same shape, 0 to 1.
    :param unit: unit of the image.
    :param tuple center: (row, column) of the star in the image; default (H//2, W//2).
    :param pixel_scale: angle per pixel.
    :param astropy.coordinates.SkyCoord star: coordinates of the star, if known.
    :param wavelengths: (C,).
    :param str target: name of the star.
    :param parameters: the exact parameters of the method.
    :param history: sentences, such as :attr:`~deepinv_astro.io.sequence.Sequence.provenance`.
    :param header: further cards of the primary header, value or (value, comment).
    :param bool overwrite: whether an existing file may be replaced.
    :return: the path.
    :raises FileExistsError: if the file exists and ``overwrite`` is False.
    :raises ValueError: if the shapes differ.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_result(Path(folder) / "image.fits", torch.ones(5, 8), snr=np.zeros((5, 8)))
    ...     with fits.open(path) as hdus:
    ...         print([hdu.name for hdu in hdus])
    ['PRIMARY', 'SNR']
    """
    pixels = _plane(image, "image")
    if center is None:
        center = (float(pixels.shape[-2] // 2), float(pixels.shape[-1] // 2))
    wcs = offset_wcs(center, pixel_scale, star, pixels.ndim)
    cards = _base_header(wcs, target, center, pixel_scale)
    primary = fits.PrimaryHDU(pixels, header=cards)
    _set_unit(primary.header, unit)
    for key, value in (header or {}).items():
        primary.header[key] = _safe_card(value)
    for line in history:
        primary.header["HISTORY"] = ascii_text(line)
    maps = {"UNCERTAINTY": uncertainty, "SNR": snr, "VISIBILITY": visibility}
    hdus: list[Any] = [primary]
    for name, values in maps.items():
        if values is not None:
            hdus.append(_extension(name, _plane(values, name), pixels.shape, cards))
    for hdu in hdus[1:]:
        _set_unit(hdu.header, unit if hdu.name == "UNCERTAINTY" else u.dimensionless_unscaled)
    if wavelengths is not None:
        column = fits.Column("WAVELENGTH", "D", unit="um", array=wavelengths.to_value(u.um).ravel())
        hdus.append(fits.BinTableHDU.from_columns([column], name="WAVELENGTHS"))
    if parameters:
        hdus.append(_parameter_table(parameters))
    with atomic_path(path, overwrite) as temporary:
        fits.HDUList(hdus).writeto(temporary, overwrite=True, checksum=True)
    return Path(path).expanduser()


def _plane(values: ArrayLike | torch.Tensor, name: str) -> NDArray[Any]:
    """A map as (H, W), or (C, H, W) for several channels, in a type that FITS knows."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    array = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{name} must be (H, W), (C, H, W) or (1, C, H, W), got {np.shape(values)}"
        )
    return array


def _base_header(
    wcs: WCS, target: str, center: tuple[float, float], pixel_scale: u.Quantity | None
) -> fits.Header:
    header = wcs.to_header()
    header["STARROW"] = (float(center[0]), "[pixel] row of the star, 0-based")
    header["STARCOL"] = (float(center[1]), "[pixel] column of the star, 0-based")
    if pixel_scale is not None:
        header["PIXSCALE"] = (float(pixel_scale.to_value(u.arcsec)), "[arcsec] per pixel")
    if target:
        header["OBJECT"] = (ascii_text(target), "name of the star")
    return header


def _extension(
    name: str, values: NDArray[Any], shape: tuple[int, ...], cards: fits.Header
) -> fits.ImageHDU:
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape {shape} of the image, got {values.shape}")
    return fits.ImageHDU(values, header=cards, name=name)


def _set_unit(header: fits.Header, unit: u.UnitBase) -> None:
    if unit == u.dimensionless_unscaled:
        return
    try:
        header["BUNIT"] = unit.to_string("fits")
    except ValueError:
        # Units that FITS does not know keep their name.
        header["BUNIT"] = ascii_text(str(unit))


def _safe_card(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_safe_card(v) for v in value)
    return ascii_text(value) if isinstance(value, str) else value


def ascii_text(text: str) -> str:
    """
    Text as a FITS header may hold it: printable ASCII in one line.

    >>> ascii_text("β Pic, 3.8 µm, 1°")
    'beta Pic, 3.8 um, 1 deg'
    """
    words = []
    for character in " ".join(text.split()):
        if character.isascii() and character.isprintable():
            words.append(character)
        elif character in _SPELLED:
            words.append(_SPELLED[character])
        else:
            name = unicodedata.name(character, "")
            plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
            greek = name.startswith("GREEK ") and " LETTER " in name
            words.append(_greek(name) if greek else plain or "?")
    return "".join(words)


_SPELLED = {"°": " deg", "µ": "u", "μ": "u", "×": "x", "–": "-", "—": "-", "±": "+-", "σ": "sigma"}


def _greek(name: str) -> str:
    word = name.split(" LETTER ")[1].split(" ")[0].lower()
    return word.capitalize() if " CAPITAL " in name else word


def _parameter_table(parameters: Mapping[str, Any]) -> fits.BinTableHDU:
    names = [ascii_text(str(k)) for k in parameters]
    # Escaped to ASCII by JSON itself, so that nothing is lost.
    values = [json.dumps(json.loads(to_json(v)), ensure_ascii=True) for v in parameters.values()]
    columns = [
        fits.Column(key, f"{max(map(len, cells))}A", array=np.array(cells))
        for key, cells in (("NAME", names), ("VALUE", values))
    ]
    table = fits.BinTableHDU.from_columns(columns, name="PARAMETERS")
    table.header["COMMENT"] = "VALUE is JSON text."
    return table


def read_parameters(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    The parameters that :func:`write_result` wrote.

    :param path: the file.
    :return: names and values.
    :raises SequenceError: if the file is not FITS.
    :raises ValueError: if it has no parameters.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "image.fits"
    ...     _ = write_result(path, torch.ones(5, 8), parameters={"strength": 0.1, "method": "pca"})
    ...     print(read_parameters(path))
    {'strength': 0.1, 'method': 'pca'}
    """
    file = existing_file(path, "result")
    with open_fits(file) as hdus:
        table = hdus["PARAMETERS"].data if "PARAMETERS" in hdus else None
    if table is None:
        raise ValueError(f"{file} has no extension PARAMETERS; it was not written by write_result")
    return {str(n): json.loads(str(v)) for n, v in zip(table["NAME"], table["VALUE"], strict=True)}
