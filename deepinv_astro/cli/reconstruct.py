"""``deepinv-astro reconstruct``: from the files of one star to an image of its surroundings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinv_astro.cli.calibrate import AnotherPsfOption, CalibrationOption
from deepinv_astro.cli.errors import heard_warnings, one_clear_line
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
    TargetOption,
    TransmissionOption,
    TrueNorthOption,
    WavelengthOption,
)

if TYPE_CHECKING:
    from rich.console import Console

    from deepinv_astro.cli.learned import Network
    from deepinv_astro.cli.problem import Problem

DEVICES = ("cpu", "cuda", "mps", "xpu")
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the results. Default: CUBE_METHOD, here."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that exist in the folder.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="Network of the method learned. Default: the package's own."),
]
AdaptOption = Annotated[
    int | None,
    typer.Option(
        "--adapt",
        min=0,
        metavar="STEPS",
        help="Fit the method learned to this sequence: 0, the brightness of rings about the star; more, weights of "
        "the network as well, by at most so many steps.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]


def reconstruct(
    cube: CubeArgument,
    angles: AnglesArgument = None,
    psf: PsfArgument = None,
    another_psf: AnotherPsfOption = None,
    method: Annotated[Method, typer.Option(help="Reconstruction method.")] = Method.MARGINAL,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
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
    calibration: CalibrationOption = None,
    threshold: Annotated[float, typer.Option(min=1.0, help="Least S/N of a point source.")] = 5.0,
    components: Annotated[
        int, typer.Option(min=1, help="Components of pca, last rank of ipca.")
    ] = 10,
    weights: WeightsOption = None,
    adapt: AdaptOption = None,
    sky_size: Annotated[
        int | None, typer.Option(min=16, help="Rows and columns of the image. Default: the cube's.")
    ] = None,
    device: DeviceOption = "cpu",
    seed: Annotated[int, typer.Option(help="Of anything random.")] = 0,
) -> None:
    """Reconstruct a North-up image and its point sources; write FITS, PNG and a JSON report."""
    with one_clear_line():
        from deepinv_astro.cli.folder import check_results, make_folder

        folder = out or Path(f"{_stem(cube)}_{method.value}")
        files = SequenceFiles(
            cube, angles, psf, center, pixel_scale, true_north, dialect, reverse_angles, hdu,
            bad_pixels, transmission, wavelength, star_flux, star_flux_aperture, angles_unit, target,
        )  # fmt: skip
        # what is quickly seen comes first: torch takes seconds to import, and deepinv again
        files.check()
        files.check_psf()
        check_results(folder, overwrite)
        _check_calibration(calibration, another_psf or [])
        _check_learned(method, weights, adapt)
        check_device(device)
        network = None
        if method is Method.LEARNED:
            from deepinv_astro.cli.learned import read_network

            network = read_network(weights, adapt)

        with heard_warnings() as doubts:
            sequence = files.read()

        from rich.console import Console

        from deepinv_astro.cli.problem import prepare

        if another_psf:
            from deepinv_astro.cli.calibrated import with_psfs

            sequence, psfs = with_psfs(sequence, another_psf)
        problem = prepare(sequence, device, sky_size, doubts)
        if calibration is not None:
            from deepinv_astro.cli.calibrated import read_calibration

            problem = read_calibration(calibration, problem)
        if another_psf:
            from deepinv_astro.cli.calibrated import calibrate_psf

            problem = calibrate_psf(problem, psfs)
        make_folder(folder, overwrite)
        settings = {
            "threshold": threshold,
            "seed": seed,
            "files": [cube, angles, psf, *(another_psf or [])],
            "calibration": calibration,
        }
        run(Console(), problem, method, folder, settings, components, overwrite, network)


def run(
    console: Console,
    problem: Problem,
    method: Method,
    folder: Path,
    settings: dict[str, Any],
    components: int = 10,
    overwrite: bool = False,
    network: Network | None = None,
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
    :param Network network: of the method ``learned``; default: the weights of the package.
    :return: the content of the report.
    """
    import torch

    from deepinv_astro.cli import checks, methods
    from deepinv_astro.cli import report as reporting
    from deepinv_astro.cli.folder import NAMES, UNFINISHED
    from deepinv_astro.cli.progress import Stages
    from deepinv_astro.cli.search import search, sign_test
    from deepinv_astro.io.atomic import atomic_path
    from deepinv_astro.io.strict_json import to_json

    torch.manual_seed(settings["seed"])
    for note in problem.warnings:
        console.print(note, highlight=False, style="yellow")
    clock = [time.perf_counter()]
    with Stages() as stages:
        solution = methods.solve(method, problem, stages, components, network, settings["seed"])
        # written at once, so that it survives whatever happens to the search
        unfinished = folder / UNFINISHED
        reporting.write_image(unfinished, problem, method, solution, None, overwrite=True)
        clock.append(time.perf_counter())
        found = search(problem, stages, settings["threshold"])
        clock.append(time.perf_counter())
        stages.begin("checks and files", 1)
        doubts = [] if any(found.sources) else checks.sign_warnings(sign_test(problem))
        seconds = {"image": clock[1] - clock[0], "search": clock[2] - clock[1]}
        content = reporting.report(problem, method, solution, found, settings, seconds, doubts)
        image, picture, text = (folder / name for name in NAMES)
        # the three appear together: an interrupted command leaves nothing in its own way
        with atomic_path(picture, overwrite) as drawn, atomic_path(text, overwrite) as written:
            reporting.write_quicklook(drawn, problem, method, solution, found, content)
            written.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
            reporting.write_image(image, problem, method, solution, found, overwrite)
        unfinished.unlink(missing_ok=True)
    _print(console, content, folder, [w for w in content["warnings"] if w not in problem.warnings])
    return content


def _check_calibration(calibration: Path | None, psfs: list[Path]) -> None:
    from deepinv_astro.io.files import existing_file

    if calibration is not None:
        existing_file(calibration, "calibration")
        if psfs:
            raise ValueError(
                "`calibration`: found --psf beside it; the file has the PSF: leave --psf out"
            )
    for path in psfs:
        existing_file(path, "PSF")


def _check_learned(method: Method, weights: Path | None, adapt: int | None) -> None:
    from deepinv_astro.io.files import existing_file

    for name, value in (("weights", weights), ("adapt", adapt)):
        if value is not None and method is not Method.LEARNED:
            raise ValueError(
                f"`{name}`: found {value} with the method {method.value}, which has no network; pass "
                f"`method=learned`, or leave out `{name}`"
            )
    if weights is not None:
        existing_file(weights, "weights")


def check_device(name: str) -> None:
    """
    See that a device can be used.

    :param str name: as torch calls it.
    :raises ValueError: if it cannot.
    """
    if name.split(":")[0] not in DEVICES:
        raise ValueError(f"`device`: found {name!r}; expected one of {', '.join(DEVICES)}")
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is in the error as well
            torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        message = f"`device`: PyTorch cannot use {name!r} here ({reason}); pass `device=cpu`"
        raise ValueError(message) from error


def _stem(cube: Path) -> str:
    """Name of a file without the endings of FITS files."""
    name = cube.resolve().name
    for ending in (".gz", ".fits", ".fit", ".fts", ".npz"):
        name = name.removesuffix(ending)
    return name


def _print(console: Console, content: dict[str, Any], folder: Path, warnings: list[str]) -> None:
    from deepinv_astro.cli.folder import NAMES
    from deepinv_astro.cli.report import sources_table

    least = content["settings"]["threshold"]
    points = [e for e in content["sources"] if e["kind"] == "point"]
    pieces = len(content["sources"]) - len(points)
    if points:
        console.print(sources_table(points))
    else:
        console.print(f"No point source above {least:g} sigma.")
    if pieces:
        rest = "" if content["sources_complete"] else ", and fainter points may hide among them"
        console.print(
            f"Extended structure: {pieces} peaks above {least:g} sigma lie along it{rest} (see report.json)."
        )
    for note in content["notes"]:
        console.print(note, highlight=False)
    for warning in warnings:
        console.print(f"[bold yellow]Warning[/] {warning}", highlight=False)
    console.print(content["unconstrained"], style="dim", highlight=False)
    for name in NAMES:
        console.print(f"Wrote {folder / name}", highlight=False, soft_wrap=True)
