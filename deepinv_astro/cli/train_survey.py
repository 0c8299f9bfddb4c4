"""``deepinv-astro train --survey``: one network for many stars, of which nobody knows the truth."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from deepinv_astro.cli.errors import INTERRUPTED
from deepinv_astro.cli.train_images import check_settings

if TYPE_CHECKING:
    from torch.utils.data import Subset

    from deepinv_astro.datasets import SequenceFolder
    from deepinv_astro.training import SurveyRecipe, SurveyTraining

WEIGHTS, CHECKPOINT, LOG, PICTURE, REPORT, TASKS = (
    "weights.safetensors", "checkpoint.pt", "log.csv", "progress.png", "report.json", "tasks",
)  # fmt: skip
#: Centres of the stars before and after their calibration.
CENTERS = "centers.csv"
#: Share of the stars that is held out, and the most of them.
_HELD, _MOST_HELD = 0.125, 32


def train_survey(
    survey: Path,
    folder: Path,
    recipe: SurveyRecipe,
    *,
    seed: int,
    device: str,
    resume: bool,
    overwrite: bool,
    logger: str | None = None,
) -> None:
    """
    Train on the sequences of a folder and write weights, a log, a picture and a report.

    Under ``torchrun`` the processes share the stars, and the first one writes.

    :param survey: folder or manifest of sequences.
    :param folder: of the results.
    :param SurveyRecipe recipe: parts, weights, schedule.
    :param seed: of all that is random.
    :param device: of torch.
    :param resume: go on with a training that was interrupted.
    :param overwrite: replace results that exist.
    :param logger: service that shows the training as well.
    """
    from deepinv_astro.datasets import SequenceFolder
    from deepinv_astro.training.trackers import tracked

    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        _check_folder(folder, resume, overwrite)
    stars = SequenceFolder(survey, keep=0)
    recipe = dataclasses.replace(recipe, window=recipe.window_for(stars.shapes))
    settings = {
        "survey": _stars(stars), "seed": seed, "recipe": dataclasses.asdict(recipe)
    }  # fmt: skip
    if resume:
        check_settings(folder / REPORT, settings)
    elif first and (folder / TASKS).exists():
        shutil.rmtree(folder / TASKS)
    with _processes(device) as (rank, place):
        training = _training(stars, folder, recipe, seed, place, rank)
        facts = {"seed": seed, **dataclasses.asdict(recipe)}
        with tracked(None if rank else logger, folder, facts, resume=resume) as show:
            _run(training, folder, settings, resume, rank, show)


def recipe_of(parts: list[str], **given: Any) -> SurveyRecipe:
    """
    The recipe of the command line.

    :param parts: such as ``splitting=1``; none for the defaults.
    :param given: other fields; None for their defaults.
    :return: (SurveyRecipe) the recipe.
    :raises ValueError: if a part has no number or is not known.
    """
    from deepinv_astro.training import SurveyRecipe

    fields = {k: v for k, v in given.items() if v is not None}
    names = ("consistency", "risk", "unsure", "recorrupted", "splitting", "again")
    if parts:
        fields |= dict.fromkeys(names, 0.0)
    for part in parts:
        name, _, text = part.partition("=")
        try:
            weight = float(text or "1")
        except ValueError:
            weight = -1.0
        if name not in names or not 0 <= weight < float("inf"):
            raise ValueError(
                f"`part`: found {part!r}; expected one of {', '.join(names)} and its weight, a number of 0 or "
                "more, such as splitting=1"
            )
        fields[name] = weight
    steps = fields.get("steps", SurveyRecipe.steps)
    return SurveyRecipe(**{"warmup": min(20, steps // 10), **fields})


def _stars(stars: SequenceFolder) -> dict[str, Any]:
    """What tells a survey from another one: its targets, and their files as they are now."""
    files = [Path(entry.cube) for entry in stars.entries]
    state = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return {
        "targets": [str(entry.target) for entry in stars.entries],
        "files": f"{zlib.crc32(repr(state).encode()):08x}",
    }


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    from deepinv_astro.io.atomic import check_free

    if resume:
        if not (folder / REPORT).is_file():
            raise ValueError(f"`resume`: found no training in {folder}; start without it")
        return
    for name in (WEIGHTS, CHECKPOINT, LOG, PICTURE, REPORT, CENTERS):
        check_free(folder / name, overwrite)
    if (folder / TASKS).exists() and not overwrite:
        go_on = "go on with `resume=True`, " if (folder / REPORT).is_file() else ""
        raise FileExistsError(
            f"{folder / TASKS} exists: {go_on}begin anew with `overwrite=True`, or "
            "choose another `output`"
        )


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, str]]:
    """Rank of this process and its device; processes of ``torchrun`` are joined."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, device
        return
    from torch import distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = f"cuda:{local}" if device == "cuda" else device
    # some of what is shared lies on the CPU
    distributed.init_process_group("cpu:gloo,cuda:nccl" if place.startswith("cuda") else "gloo")
    try:
        yield distributed.get_rank(), place
    finally:
        distributed.destroy_process_group()


def _training(
    stars: Any, folder: Path, recipe: SurveyRecipe, seed: int, device: str, rank: int
) -> SurveyTraining:
    import torch

    from deepinv_astro.models import UnrolledADI
    from deepinv_astro.training import SurveyTraining

    learned, held = _parts(stars, seed)
    if rank == 0:
        typer.echo(f"{len(learned)} stars to learn from, {len(held)} held out.")
    torch.manual_seed(seed)
    return SurveyTraining(
        UnrolledADI(), learned, held, recipe, seed=seed, folder=folder / TASKS, device=device
    )


def _parts(stars: Any, seed: int) -> tuple[Subset[Any], Subset[Any]]:
    """Stars to learn from and held out, at random."""
    import torch
    from torch.utils.data import Subset

    count = len(stars)
    if count < 2:
        raise ValueError(f"`survey`: found {count} star; a training needs two or more")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held = min(max(1, round(_HELD * count)), _MOST_HELD)
    return Subset(stars, sorted(order[held:])), Subset(stars, sorted(order[:held]))


def _run(
    training: SurveyTraining,
    folder: Path,
    settings: dict[str, Any],
    resume: bool,
    rank: int,
    show: Callable[..., None],
) -> None:
    import torch
    from rich.console import Console

    from deepinv_astro.cli.progress import Stages
    from deepinv_astro.io import write_json

    def log_and_show(now: SurveyTraining) -> None:
        _log(now, folder, settings)
        show(now, folder / PICTURE)

    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        write_json(folder / REPORT, settings, overwrite=True)
    try:
        with Stages(Console(stderr=True, quiet=rank > 0)) as stages:
            count = len(training.train) + len(training.validate)
            training.prepare(stages.begin("prepare stars", count))
            if rank == 0 and training.recipe.center_std:
                _write_centers(folder / CENTERS, training)
            if resume and (folder / CHECKPOINT).exists():
                state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
                training.load_state_dict(state)
            advance = stages.begin("training", training.recipe.steps)
            advance(training.step)
            training.run(folder / CHECKPOINT, advance, log_and_show)
    except KeyboardInterrupt:
        if rank == 0:
            typer.echo("Interrupted. The same command goes on with --resume.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if rank == 0:
        _log(training, folder, settings)
        chosen, start = training.chosen, training.history[0]
        typer.echo(
            f"Kept step {chosen.step} of {training.step}: of the validations in the second half of the steps, "
            "the least risk on stars held out, "
            f"{chosen.validation:.4g} (first image {start.validation:.4g}; less is better)."
        )
        if not chosen.validation < start.validation:
            typer.echo(
                "Warning: the network is no better than the first image that it starts from. Give it more "
                "stars or more steps.",
                err=True,
            )
        centers = (CENTERS,) if training.recipe.center_std else ()
        for name in (WEIGHTS, LOG, PICTURE, REPORT, *centers):
            typer.echo(f"Wrote {folder / name}")
        typer.echo(
            "Next: deepinv-astro reconstruct CUBE ANGLES PSF --method learned "
            f"--weights {folder / WEIGHTS}"
        )


def _write_centers(path: Path, training: SurveyTraining) -> None:
    """Where each star was said to be, and where its sequence says it is, in pixels."""
    from deepinv_astro.io.atomic import atomic_path
    from deepinv_astro.training.tasks import measured

    rows = []
    for tasks in (training.train, training.validate):
        stars: Any = tasks.stars
        for k in range(len(tasks)):
            told = measured(stars[k])[1].center[0, 0].tolist()
            found = tasks.observation(k).physics.center[0, 0].tolist()
            name = stars.dataset.entries[stars.indices[k]].target
            rows.append((name, *(f"{v:.3f}" for v in (*told, *found))))
    with (
        atomic_path(path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("target", "row", "column", "fitted_row", "fitted_column"))
        writer.writerows(sorted(rows))


def _log(now: SurveyTraining, folder: Path, settings: dict[str, Any]) -> None:
    """Weights so far, the table, the picture and the report."""
    from deepinv_astro.io import write_json
    from deepinv_astro.io.atomic import atomic_path
    from deepinv_astro.models import save_weights
    from deepinv_astro.training.log import write_history
    from deepinv_astro.training.survey_log import draw_survey_training

    write_history(folder / LOG, now.history)
    model, line = now.result(), now.chosen
    free = {"centre": now.recipe.center_std, "angles": now.recipe.angle_std}
    free["gains"] = now.recipe.gain_std
    fitted = ", ".join(f"{name} (prior {value:g})" for name, value in free.items() if value)
    card = {
        "data": f"{len(now.train)} sequences, without ground truth",
        "recipe": ", ".join(f"{k} {v:g}" for k, v in now.recipe.weights().items()),
        **({"calibrated first": fitted} if fitted else {}),
        "seed": str(settings["seed"]),
        "step": f"{line.step} of {now.recipe.steps}",
        "risk held out": f"{line.validation:.4g} (first image {now.history[0].validation:.4g})",
    }
    save_weights(folder / WEIGHTS, model, card, overwrite=True)  # type: ignore[arg-type]
    with atomic_path(folder / PICTURE, overwrite=True) as temporary:
        draw_survey_training(now).savefig(temporary, dpi=100)
    found = {
        "steps": now.step, "best_step": line.step, "validation": line.validation,
        "first_validation": now.history[0].validation, "seconds": now.history[-1].seconds,
        "noise_levels": None if now.levels is None else now.levels.levels.tolist(),
    }  # fmt: skip
    write_json(folder / REPORT, {**settings, **found}, overwrite=True)
