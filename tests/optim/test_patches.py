"""Geometry of the patches: every pixel of the field counts exactly once."""

from __future__ import annotations

import itertools

import pytest
import torch

from deepinv_astro.optim.patches import Patches

LAYOUTS = list(itertools.product([(3, 4), (5, 2)], [None, (2, 1), (1, 2)], [(0, 0), (2, 1)]))


def field_with_a_hole() -> torch.Tensor:
    field = torch.ones(7, 10, dtype=torch.bool)
    field[2:6, 3:9] = False
    field[0, 9] = False
    return field


@pytest.mark.parametrize(("shape", "stride", "offset"), LAYOUTS)
@pytest.mark.parametrize("field", [None, field_with_a_hole()], ids=["full", "hole"])
def test_weights_count_each_pixel_of_the_field_once(shape, stride, offset, field):
    patches = Patches.grid((7, 10), shape, stride=stride, offset=offset, field=field)
    counted = torch.zeros(71, dtype=torch.float64).index_add(
        0, patches.index.flatten(), patches.weight.flatten()
    )
    expected = torch.ones(7, 10) if field is None else field
    torch.testing.assert_close(counted[:70].view(7, 10), expected.double(), rtol=0, atol=1e-15)
    assert counted[70] == 0  # padding


@pytest.mark.parametrize(("shape", "stride", "offset"), LAYOUTS)
def test_patches_are_rectangles_of_the_grid(shape, stride, offset):
    patches = Patches.grid((7, 10), shape, stride=stride, offset=offset)
    step = shape if stride is None else stride
    expected = []
    for top in range(-offset[0], 7, step[0]):
        for left in range(-offset[1], 10, step[1]):
            rows = [r for r in range(top, top + shape[0]) if 0 <= r < 7]
            columns = [c for c in range(left, left + shape[1]) if 0 <= c < 10]
            expected.append(sorted(10 * r + c for r in rows for c in columns))
    assert [sorted(i for i in row if i < 70) for row in patches.index.tolist()] == [
        e for e in expected if e
    ]


def test_gather_reads_the_right_pixels_and_scatter_is_its_transpose(rng):
    patches = Patches.grid((5, 7), (2, 3), stride=(2, 2), offset=(1, 0))
    frames = torch.randn(2, 4, 5, 7, generator=rng, dtype=torch.float64)
    cut = patches.gather(frames)
    padded = torch.cat([frames.flatten(-2), torch.zeros(2, 4, 1, dtype=frames.dtype)], -1)
    for q, n, t, k in itertools.product(range(2), range(len(patches.index)), range(4), range(6)):
        assert cut[q, n, t, k] == padded[q, t, patches.index[n, k]]
    other = torch.randn(cut.shape, generator=rng, dtype=torch.float64)
    torch.testing.assert_close((cut * other).sum(), (frames * patches.scatter(other)).sum())
    part = slice(2, 5)
    assert torch.equal(patches.gather(frames, part), cut[:, part])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (3, 3), "stride": (4, 3)}, "leaves gaps"),
        ({"shape": (3, 3), "offset": (0, 3)}, "offset must be"),
        ({"shape": (0, 3)}, "must be positive"),
        ({"shape": (3, 3), "field": torch.zeros(5, 7)}, "no pixel"),
        ({"shape": (3, 3), "field": torch.ones(7, 5)}, "size"),
    ],
)
def test_bad_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Patches.grid((5, 7), **arguments)
