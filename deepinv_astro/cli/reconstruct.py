"""``deepinv-astro reconstruct``: from the files of one star to an image of its surroundings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinv_astro.cli.errors import one_clear_line
from deepinv_astro.cli.methods import Method
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
    TransmissionOption,
    TrueNorthOption,
    WavelengthOption,
)

if TYPE_CHECKING:
    from rich.console import Console

    from deepinv_astro.cli.problem import Problem

OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the results. Default: CUBE_METHOD, here."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that exist in the folder.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]


def reconstruct(
    cube: CubeArgument,
    angles: AnglesArgument = None,
    psf: PsfArgument = None,
    method: Annotated[Method, typer.Option(help="Reconstruction method.")] = Method.MARGINAL,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
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
    threshold: Annotated[float, typer.Option(min=1.0, help="Least S/N of a point source.")] = 5.0,
    components: Annotated[
        int, typer.Option(min=1, help="Components of pca, last rank of ipca.")
    ] = 10,
    sky_size: Annotated[
        int | None, typer.Option(min=16, help="Rows and columns of the image. Default: the cube's.")
    ] = None,
    device: DeviceOption = "cpu",
    seed: Annotated[int, typer.Option(help="Of anything random.")] = 0,
) -> None:
    """Reconstruct a North-up image and its point sources; write FITS, PNG and a JSON report."""
    with one_clear_line():
        from rich.console import Console

        from deepinv_astro.cli.report import check_folder

        folder = out or Path(f"{_stem(cube)}_{method.value}")
        files = SequenceFiles(
            cube, angles, psf, center, pixel_scale, true_north, dialect, reverse_angles, hdu,
            bad_pixels, transmission, wavelength, star_flux, star_flux_aperture, angles_unit,
        )  # fmt: skip
        check_device(device)
        problem = _read(files, device, sky_size)
        check_folder(folder, overwrite)
        settings = {"threshold": threshold, "seed": seed, "files": [cube, angles, psf]}
        run(Console(), problem, method, folder, settings, components, overwrite)


def run(
    console: Console,
    problem: Problem,
    method: Method,
    folder: Path,
    settings: dict[str, Any],
    components: int = 10,
    overwrite: bool = False,
) -> dict[str, Any]:
    """
    Solve, search, write and print.

    :param rich.console.Console console: for the results.
    :param Problem problem: data and operator.
    :param Method method: by what to solve it.
    :param pathlib.Path folder: where to write; checked before.
    :param dict settings: threshold and seed, and what else is to be recorded.
    :param int components: of PCA.
    :param bool overwrite: whether results may be replaced.
    :return: the content of the report.
    """
    import torch

    from deepinv_astro.cli import checks, methods
    from deepinv_astro.cli import report as reporting
    from deepinv_astro.cli.progress import Stages
    from deepinv_astro.cli.search import search, sign_test
    from deepinv_astro.io import atomic_path, write_json

    torch.manual_seed(settings["seed"])
    for note in problem.warnings:
        console.print(note, highlight=False, style="yellow")
    clock = [time.perf_counter()]
    with Stages() as stages:
        solution = methods.solve(method, problem, stages, components)
        # written at once, so that it survives whatever happens to the search
        reporting.write_image(folder, problem, method, solution, None, overwrite)
        clock.append(time.perf_counter())
        found = search(problem, stages, settings["threshold"])
        clock.append(time.perf_counter())
        stages.begin("checks and files", 1)
        doubts = [] if any(found.sources) else checks.sign_warnings(sign_test(problem))
        seconds = {"image": clock[1] - clock[0], "search": clock[2] - clock[1]}
        content = reporting.report(problem, method, solution, found, settings, seconds, doubts)
        reporting.write_image(folder, problem, method, solution, found, overwrite=True)
        with atomic_path(folder / reporting.NAMES[1], overwrite) as temporary:
            reporting.write_quicklook(
                temporary, problem, method, solution, found, content["sources"]
            )
        write_json(folder / reporting.NAMES[2], content, overwrite)
    _print(console, content, folder, [w for w in content["warnings"] if w not in problem.warnings])
    return content


def check_device(name: str) -> None:
    """
    See that a device can be used.

    :param str name: as torch calls it.
    :raises ValueError: if it cannot.
    """
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: {name!r} cannot be used here ({reason}); use cpu") from error


def _read(files: SequenceFiles, device: str, sky_size: int | None) -> Problem:
    from deepinv_astro.cli.problem import prepare

    return prepare(files.read(), device, sky_size)


def _stem(cube: Path) -> str:
    """Name of a file without the endings of FITS files."""
    name = cube.resolve().name
    for ending in (".gz", ".fits", ".fit", ".fts", ".npz"):
        name = name.removesuffix(ending)
    return name


def _print(console: Console, content: dict[str, Any], folder: Path, warnings: list[str]) -> None:
    from deepinv_astro.cli.report import NAMES, sources_table

    least = content["settings"]["threshold"]
    points = [e for e in content["sources"] if e["kind"] == "point"]
    pieces = len(content["sources"]) - len(points)
    if points:
        console.print(sources_table(points))
    else:
        console.print(f"No point source above {least:g} sigma.")
    if pieces:
        console.print(
            f"Extended structure: {pieces} more peaks above {least:g} sigma lie along it (see report.json)."
        )
    for warning in warnings:
        console.print(f"[bold yellow]Warning[/] {warning}", highlight=False)
    console.print(content["unconstrained"], style="dim", highlight=False)
    for name in NAMES:
        console.print(f"Wrote {folder / name}", highlight=False, soft_wrap=True)
