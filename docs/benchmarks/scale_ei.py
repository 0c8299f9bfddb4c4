"""Deblurring and super-resolution without ground truth: the recipe against its rivals.

Images that scikit-image and scikit-learn ship, halved, in grey, from 0 to 1; astronomical ones are
the Hubble deep field and the Moon, and fields of stars and galaxies drawn here, as there are no more.
Noise is 5/255, measurements have no periodic borders, and each training sees one noisy measurement
of each image. Same network, crops, steps and optimiser in each row; each ends at the least of its own
validation, in the second half of the steps, on strips held out. Settings were chosen on tuning images
(``--tune``), which are neither trained nor tested on. Results are stored row by row; a second call goes on. Needs
``pip install scikit-image scikit-learn``. Run::

    python docs/benchmarks/scale_ei.py --seeds 5
    python docs/benchmarks/scale_ei.py --tune
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from deepinv.loss import Loss
from deepinv.transform import Scale as PublishedScale
from targets import RESULTS, parser, store, table
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from deepinv_astro.datasets.images import deep_field
from deepinv_astro.loss import SUREGaussianLoss
from deepinv_astro.loss.equivariance import EquivariantLoss
from deepinv_astro.physics import Blur
from deepinv_astro.training import Recipe, Restoration, Training

NOISE = 5 / 255
RECIPE = Recipe(steps=1600, patience=100)
KINDS = ("natural", "astronomical")
TASKS = {"blur 2": (2.0, 1), "blur 1": (1.0, 1), "x2": (0.0, 2)}
#: Where the virtual truths of CSS come from: measurements scaled down by these factors.
CSS_FACTORS = (0.25, 0.4)
TV_WEIGHTS = (0.001, 0.002, 0.004, 0.008, 0.016)
PARTS = ("train", "validate", "tune", "test")
NATURAL = {
    "train": ("astronaut.png", "china.jpg", "motorcycle_left.png", "chelsea.png"),
    "tune": ("coffee.png", "coins.png"),
    "test": ("camera.png", "flower.jpg", "rocket.jpg"),
}
#: Rows at the end of the larger training images that validate.
STRIP = 64


# ---------------------------------------------------------------- images
def shipped(name: str) -> Tensor:
    """Half-size grey image of a package, (1, h, w)."""
    import skimage.data
    import skimage.io
    import sklearn.datasets

    folder = Path(skimage.data.__file__).parent
    if not (folder / name).exists():
        folder = Path(sklearn.datasets.__file__).parent / "images"
    pixels = skimage.io.imread(folder / name).astype(np.float32) / 255
    if pixels.ndim == 3:
        pixels = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    return avg_pool2d(torch.from_numpy(pixels)[None], 2)


@cache
def images(kind: str) -> dict[str, list[Tensor]]:
    """Images of a kind by part; parts share no pixel."""
    if kind == "natural":
        made = {part: [shipped(name) for name in names] for part, names in NATURAL.items()}
        return strips_apart(made)
    deep, moon = shipped("hubble_deep_field.jpg"), shipped("moon.png")
    drawn = [deep_field(seed=seed) for seed in range(6)]
    made = {
        "train": [deep[..., :250], moon[..., :144], *drawn[:3]],
        "tune": [deep[..., 218:, 250:375], moon[..., :128, 144:], drawn[3]],
        "test": [deep[..., 375:], moon[..., 128:, 144:], *drawn[4:]],
    }
    return strips_apart(made)


def strips_apart(made: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """The last rows of training images of three strips or more validate."""
    high = [image for image in made["train"] if image.shape[-2] >= 3 * STRIP]
    low = [image for image in made["train"] if image.shape[-2] < 3 * STRIP]
    train = [image[..., :-STRIP, :] for image in high]
    return {**made, "train": low + train, "validate": [image[..., -STRIP:, :] for image in high]}


def gaussian(sigma: float) -> Tensor:
    """Gaussian of unit sum, cut at three sigma; one pixel for sigma 0."""
    reach = math.ceil(3 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / max(sigma, 1e-3)) ** 2)
    return torch.outer(line, line) / line.sum() ** 2


class Problem(NamedTuple):
    """Images, their measurements, and an untrained restoration."""

    x: dict[str, list[Tensor]]
    y: dict[str, list[Tensor]]
    restoration: Restoration


def problem(kind: str, task: str, seed: int) -> Problem:
    """Noise and first weights are those of the seed."""
    sigma, factor = TASKS[task]
    x, psf = images(kind), gaussian(sigma)
    g = torch.Generator().manual_seed(1000 + seed)
    y = {}
    for part in PARTS:
        y[part] = []
        for image in x[part]:
            physics = Blur((1, *image.shape[1:]), psf, factor, boundary="valid", sampling="mean")
            clean = physics.A(image[None])[0]
            y[part].append(clean + NOISE * torch.randn(clean.shape, generator=g))
    return Problem(x, y, Restoration(psf, NOISE, factor, y["train"], seed=seed))


def psnr(restore: Callable[[Tensor], Tensor], given: Problem, part: str) -> list[float]:
    """PSNR of each image in dB, on the detector's field."""
    values = []
    for x, y in zip(given.x[part], given.y[part], strict=True):
        with torch.no_grad():
            found = restore(y)
        truth = given.restoration.seen(x)[..., : found.shape[-2], : found.shape[-1]]
        values.append(-10 * math.log10(float((found - truth).square().mean())))
    return values


# ---------------------------------------------------------------- rows
def total_variation(y: Tensor, physics: Blur, weight: float, steps: int = 150) -> Tensor:
    """min 1/2 |A x - y|^2 + weight TV(x), by the primal-dual method of Condat and Vu."""
    x = physics.A_adjoint(y)
    p = x.new_zeros(2, *x.shape)
    for _ in range(steps):
        back = pad(p[0, ..., :-1, :], (0, 0, 1, 0)) - pad(p[0, ..., :-1, :], (0, 0, 0, 1))
        back = back + pad(p[1, ..., :-1], (1, 0)) - pad(p[1, ..., :-1], (0, 1))
        new = x - 0.9 * (physics.A_adjoint(physics.A(x) - y) + back)
        ahead = 2 * new - x
        x = new
        rows, columns = ahead.diff(dim=-2), ahead.diff(dim=-1)
        slope = torch.stack([pad(rows, (0, 0, 0, 1)), pad(columns, (0, 1))])
        p = p + 0.06 * slope
        p = p / (p.norm(dim=0, keepdim=True) / weight).clamp_min(1)
    return x


def tv_row(given: Problem) -> tuple[list[float], dict[str, Any]]:
    """Its weight is the best one for the true tuning images."""

    def restore(weight: float, y: Tensor) -> Tensor:
        physics = given.restoration.physics(*y.shape[-2:])
        return given.restoration.seen(total_variation(y[None], physics, weight))[0]

    scores = {w: statistics.mean(psnr(partial(restore, w), given, "tune")) for w in TV_WEIGHTS}
    best = max(scores, key=lambda w: scores[w])
    return psnr(partial(restore, best), given, "test"), {"weight": best}


def shifted(x: Tensor, rng: torch.Generator, most: int = 16) -> Tensor:
    """Images moved by up to 16 px, mirrored at the edge: no seam."""
    row, column = torch.randint(2 * most + 1, (2,), generator=rng).tolist()
    wide = pad(x, (most,) * 4, mode="reflect")
    return wide[..., row : row + x.shape[-2], column : column + x.shape[-1]]


def turned(x: Tensor, rng: torch.Generator) -> Tensor:
    """Images turned by a multiple of 90 degrees, mirrored or not: no interpolation."""
    k, mirror = torch.randint(4, (1,), generator=rng), torch.randint(2, (1,), generator=rng)
    x = torch.rot90(x, int(k), (-2, -1))
    return x.flip(-1) if int(mirror) else x


def published(rng: torch.Generator) -> nn.Module:
    """deepinv's Scale, which warns of its own use of meshgrid."""
    return PublishedScale(rng=rng)


def ei(
    make: Callable[[torch.Generator], Callable[[Tensor], Tensor]], margin: int, rng: torch.Generator
) -> list[Loss]:
    """SURE and equivariance to some transform."""
    return [
        SUREGaussianLoss(rng=rng),
        EquivariantLoss(make(rng), stop_gradient=True, margin=margin),
    ]


class WithTruth(Training):
    """Training on images that are taken for sharp: they are measured anew in each step."""

    def objective(self, model: nn.Module, y: Tensor) -> Tensor:
        x = y
        found, seen = model(self.physics(x), self.physics), self.seen
        return (seen(found) - seen(x)).square().mean() / self.scale**2

    seen: Callable[[Tensor], Tensor]


def scaled_down(image: Tensor, factor: float, least: int) -> Tensor:
    """Image scaled down, with antialiasing, to no less than ``least`` rows and columns."""
    factor = max(factor, (least + 0.5) / min(image.shape[-2:]))
    small = interpolate(image[None], scale_factor=factor, mode="bicubic", antialias=True)
    return small[0]


ROWS = (
    "linear",
    "TV",
    "supervised",
    "EI ours",
    "CSS",
    "SURE",
    "EI deepinv Scale",
    "EI shift",
    "EI rotate",
)  # fmt: skip


def make_training(row: str, given: Problem, recipe: Recipe, seed: int) -> Training:
    """The training of a row."""
    restoration = given.restoration
    crop = recipe.crop // restoration.factor  # of the same size in the sky
    recipe = dataclasses.replace(recipe, crop=crop)
    physics = restoration.physics(crop, crop)
    margin = len(restoration.psf) // 2
    common: dict[str, Any] = {"scale": float(restoration.model.scale), "seed": seed}
    if row in ("CSS", "supervised"):
        size = physics.img_size[1]
        train, held = given.x["train"], given.x["validate"]
        if row == "CSS":
            low, high = CSS_FACTORS
            train = [
                scaled_down(y, low * (high / low) ** (k / 7), size)
                for y, k in itertools.product(given.y["train"], range(8))
            ]
            held = [scaled_down(y, 1.0, size) for y in given.y["validate"]]
        made = WithTruth(
            restoration.model, physics, train, held,
            dataclasses.replace(recipe, crop=size), losses=lambda rng: [], **common,
        )  # fmt: skip
        made.seen = restoration.seen
        return made
    losses: dict[str, Callable[[torch.Generator], list[Loss]]] = {
        "SURE": lambda rng: [SUREGaussianLoss(rng=rng)],
        "EI shift": partial(ei, lambda rng: partial(shifted, rng=rng), margin),
        "EI rotate": partial(ei, lambda rng: partial(turned, rng=rng), margin),
        "EI deepinv Scale": partial(ei, published, margin),
        "EI ours": partial(recipe.losses, margin=margin),
    }
    return Training(
        restoration.model, physics, given.y["train"], given.y["validate"], recipe,
        losses=losses[row], **common,
    )  # fmt: skip


def score(
    row: str, given: Problem, recipe: Recipe, seed: int, part: str = "test"
) -> dict[str, Any]:
    """PSNR of a row, and how its training went."""
    start, more = time.perf_counter(), dict[str, Any]()
    if row == "linear":
        start_model = given.restoration.model.start

        def linear(y: Tensor) -> Tensor:
            physics = given.restoration.physics(*y.shape[-2:])
            return given.restoration.seen(start_model(y[None], physics))[0]

        values = psnr(linear, given, part)
        more["weight"] = float(start_model.weight)
    elif row == "TV":
        values, more = tv_row(given)
    else:
        training = make_training(row, given, recipe, seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")
            curve: list[float] = []

            def follow(now: Training) -> None:
                given.restoration.model = now.average
                curve.append(round(statistics.mean(psnr(given.restoration, given, part)), 3))

            training.run(log=follow)
        more["last"] = [round(v, 3) for v in psnr(given.restoration, given, part)]
        given.restoration.model = training.result()
        values = psnr(given.restoration, given, part)
        validations = [line.validation for line in training.history]
        more |= {
            "validation": [float(f"{v:.4g}") for v in validations],
            "best step": training.chosen.step,
            "psnr": curve,
            "train seconds": round(training.history[-1].seconds, 1),
        }
    return {
        "db": [round(v, 3) for v in values],
        "seconds": round(time.perf_counter() - start, 1),
        **more,
    }


# ---------------------------------------------------------------- runs
#: Changes of the recipe that were compared on tuning images.
VARIANTS: dict[str, dict[str, Any]] = {
    "as chosen": {},
    "rate .001": {"learning_rate": 1e-3},
    "batch 8": {"batch": 8},
    "no averaging": {"averaging": 0.0},
    "factors .5-.75": {"factors": (0.5, 0.75)},
    "factors .35-.75": {"factors": (0.35, 0.75)},
    "weight 3": {"equivariance": 3.0},
}
ORDER = [
    ("natural", "blur 2"), ("astronomical", "blur 2"), ("natural", "blur 1"), ("natural", "x2"),
    ("astronomical", "blur 1"), ("astronomical", "x2"),
]  # fmt: skip


def stored(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier call with the same settings."""
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    rows: list[dict[str, Any]] = record["rows"]
    return rows if record["settings"] == settings else []


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Mean over seeds of the mean PSNR, and the standard deviation over seeds."""
    done: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        key = (row["row"], row["kind"], row["task"])
        done.setdefault(key, []).append(statistics.mean(row["db"]))
    columns = [c for c in ORDER if any(key[1:] == c for key in done)]

    def cell(name: str, column: tuple[str, str]) -> str:
        values = done.get((name, *column), [])
        if len(values) < 2:
            return f"{values[0]:.2f}" if values else ""
        return f"{statistics.mean(values):.2f}±{statistics.stdev(values):.2f}"

    names = dict.fromkeys(row["row"] for row in rows)
    header = ["row", *(f"{kind[:7]}. {task}" for kind, task in columns)]
    return table(header, [[name, *(cell(name, c) for c in columns)] for name in names])


def main() -> None:
    """Run what is asked for, and print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--tune", action="store_true", help="variants on the tuning images")
    arguments.add_argument("--only", nargs="*", help="rows or variants")
    arguments.add_argument("--task", nargs="*", help="such as 'blur 2'")
    arguments.add_argument("--kind", nargs="*", choices=KINDS)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    name = "scale_ei_tuning" if options.tune else "scale_ei"
    settings = json.loads(json.dumps(dataclasses.asdict(RECIPE)))
    rows = stored((options.out or RESULTS) / f"{name}.json", settings)
    names = list(VARIANTS) if options.tune else list(ROWS)
    for seed, (kind, task), row in itertools.product(range(options.seeds), ORDER, names):
        key = {"seed": seed, "kind": kind, "task": task, "row": row}
        asked = (options.only, row), (options.task, task), (options.kind, kind)
        if any(wanted and value not in wanted for wanted, value in asked):
            continue
        if any(key.items() <= old.items() for old in rows):
            continue
        given = problem(kind, task, seed)
        if options.tune:
            recipe = dataclasses.replace(RECIPE, **VARIANTS[row])
            found = score("EI ours", given, recipe, seed, "tune")
        else:
            found = score(row, given, RECIPE, seed)
        rows.append({**key, **found})
        store(name, options, {"settings": settings, "rows": rows}, start)
        print(key, found["db"], found.get("best step"), f"{found['seconds']} s", flush=True)
    print(summary(rows))


if __name__ == "__main__":
    main()
