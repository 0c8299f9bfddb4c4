"""Arguments and options shared by the commands, and what they say about the files."""

from __future__ import annotations

import dataclasses
import importlib.util
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepinv_astro.cli.errors import as_options

if TYPE_CHECKING:
    from deepinv_astro.io import Sequence
    from deepinv_astro.io.dialects import Dialect

_DATA, _STAR = "The data", "The star"

CubeArgument = Annotated[
    Path,
    typer.Argument(
        help="FITS cube (T, H, W) or (C, T, H, W); a VIP .npz or a folder holds the rest too."
    ),
]
AnglesArgument = Annotated[
    Path | None, typer.Argument(help="Derotation angles in degrees: FITS, text or CSV.")
]
PsfArgument = Annotated[
    Path | None, typer.Argument(help="The star off the coronagraph: FITS, any size.")
]
CenterOption = Annotated[
    str | None,
    typer.Option(
        "--center",
        metavar="ROW,COLUMN",
        help="Star on the detector in pixels from 0. Default: header, else from the data.",
        rich_help_panel=_STAR,
    ),
]
PixelScaleOption = Annotated[
    str | None,
    typer.Option(
        "--pixel-scale",
        metavar="ANGLE",
        help="Angle per pixel with its unit, such as 27.19mas. Default: header.",
        rich_help_panel=_DATA,
    ),
]
TrueNorthOption = Annotated[
    float,
    typer.Option("--true-north", help="Degrees to add to all angles.", rich_help_panel=_DATA),
]
DialectOption = Annotated[
    str,
    typer.Option("--dialect", help="generic (VIP), sphere-dc or pynpoint.", rich_help_panel=_DATA),
]
ReverseAnglesOption = Annotated[
    bool,
    typer.Option(
        "--reverse-angles", help="Change the sign of the stored angles.", rich_help_panel=_DATA
    ),
]
AnglesUnitOption = Annotated[
    str,
    typer.Option(
        "--angles-unit",
        help="deg, rad, or auto: what the file says, else degrees.",
        rich_help_panel=_DATA,
    ),
]
HduOption = Annotated[
    str | None,
    typer.Option("--hdu", help="Name or number of the cube's HDU.", rich_help_panel=_DATA),
]
BadPixelsOption = Annotated[
    Path | None,
    typer.Option("--bad-pixels", help="FITS map or cube, 1 is bad.", rich_help_panel=_DATA),
]
TransmissionOption = Annotated[
    Path | None,
    typer.Option(
        "--transmission", help="Coronagraph's transmission: map or profile.", rich_help_panel=_DATA
    ),
]
WavelengthOption = Annotated[
    str | None,
    typer.Option(
        "--wavelength",
        help="Such as 3.8um or 1.6um,1.7um, or a file: one per channel.",
        rich_help_panel=_DATA,
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target", help="Name of the star, for titles and headers. Default: header.",
        rich_help_panel=_STAR,
    ),
]  # fmt: skip
StarFluxOption = Annotated[
    float | None,
    typer.Option(
        "--star-flux",
        help="Total flux of the star, unit of the cube. Default: the PSF's sum.",
        rich_help_panel=_STAR,
    ),
]
StarApertureOption = Annotated[
    str | None,
    typer.Option(
        "--star-flux-aperture",
        metavar="FLUX,DIAMETER",
        help="The star's flux in an aperture of that many pixels across, such as 764939.6,4.8.",
        rich_help_panel=_STAR,
    ),
]


class Logger(str, Enum):
    """Services that show a training while it goes on."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"

    def check(self) -> None:
        """
        See that it is installed, without the time to load it.

        :raises ValueError: if not.
        """
        if importlib.util.find_spec(self.value) is None:
            raise ValueError(f"`logger={self.value}` is not installed: pip install {self.value}")


LoggerOption = Annotated[
    Logger | None,
    typer.Option(
        "--logger",
        metavar="SERVICE",
        help="Show the training in tensorboard, wandb or mlflow as well, if you have installed it.",
    ),
]


@dataclasses.dataclass(frozen=True)
class SequenceFiles:
    """What the user says about the files of one sequence; :meth:`read` reads them."""

    cube: Path
    angles: Path | None
    psf: Path | None
    center: str | None = None
    pixel_scale: str | None = None
    true_north: float = 0.0
    dialect: str = "generic"
    reverse_angles: bool = False
    hdu: str | None = None
    bad_pixels: Path | None = None
    transmission: Path | None = None
    wavelength: str | None = None
    star_flux: float | None = None
    star_flux_aperture: str | None = None
    angles_unit: str = "auto"
    target: str = ""

    def check(self) -> None:
        """
        See what is wrong before anything heavy is imported: names of files, and what options say.

        :raises ValueError: if an option is wrong or a file is missing.
        """
        from deepinv_astro.io.dialects import get_angles_unit
        from deepinv_astro.io.files import existing_file

        if not self.cube.is_dir():
            existing_file(self.cube, "cube")
        parts = {
            "angles": self.angles,
            "PSF": self.psf,
            "bad pixels": self.bad_pixels,
            "transmission": self.transmission,
        }
        for role, path in parts.items():
            if path is not None:
                existing_file(path, role)
        if self.psf is not None and self.psf.samefile(self.cube):
            message = f"{self.psf} is given both as `cube` and as `psf`, the image of the star off the coronagraph"
            raise ValueError(message)
        self._center()
        self._aperture()
        self._dialect()
        get_angles_unit(self.angles_unit)
        if self.pixel_scale is not None:
            from deepinv_astro.io.header import as_pixel_scale

            as_pixel_scale(self.pixel_scale)

    def check_psf(self) -> None:
        """
        See that there is a PSF.

        :raises ValueError: without one, unless the cube's file can hold it.
        """
        if self.psf is None and not self.cube.is_dir() and self.cube.suffix.lower() != ".npz":
            raise missing_psf()

    def read(self) -> Sequence:
        """
        Read and check the files.

        :return: the sequence; its ``center`` is None if neither option nor header gives it.
        :raises ValueError: if an option or a file is wrong.
        """
        from deepinv_astro.io import read_sequence

        sequence = read_sequence(
            self.cube,
            self.angles,
            self.psf,
            wavelengths=self._wavelengths(),
            transmission=self.transmission,
            bad_pixels=self.bad_pixels,
            center=self._center(),
            pixel_scale=self.pixel_scale,
            true_north=self.true_north,
            star_flux=self.star_flux,
            star_flux_aperture=self._aperture(),
            hdu=int(self.hdu) if self.hdu is not None and self.hdu.isdigit() else self.hdu,
            dialect=self._dialect(),
            angles_unit=self.angles_unit,
            target=self.target,
        )
        notes = tuple(as_options(note) for note in sequence.provenance)
        return dataclasses.replace(sequence, provenance=notes)

    def _center(self) -> tuple[float, float] | None:
        return None if self.center is None else pair("`center`", self.center, "51,50.5")

    def _aperture(self) -> tuple[float, float] | None:
        text = self.star_flux_aperture
        return None if text is None else pair("`star_flux_aperture`", text, "764939.6,4.8")

    def _dialect(self) -> Dialect:
        from deepinv_astro.io.dialects import get_dialect

        kind = get_dialect(self.dialect)
        if not self.reverse_angles:
            return kind
        return dataclasses.replace(
            kind,
            derotation=lambda stored: -kind.derotation(stored),
            note=f"{kind.note} Then changed the sign of the angles, as asked.",
        )

    def _wavelengths(self) -> str | Path | None:
        if self.wavelength is None or not Path(self.wavelength).is_file():
            return self.wavelength
        return Path(self.wavelength)


def missing_psf() -> ValueError:
    """The error of a sequence without a PSF."""
    from deepinv_astro.io.errors import SequenceError

    remedy = "give its file as third argument"
    return SequenceError("`psf`", "none", "an image of the star off the coronagraph", remedy)


def pair(name: str, text: str, example: str) -> tuple[float, float]:
    """
    Two numbers with a comma between.

    :param str name: argument, for the message.
    :param str text: what the user wrote.
    :param str example: what is right.
    :return: both numbers.
    :raises ValueError: if there are not two numbers.

    >>> pair("`center`", "51, 50.5", "51,50.5")
    (51.0, 50.5)
    """
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        message = f"{name}: found {text!r}; expected two numbers with a comma, such as {example}"
        raise ValueError(message) from error
    return first, second
