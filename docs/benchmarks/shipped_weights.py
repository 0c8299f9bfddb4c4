"""The network that the package ships: judged on stars it never saw, and written with its card.

It was trained on a simulated survey without its truth, by::

    deepinv-astro simulate --survey 256 --size 65 --frames 24 --seed 11 --out survey
    deepinv-astro train --survey survey --output trained --part splitting=1 --part again=1 --steps 1200

Stars of the test are of another seed; disks in real speckles are those of ``disks.py``. Run::

    python docs/benchmarks/shipped_weights.py trained/weights.safetensors
"""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from survey_scores import DECONVOLVED, real_cases, row, score, summary, survey_cases
from targets import parser, store
from tqdm import tqdm

import deepinv_astro
from deepinv_astro.models import load_weights, read_weights_card, save_weights

SHIPPED = Path(deepinv_astro.__file__).parent / "weights" / "survey.safetensors"
COMMAND = (
    "deepinv-astro simulate --survey 256 --size 65 --frames 24 --seed 11 --out survey; "
    "deepinv-astro train --survey survey --output trained --part splitting=1 --part again=1 --steps 1200"
)
LIMITS = (
    "Trained on PSFs of 4 to 5 pixels, 24 frames, disks of up to 30 times the local scatter; brighter ones "
    "are left nearly as its first image shows them. Of light that is the same all round the star it shows "
    "the least. No error map."
)


def mean_gain(rows: list[dict[str, Any]], column: str) -> float:
    """Mean over targets with a disk of network less first image."""
    scores: dict[str, dict[str, float]] = {}
    for one in rows:
        if one[column] is not None:
            scores.setdefault(one["case"], {})[one["method"]] = one[column]
    return statistics.mean(s["network"] - s["first image"] for s in scores.values())


def main() -> None:
    """Judge, store, and write the file of the package."""
    arguments = parser(__doc__)
    arguments.add_argument("weights", type=Path)
    arguments.add_argument("--targets", type=int, default=40)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    start, model = time.perf_counter(), load_weights(options.weights)
    rows: list[dict[str, Any]] = []
    cases = itertools.chain(survey_cases(options.targets), real_cases())
    for case in tqdm(cases, total=options.targets + 18, unit="target"):
        real = case.y.shape[-1] > 65
        begin = time.process_time()
        with torch.no_grad():
            equations = model.prepare(case.y, case.physics)
            images = {"first image": equations.start, "network": model.refine(equations)}
            seconds = time.process_time() - begin
            if real:
                images["marginal"] = DECONVOLVED["marginal"](case.y, case.physics)
        for name, image in images.items():
            found = row(case, name, score(case, image.clamp_min(0)), seconds)
            rows.append({**found, "real": real})
        store("shipped_weights", options, {"rows": rows}, start)
    simulated = [r for r in rows if not r["real"]]
    print(summary(simulated))
    print(summary([r for r in rows if r["real"]]))
    card = {
        **read_weights_card(options.weights).card,
        "seed": "survey 11, training 0",
        "command": COMMAND,
        "scores": f"{options.targets} simulated stars of another survey: "
        f"{mean_gain(simulated, 'field'):+.2f} dB over the first image, "
        f"{mean_gain(simulated, 'visible'):+.2f} dB on what ADI sees",
        "limits": LIMITS,
    }
    SHIPPED.parent.mkdir(exist_ok=True)
    save_weights(SHIPPED, model, card, overwrite=True)
    print(f"Wrote {SHIPPED}: {card}")


if __name__ == "__main__":
    main()
