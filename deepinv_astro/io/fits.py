"""Read an angular differential imaging sequence from the files astronomers have."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from collections.abc import Sequence as Collection
from contextlib import contextmanager
from typing import Any

import astropy.units as u
import numpy as np
import torch
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from deepinv_astro.io.arrays import Array, Source, read_image
from deepinv_astro.io.dialects import AnglesUnit, Dialect, get_angles_unit, get_dialect
from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.header import (
    as_pixel_scale,
    center_from_header,
    pixel_scale_from_header,
    target_from_header,
)
from deepinv_astro.io.maps import read_bad_pixels, read_transmission
from deepinv_astro.io.parts import Parts, gather
from deepinv_astro.io.psf import StarImage, flux_from_aperture, read_psf
from deepinv_astro.io.sequence import Sequence, check_center
from deepinv_astro.io.vectors import parse_unit, read_angles, read_wavelengths

logger = logging.getLogger(__name__)

#: Values between which squares, and sums of squares, are safe in float32.
SMALLEST, LARGEST = 1e-12, 1e15


def read_sequence(
    cube: Source,
    angles: Source | None = None,
    psf: Source | Collection[Source] | None = None,
    *,
    wavelengths: Any = None,
    transmission: Source | None = None,
    bad_pixels: Source | None = None,
    center: tuple[float, float] | None = None,
    pixel_scale: u.Quantity | str | None = None,
    true_north: float = 0.0,
    star_flux: Any = None,
    star_flux_aperture: tuple[float | ArrayLike, float | ArrayLike] | None = None,
    hdu: str | int | None = None,
    dialect: str | Dialect = "generic",
    angles_unit: AnglesUnit | str = AnglesUnit.AUTO,
    target: str = "",
) -> Sequence:
    r"""
    Read one sequence from its files, check it, and record every correction.

    The derotation angle of frame :math:`t` is

    .. math::
        \theta_t = d(a_t) + \text{true north}

    with :math:`a_t` as stored and :math:`d` the convention of the dialect. Wherever a file is
    expected, an array, tensor or list does as well.

    :param cube: FITS cube (T, H, W) or (C, T, H, W); or an ``.npz`` of VIP's HCIDataset or a folder
        of a dialect that has file names (``'sphere-dc'``), which hold the other parts too.
    :param angles: FITS vector of any orientation or table, text or CSV file; may be left out if
        the cube's own file has a table of angles.
    :param psf: image of the star off the coronagraph, (k, k), (C, k, k) or (C, N, k, k), or a list
        of them (before and after); any size, neither centred nor normalised.
    :param wavelengths: file, Quantity or text such as ``'3.8 um'``.
    :param transmission: coronagraph transmission, map (H, W) or radial profile.
    :param bad_pixels: map (H, W) or cube, 1 for bad pixels, which become NaN.
    :param tuple center: (row, column) of the star in float pixels, counted from 0.
    :param pixel_scale: angle per pixel, as Quantity or text such as ``'27.19 mas'``.
    :param float true_north: degrees to add to all angles.
    :param star_flux: total flux of the star, in the unit of the cube; default: the sum of the PSF.
    :param tuple star_flux_aperture: (flux, diameter in pixels) of the star in an aperture of that
        diameter, usually one FWHM; the PSF converts it to the total.
    :param hdu: name or number of the cube's HDU; default: the first with 3 or 4 dimensions.
    :param dialect: ``'generic'``, ``'sphere-dc'``, ``'pynpoint'`` or a
        :class:`~deepinv_astro.io.dialects.Dialect`.
    :param angles_unit: ``'deg'``, ``'rad'``, or ``'auto'``: what the file says, else degrees.
    :param str target: name of the star; default: the header's.
    :return: the sequence; its tensors are float32, or float64 where the cube is.
    :raises SequenceError: if any part is missing, damaged or does not fit the others.

    >>> frames = np.random.default_rng(0).normal(size=(4, 9, 12))
    >>> seq = read_sequence(frames, [0.0, 10.0, 25.0, 41.0], center=(4, 5.5), true_north=-2)
    >>> tuple(seq.y.shape), seq.angles[1].item(), seq.provenance[-1]
    ((1, 1, 4, 9, 12), 8.0, 'Added true north, -2 degrees, to the angles.')
    """
    kind, angles_unit = get_dialect(dialect), get_angles_unit(angles_unit)
    notes = [kind.note]
    parts = gather(Parts(cube, angles, psf, wavelengths, pixel_scale), kind, notes)
    frames = _read_cube(parts.cube, hdu, notes)
    _mask(frames, bad_pixels, notes)
    channels, n_frames, *shape = frames.values.shape
    detector = (shape[0], shape[1])
    where = _center(center, frames.header, kind, detector, notes)
    unit = _unit(frames.header, notes)
    star = read_psf(parts.psf, channels, detector, notes)
    flux = _star_flux(star_flux, star_flux_aperture, star, frames, unit, notes)
    through = read_transmission(transmission, detector, where, notes)
    colors = read_wavelengths(parts.wavelengths, channels, kind.wavelength_unit, notes)
    scale = _pixel_scale(parts.pixel_scale, frames.header, notes)
    stored = read_angles(parts.angles, n_frames, angles_unit, notes)
    turned = kind.derotation(stored) + _finite_north(true_north, notes)
    dtype = torch.from_numpy(frames.values).dtype
    with _fields_as_files(frames, star, transmission):
        return Sequence(
            y=torch.from_numpy(frames.values[None]),
            angles=torch.from_numpy(turned),
            psf=_tensor(star.psf if star else None, dtype),
            star_flux=_tensor(flux, dtype),
            center=where,
            pixel_scale=scale,
            wavelengths=colors,
            transmission=_tensor(through, dtype),
            true_north=float(true_north),
            unit=unit,
            target=target or target_from_header(frames.header),
            provenance=tuple(notes),
        )


@contextmanager
def _fields_as_files(frames: Array, star: StarImage | None, transmission: Any) -> Iterator[None]:
    """The checks of the dataclass speak of its fields; the user knows the files."""
    names = {"`y`": frames.name, "`transmission`": f"{transmission} (transmission)"}
    if star is not None:
        names["`psf`"] = star.name
    try:
        yield
    except SequenceError as error:
        name = names.get(error.source, error.source)
        raise SequenceError(name, error.found, error.expected, error.remedy) from error


def _tensor(values: NDArray[Any] | None, dtype: torch.dtype) -> Tensor | None:
    return None if values is None else torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def _read_cube(source: Source, hdu: str | int | None, notes: list[str]) -> Array:
    expected = "a cube (T, H, W) or (C, T, H, W), not a single image"
    cube = read_image(source, "cube", lambda n: n in (3, 4), expected, hdu)
    values = cube.values if cube.values.ndim == 4 else cube.values[None]
    if values.shape[1] < 2 or min(values.shape) < 1:
        remedy = "give the whole sequence; one frame has no rotation"
        raise SequenceError(cube.name, f"shape {cube.values.shape}", "at least 2 frames", remedy)
    infinite, missing = np.isinf(values), np.isnan(values)
    if infinite.any():
        values[infinite] = np.nan
        notes.append(f"Replaced {int(infinite.sum())} infinite values of {cube.name} by NaN.")
    if missing.any():
        notes.append(f"Took {int(missing.sum())} NaN values of {cube.name} as missing data.")
    return cube._replace(values=_with_room(values, cube.name, notes))


def _with_room(values: NDArray[Any], name: str, notes: list[str]) -> NDArray[Any]:
    """Values whose squares float32 holds, or else in float64."""
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    if values.dtype == np.float64 or largest == 0 or SMALLEST < largest < LARGEST:
        return values
    notes.append(f"Took {name} as float64: its values reach {largest:.3g}.")
    return values.astype(np.float64)


def _mask(frames: Array, bad_pixels: Source | None, notes: list[str]) -> None:
    if bad_pixels is not None:
        bad = read_bad_pixels(bad_pixels, frames.values.shape, notes)
        frames.values[np.broadcast_to(bad, frames.values.shape)] = np.nan


def _center(
    center: tuple[float, float] | None,
    header: fits.Header,
    dialect: Dialect,
    shape: tuple[int, int],
    notes: list[str],
) -> tuple[float, float] | None:
    if center is not None:
        checked = check_center(center, shape)
        notes.append(f"Took the star centre (row {checked[0]:g}, column {checked[1]:g}) as given.")
        return checked
    found = center_from_header(header, notes) or dialect.center(shape)
    return None if found is None else check_center(found, shape)


def _unit(header: fits.Header, notes: list[str]) -> u.UnitBase:
    text = str(header.get("BUNIT", "")).strip()
    if not text:
        notes.append("The cube names no unit (BUNIT): fluxes are in its own units.")
    return parse_unit(text)


def _pixel_scale(given: Any, header: fits.Header, notes: list[str]) -> u.Quantity | None:
    if given is None:
        return pixel_scale_from_header(header, notes)
    scale = as_pixel_scale(given)
    notes.append(f"Took the pixel scale {scale:.5g} as given.")
    return scale


def _finite_north(true_north: float, notes: list[str]) -> float:
    if not math.isfinite(true_north):
        raise SequenceError(
            "`true_north`", f"{true_north}", "finite degrees", "pass `true_north=0` if unknown"
        )
    if true_north:
        notes.append(f"Added true north, {true_north:g} degrees, to the angles.")
    return float(true_north)


def _star_flux(
    total: Any,
    aperture: tuple[Any, Any] | None,
    star: StarImage | None,
    frames: Array,
    unit: u.UnitBase,
    notes: list[str],
) -> NDArray[np.float64] | None:
    channels = frames.values.shape[0]
    if total is not None and aperture is not None:
        found = "both `star_flux` and `star_flux_aperture`"
        raise SequenceError("`star_flux`", found, "one of them", "leave one out")
    if total is not None:
        notes.append("Took the star's total flux as given.")
        return _per_channel(_in_unit(total, unit), channels)
    if aperture is None:
        return None if star is None else _flux_of_psf(star, frames, unit, notes)
    if star is None:
        expected = "a PSF to convert it to the total flux"
        remedy = "give the PSF, or the total as `star_flux`"
        raise SequenceError("`star_flux_aperture`", "no PSF", expected, remedy)
    inside, diameter = _per_channel(_in_unit(aperture[0], unit), channels), aperture[1]
    flux = flux_from_aperture(star.psf, inside, _per_channel(diameter, channels))
    notes.append(
        f"Converted the star's flux from an aperture of {np.max(diameter):g} px, which holds "
        f"{float((inside / flux).mean()):.2%} of the PSF, to the total {flux.mean():.6g}."
    )
    return flux


def _in_unit(value: Any, unit: u.UnitBase) -> Any:
    if not isinstance(value, u.Quantity):
        return value
    try:
        return value.to_value(unit)
    except u.UnitsError as error:
        remedy = f"give it in '{unit}'"
        raise SequenceError("`star_flux`", f"'{value.unit}'", f"'{unit}'", remedy) from error


def _per_channel(value: Any, channels: int) -> NDArray[np.float64]:
    values = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if values.shape not in ((1,), (channels,)) or not (np.isfinite(values) & (values > 0)).all():
        expected = f"one positive number, or {channels}, one per channel"
        raise SequenceError("`star_flux`", str(values.tolist()), expected, "correct the value")
    return np.broadcast_to(values, (channels,)).astype(np.float64)


def _flux_of_psf(
    star: StarImage, frames: Array, unit: u.UnitBase, notes: list[str]
) -> NDArray[np.float64] | None:
    flux = star.flux
    if star.unit is not None and "BUNIT" in frames.header and star.unit != unit:
        try:
            factor = float(star.unit.to(unit))
        except u.UnitsError as error:
            raise SequenceError(
                star.name,
                f"mixed units: PSF in '{star.unit}', cube in '{unit}' ({frames.name})",
                "the same unit in both, so that the PSF tells the star's flux",
                f"convert one file, or pass `star_flux` in '{unit}'",
            ) from error
        notes.append(f"Converted the star's flux from '{star.unit}' to '{unit}', times {factor:g}.")
        flux = flux * factor
    middle = frames.values[:, frames.values.shape[1] // 2]
    bright = middle[np.isfinite(middle)]
    # Star and halo together cannot outshine the star: such a PSF has been rescaled.
    if bright.size and float(flux.min()) < float(np.percentile(bright, 99.9)):
        text = (
            f"The PSF of {star.name} sums to {float(flux.min()):.4g}, less than the brightest "
            "pixels of the cube: it was rescaled, and the star's flux is unknown. Pass `star_flux` "
            "or `star_flux_aperture` to get contrasts."
        )
        logger.warning(text)
        notes.append(text)
        return None
    return flux
