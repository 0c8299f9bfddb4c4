"""``deepinv-astro train``: learning without ground truth, from images or from a survey."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from deepinv_astro.cli.errors import one_clear_line
from deepinv_astro.cli.options import LoggerOption
from deepinv_astro.cli.train_images import Images, Task, train_images


class Numbers(str, Enum):
    """Precision of the networks."""

    SINGLE = "float32"
    MIXED = "bfloat16"


#: Options of one kind of training, as help shows them together.
_IMAGES, _SURVEY = "Deblurring and super-resolution", "Surveys"


def train(
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of measured images, FITS or PNG, of any size.", rich_help_panel=_IMAGES
        ),
    ] = None,
    psf: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FWHM",
            help="PSF on the pixels of the result: a FITS image, or the FWHM of a Gaussian in those pixels.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(help="deblur (default), or sr for a finer grid.", rich_help_panel=_IMAGES),
    ] = None,
    factor: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Pixels of the result per pixel, for sr. Default: 2.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="SIGMA|auto",
            help="Standard deviation, unit of the images. Default: auto.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Pixels along a crop. Default: 48, 48 / factor for sr.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    survey: Annotated[
        Path | None,
        typer.Option(
            help="Folder of sequences, one sub-folder for each star, or a manifest.",
            rich_help_panel=_SURVEY,
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT",
            help="Part of the loss: splitting, risk, unsure, recorrupted, again, consistency; may be repeated. "
            "Default: splitting=1.",
            rich_help_panel=_SURVEY,
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            min=1, help="Splits or probes of each star. Default: 2.", rich_help_panel=_SURVEY
        ),
    ] = None,
    precision: Annotated[
        Numbers | None,
        typer.Option(help="Of the networks. Default: float32.", rich_help_panel=_SURVEY),
    ] = None,
    center_std: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            help="Error of the stars' positions, px: each is fitted to its own sequence first.",
            rich_help_panel=_SURVEY,
        ),
    ] = None,
    angle_std: Annotated[
        float | None,
        typer.Option(min=1e-6, help="The same for each angle, degrees.", rich_help_panel=_SURVEY),
    ] = None,
    gain_std: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="The same for the gain of each frame.", rich_help_panel=_SURVEY
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the results. Default: IMAGES_TASK or SURVEY_trained, here.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", metavar="", help="Go on with a training that was interrupted."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", metavar="", help="Replace results that exist in the folder."),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=30, help="Most steps of the optimiser. Default: 1500; surveys 600."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Crops or stars of a step. Default: 4.")
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between checkpoints. Default: 100; surveys 50."),
    ] = None,
    logger: LoggerOption = None,
    device: Annotated[
        str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of anything random.")] = 0,
) -> None:
    """Train a network on measurements alone: --images and --psf, or --survey."""
    with one_clear_line():
        of_images = {
            "images": images,
            "psf": psf,
            "task": task,
            "factor": factor,
            "noise": noise,
            "crop": crop,
        }
        prior = {"center_std": center_std, "angle_std": angle_std, "gain_std": gain_std}
        of_survey = {
            "survey": survey,
            "part": part,
            "draws": draws,
            "precision": precision,
            **prior,
        }
        _one_kind(of_images, of_survey)
        if logger is not None:
            logger.check()
        pace = {"steps": steps, "batch": batch, "validate_every": validate_every}
        if survey is not None:
            from deepinv_astro.cli.train_survey import recipe_of, train_survey

            number = None if precision is None else precision.value
            recipe = recipe_of(part or [], draws=draws, precision=number, **prior, **pace)
            folder = output or Path(f"{survey.resolve().stem}_trained")
            train_survey(
                survey,
                folder,
                recipe,
                seed=seed,
                device=_device(device),
                resume=resume,
                overwrite=overwrite,
                logger=logger and logger.value,
            )
            return
        assert images is not None  # noqa: S101
        assert psf is not None  # noqa: S101
        given = Images(images, psf, task or Task.DEBLUR, factor, noise or "auto", crop)
        folder = output or Path(f"{images.resolve().name}_{given.task.value}")
        train_images(
            given, folder, pace, _device(device), seed, resume, overwrite, logger and logger.value
        )


def _one_kind(of_images: dict[str, Any], of_survey: dict[str, Any]) -> None:
    """Either images with their PSF or a survey, and the options of that alone."""
    given = [[k for k, v in options.items() if v is not None] for options in (of_images, of_survey)]
    if "survey" in given[1]:
        if given[0]:
            raise ValueError(
                f"`{given[0][0]}` is for images, `survey` for sequences with their own PSFs: pass one or "
                "the other"
            )
        return
    if given[1]:
        raise ValueError(f"`{given[1][0]}` is for surveys: pass `survey` as well")
    missing = [k for k in ("images", "psf") if of_images[k] is None]
    if missing:
        raise ValueError(
            f"`{missing[0]}` is missing: pass `images` and `psf` for deblurring and super-resolution, or "
            "`survey` for sequences"
        )


def _device(name: str) -> str:
    """The device that was asked for, which torch can use."""
    if name == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    from deepinv_astro.cli.reconstruct import check_device

    check_device(name)
    return name
