"""What the package shows where there is nothing, and what it says of what cannot be seen.

Nothing is injected into the sequence with reversed angles: the S/N map of the search for point
sources and the default image tell how much is made up. Then a ring seen face-on is injected, of
which no angular differential imaging can see anything: the default image, and the report that
``deepinv-astro reconstruct`` writes about it::

    python docs/benchmarks/empty.py
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import targets
import torch
from torch import Tensor
from tqdm import tqdm

from deepinv_astro.identifiability.adi import visibility
from deepinv_astro.io import Sequence
from deepinv_astro.optim import Marginal, PointSourceSearch, TemporalModel
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.psf import blur, half_maximum_width

#: Fraction of a normal variable above two sigma.
NORMAL = 0.5 * math.erfc(2 / math.sqrt(2))
#: What is promised.
MOST_ABOVE, MOST_SNR, MOST_IMAGE = 1.5, 5.0, 0.5


def seen_half(sequence: Sequence, physics: ADI) -> dict[str, Tensor]:
    """Where statistics are taken: the whole sky image, and where half of the frames look."""
    coverage = physics.A_adjoint(torch.ones_like(sequence.y))[0, 0]
    whole = torch.ones_like(coverage, dtype=torch.bool)
    return {"whole image": whole, "seen in half of the frames": coverage > 0.5 * coverage.max()}


def empty_search(sequence: Sequence, physics: ADI) -> list[dict[str, Any]]:
    """S/N map of the search for point sources."""
    model = TemporalModel.for_sequence(sequence.y, physics)
    found = PointSourceSearch(model)(sequence.y, physics)
    snr = found.snr[0, 0]
    results = []
    for name, region in seen_half(sequence, physics).items():
        values = snr[region].double()
        results.append(
            {
                "region": name,
                "pixels": int(region.sum()),
                "above_two_sigma_over_normal": float((values > 2).double().mean() / NORMAL),
                "largest_snr": float(values.max()),
                "least_snr": float(values.min()),
                "std": float(values.std()),
                "sources": len(found.sources),
            }
        )
    return results


def empty_image(sequence: Sequence, physics: ADI) -> list[dict[str, Any]]:
    """The default image in units of the local temporal standard deviation."""
    image = Marginal()(sequence.y, physics)
    ratio = (blur(image, sequence.psf) / targets.local_noise(sequence))[0, 0].double()
    results = []
    for name, region in seen_half(sequence, physics).items():
        inside = ratio.masked_fill(~region, -torch.inf)
        row, column = divmod(int(inside.argmax()), ratio.shape[1])
        rms = float(ratio[region].square().mean().sqrt())
        at = [row, column]
        results.append({"region": name, "largest": float(inside.max()), "at": at, "rms": rms})
    return results


def face_on(sequence: Sequence, physics: ADI, amplitude: float) -> dict[str, Any]:
    """A face-on ring: image, visibilities, and the report."""
    from rich.console import Console

    from deepinv_astro.cli.methods import Method
    from deepinv_astro.cli.problem import Problem
    from deepinv_astro.cli.reconstruct import run

    x = targets.disk(targets.FACE_ON, 0.0, amplitude, sequence.psf)
    given = dataclasses.replace(sequence, y=sequence.y + physics.A(x))
    image = Marginal()(given.y, physics)
    truth = blur(x, sequence.psf)
    noise = targets.local_noise(sequence)
    found = targets.score(blur(image, sequence.psf), truth, noise)
    problem = Problem(given, physics, half_maximum_width(given.psf), ())
    with tempfile.TemporaryDirectory() as folder:
        settings = {"threshold": 5.0, "seed": 0, "files": []}
        console = Console(quiet=True)
        told = run(console, problem, Method.MARGINAL, Path(folder), settings, overwrite=True)
    return {
        "amplitude": amplitude,
        **dataclasses.asdict(found),
        "visibility_of_the_ring": float(visibility(x, physics)[0]),
        "visibility_of_mode_0": told["visibility"][0]["visibility"],
        "visibility_of_the_image": told["image_visibility"],
        "point_sources": sum(s["kind"] == "point" for s in told["sources"]),
        "unconstrained": told["unconstrained"],
        "warnings": told["warnings"],
    }


def judge(search: dict[str, Any], image: dict[str, Any]) -> list[dict[str, Any]]:
    """What was promised beside what was found, on the whole image."""
    found = (
        ("S/N above 2 sigma, over N(0,1)", search["above_two_sigma_over_normal"], MOST_ABOVE),
        ("largest S/N", search["largest_snr"], MOST_SNR),
        ("largest of the image, local sigma", image["largest"], MOST_IMAGE),
    )
    return [
        {"what": what, "found": value, "promised": limit, "passed": value <= limit}
        for what, value, limit in found
    ]


def report(
    search: list[dict[str, Any]], image: list[dict[str, Any]], rings: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Print; the verdicts are returned."""
    print("Empty data, S/N of point sources:")
    rows = [
        (
            r["region"],
            f"{r['above_two_sigma_over_normal']:.2f}",
            f"{r['largest_snr']:.2f}",
            f"{r['least_snr']:.2f}",
            f"{r['std']:.2f}",
            r["sources"],
        )
        for r in search
    ]
    header = ("region", "> 2 sigma / N(0,1)", "largest", "least", "std", "sources")
    print(targets.table(header, rows))
    print("\nEmpty data, default image H x in local temporal sigma:")
    rows = [(r["region"], f"{r['largest']:.2f}", f"{r['rms']:.3f}", r["at"]) for r in image]
    print(targets.table(("region", "largest", "rms", "row, column"), rows))
    judged = judge(search[0], image[0])
    print("\nPromised and found, whole image:")
    rows = [
        (v["what"], f"{v['found']:.2f}", f"<= {v['promised']}", "pass" if v["passed"] else "FAIL")
        for v in judged
    ]
    print(targets.table(("what", "found", "promised", "verdict"), rows))
    print("\nA ring seen face-on:")
    names = ("whole", "support", "flux", "visibility_of_the_ring", "visibility_of_the_image")
    rows = [(f"{r['amplitude']:.0f}", *(f"{r[k]:.3f}" for k in names)) for r in rings]
    print(targets.table(("a", "whole dB", "support dB", "flux", "v(ring)", "v(image)"), rows))
    print(f"The report says: {rings[-1]['unconstrained']}")
    for ring in rings:
        for warning in ring["warnings"]:
            print(f"  a{ring['amplitude']:.0f}, warning: {warning}")
    return judged


def main() -> None:
    """Run, print and store."""
    made = targets.parser(__doc__)
    made.add_argument("--amplitudes", nargs="+", type=float, default=[2.0, 10.0, 50.0])
    chosen = made.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(chosen.threads)
    sequence = targets.load()
    physics = targets.operator(sequence)
    with torch.no_grad(), tqdm(total=2 + len(chosen.amplitudes)) as bar:
        search = empty_search(sequence, physics)
        bar.update()
        image = empty_image(sequence, physics)
        bar.update()
        rings = []
        for amplitude in chosen.amplitudes:
            rings.append(face_on(sequence, physics, amplitude))
            bar.update()
    judged = report(search, image, rings)
    content = {"search": search, "image": image, "face_on": rings, "verdicts": judged}
    print(f"Stored in {targets.store('empty', chosen, content, start)}")


if __name__ == "__main__":
    main()
