"""The list of the sequences of a folder: which files, and what is wrong with them, all at once."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepinv_astro.io import SequenceError, read_sequence, write_json
from deepinv_astro.io.arrays import open_fits, read_image
from deepinv_astro.io.dialects import AnglesUnit, get_dialect
from deepinv_astro.io.files import existing_file
from deepinv_astro.io.header import as_pixel_scale
from deepinv_astro.io.sequence import Sequence
from deepinv_astro.io.vectors import read_angles

__all__ = [
    "MANIFEST_NAMES",
    "ManifestEntry",
    "check_manifest",
    "find_targets",
    "read_manifest",
    "write_manifest",
]

#: Names under which a manifest is looked for in a folder.
MANIFEST_NAMES = ("manifest.json", "manifest.csv")
#: Files of a target in its own sub-folder; the first three must be there.
FILES = ("cube.fits", "angles.fits", "psf.fits", "truth.fits")
_PATHS = ("cube", "angles", "psf", "transmission", "bad_pixels", "truth")
_NUMBERS = ("true_north", "star_flux")


@dataclasses.dataclass(frozen=True)
class ManifestEntry:
    r"""One sequence of a folder: its files, and what they do not say themselves.

    :param str target: name of the star.
    :param pathlib.Path cube: frames.
    :param pathlib.Path angles: derotation angles.
    :param pathlib.Path psf: star off the coronagraph.
    :param pathlib.Path transmission: of the coronagraph; or None.
    :param pathlib.Path bad_pixels: map or cube; or None.
    :param pathlib.Path truth: sky in counts per pixel, where it is known; or None.
    :param tuple center: row and column of the star; None for the header's, or from the data.
    :param str pixel_scale: such as ``"27.19 mas"``; None for the header's.
    :param float true_north: degrees to add to the angles.
    :param float star_flux: of the star, unit of the cube; None for the sum of the PSF.
    :param str dialect: convention of the files, see :func:`~deepinv_astro.io.read_sequence`.
    """

    target: str
    cube: Path
    angles: Path
    psf: Path
    transmission: Path | None = None
    bad_pixels: Path | None = None
    truth: Path | None = None
    center: tuple[float, float] | None = None
    pixel_scale: str | None = None
    true_north: float = 0.0
    star_flux: float | None = None
    dialect: str = "generic"

    def read(self) -> Sequence:
        """
        Read and check the files.

        :return: :class:`~deepinv_astro.io.Sequence`.
        :raises SequenceError: if any part is missing, damaged or does not fit the others.
        """
        return read_sequence(
            self.cube,
            self.angles,
            self.psf,
            transmission=self.transmission,
            bad_pixels=self.bad_pixels,
            center=self.center,
            pixel_scale=self.pixel_scale,
            true_north=self.true_north,
            star_flux=self.star_flux,
            dialect=self.dialect,
            target=self.target,
        )

    def shape(self) -> tuple[int, int, int, int]:
        """
        Channels, frames, rows and columns of the cube, from its header alone.

        :return: ``(C, T, H, W)``.
        :raises SequenceError: if it is not a FITS cube.
        """
        path = existing_file(self.cube, "cube")
        with open_fits(path) as hdus:
            shapes = [tuple(hdu.shape) for hdu in hdus if hdu.is_image]
        found = next((s for s in shapes if len(s) in (3, 4)), None)
        if found is None:
            expected = "a cube (T, H, W) or (C, T, H, W)"
            raise SequenceError(str(path), f"images of shape {shapes}", expected, "name the cube")
        channels, frames, rows, columns = (1, *found) if len(found) == 3 else found
        return int(channels), int(frames), int(rows), int(columns)


def find_targets(root: str | os.PathLike[str]) -> tuple[ManifestEntry, ...]:
    """
    The sub-folders that hold a sequence: ``cube.fits``, ``angles.fits``, ``psf.fits``.

    A sub-folder that has one of them is meant to have all; ``truth.fits`` is optional. Hidden
    sub-folders are left out.

    :param root: folder with one sub-folder for each target.
    :return: entries by name of the sub-folder, checked by :func:`check_manifest` only.
    """
    entries = []
    for folder in sorted(p for p in Path(root).iterdir() if p.is_dir() and p.name[0] != "."):
        cube, angles, psf, truth = (folder / name for name in FILES)
        if cube.exists() or angles.exists() or psf.exists():
            known = truth if truth.exists() else None
            entries.append(ManifestEntry(folder.name, cube, angles, psf, truth=known))
    return tuple(entries)


def read_manifest(path: str | os.PathLike[str]) -> tuple[ManifestEntry, ...]:
    """
    The entries of a manifest, JSON or CSV, with the fields of :class:`ManifestEntry`.

    JSON is ``{"targets": [{"target": ..., "cube": ..., ...}, ...]}``; CSV has a column for each
    field, its cells empty where the default is meant, the centre as ``"51 50.5"``. Files are
    relative to the manifest.

    :param path: the manifest.
    :return: the entries; whether the files exist is checked by :func:`check_manifest`.
    :raises ValueError: with all that is wrong in the manifest.
    """
    path = existing_file(path, "manifest")
    try:
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no manifest: {error}") from error
    entries, problems = [], []
    for number, row in enumerate(rows, start=1):
        try:
            entries.append(_entry(row, path.parent))
        except (ValueError, TypeError, AttributeError) as error:
            problems.append(f"target {number}: {error}")
    names = [entry.target for entry in entries]
    problems += [f"target {n!r} is there twice" for n in sorted(set(names)) if names.count(n) > 1]
    if problems:
        raise ValueError(listed(str(path), problems))
    return tuple(entries)


def write_manifest(
    root: str | os.PathLike[str],
    entries: Iterable[ManifestEntry] | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Write ``manifest.json`` of a folder, whole or not at all, its files relative to the folder.

    :param root: the folder.
    :param entries: what to list; default: what :func:`find_targets` finds there.
    :param bool overwrite: whether an existing manifest may be replaced.
    :return: path of the manifest.
    :raises ValueError: with all that is missing or broken, see :func:`check_manifest`.
    :raises FileExistsError: if it exists and ``overwrite`` is False.
    """
    root = Path(root)
    listing = find_targets(root) if entries is None else tuple(entries)
    problems = check_manifest(listing)
    if problems:
        raise ValueError(listed(str(root), problems))
    rows = []
    for entry in listing:
        row = {k: v for k, v in dataclasses.asdict(entry).items() if v is not None}
        for name in _PATHS:
            if name in row:
                row[name] = os.path.relpath(row[name], root)
        rows.append(row)
    return write_json(root / MANIFEST_NAMES[0], {"targets": rows}, overwrite)


def check_manifest(entries: Iterable[ManifestEntry], deep: bool = False) -> tuple[str, ...]:
    """
    What is missing or broken, one sentence for each file or target.

    :param entries: the targets.
    :param bool deep: read the frames too; else the headers of the cubes, the angles and the PSFs are
        read.
    :return: sentences with the names of the files; empty if all is well.
    """
    problems = []
    for entry in entries:
        found = _problems(entry)
        if deep and not found:
            try:
                entry.read()
            except ValueError as error:
                found = [str(error)]
        problems += [f"{entry.target}: {text}" for text in found]
    return tuple(problems)


def listed(where: str, problems: Iterable[str]) -> str:
    """Message that lists all problems of a folder or manifest."""
    lines = list(problems)
    return f"{where} has {len(lines)} problem{'s'[: len(lines) > 1]}:\n  " + "\n  ".join(lines)


def _problems(entry: ManifestEntry) -> list[str]:
    """What is seen without reading the frames."""
    problems = []
    frames = None
    for role in _PATHS:
        path = getattr(entry, role)
        if path is None:
            continue
        try:
            file = existing_file(path, role)
            if role == "cube":
                frames = entry.shape()[1]
            elif role == "angles" and frames is not None:
                read_angles(file, frames, AnglesUnit.AUTO, [])
            elif role == "psf":
                read_image(file, "psf", lambda n: 2 <= n <= 4, "an image of 2 to 4 dimensions")
        except SequenceError as error:
            problems.append(str(error))
    return problems


def _json_rows(path: Path) -> list[Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content.get("targets") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f'{path} is no manifest: it has no list "targets"')
    return rows


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{str(k): v.strip() for k, v in row.items() if v and v.strip()} for row in rows]


def _entry(row: dict[str, Any], folder: Path) -> ManifestEntry:
    """An entry of a manifest, its files made absolute and its numbers numbers."""
    fields = {field.name for field in dataclasses.fields(ManifestEntry)}
    unknown, missing = set(row) - fields, {"target", "cube", "angles", "psf"} - set(row)
    if unknown or missing:
        words = [f"it has no {', '.join(sorted(missing))}"] if missing else []
        words += [f"it has unknown fields {', '.join(sorted(unknown))}"] if unknown else []
        raise ValueError(f"{row.get('target', 'without a name')}: {' and '.join(words)}")
    values = dict(row)
    for name in _PATHS:
        if name in values:
            values[name] = folder / Path(str(values[name])).expanduser()
    for name in _NUMBERS:
        if name in values:
            values[name] = float(values[name])
    if "center" in values:
        given = values["center"]
        pair = given.replace(",", " ").split() if isinstance(given, str) else given
        row_, column = (float(v) for v in pair)
        values["center"] = (row_, column)
    if "pixel_scale" in values:
        as_pixel_scale(values["pixel_scale"])
    if "dialect" in values:
        get_dialect(values["dialect"])
    return ManifestEntry(**values)
