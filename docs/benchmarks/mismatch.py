"""The marginal method without the inverse crime: what it costs that the operator is not the truth.

The disk is drawn and turned on a grid twice as fine, by shears in Fourier space instead of
splines, convolved there with a PSF interpolated (band-limited) from the measured one, and read at
every other pixel. On top of that the PSF of the injection may be 5 % wider than the one given to
the solver, and the star 0.3 px away from where the solver believes it. The truth is the sky
itself, blurred by the solver's PSF, so that every error of the operator counts::

    python docs/benchmarks/mismatch.py
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from functools import lru_cache
from typing import Any, NamedTuple

import targets
import torch
from torch import Tensor
from tqdm import tqdm

from deepinv_astro.io import Sequence
from deepinv_astro.optim import Marginal
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur

FINENESS = 2


class Condition(NamedTuple):
    """What is wrong with the operator: its grid, the width of its PSF, the star (row, column)."""

    fine: bool = False
    widening: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)


WIDER, SHIFT = 1.05, (0.18, -0.24)
CONDITIONS = {
    "same operator": Condition(),
    "finer grid, shears": Condition(fine=True),
    "... and PSF 5 % wider": Condition(fine=True, widening=WIDER),
    "... and star 0.3 px off": Condition(fine=True, shift=SHIFT),
    "... and both": Condition(fine=True, widening=WIDER, shift=SHIFT),
}


def fine_psf(psf: Tensor, widening: float) -> Tensor:
    r"""
    PSF on the fine grid, wider by a factor, by direct evaluation of its Fourier series.

    .. math:: h'(u) \propto \sum_k \hat h_k e^{2 i \pi k u / (n s)}

    :param torch.Tensor psf: ``(1, k, k)``.
    :param float widening: :math:`s`.
    :return: ``(1, m, m)``, unit sum on the pixels that the detector reads.
    """
    side = psf.shape[-1]
    middle = side // 2
    reach = int(middle * widening * FINENESS)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64) / FINENESS / widening
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)
    phase = 2j * torch.pi * (offset[:, None] + middle) * frequency[None]
    matrix = torch.exp(phase) / side
    spectrum = torch.fft.fft2(psf[0].double()).to(matrix)
    # the series repeats itself beyond the stamp
    inside = (offset.abs() <= middle + 0.5).double()
    values = (matrix @ spectrum @ matrix.mT).real * inside[:, None] * inside
    read = values[reach % FINENESS :: FINENESS, reach % FINENESS :: FINENESS]
    return (values / read.sum()).to(psf)[None]


@lru_cache(8)
def injector(condition: Condition) -> tuple[ADI, Sequence]:
    """Operator that makes the data, and the empty sequence."""
    sequence = targets.load()
    if not condition.fine:
        return targets.operator(sequence), sequence
    rows, columns = (FINENESS * (s - 1) + 1 for s in sequence.img_size[1:])
    center = [FINENESS * (c + s) for c, s in zip(sequence.center, condition.shift, strict=True)]
    n = FINENESS * (targets.SIZE - 1) + 1
    physics = ADI(
        (1, n, n),
        sequence.angles,
        fine_psf(sequence.psf, condition.widening),
        (center[0], center[1]),
        detector_size=(rows, columns),
        interpolation="shear",
    )
    return physics, sequence


def inject(name: str, angle: float, amplitude: float, condition: Condition) -> Tensor:
    """Frames of a target, without noise."""
    physics, sequence = injector(condition)
    x = targets.disk(name, angle, amplitude, sequence.psf)
    if not condition.fine:
        return physics.A(x)
    # both grids hold the same flux within 45 px
    flux = float(x.sum() / targets.shape_of(name, angle).sum())
    fine = flux * targets.shape_of(name, angle, FINENESS)
    return physics.A(fine)[..., ::FINENESS, ::FINENESS]


def run(name: str, angle: float, amplitude: float, label: str) -> dict[str, Any]:
    """Score of the marginal method."""
    condition = CONDITIONS[label]
    sequence = injector(condition)[1]
    believed = targets.operator(sequence)
    x = targets.disk(name, angle, amplitude, sequence.psf)
    signal = inject(name, angle, amplitude, condition)
    ideal = believed.A(x)
    start = time.perf_counter()
    image = Marginal()(sequence.y + signal, believed)
    seconds = time.perf_counter() - start
    truth = blur(x, sequence.psf)
    found = targets.score(blur(image, sequence.psf), truth, targets.local_noise(sequence))
    return {
        "target": name,
        "angle": angle,
        "amplitude": amplitude,
        "condition": label,
        "model_error": float((signal - ideal).norm() / ideal.norm()),
        **dataclasses.asdict(found),
        "seconds": seconds,
    }


def results_table(records: list[dict[str, Any]]) -> str:
    """Mean over the position angles, and the difference to the ideal case."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for r in records:
        groups.setdefault((r["target"], r["amplitude"], r["condition"]), []).append(r)
    names = ("whole", "support", "flux", "model_error")
    average = {
        group: {field: sum(r[field] for r in some) / len(some) for field in names}
        for group, some in groups.items()
    }
    rows = []
    for (name, amplitude, condition), m in average.items():
        ideal = average[name, amplitude, next(iter(CONDITIONS))]
        cost = m["whole"] - ideal["whole"], m["support"] - ideal["support"]
        values = (f"{m['whole']:.1f}", f"{m['support']:.1f}", f"{m['flux']:.2f}")
        error = f"{100 * m['model_error']:.1f}"
        row = (name, f"{amplitude:.0f}", condition, error, *values)
        rows.append((*row, f"{cost[0]:+.1f}", f"{cost[1]:+.1f}"))
    header = ("target", "a", "operator of the data", "error %", "whole", "support", "flux")
    return targets.table((*header, "cost", "support"), rows)


def options() -> argparse.Namespace:
    """Options of the command line."""
    made = targets.parser(__doc__)
    made.add_argument(
        "--targets", nargs="+", choices=targets.TARGETS, default=list(targets.TARGETS)
    )
    made.add_argument("--angles", nargs="+", type=float, default=targets.POSITION_ANGLES)
    made.add_argument("--amplitudes", nargs="+", type=float, default=[2.0, 10.0])
    return made.parse_args()


def main() -> None:
    """Run, print and store."""
    chosen = options()
    start = time.perf_counter()
    torch.set_num_threads(chosen.threads)
    todo = [
        (name, angle, amplitude, label)
        for name in chosen.targets
        for amplitude in chosen.amplitudes
        for label in CONDITIONS
        for angle in chosen.angles
    ]
    records = []
    with torch.no_grad():
        for job in tqdm(todo, unit="image"):
            records.append(run(*job))
    print(results_table(records))
    print(f"Stored in {targets.store('mismatch', chosen, {'records': records}, start)}")


if __name__ == "__main__":
    main()
