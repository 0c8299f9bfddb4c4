"""Stars of a survey whose position and gains are told wrong, and fitted to each star's own sequence first.

The shipped network on test stars of ``survey_learning.py``: with the operator that made the data (but for the
PSF, which is told wrong in all rows, as in that benchmark); with the centre wrong by :data:`CENTER` pixels in
each axis and the gain of each frame by :data:`GAIN` (standard deviations); and with ``StarCalibration`` of these.
Images are compared in place: a shift is an error. Run::

    python docs/benchmarks/survey_self_calibration.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from survey_scores import EMPTY, Case, row, score, survey_cases
from targets import parser, store, table
from tqdm import tqdm

from deepinv_astro.models import load_weights
from deepinv_astro.physics import ADI
from deepinv_astro.training import StarCalibration

CENTER, GAIN = 0.5, 0.05
ROWS = ("known", "wrong", "calibrated")


def told(case: Case, number: int) -> ADI:
    """The operator with the errors of one star."""
    rng = torch.Generator().manual_seed(1000 + number)
    physics = case.physics
    center = physics.center + CENTER * torch.randn(2, generator=rng)
    gain = physics.gain * (1 + GAIN * torch.randn(physics.frames, generator=rng))
    return physics.variant(center=center, gain=gain)


def distance(physics: ADI, case: Case) -> float:
    """Between the star's position as told and as it is, pixels."""
    return float((physics.center - case.physics.center).norm())


def main() -> None:
    """Calibrate, reconstruct, score."""
    arguments = parser(__doc__)
    arguments.add_argument("--targets", type=int, default=40)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    start, model = time.perf_counter(), load_weights()
    fit = StarCalibration(center=CENTER, gain=GAIN)
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(tqdm(survey_cases(options.targets), total=options.targets)):
        begin, wrong = time.process_time(), told(case, number)
        operators = {"known": case.physics, "wrong": wrong, "calibrated": fit(case.y, wrong)}
        seconds = time.process_time() - begin
        for name, physics in operators.items():
            with torch.no_grad():
                equations = model.prepare(case.y, physics)
                images = {"first image": equations.start, "network": model.refine(equations)}
            for kind, image in images.items():
                found = row(case, f"{kind}, {name}", score(case, image.clamp_min(0)), seconds)
                rows.append({**found, "center_error": distance(physics, case)})
        store("survey_self_calibration", options, {"rows": rows}, start)
    lines = []
    for name in ROWS:
        for kind in ("first image", "network"):
            own = [r for r in rows if r["method"] == f"{kind}, {name}" and r["kind"] != EMPTY]
            means = [statistics.mean(r[k] for r in own) for k in ("field", "visible")]
            error = statistics.median(r["center_error"] for r in own)
            lines.append((name, kind, *(f"{m:.2f}" for m in means), f"{error:.2f}"))
    print(table(("operator", "image", "field (dB)", "seen (dB)", "centre off (px)"), lines))
    print(f"calibration: {statistics.mean(r['seconds'] for r in rows):.1f} s for each star")


if __name__ == "__main__":
    main()
