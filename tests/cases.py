"""One table of objects: each line is run through the laws of its kind (deepinv_astro.testing)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_astro.physics import ADI, Blur

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """A sky ``(B, C, H, W)``, and an operator on it made from a seed: another seed, other values."""

    name: str
    shape: Shape
    make: Callable[[int], ADI | Blur]

    def __str__(self) -> str:
        return self.name

    def image(self, seed: int = 100) -> Tensor:
        """Random sky in double precision."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


def parameters(seed: int, sizes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random parameters of ADI of given shapes, in double precision and of realistic values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: tuple[int, ...]) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    ranges = {
        "angles": (-170.0, 360.0),
        "filter": (-0.2, 0.6),  # lopsided, of both signs
        "center": (1.0, 3.0),
        "transmission": (0.2, 0.8),
        "gain": (0.5, 1.0),
        "smear": (2.0, 20.0),
    }
    return {n: low + width * draw(sizes[n]) for n, (low, width) in ranges.items() if n in sizes}


def adi(name: str, shape: Shape, **given: object) -> Case:
    """Parameters are given by their shapes, all else as ADI takes it."""
    sizes = {k: v for k, v in given.items() if k in _PARAMETERS}
    options = {k: v for k, v in given.items() if k not in _PARAMETERS}

    def make(seed: int) -> ADI:
        sky = torch.Generator().manual_seed(seed + 1000)
        star = 1.5 + 1.5 * torch.rand(2, generator=sky, dtype=torch.float64)
        return ADI(
            shape[1:],
            **parameters(seed, sizes),
            **{"sky_center": tuple(star.tolist()), **options},
            dtype=torch.float64,
        )

    return Case(name, shape, make)


_PARAMETERS = ("angles", "filter", "center", "transmission", "gain", "smear")

# Shapes of parameters: angles (b, T), filter (b, c, t, k, k), center (b, t, 2), transmission
# (b, h, w), gain (b, T), smear (b, T). Everything at once, batched, comes last.
ADI_CASES = [
    adi("plain-even", (1, 1, 6, 4), angles=(3,), center=(2,)),
    adi("plain-odd", (1, 1, 5, 7), angles=(2,), center=(2,)),
    adi("plain-square", (1, 1, 6, 6), angles=(2,), center=(2,)),
    adi("one-frame", (1, 1, 5, 4), angles=(1,), center=(2,)),
    adi("one-row", (1, 1, 1, 6), angles=(2,), center=(2,)),
    adi("psf-odd", (2, 1, 5, 4), angles=(3,), center=(2,), filter=(3, 5)),
    adi("psf-even", (1, 1, 5, 6), angles=(2,), center=(2,), filter=(4, 2)),
    adi("psf-one-pixel", (1, 1, 5, 4), angles=(2,), center=(2,), filter=(1, 1)),
    adi("psf-per-wavelength", (1, 3, 4, 5), angles=(2,), center=(2,), filter=(1, 3, 3, 3)),
    adi("psf-per-frame", (1, 2, 4, 5), angles=(3,), center=(2,), filter=(1, 1, 3, 3, 3)),
    adi("psf-per-both", (1, 2, 4, 5), angles=(3,), center=(2,), filter=(1, 2, 3, 3, 3)),
    adi("center-per-frame", (1, 1, 5, 6), angles=(3,), center=(1, 3, 2)),
    adi("gain", (1, 2, 5, 4), angles=(3,), center=(2,), gain=(3,)),
    adi("after-psf", (1, 2, 5, 4), angles=(3,), center=(2,), filter=(3, 3), transmission=(5, 4)),
    adi(
        "before-psf",
        (1, 2, 5, 4),
        angles=(3,),
        center=(2,),
        filter=(3, 3),
        transmission=(5, 4),
        transmission_order="before_psf",
    ),
    adi("smear", (1, 1, 5, 4), angles=(2,), center=(2,), smear=(2,), smear_steps=3),
    adi("small-detector", (1, 1, 7, 6), angles=(3,), center=(2,), detector_size=(3, 4)),
    adi("large-detector", (1, 1, 3, 4), angles=(2,), center=(2,), detector_size=(6, 5)),
    adi("batch-of-angles", (2, 1, 5, 4), angles=(2, 3), center=(2,)),
    adi("batch-k-times", (4, 1, 3, 4), angles=(2, 3), center=(2, 2), gain=(1, 3)),
    adi(
        "everything",
        (2, 2, 5, 4),
        angles=(2, 3),
        center=(2, 3, 2),
        filter=(2, 2, 3, 3, 3),
        transmission=(2, 4, 3),
        gain=(2, 3),
        smear=(2, 3),
        smear_steps=2,
        detector_size=(4, 3),
    ),
    adi(
        "everything-before-psf",
        (2, 1, 4, 5),
        angles=(1, 2),
        center=(2, 1, 2),
        filter=(2, 1, 2, 3, 3),
        transmission=(1, 4, 3),
        gain=(2, 2),
        smear=(1, 2),
        smear_steps=2,
        detector_size=(4, 3),
        transmission_order="before_psf",
    ),
]


def blur(name: str, shape: Shape, filter: tuple[int, ...], **options: object) -> Case:
    """The PSF is given by its shape, all else as Blur takes it."""

    def make(seed: int) -> Blur:
        psf = parameters(seed, {"filter": filter})["filter"]
        return Blur(shape[1:], psf, **options, dtype=torch.float64)

    return Case(name, shape, make)


BLUR_CASES = [
    blur("periodic", (2, 1, 5, 6), (3, 2)),
    blur("periodic-folded", (1, 1, 3, 4), (5, 7)),
    blur("periodic-sampled", (1, 2, 6, 8), (2, 3, 3), factor=2),
    blur("periodic-ragged", (1, 1, 7, 8), (3, 3), factor=3, sampling="mean"),
    blur("zero", (1, 2, 5, 6), (1, 2, 4, 3), boundary="zero"),
    blur("zero-large-psf", (1, 1, 3, 4), (7, 6), boundary="zero"),
    blur("zero-mean", (2, 1, 6, 4), (3, 3), boundary="zero", factor=2, sampling="mean"),
    blur("valid", (1, 1, 7, 6), (4, 3), boundary="valid"),
    blur("valid-mean", (1, 1, 9, 7), (2, 3), boundary="valid", factor=2, sampling="mean"),
    blur("everything", (4, 2, 7, 9), (2, 2, 3, 4), boundary="valid", factor=2, sampling="mean"),
]
