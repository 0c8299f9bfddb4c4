"""How images of targets with a known truth are judged, and how methods fare that learn nothing.

Targets are those of the test part of a synthetic survey, which nothing was trained or tuned on, or
disks in the real sequence of ``targets.py``. A method is given what an observer has: of the survey
a PSF that is wrong by some 10 %. Images are judged behind the PSF that made the data,
:math:`z = Hx`, and those of methods that do not deconvolve as they are. Classes of brightness are
those of :math:`a`, the largest ratio of the disk behind the PSF to the temporal deviation. PCA
and iterative PCA take ten components, the others their defaults, as ``deepinv-astro reconstruct``.
Seconds are of CPU time. Results are stored row by row; a second call goes on. Run::

    python docs/benchmarks/survey_scores.py
    python docs/benchmarks/survey_scores.py --size 101 --frames 61 --targets 10
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import disks
import targets
import torch
from deepinv.models import Reconstructor
from torch import Tensor
from tqdm import tqdm

from deepinv_astro.datasets import Part, PlanetTruth, SkyDraw, SyntheticSurvey, point_sources
from deepinv_astro.identifiability import visibility
from deepinv_astro.metric import (
    aperture_sums,
    false_structure,
    flux_ratio,
    nrmse_db,
    remove_invisible,
    support,
)
from deepinv_astro.models import PCA, IterativePCA, MedianADI
from deepinv_astro.optim import REXPACO, Marginal
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur, half_maximum_width

#: Classes of disks, and the brightness :math:`a` below which each lies.
CLASSES = {"a < 3": 3.0, "a 3-10": 10.0, "a > 10": math.inf}
EMPTY, ALL = "no disk", "all disks"
COMPONENTS = 10
#: Methods whose image is the blurred sky, and methods whose image is the sky.
BLURRED: dict[str, Reconstructor] = {
    "median": MedianADI(),
    "pca": PCA(COMPONENTS),
    "ipca": IterativePCA(COMPONENTS),
}
DECONVOLVED: dict[str, Reconstructor] = {"rexpaco": REXPACO(), "marginal": Marginal()}
#: Scores with their names in tables and their decimals.
COLUMNS = {
    "field": ("field dB", 1),
    "support": ("support dB", 1),
    "visible": ("visible dB", 1),
    "flux": ("flux", 2),
    "invisible_flux": ("invisible flux", 2),
    "planets": ("planet bias", 2),
    "false_rms": ("false rms", 2),
    "false_peak": ("false peak", 1),
    "seconds": ("s", 1),
}


# ---------------------------------------------------------------- targets
class Truth(NamedTuple):
    """What an observer cannot know.

    x, disk, deviation: sky with planets, without, and temporal deviation, ``(1, 1, H, W)``; psf:
    the one that made the data, ``(k, k)``; visibility: see ``identifiability.visibility``, of the
    sky, None if it is empty.
    """

    x: Tensor
    disk: Tensor
    planets: tuple[PlanetTruth, ...]
    psf: Tensor
    deviation: Tensor
    visibility: float | None


class Case(NamedTuple):
    """A target: data ``(1, 1, T, h, w)``, the operator that one is told, and the truth."""

    name: str
    kind: str
    y: Tensor
    physics: ADI
    truth: Truth


def brightness(sky: SkyDraw) -> str:
    """Class of a target of a survey."""
    if sky.disk is None:
        return EMPTY
    signal = sky.disk.signal
    return next(name for name, limit in CLASSES.items() if signal < limit)


def seen(x: Tensor, physics: ADI) -> float | None:
    """Visibility of a sky, if there is any."""
    return float(visibility(x, physics)[0]) if bool(x.any()) else None


def survey_case(survey: SyntheticSurvey, index: int) -> Case:
    """A target of a survey, with its truth."""
    item, truth = survey[index], survey.truth(index)
    told = item["params"]
    physics = ADI(
        (1, *survey.img_size), told["angles"], told["filter"], told["center"], gain=told["gain"]
    )
    x, disk, deviation = (image[None] for image in (truth.x, truth.disk, truth.deviation))
    hidden = Truth(x, disk, truth.planets, truth.psf[0], deviation, seen(x, physics))
    return Case(survey.name(index), brightness(truth.sky), item["y"][None], physics, hidden)


def survey_cases(
    n: int, size: int = 65, frames: int = 24, seed: int = 0, part: Part | str = Part.TEST
) -> Iterator[Case]:
    """Targets of the synthetic survey, simulated one by one."""
    survey = SyntheticSurvey(n, seed, img_size=(size, size), frames=frames, part=part)
    return (survey_case(survey, index) for index in range(n))


def real_case(name: str, angle: float, amplitude: float) -> Case:
    """A disk in the real sequence with reversed angles, as ``disks.py`` injects it."""
    empty, physics, deviation = disks.problem()
    x = targets.disk(name, angle, amplitude, empty.psf)
    truth = Truth(x, x, (), empty.psf[0], deviation, seen(x, physics))
    kind = f"a{amplitude:g}" if amplitude else EMPTY
    return Case(f"{name} {angle:g} {kind}", kind, empty.y + physics.A(x), physics, truth)


def real_cases(amplitudes: Iterable[float] = targets.AMPLITUDES) -> Iterator[Case]:
    """All targets in the real sequence; their peak is ``amplitude * targets.UNIT`` counts."""
    every = itertools.product(amplitudes, targets.TARGETS, targets.POSITION_ANGLES)
    return (real_case(name, angle, amplitude) for amplitude, name, angle in every)


# ---------------------------------------------------------------- scores
def score(case: Case, image: Tensor) -> dict[str, Any]:
    """Scores of an image of the sky, behind the PSF that made the data."""
    return score_shown(case, blur(image.nan_to_num(0.0), case.truth.psf))


def score_shown(case: Case, shown: Tensor) -> dict[str, Any]:
    r"""Scores of a blurred image :math:`\hat z`; missing pixels count as zero.

    With :math:`z = Hx`, the disk's support :math:`D = \{(Hd)_p > 0.05 \max Hd\}`, the support
    :math:`P` of the planets, the projection :math:`S` on what is invariant by rotation, and
    apertures :math:`w` of diameter FWHM:

    - field, support: :math:`-20 \log_{10} \|\hat z - z\| / \|z\|`, on all pixels and on :math:`D`;
    - flux: :math:`\sum_D \hat z / \sum_D z`;
    - visible: :math:`-20 \log_{10} \|(I - S)(\hat z - z)\| / \|(I - S) z\|`;
    - invisible_flux: :math:`\langle S \hat z, S z \rangle / \|S z\|^2`;
    - planets: :math:`\langle w, \hat z - z \rangle / \langle w, z_p \rangle` for each planet
      :math:`z_p`, 0 without bias;
    - false_rms, false_peak: root mean square and largest absolute value of
      :math:`(\hat z - z) / \sigma(r)` outside of :math:`D \cup P`.

    Those of a disk are None where there is none.
    """
    truth = case.truth
    found = shown.nan_to_num(0.0).double()
    z, disk = (blur(part.double(), truth.psf) for part in (truth.x, truth.disk))
    region, planets = support(disk), support(z - disk) & bool(truth.planets)
    beside = (found - z).masked_fill(region | planets, torch.nan)
    false = false_structure(beside, truth.deviation.double())
    found_seen, z_seen = remove_invisible(found), remove_invisible(z)
    found_invisible, invisible = found - found_seen, z - z_seen
    of_disk = {
        "field": nrmse_db(found, z),
        "support": nrmse_db(found, z, region),
        "visible": nrmse_db(found_seen, z_seen),
        "flux": flux_ratio(found, z, region),
        "invisible_flux": (found_invisible * invisible).sum() / invisible.square().sum(),
    }
    return {
        **{k: float(v) if bool(region.any()) else None for k, v in of_disk.items()},
        "planets": planet_bias(found - z, truth),
        "false_rms": float(false.rms),
        "false_peak": float(false.peak),
    }


def planet_bias(error: Tensor, truth: Truth) -> list[float]:
    """Error of the flux of each planet in an aperture on its nearest pixel, over that flux."""
    fwhm = half_maximum_width(truth.psf)
    size = (error.shape[-2], error.shape[-1])
    wrong = aperture_sums(error, fwhm)[0, 0]
    found = []
    for planet in truth.planets:
        place = torch.tensor([[planet.row], [planet.column], [planet.flux]], dtype=torch.float64)
        image = blur(point_sources(size, *place)[None, None], truth.psf)
        pixel = round(planet.row), round(planet.column)
        found.append(float(wrong[pixel] / aperture_sums(image, fwhm)[0, 0][pixel]))
    return found


def row(case: Case, method: str, scores: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What is stored of an image of a case."""
    about = {"method": method, "case": case.name, "kind": case.kind}
    return {**about, "visibility": case.truth.visibility, **scores, "seconds": seconds}


def classical(case: Case, method: str) -> dict[str, Any]:
    """Row of a method that learns nothing."""
    start = time.process_time()
    model = {**BLURRED, **DECONVOLVED}[method]
    with torch.no_grad():
        image = model(case.y, case.physics)
    seconds = time.process_time() - start
    judge = score_shown if method in BLURRED else score
    return row(case, method, judge(case, image), seconds)


# ---------------------------------------------------------------- tables
def quartiles(rows: Iterable[dict[str, Any]], column: str) -> list[float]:
    """Lower quartile, median and upper quartile over targets, or over all of their planets."""
    values = [row[column] for row in rows if row[column] is not None]
    if column == "planets":
        values = [bias for planets in values for bias in planets]
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return torch.tensor(values).double().quantile(levels).tolist() if values else []


def summary(rows: list[dict[str, Any]]) -> str:
    """Median of each score [and quartiles], by class of brightness and method."""
    kinds = dict.fromkeys((*CLASSES, EMPTY, *(row["kind"] for row in rows)))
    groups = {ALL: [row for row in rows if row["kind"] != EMPTY]}
    groups |= {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    lines = []
    for kind, some in groups.items():
        for method in dict.fromkeys(row["method"] for row in some):
            own = [row for row in some if row["method"] == method]
            cells = [_cell(quartiles(own, c), digits) for c, (_, digits) in COLUMNS.items()]
            lines.append((kind, method, len(own), *cells))
    return targets.table(("target", "method", "n", *(name for name, _ in COLUMNS.values())), lines)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} [{low}, {high}]"


# ---------------------------------------------------------------- runs
def main() -> None:
    """Run what is not stored, and print the table."""
    arguments = targets.parser(__doc__)
    arguments.add_argument("--targets", type=int, default=40)
    arguments.add_argument("--size", type=int, default=65, help="rows and columns")
    arguments.add_argument("--frames", type=int, default=24)
    arguments.add_argument("--seed", type=int, default=0, help="of the survey")
    names = (*BLURRED, *DECONVOLVED)
    arguments.add_argument("--methods", nargs="+", choices=names, default=names)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    start, code = time.perf_counter(), targets.code_digest()
    path = (options.out or targets.RESULTS) / "survey_classical.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    survey = {"size": options.size, "frames": options.frames, "seed": options.seed}
    done = {(r["case"], r["method"]) for r in rows if survey.items() <= r.items()}
    cases = survey_cases(options.targets, **survey)
    for case in tqdm(cases, total=options.targets, unit="target"):
        for method in options.methods:
            if (case.name, method) in done:
                continue
            rows.append({**survey, **classical(case, method), "code": code})
            targets.store("survey_classical", options, {"rows": rows}, start)
    print(summary([r for r in rows if survey.items() <= r.items()]))


if __name__ == "__main__":
    main()
