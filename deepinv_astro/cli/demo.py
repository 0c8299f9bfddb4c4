"""``deepinv-astro demo``: the main job on an embedded simulated sequence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinv_astro.cli.errors import heard_warnings, one_clear_line
from deepinv_astro.cli.methods import Method

if TYPE_CHECKING:
    from deepinv_astro.cli.learned import Network
    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.datasets import SimulatedSequence

DATA, RESULT = ("cube.fits", "angles.fits", "psf.fits"), "result"
FIGURE, SCORES = "comparison.png", "comparison.json"

INTRODUCTION = """\
A simulated star with a ring and a planet, 3 to 20 times fainter than the speckles of its halo, seen in \
{frames} frames while the sky turns by {turn:.0f} degrees. Nothing is downloaded."""


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the data and the results.")
    ] = Path("demo"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist in the folder.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the simulated speckles and noise.")] = 0,
) -> None:
    """Find a ring and a planet in a simulated sequence, and compare methods with the truth."""
    with one_clear_line():
        from deepinv_astro.cli.folder import check_results, make_folder
        from deepinv_astro.io.atomic import check_free

        for name in (*DATA, FIGURE, SCORES):
            check_free(out / name, overwrite)
        check_results(out / RESULT, overwrite)

        from rich.console import Console

        from deepinv_astro.cli import checks
        from deepinv_astro.cli.learned import read_network
        from deepinv_astro.cli.options import SequenceFiles
        from deepinv_astro.cli.problem import prepare
        from deepinv_astro.cli.reconstruct import run

        network = read_network()
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
        show(console, problem, simulation, network, content, out, overwrite)
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


def show(
    console: Any,
    problem: Problem,
    simulation: SimulatedSequence,
    network: Network,
    content: dict[str, Any],
    folder: Path,
    overwrite: bool,
) -> None:
    """Make the images of the other methods; print, write and draw how all compare with the truth."""
    import torch
    from astropy.io import fits

    from deepinv_astro.cli import comparison
    from deepinv_astro.io.atomic import atomic_path
    from deepinv_astro.io.strict_json import to_json

    with fits.open(folder / RESULT / "image.fits") as hdus:
        marginal = torch.from_numpy(hdus[0].data.astype("float32"))[None, None]
    seconds = content["seconds"]["image"]
    found = comparison.compare(problem, simulation, network, marginal, seconds)
    console.print(comparison.planet_table(found, problem, content["sources"]))
    console.print(comparison.images_table(found))
    for note in found.notes:
        console.print(f"learned: {note}", style="dim", highlight=False)
    figure, scores = folder / FIGURE, folder / SCORES
    with atomic_path(figure, overwrite) as drawn, atomic_path(scores, overwrite) as written:
        comparison.draw(drawn, problem, found, network.file.digest)
        text = to_json(comparison.described(found), indent=2)
        written.write_text(text + "\n", encoding="utf-8")
    for path in (figure, scores):
        console.print(f"Wrote {path}", highlight=False, soft_wrap=True)
