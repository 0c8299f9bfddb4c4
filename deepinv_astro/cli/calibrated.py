"""A calibration and its report: made by ``calibrate``, used by ``reconstruct``."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from astropy.io import fits
from torch import Tensor

from deepinv_astro.cli.calibration_figure import write_figure
from deepinv_astro.cli.problem import Problem
from deepinv_astro.cli.report import plus_minus
from deepinv_astro.io import Sequence, SequenceError
from deepinv_astro.io.atomic import atomic_path
from deepinv_astro.io.files import existing_file
from deepinv_astro.io.psf import read_psf
from deepinv_astro.io.stamps import crop_center
from deepinv_astro.io.strict_json import to_json
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
    from rich.console import Console

    from deepinv_astro.cli.progress import Stages

#: Figure, errors of the fluxes, and all the rest, which names the second.
NAMES = ("calibration.png", "calibration_std.fits", "calibration.json")
FORMAT = "deepinv-astro calibration 1"

#: More parameters of one name than this are summed up in a row of the printed table.
MOST_ROWS = 12

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
                "whose differences say how the PSF varies: pass another with --psf"
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


def calibrate_psf(problem: Problem, psfs: list[Tensor]) -> Problem:
    """
    The problem with the PSF that the sequence prefers between several, and its error.

    :param Problem problem: data and operator with the mean PSF.
    :param list psfs: measured PSFs, of unit sum and of one size.
    :return: the same data with the calibrated operator.
    """
    from deepinv_astro.cli.progress import Stages

    with Stages() as stages:
        found = solve(problem, psfs, Settings(("psf",)), stages).found
    values = found.report.values.tolist()
    note = f"Calibrated the PSF between {len(psfs)}: {', '.join(f'{v:+.2f}' for v in values)} of their scatter."
    sequence = dataclasses.replace(
        problem.sequence,
        psf=found.physics.filter[0, :, 0].cpu(),
        provenance=(*problem.sequence.provenance, note),
    )
    return dataclasses.replace(
        problem, sequence=sequence, physics=found.physics, calibration_std=found.flux_std
    )


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
        "flux_std": NAMES[1],
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
        "kept": kept_lines(table),
        "reasons": {name: REASONS[name] for name in settings.free if _stays(table, name)},
        "covariance": table.covariance,
        "settings": settings._asdict(),
        "alternations": len(found.history),
        "converged": found.converged,
        "provenance": problem.sequence.provenance,
        "warnings": problem.warnings,
        "doubts": _doubts(found),
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


def _kind(name: str) -> str:
    """What is free of a parameter's name: ``gain[3]`` is a gain."""
    word = name.split("[")[0]
    kinds = {"row": "center", "column": "center", "angle": "angles", "true north": "angles"}
    return kinds.get(word, word)


def _stays(table: CalibrationReport, kind: str) -> bool:
    """Whether a direction that stays at the prior is mostly of this kind."""
    own = torch.tensor([_kind(name) == kind for name in table.names])
    return bool((table.kept_directions[own].square().sum(0) > 0.25).any())


def kept_lines(table: CalibrationReport) -> list[str]:
    """
    What stays at the prior, in words: what frames have in common by that name, then the rest.

    >>> from deepinv_astro.physics import free_gain
    >>> flat = torch.full((4, 4), -0.25) + torch.eye(4)
    >>> kept_lines(Calibration(free_gain(torch.ones(4), 0.1)).report(1e6 * flat))
    ['common gain of all 4 frames (posterior/prior 1.000)']
    >>> some = torch.diag(torch.tensor([0.0, 0.01, 0.02, 0.01, 1e6]))
    >>> kept_lines(Calibration(free_gain(torch.ones(5), 0.1)).report(some))
    ['4 combinations of gain (posterior/prior 0.990 to 1.000)']
    """
    if bool(table.kept.all()):
        return [f"all {len(table.names)} parameters"]
    kept = table.kept_directions.double().cpu()
    square = table.direction_ratio[table.kept].double().cpu().square()
    lines, known = [], kept[:, :0]
    for words, direction in _named_directions(table):
        if float((kept.T @ direction).square().sum()) > 0.9:
            ratio = float((square @ (kept.T @ direction).square()).sqrt())
            lines.append(f"{words} (posterior/prior {ratio:.3f})")
            known = torch.cat([known, direction[:, None]], 1)
    rest = kept - known @ (torch.linalg.pinv(known) @ kept)
    basis, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
    rest = basis[:, sizes > 0.5]
    if not rest.shape[1]:
        return lines
    kinds = [name.split("[")[0] for name in table.names]
    share = dict.fromkeys(kinds, 0.0)
    for kind, row in zip(kinds, rest, strict=True):
        share[kind] += float(row.square().sum())
    named = ", ".join(kind for kind, size in share.items() if size > 0.25)
    ratios = (square @ (kept.T @ rest).square()).sqrt()
    low, high = float(ratios.min()), float(ratios.max())
    many = f"{rest.shape[1]} combinations" if rest.shape[1] > 1 else "a combination"
    span = f"{low:.3f} to {high:.3f}" if rest.shape[1] > 1 else f"{high:.3f}"
    return [*lines, f"{many} of {named} (posterior/prior {span})"]


def _named_directions(table: CalibrationReport) -> list[tuple[str, Tensor]]:
    """Directions that have a name: true North, and what all frames have in common."""
    found = []
    for word in ("true north", "angle", "gain"):
        own = torch.tensor([name.split("[")[0] == word for name in table.names])
        if bool(own.any()):
            words = (
                word if word == "true north" else f"common {word} of all {int(own.sum())} frames"
            )
            found.append((words, own.double() / float(own.sum()) ** 0.5))
    return found


def show(console: Console, content: dict[str, Any]) -> None:
    """Print the table of parameters, what stayed at the prior and why, and warnings."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("parameter", "before", "after", "error ratio"):
        table.add_column(name, justify="left" if name == "parameter" else "right")
    for _, group in itertools.groupby(content["parameters"], lambda p: p["name"].split("[")[0]):
        for row in _rows(list(group)):
            table.add_row(*row)
    console.print(table)
    if content["kept"]:
        console.print("Stays at the prior (error ratio, after over before):")
        for line in content["kept"]:
            console.print(f"  {line.replace('posterior/prior ', '')}", highlight=False)
        for name, reason in content["reasons"].items():
            console.print(
                f"  Why ({name}): {reason}.", style="dim", highlight=False, soft_wrap=True
            )
    for warning in content["doubts"]:
        console.print(f"[bold yellow]Warning[/] {warning}", highlight=False)


def _rows(group: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the table for parameters of one name; of many, their range and typical errors."""

    def typical(key: str) -> float:
        return statistics.median(p[key] for p in group)

    unit = f" ({group[0]['unit']})" if group[0]["unit"] else ""
    if len(group) <= MOST_ROWS:
        return [
            (
                f"{p['name']}{unit}",
                plus_minus(p["prior"], p["prior_std"]),
                plus_minus(p["value"], p["std"]),
                f"{p['ratio']:.2f}",
            )
            for p in group
        ]
    changes = [p["value"] - p["prior"] for p in group]
    rms = math.sqrt(statistics.fmean(c * c for c in changes))
    name = group[0]["name"].split("[")[0]
    return [
        (
            f"{len(group)} of {name}{unit}",
            f"± {typical('prior_std'):.2g}",
            f"± {typical('std'):.2g} (moved by {rms:.2g} rms)",
            f"{typical('ratio'):.2f}",
        )
    ]


def write(folder: Path, problem: Problem, outcome: Outcome, content: Any, overwrite: bool) -> None:
    """
    Write the three files; they appear together.

    :param pathlib.Path folder: exists.
    :param Problem problem: data and operator.
    :param Outcome outcome: of :func:`solve`.
    :param content: of :func:`report`.
    :param bool overwrite: whether existing files may be replaced.
    """
    picture, errors, text = (folder / name for name in NAMES)
    with (
        atomic_path(text, overwrite) as written,
        atomic_path(errors, overwrite) as mapped,
        atomic_path(picture, overwrite) as drawn,
    ):
        write_figure(drawn, problem, outcome.before, outcome.found)
        _write_std(mapped, problem, outcome.found)
        written.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")


def read_calibration(path: Path, problem: Problem) -> Problem:
    """
    The problem with the operator of a file of ``calibrate``.

    :param pathlib.Path path: ``calibration.json``.
    :param Problem problem: data and operator as they are in the files of the sequence.
    :return: the same data with the calibrated operator.
    :raises SequenceError: if it is no such file, or of another sequence.
    """
    content = _content(path)
    frames = problem.physics.frames
    if content["frames"] != frames:
        raise SequenceError(
            "`calibration`", f"{content['frames']} frames in {path}", f"the {frames} of the cube",
            "calibrate the same sequence",
        )  # fmt: skip
    mine, other = problem.sequence.target, content["target"]
    if mine and other and mine != other:
        raise SequenceError(
            "`calibration`", f"the target {other!r} in {path}", f"{mine!r}, that of the cube",
            "calibrate the same sequence, or name its target with `target`",
        )  # fmt: skip
    given, y = content["operator"], problem.sequence.y
    try:
        values = {
            "center": torch.tensor(given["center"]).to(y),
            "angles": torch.tensor(given["angles_deg"]).to(y),
            "gain": torch.tensor(given["gain"]).to(y),
        }
        if given["psf"] is not None:
            values["filter"] = torch.tensor(given["psf"]).to(y)[None]
        physics = problem.physics.variant(**values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _broken(path, str(error)) from error
    sequence = dataclasses.replace(
        problem.sequence,
        center=tuple(given["center"]),
        angles=torch.tensor(given["angles_deg"], dtype=torch.float64),
        psf=problem.sequence.psf if given["psf"] is None else values["filter"][0],
        provenance=(*problem.sequence.provenance, f"Calibrated by {path}."),
    )
    std = _read_std(path.parent / str(content["flux_std"]), problem)
    return dataclasses.replace(
        problem, sequence=sequence, physics=physics, calibration_std=std.to(y)
    )


def _content(path: Path) -> dict[str, Any]:
    """What the file holds, with all that is needed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        content = {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SequenceError(
            "`calibration`", f"no calibration in {path}", f"a file of format {FORMAT!r}",
            "give calibration.json of deepinv-astro calibrate",
        )  # fmt: skip
    for name in ("frames", "target", "flux_std", "operator"):
        if name not in content:
            raise _broken(path, f"no {name!r}")
    operator = content["operator"]
    for name in ("center", "angles_deg", "gain", "psf"):
        if not isinstance(operator, dict) or name not in operator:
            raise _broken(path, f"no {name!r} of the operator")
    return content


def _broken(path: Path, found: str) -> SequenceError:
    return SequenceError(
        "`calibration`", f"{found} in {path}", "the file as deepinv-astro calibrate wrote it",
        "calibrate again",
    )  # fmt: skip


def _write_std(path: Path, problem: Problem, found: SelfCalibration) -> None:
    """Errors of the fluxes on the sky grid; the star is in the header."""
    row, column = problem.sky_center
    header = fits.Header(
        [
            ("OBJECT", problem.sequence.target),
            ("BUNIT", str(problem.sequence.unit)),
            ("STARCENX", column, "0-based"),
            ("STARCENY", row, "0-based"),
        ]
    )
    header["COMMENT"] = "Error of the flux of a point source by that of the calibration."
    fits.PrimaryHDU(found.flux_std[0].cpu().numpy(), header).writeto(path, overwrite=True)


def _read_std(path: Path, problem: Problem) -> Tensor:
    """Errors of the fluxes, on the sky grid of a problem; zero beyond what was calibrated."""
    existing_file(path, "errors of the calibration")
    try:
        with fits.open(path) as hdus:
            std = torch.from_numpy(hdus[0].data.astype("float64"))[None]
            star = (hdus[0].header["STARCENY"], hdus[0].header["STARCENX"])
    except (OSError, KeyError, AttributeError, TypeError) as error:
        raise _broken(path, "no errors of fluxes") from error
    if std.ndim != 4 or std.shape[1] != problem.physics.img_size[0]:
        raise _broken(path, f"an array of shape {tuple(std.shape[1:])}")
    size = problem.physics.img_size[1:]
    first = [round(here - there) for here, there in zip(problem.sky_center, star, strict=True)]
    (top, left), (height, width) = first, std.shape[-2:]
    return torch.nn.functional.pad(std, (left, size[1] - width - left, top, size[0] - height - top))
