"""Names of files, looked at before they are read; nothing heavy is imported for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deepinv_astro.io.errors import SequenceError

FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz", ".fz", ".fits.z")


def is_path(source: Any) -> bool:
    """
    Whether a source is the name of a file rather than values.

    >>> is_path("cube.fits"), is_path([1.0, 2.0])
    (True, False)
    """
    return isinstance(source, (str, os.PathLike))


def existing_file(path: str | os.PathLike[str], role: str) -> Path:
    """
    The path of a file that is there, is a file and is not empty.

    :param path: name of the file.
    :param str role: what it should hold, for the message.
    :return: the path.
    :raises SequenceError: if it is missing, a folder or empty.
    """
    path = Path(path).expanduser()
    expected = f"a file with the {role}"
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        there = f"its folder holds {_listed(near)}" if near else "its folder is missing or empty"
        raise SequenceError(str(path), f"no such file ({there})", expected, "check the name")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir())
        found = f"a folder with {_listed(inside)}" if inside else "an empty folder"
        raise SequenceError(str(path), found, expected, "name the file itself")
    if not os.access(path, os.R_OK):
        raise SequenceError(str(path), "no permission to read", expected, "change its mode")
    if path.stat().st_size == 0:
        raise SequenceError(str(path), "an empty file", expected, "copy it again")
    return path


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def is_fits(path: Path) -> bool:
    """Whether a name ends as FITS files do, compressed or not."""
    return path.name.lower().endswith(FITS_SUFFIXES)
