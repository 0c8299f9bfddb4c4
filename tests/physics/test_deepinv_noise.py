"""deepinv's own tests of noise models, as its wheel ships them, run against ours."""

from __future__ import annotations

import pytest
import torch
from deepinv_tests import load, their_device, their_rng  # noqa: F401

from deepinv_astro.physics import (
    DetectorNoise,
    HeteroscedasticNoise,
    LowRankNoise,
    PatchNoise,
    StationaryNoise,
    tile_index,
)

pytestmark = pytest.mark.filterwarnings("default")  # their code, their warnings

SIZE = (7, 16)  # of the frames of their tests
_LABELS = torch.arange(SIZE[1]).expand(SIZE) // 4

_MAKE = {
    "HeteroscedasticChannel": lambda rng: HeteroscedasticNoise(
        torch.tensor([0.1, 0.2, 0.3]), per="channel", rng=rng
    ),
    "HeteroscedasticRegion": lambda rng: HeteroscedasticNoise(
        torch.tensor([0.1, 0.2, 0.3, 0.4]), per="region", labels=_LABELS, rng=rng
    ),
    "StationaryValid": lambda rng: StationaryNoise(0.1 * torch.ones(3, 2), rng=rng),
    "StationaryPeriodic": lambda rng: StationaryNoise(0.1 * torch.ones(3, 2), "periodic", rng=rng),
    "LowRank": lambda rng: LowRankNoise(0.1 * torch.ones(2, *SIZE), 0.1, rng=rng),
    "Patch": lambda rng: PatchNoise(
        0.1 * torch.eye(28).expand(4, 28, 28), tile_index(_LABELS), SIZE, rng=rng
    ),
    "Detector": lambda rng: DetectorNoise(10.0, 1.0, 20.0, rng=rng),
}


def choose_noise(noise_type, rng):
    return _MAKE[noise_type](rng)


_theirs = load("test_noise_model")
_theirs.choose_noise = choose_noise
_theirs.NOISES[:] = list(_MAKE)  # in place: their marks hold the same list

test_concatenation = _theirs.test_concatenation
test_rng = _theirs.test_rng


def test_their_tests_aim_at_ours():
    (names,) = (m.args[1] for m in test_rng.pytestmark if m.args[0] == "name")
    assert set(names) == set(_MAKE)
