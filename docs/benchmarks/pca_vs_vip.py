"""PCA of this package and of vip_hci, timed in turns on the real sequence.

Full-frame PCA, with ten components unless told otherwise, of 61 frames of 101 x 101 pixels, on one thread. All variants
run once in each round, so that the load of the machine falls on all alike; the first round warms
up. Needs ``pip install deepinv_astro[peers]``; without OpenCV its variants are left out::

    OMP_NUM_THREADS=1 python docs/benchmarks/pca_vs_vip.py
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import targets
import torch
from tqdm import tqdm

from deepinv_astro.models import PCA, temporal_mean, temporal_median

OURS = {"median": "ours, median", "mean": "ours, mean"}
#: Library, interpolation, combination and decomposition; the first is what vip_hci does by default.
THEIRS = (
    ("vip-fft", "lanczos4", "median", "lapack"),
    ("skimage", "bicubic", "median", "lapack"),
    ("opencv", "lanczos4", "median", "lapack"),
    ("opencv", "lanczos4", "mean", "lapack"),
    ("opencv", "bicubic", "median", "lapack"),
    ("opencv", "bilinear", "median", "eigen"),
    ("opencv", "bilinear", "mean", "eigen"),
    ("opencv", "nearneig", "mean", "eigen"),
)
#: Interpolations as good as ours; the others blur.
CUBIC = ("vip-fft", "bicubic", "lanczos4")
#: Promised: times faster than the default, and than the fastest.
OVER_DEFAULT, OVER_FASTEST = 5.0, 1.0


def tasks(components: int) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """What is timed, and the names of the variants of vip_hci."""
    try:
        from vip_hci.psfsub import pca
    except ImportError as error:
        raise SystemExit("vip_hci is not installed: pip install 'deepinv_astro[peers]'") from error

    sequence = targets.load()
    physics = targets.operator(sequence)
    cube = sequence.y[0, 0].numpy()
    angles = sequence.angles.numpy()
    todo: dict[str, Callable[[], Any]] = {
        OURS["median"]: lambda: PCA(components, temporal_median)(sequence.y, physics),
        OURS["mean"]: lambda: PCA(components, temporal_mean)(sequence.y, physics),
    }
    names = []
    has_opencv = importlib.util.find_spec("cv2") is not None
    if has_opencv:
        import cv2

        cv2.setNumThreads(torch.get_num_threads())
    for library, interpolation, collapse, decomposition in THEIRS:
        if library == "opencv" and not has_opencv:
            continue
        settings = {"imlib": library, "interpolation": interpolation, "collapse": collapse}
        settings["svd_mode"] = decomposition

        def run(settings: dict[str, str] = settings) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                pca(cube, angles, ncomp=components, verbose=False, **settings)

        names.append(f"vip_hci {library} {interpolation}, {collapse}, {decomposition}")
        todo[names[-1]] = run
    return todo, names


def time_all(todo: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each task in each round."""
    times: dict[str, list[float]] = {name: [] for name in todo}
    for n in tqdm(range(rounds + 1), unit="round"):
        for name, task in todo.items():
            start = time.perf_counter()
            task()
            if n:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def judge(times: dict[str, list[float]], theirs: list[str]) -> list[dict[str, Any]]:
    """Ratios of medians, ours with the same combination of the frames."""
    middle = {name: float(np.median(t)) for name, t in times.items()}
    cubic = [name for name in theirs if any(kind in name for kind in CUBIC)]
    fastest, fastest_cubic = (min(names, key=middle.__getitem__) for names in (theirs, cubic))
    found = (
        ("times faster than the default", theirs[0], OVER_DEFAULT),
        ("times faster than the fastest", fastest, OVER_FASTEST),
        ("times faster than the fastest that is cubic or better", fastest_cubic, OVER_FASTEST),
    )
    own = {name: OURS["mean" if ", mean," in name else "median"] for name in theirs}
    return [
        {
            "what": what,
            "against": other,
            "ours": own[other],
            "found": middle[other] / middle[own[other]],
            "promised": limit,
            "passed": middle[other] / middle[own[other]] >= limit,
        }
        for what, other, limit in found
    ]


def options() -> argparse.Namespace:
    """Options of the command line."""
    made = targets.parser(__doc__)
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--components", type=int, default=10)
    return made.parse_args()


def main() -> None:
    """Run, print and store."""
    chosen = options()
    start = time.perf_counter()
    torch.set_num_threads(chosen.threads)
    warnings.filterwarnings("ignore", module="vip_hci")
    todo, theirs = tasks(chosen.components)
    times = time_all(todo, chosen.rounds)
    rows = [(name, f"{np.median(t):.1f}", f"{min(t):.1f}") for name, t in times.items()]
    title = f"PCA, {chosen.components} components, 61 x 101 x 101"
    print(targets.table((title, "median ms", "best ms"), rows))
    judged = judge(times, theirs)
    rows = [
        (
            v["what"],
            v["against"],
            f"{v['found']:.1f}",
            f">= {v['promised']:.0f}",
            "pass" if v["passed"] else "FAIL",
        )
        for v in judged
    ]
    print("\n" + targets.table(("what", "against", "found", "promised", "verdict"), rows))
    content = {"times_ms": times, "verdicts": judged, "load_average": os.getloadavg()}
    content["vip_hci"] = importlib.metadata.version("vip_hci")
    print(f"Stored in {targets.store('pca_vs_vip', chosen, content, start)}")


if __name__ == "__main__":
    main()
