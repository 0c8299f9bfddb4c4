"""What instruments and codes store: one function per convention, in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from deepinv_astro.io.errors import SequenceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Angles: TypeAlias = "NDArray[np.float64]"


class AnglesUnit(str, Enum):
    """Unit of the angles in a file; ``AUTO`` trusts the header and otherwise expects degrees."""

    AUTO = "auto"
    DEG = "deg"
    RAD = "rad"


@dataclasses.dataclass(frozen=True)
class Dialect:
    """
    How files of one origin are to be read.

    :param str name: its key in :data:`DIALECTS`.
    :param derotation: stored angles to derotation angles, in degrees.
    :param center: (H, W) to the star's (row, column); None where the origin fixes none.
    :param str wavelength_unit: unit of wavelengths without one; '' to tell it by value.
    :param str note: the sentence that the provenance gets.
    :param dict patterns: file name patterns of the parts, for a folder.

    >>> import numpy as np
    >>> DIALECTS["sphere-dc"].derotation(np.array([-111.5, -182.4]))
    array([111.5, 182.4])
    """

    name: str
    derotation: Callable[[Angles], Angles]
    center: Callable[[tuple[int, int]], tuple[float, float] | None]
    wavelength_unit: str
    note: str
    patterns: dict[str, str] = dataclasses.field(default_factory=dict)


def as_stored(angles: Angles) -> Angles:
    """
    The stored angle brings North up, counter-clockwise as displayed: VIP, PynPoint.

    >>> import numpy as np
    >>> as_stored(np.array([3.0]))
    array([3.])
    """
    return angles


def opposite(angles: Angles) -> Angles:
    """
    The stored angle is that of the sky on the detector: SPHERE Data Center's ``rotnth``.

    >>> import numpy as np
    >>> opposite(np.array([3.0]))
    array([-3.])
    """
    return -angles


def no_center(shape: tuple[int, int]) -> tuple[float, float] | None:
    """The files say nothing of where the star is."""
    return None


def fft_center(shape: tuple[int, int]) -> tuple[float, float]:
    """
    The pixel that the FFT takes for the origin: (512, 512) of 1024.

    >>> fft_center((1024, 801))
    (512.0, 400.0)
    """
    return float(shape[0] // 2), float(shape[1] // 2)


def geometric_center(shape: tuple[int, int]) -> tuple[float, float]:
    """
    The middle of the array, between pixels for even sizes.

    >>> geometric_center((100, 81))
    (49.5, 40.0)
    """
    return (shape[0] - 1) / 2, (shape[1] - 1) / 2


DIALECTS: dict[str, Dialect] = {
    "generic": Dialect(
        "generic",
        as_stored,
        no_center,
        "",
        "Read as generic (VIP) files: the stored angles are derotation angles.",
    ),
    "sphere-dc": Dialect(
        "sphere-dc",
        opposite,
        fft_center,
        "um",
        "Read as files of the SPHERE Data Center: changed the sign of the angles; "
        "star at (H//2, W//2) unless given.",
        {
            "cube": "*SCIENCE_REDUCED*MASTER_CUBE*center_im.fits*",
            "angles": "*PARA_ROTATION_CUBE*rotnth.fits*",
            "psf": "*PSF_MASTER_CUBE*median_unsat.fits*",
            "wavelengths": "*LAMBDA_INFO*lam.fits*",
        },
    ),
    "pynpoint": Dialect(
        "pynpoint",
        as_stored,
        geometric_center,
        "",
        "Read as files exported from PynPoint: the angles are PARANG, "
        "star at ((H-1)/2, (W-1)/2) unless given.",
    ),
}


def get_dialect(dialect: str | Dialect) -> Dialect:
    """
    A dialect by name.

    :param dialect: a key of :data:`DIALECTS`, or a :class:`Dialect` of your own.
    :return: the dialect.
    :raises SequenceError: if the name is unknown.

    >>> get_dialect("pynpoint").center((4, 7))
    (1.5, 3.0)
    """
    if isinstance(dialect, Dialect):
        return dialect
    if dialect not in DIALECTS:
        raise SequenceError(
            "`dialect`", repr(dialect), f"one of {', '.join(DIALECTS)}", "pass `dialect='generic'`"
        )
    return DIALECTS[dialect]


def get_angles_unit(unit: AnglesUnit | str) -> AnglesUnit:
    """
    A unit of angles by name.

    :param unit: ``'auto'``, ``'deg'``, ``'rad'``, or the :class:`AnglesUnit` itself.
    :return: the unit.
    :raises SequenceError: if the name is unknown.

    >>> get_angles_unit("rad").name
    'RAD'
    """
    try:
        return AnglesUnit(unit)
    except ValueError as error:
        known = ", ".join(repr(a.value) for a in AnglesUnit)
        remedy = "pass `angles_unit='deg'`"
        raise SequenceError("`angles_unit`", repr(unit), f"one of {known}", remedy) from error
