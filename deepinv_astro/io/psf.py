"""From the stamps of an off-axis star to a centred PSF of unit sum and the star's flux."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deepinv_astro.io.arrays import Array, Source, read_image
from deepinv_astro.io.errors import SequenceError
from deepinv_astro.io.files import is_path
from deepinv_astro.io.stamps import Core, Image, center_stamp, crop_center, fit_core, trimmed_side
from deepinv_astro.io.vectors import parse_unit

logger = logging.getLogger(__name__)

LARGEST_UNTRIMMED = 65
KEPT_FLUX = 0.999
#: Parts of the flux in a level as that of the border: worth a note, and worth a warning. The halo
#: that adaptive optics leaves makes up to a tenth by itself.
NOTED_LEVEL, DOUBTFUL_LEVEL = 0.02, 0.1


class StarImage(NamedTuple):
    """
    What PSF files tell.

    :param numpy.ndarray psf: (C, k, k), k odd, unit sum, star at (k//2, k//2).
    :param numpy.ndarray flux: sum of the stamp before normalisation (C,).
    :param str name: the files.
    :param unit: unit of the flux; None where the files name none.
    """

    psf: Image
    flux: Image
    name: str
    unit: Any


def read_psf(
    source: Source | Collection[Source] | None,
    n_channels: int,
    detector: tuple[int, int],
    notes: list[str],
) -> StarImage | None:
    """
    PSF and flux of the star from one file or several (before and after: their mean).

    Each stamp is recentred and cropped to an odd side, at most that of the frames. Nothing is
    subtracted.

    :param source: FITS file or array (k, k), (C, k, k) or (C, N, k, k) for N exposures;
        or a list of those; None if there is none.
    :param int n_channels: number of channels C of the cube.
    :param tuple detector: (H, W) of the frames.
    :param list notes: gets one sentence per correction.
    :return: PSF, flux, name and unit; or None.
    :raises SequenceError: if there is no star of positive flux in each channel.
    """
    if source is None:
        return None
    sources = _as_list(source)
    arrays = [
        read_image(s, "psf", lambda n: 2 <= n <= 4, "an image of 2 to 4 dimensions")
        for s in sources
    ]
    unit = _common_unit(arrays)
    centred = [_centred(a, n_channels, notes) for a in arrays]
    side = min(c.shape[-1] for c in centred)
    cropped = [crop_center(c, side) for c in centred]
    name = ", ".join(a.name for a in arrays)
    if len(cropped) > 1:
        sums = ", ".join(f"{c.sum(axis=(-2, -1)).mean():.6g}" for c in cropped)
        notes.append(
            f"Averaged the PSFs of {len(cropped)} files ({name}); their fluxes are {sums}."
        )
    stamps = _trimmed(np.mean(cropped, axis=0), min(detector), name, notes)
    flux = stamps.sum(axis=(-2, -1))
    if not (flux > 0).all():
        raise _bad_sum(name, flux)
    notes.append(f"Divided the PSF of {name} by its sum, {_numbers(flux)}.")
    return StarImage(stamps / flux[:, None, None], flux, name, unit)


def _as_list(source: Any) -> list[Any]:
    """Several files or images; nested lists of numbers are one image."""
    if isinstance(source, Array) or not isinstance(source, (list, tuple)):
        return [source]
    if not source:
        raise SequenceError("`psf`", "an empty list", "at least one file", "name the PSF file")
    one = not isinstance(source[0], Array) and not is_path(source[0]) and np.ndim(source[0]) < 2
    return [source] if one else list(source)


def _common_unit(arrays: list[Array]) -> Any:
    units = {a.name: str(a.header.get("BUNIT", "")).strip() for a in arrays}
    distinct = {parse_unit(t) for t in units.values()}
    if len(distinct) > 1:
        listed = ", ".join(f"'{unit}' in {name}" for name, unit in units.items())
        raise SequenceError("`psf`", f"mixed units: {listed}", "one unit", "convert the files")
    text = next(iter(units.values()))
    return parse_unit(text) if text else None


def _centred(array: Array, n_channels: int, notes: list[str]) -> Image:
    stamps = _stamps(array, n_channels, notes)
    bad = int((~np.isfinite(stamps)).sum())
    if bad:
        remedy = "crop the stamp or interpolate these pixels"
        raise SequenceError(
            array.name, f"{bad} pixels that are NaN or infinite", "a finite PSF", remedy
        )
    flux = stamps.sum(axis=(-2, -1))
    if not (flux > 0).all():
        raise _bad_sum(array.name, flux)
    cores = [_core(stamp, array.name) for stamp in stamps]
    centred = [center_stamp(s, c) for s, c in zip(stamps, cores, strict=True)]
    side = min(c.shape[-1] for c in centred)
    if side < 2 * max(c.fwhm for c in cores):
        raise SequenceError(
            array.name,
            f"a star at (row {cores[0].row:.1f}, column {cores[0].column:.1f}) of a stamp of "
            f"{stamps.shape[1]} x {stamps.shape[2]} pixels",
            f"at least one FWHM ({cores[0].fwhm:.1f} px) of room on each side",
            "cut a larger stamp about the star",
        )
    _note_level(stamps, cores, array.name, notes)
    first = cores[0]
    notes.append(
        f"Recentred the PSF of {array.name} from (row {first.row:.3f}, column {first.column:.3f}) "
        f"and cropped it from {stamps.shape[1]} x {stamps.shape[2]} to {side} x {side} pixels; "
        f"FWHM {first.fwhm:.2f} px."
    )
    return np.stack([crop_center(c, side) for c in centred])


def _stamps(array: Array, n_channels: int, notes: list[str]) -> Image:
    values = array.values.astype(np.float64)
    if values.ndim == 4 and values.shape[0] == n_channels:
        notes.append(f"Averaged the {values.shape[1]} exposures of the PSF of {array.name}.")
        values = values.mean(axis=1)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] != n_channels or min(values.shape[1:]) < 3:
        raise SequenceError(
            array.name,
            f"shape {array.values.shape}",
            f"an image of the star off the coronagraph: ({n_channels}, k, k) for the {n_channels} channels of the "
            "cube, or (k, k) for one",
            "give one stamp per channel, not the frames of the cube (average repeated exposures first)",
        )
    return values


def _core(stamp: Image, name: str) -> Core:
    try:
        return fit_core(stamp)
    except ValueError as error:
        remedy = "check that the file holds the unsaturated image of the star, off the coronagraph"
        raise SequenceError(name, str(error), "the image of one star", remedy) from error


def _note_level(stamps: Image, cores: list[Core], name: str, notes: list[str]) -> None:
    edge = np.concatenate(
        [stamps[:, 0], stamps[:, -1], stamps[:, 1:-1, 0], stamps[:, 1:-1, -1]], axis=-1
    )
    level = np.median(edge, axis=-1)
    share = float(np.abs(level * stamps[0].size / stamps.sum(axis=(-2, -1))).max())
    if share > NOTED_LEVEL:
        text = (
            f"The border of the PSF of {name} has a level that makes {share:.0%} of its flux; nothing was "
            "subtracted. If that is sky and not the halo of the star, subtract it: it counts as the star's flux."
        )
        notes.append(text)
        if share > DOUBTFUL_LEVEL:
            logger.warning(text)


def _trimmed(stamps: Image, largest: int, name: str, notes: list[str]) -> Image:
    """Cut what holds no flux from a large stamp, and what does not fit on the frames."""
    side = stamps.shape[-1]
    smaller = side if side <= LARGEST_UNTRIMMED else trimmed_side(stamps, KEPT_FLUX)
    smaller = min(smaller, largest - 1 + largest % 2)
    if smaller == side:
        return stamps
    cut = crop_center(stamps, smaller)
    kept = float((cut.sum(axis=(-2, -1)) / stamps.sum(axis=(-2, -1))).min())
    notes.append(
        f"Trimmed the PSF of {name} from {side} to {smaller} pixels, "
        f"which hold {kept:.1%} of its flux."
    )
    return cut


def _bad_sum(name: str, flux: Image) -> SequenceError:
    remedy = "subtract the background from the PSF, or check that the file is the PSF"
    return SequenceError(name, f"a PSF with sum {_numbers(flux)}", "a positive sum", remedy)


def _numbers(values: Image) -> str:
    shown = ", ".join(f"{v:.6g}" for v in values[:4])
    return shown + (", ..." if len(values) > 4 else "")


def flux_from_aperture(
    psf: NDArray[Any], flux: float | NDArray[Any], fwhm: float | NDArray[Any]
) -> Image:
    r"""
    Total flux of a star from its flux in an aperture of diameter one FWHM.

    .. math::
        F = F_\text{aperture} \Big/ \sum_{\|p\| \leq \text{FWHM}/2} h(p)

    :param numpy.ndarray psf: (C, k, k), unit sum, star at (k//2, k//2).
    :param float flux: flux in the aperture, one value or one per channel.
    :param float fwhm: diameter of the aperture in pixels, one value or one per channel.
    :return: total flux (C,).

    >>> flux_from_aperture(np.full((1, 3, 3), 1 / 9), 1.0, 2.0).round(4)
    array([2.8648])
    """
    # imports deepinv, which takes seconds
    from deepinv_astro.physics.functional.aperture import aperture_flux

    channels, side = psf.shape[0], psf.shape[-1]
    diameters = np.broadcast_to(np.asarray(fwhm, dtype=np.float64), (channels,))
    center = (float(side // 2), float(side // 2))
    stamps = torch.from_numpy(np.asarray(psf, dtype=np.float64))
    part = [
        float(aperture_flux(s, center, d / 2))
        for s, d in zip(stamps, diameters.tolist(), strict=True)
    ]
    total: Image = np.asarray(flux, dtype=np.float64) / np.asarray(part)
    return total
