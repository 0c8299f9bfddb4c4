"""A calibration and its report: made by ``calibrate``, used by ``reconstruct``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from deepinv_astro.cli.problem import Problem
from deepinv_astro.io import Sequence, SequenceError
from deepinv_astro.io.psf import read_psf
from deepinv_astro.io.stamps import crop_center
from deepinv_astro.optim.self_calibration import CalibrationStep, SelfCalibration, self_calibrate
from deepinv_astro.physics import (
    ADI,
    Calibration,
    CalibrationReport,
    Free,
    free_angles,
    free_center,
    free_gain,
    free_psf,
)
from deepinv_astro.physics.functional.psf_basis import psf_basis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

    from deepinv_astro.cli.progress import Stages

NAMES = ("calibration.png", "calibration.json")
FORMAT = "deepinv-astro calibration 1"

#: Why a parameter may stay where it was.
REASONS = {
    "center": "the sky shows no source bright enough to tell where it turns about",
    "angles": "an angle common to all frames only turns the image (true North), and faint sources tell "
    "no single angle",
    "gain": "a gain common to all frames only scales the image, and faint sources tell no single gain",
    "psf": "what is the same in all directions is also what a sharper sky would do",
}


class Settings(NamedTuple):
    """What is free, its prior standard deviations, and how often to alternate."""

    free: tuple[str, ...]
    center_std: float = 0.3
    angle_std: float = 0.1
    north_std: float = 0.2
    gain_std: float = 0.05
    iterations: int = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The operator before, and what was found."""

    before: ADI
    calibration: Calibration
    found: SelfCalibration


def with_psfs(sequence: Sequence, paths: list[Path]) -> tuple[Sequence, list[Tensor]]:
    """
    Read further PSFs; the sequence takes the mean of all.

    :param Sequence sequence: with its first PSF.
    :param list paths: files of the others.
    :return: the sequence, and all PSFs, of unit sum and of one size.
    :raises SequenceError: if a file does not hold a PSF.
    """
    if sequence.psf is None or not paths:
        return sequence, [] if sequence.psf is None else [sequence.psf]
    notes: list[str] = []
    stamps = [sequence.psf.double().numpy()]
    channels, *detector = sequence.img_size
    for path in paths:
        star = read_psf([path], channels, (detector[0], detector[1]), notes)
        stamps += [] if star is None else [star.psf]
    side = min(stamp.shape[-1] for stamp in stamps)
    psfs = [torch.from_numpy(crop_center(stamp, side).copy()).to(sequence.y) for stamp in stamps]
    psfs = [psf / psf.sum((-2, -1), keepdim=True) for psf in psfs]
    notes.append(f"Averaged the PSFs of {len(psfs)} files.")
    mean = torch.stack(psfs).mean(0)
    provenance = (*sequence.provenance, *notes)
    return dataclasses.replace(sequence, psf=mean, provenance=provenance), psfs


def calibration_of(physics: ADI, psfs: list[Tensor], settings: Settings) -> Calibration:
    """
    The free parameters of an operator.

    :param ADI physics: the operator.
    :param list psfs: measured PSFs, ``(C, k, k)``.
    :param Settings settings: what is free, and its priors.
    :return: the calibration.
    :raises ValueError: if the PSF is to be free and there is one only.
    """
    specs: list[Free] = []
    if "center" in settings.free:
        specs.append(free_center(physics.center[0, 0], settings.center_std))
    if "angles" in settings.free:
        specs.append(free_angles(physics.angles[0], settings.angle_std, settings.north_std))
    if "gain" in settings.free:
        specs.append(free_gain(torch.ones_like(physics.angles[0]), settings.gain_std))
    if "psf" in settings.free:
        if len(psfs) < 2:
            raise ValueError(
                "`free=psf`: found one image of the star; expected two or more, "
                "whose differences say how the PSF varies: pass another with `psf`"
            )
        basis = psf_basis(torch.stack(psfs))
        size = basis.covariance.diagonal().sqrt()
        if not bool((size > 0).all()):
            raise ValueError("`psf`: found images of the star that are copies of each other")
        components = basis.components * size[:, None, None, None]
        specs.append(free_psf(basis.mean[None], components[:, None]))
    return Calibration(*specs)


def solve(problem: Problem, psfs: list[Any], settings: Settings, stages: Stages) -> Outcome:
    """
    Calibrate a sequence.

    :param Problem problem: data and operator.
    :param list psfs: measured PSFs.
    :param Settings settings: what is free, and what is known of it before.
    :param Stages stages: where progress is shown.
    :return: the outcome.
    """
    moved = [psf.to(problem.sequence.y) for psf in psfs]
    calibration = calibration_of(problem.physics, moved, settings).to(problem.sequence.y.device)
    before = problem.physics.variant(**calibration.detached())
    advance = stages.begin("image and calibration", settings.iterations + 1)

    def progress(number: int, step: CalibrationStep) -> None:
        advance(number)

    found = self_calibrate(
        problem.sequence.y,
        problem.physics,
        calibration,
        max_iter=settings.iterations,
        callback=progress,
    )
    return Outcome(before, calibration, found)


def report(problem: Problem, outcome: Outcome, settings: Settings) -> dict[str, Any]:
    """
    What was found, ready for JSON; the values of the operator are read by ``reconstruct``.

    :param Problem problem: data and operator.
    :param Outcome outcome: of :func:`solve`.
    :param Settings settings: the priors.
    :return: values by name.
    """
    found = outcome.found
    physics, table = found.physics, found.report
    return {
        "format": FORMAT,
        "target": problem.sequence.target,
        "frames": physics.frames,
        "operator": {
            "center": physics.center[0, 0],
            "angles_deg": physics.angles[0],
            "gain": torch.ones_like(physics.angles[0]) if physics.gain is None else physics.gain[0],
            "psf": None if physics.filter is None else physics.filter[0, :, 0],
        },
        "parameters": [
            {
                "name": name,
                "unit": unit,
                "prior": float(table.prior_mean[k]),
                "prior_std": float(table.prior_std[k]),
                "value": float(table.values[k]),
                "std": float(table.posterior_std[k]),
                "ratio": float(table.ratio[k]),
            }
            for k, (name, unit) in enumerate(zip(table.names, table.units, strict=True))
        ],
        "kept": table.describe_kept(),
        "reasons": {name: REASONS[name] for name in settings.free},
        "covariance": table.covariance,
        "settings": settings._asdict(),
        "alternations": len(found.history),
        "converged": found.converged,
        "provenance": problem.sequence.provenance,
        "warnings": [*problem.warnings, *_doubts(found)],
    }


def _doubts(found: SelfCalibration) -> list[str]:
    doubts = []
    if not found.converged:
        doubts.append(
            f"Stopped after {len(found.history)} alternations, the last of which still moved a parameter by "
            f"{found.history[-1].move:.1f} standard deviations: pass more --iterations."
        )
    if bool(found.report.kept.all()):
        doubts.append(
            "Nothing was learned: the sky shows too little. All parameters stay at the prior."
        )
    return doubts


def show(console: Console, content: dict[str, Any]) -> None:
    """Print the table of parameters, what stayed at the prior and why, and warnings."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("parameter", "before", "after", "", "after/before"):
        table.add_column(name, justify="left" if name in ("parameter", "") else "right")
    for p in content["parameters"]:
        table.add_row(
            p["name"],
            f"{p['prior']:.4f} ± {p['prior_std']:.4f}",
            f"{p['value']:.4f} ± {p['std']:.4f}",
            p["unit"],
            f"{p['ratio']:.2f}",
        )
    console.print(table)
    if content["kept"]:
        console.print("Directions that stay at the prior (posterior over prior error):")
        for line in content["kept"]:
            console.print(f"  {line}", highlight=False)
        for reason in content["reasons"].values():
            console.print(f"  Why: {reason}.", style="dim", highlight=False)
    for warning in content["warnings"]:
        console.print(f"[bold yellow]Warning[/] {warning}", highlight=False)


def write_figure(path: Path, problem: Problem, outcome: Outcome) -> None:
    """Draw PSF and residuals before and after, and the parameters of the frames."""
    from matplotlib.figure import Figure

    from deepinv_astro.optim import Marginal

    found, y = outcome.found, problem.sequence.y
    first = Marginal(iterations=(60, 60))(y, outcome.before)
    residuals = [
        _derotated(y - p.A(x), p)
        for p, x in ((outcome.before, first), (found.physics, found.image))
    ]
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    psfs = [_stamp(p) for p in (outcome.before, found.physics)]
    _pair(axes[0], psfs, "PSF", "PSF changed by")
    _pair(axes[1, :2], residuals, "residual, North up")
    _frames(axes[1, 2], found.report)
    figure.savefig(path, dpi=120)


def _stamp(physics: ADI) -> Tensor:
    return torch.ones(1, 1) if physics.filter is None else physics.filter[0, 0].mean(0)


def _pair(axes: Any, images: list[Tensor], name: str, difference: str = "") -> None:
    """Before and after on one scale, and their difference."""
    finite = torch.cat([image.flatten() for image in images])
    top = float(finite[finite.isfinite()].abs().quantile(0.999))
    shown = list(zip(("before", "after"), images, strict=True))
    for axis, (when, image) in zip(axes, shown, strict=False):
        low = -top if not difference else 0.0
        picture = axis.imshow(
            image.cpu().numpy(), origin="lower", vmin=low, vmax=top, cmap="inferno"
        )
        axis.set_title(f"{name} {when}")
        axis.figure.colorbar(picture, ax=axis, shrink=0.8)
    if difference:
        change = (images[1] - images[0]).cpu().numpy()
        most = max(float(abs(change).max()), 1e-12)
        picture = axes[2].imshow(change, origin="lower", vmin=-most, vmax=most, cmap="RdBu_r")
        axes[2].set_title(difference)
        axes[2].figure.colorbar(picture, ax=axes[2], shrink=0.8)


def _derotated(residual: Tensor, physics: ADI) -> Tensor:
    """Mean over frames of a residual less its mean, North up."""
    centred = (residual - residual.nanmean(2, keepdim=True)).nan_to_num()
    weight = physics.A_adjoint(torch.ones_like(centred))
    weight = weight.clamp_min(0.1 * float(weight.max()))
    return (physics.A_adjoint(centred) / weight)[0].mean(0)


def _frames(axis: Axes, table: CalibrationReport) -> None:
    """Gains and angles with their errors, in prior standard deviations."""
    drawn = False
    change = (table.values - table.prior_mean) / table.prior_std
    for kind in ("gain", "angle", "row", "column", "psf"):
        own = [k for k, name in enumerate(table.names) if name.split("[")[0] == kind]
        if own:
            axis.errorbar(
                range(len(own)),
                change[own].cpu().numpy(),
                table.ratio[own].cpu().numpy(),
                fmt="o",
                label=kind,
            )
            drawn = True
    axis.axhspan(-1, 1, color="0.9", zorder=0)
    axis.set(title="change / prior error", xlabel="frame or element")
    if drawn:
        axis.legend()


def read_calibration(path: Path, problem: Problem) -> Problem:
    """
    The problem with the operator of a file of ``calibrate``.

    :param pathlib.Path path: ``calibration.json``.
    :param Problem problem: data and operator as they are in the files of the sequence.
    :return: the same data with the calibrated operator.
    :raises SequenceError: if it is no such file, or of another sequence.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        content = {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SequenceError(
            "`calibration`", f"no calibration in {path}", f"a file of format {FORMAT!r}",
            "give calibration.json of deepinv-astro calibrate",
        )  # fmt: skip
    frames = problem.physics.frames
    if content["frames"] != frames:
        raise SequenceError(
            "`calibration`", f"{content['frames']} frames in {path}", f"the {frames} of the cube",
            "calibrate the same sequence",
        )  # fmt: skip
    given = content["operator"]
    y = problem.sequence.y
    values = {
        "center": torch.tensor(given["center"]),
        "angles": torch.tensor(given["angles_deg"]),
        "gain": torch.tensor(given["gain"]),
    }
    sequence = dataclasses.replace(
        problem.sequence,
        center=tuple(given["center"]),
        angles=torch.tensor(given["angles_deg"], dtype=torch.float64),
        provenance=(*problem.sequence.provenance, f"Calibrated by {path}."),
    )
    if given["psf"] is not None:
        psf = torch.tensor(given["psf"]).to(y)
        sequence = dataclasses.replace(sequence, psf=psf)
        values["filter"] = psf[None]
    physics = problem.physics.variant(**{k: v.to(y) for k, v in values.items()})
    return dataclasses.replace(problem, sequence=sequence, physics=physics)
