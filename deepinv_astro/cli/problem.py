"""From a sequence to the problem that the methods solve: operator, centre, first warnings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch

from deepinv_astro.cli.options import missing_psf
from deepinv_astro.io import Sequence, SequenceError
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.centering import StarCenter, estimate_center
from deepinv_astro.physics.functional.psf import half_maximum_width


@dataclasses.dataclass(frozen=True)
class Problem:
    """
    A sequence with its operator, both on one device, and sentences about doubtful input.

    ``calibration_std`` is what an uncertain calibration adds to the standard deviation of the flux
    of a point source, ``(1, C, H, W)``; ``None`` if there is none.
    """

    sequence: Sequence
    physics: ADI
    fwhm: float
    warnings: tuple[str, ...]
    calibration_std: torch.Tensor | None = None

    @property
    def center(self) -> tuple[float, float]:
        """Row and column of the star on the detector."""
        row, column = self.physics.center[0, 0].double().tolist()
        return row, column

    @property
    def sky_center(self) -> tuple[float, float]:
        """Row and column of the star on the sky image."""
        row, column = self.physics.sky_center.double().tolist()
        return row, column


def star_center(sequence: Sequence) -> StarCenter:
    """The star's position from the symmetry of the mean of all frames and channels."""
    return estimate_center(sequence.y[0].nanmean((0, 1)))


def operator(sequence: Sequence, center: tuple[float, float], sky_size: int | None = None) -> ADI:
    """
    Operator of a sequence.

    :param Sequence sequence: the data.
    :param tuple center: row and column of the star on the detector.
    :param int sky_size: rows and columns of the sky image; default those of the detector.
    :return: the operator.
    """
    channels, height, width = sequence.img_size
    size = (height, width) if sky_size is None else (sky_size, sky_size)
    return ADI(
        (channels, *size),
        sequence.angles,
        None if sequence.psf is None else sequence.psf[None],
        center,
        sequence.transmission,
        detector_size=(height, width),
        device=sequence.y.device,
        dtype=sequence.y.dtype,
    )


def check_sky_size(sky_size: int, center: tuple[float, float], detector: tuple[int, int]) -> None:
    """
    See that a sky image is not larger than what turning frames can show.

    :param int sky_size: its rows and columns.
    :param tuple center: row and column of the star on the detector.
    :param tuple detector: rows and columns of the frames.
    :raises SequenceError: if its border is further from the star than any pixel of the frames.

    >>> check_sky_size(91, (20.0, 40.0), (41, 51))
    """
    row, column = (max(c, n - 1 - c) for c, n in zip(center, detector, strict=True))
    largest = 2 * math.ceil(math.hypot(row, column)) + 1
    if sky_size > largest:
        raise SequenceError(
            "`sky_size`",
            str(sky_size),
            f"at most {largest} pixels, as far as a frame sees in any direction",
            f"pass `sky_size={largest}` or less",
        )


def prepare(
    sequence: Sequence,
    device: str = "cpu",
    sky_size: int | None = None,
    doubts: Iterable[str] = (),
) -> Problem:
    """
    Operator of a sequence, its star found in the data if need be.

    :param Sequence sequence: the data.
    :param str device: where to compute.
    :param int sky_size: rows and columns of the sky image; default those of the detector.
    :param doubts: sentences of the reader, the first of the warnings.
    :return: the problem.
    :raises SequenceError: without a PSF, or if no star is found.
    """
    if sequence.psf is None:
        raise missing_psf()
    warnings = list(doubts)
    center = sequence.center
    if center is None:
        found = star_center(sequence)
        center = (found.row, found.column)
        warnings.append(
            f"The star's position is not given: estimated row {found.row:.2f} +- {found.row_std:.2f}, "
            f"column {found.column:.2f} +- {found.column_std:.2f} from the halo's symmetry. "
            "Pass --center if you know it better."
        )
    if sky_size is not None:
        check_sky_size(sky_size, center, sequence.img_size[1:])
    moved = sequence.to(device=torch.device(device))
    return Problem(
        moved,
        operator(moved, center, sky_size),
        half_maximum_width(sequence.psf),
        tuple(warnings),
    )
