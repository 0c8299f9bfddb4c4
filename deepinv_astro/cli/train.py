"""``deepinv-astro train`` and ``restore``: deblurring and super-resolution without ground truth."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from deepinv_astro.cli.errors import INTERRUPTED, heard_warnings, one_clear_line

if TYPE_CHECKING:
    from torch import Tensor

    from deepinv_astro.training import Recipe, Restoration, Training

WEIGHTS, CHECKPOINT, LOG, PICTURE, REPORT = (
    "weights.pt", "checkpoint.pt", "log.csv", "progress.png", "report.json",
)  # fmt: skip
#: Standard deviations of a Gaussian per FWHM, and how many of them a PSF made here reaches.
_SIGMAS_PER_FWHM, _REACH = 0.42466, 3.5
#: Pixels of the sky along a crop.
_CROP = 48
#: More pixels than a PSF has, so that none is cut to fit.
_ANY = 1_000_000


class Numbers(str, Enum):
    """Precision of the networks."""

    SINGLE = "float32"
    MIXED = "bfloat16"


class Task(str, Enum):
    """What the network learns."""

    DEBLUR = "deblur"
    SR = "sr"


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
            help="Part of the loss: splitting, risk, recorrupted, again, consistency; may be repeated. "
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
        of_survey = {"survey": survey, "part": part, "draws": draws, "precision": precision}
        _one_kind(of_images, of_survey)
        pace = {"steps": steps, "batch": batch, "validate_every": validate_every}
        if survey is not None:
            from deepinv_astro.cli.train_survey import recipe_of, train_survey

            number = None if precision is None else precision.value
            recipe = recipe_of(part or [], draws=draws, precision=number, **pace)
            folder = output or Path(f"{survey.resolve().stem}_trained")
            train_survey(
                survey,
                folder,
                recipe,
                seed=seed,
                device=_device(device),
                resume=resume,
                overwrite=overwrite,
            )
            return
        assert images is not None  # noqa: S101
        assert psf is not None  # noqa: S101
        given = Images(images, psf, task or Task.DEBLUR, factor, noise or "auto", crop)
        folder = output or Path(f"{images.resolve().name}_{given.task.value}")
        _train_images(given, folder, pace, _device(device), seed, resume, overwrite)


class Images(NamedTuple):
    """What is asked of a training on images."""

    folder: Path
    psf: str
    task: Task
    factor: int | None
    noise: str
    crop: int | None


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


def _train_images(
    given: Images,
    folder: Path,
    pace: dict[str, Any],
    device: str,
    seed: int,
    resume: bool,
    overwrite: bool,
) -> None:
    from deepinv_astro.io.images import image_files

    level = _noise(given.noise)
    finer = _factor(given.task, given.factor)
    image_files(given.folder)
    width = _psf_width(given.psf, given.task)
    _check_folder(folder, resume, overwrite)

    from deepinv_astro.datasets.images import ImageFolder, held_out
    from deepinv_astro.training import Recipe, Restoration, noise_level

    files = ImageFolder(given.folder)
    everything = [files[i] for i in range(len(files))]
    fields = {k: v for k, v in pace.items() if v is not None}
    warmup = min(20, fields.get("steps", Recipe.steps) // 10)
    recipe = Recipe(crop=given.crop or _CROP // finer, warmup=warmup, **fields)
    with heard_warnings() as doubts:
        kernel = _psf(given.psf, width, everything, finer)
    learned, held = held_out(everything, recipe.crop)
    if level is None:
        level = noise_level(learned)
        typer.echo(f"Noise: {level:.4g} from second differences of the images.")
        if finer > 1:
            typer.echo(
                "Warning: with --task sr that may be some 40 % too high, as what the sky has at the "
                "scale of a pixel counts as noise (38 % on photographs without blur). Give --noise "
                "if you know it."
            )
    for doubt in doubts:
        typer.echo(f"Warning: {doubt}")
    restoration = Restoration(kernel, level, finer, learned, seed=seed)
    training = _training(restoration, learned, held, recipe, seed, device)
    settings = {
        "task": given.task.value, "images": [str(f.path) for f in files.files], "psf": given.psf,
        "noise": level, "factor": finer, "seed": seed, "recipe": dataclasses.asdict(recipe),
    }  # fmt: skip
    if resume:
        _check_settings(folder / REPORT, settings)
        _continue(training, folder / CHECKPOINT)
    _run(training, restoration, held[0], folder, settings)


def restore(
    image: Annotated[Path, typer.Argument(help="Measured image, FITS or PNG.")],
    weights: Annotated[Path, typer.Option("--weights", help="weights.pt of deepinv-astro train.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="FITS or PNG. Default: IMAGE_restored, here."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace the result if it exists.")
    ] = False,
) -> None:
    """Restore an image with trained weights; write FITS or PNG."""
    with one_clear_line():
        from deepinv_astro.io.atomic import check_free
        from deepinv_astro.io.files import existing_file
        from deepinv_astro.io.images import read_gray_image, write_gray_image

        existing_file(image, "image")
        existing_file(weights, "weights")
        name = image.name.removesuffix(".gz").removesuffix(".fz")
        suffix = ".png" if image.suffix.lower() == ".png" else ".fits"
        target = check_free(out or Path(Path(name).stem + "_restored" + suffix), overwrite)
        if target.suffix.lower() not in (".png", ".fits", ".fit", ".gz"):
            raise ValueError(
                f"`out`: found {target.name}; expected a name that ends in .fits or .png"
            )
        measured = read_gray_image(image)

        import torch

        from deepinv_astro.training import Restoration

        restoration = Restoration.load(weights)
        with torch.no_grad():
            x = restoration(torch.from_numpy(measured.values).float()[None])[0].numpy()
        write_gray_image(target, x, measured.header, restoration.factor, overwrite)
        typer.echo(f"Wrote {target}")


def _check_settings(report: Path, settings: dict[str, Any]) -> None:
    """A training goes on with what it began with; only its number of steps may change."""
    from deepinv_astro.io.strict_json import to_json

    if not report.exists():  # stopped before the first validation: there is nothing to go on with
        return
    before, now = json.loads(report.read_text(encoding="utf-8")), json.loads(to_json(settings))
    changed = [k for k in now if k != "recipe" and before.get(k) != now[k]]
    if changed:
        raise ValueError(
            f"`resume`: {report.parent} was begun with another {', '.join(changed)}; pass the same, or "
            "train in another folder with `output`"
        )


def _noise(text: str) -> float | None:
    """The level that was given, or None for auto."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"`noise`: found {text!r}; expected a positive number or auto")
    return value


def _factor(task: Task, factor: int | None) -> int:
    if task is Task.SR:
        return factor or 2
    if factor is not None:
        raise ValueError(f"`factor`: found {factor} with task deblur; pass `task=sr`, or no factor")
    return 1


def _device(name: str) -> str:
    """The device that was asked for, which torch can use."""
    if name == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    from deepinv_astro.cli.reconstruct import check_device

    check_device(name)
    return name


def _psf_width(text: str, task: Task) -> float | None:
    """The FWHM that was given, or None for a file, which must exist."""
    from deepinv_astro.io.files import existing_file

    try:
        width = float(text)
    except ValueError:
        existing_file(text, "PSF")
        return None
    if not 0 <= width < 1000:
        raise ValueError(f"FWHM of --psf: found {text}; expected pixels, or 0 for no blur")
    if width == 0 and task is Task.DEBLUR:
        raise ValueError(
            f"FWHM of --psf: found {text}, which leaves nothing to deblur; give that of the images, or "
            "pass `task=sr`"
        )
    return width


def _psf(text: str, width: float | None, images: list[Tensor], factor: int) -> Tensor:
    import math

    import torch

    from deepinv_astro.io.psf import read_psf
    from deepinv_astro.physics.functional.psf_shapes import gaussian_psf

    if width == 0:
        return torch.ones(1, 1)
    if width is None:
        star = read_psf(Path(text), 1, (_ANY, _ANY), [])
        assert star is not None  # noqa: S101  a source was given
        kernel = torch.from_numpy(star.psf[0])
    else:
        side = 2 * math.ceil(_REACH * _SIGMAS_PER_FWHM * width) + 1
        kernel = gaussian_psf((side, side), width)
    least, side = min(min(image.shape[-2:]) for image in images), len(kernel)
    if side > factor * least:
        raise ValueError(
            f"--psf: found {side} x {side} pixels, more than the smallest image has ({factor * least} on "
            "the grid of the result); cut the PSF to its bright part, or leave out small images"
        )
    return kernel


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    from deepinv_astro.io.atomic import check_free

    if resume:
        if not (folder / CHECKPOINT).is_file():
            raise ValueError(f"`resume`: found no {folder / CHECKPOINT}; start without it")
        return
    for name in (WEIGHTS, CHECKPOINT, LOG, PICTURE, REPORT):
        check_free(folder / name, overwrite)


def _training(
    restoration: Restoration,
    learned: list[Tensor],
    held: list[Tensor],
    recipe: Recipe,
    seed: int,
    device: str,
) -> Training:
    import functools

    from deepinv_astro.training import Training

    margin, scale = max(restoration.psf.shape) // 2, float(restoration.model.scale)
    physics = restoration.physics(recipe.crop, recipe.crop).to(device)
    return Training(
        restoration.to(device).model,
        physics,
        [image.to(device) for image in learned],
        [image.to(device) for image in held],
        recipe,
        losses=functools.partial(recipe.losses, margin=margin),
        scale=scale,
        seed=seed,
    )


def _continue(training: Training, path: Path) -> None:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        training.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"`resume`: {path} is of another network or cannot be read; repeat the command that "
            "wrote it, or start without it"
        ) from error
    typer.echo(f"Going on from step {training.step}.")


def _run(
    training: Training,
    restoration: Restoration,
    shown: Tensor,
    folder: Path,
    settings: dict[str, Any],
) -> None:
    import copy

    from deepinv_astro.cli.progress import Stages
    from deepinv_astro.io.atomic import atomic_path
    from deepinv_astro.io.strict_json import to_json
    from deepinv_astro.training.log import draw_restoration, write_history

    best = copy.deepcopy(restoration).cpu()  # for any machine, wherever it is trained

    def log(now: Training) -> None:
        write_history(folder / LOG, now.history)
        best.model.load_state_dict(now.best)
        best.save(folder / WEIGHTS, overwrite=True)
        with atomic_path(folder / PICTURE, overwrite=True) as temporary:
            draw_restoration(best, shown, now.history).savefig(temporary, dpi=100)
        report({"steps": now.step})

    def report(found: dict[str, Any]) -> None:
        with atomic_path(folder / REPORT, overwrite=True) as temporary:
            text = to_json({**settings, **found}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")

    try:
        with Stages() as stages:
            advance = stages.begin("training", training.recipe.steps)
            advance(training.step)
            training.run(folder / CHECKPOINT, advance, log)
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on with --resume.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    log(training)
    line = training.chosen
    report(
        {
            "steps": training.step,
            "best_step": line.step,
            "validation": line.validation,
            "seconds": training.history[-1].seconds,
        }
    )
    typer.echo(f"Best of {training.step} steps on held-out images: step {line.step}.")
    for name in (WEIGHTS, LOG, PICTURE, REPORT):
        typer.echo(f"Wrote {folder / name}")
    typer.echo(f"Next: deepinv-astro restore IMAGE --weights {folder / WEIGHTS}")
