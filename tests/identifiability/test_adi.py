"""What ADI sees: closed forms and the operator itself."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.identifiability.adi import mode_visibility, visibility
from deepinv_astro.io import read_sequence
from deepinv_astro.physics import ADI


def test_beta_pictoris(data_root):
    folder = data_root / "naco_betapic"
    seq = read_sequence(*(folder / f"naco_betapic_{p}.fits" for p in ("cube", "pa")))
    expected = torch.tensor([0.0, 0.166, 0.535, 0.849, 0.965], dtype=torch.float64)
    found = mode_visibility(seq.angles, 5)
    torch.testing.assert_close(found, expected, atol=6e-4, rtol=0)


def test_two_frames_and_a_full_turn():
    for turn in (30.0, 77.0):
        found = mode_visibility(torch.tensor([5.0, 5.0 + turn], dtype=torch.float64), 6)
        m = torch.arange(6, dtype=torch.float64)
        torch.testing.assert_close(found, torch.sin(m * math.radians(turn) / 2) ** 2)
    even = mode_visibility(torch.arange(7, dtype=torch.float64) * 360 / 7, 8)
    torch.testing.assert_close(even, torch.tensor([0.0, *[1.0] * 6, 0.0], dtype=torch.float64))


def test_batches_offsets_signs_and_bounds(rng):
    angles = 300 * torch.rand(3, 9, generator=rng, dtype=torch.float64)
    found = mode_visibility(angles, 12)
    assert found.shape == (3, 12)
    torch.testing.assert_close(found[1], mode_visibility(angles[1], 12))
    torch.testing.assert_close(found, mode_visibility(40 - angles, 12))
    assert mode_visibility(torch.rand(50, 20, generator=rng), 30).min() >= 0
    assert mode_visibility(torch.tensor([[12.0], [80.0]]), 3).max() < 1e-6  # one frame


def test_nothing_asked_is_an_error():
    with pytest.raises(ValueError, match="at least one angle"):
        mode_visibility(torch.zeros(0))
    with pytest.raises(ValueError, match="0"):
        mode_visibility(torch.zeros(4), modes=0)


def patterns(modes, size, center, reach):
    """cos(m phi) times a smooth ring."""
    rows = torch.arange(size[0], dtype=torch.float64)[:, None] - center[0]
    columns = torch.arange(size[1], dtype=torch.float64) - center[1]
    ring = torch.exp(-((torch.hypot(rows, columns) - reach) ** 2) / 8)
    phi = torch.atan2(rows, columns)
    return torch.stack([ring * torch.cos(m * phi + 0.4) for m in modes])[:, None]


def test_images_of_one_mode_agree_with_the_closed_form():
    angles = torch.tensor([-31.0, -3.0, 11.0, 40.0, 62.0, 65.0], dtype=torch.float64)
    physics = ADI(
        (1, 45, 48), angles, center=(22.3, 24.6), sky_center=(21.5, 23.0), dtype=torch.float64
    )
    modes = [0, 1, 2, 3, 5]
    found = visibility(patterns(modes, (45, 48), (21.5, 23.0), 13.0), physics)
    torch.testing.assert_close(found, mode_visibility(angles, 6)[modes], atol=2e-3, rtol=0)
    assert float(found[0]) < 1e-5


def test_extremes_and_wavelengths(rng):
    physics = ADI((2, 11, 12), torch.zeros(4), dtype=torch.float64)
    x = torch.rand(3, 2, 11, 12, generator=rng, dtype=torch.float64)
    x[1] = 0
    assert float(visibility(x, physics).max()) < 1e-20  # no rotation
    turning = ADI((2, 11, 12), torch.tensor([0.0, 180.0]), dtype=torch.float64)
    x[2] = 0
    x[2, 1, 2, 3] = 1.0  # moves to another pixel: half of the energy is in the mean
    found = visibility(x, turning)
    assert found.shape == (3,)
    assert float(found[1]) == 0
    assert float(found[2]) == pytest.approx(0.5, abs=1e-9)
    assert 0 < float(found[0]) < 0.3
