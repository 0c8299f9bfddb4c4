"""``deepinv-astro demo``: the main job on an embedded simulated sequence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from deepinv_astro.cli.errors import heard_warnings, one_clear_line
from deepinv_astro.cli.methods import Method

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.datasets import SimulatedSequence

DATA, RESULT, FIGURE = ("cube.fits", "angles.fits", "psf.fits"), "result", "comparison.png"
#: PCA is shown with the number of components that is best by the truth, which no observer knows.
MOST_COMPONENTS = 12

INTRODUCTION = """\
A simulated star with a ring and a planet, 3 to 20 times fainter than the speckles of its halo, seen in \
{frames} frames while the sky turns by {turn:.0f} degrees. Nothing is downloaded."""


class Score(NamedTuple):
    """How an image compares with the truth: decibels on the whole field and on the object, and flux of the disk."""

    whole_db: float
    support_db: float
    disk_flux_ratio: float


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the data and the results.")
    ] = Path("demo"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist in the folder.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the simulated speckles and noise.")] = 0,
) -> None:
    """Find a ring and a planet in a simulated sequence, and compare them with the truth."""
    with one_clear_line():
        from deepinv_astro.cli.folder import check_results, make_folder
        from deepinv_astro.io.atomic import check_free

        for name in (*DATA, FIGURE):
            check_free(out / name, overwrite)
        check_results(out / RESULT, overwrite)

        from rich.console import Console

        from deepinv_astro.cli import checks
        from deepinv_astro.cli.options import SequenceFiles
        from deepinv_astro.cli.problem import prepare
        from deepinv_astro.cli.reconstruct import run

        make_folder(out / RESULT, overwrite)
        console = Console()
        simulation = simulate(seed)
        angles = simulation.sequence.angles
        turn = checks.rotation_range(angles)
        console.print(INTRODUCTION.format(frames=len(angles), turn=turn), highlight=False)
        write_files(simulation.sequence, out, overwrite)
        with heard_warnings() as doubts:
            sequence = SequenceFiles(out / DATA[0], out / DATA[1], out / DATA[2]).read()
        problem = prepare(sequence, doubts=doubts)
        settings = {"threshold": 5.0, "seed": seed, "files": [out / name for name in DATA]}
        content = run(
            console, problem, Method.MARGINAL, out / RESULT, settings, overwrite=overwrite
        )
        compare(console, simulation, problem, content, out, overwrite)
        files = " ".join(str(out / name) for name in DATA)
        command = f"deepinv-astro reconstruct {files} --out {out / 'again'}"
        console.print("The same from the files, as with your own data:")
        console.print(f"  {command}", highlight=False, soft_wrap=True, style="bold")


def simulate(seed: int) -> SimulatedSequence:
    """Simulate the sequence under a progress bar."""
    from deepinv_astro.cli.progress import Stages
    from deepinv_astro.datasets import demo_sequence

    with Stages() as stages:
        stages.begin("simulate the sequence", 1)
        return demo_sequence(seed)


def write_files(sequence: Any, folder: Path, overwrite: bool) -> None:
    """
    Write cube, angles and PSF as an observer has them.

    :param Sequence sequence: the data; the PSF is written with the star's flux.
    :param pathlib.Path folder: where.
    :param bool overwrite: whether existing files may be replaced.
    """
    from astropy.io import fits

    from deepinv_astro.io.atomic import atomic_path

    row, column = sequence.center
    header = fits.Header(
        [
            ("OBJECT", sequence.target),
            ("BUNIT", str(sequence.unit)),
            ("PIXSCALE", float(sequence.pixel_scale.to_value("arcsec")), "[arcsec] per pixel"),
            ("STARCENX", column, "0-based"),
            ("STARCENY", row, "0-based"),
        ]
    )
    star = (sequence.psf * sequence.star_flux[:, None, None])[0]
    arrays = (sequence.y[0, 0].numpy(), sequence.angles.numpy(), star.numpy())
    headers = (header, None, fits.Header([("BUNIT", str(sequence.unit))]))
    for name, array, cards in zip(DATA, arrays, headers, strict=True):
        with atomic_path(folder / name, overwrite) as temporary:
            fits.PrimaryHDU(array, header=cards).writeto(temporary, overwrite=True)


def compare(
    console: Any,
    simulation: SimulatedSequence,
    problem: Problem,
    content: dict[str, Any],
    folder: Path,
    overwrite: bool,
) -> None:
    """Print the table of truth against result, and draw both."""
    import torch
    from astropy.io import fits

    from deepinv_astro.io.atomic import atomic_path
    from deepinv_astro.physics.functional.psf import blur

    psf = problem.sequence.psf
    truth = blur(simulation.x, psf)
    with fits.open(folder / RESULT / "image.fits") as hdus:
        image = torch.from_numpy(hdus[0].data.astype("float32"))[None, None]
    ours = blur(image, psf)
    components, classical = best_pca(problem, truth)
    scores = [score(estimate, simulation, problem) for estimate in (ours, classical)]
    planet = nearest(content["sources"], simulation)
    console.print(comparison_table(simulation, problem, planet, classical, components, scores))
    with atomic_path(folder / FIGURE, overwrite) as temporary:
        draw(temporary, problem, truth, classical, ours, components)
    console.print(f"Wrote {folder / FIGURE}", highlight=False, soft_wrap=True)


def best_pca(problem: Problem, truth: Tensor) -> tuple[int, Tensor]:
    """PCA with the number of components that comes nearest to the truth."""
    from deepinv_astro.metric import nrmse_db
    from deepinv_astro.models import PCA

    y, physics = problem.sequence.y, problem.physics
    images = {
        k: PCA(n_components=k)(y, physics).nan_to_num() for k in range(1, MOST_COMPONENTS + 1)
    }
    best = max(images, key=lambda k: float(nrmse_db(images[k], truth)))
    return best, images[best]


def score(blurred: Tensor, simulation: SimulatedSequence, problem: Problem) -> Score:
    """Compare a blurred image with the truth; the planet is left out of the disk's flux."""
    from deepinv_astro.metric import flux_ratio, nrmse_db, support
    from deepinv_astro.optim.regions import separation
    from deepinv_astro.physics.functional.psf import blur

    psf = problem.sequence.psf
    truth, disk = blur(simulation.x, psf), blur(simulation.disk, psf)
    planet = simulation.planets[0]
    size = (truth.shape[-2], truth.shape[-1])
    away = separation(size, (planet.row, planet.column)) > 2 * problem.fwhm
    return Score(
        float(nrmse_db(blurred, truth)),
        float(nrmse_db(blurred, truth, support(truth))),
        float(flux_ratio(blurred, disk, support(disk, 0.2) & away)),
    )


def nearest(sources: list[dict[str, Any]], simulation: SimulatedSequence) -> dict[str, Any] | None:
    """The source that was found next to the planet, within two pixels."""
    planet = simulation.planets[0]

    def distance(source: dict[str, Any]) -> float:
        return math.hypot(source["row"] - planet.row, source["column"] - planet.column)

    near = [s for s in sources if distance(s) < 2.0]
    return min(near, key=distance) if near else None


def comparison_table(
    simulation: SimulatedSequence,
    problem: Problem,
    planet: dict[str, Any] | None,
    classical: Tensor,
    components: int,
    scores: list[Score],
) -> Table:
    """Truth, our result, and classical PCA side by side."""
    from rich import box
    from rich.table import Table

    from deepinv_astro.cli.report import plus_minus

    truth = simulation.planets[0]
    at = (round(truth.row), round(truth.column))
    psf = problem.sequence.psf
    star = (
        float(simulation.sequence.star_flux[0])
        if simulation.sequence.star_flux is not None
        else 1.0
    )
    peak = float(psf.max()) if psf is not None else 1.0
    # what an observer reads off without a correction for the losses
    raw = float(classical[0, 0, at[0], at[1]]) / peak
    ours, theirs = scores
    title = f"Truth against result (PCA components: {components}, the best by the truth)"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for name in ("truth", "deepinv_astro", "PCA"):
        table.add_column(name, justify="right")

    def row(name: str, true: str, key: str, other: str = "") -> None:
        found = "not found" if planet is None else plus_minus(planet[key], planet[f"{key}_std"])
        table.add_row(name, true, found, other)

    row("planet: separation (px)", f"{truth.separation_px:.2f}", "separation_px")
    row("planet: position angle (°)", f"{truth.position_angle_deg:.1f}", "position_angle_deg")
    row("planet: flux", f"{truth.flux:.0f}", "flux", f"{raw:.0f}")
    row("planet: contrast", f"{truth.contrast:.2g}", "contrast", f"{raw / star:.2g}")
    table.add_row("planet: S/N", "", "-" if planet is None else f"{planet['snr']:.1f}", "")
    ratios = [f"{s.disk_flux_ratio:.2f}" for s in scores]
    table.add_row("disk: flux ratio", "1", *ratios)
    table.add_row("image, whole (dB)", "", f"{ours.whole_db:.1f}", f"{theirs.whole_db:.1f}")
    table.add_row(
        "image, on the object (dB)", "", f"{ours.support_db:.1f}", f"{theirs.support_db:.1f}"
    )
    return table


def draw(
    path: Path, problem: Problem, truth: Tensor, classical: Tensor, ours: Tensor, components: int
) -> None:
    """Four panels: a frame, the truth, PCA and our result, the last three in one stretch."""
    from matplotlib.figure import Figure

    from deepinv_astro.plot import add_colorbar, add_compass, brightness_norm, show_frame, show_sky

    sequence = problem.sequence
    figure = Figure(figsize=(17, 4.3), layout="constrained")
    axes = figure.subplots(1, 4)
    frame = sequence.y[0, 0, sequence.n_frames // 2].numpy()
    shown = show_frame(axes[0], frame, center=problem.center, pixel_scale=sequence.pixel_scale)
    axes[0].set_title("One frame of the data")
    unit = f"{sequence.unit} / pixel"
    add_colorbar(axes[0], shown, unit, extend="max")
    norm = brightness_norm(truth[0, 0].numpy(), top=100.0)
    names = (
        "Truth, blurred by the PSF",
        f"PCA, components: {components}",
        "deepinv_astro, blurred",
    )
    for panel, image, name in zip(axes[1:], (truth, classical, ours), names, strict=True):
        shown = show_sky(
            panel, image[0, 0].numpy(), center=problem.sky_center,
            pixel_scale=sequence.pixel_scale, norm=norm,
        )  # fmt: skip
        panel.set_title(name)
        add_compass(panel)
    add_colorbar(axes[3], shown, unit, extend="both")
    figure.savefig(path, dpi=150)
