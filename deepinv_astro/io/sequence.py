"""The sequence of one star: tensors, units and what was done to them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import astropy.units as u
import torch
from torch import Tensor

from deepinv_astro.io.errors import SequenceError


@dataclasses.dataclass(frozen=True, eq=False)
class Sequence:
    r"""
    An angular differential imaging sequence, as the reconstruction methods need it.

    .. math::
        y_t = s_t + H Q_t x + n_t, \qquad t = 1 \dots T

    :param torch.Tensor y: frames (1, C, T, H, W) in ``unit``; missing data are NaN.
    :param torch.Tensor angles: derotation angles (T,) in degrees, float64, ``true_north`` included.
    :param torch.Tensor psf: off-axis PSF (C, k, k), k odd, unit sum, star at (k//2, k//2); or None.
    :param torch.Tensor star_flux: flux (C,) in ``unit`` by which the star's image is ``psf`` times
        it; or None.
    :param tuple center: (row, column) of the star on the detector in float pixels; None if unknown.
    :param astropy.units.Quantity pixel_scale: angle per pixel; None if unknown.
    :param astropy.units.Quantity wavelengths: (C,); None if unknown.
    :param torch.Tensor transmission: coronagraph transmission (H, W) on the detector; or None.
    :param float true_north: degrees, already added to ``angles``, kept for the record.
    :param astropy.units.UnitBase unit: unit of ``y``; dimensionless if the file names none.
    :param str target: name of the star.
    :param tuple provenance: one sentence per correction applied, in order.
    :raises SequenceError: if shapes or values do not fit together.

    >>> seq = Sequence(y=torch.ones(1, 1, 3, 5, 7), angles=torch.tensor([0.0, 10.0, 25.0]))
    >>> seq.select([0, 2]).angles
    tensor([ 0., 25.], dtype=torch.float64)
    """

    y: Tensor
    angles: Tensor
    psf: Tensor | None = None
    star_flux: Tensor | None = None
    center: tuple[float, float] | None = None
    pixel_scale: u.Quantity | None = None
    wavelengths: u.Quantity | None = None
    transmission: Tensor | None = None
    true_north: float = 0.0
    unit: u.UnitBase = u.dimensionless_unscaled
    target: str = ""
    provenance: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_frames(self.y)
        object.__setattr__(self, "angles", torch.as_tensor(self.angles).to(torch.float64))
        object.__setattr__(self, "provenance", tuple(self.provenance))
        _check_angles(self.angles, self.y.shape[2])
        _check_psf(self.psf, self.y)
        _check_star_flux(self.star_flux, self.y.shape[1])
        if self.center is not None:
            object.__setattr__(self, "center", check_center(self.center, self.img_size[1:]))
        _check_units(self.pixel_scale, self.wavelengths, self.y.shape[1])
        _check_transmission(self.transmission, self.img_size[1:])

    @property
    def valid(self) -> Tensor:
        """Where the data exist: True (1, C, T, H, W) where ``y`` is finite."""
        return torch.isfinite(self.y)

    @property
    def n_frames(self) -> int:
        """Number of frames T."""
        return int(self.y.shape[2])

    @property
    def img_size(self) -> tuple[int, int, int]:
        """Size (C, H, W) of one frame."""
        _, channels, _, height, width = self.y.shape
        return int(channels), int(height), int(width)

    def select(self, frames: Any) -> Sequence:
        """
        The sequence with some of its frames only.

        :param frames: anything that indexes a vector of T values: slice, list, boolean mask.
        :return: a new :class:`Sequence`; the original is unchanged.
        :raises SequenceError: if no frame is left.
        """
        index = torch.arange(self.n_frames)[frames].reshape(-1)
        if len(index) == 0:
            raise SequenceError(
                "`frames`",
                "a selection of no frame",
                f"at least one of the {self.n_frames} frames",
                "select other indices",
            )
        note = f"Selected {len(index)} of {self.n_frames} frames."
        return dataclasses.replace(
            self,
            y=self.y[:, :, index.to(self.y.device)],
            angles=self.angles[index.to(self.angles.device)],
            provenance=(*self.provenance, note),
        )

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Sequence:
        """
        The sequence in another floating type or on another device; angles stay float64.

        :param torch.dtype dtype: floating type of all tensors but the angles.
        :param device: device of all tensors.
        :return: a new :class:`Sequence`.
        """

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype=dtype, device=device)

        return dataclasses.replace(
            self,
            y=self.y.to(dtype=dtype, device=device),
            angles=self.angles.to(device=device),
            psf=move(self.psf),
            star_flux=move(self.star_flux),
            transmission=move(self.transmission),
        )


def check_center(center: tuple[float, float], shape: tuple[int, int]) -> tuple[float, float]:
    """
    A star centre as two floats, checked to lie on the detector.

    :param tuple center: (row, column) in float pixels, (0, 0) is the centre of the first pixel.
    :param tuple shape: (H, W) of the detector.
    :return: (row, column).
    :raises SequenceError: if it is not two finite numbers, or outside the image.

    >>> check_center((3, 6.5), (5, 8))
    (3.0, 6.5)
    """
    pair = tuple(float(c) for c in center)
    expected = f"(row, column) inside the image of {shape[0]} rows and {shape[1]} columns"
    if len(pair) != 2 or not all(math.isfinite(c) for c in pair):
        raise SequenceError("`center`", str(pair), expected, "give two finite numbers")
    row, column = pair
    if not (-0.5 <= row <= shape[0] - 0.5 and -0.5 <= column <= shape[1] - 0.5):
        remedy = "give the star's position in pixels, row first, counted from 0"
        raise SequenceError("`center`", f"({row:g}, {column:g})", expected, remedy)
    return row, column


def _check_frames(y: Tensor) -> None:
    expected = "a floating tensor (1, C, T, H, W)"
    if y.ndim != 5 or y.shape[0] != 1 or y.numel() == 0:
        raise SequenceError("`y`", f"shape {tuple(y.shape)}", expected, "reshape the frames")
    if not y.is_floating_point():
        raise SequenceError("`y`", str(y.dtype), expected, "convert with y.float()")
    dead = (~torch.isfinite(y)).all(dim=-1).all(dim=-1)[0]
    if bool(dead.any()):
        where = [tuple(i) for i in dead.nonzero().tolist()]
        listed = ", ".join(f"(channel {c}, frame {t})" for c, t in where[:5])
        more = f" and {len(where) - 5} more" if len(where) > 5 else ""
        raise SequenceError(
            "`y`",
            f"no finite pixel in {listed}{more}",
            "data in every frame",
            "remove these frames and their angles from the files",
        )


def _check_angles(angles: Tensor, n_frames: int) -> None:
    if tuple(angles.shape) != (n_frames,):
        raise SequenceError(
            "`angles`",
            f"shape {tuple(angles.shape)}",
            f"({n_frames},), one angle per frame",
            "give the angles of exactly these frames",
        )
    if not bool(torch.isfinite(angles).all()):
        where = (~torch.isfinite(angles)).nonzero().flatten().tolist()
        raise SequenceError(
            "`angles`", f"non-finite values at {where}", "finite degrees", "remove these frames"
        )


def _check_psf(psf: Tensor | None, y: Tensor) -> None:
    if psf is None:
        return
    channels, height, width = y.shape[1], y.shape[3], y.shape[4]
    if psf.ndim != 3 or psf.shape[0] != channels or psf.shape[1] != psf.shape[2]:
        raise SequenceError(
            "`psf`",
            f"shape {tuple(psf.shape)}",
            f"({channels}, k, k): a square stamp for each of the {channels} channels",
            "give one PSF per channel",
        )
    k = psf.shape[-1]
    if k % 2 == 0:
        raise SequenceError("`psf`", f"{k} pixels", "an odd side", "read it with read_sequence")
    if k > min(height, width):
        raise SequenceError(
            "`psf`",
            f"a stamp of {k} x {k} pixels",
            f"at most the image, {height} x {width}",
            "crop the PSF about its star",
        )
    total = psf.double().sum(dim=(-2, -1))
    if not bool(((total - 1).abs() < 1e-4).all()):
        raise SequenceError(
            "`psf`",
            f"sums {[round(v, 6) for v in total.tolist()]}",
            "unit sums",
            "divide each stamp by its sum",
        )


def _check_star_flux(star_flux: Tensor | None, channels: int) -> None:
    if star_flux is None:
        return
    if tuple(star_flux.shape) != (channels,):
        raise SequenceError(
            "`star_flux`",
            f"shape {tuple(star_flux.shape)}",
            f"({channels},), one flux per channel",
            "give one value per channel",
        )
    if not bool((torch.isfinite(star_flux) & (star_flux > 0)).all()):
        raise SequenceError(
            "`star_flux`",
            str(star_flux.tolist()),
            "positive finite fluxes",
            "give the star's flux in the unit of the cube, or leave it out",
        )


def _check_units(
    pixel_scale: u.Quantity | None, wavelengths: u.Quantity | None, channels: int
) -> None:
    if pixel_scale is not None and (
        not pixel_scale.isscalar
        or not pixel_scale.unit.is_equivalent(u.rad)
        or not (math.isfinite(pixel_scale.value) and pixel_scale.value > 0)
    ):
        raise SequenceError(
            "`pixel_scale`",
            str(pixel_scale),
            "one positive angle",
            "write for example `pixel_scale='27.19 mas'`",
        )
    if wavelengths is None:
        return
    if wavelengths.shape != (channels,) or not wavelengths.unit.is_equivalent(u.m):
        raise SequenceError(
            "`wavelengths`",
            f"shape {wavelengths.shape}, unit '{wavelengths.unit}'",
            f"({channels},) in a unit of length",
            "give one wavelength per channel, such as [1.593, 1.667] * u.um",
        )
    if not all(math.isfinite(v) and v > 0 for v in wavelengths.value.tolist()):
        raise SequenceError(
            "`wavelengths`", str(wavelengths), "positive finite values", "check the file"
        )


def _check_transmission(transmission: Tensor | None, shape: tuple[int, int]) -> None:
    if transmission is None:
        return
    if tuple(transmission.shape) != tuple(shape):
        raise SequenceError(
            "`transmission`",
            f"shape {tuple(transmission.shape)}",
            f"the detector's {tuple(shape)}",
            "crop the map to the frames, about the star",
        )
    low, high = float(transmission.min()), float(transmission.max())
    if not (low >= 0 and high <= 1.5 and high > 0):
        raise SequenceError(
            "`transmission`",
            f"values from {low:g} to {high:g}",
            "finite fractions between 0 and 1",
            "divide by its value far from the mask; percentages by 100",
        )
