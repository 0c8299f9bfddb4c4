"""Test targets of the benchmarks, and what the scripts of this folder share.

The sequence is the real one of beta Pictoris with the signs of its angles reversed: the planet is
smeared out, the speckles stay what they are. Into it a disk is injected. None of these disks was
used to choose a parameter of the package; those were chosen on a ring of 31 px seen at 66 degrees,
a spiral at a position angle of 130 degrees, and HR 4796 A at 125 degrees. Run by itself, this
script lists the targets::

    DEEPINV_ASTRO_DATA=... python docs/benchmarks/targets.py
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor
from torch.nn.functional import avg_pool2d

import deepinv_astro
from deepinv_astro.datasets import BetaPictoris, henyey_greenstein, ring, spiral
from deepinv_astro.identifiability.adi import visibility
from deepinv_astro.io import Sequence
from deepinv_astro.metric import false_structure, flux_ratio, nrmse_db, support
from deepinv_astro.optim.radial import radial_profile
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur

#: Rows and columns of the sky image, and the star on it.
SIZE, STAR = 101, 50
#: Counts: amplitudes are the peak of the blurred disk in this unit.
UNIT = 13.14
TARGETS = ("ellipse", "spiral", "hr4796a")
FACE_ON = "face-on"
POSITION_ANGLES = (0.0, 70.0)
AMPLITUDES = (2.0, 10.0, 50.0)
RESULTS = Path(__file__).parent / "results"

HR4796A = Path("gpi_hr4796a") / "hr4796a_H_pol.fits"
#: Of the GPI image, in its pixels: the star, the ring's radius, its inner and outer noise.
GPI_STAR, GPI_RING, GPI_INNER, GPI_OUTER = 140, 73.5, 25.0, 105.0


def load() -> Sequence:
    """The real sequence with reversed angles, in float32."""
    sequence = BetaPictoris(download=False)
    return dataclasses.replace(
        sequence.to(dtype=torch.float32),
        angles=-(sequence.angles - sequence.true_north),
        true_north=0.0,
        provenance=(*sequence.provenance, "Reversed the signs of the angles."),
    )


def operator(sequence: Sequence, **options: Any) -> ADI:
    """Operator of the sequence, on a sky of the detector's size."""
    return ADI((1, SIZE, SIZE), sequence.angles, sequence.psf, sequence.center, **options)


def shape_of(name: str, angle: float, fineness: int = 1) -> Tensor:
    """
    A target with unit sum within 45 px of the star.

    :param str name: one of :data:`TARGETS`, or :data:`FACE_ON`.
    :param float angle: position angle in degrees, added to the disk's own.
    :param int fineness: pixels of the image per pixel of the detector.
    :return: image ``(1, 1, n, n)``, ``n`` = 100 fineness + 1, star on the middle pixel.
    """
    n, middle = STAR * 2 * fineness + 1, STAR * fineness
    where = {"shape": (n, n), "center": (middle, middle), "position_angle": angle}
    if name == "ellipse":
        phase = partial(henyey_greenstein, g=0.2)
        image = ring(
            semi_major_axis=28.0 * fineness,
            inclination=70.0,
            phase=phase,
            slopes=(12.0, -8.0),
            **where,
        )
    elif name == FACE_ON:
        image = ring(semi_major_axis=28.0 * fineness, inclination=0.0, slopes=(12.0, -8.0), **where)
    elif name == "spiral":
        image = spiral(
            semi_major_axis=24.0 * fineness,
            inclination=30.0,
            pitch=25.0,
            arm_width=0.2,
            slopes=(4.0, -6.0),
            **where,
        )
    elif name == "hr4796a":
        image = _hr4796a(n, middle, 27.0 * fineness / GPI_RING, angle)
    else:
        raise ValueError(f"no target is called {name!r}")
    image = image.double()
    inside = separation((n, n), (middle, middle)) <= 45 * fineness
    return (image / image[inside].sum()).float()[None, None]


@lru_cache(1)
def _polarised_light() -> np.ndarray:
    """Smoothed positive Q_phi of HR 4796 A; nothing where only noise is."""
    from astropy.io import fits

    path = Path(os.environ["DEEPINV_ASTRO_DATA"]) / HR4796A
    light = np.nan_to_num(fits.getdata(path, 1)[1].astype(float))
    light = gaussian_filter(light, 1.5).clip(0)
    row, column = np.indices(light.shape) - GPI_STAR
    distance = np.hypot(row, column)
    light[(distance < GPI_INNER) | (distance > GPI_OUTER)] = 0
    return light


def _hr4796a(n: int, middle: int, scale: float, angle: float, oversampling: int = 4) -> Tensor:
    """The image of HR 4796 A resampled (scale: its new pixels per old pixel) and turned."""
    axis = (np.arange(n * oversampling) + 0.5) / oversampling - 0.5 - middle
    row, column = axis[:, None] / scale, axis[None] / scale
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    source = [row * cos - column * sin + GPI_STAR, column * cos + row * sin + GPI_STAR]
    values = map_coordinates(_polarised_light(), source, order=1, cval=0.0)
    return avg_pool2d(torch.from_numpy(values)[None], oversampling)[0]


def disk(name: str, angle: float, amplitude: float, psf: Tensor) -> Tensor:
    """A target whose blurred peak is ``amplitude`` times :data:`UNIT` counts."""
    shape = shape_of(name, angle)
    return shape * (amplitude * UNIT / blur(shape, psf).max())


def local_noise(sequence: Sequence) -> Tensor:
    """Temporal standard deviation of the sequence at the separation of each sky pixel."""
    at = separation((SIZE, SIZE), (STAR, STAR))
    distance = separation(sequence.img_size[1:], sequence.center)
    return radial_profile(sequence.y.var(2, correction=0), distance, 3.0, "mean", at=at).sqrt()


@dataclasses.dataclass(frozen=True)
class Score:
    """
    How an image of a disk fares.

    whole, support: decibels of the blurred image, on the whole field and on the disk's support;
    flux: flux on the support over the true one; false_rms, false_peak: image less truth beside the
    support, in units of the local temporal standard deviation of the empty sequence.
    """

    whole: float
    support: float
    flux: float
    false_rms: float
    false_peak: float


def score(shown: Tensor, truth: Tensor, noise: Tensor) -> Score:
    """Score of a blurred image against the blurred truth; NaN counts as zero."""
    shown = shown.nan_to_num(0.0).double()
    truth = truth.double()
    region = support(truth)
    beside = false_structure((shown - truth).masked_fill(region, torch.nan), noise.double())
    return Score(
        float(nrmse_db(shown, truth)),
        float(nrmse_db(shown, truth, region)),
        float(flux_ratio(shown, truth)),
        float(beside.rms),
        float(beside.peak),
    )


def code_digest() -> str:
    """Short digest of the package's sources, so that a result tells what made it."""
    root = Path(deepinv_astro.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cpu_model() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def store(name: str, options: argparse.Namespace, content: dict[str, Any], start: float) -> Path:
    """Write results as JSON with what made them: versions, machine, date, command, seconds."""
    packages = ("deepinv_astro", "deepinv", "torch", "numpy", "scipy", "astropy")
    script = Path(sys.argv[0])
    record = {
        "command": shlex.join(["python", f"docs/benchmarks/{script.name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "code": code_digest(),
        **content,
    }
    path = (options.out or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    return path


def parser(description: str) -> argparse.ArgumentParser:
    """Options that all scripts of this folder have."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--out", type=Path, help="folder of the JSON results (default: results/)")
    made.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    return made


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Aligned columns, text to the left and numbers to the right: a simple table of reST."""
    cells = [[str(value) for value in row] for row in rows]
    names = list(header)
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    left = [not all(_numeric(row[k]) for row in cells) for k in range(len(names))]

    def line(values: list[str]) -> str:
        padded = (
            v.ljust(w) if stay else v.rjust(w)
            for v, w, stay in zip(values, widths, left, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = line(["=" * w for w in widths])
    return "\n".join([rule, line(names), rule, *map(line, cells), rule])


def _numeric(text: str) -> bool:
    return not text or text[0].isdigit() or text[0] in "+-."


def main() -> None:
    """List the targets; with ``--figure`` also draw them."""
    arguments = parser(__doc__)
    arguments.add_argument("--figure", type=Path, help="write the blurred targets to this file")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    sequence = load()
    physics = operator(sequence)
    noise = local_noise(sequence)
    rows, images = [], []
    for name in (*TARGETS, FACE_ON):
        for angle in POSITION_ANGLES if name in TARGETS else POSITION_ANGLES[:1]:
            x = disk(name, angle, 1.0, sequence.psf)
            shown = blur(x, sequence.psf)
            region = support(shown)
            images.append((f"{name} {angle:.0f}", shown[0, 0]))
            peak = float((shown / noise).max())
            seen = float(visibility(x, physics)[0])
            values = (f"{x.sum():.0f}", int(region.sum()), f"{peak:.2f}", f"{seen:.3f}")
            rows.append((name, f"{angle:.0f}", *values))
    print(table(("target", "angle", "flux", "support px", "peak/sigma", "visibility"), rows))
    print("Flux in counts and highest ratio to the local noise at amplitude 1.")
    if options.figure:
        _draw(images, options.figure)


def _draw(images: list[tuple[str, Tensor]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(images), 3), layout="constrained")
    axes = figure.subplots(1, len(images))
    for axis, (title, image) in zip(axes, images, strict=True):
        axis.imshow(image, origin="lower", cmap="inferno")
        axis.set(title=title)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
