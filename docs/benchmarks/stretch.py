"""Does the inclination stretch make visible what ADI cannot see? The same network, trained by each loss.

A survey of disks at random inclinations, each seen in 12 frames with white noise and a static halo of
any size; no ground truth, but for the row "supervised". One small unrolled network, same start, data
and number of steps in each row. Scores are decibels of H x on test targets, and what is recovered of
their part that is invariant by rotation. Settings were chosen on seed 100. Run::

    python docs/benchmarks/stretch.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from deepinv.physics import LinearPhysics
from targets import parser, store, table
from torch import Tensor

from deepinv_astro.datasets import henyey_greenstein, ring
from deepinv_astro.loss import (
    EquivariantLoss,
    SUREGaussianLoss,
    draw_split,
    frame_subset,
    without_temporal_mean,
)
from deepinv_astro.metric import nrmse_db, remove_invisible
from deepinv_astro.models import NormalEquations, SmallUNet, UnrolledADI, WhitePilot
from deepinv_astro.physics import ADI, HeteroscedasticNoise
from deepinv_astro.physics.functional.psf import blur
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
from deepinv_astro.transform import InclinationStretch, StarRotation

SIZE, FRAMES, FWHM = 33, 12, 3.0
#: Total rotation of the angle tracks, degrees; targets are shared out among them.
ROTATIONS = (50.0, 80.0)
TEST, BATCH, SPLITS = 200, 8, 4
#: Flux of a disk in units of the noise of a pixel.
FLUX = (100.0, 300.0)
FACE_ON, INCLINED = 30.0, 50.0
PSF = gaussian_psf((9, 9), FWHM).float()


# ---------------------------------------------------------------- operators and data
class Projected(LinearPhysics):
    r"""What a sequence says of the image once the static halo is eliminated, in the fewest numbers.

    With P A = U S V^T, z = U^T P y = S V^T x + white noise of the level of y.
    """

    def __init__(self, physics: ADI):
        super().__init__(noise_model=HeteroscedasticNoise(1.0))
        pixels = SIZE * SIZE
        frames = physics.A(torch.eye(pixels, dtype=torch.float64).view(-1, 1, SIZE, SIZE))
        dense = without_temporal_mean(frames).flatten(1)  # (P A)^T
        values, vectors = torch.linalg.eigh(dense @ dense.mT)
        kept = values > 1e-6 * values[-1]
        s = values[kept].sqrt()
        self.register_buffer("matrix", (s[:, None] * vectors[:, kept].mT).float())
        self.register_buffer("normal", (self.matrix.mT @ self.matrix))
        self.register_buffer("analysis", (vectors[:, kept] / s).mT.float() @ dense.float())

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return (x.flatten(1) @ self.matrix.mT)[:, None, None]

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return (y.flatten(1) @ self.matrix).view(-1, 1, SIZE, SIZE)

    def coordinates(self, y: Tensor) -> Tensor:
        """U^T P y of a sequence (B, 1, T, h, w); P is in the matrix."""
        return (y.flatten(1) @ self.analysis.mT)[:, None, None]


class Track(NamedTuple):
    """Angles, the operator of all frames, and splits with the operators of both parts."""

    physics: ADI
    whole: Projected
    splits: list[tuple[Tensor, Projected, Tensor, Projected]]


def make_track(rotation: float) -> Track:
    """Operators of one angle track: the parallactic angle turns fastest in the middle."""
    time_ = torch.linspace(-1, 1, FRAMES, dtype=torch.float64)
    angles = rotation / 2 * torch.tanh(1.5 * time_) / torch.tanh(torch.tensor(1.5).double())
    physics = ADI((1, SIZE, SIZE), angles, PSF.double(), dtype=torch.float64)
    generator = torch.Generator().manual_seed(int(rotation))
    splits: list[tuple[Tensor, Projected, Tensor, Projected]] = []
    while len(splits) < SPLITS:
        given, held = draw_split(angles, block=2, fraction=0.5, generator=generator)
        if not any(torch.equal(given, other[0]) for other in splits):
            parts = (Projected(frame_subset(physics, part)) for part in (given, held))
            first, second = parts
            splits.append((given, first, held, second))
    whole = Projected(physics)
    return Track(physics.float(), whole, splits)


class Disks(NamedTuple):
    """Images (B, 1, H, W) and inclinations in degrees."""

    x: Tensor
    inclination: Tensor


def disks(count: int, generator: torch.Generator) -> Disks:
    """Rings of every orientation: uniform in cos i up to 80 degrees."""
    u = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    low = torch.cos(torch.deg2rad(torch.tensor(80.0))).double()
    inclination = torch.rad2deg(torch.acos(low + (1 - low) * u[:, 0]))
    flux = FLUX[0] * (FLUX[1] / FLUX[0]) ** u[:, 6]
    images = ring(
        (SIZE, SIZE),
        5.0 + 7.0 * u[:, 1],
        inclination,
        360.0 * u[:, 2],
        phase=partial(henyey_greenstein, g=0.5 * u[:, 3, None, None]),
        slopes=(4.0 + 16.0 * u[:, 4], -3.0 - 9.0 * u[:, 5]),
        flux=flux,
        oversampling=3,
    )
    return Disks(images.float()[:, None], inclination)


class Observed(NamedTuple):
    """Targets of one track: truth, data of all frames, and the equations of all data."""

    x: Tensor
    z: Tensor
    whole: NormalEquations
    parts: list[tuple[Tensor, NormalEquations, Tensor]]  # z and equations given, z held out


def unit_level(z: Tensor) -> Tensor:
    """The noise of all data is 1, and known (but for splitting, which does not use it)."""
    return z.new_ones(len(z))


def make_pilot(options: argparse.Namespace) -> WhitePilot:
    """The start of the network."""
    return WhitePilot(
        unit_level, smoothness=options.smoothness, sparsity=options.sparsity, iterations=20
    )


def observe(
    track: Track, x: Tensor, pilot: WhitePilot, generator: torch.Generator, split: bool
) -> Observed:
    """Measure targets; noise is drawn in the frames, so that parts share it with the whole."""
    y = track.physics.A(x)
    y = y + torch.randn(y.shape, generator=generator)
    z = track.whole.coordinates(y)
    parts = []
    for given, first, held, second in track.splits if split else []:
        own = first.coordinates(y[:, :, given])
        parts.append((own, pilot(own, first), second.coordinates(y[:, :, held])))
    return Observed(x, z, pilot(z, track.whole), parts)


def rows(equations: NormalEquations, index: Tensor, physics: Projected) -> NormalEquations:
    """Equations of some targets of a track."""

    def normal(x: Tensor) -> Tensor:
        return (x.flatten(1) @ physics.normal).view_as(x)

    return replace(
        equations,
        normal=normal,
        back=equations.back[index],
        scale=equations.scale[index],
        start=equations.start[index],
    )


# ---------------------------------------------------------------- losses
#: Reconstruction and loss of some targets of a track.
Objective = Callable[[UnrolledADI, Track, Observed, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def sure(
    model: UnrolledADI, track: Track, data: Observed, index: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Reconstruction from all frames, and its unbiased risk."""
    x_net = model.refine(rows(data.whole, index, track.whole))
    loss = SUREGaussianLoss(rng=rng)
    return x_net, loss(x_net=x_net, y=data.z[index], physics=track.whole, model=model).mean()


def splitting(
    model: UnrolledADI, track: Track, data: Observed, index: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Reconstruction from some frames, and its error on the others: FrameSplittingLoss."""
    k = int(torch.randint(SPLITS, (), generator=rng))
    (_, first, _, second), (_, equations, held) = track.splits[k], data.parts[k]
    x_net = model.refine(rows(equations, index, first))
    return x_net, (held[index] - second.A(x_net)).square().mean()


def supervised(
    model: UnrolledADI, track: Track, data: Observed, index: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Reconstruction from all frames, and its error on the truth."""
    x_net = model.refine(rows(data.whole, index, track.whole))
    return x_net, (x_net - data.x[index]).square().mean()


def equivariant(fidelity: Objective, transform: Callable[..., Any], weight: float) -> Objective:
    """A fidelity and equivariant imaging, T x held fixed and not brighter on the detector than x."""

    def objective(
        model: UnrolledADI, track: Track, data: Observed, index: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        x_net, value = fidelity(model, track, data, index, rng)
        loss = EquivariantLoss(
            transform(rng=rng),
            stop_gradient=True,
            amplitude_bound=1.0,
            noise_model=lambda z: z + torch.randn(z.shape, generator=rng),
            weight=weight,
        )
        return x_net, value + loss(x_net=x_net, physics=track.whole, model=model).mean()

    return objective


def losses(options: argparse.Namespace) -> dict[str, Objective]:
    """Rows of the table."""
    weight = options.weight
    either, deproject = (
        partial(InclinationStretch, direction=direction) for direction in ("either", "deproject")
    )
    return {
        "splitting": splitting,
        "splitting + stretch": equivariant(splitting, either, weight),
        "supervised": supervised,
        "splitting + deprojection": equivariant(splitting, deproject, weight),
        "SURE": sure,
        "splitting + rotation": equivariant(splitting, StarRotation, weight),
        "SURE + stretch": equivariant(sure, either, weight),
    }


# ---------------------------------------------------------------- training and scores
def train(
    objective: Objective,
    tracks: list[Track],
    data: list[Observed],
    options: argparse.Namespace,
    seed: int,
) -> UnrolledADI:
    """Adam with a rate that falls as a cosine; each step sees targets of one track."""
    torch.manual_seed(seed)
    model = UnrolledADI(
        make_pilot(options), [SmallUNet(options.width) for _ in range(options.depth)]
    )
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.rate, total_steps=options.steps, pct_start=0.1
    )
    rng = torch.Generator().manual_seed(seed + 1)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(options.steps):
        k = int(torch.randint(len(tracks), (), generator=rng))
        if len(order) < BATCH:
            order = torch.randperm(len(data[k].x), generator=rng)
        index, order = order[:BATCH], order[BATCH:]
        _, value = objective(model, tracks[k], data[k], index, rng)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def scores(images: list[Tensor], truth: list[Tensor], inclination: Tensor) -> dict[str, float]:
    """Mean decibels of H x of each kind of targets, and the share of their invariant part that is found."""
    found, true = (blur(torch.cat(part), PSF) for part in (images, truth))
    decibels = nrmse_db(found, true)
    kinds = {
        "all": inclination >= 0,
        "inclined": inclination > INCLINED,
        "face_on": inclination < FACE_ON,
    }
    result = {f"{name}_db": float(decibels[kind].mean()) for name, kind in kinds.items()}
    seen = [remove_invisible(part) for part in (found, true)]
    invisible = found - seen[0], true - seen[1]
    result["visible_db"] = float(nrmse_db(*seen).mean())
    result["invisible_db"] = float(nrmse_db(*invisible).mean())
    for name, kind in kinds.items():
        first, second = (part[kind].flatten(1) for part in invisible)
        share = (first * second).sum(1) / second.square().sum(1)
        result[f"{name}_invisible_flux"] = float(share.mean())
    return result


def run(
    names: list[str],
    tracks: list[Track],
    options: argparse.Namespace,
    seed: int,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Train the network by each loss on the same survey, and test it; keep the result of each row."""
    generator = torch.Generator().manual_seed(1000 + seed)
    pilot = make_pilot(options)
    data, test, tilt = [], [], []
    for track in tracks:
        images = disks(options.train // len(tracks), generator)
        data.append(observe(track, images.x, pilot, generator, split=True))
        images = disks(TEST // len(tracks), generator)
        test.append(observe(track, images.x, pilot, generator, split=False))
        tilt.append(images.inclination)
    inclination, truth = torch.cat(tilt), [part.x for part in test]
    result = {"start": scores([part.whole.start for part in test], truth, inclination)}
    keep(result)
    for name in names:
        begin = time.process_time()
        model = train(losses(options)[name], tracks, data, options, seed)
        seconds = time.process_time() - begin
        with torch.no_grad():
            images = [
                model.refine(rows(part.whole, torch.arange(len(part.x)), track.whole))
                for part, track in zip(test, tracks, strict=True)
            ]
        result[name] = {**scores(images, truth, inclination), "seconds": round(seconds, 1)}
        keep(result)


def summary(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in next(iter(results.values())):
        every = [result[name] for result in results.values() if name in result]
        found[name] = {
            key: [
                round(statistics.mean(one[key] for one in every), 4),
                round(statistics.stdev(one[key] for one in every), 4) if every[1:] else 0.0,
            ]
            for key in every[0]
        }
    return found


SHOWN = {
    "all_db": "all",
    "inclined_db": "inclined",
    "face_on_db": "face-on",
    "visible_db": "visible part",
    "invisible_db": "invariant part",
    "all_invisible_flux": "its share found",
    "face_on_invisible_flux": "face-on",
    "seconds": "s",
}


def main() -> None:
    """Train all rows for all seeds; a row that is stored for the same options is not repeated."""
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--first", type=int, default=0, help="first seed (0); tuned on 100")
    options.add_argument("--rows", nargs="*", help="names of losses (all)")
    options.add_argument("--train", type=int, default=600, help="targets of the survey")
    options.add_argument("--steps", type=int, default=250)
    options.add_argument("--rate", type=float, default=5e-3)
    options.add_argument("--weight", type=float, default=1.0, help="of equivariance")
    options.add_argument("--width", type=int, default=8)
    options.add_argument("--depth", type=int, default=3)
    options.add_argument("--smoothness", type=float, default=0.3, help="of the start")
    options.add_argument("--sparsity", type=float, default=0.3, help="of the start")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    start = time.perf_counter()
    tracks = [make_track(rotation) for rotation in ROTATIONS]
    results: dict[str, Any] = {}
    settings = {k: v for k, v in vars(given).items() if isinstance(v, int | float | str)}
    for seed in range(given.first, given.first + given.seeds):

        def keep(result: dict[str, Any], seed: int = seed) -> None:
            results[str(seed)] = result
            content = {"settings": settings, "seeds": results, "mean_std": summary(results)}
            store("stretch", given, content, start)
            name = list(result)[-1]
            print(seed, name, {k: round(v, 2) for k, v in result[name].items()}, flush=True)

        run(given.rows or list(losses(given)), tracks, given, seed, keep)
    lines = [
        (name, *(f"{m:.2f} +- {s:.2f}" for key in SHOWN for m, s in [values.get(key, [0.0, 0.0])]))
        for name, values in summary(results).items()
    ]
    print(table(("", *SHOWN.values()), lines))


if __name__ == "__main__":
    main()
