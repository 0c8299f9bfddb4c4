"""The real sequence of beta Pictoris that the field tests its methods on."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import astropy.units as u
from astropy.utils.data import download_file

from deepinv_astro.io import Sequence, read_sequence

__all__ = ["BETA_PICTORIS_FILES", "BetaPictoris"]

logger = logging.getLogger(__name__)

_URL = "https://github.com/carlos-gg/VIP_extras/raw/master/datasets/"
_FOLDER = "naco_betapic"

#: Names of the files and their sha256 sums.
BETA_PICTORIS_FILES = {
    "naco_betapic_cube.fits": "5d7f7db98522128704c1e3a6ce3bc47e35ec469c44570d2f86533b242e9a5a79",
    "naco_betapic_pa.fits": "1ebe4212da8dd0d02b19eefbcd473498c5c1ebc5ad348161ed2a9ade1eb8a519",
    "naco_betapic_psf.fits": "ca4e0ad99c4119f3ad4e9b33fad9b157746343d8b54f4668681dfa1a398315be",
}


def BetaPictoris(root: str | os.PathLike[str] | None = None, download: bool = True) -> Sequence:
    r"""VLT/NACO L' sequence of beta Pictoris and its planet b (Absil et al. 2013).

    61 frames of 101 x 101 pixels of 27.19 mas, behind a vortex coronagraph, with 81 degrees of
    rotation. The star is at row 51, column 51 and is 764939.6 counts bright in an aperture of one
    FWHM (4.80 pixels) diameter, as used with the PSF of these files, hence 2.55e6 in total. (That PSF
    has unit flux in 4.0 pixels; if the figure was meant so, all contrasts are 23 % smaller.) Planet b
    is 452 mas away at a position angle of 210.6 degrees with a contrast of 9.4e-4.

    The files are taken from ``root``, else from the folder named by the environment variable
    ``DEEPINV_ASTRO_DATA`` (in it or in its sub-folder ``naco_betapic``), else downloaded once from
    ``carlos-gg/VIP_extras`` on GitHub and kept in astropy's cache. Their sha256 sums are checked.

    :param root: folder that holds the three files.
    :param bool download: whether files may be downloaded.
    :return: the sequence, with North up after turning by its angles.
    :raises FileNotFoundError: if the files are not there and cannot be downloaded.
    :raises ValueError: if a file is not the expected one.

    >>> BetaPictoris("an/empty/folder")  # sequence = BetaPictoris("folder/of/the/files")
    Traceback (most recent call last):
        ...
    FileNotFoundError: beta Pictoris: an/empty/folder does not hold naco_betapic_cube.fits, ...
    """
    folder = _local_folder(root)
    names = list(BETA_PICTORIS_FILES)
    if folder is not None:
        cube, angles, psf = (folder / name for name in names)
    elif download:
        cube, angles, psf = (_download(name) for name in names)
    else:
        raise FileNotFoundError(_help("no local copy was found and download is False"))
    for path, (name, digest) in zip((cube, angles, psf), BETA_PICTORIS_FILES.items(), strict=True):
        _check(path, name, digest)
    return read_sequence(
        cube,
        angles,
        psf,
        center=(51.0, 51.0),
        pixel_scale=27.19 * u.mas,
        true_north=-104.39,
        star_flux_aperture=(764939.6, 4.8),
        wavelengths=[3.8] * u.um,
        target="beta Pictoris",
    )


def _local_folder(root: str | os.PathLike[str] | None) -> Path | None:
    """Folder that holds all the files; None to download them."""
    given = root if root is not None else os.environ.get("DEEPINV_ASTRO_DATA")
    if given is None:
        return None
    candidates = [Path(given), Path(given) / _FOLDER]
    for folder in candidates:
        if all((folder / name).is_file() for name in BETA_PICTORIS_FILES):
            return folder
    if root is not None:
        missing = [name for name in BETA_PICTORIS_FILES if not (Path(root) / name).is_file()]
        raise FileNotFoundError(_help(f"{root} does not hold {', '.join(missing)}"))
    logger.info("%s holds no %s, downloading it", given, _FOLDER)
    return None


def _download(name: str) -> Path:
    try:
        return Path(download_file(_URL + name, cache=True, pkgname="deepinv_astro"))
    except OSError as error:  # urllib's errors are OSErrors
        raise FileNotFoundError(_help(f"{_URL}{name} could not be downloaded ({error})")) from error


def _check(path: Path, name: str, digest: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise ValueError(
            f"{path} is not the expected {name}: its sha256 is {found}, expected {digest}; "
            f"fetch it again from {_URL}{name}"
        )


def _help(problem: str) -> str:
    files = ", ".join(BETA_PICTORIS_FILES)
    return (
        f"beta Pictoris: {problem}. Put {files} from {_URL} into a folder and pass it as root, "
        f"or name it in the environment variable DEEPINV_ASTRO_DATA."
    )
