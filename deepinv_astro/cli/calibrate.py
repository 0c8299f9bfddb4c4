"""``deepinv-astro calibrate``: what a sequence tells of its instrument."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepinv_astro.cli.errors import heard_warnings, one_clear_line
from deepinv_astro.cli.options import (
    AnglesArgument,
    AnglesUnitOption,
    BadPixelsOption,
    CenterOption,
    CubeArgument,
    DialectOption,
    HduOption,
    PixelScaleOption,
    PsfArgument,
    ReverseAnglesOption,
    SequenceFiles,
    StarApertureOption,
    StarFluxOption,
    TargetOption,
    TransmissionOption,
    TrueNorthOption,
    WavelengthOption,
)

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from deepinv_astro.cli.calibrated import Settings
    from deepinv_astro.cli.problem import Problem

_PRIOR = "What is known before"


class Parameter(str, Enum):
    """What may be free."""

    CENTER = "center"
    ANGLES = "angles"
    GAIN = "gain"
    PSF = "psf"


AnotherPsfOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--psf",
        help="Another image of the star off the coronagraph, such as the one taken after the "
        "sequence; repeat for more. With two or more the PSF is free between them.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option("--calibration", help="calibration.json of deepinv-astro calibrate."),
]


def calibrate(
    cube: CubeArgument,
    angles: AnglesArgument = None,
    psf: PsfArgument = None,
    another_psf: AnotherPsfOption = None,
    free: Annotated[
        list[Parameter] | None,
        typer.Option(
            help="Free parameter, repeat for more. Default: center, gain, and psf if there are several."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results. Default: CUBE_calibration, here."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist in the folder.")
    ] = False,
    center_std: Annotated[
        float, typer.Option(min=1e-6, help="Error of the centre, px.", rich_help_panel=_PRIOR)
    ] = 0.3,
    angle_std: Annotated[
        float,
        typer.Option(min=1e-6, help="Error of each angle, degrees.", rich_help_panel=_PRIOR),
    ] = 0.1,
    north_std: Annotated[
        float, typer.Option(min=1e-6, help="Error of true North, degrees.", rich_help_panel=_PRIOR)
    ] = 0.2,
    gain_std: Annotated[
        float, typer.Option(min=1e-6, help="Error of each gain.", rich_help_panel=_PRIOR)
    ] = 0.05,
    iterations: Annotated[int, typer.Option(min=1, help="Most alternations.")] = 6,
    target: TargetOption = "",
    center: CenterOption = None,
    star_flux: StarFluxOption = None,
    star_flux_aperture: StarApertureOption = None,
    pixel_scale: PixelScaleOption = None,
    true_north: TrueNorthOption = 0.0,
    transmission: TransmissionOption = None,
    wavelength: WavelengthOption = None,
    bad_pixels: BadPixelsOption = None,
    dialect: DialectOption = "generic",
    angles_unit: AnglesUnitOption = "auto",
    reverse_angles: ReverseAnglesOption = False,
    hdu: HduOption = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Fit centre, angles, gains and PSF to a sequence; say what it cannot tell; write JSON and PNG."""
    with one_clear_line():
        from deepinv_astro.cli.reconstruct import _stem, check_device

        folder = out or Path(f"{_stem(cube)}_calibration")
        files = SequenceFiles(
            cube, angles, psf, center, pixel_scale, true_north, dialect, reverse_angles, hdu,
            bad_pixels, transmission, wavelength, star_flux, star_flux_aperture, angles_unit, target,
        )  # fmt: skip
        files.check()
        files.check_psf()
        _check(folder, another_psf or [], overwrite)
        check_device(device)

        with heard_warnings() as doubts:
            sequence = files.read()

        from rich.console import Console

        from deepinv_astro.cli.calibrated import Settings, with_psfs
        from deepinv_astro.cli.problem import prepare

        sequence, psfs = with_psfs(sequence, another_psf or [])
        problem = prepare(sequence, device, None, doubts)
        several = [Parameter.PSF] if len(psfs) > 1 else []
        chosen = free or [Parameter.CENTER, Parameter.GAIN, *several]
        settings = Settings(
            tuple(p.value for p in chosen), center_std, angle_std, north_std, gain_std, iterations
        )
        run(Console(), problem, psfs, settings, folder, overwrite)


def run(
    console: Console,
    problem: Problem,
    psfs: list[Tensor],
    settings: Settings,
    folder: Path,
    overwrite: bool,
) -> None:
    """
    Calibrate, write and print.

    :param rich.console.Console console: for the results.
    :param Problem problem: data and operator.
    :param list psfs: the measured PSFs, as tensors.
    :param Settings settings: what is free, and what is known of it before.
    :param pathlib.Path folder: where to write; checked before.
    :param bool overwrite: whether results may be replaced.
    """
    from deepinv_astro.cli import calibrated
    from deepinv_astro.cli.progress import Stages

    for note in problem.warnings:
        console.print(note, highlight=False, style="yellow")
    with Stages() as stages:
        outcome = calibrated.solve(problem, psfs, settings, stages)
        content = calibrated.report(problem, outcome, settings)
        calibrated.write(folder, problem, outcome, content, overwrite)
    calibrated.show(console, content)
    for name in calibrated.NAMES:
        console.print(f"Wrote {folder / name}", highlight=False, soft_wrap=True)


def _check(folder: Path, psfs: list[Path], overwrite: bool) -> None:
    """What can be seen before anything heavy is imported."""
    from deepinv_astro.io.atomic import check_free
    from deepinv_astro.io.files import existing_file

    for path in psfs:
        existing_file(path, "PSF")
    for name in ("calibration.png", "calibration_std.fits", "calibration.json"):
        check_free(folder / name, overwrite)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        message = (
            f"cannot make the folder {folder}: {existing} is a file; choose another with `out`"
        )
        raise NotADirectoryError(message)
    if not os.access(existing, os.W_OK | os.X_OK):
        message = (
            f"cannot write in the folder {existing}: its mode forbids it; choose another with `out`"
        )
        raise PermissionError(message)
