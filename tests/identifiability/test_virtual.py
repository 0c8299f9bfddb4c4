"""Virtual operators and their normal map, against matrices written by hand."""

from __future__ import annotations

import pytest
import torch
from deepinv.transform import Rotate, Shift

from deepinv_astro.identifiability import Gram, Through, draw_maps
from deepinv_astro.identifiability.virtual import inner_matrix

F64 = torch.float64
SHAPE = (1, 2, 3, 4)  # 24 numbers


def linear(matrix, shape=None):
    """Map of images by a matrix."""
    return lambda x: (x.flatten(1) @ matrix.mT).reshape(-1, *(shape or x.shape[1:]))


@pytest.fixture
def parts(rng):
    a = torch.randn(7, 24, generator=rng, dtype=F64)
    turns = [torch.randn(24, 24, generator=rng, dtype=F64) for _ in range(3)]
    return a, turns


def test_normal_map_is_the_mean_of_the_products_of_matrices(parts, rng):
    a, turns = parts
    like = torch.zeros(SHAPE, dtype=F64)
    weights = [0.5, 0.2, 0.3]
    expected = sum(w * t.mT @ a.mT @ a @ t for w, t in zip(weights, turns, strict=True))
    gram = Gram(linear(a, (7,)), like, [linear(t) for t in turns], weights=weights)
    torch.testing.assert_close(gram.dense(), expected)
    v = torch.randn(5, 24, generator=rng, dtype=F64)
    torch.testing.assert_close(gram(v), v @ expected)
    x = gram.images(v)
    assert x.shape == (5, *SHAPE[1:])
    torch.testing.assert_close(gram.vectors(x), v)
    torch.testing.assert_close(gram.energy(x), ((v @ expected) * v).sum(1))
    uniform = Gram(linear(a, (7,)), like, [linear(t) for t in turns])
    torch.testing.assert_close(uniform.dense(), sum(t.mT @ a.mT @ a @ t for t in turns) / 3)
    torch.testing.assert_close(Gram(linear(a, (7,)), like).dense(), a.mT @ a)
    torch.testing.assert_close(inner_matrix(linear(a, (7,)), like), a.mT @ a)


def test_support_keeps_rows_and_columns_of_its_pixels(parts):
    a, turns = parts
    support = torch.zeros(3, 4, dtype=torch.bool)
    support[1, 1:] = support[2, 0] = True
    index = support.expand(2, 3, 4).flatten()
    gram = Gram(linear(a, (7,)), torch.zeros(SHAPE, dtype=F64), [linear(t) for t in turns], support)
    assert gram.n == 8
    whole = sum(t.mT @ a.mT @ a @ t for t in turns) / 3
    torch.testing.assert_close(gram.dense(), whole[index][:, index])
    torch.testing.assert_close(gram(torch.eye(8, dtype=F64)), whole[index][:, index])
    outside = gram.images(torch.ones(1, 8, dtype=F64))[0, :, ~support]
    assert float(outside.abs().max()) == 0


def test_progress_is_told_to_the_end(parts):
    told = []
    inner_matrix(linear(parts[0], (7,)), torch.zeros(SHAPE, dtype=F64), lambda *s: told.append(s))
    assert told == [(24, 24)]


def test_draws_are_seeded_and_leave_the_transform_alone():
    like = torch.rand(1, 1, 6, 7)
    transform = Shift(n_trans=3)
    state = transform.rng.get_state()
    first, again, other = (
        draw_maps(transform, like, 4, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    images = [torch.stack([t(like) for t in maps]) for maps in (first, again, other)]
    assert images[0].shape == (4, 1, 1, 6, 7)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert transform.n_trans == 3
    assert torch.equal(transform.rng.get_state(), state)
    torch.testing.assert_close(first[0](like.expand(3, -1, -1, -1))[2:], first[0](like))


def test_inverse_and_forward_undo_each_other():
    like = torch.rand(1, 1, 6, 7)
    seeds = (torch.Generator().manual_seed(3) for _ in range(2))
    forward, inverse = (
        draw_maps(Shift(), like, 5, through=through, generator=seed)
        for through, seed in zip(Through, seeds, strict=True)
    )
    assert any(not torch.equal(f(like), i(like)) for f, i in zip(forward, inverse, strict=True))
    for f, i in zip(forward, inverse, strict=True):
        torch.testing.assert_close(i(f(like)), like)


def test_lists_of_transforms_maps_and_parameters():
    like = torch.rand(1, 1, 5, 5)
    quarter = {"theta": torch.tensor([90.0])}
    [turned] = draw_maps(Rotate(multiples=90), like, [quarter], through="forward")
    torch.testing.assert_close(turned(like), torch.rot90(like, 1, (-2, -1)))
    maps = draw_maps([Shift(), lambda x: 2 * x], like, 3)
    assert len(maps) == 4
    torch.testing.assert_close(maps[3](like), 2 * like)


def test_what_is_refused():
    like = torch.rand(1, 1, 5, 5)
    with pytest.raises(ValueError, match=r"joined by \+"):
        draw_maps(Shift() + Rotate(multiples=90), like, 1)
    with pytest.raises(ValueError, match=r"joined by \|"):
        draw_maps(Shift() | Rotate(multiples=90), like, 1)
    with pytest.raises(ValueError, match=r"random at each call"):
        draw_maps(lambda x: x * torch.rand(()), like)
    with pytest.raises(ValueError, match="got 0"):
        draw_maps(Shift(), like, 0)
    with pytest.raises(ValueError, match="no transform"):
        draw_maps([], like)
    with pytest.raises(ValueError, match="one image"):
        Gram(lambda x: x, torch.zeros(2, 1, 3, 3))
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        Gram(lambda x: x, torch.zeros(1, 1, 3, 3), support=torch.ones(3, 4))
    with pytest.raises(ValueError, match="empty"):
        Gram(lambda x: x, torch.zeros(1, 1, 3, 3), support=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="2 weights"):
        Gram(lambda x: x, torch.zeros(1, 1, 3, 3), weights=[1, 2])
