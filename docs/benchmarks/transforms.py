"""Transforms against those of deepinv: identity, stars, shape, aliases, round trip, time.

A star is a Gaussian of 3.9 pixels FWHM, and must be where the formula puts it, with the flux that the
formula gives. Times are the best of many, in turns in one process and on one thread, random parameters
included, as ratios to deepinv's ``Scale``: more than one is faster. Run::

    python docs/benchmarks/transforms.py
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import deepinv
import torch
from targets import parser, store, table
from torch import Tensor

from deepinv_astro.transform import Scale, StarRotation, scale_ei_recipe

SIGMA = 1.66
FACTORS = (0.5, 0.75)
#: Of the images that are timed: batch, channels.
BATCHES = ((1, 1), (8, 1), (4, 3))
SIZES = (64, 128, 256, 512)

#: An image and a factor and a centre (row, column) in pixels, to the scaled image; both ways.
Map = Callable[[Tensor, float, tuple[float, float]], Tensor]


def theirs(x: Tensor, factor: float, center: tuple[float, float], back: bool = False) -> Tensor:
    """deepinv's scaling about a pixel: its centres are (column, row) from 0 to 1, edge to edge."""
    at = [c / (n - 1) for c, n in zip(center[::-1], (x.shape[-1], x.shape[-2]), strict=True)]
    factors = torch.tensor([1 / factor if back else factor], dtype=x.dtype)
    centers = torch.tensor([at], dtype=x.dtype)
    return deepinv.transform.Scale().transform(x, factor=factors, center=centers)


def ours(**settings: Any) -> Map:
    """Our scaling, by name of its settings."""
    transform = Scale(center="star", **settings)

    def apply(x: Tensor, factor: float, center: tuple[float, float], back: bool = False) -> Tensor:
        return (transform.inverse if back else transform.transform)(x, factor=factor, center=center)

    return apply


SCALES: dict[str, Map] = {
    "deepinv": theirs,
    "published recipe, our grid": ours(kernel="bicubic", antialias="none"),
    "spline": ours(antialias="none"),
    "spline, band-limited (default)": ours(),
}


# ---------------------------------------------------------------- accuracy
def star(size: tuple[int, int], center: tuple[float, float], sigma: float = SIGMA) -> Tensor:
    """A Gaussian of unit flux."""
    rows, columns = (torch.arange(n).double() - c for n, c in zip(size, center, strict=True))
    return (
        torch.exp(-0.5 * (rows[:, None] ** 2 + columns**2) / sigma**2) / (2 * math.pi * sigma**2)
    )[None, None]


def moments(image: Tensor, place: tuple[float, ...]) -> tuple[float, float, float]:
    """Flux and centroid of what is within 8 pixels of a place."""
    rows, columns = (torch.arange(n).double() for n in image.shape[-2:])
    near = (rows[:, None] - place[0]).abs().le(8) & (columns - place[1]).abs().le(8)
    stamp = image[0, 0] * near
    flux = stamp.sum()
    row, column = (stamp.sum(1) @ rows) / flux, (stamp.sum(0) @ columns) / flux
    return float(flux), float(row), float(column)


def stars(scale: Map) -> tuple[float, float]:
    """Worst errors of the position, in pixels, and of the flux, in per cent."""
    place, flux = 0.0, 0.0
    for factor in FACTORS:
        for center in ((31.0, 31.0), (20.3, 40.6), (45.7, 15.2)):
            for at in ((24.4, 36.7), (40.2, 30.1)):
                expected = [c + factor * (p - c) for c, p in zip(center, at, strict=True)]
                found = moments(scale(star((64, 64), at), factor, center), tuple(expected))
                place = max(place, math.dist(found[1:], expected))
                flux = max(flux, 100 * abs(found[0] / factor**2 - 1))
    return place, flux


def waves(size: tuple[int, int], cutoff: float, seed: int) -> Tensor:
    """Random image of frequencies below a part of Nyquist's, mirrored at the edges."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.arange(n).double() / (n - 1) for n in size)
    weight = torch.randn(*size, generator=generator, dtype=torch.float64)
    weight *= torch.hypot(rows[:, None], columns) < cutoff
    left, right = (
        torch.cos(math.pi * (n - 1) * torch.outer(k, k))
        for n, k in zip(size, (rows, columns), strict=True)
    )
    return (left @ weight @ right)[None, None]


def accuracy(scale: Map) -> dict[str, float]:
    """One row of the table."""
    noise = torch.rand(
        1, 1, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    place, flux = stars(scale)
    wide = star((48, 80), (20.0, 50.0), 4.0)
    expected = star((48, 80), (21.0, 46.25), 3.0) * 0.75**2
    center = (24.0, 35.0)
    fine = torch.cos(2 * math.pi * 0.4 * torch.arange(64).double()).expand(1, 1, 64, 64)
    trips = []
    for factor in FACTORS:
        x = waves((64, 64), 0.45 * factor, 1)
        back = scale(scale(x, factor, (30.0, 33.0)), factor, (30.0, 33.0), back=True)
        trips.append(float((back - x).norm() / x.norm()))
    return {
        "identity": float((scale(noise, 1.0, (24.0, 24.0)) - noise).abs().max()),
        "place_px": place,
        "flux_percent": flux,
        "not_square": float((scale(wide, 0.75, center) - expected).norm() / expected.norm()),
        "alias": float(scale(fine, 0.5, (32.0, 32.0)).std() / fine.std()),
        "round_trip": max(trips),
    }


def rotations() -> dict[str, dict[str, float]]:
    """Worst errors of a star that turns counter-clockwise: its place, and its image."""
    # deepinv turns the other way, and Rotate about the middle of the array
    methods: dict[str, tuple[float, Callable[[Tensor, float], Tensor]]] = {
        "deepinv Rotate, bilinear": (
            31.5,
            lambda x, a: deepinv.transform.Rotate(interpolation_mode="bilinear")(x, theta=[-a]),
        ),
        "deepinv RotateViaShear": (
            32.0,
            lambda x, a: deepinv.transform.RotateViaShear()(x, theta=torch.tensor([-a]).to(x)),
        ),
        "StarRotation": (32.0, lambda x, a: StarRotation()(x, angle=a)),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, (middle, rotate) in methods.items():
        place = image = 0.0
        for angle in (17.0, 63.0, 118.0):
            at, phi = (6.3, 13.1), math.radians(angle)
            row = at[0] * math.cos(phi) + at[1] * math.sin(phi)
            column = at[1] * math.cos(phi) - at[0] * math.sin(phi)
            expected = (middle + row, middle + column)
            true = star((64, 64), expected)
            y = rotate(star((64, 64), (middle + at[0], middle + at[1])), angle)
            place = max(place, math.dist(moments(y, expected)[1:], expected))
            image = max(image, 100 * float((y - true).norm() / true.norm()))
        rows[name] = {"place_px": place, "image_percent": image}
    return rows


# ---------------------------------------------------------------- time
def times(runs: int) -> dict[str, dict[str, float]]:
    """Seconds of deepinv's over ours, forward, and forward with backward, best of many."""
    transforms: dict[str, Callable[[Tensor], Tensor]] = {
        "deepinv": deepinv.transform.Scale(),
        "published recipe, our grid": scale_ei_recipe().transform,
        "spline": Scale(antialias="none"),
        "spline, band-limited (default)": Scale(),
    }
    ratios: dict[str, dict[str, float]] = {}
    for size in SIZES:
        for batch, channels in BATCHES:
            x = torch.rand(batch, channels, size, size)
            for backward in (False, True):
                best = dict.fromkeys(transforms, math.inf)
                for _ in range(runs):
                    for name, transform in transforms.items():
                        y = x.clone().requires_grad_(backward)
                        start = time.perf_counter()
                        out = transform(y)
                        if backward:
                            out.sum().backward()
                        best[name] = min(best[name], time.perf_counter() - start)
                case = f"{batch} x {channels} x {size}^2" + (" + backward" if backward else "")
                ratios[case] = {n: best["deepinv"] / best[n] for n in best if n != "deepinv"}
    return ratios


def main() -> None:
    """Measure, store, print."""
    options = parser(__doc__ or "")
    options.add_argument("--runs", type=int, default=15, help="of each timing (default: 15)")
    chosen: argparse.Namespace = options.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore")  # of deepinv's scaling
    start = time.perf_counter()
    scales = {name: accuracy(scale) for name, scale in SCALES.items()}
    turns, ratios = rotations(), times(chosen.runs)
    content = {"scale": scales, "rotation": turns, "times_faster": ratios}
    store("transforms", chosen, content, start)
    for rows in (scales, turns, ratios):
        names = list(next(iter(rows.values())))
        print(table(["", *names], [[n, *(f"{r[k]:.2g}" for k in names)] for n, r in rows.items()]))


if __name__ == "__main__":
    main()
