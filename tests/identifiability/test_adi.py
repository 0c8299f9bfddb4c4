"""What ADI sees: closed forms and the operator itself."""

from __future__ import annotations

import math

import pytest
import torch

from deepinv_astro.identifiability.adi import (
    angular_harmonics,
    measured_mode_visibility,
    mode_visibility,
    visibility,
)
from deepinv_astro.identifiability.projections import remove_components
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


def test_operator_and_closed_form_agree_for_beta_pictoris(data_root):
    folder = data_root / "naco_betapic"
    seq = read_sequence(*(folder / f"naco_betapic_{p}.fits" for p in ("cube", "pa")))
    angles = seq.angles.double()
    physics = ADI((1, 61, 64), angles, center=(29.4, 33.1), dtype=torch.float64)
    found = measured_mode_visibility(physics, 6)
    torch.testing.assert_close(found, mode_visibility(angles, 6), atol=1e-4, rtol=0)
    stated = torch.tensor([0.0, 0.166, 0.535, 0.849, 0.965], dtype=torch.float64)
    torch.testing.assert_close(found[:5], stated, atol=1e-3, rtol=0)


def test_modes_with_half_a_detector_with_gains_and_principal_components(rng):
    angles = torch.tensor([-31.0, -3.0, 11.0, 40.0, 62.0, 65.0], dtype=torch.float64)
    closed = mode_visibility(angles, 5)
    short = ADI(
        (1, 40, 40), angles, detector_size=(40, 24), center=(20.0, 5.0), dtype=torch.float64
    )
    torch.testing.assert_close(measured_mode_visibility(short, 5), closed, atol=1e-5, rtol=0)
    gain = torch.tensor([1.0, 0.5, 0.8, 1.0, 1.3, 0.9], dtype=torch.float64)
    uneven = ADI((1, 40, 40), angles, gain=gain, dtype=torch.float64)
    m = torch.arange(5, dtype=torch.float64)[:, None]
    mean = (gain * torch.exp(1j * m * torch.deg2rad(angles))).mean(1).abs() ** 2
    torch.testing.assert_close(
        measured_mode_visibility(uneven, 5), 1 - mean / gain.square().mean(), atol=1e-5, rtol=0
    )
    physics = ADI((1, 40, 40), angles, dtype=torch.float64)
    speckles = torch.randn(6, 40, 40, generator=rng, dtype=torch.float64)
    fewer = measured_mode_visibility(physics, 5, projection=remove_components(speckles, 2))
    assert (fewer[1:] < closed[1:]).all()
    ring = measured_mode_visibility(physics, 3, radius=9.0, width=1.5)
    torch.testing.assert_close(ring, closed[:3], atol=1e-3, rtol=0)
    two = ADI((2, 40, 40), angles)
    assert measured_mode_visibility(two, 3).dtype == torch.float32
    torch.testing.assert_close(
        measured_mode_visibility(two, 3).double(), closed[:3], atol=1e-3, rtol=0
    )
    for wrong in ({"modes": 0}, {"radius": -1.0}, {"width": 0.0}):
        with pytest.raises(ValueError, match="positive `radius`"):
            measured_mode_visibility(physics, **wrong)


def test_harmonics_are_orthogonal_and_turn_into_each_other():
    x = angular_harmonics([0, 1, 2, 3], (41, 43), (20.0, 21.0), 10.0, 2.0)
    assert float(x[1, 0].abs().max()) == 0
    flat = torch.cat([x[0], x[1, 1:]]).flatten(1)
    products = flat @ flat.mT / flat.square().sum(1).mean()
    assert float((products - products.diag().diag()).abs().max()) < 1e-3
    turned = torch.rot90(x[..., 1:-1].narrow(-1, 0, 41), 1, (-2, -1))
    torch.testing.assert_close(turned[0, 2], -x[0, 2, :, 1:-1], atol=1e-4, rtol=0)


def test_visibility_behind_transformations(rng):
    physics = ADI((1, 11, 12), torch.tensor([0.0, 180.0]), dtype=torch.float64)
    x = torch.rand(3, 1, 11, 12, generator=rng, dtype=torch.float64)
    maps = [lambda x: x, lambda x: 2 * x.roll((1, 2), (-2, -1))]
    seen, whole = 0, 0
    for t in maps:
        y = physics.A(t(x))
        seen = seen + (y - y.mean(2, keepdim=True)).square().flatten(1).sum(1)
        whole = whole + y.square().flatten(1).sum(1)
    torch.testing.assert_close(visibility(x, physics, maps), seen / whole)
    torch.testing.assert_close(
        visibility(x, physics, projection=lambda y: y / 2), torch.full((3,), 0.25).double()
    )
