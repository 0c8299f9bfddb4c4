"""A network that learns from a survey without ground truth, against classical methods and the truth.

Stars are those of ``SyntheticSurvey`` with speckles of physical optics, 65 x 65 pixels and 24 frames;
the PSF that is told is wrong by 10 % in width and 5 % in elongation. Networks, stars, steps and batches
are the same in each row, but for *one correction*, a single network of as many weights that does not see the
data again. Test stars are neither trained on nor tuned on; ``--tune`` scores stars of the
validation part instead. Each network is also judged on disks in the real speckles of ``disks.py``, of which
no training has seen any. The rows *full recipe + adaptation* are of the first ten test stars with a disk
and the first seed: gains of rings, and 24 steps of the weights as well. Tasks are stored in a folder and found
again; results are stored row by row. Run::

    python docs/benchmarks/survey_learning.py --tasks FOLDER --weights WEIGHTS --seeds 5
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from survey_scores import (
    DECONVOLVED,
    EMPTY,
    Case,
    real_case,
    real_cases,
    row,
    score,
    summary,
    survey_cases,
)
from targets import RESULTS, parser, store
from torch import Tensor

from deepinv_astro.datasets import PSFError, SyntheticSurvey
from deepinv_astro.models import (
    NormalEquations,
    PilotCorrection,
    PilotNetwork,
    SmallUNet,
    UnrolledADI,
)
from deepinv_astro.training import Reobservation, SurveyRecipe, SurveyTraining, adapt

SIZE, FRAMES = 65, 24
TRAIN, VALIDATE, TEST = 256, 24, 40
RECIPE = SurveyRecipe(steps=1200, validate_every=100, patience=100)
#: The image of the pilot, without a network, and the method that learns nothing.
START, CLASSICAL = "first image", "marginal"
ADAPTED = {"full recipe + adaptation": 0, "full recipe + adaptation, 24 steps": 24}
ADAPTED_FROM, TO_ADAPT = "full recipe", 10

ROTATED = Reobservation(amplitudes=(1.0, 1.0), psf_error=PSFError(0.0, 0.0), exchange=False)


class Row(NamedTuple):
    """Weights of the recipe, how stars are observed again, and the network."""

    weights: dict[str, Any]
    again: Reobservation = Reobservation()
    network: Callable[[], PilotNetwork] = lambda: UnrolledADI(prox=[SmallUNet() for _ in range(4)])


def one_correction() -> PilotCorrection:
    """A network of as many weights, applied once."""
    return PilotCorrection(net=SmallUNet(32))


#: One probe for each star: those of SURE cost as much as all else.
SURE = {"splitting": 0.0, "risk": 1.0, "draws": 1}
ROWS = {
    "MC only": Row({"splitting": 0.0, "consistency": 1.0, "draws": 1}),
    "frame splitting": Row({}),
    "SURE": Row(SURE),
    "UNSURE": Row({"splitting": 0.0, "unsure": 1.0, "draws": 1}),
    "SURE + rotation": Row({**SURE, "again": 1.0}, ROTATED),
    "SURE + stretch": Row({**SURE, "again": 1.0}, ROTATED._replace(stretch=1.0)),
    "full recipe": Row({"again": 1.0}),
    "one correction": Row({"again": 1.0}, network=one_correction),
    "supervised": Row({"splitting": 0.0, "truth": 1.0}),
}


def stars(seed: int, train: int) -> Any:
    """The survey of a seed, with the truth for the supervised row."""
    survey = SyntheticSurvey(
        1, seed, img_size=(SIZE, SIZE), frames=FRAMES, with_truth=True, keep=train
    )
    return survey.split(train, VALIDATE, TEST)


def network(row: Row, seed: int) -> PilotNetwork:
    """The network of a row with first weights of a seed."""
    torch.manual_seed(seed)
    return row.network()


def train(row: Row, seed: int, options: Any) -> SurveyTraining:
    """Train by a row."""
    parts = stars(options.survey, options.stars)
    recipe = dataclasses.replace(RECIPE, steps=options.steps, **row.weights)
    made = SurveyTraining(
        network(row, seed), parts.train, parts.validation, recipe, reobservation=row.again, seed=seed,
        folder=options.tasks and options.tasks / f"survey{options.survey}",
    )  # fmt: skip
    made.prepare(partial(report, "stars prepared"))
    made.run(progress=partial(report, "steps"))
    return made


def trained(name: str, seed: int, options: Any) -> tuple[PilotNetwork, list[Any]]:
    """The network of a row and its validations, trained unless it is in the folder of weights."""
    path = options.weights and options.weights / f"{name}-{seed}.pt"
    if path and path.exists():
        stored, model = torch.load(path), network(ROWS[name], seed)
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
    arguments.add_argument("--seeds", type=int, default=5)
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
    cases = [Prepared.of(c, False) for c in survey_cases(TEST, SIZE, FRAMES, options.survey, part)]
    if not options.tune:
        cases += [Prepared.of(c, True) for c in (*real_cases(), real_case("ellipse", 0.0, 0.0))]
    jobs = itertools.product(range(options.seeds), options.only or ROWS)
    for name_, seed in (
        (START, 0),
        (CLASSICAL, 0),
        *((n, k) for k, n in jobs),
        *((n, 0) for n in ADAPTED),
    ):
        if any(r["method"] == name_ and r["seed"] == seed for r in rows):
            continue
        own, history = judged(cases, name_, seed, options)
        own[0]["history"] = history
        rows += own
        store(name, options, {"settings": settings, "rows": rows}, start)
        print(name_, seed, history[-1:], flush=True)
        print(summary([r for r in own if not r["real"]]), flush=True)
    for real in (False, True):
        print(summary([r for r in rows if r["real"] is real]))


class Prepared(NamedTuple):
    """A target, whether its speckles are real, its equations, and the seconds that they took."""

    case: Case
    real: bool
    equations: NormalEquations
    seconds: float

    @classmethod
    def of(cls, case: Case, real: bool) -> Prepared:
        """Prepare a target."""
        begin = time.process_time()
        equations = UnrolledADI().prepare(case.y, case.physics)
        return cls(case, real, equations, time.process_time() - begin)


def judged(
    cases: list[Prepared], method: str, seed: int, options: Any
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Scores of all targets by a method, and the validations of its training."""
    history: list[Any] = []
    if method in (START, CLASSICAL, *ADAPTED):
        image = {START: first_image, CLASSICAL: classical}.get(method)
        if image is None:
            model = trained(ADAPTED_FROM, seed, options)[0]
            image = partial(adapted, model, ADAPTED[method])
            cases = [c for c in cases if not c.real and c.case.kind != EMPTY][:TO_ADAPT]
    else:
        model, history = trained(method, seed, options)
        image = partial(refined, model)
    rows = []
    for one in cases:
        begin = time.process_time()
        with torch.no_grad():
            found = image(one)
        seconds = one.seconds + time.process_time() - begin
        scores = {**score(one.case, found.clamp_min(0)), "weighted": weighted(one, found)}
        rows.append({**row(one.case, method, scores, seconds), "real": one.real, "seed": seed})
    return rows, history


def weighted(one: Prepared, image: Tensor) -> float | None:
    r"""Decibels of the error in the metric of the frames, :math:`-10 \log_{10} \|A e\|_W^2 / \|A x\|_W^2`."""
    x, normal = one.case.truth.x, one.equations.normal
    if not bool(x.any()):
        return None
    error, whole = (float((v * normal(v)).double().sum()) for v in (image.clamp_min(0) - x, x))
    return -10 * math.log10(error / whole)


def first_image(one: Prepared) -> Tensor:
    """That of the pilot."""
    return one.equations.start


def classical(one: Prepared) -> Tensor:
    """Of a method that learns nothing."""
    image: Tensor = DECONVOLVED[CLASSICAL](one.case.y, one.case.physics)
    return image


def refined(model: PilotNetwork, one: Prepared) -> Tensor:
    """Of a network."""
    return model.refine(one.equations)


def adapted(model: PilotNetwork, steps: int, one: Prepared) -> Tensor:
    """Of a network that is fitted to the target first."""
    with torch.enable_grad():
        return adapt(model, one.case.y, one.case.physics, steps=steps).image


if __name__ == "__main__":
    main()
