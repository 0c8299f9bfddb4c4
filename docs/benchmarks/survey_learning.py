"""A network that learns from a survey without ground truth, against classical methods and the truth.

Stars are those of ``SyntheticSurvey`` with speckles of physical optics, 65 x 65 pixels and 24 frames;
the PSF that is told is wrong by 10 % in width and 5 % in elongation. Networks, stars, steps and batches
are the same in each row. Test stars are neither trained on nor tuned on; ``--tune`` scores stars of the
validation part instead. Tasks are stored in a folder and found again; results are stored row by row. Run::

    python docs/benchmarks/survey_learning.py --tasks FOLDER --seeds 3
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from survey_scores import row, score, summary, survey_cases
from targets import RESULTS, parser, store

from deepinv_astro.datasets import PSFError, SyntheticSurvey
from deepinv_astro.models import SmallUNet, UnrolledADI
from deepinv_astro.training import Reobservation, SurveyRecipe, SurveyTraining

SIZE, FRAMES = 65, 24
TRAIN, VALIDATE, TEST = 256, 24, 40
RECIPE = SurveyRecipe(steps=600, validate_every=100, patience=100)
#: The image of the pilot, without a network.
START = "first image"
ROTATED = Reobservation(amplitudes=(1.0, 1.0), psf_error=PSFError(0.0, 0.0), exchange=False)


class Row(NamedTuple):
    """Weights of the recipe, and how stars are observed again."""

    weights: dict[str, Any]
    again: Reobservation = Reobservation()


#: One probe for each star: those of SURE cost as much as all else.
SURE = {"splitting": 0.0, "risk": 1.0, "draws": 1}
ROWS = {
    "MC only": Row({"splitting": 0.0, "consistency": 1.0, "draws": 1}),
    "frame splitting": Row({}),
    "SURE": Row(SURE),
    "SURE + rotation": Row({**SURE, "again": 1.0}, ROTATED),
    "SURE + stretch": Row({**SURE, "again": 1.0}, ROTATED._replace(stretch=1.0)),
    "full recipe": Row({"again": 1.0}),
    "supervised": Row({"splitting": 0.0, "truth": 1.0}),
}


def stars(seed: int, train: int) -> Any:
    """The survey of a seed, with the truth for the supervised row."""
    survey = SyntheticSurvey(
        1, seed, img_size=(SIZE, SIZE), frames=FRAMES, with_truth=True, keep=train
    )
    return survey.split(train, VALIDATE, TEST)


def network(seed: int) -> UnrolledADI:
    """The default network with first weights of a seed."""
    torch.manual_seed(seed)
    return UnrolledADI(prox=[SmallUNet() for _ in range(4)])


def train(row: Row, seed: int, options: Any) -> SurveyTraining:
    """Train by a row."""
    parts = stars(options.survey, options.stars)
    recipe = dataclasses.replace(RECIPE, steps=options.steps, **row.weights)
    made = SurveyTraining(
        network(seed), parts.train, parts.validation, recipe, reobservation=row.again, seed=seed,
        folder=options.tasks and options.tasks / f"survey{options.survey}",
    )  # fmt: skip
    made.prepare(partial(report, "stars prepared"))
    made.run(progress=partial(report, "steps"))
    return made


def trained(name: str, seed: int, options: Any) -> tuple[UnrolledADI, list[Any]]:
    """The network of a row and its validations, trained unless it is in the folder of weights."""
    path = options.weights and options.weights / f"{name}-{seed}.pt"
    if path and path.exists():
        stored, model = torch.load(path), network(seed)
        model.load_state_dict(stored["model"])
        return model.eval(), stored["history"]
    training = train(ROWS[name], seed, options)
    model = training.result()
    history = [tuple(line) for line in training.history]
    if path:
        torch.save({"model": model.state_dict(), "history": history}, path)
    return model, history


def report(what: str, done: int) -> None:
    """A line now and then."""
    if done % 100 == 0:
        print(f"  {what}: {done}", flush=True)


def main() -> None:
    """Train and score what is asked for."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--survey", type=int, default=0, help="seed of the survey")
    arguments.add_argument("--stars", type=int, default=TRAIN)
    arguments.add_argument("--steps", type=int, default=RECIPE.steps)
    arguments.add_argument("--tasks", type=Path, help="folder of the tasks")
    arguments.add_argument("--weights", type=Path, help="folder where weights are kept")
    arguments.add_argument("--only", nargs="*", help="rows")
    arguments.add_argument("--tune", action="store_true", help="score stars of the validation part")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    name = "survey_learning_tuning" if options.tune else "survey_learning"
    path = (options.out or RESULTS) / f"{name}.json"
    settings = {**dataclasses.asdict(RECIPE), "steps": options.steps, "stars": options.stars}
    rows: list[dict[str, Any]] = []
    if path.exists() and (old := json.loads(path.read_text()))["settings"] == settings:
        rows = old["rows"]
    part = "validation" if options.tune else "test"
    cases = list(survey_cases(TEST, SIZE, FRAMES, options.survey, part))
    for seed, name_ in itertools.product(range(options.seeds), options.only or ROWS):
        if any(r["method"] == name_ and r["seed"] == seed for r in rows):
            continue
        model, history = trained(name_, seed, options)
        own = [{**judged(case, name_, model), "seed": seed} for case in cases]
        if seed == 0 and not any(r["method"] == START for r in rows):
            own += [{**judged(case, START, None), "seed": seed} for case in cases]
        own[0]["history"] = history
        rows += own
        store(name, options, {"settings": settings, "rows": rows}, start)
        print(name_, seed, history[-1:], flush=True)
        print(summary(own), flush=True)
    print(summary(rows))


def judged(case: Any, method: str, model: UnrolledADI | None) -> dict[str, Any]:
    """Scores of a target by a network, or of the image that all of them start from."""
    begin = time.process_time()
    with torch.no_grad():
        net = network(0) if model is None else model
        equations = net.prepare(case.y, case.physics)
        image = equations.start if model is None else net.refine(equations)
    return row(case, method, score(case, image.clamp_min(0)), time.process_time() - begin)


if __name__ == "__main__":
    main()
