"""The parts of a sequence, wherever they are: separate files, one folder, one FITS file or npz."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits

from deepinv_astro.io.arrays import (
    Array,
    Column,
    Table,
    open_fits,
    to_float,
)
from deepinv_astro.io.dialects import Dialect
from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.files import existing_file, is_fits, is_path
from deepinv_astro.io.header import relevant
from deepinv_astro.io.vectors import ANGLE_NAMES


@dataclasses.dataclass(frozen=True)
class Parts:
    """The files or values that make a sequence; None for what was not given."""

    cube: Any
    angles: Any = None
    psf: Any = None
    wavelengths: Any = None
    pixel_scale: Any = None

    def filled(self, other: dict[str, Any]) -> Parts:
        """
        The parts, with what is missing taken from elsewhere.

        >>> Parts("a.fits", angles=[1.0]).filled({"angles": [2.0], "psf": "p.fits"}).psf
        'p.fits'
        """
        missing = {k: v for k, v in other.items() if getattr(self, k) is None}
        return dataclasses.replace(self, **missing)


def gather(parts: Parts, dialect: Dialect, notes: list[str]) -> Parts:
    """
    Complete the parts from the folder, the ``.npz`` or the FITS file that the cube names.

    :param Parts parts: what the user gave.
    :param Dialect dialect: has the file names for a folder.
    :param list notes: gets one sentence per part taken from there.
    :return: the parts, ``cube`` and ``angles`` present.
    :raises SequenceError: if they cannot be found.
    """
    if is_path(parts.cube):
        path = Path(parts.cube).expanduser()
        if path.is_dir():
            found = _find_in_folder(path, dialect)
            notes.append(
                f"Found in the folder {path}: {', '.join(p.name for p in found.values())}."
            )
            parts = dataclasses.replace(parts, cube=found.pop("cube")).filled(found)
        elif path.suffix.lower() == ".npz":
            held = _load_npz(path)
            notes.append(f"Read {', '.join(held)} from {path}.")
            parts = dataclasses.replace(parts, cube=held.pop("cube")).filled(held)
    if parts.angles is not None:
        return parts
    angles = _angles_beside(parts.cube)
    if angles is None:
        raise SequenceError(
            "`angles`",
            "none",
            "one derotation angle per frame",
            "name the file with the angles",
        )
    notes.append(f"Took the angles from {angles.name}.")
    return dataclasses.replace(parts, angles=angles)


def _find_in_folder(folder: Path, dialect: Dialect) -> dict[str, Path]:
    inside = sorted(p.name for p in folder.iterdir())
    found = f"a folder with {', '.join(inside[:8])}" if inside else "an empty folder"
    if not dialect.patterns:
        remedy = "name the cube and the angles as files, or the dialect that wrote the folder"
        raise SequenceError(str(folder), found, "a FITS file with the cube", remedy)
    matches = {k: sorted(folder.glob(p)) for k, p in dialect.patterns.items()}
    for part, paths in matches.items():
        if len(paths) > 1 or (part in ("cube", "angles") and not paths):
            expected = f"one file like {dialect.patterns[part]}, the {part}"
            raise SequenceError(str(folder), found, expected, "name the files one by one")
    return {part: paths[0] for part, paths in matches.items() if paths}


def _load_npz(path: Path) -> dict[str, Any]:
    """The fields of VIP's HCIDataset; fields that are None there are absent here."""
    existing_file(path, "sequence")
    expected = "an HCIDataset saved by VIP, with its cube and angles"
    remedy = "save the dataset again with VIP, or export cube, angles and PSF as FITS"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            held = {k: _member(archive, k) for k in archive.files if not k.startswith("_")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        found = f"data that cannot be read ({error})"
        raise SequenceError(str(path), found, expected, remedy) from error
    values = {k: v for k, v in held.items() if v is not None}
    if values.get("cube") is None:
        raise SequenceError(str(path), f"fields {sorted(values)}", expected, remedy)
    names = {"cube": "cube", "angles": "angles", "psf": "psf", "wavelengths": "wavelengths"}
    if "psf" not in values:
        names["psf"] = "psfn"
    parts: dict[str, Any] = {
        part: Array(to_float(values[key]), fits.Header(), f"{path} ({key})")
        for part, key in names.items()
        if key in values
    }
    if "px_scale" in values:
        parts["pixel_scale"] = float(values["px_scale"]) * u.arcsec
    return parts


def _member(archive: Any, key: str) -> Any:
    """A field of the archive; None if it holds a Python object, which is never unpickled."""
    try:
        return archive[key]
    except ValueError as error:
        if "allow_pickle" in str(error):
            return None
        raise


def _angles_beside(cube: Any) -> Array | Table | None:
    """The table or vector of angles in the cube's own FITS file, if there is exactly one."""
    if not is_path(cube):
        return None
    path = existing_file(os.fspath(cube), "cube")
    if not is_fits(path):
        return None
    found: list[Array | Table] = []
    with open_fits(path) as hdus:
        for hdu in hdus:
            name = f"{path} (HDU '{hdu.name}')"
            if not hdu.is_image:
                columns = [
                    Column(c.name, to_float(hdu.data[c.name]).reshape(-1), c.unit or "")
                    for c in hdu.columns
                    if c.name.upper() in ANGLE_NAMES
                ]
                found += [Table(columns, named=True, name=name)] if columns else []
            elif hdu.data is not None and hdu.name.upper() in ANGLE_NAMES:
                found.append(Array(to_float(hdu.data), relevant(hdu.header), name))
    return found[0] if len(found) == 1 else None
