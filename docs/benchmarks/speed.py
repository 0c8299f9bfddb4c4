"""Speed and memory on the real sequence: 61 frames of 101 x 101 pixels in float32.

Operator and cost are timed on one thread, in turns with a copy of the sequence (which reads and
writes its arrays once), and the median and the best of many are given. The whole reconstruction is
the command of the user in a process of its own, with all cores, from the files to the results::

    python docs/benchmarks/speed.py
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import targets
import torch
from torch import Tensor
from tqdm import tqdm

from deepinv_astro.datasets import BETA_PICTORIS_FILES
from deepinv_astro.optim import TemporalModel
from deepinv_astro.optim.smoothness import edge_preserving

#: Promised: milliseconds, milliseconds, seconds.
OPERATOR_MS, COST_MS, WHOLE_S = 30.0, 50.0, 15.0

OPERATOR, COST, COPY = "forward + adjoint", "cost + gradient", "copy of the sequence and the sky"


def tasks() -> dict[str, Callable[[], Any]]:
    """What is timed on one thread."""
    sequence = targets.load()
    physics = targets.operator(sequence)
    y = sequence.y
    likelihood = TemporalModel.for_sequence(y, physics)(y)
    x = targets.disk("ellipse", 0.0, 10.0, sequence.psf)
    epsilon = 0.25 * targets.local_noise(sequence)
    weight = torch.ones_like(x)
    y_copy, x_copy = torch.empty_like(y), torch.empty_like(x)

    def cost() -> tuple[Tensor, Tensor]:
        value, slope = likelihood.of_residual(y - physics.A(x))
        smooth, gradient = edge_preserving(x, epsilon, weight)
        gradient -= physics.A_adjoint(slope)
        return value.sum() + smooth, gradient

    return {
        "forward": lambda: physics.A(x),
        "adjoint": lambda: physics.A_adjoint(y),
        OPERATOR: lambda: physics.A_adjoint(physics.A(x)),
        COST: cost,
        COPY: lambda: (y_copy.copy_(y), x_copy.copy_(x)),
    }


def time_all(todo: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, median and best, all tasks in turns; the first rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in todo}
    for n in tqdm(range(rounds + 3), unit="round"):
        for name, task in todo.items():
            start = time.perf_counter()
            task()
            if n >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": sorted(t)[len(t) // 2], "best_ms": min(t)} for name, t in times.items()
    }


def whole_reconstruction(runs: int) -> list[dict[str, float]]:
    """Run ``deepinv-astro reconstruct`` on the files; seconds of its parts, and peak memory."""
    root = Path(os.environ["DEEPINV_ASTRO_DATA"]) / "naco_betapic"
    files = [str(root / name) for name in BETA_PICTORIS_FILES]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    results = []
    for _ in tqdm(range(runs), unit="reconstruction"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result"
            arguments = ["reconstruct", *files, "--center", "51,51", "--true-north", "-104.39"]
            command = [sys.executable, "-m", "deepinv_astro.cli", *arguments, "--out", str(out)]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            wall = time.perf_counter() - start
            parts = json.loads((out / "report.json").read_text())["seconds"]
        results.append({"command_s": wall, "image_s": parts["image"], "search_s": parts["search"]})
    return results


def peak_memory_mib() -> float:
    """Largest resident memory of any child process so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit


def judge(times: dict[str, dict[str, float]], whole: dict[str, float]) -> list[dict[str, Any]]:
    """What was promised beside what was found."""
    found = (
        ("forward + adjoint, ms (median)", times[OPERATOR]["median_ms"], OPERATOR_MS),
        ("cost + gradient, ms (median)", times[COST]["median_ms"], COST_MS),
        ("image + search, s", whole["image_s"] + whole["search_s"], WHOLE_S),
        ("whole command with imports and files, s", whole["command_s"], WHOLE_S),
    )
    return [
        {"what": what, "found": value, "promised": limit, "passed": value <= limit}
        for what, value, limit in found
    ]


def main() -> None:
    """Run, print and store."""
    made = targets.parser(__doc__)
    made.add_argument("--rounds", type=int, default=100, help="timings of each operation")
    made.add_argument("--runs", type=int, default=3, help="whole reconstructions; median is given")
    chosen = made.parse_args()
    begin = time.perf_counter()
    torch.set_num_threads(chosen.threads)
    with torch.no_grad():
        times = time_all(tasks(), chosen.rounds)
    runs = whole_reconstruction(chosen.runs)
    whole = sorted(runs, key=lambda r: r["command_s"])[len(runs) // 2]
    memory = peak_memory_mib()
    rows = [
        (
            name,
            f"{t['median_ms']:.2f}",
            f"{t['best_ms']:.2f}",
            f"{t['median_ms'] / times[COPY]['median_ms']:.0f}",
        )
        for name, t in times.items()
    ]
    print(targets.table(("61 x 101 x 101, float32", "median ms", "best ms", "over copy"), rows))
    print(
        f"\nWhole reconstruction, all cores: {whole['command_s']:.1f} s, of which image "
        f"{whole['image_s']:.1f} s, search {whole['search_s']:.1f} s; peak memory {memory:.0f} MiB"
    )
    judged = judge(times, whole)
    rows = [
        (v["what"], f"{v['found']:.1f}", f"<= {v['promised']}", "pass" if v["passed"] else "FAIL")
        for v in judged
    ]
    print("\n" + targets.table(("what", "found", "promised", "verdict"), rows))
    content = {"times": times, "runs": runs, "peak_memory_mib": memory, "verdicts": judged}
    content["load_average"] = os.getloadavg()
    print(f"Stored in {targets.store('speed', chosen, content, begin)}")


if __name__ == "__main__":
    main()
