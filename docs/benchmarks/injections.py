"""Errors of point sources against injections into the real sequence with reversed angles.

A planet is injected at several position angles of several separations, searched for and measured; a pull
is its error over the error that the search promises. Prints their root mean square and the bias::

    DEEPINV_ASTRO_DATA=... python docs/benchmarks/injections.py
"""

from __future__ import annotations

import math
import time

import torch
from targets import SIZE, STAR, load, operator, parser, store, table
from torch import Tensor

from deepinv_astro.optim import PointSourceSearch, TemporalModel
from deepinv_astro.physics.functional.points import point_image

#: Separation in pixels, and flux in counts.
PLANETS = ((7.0, 8000.0), (10.0, 3000.0), (16.6, 2300.0), (30.0, 800.0), (42.0, 300.0))


def main() -> None:
    """Inject, search, compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--angles", type=int, default=16, help="position angles (default: 16)")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    sequence = load()
    physics = operator(sequence)
    model = TemporalModel.for_sequence(sequence.y, physics)
    search = PointSourceSearch(model, threshold=3.0, max_sources=1)
    rows, results = [], []
    for radius, flux in PLANETS:
        pulls, ratios, lost = [], [], 0
        for n in range(options.angles):
            angle = 2 * math.pi * (n + 0.25) / options.angles
            truth = (STAR + radius * math.cos(angle), STAR - radius * math.sin(angle))
            row, column = torch.tensor([truth[:1], truth[1:]], dtype=torch.float32)
            sky = point_image((SIZE, SIZE), row, column)[None]
            found = search(sequence.y + flux * physics.A(sky), physics).sources
            if not found or math.dist(truth, found[0][:2]) > 2.0:
                lost += 1
                continue
            s = found[0]
            pulls.append(
                (
                    (s.flux - flux) / s.flux_std,
                    (s.row - truth[0]) / s.row_std,
                    (s.column - truth[1]) / s.column_std,
                )
            )
            ratios.append(s.flux / flux)
        of = torch.tensor(pulls)
        record = {
            "radius": radius,
            "flux": flux,
            "found": len(pulls),
            "lost": lost,
            "flux_pull": rms(of[:, 0]),
            "position_pull": rms(of[:, 1:]),
            "flux_ratio": float(torch.tensor(ratios).mean()),
        }
        results.append(record)
        rows.append([f"{value:.2f}" for value in record.values()])
    header = ["px", "counts", "found", "lost", "pull, flux", "pull, position", "flux ratio"]
    print(table(header, rows))
    store("injections", options, {"results": results}, start)


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


if __name__ == "__main__":
    main()
