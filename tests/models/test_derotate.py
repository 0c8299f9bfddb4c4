"""Turning frames onto the sky grid, against scipy.ndimage and the forward operator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from deepinv_astro.models.derotate import derotate, turn
from deepinv_astro.physics import ADI
from deepinv_astro.physics.functional.rotation import rotate


def physics(**kwargs: object) -> ADI:
    """Two sequences of four frames; sky and detector differ in size and in the place of the star."""
    angles = torch.tensor([[0.0, 33.0, -70.0, 161.0], [5.0, 8.0, 200.0, -1.0]])
    center = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(3)) + torch.tensor(
        [9.0, 11.0]
    )
    options = {"center": center, "detector_size": (18, 23), "sky_center": (12.3, 8.6)}
    return ADI((3, 25, 19), angles, dtype=torch.float64, **{**options, **kwargs})  # type: ignore[arg-type]


def smooth(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=rng)


def test_samples_are_those_of_scipy(rng: torch.Generator) -> None:
    p = physics()
    y = smooth((2, 3, 4, 18, 23), rng)
    z = derotate(y, p)
    row, column = np.mgrid[:25, :19]
    for n, c, t in ((0, 0, 1), (1, 2, 3), (0, 1, 2)):
        theta = math.radians(float(p.angles[n, t]))
        d_row, d_column = row - 12.3, column - 8.6
        # the frame shows the sky turned by minus theta, the column axis turning towards the row axis
        at_row = float(p.center[n, t, 0]) + math.cos(theta) * d_row - math.sin(theta) * d_column
        at_column = float(p.center[n, t, 1]) + math.sin(theta) * d_row + math.cos(theta) * d_column
        inside = (at_row >= 0) & (at_row <= 17) & (at_column >= 0) & (at_column <= 22)
        expected = map_coordinates(y[n, c, t].numpy(), [at_row, at_column], order=3, mode="mirror")
        got = z[n, c, t].numpy()
        np.testing.assert_allclose(got[inside], expected[inside], atol=2e-5)
        beyond = (at_row < -0.5) | (at_row > 17.5) | (at_column < -0.5) | (at_column > 22.5)
        assert np.array_equal(np.isnan(got), beyond)


def test_same_as_rotate_when_the_grids_agree(rng: torch.Generator) -> None:
    angles = torch.tensor([3.0, -40.0, 100.0])
    p = ADI((2, 16, 21), angles, center=(7.0, 11.5), sky_center=(7.0, 11.5), dtype=torch.float64)
    y = smooth((1, 2, 3, 16, 21), rng)
    expected = rotate(y, angles, center=(7.0, 11.5), fill=math.nan)
    torch.testing.assert_close(derotate(y, p), expected, equal_nan=True, atol=3e-5, rtol=0)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_are_exact(quarters: int, rng: torch.Generator) -> None:
    p = ADI((1, 9, 9), torch.tensor([90.0 * quarters]), dtype=torch.float64)
    y = smooth((1, 1, 1, 9, 9), rng)
    expected = torch.rot90(y, quarters, (-1, -2))  # the column axis towards the row axis
    torch.testing.assert_close(derotate(y, p), expected, atol=2e-5, rtol=0)


def test_undoes_the_forward_operator(rng: torch.Generator) -> None:
    row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (41, 35)), indexing="ij"
    )
    x = torch.exp(-((row - 26.0) ** 2 + (column - 13.5) ** 2) / (2 * 1.8**2))[None, None]
    p = ADI(
        (1, 41, 35),
        torch.tensor([0.0, 35.0, 80.0, -140.0]),
        center=(21.25, 17.5),
        dtype=torch.float64,
    )
    z = derotate(p.A(x), p)
    near = torch.hypot(row - 26, column - 13.5) < 7
    assert (z - x[:, :, None])[..., near].abs().max() < 5e-3
    assert (turn(x, p) - p.A(x)).abs().max() < 1e-3


def test_turn_is_the_operator_without_blur(rng: torch.Generator) -> None:
    p = physics()
    row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (25, 19)), indexing="ij"
    )
    bump = torch.exp(-((row - 14) ** 2 + (column - 8) ** 2) / 5)
    x = bump * torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, 1.5], dtype=torch.float64).view(2, 3, 1, 1)
    assert turn(x, p).shape == (2, 3, 4, 18, 23)
    assert (turn(x, p) - p.A(x)).abs().max() < 1e-4


def test_missing_pixels_are_missing_where_they_are_near(rng: torch.Generator) -> None:
    p = ADI(
        (1, 15, 17),
        torch.tensor([0.0, 90.0]),
        center=(7.0, 8.0),
        sky_center=(7.0, 8.0),
        dtype=torch.float64,
    )
    y = smooth((1, 1, 2, 15, 17), rng)
    whole = derotate(y, p)
    y[0, 0, 1, 7, 12] = torch.nan  # four pixels right of the star: four pixels above it on the sky
    z = derotate(y, p)
    assert z[0, 0, 1].isnan().logical_and(whole[0, 0, 1].isfinite()).nonzero().tolist() == [[11, 8]]
    assert torch.equal(z[0, 0, 0], whole[0, 0, 0])
    half = ADI(
        (1, 15, 17),
        torch.tensor([0.0, 90.0]),
        center=(7.0, 8.5),
        sky_center=(7.0, 8.0),
        dtype=torch.float64,
    )
    near = derotate(y, half)[0, 0, 1].isnan()[:, 8]
    assert near.nonzero()[:, 0].tolist() == [10, 11]


def test_gradient(rng: torch.Generator) -> None:
    p = ADI((1, 6, 7), torch.tensor([10.0, 50.0]), dtype=torch.float64)
    y = smooth((1, 1, 2, 6, 7), rng).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: derotate(v, p).nan_to_num(), y)


def test_precision_is_that_of_the_frames(rng: torch.Generator) -> None:
    p = physics()
    y = smooth((2, 3, 4, 18, 23), rng)
    single = derotate(y.float(), p)
    assert single.dtype == torch.float32
    difference = (single - derotate(y, p)).nan_to_num()
    assert 0 < difference.abs().max() < 1e-4


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, 4, 18, 23\), got \(2, 3, 5, 18, 23\)"):
        derotate(torch.zeros(2, 3, 5, 18, 23), physics())


def test_tables_follow_the_operator(rng: torch.Generator) -> None:
    y = smooth((1, 1, 2, 15, 17), rng)
    angles = torch.tensor([10.0, 70.0])
    p = ADI((1, 15, 17), angles, dtype=torch.float64)
    first = derotate(y, p).nan_to_num()
    assert torch.equal(derotate(y, p).nan_to_num(), first)
    p.update(center=torch.tensor([8.0, 7.0]))
    moved = ADI((1, 15, 17), angles, center=(8.0, 7.0), dtype=torch.float64)
    assert torch.equal(derotate(y, p).nan_to_num(), derotate(y, moved).nan_to_num())
    p.angles += 25.0  # in place
    turned = ADI((1, 15, 17), angles + 25, center=(8.0, 7.0), dtype=torch.float64)
    assert torch.equal(derotate(y, p).nan_to_num(), derotate(y, turned).nan_to_num())


def test_without_room_for_tables_the_result_is_the_same(rng: torch.Generator) -> None:
    y = smooth((1, 1, 2, 15, 17), rng)
    angles = torch.tensor([10.0, 70.0])
    roomy, tight = (
        ADI((1, 15, 17), angles, dtype=torch.float64, max_bytes=size) for size in (1 << 30, 1 << 10)
    )
    assert torch.equal(derotate(y, roomy).nan_to_num(), derotate(y, tight).nan_to_num())
