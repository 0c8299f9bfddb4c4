"""Chains, stacks and choices: matrices multiplied by hand, orders, names, round trips."""

from __future__ import annotations

from typing import Any

import deepinv
import pytest
import torch

from deepinv_astro.testing import assert_transform_adjoint, dense_matrix
from deepinv_astro.transform import Amplitude, Chain, Choice, Scale, Stack, StarRotation

DOUBLE = {"dtype": torch.float64}
ZERO = torch.zeros(2, 1, 5, 4, **DOUBLE)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), **DOUBLE)


def blob(row: float, column: float) -> torch.Tensor:
    rows, columns = torch.arange(60.0, **DOUBLE) - row, torch.arange(64.0, **DOUBLE) - column
    return torch.exp(-(rows[:, None] ** 2 + columns**2) / 32)[None, None]


def shift(n_trans: int = 1) -> deepinv.transform.Shift:
    return deepinv.transform.Shift(n_trans=n_trans, rng=torch.Generator().manual_seed(7))


def scale(n_trans: int = 1, seed: int = 1) -> Scale:
    return Scale((0.6, 0.7, 0.9), n_trans=n_trans, rng=torch.Generator().manual_seed(seed))


MADE = {
    "scale*scale": lambda: scale(2) * scale(3, seed=2),
    "scale*shift": lambda: scale(2) * shift(3),
    "Chain(shift, scale)": lambda: Chain(shift(3), scale(2)),
    "scale*(shift*shift)": lambda: scale() * (shift(2) * shift()),
    "scale+shift": lambda: scale(2) + shift(3),
    "(scale+scale)*scale": lambda: (scale(2) + scale(1, 2)) * scale(2, 3),
    "scale*(scale+shift)": lambda: scale(2) * (scale(1, 2) + shift(2)),
    "scale|scale": lambda: scale(2) | scale(2, seed=2),
    "(scale|shift)*scale": lambda: (scale() | shift()) * scale(2, 3),
}


@pytest.mark.parametrize("name", MADE)
def test_the_adjoint_is_the_transpose(name: str) -> None:
    transform = MADE[name]()
    for _ in range(2 if "|" in name else 1):
        assert_transform_adjoint(transform, ZERO, **transform.get_params(ZERO))


def test_a_chain_is_the_product_of_matrices() -> None:
    one, two = Scale(center="star"), StarRotation()
    chain = one * two
    g: dict[str, Any] = {"factor": 0.7, "angle": 40.0}
    first = dense_matrix(lambda x: one.transform(x, factor=0.7), ZERO[:1])
    second = dense_matrix(lambda x: two.transform(x, angle=40.0), ZERO[:1])
    assert not torch.allclose(second @ first, first @ second, atol=1e-3)  # the order matters
    torch.testing.assert_close(
        dense_matrix(lambda x: chain.transform(x, **g), ZERO[:1]), second @ first
    )
    torch.testing.assert_close(
        dense_matrix(lambda y: chain.adjoint(y, **g), ZERO[:1]), (second @ first).mT
    )
    back = [dense_matrix(lambda x: one.inverse(x, factor=0.7), ZERO[:1]),
            dense_matrix(lambda x: two.inverse(x, angle=40.0), ZERO[:1])]  # fmt: skip
    torch.testing.assert_close(
        dense_matrix(lambda x: chain.inverse(x, **g), ZERO[:1]), back[0] @ back[1]
    )


def test_two_of_one_kind_keep_their_parameters_apart() -> None:
    a, b, c = scale(seed=1), scale(seed=2), scale(seed=3)
    names = ("factor", "center", "factor_2", "center_2", "factor_3", "center_3")
    assert ((a * b) * c).names == (a * (b * c)).names == names
    assert ((a | b) | (a | c)).names[-2:] == ("choice_2", "choice_3")
    x = noise(2, 1, 9, 8)
    g = (a * (b * c)).get_params(x)
    assert len({float(g[name][0, 0]) for name in names if "factor" in name}) > 1
    by_hand = x
    for number, part in zip(("", "_2", "_3"), (a, b, c), strict=True):
        by_hand = part(by_hand, factor=g[f"factor{number}"], center=g[f"center{number}"])
    for chain in ((a * b) * c, a * (b * c)):
        torch.testing.assert_close(chain(x, **g), by_hand)


@pytest.mark.parametrize("name", ["scale*scale", "Chain(shift, scale)", "(scale+scale)*scale"])
def test_every_image_comes_back_by_its_own_parameters(name: str) -> None:
    x = torch.cat([blob(29.0, 31.0), blob(33.0, 34.0)])
    near = {"boundary": "zeros", "antialias": "none"}

    def small(n: int = 1, seed: int = 0) -> Scale:
        return Scale((0.8, 0.9), (26.0, 40.0 - seed), n_trans=n,
                     rng=torch.Generator().manual_seed(seed), **near)  # fmt: skip

    moved = deepinv.transform.Shift(n_trans=3, shift_max=0.05)
    transform = {
        "scale*scale": small(2) * small(3, 9),
        "Chain(shift, scale)": Chain(moved, small(2, 9)),
        "(scale+scale)*scale": (small(2) + small(1, 9)) * small(2, 4),
    }[name]
    params = transform.get_params(x)
    y = transform.transform(x, **params)
    assert len(y) == 12 == transform.n_trans * 2 == transform.count(params) * 2
    back = transform.inverse(y, batchwise=False, **params).unflatten(0, (6, 2))
    assert float((back - x).norm() / x.norm()) < 0.01 * 6**0.5
    one_by_one = transform.symmetrize(lambda v: v, average=True, collate_batch=False)(x)
    assert float((one_by_one[:2] - x).norm() / x.norm()) < 0.01


def test_a_choice_is_one_of_its_parameters() -> None:
    x = noise(2, 1, 9, 8)
    either = Scale(center="star") | Amplitude()
    torch.testing.assert_close(either(x, choice=0, factor=0.7), Scale(center="star")(x, factor=0.7))
    assert torch.equal(either(x, choice=1, amplitude=3.0), 3 * x)
    assert torch.equal(either.inverse(x, choice=1, amplitude=2.0), x / 2)
    assert torch.equal(either.adjoint(x, choice=1, amplitude=2.0), 2 * x)
    drawn = [either.get_params(x) for _ in range(60)]
    assert 15 < sum(int(g["choice"]) for g in drawn) < 45
    for g in drawn[:8]:
        assert torch.equal(either(x, **g), either(x, **g))


def test_sequences() -> None:
    x = noise(2, 1, 3, 8, 9)
    for transform in (scale(2) * Amplitude(), scale() + shift(), scale() | Amplitude()):
        g = transform.get_params(x)
        y = transform(x, **g)
        torch.testing.assert_close(y[:, :, 1], transform(x[:, :, 1], **g))
        torch.testing.assert_close(
            transform.adjoint(y, **g)[:, :, 1], transform.adjoint(y[:, :, 1], **g)
        )
        torch.testing.assert_close(
            transform.inverse(y, batchwise=False, **g)[:, :, 1],
            transform.inverse(y[:, :, 1], batchwise=False, **g),
        )


def test_compositions_of_deepinv_become_ours() -> None:
    chain = scale() * (shift() + shift())
    assert isinstance(chain.t2, Stack)
    assert chain.names[2:] == ("x_shift", "y_shift", "x_shift_2", "y_shift_2")
    assert isinstance((scale() * (shift() | shift())).t2, Choice)


def test_what_is_missing_is_named() -> None:
    x = noise(1, 1, 6, 5)
    with pytest.raises(ValueError, match=r"Scale got no parameters: pass factor_2, center_2"):
        (scale() * scale())(x, factor=0.5, center=(1, 1))
    with pytest.raises(ValueError, match=r"`center=\(row, column\)`"):
        (Amplitude() * scale())(x, amplitude=1.0, factor=0.5)
    with pytest.raises(ValueError, match="`choice` must be 0 or 1, for Scale or Amplitude"):
        (scale() | Amplitude())(x, amplitude=1.0)
    both = Amplitude() + Amplitude()
    with pytest.raises(ValueError, match=r"3 images cannot come from 1 \+ 1"):
        both.adjoint(x.expand(3, 1, 6, 5), amplitude=1.0, amplitude_2=1.0)
