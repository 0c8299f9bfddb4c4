"""Angles and wavelengths of a sequence, from vectors and tables."""

from __future__ import annotations

import logging
import math
from typing import Any

import astropy.units as u
import numpy as np
from numpy.typing import NDArray

from deepinv_astro.io.arrays import Array, Column, Source, Table, read_vector
from deepinv_astro.io.dialects import AnglesUnit
from deepinv_astro.io.errors import SequenceError

logger = logging.getLogger(__name__)

ANGLE_NAMES = (
    "DEROT_ANGLE",
    "DEROTANGLE",
    "DEROT",
    "DEROTATION",
    "DEROTATION_ANGLE",
    "ROTNTH",
    "PARANG",
    "PAR_ANG",
    "PARALLACTIC_ANGLE",
    "PARALLACTIC",
    "PARA_ANGLE",
    "PA",
    "ANGLE",
    "ANGLES",
    "ROTATION",
    "ROT",
    "ROTANGLE",
    "POSANG",
)
WAVELENGTH_NAMES = ("WAVELENGTH", "WAVELENGTHS", "LAMBDA", "LAM", "WAVE", "WL", "WLS", "LBDA")
SPAN_OF_RADIANS = 0.1
SMALLEST_SPAN = 0.01


def pick_column(table: Table, names: tuple[str, ...], role: str) -> Column:
    """
    The one column of a table that holds what is looked for.

    :param Table table: columns read from a file.
    :param tuple names: recognised names in capitals.
    :param str role: what is looked for, for messages.
    :return: the column.
    :raises SequenceError: if no column or several could be meant.

    >>> angle = Column("ParAng", np.zeros(3), "deg")
    >>> pick_column(Table([Column("mjd", np.ones(3), ""), angle], True, "t"), ANGLE_NAMES, "a").name
    'ParAng'
    """
    matching = [c for c in table.columns if _key(c.name) in names]
    if not matching and len(table.columns) == 1:
        return table.columns[0]
    if len(matching) == 1:
        return matching[0]
    listed = ", ".join(c.name for c in matching or table.columns) or "no column of numbers"
    kind = "several candidate columns: " if matching else "columns "
    if not table.named:
        kind = f"{len(table.columns)} columns without names: "
    expected = (
        f"exactly one column of {role}, named for example {names[-1]} or {', '.join(names[:3])}"
    )
    remedy = f"keep or rename one column, or pass its values as {role}"
    raise SequenceError(table.name, kind + listed, expected, remedy)


def _key(name: str) -> str:
    return name.strip().upper().replace(" ", "_").replace("-", "_")


def _values_and_unit(read: Array | Table, names: tuple[str, ...], role: str) -> Column:
    if isinstance(read, Table):
        return pick_column(read, names, role)
    return Column(read.name, read.values, str(read.header.get("BUNIT", "")))


def read_angles(
    source: Source, n_frames: int, unit: AnglesUnit, notes: list[str]
) -> NDArray[np.float64]:
    """
    Angles of the frames in degrees, as the file stores them, before any dialect.

    :param source: FITS vector or table, text, CSV, or values.
    :param int n_frames: number of frames T of the cube.
    :param AnglesUnit unit: unit of the values.
    :param list notes: gets one sentence per correction.
    :return: angles (T,) in degrees.
    :raises SequenceError: if they are not T finite varying angles in degrees.

    >>> read_angles([0.0, 12.5, 30.0], 3, AnglesUnit.AUTO, [])
    array([ 0. , 12.5, 30. ])
    """
    if isinstance(source, u.Quantity):
        source, unit = source.to_value(u.deg), AnglesUnit.DEG
    read = read_vector(source, "angles")
    column = _values_and_unit(read, ANGLE_NAMES, "angles")
    values = column.values.astype(np.float64)
    if len(values) != n_frames:
        raise SequenceError(
            read.name,
            f"{len(values)} angles",
            f"{n_frames}, one per frame of the cube",
            "give the angles of exactly these frames; cubes are ordered (T, H, W) or (C, T, H, W)",
        )
    if not np.isfinite(values).all():
        where = np.flatnonzero(~np.isfinite(values)).tolist()
        remedy = "remove these frames from the cube and from the angles, or correct the values"
        raise SequenceError(read.name, f"non-finite angles at {where}", "finite angles", remedy)
    values = _in_degrees(values, column, unit, read.name, notes)
    return _varying(values, read.name, notes)


def _in_degrees(
    values: NDArray[np.float64], column: Column, unit: AnglesUnit, name: str, notes: list[str]
) -> NDArray[np.float64]:
    written = column.unit.strip().lower()
    if unit is AnglesUnit.RAD or (
        unit is AnglesUnit.AUTO and written in ("rad", "radian", "radians")
    ):
        notes.append(f"Converted the angles of {name} from radians to degrees.")
        return np.rad2deg(values)
    trusted = unit is AnglesUnit.DEG or written.startswith(("deg", "°"))
    span = float(np.ptp(values))
    # In degrees such a track would turn by less than 6 degrees and be of little use; in radians
    # it is an ordinary one.
    if not trusted and np.abs(values).max() <= 2 * math.pi and span >= SPAN_OF_RADIANS:
        raise SequenceError(
            name,
            f"angles from {values.min():.4g} to {values.max():.4g} without a unit, "
            f"which look like radians (then they turn by {math.degrees(span):.0f} degrees)",
            "degrees",
            "say which with `angles_unit='rad'` or `angles_unit='deg'`",
        )
    return values


def _varying(values: NDArray[np.float64], name: str, notes: list[str]) -> NDArray[np.float64]:
    smooth = np.unwrap(values, period=360.0)
    if float(np.ptp(smooth)) < SMALLEST_SPAN:
        raise SequenceError(
            name,
            f"{len(values)} angles that do not vary (all within {np.ptp(smooth):.2g} degrees of "
            f"{values[0]:.6g})",
            "a field that turns during the sequence",
            "give the angle of each frame; without rotation the method cannot tell sky from star",
        )
    if not np.array_equal(smooth, values):
        notes.append(f"Unwrapped the angles of {name} across the jump of 360 degrees.")
    return np.asarray(smooth, dtype=np.float64)


def read_wavelengths(
    source: Any, n_channels: int, default_unit: str, notes: list[str]
) -> u.Quantity | None:
    """
    Wavelengths of the channels in micrometres.

    :param source: file, values, Quantity or text such as ``'1.593 um, 1.667 um'``; None if unknown.
    :param int n_channels: number of channels C of the cube.
    :param str default_unit: unit that the dialect prescribes; '' to tell it by value.
    :param list notes: gets one sentence per correction.
    :return: wavelengths (C,), or None.
    :raises SequenceError: if they are not C positive lengths.

    >>> read_wavelengths("1593 nm, 1.667 um", 2, "", [])
    <Quantity [1.593, 1.667] um>
    """
    if source is None:
        return None
    name = "`wavelengths`"
    quantity = _as_quantity(source)
    if quantity is None:
        read = read_vector(source, "wavelengths")
        column = _values_and_unit(read, WAVELENGTH_NAMES, "wavelengths")
        name = read.name
        unit = column.unit or default_unit or _unit_by_value(column.values, name, notes)
        quantity = u.Quantity(column.values.astype(np.float64), parse_unit(unit))
    quantity = quantity.reshape(-1)
    if quantity.shape != (n_channels,) or not quantity.unit.is_equivalent(u.m):
        raise SequenceError(
            name,
            f"{quantity.size} values in '{quantity.unit}'",
            f"{n_channels} lengths, one per channel of the cube",
            "give one wavelength per channel, with its unit",
        )
    return quantity.to(u.um)


def _as_quantity(source: Any) -> u.Quantity | None:
    if isinstance(source, u.Quantity):
        return source
    if isinstance(source, str):
        try:
            quantity = u.Quantity([u.Quantity(part) for part in source.split(",")])
        except (TypeError, ValueError):
            return None
        return quantity if quantity.unit != u.dimensionless_unscaled else None
    return None


def _unit_by_value(values: NDArray[Any], name: str, notes: list[str]) -> str:
    """Optical and infrared wavelengths in m, um, nm and Angstrom do not overlap."""
    low, high = float(np.min(values)), float(np.max(values))
    scaled = len(values) > 1 and (low == 1.0 or high == 1.0)
    ranges = {"um": (0.3, 30.0), "m": (3e-7, 3e-5), "nm": (300.0, 3000.0), "Angstrom": (3e3, 3e5)}
    for unit, (least, most) in ranges.items():
        if least <= low and high <= most and not scaled:
            notes.append(f"Took the wavelengths of {name} to be in {unit}, by their values.")
            return unit
    kind = "scaling factors" if scaled else f"values from {low:g} to {high:g} without a unit"
    remedy = "name the unit in the file, or pass text such as `wavelengths='1.593 um'`"
    raise SequenceError(name, kind, "wavelengths in a known unit", remedy)


# Common spellings that astropy does not know.
_SPELLINGS = {
    "adu": "adu",
    "dn": "adu",
    "counts": "ct",
    "count": "ct",
    "electrons": "electron",
    "e-": "electron",
    "microns": "micron",
    "µm": "um",
    "mum": "um",
    "": "",
}


def parse_unit(text: str) -> u.UnitBase:
    """
    A unit as headers spell it; unknown ones are kept by name.

    >>> parse_unit("ADU / s"), parse_unit("COUNTS")
    (Unit("adu / s"), Unit("ct"))
    """
    parts = text.strip().split("/")
    spelled = "/".join(_SPELLINGS.get(p.strip().lower(), p.strip()) for p in parts)
    return u.Unit(spelled, parse_strict="silent")
