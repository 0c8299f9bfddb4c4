"""What ADI can see of a sequence, and sentences about what looks wrong in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deepinv_astro.identifiability import (
    measured_mode_visibility,
    mode_visibility,
    visibility,
)
from deepinv_astro.physics.functional.points import point_image

if TYPE_CHECKING:
    from deepinv_astro.cli.search import SignTest
    from deepinv_astro.io import Sequence
    from deepinv_astro.physics import ADI

#: Separations of the table, in PSF widths.
WIDTHS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
#: Less rotation than this, in degrees, is worth a warning.
LITTLE_ROTATION = 15.0
#: Star centres that differ by more pixels than this are worth a warning.
CENTER_TOLERANCE = 0.5

UNCONSTRAINED = (
    "Structure that does not change when turned about the star (angular mode 0, such as a face-on ring) is not "
    "constrained by this sequence, for any amount of rotation: it cannot be told from the star's own halo. Its absence "
    "from the image is no evidence that it does not exist; frames of a reference star would be needed."
)


class Reach(NamedTuple):
    """What the rotation gives at one separation."""

    separation_px: float
    arc_px: float
    arc_fwhm: float
    point_visibility: float


def rotation_range(angles: Tensor) -> float:
    """
    Degrees between the extreme angles, jumps by a full turn undone.

    >>> rotation_range(torch.tensor([350.0, 358.0, 6.0, 14.0]))
    24.0
    """
    track = np.unwrap(angles.double().cpu().numpy(), period=360.0)
    return float(track.max() - track.min())


def reach(sequence: Sequence, physics: ADI, fwhm: float) -> list[Reach]:
    """
    Arc and visibility of a point source at separations from one PSF width to the edge.

    :param Sequence sequence: the data.
    :param ADI physics: its operator, with the PSF.
    :param float fwhm: of the PSF, in pixels.
    :return: a row for each separation.
    """
    turn = math.radians(rotation_range(sequence.angles))
    row, column = physics.sky_center.double().tolist()
    height, width = physics.img_size[1:]
    edge = min(row, height - 1 - row, column, width - 1 - column) - fwhm / 2
    rows = []
    for radius in (w * fwhm for w in WIDTHS):
        if radius > edge:
            break
        # East of the star: any other direction sees the same on a large enough detector
        at = torch.tensor([[row, row], [column - radius, column + radius]]).to(physics.sky_center)
        point = point_image((height, width), at[0], at[1])[:, None].expand(
            -1, physics.img_size[0], -1, -1
        )
        seen = float(visibility(point, physics).mean())
        rows.append(Reach(radius, radius * turn, radius * turn / fwhm, seen))
    return rows


def mode_list(
    angles: Tensor, modes: int = 11, physics: ADI | None = None
) -> list[dict[str, float]]:
    """Visibility of each angular mode, for a report; through the operator as well if it is given."""
    fractions = mode_visibility(angles.double(), modes).abs().tolist()
    entries = [{"mode": m, "visibility": round(v, 6)} for m, v in enumerate(fractions)]
    if physics is not None:
        measured = measured_mode_visibility(physics, modes).tolist()
        for entry, value in zip(entries, measured, strict=True):
            entry["measured"] = round(value, 6)
    return entries


def rotation_warnings(sequence: Sequence, fwhm: float) -> list[str]:
    """Little rotation, for the sequence or near the star."""
    turn = rotation_range(sequence.angles)
    blind = fwhm / math.radians(turn)
    if turn < LITTLE_ROTATION:
        return [
            f"Little rotation: {turn:.1f} degrees. Within {blind:.0f} px of the star the sky moves by less than one "
            "PSF width, and sources there are mostly lost with the halo."
        ]
    return []


def missing_warnings(sequence: Sequence) -> list[str]:
    """Missing data."""
    valid = sequence.valid
    lost = 1 - float(valid.double().mean())
    if lost == 0:
        return []
    never = int((~valid).all(2).sum())
    text = f"Missing data: {lost:.3%} of the values"
    return [f"{text}; {never} pixels have none in any frame." if never else f"{text}."]


def center_warnings(assumed: tuple[float, float], found: tuple[float, float]) -> list[str]:
    """A star that seems to be elsewhere."""
    apart = math.dist(assumed, found)
    if apart <= CENTER_TOLERANCE:
        return []
    return [
        f"The halo is symmetric about row {found[0]:.2f}, column {found[1]:.2f}, {apart:.1f} px from the assumed "
        f"centre ({assumed[0]:.2f}, {assumed[1]:.2f}). Check it, or pass --center {found[0]:.2f},{found[1]:.2f}."
    ]


def sign_warnings(test: SignTest) -> list[str]:
    """Angles that seem to have the wrong sign."""
    if not test.suspicious:
        return []
    return [
        f"The angles may have the wrong sign: with their signs changed a source of {test.reversed:.0f} sigma stands "
        f"out, as given the highest peak has {test.as_given:.1f}. Check the dialect, or try --reverse-angles."
    ]
