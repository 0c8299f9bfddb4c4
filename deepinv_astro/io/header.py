"""What headers tell without doubt: pixel scale, star centre, unit and name."""

from __future__ import annotations

import math
from typing import Any

import astropy.units as u
from astropy.io import fits

from deepinv_astro.io.errors import SequenceError

SCALE_KEYS = ("PIXSCALE", "PIXSCAL", "PLATESCL", "PLTSCALE", "ESO INS PIXSCALE")
TARGET_KEYS = ("ESO OBS TARG NAME", "TARGET", "TARGNAME", "OBJECT")
WCS_KEYS = ("CTYPE1", "CUNIT1", "CDELT1", "CDELT2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
KEYS = ("BUNIT", "STARCENX", "STARCENY", *SCALE_KEYS, *TARGET_KEYS, *WCS_KEYS)


def relevant(*headers: fits.Header) -> fits.Header:
    """
    The cards that this package reads; those of later headers win.

    Nothing else is kept, so that a damaged card elsewhere in a long header does no harm.

    :param headers: such as that of the primary HDU and that of an extension.
    :return: a new header.

    >>> relevant(fits.Header({"BUNIT": "adu", "GAIN": 2.0}))
    BUNIT   = 'adu     '
    """
    kept = fits.Header()
    for header in headers:
        for key in KEYS:
            try:
                if key in header:
                    name = f"HIERARCH {key}" if " " in key else key
                    kept[name] = (header[key], header.comments[key])
            except fits.VerifyError:
                continue
    return kept


def as_pixel_scale(value: Any) -> u.Quantity:
    """
    A pixel scale given by the user, in milliarcseconds.

    :param value: Quantity or text such as ``'27.19 mas'``, ``'0.012 arcsec'``, ``'3.4e-6 deg'``;
        "per pixel" may be written.
    :return: angle per pixel.
    :raises SequenceError: if it has no unit of angle.

    >>> as_pixel_scale("0.02719 arcsec / pix")
    <Quantity 27.19 mas>
    """
    expected = "an angle with its unit"
    remedy = "write for example `pixel_scale='27.19 mas'`"
    try:
        quantity = u.Quantity(value)
        if quantity.unit.is_equivalent(u.rad / u.pix):
            quantity = quantity * u.pix
        quantity = quantity.to(u.mas)
    except (TypeError, ValueError, u.UnitsError) as error:
        raise SequenceError("`pixel_scale`", repr(value), expected, remedy) from error
    if u.Quantity(value).unit == u.dimensionless_unscaled:
        raise SequenceError("`pixel_scale`", repr(value), expected, remedy)
    return quantity


def pixel_scale_from_header(header: fits.Header, notes: list[str]) -> u.Quantity | None:
    """
    The pixel scale that a header states, where all its statements agree.

    A CD matrix or CDELT counts if its axes are celestial or its unit is an angle.

    :param astropy.io.fits.Header header: header of the cube.
    :param list notes: gets one sentence.
    :return: milliarcseconds per pixel, or None.

    >>> notes = []
    >>> pixel_scale_from_header(fits.Header({"PIXSCALE": 0.01225}), notes)
    <Quantity 12.25 mas>
    """
    found = {key: _scale_of_key(header, key) for key in SCALE_KEYS}
    found["the coordinate system"] = _scale_of_wcs(header)
    known = {key: scale for key, scale in found.items() if scale is not None}
    if not known:
        return None
    values = [s.to_value(u.mas) for s in known.values()]
    listed = ", ".join(f"{v:.5g} mas from {k}" for k, v in zip(known, values, strict=True))
    if max(values) > 1.02 * min(values):
        notes.append(f"Ignored the pixel scales of the header, which disagree: {listed}.")
        return None
    notes.append(f"Took the pixel scale from the header: {listed}.")
    return next(iter(known.values())).to(u.mas)


def _scale_of_key(header: fits.Header, key: str) -> u.Quantity | None:
    value = header.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        return None
    comment = str(header.comments[key]).lower()
    if "mas" in comment or "milliarcsec" in comment:
        return float(value) * u.mas
    if "arcsec" in comment or '"' in comment:
        return float(value) * u.arcsec
    if "deg" in comment:
        return float(value) * u.deg
    # No camera for this work has pixels of more than half an arcsecond, or less than 0.5 mas.
    if 5e-4 <= value < 0.5:
        return float(value) * u.arcsec
    return float(value) * u.mas if 2 <= value < 500 else None


def _scale_of_wcs(header: fits.Header) -> u.Quantity | None:
    kind = str(header.get("CTYPE1", ""))
    unit = str(header.get("CUNIT1", "")).strip().lower()
    celestial = kind.startswith(("RA--", "DEC-"))
    known = {"deg": u.deg, "arcsec": u.arcsec, "mas": u.mas, "": u.deg if celestial else None}
    step = known.get(unit)
    if step is None:
        return None
    if "CD1_1" in header and "CD2_2" in header:
        cd = [float(header.get(k, 0.0)) for k in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")]
        sides = math.hypot(cd[0], cd[2]), math.hypot(cd[1], cd[3])
    else:
        sides = abs(float(header.get("CDELT1", 0.0))), abs(float(header.get("CDELT2", 0.0)))
    if min(sides) == 0 or max(sides) > 1.01 * min(sides) or sides == (1.0, 1.0):
        return None
    return math.sqrt(sides[0] * sides[1]) * step


def center_from_header(header: fits.Header, notes: list[str]) -> tuple[float, float] | None:
    """
    The star's (row, column) where a header states it together with the index of the first pixel.

    STARCENX and STARCENY are written with both origins in use, so they count only if their
    comment says '0-based' or '1-based'. CRPIX is the reference of the coordinates, which need not
    be the star, and is never used.

    :param astropy.io.fits.Header header: header of the cube.
    :param list notes: gets one sentence.
    :return: (row, column) counted from 0, or None.

    >>> header = fits.Header([("STARCENX", 52.0, "1-based"), ("STARCENY", 50.5, "1-based")])
    >>> center_from_header(header, [])
    (49.5, 51.0)
    """
    values = header.get("STARCENY"), header.get("STARCENX")
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return None
    comments = f"{header.comments['STARCENX']} {header.comments['STARCENY']}".lower()
    zero, one = "0-based" in comments, "1-based" in comments
    if zero == one:
        notes.append(
            f"Ignored the star position STARCENX = {values[1]}, STARCENY = {values[0]} of the "
            "header, which does not say whether pixels count from 0 or 1; pass `center`."
        )
        return None
    row, column = (float(v) - float(one) for v in values)
    notes.append(f"Took the star centre (row {row:g}, column {column:g}) from STARCENX/Y.")
    return row, column


def target_from_header(header: fits.Header) -> str:
    """
    Name of the star, '' if the header has none.

    >>> target_from_header(fits.Header({"OBJECT": "HR 4796"}))
    'HR 4796'
    """
    for key in TARGET_KEYS:
        value = str(header.get(key, "")).strip()
        if value:
            return value
    return ""
