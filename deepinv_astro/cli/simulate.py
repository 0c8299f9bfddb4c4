"""``deepinv-astro simulate``: a survey of simulated stars, as files."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepinv_astro.cli.errors import one_clear_line

if TYPE_CHECKING:
    from deepinv_astro.datasets import SurveyTruth, SyntheticSurvey

#: What a folder was asked to hold.
SETTINGS = "survey.json"
SMALLEST_FRAME = 15


def simulate(
    survey: Annotated[
        int, typer.Option("--survey", min=1, help="Number of targets.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the survey.")] = Path(
        "survey"
    ),
    size: Annotated[int, typer.Option(min=SMALLEST_FRAME, help="Rows and columns.")] = 101,
    frames: Annotated[int, typer.Option(min=2, help="Frames of a sequence.")] = 61,
    most_frames: Annotated[
        int | None,
        typer.Option(help="If given, lengths are random between --frames and this."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the survey.")] = 0,
    part: Annotated[
        str, typer.Option(help="train, validation or test: parts that share no target.")
    ] = "train",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Speckles of a formula, a hundred times faster than optics."),
    ] = False,
) -> None:
    """Simulate a survey: a folder for each star, with its truth; the same command goes on after a stop."""
    with one_clear_line():
        settings: dict[str, Any] = {
            "size": size,
            "frames": [frames, frames if most_frames is None else most_frames],
            "seed": seed,
            "part": _part(part),
            "quick": quick,
        }
        if settings["frames"][1] < frames:
            raise ValueError(f"`most_frames` must be {frames} or more, got {most_frames}")
        check_folder(out, settings)

        from rich.console import Console

        from deepinv_astro.cli.progress import Stages
        from deepinv_astro.datasets import find_targets, write_manifest
        from deepinv_astro.io import write_json

        stars = make_survey(survey, settings)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SETTINGS, settings, overwrite=True)
        sweep(out)
        with Stages() as stages:
            done = stages.begin("simulate the survey", survey)
            for index in range(survey):
                folder = out / stars.name(index)
                if not folder.exists():
                    write_target(stars, index, folder)
                done(index + 1)
        entries = find_targets(out)
        path = write_manifest(out, entries, overwrite=True)
        Console().print(f"Wrote {path}, {len(entries)} targets", highlight=False, soft_wrap=True)


def make_survey(n: int, settings: dict[str, Any]) -> SyntheticSurvey:
    """
    The survey of some settings.

    :param int n: number of targets.
    :param dict settings: what :data:`SETTINGS` holds.
    :return: the survey.
    """
    from deepinv_astro.datasets import NACO_LP, PupilHalo, RicianHalo, SyntheticSurvey

    size, (low, high) = settings["size"], settings["frames"]
    if settings["quick"]:
        halo: Any = RicianHalo()
    else:
        from dataclasses import replace

        # the pupil is sampled finely enough for the field
        pupil = max(64, int(size / NACO_LP.sampling) + 2)
        halo = PupilHalo(replace(NACO_LP, pupil_size=pupil))
    return SyntheticSurvey(
        n,
        settings["seed"],
        img_size=(size, size),
        frames=(low, high),
        halo=halo,
        part=settings["part"],
    )


def check_folder(out: Path, settings: dict[str, Any]) -> None:
    """
    See that a folder is new or holds a survey of the same settings, before anything is simulated.

    :param pathlib.Path out: the folder.
    :param dict settings: of the survey.
    :raises OSError: if it is a file, or cannot be written.
    :raises ValueError: if it holds something else.
    """
    from deepinv_astro.cli.folder import check_results

    check_results(out, overwrite=False)
    if not out.exists() or not any(out.iterdir()):
        return
    known = out / SETTINGS
    if not known.is_file():
        raise ValueError(f"{out} holds files but no survey; choose another folder with `out`")
    try:
        found = json.loads(known.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{known} cannot be read: {error}; choose another `out`") from error
    if found != settings:
        different = sorted(k for k in settings if found.get(k) != settings[k])
        raise ValueError(
            f"{out} holds a survey with other settings ({', '.join(different)}, see {known}): "
            "use the same ones to go on, or choose another folder with `out`"
        )


def sweep(out: Path) -> None:
    """Remove what a run that was killed left half-written."""
    for folder in out.glob(".*-unfinished"):
        shutil.rmtree(folder)


def write_target(stars: SyntheticSurvey, index: int, folder: Path) -> None:
    """
    Write one target, whole or not at all.

    :param SyntheticSurvey stars: the survey.
    :param int index: of the target.
    :param pathlib.Path folder: which does not exist yet.
    """
    from deepinv_astro.cli.demo import write_files

    unfinished = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}-unfinished")
    try:
        write_files(stars.sequence(index), unfinished, overwrite=False)
        write_truth(stars.truth(index), unfinished / "truth.fits")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_truth(truth: SurveyTruth, path: Path) -> None:
    """
    Write what an observer cannot know: sky, disk, true PSF, deviation, and a table of what was drawn.

    :param SurveyTruth truth: of the target.
    :param pathlib.Path path: the file.
    """
    from astropy.io import fits

    from deepinv_astro.io.strict_json import to_json

    disk = truth.sky.disk
    drawn = {
        "disk": None if disk is None else disk._asdict(),
        "planets": [planet._asdict() for planet in truth.planets],
        "mode_visibility": truth.visibility(),
    }
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("NAME", "20A", array=list(drawn)),
            fits.Column("VALUE", "4096A", array=[to_json(v) for v in drawn.values()]),
        ],
        name="PARAMETERS",
    )
    table.header["COMMENT"] = "VALUE is JSON text."
    primary = fits.PrimaryHDU(truth.x[0].numpy())
    primary.header["BUNIT"] = "ct"
    images = {"DISK": truth.disk[0], "PSF": truth.psf[0], "DEVIATION": truth.deviation[0]}
    hdus = [fits.ImageHDU(image.numpy(), name=name) for name, image in images.items()]
    fits.HDUList([primary, *hdus, table]).writeto(path)


def _part(name: str) -> str:
    """A part of a survey, checked before anything heavy is imported."""
    names = ("train", "validation", "test")
    if name not in names:
        raise ValueError(f"`part` must be one of {', '.join(names)}, got {name!r}")
    return name
