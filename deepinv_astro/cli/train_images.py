"""``deepinv-astro train --images``: deblurring and super-resolution without ground truth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from deepinv_astro.cli.errors import INTERRUPTED, heard_warnings

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


class Task(str, Enum):
    """What the network learns."""

    DEBLUR = "deblur"
    SR = "sr"


class Images(NamedTuple):
    """What is asked of a training on images."""

    folder: Path
    psf: str
    task: Task
    factor: int | None
    noise: str
    crop: int | None


def train_images(
    given: Images,
    folder: Path,
    pace: dict[str, Any],
    device: str,
    seed: int,
    resume: bool,
    overwrite: bool,
    logger: str | None = None,
) -> None:
    """
    Train on the images of a folder and write weights, a log, a picture and a report.

    :param Images given: what is asked for.
    :param pathlib.Path folder: of the results.
    :param dict pace: steps, batch and steps between checkpoints; None for their defaults.
    :param str device: of torch.
    :param int seed: of all that is random.
    :param bool resume: go on with a training that was interrupted.
    :param bool overwrite: replace results that exist.
    :param logger: service that shows the training as well.
    """
    from deepinv_astro.io.images import image_files

    level = _noise(given.noise)
    finer = _factor(given.task, given.factor)
    image_files(given.folder)
    width = _psf_width(given.psf, given.task)
    _check_folder(folder, resume, overwrite)

    from deepinv_astro.datasets.images import ImageFolder, held_out
    from deepinv_astro.training import Recipe, Restoration, noise_level
    from deepinv_astro.training.trackers import tracked

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
        check_settings(
            folder / REPORT, settings, free=("recipe",)
        )  # its number of steps may change
        _continue(training, folder / CHECKPOINT)
    facts = {k: settings[k] for k in ("task", "psf", "noise", "factor", "seed")}
    with tracked(logger, folder, {**facts, **dataclasses.asdict(recipe)}, resume=resume) as show:
        _run(training, restoration, held[0], folder, settings, show)


def check_settings(report: Path, settings: dict[str, Any], free: Collection[str] = ()) -> None:
    """
    Refuse to go on with another training than the one that was begun.

    :param pathlib.Path report: of the training.
    :param dict settings: what it is now.
    :param free: settings that may change.
    :raises ValueError: if another one did; the message names it.
    """
    from deepinv_astro.io.strict_json import to_json

    if not report.exists():  # stopped before the first validation: there is nothing to go on with
        return
    before, now = json.loads(report.read_text(encoding="utf-8")), json.loads(to_json(settings))
    changed = [k for k in now if k not in free and before.get(k) != now[k]]
    recipes = [settings.get("recipe", {}) for settings in (before, now)]
    changed += [f"{k} of the recipe" for k in recipes[1] if recipes[0].get(k) != recipes[1][k]]
    if changed:
        what = ", ".join(name for name in changed if name != "recipe")
        raise ValueError(
            f"`resume`: {report.parent} was begun with another {what}; pass the same, or "
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
    show: Callable[..., None],
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

    def log_and_show(now: Training) -> None:
        log(now)
        show(now, folder / PICTURE)

    def report(found: dict[str, Any]) -> None:
        with atomic_path(folder / REPORT, overwrite=True) as temporary:
            text = to_json({**settings, **found}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")

    try:
        with Stages() as stages:
            advance = stages.begin("training", training.recipe.steps)
            advance(training.step)
            training.run(folder / CHECKPOINT, advance, log_and_show)
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
