"""The folder of results: what it will hold, and whether that can be written."""

from __future__ import annotations

import os
from pathlib import Path

from deepinv_astro.io.atomic import check_free, check_writable

NAMES = ("image.fits", "quicklook.png", "report.json")
#: The image while point sources are searched, which takes longer; replaced and removed freely.
UNFINISHED = "unfinished.fits"


def check_results(folder: Path, overwrite: bool) -> None:
    """
    See that no result is in the way and that the folder may be made or written; nothing is made.

    :param pathlib.Path folder: of the results.
    :param bool overwrite: whether existing results may be replaced.
    :raises OSError: if a result exists already, or the folder cannot be made or written.
    """
    for name in NAMES:
        check_free(folder / name, overwrite)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            f"cannot make the folder {folder}: {existing} is a file; choose another with `out`"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(
            f"cannot write in the folder {existing}: its mode forbids it; choose another with `out`"
        )


def make_folder(folder: Path, overwrite: bool) -> None:
    """
    Make the folder of results and see that all can be written there.

    :param pathlib.Path folder: where.
    :param bool overwrite: whether existing results may be replaced.
    :raises OSError: if a result exists already or the folder cannot be written.
    """
    for name in NAMES:
        check_writable(folder / name, overwrite)
    probe = folder / f".{'-'.join(NAMES)}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(
            f"cannot write in the folder {folder}: {error.strerror}; choose another with `out`"
        ) from error
