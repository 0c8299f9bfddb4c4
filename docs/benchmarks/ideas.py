"""Variants of the default method that were tried, on targets kept for tuning.

Each variant changes one thing of :class:`deepinv_astro.optim.Marginal`; the targets differ from those
of ``disks.py``. Prints decibels of H x on the whole field and on the support, and the flux ratio::

    DEEPINV_ASTRO_DATA=... python docs/benchmarks/ideas.py
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
from targets import (
    SIZE,
    STAR,
    UNIT,
    _hr4796a,
    load,
    local_noise,
    operator,
    parser,
    score,
    store,
    table,
)
from torch import Tensor

from deepinv_astro.datasets import henyey_greenstein, ring, spiral
from deepinv_astro.optim import marginal
from deepinv_astro.optim.marginal import Marginal
from deepinv_astro.optim.regions import both_regions, tiled_regions
from deepinv_astro.physics.functional.psf import blur

CASES = (
    ("ring", 2.0),
    ("hr4796a", 2.0),
    ("ring", 10.0),
    ("hr4796a", 10.0),
    ("spiral", 10.0),
    ("ring", 50.0),
)


def shape(name: str) -> Tensor:
    """A tuning target."""
    where = {"shape": (SIZE, SIZE), "center": (STAR, STAR)}
    if name == "ring":
        phase = partial(henyey_greenstein, g=0.4)
        image = ring(
            semi_major_axis=31.0,
            inclination=66.0,
            phase=phase,
            position_angle=35.0,
            slopes=(10.0, -6.0),
            **where,
        )
    elif name == "spiral":
        image = spiral(
            semi_major_axis=22.0,
            inclination=25.0,
            position_angle=130.0,
            pitch=22.0,
            arm_width=0.2,
            slopes=(4.0, -6.0),
            **where,
        )
    else:
        image = _hr4796a(SIZE, STAR, 27.0 / 73.5, 125.0)
    return image.float()[None, None]


class Frozen(marginal._Problem):
    """The last stage is convex: the metric of the pilot's residual, kept."""

    def _stage(self, name, start, *args):
        if name == "image":
            metric = self.likelihood.freeze(self._residual(start))

            class Quadratic:
                variance = self.likelihood.variance

                @staticmethod
                def of_residual(residual):
                    slope = metric(residual)
                    return 0.5 * (residual * slope).double().sum((1, 2, 3, 4)), slope

            self.likelihood = Quadratic
        return super()._stage(name, start, *args)


class Refreshed(marginal._Problem):
    """The profile of the variance is estimated again on the pilot's residual."""

    def _stage(self, name, start, *args):
        if name == "image":
            self.likelihood = self.model(self._residual(start))
        return super()._stage(name, start, *args)


class Separable(marginal._Problem):
    """A covariance in space beside that in time: residuals pass the high-pass filter I - 0.7 G first."""

    def solve(self, progress):
        axis = torch.arange(-8, 9).float()
        kernel = torch.exp(-(axis**2) / 8)  # sigma 2 pixels
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)

        def high_pass(y: Tensor) -> Tensor:
            low = torch.nn.functional.conv2d(y[0].transpose(0, 1), kernel, padding=(0, 8))
            low = torch.nn.functional.conv2d(low, kernel.mT, padding=(8, 0))
            return y - 0.7 * low.transpose(0, 1)[None]

        temporal = self.model(high_pass(self._residual(self.blank)))

        class Filtered:
            variance = self.likelihood.variance

            @staticmethod
            def of_residual(residual):
                cost, slope = temporal.of_residual(high_pass(residual))
                return cost, high_pass(slope)  # the filter is symmetric

        self.likelihood = Filtered
        return super().solve(progress)


class Oracle(marginal._Problem):
    """Not a method: the metric of the speckles themselves, which nobody has, at a chosen strength."""

    truth = None  # set for each target

    def solve(self, progress):
        metric = self.likelihood.freeze(self._residual(self.truth))

        class Quadratic:
            variance = self.likelihood.variance

            @staticmethod
            def of_residual(residual):
                slope = metric(residual)
                return 0.5 * (residual * slope).double().sum((1, 2, 3, 4)), slope

        self.likelihood = Quadratic
        return super().solve(progress)


class SmoothFollowsNoise(marginal._Problem):
    """The smoothness is weighted by the noise of the gradient itself."""

    def _weights(self, noise_of_gradient, middle):
        smooth, sparse = super()._weights(noise_of_gradient, middle)
        return smooth * (noise_of_gradient / middle).sqrt(), sparse


class SparseFollowsNoise(marginal._Problem):
    """The sparsity is weighted by the noise of the gradient itself."""

    def _weights(self, noise_of_gradient, middle):
        smooth, sparse = super()._weights(noise_of_gradient, middle)
        return smooth, sparse * (noise_of_gradient / middle).sqrt()


class SparseFlatter(marginal._Problem):
    """The sparsity grows with the fourth root of the noise of the gradient."""

    def _weights(self, noise_of_gradient, middle):
        smooth, sparse = super()._weights(noise_of_gradient, middle)
        return smooth, sparse * (middle / noise_of_gradient.clamp_min(1e-3 * middle)) ** 0.25


class SharperEdges(marginal._Problem):
    """The smoothness gives way from a tenth of the noise."""

    def _edge(self):
        return 0.4 * super()._edge()


VARIANTS = {
    "default": ({}, marginal._Problem),
    "metric of the pilot, frozen (convex)": ({}, Frozen),
    "the same, annuli and tiles": ({"regions": both_regions}, Frozen),
    "variance profile refreshed": ({}, Refreshed),
    "covariance separable in time and space": ({}, Separable),
    "nu = 1e-2": ({"nu": 1e-2}, marginal._Problem),
    "nu = 1e-4": ({"nu": 1e-4}, marginal._Problem),
    "tiles": ({"regions": tiled_regions}, marginal._Problem),
    "annuli and tiles": ({"regions": both_regions}, marginal._Problem),
    "half the strengths": ({"smoothness": 0.1, "sparsity": 0.11}, marginal._Problem),
    "twice the strengths": ({"smoothness": 0.4, "sparsity": 0.44}, marginal._Problem),
    "smoothness follows the noise": ({}, SmoothFollowsNoise),
    "sparsity follows the noise": ({}, SparseFollowsNoise),
    "sparsity follows it less": ({}, SparseFlatter),
    "edges from 0.1 of the noise": ({}, SharperEdges),
    "annuli and tiles, sparsity 0.26": (
        {"regions": both_regions, "sparsity": 0.26},
        marginal._Problem,
    ),
    "oracle: metric of the true speckles": ({}, Oracle),
    "oracle, half the strengths": ({"smoothness": 0.1, "sparsity": 0.11}, Oracle),
}


def main() -> None:
    """Run the variants on the tuning targets."""
    start = time.perf_counter()
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    sequence = load()
    physics, noise = operator(sequence), local_noise(sequence)
    rows, results = [], []
    for name, (settings, problem) in VARIANTS.items():
        marginal._Problem = problem
        row = [name]
        for target, amplitude in CASES:
            unit = shape(target)
            x = unit * (amplitude * UNIT / blur(unit, sequence.psf).max())
            Oracle.truth = x
            image = Marginal(**settings)(sequence.y + physics.A(x), physics)
            s = score(blur(image, physics.filter), blur(x, sequence.psf), noise)
            row.append(f"{s.whole:.1f}/{s.support:.1f}/{s.flux:.2f}")
            results.append({"variant": name, "target": target, "amplitude": amplitude, **vars(s)})
        Oracle.truth = torch.zeros(1, 1, SIZE, SIZE)
        empty = blur(Marginal(**settings)(sequence.y, physics), physics.filter) / noise
        row.append(f"{float(empty.max()):.2f}")
        results.append({"variant": name, "target": "none", "peak": float(empty.max())})
        rows.append(row)
        print(f"{name}: done", file=sys.stderr, flush=True)
    header = [
        "variant",
        *(f"{target} a{amplitude:.0f}" for target, amplitude in CASES),
        "empty/sigma",
    ]
    print(table(header, rows))
    store("ideas", options, {"results": results}, start)


if __name__ == "__main__":
    main()
