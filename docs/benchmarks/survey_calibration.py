r"""The full recipe where noise and PSF are known, where they are found in the data, and where the PSF is wrong.

Rows differ in the PSF that one is told, and in what is known of the speckles.

PSF:

- *known*: the one that made the data;
- *told*: wrong by 20 % in width and 10 % in elongation (standard deviations);
- *calibrated*: the told one, stretched to fit :data:`EXPOSURES` exposures of the star beside the coronagraph,
  with :data:`PEAK` times the noise at its peak, unknown flux, position and background
  (``CalibrationFrames``, ``calibrate``). Free are the logarithm of the width and two components of the elongation, with
  the distribution of the errors as prior. Errors have the form that is fitted, and the star is
  taken to be seen as during the sequence.

Noise, the covariance of the speckles in time in each annulus:

- *estimated* with the image, as the package does;
- *law*: the mean over :data:`NIGHTS` other nights of the same seeing, drift and detector, without sky:
  what can be known of a noise before it is seen;
- *these speckles*: that of :math:`y - A x`, with the true :math:`x`. An oracle: it knows the
  realisation, and the data never tell it.

A known covariance takes the place of the estimated one everywhere: in the first image, whose solver and
penalties stay the same, in the metric of the network, and in all losses.

Each row is judged by its first image, by the network of ``survey_learning.py`` ("full recipe", first seed:
256 stars whose PSF is told wrong by 10 %, noise estimated), and, if asked for by ``--train``, by a network
trained on stars of the row itself, with few stars and steps. Differences to other rows are of the same kind
of image, paired, over test stars with a disk, with their standard error. Rows that are stored are not run
again. Run::

    python docs/benchmarks/survey_calibration.py --weights FOLDER
    python docs/benchmarks/survey_calibration.py --weights FOLDER --tasks FOLDER --train "PSF known" "PSF calibrated"
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import survey_learning
import torch
from survey_learning import FRAMES, RECIPE, SIZE, START, report
from survey_scores import Case, row, score, survey_case
from targets import RESULTS, parser, store, table
from torch import Tensor, nn

from deepinv_astro.datasets import PSFError, PupilHalo, SyntheticSurvey
from deepinv_astro.datasets.halos import Star
from deepinv_astro.datasets.speckles import SpeckleModel, detect, speckle_frames
from deepinv_astro.io.stamps import shift_image
from deepinv_astro.models import MarginalPilot, PilotNetwork
from deepinv_astro.optim import CalibrationFrames, Marginal, Term, calibrate
from deepinv_astro.optim.temporal import FrozenMetric, TemporalLikelihood, TemporalModel
from deepinv_astro.physics import ADI, Calibration, Free
from deepinv_astro.physics.functional.psf import half_maximum_width
from deepinv_astro.physics.functional.resampling import spline_coefficients
from deepinv_astro.training import SurveyRecipe, SurveyTraining

TRAIN, VALIDATE, TEST, STEPS = 32, 8, 40, 160
ERROR = PSFError(width=0.2, elongation=0.1)
EXPOSURES, PEAK = 3, 30.0
#: Of the star in the exposures: scatter of its position in pixels, of ln flux, of the background in noises.
POSITION, LN_FLUX, BACKGROUND = 0.5, 0.3, 3.0
NIGHTS = 6


class Row(NamedTuple):
    """PSF that is told, and what is known of the noise."""

    psf: str
    noise: str


ROWS = {
    "PSF known": Row("known", "estimated"),
    "PSF calibrated": Row("calibrated", "estimated"),
    "PSF wrong": Row("told", "estimated"),
    "PSF known, noise these speckles": Row("known", "these speckles"),
    "PSF known, noise law": Row("known", "law"),
}
#: Networks: that of ``survey_learning.py``, and one trained on the row itself.
SHARED, OWN = "full recipe", "own network"


# ---------------------------------------------------------------- PSF
class Stretched(nn.Module):
    r"""The PSFs of ``stretched_psf``, differentiable in their parameters.

    .. math::

        h_\theta(p) \propto h(S_\theta p), \qquad
        S_\theta = e^{-\ln w} \exp \begin{pmatrix} -e_1 & e_2 \\ e_2 & e_1 \end{pmatrix}

    with :math:`e = \tfrac12 \ln q\, (\cos 2\phi, \sin 2\phi)`, read by the same cubic splines.

    :param torch.Tensor psf: :math:`h`, ``(k, k)``.
    """

    coefficients: Tensor
    grid: Tensor

    def __init__(self, psf: Tensor):
        super().__init__()
        self.side = psf.shape[-1]
        self.register_buffer("coefficients", spline_coefficients(psf))
        axis = torch.arange(self.side).to(psf) - self.side // 2
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="ij")))

    def forward(self, theta: Tensor) -> Tensor:
        """PSF ``(1, k, k)`` of ``(ln w, e_1, e_2)``."""
        shear = torch.stack([-theta[1], theta[2], theta[2], theta[1]]).view(2, 2)
        scale = torch.exp(-theta[0]) * torch.linalg.matrix_exp(shear)
        at = torch.einsum("ij,jkl->ikl", scale, self.grid) + self.side // 2
        below = at.detach().floor()
        n = len(self.coefficients)
        first = below.long() + (n - self.side) // 2
        taps = (first[..., None] + torch.arange(-1, 3)).clamp(0, n - 1)
        values = self.coefficients[taps[0][..., :, None], taps[1][..., None, :]]
        weights = _cubic(at - below)
        read = torch.einsum("klab,kla,klb->kl", values, weights[0], weights[1])
        inside = ((at >= -0.5) & (at <= self.side - 0.5)).all(0)
        read = torch.where(inside, read, 0.0)
        return (read / read.sum())[None]


def _cubic(f: Tensor) -> Tensor:
    """Weights of the four cubic B-splines about a position, ``(..., 4)``."""
    g = 1 - f
    middle = [(4 - 6 * d**2 + 3 * d**3) / 6 for d in (f, g)]
    return torch.stack([g**3 / 6, *middle, f**3 / 6], -1)


def exposures(psf: Tensor, generator: torch.Generator) -> Tensor:
    """Images of the star beside the coronagraph, in units of their noise, ``(K, 1, k, k)``."""
    stamps = []
    for _ in range(EXPOSURES):
        z = torch.randn(4, generator=generator, dtype=torch.float64).tolist()
        moved = shift_image(psf.numpy(), POSITION * z[0], POSITION * z[1])
        flux = PEAK * math.exp(LN_FLUX * z[2]) / float(psf.max())
        noise = torch.randn(psf.shape, generator=generator)
        stamps.append(flux * torch.from_numpy(moved).to(psf) + BACKGROUND * z[3] + noise)
    return torch.stack(stamps)[:, None]


class CalibratedPSF(NamedTuple):
    """PSF ``(1, k, k)``, and the error of the logarithm of its width that the fit states."""

    psf: Tensor
    std: float


def calibrated_psf(told: Tensor, stamps: Tensor) -> CalibratedPSF:
    """The told PSF ``(1, k, k)`` after the exposures."""
    elongation = ERROR.elongation / (2 * math.sqrt(2))
    free = Free(
        "filter", torch.zeros(3), std=torch.tensor([ERROR.width, elongation, elongation]),
        link=Stretched(told[0]), labels=("ln width", "elongation +", "elongation x"),
    )  # fmt: skip
    calibration = Calibration(free)
    fit = calibrate(calibration, [Term(CalibrationFrames(len(stamps), noise=1.0), stamps)])
    return CalibratedPSF(calibration.detached()["filter"], float(fit.report.posterior_std[0]))


# ---------------------------------------------------------------- noise
class KnownCovariance(TemporalLikelihood):
    r"""Gaussian likelihood of a residual, :math:`\tfrac12 \|r\|_W^2`, whose metric is known."""

    def __init__(self, model: TemporalModel, nights: Tensor):
        r"""
        :param TemporalModel model: regions, and the strength of the prior.
        :param torch.Tensor nights: speckles without sky, ``(N, 1, T, h, w)``; :math:`W^{-1}` is
            the mean of their covariances.
        """
        each = nights.split(1)
        variance = torch.stack([model.variance(night) for night in each]).mean(0)
        super().__init__(model.partitions, variance, model.nu)
        states = [super(KnownCovariance, self).freeze(night).state() for night in each]
        self.metric = FrozenMetric.from_state({k: _mean(k, states) for k in states[0]})

    def of_residual(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Cost and its gradient."""
        slope = self.metric(residual)
        return 0.5 * (residual * slope).double().flatten(1).sum(1), slope

    def freeze(self, residual: Tensor) -> FrozenMetric:
        """The metric, whatever the residual."""
        return self.metric


def _mean(name: str, states: list[dict[str, Tensor]]) -> Tensor:
    """What the states of metrics share, and the inverse of the mean of covariances."""
    if not name.startswith("inverses"):
        return states[0][name]
    covariance = torch.stack([state[name].double().inverse() for state in states]).mean(0)
    return covariance.inverse().to(states[0][name])


#: From angles of frames ``(T,)`` to speckles in these frames ``(N, 1, T, h, w)``.
LookUp = Callable[[Tensor], Tensor]


class KnownNoise(Marginal):
    """The marginal method with the covariance known instead of integrated out."""

    def __init__(self, look_up: LookUp, like: Marginal):
        super().__init__(iterations=like.iterations, solver=like.solver)
        self.look_up = look_up

    def _problems(self, y: Tensor, physics: ADI, references: Tensor | None) -> list[Any]:
        problems = super()._problems(y, physics, references)
        for problem in problems:
            nights = self.look_up(problem.physics.angles[0])
            problem.likelihood = KnownCovariance(problem.model, nights)
            problem.noise = problem._on_sky(problem.likelihood.variance).sqrt()
        return problems


def look_up(known: list[tuple[Tensor, Tensor]]) -> LookUp:
    """Speckles of the star that has these angles: no two stars share one."""

    def found(angles: Tensor) -> Tensor:
        for own, nights in known:
            same = own[:, None] == angles
            if bool(same.any(0).all()):
                return nights[:, :, same.int().argmax(0)]
        raise LookupError("no star was observed at these angles")

    return found


class NightHalo(PupilHalo):
    """Tells the conditions of the star that was drawn last."""

    last: SpeckleModel

    def draw(
        self, n_frames: int, shape: tuple[int, int], psf_size: int, generator: torch.Generator
    ) -> Star:
        """One star."""
        star = super().draw(n_frames, shape, psf_size, generator)
        object.__setattr__(self, "last", star.detector)
        return star


# ---------------------------------------------------------------- stars
class Told:
    """Part of a survey with other PSFs, each ``(1, k, k)``."""

    def __init__(self, survey: SyntheticSurvey, psfs: list[Tensor]):
        self.survey, self.psfs = survey, psfs
        self.img_size, self.truth, self.name = survey.img_size, survey.truth, survey.name

    def __len__(self) -> int:
        return len(self.psfs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.survey[index]
        return {**item, "params": {**item["params"], "filter": self.psfs[index]}}


class Known(NamedTuple):
    """What is known, or may be, of the stars of a part, besides their sequences."""

    survey: SyntheticSurvey
    conditions: list[SpeckleModel]
    psfs: dict[str, list[Tensor]]
    #: Stated errors of the logarithm of the calibrated width.
    stds: list[float]

    def stars(self, psf: str) -> Told:
        """With one kind of PSF."""
        return Told(self.survey, self.psfs[psf])

    def speckles(self, kind: str) -> list[tuple[Tensor, Tensor]]:
        """Angles, and speckles of all stars, ``(N, 1, T, h, w)``."""
        found = []
        for index, conditions in enumerate(self.conditions):
            item = self.survey[index]
            if kind == "law":
                rng = torch.Generator().manual_seed(_seed(self.survey, index, "nights"))
                nights = torch.stack([night(conditions, rng) for _ in range(NIGHTS)])
            else:
                case = survey_case(self.stars("known"), index)  # type: ignore[arg-type]
                nights = case.y - case.physics.A(case.truth.x)
            found.append((item["params"]["angles"], nights))
            report("other nights", index + 1)
        return found


def night(conditions: SpeckleModel, generator: torch.Generator) -> Tensor:
    """Sequence of a star without sky, ``(1, T, h, w)``."""
    frames = speckle_frames(conditions, FRAMES, (SIZE, SIZE), generator=generator).frames
    return detect(frames, conditions, generator=generator)[None]


def _seed(survey: SyntheticSurvey, index: int, what: str) -> int:
    return zlib.crc32(f"{survey.seed} {survey.name(index)} {what}".encode())


def known(survey: SyntheticSurvey) -> Known:
    """Simulate a part, and calibrate its PSFs."""
    made = Known(survey, [], {"known": [], "told": [], "calibrated": []}, [])
    for index in range(len(survey)):
        true, told = survey.truth(index).psf, survey[index]["params"]["filter"]
        made.conditions.append(survey.halo.last)  # type: ignore[attr-defined]
        rng = torch.Generator().manual_seed(_seed(survey, index, "exposures"))
        found = calibrated_psf(told, exposures(true[0], rng))
        for name, psf in zip(made.psfs, (true, told, found.psf), strict=True):
            made.psfs[name].append(psf)
        made.stds.append(found.std)
        report(f"{survey.part.value} PSFs calibrated", index + 1)
    return made


def psf_errors(part: Known) -> list[dict[str, Any]]:
    """Relative errors of the widths of told and calibrated PSFs, and of the PSFs."""
    lines = []
    for index, true in enumerate(part.psfs["known"]):
        line: dict[str, Any] = {"case": part.survey.name(index), "stated": part.stds[index]}
        for name in ("told", "calibrated"):
            psf = part.psfs[name][index]
            line[f"{name} width"] = half_maximum_width(psf) / half_maximum_width(true) - 1
            line[f"{name} error"] = float((psf - true).norm() / true.norm())
        lines.append(line)
    return lines


# ---------------------------------------------------------------- rows
def pilot(noise: str, parts: Iterable[Known]) -> MarginalPilot:
    """What makes the equations of a row."""
    usual = MarginalPilot()
    if noise == "estimated":
        return usual
    every = [star for part in parts for star in part.speckles(noise)]
    return MarginalPilot(KnownNoise(look_up(every), usual.method))


def recipe(steps: int) -> SurveyRecipe:
    """The full recipe, of fewer steps and one split of each star."""
    return dataclasses.replace(RECIPE, steps=steps, again=1.0, draws=1, validate_every=steps // 4)


def shared(options: Any) -> PilotNetwork:
    """The network of ``survey_learning.py``, trained unless it is in the folder of weights."""
    usual = SimpleNamespace(
        weights=options.weights, tasks=None, survey=0, stars=survey_learning.TRAIN,
        steps=RECIPE.steps,
    )  # fmt: skip
    return survey_learning.trained(SHARED, 0, usual)[0]


def trained(name: str, parts: list[Known], own: MarginalPilot, options: Any) -> PilotNetwork:
    """The network of a row, trained unless it is in the folder of weights."""
    path = options.weights and options.weights / f"{name}.pt"
    model = survey_learning.network(survey_learning.ROWS[SHARED], 0)
    model.pilot = own
    if path and path.exists():
        model.load_state_dict(torch.load(path))
        return model.eval()
    training = SurveyTraining(
        model, *(part.stars(ROWS[name].psf) for part in parts[:2]), recipe(options.steps),
        folder=options.tasks and options.tasks / name,
    )  # fmt: skip
    training.prepare(partial(report, "stars prepared"))
    training.run(progress=partial(report, "steps"))
    made = training.result()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made.state_dict(), path)
    return made


def judged(case: Case, name: str, method: str, model: PilotNetwork) -> list[dict[str, Any]]:
    """Scores of a network on the equations of a row, and of the first image beside the shared one."""
    begin = time.process_time()
    with torch.no_grad():
        equations = model.prepare(case.y, case.physics)
        images = {START: equations.start} if method == SHARED else {}
        images[method] = model.refine(equations)
    seconds = time.process_time() - begin
    return [
        {**row(case, own, score(case, image.clamp_min(0)), seconds), "row": name}
        for own, image in images.items()
    ]


def differences(
    rows: list[dict[str, Any]], name: str, to: str, method: str, column: str
) -> list[float]:
    """A method in a row less the same in another row, for each target with a disk."""
    scores: dict[str, dict[str, float]] = {}
    for one in rows:
        if one["method"] == method and one["row"] in (name, to) and one[column] is not None:
            scores.setdefault(one["case"], {})[one["row"]] = one[column]
    return [own[name] - own[to] for own in scores.values() if len(own) == 2]


def paired(values: list[float]) -> str:
    """Mean and its standard error."""
    if len(values) < 2:
        return ""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):+.2f} ± {error:.2f}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Scores of each image in each row, with differences to the rows whose PSF is known."""
    references = [name for name, kind in ROWS.items() if kind.psf == "known"]
    lines = []
    for method, name in itertools.product((START, SHARED, OWN), ROWS):
        own = [r for r in rows if r["row"] == name and r["method"] == method]
        disks = [r for r in own if r["field"] is not None]
        if not disks:
            continue
        biases = [bias for r in own for bias in r["planets"]]
        lines.append((
            method, name, len(disks),
            *(f"{statistics.mean(r[c] for r in disks):.2f}" for c in ("field", "visible")),
            f"{statistics.median(r['flux'] for r in disks):.2f}",
            f"{statistics.median(biases):+.2f}" if biases else "",
            *(paired(differences(rows, name, to, method, column))
              for to in references for column in ("field", "visible")),
        ))  # fmt: skip
    short = [ROWS[name].noise for name in references]
    header = [f"{column} - {noise}" for noise in short for column in ("field", "visible")]
    columns = ("image", "row", "disks", "field dB", "visible dB", "flux", "planet bias", *header)
    return table(columns, lines)


def psf_summary(errors: list[dict[str, Any]]) -> str:
    """Root mean squares over the stars."""
    lines = []
    for name in ("told", "calibrated"):
        cells = [
            f"{100 * math.sqrt(statistics.mean(e[f'{name} {what}'] ** 2 for e in errors)):.1f}"
            for what in ("width", "error")
        ]
        lines.append((name, *cells))
    return table(("PSF", "width %", "PSF %"), lines)


# ---------------------------------------------------------------- runs
def main() -> None:
    """Train and score what is not stored, and print tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--stars", type=int, default=TRAIN)
    arguments.add_argument("--validate", type=int, default=VALIDATE)
    arguments.add_argument("--targets", type=int, default=TEST)
    arguments.add_argument("--steps", type=int, default=STEPS)
    arguments.add_argument("--tasks", type=Path, help="folder of the tasks")
    arguments.add_argument("--weights", type=Path, help="folder where weights are kept")
    arguments.add_argument("--train", nargs="+", default=[], choices=ROWS, metavar="ROW")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    sizes = (options.stars, options.validate, options.targets)
    settings = {
        **dataclasses.asdict(recipe(options.steps)), "sizes": list(sizes),
        "psf_error": dataclasses.asdict(ERROR), "exposures": EXPOSURES, "peak": PEAK,
        "nights": NIGHTS, "shared": [SHARED, survey_learning.TRAIN, RECIPE.steps],
    }  # fmt: skip
    path = (options.out or RESULTS) / "survey_calibration.json"
    rows: list[dict[str, Any]] = []
    if path.exists() and (old := json.loads(path.read_text()))["settings"] == settings:
        rows = old["rows"]
    survey = SyntheticSurvey(
        1, 0, img_size=(SIZE, SIZE), frames=FRAMES, psf_error=ERROR, halo=NightHalo(),
        keep=max(sizes),
    )  # fmt: skip
    split = survey.split(*sizes)
    part = lru_cache(lambda which: known(split[which]))
    errors = psf_errors(part(2))
    print(psf_summary(errors), flush=True)
    for name, method in (*((name, SHARED) for name in ROWS), *((n, OWN) for n in options.train)):
        if any((r["row"], r["method"]) == (name, method) for r in rows):
            continue
        parts = [part(k) for k in range(3)] if method == OWN else [part(2)]
        own = pilot(ROWS[name].noise, parts)
        model = trained(name, parts, own, options) if method == OWN else shared(options)
        model.pilot = own
        stars = part(2).stars(ROWS[name].psf)
        for index in range(len(stars)):
            rows += judged(survey_case(stars, index), name, method, model)  # type: ignore[arg-type]
        content = {"settings": settings, "psf": errors, "rows": rows}
        store("survey_calibration", options, content, start)
        print(summary(rows), flush=True)
    print(psf_summary(errors), summary(rows), sep="\n")


if __name__ == "__main__":
    main()
