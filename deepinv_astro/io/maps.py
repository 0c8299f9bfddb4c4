"""Maps of the detector: coronagraph transmission and bad pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepinv_astro.io.arrays import (
    Array,
    Source,
    Table,
    read_image,
    read_vector,
)
from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.files import existing_file, is_fits, is_path

RADIUS_NAMES = ("R", "RADIUS", "SEPARATION", "SEP", "RHO", "PIX", "PIXEL", "PIXELS")


def read_transmission(
    source: Source | None,
    shape: tuple[int, int],
    center: tuple[float, float] | None,
    notes: list[str],
) -> NDArray[np.float64] | None:
    """
    Coronagraph transmission as a map of the detector.

    A two-column table or a (2, N) or (N, 2) image is a radial profile: radius in pixels,
    transmission; beyond its end the last value holds.

    :param source: FITS map (H, W), or radial profile as FITS image, FITS table, text or CSV;
        None if there is none.
    :param tuple shape: (H, W) of the detector.
    :param tuple center: (row, column) of the star, for a profile; default (H//2, W//2).
    :param list notes: gets one sentence.
    :return: (H, W), or None.
    :raises SequenceError: if it has another shape or is not a transmission.

    >>> profile = np.array([[0.0, 0.0], [2.0, 1.0], [9.0, 1.0]])
    >>> read_transmission(profile, (5, 7), (2.0, 3.0), [])[2]
    array([1. , 1. , 0.5, 0. , 0.5, 1. , 1. ])
    """
    if source is None:
        return None
    if is_path(source) and _is_table(source):
        table = read_vector(source, "transmission")
        return _from_profile(_profile_of_table(table), table.name, shape, center, notes)
    array = read_image(source, "transmission", lambda n: n in (2, 3), "a map of 2 dimensions")
    values = array.values.astype(np.float64)
    values = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
    if values.ndim == 2 and values.shape != tuple(shape) and 2 in values.shape:
        rows = values if values.shape[0] == 2 else values.T
        return _from_profile(rows, array.name, shape, center, notes)
    if values.shape != tuple(shape):
        raise SequenceError(
            array.name,
            f"shape {array.values.shape}",
            f"the detector's {tuple(shape)}, or a radial profile of two columns",
            "crop the map to the frames, about the star",
        )
    return values


def _is_table(source: Any) -> bool:
    path = existing_file(source, "transmission")
    if not is_fits(path):
        return True
    try:
        return isinstance(read_vector(source, "transmission"), Table)
    except SequenceError:
        return False


def _profile_of_table(table: Array | Table) -> NDArray[np.float64]:
    columns = table.columns if isinstance(table, Table) else []
    if len(columns) != 2:
        found = f"{len(columns)} columns of numbers"
        expected = "two: radius in pixels and transmission"
        raise SequenceError(table.name, found, expected, "keep these two columns")
    first, second = columns
    if second.name.strip().upper() in RADIUS_NAMES:
        first, second = second, first
    return np.stack([first.values, second.values]).astype(np.float64)


def _from_profile(
    profile: NDArray[np.float64],
    name: str,
    shape: tuple[int, int],
    center: tuple[float, float] | None,
    notes: list[str],
) -> NDArray[np.float64]:
    radius, value = profile
    if not (np.isfinite(profile).all() and radius[0] >= 0 and (np.diff(radius) > 0).all()):
        found = "radii that are negative, not finite or not increasing"
        raise SequenceError(name, found, "increasing radii in pixels", "sort the profile")
    row, column = center or (shape[0] // 2, shape[1] // 2)
    distance = np.hypot(np.arange(shape[0])[:, None] - row, np.arange(shape[1])[None, :] - column)
    notes.append(
        f"Interpolated the radial transmission of {name} about (row {row:g}, column {column:g})."
    )
    return np.asarray(np.interp(distance, radius, value), dtype=np.float64)


def read_bad_pixels(
    source: Source, shape: tuple[int, int, int, int], notes: list[str]
) -> NDArray[np.bool_]:
    """
    Bad pixels of the frames: everything in the map that is not zero.

    :param source: FITS image or array (H, W), (T, H, W), (C, H, W) or (C, T, H, W); 1 is bad.
    :param tuple shape: (C, T, H, W) of the cube.
    :param list notes: gets one sentence.
    :return: mask that broadcasts to (C, T, H, W), True where bad.
    :raises SequenceError: if the shape fits in no or two ways, or more than half is bad.

    >>> read_bad_pixels(np.eye(4, 6), (1, 3, 4, 6), []).shape
    (1, 1, 4, 6)
    """
    kinds = "a map of 2 to 4 dimensions"
    array = read_image(source, "bad pixels", lambda n: 2 <= n <= 4, kinds)
    bad = (array.values != 0) | np.isnan(array.values)
    mask = _as_cube(bad, shape, array.name)
    part = float(mask.mean())
    if part > 0.5:
        raise SequenceError(
            array.name,
            f"{part:.0%} of the pixels marked bad",
            "1 for bad pixels and 0 for good ones",
            "invert the map",
        )
    notes.append(f"Marked {part:.3%} of the pixels as missing, from {array.name}.")
    return mask


def _as_cube(
    bad: NDArray[np.bool_], shape: tuple[int, int, int, int], name: str
) -> NDArray[np.bool_]:
    channels, frames, height, width = shape
    readings = {
        (height, width): (1, 1, height, width),
        (frames, height, width): (1, frames, height, width),
        (channels, height, width): (channels, 1, height, width),
        shape: shape,
    }
    if bad.ndim == 3 and channels == frames > 1:
        found = f"shape {bad.shape}, whose first axis may be time or wavelength"
        raise SequenceError(name, found, f"{shape}", "give the map for all channels and frames")
    if bad.shape not in readings:
        expected = f"{(height, width)}, {(frames, height, width)} or {shape}"
        raise SequenceError(name, f"shape {bad.shape}", expected, "crop the map to the frames")
    return bad.reshape(readings[bad.shape])
