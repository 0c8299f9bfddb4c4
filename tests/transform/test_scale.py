"""Scale against closed forms: stars, blobs, compositions; the published recipe against deepinv."""

import math
import warnings

import deepinv
import pytest
import torch
from deepinv.loss import EILoss

from deepinv_astro.physics.generator import Uniform
from deepinv_astro.testing import (
    assert_inverse,
    assert_neutral,
    assert_parameters_per_image,
    assert_reproducible,
    assert_transform_adjoint,
)
from deepinv_astro.transform import LogUniform, Scale, scale_ei_recipe

DOUBLE = {"dtype": torch.float64}


def blob(size, center, sigma) -> torch.Tensor:
    """A Gaussian of unit flux."""
    rows, columns = (torch.arange(n, **DOUBLE) - c for n, c in zip(size, center, strict=True))
    image = torch.exp(-0.5 * (rows[:, None] ** 2 + columns**2) / sigma**2)
    return (image / (2 * math.pi * sigma**2))[None, None]


def moments(image: torch.Tensor) -> tuple[float, float, float]:
    """Flux, and row and column of the centroid."""
    rows, columns = (torch.arange(n, dtype=image.dtype) for n in image.shape[-2:])
    flux = image.sum()
    row, column = (image.sum(-1) @ rows).sum() / flux, (image.sum(-2) @ columns).sum() / flux
    return float(flux), float(row), float(column)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def smooth(shape: tuple[int, ...], cutoff: float = 0.2, seed: int = 0) -> torch.Tensor:
    """Random images of frequencies below ``cutoff`` (of Nyquist), mirrored at the edges."""
    height, width = shape[-2:]
    rows, columns = (torch.arange(n, **DOUBLE) / (n - 1) for n in (height, width))
    low = torch.hypot(rows[:, None], columns) < cutoff
    waves = [
        torch.cos(math.pi * (n - 1) * torch.outer(k, k))
        for n, k in ((height, rows), (width, columns))
    ]
    return waves[0] @ ((noise(*shape, seed=seed) - 0.5) * low) @ waves[1]


@pytest.mark.parametrize("antialias", ["none", "bandlimited"])
@pytest.mark.parametrize("keep", ["brightness", "flux"])
@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.4])
def test_star_follows_the_closed_form(antialias, keep, factor):
    """Centroid c + s (p - c) and flux s^2, or 1, to half a per cent."""
    size, center, star, sigma = (61, 84), (35.3, 37.8), (24.6, 48.9), 1.66
    transform = Scale(center=center, antialias=antialias, keep=keep, boundary="zeros")
    flux, row, column = moments(transform(blob(size, star, sigma), factor=factor))
    assert flux == pytest.approx(factor**2 if keep == "brightness" else 1, rel=5e-3)
    assert row == pytest.approx(center[0] + factor * (star[0] - center[0]), abs=5e-3)
    assert column == pytest.approx(center[1] + factor * (star[1] - center[1]), abs=5e-3)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.9])
def test_blob_is_the_scaled_blob(factor):
    size, center, sigma = (48, 71), (20.2, 40.7), 4.0
    x = blob(size, (23.0, 36.0), sigma)
    place = [c + factor * (p - c) for c, p in zip(center, (23.0, 36.0), strict=True)]
    y = Scale(center=center, keep="flux", boundary="zeros")(x, factor=factor)
    expected = blob(size, place, sigma * factor)
    assert float((y - expected).norm() / expected.norm()) < 5e-3


@pytest.mark.parametrize("kernel", ["spline", "bicubic", "linear"])
@pytest.mark.parametrize("boundary", ["reflect", "zeros"])
def test_identity_at_one(kernel, boundary):
    for size in ((7, 12), (16, 9)):
        x = noise(2, 3, *size).float()
        transform = Scale(kernel=kernel, boundary=boundary, keep="flux")
        assert_neutral(transform, x, 1e-6, factor=1.0, center=(3.7, 8.1))


@pytest.mark.parametrize("keep", ["brightness", "flux"])
@pytest.mark.parametrize("boundary", ["reflect", "zeros"])
def test_adjoint_is_the_transpose(keep, boundary):
    params = {
        "factor": torch.tensor([[0.6, 1.3], [0.9, 0.45]], **DOUBLE),
        "center": torch.tensor([[1.2, 3.1], [4.4, 0.3]], **DOUBLE)[None],
    }
    transform = Scale(keep=keep, boundary=boundary)
    matrix = assert_transform_adjoint(transform, torch.zeros(2, 1, 6, 5, **DOUBLE), **params)
    assert matrix.shape == (120, 60)


@pytest.mark.parametrize("factor", [0.5, 0.75])
def test_round_trip(factor):
    """A smaller image has lost nothing of a band-limited one; a larger one nothing of a compact one."""
    x = smooth((2, 1, 60, 47), cutoff=0.45 * factor)
    for center in ("star", (11.3, 40.2)):
        for antialias in ("none", "bandlimited"):
            transform = Scale(center=center, antialias=antialias, keep="flux")
            assert_inverse(transform, x, 0.01, factor=factor)
    compact = blob((60, 47), (32.0, 22.0), 2.0)
    assert_inverse(Scale(center="star", boundary="zeros"), compact, 0.01, factor=1 / factor)


def test_inverse_is_not_the_adjoint():
    x, transform = smooth((1, 1, 40, 33)), Scale(center="star")
    back = transform.adjoint(transform(x, factor=0.75), factor=0.75)
    assert float((back - x).norm() / x.norm()) > 0.3


def test_one_parameter_for_each_image():
    transform = Scale(n_trans=3, antialias="none")
    x = noise(2, 2, 9, 12)
    params = transform.get_params(x)
    assert {name: tuple(value.shape) for name, value in params.items()} == {
        "factor": (3, 2),
        "center": (3, 2, 2),
    }
    assert_parameters_per_image(transform, x, params)
    # a row of parameters that is shorter than the batch is repeated, fastest first
    few = {name: value[:1] for name, value in params.items()}
    twice = transform(torch.cat([x, 1 - x]), **few)
    torch.testing.assert_close(twice, torch.cat([transform(v, **few) for v in (x, 1 - x)]))
    # a vector is one transform for each value, applied to the whole batch
    y = transform(x, factor=[0.5, 0.8, 1.2], center=(3, 4))
    assert len(y) == 6
    torch.testing.assert_close(y[2:4], transform(x, factor=0.8, center=(3, 4)))
    torch.testing.assert_close(
        transform.adjoint(y, factor=[0.5, 0.8, 1.2], center=(3, 4)),
        sum(
            transform.adjoint(v, factor=f, center=(3, 4))
            for v, f in zip(y.split(2), [0.5, 0.8, 1.2], strict=True)
        ),
    )


def test_sequences_are_scaled_frame_by_frame():
    transform = Scale()
    x = noise(2, 2, 3, 8, 11)
    params = transform.get_params(x)
    y = transform(x, **params)
    for t in range(3):
        torch.testing.assert_close(y[:, :, t], transform(x[:, :, t], **params))
    torch.testing.assert_close(
        transform.adjoint(y, **params)[:, :, 1], transform.adjoint(y[:, :, 1], **params)
    )
    torch.testing.assert_close(
        transform.inverse(y, batchwise=False, **params)[:, :, 2],
        transform.inverse(y[:, :, 2], **params),
    )


def test_gradients_of_factor_and_centre():
    x = noise(1, 1, 6, 7).requires_grad_()
    factor = torch.tensor([0.63, 1.4], **DOUBLE).requires_grad_()
    center = torch.tensor([2.6, 3.3], **DOUBLE).requires_grad_()
    for keep in ("brightness", "flux"):
        transform = Scale(keep=keep)
        for apply in (transform.transform, transform.inverse):
            assert torch.autograd.gradcheck(
                lambda x, f, c, apply=apply: apply(x, factor=f, center=c),
                (x, factor, center),
            )


def test_random_parameters():
    x = noise(500, 1, 7, 21)
    assert_reproducible(Scale(), x[:3])
    params = Scale((0.5, 0.75, 2.0)).get_params(x)
    counts = [int((params["factor"] == f).sum()) for f in (0.5, 0.75, 2.0)]
    assert sum(counts) == 500
    assert min(counts) > 120
    rows, columns = params["center"][0].T
    assert 0 <= float(rows.min()) < 0.2 < 5.8 < float(rows.max()) <= 6
    assert 0 <= float(columns.min()) < 0.4 < 19.6 < float(columns.max()) <= 20
    factor = Scale(LogUniform(0.25, 4.0)).get_params(x)["factor"]
    assert abs(float(factor.log().mean())) < 0.15
    assert float(factor.log().std()) == pytest.approx(math.log(16) / math.sqrt(12), rel=0.1)
    factor = Scale(Uniform(0.25, 4.0)).get_params(x)["factor"]
    assert float(factor.mean()) == pytest.approx(2.125, abs=0.15)
    star = Scale(center="star", n_trans=2).get_params(x[:3])["center"]
    assert star.shape == (2, 3, 2)
    assert star[1, 2].tolist() == [3, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": (0.5, 0.0)}, "`factors` must be positive"),
        ({"factors": ()}, "one finite number"),
        ({"factors": LogUniform(2.0, 1.0)}, "from low to high"),
        ({"center": "middle"}, '"random", "star" or'),
        ({"center": (1.0, 2.0, 3.0)}, "row, column"),
        ({"n_trans": 0}, "`n_trans`"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scale(**arguments)


def test_wrong_parameters():
    x = noise(3, 1, 5, 6)
    for params, message in (
        ({"factor": 0.5}, r"`center=\(row, column\)`, or make"),
        ({"center": (1, 1)}, "needs the parameters"),
        ({"factor": -1.0, "center": (1, 1)}, "positive"),
        ({"factor": torch.ones(2, 2), "center": (1, 1)}, "no multiple"),
        ({"factor": torch.ones(2, 1), "center": torch.ones(3, 1, 2)}, "alike"),
        ({"factor": torch.ones(1, 1, 1), "center": (1, 1)}, "axes"),
    ):
        with pytest.raises(ValueError, match=message):
            Scale()(x, **params)
    with pytest.raises(ValueError, match="cannot come from"):
        Scale().adjoint(x, factor=[0.5, 0.6], center=(1, 1))


# ---------------------------------------------------------------- with other transforms
def composed(name: str, antialias: str = "none"):
    rng = torch.Generator().manual_seed(3)
    scale = Scale((0.75,), "star", antialias=antialias, rng=rng)
    shift = deepinv.transform.Shift(shift_max=0.05, rng=rng)
    return {"*": scale * shift, "r*": shift * scale, "+": scale + shift, "|": scale | shift}[name]


@pytest.mark.parametrize("name", ["*", "r*", "+", "|"])
def test_composition_keeps_the_inverse(name):
    transform = composed(name)
    x = blob((50, 64), (26.0, 30.0), 4.0)
    params = transform.get_params(x)
    y = transform.transform(x, **params)
    back = transform.inverse(y, **params)
    for image in back:
        assert float((image - x[0]).norm() / x.norm()) < 0.01


def test_composition_of_many():
    """Two scalings of a batch and two shifts: every image comes back by its own parameters."""
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([blob((50, 64), c, 4.0) for c in ((26.0, 30.0), (20.0, 37.0), (30.0, 25.0))])
    scale = Scale((0.6, 0.9), n_trans=2, rng=rng)
    transform = scale * deepinv.transform.Shift(n_trans=2, shift_max=0.05, rng=rng)
    again = deepinv.transform.Shift(n_trans=2, shift_max=0.05, rng=rng) * scale
    for chain in (transform, again):
        params = chain.get_params(x)
        y = chain.transform(x, **params)
        assert len(y) == 12
        mean = chain.identity(x, average=True)
        assert float((mean - x).norm() / x.norm()) < 0.01
        one_by_one = chain.symmetrize(lambda v: v, average=True, collate_batch=False)(x)
        assert float((one_by_one - x).norm() / x.norm()) < 0.01


def test_symmetrize_sees_each_transform_once():
    transform = Scale((0.5, 0.75, 0.9), n_trans=4)
    x = smooth((3, 1, 40, 36))
    seen = []

    def f(v: torch.Tensor) -> torch.Tensor:
        seen.append(v)
        return v

    mean = transform.symmetrize(f, average=True, collate_batch=False)(x)
    assert [len(v) for v in seen] == [3, 3, 3, 3]
    assert float((mean - x).norm() / x.norm()) < 0.01
    assert float((transform.identity(x, average=True) - x).norm() / x.norm()) < 0.01


# ---------------------------------------------------------------- the published recipe
def test_recipe_is_the_published_one_but_for_the_grid():
    """deepinv's grid reads at (N - 1) / N of the position: a published scaling is one of ours."""
    n, factor, at = 40, 0.75, (0.3, 0.8)  # of the centre, (column, row) in units of the image
    x = noise(1, 2, n, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = deepinv.transform.Scale()(
            x, factor=torch.tensor([factor], **DOUBLE), center=torch.tensor([at], **DOUBLE)
        )
    # in pixels: q -> (n - 1) / n * (c + (q - c) / s) with c = n * at, a scaling by s n / (n - 1)
    stretched = factor * n / (n - 1)
    shrink = (n - 1) / n
    center = [shrink * n * a * (1 - 1 / factor) / (1 - shrink / factor) for a in at[::-1]]
    ours = scale_ei_recipe().transform(x, factor=stretched, center=center)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_recipe_settings():
    recipe = scale_ei_recipe(n_trans=2, rng=torch.Generator().manual_seed(1))
    transform = recipe.transform
    assert (transform.antialias, transform.kernel, transform.boundary, transform.keep) == (
        "none",
        "bicubic",
        "reflect",
        "brightness",
    )
    loss = EILoss(**recipe._asdict())
    x = noise(2, 1, 12, 10).requires_grad_()
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    value = loss(x, physics, lambda y, physics: 0.5 * y)
    assert not value.requires_grad  # nothing but the model could have one
