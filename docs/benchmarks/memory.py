"""Memory and time of ADI, forward and adjoint, as frames and image size grow.

Each line is a fresh process on one thread (peak resident memory cannot be reset within one). With
its defaults it takes some ten minutes; the last line is the promise: 100 frames of 1024 x 1024,
forward and adjoint, in 8 GB::

    python docs/benchmarks/memory.py
    python docs/benchmarks/memory.py --sizes 256 --frames 25 50 100 --interpolation shear
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time


def measure(size: int, frames: int, stamp: int, interpolation: str, max_mib: int) -> None:
    """Apply the operator once in each direction, and print what it took as JSON."""
    import torch

    from deepinv_astro.physics import ADI

    torch.set_num_threads(1)
    axis = torch.arange(stamp) - stamp // 2
    profile = torch.exp(-0.5 * (axis / (stamp / 12)) ** 2)
    psf = profile[:, None] * profile
    physics = ADI(
        (1, size, size),
        torch.linspace(-20.0, 60.0, frames),
        filter=psf / psf.sum(),
        interpolation=interpolation,
        max_bytes=max_mib << 20,
    )
    x = torch.rand(1, 1, size, size)
    before = _peak_mib()
    start = time.perf_counter()
    y = physics.A(x)
    middle = time.perf_counter()
    physics.A_adjoint(y)
    end = time.perf_counter()
    result = {
        "forward_s": middle - start,
        "adjoint_s": end - middle,
        "peak_mib": _peak_mib(),
        "before_mib": before,
        "data_mib": y.numel() * y.element_size() / 2**20,
    }
    print(json.dumps(result))


def _peak_mib() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def run(*arguments: object) -> dict[str, float]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=3600
    )
    return {name: float(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--frames", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--stamp", type=int, default=39, help="rows of the PSF stamp")
    parser.add_argument("--interpolation", choices=["spline", "shear"], default="spline")
    parser.add_argument("--max-mib", type=int, default=1024, help="the operator's max_bytes")
    parser.add_argument("--one", nargs=5, metavar="VALUE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        size, frames, stamp, interpolation, max_mib = options.one
        measure(int(size), int(frames), int(stamp), interpolation, int(max_mib))
        return
    print("| size | frames | data MiB | peak MiB | imports | forward s | adjoint s | ms / frame |")
    print("|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        for frames in options.frames:
            r = run(size, frames, options.stamp, options.interpolation, options.max_mib)
            per_frame = 1e3 * (r["forward_s"] + r["adjoint_s"]) / frames
            print(
                f"| {size} | {frames} | {r['data_mib']:.0f} | {r['peak_mib']:.0f} "
                f"| {r['before_mib']:.0f} | {r['forward_s']:.1f} | {r['adjoint_s']:.1f} "
                f"| {per_frame:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
