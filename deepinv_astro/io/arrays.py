"""Arrays out of files: FITS images and tables, text and CSV; every failure is a SequenceError."""

from __future__ import annotations

import csv
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.files import existing_file, is_fits
from deepinv_astro.io.header import relevant

# What astropy raises on files that are cut, compressed badly or not FITS at all.
_UNREADABLE = (OSError, ValueError, TypeError, EOFError, IndexError, KeyError, zlib.error)


class Array(NamedTuple):
    """
    Values of a file with what its header says of them.

    :param numpy.ndarray values: native byte order; float32, or float64 where needed.
    :param astropy.io.fits.Header header: cards of the HDU, over those of the primary HDU, as far as
        they are used.
    :param str name: where it comes from, for messages.
    """

    values: NDArray[Any]
    header: fits.Header
    name: str


class Column(NamedTuple):
    """One named column of a table, with its unit as written ('' if none)."""

    name: str
    values: NDArray[Any]
    unit: str


class Table(NamedTuple):
    """Columns of a FITS, text or CSV table; unnamed columns are called '1', '2', ..."""

    columns: list[Column]
    named: bool
    name: str


# A file, or the values themselves.
Source: TypeAlias = str | os.PathLike[str] | ArrayLike | torch.Tensor | Array | Table


@contextmanager
def open_fits(path: Path) -> Iterator[fits.HDUList]:
    """
    Open a FITS file so that everything that is wrong with it is a SequenceError.

    :param pathlib.Path path: the file.
    :return: context manager of the HDU list; values must be taken inside it.
    :raises SequenceError: if it is not FITS or is truncated.
    """
    expected = "a complete FITS file"
    remedy = "check its origin with fitsinfo or fitscheck, and download or copy it again"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*truncated.*")
        warnings.filterwarnings("error", message="Error validating header.*")
        try:
            # Opened here, so that it is closed also where astropy fails.
            with path.open("rb") as file, fits.open(file, memmap=False) as hdus:
                yield hdus
        except SequenceError:
            raise
        except (*_UNREADABLE, UserWarning) as error:
            found = f"data that cannot be read as FITS ({_first_line(error)})"
            raise SequenceError(str(path), found, expected, remedy) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def to_float(values: Any) -> NDArray[Any]:
    """
    Values as native-endian floats: float32 where it holds them exactly enough, else float64.

    :param values: array of numbers or booleans, tensor, list.
    :return: float32 for float16/32 and integers up to 16 bits, else float64.

    >>> to_float(np.array([1, -7], dtype=">i2")).dtype, to_float([1, 2]).dtype
    (dtype('float32'), dtype('float64'))
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.ma.filled(np.ma.masked_array(values), np.nan) if _masked(values) else values
    array = np.asarray(array)
    small = array.dtype.kind in "fiub" and array.dtype.itemsize <= (
        4 if array.dtype.kind == "f" else 2
    )
    return array.astype(np.float32 if small else np.float64)


def _masked(values: Any) -> bool:
    return isinstance(values, np.ma.MaskedArray)


def read_image(
    source: Source,
    role: str,
    accept: Callable[[int], bool],
    expected: str,
    hdu: str | int | None = None,
) -> Array:
    """
    An image of a FITS file, or values given directly.

    :param source: FITS file, array or tensor.
    :param str role: what it is, for messages.
    :param accept: tells from the number of dimensions which HDU is meant.
    :param str expected: the same in words, for messages.
    :param hdu: name or number of the HDU; default: the first one that ``accept`` takes.
    :return: values, header and name.
    :raises SequenceError: if there is no such image.
    """
    if not isinstance(source, (str, os.PathLike)):
        given = source if isinstance(source, Array) else None
        array = given or Array(to_float(source), fits.Header(), role)
        if not accept(array.values.ndim):
            found = f"an array of shape {array.values.shape}"
            raise SequenceError(array.name, found, expected, "pass an array of that shape")
        return array
    path = existing_file(source, role)
    with open_fits(path) as hdus:
        chosen = _choose_image(hdus, path, role, accept, expected, hdu)
        header = relevant(hdus[0].header, chosen.header)
        return Array(to_float(chosen.data), header, f"{path} ({role})")


def _choose_image(
    hdus: fits.HDUList,
    path: Path,
    role: str,
    accept: Callable[[int], bool],
    expected: str,
    hdu: str | int | None,
) -> Any:
    contents = [_describe(i, h) for i, h in enumerate(hdus)]
    found = "; ".join(contents)
    images = [h for h in hdus if h.is_image and h.data is not None]
    if hdu is not None:
        key = int(hdu) if isinstance(hdu, str) and hdu.isdigit() else hdu
        try:
            chosen = hdus[key]
        except (KeyError, IndexError) as error:
            remedy = "name one of these with `hdu`"
            raise SequenceError(str(path), found, f"an HDU {hdu!r}", remedy) from error
        images = [chosen] if chosen.is_image and chosen.data is not None else []
    for image in images:
        if accept(image.data.ndim):
            return image
    where = ", or with `hdu` the extension," if role == "cube" else ""
    remedy = f"give the file{where} that holds it"
    raise SequenceError(str(path), found, expected, remedy)


def _describe(index: int, hdu: Any) -> str:
    name = f"HDU {index}" + (f" '{hdu.name}'" if hdu.name else "")
    if not hdu.is_image:
        return f"{name}: a table with columns {', '.join(hdu.columns.names)}"
    if hdu.data is None:
        return f"{name}: no data"
    return f"{name}: {hdu.data.ndim}D, shape {hdu.data.shape}"


def read_vector(source: Source, role: str) -> Array | Table:
    """
    A list of numbers: FITS vector of any orientation, FITS table, text or CSV, or values.

    :param source: file or values.
    :param str role: what it is, for messages.
    :return: an :class:`Array` with a one-dimensional ``values``, or a :class:`Table`.
    :raises SequenceError: if the file holds neither.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, Array):
        return _flat(source)
    if not isinstance(source, (str, os.PathLike)):
        return _flat(Array(to_float(np.atleast_1d(_numpy(source))), fits.Header(), role))
    path = existing_file(source, role)
    if not is_fits(path):
        return _read_text(path, role)
    with open_fits(path) as hdus:
        found = "; ".join(_describe(i, h) for i, h in enumerate(hdus))
        for hdu in hdus:
            if not hdu.is_image:
                return _fits_table(hdu, f"{path} ({role})")
            if hdu.data is not None:
                header = relevant(hdus[0].header, hdu.header)
                return _flat(Array(to_float(hdu.data), header, f"{path} ({role})"))
    raise SequenceError(str(path), found, f"a vector or a table with the {role}", "check the file")


def _numpy(source: Any) -> Any:
    return source.detach().cpu().numpy() if isinstance(source, torch.Tensor) else source


def _flat(array: Array) -> Array:
    shape = array.values.shape
    if sum(n > 1 for n in shape) > 1 or array.values.size == 0:
        raise SequenceError(
            array.name,
            f"an array of shape {shape}",
            "a vector: (N,), (N, 1) or (1, N)",
            "give the file with one value per frame or channel",
        )
    return array._replace(values=array.values.reshape(-1))


def _fits_table(hdu: Any, name: str) -> Table:
    columns = []
    for column in hdu.columns:
        values = np.asarray(hdu.data[column.name])
        if values.dtype.kind in "fiub":
            # A whole vector in the only row is as common as one value per row.
            columns.append(Column(column.name, to_float(values).reshape(-1), column.unit or ""))
    return Table(columns, named=True, name=name)


def _read_text(path: Path, role: str) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SequenceError(
            str(path),
            "binary data in a file that is not named .fits",
            f"text, CSV or FITS with the {role}",
            "rename it if it is FITS, or export it as text",
        ) from error
    lines = text.splitlines()
    body = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    rows = [_split(line) for line in body]
    header: list[str] | None = None
    if rows and not all(_is_number(cell) for cell in rows[0]):
        header, rows = rows[0], rows[1:]
    elif rows:
        # A commented line right above the numbers may name the columns.
        header = _commented_header(lines, len(rows[0]))
    return _text_table(path, role, header, rows)


def _split(line: str) -> list[str]:
    separator = next((s for s in (";", ",", "\t") if s in line), None)
    if separator is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _commented_header(lines: list[str], width: int) -> list[str] | None:
    comments = [line.lstrip().lstrip("#").strip() for line in lines if line.lstrip()[:1] == "#"]
    cells = _split(comments[-1]) if comments else []
    return cells if len(cells) == width and not any(map(_is_number, cells)) else None


def _text_table(path: Path, role: str, header: list[str] | None, rows: list[list[str]]) -> Table:
    expected = f"a column of numbers with the {role}"
    if not rows:
        raise SequenceError(str(path), "no numbers", expected, "check the file")
    width = len(rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != width or (header is not None and len(header) != width):
            found = f"{len(row)} cells in row {number} of numbers, {width} in the first"
            raise SequenceError(str(path), found, expected, "make all rows as long as the header")
    names = header or [str(i + 1) for i in range(width)]
    columns = []
    for name, cells in zip(names, zip(*rows, strict=True), strict=True):
        if all(map(_is_number, cells)):
            label, unit = _name_and_unit(name)
            columns.append(Column(label, np.array([float(c) for c in cells]), unit))
    if not columns and width == 1:
        bad = next(i for i, row in enumerate(rows) if not _is_number(row[0]))
        found = f"'{rows[bad][0]}' in row {bad + 1}"
        raise SequenceError(str(path), found, expected, "correct this row")
    if len(rows) == 1 and header is None and len(columns) == width:
        # All values in a single line.
        values = np.concatenate([c.values for c in columns])
        columns = [Column("1", values, "")]
    return Table(columns, named=header is not None, name=f"{path} ({role})")


def _name_and_unit(label: str) -> tuple[str, str]:
    """Split 'PARANG [deg]' or 'angle (rad)' into name and unit."""
    match = re.fullmatch(r"(.*?)\s*[\[(]\s*([^\])]*)\s*[\])]", label)
    return (match[1], match[2]) if match else (label, "")
