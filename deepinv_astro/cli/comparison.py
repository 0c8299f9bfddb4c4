"""The images of several methods beside the truth, as ``demo`` shows them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.table import Table
from torch import Tensor

from deepinv_astro.cli import methods
from deepinv_astro.cli.methods import Method
from deepinv_astro.cli.progress import Stages
from deepinv_astro.cli.report import plus_minus, versions
from deepinv_astro.metric import flux_ratio, nrmse_db, support
from deepinv_astro.models import PCA
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics.functional.psf import blur

if TYPE_CHECKING:
    from deepinv_astro.cli.learned import Network
    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.datasets import SimulatedSequence

#: In the order in which they are shown.
METHODS = (Method.PCA, Method.REXPACO, Method.MARGINAL, Method.LEARNED)
#: PCA is shown with the number of components that is best by the truth, which no observer knows.
MOST_COMPONENTS = 12


class Score(NamedTuple):
    """How an image compares with the truth: decibels on the whole field and on the object, and flux of the disk."""

    whole_db: float
    support_db: float
    disk_flux_ratio: float


class Shown(NamedTuple):
    """An image as the PSF shows it, its score, and the seconds that it took."""

    image: Tensor
    score: Score
    seconds: float


class Comparison(NamedTuple):
    """The truth as the PSF shows it, each method's image, components of PCA, and what is to be known."""

    simulation: SimulatedSequence
    truth: Tensor
    shown: dict[Method, Shown]
    components: int
    notes: tuple[str, ...]


def compare(
    problem: Problem,
    simulation: SimulatedSequence,
    network: Network,
    marginal: Tensor,
    seconds: float,
) -> Comparison:
    """
    Reconstruct a simulated sequence by the other methods, and compare all with the truth.

    :param Problem problem: the sequence as an observer has it.
    :param SimulatedSequence simulation: with the truth.
    :param Network network: of the method ``learned``.
    :param torch.Tensor marginal: image of the method ``marginal``.
    :param float seconds: that this one took.
    :return: the comparison.
    """
    truth = blur(simulation.x, problem.sequence.psf)
    components = best_components(problem, truth)
    images = {Method.MARGINAL: (marginal, seconds)}
    notes: tuple[str, ...] = ()
    with Stages() as stages:
        for method in (m for m in METHODS if m not in images):
            start = time.perf_counter()
            solution = methods.solve(method, problem, stages, components, network)
            images[method] = solution.image, time.perf_counter() - start
            notes += solution.notes
    shown = {}
    for method in METHODS:
        image, took = images[method]
        seen = blur(image, problem.sequence.psf) if method.deconvolves else image.nan_to_num()
        shown[method] = Shown(seen, score(seen, simulation, problem), took)
    return Comparison(simulation, truth, shown, components, notes)


def best_components(problem: Problem, truth: Tensor) -> int:
    """Number of components with which PCA comes nearest to the truth."""
    y, physics = problem.sequence.y, problem.physics
    scores = {
        k: float(nrmse_db(PCA(n_components=k)(y, physics).nan_to_num(), truth))
        for k in range(1, MOST_COMPONENTS + 1)
    }
    return max(scores, key=scores.__getitem__)


def score(blurred: Tensor, simulation: SimulatedSequence, problem: Problem) -> Score:
    """Compare a blurred image with the truth; the planet is left out of the disk's flux."""
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


def described(found: Comparison) -> dict[str, Any]:
    """The comparison for JSON."""
    return {
        "images": {
            m.value: s.score._asdict() | {"seconds": s.seconds} for m, s in found.shown.items()
        },
        "pca_components": found.components,
        "planet": found.simulation.planets[0]._asdict(),
        "notes": found.notes,
        "versions": versions(),
    }


def nearest(sources: list[dict[str, Any]], simulation: SimulatedSequence) -> dict[str, Any] | None:
    """The source that was found next to the planet, within two pixels."""
    planet = simulation.planets[0]

    def distance(source: dict[str, Any]) -> float:
        return math.hypot(source["row"] - planet.row, source["column"] - planet.column)

    near = [s for s in sources if distance(s) < 2.0]
    return min(near, key=distance) if near else None


def planet_table(found: Comparison, problem: Problem, sources: list[dict[str, Any]]) -> Table:
    """The planet as it is, as the search found it, and as an observer reads it off the image of PCA."""
    truth = found.simulation.planets[0]
    planet = nearest(sources, found.simulation)
    psf, star = problem.sequence.psf, found.simulation.sequence.star_flux
    # without a correction for the losses
    pixel = found.shown[Method.PCA].image[0, 0, round(truth.row), round(truth.column)]
    raw = float(pixel) / (float(psf.max()) if psf is not None else 1.0)
    table = _table("The planet", ("truth", "search", "PCA"))

    def row(name: str, true: str, key: str, other: str = "") -> None:
        value = "not found" if planet is None else plus_minus(planet[key], planet[f"{key}_std"])
        table.add_row(name, true, value, other)

    row("separation (px)", f"{truth.separation_px:.2f}", "separation_px")
    row("position angle (°)", f"{truth.position_angle_deg:.1f}", "position_angle_deg")
    row("flux", f"{truth.flux:.0f}", "flux", f"{raw:.0f}")
    contrast = "" if star is None else f"{raw / float(star[0]):.2g}"
    row("contrast", f"{truth.contrast:.2g}", "contrast", contrast)
    table.add_row("S/N", "", "-" if planet is None else f"{planet['snr']:.1f}", "")
    return table


def images_table(found: Comparison) -> Table:
    """Scores of the images."""
    title = f"The images (PCA components: {found.components}, the best by the truth)"
    table = _table(title, ("whole (dB)", "on the object (dB)", "disk: flux ratio", "seconds"))
    for method, shown in found.shown.items():
        whole, support_db, ratio = shown.score
        values = f"{whole:.1f}", f"{support_db:.1f}", f"{ratio:.2f}", f"{shown.seconds:.1f}"
        table.add_row(method.value, *values)
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def draw(path: Path, problem: Problem, found: Comparison, weights: str) -> None:
    """
    A frame, the truth, and the images in the stretch of the truth.

    :param pathlib.Path path: of the PNG, which names the weights in its metadata.
    :param Problem problem: the sequence.
    :param Comparison found: what is shown.
    :param str weights: digest of the weights.
    """
    from matplotlib.figure import Figure

    from deepinv_astro.plot import add_colorbar, add_compass, brightness_norm, show_frame, show_sky

    sequence = problem.sequence
    figure = Figure(figsize=(13.5, 8.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    frame = sequence.y[0, 0, sequence.n_frames // 2].numpy()
    unit = f"{sequence.unit} / pixel"
    shown = show_frame(axes[0], frame, center=problem.center, pixel_scale=sequence.pixel_scale)
    add_colorbar(axes[0], shown, unit, extend="max")
    axes[0].set_title("One frame of the data")
    norm = brightness_norm(found.truth[0, 0].numpy(), top=100.0)
    about = {
        Method.PCA: f", components: {found.components}",
        Method.LEARNED: ", weights of the package",
    }
    panels = [("Truth, blurred by the PSF", found.truth)]
    for method, one in found.shown.items():
        name = f"{method.value}{about.get(method, '')} ({one.score.whole_db:.1f} dB)"
        panels.append((name, one.image))
    for panel, (name, image) in zip(axes[1:], panels, strict=True):
        shown = show_sky(
            panel, image[0, 0].numpy(), center=problem.sky_center,
            pixel_scale=sequence.pixel_scale, norm=norm,
        )  # fmt: skip
        add_colorbar(panel, shown, unit, extend="neither" if image is found.truth else "both")
        add_compass(panel)
        panel.set_title(name)
    figure.savefig(path, dpi=110, metadata={"Source": f"weights {weights}"})
