"""What an image takes of the speckles, and what the probes of SURE find of it without the truth.

For an image x of the sequence y = A x* + n and the metric W of the pilot, the risk asks for n^T W A (x - x*).
SURE estimates it by the change of the image when a probe is added to the data: the residual of the pilot with
random signs of its modes in time, as it is or turned about the star (``deepinv_astro.training.risk``). Means over
stars of the validation part of ``survey_learning.py``, for the first image and the shipped network. Run::

    python docs/benchmarks/survey_penalty.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from survey_learning import FRAMES, SIZE
from survey_scores import Case, survey_case
from targets import parser, store, table
from torch import Tensor
from tqdm import tqdm

from deepinv_astro.datasets import SyntheticSurvey
from deepinv_astro.models import NormalEquations, PilotNetwork, load_weights
from deepinv_astro.training import Observation, risk

TAU, DRAWS = 0.05, 2


def penalties(case: Case, model: PilotNetwork, number: int) -> list[dict[str, Any]]:
    """What is asked for and what two probes find, for two images of a star."""
    physics, pilot, x = case.physics, model.pilot, case.truth.x
    whole = pilot(case.y, physics)
    seen, metric = Observation(case.y, physics, whole), whole.normal.metrics[0]  # type: ignore[attr-defined]
    true = physics.variant(filter=case.truth.psf.view(1, 1, 1, *case.truth.psf.shape))
    noise = case.y - true.A(x)
    residual = case.y - physics.A(whole.start)
    rows = {"first image": lambda e: e.start, "network": model.refine}
    found: dict[str, dict[str, Any]] = {}
    for image, show in rows.items():
        shown = show(whole)
        asked = float((metric(noise) * physics.A(shown - x)).sum())
        found[image] = {"case": case.name, "image": image, "asked for": asked}
        found[image] |= {"unturned": 0.0, "turned": 0.0}
    for draw in range(DRAWS):
        rng = torch.Generator().manual_seed(10 * number + draw)
        probe = metric.resigned(residual, rng)
        plain = physics.A_adjoint(metric(probe)) / TAU, pilot(case.y + TAU * probe, physics)
        part = risk(seen, pilot, rng, tau=TAU)[1]  # type: ignore[arg-type]
        for name, pair in (("unturned", plain), ("turned", (-part.back, part.given))):
            for image, show in rows.items():
                found[image][name] += trace(*pair, show, whole) / DRAWS
    return list(found.values())


def trace(slope: Tensor, moved: NormalEquations, show: Any, whole: NormalEquations) -> float:
    """Divergence of an image along a probe."""
    return float((slope * (show(moved) - show(whole))).sum())


def main() -> None:
    """Penalties of some stars."""
    arguments = parser(__doc__)
    arguments.add_argument("--targets", type=int, default=12)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    start, model, rows = time.perf_counter(), load_weights(), list[dict[str, Any]]()
    survey = SyntheticSurvey(
        options.targets, 0, img_size=(SIZE, SIZE), frames=FRAMES, part="validation"
    )
    for number in tqdm(range(options.targets)):
        with torch.no_grad():
            rows += penalties(survey_case(survey, number), model, number)
        store("survey_penalty", options, {"rows": rows}, start)
    lines = []
    for image in ("first image", "network"):
        own = [r for r in rows if r["image"] == image]
        names = ("asked for", "unturned", "turned")
        lines.append((image, *(f"{statistics.mean(r[name] for r in own):.0f}" for name in names)))
    print(table(("image", "asked for", "probe as it is", "probe turned"), lines))


if __name__ == "__main__":
    main()
