"""What operators and transformations let a network learn: closed forms, rank gains, predictions.

Angular modes of the angles of beta Pictoris by the closed form and through the operator; rank gain of
an ideal low-pass; transformations that commute; the gain that the ruler predicts for training with
noise of 5/255; rings behind a stretch; throughput of principal components in the real cube::

    python docs/benchmarks/identifiability.py
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import targets
import torch
from deepinv.physics import LinearPhysics
from deepinv.physics.functional.blur import bicubic_filter
from deepinv.transform import Reflect, Shift
from deepinv.transform import Scale as UpstreamScale
from torch import Tensor
from tqdm import tqdm

from deepinv_astro.identifiability import (
    Identifiability,
    angular_harmonics,
    draw_maps,
    identify,
    measured_mode_visibility,
    mode_visibility,
    pca_throughput,
    remove_mean,
    visibility,
)
from deepinv_astro.models.combine import temporal_mean
from deepinv_astro.models.pca import subtract_components
from deepinv_astro.optim.regions import separation
from deepinv_astro.physics import ADI, Blur
from deepinv_astro.physics.functional.psf_shapes import gaussian_psf
from deepinv_astro.transform import InclinationStretch, Scale, StarRotation

F64 = torch.float64
NOISE, PIXELS = 5 / 255, 22
#: Directions whose eigenvalue times the variance of the images (0.25 squared) is below the noise.
FLOOR = (NOISE / 0.25) ** 2
COMPONENTS = (0, 3, 5, 10, 20)
MODES = (0.0, 0.166, 0.535, 0.849, 0.965)


def low_pass(n: int) -> LinearPhysics:
    """Ideal, at half the Nyquist frequency of each axis, periodic."""
    f = torch.fft.fftfreq(n, dtype=F64).abs() < 0.25
    keep = (f[:, None] & f).to(F64)

    def apply(x: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x) * keep).real

    return LinearPhysics(A=apply, A_adjoint=apply)


def angular_modes(angles: Tensor) -> dict[str, Any]:
    """Closed form beside the operator."""
    physics = ADI((1, 101, 101), angles, center=(51.0, 51.0), sky_center=(51.0, 51.0), dtype=F64)
    closed, found = mode_visibility(angles, 10), measured_mode_visibility(physics, 10)
    return {
        "closed": closed.tolist(),
        "operator": found.tolist(),
        "difference": float((closed - found).abs().max()),
    }


def summary(result: Identifiability, seconds: float) -> dict[str, Any]:
    """Numbers of a result for JSON."""
    return {
        "directions": result.alone.size,
        "rank": result.rank,
        "joint_rank": result.joint_rank,
        "rank_gain": result.rank_gain,
        "found": result.found,
        "departure": result.departure,
        "opened": result.opened,
        "gain_db": result.gain_db,
        "ring": None
        if result.visibility_transformed is None
        else float(result.visibility_transformed[0]),
        "verdict": result.verdict,
        "seconds": seconds,
    }


class Pair(NamedTuple):
    """An operator and a transformation, and whether it should help."""

    operator: str
    transform: str
    useful: bool


class Operators:
    """Operators and transformations by name; images live on a disc that rotation leaves alone."""

    def __init__(self, angles: Tensor):
        size, star = (1, PIXELS, PIXELS), (1, PIXELS + 1, PIXELS + 1)
        one, two = (
            gaussian_psf((15, 15), sigma * 2 * math.sqrt(2 * math.log(2))).to(F64)
            for sigma in (1.0, 2.0)
        )
        bicubic = bicubic_filter(2)[0, 0].to(F64)
        self.physics: dict[str, Any] = {
            "blur, sigma 1 px": Blur(size, one, dtype=F64),
            "blur, sigma 2 px": Blur(size, two, dtype=F64),
            "x2, mean of 2 x 2": Blur(size, torch.ones(1, 1), factor=2, sampling="mean", dtype=F64),
            "x2, bicubic": Blur(size, bicubic / bicubic.sum(), factor=2, dtype=F64),
            "ADI": ADI(star, angles[::5], dtype=F64),
            "ADI, PSF": ADI(star, angles[::5], gaussian_psf((9, 9), 2.5).to(F64), dtype=F64),
        }
        self.transforms: dict[str, Any] = {
            "shift": Shift(),
            "reflection": Reflect(dim=[-1]),
            "star rotation": StarRotation(),
            "scale": Scale(),
            "scale (deepinv)": UpstreamScale(),
            "scale about the star": Scale(center="star", boundary="zeros"),
            "scale off centre": Scale(boundary="zeros"),
            "small shift": Shift(shift_max=0.15),
            "stretch": InclinationStretch(keep="brightness"),
            "deprojection": InclinationStretch(keep="brightness", direction="deproject"),
        }

    def measure(self, pair: Pair, seed: int, draws: int, noise: float = NOISE) -> dict[str, Any]:
        """The ruler on a pair."""
        adi = pair.operator.startswith("ADI")
        begin = time.perf_counter()
        n = (
            PIXELS + adi
        )  # reflections about the middle of an odd number of pixels are about the star
        r = torch.arange(n, dtype=F64) - n // 2
        away = torch.hypot(r[:, None], r)
        result = identify(
            self.physics[pair.operator],
            torch.zeros(1, 1, n, n, dtype=F64),
            self.transforms[pair.transform],
            projection=remove_mean if adi else None,
            draws=draws,
            # what is made twice as large must stay in the field
            support=away < (n / 4 if adi else n / 2),
            images=angular_harmonics([0], (n, n), (n // 2, n // 2), 4.0, 1.0)[:1],
            noise=noise,
            floor=FLOOR,
            name=pair.transform,
            generator=torch.Generator().manual_seed(seed),
        )
        found = summary(result, time.perf_counter() - begin)
        return {**pair._asdict(), "seed": seed, "noise": noise, **found}


PAIRS = (
    Pair("blur, sigma 1 px", "shift", False),
    Pair("blur, sigma 1 px", "star rotation", False),
    Pair("blur, sigma 1 px", "scale", True),
    Pair("blur, sigma 2 px", "shift", False),
    Pair("blur, sigma 2 px", "star rotation", False),
    Pair("blur, sigma 2 px", "scale", True),
    Pair("blur, sigma 2 px", "scale (deepinv)", True),
    Pair("x2, mean of 2 x 2", "shift", True),
    Pair("x2, mean of 2 x 2", "star rotation", True),
    Pair("x2, mean of 2 x 2", "scale", True),
    Pair("x2, bicubic", "shift", True),
    Pair("x2, bicubic", "star rotation", True),
    Pair("x2, bicubic", "scale", True),
    Pair("ADI", "reflection", False),
    Pair("ADI", "star rotation", False),
    Pair("ADI", "scale about the star", False),
    Pair("ADI", "scale off centre", True),
    Pair("ADI", "small shift", True),
    Pair("ADI", "stretch", True),
    Pair("ADI", "deprojection", True),
    Pair("ADI, PSF", "star rotation", False),
    Pair("ADI, PSF", "stretch", True),
)


def low_pass_gains(seeds: int) -> Iterator[dict[str, Any]]:
    """Rank gain of an ideal low-pass at half the Nyquist frequency."""
    like = torch.zeros(1, 1, 20, 20, dtype=F64)
    for name, transform in (
        ("shift", Shift()), ("reflection", Reflect(dim=[-1])), ("scale", Scale()),
        ("scale (deepinv)", UpstreamScale()),
    ):  # fmt: skip
        for seed in range(seeds):
            begin = time.perf_counter()
            generator = torch.Generator().manual_seed(seed)
            result = identify(low_pass(20), like, transform, draws=32, generator=generator)
            yield {"transform": name, "seed": seed, **summary(result, time.perf_counter() - begin)}


def rings(angles: Tensor) -> dict[str, list[float]]:
    """Visibility of face-on rings of 6, 9 and 12 pixels behind transformations, on 60 x 60 pixels."""
    n = 60
    physics = ADI((1, n, n), angles[::5], dtype=F64)
    like = torch.zeros(1, 1, n, n, dtype=F64)
    images = torch.cat(
        [angular_harmonics([0], (n, n), (n // 2, n // 2), r, 1.5)[:1] for r in (6.0, 9.0, 12.0)]
    )
    stretch = InclinationStretch(keep="brightness")
    found = {"none": visibility(images, physics).tolist()}
    for name, transform, through in (
        ("star rotation", StarRotation(), "forward"),
        ("scale about the star", Scale(center="star", boundary="zeros"), "forward"),
        ("compression", stretch, "forward"),
        ("deprojection", stretch, "inverse"),
        ("scale off centre, down", Scale(boundary="zeros"), "forward"),
        ("shift by up to 10 %", Shift(shift_max=0.1), "forward"),
    ):
        maps = draw_maps(transform, like, 40, through=through)
        found[name] = visibility(images, physics, maps).tolist()
    return found


def throughput(sequence: Any) -> dict[str, Any]:
    """Principal components of the real cube: planets 12 px from the star, in twelve directions."""
    frames, angles = sequence.y[0, 0].to(F64), -sequence.angles.to(F64)
    away = separation((101, 101), (51.0, 51.0))
    mask, where = away < 30, torch.zeros(101, 101, dtype=torch.bool)
    for degrees in range(0, 360, 30):
        a = math.radians(degrees)
        where[round(51 + 12 * math.sin(a)), round(51 + 12 * math.cos(a))] = True
    psf = sequence.psf.to(F64)
    content: dict[str, Any] = {"components": COMPONENTS}
    for name, stamp in (
        ("one pixel", None), ("FWHM 2 px", gaussian_psf((13, 13), 2.0).to(F64)), ("measured", psf),
    ):  # fmt: skip
        physics = ADI(
            (1, 101, 101), angles, stamp, center=(51.0, 51.0), sky_center=(51.0, 51.0), dtype=F64
        )
        found = pca_throughput(frames, physics, COMPONENTS, where=where, mask=mask)
        content[name] = {key: m[:, where].mean(1).tolist() for key, m in found._asdict().items()}
    content["injection"] = injections(frames, physics, mask, where, found.flux, found.energy)
    return content


def injections(
    frames: Tensor, physics: ADI, mask: Tensor, where: Tensor, flux: Tensor, energy: Tensor
) -> dict[str, float]:
    """Largest differences from planets of 1 ADU put into the data and taken through PCA."""
    worst = {"flux": 0.0, "energy": 0.0}
    for row, column in where.nonzero()[::4].tolist():
        x = torch.zeros(1, 1, 101, 101, dtype=F64)
        x[0, 0, row, column] = 1.0
        track = physics.A(x)[0, 0, :, mask]
        for number, k in enumerate(COMPONENTS):
            data = frames[:, mask]
            ends = [
                subtract_components((data + s * track)[:, None], k, temporal_mean)[:, 0]
                for s in (0.5, -0.5)
            ]
            left, whole = ends[0] - ends[1], float(track.square().sum())
            for name, expected, value in (
                ("flux", flux, float((left * track).sum()) / whole),
                ("energy", energy, float(left.square().sum()) / whole),
            ):
                error = abs(float(expected[number, row, column]) - value)
                worst[name] = max(worst[name], error)
    return worst


def judge(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What is demanded beside what was found."""
    modes, gains = content["modes"], content["low_pass"]
    stated = max(abs(a - b) for a, b in zip(modes["closed"], MODES, strict=False))
    least = min(g["rank_gain"] for g in gains if g["transform"] == "scale")
    most = max(abs(g["rank_gain"] - 1) for g in gains if g["transform"] == "shift")
    silent = [p for p in content["pairs"] if not p["useful"]]
    loud = [p for p in content["pairs"] if p["useful"]]
    commuting = [p for p in silent if p["operator"] == "ADI" or p["transform"] == "shift"]
    said = sum("adds no information" in p["verdict"] for p in commuting)
    margins = [
        min(p["gain_db"] for p in loud if p["operator"] == o)
        - max(p["gain_db"] for p in silent if p["operator"] == o)
        for o in ("blur, sigma 1 px", "blur, sigma 2 px", "ADI")
    ]
    return [
        {"what": "modes, closed form - operator", "found": modes["difference"], "passed": modes["difference"] < 1e-3},
        {"what": "modes, closed form - published", "found": stated, "passed": stated < 1e-3},
        {"what": "rank gain of scale, least", "found": least, "passed": least >= 3},
        {"what": "rank gain of shifts - 1", "found": most, "passed": most < 0.005},
        {"what": "commuting pairs said so, share", "found": said / len(commuting), "passed": said == len(commuting)},
        {"what": "useful above useless, dB", "found": min(margins), "passed": min(margins) > 0},
    ]  # fmt: skip


def mean_rows(pairs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One line for each pair, means and spread over the seeds."""
    rows = []
    for pair in dict.fromkeys((p["operator"], p["transform"]) for p in pairs):
        mine = [p for p in pairs if (p["operator"], p["transform"]) == pair]
        gain = torch.tensor([p["gain_db"] for p in mine], dtype=F64)
        found = torch.tensor([p["found"] for p in mine], dtype=F64)
        rank = torch.tensor([p["rank_gain"] for p in mine], dtype=F64)
        spread = float(gain.std()) if len(mine) > 1 else 0.0
        no = "adds no information" in mine[0]["verdict"]
        rows.append(
            (*pair, f"{rank.mean():.2f}", f"{found.mean():.0%}", f"{gain.mean():.2f} +- {spread:.2f}",
             "nothing" if no else "something")
        )  # fmt: skip
    return rows


def main() -> None:
    """Run, print and store."""
    made = targets.parser(__doc__)
    made.add_argument("--seeds", type=int, default=5, help="draws of the transformations")
    made.add_argument("--draws", type=int, default=12, help="parameters per draw")
    chosen = made.parse_args()
    begin = time.perf_counter()
    torch.set_num_threads(chosen.threads)
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    sequence = targets.load()
    angles = sequence.angles.to(F64)
    operators = Operators(angles)
    todo = [(pair, seed) for pair in PAIRS for seed in range(chosen.seeds)]
    content: dict[str, Any] = {
        "modes": angular_modes(angles),
        "rings": rings(angles),
        "low_pass": list(low_pass_gains(min(chosen.seeds, 3))),
        "pairs": [operators.measure(*task, chosen.draws) for task in tqdm(todo, unit="pair")],
        "noisier": [
            operators.measure(Pair("ADI", name, True), 0, chosen.draws, noise)
            for name in ("star rotation", "stretch")
            for noise in (0.1, 0.5)
        ],
        "pca": throughput(sequence),
    }
    content["verdicts"] = judge(content)
    header = ("operator", "transform", "rank gain", "of unseen", "dB", "verdict")
    print(targets.table(header, mean_rows(content["pairs"])))
    lines = [(g["transform"], str(g["seed"]), f"{g['rank_gain']:.2f}") for g in content["low_pass"]]
    print("\n" + targets.table(("low-pass", "seed", "rank gain"), lines))
    seen = [(name, *(f"{v:.3f}" for v in values)) for name, values in content["rings"].items()]
    print("\n" + targets.table(("ring of", "6 px", "9 px", "12 px"), seen))
    pca = [
        (psf, key, *(f"{v:.3f}" for v in values))
        for psf in ("one pixel", "FWHM 2 px", "measured")
        for key, values in content["pca"][psf].items()
    ]
    print("\n" + targets.table(("PSF", "left", *map(str, COMPONENTS)), pca))
    print(content["pca"]["injection"])
    verdicts = [
        (v["what"], f"{v['found']:.4g}", "pass" if v["passed"] else "FAIL")
        for v in content["verdicts"]
    ]
    print("\n" + targets.table(("what", "found", "verdict"), verdicts))
    print(f"Stored in {targets.store('identifiability', chosen, content, begin)}")


if __name__ == "__main__":
    main()
